//! Random histories: what is applied and compiled step by step must equal what is built from scratch.
//!
//! The model is the kernel: a plain list of what exists, from which both a dump and the notifications are made.

mod meaning;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use meaning::meaning;
use podlane::compile::{Compiler, Input, PortAssignment, compile};
use podlane::mirror::event::{Event, Placing};
use podlane::mirror::world::{
    Address, AddressKey, Bridge, BridgePort, Family, FdbEntry, FdbKey, FdbKind, Link, LinkKind, Neighbour,
    NeighbourKey, NudState, Oddity, PortState, Route, RouteKey, Rule, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN,
};
use podlane::mirror::{Changes, World};
use podlane_dataplane::table::PortKind;
use podlane_dataplane::{MacAddr, PortId, limits};
use proptest::prelude::*;

const BRIDGE: u32 = 2;
const UPLINK: u32 = 3;
const PODS: std::ops::Range<u32> = 4..8;

/// A change, in small numbers, so that histories meet the same keys again and again.
#[derive(Clone, Debug)]
enum Step {
    Link { ifindex: u32, up: bool, member: bool, mtu: u32, mac: u8 },
    LinkGone { ifindex: u32 },
    Port { ifindex: u32, forwarding: bool, isolated: bool },
    PortGone { ifindex: u32 },
    Filtering { on: bool },
    Address { number: u8, there: bool },
    Fdb { mac: u8, port: u32, kind: u8, vlan: bool },
    FdbGone { mac: u8, vlan: bool },
    Neighbour { ifindex: u32, host: u8, mac: u8, v6: bool },
    NeighbourGone { ifindex: u32, host: u8, v6: bool },
    Route { key: Key, shape: u8, placing: u8 },
    RouteGone { key: Key, shape: u8 },
    Rule { priority: u8, there: bool },
    Assign { ifindex: u32, there: bool },
    Cluster { configured: bool },
}

#[derive(Clone, Copy, Debug)]
struct Key {
    v6: bool,
    local: bool,
    network: u8,
    length: u8,
    priority: u8,
    tos: bool,
}

fn key() -> impl Strategy<Value = Key> {
    (any::<bool>(), prop::bool::weighted(0.2), 0u8..4, 0u8..4, 0u8..2, prop::bool::weighted(0.1)).prop_map(
        |(v6, local, network, length, priority, tos)| Key { v6, local, network, length, priority, tos: tos && !v6 },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let link = BRIDGE..PODS.end;
    let pod = PODS;
    prop_oneof![
        3 => (link.clone(), any::<bool>(), any::<bool>(), 0u8..3).prop_map(|(ifindex, up, member, mac)| Step::Link {
            ifindex, up, member, mtu: 1400 + u32::from(mac) * 50, mac
        }),
        1 => link.clone().prop_map(|ifindex| Step::LinkGone { ifindex }),
        2 => (pod.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(ifindex, forwarding, isolated)| Step::Port { ifindex, forwarding, isolated }),
        1 => pod.clone().prop_map(|ifindex| Step::PortGone { ifindex }),
        1 => prop::bool::weighted(0.2).prop_map(|on| Step::Filtering { on }),
        1 => (0u8..3, any::<bool>()).prop_map(|(number, there)| Step::Address { number, there }),
        6 => (0u8..8, link.clone(), 0u8..4, prop::bool::weighted(0.1))
            .prop_map(|(mac, port, kind, vlan)| Step::Fdb { mac, port, kind, vlan }),
        2 => (0u8..8, prop::bool::weighted(0.1)).prop_map(|(mac, vlan)| Step::FdbGone { mac, vlan }),
        6 => (BRIDGE..=UPLINK, 0u8..6, 0u8..8, any::<bool>())
            .prop_map(|(ifindex, host, mac, v6)| Step::Neighbour { ifindex, host, mac, v6 }),
        2 => (BRIDGE..=UPLINK, 0u8..6, any::<bool>())
            .prop_map(|(ifindex, host, v6)| Step::NeighbourGone { ifindex, host, v6 }),
        6 => (key(), 0u8..9, 0u8..3).prop_map(|(key, shape, placing)| Step::Route { key, shape, placing }),
        3 => (key(), 0u8..9).prop_map(|(key, shape)| Step::RouteGone { key, shape }),
        1 => (0u8..4, any::<bool>()).prop_map(|(priority, there)| Step::Rule { priority, there }),
        2 => (BRIDGE + 1..PODS.end, any::<bool>()).prop_map(|(ifindex, there)| Step::Assign { ifindex, there }),
        1 => any::<bool>().prop_map(|configured| Step::Cluster { configured }),
    ]
}

fn mac(number: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, number])
}

fn host(number: u8, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:1::{number:x}") } else { format!("10.244.1.{number}") };
    text.parse().unwrap()
}

fn link(ifindex: u32, up: bool, member: bool, mtu: u32, number: u8) -> Link {
    let kind = if ifindex == BRIDGE { LinkKind::Bridge } else { LinkKind::Veth };
    let is_pod = PODS.contains(&ifindex);
    Link {
        ifindex,
        name: format!("if{ifindex}"),
        mac: MacAddr::new([6, 0, 0, 0, ifindex as u8, number]),
        mtu,
        up,
        carrier: up,
        master: (is_pod && member).then_some(BRIDGE),
        bridge: (kind == LinkKind::Bridge).then(Bridge::default),
        bridge_port: (is_pod && member).then(|| port(up, false)),
        kind,
        ..Link::default()
    }
}

fn port(forwarding: bool, isolated: bool) -> BridgePort {
    let state = if forwarding { PortState::Forwarding } else { PortState::Disabled };
    BridgePort { state, learning: true, isolated, ..BridgePort::default() }
}

fn route(key: Key, shape: u8) -> (RouteKey, Route) {
    let length = [8, 16, 24, 32][usize::from(key.length)];
    let (text, any) = if key.v6 {
        (format!("fd00:{}:{}::1", key.network / 2, key.network), "::/0")
    } else {
        (format!("10.{}.{}.1", 244 + key.network / 2, key.network), "0.0.0.0/0")
    };
    let destination = IpNet::new(text.parse().unwrap(), length).unwrap().trunc();
    let full = RouteKey {
        table: if key.local { TABLE_LOCAL } else { TABLE_MAIN },
        destination,
        tos: u8::from(key.tos) * 16,
        priority: u32::from(key.priority),
        source: any.parse().unwrap(),
    };
    let mut route = Route {
        kind: if key.local { 2 } else { 1 },
        scope: 0,
        gateway: None,
        oif: Some(UPLINK),
        preferred_source: None,
        mtu: None,
        oddity: None,
        other_links: Vec::new(),
        fingerprint: u64::from(shape),
    };
    match shape {
        0 | 1 => route.gateway = Some(host(shape, key.v6)),
        2 => route.oif = Some(BRIDGE),
        3 => route.mtu = Some(1300),
        4 => (route.kind, route.oif) = (6, None),
        5 => route.oddity = Some(Oddity::Multipath),
        6 => route.oif = Some(5),
        7 => (route.oif, route.gateway) = (Some(BRIDGE), Some(host(2, key.v6))),
        _ => {}
    }
    (full, route)
}

/// What the kernel has, and the input that the daemon would give.
#[derive(Clone, Debug, Default)]
struct Model {
    world: World,
    input: Input,
}

impl Model {
    fn new() -> Self {
        let mut model = Model::default();
        model.input.bridge = BRIDGE;
        model.input.cluster = Some(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()]);
        for ifindex in BRIDGE..PODS.end {
            model.world.links.insert(ifindex, link(ifindex, true, true, 1500, 0));
            model.assign(ifindex);
        }
        for family in [Family::V4, Family::V6] {
            for (priority, table) in [(0, TABLE_LOCAL), (32766, TABLE_MAIN)] {
                model.world.rules.push(Rule { family, priority, table, plain: true, fingerprint: 0 });
            }
        }
        model.world.rules.sort();
        model
    }

    fn assign(&mut self, ifindex: u32) {
        let kind = match ifindex {
            BRIDGE => return,
            UPLINK => PortKind::Uplink,
            _ => PortKind::Pod,
        };
        let id = PortId((ifindex - UPLINK) as u16);
        self.input.ports.insert(
            ifindex,
            PortAssignment { id, kind, max_frame: limits::MAX_FRAME as u32, path: Default::default() },
        );
    }

    /// Makes the change and returns what the kernel would tell of it.
    fn take(&mut self, step: &Step) -> Vec<Event> {
        match *step {
            Step::Link { ifindex, up, member, mtu, mac } => self.set_link(link(ifindex, up, member, mtu, mac)),
            Step::LinkGone { ifindex } => self.remove_link(ifindex),
            Step::Port { ifindex, forwarding, isolated } => {
                let Some(link) = self.world.links.get_mut(&ifindex).filter(|link| link.master.is_some()) else {
                    return vec![];
                };
                link.bridge_port = Some(port(forwarding, isolated));
                vec![Event::BridgePort(ifindex, BRIDGE, port(forwarding, isolated))]
            }
            Step::PortGone { ifindex } => {
                let Some(link) = self.world.links.get_mut(&ifindex).filter(|link| link.master.is_some()) else {
                    return vec![];
                };
                (link.master, link.bridge_port) = (None, None);
                let link = link.clone();
                self.world.fdb.retain(|_, entry| entry.port != ifindex);
                vec![Event::BridgePortGone(ifindex), Event::Link(Box::new(link))]
            }
            Step::Filtering { on } => {
                let Some(mut link) = self.world.links.get(&BRIDGE).cloned() else { return vec![] };
                link.bridge = Some(Bridge { vlan_filtering: on, ..Bridge::default() });
                self.set_link(link)
            }
            Step::Address { number, there } => self.set_address(number, there),
            Step::Fdb { mac: number, port, kind, vlan } => {
                let entry = FdbEntry { port, kind: kind_of(kind), sticky: kind == 3, locked: false };
                let key = FdbKey { bridge: BRIDGE, mac: mac(number), vlan: u16::from(vlan) };
                let there = [port, BRIDGE].iter().all(|ifindex| self.world.links.contains_key(ifindex));
                if !there {
                    return vec![];
                }
                self.world.fdb.insert(key, entry);
                vec![Event::Fdb(key, entry)]
            }
            Step::FdbGone { mac: number, vlan } => {
                let key = FdbKey { bridge: BRIDGE, mac: mac(number), vlan: u16::from(vlan) };
                self.world.fdb.remove(&key);
                vec![Event::FdbGone(key)]
            }
            Step::Neighbour { ifindex, host: number, mac: station, v6 } => {
                if !self.world.links.contains_key(&ifindex) {
                    return vec![];
                }
                let key = NeighbourKey { ifindex, address: host(number, v6) };
                let neighbour = Neighbour { mac: mac(station), state: NudState(2) };
                self.world.neighbours.insert(key, neighbour);
                vec![Event::Neighbour(key, neighbour)]
            }
            Step::NeighbourGone { ifindex, host: number, v6 } => {
                let key = NeighbourKey { ifindex, address: host(number, v6) };
                self.world.neighbours.remove(&key);
                vec![Event::NeighbourGone(key)]
            }
            Step::Route { key, shape, placing } => self.add_route(key, shape, placing),
            Step::RouteGone { key, shape } => {
                let (key, route) = route(key, shape);
                let routes = self.routes(&key);
                let Some(held) = routes.get_mut(&key) else { return vec![] };
                let Ok(place) = held.binary_search(&route) else { return vec![] };
                held.remove(place);
                if held.is_empty() {
                    routes.remove(&key);
                }
                vec![Event::RouteGone(key, Box::new(route))]
            }
            Step::Rule { priority, there } => {
                let priority = u32::from(priority) + 32764;
                let table = if priority == 32767 { TABLE_DEFAULT } else { TABLE_MAIN };
                let rule = Rule { family: Family::V4, priority, table, plain: true, fingerprint: 1 };
                self.world.rules.retain(|held| *held != rule);
                if there {
                    self.world.rules.push(rule.clone());
                    self.world.rules.sort();
                }
                vec![if there { Event::Rule(rule) } else { Event::RuleGone(rule) }]
            }
            Step::Assign { ifindex, there } => {
                if there {
                    self.assign(ifindex);
                } else {
                    self.input.ports.remove(&ifindex);
                }
                vec![]
            }
            Step::Cluster { configured } => {
                self.input.cluster = configured.then(|| vec!["10.0.0.0/8".parse().unwrap()]);
                vec![]
            }
        }
    }

    fn routes(&mut self, key: &RouteKey) -> &mut BTreeMap<RouteKey, Vec<Route>> {
        if key.destination.addr().is_ipv4() { &mut self.world.routes4 } else { &mut self.world.routes6 }
    }

    /// Silent in IPv4. Local routes stay while an interface is only down.
    fn flush_routes(&mut self, ifindex: u32, gone: bool) {
        self.world.routes4.retain(|_, routes| {
            routes.retain(|route| route.oif != Some(ifindex) || route.kind != 1 && !gone);
            !routes.is_empty()
        });
    }

    fn set_link(&mut self, link: Link) -> Vec<Event> {
        let old = self.world.links.insert(link.ifindex, link.clone());
        if old.is_some_and(|old| old.up && !link.up) {
            self.flush_routes(link.ifindex, false);
        }
        vec![Event::Link(Box::new(link))]
    }

    fn remove_link(&mut self, ifindex: u32) -> Vec<Event> {
        if self.world.links.remove(&ifindex).is_none() {
            return vec![];
        }
        self.flush_routes(ifindex, true);
        self.world.addresses.retain(|key, _| key.ifindex != ifindex);
        self.world.neighbours.retain(|key, _| key.ifindex != ifindex);
        self.world.fdb.retain(|key, entry| key.bridge != ifindex && entry.port != ifindex);
        let mut events = Vec::new();
        let gone: Vec<_> = self.world.routes6.iter().map(|(key, routes)| (*key, routes.clone())).collect();
        for (key, routes) in gone {
            for route in routes.into_iter().filter(|route| route.oif == Some(ifindex)) {
                self.world.routes6.get_mut(&key).unwrap().retain(|held| *held != route);
                events.push(Event::RouteGone(key, Box::new(route)));
            }
        }
        self.world.routes6.retain(|_, routes| !routes.is_empty());
        if ifindex == BRIDGE {
            let members = self.world.links.values_mut().filter(|link| link.master == Some(BRIDGE));
            for link in members {
                (link.master, link.bridge_port) = (None, None);
                events.push(Event::BridgePortGone(link.ifindex));
                events.push(Event::Link(Box::new(link.clone())));
            }
        }
        events.push(Event::LinkGone(ifindex));
        events
    }

    fn set_address(&mut self, number: u8, there: bool) -> Vec<Event> {
        let network: IpNet = format!("10.244.{number}.0/24").parse().unwrap();
        let key = AddressKey { ifindex: BRIDGE, local: network.hosts().next().unwrap(), network };
        let address = Address { scope: 0 };
        match (there && self.world.links.contains_key(&BRIDGE), self.world.addresses.contains_key(&key)) {
            (true, _) => {
                self.world.addresses.insert(key, address);
                vec![Event::Address(key, address)]
            }
            (false, true) => {
                self.world.addresses.remove(&key);
                vec![Event::AddressGone(key)]
            }
            (false, false) => vec![],
        }
    }

    fn add_route(&mut self, key: Key, shape: u8, placing: u8) -> Vec<Event> {
        let (key, route) = route(key, shape);
        if route.oif.is_some_and(|oif| self.world.links.get(&oif).is_none_or(|link| !link.up)) {
            return vec![];
        }
        let held = self.routes(&key).entry(key).or_default();
        let exists = held.contains(&route);
        let placing = match (placing, held.len()) {
            _ if exists => return vec![],
            (0, 1..) => {
                held.remove(0);
                Placing::Replace
            }
            (1, _) => Placing::Append,
            _ => Placing::Prepend,
        };
        held.push(route.clone());
        held.sort();
        vec![Event::Route(key, Box::new(route), placing)]
    }
}

fn kind_of(number: u8) -> FdbKind {
    [FdbKind::Dynamic, FdbKind::Static, FdbKind::Local, FdbKind::ExternLearned][usize::from(number % 4)]
}

/// Brings the stale parts up to date from the model, as a dump does.
fn redump(world: &mut World, model: &World, stale: Changes) {
    if stale.intersects(Changes::LINKS) {
        world.links = model.links.clone();
    }
    if stale.intersects(Changes::ROUTES4) {
        world.routes4 = model.routes4.clone();
    }
    if stale.intersects(Changes::ROUTES6) {
        world.routes6 = model.routes6.clone();
    }
    if stale.intersects(Changes::RULES) {
        world.rules = model.rules.clone();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_equals_from_scratch(steps in prop::collection::vec((step(), any::<bool>()), 1..60)) {
        let mut model = Model::new();
        let mut world = model.world.clone();
        let mut compiler = Compiler::new();
        let mut pending = Changes::ALL;
        let mut activity: HashMap<MacAddr, u32> = HashMap::new();
        let mut last = compiler.compile(&world, &model.input, pending);
        for (step, compile_now) in steps {
            for event in model.take(&step) {
                let applied = world.apply(event);
                pending |= applied.changed | applied.stale;
                redump(&mut world, &model.world, applied.stale);
            }
            prop_assert_eq!(&world, &model.world, "after {:?}", step);
            if !compile_now {
                continue;
            }
            let before = meaning(&last);
            let compiled = compiler.compile(&world, &model.input, pending);
            pending = Changes::NONE;
            let (own, scratch) = (meaning(&compiled), meaning(&compile(&world, &model.input)));
            prop_assert_eq!(&own, &scratch, "after {:?}", step);
            if !compiled.changed {
                prop_assert_eq!(
                    before.rsplit_once('\n').unwrap().0, own.rsplit_once('\n').unwrap().0,
                    "unchanged tables differ"
                );
            }
            let now: HashMap<_, _> = compiled.tables.fdb.iter().map(|(mac, entry)| (mac, entry.activity)).collect();
            for (mac, index) in &now {
                prop_assert!((limits::MAX_NEIGHBOURS..limits::MAX_NEIGHBOURS + limits::MAX_FDB).contains(&(*index as usize)));
                prop_assert!(activity.get(mac).is_none_or(|before| before == index), "the index of {} moved", mac);
            }
            let distinct: BTreeSet<_> = now.values().collect();
            prop_assert_eq!(distinct.len(), now.len());
            activity = now;
            last = compiled;
        }
    }

    /// Notifications that arrive during a dump tell of changes that the dump has seen already: applying them all again must
    /// end in the same picture, or say what to dump again.
    #[test]
    fn notifications_may_be_older_than_the_dump(steps in prop::collection::vec(step(), 1..40), from in 0usize..40) {
        let mut model = Model::new();
        let mut told = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let events = model.take(step);
            if number >= from {
                told.extend(events);
            }
        }
        let mut world = model.world.clone();
        let mut stale = Changes::NONE;
        for event in told {
            stale |= world.apply(event).stale;
        }
        redump(&mut world, &model.world, stale);
        prop_assert_eq!(&world, &model.world);
    }
}
