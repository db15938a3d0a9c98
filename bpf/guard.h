/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The source guard: dataplane/src/forward/guard.rs, question for question and in the same order. It comes before everything
 * else, since the kernel's bridge would deliver what is passed to it.
 */
#ifndef PODLANE_GUARD_H
#define PODLANE_GUARD_H

#include "decide.h"
#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"

#define ETHERTYPE_ARP 0x0806

/* RFC 4861: hop limit of neighbour discovery, types, and where an advertisement has its target. */
#define LINK_HOPS 255
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137
#define ADVERTISED_TARGET (IPV6_L4 + 8)

/* ARP for IPv4 over Ethernet, as far as the guard reads it. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 lengths[2];
	__be16 operation;
	__u8 sender_mac[6];
	__be16 sender[2];
};

/* Copies bytes of the frame that are not in its head, as bpf_skb_load_bytes; whoever includes this has it for its context. */
static __always_inline long load_more(void *ctx, __u32 offset, void *to, __u32 bytes);

static __always_inline int guard_has_mac(const struct guard *guard, __be64 key)
{
	if (key == guard->mac[0])
		return key != 0;
	for (__u32 index = 1; index < MAX_GUARD_MACS; index++) {
		if (key == guard->mac[index])
			return key != 0;
	}
	return 0;
}

/* Whether the sender may say that the address is its own. An empty place looks like 0.0.0.0, which is everybody's. */
static __always_inline int is_own4(const struct snapshot *snapshot, const struct port *from, const struct guard *guard,
				   __be32 address)
{
	const struct node *node;

	for (__u32 index = 0; index < MAX_GUARD_ADDRESSES; index++) {
		if (address == guard->ipv4[index])
			return 1;
	}
	if (!address)
		return 1;
	node = bpf_map_lookup_elem(&nodes, &snapshot->copy);
	return node && !(from->out.flags & PORT_GUARD_STRICT) && !in_cluster4(node, address);
}

static __always_inline int is_link_local(const struct address6 *address)
{
	return (address->high & bpf_cpu_to_be64(0xffc0ULL << 48)) == bpf_cpu_to_be64(0xfe80ULL << 48);
}

static __always_inline int is_own6(const struct snapshot *snapshot, const struct port *from, const struct guard *guard,
				   const struct address6 *address)
{
	const struct node *node;

	for (__u32 index = 0; index < MAX_GUARD_ADDRESSES; index++) {
		if (address->low == guard->ipv6[index].low && address->high == guard->ipv6[index].high)
			return 1;
	}
	if (!(address->high | address->low))
		return 1;
	if (is_link_local(address))
		return !(from->out.flags & PORT_GUARD_LINK_LOCAL);
	node = bpf_map_lookup_elem(&nodes, &snapshot->copy);
	return node && !(from->out.flags & PORT_GUARD_STRICT) && !in_cluster6(node, address);
}

#define FRAGMENT_HEADER 44

/* IPv6 extension headers behind which there may be another header. */
static __always_inline int is_extension(__u8 header)
{
	return header == FRAGMENT_HEADER || header == 0 || header == 43 || header == 51 || header == 60 || header == 135 || header == 139 ||
	       header == 140;
}

/*
 * Whether neighbour discovery may be behind the headers of a packet whose hop limit is the one without which nobody accepts it.
 * Of a fragment the first byte behind the IPv6 header says what the whole is: the first fragment's counts, and it is judged too.
 */
static __always_inline int may_hide_discovery(const struct ipv6 *ip, __u64 head_bytes)
{
	if (ip->next_header != FRAGMENT_HEADER)
		return is_extension(ip->next_header);
	return head_bytes <= IPV6_L4 || ip->jumbo.next_header == PROTOCOL_ICMPV6 || is_extension(ip->jumbo.next_header);
}

static __always_inline __u32 guard_ipv6(const struct snapshot *snapshot, void *ctx, const struct head *head,
					__u64 head_bytes, const struct port *from, const struct guard *guard)
{
	const struct ipv6 *ip = &head->ipv6;
	struct address6 target;

	if (head_bytes < IPV6_L4)
		return DROP_HIDDEN_SOURCE;
	if (!is_own6(snapshot, from, guard, &ip->source))
		return DROP_FOREIGN_ADDRESS;
	if (ip->next_header == PROTOCOL_ICMPV6 && head_bytes > IPV6_L4) {
		if (ip->icmp_type == ROUTER_ADVERTISEMENT || ip->icmp_type == REDIRECT)
			return DROP_FALSE_NEIGHBOUR;
		if (ip->icmp_type != NEIGHBOUR_ADVERTISEMENT)
			return 0;
		if (load_more(ctx, ADVERTISED_TARGET, &target, sizeof(target)))
			return DROP_HIDDEN_SOURCE;
		return is_own6(snapshot, from, guard, &target) ? 0 : DROP_FALSE_NEIGHBOUR;
	}
	return ip->hop_limit == LINK_HOPS && may_hide_discovery(ip, head_bytes) ? DROP_HIDDEN_SOURCE : 0;
}

static __always_inline __u32 guard_arp(const struct snapshot *snapshot, const struct head *head, __u64 head_bytes,
				       const struct port *from, const struct guard *guard)
{
	const struct arp *arp = (const struct arp *)&head->ipv4;
	__be64 key = mac_key((const __u64 *)arp->sender_mac);
	__be32 sender;

	if (head_bytes < ETHERNET_BYTES + sizeof(*arp))
		return DROP_HIDDEN_SOURCE;
	__builtin_memcpy(&sender, arp->sender, sizeof(sender));
	return guard_has_mac(guard, key) && is_own4(snapshot, from, guard, sender) ? 0 : DROP_FALSE_NEIGHBOUR;
}

/* Whether the loader kept the tables lately: after a while without it a pod's addresses may be others. */
static __always_inline int guard_is_kept(const struct snapshot *snapshot)
{
	__u64 ns = *(const volatile __u64 *)&snapshot->generations->heartbeat_ns;

	return (__s64)(bpf_ktime_get_coarse_ns() - ns) <= (__s64)(GUARD_STALE_MS * NS_PER_MS) && !is_torn(snapshot);
}

/*
 * Whether what stands in the port itself is enough to let the frame through: TCP and UDP from a pod with one MAC address,
 * from its first address, which is nearly everything. It says yes only where judge() does.
 */
static __always_inline int is_plainly_own(const struct head *head, __u64 head_bytes, const struct port *from)
{
	if (!(from->out.flags & PORT_GUARD_NEAR) || source_key(head) != from->station_key)
		return 0;
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4))
		return head_bytes >= IPV4_L4 && head->ipv4.source == from->own4;
	/* Neither TCP nor UDP is an extension header or neighbour discovery. */
	return head->ethertype == bpf_htons(ETHERTYPE_IPV6) && head_bytes >= IPV6_L4 &&
	       (head->ipv6.next_header == PROTOCOL_TCP || head->ipv6.next_header == PROTOCOL_UDP) &&
	       head->ipv6.source.low == from->own6.low && head->ipv6.source.high == from->own6.high;
}

/*
 * The guard's judgement by all that it knows: 0, or the enum drop_reason why the frame must be dropped. A function of its own, so
 * that what is let through at once has its instructions close together.
 */
static __noinline __u32 judge(const struct snapshot *snapshot, void *ctx, const struct head *head,
			      const struct packet *packet, const struct port *from)
{
	__u32 index = slot(snapshot, packet->ingress, MAX_PORTS);
	const struct guard *own = bpf_map_lookup_elem(&guards, &index);
	__u64 head_bytes = packet->head_bytes;

	if (!own)
		return 0;
	if (head_bytes < ETHERNET_BYTES)
		return DROP_HIDDEN_SOURCE;
	if (!guard_has_mac(own, source_key(head)))
		return DROP_FOREIGN_MAC;
	if (packet->is_tagged)
		return DROP_HIDDEN_SOURCE;
	switch (bpf_ntohs(head->ethertype)) {
	case ETHERTYPE_IPV4:
		if (head_bytes < IPV4_L4)
			return DROP_HIDDEN_SOURCE;
		return is_own4(snapshot, from, own, head->ipv4.source) ? 0 : DROP_FOREIGN_ADDRESS;
	case ETHERTYPE_IPV6:
		return guard_ipv6(snapshot, ctx, head, head_bytes, from, own);
	case ETHERTYPE_ARP:
		return guard_arp(snapshot, head, head_bytes, from, own);
	case ETHERTYPE_VLAN:
	case ETHERTYPE_QINQ:
		return DROP_HIDDEN_SOURCE;
	default:
		return 0;
	}
}

/*
 * Judges a frame of a guarded port, whose entry is from; of packet, what is known before the frame is parsed. 0, or the enum
 * drop_reason why it must be dropped.
 */
static __always_inline __u32 guard(const struct snapshot *snapshot, void *ctx, const struct head *head,
				   const struct packet *packet, const struct port *from)
{
	__u32 reason;

	if (likely(!packet->is_tagged && is_plainly_own(head, packet->head_bytes, from)))
		return 0;
	reason = judge(snapshot, ctx, head, packet, from);
	return reason && guard_is_kept(snapshot) ? reason : 0;
}

#endif
