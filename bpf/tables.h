/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of a decision as BPF maps: dataplane/src/table, in the same shape. The loader writes them
 * (loader/src/bpf/sync.rs) and is their only writer; loader/src/bpf/layout.rs has every structure of this file again.
 *
 * Every table is there twice, in one map: keys and indices begin with the number of the copy. The snapshot of generation g
 * is in copy g % COPIES; the loader writes the next one into the other copy and then makes it current, so a program sees
 * the old world or the new one. A program that is so slow that the loader comes around to its copy again finds that out
 * (is_torn) and leaves the frame to the kernel. Addresses are kept in wire order.
 */
#ifndef PODLANE_TABLES_H
#define PODLANE_TABLES_H

#include "kernel.h"
#include "limits.h"
#include "parse.h"
#include "reason.h"

#define COPIES 2

/* Which snapshot is which. On a page of its own, which the loader maps. */
struct generations {
	/* The one to read. */
	__u64 current;
	/* The newest one that the loader has begun to write. */
	__u64 begun;
	/* The loader's sign of life: CLOCK_MONOTONIC_COARSE, nanoseconds. */
	__u64 heartbeat_ns;
};

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
	/* Served by the tc program: repeat.bpf.c decides its frames and steer.bpf.c leaves them alone. */
	PORT_REPEATED = 1 << 4,
	/* A pod's veth whose other end is in another network namespace, so frames can be handed to it directly. */
	PORT_PEER = 1 << 5,
	/* guards has an entry for it. */
	PORT_GUARDED = 1 << 6,
	/* Guard.strict and Guard.link_local of dataplane/src/table/guard.rs. */
	PORT_GUARD_STRICT = 1 << 7,
	PORT_GUARD_LINK_LOCAL = 1 << 8,
	/* The guard has station_key, and own4 and own6 are among its addresses. */
	PORT_GUARD_NEAR = 1 << 9,
};

/* A port as the way out of a frame. */
struct way_out {
	__u32 ifindex;
	/* enum port_flag. Without PORT_FORWARDING, as in a slot of zeros, nothing may leave. */
	__u32 flags;
	/* Largest IP packet that may leave through it, bytes. */
	__u32 mtu;
	/* Largest frame that its sockets carry, bytes. */
	__u32 max_frame;
};

/* A port, on a cache line of its own. */
struct port {
	struct way_out out;
	/* The MAC address that hosts behind it send routed packets to, like head.destination_key. */
	__be64 router_key;
	/* The MAC address of the only station behind it, like head.destination_key; 0 if there is none or more than one. */
	__be64 station_key;
	/* The index in used of that station, or NOBODY. */
	__u32 station_activity;
	/* enum port_kind */
	__u32 kind;
	/* The port's own. */
	__u32 number;
	/* With PORT_GUARD_NEAR, one address of each family that the station may send from; zeros are as good as one. */
	__be32 own4;
	struct address6 own6;
};

_Static_assert(sizeof(struct port) == 64, "a cache line");

/* What a guarded port may send from, in places that are filled up with zeros. The first line answers for most of IPv4. */
struct guard {
	/* Like head.destination_key. */
	__be64 mac[MAX_GUARD_MACS];
	__be32 ipv4[MAX_GUARD_ADDRESSES];
	struct address6 ipv6[MAX_GUARD_ADDRESSES];
};

/* Where a routed packet leaves, and with which MAC addresses (each like head.destination_key). */
struct adjacency {
	__be64 destination_key;
	__be64 source_key;
	__u32 port;
	/* 0 in a slot that holds no adjacency. */
	__u32 present;
	/* Its index in used. */
	__u32 activity;
	__u32 zero;
};

/* Where a MAC address is. */
struct station {
	__u32 port;
	/* Its index in used. */
	__u32 activity;
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

enum node_flag {
	/* Translates connections: conntrack is asked before a frame is taken (translated.h). */
	NODE_TRANSLATES = 1 << 0,
	/* The sysctl nf_conntrack_tcp_be_liberal is on. */
	NODE_LIBERAL = 1 << 1,
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
	/* enum node_flag */
	__u32 flags;
	/* An odd random number, by which nobody can foresee what meets in near_routes. */
	__u64 secret;
	struct cidr4 cidr4[MAX_CLUSTER_CIDRS];
	struct cidr6 cidr6[MAX_CLUSTER_CIDRS];
};

/* Keys of hosts: link * COPIES + copy, and the address. */
struct host4 {
	__u32 link;
	__be32 address;
};

struct host6 {
	__u32 link;
	__u8 address[16];
};

/* Keys of the tries (struct bpf_lpm_trie_key): the length counts the bits of the copy's number as well. */
#define COPY_BITS 32

struct prefix4 {
	__u32 length;
	__u32 copy;
	__be32 address;
};

struct prefix6 {
	__u32 length;
	__u32 copy;
	__u8 address[16];
};

/* A worker's sign of life, on a cache line of its own. The loader maps the array into the workers' memory. */
struct heartbeat {
	/* CLOCK_MONOTONIC_COARSE when it was written, nanoseconds. */
	__u64 ns;
	/* The program's word: when it gave the worker the first frame since then, by the same clock. Older than ns: none yet. */
	__u64 given_ns;
	__u64 zero[6];
};

/* Elements of counters.passed: a power of two, so that a mask proves to the verifier that an index is within it. */
#define PASS_SLOTS 32
_Static_assert(PASS_REASONS <= PASS_SLOTS, "every reason has a counter");

/* Elements of counters.dropped: a power of two as well. */
#define DROP_SLOTS 4
_Static_assert(DROP_REASONS - DROP_FIRST <= DROP_SLOTS, "every reason has a counter");

/* What happened to the frames of one port on one CPU. */
struct counters {
	/*
	 * No counter: when the tc program last looked at the clock for this port on this CPU, in quarters of jiffies; the two
	 * low bits are its enum trust. In front, beside what is counted of each frame that it forwards.
	 */
	__u64 clock;
	/* Forwarded by the tc program: from this port, and out through this port. */
	__u64 repeated;
	__u64 repeated_bytes;
	__u64 repeated_out;
	__u64 repeated_out_bytes;
	/* Without those that the tc program forwarded: the loader adds repeated, which is then counted only once a frame. */
	__u64 rx_packets;
	__u64 rx_bytes;
	/* To AF_XDP sockets. */
	__u64 steered;
	/* By enum pass_reason. */
	__u64 passed[PASS_SLOTS];
	/* By the source guard: enum drop_reason less DROP_FIRST. */
	__u64 dropped[DROP_SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct generations);
} generations SEC(".maps");

/*
 * The port of the interface in this slot, which is its index modulo NEAR_INTERFACES, or somebody else's. By
 * copy * NEAR_INTERFACES + slot. What has no slot to itself is in interfaces and ports only.
 *
 * A table that may be mapped begins at a page, so that its entries do not straddle cache lines. Nobody maps it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *NEAR_INTERFACES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct port);
} near_interfaces SEC(".maps");

/* Interface index * COPIES + copy to port number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, COPIES *MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

/* Ports by copy * MAX_PORTS + number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *MAX_PORTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

/* By copy * MAX_PORTS + number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *MAX_PORTS);
	__type(key, __u32);
	__type(value, struct guard);
} guards SEC(".maps");

/*
 * The station in this place, which near_place gives, with the port where it is. What has no place to itself is in fdb and
 * ports only: a hash map costs three calls, this one none, and one cache line tells all.
 */
struct near_station {
	/* Like head.destination_key; 0: nobody's. */
	__be64 key;
	struct station station;
	struct way_out out;
};

/* By copy * NEAR_STATIONS + place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *NEAR_STATIONS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct near_station);
} near_stations SEC(".maps");

/* Multiplicative hashing (Knuth, 6.4); the loader does the same with the key as the machine reads it. */
#define NEAR_FACTOR 0x9e3779b97f4a7c15ULL
#define NEAR_SHIFT 50

static __always_inline __u32 near_place(__be64 key)
{
	return (key * NEAR_FACTOR) >> NEAR_SHIFT;
}

_Static_assert(NEAR_STATIONS == 1ULL << (64 - NEAR_SHIFT), "every place is one of the table's");

/* MAC address (like head.destination_key, but with the copy in its first byte). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, COPIES *MAX_FDB);
	__type(key, __be64);
	__type(value, struct station);
} fdb SEC(".maps");

/* On-link hosts: (link, address) to an index into adjacencies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, COPIES *MAX_NEIGHBOURS);
	__type(key, struct host4);
	__type(value, __u32);
} hosts4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, COPIES *MAX_NEIGHBOURS);
	__type(key, struct host6);
	__type(value, __u32);
} hosts6 SEC(".maps");

/* By copy * MAX_NEIGHBOURS + index. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *MAX_NEIGHBOURS);
	__type(key, __u32);
	__type(value, struct adjacency);
} adjacencies SEC(".maps");

/* By copy * MAX_NEXT_HOPS + index. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES *MAX_NEXT_HOPS);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hops SEC(".maps");

/* Routes: destination to an index into next_hops. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, COPIES *MAX_ROUTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix4);
	__type(value, __u32);
} fib4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, COPIES *MAX_ROUTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix6);
	__type(value, __u32);
} fib6 SEC(".maps");

/*
 * What the tries said of destinations lately, on the cache line that near_routes gives: a trie of 15,000 routes costs a
 * dozen cache misses in a row, this one. What was found in another snapshot counts for nothing, so nobody has to clear it.
 * All CPUs write without a lock: the parts of an entry that do not belong together do not fit together, as an address is
 * kept with the scrambled found added to it (Hyatt and Mann, A lock-less transposition table implementation, ICGA Journal
 * 25, 2002). The halves of an IPv6 address are of one address, and of that found, if the check says so: it is another for
 * each half that is exchanged, and nobody who does not know the secret finds an address that has a third one's.
 */
struct near_route4 {
	/* generation * MAX_NEXT_HOPS + an index into next_hops. */
	__u64 found;
	__u64 address;
};

struct near_route6 {
	__u64 found;
	__u64 high;
	__u64 low;
	__u64 check;
};

#define NEAR_WAYS4 4
#define NEAR_WAYS6 2

struct near_line4 {
	struct near_route4 way[NEAR_WAYS4];
};

struct near_line6 {
	struct near_route6 way[NEAR_WAYS6];
};

_Static_assert(sizeof(struct near_line4) == 64 && sizeof(struct near_line6) == 64, "a cache line");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_ROUTES / NEAR_WAYS4);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct near_line4);
} near_routes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_ROUTES / NEAR_WAYS6);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct near_line6);
} near_routes6 SEC(".maps");

/* Destinations come in even steps, of which a single multiplication brings too many together. */
static __always_inline __u64 near_route_hash(__u64 address)
{
	address *= NEAR_FACTOR;
	address ^= address >> 32;
	return (address * NEAR_FACTOR) >> 32;
}

/* By copy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COPIES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/*
 * When the tc program last used an adjacency or a station, by activity index, in units of 2^30 ns of
 * CLOCK_MONOTONIC_COARSE. What the workers use they note themselves.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NEIGHBOURS + MAX_FDB);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} used SEC(".maps");

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

/*
 * The ports' interfaces, by their index. The kernel takes an entry away when the interface is unregistered, so what is here
 * is still the interface that the loader meant, and none that came later under the same index.
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, COPIES *MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* A snapshot: its generation, and where its entries are. */
struct snapshot {
	const struct generations *generations;
	__u64 generation;
	__u32 copy;
};

static __always_inline int take_snapshot(struct snapshot *snapshot)
{
	__u32 zero = 0;
	const struct generations *found = bpf_map_lookup_elem(&generations, &zero);

	if (!found)
		return 0;
	snapshot->generations = found;
	snapshot->generation = *(const volatile __u64 *)&found->current;
	snapshot->copy = snapshot->generation % COPIES;
	return 1;
}

/*
 * Whether the loader has begun to write another snapshot over this one since it was taken. Loads are not reordered on
 * x86; elsewhere the loader waits for all running programs before it writes over a copy (loader/src/bpf/generation.rs).
 */
static __always_inline int is_torn(const struct snapshot *snapshot)
{
	barrier();
	return *(const volatile __u64 *)&snapshot->generations->begun >= snapshot->generation + COPIES;
}

#endif
