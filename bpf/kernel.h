/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's interface, as far as Podlane uses it: integer types, map types, the XDP context and verdicts.
 *
 * These few definitions stand in for <linux/bpf.h> and vmlinux.h, so that the programs build with clang and libbpf's
 * helper headers alone, for any architecture. All of it is stable user interface (include/uapi/linux/bpf.h).
 */
#ifndef PODLANE_KERNEL_H
#define PODLANE_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
/* Big-endian, as on the wire. */
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;

#define NULL ((void *)0)

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_XSKMAP = 17,
};

enum {
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
};

enum xdp_action {
	XDP_PASS = 2,
	XDP_REDIRECT = 4,
};

/* What an XDP program sees of a frame; data and data_end bound its linear part. */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#endif
