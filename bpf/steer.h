/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Steering: a frame that the engine can finish goes to the AF_XDP socket of its queue, every other one to the kernel,
 * with a counted reason. It is an allow list: what no check admits passes.
 */
#ifndef PODLANE_STEER_H
#define PODLANE_STEER_H

#include "capture.h"
#include "decide.h"
#include "guard.h"
#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"
#include "translated.h"

/*
 * Copies the first bytes of a frame of frame_bytes into head and says how many. A driver may leave any number of them,
 * down to none, in the linear part; the helper reads across buffers and is the slow way.
 */
static __always_inline __u64 load_head(struct xdp_md *ctx, __u64 frame_bytes, struct head *head)
{
	const __u8 *from = (const __u8 *)(long)ctx->data;
	__u64 bytes = copy_head(from, (const __u8 *)(long)ctx->data_end, head);

	if (bytes)
		return bytes;
	__builtin_memset(head, 0, sizeof(*head));
	bytes = head_bytes_of(frame_bytes);
	if (!bytes)
		return 0;
	return bpf_xdp_load_bytes(ctx, 0, head->destination, bytes) ? 0 : bytes;
}

static __always_inline long load_more(void *ctx, __u32 offset, void *to, __u32 bytes)
{
	return bpf_xdp_load_bytes(ctx, offset, to, bytes);
}

static __always_inline struct nf_conn *look_up(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_bytes,
					       struct bpf_ct_opts *opts)
{
	return bpf_xdp_ct_lookup(ctx, tuple, tuple_bytes, opts, sizeof(*opts));
}

/*
 * Whether the worker that owns a socket has lately shown that it is alive: it writes a heartbeat, and it comes by soon after
 * it was given a frame. The second is what notices a killed process, whose sockets the kernel closes one after the other, long
 * after its threads are gone. With is_given, the worker is about to be given a frame.
 */
static __always_inline int worker_is_alive(__u32 socket, __u64 now, int is_given)
{
	struct heartbeat *heartbeat;
	const __u32 *worker = bpf_map_lookup_elem(&owners, &socket);
	__u64 ns, given_ns;

	if (!worker)
		return 0;
	heartbeat = bpf_map_lookup_elem(&heartbeats, worker);
	if (!heartbeat)
		return 0;
	ns = *(const volatile __u64 *)&heartbeat->ns;
	/* The worker may have read the clock after us: a heartbeat from the future is fresh. */
	if (!ns || (__s64)(now - ns) > (__s64)(HEARTBEAT_STALE_MS * NS_PER_MS))
		return 0;
	given_ns = *(const volatile __u64 *)&heartbeat->given_ns;
	/* Each tick of the clock at most once, so that the worker keeps its cache line. */
	if ((__s64)(given_ns - ns) <= 0) {
		if (is_given && given_ns != now)
			*(volatile __u64 *)&heartbeat->given_ns = now;
		return 1;
	}
	return (__s64)(now - given_ns) <= (__s64)(WORKER_WAIT_MS * NS_PER_MS);
}

/*
 * Whether the frame's way out is alive too: a worker hands frames for a port of which it owns no queue to one that does.
 * A port with a queue for every worker needs nobody else; of any other, each owner must be alive.
 */
static __always_inline int way_out_is_alive(__u32 ingress_socket, __u32 egress, __u64 now)
{
	const __u32 *worker = bpf_map_lookup_elem(&owners, &ingress_socket);
	const __u32 *owner;
	__u32 socket;

	barrier_var(egress);
	if (!worker || *worker >= MAX_QUEUES || egress >= MAX_PORTS)
		return 0;
	socket = egress * MAX_QUEUES + *worker;
	owner = bpf_map_lookup_elem(&owners, &socket);
	if (owner && *owner == *worker && bpf_map_lookup_elem(&sockets, &socket))
		return 1;
	for (__u32 queue = 0; queue < MAX_QUEUES; queue++) {
		socket = egress * MAX_QUEUES + queue;
		if (!bpf_map_lookup_elem(&sockets, &socket))
			return 1;
		if (!worker_is_alive(socket, now, 0))
			return 0;
	}
	return 1;
}

/*
 * Whether the tables may be believed about an interface: as on the other path (may_leave in repeat.bpf.c). Workers that are
 * alive decide by the same tables as this program, so it is here that a loader that hangs is noticed.
 */
static __always_inline int tables_are_believed(const struct snapshot *snapshot, __u64 now, const struct way_out *to)
{
	__s64 age_ns = now - *(const volatile __u64 *)&snapshot->generations->heartbeat_ns;
	__u32 ifindex;

	if (age_ns <= (__s64)(TABLES_ORPHANED_MS * NS_PER_MS))
		return 1;
	if (age_ns > (__s64)(TABLES_STALE_MS * NS_PER_MS) || !to)
		return 0;
	ifindex = to->ifindex;
	return bpf_map_lookup_elem(&devices, &ifindex) != NULL;
}

/* What a frame meets besides its decision. */
struct steered {
	struct xdp_md *ctx;
	struct counters *count;
	__u32 ingress;
	/* Whether it was passed, or dropped by the guard, and counted; and why. */
	__u32 is_passed;
	__u32 is_dropped;
	__u32 reason;
};

static __always_inline int pass(struct steered *frame, __u32 reason)
{
	if (reason >= PASS_REASONS)
		reason = PASS_PORT_STATE;
	barrier_var(reason);
	frame->count->passed[reason & (PASS_SLOTS - 1)]++;
	frame->is_passed = 1;
	frame->reason = reason;
	return XDP_PASS;
}

static __always_inline int drop(struct steered *frame, __u32 reason)
{
	barrier_var(reason);
	frame->count->dropped[(reason - DROP_FIRST) & (DROP_SLOTS - 1)]++;
	frame->is_dropped = 1;
	frame->reason = reason;
	return XDP_DROP;
}

/* Sends an admitted frame to the socket of its queue if somebody drains it. */
static __always_inline int to_socket(struct steered *frame, const struct snapshot *snapshot, const struct packet *packet)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 queue = frame->ctx->rx_queue_index;
	__u32 socket = frame->ingress * MAX_QUEUES + queue;

	if (queue >= MAX_QUEUES || !bpf_map_lookup_elem(&sockets, &socket))
		return pass(frame, PASS_NO_SOCKET);
	if (!tables_are_believed(snapshot, now, packet->to))
		return pass(frame, PASS_TABLES_STALE);
	if (!way_out_is_alive(socket, packet->egress, now) || !worker_is_alive(socket, now, 1))
		return pass(frame, PASS_WORKER_STALLED);
	if (bpf_redirect_map(&sockets, socket, XDP_PASS) != XDP_REDIRECT)
		return pass(frame, PASS_NO_SOCKET);
	frame->count->steered++;
	return XDP_REDIRECT;
}

/*
 * The program. hidden: ADMIT, or why the frame is the kernel's for something that does not stand in the frame itself and
 * that a socket would lose.
 */
static __always_inline int decide_frame(struct steered *frame, __u32 hidden)
{
	struct xdp_md *ctx = frame->ctx;
	__u32 ifindex = ctx->ingress_ifindex;
	const struct port *port = NULL;
	struct counters *count;
	struct snapshot snapshot;
	struct packet packet;
	struct head head;
	__u32 ingress, reason;

	if (!take_snapshot(&snapshot))
		return XDP_PASS;
	ingress = ingress_port(&snapshot, ifindex, &port);
	if (port && port->out.flags & PORT_REPEATED)
		return XDP_PASS;
	count = bpf_map_lookup_elem(&counters, &ingress);
	if (!count)
		return XDP_PASS;
	frame->count = count;
	frame->ingress = ingress;
	packet.ingress = ingress;
	packet.frame_bytes = bpf_xdp_get_buff_len(ctx);
	packet.is_super = 0;
	packet.is_tagged = hidden == PASS_VLAN;
	count->rx_packets++;
	count->rx_bytes += packet.frame_bytes;
	packet.head_bytes = load_head(ctx, packet.frame_bytes, &head);
	if (port && port->out.flags & PORT_GUARDED) {
		reason = guard(&snapshot, ctx, &head, &packet, port);
		if (unlikely(reason))
			return drop(frame, reason);
	}
	if (hidden != ADMIT)
		return pass(frame, hidden);
	reason = parse(&head, &packet);
	if (reason != ADMIT)
		return pass(frame, reason);
	if (!port)
		return pass(frame, PASS_PORT_STATE);
	reason = decide(&snapshot, &head, &packet, port);
	if (is_torn(&snapshot))
		return pass(frame, PASS_TABLES_CHANGED);
	if (reason == ADMIT && packet.node_flags & NODE_TRANSLATES)
		reason = check_translation(ctx, &head, &packet);
	if (reason != ADMIT)
		return pass(frame, reason);
	return to_socket(frame, &snapshot, &packet);
}

/* The program, as it is attached. */
static __always_inline int steer_frame(struct xdp_md *ctx, __u32 hidden)
{
	struct steered frame = { .ctx = ctx };

	return decide_frame(&frame, hidden);
}

/*
 * The same, and has what is the kernel's recorded: by way of the filter, which so costs nothing for what goes to a socket and
 * is filtered by its worker.
 */
static __always_inline int steer_recorded(struct xdp_md *ctx, __u32 hidden)
{
	struct steered frame = { .ctx = ctx };
	int verdict = decide_frame(&frame, hidden);
	struct capture_scratch *scratch;

	if (!(frame.is_passed | frame.is_dropped) || !capture_wanted(ctx->ingress_ifindex, CAPTURE_RX))
		return verdict;
	scratch = scratch_of_capture();
	if (scratch) {
		scratch->dropped = frame.is_dropped;
		scratch->reason = frame.reason;
		scratch->port = frame.ingress;
		bpf_tail_call_static(ctx, &stages, STAGE_FILTER_SENT);
	}
	return verdict;
}

/* Records a frame that is the kernel's, or that the guard dropped. */
SEC("xdp.frags")
int podlane_steer_passed(struct xdp_md *ctx)
{
	const struct capture_scratch *scratch = scratch_of_capture();
	const struct capture_settings *settings;
	struct capture_record record = {};
	int verdict;

	if (!scratch)
		return XDP_PASS;
	verdict = scratch->dropped ? XDP_DROP : XDP_PASS;
	settings = capture_wanted(ctx->ingress_ifindex, CAPTURE_RX);
	if (!settings || !scratch->matches)
		return verdict;
	record.first_ns = record.second_ns = record.packet = bpf_ktime_get_ns();
	record.ifindex = ctx->ingress_ifindex;
	record.frame_bytes = bpf_xdp_get_buff_len(ctx);
	record.direction = CAPTURE_RX;
	record.outcome = scratch->dropped ? CAPTURE_DROPPED : CAPTURE_PASSED;
	record.reason = scratch->reason;
	record.place = CAPTURE_XDP;
	emit_record(ctx, settings, scratch->port, &record);
	return verdict;
}

#endif
