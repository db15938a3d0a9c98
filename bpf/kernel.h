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

/* What is expected of nearly every frame that is forwarded: the compiler lays that way out in one piece. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_XSKMAP = 17,
	BPF_MAP_TYPE_DEVMAP_HASH = 25,
};

enum {
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
};

enum xdp_action {
	XDP_DROP = 1,
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

/*
 * What a tc program answers that leaves a packet alone, and that drops it (enum tcx_action_base; the same numbers as clsact's
 * TC_ACT_UNSPEC and TC_ACT_SHOT).
 */
enum {
	TCX_NEXT = -1,
	TCX_DROP = 2,
};

enum {
	BPF_F_RECOMPUTE_CSUM = 1 << 0,
};

/* Of bpf_perf_event_output. */
#define BPF_F_CURRENT_CPU 0xffffffffULL

/* What a tc program sees of a socket buffer. The fields up to gso_size are those of every supported kernel. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
};

#define NS_PER_MS 1000000ULL

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#endif
