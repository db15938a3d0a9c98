/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The forwarding decision: dataplane/src/forward, question for question and in the same order. Only the verdict; whoever
 * forwards the frame does the rewrite.
 */
#ifndef PODLANE_DECIDE_H
#define PODLANE_DECIDE_H

#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"

/* The port with this number if frames may enter and leave through it. */
static __always_inline const struct port *forwarding_port(__u32 id)
{
	const struct port *port = bpf_map_lookup_elem(&ports, &id);

	return port && port->flags & PORT_FORWARDING ? port : NULL;
}

static __always_inline int in_cluster4(const struct node *node, __be32 address)
{
	for (__u32 index = 0; index < MAX_CLUSTER_CIDRS; index++) {
		if (index >= node->cidrs4)
			return 0;
		if ((address & node->cidr4[index].mask) == node->cidr4[index].address)
			return 1;
	}
	return 0;
}

static __always_inline int in_cluster6(const struct node *node, const struct address6 *address)
{
	for (__u32 index = 0; index < MAX_CLUSTER_CIDRS; index++) {
		const struct cidr6 *cidr = &node->cidr6[index];

		if (index >= node->cidrs6)
			return 0;
		if ((address->high & cidr->mask.high) == cidr->address.high &&
		    (address->low & cidr->mask.low) == cidr->address.low)
			return 1;
	}
	return 0;
}

static __always_inline int both_ends_in_cluster(const struct head *head, const struct node *node)
{
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4))
		return in_cluster4(node, head->ipv4.source) && in_cluster4(node, head->ipv4.destination);
	return in_cluster6(node, &head->ipv6.source) && in_cluster6(node, &head->ipv6.destination);
}

/*
 * Whether the frame may leave through a port: everything behind its Ethernet header within the MTUs, padding included as
 * in the kernel's is_skb_forwardable, and the frame within what the sockets on the way carry.
 */
static __always_inline __u32 fits(const struct packet *packet, const struct port *from, const struct port *to,
				  __u32 route_mtu)
{
	__u64 bytes = packet->frame_bytes - ETHERNET_BYTES;

	if (bytes > to->mtu || bytes > route_mtu)
		return PASS_TOO_BIG;
	if (packet->frame_bytes > from->max_frame || packet->frame_bytes > to->max_frame)
		return PASS_FRAME_SIZE;
	return ADMIT;
}

/* The destination MAC address is another pod's. */
static __always_inline __u32 bridge(const struct head *head, struct packet *packet, __u32 ingress,
				    const struct port *from, const struct node *node)
{
	const struct port *to;
	__u32 *egress;

	if (node->bridge_off)
		return node->bridge_off - 1;
	egress = bpf_map_lookup_elem(&fdb, &head->destination_key);
	if (!egress)
		return PASS_UNKNOWN_MAC;
	if (*egress == ingress)
		return PASS_HAIRPIN;
	to = forwarding_port(*egress);
	if (!to)
		return PASS_PORT_STATE;
	if (from->flags & to->flags & PORT_ISOLATED)
		return PASS_PORT_STATE;
	packet->egress = *egress;
	return fits(packet, from, to, ~0U);
}

/* Longest-prefix match of the destination: an index into next_hops. */
static __always_inline const __u32 *longest_prefix(const struct head *head)
{
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct prefix4 key = { .length = 32, .address = head->ipv4.destination };

		return bpf_map_lookup_elem(&fib4, &key);
	} else {
		struct prefix6 key = { .length = 128 };

		__builtin_memcpy(key.address, &head->ipv6.destination, sizeof(key.address));
		return bpf_map_lookup_elem(&fib6, &key);
	}
}

/* The destination among the hosts of a link: an index into adjacencies. */
static __always_inline const __u32 *on_link(const struct head *head, __u32 link)
{
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct host4 key = { .link = link, .address = head->ipv4.destination };

		return bpf_map_lookup_elem(&hosts4, &key);
	} else {
		struct host6 key = { .link = link };

		__builtin_memcpy(key.address, &head->ipv6.destination, sizeof(key.address));
		return bpf_map_lookup_elem(&hosts6, &key);
	}
}

/* The destination MAC address is the node's, the destination IP address is somebody else's. */
static __always_inline __u32 route(const struct head *head, struct packet *packet, __u32 ingress,
				   const struct port *from, const struct node *node)
{
	int is_ipv4 = head->ethertype == bpf_htons(ETHERTYPE_IPV4);
	__u32 off = is_ipv4 ? node->ipv4_off : node->ipv6_off;
	const struct next_hop *next_hop;
	const struct adjacency *adjacency;
	const struct port *to;
	const __u32 *index;

	if (off)
		return off - 1;
	index = longest_prefix(head);
	if (!index)
		return PASS_NO_ROUTE;
	next_hop = bpf_map_lookup_elem(&next_hops, index);
	if (!next_hop)
		return PASS_NO_ROUTE;
	switch (next_hop->kind) {
	case NEXT_HOP_KERNEL:
		return next_hop->value;
	case NEXT_HOP_ON_LINK:
		index = on_link(head, next_hop->value);
		break;
	case NEXT_HOP_GATEWAY:
		index = &next_hop->value;
		break;
	default:
		return PASS_NO_ROUTE;
	}
	if (!index)
		return PASS_UNRESOLVED;
	adjacency = bpf_map_lookup_elem(&adjacencies, index);
	if (!adjacency || !adjacency->present)
		return PASS_UNRESOLVED;
	if (is_ipv4 && !header_checksum_is_right(&head->ipv4))
		return PASS_MALFORMED;
	if (adjacency->port == ingress)
		return PASS_HAIRPIN;
	to = forwarding_port(adjacency->port);
	if (!to)
		return PASS_PORT_STATE;
	packet->egress = adjacency->port;
	return fits(packet, from, to, next_hop->mtu);
}

/*
 * Decides a frame that came in through port ingress, whose entry is from. ADMIT: Podlane forwards it. Anything else, even
 * a number beyond PASS_REASONS out of a half-written table: it is the kernel's.
 */
static __always_inline __u32 decide(const struct head *head, struct packet *packet, __u32 ingress,
				    const struct port *from)
{
	__u32 zero = 0;
	const struct node *node = bpf_map_lookup_elem(&nodes, &zero);

	if (!node || !(from->flags & PORT_FORWARDING))
		return PASS_PORT_STATE;
	if (from->flags & PORT_PARTIAL_CHECKSUMS && packet->may_hide_checksum)
		return PASS_HIDDEN_CHECKSUM;
	if (!both_ends_in_cluster(head, node))
		return PASS_OUTSIDE_CLUSTER;
	if (head->destination_key == from->router_key)
		return route(head, packet, ingress, from, node);
	/* An uplink in promiscuous mode sees frames for other stations; they are not ours to bridge. */
	if (from->kind != PORT_POD)
		return PASS_UNKNOWN_MAC;
	return bridge(head, packet, ingress, from, node);
}

#endif
