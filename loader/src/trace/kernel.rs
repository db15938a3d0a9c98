//! What the kernel will do with a packet that is left to it, as far as its own tables tell: the route that it takes and the
//! next hop that it waits for. These are not in the engine's tables, which only say "the kernel's".

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;
use podlane_dataplane::forward::PassReason;

use super::Step;
use crate::mirror::World;
use crate::mirror::world::{NeighbourKey, Oddity, Route};

/// The steps between the port and the kernel, for a packet of `bytes` to `to` that is addressed to the node and was left to
/// the kernel for `reason`. None where the reason says it all.
pub fn steps(world: &World, to: IpAddr, bytes: u32, reason: PassReason) -> Vec<Step> {
    let is_routing = matches!(
        reason,
        PassReason::Unresolved
            | PassReason::TooBig
            | PassReason::NoRoute
            | PassReason::RouteKind
            | PassReason::PortState
            | PassReason::Hairpin
            | PassReason::PolicyRules
    );
    if !is_routing {
        return Vec::new();
    }
    let found = world.route_to(to);
    let Some((network, route)) = found.and_then(|(network, routes)| Some((network, routes.first()?))) else {
        return vec![step("route", format!("no route of the main table leads to {to}"))];
    };
    let mut steps = vec![step("route", format!("the kernel's route: {}", describe(world, network, route)))];
    match reason {
        PassReason::Unresolved => steps.extend(neighbour(world, route, to)),
        PassReason::TooBig => steps.extend(mtu(world, route, bytes)),
        _ => {}
    }
    steps
}

fn step(at: &str, what: String) -> Step {
    Step { at: at.to_owned(), what }
}

fn name(world: &World, ifindex: u32) -> String {
    world.links.get(&ifindex).map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
}

fn describe(world: &World, network: IpNet, route: &Route) -> String {
    let mut text = network.to_string();
    match RouteType::from(route.kind) {
        RouteType::Unicast => {}
        RouteType::BlackHole => text += ", a blackhole",
        RouteType::Unreachable => text += ", unreachable",
        RouteType::Prohibit => text += ", prohibited",
        _ => text += &format!(", of type {} (linux/rtnetlink.h)", route.kind),
    }
    match route.oddity {
        Some(Oddity::Multipath) => text += ", by several next hops",
        Some(Oddity::Encapsulation) => text += ", in a tunnel",
        _ => {}
    }
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(oif) = route.oif {
        text += &format!(" on {}", name(world, oif));
    }
    if let Some(mtu) = route.mtu.filter(|mtu| *mtu != 0) {
        text += &format!(", MTU {mtu}");
    }
    text
}

/// Who must answer before the packet can go on, and what is known of that.
fn neighbour(world: &World, route: &Route, to: IpAddr) -> Option<Step> {
    let (oif, address) = (route.oif?, route.gateway.unwrap_or(to));
    let on = name(world, oif);
    // The mirror keeps only those that have answered.
    let what = match world.neighbours.get(&NeighbourKey { ifindex: oif, address }) {
        Some(found) => format!("{address} is {} on {on}, but behind no port of Podlane's", found.mac),
        None => format!("no MAC address is known for {address} on {on}: it does not answer, or nobody has asked yet"),
    };
    Some(step("neighbour", what))
}

/// Which MTU the packet is larger than.
fn mtu(world: &World, route: &Route, bytes: u32) -> Option<Step> {
    let oif = route.oif?;
    let link = world.links.get(&oif)?;
    let mtu = link.mtu.min(route.mtu.filter(|mtu| *mtu != 0).unwrap_or(u32::MAX));
    (bytes > mtu).then(|| step(&link.name, format!("{bytes} bytes are more than the MTU on the way out, {mtu}")))
}

#[cfg(test)]
mod tests {
    use podlane_dataplane::MacAddr;

    use super::*;
    use crate::mirror::world::{self, NudState};

    fn route(kind: u8, gateway: Option<&str>, mtu: Option<u32>) -> Route {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        let link = gateway.map(|_| 3);
        Route {
            kind,
            scope: 0,
            gateway,
            oif: link,
            preferred_source: None,
            mtu,
            oddity: None,
            other_links: Vec::new(),
            fingerprint: 0,
        }
    }

    fn world() -> World {
        let mut world = World::default();
        let everybody: IpNet = "0.0.0.0/0".parse().unwrap();
        for (destination, found) in [
            ("0.0.0.0/0", route(1, Some("192.0.2.254"), None)),
            ("10.244.2.0/24", route(1, Some("192.0.2.77"), Some(1400))),
            ("10.244.3.0/24", route(6, None, None)),
        ] {
            let key = world::RouteKey {
                table: world::TABLE_MAIN,
                destination: destination.parse().unwrap(),
                tos: 0,
                priority: 0,
                source: everybody,
            };
            world.routes4.insert(key, vec![found]);
        }
        let link = world::Link { ifindex: 3, name: "eth0".to_owned(), mtu: 1500, up: true, ..world::Link::default() };
        world.links.insert(3, link);
        world
    }

    fn told(world: &World, to: &str, bytes: u32, reason: PassReason) -> Vec<String> {
        let steps = steps(world, to.parse().unwrap(), bytes, reason);
        steps.into_iter().map(|step| format!("{}: {}", step.at, step.what)).collect()
    }

    #[test]
    fn a_next_hop_that_is_silent_is_named() {
        let mut world = world();
        let route = "route: the kernel's route: 10.244.2.0/24 via 192.0.2.77 on eth0, MTU 1400";
        let silent = told(&world, "10.244.2.2", 84, PassReason::Unresolved);
        let unknown =
            "neighbour: no MAC address is known for 192.0.2.77 on eth0: it does not answer, or nobody has asked yet";
        assert_eq!(silent, [route, unknown]);
        let key = NeighbourKey { ifindex: 3, address: "192.0.2.77".parse().unwrap() };
        // NUD_REACHABLE.
        let neighbour = world::Neighbour { mac: MacAddr::new([2, 0, 0, 0, 0, 7]), state: NudState(2) };
        world.neighbours.insert(key, neighbour);
        let elsewhere = told(&world, "10.244.2.2", 84, PassReason::Unresolved);
        let known = "neighbour: 192.0.2.77 is 02:00:00:00:00:07 on eth0, but behind no port of Podlane's";
        assert_eq!(elsewhere, [route, known]);
    }

    #[test]
    fn the_mtu_is_told_and_the_longest_prefix_wins() {
        let big = told(&world(), "10.244.2.2", 1500, PassReason::TooBig);
        assert_eq!(big[1], "eth0: 1500 bytes are more than the MTU on the way out, 1400");
        let big = told(&world(), "8.8.8.8", 9000, PassReason::TooBig);
        assert_eq!(
            big,
            [
                "route: the kernel's route: 0.0.0.0/0 via 192.0.2.254 on eth0",
                "eth0: 9000 bytes are more than the MTU on the way out, 1500"
            ]
        );
        let hole = told(&world(), "10.244.3.3", 84, PassReason::RouteKind);
        assert_eq!(hole, ["route: the kernel's route: 10.244.3.0/24, a blackhole"]);
        let none = told(&World::default(), "10.244.3.3", 84, PassReason::NoRoute);
        assert_eq!(none, ["route: no route of the main table leads to 10.244.3.3"]);
    }

    #[test]
    fn nothing_is_added_where_routing_has_no_part() {
        assert_eq!(told(&world(), "10.244.2.2", 84, PassReason::Ttl), [""; 0]);
    }
}
