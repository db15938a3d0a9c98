//! What the kernel's answers say, as far as it is needed. Attributes that nobody here looks at are skipped unread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator, parse_string, parse_u8, parse_u32};
use nix::libc;

use super::Mac;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// `bridge`, `veth`, …; empty for devices.
    pub kind: String,
    /// The bridge that it is a member of.
    pub bridge: Option<u32>,
    /// For a veth: the index of its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// Its alias.
    pub alias: String,
    /// Whether it was brought up.
    pub is_up: bool,
    /// Whether it can send now and, if it is a bridge's member, the bridge has switched it on.
    pub is_ready: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRoute {
    /// Where to.
    pub destination: IpNet,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// Through which interface.
    pub interface: u32,
}

/// Members of `IFLA_LINKINFO`, and of a bridge's member's data in it (`linux/if_link.h`).
const INFO_KIND: u16 = 1;
const INFO_SLAVE_DATA: u16 = 5;
const BRPORT_STATE: u16 = 1;
/// `BR_STATE_DISABLED` (`linux/if_bridge.h`). Without STP a member's next state is forwarding; with it, it takes the
/// bridge half a minute to get there, which is no reason to wait or to fail.
const DISABLED: u8 = 0;
/// `IF_OPER_UNKNOWN` and `IF_OPER_UP` (`linux/if.h`).
const OPER_UNKNOWN: u8 = 0;
const OPER_UP: u8 = 6;
/// An attribute's number without the bits that mark nesting and byte order.
const KIND: u16 = 0x3fff;

fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, NlaBuffer<&[u8]>)> {
    let found = NlasIterator::new(payload.get(header..).unwrap_or_default()).map_while(Result::ok);
    found.map(|nla| (nla.kind() & KIND, nla))
}

fn number(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

/// A link message.
pub fn link(payload: &[u8]) -> Option<Link> {
    const HEADER: usize = 16;
    let flags = number(payload, 8)?;
    let mut link = Link { index: number(payload, 4)?, is_up: flags & libc::IFF_UP as u32 != 0, ..Link::default() };
    let (mut oper, mut port_state) = (OPER_UNKNOWN, None);
    for (kind, nla) in attributes(payload, HEADER) {
        let value = nla.value();
        match kind {
            libc::IFLA_IFNAME => link.name = parse_string(value).unwrap_or_default(),
            libc::IFLA_IFALIAS => link.alias = parse_string(value).unwrap_or_default(),
            libc::IFLA_ADDRESS => link.mac = Mac(value.try_into().unwrap_or_default()),
            libc::IFLA_MTU => link.mtu = parse_u32(value).unwrap_or_default(),
            libc::IFLA_MASTER => link.bridge = parse_u32(value).ok(),
            libc::IFLA_LINK => link.peer = parse_u32(value).ok(),
            libc::IFLA_OPERSTATE => oper = parse_u8(value).unwrap_or_default(),
            libc::IFLA_LINKINFO => (link.kind, port_state) = kind_and_state(value),
            _ => {}
        }
    }
    let takes_part = link.bridge.is_none() || port_state.is_none_or(|state| state != DISABLED);
    link.is_ready = link.is_up && matches!(oper, OPER_UP | OPER_UNKNOWN) && takes_part;
    Some(link)
}

/// The kind of an interface and, if it is a bridge's member, its state there.
fn kind_and_state(info: &[u8]) -> (String, Option<u8>) {
    let (mut kind, mut state) = (String::new(), None);
    for (number, nla) in attributes(info, 0) {
        match number {
            INFO_KIND => kind = parse_string(nla.value()).unwrap_or_default(),
            INFO_SLAVE_DATA => {
                let found = attributes(nla.value(), 0).find(|(number, _)| *number == BRPORT_STATE);
                state = found.and_then(|(_, nla)| parse_u8(nla.value()).ok());
            }
            _ => {}
        }
    }
    (kind, state)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))).ok()
}

/// An address message: interface and address.
pub fn address(payload: &[u8]) -> Option<(u32, IpNet)> {
    const HEADER: usize = 8;
    let (mut local, mut other) = (None, None);
    for (kind, nla) in attributes(payload, HEADER) {
        match kind {
            libc::IFA_LOCAL => local = address_of(nla.value()),
            libc::IFA_ADDRESS => other = address_of(nla.value()),
            _ => {}
        }
    }
    Some((number(payload, 4)?, IpNet::new(local.or(other)?, *payload.get(1)?).ok()?))
}

/// A route message of the main table; `None` for others.
pub fn route(payload: &[u8]) -> Option<FoundRoute> {
    const HEADER: usize = 12;
    let is_v4 = i32::from(*payload.first()?) == libc::AF_INET;
    let length = *payload.get(1)?;
    let mut table = u32::from(*payload.get(4)?);
    let everywhere = if is_v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut destination, mut gateway, mut interface) = (everywhere, None, 0);
    for (kind, nla) in attributes(payload, HEADER) {
        match kind {
            libc::RTA_DST => destination = address_of(nla.value())?,
            libc::RTA_GATEWAY => gateway = address_of(nla.value()),
            libc::RTA_OIF => interface = parse_u32(nla.value()).ok()?,
            libc::RTA_TABLE => table = parse_u32(nla.value()).ok()?,
            _ => {}
        }
    }
    let destination = IpNet::new(destination, length).ok()?;
    (table == u32::from(libc::RT_TABLE_MAIN)).then_some(FoundRoute { destination, gateway, interface })
}
