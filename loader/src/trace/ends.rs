//! Who sends and who receives: from the words of a question to addresses, a port and MAC addresses.

use std::net::IpAddr;

use podlane_dataplane::table::{LinkId, NextHopAction, PortKind, Tables};
use podlane_dataplane::{MacAddr, PortId};

use super::{Names, Question, TraceError};

/// Both ends of a packet, and how it begins its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Sender.
    pub from: IpAddr,
    /// Receiver.
    pub to: IpAddr,
    /// The port through which it reaches this node.
    pub ingress: PortId,
    /// Its source MAC address there.
    pub source_mac: MacAddr,
    /// To whom it is addressed there.
    pub first_hop: FirstHop,
    /// Whether it comes from another node.
    pub is_remote: bool,
}

/// To whom the sender addresses its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstHop {
    /// To the receiver itself.
    Neighbour(MacAddr),
    /// To the node, to be routed.
    Node(MacAddr),
    /// The receiver is on the sender's subnet, and nobody there is known to have that address.
    Unanswered,
}

impl FirstHop {
    /// The frame's destination.
    pub fn mac(self) -> MacAddr {
        match self {
            FirstHop::Neighbour(mac) | FirstHop::Node(mac) => mac,
            FirstHop::Unanswered => MacAddr::BROADCAST,
        }
    }
}

/// Finds both ends.
pub fn find(question: &Question, tables: &Tables, names: &Names) -> Result<Ends, TraceError> {
    let ipv6 = is_ipv6(question);
    let resolve = |word: &str| address(word).map_or_else(|| behind(word, ipv6, tables, names), Ok);
    let (from, to) = (resolve(&question.from)?, resolve(&question.to)?);
    if from.is_ipv4() != to.is_ipv4() {
        return Err(TraceError::Families(from, to));
    }
    if from == to {
        return Err(TraceError::Itself(from));
    }
    let (ingress, source_mac, is_remote) = sender(from, tables)?;
    let router = tables.ports.get(ingress).map_or(MacAddr::ZERO, |port| port.router_mac);
    let first_hop = match next_hop(tables, to) {
        Some(NextHopAction::OnLink(LinkId::BRIDGE)) if !is_remote => {
            host(tables, LinkId::BRIDGE, to).map_or(FirstHop::Unanswered, |(_, mac)| FirstHop::Neighbour(mac))
        }
        _ => FirstHop::Node(router),
    };
    Ok(Ends { from, to, ingress, source_mac, first_hop, is_remote })
}

fn address(word: &str) -> Option<IpAddr> {
    word.parse().ok()
}

/// The family of a question: that of the address in it, if there is one.
pub fn is_ipv6(question: &Question) -> bool {
    let named = address(&question.from).or_else(|| address(&question.to));
    named.map_or(question.ipv6, |address| address.is_ipv6())
}

/// The address of the pod behind the interface of this name.
pub fn behind(name: &str, ipv6: bool, tables: &Tables, names: &Names) -> Result<IpAddr, TraceError> {
    let port = names.iter().find(|(_, known)| *known == name).map(|(port, _)| *port);
    let port = port.ok_or_else(|| TraceError::Unknown(name.to_owned()))?;
    if tables.ports.get(port).is_some_and(|port| port.kind != PortKind::Pod) {
        return Err(TraceError::Uplink(name.to_owned()));
    }
    let is_here = |adjacency: u32| tables.adjacencies.get(adjacency as usize).is_some_and(|found| found.port == port);
    let found: Option<IpAddr> = if ipv6 {
        // A link-local address is every interface's; the pod's own is the lowest of the others.
        let hosts = tables
            .hosts
            .iter6()
            .filter(|(_, address, adjacency)| is_here(*adjacency) && address.octets()[..2] != [0xfe, 0x80]);
        hosts.map(|(_, address, _)| address).min().map(IpAddr::V6)
    } else {
        let hosts = tables.hosts.iter4().filter(|(_, _, adjacency)| is_here(*adjacency));
        hosts.map(|(_, address, _)| address).min().map(IpAddr::V4)
    };
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    found.ok_or_else(|| TraceError::Nobody { name: name.to_owned(), family })
}

/// The port through which packets of `from` reach this node, their source MAC address, and whether they come from another
/// node.
fn sender(from: IpAddr, tables: &Tables) -> Result<(PortId, MacAddr, bool), TraceError> {
    if let Some((port, mac)) = host(tables, LinkId::BRIDGE, from) {
        return Ok((port, mac, false));
    }
    let adjacency = match next_hop(tables, from) {
        Some(NextHopAction::Kernel(podlane_dataplane::forward::PassReason::ForNode)) => {
            return Err(TraceError::Node(from));
        }
        Some(NextHopAction::Gateway(index)) => {
            tables.adjacencies.get(index as usize).map(|found| (found.port, found.destination))
        }
        Some(NextHopAction::OnLink(link)) => host(tables, link, from),
        _ => None,
    };
    let (port, mac) = adjacency.ok_or(TraceError::Elsewhere(from))?;
    let is_uplink = tables.ports.get(port).is_some_and(|port| port.kind == PortKind::Uplink);
    if is_uplink { Ok((port, mac, true)) } else { Err(TraceError::Elsewhere(from)) }
}

/// The port and the MAC address of a host on a link.
fn host(tables: &Tables, link: LinkId, address: IpAddr) -> Option<(PortId, MacAddr)> {
    let index = match address {
        IpAddr::V4(address) => tables.hosts.get4(link, address),
        IpAddr::V6(address) => tables.hosts.get6(link, address),
    }?;
    tables.adjacencies.get(index as usize).map(|found| (found.port, found.destination))
}

/// Whether an address is on the bridge's own subnet and nobody is known to have it.
pub fn is_unresolved(address: IpAddr, tables: &Tables) -> bool {
    next_hop(tables, address) == Some(NextHopAction::OnLink(LinkId::BRIDGE))
        && host(tables, LinkId::BRIDGE, address).is_none()
}

/// Where the route to an address leads.
pub fn next_hop(tables: &Tables, address: IpAddr) -> Option<NextHopAction> {
    let index = match address {
        IpAddr::V4(address) => tables.fib4.lookup(address.to_bits()),
        IpAddr::V6(address) => tables.fib6.lookup(address.to_bits()),
    }?;
    tables.next_hops.get(index as usize).map(|next_hop| next_hop.action)
}

/// The address, of the family of `like`, of the neighbour with this adjacency.
pub fn address_of(tables: &Tables, adjacency: u32, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => {
            tables.hosts.iter4().find(|(_, _, index)| *index == adjacency).map(|(_, found, _)| found.into())
        }
        IpAddr::V6(_) => {
            tables.hosts.iter6().find(|(_, _, index)| *index == adjacency).map(|(_, found, _)| found.into())
        }
    }
}
