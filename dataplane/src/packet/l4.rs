//! What is looked at behind the IP header: enough of TCP, UDP and ICMP to admit a packet.

use crate::forward::PassReason;

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Next header number of the IPv6 fragment header.
const FRAGMENT_HEADER: u8 = 44;

/// Bytes of a TCP header without options.
pub const TCP_BYTES: usize = 20;
/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;
/// Bytes of the fixed part of an ICMP header.
pub const ICMP_BYTES: usize = 8;

/// Whether a UDP port is one behind which a tunnel's inner packet may still lack its checksum (the sender's stack offloads
/// the inner one and computes the outer one around it).
#[inline]
const fn is_tunnel(port: u16) -> bool {
    const VXLAN: u16 = 4789;
    const OLD_VXLAN: u16 = 8472; // Linux's default
    const GENEVE: u16 = 6081;
    const FOU: u16 = 5555;
    const GUE: u16 = 6080;
    const GTP_U: u16 = 2152;
    const MPLS: u16 = 6635;
    // Most ports are told from all of these by one comparison.
    GTP_U <= port && port <= OLD_VXLAN && matches!(port, VXLAN | OLD_VXLAN | GENEVE | FOU | GUE | GTP_U | MPLS)
}

/// What admission found out.
#[derive(Clone, Copy)]
pub struct L4 {
    /// See [`super::Headers::may_hide_checksum`].
    pub may_hide_checksum: bool,
}

/// Admits an IPv4 payload of `l4_bytes` that starts at `offset`.
#[inline(always)]
pub fn check_ipv4(bytes: &[u8], offset: u16, protocol: u8, l4_bytes: u32) -> Result<L4, PassReason> {
    match protocol {
        TCP => tcp(bytes, offset, l4_bytes),
        UDP => udp(bytes, offset, l4_bytes),
        ICMP => header::<ICMP_BYTES>(bytes, offset, l4_bytes).map(|_| L4 { may_hide_checksum: false }),
        _ => Err(PassReason::Protocol),
    }
}

/// Admits an IPv6 payload of `l4_bytes` that starts at `offset`. Neighbour and router discovery (ICMPv6 types 133 to 137,
/// RFC 4861) are the kernel's.
#[inline(always)]
pub fn check_ipv6(bytes: &[u8], offset: u16, protocol: u8, l4_bytes: u32) -> Result<L4, PassReason> {
    match protocol {
        TCP => tcp(bytes, offset, l4_bytes),
        UDP => udp(bytes, offset, l4_bytes),
        ICMPV6 => match header::<ICMP_BYTES>(bytes, offset, l4_bytes)?[0] {
            133..=137 => Err(PassReason::NeighbourDiscovery),
            _ => Ok(L4 { may_hide_checksum: false }),
        },
        FRAGMENT_HEADER => Err(PassReason::Fragment),
        // Hop-by-hop, routing, ESP, AH, no next header, destination options, mobility, HIP, shim6 (IANA).
        0 | 43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 => Err(PassReason::Options),
        _ => Err(PassReason::Protocol),
    }
}

/// The fixed part of the L4 header: it must be inside of the IP packet, and in the first piece of the frame, so that
/// whoever rewrites a checksum finds its field there.
#[inline(always)]
fn header<const BYTES: usize>(bytes: &[u8], offset: u16, l4_bytes: u32) -> Result<&[u8; BYTES], PassReason> {
    if l4_bytes < BYTES as u32 {
        return Err(PassReason::Malformed);
    }
    bytes.get(usize::from(offset)..).and_then(|rest| rest.first_chunk()).ok_or(PassReason::Malformed)
}

#[inline(always)]
fn tcp(bytes: &[u8], offset: u16, l4_bytes: u32) -> Result<L4, PassReason> {
    header::<TCP_BYTES>(bytes, offset, l4_bytes).map(|_| L4 { may_hide_checksum: false })
}

#[inline(always)]
fn udp(bytes: &[u8], offset: u16, l4_bytes: u32) -> Result<L4, PassReason> {
    let header: &[u8; UDP_BYTES] = header(bytes, offset, l4_bytes)?;
    let source = u16::from_be_bytes([header[0], header[1]]);
    let destination = u16::from_be_bytes([header[2], header[3]]);
    let length = u32::from(u16::from_be_bytes([header[4], header[5]]));
    if length != l4_bytes {
        return Err(PassReason::Malformed);
    }
    let no_checksum = header[6..8] == [0, 0];
    Ok(L4 { may_hide_checksum: no_checksum || is_tunnel(destination) || is_tunnel(source) })
}
