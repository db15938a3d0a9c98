//! What the compiler makes of a world that is told by hand-made netlink messages, case by case, and at its limits.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{Emitable, NLM_F_CREATE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteLwEnCapType, RouteMessage, RouteMetric, RouteNextHop, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use podlane::compile::{Compiled, Input, PortAssignment, PortWish, compile, wanted_ports};
use podlane::mirror::event::{Event, read};
use podlane::mirror::world::{FdbEntry, FdbKey, FdbKind, Neighbour, NeighbourKey, NudState, Route, RouteKey};
use podlane::mirror::{Changes, NetlinkHeaderView, World};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{LinkId, NextHopAction, Path, PortKind};
use podlane_dataplane::{MacAddr, PortId, limits};

const BRIDGE: u32 = 2;
const UPLINK: u32 = 3;
const POD: u32 = 4;
const OTHER_POD: u32 = 5;

const NEWLINK: u16 = 16;
const NEWROUTE: u16 = 24;
const NEWNEIGH: u16 = 28;
const NEWRULE: u16 = 32;

fn tell(world: &mut World, message_type: u16, message: &impl Emitable) -> Event {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    let header = NetlinkHeaderView { message_type, flags: NLM_F_CREATE, sequence: 0 };
    let event = read(header, &payload, false).expect("the message concerns the world");
    world.apply(event.clone());
    event
}

fn link(ifindex: u32, name: &str, mac: u8, infos: Vec<LinkInfo>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, mac]),
    ];
    if !infos.is_empty() {
        message.attributes.push(LinkAttribute::LinkInfo(infos));
    }
    message
}

fn bridge_info(options: Vec<InfoBridge>) -> Vec<LinkInfo> {
    vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(options))]
}

fn pod(ifindex: u32, options: &[InfoBridgePort]) -> LinkMessage {
    let mut port = vec![InfoBridgePort::State(BridgePortState::Forwarding), InfoBridgePort::Learning(true)];
    port.extend(options.iter().cloned());
    let infos = vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(port)),
    ];
    let mut message = link(ifindex, &format!("veth{ifindex}"), ifindex as u8, infos);
    message.attributes.push(LinkAttribute::Controller(BRIDGE));
    message
}

fn rule(world: &mut World, family: AddressFamily, priority: u32, table: u8, more: Option<RuleAttribute>) {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(u32::from(table)),
        RuleAttribute::SuppressPrefixLen(u32::MAX),
    ];
    message.attributes.extend(more);
    tell(world, NEWRULE, &message);
}

fn node() -> World {
    let mut world = World::default();
    tell(&mut world, NEWLINK, &link(BRIDGE, "cbr0", 0xb0, bridge_info(vec![])));
    tell(&mut world, NEWLINK, &link(UPLINK, "eth0", 0xe0, vec![]));
    tell(&mut world, NEWLINK, &pod(POD, &[]));
    tell(&mut world, NEWLINK, &pod(OTHER_POD, &[]));
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        rule(&mut world, family, 0, 255, None);
        rule(&mut world, family, 32766, 254, None);
    }
    rule(&mut world, AddressFamily::Inet, 32767, 253, None);
    world
}

fn input() -> Input {
    let assignment =
        |id, kind| PortAssignment { id: PortId(id), kind, max_frame: limits::MAX_FRAME as u32, path: Path::AfXdp };
    Input {
        bridge: BRIDGE,
        ports: BTreeMap::from([
            (UPLINK, assignment(0, PortKind::Uplink)),
            (POD, assignment(1, PortKind::Pod)),
            (OTHER_POD, assignment(2, PortKind::Pod)),
        ]),
        cluster: Some(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()]),
        ..Input::default()
    }
}

fn route(destination: &str, table: u8, kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let network: ipnet::IpNet = destination.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family = if network.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = network.prefix_len();
    message.header.table = table;
    message.header.kind = kind;
    message.attributes.push(RouteAttribute::Destination(network.addr().into()));
    message.attributes.push(RouteAttribute::Table(u32::from(table)));
    message.attributes.extend(attributes);
    message
}

fn via(gateway: &str) -> Vec<RouteAttribute> {
    let gateway: IpAddr = gateway.parse().unwrap();
    vec![RouteAttribute::Oif(UPLINK), RouteAttribute::Gateway(gateway.into())]
}

fn neighbour(world: &mut World, ifindex: u32, address: &str, mac: [u8; 6], state: NeighbourState) {
    let address: IpAddr = address.parse().unwrap();
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = ifindex;
    message.header.state = state;
    message.attributes =
        vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    tell(world, NEWNEIGH, &message);
}

fn fdb(world: &mut World, port: u32, mac: [u8; 6], state: NeighbourState, vlan: Option<u16>) {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = state;
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec()), NeighbourAttribute::Controller(BRIDGE)];
    message.attributes.extend(vlan.map(NeighbourAttribute::Vlan));
    tell(world, NEWNEIGH, &message);
}

const KERNEL: fn(PassReason) -> Option<NextHopAction> = |reason| Some(NextHopAction::Kernel(reason));

fn hop(compiled: &Compiled, address: &str) -> Option<(NextHopAction, u32)> {
    let index = match address.parse().unwrap() {
        IpAddr::V4(address) => compiled.tables.fib4.lookup(Ipv4Addr::to_bits(address)),
        IpAddr::V6(address) => compiled.tables.fib6.lookup(Ipv6Addr::to_bits(address)),
    }?;
    let hop = compiled.tables.next_hops[index as usize];
    Some((hop.action, hop.mtu))
}

fn action(compiled: &Compiled, address: &str) -> Option<NextHopAction> {
    hop(compiled, address).map(|(action, _)| action)
}

const STATION: [u8; 6] = [2, 1, 1, 1, 1, 1];

#[test]
fn the_local_table_comes_first() {
    let mut world = node();
    let on_bridge = || vec![RouteAttribute::Oif(BRIDGE)];
    tell(&mut world, NEWROUTE, &route("10.1.0.0/24", 254, RouteType::Unicast, on_bridge()));
    tell(&mut world, NEWROUTE, &route("10.1.0.1/32", 255, RouteType::Local, on_bridge()));
    tell(&mut world, NEWROUTE, &route("10.1.0.255/32", 255, RouteType::Broadcast, on_bridge()));
    // A local prefix hides longer routes of the main table, not shorter ones.
    tell(&mut world, NEWROUTE, &route("10.9.0.0/16", 255, RouteType::Local, on_bridge()));
    tell(&mut world, NEWROUTE, &route("10.9.9.0/24", 254, RouteType::Unicast, via("10.1.0.9")));
    tell(&mut world, NEWROUTE, &route("10.8.0.0/15", 254, RouteType::Unicast, on_bridge()));
    let compiled = compile(&world, &input());
    assert_eq!(action(&compiled, "10.1.0.7"), Some(NextHopAction::OnLink(LinkId::BRIDGE)));
    assert_eq!(action(&compiled, "10.1.0.1"), KERNEL(PassReason::ForNode));
    assert_eq!(action(&compiled, "10.1.0.255"), KERNEL(PassReason::ForNode));
    assert_eq!(action(&compiled, "10.9.9.1"), KERNEL(PassReason::ForNode));
    assert_eq!(action(&compiled, "10.8.0.1"), Some(NextHopAction::OnLink(LinkId::BRIDGE)));
    assert_eq!(action(&compiled, "11.0.0.1"), None);
}

#[test]
fn a_default_route_does_not_lead_where_the_kernel_never_forwards() {
    let mut world = node();
    tell(&mut world, NEWROUTE, &route("0.0.0.0/0", 254, RouteType::Unicast, via("10.1.0.9")));
    tell(&mut world, NEWROUTE, &route("::/0", 254, RouteType::Unicast, via("fd00::9")));
    neighbour(&mut world, UPLINK, "10.1.0.9", STATION, NeighbourState::Stale);
    neighbour(&mut world, UPLINK, "fd00::9", STATION, NeighbourState::Reachable);
    let compiled = compile(&world, &input());
    for address in ["0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255", "::1", "::", "fe80::1", "ff02::1"] {
        assert_eq!(action(&compiled, address), KERNEL(PassReason::RouteKind), "{address}");
    }
    for address in ["10.2.0.1", "223.255.255.255", "fd00:2::1", "2001:db8::1"] {
        assert!(matches!(action(&compiled, address), Some(NextHopAction::Gateway(_))), "{address}");
    }
}

#[test]
fn only_plain_unicast_routes_are_taken() {
    let mut world = node();
    let hops = ["10.1.0.9", "10.1.0.8"].map(|gateway| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = UPLINK;
        hop.attributes = via(gateway)[1..].to_vec();
        hop
    });
    let odd = vec![
        route("10.10.0.0/24", 254, RouteType::BlackHole, vec![]),
        route("10.11.0.0/24", 254, RouteType::Unreachable, vec![]),
        route("10.12.0.0/24", 254, RouteType::Throw, vec![]),
        route("10.13.0.0/24", 254, RouteType::Unicast, vec![RouteAttribute::MultiPath(hops.to_vec())]),
        route(
            "10.14.0.0/24",
            254,
            RouteType::Unicast,
            vec![RouteAttribute::Oif(UPLINK), RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()))],
        ),
        route("10.15.0.0/24", 254, RouteType::Unicast, [via("10.1.0.9"), vec![RouteAttribute::NhId(7)]].concat()),
        route(
            "10.16.0.0/24",
            254,
            RouteType::Unicast,
            [via("10.1.0.9"), vec![RouteAttribute::EncapType(RouteLwEnCapType::Ip)]].concat(),
        ),
        route(
            "10.17.0.0/24",
            254,
            RouteType::Unicast,
            [via("10.1.0.9"), vec![RouteAttribute::Other(netlink_packet_core::DefaultNla::new(99, vec![1, 2, 3, 4]))]]
                .concat(),
        ),
    ];
    for message in &odd {
        tell(&mut world, NEWROUTE, message);
    }
    let mut by_tos = route("10.18.0.0/24", 254, RouteType::Unicast, via("10.1.0.9"));
    tell(&mut world, NEWROUTE, &by_tos);
    by_tos.header.tos = 16;
    tell(&mut world, NEWROUTE, &by_tos);
    let mut by_source = route("fd00:10::/64", 254, RouteType::Unicast, via("fd00::9"));
    by_source.header.source_prefix_length = 64;
    by_source.attributes.push(RouteAttribute::Source(IpAddr::V6("fd00:1::".parse().unwrap()).into()));
    tell(&mut world, NEWROUTE, &by_source);
    neighbour(&mut world, UPLINK, "10.1.0.9", STATION, NeighbourState::Stale);
    neighbour(&mut world, UPLINK, "fd00::9", STATION, NeighbourState::Stale);
    let compiled = compile(&world, &input());
    for third in 10..=18 {
        assert_eq!(action(&compiled, &format!("10.{third}.0.1")), KERNEL(PassReason::RouteKind), "10.{third}.0.0/24");
    }
    assert_eq!(action(&compiled, "fd00:10::1"), KERNEL(PassReason::RouteKind));
}

#[test]
fn the_lowest_metric_wins_and_its_gateway_must_be_resolved() {
    let mut world = node();
    for (metric, gateway) in [(20, "10.1.0.20"), (10, "10.1.0.10")] {
        let more = vec![RouteAttribute::Priority(metric)];
        tell(&mut world, NEWROUTE, &route("10.2.0.0/24", 254, RouteType::Unicast, [via(gateway), more].concat()));
    }
    neighbour(&mut world, UPLINK, "10.1.0.20", [2, 0, 0, 0, 1, 20], NeighbourState::Reachable);
    assert_eq!(action(&compile(&world, &input()), "10.2.0.1"), KERNEL(PassReason::Unresolved));
    for (state, valid) in [
        (NeighbourState::Incomplete, false),
        (NeighbourState::Failed, false),
        (NeighbourState::Reachable, true),
        (NeighbourState::Stale, true),
        (NeighbourState::Delay, true),
        (NeighbourState::Probe, true),
        (NeighbourState::Permanent, true),
        (NeighbourState::Noarp, true),
        (NeighbourState::None, false),
    ] {
        neighbour(&mut world, UPLINK, "10.1.0.10", [2, 0, 0, 0, 1, 10], state);
        let compiled = compile(&world, &input());
        match action(&compiled, "10.2.0.1") {
            Some(NextHopAction::Gateway(index)) => {
                assert!(valid, "{state:?}");
                let adjacency = compiled.tables.adjacencies[index as usize];
                assert_eq!(adjacency.port, PortId(0));
                assert_eq!(adjacency.destination, MacAddr::new([2, 0, 0, 0, 1, 10]));
                assert_eq!(adjacency.source, MacAddr::new([2, 0, 0, 0, 0, 0xe0]));
            }
            other => assert!(!valid && other == KERNEL(PassReason::Unresolved), "{state:?} {other:?}"),
        }
    }
}

#[test]
fn a_pod_can_be_the_gateway_and_its_entry_must_lead_to_a_served_port() {
    let mut world = node();
    let attributes =
        vec![RouteAttribute::Oif(BRIDGE), RouteAttribute::Gateway(IpAddr::V4("10.1.0.7".parse().unwrap()).into())];
    tell(&mut world, NEWROUTE, &route("10.5.0.0/16", 254, RouteType::Unicast, attributes));
    neighbour(&mut world, BRIDGE, "10.1.0.7", STATION, NeighbourState::Reachable);
    assert_eq!(action(&compile(&world, &input()), "10.5.0.1"), KERNEL(PassReason::Unresolved));
    fdb(&mut world, OTHER_POD, STATION, NeighbourState::Reachable, None);
    let compiled = compile(&world, &input());
    let Some(NextHopAction::Gateway(index)) = action(&compiled, "10.5.0.1") else { panic!() };
    assert_eq!(compiled.tables.adjacencies[index as usize].port, PortId(2));
    assert_eq!(compiled.tables.adjacencies[index as usize].source, MacAddr::new([2, 0, 0, 0, 0, 0xb0]));
    let mut unserved = input();
    unserved.ports.remove(&OTHER_POD);
    let compiled = compile(&world, &unserved);
    assert_eq!(action(&compiled, "10.5.0.1"), KERNEL(PassReason::Unresolved));
    assert!(compiled.tables.fdb.is_empty());
}

#[test]
fn routes_through_other_interfaces_are_the_kernel_s() {
    let mut world = node();
    tell(&mut world, NEWLINK, &link(9, "wg0", 9, vec![]));
    tell(&mut world, NEWROUTE, &route("10.6.0.0/16", 254, RouteType::Unicast, vec![RouteAttribute::Oif(9)]));
    tell(&mut world, NEWROUTE, &route("10.7.0.0/16", 254, RouteType::Unicast, vec![RouteAttribute::Oif(UPLINK)]));
    let compiled = compile(&world, &input());
    assert_eq!(action(&compiled, "10.6.0.1"), KERNEL(PassReason::PortState));
    assert_eq!(action(&compiled, "10.7.0.1"), Some(NextHopAction::OnLink(LinkId::uplink(PortId(0)))));
    let mut down = link(UPLINK, "eth0", 0xe0, vec![]);
    down.header.flags = LinkFlags::Up;
    tell(&mut world, NEWLINK, &down);
    let compiled = compile(&world, &input());
    assert_eq!(action(&compiled, "10.7.0.1"), KERNEL(PassReason::PortState));
    assert!(!compiled.tables.ports.get(PortId(0)).unwrap().forwarding);
}

#[test]
fn the_smallest_mtu_on_the_way_counts() {
    let mut world = node();
    let mut bridge = link(BRIDGE, "cbr0", 0xb0, bridge_info(vec![]));
    bridge.attributes[1] = LinkAttribute::Mtu(1450);
    tell(&mut world, NEWLINK, &bridge);
    let metric = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
    for (text, oif, mtu) in [
        ("10.1.0.0/24", BRIDGE, 9000),
        ("10.2.0.0/24", BRIDGE, 1400),
        ("10.3.0.0/24", UPLINK, 1300),
        ("fd00:1::/64", BRIDGE, 9000),
    ] {
        let attributes = vec![RouteAttribute::Oif(oif), metric(mtu)];
        tell(&mut world, NEWROUTE, &route(text, 254, RouteType::Unicast, attributes));
    }
    let mut input = input();
    input.switches.ipv6_mtu.insert("cbr0".into(), 1280);
    let compiled = compile(&world, &input);
    let mtu = |address| hop(&compiled, address).unwrap().1;
    assert_eq!([mtu("10.1.0.1"), mtu("10.2.0.1"), mtu("10.3.0.1"), mtu("fd00:1::1")], [1450, 1400, 1300, 1280]);
    assert_eq!(compiled.tables.ports.get(PortId(1)).unwrap().mtu, 1500, "bridging looks at the port's own MTU");
}

#[test]
fn bridge_features_leave_traffic_to_the_bridge() {
    let mut world = node();
    fdb(&mut world, POD, STATION, NeighbourState::Reachable, None);
    fdb(&mut world, POD, [2, 1, 1, 1, 1, 2], NeighbourState::Noarp, None);
    fdb(&mut world, POD, [2, 1, 1, 1, 1, 3], NeighbourState::Permanent, None);
    fdb(&mut world, POD, [2, 1, 1, 1, 1, 4], NeighbourState::Reachable, Some(7));
    fdb(&mut world, BRIDGE, [2, 1, 1, 1, 1, 5], NeighbourState::Permanent, None);
    let compiled = compile(&world, &input());
    let mut found: Vec<_> = compiled.tables.fdb.iter().map(|(mac, entry)| (mac.octets()[5], entry.is_static)).collect();
    found.sort();
    assert_eq!(found, [(1, false), (2, true)]);
    assert_eq!(compiled.tables.routing, Default::default());

    tell(&mut world, NEWLINK, &pod(POD, &[InfoBridgePort::Locked(true), InfoBridgePort::Isolated(true)]));
    let compiled = compile(&world, &input());
    let port = compiled.tables.ports.get(PortId(1)).unwrap();
    assert!(!port.forwarding && port.isolated);
    assert!(compiled.tables.fdb.is_empty());
    assert!(compiled.notes[0].contains("veth4 is locked"), "{:?}", compiled.notes);

    tell(&mut world, NEWLINK, &link(BRIDGE, "cbr0", 0xb0, bridge_info(vec![InfoBridge::VlanFiltering(true)])));
    let routing = compile(&world, &input()).tables.routing;
    let off = Some(PassReason::BridgeFeature);
    assert_eq!((routing.bridge_off, routing.ipv4_off, routing.ipv6_off), (off, off, off));
}

#[test]
fn a_port_forwards_only_in_the_right_state() {
    for (options, forwards) in [
        (vec![], true),
        (vec![InfoBridgePort::State(BridgePortState::Learning)], false),
        (vec![InfoBridgePort::State(BridgePortState::Blocking)], false),
        (vec![InfoBridgePort::State(BridgePortState::Disabled)], false),
    ] {
        let mut world = node();
        tell(&mut world, NEWLINK, &pod(POD, &options));
        let compiled = compile(&world, &input());
        let port = compiled.tables.ports.get(PortId(1)).unwrap();
        assert_eq!(port.forwarding, forwards, "{options:?}");
        assert!(port.learning && port.partial_checksums);
        assert_eq!(port.router_mac, MacAddr::new([2, 0, 0, 0, 0, 0xb0]));
    }
    let compiled = compile(&node(), &input());
    let uplink = compiled.tables.ports.get(PortId(0)).unwrap();
    assert!(uplink.forwarding && !uplink.partial_checksums && !uplink.learning);
    assert_eq!(uplink.router_mac, MacAddr::new([2, 0, 0, 0, 0, 0xe0]));
}

#[test]
fn rules_and_switches_stop_routing_of_their_family() {
    let mut world = node();
    rule(&mut world, AddressFamily::Inet, 100, 254, Some(RuleAttribute::Iifname("cbr0".into())));
    let mut input = input();
    input.switches.ipv6_off.push("net.ipv6.conf.all.forwarding".into());
    let compiled = compile(&world, &input);
    assert_eq!(compiled.tables.routing.ipv4_off, Some(PassReason::PolicyRules));
    assert_eq!(compiled.tables.routing.ipv6_off, Some(PassReason::ForwardingOff));
    assert_eq!(compiled.tables.routing.bridge_off, None);
    assert_eq!(compiled.notes.len(), 2, "{:?}", compiled.notes);
    // The three defaults must be there, not only nothing else.
    let compiled = compile(&World { rules: Vec::new(), ..node() }, &input);
    assert_eq!(compiled.tables.routing.ipv4_off, Some(PassReason::PolicyRules));
}

#[test]
fn what_cannot_be_read_is_doubted() {
    let header = NetlinkHeaderView { message_type: NEWROUTE, flags: 0, sequence: 0 };
    for length in 0..60 {
        for fill in [0, 1, 2, 10, 255] {
            for message_type in [NEWLINK, 20, NEWROUTE, NEWNEIGH, NEWRULE, 17, 21, 25, 29, 33] {
                // Any bytes may come; none may panic.
                let mut payload = vec![fill; length];
                if let Some(first) = payload.first_mut() {
                    *first = 2;
                }
                let event = read(NetlinkHeaderView { message_type, ..header }, &payload, false);
                if let Some(event) = event {
                    World::default().apply(event);
                }
            }
        }
    }
    let mut world = node();
    let applied = world.apply(read(header, &[2, 24, 0], false).unwrap());
    assert_eq!(applied.stale, Changes::ROUTES4 | Changes::ROUTES6);
    let routing = compile(&world, &input()).tables.routing;
    assert_eq!(routing.ipv4_off, Some(PassReason::RouteKind));
    assert_eq!(routing.bridge_off, None);
}

#[test]
fn without_cluster_cidrs_the_bridge_s_networks_are_taken() {
    let mut world = node();
    for (text, length) in [("10.1.0.1", 24u8), ("fd00:1::1", 64), ("fe80::1", 64), ("169.254.3.4", 16)] {
        let local: IpAddr = text.parse().unwrap();
        let network = ipnet::IpNet::new(local, length).unwrap().trunc();
        let key = podlane::mirror::world::AddressKey { ifindex: BRIDGE, local, network };
        world.addresses.insert(key, podlane::mirror::world::Address { scope: 0 });
    }
    let mut input = input();
    input.cluster = None;
    let cluster = compile(&world, &input).tables.cluster;
    assert_eq!(cluster.ipv4().collect::<Vec<_>>(), [("10.1.0.0".parse().unwrap(), 24)]);
    assert_eq!(cluster.ipv6().collect::<Vec<_>>(), [("fd00:1::".parse().unwrap(), 64)]);
    input.cluster = Some((0..20).map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect());
    let compiled = compile(&world, &input);
    assert_eq!(compiled.tables.cluster.ipv4().len(), limits::MAX_CLUSTER_CIDRS);
    assert!(compiled.notes[0].starts_with("20 IPv4 cluster CIDRs"), "{:?}", compiled.notes);
}

fn station(number: u32) -> MacAddr {
    let [_, a, b, c] = number.to_be_bytes();
    MacAddr::new([2, 9, 9, a, b, c])
}

#[test]
fn a_pods_own_address_is_not_believed_to_be_behind_another_pod() {
    let at = |port, kind| {
        let mut world = node();
        let entry = FdbEntry { port, kind, sticky: false, locked: false };
        world.fdb.insert(FdbKey { bridge: BRIDGE, mac: station(7), vlan: 0 }, entry);
        let input = Input { owners: BTreeMap::from([(station(7), POD)]), ..input() };
        let compiled = compile(&world, &input);
        (compiled.tables.fdb.get(station(7)).map(|entry| entry.port), compiled.notes)
    };
    assert_eq!(at(POD, FdbKind::Dynamic).0, Some(PortId(1)));
    let (port, notes) = at(OTHER_POD, FdbKind::Dynamic);
    assert!(port.is_none() && notes[0].starts_with("1 MAC addresses of pods"), "{notes:?}");
    assert_eq!(at(OTHER_POD, FdbKind::Static).0, Some(PortId(2)), "who configures it decides");
}

#[test]
fn limits_leave_the_rest_to_the_kernel() {
    // One port's learned addresses, of which those that came first stay.
    let mut world = node();
    let mut compiler = podlane::compile::Compiler::new();
    let add = |world: &mut World, numbers: std::ops::Range<u32>, kind| {
        for number in numbers {
            let entry = FdbEntry { port: POD, kind, sticky: false, locked: false };
            world.fdb.insert(FdbKey { bridge: BRIDGE, mac: station(number), vlan: 0 }, entry);
        }
    };
    add(&mut world, 1000..1064, FdbKind::Dynamic);
    compiler.compile(&world, &input(), Changes::ALL);
    add(&mut world, 0..100, FdbKind::Dynamic);
    add(&mut world, 5000..5010, FdbKind::Static);
    let compiled = compiler.compile(&world, &input(), Changes::FDB);
    assert_eq!(compiled.tables.fdb.len(), limits::MAX_LEARNED_PER_PORT + 10);
    assert!((1000..1064).all(|number| compiled.tables.fdb.get(station(number)).is_some()));
    assert!(compiled.notes[0].starts_with("100 learned"), "{:?}", compiled.notes);
    add(&mut world, 10_000..10_000 + limits::MAX_FDB as u32, FdbKind::Static);
    let compiled = compiler.compile(&world, &input(), Changes::FDB);
    assert_eq!(compiled.tables.fdb.len(), limits::MAX_FDB);
    assert_eq!(compiled.notes.len(), 2, "{:?}", compiled.notes);

    // Neighbours.
    let mut world = node();
    for number in 0..limits::MAX_NEIGHBOURS as u32 + 5 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
        let neighbour = Neighbour { mac: station(number), state: NudState(2) };
        world.neighbours.insert(NeighbourKey { ifindex: UPLINK, address }, neighbour);
    }
    let compiled = compile(&world, &input());
    assert_eq!(compiled.tables.hosts.len(), limits::MAX_NEIGHBOURS);
    assert!(compiled.notes[0].starts_with("5 neighbours beyond"), "{:?}", compiled.notes);
}

#[test]
fn too_many_routes_stop_routing_and_too_many_next_hops_only_their_routes() {
    let mut world = node();
    let mut add = |count: usize, gateways: usize| {
        world.routes4.clear();
        for number in 0..count as u32 {
            let destination = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x1000_0000 + (number << 8)), 24).unwrap();
            let key = RouteKey {
                table: 254,
                destination: destination.into(),
                tos: 0,
                priority: 0,
                source: "0.0.0.0/0".parse().unwrap(),
            };
            let gateway = Ipv4Addr::from_bits(0x0a00_0000 + number % gateways as u32);
            let route = Route {
                kind: 1,
                scope: 0,
                gateway: Some(gateway.into()),
                oif: Some(UPLINK),
                preferred_source: None,
                mtu: None,
                oddity: None,
                other_links: Vec::new(),
                fingerprint: 0,
            };
            world.routes4.insert(key, vec![route]);
        }
        compile(&world, &input())
    };
    let compiled = add(limits::MAX_ROUTES + 1, 2);
    assert_eq!(compiled.tables.routing.ipv4_off, Some(PassReason::RouteKind));
    assert_eq!(compiled.tables.routing.ipv6_off, None);
    assert!(compiled.notes[0].contains("more than the limit"), "{:?}", compiled.notes);
    let compiled = add(limits::MAX_NEXT_HOPS + 10, limits::MAX_NEXT_HOPS + 10);
    assert_eq!(compiled.tables.routing.ipv4_off, None);
    assert_eq!(compiled.tables.next_hops.len(), limits::MAX_NEXT_HOPS);
    // One number is that of the target which stands for those left out.
    assert!(compiled.notes[0].starts_with("11 IPv4 routes lead to next hops"), "{:?}", compiled.notes);
}

#[test]
fn wanted_ports_are_pods_and_uplinks() {
    let mut world = node();
    let mut physical = link(9, "eth7", 9, vec![]);
    physical.attributes.push(LinkAttribute::Controller(BRIDGE));
    tell(&mut world, NEWLINK, &physical);
    let uplinks = ["eth0".to_owned(), "eth7".to_owned(), "cbr0".to_owned(), "none".to_owned()];
    let skip = ["veth5".to_owned()];
    let wish = PortWish { bridge: "cbr0", uplinks: &uplinks, skip: &skip, host_port: &[] };
    let wanted = wanted_ports(&world, &wish, |_| 99);
    let ports: Vec<_> = wanted.ports.iter().map(|port| (port.name.as_str(), port.kind, port.queues)).collect();
    assert_eq!(ports, [("eth0", PortKind::Uplink, 99), ("veth4", PortKind::Pod, 99)]);
    let why: Vec<_> = wanted.refused.iter().map(|refusal| refusal.why.as_str()).collect();
    assert!(why[0].starts_with("eth7 is a member of cbr0"), "{why:?}");
    assert!(why[1].starts_with("cbr0 is the pod bridge"), "{why:?}");
    assert_eq!(why[2], "there is no interface none");
    assert!(why[3].contains("`skip` names it"), "{why:?}");
    let wish = PortWish { bridge: "cbr0", host_port: &[4], ..PortWish::default() };
    let wanted = wanted_ports(&world, &wish, |_| 1);
    assert_eq!(wanted.ports.iter().map(|port| port.ifindex).collect::<Vec<_>>(), [5]);
    assert!(wanted.refused[0].why.contains("not a veth"), "{:?}", wanted.refused);
    let wanted = wanted_ports(&world, &PortWish { bridge: "eth0", ..PortWish::default() }, |_| 1);
    assert_eq!((wanted.bridge, wanted.bridge_problem.as_str()), (None, "eth0 is not a bridge (its kind is device)"));
}

/// What goes past a limit must not be taken; `fq` is one on a pod's interface, where nobody gets it unasked.
#[test]
fn interfaces_with_limits_stay_with_the_kernel() {
    let uplinks = ["eth0".to_owned()];
    let wish = PortWish { bridge: "cbr0", uplinks: &uplinks, ..PortWish::default() };
    for (ifindex, kind, is_refused) in
        [(UPLINK, "tbf", true), (UPLINK, "ingress", true), (UPLINK, "fq", false), (POD, "htb", true), (POD, "fq", true)]
    {
        let mut world = node();
        let all = wanted_ports(&world, &wish, |_| 1).ports.len();
        world.qdiscs.entry(ifindex).or_default().insert(kind.to_owned());
        let wanted = wanted_ports(&world, &wish, |_| 1);
        assert_eq!(wanted.ports.len(), all - usize::from(is_refused), "{kind}: {:?}", wanted.refused);
        let of_kind =
            wanted.refused.iter().filter(|refusal| refusal.why.contains(&format!("queueing discipline {kind}")));
        assert_eq!(of_kind.count(), usize::from(is_refused), "{:?}", wanted.refused);
    }
}

/// Handing over skips the interface's own queue, which cuts super-frames and finishes checksums: for pods only, and only
/// where the other end is in another namespace, since the kernel drops what would stay in the same one.
#[test]
fn frames_are_handed_over_to_pods_in_other_namespaces_only() {
    let mut world = node();
    let elsewhere = |mut message: LinkMessage| {
        message.attributes.push(LinkAttribute::LinkNetNsId(3));
        message
    };
    tell(&mut world, NEWLINK, &elsewhere(pod(POD, &[])));
    tell(&mut world, NEWLINK, &elsewhere(link(UPLINK, "eth0", 0xe0, vec![LinkInfo::Kind(InfoKind::Veth)])));
    let compiled = compile(&world, &input());
    let peers: Vec<_> = compiled.tables.ports.iter().map(|(id, port)| (id.0, port.peer)).collect();
    assert_eq!(peers, [(0, false), (1, true), (2, false)]);
}
