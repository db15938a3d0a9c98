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

/* What a decision needs to know of a frame besides its addresses. */
struct packet {
	/* Bytes of the frame that are in the head: all, or HEAD_BYTES. */
	__u64 head_bytes;
	/* Bytes of the whole frame, all buffers together. */
	__u64 frame_bytes;
	/* Bytes of the IP packet, as its header says. */
	__u32 l3_bytes;
	/* A UDP datagram that may be a tunnel with an unfinished checksum inside. */
	__u32 may_hide_checksum;
	__u32 egress; /* the port that the decision found */
};

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
	if (packet->l3_bytes < IPV4_BYTES || packet->l3_bytes + ETHERNET_BYTES > packet->frame_bytes)
		return PASS_MALFORMED;
	if (bpf_ntohs(ip->fragment) & FRAGMENT_MASK)
		return PASS_FRAGMENT;
	if (ip->ttl <= 1)
		return PASS_TTL;
	l4_bytes = packet->l3_bytes - IPV4_BYTES;
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

static __always_inline __u32 parse_ipv6(const struct ipv6 *ip, struct packet *packet)
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
 * Reads the headers. The caller has set head_bytes and frame_bytes; l3_bytes and may_hide_checksum are valid when the
 * answer is ADMIT, otherwise the answer is the reason why the frame is the kernel's.
 */
static __always_inline __u32 parse(const struct head *head, struct packet *packet)
{
	packet->may_hide_checksum = 0;
	if (packet->head_bytes < ETHERNET_BYTES)
		return PASS_MALFORMED;
	if (head->destination[0] & 1)
		return PASS_GROUP;
	if (head->source[0] & 1)
		return PASS_MALFORMED;
	if (!(head->source[0] | head->source[1] | head->source[2] | head->source[3] | head->source[4] | head->source[5]))
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
