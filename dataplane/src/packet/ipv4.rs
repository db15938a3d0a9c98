//! The IPv4 header (RFC 791, 3.1), without options.

use std::net::Ipv4Addr;

use super::ethernet::{self, Ethernet};
use super::{Headers, Network, checksum, l4};
use crate::forward::PassReason;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// The first byte of a header without options: version 4, five 32-bit words.
const VERSION_AND_LENGTH: u8 = 0x45;
/// Mask over the third 16-bit word pair: everything but "don't fragment". "More fragments", the offset and the reserved
/// bit must be 0.
const FRAGMENT_MASK: u16 = 0xbfff;

/// Reads the header behind `ethernet`.
#[inline(always)]
pub fn parse(bytes: &[u8], frame_bytes: u32, is_super: bool, ethernet: Ethernet) -> Result<Headers, PassReason> {
    let header: &[u8; HEADER_BYTES] =
        bytes.get(ethernet::HEADER_BYTES..).and_then(|rest| rest.first_chunk()).ok_or(PassReason::Malformed)?;
    if header[0] != VERSION_AND_LENGTH {
        let is_ipv4_with_options = header[0] >> 4 == 4 && header[0] & 0x0f > 5;
        return Err(if is_ipv4_with_options { PassReason::Options } else { PassReason::Malformed });
    }
    let l3_bytes = match u32::from(u16::from_be_bytes([header[2], header[3]])) {
        0 if is_super => frame_bytes.saturating_sub(ethernet::HEADER_BYTES as u32),
        length => length,
    };
    if l3_bytes < HEADER_BYTES as u32 || l3_bytes + ethernet::HEADER_BYTES as u32 > frame_bytes {
        return Err(PassReason::Malformed);
    }
    if u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_MASK != 0 {
        return Err(PassReason::Fragment);
    }
    if header[8] <= 1 {
        return Err(PassReason::Ttl);
    }
    let l4_offset = (ethernet::HEADER_BYTES + HEADER_BYTES) as u16;
    let l4 = l4::check_ipv4(bytes, l4_offset, header[9], l3_bytes - HEADER_BYTES as u32)?;
    Ok(Headers {
        destination_mac: ethernet.destination,
        source_mac: ethernet.source,
        network: Network::V4 {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
        },
        protocol: header[9],
        l3_bytes,
        frame_bytes,
        wire_bytes: frame_bytes,
        l4_offset,
        header_checksum_ok: checksum::ipv4_header_is_right(header),
        may_hide_checksum: l4.may_hide_checksum,
    })
}
