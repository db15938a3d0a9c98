/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Why a frame was left to the kernel. Numbers and names are those of PassReason in dataplane/src/forward/reason.rs, which
 * has a sentence for each; a test compares the two files.
 */
#ifndef PODLANE_REASON_H
#define PODLANE_REASON_H

enum pass_reason {
	PASS_NOT_IP = 0,
	PASS_VLAN = 1,
	PASS_GROUP = 2,
	PASS_MALFORMED = 3,
	PASS_OPTIONS = 4,
	PASS_FRAGMENT = 5,
	PASS_TTL = 6,
	PASS_PROTOCOL = 7,
	PASS_ND = 8,
	PASS_OUTSIDE_CLUSTER = 9,
	PASS_FOR_NODE = 10,
	PASS_UNKNOWN_MAC = 11,
	PASS_NO_ROUTE = 12,
	PASS_ROUTE_KIND = 13,
	PASS_POLICY_RULES = 14,
	PASS_UNRESOLVED = 15,
	PASS_TOO_BIG = 16,
	PASS_HAIRPIN = 17,
	PASS_PORT_STATE = 18,
	PASS_FORWARDING_OFF = 19,
	PASS_NO_SOCKET = 20,
	PASS_WORKER_STALLED = 21,
	PASS_SUPER_FRAME = 22,
	PASS_FRAME_SIZE = 23,
	PASS_HIDDEN_CHECKSUM = 24,
	PASS_BRIDGE_FEATURE = 25,
	PASS_UNKNOWN_SOURCE = 26,
	PASS_TABLES_CHANGED = 27,
	PASS_TABLES_STALE = 28,
	PASS_TRANSLATED = 29,
	PASS_NETFILTER = 30,
	/* How many reasons there are. */
	PASS_REASONS = 31,
};

/* What a check returns that found no reason to leave the frame to the kernel. */
#define ADMIT PASS_REASONS

/* Why the source guard dropped a frame: the last numbers of DropReason in the same file. */
enum drop_reason {
	DROP_FOREIGN_MAC = 7,
	DROP_FOREIGN_ADDRESS = 8,
	DROP_FALSE_NEIGHBOUR = 9,
	DROP_HIDDEN_SOURCE = 10,
	/* One more than the last. */
	DROP_REASONS = 11,
};

/* The guard's first reason. */
#define DROP_FIRST DROP_FOREIGN_MAC

#endif
