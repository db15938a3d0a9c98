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
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Ethernet, PassReason> {
    let Some(&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(PassReason::Malformed);
    };
    let ethernet = Ethernet {
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
        ethertype: u16::from_be_bytes([t0, t1]),
    };
    if ethernet.destination.is_group() {
        return Err(PassReason::Group);
    }
    if !ethernet.source.is_station() {
        return Err(PassReason::Malformed);
    }
    Ok(ethernet)
}
