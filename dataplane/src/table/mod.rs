//! What the node knows: ports, bridge FDB, neighbours, routes and the cluster's CIDRs.
//!
//! One writer (the loader) compiles a [`Tables`] snapshot from the kernel's state and publishes it; workers load the
//! current snapshot once per batch and read it without a lock, an allocation or a reference count per packet. Parts that
//! did not change are shared between snapshots, so a moved MAC address does not rebuild the FIB.
//!
//! Two steps lead from a routed packet to its rewrite, as in other routers: the FIB maps a destination to a
//! [`NextHop`], and a next hop names an [`Adjacency`] (egress port and both MAC addresses), directly for a gateway or by
//! one more look-up of the destination among the on-link hosts. The same shape is written to the BPF maps.

pub mod cluster;
pub mod fdb;
pub mod fib;
pub mod guard;
pub mod host;
pub mod learn;
pub mod port;
mod snapshot;

use std::sync::Arc;

pub use cluster::Cluster;
pub use fdb::{Fdb, FdbEntry};
pub use fib::{Fib, FibKey};
pub use guard::{Guard, GuardTable};
pub use host::HostTable;
pub use port::{Path, Port, PortKind, PortTable};
pub use snapshot::{Publisher, Reader, channel};

use crate::addr::{MacAddr, PortId};
use crate::forward::PassReason;
use crate::tap::Tap;

/// One consistent picture of the node.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Counts publications, from 1; 0 is the empty snapshot before the first.
    pub generation: u64,
    /// Ports by number.
    pub ports: Arc<PortTable>,
    /// The bridge's forwarding database: pod MAC address to port.
    pub fdb: Arc<Fdb>,
    /// IPv4 routes (main and local table): destination to an index into `next_hops`.
    pub fib4: Arc<Fib<u32>>,
    /// IPv6 routes, likewise.
    pub fib6: Arc<Fib<u128>>,
    /// What routes point to.
    pub next_hops: Arc<Vec<NextHop>>,
    /// On-link hosts with a known MAC address: (link, address) to an index into `adjacencies`.
    pub hosts: Arc<HostTable>,
    /// Rewrites.
    pub adjacencies: Arc<Vec<Adjacency>>,
    /// Both ends of a packet must lie in here.
    pub cluster: Arc<Cluster>,
    /// What guarded ports may send from; a port without an entry is not guarded.
    pub guards: Arc<GuardTable>,
    /// Whether and how this node routes.
    pub routing: Routing,
    /// Where workers leave copies of frames; `None` while nobody captures.
    pub tap: Option<Arc<Tap>>,
}

/// Whether packets of a family are routed at all; bridging does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Routing {
    /// `None`: IPv4 is routed. Otherwise the reason why it is all left to the kernel.
    pub ipv4_off: Option<PassReason>,
    /// The same for IPv6.
    pub ipv6_off: Option<PassReason>,
    /// `Some`: the bridge does something that we do not mirror (VLAN filtering): nothing is bridged by us.
    pub bridge_off: Option<PassReason>,
    /// What the program in the kernel asks conntrack before it takes a frame.
    pub translation: Translation,
}

/// Whether the node translates addresses of connections, so that the kernel's conntrack is asked about each frame. That is
/// done by the programs in the kernel (`bpf/translated.h`), before a frame reaches an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Translation {
    /// It does not.
    #[default]
    None,
    /// It does, and conntrack judges the windows of TCP connections that it knows from their start.
    Strict,
    /// It does, and conntrack does not judge windows (sysctl `nf_conntrack_tcp_be_liberal`).
    Liberal,
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextHop {
    /// What to do.
    pub action: NextHopAction,
    /// Largest IP packet (bytes, IP header included) that may take this route: the smaller of the route's `mtu` metric and
    /// `u32::MAX`; the egress port's MTU applies besides.
    pub mtu: u32,
}

/// The kinds of next hop.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NextHopAction {
    /// The kernel's: a local address, a route that we do not mirror, or an unresolved gateway.
    Kernel(PassReason),
    /// The destination is on the link itself: look it up in [`Tables::hosts`] under this link.
    OnLink(LinkId),
    /// Through a resolved gateway: an index into [`Tables::adjacencies`].
    Gateway(u32),
}

/// A link in the sense of routing: the bridge, or one uplink.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u16);

impl LinkId {
    /// The pod bridge.
    pub const BRIDGE: LinkId = LinkId(u16::MAX);

    /// The link behind an uplink port.
    pub const fn uplink(port: PortId) -> LinkId {
        LinkId(port.0)
    }
}

/// A rewrite: where a routed packet leaves, and the MAC addresses that it gets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Adjacency {
    /// The egress port.
    pub port: PortId,
    /// The next hop's MAC address.
    pub destination: MacAddr,
    /// Our MAC address on that link.
    pub source: MacAddr,
    /// Index into the workers' [`Activity`] tables, below [`crate::limits::MAX_NEIGHBOURS`].
    pub activity: u32,
}

/// When each FDB entry or neighbour was last used, written by one worker and read by the loader, which tells the kernel,
/// so that entries in use do not age out there. Indices below [`crate::limits::MAX_NEIGHBOURS`] are neighbours; those
/// from there up to [`Activity::LEN`] are FDB entries.
#[derive(Debug)]
pub struct Activity(Box<[std::sync::atomic::AtomicU32]>);

impl Activity {
    /// Entries of the table.
    pub const LEN: usize = crate::limits::MAX_NEIGHBOURS + crate::limits::MAX_FDB;

    /// A table in which nothing was ever used.
    pub fn new() -> Self {
        Activity((0..Self::LEN).map(|_| std::sync::atomic::AtomicU32::new(0)).collect())
    }

    /// Notes that entry `index` was used at `now_s`, in seconds of the monotonic clock. Indices out of range are ignored.
    #[inline]
    pub fn touch(&self, index: u32, now_s: u32) {
        if let Some(slot) = self.0.get(index as usize) {
            // Reading first keeps the cache line clean when the second has not changed.
            if slot.load(std::sync::atomic::Ordering::Relaxed) != now_s {
                slot.store(now_s, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    /// When entry `index` was last used, in seconds of the monotonic clock; 0 for never.
    pub fn last_used_s(&self, index: u32) -> u32 {
        self.0.get(index as usize).map_or(0, |slot| slot.load(std::sync::atomic::Ordering::Relaxed))
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}
