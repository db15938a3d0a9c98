/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Checked-once header reading: dataplane/src/packet, check for check and in the same order.
 *
 * The caller copies the first bytes of the frame into a struct head, wherever the driver split the frame; everything
 * after that reads the copy, so that a decision never depends on how long the linear part is.
 */
#ifndef PODLANE_PARSE_H
#define PODLANE_PARSE_H

#include "kernel.h"
#include "reason.h"

#define ETHERNET_BYTES 14
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define TCP_BYTES 20
#define UDP_BYTES 8
#define ICMP_BYTES 8

/* How far into a frame a decision may look: Ethernet, IPv6 and UDP. */
#define HEAD_BYTES (ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES)

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88a8

/* Where the L4 header of a packet without options or extension headers starts. */
#define IPV4_L4 (ETHERNET_BYTES + IPV4_BYTES)
#define IPV6_L4 (ETHERNET_BYTES + IPV6_BYTES)

/* The hop-by-hop header that carries a jumbo payload length and nothing else (RFC 2675), and its option's type. */
#define JUMBO_BYTES 8
#define JUMBO_OPTION 0xc2

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58

/* Everything of the third word but "don't fragment": "more fragments", the offset and the reserved bit must be 0. */
#define FRAGMENT_MASK 0xbfff

struct udp {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 checksum;
};

struct ipv4 {
	__u8 version_and_length;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
	struct udp udp;
};

/* What Linux puts between the IPv6 and the TCP header of a super-frame beyond 65,535 bytes (ip6_xmit). */
struct jumbo {
	__u8 next_header;
	__u8 header_length;
	__u8 option;
	__u8 option_length;
	__be32 payload_length;
};

/* An IPv6 address in wire order, as two integers that can be compared and masked. */
struct address6 {
	__be64 high;
	__be64 low;
};

struct ipv6 {
	__u8 version;
	__u8 flow[3];
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address6 source;
	struct address6 destination;
	union {
		struct udp udp;
		struct jumbo jumbo;
		__u8 icmp_type;
	};
};

/*
 * The first HEAD_BYTES of a frame, two bytes further back than on the wire: so the IP header and its addresses are
 * aligned, and the first eight bytes are the destination MAC address as an integer in wire order (destination_key).
 */
struct head {
	union {
		__be64 destination_key;
		struct {
			__u8 zero[2];
			__u8 destination[6];
		};
	};
	__u8 source[6];
	__be16 ethertype;
	union {
		struct ipv4 ipv4;
		struct ipv6 ipv6;
	};
};

_Static_assert(sizeof(struct head) == 2 + HEAD_BYTES, "the copied headers have no gaps");

/* A MAC address like head.destination_key, from itself and the two bytes that follow it, which are shifted out. */
static __always_inline __be64 mac_key(const __u64 *mac_and_more)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return *mac_and_more << 16;
#else
	return *mac_and_more >> 16;
#endif
}

/* The source MAC address, which the EtherType follows. */
static __always_inline __be64 source_key(const struct head *head)
{
	return mac_key((const __u64 *)head->source);
}

struct adjacency;
struct way_out;

/* What a decision needs to know of a frame besides its addresses. */
struct packet {
	/* Bytes of the frame that are in the head: all, or as many as a decision may look at. */
	__u64 head_bytes;
	/* Bytes of the whole frame, all buffers together. */
	__u64 frame_bytes;
	/* The same, of the largest frame that it becomes on a wire: less for a super-frame. */
	__u64 wire_bytes;
	/* A super-frame: the kernel cuts it into segments when it leaves, and its IP length may be 0 for "beyond 65,535". */
	__u32 is_super;
	/* A VLAN tag stands beside the frame. */
	__u32 is_tagged;
	/* Where the L4 header starts, and which it is. */
	__u32 l4_offset;
	__u32 protocol;
	/* Bytes of the IP packet, as its header says. */
	__u32 l3_bytes;
	/* A UDP datagram that may be a tunnel with an unfinished checksum inside. */
	__u32 may_hide_checksum;
	/* The port that it came in through. */
	__u32 ingress;
	/* What the decision found: the port to leave through, */
	__u32 egress;
	const struct way_out *to;
	/* the new MAC addresses of a routed packet (NULL: bridged), */
	const struct adjacency *adjacency;
	/* and the index in used of the sender, or NOBODY if the port is not one that learns. */
	__u32 sender_activity;
	/* enum node_flag of the node by whose tables it was decided. */
	__u32 node_flags;
};

#define NOBODY 0xffffffff

/* VXLAN (IANA and Linux's old default), Geneve, FOU and GUE, GTP-U, MPLS. */
static __always_inline int is_tunnel_port(__u16 port)
{
	return port == 4789 || port == 8472 || port == 6081 || port == 5555 || port == 6080 || port == 2152 ||
	       port == 6635;
}

/*
 * The fixed part of the L4 header must be inside of the IP packet. The IP packet is inside of the frame, so what of that
 * header lies within HEAD_BYTES is in the head then.
 */
static __always_inline __u32 holds(__u32 l4_bytes, __u32 header_bytes)
{
	return l4_bytes < header_bytes ? PASS_MALFORMED : ADMIT;
}

static __always_inline __u32 check_udp(const struct udp *udp, __u32 l4_bytes, struct packet *packet)
{
	if (l4_bytes < UDP_BYTES || bpf_ntohs(udp->length) != l4_bytes)
		return PASS_MALFORMED;
	packet->may_hide_checksum = udp->checksum == 0 || is_tunnel_port(bpf_ntohs(udp->destination)) ||
				    is_tunnel_port(bpf_ntohs(udp->source));
	return ADMIT;
}

static __always_inline __u32 parse_ipv4(const struct ipv4 *ip, struct packet *packet)
{
	__u32 l4_bytes;

	if (packet->head_bytes < ETHERNET_BYTES + IPV4_BYTES)
		return PASS_MALFORMED;
	if (ip->version_and_length != 0x45)
		return ip->version_and_length >> 4 == 4 && (ip->version_and_length & 0x0f) > 5 ? PASS_OPTIONS
											       : PASS_MALFORMED;
	packet->l3_bytes = bpf_ntohs(ip->length);
	if (packet->is_super && packet->l3_bytes == 0)
		packet->l3_bytes = packet->frame_bytes - ETHERNET_BYTES;
	if (packet->l3_bytes < IPV4_BYTES || packet->l3_bytes + ETHERNET_BYTES > packet->frame_bytes)
		return PASS_MALFORMED;
	if (bpf_ntohs(ip->fragment) & FRAGMENT_MASK)
		return PASS_FRAGMENT;
	if (ip->ttl <= 1)
		return PASS_TTL;
	l4_bytes = packet->l3_bytes - IPV4_BYTES;
	packet->l4_offset = IPV4_L4;
	packet->protocol = ip->protocol;
	switch (ip->protocol) {
	case PROTOCOL_TCP:
		return holds(l4_bytes, TCP_BYTES);
	case PROTOCOL_UDP:
		return check_udp(&ip->udp, l4_bytes, packet);
	case PROTOCOL_ICMP:
		return holds(l4_bytes, ICMP_BYTES);
	default:
		return PASS_PROTOCOL;
	}
}

static __always_inline __u32 check_icmpv6(const struct ipv6 *ip, __u32 l4_bytes)
{
	if (l4_bytes < ICMP_BYTES)
		return PASS_MALFORMED;
	/* Neighbour and router discovery (RFC 4861). */
	return ip->icmp_type >= 133 && ip->icmp_type <= 137 ? PASS_ND : ADMIT;
}

/* A super-frame beyond 65,535 bytes, whose payload length is 0: its length is in a jumbo option, or nowhere. */
static __always_inline __u32 parse_jumbo(const struct ipv6 *ip, struct packet *packet)
{
	const struct jumbo *jumbo = &ip->jumbo;
	__u32 payload_bytes;

	if (ip->next_header == PROTOCOL_TCP) {
		packet->l3_bytes = packet->frame_bytes - ETHERNET_BYTES;
		return holds(packet->l3_bytes - IPV6_BYTES, TCP_BYTES);
	}
	if (ip->next_header != 0 || packet->head_bytes < HEAD_BYTES || jumbo->next_header != PROTOCOL_TCP ||
	    jumbo->header_length != 0 || jumbo->option != JUMBO_OPTION || jumbo->option_length != sizeof(__be32))
		return PASS_OPTIONS;
	payload_bytes = bpf_ntohl(jumbo->payload_length);
	if (payload_bytes < JUMBO_BYTES + TCP_BYTES ||
	    (__u64)payload_bytes + IPV6_L4 > packet->frame_bytes)
		return PASS_MALFORMED;
	packet->l3_bytes = payload_bytes + IPV6_BYTES;
	packet->l4_offset = IPV6_L4 + JUMBO_BYTES;
	packet->protocol = PROTOCOL_TCP;
	return ADMIT;
}

static __noinline __u32 parse_ipv6(const struct ipv6 *ip, struct packet *packet)
{
	__u32 l4_bytes;

	if (packet->head_bytes < ETHERNET_BYTES + IPV6_BYTES)
		return PASS_MALFORMED;
	if (ip->version >> 4 != 6)
		return PASS_MALFORMED;
	l4_bytes = bpf_ntohs(ip->payload_length);
	packet->l3_bytes = l4_bytes + IPV6_BYTES;
	if (packet->l3_bytes + ETHERNET_BYTES > packet->frame_bytes)
		return PASS_MALFORMED;
	if (ip->hop_limit <= 1)
		return PASS_TTL;
	packet->l4_offset = IPV6_L4;
	packet->protocol = ip->next_header;
	if (packet->is_super && l4_bytes == 0)
		return parse_jumbo(ip, packet);
	switch (ip->next_header) {
	case PROTOCOL_TCP:
		return holds(l4_bytes, TCP_BYTES);
	case PROTOCOL_UDP:
		return check_udp(&ip->udp, l4_bytes, packet);
	case PROTOCOL_ICMPV6:
		return check_icmpv6(ip, l4_bytes);
	case 44:
		return PASS_FRAGMENT;
	/* Hop-by-hop, routing, ESP, AH, no next header, destination options, mobility, HIP, shim6. */
	case 0:
	case 43:
	case 50:
	case 51:
	case 59:
	case 60:
	case 135:
	case 139:
	case 140:
		return PASS_OPTIONS;
	default:
		return PASS_PROTOCOL;
	}
}

/*
 * Reads the headers. The caller has set head_bytes, frame_bytes, is_super, is_tagged and ingress; the rest, but for what the
 * decision finds, is valid when the answer is ADMIT, otherwise the answer is the reason why the frame is the kernel's.
 */
static __always_inline __u32 parse(const struct head *head, struct packet *packet)
{
	packet->may_hide_checksum = 0;
	packet->wire_bytes = packet->frame_bytes;
	if (packet->head_bytes < ETHERNET_BYTES)
		return PASS_MALFORMED;
	if (head->destination[0] & 1)
		return PASS_GROUP;
	if (head->source[0] & 1)
		return PASS_MALFORMED;
	if (!source_key(head))
		return PASS_MALFORMED;
	switch (bpf_ntohs(head->ethertype)) {
	case ETHERTYPE_IPV4:
		return parse_ipv4(&head->ipv4, packet);
	case ETHERTYPE_IPV6:
		return parse_ipv6(&head->ipv6, packet);
	case ETHERTYPE_VLAN:
	case ETHERTYPE_QINQ:
		return PASS_VLAN;
	default:
		return PASS_NOT_IP;
	}
}

/*
 * Copies the first bytes of a frame whose linear part is from..end into head and says how many: all that a decision looks
 * at, or 0 if they are not all there. Whole words, aligned at the destination; every supported machine loads unaligned
 * ones.
 */
static __always_inline __u64 copy_head(const __u8 *from, const __u8 *end, struct head *head)
{
	__u8 *to = (__u8 *)head;
	/* The shortest frames (60 bytes) do not have HEAD_BYTES, and of IPv4 less is enough. */
	const __u64 ipv4_bytes = IPV4_L4 + UDP_BYTES;

	if (from + ipv4_bytes > end)
		return 0;
	*(__u64 *)to = *(const __u64 *)from << 16;
#pragma unroll
	for (int word = 0; word < 4; word++)
		*(__u64 *)(to + 8 + 8 * word) = *(const __u64 *)(from + 6 + 8 * word);
	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		*(__u32 *)(to + 40) = *(const __u32 *)(from + 38);
		return ipv4_bytes;
	}
	if (from + HEAD_BYTES > end)
		return 0;
#pragma unroll
	for (int word = 4; word < 7; word++)
		*(__u64 *)(to + 8 + 8 * word) = *(const __u64 *)(from + 6 + 8 * word);
	return HEAD_BYTES;
}

/*
 * How much of a frame of so many bytes is a head; 0 for none. The verifier of Linux 6.1 takes the least value of a number
 * from ordered comparisons only, so that there is at least one byte is shown by one that is less.
 */
static __always_inline __u64 head_bytes_of(__u64 frame_bytes)
{
	__u64 all_but_one = (frame_bytes < HEAD_BYTES ? frame_bytes : HEAD_BYTES) - 1;

	barrier_var(all_but_one);
	if (all_but_one >= HEAD_BYTES)
		return 0;
	/* Not before the comparison: the sum would not have its bounds. */
	barrier_var(all_but_one);
	return all_but_one + 1;
}

/* Whether the checksum of an IPv4 header without options is right (RFC 1071). */
static __always_inline int header_checksum_is_right(const struct ipv4 *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int word = 0; word < IPV4_BYTES / 2; word++)
		sum += words[word];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

#endif
