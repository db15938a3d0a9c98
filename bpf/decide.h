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

/* The same as a way out, if it is one. */
static __always_inline const struct way_out *way_out_of(const struct snapshot *snapshot, __u32 id)
{
	const struct port *port = port_of(snapshot, id);

	return port && port->out.flags & PORT_FORWARDING ? &port->out : NULL;
}

/*
 * The number of the port behind an interface, and its entry; MAX_PORTS if it is none. No entry, if the number was handed
 * out again while we looked and belongs to another interface.
 */
static __always_inline __u32 ingress_port(const struct snapshot *snapshot, __u32 ifindex, const struct port **port)
{
	__u32 key = ifindex * COPIES + snapshot->copy;
	__u32 place = slot(snapshot, ifindex & (NEAR_INTERFACES - 1), NEAR_INTERFACES);
	const struct port *found = bpf_map_lookup_elem(&near_interfaces, &place);
	const __u32 *id;

	if (likely(found && found->out.ifindex == ifindex)) {
		*port = found;
		return found->number;
	}
	id = bpf_map_lookup_elem(&interfaces, &key);
	if (!id)
		return MAX_PORTS;
	found = port_of(snapshot, *id);
	if (found && found->out.ifindex == ifindex)
		*port = found;
	return *id;
}

/* Where a MAC address is; key is like head.destination_key. *out is left as it was if the way out stands elsewhere. */
static __always_inline const struct station *station_of(const struct snapshot *snapshot, __be64 key,
							const struct way_out **out)
{
	__u32 place = slot(snapshot, near_place(key), NEAR_STATIONS);
	const struct near_station *near = bpf_map_lookup_elem(&near_stations, &place);
	union {
		__be64 key;
		__u8 copy;
	} address = { .key = key };

	/* An empty place looks like the address of zeros, which is nobody's. */
	if (likely(near && near->key == key && key)) {
		*out = &near->out;
		return &near->station;
	}
	address.copy = snapshot->copy;
	return bpf_map_lookup_elem(&fdb, &address.key);
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

static __noinline int in_cluster6(const struct node *node, const struct address6 *address)
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
static __always_inline __u32 fits(const struct packet *packet, const struct port *from, const struct way_out *to,
				  __u32 route_mtu)
{
	__u64 bytes = packet->wire_bytes - ETHERNET_BYTES;

	if (bytes > to->mtu || bytes > route_mtu)
		return PASS_TOO_BIG;
	if (!(from->out.flags & PORT_REPEATED) &&
	    (packet->frame_bytes > from->out.max_frame || packet->frame_bytes > to->max_frame))
		return PASS_FRAME_SIZE;
	return ADMIT;
}

/* The destination MAC address is another pod's. */
static __always_inline __u32 bridge(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
				    const struct port *from, const struct node *node)
{
	const struct station *station;
	const struct way_out *to = NULL;

	if (node->bridge_off)
		return node->bridge_off - 1;
	station = station_of(snapshot, head->destination_key, &to);
	if (!station)
		return PASS_UNKNOWN_MAC;
	packet->egress = station->port;
	if (packet->egress == packet->ingress)
		return PASS_HAIRPIN;
	if (unlikely(!to))
		to = way_out_of(snapshot, packet->egress);
	if (!to || !(to->flags & PORT_FORWARDING))
		return PASS_PORT_STATE;
	packet->to = to;
	if (from->out.flags & to->flags & PORT_ISOLATED)
		return PASS_PORT_STATE;
	return fits(packet, from, to, ~0U);
}

/* Longest-prefix match of the destination: an index into next_hops; MAX_NEXT_HOPS if there is none. */
static __always_inline __u32 longest_prefix4(const struct snapshot *snapshot, const struct node *node, __be32 address)
{
	struct prefix4 key = { .length = COPY_BITS + 32, .copy = snapshot->copy, .address = address };
	__u64 base = snapshot->generation * MAX_NEXT_HOPS, found;
	__u32 hash = near_route_hash(address ^ node->secret), line = hash % (NEAR_ROUTES / NEAR_WAYS4), victim = hash >> 30;
	struct near_line4 *near = bpf_map_lookup_elem(&near_routes4, &line);
	const __u32 *index;

	if (!near)
		return MAX_NEXT_HOPS;
	for (int way = 0; way < NEAR_WAYS4; way++) {
		found = *(volatile __u64 *)&near->way[way].found;
		if (near->way[way].address - found * NEAR_FACTOR == address && found - base < MAX_NEXT_HOPS)
			return found - base;
		if (found - base >= MAX_NEXT_HOPS)
			victim = way;
	}
	index = bpf_map_lookup_elem(&fib4, &key);
	if (!index || *index >= MAX_NEXT_HOPS)
		return MAX_NEXT_HOPS;
	found = base + *index;
	victim %= NEAR_WAYS4;
	*(volatile __u64 *)&near->way[victim].address = address + found * NEAR_FACTOR;
	*(volatile __u64 *)&near->way[victim].found = found;
	return found - base;
}

static __always_inline __u32 longest_prefix6(const struct snapshot *snapshot, const struct node *node,
					     const struct address6 *address)
{
	struct prefix6 key = { .length = COPY_BITS + 128, .copy = snapshot->copy };
	__u64 base = snapshot->generation * MAX_NEXT_HOPS, high = address->high, low = address->low, found;
	__u64 both = high * node->secret + low;
	__u32 hash = near_route_hash(both), line = hash % (NEAR_ROUTES / NEAR_WAYS6), victim = hash >> 31;
	struct near_line6 *near = bpf_map_lookup_elem(&near_routes6, &line);
	const __u32 *index;

	if (!near)
		return MAX_NEXT_HOPS;
	for (int way = 0; way < NEAR_WAYS6; way++) {
		found = *(volatile __u64 *)&near->way[way].found;
		if (near->way[way].high == high && near->way[way].low == low &&
		    near->way[way].check - found * NEAR_FACTOR == both && found - base < MAX_NEXT_HOPS)
			return found - base;
		if (found - base >= MAX_NEXT_HOPS)
			victim = way;
	}
	__builtin_memcpy(key.address, address, sizeof(key.address));
	index = bpf_map_lookup_elem(&fib6, &key);
	if (!index || *index >= MAX_NEXT_HOPS)
		return MAX_NEXT_HOPS;
	found = base + *index;
	victim %= NEAR_WAYS6;
	*(volatile __u64 *)&near->way[victim].high = high;
	*(volatile __u64 *)&near->way[victim].low = low;
	*(volatile __u64 *)&near->way[victim].check = both + found * NEAR_FACTOR;
	*(volatile __u64 *)&near->way[victim].found = found;
	return found - base;
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

/*
 * The destination MAC address is the node's, the destination IP address is somebody else's. A function of its own, so that
 * what is bridged has its instructions close together.
 */
static __noinline __u32 route(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
			      const struct port *from, const struct node *node)
{
	int is_ipv4 = head->ethertype == bpf_htons(ETHERTYPE_IPV4);
	__u32 off = is_ipv4 ? node->ipv4_off : node->ipv6_off;
	const struct next_hop *next_hop;
	const struct adjacency *adjacency;
	const struct way_out *to;
	const __u32 *index;
	__u32 at;

	if (off)
		return off - 1;
	at = is_ipv4 ? longest_prefix4(snapshot, node, head->ipv4.destination)
		     : longest_prefix6(snapshot, node, &head->ipv6.destination);
	if (at >= MAX_NEXT_HOPS)
		return PASS_NO_ROUTE;
	at = slot(snapshot, at, MAX_NEXT_HOPS);
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
	if (packet->egress == packet->ingress)
		return PASS_HAIRPIN;
	to = way_out_of(snapshot, packet->egress);
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
					   struct packet *packet, const struct port *from)
{
	const struct way_out *unused;
	const struct station *sender;
	__be64 key;

	if (from->kind != PORT_POD || !(from->out.flags & PORT_REPEATED) || !(from->out.flags & PORT_LEARNING))
		return 1;
	key = source_key(head);
	if (likely(key == from->station_key)) {
		packet->sender_activity = from->station_activity;
		return 1;
	}
	sender = station_of(snapshot, key, &unused);
	if (!sender || sender->port != packet->ingress)
		return 0;
	packet->sender_activity = sender->activity;
	return 1;
}

/*
 * Decides a frame that came in through the port whose entry is from. ADMIT: Podlane forwards it. Anything else, even
 * a number beyond PASS_REASONS out of a half-written table: it is the kernel's.
 */
static __always_inline __u32 decide(const struct snapshot *snapshot, const struct head *head, struct packet *packet,
				    const struct port *from)
{
	const struct node *node = bpf_map_lookup_elem(&nodes, &snapshot->copy);

	packet->egress = MAX_PORTS;
	packet->adjacency = NULL;
	packet->sender_activity = NOBODY;
	packet->to = NULL;
	if (!node || !(from->out.flags & PORT_FORWARDING))
		return PASS_PORT_STATE;
	packet->node_flags = node->flags;
	if (from->out.flags & PORT_PARTIAL_CHECKSUMS && !(from->out.flags & PORT_REPEATED) && packet->may_hide_checksum)
		return PASS_HIDDEN_CHECKSUM;
	if (!both_ends_in_cluster(head, node))
		return PASS_OUTSIDE_CLUSTER;
	if (!sender_is_known(snapshot, head, packet, from))
		return PASS_UNKNOWN_SOURCE;
	if (head->destination_key == from->router_key)
		return route(snapshot, head, packet, from, node);
	/* An uplink in promiscuous mode sees frames for other stations; they are not ours to bridge. */
	if (from->kind != PORT_POD)
		return PASS_UNKNOWN_MAC;
	return bridge(snapshot, head, packet, from, node);
}

#endif
