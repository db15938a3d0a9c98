//! The Ethernet header (IEEE 802.3, 3.1.1): destination, source, type.

use crate::addr::MacAddr;
use crate::forward::PassReason;

/// Bytes of the header without a VLAN tag.
pub const HEADER_BYTES: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (IEEE 802.1ad).
pub const QINQ: u16 = 0x88a8;

/// The header's fields.
#[derive(Clone, Copy)]
pub struct Ethernet {
    pub destination: MacAddr,
    pub source: MacAddr,
    pub ethertype: u16,
}

/// Reads the header; group destinations and impossible sources are the kernel's.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Ethernet, PassReason> {
    let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(PassReason::Malformed)?;
    // As two words that overlap, since byte by byte costs as much as all the rest of parsing.
    let [head @ .., _, _, _, _, _, _] = *header;
    let [_, _, _, _, _, _, tail @ ..] = *header;
    let tail = u64::from_be_bytes(tail);
    let ethernet = Ethernet {
        destination: MacAddr::from_u64(u64::from_be_bytes(head) >> 16),
        source: MacAddr::from_u64(tail >> 16),
        ethertype: tail as u16,
    };
    if ethernet.destination.is_group() {
        return Err(PassReason::Group);
    }
    if !ethernet.source.is_station() {
        return Err(PassReason::Malformed);
    }
    Ok(ethernet)
}
