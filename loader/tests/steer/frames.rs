//! Frames, built by etherparse and then bent.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use podlane_dataplane::MacAddr;

pub const BRIDGE_MAC: MacAddr = mac(0x01);
pub const UPLINK_MAC: MacAddr = mac(0x02);
pub const POD_A: MacAddr = mac(0x0a);
pub const POD_B: MacAddr = mac(0x0b);
pub const POD_C: MacAddr = mac(0x0c);
pub const OTHER_NODE: MacAddr = mac(0x20);
pub const NOBODY: MacAddr = mac(0x99);

/// Offset of the IP header.
pub const L3: usize = 14;
/// Offset of the L4 header behind IPv4 and IPv6.
pub const L4: [usize; 2] = [34, 54];

pub const fn mac(last: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, last])
}

/// The families, where a test is for both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Host `host` of pod subnet `subnet` of the cluster.
pub fn ip4(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, subnet, host)
}

/// The same in IPv6.
pub fn ip6(subnet: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, u16::from(subnet), 0, 0, 0, 0, 0, u16::from(host))
}

/// A frame's addresses. IP addresses as (subnet, host).
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub source_mac: MacAddr,
    pub destination_mac: MacAddr,
    pub source: (u8, u8),
    pub destination: (u8, u8),
}

/// From pod A to pod B over the bridge.
pub const BRIDGED: Path = Path { source_mac: POD_A, destination_mac: POD_B, source: (1, 10), destination: (1, 11) };

/// From pod A to a pod on another node.
pub const ROUTED: Path = Path { source_mac: POD_A, destination_mac: BRIDGE_MAC, source: (1, 10), destination: (2, 5) };

fn ethernet(path: Path) -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(path.source_mac.octets(), path.destination_mac.octets())
}

macro_rules! with_ip {
    ($family:expr, $path:expr, |$ip:ident| $rest:expr) => {
        match $family {
            Family::V4 => {
                let (source, destination) = ($path.source, $path.destination);
                let $ip = ethernet($path).ipv4(
                    ip4(source.0, source.1).octets(),
                    ip4(destination.0, destination.1).octets(),
                    64,
                );
                $rest
            }
            Family::V6 => {
                let (source, destination) = ($path.source, $path.destination);
                let $ip = ethernet($path).ipv6(
                    ip6(source.0, source.1).octets(),
                    ip6(destination.0, destination.1).octets(),
                    64,
                );
                $rest
            }
        }
    };
}

/// A TCP segment with `payload` bytes.
pub fn tcp(family: Family, path: Path, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    with_ip!(family, path, |ip| ip.tcp(4000, 80, 1, 1000).write(&mut frame, &vec![7; payload]).unwrap());
    frame
}

/// A UDP datagram with `payload` bytes.
pub fn udp(family: Family, path: Path, ports: (u16, u16), payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    with_ip!(family, path, |ip| ip.udp(ports.0, ports.1).write(&mut frame, &vec![7; payload]).unwrap());
    frame
}

/// An echo request with `payload` bytes.
pub fn echo(family: Family, path: Path, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    match family {
        Family::V4 => {
            with_ip!(Family::V4, path, |ip| ip.icmpv4_echo_request(1, 1).write(&mut frame, &vec![7; payload]).unwrap())
        }
        Family::V6 => {
            with_ip!(Family::V6, path, |ip| ip.icmpv6_echo_request(1, 1).write(&mut frame, &vec![7; payload]).unwrap())
        }
    }
    frame
}

/// Makes a super-frame beyond 65,535 bytes of an IPv6 TCP frame, as far as its headers go: payload length 0, and the length
/// in a jumbo option of the given length.
pub fn make_jumbo(frame: &mut Vec<u8>, length: u32) {
    put16(frame, L3 + 4, 0);
    let next_header = std::mem::replace(&mut frame[L3 + 6], 0);
    let mut option = vec![next_header, 0, 0xc2, 4];
    option.extend(length.to_be_bytes());
    frame.splice(L4[1]..L4[1], option);
}

/// Writes a big-endian 16-bit field.
pub fn put16(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Makes the IPv4 header checksum right again after bending.
pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    put16(frame, L3 + 10, 0);
    let sum: u32 = frame[L3..L3 + 20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    put16(frame, L3 + 10, !((sum & 0xffff) as u16 + (sum >> 16) as u16));
}

/// An ARP request in which `sender` says that it has `claimed`; of `path` the MAC addresses and the destination count.
pub fn arp(path: Path, sender: MacAddr, claimed: (u8, u8)) -> Vec<u8> {
    let mut frame = [path.destination_mac.octets(), path.source_mac.octets()].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.octets());
    frame.extend(ip4(claimed.0, claimed.1).octets());
    frame.extend([0; 6]);
    frame.extend(ip4(path.destination.0, path.destination.1).octets());
    frame
}

/// A neighbour advertisement for `claimed` with the sender's link-layer address.
pub fn advertisement(path: Path, claimed: (u8, u8)) -> Vec<u8> {
    let mut frame = echo(Family::V6, path, 24);
    frame[L3 + 7] = 255;
    frame[L4[1]] = 136;
    frame[L4[1] + 4..L4[1] + 8].copy_from_slice(&[0x20, 0, 0, 0]);
    frame[L4[1] + 8..L4[1] + 24].copy_from_slice(&ip6(claimed.0, claimed.1).octets());
    frame[L4[1] + 24..L4[1] + 26].copy_from_slice(&[2, 1]);
    frame[L4[1] + 26..L4[1] + 32].copy_from_slice(&path.source_mac.octets());
    frame
}
