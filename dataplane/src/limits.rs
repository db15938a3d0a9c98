//! Every limit of the engine, in one place.
//!
//! Reaching a limit is never a crash: it is a named refusal by the loader, or a named counter in a worker. The BPF program
//! sizes its maps by the same numbers (`bpf/limits.h`; a test compares the two files).

/// Ports of one dataplane: pods, uplinks and the host port together.
pub const MAX_PORTS: usize = 512;
/// Queues of one port that can carry a socket; also the stride of the XSKMAP (`port * MAX_QUEUES + queue`).
pub const MAX_QUEUES: usize = 16;
/// Worker threads.
pub const MAX_WORKERS: usize = 16;
/// Uplinks named by the configuration.
pub const MAX_UPLINKS: usize = 8;
/// Entries of the forwarding database, all ports together.
pub const MAX_FDB: usize = 16_384;
/// Learned (not static) MAC addresses of one pod port; further ones stay with the kernel.
pub const MAX_LEARNED_PER_PORT: usize = 64;
/// Learned MAC addresses of one bridge port that are mirrored from the kernel.
pub const MAX_MIRRORED_PER_PORT: usize = 1024;
/// Learned MAC addresses that are mirrored in all; a port may have [`MAX_LEARNED_PER_PORT`] besides.
pub const MAX_MIRRORED: usize = 65_536;
/// Reports of new or moved MAC addresses that one port may make per second.
pub const MAX_LEARN_REPORTS_PER_SECOND: u32 = 64;
/// MAC addresses that a guarded port may send from. A port with more is not guarded.
pub const MAX_GUARD_MACS: usize = 4;
/// IP addresses of one family that a guarded port may send from, link-local ones included. A port with more is not guarded.
pub const MAX_GUARD_ADDRESSES: usize = 8;
/// Neighbours (resolved next hops and on-link hosts), both families together.
pub const MAX_NEIGHBOURS: usize = 16_384;
/// Routes of one family.
pub const MAX_ROUTES: usize = 262_144;
/// Distinct next hops of all routes.
pub const MAX_NEXT_HOPS: usize = 16_384;
/// Configured cluster CIDRs of one family.
pub const MAX_CLUSTER_CIDRS: usize = 16;
/// Bytes of one UMEM frame (chunk). A page, so that chunks need no huge pages and never straddle two.
pub const CHUNK_SIZE: usize = 4096;
/// Bytes that the kernel keeps free in front of every received frame (`XDP_PACKET_HEADROOM`, `linux/bpf.h`).
pub const RX_HEADROOM: usize = 256;
/// UMEM frames of one packet at most: `MAX_SKB_FRAGS + 1` (`net/xdp/xsk.c`).
pub const MAX_PIECES: usize = 18;
/// Bytes of the largest frame that the engine carries, Ethernet header included.
pub const MAX_FRAME: usize = 65_014;
/// Packets from one queue since the worker's last sleep from which on it stops watching the queue until the next sleep.
/// Fewer are not worth the two system calls.
pub const UNWATCH_PACKETS: usize = 64;
/// Turns with work between two looks for such queues.
pub const UNWATCH_TURNS: u32 = 16;
/// Packets of a turn from which on they come together by themselves, and a worker looks again at once.
pub const PACE_PACKETS: usize = 16;
/// Nanoseconds between packets, on an average, up to which a worker waits for some to come together.
pub const PACE_PACKET_NS: u64 = 2_000;
/// Nanoseconds for which it then leaves the rings alone: what that adds to the time of a packet at most.
pub const PACE_NS: u64 = 2_000;
/// Interfaces whose port the BPF programs find by looking at one place; a power of two. The others cost them a hash look-up.
pub const NEAR_INTERFACES: usize = 4096;
/// MAC addresses that the BPF programs find by looking at one place; 2^14. The others cost them a hash look-up.
pub const NEAR_STATIONS: usize = 16_384;
/// Destinations of each family whose route the BPF programs find on one cache line; a power of two. Others, and all after a
/// change of the tables, cost them a look-up in a trie.
pub const NEAR_ROUTES: usize = 16_384;
/// Tables in the BPF maps whose writer has shown no life for this long are not trusted any more, and the kernel path's
/// frames go the kernel's own way.
pub const TABLES_STALE_MS: u64 = 1000;
/// The same for the source guard, which reads nothing but what a pod's own interface may send from: a restart or a daemon that is
/// kept waiting opens no guard. Longer, and a pod whose address moved meanwhile would be cut off by what nobody corrects.
pub const GUARD_STALE_MS: u64 = 60_000;
/// Of tables whose writer has shown no life for this long the kernel path checks for every packet that its way out is still
/// the interface that they mean. A little more than the time between two signs of life.
pub const TABLES_ORPHANED_MS: u64 = 60;
/// Packets that a worker takes from one socket before it looks at the next.
pub const BATCH: usize = 64;
/// Frames that one queue may hold for transmission: in its TX ring, in flight and completed.
pub const MAX_TX_OUTSTANDING: usize = 1024;
/// Descriptors of one hand-off ring between two workers.
pub const HANDOFF_RING: usize = 1024;
/// Ports that a capture can be restricted to; without a restriction all are captured.
pub const MAX_CAPTURE_PORTS: usize = 64;
/// A worker whose heartbeat is older than this is taken for dead and its frames pass to the kernel, milliseconds.
pub const HEARTBEAT_STALE_MS: u64 = 90;
/// So is a worker that was given a frame so long ago and has not come by since, milliseconds. It ends the steering to a killed
/// worker within 20 ms, whatever the state of its heartbeat; a sleeping worker is woken by the frame, and beats.
pub const WORKER_WAIT_MS: u64 = 10;
/// A sleeping worker wakes at least this often to write its heartbeat, milliseconds.
pub const HEARTBEAT_PERIOD_MS: u64 = 20;
/// A worker with packets in a TX ring that the kernel did not take looks at them again after so long, milliseconds; after twice as
/// long, up to [`HEARTBEAT_PERIOD_MS`], while it takes none, as of an interface that is down.
pub const TX_RETRY_MS: u64 = 1;
