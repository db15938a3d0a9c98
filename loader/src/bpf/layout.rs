//! The structures of `bpf/tables.h`, byte by byte.
//!
//! Keys and values of BPF maps are plain bytes: integers in the machine's order, addresses in the wire's. Loading compares
//! their sizes with the compiled program's, and the tests run both sides against each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::table::{
    Adjacency, Cluster, Guard, LinkId, NextHop, NextHopAction, Path, Port, PortKind, Routing, Translation,
};
use podlane_dataplane::tap::Wish;
use podlane_dataplane::{MacAddr, PortId, limits};

/// Bytes from one worker's heartbeat to the next in the heartbeat map; the heartbeat itself is the `u64` in front.
pub const HEARTBEAT_STRIDE: usize = 64;
/// Bytes of the heartbeat map that hold heartbeats; a mapping of it is rounded up to whole pages.
pub const HEARTBEAT_BYTES: usize = HEARTBEAT_STRIDE * limits::MAX_WORKERS;

/// `PASS_SLOTS`: elements of the array of counters by reason.
const PASS_SLOTS: usize = 32;
/// `DROP_SLOTS`: elements of the array of counters by the source guard's reasons.
const DROP_SLOTS: usize = 4;
/// `COPIES`: how often every table is there.
pub(super) const COPIES: usize = 2;
/// Bytes of `struct counters`.
pub(super) const COUNTERS_BYTES: usize = 8 * (7 + PASS_SLOTS + DROP_SLOTS + 1);
/// Bytes of `struct capture_settings`.
pub(super) const CAPTURE_SETTINGS_BYTES: usize = 16;
/// Bytes of `struct port`.
pub(super) const PORT_BYTES: usize = 64;
/// Bytes of `struct guard`.
pub(super) const GUARD_BYTES: usize = 8 * limits::MAX_GUARD_MACS + (4 + 16) * limits::MAX_GUARD_ADDRESSES;
/// `NOBODY`: an activity index that no entry has.
const NOBODY: u32 = u32::MAX;
/// Bytes of `struct way_out`.
const WAY_OUT_BYTES: usize = 16;
/// Bytes of `struct near_station`.
pub(super) const NEAR_STATION_BYTES: usize = 32;
/// Bytes of `struct adjacency`.
pub(super) const ADJACENCY_BYTES: usize = 32;
/// Bytes of `struct next_hop`.
pub(super) const NEXT_HOP_BYTES: usize = 16;
/// Bytes of `struct node`.
pub(super) const NODE_BYTES: usize = NODE_SECRET + 8 + (8 + 32) * limits::MAX_CLUSTER_CIDRS;

/// Fills a structure from front to back; what is not written is zero.
struct Fields<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Fields<N> {
    fn new() -> Self {
        Fields { bytes: [0; N], used: 0 }
    }

    fn bytes(mut self, field: &[u8]) -> Self {
        self.bytes[self.used..self.used + field.len()].copy_from_slice(field);
        self.used += field.len();
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }
}

/// A MAC address as in `head.destination_key`.
pub(super) fn mac(mac: MacAddr) -> [u8; 8] {
    mac.to_u64().to_be_bytes()
}

/// The key of a MAC address in copy `copy` of the forwarding database.
pub(super) fn station_key(copy: usize, address: MacAddr) -> [u8; 8] {
    let mut key = mac(address);
    key[0] = copy as u8;
    key
}

/// `struct station`.
pub(super) fn station(port: PortId, activity: u32) -> [u8; 8] {
    Fields::new().u32(u32::from(port.0)).u32(activity).bytes
}

/// The key of an interface.
pub(super) fn interface(copy: usize, ifindex: u32) -> [u8; 4] {
    (ifindex.wrapping_mul(COPIES as u32) + copy as u32).to_ne_bytes()
}

/// `near_place`.
pub(super) fn near_place(address: MacAddr) -> usize {
    /// `64 - NEAR_SHIFT`.
    const BITS: u32 = limits::NEAR_STATIONS.ilog2();
    let key = u64::from_ne_bytes(mac(address));
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS)) as usize
}

/// `struct near_station`, of a station behind `port`, whose number is `id`.
pub(super) fn near_station(
    address: MacAddr,
    id: PortId,
    port: Option<&Port>,
    activity: u32,
) -> [u8; NEAR_STATION_BYTES] {
    let out = port.map_or([0; WAY_OUT_BYTES], |port| way_out(port, [false; 4]));
    Fields::new().bytes(&mac(address)).bytes(&station(id, activity)).bytes(&out).bytes
}

/// `struct way_out`. `guarded`: the flags of the source guard, which are of no use but on the way in.
fn way_out(port: &Port, guarded: [bool; 4]) -> [u8; WAY_OUT_BYTES] {
    let repeated = port.path == Path::Kernel;
    let flags = [port.forwarding, port.learning, port.isolated, port.partial_checksums, repeated, port.peer];
    let flags = flags.into_iter().chain(guarded);
    let flags = flags.enumerate().fold(0, |all, (bit, flag)| all | u32::from(flag) << bit);
    Fields::new().u32(port.ifindex).u32(flags).u32(port.mtu).u32(port.max_frame).bytes
}

/// `struct port`; `id` is its number, `station` the only one behind it, with its activity index, and `guard` what it may send
/// from.
pub(super) fn port(
    id: PortId,
    port: &Port,
    station: Option<(MacAddr, u32)>,
    guard: Option<&Guard>,
) -> [u8; PORT_BYTES] {
    let kind = match port.kind {
        PortKind::Pod => 1,
        PortKind::Uplink => 2,
        PortKind::Host => 3,
    };
    let (key, activity) = station.map_or(([0; 8], NOBODY), |(address, activity)| (mac(address), activity));
    let near = station.zip(guard).filter(|((address, _), guard)| guard.has_mac(*address)).map(|(_, guard)| guard);
    let own4 = near.and_then(|guard| guard.ipv4().next()).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let own6 = near.and_then(|guard| guard.ipv6().find(|address| !address.is_unicast_link_local()));
    let (strict, link_local) = guard.map_or((false, false), |guard| (guard.strict, guard.link_local));
    let out = way_out(port, [guard.is_some(), strict, link_local, near.is_some()]);
    let fields = Fields::new().bytes(&out).bytes(&mac(port.router_mac)).bytes(&key);
    let fields = fields.u32(activity).u32(kind).u32(u32::from(id.0));
    fields.bytes(&own4.octets()).bytes(&own6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets()).bytes
}

/// The interface in a `struct port`.
pub(super) fn port_ifindex(port: &[u8; PORT_BYTES]) -> u32 {
    port.first_chunk().map_or(0, |ifindex| u32::from_ne_bytes(*ifindex))
}

/// The guard of a port as [`port`] and [`guard`] wrote it; `None` if it is not guarded.
pub(super) fn written_guard(port: &[u8; PORT_BYTES], guard: &[u8; GUARD_BYTES]) -> Option<Guard> {
    /// `PORT_GUARD`, `PORT_GUARD_STRICT` and `PORT_GUARD_LINK_LOCAL`.
    const FLAGS: [u32; 3] = [1 << 6, 1 << 7, 1 << 8];
    let [_, flags, ..] = port.as_chunks::<4>().0 else { return None };
    let [active, strict, link_local] = FLAGS.map(|flag| u32::from_ne_bytes(*flags) & flag != 0);
    let (macs, addresses) = guard.split_at(8 * limits::MAX_GUARD_MACS);
    let (ipv4, ipv6) = addresses.split_at(4 * limits::MAX_GUARD_ADDRESSES);
    let macs = macs.as_chunks().0.iter().map(|key| MacAddr::from_u64(u64::from_be_bytes(*key)));
    let ipv4 = ipv4.as_chunks::<4>().0.iter().map(|octets| IpAddr::from(*octets));
    let ipv6 = ipv6.as_chunks::<16>().0.iter().map(|octets| IpAddr::from(*octets));
    let addresses = ipv4.chain(ipv6).filter(|address| !address.is_unspecified());
    let guard = Guard::new(macs.filter(|mac| *mac != MacAddr::ZERO), addresses).ok()?;
    active.then_some(guard.with(strict, link_local))
}

/// `struct guard`.
pub(super) fn guard(guard: &Guard) -> [u8; GUARD_BYTES] {
    let mut fields = guard.macs().fold(Fields::new(), |fields, address| fields.bytes(&mac(address)));
    fields.used = 8 * limits::MAX_GUARD_MACS;
    fields = guard.ipv4().fold(fields, |fields, address| fields.bytes(&address.octets()));
    fields.used = 8 * limits::MAX_GUARD_MACS + 4 * limits::MAX_GUARD_ADDRESSES;
    guard.ipv6().fold(fields, |fields, address| fields.bytes(&address.octets())).bytes
}

/// `struct adjacency`.
pub(super) fn adjacency(adjacency: &Adjacency) -> [u8; ADJACENCY_BYTES] {
    let fields = Fields::new().bytes(&mac(adjacency.destination)).bytes(&mac(adjacency.source));
    fields.u32(u32::from(adjacency.port.0)).u32(1).u32(adjacency.activity).bytes
}

/// `struct next_hop`.
pub(super) fn next_hop(next_hop: &NextHop) -> [u8; NEXT_HOP_BYTES] {
    let (kind, value) = match next_hop.action {
        NextHopAction::Kernel(reason) => (1, reason as u32),
        NextHopAction::OnLink(link) => (2, u32::from(link.0)),
        NextHopAction::Gateway(adjacency) => (3, adjacency),
    };
    Fields::new().u32(kind).u32(value).u32(next_hop.mtu).bytes
}

/// Where `struct node` has its secret.
pub(super) const NODE_SECRET: usize = 24;

/// The secret of a `struct node`; 0 if none was ever written.
pub(super) fn secret(node: &[u8; NODE_BYTES]) -> u64 {
    node[NODE_SECRET..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// `struct node`.
pub(super) fn node(routing: &Routing, cluster: &Cluster, secret: u64) -> [u8; NODE_BYTES] {
    let off = |reason: Option<PassReason>| reason.map_or(0, |reason| reason as u32 + 1);
    let mut fields = Fields::new().u32(off(routing.ipv4_off)).u32(off(routing.ipv6_off)).u32(off(routing.bridge_off));
    let flags = match routing.translation {
        Translation::None => 0,
        Translation::Strict => 1,
        Translation::Liberal => 3,
    };
    fields = fields.u32(cluster.ipv4().len() as u32).u32(cluster.ipv6().len() as u32).u32(flags);
    fields = fields.bytes(&secret.to_ne_bytes());
    for (address, length) in cluster.ipv4() {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        fields = fields.bytes(&address.octets()).bytes(&mask.to_be_bytes());
    }
    fields.used = NODE_SECRET + 8 + 8 * limits::MAX_CLUSTER_CIDRS;
    for (address, length) in cluster.ipv6() {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        fields = fields.bytes(&address.octets()).bytes(&mask.to_be_bytes());
    }
    fields.bytes
}

fn link_key(copy: usize, link: LinkId) -> u32 {
    u32::from(link.0) * COPIES as u32 + copy as u32
}

/// `struct host4`.
pub(super) fn host4(copy: usize, link: LinkId, address: Ipv4Addr) -> [u8; 8] {
    Fields::new().u32(link_key(copy, link)).bytes(&address.octets()).bytes
}

/// `struct host6`.
pub(super) fn host6(copy: usize, link: LinkId, address: Ipv6Addr) -> [u8; 20] {
    Fields::new().u32(link_key(copy, link)).bytes(&address.octets()).bytes
}

/// `COPY_BITS`: bits of the copy's number in front of a prefix.
const COPY_BITS: u32 = 32;

/// `struct prefix4`. Host bits of `address` are cleared.
pub(super) fn prefix4(copy: usize, address: u32, length: u8) -> [u8; 12] {
    let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
    let fields = Fields::new().u32(COPY_BITS + u32::from(length.min(32))).u32(copy as u32);
    fields.bytes(&(address & mask).to_be_bytes()).bytes
}

/// `struct prefix6`. Host bits of `address` are cleared.
pub(super) fn prefix6(copy: usize, address: u128, length: u8) -> [u8; 24] {
    let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
    let fields = Fields::new().u32(COPY_BITS + u32::from(length.min(128))).u32(copy as u32);
    fields.bytes(&(address & mask).to_be_bytes()).bytes
}

/// `struct capture_settings`.
pub(super) fn capture_settings(wish: &Wish) -> [u8; CAPTURE_SETTINGS_BYTES] {
    let directions = u32::from(wish.rx) | u32::from(wish.tx) << 1;
    let chosen = u32::from(wish.interfaces.is_some());
    let filters_sent = u32::from(wish.filter.looks_at_rewritten_bytes());
    Fields::new().u32(wish.snap_bytes).u32(directions).u32(chosen).u32(filters_sent).bytes
}

/// What the program did with the frames of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Frames that it saw.
    pub rx_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub rx_bytes: u64,
    /// Frames that it gave to an AF_XDP socket. A socket without room drops: see the socket's own counters.
    pub steered: u64,
    /// Frames that the tc program forwarded. A super-frame counts once, here as everywhere.
    pub repeated: u64,
    /// Their bytes.
    pub repeated_bytes: u64,
    /// Frames of other ports that the tc program forwarded out of this one.
    pub repeated_out: u64,
    /// Their bytes.
    pub repeated_out_bytes: u64,
    /// Frames that it left to the kernel, by [`PassReason`] as an index.
    pub passed: [u64; PassReason::COUNT],
    /// Frames that the source guard dropped, by [`DropReason`] as an index.
    pub dropped: [u64; DropReason::COUNT],
}

impl PortCounters {
    /// Adds one CPU's `struct counters`.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let mut values = bytes.chunks_exact(8).map(|chunk| {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            u64::from_ne_bytes(value)
        });
        // The first is no counter.
        let [_, repeated, repeated_bytes, repeated_out, repeated_out_bytes, rx_packets, rx_bytes, steered] =
            std::array::from_fn(|_| values.next().unwrap_or(0));
        // What the tc program forwards it counts only as that.
        self.rx_packets += rx_packets + repeated;
        self.rx_bytes += rx_bytes + repeated_bytes;
        self.steered += steered;
        self.repeated += repeated;
        self.repeated_bytes += repeated_bytes;
        self.repeated_out += repeated_out;
        self.repeated_out_bytes += repeated_out_bytes;
        for passed in &mut self.passed {
            *passed += values.next().unwrap_or(0);
        }
        let mut values = values.skip(PASS_SLOTS - PassReason::COUNT);
        for dropped in &mut self.dropped[DropReason::FIRST_OF_GUARD..] {
            *dropped += values.next().unwrap_or(0);
        }
    }

    /// All of them, in the order of `struct counters`.
    pub fn words(&self) -> Vec<u64> {
        let [rx_packets, rx_bytes] = [self.rx_packets, self.rx_bytes];
        let [repeated, repeated_bytes] = [self.repeated, self.repeated_bytes];
        let [out, out_bytes] = [self.repeated_out, self.repeated_out_bytes];
        let head = [rx_packets, rx_bytes, self.steered, repeated, repeated_bytes, out, out_bytes];
        head.into_iter().chain(self.passed).chain(self.dropped).collect()
    }

    /// Reads [`PortCounters::words`]; what is missing is 0.
    pub fn of_words(words: &[u64]) -> Self {
        let mut words = words.iter().copied();
        let mut next = || words.next().unwrap_or(0);
        PortCounters {
            rx_packets: next(),
            rx_bytes: next(),
            steered: next(),
            repeated: next(),
            repeated_bytes: next(),
            repeated_out: next(),
            repeated_out_bytes: next(),
            passed: std::array::from_fn(|_| next()),
            dropped: std::array::from_fn(|_| next()),
        }
    }

    /// What was counted since `earlier`.
    pub(super) fn since(mut self, earlier: &PortCounters) -> Self {
        for (now, then) in [
            (&mut self.rx_packets, earlier.rx_packets),
            (&mut self.rx_bytes, earlier.rx_bytes),
            (&mut self.steered, earlier.steered),
            (&mut self.repeated, earlier.repeated),
            (&mut self.repeated_bytes, earlier.repeated_bytes),
            (&mut self.repeated_out, earlier.repeated_out),
            (&mut self.repeated_out_bytes, earlier.repeated_out_bytes),
        ] {
            *now = now.saturating_sub(then);
        }
        let pairs = self.passed.iter_mut().zip(&earlier.passed);
        for (now, then) in pairs.chain(self.dropped.iter_mut().zip(&earlier.dropped)) {
            *now = now.saturating_sub(*then);
        }
        self
    }

    /// Frames that it left to the kernel, for all reasons together.
    pub fn passed_total(&self) -> u64 {
        self.passed.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of `#define name value` in a header.
    fn define(header: &str, name: &str) -> u64 {
        let start = format!("#define {name} ");
        let line = header.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name} in the header")).trim().parse().unwrap()
    }

    #[test]
    fn a_guard_is_read_as_it_was_written() {
        let served = Port {
            ifindex: 7,
            kind: PortKind::Pod,
            router_mac: MacAddr::ZERO,
            mtu: 1500,
            max_frame: 1514,
            forwarding: true,
            learning: true,
            isolated: true,
            partial_checksums: true,
            path: Path::Kernel,
            peer: true,
        };
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let macs = [MacAddr::new([2, 0, 0, 0, 0, 1]), MacAddr::new([2, 0, 0, 0, 0, 2])];
        let addresses = ["10.244.1.2", "10.244.1.3", "fd00::2", "fe80::2"].map(address);
        let nothing = Guard::new([], []).unwrap();
        for own in [Guard::new(macs, addresses).unwrap(), nothing] {
            for own in [own, own.with(true, false), own.with(false, true)] {
                let written = port(PortId(3), &served, Some((macs[0], 1)), Some(&own));
                assert_eq!(written_guard(&written, &guard(&own)), Some(own));
            }
        }
        let unguarded = port(PortId(3), &served, None, None);
        assert_eq!(written_guard(&unguarded, &guard(&nothing)), None);
    }

    #[test]
    fn limits_are_those_of_the_engine() {
        let header = include_str!("../../../bpf/limits.h");
        let limits = [
            ("MAX_PORTS", limits::MAX_PORTS),
            ("MAX_QUEUES", limits::MAX_QUEUES),
            ("MAX_WORKERS", limits::MAX_WORKERS),
            ("MAX_FDB", limits::MAX_FDB),
            ("MAX_NEIGHBOURS", limits::MAX_NEIGHBOURS),
            ("MAX_GUARD_MACS", limits::MAX_GUARD_MACS),
            ("MAX_GUARD_ADDRESSES", limits::MAX_GUARD_ADDRESSES),
            ("MAX_ROUTES", limits::MAX_ROUTES),
            ("MAX_NEXT_HOPS", limits::MAX_NEXT_HOPS),
            ("MAX_CLUSTER_CIDRS", limits::MAX_CLUSTER_CIDRS),
            ("HEARTBEAT_STALE_MS", limits::HEARTBEAT_STALE_MS as usize),
            ("WORKER_WAIT_MS", limits::WORKER_WAIT_MS as usize),
            ("MAX_CAPTURE_PORTS", limits::MAX_CAPTURE_PORTS),
            ("NEAR_STATIONS", limits::NEAR_STATIONS),
            ("NEAR_INTERFACES", limits::NEAR_INTERFACES),
            ("NEAR_ROUTES", limits::NEAR_ROUTES),
            ("TABLES_STALE_MS", limits::TABLES_STALE_MS as usize),
            ("GUARD_STALE_MS", limits::GUARD_STALE_MS as usize),
            ("TABLES_ORPHANED_MS", limits::TABLES_ORPHANED_MS as usize),
        ];
        for (name, value) in limits {
            assert_eq!(define(header, name), value as u64, "{name}");
        }
        let defines = header.lines().filter(|line| line.starts_with("#define MAX_")).count();
        assert_eq!(defines + 8, limits.len(), "every limit of the header is compared");
    }

    #[test]
    fn reasons_are_those_of_the_engine() {
        let header = include_str!("../../../bpf/reason.h");
        let entries = header.lines().filter_map(|line| {
            let (name, number) = line.trim().strip_prefix("PASS_")?.strip_suffix(',')?.split_once(" = ")?;
            Some((name.to_lowercase(), number.parse::<usize>().unwrap()))
        });
        let mut expected: Vec<_> =
            PassReason::ALL.iter().map(|reason| (reason.name().to_owned(), *reason as usize)).collect();
        expected.push(("reasons".to_owned(), PassReason::COUNT));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
        let entries = header.lines().filter_map(|line| {
            let (name, number) = line.trim().strip_prefix("DROP_")?.strip_suffix(',')?.split_once(" = ")?;
            Some((name.to_lowercase(), number.parse::<usize>().unwrap()))
        });
        let of_guard = &DropReason::ALL[DropReason::FIRST_OF_GUARD..];
        let mut expected: Vec<_> = of_guard.iter().map(|reason| (reason.name().to_owned(), *reason as usize)).collect();
        expected.push(("reasons".to_owned(), DropReason::COUNT));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
        let tables = include_str!("../../../bpf/tables.h");
        assert_eq!(define(tables, "DROP_SLOTS"), DROP_SLOTS as u64);
        assert_eq!(define(tables, "PASS_SLOTS"), PASS_SLOTS as u64);
        assert_eq!(define(tables, "COPIES"), COPIES as u64);
        assert_eq!(define(tables, "COPY_BITS"), u64::from(COPY_BITS));
    }

    #[test]
    fn host_bits_of_prefixes_are_cleared() {
        assert_eq!(prefix4(0, 0x0a01_0203, 24)[8..], [10, 1, 2, 0]);
        assert_eq!(prefix4(0, u32::MAX, 0)[8..], [0; 4]);
        assert_eq!(prefix6(1, u128::MAX, 8)[8..11], [0xff, 0, 0]);
    }

    #[test]
    fn counters_of_all_cpus_are_added() {
        let words = 0_u64..=7 + (PASS_SLOTS + DROP_SLOTS) as u64;
        let cpu: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        let mut counters = PortCounters::default();
        counters.add(&cpu);
        counters.add(&cpu);
        assert_eq!((counters.rx_packets, counters.rx_bytes, counters.steered), (10 + 2, 12 + 4, 14));
        assert_eq!((counters.repeated, counters.repeated_out_bytes), (2, 8));
        assert_eq!(counters.passed[0], 16);
        assert_eq!(PortCounters::of_words(&counters.words()), counters);
        let mut later = counters;
        later.add(&cpu);
        let mut once = PortCounters::default();
        once.add(&cpu);
        assert_eq!(later.since(&counters), once);
        let first = 8 + PASS_SLOTS as u64;
        let of_guard: Vec<u64> = (0..DropReason::OF_GUARD as u64).map(|index| 2 * (first + index)).collect();
        assert_eq!(counters.dropped[DropReason::FIRST_OF_GUARD..], of_guard);
        assert_eq!(counters.dropped[..DropReason::FIRST_OF_GUARD], [0; DropReason::FIRST_OF_GUARD]);
        assert_eq!(counters.passed_total(), (0..PassReason::COUNT as u64).map(|index| 2 * (8 + index)).sum::<u64>());
    }
}
