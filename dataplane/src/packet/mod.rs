//! Checked-once packet views.
//!
//! [`parse`] looks at the first contiguous piece of a frame once and either refuses it with the reason why it is the
//! kernel's, or returns [`Headers`]: everything that a decision needs, by value, so that nothing after it can read out of
//! bounds. The order of the checks is the BPF program's (`bpf/parse.h`).

pub mod checksum;
mod ethernet;
mod ipv4;
mod ipv6;
pub mod l4;
pub mod rewrite;
mod super_frame;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::MacAddr;
use crate::forward::PassReason;

pub use super_frame::{Segments, parse_super_frame};

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_BYTES: usize = ethernet::HEADER_BYTES;

/// What a decision needs to know of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Ethernet destination.
    pub destination_mac: MacAddr,
    /// Ethernet source; a station address.
    pub source_mac: MacAddr,
    /// Both IP addresses.
    pub network: Network,
    /// TCP (6), UDP (17), ICMP (1) or ICMPv6 (58).
    pub protocol: u8,
    /// Bytes of the IP packet, IP header included, as its header says.
    pub l3_bytes: u32,
    /// Bytes of the whole frame, Ethernet header and padding included, all pieces together.
    pub frame_bytes: u32,
    /// The same, of the largest frame that it becomes on a wire: less for a super-frame, which is cut on its way out.
    pub wire_bytes: u32,
    /// Where the L4 header starts in the frame.
    pub l4_offset: u16,
    /// IPv4: the header checksum is right. IPv6 has none: true.
    pub header_checksum_ok: bool,
    /// A UDP datagram that may be a tunnel with an unfinished checksum inside: it has no checksum of its own, or a
    /// well-known tunnel port. Only matters where the sender offloads checksums ([`crate::table::Port::partial_checksums`]).
    pub may_hide_checksum: bool,
}

/// The addresses of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// IPv4.
    V4 {
        /// Source address.
        source: Ipv4Addr,
        /// Destination address.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Source address.
        source: Ipv6Addr,
        /// Destination address.
        destination: Ipv6Addr,
    },
}

/// Reads the headers of a frame whose first contiguous piece is `bytes` and whose pieces together have `frame_bytes`.
///
/// The Ethernet, IP and fixed TCP, UDP or ICMP headers must lie in the first piece, for which 74 bytes are always enough;
/// a frame that is cut into smaller pieces than that is refused as malformed.
#[inline]
pub fn parse(bytes: &[u8], frame_bytes: u32) -> Result<Headers, PassReason> {
    parse_either(bytes, frame_bytes, false)
}

/// `is_super`: an IP length of 0 stands for "beyond 65,535".
///
/// Inlined by force, with all that it calls, so that the headers stay in registers on their way to the decision.
#[inline(always)]
fn parse_either(bytes: &[u8], frame_bytes: u32, is_super: bool) -> Result<Headers, PassReason> {
    let ethernet = ethernet::parse(bytes)?;
    match ethernet.ethertype {
        ethernet::IPV4 => ipv4::parse(bytes, frame_bytes, is_super, ethernet),
        ethernet::IPV6 => ipv6::parse(bytes, frame_bytes, is_super, ethernet),
        ethernet::VLAN | ethernet::QINQ => Err(PassReason::Vlan),
        _ => Err(PassReason::NotIp),
    }
}
