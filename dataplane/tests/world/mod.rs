//! A small world for property tests: a few addresses, ports and routes, so that random frames meet them often; the same
//! contents once as plain lists and once as the engine's tables.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, TcpHeader, UdpHeader,
};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, HostTable, LinkId, NextHop, NextHopAction, Path, Port, PortKind, PortTable,
    Routing, Tables,
};
use podlane_dataplane::{MacAddr, PortId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Everything that a decision can depend on, as lists in the order in which it was configured.
#[derive(Clone, Debug)]
pub struct World {
    pub ports: Vec<(PortId, Port)>,
    pub fdb: Vec<(MacAddr, FdbEntry)>,
    pub routes4: Vec<(Ipv4Addr, u8, u32)>,
    pub routes6: Vec<(Ipv6Addr, u8, u32)>,
    pub next_hops: Vec<NextHop>,
    pub hosts4: Vec<(LinkId, Ipv4Addr, u32)>,
    pub hosts6: Vec<(LinkId, Ipv6Addr, u32)>,
    pub adjacencies: Vec<Adjacency>,
    pub cluster4: Vec<(Ipv4Addr, u8)>,
    pub cluster6: Vec<(Ipv6Addr, u8)>,
    pub routing: Routing,
}

impl World {
    /// The snapshot that the engine decides from.
    pub fn tables(&self) -> Tables {
        let mut hosts = HostTable::default();
        for &(link, address, adjacency) in &self.hosts4 {
            hosts.insert4(link, address, adjacency);
        }
        for &(link, address, adjacency) in &self.hosts6 {
            hosts.insert6(link, address, adjacency);
        }
        Tables {
            generation: 1,
            ports: Arc::new(PortTable::new(self.ports.iter().cloned())),
            fdb: Arc::new(Fdb::new(self.fdb.iter().copied()).0),
            fib4: Arc::new(Fib::new(self.routes4.iter().map(|&(prefix, length, hop)| (prefix.to_bits(), length, hop)))),
            fib6: Arc::new(Fib::new(self.routes6.iter().map(|&(prefix, length, hop)| (prefix.to_bits(), length, hop)))),
            next_hops: Arc::new(self.next_hops.clone()),
            hosts: Arc::new(hosts),
            adjacencies: Arc::new(self.adjacencies.clone()),
            cluster: Arc::new(Cluster::new(self.cluster4.iter().copied(), self.cluster6.iter().copied()).unwrap()),
            routing: self.routing,
            tap: None,
            guards: Arc::default(),
        }
    }
}

const BRIDGE_MAC: MacAddr = MacAddr::new([2, 0xcb, 0, 0, 0, 0]);
const UPLINK_MAC: MacAddr = MacAddr::new([2, 0xee, 0, 0, 0, 0]);
/// Ports 0 to 7 exist or not; frames also claim to come from beyond.
const PORTS: u16 = 8;

fn pod_mac() -> impl Strategy<Value = MacAddr> {
    (0..6_u8).prop_map(|pod| MacAddr::new([2, 0, 10, 244, 1, pod]))
}

fn port_id() -> impl Strategy<Value = PortId> {
    (0..PORTS).prop_map(PortId)
}

/// Mostly yes, so that frames get past the first question.
fn mostly() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.9)
}

/// Mostly inside of 10.244.0.0/22, a few outside of any cluster.
fn address4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        12 => (0..4_u8, 1..5_u8).prop_map(|(block, host)| Ipv4Addr::new(10, 244, block, host)),
        1 => Just(Ipv4Addr::new(192, 0, 2, 1)),
    ]
}

fn address6() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![
        12 => (0..4_u16, 1..5_u16).prop_map(|(block, host)| Ipv6Addr::new(0xfd00, 0x10, 0x244, block, 0, 0, 0, host)),
        1 => Just(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let kind = prop_oneof![5 => Just(PortKind::Pod), 3 => Just(PortKind::Uplink), 1 => Just(PortKind::Host)];
    let mtu = prop_oneof![5 => Just(1500_u32), 1 => 68..200_u32];
    let max_frame = prop_oneof![5 => Just(65_014_u32), 1 => 60..300_u32];
    let path = prop_oneof![Just(Path::AfXdp), Just(Path::Kernel)];
    (kind, mtu, max_frame, mostly(), any::<bool>(), prop::bool::weighted(0.3), any::<bool>(), path).prop_map(
        |(kind, mtu, max_frame, forwarding, learning, isolated, partial_checksums, path)| Port {
            ifindex: 1,
            kind,
            router_mac: if kind == PortKind::Uplink { UPLINK_MAC } else { BRIDGE_MAC },
            mtu,
            max_frame,
            forwarding,
            learning,
            isolated,
            partial_checksums: partial_checksums && kind == PortKind::Pod,
            path,
            peer: kind == PortKind::Pod,
        },
    )
}

fn link() -> impl Strategy<Value = LinkId> {
    prop_oneof![3 => Just(LinkId::BRIDGE), 1 => port_id().prop_map(LinkId::uplink)]
}

/// Indices reach a little beyond the tables that they point into: that must be harmless.
fn next_hop() -> impl Strategy<Value = NextHop> {
    let kernel = select(vec![PassReason::ForNode, PassReason::RouteKind, PassReason::Unresolved]);
    let action = prop_oneof![
        1 => kernel.prop_map(NextHopAction::Kernel),
        2 => link().prop_map(NextHopAction::OnLink),
        3 => (0..9_u32).prop_map(NextHopAction::Gateway),
    ];
    (action, prop_oneof![4 => Just(u32::MAX), 1 => 68..1500_u32]).prop_map(|(action, mtu)| NextHop { action, mtu })
}

fn adjacency() -> impl Strategy<Value = Adjacency> {
    (port_id(), pod_mac(), select(vec![BRIDGE_MAC, UPLINK_MAC]), 0..100_u32)
        .prop_map(|(port, destination, source, activity)| Adjacency { port, destination, source, activity })
}

fn routing() -> impl Strategy<Value = Routing> {
    let off = |reasons: Vec<PassReason>| prop_oneof![9 => Just(None), 1 => select(reasons).prop_map(Some)];
    let (ipv4_off, ipv6_off) = (
        off(vec![PassReason::ForwardingOff, PassReason::PolicyRules]),
        off(vec![PassReason::ForwardingOff, PassReason::PolicyRules]),
    );
    (ipv4_off, ipv6_off, off(vec![PassReason::BridgeFeature])).prop_map(|(ipv4_off, ipv6_off, bridge_off)| Routing {
        ipv4_off,
        ipv6_off,
        bridge_off,
        ..Routing::default()
    })
}

/// Any world.
pub fn world() -> impl Strategy<Value = World> {
    let fdb_entry = (port_id(), any::<bool>(), 0..100_u32).prop_map(|(port, is_static, activity)| FdbEntry {
        port,
        is_static,
        activity,
    });
    let length4 = prop_oneof![Just(0_u8), Just(16), Just(22), Just(23), Just(24), Just(32), 8..=33_u8];
    let length6 = prop_oneof![Just(0_u8), Just(48), Just(62), Just(64), Just(128), 32..=129_u8];
    let ports = vec(prop::option::weighted(0.9, port()), usize::from(PORTS)).prop_map(|ports| {
        let numbered = ports.into_iter().enumerate();
        numbered.filter_map(|(number, port)| Some((PortId(number as u16), port?))).collect::<Vec<_>>()
    });
    let cluster4 = select(vec![
        vec![],
        vec![(Ipv4Addr::new(10, 244, 0, 9), 16)],
        vec![(Ipv4Addr::new(10, 244, 0, 0), 23), (Ipv4Addr::new(10, 244, 2, 0), 24)],
    ]);
    let cluster6 = select(vec![
        vec![],
        vec![(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 9), 48)],
        vec![
            (Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 63),
            (Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 0), 64),
        ],
    ]);
    (
        (ports, vec((pod_mac(), fdb_entry), 0..8)),
        (vec((address4(), length4, 0..9_u32), 0..10), vec((address6(), length6, 0..9_u32), 0..10)),
        (vec(next_hop(), 1..9), vec(adjacency(), 1..9)),
        (vec((link(), address4(), 0..9_u32), 0..20), vec((link(), address6(), 0..9_u32), 0..20)),
        (cluster4, cluster6, routing()),
    )
        .prop_map(|((ports, fdb), (routes4, routes6), (next_hops, adjacencies), (hosts4, hosts6), last)| {
            let (cluster4, cluster6, routing) = last;
            World { ports, fdb, routes4, routes6, next_hops, hosts4, hosts6, adjacencies, cluster4, cluster6, routing }
        })
}

/// A frame to be built. Without defects it is one that nobody could object to.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub ingress: PortId,
    destination_mac: MacAddr,
    source_mac: MacAddr,
    addresses: Addresses,
    l4: L4,
    payload_bytes: usize,
    /// The sender's stack has left the L4 checksum to a device.
    partial: bool,
    defects: Vec<Defect>,
}

#[derive(Clone, Debug)]
enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum L4 {
    Tcp,
    Udp,
    /// ICMP or ICMPv6, with this type.
    Icmp(u8),
}

/// What can be odd about a frame. Some of these make it only unusual, not wrong.
#[derive(Clone, Copy, Debug)]
enum Defect {
    EtherType(u16),
    DestinationMac(MacAddr),
    SourceMac(MacAddr),
    FirstIpByte(u8),
    /// Four bytes of IPv4 options, properly made.
    Ipv4Options,
    /// The 16 bits of flags and fragment offset.
    Fragment(u16),
    Ttl(u8),
    /// Flips this bit of the header checksum.
    HeaderChecksumBit(u8),
    /// Added to the length field of the IP header.
    IpLength(i16),
    /// Protocol or next header.
    Protocol(u8),
    UdpSourcePort(u16),
    UdpDestinationPort(u16),
    /// Added to the length field of UDP.
    UdpLength(i16),
    NoUdpChecksum,
    /// Flips this bit of the L4 checksum.
    L4ChecksumBit(u8),
    Padding(u8),
    Truncated(u8),
}

fn defect() -> impl Strategy<Value = Defect> {
    use Defect::*;
    let tunnel_port = || select(vec![4789_u16, 8472, 6081, 5555, 6080, 2152, 6635, 4790]);
    prop_oneof![
        select(vec![0x0806_u16, 0x8100, 0x88a8, 0x88cc, 46, 0x0800, 0x86dd]).prop_map(EtherType),
        select(vec![MacAddr::BROADCAST, MacAddr::ZERO, MacAddr::new([1, 0, 0x5e, 0, 0, 1])]).prop_map(DestinationMac),
        select(vec![MacAddr::BROADCAST, MacAddr::ZERO, MacAddr::new([3, 0, 0, 0, 0, 1])]).prop_map(SourceMac),
        select(vec![0x44_u8, 0x46, 0x4f, 0x55, 0x65, 0x40, 0x70, 0x60]).prop_map(FirstIpByte),
        Just(Ipv4Options),
        select(vec![0x2000_u16, 0x0001, 0x1fff, 0x8000, 0x4000, 0x6000]).prop_map(Fragment),
        (0..3_u8).prop_map(Ttl),
        (0..16_u8).prop_map(HeaderChecksumBit),
        prop_oneof![Just(i16::MIN), -60..60_i16].prop_map(IpLength),
        select(vec![0_u8, 1, 2, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 139, 140, 253]).prop_map(Protocol),
        tunnel_port().prop_map(UdpSourcePort),
        tunnel_port().prop_map(UdpDestinationPort),
        select(vec![-1_i16, 1, i16::MIN]).prop_map(UdpLength),
        Just(NoUdpChecksum),
        (0..16_u8).prop_map(L4ChecksumBit),
        any::<u8>().prop_map(Padding),
        (1..90_u8).prop_map(Truncated),
    ]
}

/// Any frame, most of them without defects.
pub fn recipe() -> impl Strategy<Value = Recipe> {
    let destination_mac = prop_oneof![4 => pod_mac(), 3 => Just(BRIDGE_MAC), 3 => Just(UPLINK_MAC)];
    let addresses = prop_oneof![
        (address4(), address4()).prop_map(|(source, destination)| Addresses::V4(source, destination)),
        (address6(), address6()).prop_map(|(source, destination)| Addresses::V6(source, destination)),
    ];
    let l4 = prop_oneof![3 => Just(L4::Tcp), 3 => Just(L4::Udp), 1 => Just(L4::Icmp(128)), 1 => (130..140_u8).prop_map(L4::Icmp)];
    let payload_bytes = prop_oneof![3 => 0..100_usize, 1 => 0..1500_usize];
    let defects = prop_oneof![
        6 => Just(Vec::new()),
        3 => vec(defect(), 1),
        1 => vec(defect(), 2..4),
    ];
    ((0..PORTS + 1).prop_map(PortId), destination_mac, pod_mac(), addresses, l4, payload_bytes, any::<bool>(), defects)
        .prop_map(|(ingress, destination_mac, source_mac, addresses, l4, payload_bytes, partial, defects)| Recipe {
            ingress,
            destination_mac,
            source_mac,
            addresses,
            l4,
            payload_bytes,
            partial,
            defects,
        })
}

impl Recipe {
    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        use Defect::*;
        let payload: Vec<u8> = (0..self.payload_bytes).map(|number| (number * 7 + 3) as u8).collect();
        let mut l4 = self.l4_header(&payload);
        l4.extend(&payload);
        let mut ip = self.ip_header(l4.len());
        let is_ipv4 = matches!(self.addresses, Addresses::V4(..));
        for defect in &self.defects {
            match *defect {
                FirstIpByte(byte) => ip[0] = byte,
                IpLength(change) => add(&mut ip, if is_ipv4 { 2 } else { 4 }, change),
                UdpSourcePort(port) if self.l4 == L4::Udp => l4[..2].copy_from_slice(&port.to_be_bytes()),
                UdpDestinationPort(port) if self.l4 == L4::Udp => l4[2..4].copy_from_slice(&port.to_be_bytes()),
                UdpLength(change) if self.l4 == L4::Udp => add(&mut l4, 4, change),
                NoUdpChecksum if self.l4 == L4::Udp => l4[6..8].fill(0),
                L4ChecksumBit(bit) => flip(&mut l4, self.l4.checksum_offset(), bit),
                _ => {}
            }
        }
        let mut frame = self.ethernet_header().to_bytes().to_vec();
        frame.extend(ip);
        frame.extend(l4);
        for defect in &self.defects {
            match *defect {
                Padding(bytes) => frame.resize(frame.len() + usize::from(bytes), 0xaa),
                Truncated(bytes) => frame.truncate(usize::from(bytes)),
                _ => {}
            }
        }
        frame
    }

    fn ethernet_header(&self) -> Ethernet2Header {
        let ether_type = match self.addresses {
            Addresses::V4(..) => EtherType::IPV4,
            Addresses::V6(..) => EtherType::IPV6,
        };
        let mut header = Ethernet2Header {
            source: self.source_mac.octets(),
            destination: self.destination_mac.octets(),
            ether_type,
        };
        for defect in &self.defects {
            match *defect {
                Defect::EtherType(number) => header.ether_type = EtherType(number),
                Defect::DestinationMac(mac) => header.destination = mac.octets(),
                Defect::SourceMac(mac) => header.source = mac.octets(),
                _ => {}
            }
        }
        header
    }

    fn ip_header(&self, l4_bytes: usize) -> Vec<u8> {
        let mut protocol = self.protocol();
        let mut ttl = 64;
        for defect in &self.defects {
            match *defect {
                Defect::Protocol(number) => protocol = IpNumber(number),
                Defect::Ttl(number) => ttl = number,
                _ => {}
            }
        }
        match self.addresses {
            Addresses::V4(source, destination) => {
                let mut header =
                    Ipv4Header::new(l4_bytes as u16, ttl, protocol, source.octets(), destination.octets()).unwrap();
                for defect in &self.defects {
                    match *defect {
                        Defect::Ipv4Options => {
                            header.options = Ipv4Options::try_from(&[1, 1, 1, 0][..]).unwrap();
                            header.total_len += 4;
                        }
                        Defect::Fragment(field) => {
                            header.dont_fragment = field & 0x4000 != 0;
                            header.more_fragments = field & 0x2000 != 0;
                            header.fragment_offset = IpFragOffset::try_new(field & 0x1fff).unwrap();
                        }
                        _ => {}
                    }
                }
                header.header_checksum = header.calc_header_checksum();
                let mut bytes = header.to_bytes().to_vec();
                for defect in &self.defects {
                    match *defect {
                        Defect::HeaderChecksumBit(bit) => flip(&mut bytes, 10, bit),
                        // The reserved bit, which etherparse does not know.
                        Defect::Fragment(0x8000) => bytes[6] |= 0x80,
                        _ => {}
                    }
                }
                bytes
            }
            Addresses::V6(source, destination) => Ipv6Header {
                payload_length: l4_bytes as u16,
                next_header: protocol,
                hop_limit: ttl,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            }
            .to_bytes()
            .to_vec(),
        }
    }

    fn protocol(&self) -> IpNumber {
        match (self.l4, &self.addresses) {
            (L4::Tcp, _) => IpNumber::TCP,
            (L4::Udp, _) => IpNumber::UDP,
            (L4::Icmp(_), Addresses::V4(..)) => IpNumber::ICMP,
            (L4::Icmp(_), Addresses::V6(..)) => IpNumber::IPV6_ICMP,
        }
    }

    /// The L4 header with a right checksum, or with the pseudo-header's sum alone.
    fn l4_header(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = match self.l4 {
            L4::Tcp => TcpHeader::new(40_000, 80, 1, 1000).to_bytes().to_vec(),
            L4::Udp => {
                UdpHeader { source_port: 40_000, destination_port: 53, length: (8 + payload.len()) as u16, checksum: 0 }
                    .to_bytes()
                    .to_vec()
            }
            L4::Icmp(kind) => vec![kind, 0, 0, 0, 0, 1, 0, 1],
        };
        let whole = [&bytes, payload].concat();
        let pseudo = self.pseudo_header(whole.len());
        let sum = match (self.l4, self.partial) {
            (L4::Tcp | L4::Udp, true) => !internet_checksum(&[&pseudo]),
            (L4::Icmp(_), _) if matches!(self.addresses, Addresses::V4(..)) => internet_checksum(&[&whole]),
            _ => internet_checksum(&[&pseudo, &whole]),
        };
        let offset = self.l4.checksum_offset();
        bytes[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, l4_bytes: usize) -> Vec<u8> {
        let mut bytes = match self.addresses {
            Addresses::V4(source, destination) => [source.octets(), destination.octets()].concat(),
            Addresses::V6(source, destination) => [source.octets(), destination.octets()].concat(),
        };
        bytes.extend((l4_bytes as u32).to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol().0]);
        bytes
    }
}

impl L4 {
    fn checksum_offset(self) -> usize {
        match self {
            L4::Tcp => 16,
            L4::Udp => 6,
            L4::Icmp(_) => 2,
        }
    }
}

fn add(bytes: &mut [u8], offset: usize, change: i16) {
    let field = u16::from_be_bytes([bytes[offset], bytes[offset + 1]]).wrapping_add_signed(change);
    bytes[offset..offset + 2].copy_from_slice(&field.to_be_bytes());
}

fn flip(bytes: &mut [u8], offset: usize, bit: u8) {
    bytes[offset + usize::from(bit / 8)] ^= 1 << (bit % 8);
}

/// RFC 1071 as it stands there, over parts of even length but for the last.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
