/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Capture: records of frames for `podlane capture`, out of the programs that see them.
 *
 * Every program that decides is there twice. The one that is attached begins with a tail call into `stages`, where there is
 * nothing while nobody captures, and the kernel turns such a call into a jump to the next instruction. Capturing is
 * putting a program there. The user's filter, which the loader has translated (loader/src/bpf/filter.rs), notes whether the
 * frame matches and calls on; the second program decides by the same code, and records are made besides. If a call fails,
 * the frame takes its way without a record.
 *
 * A record goes to the loader through a ring; when that is full, the record is lost and counted, and the frame is not.
 */
#ifndef PODLANE_CAPTURE_H
#define PODLANE_CAPTURE_H

#include "kernel.h"
#include "limits.h"

/*
 * Places in stages. tc: the filter, the program that decides and records what came in, the filter again, the program that
 * records what is sent and sends it. XDP: the program that decides; the second is empty; the filter, for what is the kernel's
 * only; the program that records that.
 */
enum stage {
	STAGE_FIRST = 0,
	STAGE_CAPTURE = 1,
	STAGE_FILTER_SENT = 2,
	STAGE_SENT = 3,
	STAGES = 4,
};

enum capture_direction {
	CAPTURE_RX = 1 << 0,
	CAPTURE_TX = 1 << 1,
};

/* What the loader wants recorded. */
struct capture_settings {
	/* Bytes of a frame that are kept. */
	__u32 snap_bytes;
	/* enum capture_direction */
	__u32 directions;
	/* 0: all ports. Otherwise those in captured. */
	__u32 chosen;
	/* Whether the filter looks at anything that routing changes, so that it has to be asked again of what is sent. */
	__u32 filters_sent;
};

/* What one program leaves for the next on this CPU. The filter writes the first member (loader/src/bpf/filter.rs). */
struct capture_scratch {
	/* Whether the frame matches. */
	__u32 matches;
	/* The way out. */
	__u32 to_ifindex;
	__u32 to_peer;
	/* Number of the port for which a record is made. */
	__u32 port;
	/* enum pass_reason; or enum drop_reason, if it was dropped. */
	__u32 reason;
	__u32 dropped;
	__u64 received_ns;
};

enum capture_outcome {
	CAPTURE_FORWARDED = 0,
	CAPTURE_PASSED = 1,
	CAPTURE_DROPPED = 2,
	CAPTURE_SENT = 3,
};

enum capture_place {
	CAPTURE_XDP = 1,
	CAPTURE_TC = 2,
};

/* A record; the frame's first bytes follow. loader/src/capture/record.rs reads it. */
struct capture_record {
	/* The same for both records of a frame, and for no other. */
	__u64 packet;
	/* Received and decided; or rewritten and sent. CLOCK_MONOTONIC, nanoseconds. */
	__u64 first_ns;
	__u64 second_ns;
	__u32 ifindex;
	/* Where it is forwarded to; or where it came from. */
	__u32 other;
	__u32 frame_bytes;
	/* Of a super-frame: payload of each segment, bytes. */
	__u32 gso_size;
	/* A VLAN tag beside the frame: its EtherType and its control information, both as the machine has them. */
	__u16 vlan_type;
	__u16 vlan_tag;
	/* enum capture_direction, capture_outcome, pass_reason or drop_reason, capture_place */
	__u8 direction;
	__u8 outcome;
	__u8 reason;
	__u8 place;
};

_Static_assert(sizeof(struct capture_record) == 48, "no gaps");

/* One for each attached program. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, STAGES);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct capture_settings);
} capture_settings SEC(".maps");

/* Interfaces whose frames are recorded, if not all are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CAPTURE_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} captured SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct capture_scratch);
} capture_scratch SEC(".maps");

/* Records that found no room, by port number; the last element is that of interfaces that are no port. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS + 1);
	__type(key, __u32);
	__type(value, __u64);
} capture_lost SEC(".maps");

/* The loader makes it as large as there are CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} capture_events SEC(".maps");

static __always_inline struct capture_scratch *scratch_of_capture(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&capture_scratch, &zero);
}

/* Notes when a frame that matches began its way through the program. */
static __always_inline void note_received(void)
{
	struct capture_scratch *scratch = scratch_of_capture();

	if (scratch)
		scratch->received_ns = scratch->matches ? bpf_ktime_get_ns() : 0;
}

/* What is wanted of this interface in this direction; NULL for nothing. */
static __always_inline const struct capture_settings *capture_wanted(__u32 ifindex, __u32 direction)
{
	__u32 zero = 0;
	const struct capture_settings *settings = bpf_map_lookup_elem(&capture_settings, &zero);

	if (!settings || !(settings->directions & direction))
		return NULL;
	if (settings->chosen && !bpf_map_lookup_elem(&captured, &ifindex))
		return NULL;
	return settings;
}

/* Hands a record to the loader, with the frame's first bytes. */
static __always_inline void emit_record(void *ctx, const struct capture_settings *settings, __u32 port,
					struct capture_record *record)
{
	__u64 bytes = record->frame_bytes < settings->snap_bytes ? record->frame_bytes : settings->snap_bytes;
	__u64 *lost;

	record->packet = (record->packet << 8) | (__u8)bpf_get_smp_processor_id();
	if (!bpf_perf_event_output(ctx, &capture_events, BPF_F_CURRENT_CPU | bytes << 32, record, sizeof(*record)))
		return;
	lost = bpf_map_lookup_elem(&capture_lost, &port);
	if (lost)
		++*lost;
}

#endif
