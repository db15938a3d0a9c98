// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The XDP program of a veth in native mode.
 *
 * The other end of a veth offloads VLAN tags by default: a tagged packet arrives as an untagged frame with the tag beside
 * it, in the socket buffer, and an AF_XDP socket would lose the tag. Since Linux 6.3 the driver keeps the socket buffer
 * behind its xdp_buff (drivers/net/veth.c, struct veth_xdp_buff; none for a frame that came by XDP, which has no tag).
 * The loader uses this program only for veths of kernels that do, and steer.bpf.c where they do not.
 *
 * The socket buffer also tells of an unfinished checksum inside of a tunnel, whichever tunnel: the outer one is finished,
 * and nothing in the frame shows that the inner one is not.
 */
#include "steer.h"

#include <bpf/bpf_core_read.h>

struct xdp_buff {
	void *data_hard_start;
} __attribute__((preserve_access_index));

struct sk_buff {
	__be16 vlan_proto;
	__u16 csum_start;
	__u16 mac_header;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __ksym;

#define CHECKSUM_PARTIAL 3
/* Where the L4 header of a packet is at most that has neither a tunnel nor extension headers: Ethernet and IPv6. */
#define OUTERMOST_L4 (14 + 40)

/* What the socket buffer knows that the frame does not show: a reason to pass it, or ADMIT. */
static __always_inline __u32 hidden(struct xdp_md *ctx)
{
	const void *buff = bpf_cast_to_kern_ctx(ctx);
	const struct sk_buff *skb;

	/* The structure may be in a module's types, of which bpf_rdonly_cast knows nothing: a plain read. */
	if (bpf_probe_read_kernel(&skb, sizeof(skb), buff + bpf_core_type_size(struct xdp_buff)) || !skb)
		return ADMIT;
	skb = bpf_rdonly_cast(skb, bpf_core_type_id_kernel(struct sk_buff));
	if (skb->vlan_proto)
		return PASS_VLAN;
	if (BPF_CORE_READ_BITFIELD(skb, ip_summed) == CHECKSUM_PARTIAL &&
	    (__u16)(skb->csum_start - skb->mac_header) > OUTERMOST_L4)
		return PASS_HIDDEN_CHECKSUM;
	return ADMIT;
}

SEC("xdp.frags")
int podlane_steer_veth(struct xdp_md *ctx)
{
	bpf_tail_call_static(ctx, &stages, STAGE_FIRST);
	return steer_frame(ctx, hidden(ctx));
}

SEC("xdp.frags")
int podlane_steer_veth_rec(struct xdp_md *ctx)
{
	return steer_recorded(ctx, hidden(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
