//! The source guard: whether a frame from a guarded pod is from the pod that it says it is from.
//!
//! It comes before everything else and looks at the bytes themselves, because a frame that no decision is made about (ARP,
//! a broadcast, a fragment) goes to the kernel's bridge, which would deliver it. `bpf/guard.h` asks the same questions in the
//! same order, in the XDP program and in the tc program; here they are asked again by the worker, whose tables may be newer.
//!
//! What it looks at: the Ethernet source, the IP source, the sender in ARP, and in neighbour discovery the target of an
//! advertisement; router advertisements and redirects are not a pod's to send. Where the sender cannot be read, the frame is
//! dropped: behind a VLAN tag (a receiver takes off priority tags, one or many), and behind IPv6 extension headers if the hop
//! limit is the 255 without which nobody accepts neighbour discovery (RFC 4861, 7.1). A fragment says itself what the whole is;
//! Linux 6.18 obeys neighbour discovery in a fragment that is the whole packet, whatever RFC 6980 says.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::DropReason;
use crate::addr::{MacAddr, PortId};
use crate::table::{Guard, Tables};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
/// IPv6 extension headers behind which there may be another header: hop-by-hop, routing, fragment, AH, destination options,
/// mobility, HIP, shim6.
const EXTENSIONS: [u8; 8] = [0, 43, FRAGMENT, 51, 60, 135, 139, 140];
/// The hop limit of neighbour discovery.
const LINK_HOPS: u8 = 255;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Judges a frame that came in through `ingress` and whose first contiguous piece is `bytes`; 78 bytes, or the whole frame,
/// are always enough.
///
/// # Errors
/// Why it must be dropped.
#[inline]
pub fn guard(bytes: &[u8], ingress: PortId, tables: &Tables) -> Result<(), DropReason> {
    match tables.guards.get(ingress) {
        None => Ok(()),
        Some(guard) => judge(bytes, guard, tables),
    }
}

fn judge(bytes: &[u8], guard: &Guard, tables: &Tables) -> Result<(), DropReason> {
    let ethertype = u16::from_be_bytes(field(bytes, 12)?);
    if !guard.has_mac(MacAddr::new(field(bytes, 6)?)) {
        return Err(DropReason::ForeignMac);
    }
    match ethertype {
        IPV4 => judge_ipv4(bytes, guard, tables),
        IPV6 => judge_ipv6(bytes, guard, tables),
        ARP => judge_arp(bytes, guard, tables),
        VLAN | QINQ => Err(DropReason::HiddenSource),
        _ => Ok(()),
    }
}

/// So many bytes from `offset` on, if the frame has them.
#[inline]
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], DropReason> {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().ok_or(DropReason::HiddenSource)
}

#[inline]
fn is_own4(address: Ipv4Addr, guard: &Guard, tables: &Tables) -> bool {
    guard.has4(address) || !(guard.strict || tables.cluster.contains4(address))
}

#[inline]
fn is_own6(address: Ipv6Addr, guard: &Guard, tables: &Tables) -> bool {
    if guard.has6(address) {
        return true;
    }
    if address.is_unicast_link_local() {
        return !guard.link_local;
    }
    !(guard.strict || tables.cluster.contains6(address))
}

#[inline]
fn judge_ipv4(bytes: &[u8], guard: &Guard, tables: &Tables) -> Result<(), DropReason> {
    let [.., a, b, c, d, _, _, _, _] = field::<20>(bytes, 14)?;
    if is_own4(Ipv4Addr::new(a, b, c, d), guard, tables) { Ok(()) } else { Err(DropReason::ForeignAddress) }
}

fn judge_ipv6(bytes: &[u8], guard: &Guard, tables: &Tables) -> Result<(), DropReason> {
    let header = field::<40>(bytes, 14)?;
    if !is_own6(Ipv6Addr::from(field::<16>(bytes, 22)?), guard, tables) {
        return Err(DropReason::ForeignAddress);
    }
    let (next_header, hop_limit) = (header[6], header[7]);
    match (next_header, bytes.get(54)) {
        (ICMPV6, Some(&(ROUTER_ADVERTISEMENT | REDIRECT))) => Err(DropReason::FalseNeighbour),
        (ICMPV6, Some(&NEIGHBOUR_ADVERTISEMENT)) => {
            let target = Ipv6Addr::from(field::<16>(bytes, 62)?);
            if is_own6(target, guard, tables) { Ok(()) } else { Err(DropReason::FalseNeighbour) }
        }
        (next, first) if hop_limit == LINK_HOPS && may_hide_discovery(next, first) => Err(DropReason::HiddenSource),
        _ => Ok(()),
    }
}

/// Whether neighbour discovery may be behind the headers; `first` is the first byte behind the IPv6 header. That of a fragment
/// says what the whole is: the first fragment's counts, and it is judged too.
fn may_hide_discovery(next: u8, first: Option<&u8>) -> bool {
    match (next, first) {
        (FRAGMENT, Some(inner)) => *inner == ICMPV6 || EXTENSIONS.contains(inner),
        (next, _) => EXTENSIONS.contains(&next),
    }
}

fn judge_arp(bytes: &[u8], guard: &Guard, tables: &Tables) -> Result<(), DropReason> {
    let address = Ipv4Addr::from(field::<4>(bytes, 28)?);
    let is_own = guard.has_mac(MacAddr::new(field(bytes, 22)?)) && is_own4(address, guard, tables);
    if is_own { Ok(()) } else { Err(DropReason::FalseNeighbour) }
}
