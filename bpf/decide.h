/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The forwarding decision: dataplane/src/forward, question for question and in the same order. Only the verdict; the rewrite
 * is in repeat.bpf.c and, for AF_XDP, the worker's.
 */
#ifndef PODLANE_DECIDE_H
#define PODLANE_DECIDE_H

#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"

/* An element of an array that has all copies of a table one behind the other. */
static __always_inline __u32 slot(const struct snapshot *snapshot, __u32 index, __u32 size)
{
	/* An index beyond the table must not reach into the other copy. */
	return index < size ? snapshot->copy * size + index : COPIES * size;
}

/* The port of this number. */
static __always_inline const struct port *port_of(const struct snapshot *snapshot, __u32 id)
{
	__u32 index = slot(snapshot, id, MAX_PORTS);

	return bpf_map_lookup_elem(&ports, &index);
}

/* The same if frames may enter and leave through it. */
static __always_inline const struct port *forwarding_port(const struct snapshot *snapshot, __u32 id)
{
	const struct port *port = port_of(snapshot, id);

	return port && port->flags & PORT_FORWARDING ? port : NULL;
}

/*
 * The number of the port behind an interface, and its entry; MAX_PORTS if it is none. No entry, if the number was handed
 * out again while we looked and belongs to another interface.
 */
static __always_inline __u32 ingress_port(const struct snapshot *snapshot, __u32 ifindex, const struct port **port)
{
	__u32 key = ifindex * COPIES + snapshot->copy;
	__u32 place = slot(snapshot, ifindex & (NEAR_INTERFACES - 1), NEAR_INTERFACES);
	const struct near *near = bpf_map_lookup_elem(&near_interfaces, &place);
	const struct port *found;
	const __u32 *id;

	if (near && near->ifindex == ifindex)
		id = &near->port;
	else
		id = bpf_map_lookup_elem(&interfaces, &key);
	if (!id)
		return MAX_PORTS;
	found = port_of(snapshot, *id);
	if (found && found->ifindex == ifindex)
		*port = found;
	return *id;
}

/* Where a MAC address is; key is like head.destination_key. */
static __always_inline const struct station *station_of(const struct snapshot *snapshot, __be64 key)
{
	__u32 place = slot(snapshot, near_place(key), NEAR_STATIONS);
	const struct near_station *near = bpf_map_lookup_elem(&near_stations, &place);
	union {
		__be64 key;
		__u8 copy;
	} address = { .key = key };

	/* An empty place looks like the address of zeros, which is nobody's. */
	if (near && near->key == key && key)
		return &near->station;
	address.copy = snapshot->copy;
	return bpf_map_lookup_elem(&fdb, &address.key);
}

/* The source MAC address like head.destination_key: the EtherType, which follows it, is shifted out. */
static __always_inline __be64 source_key(const struct head *head)
{
	__u64 source_and_type = *(const __u64 *)head->source;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return source_and_type << 16;
#else
	return source_and_type >> 16;
#endif
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
 * in the kernel's is_skb_forwardable, and the frame within what the sockets on the way carry, if it goes that way.
 */
static __always_inline __u32 fits(const struct packet *packet, const struct port *from, const struct port *to,
				  __u32 route_mtu)
{
	__u64 bytes = packet->wire_bytes - ETHERNET_BYTES;

	if (bytes > to->mtu || bytes > route_mtu)
		return PASS_TOO_BIG;
	if (!(from->flags & PORT_REPEATED) &&
	    (packet->frame_bytes > from->max_frame || packet->frame_bytes > to->max_frame))
		return PASS_FRAME_SIZE;
	return ADMIT;
}

/* The destination MAC address is another pod's. */
static __always_inline __u32 bridge(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
				    __u32 ingress, const struct port *from, const struct node *node)
{
	const struct station *station;
	const struct port *to;

	if (node->bridge_off)
		return node->bridge_off - 1;
	station = station_of(snapshot, head->destination_key);
	if (!station)
		return PASS_UNKNOWN_MAC;
	packet->egress = station->port;
	if (packet->egress == ingress)
		return PASS_HAIRPIN;
	to = forwarding_port(snapshot, packet->egress);
	if (!to)
		return PASS_PORT_STATE;
	packet->to = to;
	if (from->flags & to->flags & PORT_ISOLATED)
		return PASS_PORT_STATE;
	return fits(packet, from, to, ~0U);
}

/* Longest-prefix match of the destination: an index into next_hops. */
static __always_inline const __u32 *longest_prefix(const struct snapshot *snapshot, const struct head *head)
{
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct prefix4 key = { .length = COPY_BITS + 32, .copy = snapshot->copy, .address = head->ipv4.destination };

		return bpf_map_lookup_elem(&fib4, &key);
	} else {
		struct prefix6 key = { .length = COPY_BITS + 128, .copy = snapshot->copy };

		__builtin_memcpy(key.address, &head->ipv6.destination, sizeof(key.address));
		return bpf_map_lookup_elem(&fib6, &key);
	}
}

/* The destination among the hosts of a link: an index into adjacencies. */
static __always_inline const __u32 *on_link(const struct snapshot *snapshot, const struct head *head, __u32 link)
{
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct host4 key = { .link = link * COPIES + snapshot->copy, .address = head->ipv4.destination };

		return bpf_map_lookup_elem(&hosts4, &key);
	} else {
		struct host6 key = { .link = link * COPIES + snapshot->copy };

		__builtin_memcpy(key.address, &head->ipv6.destination, sizeof(key.address));
		return bpf_map_lookup_elem(&hosts6, &key);
	}
}

/* The destination MAC address is the node's, the destination IP address is somebody else's. */
static __always_inline __u32 route(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
				   __u32 ingress, const struct port *from, const struct node *node)
{
	int is_ipv4 = head->ethertype == bpf_htons(ETHERTYPE_IPV4);
	__u32 off = is_ipv4 ? node->ipv4_off : node->ipv6_off;
	const struct next_hop *next_hop;
	const struct adjacency *adjacency;
	const struct port *to;
	const __u32 *index;
	__u32 at;

	if (off)
		return off - 1;
	index = longest_prefix(snapshot, head);
	if (!index)
		return PASS_NO_ROUTE;
	at = slot(snapshot, *index, MAX_NEXT_HOPS);
	next_hop = bpf_map_lookup_elem(&next_hops, &at);
	if (!next_hop)
		return PASS_NO_ROUTE;
	switch (next_hop->kind) {
	case NEXT_HOP_KERNEL:
		return next_hop->value;
	case NEXT_HOP_ON_LINK:
		index = on_link(snapshot, head, next_hop->value);
		break;
	case NEXT_HOP_GATEWAY:
		index = &next_hop->value;
		break;
	default:
		return PASS_NO_ROUTE;
	}
	if (!index)
		return PASS_UNRESOLVED;
	at = slot(snapshot, *index, MAX_NEIGHBOURS);
	adjacency = bpf_map_lookup_elem(&adjacencies, &at);
	if (!adjacency || !adjacency->present)
		return PASS_UNRESOLVED;
	if (is_ipv4 && !header_checksum_is_right(&head->ipv4))
		return PASS_MALFORMED;
	packet->egress = adjacency->port;
	if (packet->egress == ingress)
		return PASS_HAIRPIN;
	to = forwarding_port(snapshot, packet->egress);
	if (!to)
		return PASS_PORT_STATE;
	packet->to = to;
	packet->adjacency = adjacency;
	return fits(packet, from, to, next_hop->mtu);
}

/*
 * Whether the bridge knows the sender to be where it is. What a worker forwards it reports, and the loader teaches the
 * bridge; nobody reports what is repeated here, so an unknown or moved sender is shown to the bridge itself.
 */
static __always_inline int sender_is_known(const struct snapshot *snapshot, const struct head *head,
					   struct packet *packet, __u32 ingress, const struct port *from)
{
	const struct station *sender;
	__be64 key;

	if (from->kind != PORT_POD || !(from->flags & PORT_REPEATED) || !(from->flags & PORT_LEARNING))
		return 1;
	key = source_key(head);
	if (key == from->station_key) {
		packet->sender_activity = from->station_activity;
		return 1;
	}
	sender = station_of(snapshot, key);
	if (!sender || sender->port != ingress)
		return 0;
	packet->sender_activity = sender->activity;
	return 1;
}

/*
 * Decides a frame that came in through port ingress, whose entry is from. ADMIT: Podlane forwards it. Anything else, even
 * a number beyond PASS_REASONS out of a half-written table: it is the kernel's.
 */
static __always_inline __u32 decide(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
				    __u32 ingress, const struct port *from)
{
	const struct node *node = bpf_map_lookup_elem(&nodes, &snapshot->copy);

	packet->egress = MAX_PORTS;
	packet->adjacency = NULL;
	packet->sender_activity = NOBODY;
	packet->to = NULL;
	if (!node || !(from->flags & PORT_FORWARDING))
		return PASS_PORT_STATE;
	if (from->flags & PORT_PARTIAL_CHECKSUMS && !(from->flags & PORT_REPEATED) && packet->may_hide_checksum)
		return PASS_HIDDEN_CHECKSUM;
	if (!both_ends_in_cluster(head, node))
		return PASS_OUTSIDE_CLUSTER;
	if (!sender_is_known(snapshot, head, packet, ingress, from))
		return PASS_UNKNOWN_SOURCE;
	if (head->destination_key == from->router_key)
		return route(snapshot, head, packet, ingress, from, node);
	/* An uplink in promiscuous mode sees frames for other stations; they are not ours to bridge. */
	if (from->kind != PORT_POD)
		return PASS_UNKNOWN_MAC;
	return bridge(snapshot, head, packet, ingress, from, node);
}

#endif
