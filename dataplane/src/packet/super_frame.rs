//! Super-frames: what a sender or GRO leaves in one piece and the kernel cuts into segments on the way out (GSO, TSO,
//! UDP_SEGMENT). Only the kernel path meets them; an AF_XDP socket would lose the size of their segments.
//!
//! Beyond 65,535 bytes ("BIG TCP") the length field is too short: IPv4 then says 0, and IPv6 says 0 with the length in a
//! hop-by-hop jumbo option (RFC 2675), or, on newer kernels, nowhere (kernel `net/ipv6/ip6_output.c`, `ip6_xmit`). Segments
//! on the wire have neither.

use super::{Headers, Network, ethernet, ipv4, ipv6, l4, parse_either};
use crate::forward::PassReason;

/// Bytes of the hop-by-hop header with the jumbo option and nothing else.
const JUMBO_BYTES: usize = 8;
/// The option's type.
const JUMBO_OPTION: u8 = 0xc2;
/// The byte of a TCP header whose upper half is the header's length in 32-bit words (RFC 9293, 3.1).
const TCP_DATA_OFFSET: usize = 12;

/// How a super-frame is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    /// Payload bytes of each segment but the last (`gso_size`).
    pub bytes: u16,
    /// A tunnel's packet, which is cut further inside than its outer headers show.
    pub encapsulated: bool,
}

/// As [`super::parse`], for a super-frame: [`Headers::wire_bytes`] is the length of its longest segment as a frame.
pub fn parse_super_frame(bytes: &[u8], frame_bytes: u32, segments: Segments) -> Result<Headers, PassReason> {
    let mut headers = parse_either(bytes, frame_bytes, true)?;
    let l3_header = match headers.network {
        Network::V4 { .. } => ipv4::HEADER_BYTES,
        Network::V6 { .. } => ipv6::HEADER_BYTES,
    };
    let l4_header = match headers.protocol {
        l4::TCP => tcp_header_bytes(bytes, headers.l4_offset)?,
        l4::UDP if !segments.encapsulated => l4::UDP_BYTES,
        _ => return Err(PassReason::SuperFrame),
    };
    headers.wire_bytes = (ethernet::HEADER_BYTES + l3_header + l4_header) as u32 + u32::from(segments.bytes);
    Ok(headers)
}

fn tcp_header_bytes(bytes: &[u8], l4_offset: u16) -> Result<usize, PassReason> {
    let byte = *bytes.get(usize::from(l4_offset) + TCP_DATA_OFFSET).ok_or(PassReason::Malformed)?;
    let length = usize::from(byte >> 4) * 4;
    if length < l4::TCP_BYTES { Err(PassReason::Malformed) } else { Ok(length) }
}

/// The rest of an IPv6 super-frame whose payload length is 0: protocol, bytes of the packet, where L4 starts, and L4.
pub(super) fn parse_jumbo(
    bytes: &[u8],
    frame_bytes: u32,
    next_header: u8,
) -> Result<(u8, u32, u16, l4::L4), PassReason> {
    let at = ethernet::HEADER_BYTES + ipv6::HEADER_BYTES;
    if next_header == l4::TCP {
        let l3_bytes = frame_bytes.saturating_sub(ethernet::HEADER_BYTES as u32);
        let l4 = l4::check_ipv6(bytes, at as u16, l4::TCP, l3_bytes.saturating_sub(ipv6::HEADER_BYTES as u32))?;
        return Ok((l4::TCP, l3_bytes, at as u16, l4));
    }
    let option: Option<&[u8; JUMBO_BYTES]> = bytes.get(at..).and_then(|rest| rest.first_chunk());
    let &[l4::TCP, 0, JUMBO_OPTION, 4, a, b, c, d] = option.filter(|_| next_header == 0).ok_or(PassReason::Options)?
    else {
        return Err(PassReason::Options);
    };
    let payload_bytes = u32::from_be_bytes([a, b, c, d]);
    let l4_bytes = payload_bytes.checked_sub(JUMBO_BYTES as u32).ok_or(PassReason::Malformed)?;
    if u64::from(payload_bytes) + at as u64 > u64::from(frame_bytes) {
        return Err(PassReason::Malformed);
    }
    let l4_offset = (at + JUMBO_BYTES) as u16;
    let l4 = l4::check_ipv6(bytes, l4_offset, l4::TCP, l4_bytes)?;
    Ok((l4::TCP, payload_bytes + ipv6::HEADER_BYTES as u32, l4_offset, l4))
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv6Header, PacketBuilder, TcpHeader};

    use super::*;

    fn tcp4(payload: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
        let mut frame = Vec::new();
        builder.write(&mut frame, &vec![7; payload]).unwrap();
        frame
    }

    /// An IPv6 TCP frame with a payload length of 0, with or without the jumbo option.
    fn jumbo(option: bool, payload: usize) -> Vec<u8> {
        let header = Ipv6Header {
            next_header: IpNumber(if option { 0 } else { l4::TCP }),
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        header.write(&mut frame).unwrap();
        if option {
            frame.extend([l4::TCP, 0, JUMBO_OPTION, 4]);
            frame.extend((JUMBO_BYTES as u32 + 20 + payload as u32).to_be_bytes());
        }
        TcpHeader::new(1, 2, 3, 4).write(&mut frame).unwrap();
        frame.resize(frame.len() + payload, 7);
        frame
    }

    fn cut(frame: &[u8], bytes: u16) -> Result<Headers, PassReason> {
        parse_super_frame(frame, frame.len() as u32, Segments { bytes, encapsulated: false })
    }

    #[test]
    fn the_longest_segment_counts() {
        let headers = cut(&tcp4(60_000), 1448).unwrap();
        assert_eq!((headers.frame_bytes, headers.wire_bytes), (60_054, 14 + 20 + 20 + 1448));
    }

    #[test]
    fn a_length_of_zero_means_beyond_the_field_only_in_a_super_frame() {
        let mut frame = tcp4(0);
        frame.resize(100_000, 7);
        frame[16..18].fill(0);
        assert_eq!(cut(&frame, 1448).unwrap().l3_bytes, 100_000 - 14);
        assert_eq!(crate::packet::parse(&frame, frame.len() as u32), Err(PassReason::Malformed));
    }

    #[test]
    fn ipv6_beyond_the_field_comes_with_a_jumbo_option_and_without() {
        for option in [true, false] {
            let frame = jumbo(option, 100_000);
            let headers = cut(&frame, 1428).unwrap();
            assert_eq!(headers.wire_bytes, 14 + 40 + 20 + 1428, "segments have no option");
            assert_eq!(headers.l3_bytes as usize, frame.len() - 14);
            assert_eq!(headers.protocol, l4::TCP);
            let plain = crate::packet::parse(&frame, frame.len() as u32);
            assert_eq!(plain.unwrap_err(), if option { PassReason::Options } else { PassReason::Malformed });
        }
    }

    #[test]
    fn a_lying_jumbo_option_is_refused() {
        let mut frame = jumbo(true, 1000);
        frame[58..62].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(cut(&frame, 1000), Err(PassReason::Malformed));
        frame[58..62].copy_from_slice(&7u32.to_be_bytes());
        assert_eq!(cut(&frame, 1000), Err(PassReason::Malformed));
        frame[56] = 5;
        assert_eq!(cut(&frame, 1000), Err(PassReason::Options));
    }

    #[test]
    fn what_cannot_be_measured_is_the_kernels() {
        let udp = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut frame = Vec::new();
        udp.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut frame, &[7; 3000]).unwrap();
        assert_eq!(cut(&frame, 1000).unwrap().wire_bytes, 14 + 20 + 8 + 1000);
        let tunnel = Segments { bytes: 1000, encapsulated: true };
        assert_eq!(parse_super_frame(&frame, frame.len() as u32, tunnel), Err(PassReason::SuperFrame));
        let mut short = tcp4(3000);
        short[46] = 0x40;
        assert_eq!(cut(&short, 1000), Err(PassReason::Malformed));
    }
}
