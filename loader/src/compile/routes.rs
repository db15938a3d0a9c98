//! Which route a destination takes: from the kernel's tables to one target per prefix.
//!
//! The kernel asks the `local` table first and the `main` table after it (rules 0 and 32766), each by longest prefix. One
//! look-up gives the same answer if every prefix of the local table is the kernel's, and every route of the main table
//! that lies inside such a prefix is left out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;
use podlane_dataplane::forward::PassReason;

use crate::mirror::world::{Family, Route, RouteKey, Routes, TABLE_LOCAL, TABLE_MAIN};

/// Where a prefix leads, in terms that do not change with neighbours and links.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// The kernel's.
    Kernel(PassReason),
    /// The destination is on the interface's own network.
    OnLink {
        /// Which decides whose MTU counts.
        family: Family,
        /// The interface.
        oif: u32,
        /// Metric `mtu`, bytes.
        mtu: Option<u32>,
    },
    /// Through a gateway.
    Via {
        /// The interface.
        oif: u32,
        /// The gateway's address.
        gateway: IpAddr,
        /// Metric `mtu`, bytes.
        mtu: Option<u32>,
    },
}

/// First and last address of a network as integers; IPv4 addresses are the low 32 bits.
fn range(network: &IpNet) -> (u128, u128) {
    let bits = |address| match address {
        IpAddr::V4(address) => u128::from(Ipv4Addr::to_bits(address)),
        IpAddr::V6(address) => Ipv6Addr::to_bits(address),
    };
    (bits(network.network()), bits(network.broadcast()))
}

/// Destinations that the kernel never forwards by a route, whatever the main table says: "this network", loopback,
/// multicast and class E (`ip_route_input_slow`, `net/ipv4/route.c`); the unspecified address, loopback, link-local and
/// multicast (RFC 4291, 2.5.6: routers do not forward link-local packets).
fn never_forwarded(family: Family) -> Vec<IpNet> {
    let v4 = |a, length| IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(a, 0, 0, 0)), length);
    let v6 = |address: Ipv6Addr, length| IpNet::new_assert(IpAddr::V6(address), length);
    match family {
        Family::V4 => vec![v4(0, 8), v4(127, 8), v4(224, 3)],
        Family::V6 => vec![
            v6(Ipv6Addr::UNSPECIFIED, 128),
            v6(Ipv6Addr::LOCALHOST, 128),
            v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
            v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
        ],
    }
}

/// One target for every prefix that needs one. No prefix comes twice.
pub fn select(family: Family, routes: &Routes) -> Vec<(IpNet, Target)> {
    let mut selected = Vec::with_capacity(routes.len());
    let mut shadows = BTreeSet::new();
    for (key, _) in routes.iter().filter(|(key, _)| key.table == TABLE_LOCAL) {
        if shadows.insert(key.destination) {
            selected.push((key.destination, Target::Kernel(PassReason::ForNode)));
        }
    }
    for network in never_forwarded(family) {
        if shadows.insert(network) {
            selected.push((network, Target::Kernel(PassReason::RouteKind)));
        }
    }
    let mut shadows = outermost(&shadows).peekable();
    let main: Vec<_> = routes.iter().filter(|(key, _)| key.table == TABLE_MAIN).collect();
    for group in main.chunk_by(|(one, _), (other, _)| one.destination == other.destination) {
        let destination = group[0].0.destination;
        let (first, last) = range(&destination);
        // Both are sorted by address, so what ends before this destination is behind us for good.
        while shadows.next_if(|shadow| shadow.1 < first).is_some() {}
        if !shadows.peek().is_some_and(|shadow| shadow.0 <= first && last <= shadow.1) {
            selected.push((destination, winner(family, group)));
        }
    }
    selected
}

/// The ranges of those networks that lie in no other one of them, sorted.
fn outermost(networks: &BTreeSet<IpNet>) -> impl Iterator<Item = (u128, u128)> {
    let mut end = None;
    // By address, then the longer range first; two networks lie inside of each other or apart.
    networks.iter().map(range).filter(move |&(_, last)| {
        let is_outside = end.is_none_or(|end| end < last);
        end = end.max(Some(last));
        is_outside
    })
}

/// The route that the kernel takes among those to one prefix, which are sorted by TOS and then metric: the lowest metric.
/// Where the choice depends on more than the destination, the kernel chooses.
fn winner(family: Family, group: &[(&RouteKey, &Vec<Route>)]) -> Target {
    let odd = Target::Kernel(PassReason::RouteKind);
    if group.iter().any(|(key, _)| key.tos != 0 || key.source.prefix_len() != 0) {
        return odd;
    }
    match group.first() {
        Some((_, alternatives)) => match alternatives.as_slice() {
            [only] => target(family, only),
            _ => odd,
        },
        None => odd,
    }
}

fn target(family: Family, route: &Route) -> Target {
    match RouteType::from(route.kind) {
        RouteType::Unicast if route.oddity.is_none() => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Target::Kernel(PassReason::ForNode);
        }
        _ => return Target::Kernel(PassReason::RouteKind),
    }
    let mtu = route.mtu.filter(|mtu| *mtu != 0);
    match (route.oif, route.gateway) {
        (Some(oif), Some(gateway)) => Target::Via { oif, gateway, mtu },
        (Some(oif), None) => Target::OnLink { family, oif, mtu },
        (None, _) => Target::Kernel(PassReason::RouteKind),
    }
}
