/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of a decision as BPF maps: dataplane/src/table, in the same shape. The loader writes them
 * (loader/src/bpf/sync.rs) and is their only writer; loader/src/bpf/layout.rs has every structure of this file again.
 *
 * An element of an array is not replaced at once, so a program may see half of a change, or a FIB that is newer than
 * the next hops behind it. For AF_XDP that is harmless: the worker decides every frame again from a consistent snapshot.
 * Addresses are kept in wire order.
 */
#ifndef PODLANE_TABLES_H
#define PODLANE_TABLES_H

#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"

enum port_kind {
	PORT_POD = 1,
	PORT_UPLINK = 2,
	PORT_HOST = 3,
};

enum port_flag {
	PORT_FORWARDING = 1 << 0,
	PORT_LEARNING = 1 << 1,
	PORT_ISOLATED = 1 << 2,
	PORT_PARTIAL_CHECKSUMS = 1 << 3,
};

/* A port. A slot of zeros is no port: its flags lack PORT_FORWARDING. */
struct port {
	/* The MAC address that hosts behind it send routed packets to, like head.destination_key. */
	__be64 router_key;
	__u32 ifindex;
	/* enum port_kind */
	__u32 kind;
	/* enum port_flag */
	__u32 flags;
	/* Largest IP packet that may leave through it, bytes. */
	__u32 mtu;
	/* Largest frame that its sockets carry, bytes. */
	__u32 max_frame;
	__u32 zero;
};

/* Where a routed packet leaves, and with which MAC addresses (each like head.destination_key). */
struct adjacency {
	__be64 destination_key;
	__be64 source_key;
	__u32 port;
	/* 0 in a slot that holds no adjacency. */
	__u32 present;
};

enum next_hop_kind {
	/* A slot that holds no next hop. */
	NEXT_HOP_NONE = 0,
	/* The kernel's; the value is an enum pass_reason. */
	NEXT_HOP_KERNEL = 1,
	/* The destination is on a link itself; the value is the link. */
	NEXT_HOP_ON_LINK = 2,
	/* Through a gateway; the value is an index into adjacencies. */
	NEXT_HOP_GATEWAY = 3,
};

struct next_hop {
	/* enum next_hop_kind */
	__u32 kind;
	__u32 value;
	/* Largest IP packet that may take this route, bytes. */
	__u32 mtu;
	__u32 zero;
};

struct cidr4 {
	__be32 address;
	__be32 mask;
};

struct cidr6 {
	struct address6 address;
	struct address6 mask;
};

/* What holds for the whole node. */
struct node {
	/* 0: routed or bridged by Podlane. Otherwise one more than the enum pass_reason why the kernel does it all. */
	__u32 ipv4_off;
	__u32 ipv6_off;
	__u32 bridge_off;
	/* How many CIDRs of each family follow. */
	__u32 cidrs4;
	__u32 cidrs6;
	__u32 zero;
	struct cidr4 cidr4[MAX_CLUSTER_CIDRS];
	struct cidr6 cidr6[MAX_CLUSTER_CIDRS];
};

struct host4 {
	__u32 link;
	__be32 address;
};

struct host6 {
	__u32 link;
	__u8 address[16];
};

/* Keys of the tries (struct bpf_lpm_trie_key). */
struct prefix4 {
	__u32 length;
	__be32 address;
};

struct prefix6 {
	__u32 length;
	__u8 address[16];
};

/* A worker's sign of life, on a cache line of its own. The loader maps the array into the workers' memory. */
struct heartbeat {
	/* CLOCK_MONOTONIC_COARSE when it was written, nanoseconds. */
	__u64 ns;
	__u64 zero[7];
};

/* Elements of counters.passed: a power of two, so that a mask proves to the verifier that an index is within it. */
#define PASS_SLOTS 32
_Static_assert(PASS_REASONS <= PASS_SLOTS, "every reason has a counter");

/* What happened to the frames of one port on one CPU. */
struct counters {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 steered;
	/* By enum pass_reason. */
	__u64 passed[PASS_SLOTS];
};

/* Interface index to port number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

/* Ports by number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

/* MAC address (like head.destination_key) to port number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FDB);
	__type(key, __be64);
	__type(value, __u32);
} fdb SEC(".maps");

/* On-link hosts: (link, address) to an index into adjacencies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NEIGHBOURS);
	__type(key, struct host4);
	__type(value, __u32);
} hosts4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NEIGHBOURS);
	__type(key, struct host6);
	__type(value, __u32);
} hosts6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NEIGHBOURS);
	__type(key, __u32);
	__type(value, struct adjacency);
} adjacencies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NEXT_HOPS);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hops SEC(".maps");

/* Routes: destination to an index into next_hops. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ROUTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix4);
	__type(value, __u32);
} fib4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ROUTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix6);
	__type(value, __u32);
} fib6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* AF_XDP sockets by port * MAX_QUEUES + queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_PORTS *MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* The worker that drains each of them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PORTS *MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_WORKERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct heartbeat);
} heartbeats SEC(".maps");

/* By port number; the last element counts frames of interfaces that are no port. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS + 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

#endif
