/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Translated connections: where the node translates addresses (kube-proxy, a masquerade), conntrack is asked about each frame
 * that a decision admits. A connection that it translates must see both of its directions pass through the kernel.
 *
 * It is asked for the frame's own tuple, which is that of the answers from a service's backend; and, if it does not know
 * that, for the inverse, which is how it knows a client that has used the same source port for a service and now talks to the
 * backend itself: the kernel then gives one of the two another port.
 *
 * A TCP connection that conntrack has followed from its SYN stays the kernel's as well, translated or not: it remembers the
 * window, and would call the connection invalid if it came back to the kernel after a part that was not seen (tcp_in_window
 * in net/netfilter/nf_conntrack_proto_tcp.c). What it picked up in mid-stream it judges liberally (tcp_new, there), and all
 * is liberal with the sysctl nf_conntrack_tcp_be_liberal. A connection that it does not know is picked up so.
 */
#ifndef PODLANE_TRANSLATED_H
#define PODLANE_TRANSLATED_H

#include "kernel.h"
#include "parse.h"
#include "reason.h"
#include "tables.h"

#include <bpf/bpf_core_read.h>

/* The fields that we read; libbpf finds their places in the running kernel. */
struct ip_ct_tcp_state {
	__u8 flags;
} __attribute__((preserve_access_index));

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

/* IPS_SRC_NAT and IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h. */
#define IPS_NAT_MASK (1 << 4 | 1 << 5)
/* Of linux/netfilter/nf_conntrack_tcp.h. */
#define IP_CT_TCP_FLAG_BE_LIBERAL 0x08
/* BPF_F_CURRENT_NETNS: that of the interface. */
#define OWN_NETNS -1
#define ENOENT 2

/* What a look-up is told, as far as every kernel has it: the default zone. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

struct bpf_sock_tuple {
	union {
		struct {
			__be32 source;
			__be32 destination;
			__be16 source_port;
			__be16 destination_port;
		} ipv4;
		struct {
			struct address6 source;
			struct address6 destination;
			__be16 source_port;
			__be16 destination_port;
		} ipv6;
	};
};

#define TUPLE4_BYTES 12
#define TUPLE6_BYTES 36

/* Linux 5.18; absent where the kernel has no conntrack. */
extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_bytes,
					 struct bpf_ct_opts *opts, __u32 opts_bytes) __ksym __weak;
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_bytes,
					 struct bpf_ct_opts *opts, __u32 opts_bytes) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *connection) __ksym __weak;

/*
 * Whether this kernel can be asked. The type stands for the functions, which came with it: before Linux 6.4 the verifier
 * refuses a program that mentions the address of a function that is there, and bpf_ksym_exists does that.
 */
static __always_inline int can_look_up(void)
{
	return bpf_core_type_exists(struct bpf_ct_opts);
}

/* The look-up; whoever includes this has it for its context. */
static __always_inline struct nf_conn *look_up(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_bytes,
					       struct bpf_ct_opts *opts);
/* Copies bytes of the frame that are not in its head; likewise. */
static __always_inline long load_more(void *ctx, __u32 offset, void *to, __u32 bytes);

/* Whose a connection is. */
enum owner {
	/* Nobody's: conntrack does not know it. */
	OWNER_NONE = 0,
	OWNER_KERNEL = 1,
	OWNER_PODLANE = 2,
};

/* What a connection is recognised by. */
struct flow {
	struct bpf_sock_tuple tuple;
	__u32 tuple_bytes;
	__u32 protocol;
	/* enum node_flag */
	__u32 node_flags;
};

static __always_inline __u32 owner_of(void *ctx, struct flow *flow)
{
	struct bpf_ct_opts opts = { .netns_id = OWN_NETNS, .l4proto = flow->protocol };
	__u32 tuple_bytes = flow->tuple_bytes;
	__u32 owner = OWNER_PODLANE;
	struct nf_conn *connection;

	/* For the verifier, which forgets that it is one of two numbers. */
	barrier_var(tuple_bytes);
	if (tuple_bytes > sizeof(flow->tuple))
		return OWNER_KERNEL;
	connection = look_up(ctx, &flow->tuple, tuple_bytes, &opts);
	/* What conntrack does not answer at all is not known to be untranslated. */
	if (!connection)
		return opts.error == -ENOENT ? OWNER_NONE : OWNER_KERNEL;
	if (connection->status & IPS_NAT_MASK)
		owner = OWNER_KERNEL;
	else if (flow->protocol == PROTOCOL_TCP && !(flow->node_flags & NODE_LIBERAL) &&
		 !(connection->proto.tcp.seen[0].flags & connection->proto.tcp.seen[1].flags &
		   IP_CT_TCP_FLAG_BE_LIBERAL))
		owner = OWNER_KERNEL;
	bpf_ct_release(connection);
	return owner;
}

static __always_inline void invert(struct flow *flow)
{
	struct bpf_sock_tuple *tuple = &flow->tuple;

	if (flow->tuple_bytes == TUPLE4_BYTES) {
		__be32 source = tuple->ipv4.source;
		__be16 port = tuple->ipv4.source_port;

		tuple->ipv4.source = tuple->ipv4.destination;
		tuple->ipv4.destination = source;
		tuple->ipv4.source_port = tuple->ipv4.destination_port;
		tuple->ipv4.destination_port = port;
	} else {
		struct address6 source = tuple->ipv6.source;
		__be16 port = tuple->ipv6.source_port;

		tuple->ipv6.source = tuple->ipv6.destination;
		tuple->ipv6.destination = source;
		tuple->ipv6.source_port = tuple->ipv6.destination_port;
		tuple->ipv6.destination_port = port;
	}
}

/* The packet that an ICMP error quotes, up to its ports. */
struct quoted4 {
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
	__be16 source_port;
	__be16 destination_port;
};

struct quoted6 {
	__u8 version;
	__u8 flow[3];
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address6 source;
	struct address6 destination;
	__be16 source_port;
	__be16 destination_port;
} __attribute__((packed));

/* What is to be done with a packet. */
enum look_up {
	LOOK_UP = 0,
	/* It belongs to no connection that could be translated. */
	LOOK_UP_NEEDLESS = 1,
	/* It does, but conntrack cannot be asked. */
	LOOK_UP_IMPOSSIBLE = 2,
};

/*
 * An ICMP error belongs to the connection whose packet it quotes; a translated one quotes an address that the receiver has
 * never heard of. Echoes have no ports to be looked up by: they are taken, as services are translated by port.
 */
static __always_inline enum look_up flow_of_error4(void *ctx, const struct head *head, struct flow *flow)
{
	__u8 type = *(const __u8 *)&head->ipv4.udp;
	struct quoted4 quoted;

	/* Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792). */
	if (type != 3 && type != 4 && type != 5 && type != 11 && type != 12)
		return LOOK_UP_NEEDLESS;
	if (load_more(ctx, IPV4_L4 + ICMP_BYTES, &quoted, sizeof(quoted)) || quoted.version_and_length != 0x45 ||
	    bpf_ntohs(quoted.fragment) & 0x1fff ||
	    (quoted.protocol != PROTOCOL_TCP && quoted.protocol != PROTOCOL_UDP))
		return LOOK_UP_IMPOSSIBLE;
	flow->protocol = quoted.protocol;
	flow->tuple.ipv4.source = quoted.source;
	flow->tuple.ipv4.destination = quoted.destination;
	flow->tuple.ipv4.source_port = quoted.source_port;
	flow->tuple.ipv4.destination_port = quoted.destination_port;
	return LOOK_UP;
}

static __always_inline enum look_up flow_of_error6(void *ctx, const struct head *head, struct flow *flow)
{
	struct quoted6 quoted;

	/* Errors have the lower half of the types (RFC 4443, 2.1). */
	if (head->ipv6.icmp_type >= 128)
		return LOOK_UP_NEEDLESS;
	if (load_more(ctx, IPV6_L4 + ICMP_BYTES, &quoted, sizeof(quoted)) || quoted.version >> 4 != 6 ||
	    (quoted.next_header != PROTOCOL_TCP && quoted.next_header != PROTOCOL_UDP))
		return LOOK_UP_IMPOSSIBLE;
	flow->protocol = quoted.next_header;
	flow->tuple.ipv6.source = quoted.source;
	flow->tuple.ipv6.destination = quoted.destination;
	flow->tuple.ipv6.source_port = quoted.source_port;
	flow->tuple.ipv6.destination_port = quoted.destination_port;
	return LOOK_UP;
}

static __always_inline enum look_up flow_of(void *ctx, const struct head *head, const struct packet *packet,
					    struct flow *flow)
{
	__be16 from_to[2];

	if (head->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		flow->tuple_bytes = TUPLE4_BYTES;
		if (packet->protocol == PROTOCOL_ICMP)
			return flow_of_error4(ctx, head, flow);
		flow->tuple.ipv4.source = head->ipv4.source;
		flow->tuple.ipv4.destination = head->ipv4.destination;
		flow->tuple.ipv4.source_port = head->ipv4.udp.source;
		flow->tuple.ipv4.destination_port = head->ipv4.udp.destination;
		return LOOK_UP;
	}
	flow->tuple_bytes = TUPLE6_BYTES;
	if (packet->protocol == PROTOCOL_ICMPV6)
		return flow_of_error6(ctx, head, flow);
	from_to[0] = head->ipv6.udp.source;
	from_to[1] = head->ipv6.udp.destination;
	/* Behind a jumbo option they are not in the head. */
	if (packet->l4_offset != IPV6_L4 && load_more(ctx, packet->l4_offset, from_to, sizeof(from_to)))
		return LOOK_UP_IMPOSSIBLE;
	flow->tuple.ipv6.source = head->ipv6.source;
	flow->tuple.ipv6.destination = head->ipv6.destination;
	flow->tuple.ipv6.source_port = from_to[0];
	flow->tuple.ipv6.destination_port = from_to[1];
	return LOOK_UP;
}

/*
 * Of a packet that a decision admits on a node that translates: ADMIT, or PASS_TRANSLATED. The loader sees to it that no port
 * forwards on such a node where the kernel cannot be asked.
 */
static __noinline __u32 check_translation(void *ctx, const struct head *head, const struct packet *packet)
{
	struct flow flow = { .protocol = packet->protocol, .node_flags = packet->node_flags };
	enum look_up look_up = flow_of(ctx, head, packet, &flow);
	__u32 owner;

	if (look_up == LOOK_UP_NEEDLESS)
		return ADMIT;
	if (look_up == LOOK_UP_IMPOSSIBLE || !can_look_up())
		return PASS_TRANSLATED;
	owner = owner_of(ctx, &flow);
	if (owner == OWNER_NONE) {
		invert(&flow);
		owner = owner_of(ctx, &flow);
	}
	return owner == OWNER_KERNEL ? PASS_TRANSLATED : ADMIT;
}

#endif
