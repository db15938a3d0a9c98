// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The XDP program of a veth in native mode.
 *
 * The other end of a veth offloads VLAN tags by default: a tagged packet arrives as an untagged frame with the tag beside
 * it, in the socket buffer, and an AF_XDP socket would lose the tag. Since Linux 6.3 the driver keeps the socket buffer
 * behind its xdp_buff (drivers/net/veth.c, struct veth_xdp_buff; none for a frame that came by XDP, which has no tag).
 * The loader uses this program only for veths of kernels that do, and steer.bpf.c where they do not.
 */
#include "steer.h"

#include <bpf/bpf_core_read.h>

struct xdp_buff {
	void *data_hard_start;
} __attribute__((preserve_access_index));

struct sk_buff {
	__be16 vlan_proto;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __ksym;

static __always_inline int has_hidden_tag(struct xdp_md *ctx)
{
	const void *buff = bpf_cast_to_kern_ctx(ctx);
	const struct sk_buff *skb;

	/* The structure may be in a module's types, of which bpf_rdonly_cast knows nothing: a plain read. */
	if (bpf_probe_read_kernel(&skb, sizeof(skb), buff + bpf_core_type_size(struct xdp_buff)) || !skb)
		return 0;
	skb = bpf_rdonly_cast(skb, bpf_core_type_id_kernel(struct sk_buff));
	return skb->vlan_proto != 0;
}

SEC("xdp.frags")
int podlane_steer_veth(struct xdp_md *ctx)
{
	return steer_frame(ctx, has_hidden_tag(ctx) ? PASS_VLAN : ADMIT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
