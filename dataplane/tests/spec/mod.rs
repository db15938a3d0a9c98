//! What happens to a frame, written as plainly as possible, and the engine's answer in the same words. The property tests and
//! the fuzz target `decide` compare the two.
//!
//! The specification decodes with etherparse, searches lists from end to end and builds the outgoing frame anew with all
//! checksums recomputed. The engine parses, decides and rewrites in place.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use podlane_dataplane::forward::{PassReason, Rewrite, Verdict, decide};
use podlane_dataplane::packet::{parse, rewrite};
use podlane_dataplane::table::{Adjacency, LinkId, NextHopAction, Path, Port, PortKind, Tables};
use podlane_dataplane::{MacAddr, PortId};

use super::world::{World, internet_checksum};

/// What leaves, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub port: PortId,
    pub used: u32,
    pub frame: Vec<u8>,
}

/// A frame that is forwarded, or the reason why the kernel gets it.
pub type Outcome = Result<Forwarded, PassReason>;

// ---- The specification -------------------------------------------------------------------------------------------

/// An IP packet that is admitted. The outgoing frame is the Ethernet header, the IP header, the L4 bytes, the padding.
struct Admitted {
    ethernet: Ethernet2Header,
    ip: Ip,
    l4: Vec<u8>,
    padding: Vec<u8>,
    may_hide_checksum: bool,
}

enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

/// Question one: is it a frame that we understand?
fn admit(frame: &[u8]) -> Result<Admitted, PassReason> {
    let (ethernet, packet) = Ethernet2Header::from_slice(frame).map_err(|_| PassReason::Malformed)?;
    if ethernet.destination[0] & 1 == 1 {
        return Err(PassReason::Group);
    }
    if ethernet.source[0] & 1 == 1 || ethernet.source == [0; 6] {
        return Err(PassReason::Malformed);
    }
    let (ip, l4, padding) = match ethernet.ether_type {
        EtherType::IPV4 => admit_ipv4(packet)?,
        EtherType::IPV6 => admit_ipv6(packet)?,
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => return Err(PassReason::Vlan),
        _ => return Err(PassReason::NotIp),
    };
    let may_hide_checksum = admit_l4(&ip, l4)?;
    Ok(Admitted { ethernet, ip, l4: l4.to_vec(), padding: padding.to_vec(), may_hide_checksum })
}

type Split<'a> = (Ip, &'a [u8], &'a [u8]);

fn admit_ipv4(packet: &[u8]) -> Result<Split<'_>, PassReason> {
    let plain = packet.get(..20).ok_or(PassReason::Malformed)?;
    match (plain[0] >> 4, plain[0] & 15) {
        (4, 5) => {}
        (4, 6..) => return Err(PassReason::Options),
        _ => return Err(PassReason::Malformed),
    }
    let (header, _) = Ipv4Header::from_slice(plain).map_err(|_| PassReason::Malformed)?;
    let total = usize::from(header.total_len);
    if total < 20 || total > packet.len() {
        return Err(PassReason::Malformed);
    }
    let reserved = plain[6] & 0x80 != 0;
    if header.more_fragments || header.fragment_offset.value() != 0 || reserved {
        return Err(PassReason::Fragment);
    }
    if header.time_to_live <= 1 {
        return Err(PassReason::Ttl);
    }
    Ok((Ip::V4(header), &packet[20..total], &packet[total..]))
}

fn admit_ipv6(packet: &[u8]) -> Result<Split<'_>, PassReason> {
    let (header, payload) = Ipv6Header::from_slice(packet).map_err(|_| PassReason::Malformed)?;
    let length = usize::from(header.payload_length);
    if length > payload.len() {
        return Err(PassReason::Malformed);
    }
    if header.hop_limit <= 1 {
        return Err(PassReason::Ttl);
    }
    Ok((Ip::V6(header), &payload[..length], &payload[length..]))
}

/// TCP, UDP and ICMP with whole headers; says whether an unfinished checksum may be hidden inside of the datagram.
fn admit_l4(ip: &Ip, l4: &[u8]) -> Result<bool, PassReason> {
    let is_ipv4 = matches!(ip, Ip::V4(_));
    match protocol(ip) {
        IpNumber::TCP if l4.len() >= 20 => Ok(false),
        IpNumber::ICMP if is_ipv4 && l4.len() >= 8 => Ok(false),
        IpNumber::IPV6_ICMP if !is_ipv4 && l4.len() >= 8 => {
            let is_discovery = matches!(l4[0], 133..=137);
            if is_discovery { Err(PassReason::NeighbourDiscovery) } else { Ok(false) }
        }
        IpNumber::UDP => {
            let (header, _) = UdpHeader::from_slice(l4).map_err(|_| PassReason::Malformed)?;
            if usize::from(header.length) != l4.len() {
                return Err(PassReason::Malformed);
            }
            let tunnels = [4789, 8472, 6081, 5555, 6080, 2152, 6635];
            let is_tunnel = [header.source_port, header.destination_port].iter().any(|port| tunnels.contains(port));
            Ok(is_tunnel || header.checksum == 0)
        }
        IpNumber::TCP => Err(PassReason::Malformed),
        IpNumber::ICMP if is_ipv4 => Err(PassReason::Malformed),
        IpNumber::IPV6_ICMP if !is_ipv4 => Err(PassReason::Malformed),
        IpNumber::IPV6_FRAGMENTATION_HEADER if !is_ipv4 => Err(PassReason::Fragment),
        number if !is_ipv4 && is_extension_header(number) => Err(PassReason::Options),
        _ => Err(PassReason::Protocol),
    }
}

fn is_extension_header(number: IpNumber) -> bool {
    [
        IpNumber::IPV6_HEADER_HOP_BY_HOP,
        IpNumber::IPV6_ROUTE_HEADER,
        IpNumber::ENCAPSULATING_SECURITY_PAYLOAD,
        IpNumber::AUTHENTICATION_HEADER,
        IpNumber::IPV6_NO_NEXT_HEADER,
        IpNumber::IPV6_DESTINATION_OPTIONS,
        IpNumber::MOBILITY_HEADER,
        IpNumber::HIP,
        IpNumber::SHIM6,
    ]
    .contains(&number)
}

fn protocol(ip: &Ip) -> IpNumber {
    match ip {
        Ip::V4(header) => header.protocol,
        Ip::V6(header) => header.next_header,
    }
}

/// What happens to a frame.
pub fn specified(world: &World, ingress: PortId, frame: &[u8]) -> Outcome {
    let mut admitted = admit(frame)?;
    let from = find_port(world, ingress).filter(|port| port.forwarding).ok_or(PassReason::PortState)?;
    let is_repeated = from.path == Path::Kernel;
    if !is_repeated && from.partial_checksums && admitted.may_hide_checksum {
        return Err(PassReason::HiddenChecksum);
    }
    if !both_in_cluster(world, &admitted.ip) {
        return Err(PassReason::OutsideCluster);
    }
    if is_repeated && from.kind == PortKind::Pod && from.learning {
        let source = MacAddr::new(admitted.ethernet.source);
        let sender = world.fdb.iter().rfind(|(mac, _)| *mac == source);
        if sender.is_none_or(|(_, entry)| entry.port != ingress) {
            return Err(PassReason::UnknownSource);
        }
    }
    let frame_bytes = frame.len() as u32;
    let (port, used) = if admitted.ethernet.destination == from.router_mac.octets() {
        let adjacency = route(world, ingress, from, &admitted.ip, frame_bytes)?;
        admitted.ethernet.destination = adjacency.destination.octets();
        admitted.ethernet.source = adjacency.source.octets();
        match &mut admitted.ip {
            Ip::V4(header) => {
                header.time_to_live -= 1;
                header.header_checksum = header.calc_header_checksum();
            }
            Ip::V6(header) => header.hop_limit -= 1,
        }
        (adjacency.port, adjacency.activity)
    } else if from.kind == PortKind::Pod {
        bridge(world, ingress, from, MacAddr::new(admitted.ethernet.destination), frame_bytes)?
    } else {
        return Err(PassReason::UnknownMac);
    };
    if from.partial_checksums && is_partial(&admitted) {
        finish_checksum(&mut admitted);
    }
    Ok(Forwarded { port, used, frame: emit(&admitted) })
}

fn bridge(
    world: &World,
    ingress: PortId,
    from: &Port,
    destination: MacAddr,
    frame_bytes: u32,
) -> Result<(PortId, u32), PassReason> {
    if let Some(reason) = world.routing.bridge_off {
        return Err(reason);
    }
    let (_, entry) = world.fdb.iter().rfind(|(mac, _)| *mac == destination).ok_or(PassReason::UnknownMac)?;
    if entry.port == ingress {
        return Err(PassReason::Hairpin);
    }
    let to = find_port(world, entry.port).filter(|port| port.forwarding).ok_or(PassReason::PortState)?;
    if from.isolated && to.isolated {
        return Err(PassReason::PortState);
    }
    fits(from, to, u32::MAX, frame_bytes)?;
    Ok((entry.port, entry.activity))
}

fn route(world: &World, ingress: PortId, from: &Port, ip: &Ip, frame_bytes: u32) -> Result<Adjacency, PassReason> {
    let off = match ip {
        Ip::V4(_) => world.routing.ipv4_off,
        Ip::V6(_) => world.routing.ipv6_off,
    };
    if let Some(reason) = off {
        return Err(reason);
    }
    let next_hop = match ip {
        Ip::V4(header) => longest(&world.routes4, header.destination.into(), |a: Ipv4Addr| a.to_bits().into(), 32),
        Ip::V6(header) => longest(&world.routes6, header.destination.into(), |a: Ipv6Addr| a.to_bits(), 128),
    };
    let next_hop = next_hop.and_then(|index| world.next_hops.get(index as usize)).ok_or(PassReason::NoRoute)?;
    let index = match next_hop.action {
        NextHopAction::Kernel(reason) => return Err(reason),
        NextHopAction::Gateway(index) => index,
        NextHopAction::OnLink(link) => match ip {
            Ip::V4(header) => find_host(&world.hosts4, link, header.destination.into()),
            Ip::V6(header) => find_host(&world.hosts6, link, header.destination.into()),
        }
        .ok_or(PassReason::Unresolved)?,
    };
    let adjacency = *world.adjacencies.get(index as usize).ok_or(PassReason::Unresolved)?;
    if let Ip::V4(header) = ip
        && header.header_checksum != header.calc_header_checksum()
    {
        return Err(PassReason::Malformed);
    }
    if adjacency.port == ingress {
        return Err(PassReason::Hairpin);
    }
    let to = find_port(world, adjacency.port).filter(|port| port.forwarding).ok_or(PassReason::PortState)?;
    fits(from, to, next_hop.mtu, frame_bytes)?;
    Ok(adjacency)
}

fn fits(from: &Port, to: &Port, route_mtu: u32, frame_bytes: u32) -> Result<(), PassReason> {
    let behind_ethernet = frame_bytes - 14;
    if behind_ethernet > to.mtu || behind_ethernet > route_mtu {
        return Err(PassReason::TooBig);
    }
    if from.path == Path::AfXdp && (frame_bytes > from.max_frame || frame_bytes > to.max_frame) {
        return Err(PassReason::FrameSize);
    }
    Ok(())
}

fn find_port(world: &World, id: PortId) -> Option<&Port> {
    world.ports.iter().find(|(number, _)| *number == id).map(|(_, port)| port)
}

fn find_host<A: PartialEq>(hosts: &[(LinkId, A, u32)], link: LinkId, address: A) -> Option<u32> {
    hosts.iter().rfind(|host| host.0 == link && host.1 == address).map(|host| host.2)
}

/// Longest-prefix match by trying every route; among routes for one prefix the last counts.
fn longest<A: Copy>(routes: &[(A, u8, u32)], address: A, bits: impl Fn(A) -> u128, width: u8) -> Option<u32> {
    let covering =
        routes.iter().filter(|(prefix, length, _)| same_prefix(bits(*prefix), bits(address), *length, width));
    covering.max_by_key(|route| route.1.min(width)).map(|route| route.2)
}

fn same_prefix(one: u128, other: u128, length: u8, width: u8) -> bool {
    let host_bits = u32::from(width - length.min(width));
    one.checked_shr(host_bits).unwrap_or(0) == other.checked_shr(host_bits).unwrap_or(0)
}

fn both_in_cluster(world: &World, ip: &Ip) -> bool {
    match ip {
        Ip::V4(header) => [header.source, header.destination].into_iter().all(|address| {
            let address = Ipv4Addr::from(address).to_bits().into();
            world.cluster4.iter().any(|(cidr, length)| same_prefix(cidr.to_bits().into(), address, *length, 32))
        }),
        Ip::V6(header) => [header.source, header.destination].into_iter().all(|address| {
            let address = Ipv6Addr::from(address).to_bits();
            world.cluster6.iter().any(|(cidr, length)| same_prefix(cidr.to_bits(), address, *length, 128))
        }),
    }
}

/// Whether a TCP or UDP checksum field holds the sum of the pseudo-header alone.
fn is_partial(admitted: &Admitted) -> bool {
    checksum_field(admitted)
        .is_some_and(|field| admitted.l4[field] == (!internet_checksum(&[&pseudo_header(admitted)])).to_be_bytes())
}

/// Puts the right checksum into a TCP or UDP header.
fn finish_checksum(admitted: &mut Admitted) {
    let Some(field) = checksum_field(admitted) else { return };
    admitted.l4[field.clone()].fill(0);
    let checksum = match internet_checksum(&[&pseudo_header(admitted), &admitted.l4]) {
        0 => 0xffff_u16,
        checksum => checksum,
    };
    admitted.l4[field].copy_from_slice(&checksum.to_be_bytes());
}

fn checksum_field(admitted: &Admitted) -> Option<Range<usize>> {
    match protocol(&admitted.ip) {
        IpNumber::TCP => Some(16..18),
        IpNumber::UDP => Some(6..8),
        _ => None,
    }
}

fn pseudo_header(admitted: &Admitted) -> Vec<u8> {
    let addresses = match &admitted.ip {
        Ip::V4(header) => [header.source, header.destination].concat(),
        Ip::V6(header) => [header.source, header.destination].concat(),
    };
    let length = (admitted.l4.len() as u32).to_be_bytes();
    [&addresses[..], &length, &[0, 0, 0, protocol(&admitted.ip).0]].concat()
}

fn emit(admitted: &Admitted) -> Vec<u8> {
    let mut frame = admitted.ethernet.to_bytes().to_vec();
    match &admitted.ip {
        Ip::V4(header) => frame.extend(header.to_bytes()),
        Ip::V6(header) => frame.extend(header.to_bytes()),
    }
    frame.extend(&admitted.l4);
    frame.extend(&admitted.padding);
    frame
}

// ---- The engine, in the order of a worker ------------------------------------------------------------------------

/// What the engine does with it.
pub fn engine(tables: &Tables, ingress: PortId, mut frame: Vec<u8>) -> Outcome {
    let headers = parse(&frame, frame.len() as u32)?;
    let (port, used) = match decide(&headers, ingress, tables) {
        Verdict::Kernel(reason) => return Err(reason),
        Verdict::Forward { port, rewrite: Rewrite::None, used } => (port, used),
        Verdict::Forward { port, rewrite: Rewrite::Route { destination, source }, used } => {
            rewrite::route(&mut frame, &headers, destination, source);
            (port, used)
        }
    };
    if tables.ports.get(ingress).unwrap().partial_checksums
        && let Some(location) = rewrite::partial_checksum(&frame, &headers)
    {
        let checksum = rewrite::completed_checksum([&frame[..]], &headers, location);
        rewrite::set_checksum(&mut frame, location, checksum);
    }
    Ok(Forwarded { port, used, frame })
}
