//! Routing: the destination MAC address is the node's, the destination IP address is somebody else's (RFC 1812, 5.2).

use super::bridge::fits;
use super::{PassReason, Rewrite, Verdict};
use crate::addr::PortId;
use crate::packet::{Headers, Network};
use crate::table::{Adjacency, LinkId, NextHop, NextHopAction, Tables};

/// Decides a frame that is addressed to the node's own MAC address on port `ingress`.
#[inline]
pub fn route(headers: &Headers, ingress: PortId, tables: &Tables) -> Result<Verdict, PassReason> {
    let next_hop = next_hop(headers, tables)?;
    let adjacency = match next_hop.action {
        NextHopAction::Kernel(reason) => return Err(reason),
        NextHopAction::Gateway(index) => adjacency(index, tables)?,
        NextHopAction::OnLink(link) => adjacency(on_link(headers, link, tables)?, tables)?,
    };
    if !headers.header_checksum_ok {
        return Err(PassReason::Malformed);
    }
    if adjacency.port == ingress {
        return Err(PassReason::Hairpin);
    }
    let from = tables.ports.get(ingress).ok_or(PassReason::PortState)?;
    let to = tables.ports.get(adjacency.port).filter(|to| to.forwarding).ok_or(PassReason::PortState)?;
    fits(headers, from, to, next_hop.mtu)?;
    Ok(Verdict::Forward {
        port: adjacency.port,
        rewrite: Rewrite::Route { destination: adjacency.destination, source: adjacency.source },
        used: adjacency.activity,
    })
}

/// Longest-prefix match of the destination.
#[inline]
fn next_hop(headers: &Headers, tables: &Tables) -> Result<NextHop, PassReason> {
    let (off, index) = match headers.network {
        Network::V4 { destination, .. } => (tables.routing.ipv4_off, tables.fib4.lookup(destination.to_bits())),
        Network::V6 { destination, .. } => (tables.routing.ipv6_off, tables.fib6.lookup(destination.to_bits())),
    };
    if let Some(reason) = off {
        return Err(reason);
    }
    let index = index.ok_or(PassReason::NoRoute)?;
    tables.next_hops.get(index as usize).copied().ok_or(PassReason::NoRoute)
}

/// The destination is a neighbour on `link`.
#[inline]
fn on_link(headers: &Headers, link: LinkId, tables: &Tables) -> Result<u32, PassReason> {
    let found = match headers.network {
        Network::V4 { destination, .. } => tables.hosts.get4(link, destination),
        Network::V6 { destination, .. } => tables.hosts.get6(link, destination),
    };
    found.ok_or(PassReason::Unresolved)
}

#[inline]
fn adjacency(index: u32, tables: &Tables) -> Result<Adjacency, PassReason> {
    tables.adjacencies.get(index as usize).copied().ok_or(PassReason::Unresolved)
}
