//! From the mirrored world to the engine's tables.
//!
//! Compiling is pure: a [`World`] and an [`Input`] give [`Tables`], notes for a person, and nothing else. A [`Compiler`]
//! remembers the last result, so that a part whose sources did not change is shared with the previous snapshot, and so that
//! an FDB entry or a neighbour keeps its activity index for as long as it lives.
//!
//! The rule for every line here: the tables say what the kernel would do with a packet, or they leave it to the kernel.

mod ports;
mod routes;
mod slots;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, FibKey, HostTable, LinkId, NextHop, NextHopAction, Path, Port, PortKind,
    PortTable, Routing, Tables,
};
use podlane_dataplane::{MacAddr, PortId, limits};

pub use ports::{PortWish, Refusal, Wanted, WantedPort, host_port_mtu, wanted_ports};

use crate::kernel::Switches;
use crate::mirror::world::{
    Family, FdbKey, FdbKind, Link, LinkKind, NeighbourKey, PortState, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN,
};
use crate::mirror::{Changes, World};
use crate::netfilter::Effects;
use routes::Target;
use slots::Slots;

/// A port that has sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAssignment {
    /// Its number, below [`limits::MAX_PORTS`].
    pub id: PortId,
    /// What hangs on it.
    pub kind: PortKind,
    /// Largest frame that its sockets carry, bytes with Ethernet header.
    pub max_frame: u32,
    /// How it is served.
    pub path: Path,
}

/// What compiling needs besides the world.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Input {
    /// The pod bridge's interface index; 0 if there is none.
    pub bridge: u32,
    /// Ports that have sockets, by interface index. Others are left to the kernel.
    pub ports: BTreeMap<u32, PortAssignment>,
    /// The cluster's CIDRs; `None` for the bridge's own networks.
    pub cluster: Option<Vec<IpNet>>,
    /// The interfaces of the pods that MAC addresses are known to be of (`crate::guard`): they are not believed to be anywhere
    /// else only because somebody sent a frame there.
    pub owners: BTreeMap<MacAddr, u32>,
    /// Whether the kernel forwards, see [`crate::kernel::read_switches`].
    pub switches: Switches,
    /// What the node's netfilter rules mean.
    pub netfilter: Effects,
}

/// A compiled snapshot.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// For the engine; [`podlane_dataplane::table::Publisher`] numbers it.
    pub tables: Tables,
    /// Sentences for a person: what is left to the kernel and why, which limits were reached.
    pub notes: Vec<String>,
    /// Whether the tables differ from those of the compilation before.
    pub changed: bool,
}

/// Compiles everything from scratch.
pub fn compile(world: &World, input: &Input) -> Compiled {
    Compiler::new().compile(world, input, Changes::ALL)
}

/// Compiles again and again, sharing what did not change.
#[derive(Debug)]
pub struct Compiler {
    input: Option<Input>,
    last: Compiled,
    /// Notes of each step, kept for as long as its result is shared.
    notes: BTreeMap<&'static str, Vec<String>>,
    fdb: BTreeMap<MacAddr, (FdbEntry, u32)>,
    fdb_slots: Slots<MacAddr>,
    neighbours: BTreeMap<NeighbourKey, Adjacency>,
    neighbour_slots: Slots<NeighbourKey>,
    targets: Slots<Target>,
    /// Which of their numbers the routes of each family use.
    used_targets: [Vec<bool>; 2],
    too_many_routes: [bool; 2],
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

/// The target that every other one can be replaced by.
const LEFT_OUT: Target = Target::Kernel(PassReason::RouteKind);

impl Compiler {
    /// One that has compiled nothing yet.
    pub fn new() -> Self {
        let mut targets = Slots::new(limits::MAX_NEXT_HOPS);
        targets.get_or_insert(LEFT_OUT);
        Compiler {
            input: None,
            last: Compiled::default(),
            notes: BTreeMap::new(),
            fdb: BTreeMap::new(),
            fdb_slots: Slots::new(limits::MAX_FDB),
            neighbours: BTreeMap::new(),
            neighbour_slots: Slots::new(limits::MAX_NEIGHBOURS),
            targets,
            used_targets: [Vec::new(), Vec::new()],
            too_many_routes: [false; 2],
        }
    }

    /// Compiles `world`, of which the parts `changes` are different from those of the last call. The first call compiles
    /// everything whatever `changes` says; a different `input` is noticed.
    pub fn compile(&mut self, world: &World, input: &Input, changes: Changes) -> Compiled {
        let mut changes = changes;
        let first = self.input.is_none();
        if first {
            changes = Changes::ALL;
        }
        if self.input.as_ref() != Some(input) {
            changes |= Changes::LINKS | Changes::ADDRESSES | Changes::RULES;
            self.input = Some(input.clone());
        }
        let links = changes.intersects(Changes::LINKS);
        let routes = changes.intersects(Changes::ROUTES4 | Changes::ROUTES6);
        let stations = links || changes.intersects(Changes::FDB | Changes::NEIGHBOURS);
        let mut changed = first;
        if links {
            changed |= self.compile_ports(world, input);
        }
        if links || changes.intersects(Changes::FDB) {
            changed |= self.compile_fdb(world, input);
        }
        let mut rewritten = false;
        if stations {
            rewritten = self.compile_hosts(world, input);
        }
        if changes.intersects(Changes::ROUTES4) {
            changed |= self.compile_fib(Family::V4, world);
        }
        if changes.intersects(Changes::ROUTES6) {
            changed |= self.compile_fib(Family::V6, world);
        }
        if routes || links || rewritten {
            changed |= self.compile_next_hops(world, input);
        }
        if links || changes.intersects(Changes::ADDRESSES) {
            changed |= self.compile_cluster(world, input);
        }
        changed |= rewritten | self.compile_routing(world, input);
        self.last.notes = self.notes.values().flatten().cloned().collect();
        self.last.changed = changed;
        self.last.clone()
    }

    /// FDB entries of the last compilation: (activity index, address, interface, whether static).
    pub fn fdb_entries(&self) -> impl Iterator<Item = (u32, MacAddr, u32, bool)> {
        self.fdb.iter().map(|(mac, (entry, ifindex))| (entry.activity, *mac, *ifindex, entry.is_static))
    }

    /// Neighbours of the last compilation: (activity index, interface and address).
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, NeighbourKey)> {
        self.neighbours.iter().map(|(key, adjacency)| (adjacency.activity, *key))
    }

    fn compile_ports(&mut self, world: &World, input: &Input) -> bool {
        let mut notes = Vec::new();
        let mut ports = Vec::new();
        for (ifindex, assignment) in &input.ports {
            let Some(link) = world.links.get(ifindex) else { continue };
            ports.push((assignment.id, port(world, input, link, assignment)));
            if assignment.kind == PortKind::Pod && is_locked(link) {
                notes.push(format!(
                    "Port {} is locked (802.1X): its traffic is left to the kernel's bridge.",
                    link.name
                ));
            }
        }
        self.notes.insert("1 ports", notes);
        replace(&mut self.last.tables.ports, PortTable::new(ports), PortTable::eq)
    }

    fn compile_fdb(&mut self, world: &World, input: &Input) -> bool {
        let mut candidates: Vec<(MacAddr, PortId, u32, FdbKind, bool)> = Vec::new();
        let mut foreign = 0;
        let from = FdbKey { bridge: input.bridge, mac: MacAddr::ZERO, vlan: 0 };
        for (key, entry) in world.fdb.range(from..).take_while(|(key, _)| key.bridge == input.bridge) {
            let Some(port) = pod_port(world, input, entry.port) else { continue };
            if key.vlan == 0 && entry.kind != FdbKind::Local && !entry.locked && key.mac.is_station() {
                let is_static = entry.kind == FdbKind::Static || entry.sticky;
                let owner = input.owners.get(&key.mac);
                if !is_static && entry.kind == FdbKind::Dynamic && owner.is_some_and(|owner| *owner != entry.port) {
                    foreign += 1;
                    continue;
                }
                candidates.push((key.mac, port, entry.port, entry.kind, is_static));
            }
        }
        let present: HashSet<MacAddr> = candidates.iter().map(|candidate| candidate.0).collect();
        self.fdb_slots.retain(|mac, _| present.contains(mac));
        // A pod's own address comes first; entries that have a place keep it, so that one that comes later crowds out none.
        candidates.sort_by_key(|(mac, ..)| (!input.owners.contains_key(mac), self.fdb_slots.get(mac).is_none(), *mac));
        let mut learned: HashMap<PortId, usize> = HashMap::new();
        let mut fdb = BTreeMap::new();
        let (mut beyond_port, mut beyond_all) = (0, 0);
        for (mac, port, ifindex, kind, is_static) in candidates {
            let count = learned.entry(port).or_default();
            if kind == FdbKind::Dynamic && !is_static {
                *count += 1;
                if *count > limits::MAX_LEARNED_PER_PORT {
                    beyond_port += 1;
                    self.fdb_slots.remove(&mac);
                    continue;
                }
            }
            match self.fdb_slots.get_or_insert(mac) {
                Some(slot) => {
                    let activity = limits::MAX_NEIGHBOURS as u32 + slot;
                    fdb.insert(mac, (FdbEntry { port, is_static, activity }, ifindex));
                }
                None => beyond_all += 1,
            }
        }
        self.notes.insert("2 fdb", fdb_notes(beyond_port, beyond_all, foreign, world.crowd.left_out()));
        if fdb == self.fdb {
            return false;
        }
        self.fdb = fdb;
        let (table, _) = Fdb::new(self.fdb.iter().map(|(mac, (entry, _))| (*mac, *entry)));
        self.last.tables.fdb = Arc::new(table);
        true
    }

    /// Neighbours become adjacencies: on the bridge, those whose MAC address is behind a pod port; on uplinks, all.
    fn compile_hosts(&mut self, world: &World, input: &Input) -> bool {
        let mut candidates: Vec<(NeighbourKey, LinkId, Adjacency)> = Vec::new();
        for (key, neighbour) in &world.neighbours {
            let Some(link) = world.links.get(&key.ifindex) else { continue };
            if !neighbour.state.is_valid() || !neighbour.mac.is_station() || neighbour.mac == link.mac {
                continue;
            }
            let (link_id, port) = match link_id(input, key.ifindex) {
                Some(LinkId::BRIDGE) => match self.fdb.get(&neighbour.mac) {
                    Some((entry, _)) => (LinkId::BRIDGE, entry.port),
                    None => continue,
                },
                Some(uplink) => (uplink, PortId(uplink.0)),
                None => continue,
            };
            let adjacency = Adjacency { port, destination: neighbour.mac, source: link.mac, activity: 0 };
            candidates.push((*key, link_id, adjacency));
        }
        let present: HashSet<NeighbourKey> = candidates.iter().map(|(key, ..)| *key).collect();
        self.neighbour_slots.retain(|key, _| present.contains(key));
        candidates.sort_by_key(|(key, ..)| (self.neighbour_slots.get(key).is_none(), *key));
        let mut neighbours = BTreeMap::new();
        let mut links = BTreeMap::new();
        let mut beyond = 0;
        for (key, link_id, adjacency) in candidates {
            match self.neighbour_slots.get_or_insert(key) {
                Some(activity) => {
                    neighbours.insert(key, Adjacency { activity, ..adjacency });
                    links.insert(key, link_id);
                }
                None => beyond += 1,
            }
        }
        let note = format!(
            "{beyond} neighbours beyond the limit of {} are left to the kernel, with the traffic to them.",
            limits::MAX_NEIGHBOURS
        );
        self.notes.insert("3 neighbours", if beyond == 0 { Vec::new() } else { vec![note] });
        if neighbours == self.neighbours {
            return false;
        }
        self.neighbours = neighbours;
        let mut hosts = HostTable::default();
        for (index, key) in self.neighbours.keys().enumerate() {
            match key.address {
                IpAddr::V4(address) => hosts.insert4(links[key], address, index as u32),
                IpAddr::V6(address) => hosts.insert6(links[key], address, index as u32),
            }
        }
        self.last.tables.hosts = Arc::new(hosts);
        self.last.tables.adjacencies = Arc::new(self.neighbours.values().copied().collect());
        true
    }

    fn compile_fib(&mut self, family: Family, world: &World) -> bool {
        let selected = routes::select(family, world.routes(family));
        let own = family as usize;
        let (mut values, left_out) = self.number_targets(family, selected);
        let (step, name) = match family {
            Family::V4 => ("4 routes ipv4", "IPv4"),
            Family::V6 => ("4 routes ipv6", "IPv6"),
        };
        let mut notes = Vec::new();
        if left_out > 0 {
            notes.push(format!(
                "{left_out} {name} routes lead to next hops beyond the limit of {}: their traffic is left to the kernel.",
                limits::MAX_NEXT_HOPS
            ));
        }
        // A table without some of its routes would send packets by shorter prefixes: all or nothing.
        self.too_many_routes[own] = values.len() > limits::MAX_ROUTES;
        if self.too_many_routes[own] {
            notes.push(format!(
                "{} {name} routes are more than the limit of {}: routing of {name} is left to the kernel.",
                values.len(),
                limits::MAX_ROUTES
            ));
            values.clear();
        }
        self.notes.insert(step, notes);
        let bits4 = |network: &IpNet| match network.network() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(_) => 0,
        };
        let bits6 = |network: &IpNet| match network.network() {
            IpAddr::V4(_) => 0,
            IpAddr::V6(address) => address.to_bits(),
        };
        let tables = &mut self.last.tables;
        match family {
            Family::V4 => {
                let fib =
                    Fib::new(values.iter().map(|(network, value)| (bits4(network), network.prefix_len(), *value)));
                replace(&mut tables.fib4, fib, same_routes)
            }
            Family::V6 => {
                let fib =
                    Fib::new(values.iter().map(|(network, value)| (bits6(network), network.prefix_len(), *value)));
                replace(&mut tables.fib6, fib, same_routes)
            }
        }
    }

    /// The targets' numbers in the place of the targets, and how many routes there was none left for.
    fn number_targets(&mut self, family: Family, selected: Vec<(IpNet, Target)>) -> (Vec<(IpNet, u32)>, usize) {
        let used = &mut self.used_targets[family as usize];
        used.clear();
        used.resize(self.targets.span(), false);
        let known = selected.iter().map(|(_, target)| self.targets.get(target));
        let mut numbers: Vec<Option<u32>> = known.collect();
        numbers.iter().flatten().for_each(|number| used[*number as usize] = true);
        // Numbers become free before new ones are given out.
        let is_used = |number: u32| self.used_targets.iter().any(|used| used.get(number as usize) == Some(&true));
        self.targets.retain(|target, number| *target == LEFT_OUT || is_used(number));
        for ((_, target), number) in selected.iter().zip(&mut numbers).filter(|(_, number)| number.is_none()) {
            *number = self.targets.get_or_insert(*target);
            if let Some(number) = *number {
                let used = &mut self.used_targets[family as usize];
                used.resize(self.targets.span(), false);
                used[number as usize] = true;
            }
        }
        let left_out = numbers.iter().filter(|number| number.is_none()).count();
        let networks = selected.into_iter().map(|(network, _)| network);
        (networks.zip(numbers.into_iter().map(|number| number.unwrap_or(0))).collect(), left_out)
    }

    /// The next hops have the numbers of their targets, so that they can change while the FIB stays.
    fn compile_next_hops(&mut self, world: &World, input: &Input) -> bool {
        let adjacencies: HashMap<NeighbourKey, u32> =
            self.neighbours.keys().enumerate().map(|(index, key)| (*key, index as u32)).collect();
        let unused = NextHop { action: NextHopAction::Kernel(PassReason::NoRoute), mtu: u32::MAX };
        let mut next_hops = vec![unused; self.targets.span()];
        for (target, number) in self.targets.iter() {
            next_hops[number as usize] = next_hop(world, input, target, &adjacencies);
        }
        replace(&mut self.last.tables.next_hops, next_hops, Vec::eq)
    }

    fn compile_cluster(&mut self, world: &World, input: &Input) -> bool {
        let networks = match &input.cluster {
            Some(networks) => networks.clone(),
            None => bridge_networks(world, input.bridge),
        };
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => ipv4.push((network.network(), network.prefix_len())),
                IpNet::V6(network) => ipv6.push((network.network(), network.prefix_len())),
            }
        }
        let mut notes = Vec::new();
        for (name, count) in [("IPv4", ipv4.len()), ("IPv6", ipv6.len())] {
            if count > limits::MAX_CLUSTER_CIDRS {
                notes.push(format!(
                    "{count} {name} cluster CIDRs are more than the limit of {}: the rest is left to the kernel; merge \
                     adjacent ones.",
                    limits::MAX_CLUSTER_CIDRS
                ));
            }
        }
        ipv4.truncate(limits::MAX_CLUSTER_CIDRS);
        ipv6.truncate(limits::MAX_CLUSTER_CIDRS);
        self.notes.insert("5 cluster", notes);
        replace(&mut self.last.tables.cluster, Cluster::new(ipv4, ipv6).unwrap_or_default(), Cluster::eq)
    }

    fn compile_routing(&mut self, world: &World, input: &Input) -> bool {
        let mut notes = Vec::new();
        let mut routing = Routing::default();
        let bridge = world.links.get(&input.bridge).and_then(|link| link.bridge.as_ref());
        if bridge.is_some_and(|bridge| bridge.vlan_filtering) {
            let off = Some(PassReason::BridgeFeature);
            routing = Routing { ipv4_off: off, ipv6_off: off, bridge_off: off, ..Routing::default() };
            notes.push("The bridge filters by VLAN: all its traffic is left to the kernel.".to_owned());
        }
        if world.links.get(&input.bridge).is_some_and(|link| link.promiscuous) {
            notes.push(
                "The bridge is promiscuous: what Podlane forwards between pods is not shown to those who listen on it \
                 (tcpdump, an intrusion detector); `podlane capture` shows it."
                    .to_owned(),
            );
        }
        for (family, name, off, switches) in [
            (Family::V4, "IPv4", &mut routing.ipv4_off, &input.switches.ipv4_off),
            (Family::V6, "IPv6", &mut routing.ipv6_off, &input.switches.ipv6_off),
        ] {
            if self.too_many_routes[family as usize] {
                *off = Some(PassReason::RouteKind);
            }
            if !rules_are_plain(world, family) {
                *off = Some(PassReason::PolicyRules);
                notes.push(format!(
                    "There are {name} routing rules besides the three defaults (see ip rule): routing of {name} is left to \
                     the kernel."
                ));
            }
            if input.switches.ipsec {
                *off = Some(PassReason::PolicyRules);
            }
            if !switches.is_empty() {
                *off = Some(PassReason::ForwardingOff);
                notes.push(format!("{name} forwarding is off in the kernel: {} is 0.", switches.join(", ")));
            }
        }
        if input.switches.ipsec {
            notes.push(
                "The node has IPsec policies (see ip xfrm policy): routing is left to the kernel, which obeys them."
                    .to_owned(),
            );
        }
        obey(&input.netfilter, &mut routing);
        notes.extend(input.netfilter.notes.iter().cloned());
        doubts(world.doubtful, &mut routing, &mut notes);
        self.notes.insert("6 routing", notes);
        let changed = self.last.tables.routing != routing;
        self.last.tables.routing = routing;
        changed
    }
}

/// Leaves to the kernel what the node's netfilter rules concern.
fn obey(netfilter: &Effects, routing: &mut Routing) {
    routing.translation = netfilter.translation;
    let left = &netfilter.left;
    let all = netfilter.is_blind.then_some(PassReason::Translated);
    let off = |concerned: bool| all.or(concerned.then_some(PassReason::Netfilter));
    routing.ipv4_off = routing.ipv4_off.or(off(left.routed[0]));
    routing.ipv6_off = routing.ipv6_off.or(off(left.routed[1]));
    routing.bridge_off = routing.bridge_off.or(off(left.bridged));
}

/// Puts `new` in the place of `old` unless they are the same; true if they are not.
fn replace<T>(old: &mut Arc<T>, new: T, same: impl Fn(&T, &T) -> bool) -> bool {
    if same(old, &new) {
        return false;
    }
    *old = Arc::new(new);
    true
}

fn same_routes<K: FibKey>(one: &Fib<K>, other: &Fib<K>) -> bool {
    one.iter().eq(other.iter())
}

fn port(world: &World, input: &Input, link: &Link, assignment: &PortAssignment) -> Port {
    let bridge = world.links.get(&input.bridge);
    let bridge_port = link.bridge_port.as_ref();
    let (router_mac, forwarding) = match assignment.kind {
        PortKind::Pod => {
            let forwards = link.master == Some(input.bridge)
                && bridge.is_some_and(|bridge| bridge.up)
                && bridge_port.is_some_and(|port| port.state == PortState::Forwarding)
                && !is_locked(link);
            (bridge.map_or(MacAddr::ZERO, |bridge| bridge.mac), forwards)
        }
        // An interface that became a member of something else is not where routes lead any more.
        PortKind::Uplink => (link.mac, link.master.is_none()),
        // What is handed to the kernel there must be addressed to the bridge, behind the host port's other end.
        PortKind::Host => (bridge.map_or(MacAddr::ZERO, |bridge| bridge.mac), true),
    };
    let is_pod = assignment.kind == PortKind::Pod;
    Port {
        ifindex: link.ifindex,
        kind: assignment.kind,
        router_mac,
        mtu: link.mtu,
        max_frame: assignment.max_frame,
        forwarding: forwarding && link.is_operational(),
        learning: is_pod && bridge_port.is_some_and(|port| port.learning),
        isolated: is_pod && bridge_port.is_some_and(|port| port.isolated),
        partial_checksums: link.kind == LinkKind::Veth,
        path: assignment.path,
        // Never an uplink, not even one that is a veth: what leaves the node must be cut and its checksums finished as the
        // interface says, which its queue does and handing over does not.
        peer: is_pod && link.kind == LinkKind::Veth && link.peer_netns.is_some(),
    }
}

fn is_locked(link: &Link) -> bool {
    link.bridge_port.as_ref().is_some_and(|port| port.locked)
}

/// The port number of a pod's interface that is a member of the bridge and has sockets.
fn pod_port(world: &World, input: &Input, ifindex: u32) -> Option<PortId> {
    let assignment = input.ports.get(&ifindex).filter(|assignment| assignment.kind == PortKind::Pod)?;
    let link = world.links.get(&ifindex).filter(|link| link.master == Some(input.bridge))?;
    (!is_locked(link)).then_some(assignment.id)
}

/// What an interface is to routing: the bridge, an uplink, or nothing.
fn link_id(input: &Input, ifindex: u32) -> Option<LinkId> {
    if ifindex == input.bridge {
        return Some(LinkId::BRIDGE);
    }
    let assignment = input.ports.get(&ifindex)?;
    (assignment.kind == PortKind::Uplink).then_some(LinkId::uplink(assignment.id))
}

fn next_hop(world: &World, input: &Input, target: &Target, adjacencies: &HashMap<NeighbourKey, u32>) -> NextHop {
    let kernel = |reason| NextHop { action: NextHopAction::Kernel(reason), mtu: u32::MAX };
    let (family, oif, mtu) = match *target {
        Target::Kernel(reason) => return kernel(reason),
        Target::OnLink { family, oif, mtu } => (family, oif, mtu),
        Target::Via { oif, ref gateway, mtu } => (Family::of(gateway), oif, mtu),
    };
    let (Some(link_id), Some(link)) = (link_id(input, oif), world.links.get(&oif)) else {
        return kernel(PassReason::PortState);
    };
    if !link.is_operational() && link_id != LinkId::BRIDGE || !link.up {
        return kernel(PassReason::PortState);
    }
    let action = match target {
        Target::Via { oif, gateway, .. } => match adjacencies.get(&NeighbourKey { ifindex: *oif, address: *gateway }) {
            Some(index) => NextHopAction::Gateway(*index),
            None => return kernel(PassReason::Unresolved),
        },
        _ => NextHopAction::OnLink(link_id),
    };
    // A routed packet leaves through the interface of the route, so that one's MTU counts: the bridge's, not only the
    // pod port's (ip_dst_mtu_maybe_forward, include/net/ip.h; ip6_dst_mtu_maybe_forward, include/net/ip6_route.h).
    let ipv6_mtu = match family {
        Family::V4 => None,
        Family::V6 => input.switches.ipv6_mtu.get(&link.name).copied(),
    };
    let mtu = link.mtu.min(mtu.unwrap_or(u32::MAX)).min(ipv6_mtu.unwrap_or(u32::MAX));
    NextHop { action, mtu }
}

/// Networks of the bridge's addresses, without link-local ones and duplicates.
pub(crate) fn bridge_networks(world: &World, bridge: u32) -> Vec<IpNet> {
    let global = |network: &IpNet| match network.network() {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let mut networks: Vec<IpNet> =
        world.addresses.keys().filter(|key| key.ifindex == bridge).map(|key| key.network).filter(global).collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Whether the rules are those that the kernel starts with (`fib_default_rules_init`): `local`, `main`, and in IPv4
/// `default`, whose table only matters where the main table has no route, which is the kernel's case anyway.
fn rules_are_plain(world: &World, family: Family) -> bool {
    let mut found = [false; 2];
    for rule in world.rules.iter().filter(|rule| rule.family == family) {
        match (rule.plain, rule.priority, rule.table) {
            (true, 0, TABLE_LOCAL) => found[0] = true,
            (true, 32766, TABLE_MAIN) => found[1] = true,
            (true, 32767, TABLE_DEFAULT) => {}
            _ => return false,
        }
    }
    found == [true; 2]
}

fn fdb_notes(beyond_port: usize, beyond_all: usize, foreign: usize, left_out: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if foreign > 0 {
        notes.push(format!(
            "{foreign} MAC addresses of pods were learned by the kernel's bridge on other pods' ports: frames to them are \
             left to the bridge until it knows better (docs/source-guard.md)."
        ));
    }
    if left_out > 0 {
        notes.push(format!(
            "The kernel's bridge has learned more than {} MAC addresses on one port or {} in all: {left_out} were left out, \
             and frames to them are left to it.",
            limits::MAX_MIRRORED_PER_PORT,
            limits::MAX_MIRRORED
        ));
    }
    if beyond_port > 0 {
        notes.push(format!(
            "{beyond_port} learned MAC addresses are beyond the limit of {} per pod port: frames to them are left to the \
             kernel's bridge.",
            limits::MAX_LEARNED_PER_PORT
        ));
    }
    if beyond_all > 0 {
        notes.push(format!(
            "{beyond_all} FDB entries are beyond the limit of {}: frames to them are left to the kernel's bridge.",
            limits::MAX_FDB
        ));
    }
    notes
}

/// What depends on a part of the world that is not known for certain is the kernel's until it is.
fn doubts(doubtful: Changes, routing: &mut Routing, notes: &mut Vec<String>) {
    if doubtful.is_empty() {
        return;
    }
    notes.push(format!(
        "The kernel's {doubtful} change too fast or cannot be read: what depends on them is left to it."
    ));
    if doubtful.intersects(Changes::ROUTES4) {
        routing.ipv4_off = Some(PassReason::RouteKind);
    }
    if doubtful.intersects(Changes::ROUTES6) {
        routing.ipv6_off = Some(PassReason::RouteKind);
    }
    if doubtful.intersects(Changes::RULES) {
        routing.ipv4_off = Some(PassReason::PolicyRules);
        routing.ipv6_off = Some(PassReason::PolicyRules);
    }
    if doubtful.intersects(Changes::FDB | Changes::NEIGHBOURS) {
        routing.ipv4_off = Some(PassReason::Unresolved);
        routing.ipv6_off = Some(PassReason::Unresolved);
    }
    if doubtful.intersects(Changes::FDB) {
        routing.bridge_off = Some(PassReason::UnknownMac);
    }
    if doubtful.intersects(Changes::LINKS) {
        let off = Some(PassReason::PortState);
        *routing = Routing { ipv4_off: off, ipv6_off: off, bridge_off: off, ..*routing };
    }
}
