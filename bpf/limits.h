/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The limits of dataplane/src/limits.rs that size maps and bound loops. A test compares the two files. */
#ifndef PODLANE_LIMITS_H
#define PODLANE_LIMITS_H

/* Ports of one dataplane: pods, uplinks and the host port together. */
#define MAX_PORTS 512
/* Queues of one port that can carry a socket; also the stride of the XSKMAP (port * MAX_QUEUES + queue). */
#define MAX_QUEUES 16
/* Worker threads. */
#define MAX_WORKERS 16
/* Entries of the forwarding database, all ports together. */
#define MAX_FDB 16384
/* MAC addresses that a guarded port may send from. */
#define MAX_GUARD_MACS 4
/* IP addresses of one family, likewise. */
#define MAX_GUARD_ADDRESSES 8
/* Neighbours, both families together. */
#define MAX_NEIGHBOURS 16384
/* Routes of one family. */
#define MAX_ROUTES 262144
/* Interfaces whose port is found by looking at one place, see struct near. A power of two. */
#define NEAR_INTERFACES 4096
/* Places of MAC addresses that are found by looking at one, see struct near_station. */
#define NEAR_STATIONS 16384
/* Destinations whose route was looked up lately, of each family, see struct near_route4. A power of two. */
#define NEAR_ROUTES 16384
/* Distinct next hops of all routes. */
#define MAX_NEXT_HOPS 16384
/* Configured cluster CIDRs of one family. */
#define MAX_CLUSTER_CIDRS 16
/* Ports that a capture can be restricted to. */
#define MAX_CAPTURE_PORTS 64
/* A worker whose heartbeat is older than this is taken for dead and its frames pass to the kernel, milliseconds. */
#define HEARTBEAT_STALE_MS 90
/* So is a worker that was given a frame so long ago and has not come by since, milliseconds. */
#define WORKER_WAIT_MS 10
/* Tables whose writer has shown no life for this long are not trusted any more, milliseconds. */
#define TABLES_STALE_MS 1000
/* The same for the source guard, milliseconds. */
#define GUARD_STALE_MS 60000
/* Of tables whose writer has shown no life for this long it is checked that the way out is still there, milliseconds. */
#define TABLES_ORPHANED_MS 60

#endif
