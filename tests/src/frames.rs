//! Frames as the tests build and judge them. Written without the engine's code, which is what they judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use etherparse::{IpNumber, PacketBuilder};

/// A MAC address, in the order of the wire.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// What the L4 checksum field of a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// There is none: not TCP, UDP or ICMP, a fragment, cut short, or UDP over IPv4 without one.
    None,
    /// The sum over everything, as it must be on a wire.
    Right,
    /// The folded sum of the pseudo-header only: what a sender leaves to its device to finish.
    PseudoHeader,
    /// Both, which are the same for one payload in 65,536.
    Either,
    /// Neither.
    Wrong,
}

/// Where the parts of an IP packet in a frame are.
struct Located {
    protocol: u8,
    l4: std::ops::Range<usize>,
    pseudo_header: u32,
}

/// Judges the L4 checksum of an Ethernet frame.
pub fn l4_checksum(frame: &[u8]) -> Checksum {
    let Some(located) = locate(frame) else { return Checksum::None };
    let l4 = &frame[located.l4];
    let (field, pseudo_header) = match located.protocol {
        6 if l4.len() >= 20 => (16, located.pseudo_header),
        17 if l4.len() >= 8 => (6, located.pseudo_header),
        1 if l4.len() >= 8 => (2, 0),
        58 if l4.len() >= 8 => (2, located.pseudo_header),
        _ => return Checksum::None,
    };
    let stored = u16::from_be_bytes([l4[field], l4[field + 1]]);
    if located.protocol == 17 && stored == 0 && frame[12..14] == [0x08, 0x00] {
        return Checksum::None;
    }
    match (fold(sum(l4) + pseudo_header) == 0xffff, stored == fold(pseudo_header)) {
        (true, true) => Checksum::Either,
        (true, false) => Checksum::Right,
        (false, true) => Checksum::PseudoHeader,
        (false, false) => Checksum::Wrong,
    }
}

fn locate(frame: &[u8]) -> Option<Located> {
    let packet = frame.get(ETHERNET..)?;
    match frame[12..14] {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 15) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
            if header < 20 || total < header || total > packet.len() || fragment {
                return None;
            }
            let length = (total - header) as u32;
            Some(Located {
                protocol: packet[9],
                l4: ETHERNET + header..ETHERNET + total,
                pseudo_header: sum(&packet[12..20]) + u32::from(packet[9]) + length,
            })
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            if packet.len() < 40 + length {
                return None;
            }
            Some(Located {
                protocol: packet[6],
                l4: ETHERNET + 40..ETHERNET + 40 + length,
                pseudo_header: sum(&packet[8..40]) + u32::from(packet[6]) + length as u32,
            })
        }
        _ => None,
    }
}

/// Sum of 16-bit big-endian words, an odd byte padded with zero (RFC 1071). Frames are too short for it to overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Who a frame is from and to.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
}

impl Ends {
    fn ip(&self, hops: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), hops),
            (source, destination) => ethernet.ipv6(to_v6(source).octets(), to_v6(destination).octets(), hops),
        }
    }

    /// A UDP datagram with a right checksum.
    pub fn udp(&self, port: u16, payload: &[u8]) -> Vec<u8> {
        self.udp_with_hops(64, port, payload)
    }

    /// The same with another TTL or hop limit.
    pub fn udp_with_hops(&self, hops: u8, port: u16, payload: &[u8]) -> Vec<u8> {
        let builder = self.ip(hops).udp(40_000, port);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, payload).expect("writing into memory");
        frame
    }

    /// An IP packet of any protocol.
    pub fn ip_packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let builder = self.ip(64);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, IpNumber(protocol), payload).expect("writing into memory");
        frame
    }

    /// A frame of another EtherType.
    pub fn ethernet(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET + payload.len());
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// Whether the addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Where the L4 header of a frame without options starts.
pub fn l4_offset(frame: &[u8]) -> usize {
    if frame[12..14] == [0x08, 0x00] { ETHERNET + 20 } else { ETHERNET + 40 }
}

/// The TTL or hop limit of an IP frame.
pub fn hops(frame: &[u8]) -> u8 {
    if frame[12..14] == [0x08, 0x00] { frame[ETHERNET + 8] } else { frame[ETHERNET + 7] }
}

/// Whether the header checksum of an IPv4 frame is right; IPv6 has none.
pub fn ip_header_is_right(frame: &[u8]) -> bool {
    if frame[12..14] != [0x08, 0x00] {
        return true;
    }
    let header = usize::from(frame[ETHERNET] & 15) * 4;
    fold(sum(&frame[ETHERNET..ETHERNET + header])) == 0xffff
}

/// Writes the IPv4 header checksum anew, for frames whose header was changed on purpose.
pub fn fix_ipv4_header(frame: &mut [u8]) {
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let header = (usize::from(frame[ETHERNET] & 15) * 4).min(frame.len() - ETHERNET);
    let checksum = !fold(sum(&frame[ETHERNET..ETHERNET + header]));
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// The multicast MAC address of a group (RFC 1112, 6.4; RFC 2464, 7).
pub fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = Ipv4Addr::octets(&group);
            [0x01, 0x00, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(group) => {
            let octets = group.octets();
            [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
        }
    }
}

/// "02:70:6f:64:00:01" → bytes.
pub fn parse_mac(text: &str) -> Result<Mac> {
    let bytes = from_hex(&text.replace(':', ""))?;
    bytes.try_into().ok().with_context(|| format!("'{text}' is not a MAC address"))
}

/// Bytes → "02:70:6f:64:00:01".
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Two digits a byte → bytes.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "'{text}' is not an even number of hexadecimal digits");
    (0..text.len() / 2)
        .map(|i| {
            u8::from_str_radix(&text[2 * i..2 * i + 2], 16).with_context(|| format!("'{text}' is not hexadecimal"))
        })
        .collect()
}

/// Bytes → two digits a byte.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(ipv4: bool) -> Ends {
        let (source, destination) = if ipv4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        Ends {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn checksums_are_judged() {
        for ipv4 in [true, false] {
            for payload in [&b"odd"[..], b"even", b""] {
                let mut frame = ends(ipv4).udp(53, payload);
                assert_eq!(l4_checksum(&frame), Checksum::Right);
                assert!(ip_header_is_right(&frame));
                let field = l4_offset(&frame) + 6;
                frame[field] ^= 0x55;
                assert_eq!(l4_checksum(&frame), Checksum::Wrong);
                let located = locate(&frame).unwrap();
                frame[field..field + 2].copy_from_slice(&fold(located.pseudo_header).to_be_bytes());
                assert_eq!(l4_checksum(&frame), Checksum::PseudoHeader);
                assert_eq!(l4_checksum(&frame[..frame.len() - 1]), Checksum::None);
                assert_eq!(l4_checksum(&ends(ipv4).ip_packet(99, payload)), Checksum::None);
            }
        }
    }

    #[test]
    fn a_changed_header_is_noticed_and_can_be_fixed() {
        let mut frame = ends(true).udp_with_hops(9, 53, b"x");
        assert_eq!(hops(&frame), 9);
        frame[ETHERNET + 8] = 8;
        assert!(!ip_header_is_right(&frame));
        fix_ipv4_header(&mut frame);
        assert!(ip_header_is_right(&frame));
        assert_eq!(hops(&ends(false).udp_with_hops(3, 53, b"")), 3);
    }

    #[test]
    fn text_and_bytes() {
        assert_eq!(parse_mac("02:70:6f:64:00:01").unwrap(), [2, 0x70, 0x6f, 0x64, 0, 1]);
        assert_eq!(mac_text([2, 0x70, 0x6f, 0x64, 0, 1]), "02:70:6f:64:00:01");
        assert_eq!(from_hex(&to_hex(&[0, 255, 16])).unwrap(), [0, 255, 16]);
        assert!(from_hex("abc").is_err() && from_hex("zz").is_err() && parse_mac("02:70").is_err());
        assert_eq!(group_mac("224.129.2.3".parse().unwrap()), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(group_mac("ff02::1:ff00:5".parse().unwrap()), [0x33, 0x33, 0xff, 0, 0, 5]);
    }
}
