//! The IPv6 header (RFC 8200, 3), without extension headers.

use std::net::Ipv6Addr;

use super::ethernet::{self, Ethernet};
use super::{Headers, Network, l4, super_frame};
use crate::forward::PassReason;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;

/// Reads the header behind `ethernet`.
#[inline(always)]
pub fn parse(bytes: &[u8], frame_bytes: u32, is_super: bool, ethernet: Ethernet) -> Result<Headers, PassReason> {
    let header: &[u8; HEADER_BYTES] =
        bytes.get(ethernet::HEADER_BYTES..).and_then(|rest| rest.first_chunk()).ok_or(PassReason::Malformed)?;
    if header[0] >> 4 != 6 {
        return Err(PassReason::Malformed);
    }
    let payload_bytes = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let l3_bytes = payload_bytes + HEADER_BYTES as u32;
    if l3_bytes + ethernet::HEADER_BYTES as u32 > frame_bytes {
        return Err(PassReason::Malformed);
    }
    if header[7] <= 1 {
        return Err(PassReason::Ttl);
    }
    let l4_offset = (ethernet::HEADER_BYTES + HEADER_BYTES) as u16;
    let (protocol, l3_bytes, l4_offset, l4) = if is_super && payload_bytes == 0 {
        super_frame::parse_jumbo(bytes, frame_bytes, header[6])?
    } else {
        (header[6], l3_bytes, l4_offset, l4::check_ipv6(bytes, l4_offset, header[6], payload_bytes)?)
    };
    let address = |from: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[from..from + 16]);
        Ipv6Addr::from(octets)
    };
    Ok(Headers {
        destination_mac: ethernet.destination,
        source_mac: ethernet.source,
        network: Network::V6 { source: address(8), destination: address(24) },
        protocol,
        l3_bytes,
        frame_bytes,
        wire_bytes: frame_bytes,
        l4_offset,
        header_checksum_ok: true,
        may_hide_checksum: l4.may_hide_checksum,
    })
}
