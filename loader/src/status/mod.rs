//! What `podlane status` tells: the JSON of schema 1 as types, and its rendering for people.
//!
//! The daemon fills a [`Status`] in and the control socket carries it; programs get it as it is (`docs/status.md` describes
//! it), people get [`Status::render`]. The equations of the accounts live here too, so that the daemon, the rendering and
//! the tests mean the same by "every frame is accounted for".

mod render;
mod residence;
pub mod schema;
mod table;

use std::collections::BTreeMap;

use podlane_dataplane::forward::{DropReason, PassReason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{NamedBy, PodName};

pub use render::UPTIME_PARTS;
pub(crate) use render::uptime;
pub use residence::ResidenceStatus;
pub(crate) use table::{Cell, Table, wrap, wrap_to};
pub use table::{WIDTH, thousands};

/// The version of the JSON's shape. It changes when a field changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// Everything about one running daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of this shape. It changes when a field changes its meaning or goes away, not when one is added.
    pub schema: u32,
    /// Podlane's version.
    pub version: String,
    /// Name of the daemon.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: f64,
    /// When it started, seconds of Unix time.
    #[serde(default)]
    pub start_time_s: f64,
    /// How frames are forwarded, unless said otherwise of a port: `af_xdp`, `kernel` or `auto`.
    pub path: String,
    /// How the kernel path's program is attached on this kernel.
    pub kernel_program: KernelProgram,
    /// Name of the bridge.
    pub bridge: String,
    /// `ok`, or a sentence: why nothing is bridged.
    pub bridge_state: String,
    /// Names of the configured uplinks.
    pub uplinks: Vec<String>,
    /// The networks in which both ends of a packet must lie.
    pub cluster_cidrs: Vec<String>,
    /// Where they come from.
    pub cluster_source: ClusterSource,
    /// Whether packets are routed and bridged.
    pub routing: RoutingStatus,
    /// Sentences about the node that an operator should know.
    pub notes: Vec<String>,
    /// Worker threads, by number.
    pub workers: Vec<WorkerStatus>,
    /// Ports, by number.
    pub ports: Vec<PortStatus>,
    /// Interfaces that would be ports but are left to the kernel.
    pub refused: Vec<Refused>,
    /// Sizes of the tables.
    pub tables: TablesStatus,
    /// UMEM frames by place.
    pub umem: UmemStatus,
    /// Netlink.
    pub mirror: MirrorStatus,
    /// Learning of MAC addresses.
    pub learning: LearningStatus,
    /// What the counters carry on.
    #[serde(default)]
    pub counters: CountersStatus,
    /// What outlives a daemon.
    #[serde(default)]
    pub survival: SurvivalStatus,
    /// [`Status::balances`], as the daemon saw it.
    pub accounts_balance: bool,
}

/// Where the program of the kernel path hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KernelProgram {
    /// At tcx ingress (Linux 6.6).
    Tcx,
    /// In a clsact qdisc.
    Clsact,
}

/// Where the cluster's CIDRs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClusterSource {
    /// From the configuration.
    #[serde(rename = "configured")]
    Configured,
    /// None are configured: the subnets of the bridge's addresses.
    #[serde(rename = "pod subnets")]
    PodSubnets,
}

/// `on`, or the name of the reason for which all of it is left to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoutingStatus {
    /// IPv4 routing.
    pub ipv4: String,
    /// IPv6 routing.
    pub ipv6: String,
    /// Bridging.
    pub bridging: String,
}

impl RoutingStatus {
    /// From the tables' switches, `None` being `on`.
    pub fn new(routing: &podlane_dataplane::table::Routing) -> Self {
        let name = |off: Option<PassReason>| off.map_or("on", PassReason::name).to_owned();
        RoutingStatus { ipv4: name(routing.ipv4_off), ipv6: name(routing.ipv6_off), bridging: name(routing.bridge_off) }
    }
}

/// One worker thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// Its number, which is the queue that it owns on every port.
    pub id: u32,
    /// The CPU that it is pinned to.
    pub cpu: u32,
    /// Milliseconds since its last sign of life.
    pub heartbeat_age_ms: f64,
    /// Frames received.
    pub rx: u64,
    /// Frames forwarded.
    pub forwarded: u64,
    /// Frames handed to the kernel.
    pub kernel: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Batches of received frames.
    pub batches: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Times that it was woken by something else than its timer.
    pub wakeups: u64,
    /// System calls to transmit.
    pub tx_syscalls: u64,
    /// Frames handed to other workers.
    pub handoff_out: u64,
    /// Frames taken over from other workers.
    pub handoff_in: u64,
    /// Times that a fill ring could not be topped up because no frame was free.
    #[serde(default)]
    pub fill_starved: u64,
    /// How long packets stayed with it.
    #[serde(default)]
    pub residence: ResidenceStatus,
    /// Ports on which it owns a queue.
    pub ports: u32,
    /// Nanoseconds in which it had packets, since its start: from the first of them to the first look that found none, without
    /// the pauses in which it lets packets come together.
    #[serde(default)]
    pub busy_ns: u64,
    /// UMEM frames that wait in its RX rings.
    #[serde(default)]
    pub rx_frames: u64,
    /// UMEM frames in its TX rings, being transmitted or in completion rings.
    #[serde(default)]
    pub tx_frames: u64,
    /// UMEM frames in its fill rings or being received into.
    #[serde(default)]
    pub fill_frames: u64,
    /// UMEM frames that other workers have handed to it and that it has not taken yet.
    #[serde(default)]
    pub handoff_frames: u64,
}

/// What hangs on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// The host end of a pod's veth pair.
    Pod,
    /// An interface towards other nodes.
    Uplink,
    /// The way into the node's kernel.
    Host,
}

impl From<podlane_dataplane::table::PortKind> for PortKind {
    fn from(kind: podlane_dataplane::table::PortKind) -> Self {
        match kind {
            podlane_dataplane::table::PortKind::Pod => PortKind::Pod,
            podlane_dataplane::table::PortKind::Uplink => PortKind::Uplink,
            podlane_dataplane::table::PortKind::Host => PortKind::Host,
        }
    }
}

/// How a port's XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortXdpMode {
    /// By the driver.
    Native,
    /// By the stack.
    Generic,
    /// There is no program: nothing is received through this port.
    None,
}

/// How a port's AF_XDP sockets reach the UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyMode {
    /// The kernel copies between its buffers and the UMEM.
    Copy,
    /// The device reads and writes the UMEM.
    ZeroCopy,
    /// There is no socket.
    None,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// Its number.
    pub id: u32,
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub ifindex: u32,
    /// The pod's name; absent where nobody told it, and on uplinks and the host port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's namespace; absent where nobody told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Who told the pod's name; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_by: Option<NamedBy>,
    /// What hangs on it.
    pub kind: PortKind,
    /// Queues with a socket.
    pub queues: u32,
    /// How frames that come in through it are forwarded: `af_xdp` or `kernel`.
    pub path: String,
    /// Why so, as a clause.
    pub why_path: String,
    /// How its XDP program is attached.
    pub xdp_mode: PortXdpMode,
    /// How its sockets reach the UMEM.
    pub copy_mode: CopyMode,
    /// Whether frames larger than one UMEM frame pass.
    pub multi_buffer: bool,
    /// Whether checksums of transmitted frames are left to TX metadata.
    pub checksum_metadata: bool,
    /// `forwarding`, `down`, `blocked` or another single word.
    pub state: String,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// The segmentation size that Podlane gave it, bytes; `None`: none.
    #[serde(default)]
    pub big_tcp: Option<u32>,
    /// The MTU that Podlane gave it for traffic inside of the node, bytes; `None`: none.
    #[serde(default)]
    pub local_mtu: Option<u32>,
    /// What a pod may send from; absent on uplinks and the host port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_guard: Option<GuardStatus>,
    /// Why it is not served; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Times that it changed its path.
    #[serde(default)]
    pub path_switches: u64,
    /// Packets that the program of its path saw. A segmentation super-frame counts once.
    pub rx_packets: u64,
    /// Their bytes, Ethernet header included.
    pub rx_bytes: u64,
    /// Packets that the XDP program gave to a socket.
    pub steered: u64,
    /// Packets that the tc program forwarded: the kernel path.
    pub repeated: u64,
    /// Their bytes.
    pub repeated_bytes: u64,
    /// Packets that the program left to the kernel.
    pub passed: Breakdown,
    /// Packets that the program dropped for the source guard.
    #[serde(default)]
    pub guarded: Breakdown,
    /// Steered packets that the socket could not take.
    pub socket_drops: SocketDrops,
    /// Packets that workers received from the sockets.
    pub worker_rx: u64,
    /// Of these, forwarded to another port.
    pub forwarded: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Of these, handed to the kernel through the host port.
    pub kernel: Breakdown,
    /// Of these, dropped.
    pub dropped: Breakdown,
    /// Packets transmitted out of this port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets of other ports that the tc program forwarded out of this port.
    pub repeated_out: u64,
    /// Their bytes.
    pub repeated_out_bytes: u64,
    /// Packets that one worker counted as forwarded and handed to the worker of this port, which could not transmit them.
    /// They came in through other ports, so they are in none of this port's equations.
    #[serde(default)]
    pub tx_dropped: Breakdown,
}

/// The source guard of a pod's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuardStatus {
    /// What is asked for: `off`, `cluster` or `strict`.
    pub wanted: String,
    /// Whether the port is guarded.
    pub active: bool,
    /// Whence the addresses are known, or why the port is not guarded; a clause.
    pub why: String,
    /// MAC addresses that it may send from; empty if it is not guarded.
    pub macs: Vec<String>,
    /// IP addresses that it may send from; empty if it is not guarded.
    pub addresses: Vec<String>,
    /// Addresses that the pod has and may not send from, each with the reason.
    pub refused: Vec<String>,
}

/// A number and its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Breakdown {
    /// The sum of the parts.
    pub total: u64,
    /// Parts by the name of their reason; those of zero are absent.
    pub by_reason: BTreeMap<String, u64>,
}

impl Breakdown {
    /// From counters that are indexed by the number of their [`PassReason`].
    pub fn passes(counters: &[u64]) -> Self {
        Self::of(PassReason::ALL.iter().map(|reason| reason.name()).zip(counters.iter().copied()))
    }

    /// From counters that are indexed by the number of their [`DropReason`].
    pub fn drops(counters: &[u64]) -> Self {
        Self::of(DropReason::ALL.iter().map(|reason| reason.name()).zip(counters.iter().copied()))
    }

    /// From names and numbers; a name that occurs again is added up.
    pub fn of<'n>(parts: impl IntoIterator<Item = (&'n str, u64)>) -> Self {
        let mut all = Breakdown::default();
        for (name, count) in parts.into_iter().filter(|(_, count)| *count > 0) {
            all.total += count;
            *all.by_reason.entry(name.to_owned()).or_default() += count;
        }
        all
    }
}

/// Steered packets that a socket could not take (`XDP_STATISTICS`, `linux/if_xdp.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SocketDrops {
    /// The RX ring had no room.
    pub rx_ring_full: u64,
    /// The fill ring had no frame.
    pub fill_ring_empty: u64,
    /// Anything else, such as a packet that does not fit.
    pub other: u64,
}

impl SocketDrops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.rx_ring_full.saturating_add(self.fill_ring_empty).saturating_add(self.other)
    }

    /// Name, number and sentence of each kind.
    pub(crate) fn parts(&self) -> [(&'static str, u64, &'static str); 3] {
        [
            ("rx_ring_full", self.rx_ring_full, "The worker did not empty the socket's RX ring in time."),
            ("fill_ring_empty", self.fill_ring_empty, "No free UMEM frame was there to receive into."),
            ("other", self.other, "The socket refused the packet, for example because it was too large."),
        ]
    }
}

/// An interface that would be a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// A sentence with the cure.
    pub why: String,
}

/// Sizes of the tables that the workers read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TablesStatus {
    /// The number of the snapshot in force; it begins anew with the daemon.
    pub generation: u64,
    /// Snapshots put in force.
    #[serde(default)]
    pub publications: u64,
    /// Ports.
    pub ports: u64,
    /// The most there can be.
    #[serde(default)]
    pub port_limit: u64,
    /// Entries of the forwarding database.
    pub fdb: u64,
    /// The most there can be.
    pub fdb_limit: u64,
    /// Resolved neighbours.
    pub neighbours: u64,
    /// The most there can be.
    pub neighbour_limit: u64,
    /// IPv4 routes.
    pub routes_ipv4: u64,
    /// IPv6 routes.
    pub routes_ipv6: u64,
    /// The most there can be of one family.
    pub route_limit: u64,
    /// Distinct next hops.
    pub next_hops: u64,
    /// The most there can be.
    #[serde(default)]
    pub next_hop_limit: u64,
    /// Bytes of both families' compiled routes.
    pub fib_bytes: u64,
}

/// UMEM frames by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UmemStatus {
    /// All of them.
    pub frames: u64,
    /// Bytes of one.
    pub chunk_bytes: u64,
    /// In the free list.
    pub free: u64,
    /// In fill rings or being received into.
    pub fill: u64,
    /// In RX rings.
    pub rx: u64,
    /// In a worker's hands.
    pub worker: u64,
    /// In hand-off rings.
    pub handoff: u64,
    /// In TX rings, being transmitted or in completion rings.
    pub tx: u64,
    /// Whether the places add up to `frames`.
    pub sum_ok: bool,
}

impl UmemStatus {
    /// The frames of all places.
    pub fn sum(&self) -> u64 {
        self.places().iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Name and number of each place.
    pub(crate) fn places(&self) -> [(&'static str, u64); 6] {
        [
            ("free", self.free),
            ("fill", self.fill),
            ("rx", self.rx),
            ("worker", self.worker),
            ("handoff", self.handoff),
            ("tx", self.tx),
        ]
    }
}

/// The mirror of the kernel's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorStatus {
    /// Netlink messages received.
    pub messages: u64,
    /// Times that everything was read anew.
    pub redumps: u64,
    /// Times that the kernel lost messages for us (`ENOBUFS`).
    pub overruns: u64,
    /// Microseconds from reading the last messages to the tables that follow them being in force, on both paths.
    pub last_change_us: u64,
    /// The most that took since the start.
    pub slowest_change_us: u64,
}

/// Learning of MAC addresses from traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LearningStatus {
    /// Reports of workers.
    pub reports: u64,
    /// Of these, written to the kernel's forwarding database.
    pub accepted: u64,
    /// Refused by a limit, or because the address is another's.
    pub limited: u64,
}

/// What the counters carry on from earlier daemons of the same name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountersStatus {
    /// Since when they count, seconds of Unix time: the start of the first daemon whose counts are carried on.
    pub since_s: f64,
    /// Daemons whose counts were carried on and that had ended by themselves, with their last count.
    pub takeovers: u64,
    /// Those that had not (killed, crashed): what they counted after they had last told or saved it is lost.
    pub takeovers_after_kill: u64,
    /// Times that this daemon could not save its counts.
    pub save_failures: u64,
}

/// What outlives a daemon, and what this one has adopted of an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurvivalStatus {
    /// The directory in which programs, links and maps are pinned; `null` if they go with the daemon.
    pub pinned_at: Option<String>,
    /// Whether it goes on with an earlier daemon's maps; not if there were none, or of another version.
    pub adopted_maps: bool,
    /// Programs that it found on interfaces and replaced by its own without a gap.
    pub adopted_links: u64,
    /// How long nobody kept the tables before this daemon did, milliseconds; `null` if there was no daemon before, or if that
    /// is not known.
    pub gap_ms: Option<f64>,
}

impl PortStatus {
    /// The pod's name, if it has one.
    pub fn pod_name(&self) -> Option<PodName> {
        let (pod, by) = (self.pod.clone()?, self.named_by?);
        Some(PodName { namespace: self.namespace.clone(), pod, by })
    }

    /// What people call it: the pod, or else the interface.
    pub fn label(&self) -> String {
        self.pod_name().map_or_else(|| self.name.clone(), |name| name.to_string())
    }

    /// Packets between two counters: received, but not yet accounted for. Zero once traffic is quiet; the counters are not
    /// read at one instant, so under load it may be either side of zero.
    pub fn in_flight(&self) -> i128 {
        i128::from(self.rx_packets) - self.accounted()
    }

    /// forwarded + repeated + kernel + passed + dropped, the drops of the sockets included.
    fn accounted(&self) -> i128 {
        [
            self.forwarded,
            self.repeated,
            self.kernel.total,
            self.passed.total,
            self.dropped.total,
            self.guarded.total,
            self.socket_drops.total(),
        ]
        .into_iter()
        .map(i128::from)
        .sum()
    }

    /// Whether the three equations of the accounts hold: received = passed + repeated + steered, steered = received by workers +
    /// dropped by sockets, received by workers = forwarded + kernel + dropped.
    pub fn balances(&self) -> bool {
        let sum = |parts: &[u64]| parts.iter().copied().map(u128::from).sum::<u128>();
        u128::from(self.rx_packets) == sum(&[self.passed.total, self.guarded.total, self.repeated, self.steered])
            && u128::from(self.steered) == sum(&[self.worker_rx, self.socket_drops.total()])
            && u128::from(self.worker_rx) == sum(&[self.forwarded, self.kernel.total, self.dropped.total])
    }
}

impl Status {
    /// Whether every port's accounts and the UMEM's places add up. Only to be expected while traffic is quiet.
    pub fn balances(&self) -> bool {
        self.umem.sum() == self.umem.frames && self.ports.iter().all(PortStatus::balances)
    }
}

/// The sentence of a reason that the engine or its sockets know; `None` for one of a newer version.
pub fn sentence(reason: &str) -> Option<&'static str> {
    let pass = PassReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.sentence());
    pass.or_else(|| DropReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.sentence()))
}

#[cfg(test)]
pub(crate) mod tests;
