// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Repeating: the second path. At tc ingress of a port, the engine's decision is repeated on the socket buffer itself, which
 * is then handed to the pod or to the uplink as it is: segmentation offload and unfinished checksums are kept, and no
 * frame visits user space. Like steering it is an allow list: what no check admits goes on to the kernel.
 *
 * Into a pod the socket buffer is handed to the other end of its veth (bpf_redirect_peer), so it skips the host end's
 * queue. The kernel has no such way out of an uplink, and the next hop's address stands in our tables: there the frame is
 * rewritten here and put into the interface's queue, so both paths send the very same bytes.
 *
 * Runs as a tcx program from Linux 6.6 on, and as a clsact filter before.
 */
#include "capture.h"
#include "decide.h"
#include "guard.h"
#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"
#include "translated.h"

#include <bpf/bpf_core_read.h>

struct sk_buff {
	__u8 encapsulation : 1;
} __attribute__((preserve_access_index));

/* Linux 6.2. */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/* The kernel's list of functions that its verifier knows by name, as far as it is asked about (kernel/bpf/verifier.c). */
enum special_kfunc_type {
	KF_bpf_cast_to_kern_ctx,
};

/* The data offset of a TCP header (RFC 9293, 3.1): the upper half of this byte, in words. */
#define TCP_DATA_OFFSET 12

/* What a socket buffer meets besides its decision. */
struct repeated {
	struct __sk_buff *skb;
	struct counters *count;
	__u32 ingress;
	/* A constant. */
	int captures;
};

/* The members of a record that do not depend on what happens to the socket buffer. */
static __always_inline void describe(struct __sk_buff *skb, struct capture_record *record)
{
	record->ifindex = skb->ifindex;
	record->frame_bytes = skb->len;
	record->gso_size = skb->gso_size;
	if (skb->vlan_present) {
		record->vlan_type = bpf_ntohs(skb->vlan_proto);
		record->vlan_tag = skb->vlan_tci;
	}
	record->place = CAPTURE_TC;
}

/* Records a socket buffer as it came in, with what was decided. */
static __always_inline void record_received(const struct repeated *frame, __u32 outcome, __u32 reason, __u32 to)
{
	const struct capture_scratch *scratch = scratch_of_capture();
	const struct capture_settings *settings;
	struct capture_record record = {};

	if (!scratch || !scratch->matches)
		return;
	settings = capture_wanted(frame->skb->ifindex, CAPTURE_RX);
	if (!settings)
		return;
	describe(frame->skb, &record);
	record.packet = scratch->received_ns;
	record.first_ns = scratch->received_ns;
	record.second_ns = bpf_ktime_get_ns();
	record.other = to;
	record.direction = CAPTURE_RX;
	record.outcome = outcome;
	record.reason = reason;
	emit_record(frame->skb, settings, frame->ingress, &record);
}

static __always_inline int next(const struct repeated *frame, __u32 reason)
{
	if (reason >= PASS_REASONS)
		reason = PASS_PORT_STATE;
	barrier_var(reason);
	frame->count->passed[reason & (PASS_SLOTS - 1)]++;
	frame->count->rx_packets++;
	frame->count->rx_bytes += frame->skb->len;
	if (frame->captures)
		record_received(frame, CAPTURE_PASSED, reason, 0);
	return TCX_NEXT;
}

/* Drops a frame that the guard does not let through. */
static __always_inline int drop(const struct repeated *frame, __u32 reason)
{
	barrier_var(reason);
	frame->count->dropped[(reason - DROP_FIRST) & (DROP_SLOTS - 1)]++;
	frame->count->rx_packets++;
	frame->count->rx_bytes += frame->skb->len;
	if (frame->captures)
		record_received(frame, CAPTURE_DROPPED, reason, 0);
	return TCX_DROP;
}

static __always_inline long load_more(void *ctx, __u32 offset, void *to, __u32 bytes)
{
	return bpf_skb_load_bytes(ctx, offset, to, bytes);
}

static __always_inline struct nf_conn *look_up(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_bytes,
					       struct bpf_ct_opts *opts)
{
	return bpf_skb_ct_lookup(ctx, tuple, tuple_bytes, opts, sizeof(*opts));
}

/* So many bytes are changed by routing at most: up to the checksum of the IPv4, or the hop limit of the IPv6 header. */
#define REWRITTEN_BYTES (ETHERNET_BYTES + 12)

/* As load_head of steer.h, for a socket buffer. */
static __always_inline __u64 load_head(struct __sk_buff *skb, __u64 frame_bytes, struct head *head)
{
	__u32 bytes = copy_head((const __u8 *)(long)skb->data, (const __u8 *)(long)skb->data_end, head);

	if (likely(bytes))
		return bytes;
	__builtin_memset(head, 0, sizeof(*head));
	bytes = head_bytes_of(frame_bytes);
	if (!bytes)
		return 0;
	return bpf_skb_load_bytes(skb, 0, head->destination, bytes) ? 0 : bytes;
}

/* A UDP super-frame may be several datagrams or something in a tunnel, whose segments are measured from further inside. */
static __always_inline int may_be_tunnel(struct __sk_buff *skb)
{
	const struct sk_buff *kernel_skb;

	/* The list stands for the function: Linux 6.2 and 6.3 refuse bpf_ksym_exists (can_look_up in translated.h). */
	if (!bpf_core_enum_value_exists(enum special_kfunc_type, KF_bpf_cast_to_kern_ctx))
		return 1;
	kernel_skb = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel_skb, encapsulation);
}

/*
 * How long the segments of a super-frame are on the wire: dataplane/src/packet/super_frame.rs. The kernel drops the jumbo
 * option from each.
 */
static __noinline __u32 measure_segments(struct __sk_buff *skb, const struct head *head, struct packet *packet)
{
	__u32 l4 = head->ethertype == bpf_htons(ETHERTYPE_IPV4) ? IPV4_L4 : IPV6_L4;
	__u8 offset;

	switch (packet->protocol) {
	case PROTOCOL_TCP:
		if (bpf_skb_load_bytes(skb, packet->l4_offset + TCP_DATA_OFFSET, &offset, 1))
			return PASS_MALFORMED;
		if (offset >> 4 < TCP_BYTES / 4)
			return PASS_MALFORMED;
		packet->wire_bytes = l4 + (offset >> 4) * 4 + skb->gso_size;
		return ADMIT;
	case PROTOCOL_UDP:
		if (may_be_tunnel(skb))
			return PASS_SUPER_FRAME;
		packet->wire_bytes = l4 + UDP_BYTES + skb->gso_size;
		return ADMIT;
	default:
		return PASS_SUPER_FRAME;
	}
}

/*
 * Notes that an adjacency or a station is in use, so that the loader keeps it alive in the kernel's tables. The time is that
 * of the loader's last sign of life, which saves a look at the clock.
 */
static __always_inline void touch(const struct snapshot *snapshot, __u32 activity)
{
	__u64 *last = bpf_map_lookup_elem(&used, &activity);
	__u64 now = *(const volatile __u64 *)&snapshot->generations->heartbeat_ns >> 30;

	/* Most of the time it is up to date, and the cache line stays shared between the CPUs. */
	if (last && *last != now)
		*last = now;
}

/*
 * The rewrite of a routed packet: dataplane/src/packet/rewrite.rs. Hop limit first: it is the one that may fail, when the
 * packet's headers are shared and there is no memory for a copy of them.
 */
static __noinline long rewrite(struct __sk_buff *skb, struct head *head, const struct adjacency *adjacency)
{
	__be64 macs[2] = { adjacency->destination_key, adjacency->source_key };

	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		/* TTL and protocol are one word m of the sum, and ~m + m' is 0xfeff whatever m was (RFC 1624, equation 3). */
		__u32 sum = (__u16)~bpf_ntohs(head->ipv4.checksum) + 0xfeff;

		head->ipv4.checksum = bpf_htons((__u16)~(sum + (sum >> 16)));
		head->ipv4.ttl--;
		__builtin_memcpy(head->destination, (const __u8 *)&macs[0] + 2, 6);
		__builtin_memcpy(head->source, (const __u8 *)&macs[1] + 2, 6);
		return bpf_skb_store_bytes(skb, 0, head->destination, ETHERNET_BYTES + 12, 0);
	}
	head->ipv6.hop_limit--;
	if (bpf_skb_store_bytes(skb, ETHERNET_BYTES + 7, &head->ipv6.hop_limit, 1, BPF_F_RECOMPUTE_CSUM))
		return -1;
	__builtin_memcpy(head->destination, (const __u8 *)&macs[0] + 2, 6);
	__builtin_memcpy(head->source, (const __u8 *)&macs[1] + 2, 6);
	return bpf_skb_store_bytes(skb, 0, head->destination, 12, 0);
}

/* How well the tables are kept. */
enum trust {
	TRUST_KEPT = 0,
	/* Their writer has been silent for a moment: it is being replaced, is gone or hangs. */
	TRUST_ORPHANED = 1,
	/* It has been silent for long, and what the tables say may be wrong. */
	TRUST_STALE = 2,
};

/* Bits of counters.clock that hold the answer. */
#define TRUST_BITS 2
#define TRUST_MASK ((1ULL << TRUST_BITS) - 1)

/*
 * Looks how well the tables are kept, and notes it in count->clock for this tick of the timer: within one, the answer is the
 * same.
 */
static __always_inline void look_at_clock(const struct snapshot *snapshot, struct counters *count, __u64 tick)
{
	__s64 age_ns = bpf_ktime_get_coarse_ns() - *(const volatile __u64 *)&snapshot->generations->heartbeat_ns;

	if (age_ns > (__s64)(TABLES_STALE_MS * NS_PER_MS))
		tick |= TRUST_STALE;
	else if (age_ns > (__s64)(TABLES_ORPHANED_MS * NS_PER_MS))
		tick |= TRUST_ORPHANED;
	count->clock = tick;
}

/*
 * Whether a packet may go out of this interface. Of orphaned tables the kernel itself is asked whether the interface is
 * still the one that they mean: a pod's may be gone, and its index another's.
 */
static __always_inline int may_leave(const struct counters *count, __u32 ifindex)
{
	int trust = count->clock & TRUST_MASK;

	if (likely(trust == TRUST_KEPT))
		return 1;
	return trust == TRUST_ORPHANED && bpf_map_lookup_elem(&devices, &ifindex);
}

/* PACKET_HOST of linux/if_packet.h. */
#define PACKET_FOR_US 0

/* The running kernel, as a constant: what is not for it is not even verified. */
extern int LINUX_KERNEL_VERSION __kconfig;

/* Linux 6.15: bpf_redirect_peer clears what the packet was to the host end. */
#define FORGETS_PACKET_TYPE ((6 << 16) + (15 << 8))

/* Hands the socket buffer on. */
static __always_inline int hand_on(struct __sk_buff *skb, __u32 ifindex, __u32 is_peer)
{
	if (is_peer) {
		/* The kernel clears it on the way from one namespace into another, but not on this one. */
		if (unlikely(skb->mark))
			skb->mark = 0;
		/*
		 * To the host end a pod's frame is one for another station, since it is addressed to the receiver or to the
		 * bridge. An older kernel's pod would take it for that, too, and drop it.
		 */
		if (LINUX_KERNEL_VERSION < FORGETS_PACKET_TYPE && skb->pkt_type)
			bpf_skb_change_type(skb, PACKET_FOR_US);
		return bpf_redirect_peer(ifindex, 0);
	}
	return bpf_redirect(ifindex, 0);
}

/* Has the next program record the socket buffer as it is sent, and hand it on. Returns only if it need not or cannot. */
static __always_inline void record_sent(struct __sk_buff *skb, const struct way_out *to, const struct packet *packet)
{
	struct capture_scratch *scratch = scratch_of_capture();
	const struct capture_settings *settings = capture_wanted(to->ifindex, CAPTURE_TX);
	int again;

	if (!scratch || !settings)
		return;
	again = packet->adjacency && settings->filters_sent;
	if (!again && !scratch->matches)
		return;
	scratch->to_ifindex = to->ifindex;
	scratch->to_peer = to->flags & PORT_PEER;
	scratch->port = packet->egress;
	if (again)
		bpf_tail_call_static(skb, &stages, STAGE_FILTER_SENT);
	else
		bpf_tail_call_static(skb, &stages, STAGE_SENT);
}

/* Counts the socket buffer and hands it on. What is forwarded was received: the loader adds it there (struct counters). */
static __always_inline int forward(const struct repeated *frame, const struct way_out *to, const struct packet *packet)
{
	struct counters *out = bpf_map_lookup_elem(&counters, &packet->egress);
	struct counters *count = frame->count;

	count->repeated++;
	count->repeated_bytes += packet->frame_bytes;
	if (out) {
		out->repeated_out++;
		out->repeated_out_bytes += packet->frame_bytes;
	}
	if (frame->captures)
		record_sent(frame->skb, to, packet);
	return hand_on(frame->skb, to->ifindex, to->flags & PORT_PEER);
}

/* The program. captures: a constant, whether to make records. */
static __always_inline int repeat(struct __sk_buff *skb, int captures)
{
	struct repeated frame = { .skb = skb, .captures = captures };
	const struct port *from = NULL;
	struct adjacency adjacency;
	struct way_out to;
	int is_routed;
	struct snapshot snapshot;
	struct counters *count;
	struct packet packet;
	struct head head;
	__u32 ingress, reason, sender;
	__u64 tick;

	if (captures)
		note_received();
	if (!take_snapshot(&snapshot))
		return TCX_NEXT;
	ingress = ingress_port(&snapshot, skb->ifindex, &from);
	if (unlikely(!from || !(from->out.flags & PORT_REPEATED)))
		return TCX_NEXT;
	count = bpf_map_lookup_elem(&counters, &ingress);
	if (!count)
		return TCX_NEXT;
	frame.count = count;
	frame.ingress = ingress;
	packet.ingress = ingress;
	packet.frame_bytes = skb->len;
	packet.is_super = skb->gso_size != 0;
	packet.is_tagged = skb->vlan_present;
	packet.head_bytes = load_head(skb, packet.frame_bytes, &head);
	if (from->out.flags & PORT_GUARDED) {
		reason = guard(&snapshot, skb, &head, &packet, from);
		if (unlikely(reason))
			return drop(&frame, reason);
	}
	if (unlikely(packet.is_tagged))
		return next(&frame, PASS_VLAN);
	reason = parse(&head, &packet);
	if (reason == ADMIT && unlikely(packet.is_super))
		reason = measure_segments(skb, &head, &packet);
	if (reason == ADMIT)
		reason = decide(&snapshot, &head, &packet, from);
	if (unlikely(reason != ADMIT))
		return next(&frame, is_torn(&snapshot) ? PASS_TABLES_CHANGED : reason);
	/*
	 * Everything that is needed of the snapshot is taken out of it before it is asked whether it was whole. That the only
	 * station of a port is in use is noted once a tick, that of several or an adjacency with each of its frames.
	 */
	if (!packet.to)
		return next(&frame, PASS_PORT_STATE);
	to = *packet.to;
	is_routed = packet.adjacency != NULL;
	if (is_routed)
		adjacency = *packet.adjacency;
	sender = packet.sender_activity;
	tick = bpf_jiffies64() << TRUST_BITS;
	if (likely((count->clock & ~TRUST_MASK) == tick)) {
		if (sender == from->station_activity)
			sender = NOBODY;
	} else {
		look_at_clock(&snapshot, count, tick);
	}
	if (unlikely(is_torn(&snapshot)))
		return next(&frame, PASS_TABLES_CHANGED);
	if (!to.ifindex)
		return next(&frame, PASS_PORT_STATE);
	if (unlikely(!may_leave(count, to.ifindex)))
		return next(&frame, PASS_TABLES_STALE);
	if (unlikely(packet.node_flags & NODE_TRANSLATES)) {
		reason = check_translation(skb, &head, &packet);
		if (reason != ADMIT)
			return next(&frame, reason);
	}
	if (unlikely(sender != NOBODY))
		touch(&snapshot, sender);
	/* What is rewritten below must be writable before the record says that it is forwarded. */
	if (captures && is_routed && bpf_skb_pull_data(skb, REWRITTEN_BYTES))
		return next(&frame, PASS_PORT_STATE);
	if (captures)
		record_received(&frame, CAPTURE_FORWARDED, is_routed, to.ifindex);
	if (is_routed) {
		touch(&snapshot, adjacency.activity);
		if (rewrite(skb, &head, &adjacency))
			return next(&frame, PASS_PORT_STATE);
	}
	return forward(&frame, &to, &packet);
}

SEC("tc")
int podlane_repeat(struct __sk_buff *skb)
{
	bpf_tail_call_static(skb, &stages, STAGE_FIRST);
	return repeat(skb, 0);
}

SEC("tc")
int podlane_repeat_rec(struct __sk_buff *skb)
{
	return repeat(skb, 1);
}

/* Records what the program above decided to send, as it is sent, and sends it. */
SEC("tc")
int podlane_repeat_sent(struct __sk_buff *skb)
{
	const struct capture_scratch *scratch = scratch_of_capture();
	const struct capture_settings *settings;
	struct capture_record record = {};

	if (!scratch)
		return TCX_NEXT;
	settings = capture_wanted(scratch->to_ifindex, CAPTURE_TX);
	if (settings && scratch->matches) {
		describe(skb, &record);
		record.second_ns = record.first_ns = bpf_ktime_get_ns();
		record.packet = scratch->received_ns ? scratch->received_ns : record.first_ns;
		record.other = record.ifindex;
		record.ifindex = scratch->to_ifindex;
		record.direction = CAPTURE_TX;
		record.outcome = CAPTURE_SENT;
		emit_record(skb, settings, scratch->port, &record);
	}
	return hand_on(skb, scratch->to_ifindex, scratch->to_peer);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
