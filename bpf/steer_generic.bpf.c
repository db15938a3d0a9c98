// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The XDP program of a port in generic mode.
 *
 * Generic XDP runs on socket buffers, so a frame may be a segmentation super-frame: TCP that is yet to be cut, or several
 * UDP datagrams in one (UDP_SEGMENT). An AF_XDP socket would lose the segment size. Nothing in the frame tells, but the
 * socket buffer does: its skb_shared_info lies behind the xdp_buff where generic XDP puts the end of the frame
 * (net/core/dev.c, bpf_prog_run_generic_xdp: data_hard_start is skb->head, and frame_sz ends behind the shared info).
 * Needs the kfuncs of Linux 6.2, which is why it is a program of its own. The socket buffer's VLAN tag is out of reach.
 */
#include "steer.h"

#include <bpf/bpf_core_read.h>

/* SMP_CACHE_BYTES, to which the kernel rounds the size of skb_shared_info (SKB_DATA_ALIGN). */
#if defined(__TARGET_ARCH_x86) || defined(__TARGET_ARCH_arm64)
#define SMP_CACHE_BYTES 64
#else
#error "the kernel's SMP_CACHE_BYTES of this architecture is not known here"
#endif

/* The fields that we read; libbpf finds their places in the running kernel. */
struct xdp_buff {
	void *data_hard_start;
	__u32 frame_sz;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	__u16 gso_size;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __ksym;

static __always_inline int is_super_frame(struct xdp_md *ctx)
{
	const struct xdp_buff *buff = bpf_cast_to_kern_ctx(ctx);
	__u32 info_bytes = bpf_core_type_size(struct skb_shared_info);
	const struct skb_shared_info *info;

	info_bytes = (info_bytes + SMP_CACHE_BYTES - 1) & ~(SMP_CACHE_BYTES - 1);
	info = bpf_rdonly_cast(buff->data_hard_start + buff->frame_sz - info_bytes,
			       bpf_core_type_id_kernel(struct skb_shared_info));
	return info->gso_size != 0;
}

SEC("xdp.frags")
int podlane_steer_generic(struct xdp_md *ctx)
{
	bpf_tail_call_static(ctx, &stages, STAGE_FIRST);
	return steer_frame(ctx, is_super_frame(ctx) ? PASS_SUPER_FRAME : ADMIT);
}

SEC("xdp.frags")
int podlane_steer_generic_rec(struct xdp_md *ctx)
{
	return steer_recorded(ctx, is_super_frame(ctx) ? PASS_SUPER_FRAME : ADMIT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
