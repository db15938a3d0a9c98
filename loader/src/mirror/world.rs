//! The world as the kernel knows it: plain data that events are applied to, without sockets.
//!
//! Two properties carry the design. Applying an event is idempotent, so that notifications which arrived while a dump was
//! read can be applied to the dump's result. And whenever an event does not determine the new state (a route among several
//! with the same key, a device whose routes the kernel drops without telling), the part is named in [`Applied::stale`] and
//! must be dumped again; the world never guesses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;
use podlane_dataplane::MacAddr;

use super::Changes;
use super::crowd::Crowd;
use super::event::{Event, Placing};

/// Number of the `local` routing table.
pub const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
/// Number of the `main` routing table.
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// Number of the `default` routing table.
pub const TABLE_DEFAULT: u32 = libc::RT_TABLE_DEFAULT as u32;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The part of the world that holds this family's routes.
    pub const fn routes(self) -> Changes {
        match self {
            Family::V4 => Changes::ROUTES4,
            Family::V6 => Changes::ROUTES6,
        }
    }

    /// The family of an address.
    pub const fn of(address: &IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// What the kernel calls a link's kind (`IFLA_INFO_KIND`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LinkKind {
    /// No kind: a physical or paravirtual device, or loopback.
    #[default]
    Device,
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// Any other, by its name (`vxlan`, `bond`, …).
    Other(String),
}

impl LinkKind {
    /// The kernel's name; `device` for one without a kind.
    pub fn name(&self) -> &str {
        match self {
            LinkKind::Device => "device",
            LinkKind::Veth => "veth",
            LinkKind::Bridge => "bridge",
            LinkKind::Other(name) => name,
        }
    }
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LinkKind,
    /// Its MAC address; zero if it has none of six bytes.
    pub mac: MacAddr,
    /// Its MTU, bytes of an IP packet.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier and is operational (`IFF_LOWER_UP` and `IFF_RUNNING`).
    pub carrier: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Whether somebody has made it promiscuous (`ip link set … promisc on`); that of a packet socket does not count.
    pub promiscuous: bool,
    /// The bridge, bond or VRF that it is a member of.
    pub master: Option<u32>,
    /// Receive queues that the device was allocated with; for the number in use ask [`crate::kernel::Kernel::rx_queues`].
    pub rx_queues: u32,
    /// Transmit queues that the device was allocated with.
    pub tx_queues: u32,
    /// Id of the attached XDP program. The kernel does not notify of an attachment through a BPF link, so between dumps
    /// this may be out of date; comparisons of worlds in tests leave it out.
    pub xdp_program: Option<u32>,
    /// Attributes of a bridge.
    pub bridge: Option<Bridge>,
    /// Attributes of a member of a bridge.
    pub bridge_port: Option<BridgePort>,
    /// Index of the other end of a veth pair, in that end's namespace.
    pub peer: Option<u32>,
    /// This namespace's id for the other end's namespace; `None` if both are the same.
    pub peer_netns: Option<i32>,
    /// The alias (`ip link set … alias`), empty if there is none.
    pub alias: String,
}

impl Link {
    /// Whether frames can go through it: up and with a carrier.
    pub fn is_operational(&self) -> bool {
        self.up && self.carrier
    }
}

/// A bridge's own attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bridge {
    /// Whether frames are filtered by VLAN.
    pub vlan_filtering: bool,
    /// How long a learned entry lives, hundredths of a second (`USER_HZ`).
    pub ageing_ticks: u32,
    /// Whether the spanning tree protocol runs.
    pub stp: bool,
    /// Whether bridged packets traverse iptables or ip6tables (attributes `nf_call_*` of this bridge).
    pub calls_netfilter: bool,
}

/// The spanning tree state of a bridge port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PortState {
    /// Down, or the bridge is.
    #[default]
    Disabled,
    /// STP listens.
    Listening,
    /// STP learns addresses.
    Learning,
    /// Frames flow.
    Forwarding,
    /// STP blocks.
    Blocking,
}

/// A bridge port's attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BridgePort {
    /// Spanning tree state.
    pub state: PortState,
    /// Learns source addresses.
    pub learning: bool,
    /// Floods unknown unicast to it.
    pub flooding: bool,
    /// Does not talk to other isolated ports.
    pub isolated: bool,
    /// Drops frames of stations that are not in the FDB (802.1X).
    pub locked: bool,
    /// Sends frames back out of the port they came in by.
    pub hairpin: bool,
    /// BPDU guard.
    pub guard: bool,
    /// Suppresses ARP and ND towards this port.
    pub neigh_suppress: bool,
    /// Answers ARP for neighbours on other ports.
    pub proxy_arp: bool,
}

/// What identifies an address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AddressKey {
    /// The interface.
    pub ifindex: u32,
    /// The address itself.
    pub local: IpAddr,
    /// The network that it is connected to.
    pub network: IpNet,
}

/// The rest of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Scope, as in `linux/rtnetlink.h`: 0 universe, 253 link, 254 host.
    pub scope: u8,
}

/// What identifies a forwarding database entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FdbKey {
    /// The bridge.
    pub bridge: u32,
    /// The station.
    pub mac: MacAddr,
    /// VLAN id; 0 without VLAN filtering.
    pub vlan: u16,
}

/// Where an entry comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FdbKind {
    /// An address of the bridge or of one of its ports (`permanent`): frames to it are the node's.
    Local,
    /// Configured, does not age.
    Static,
    /// Learned by somebody else and told to the kernel, does not age.
    ExternLearned,
    /// Learned by the bridge, ages.
    Dynamic,
}

/// A forwarding database entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbEntry {
    /// The port's interface index; the bridge's own for entries of the bridge itself.
    pub port: u32,
    /// Where it comes from.
    pub kind: FdbKind,
    /// Never moves to another port by learning.
    pub sticky: bool,
    /// Seen on a locked port: its frames are dropped.
    pub locked: bool,
}

/// What identifies a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NeighbourKey {
    /// The interface that it is on.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
}

/// A neighbour's reachability state, the `NUD_*` bits of `linux/neighbour.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NudState(pub u16);

impl NudState {
    const VALID: u16 = libc::NUD_REACHABLE
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE
        | libc::NUD_PERMANENT
        | libc::NUD_NOARP;

    /// Whether the link-layer address may be used (`NUD_VALID`, `include/net/neighbour.h`).
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Whether the entry waits for a use before it is checked again. The kernel goes from stale to delay without a
    /// notification, so an entry that looks stale may already be on its way.
    pub const fn is_stale(self) -> bool {
        self.0 & libc::NUD_STALE != 0
    }

    /// Whether somebody configured the entry; such entries are never checked.
    pub const fn is_configured(self) -> bool {
        self.0 & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0
    }
}

/// A neighbour with a usable link-layer address; others are not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its state.
    pub state: NudState,
}

/// What identifies a route, up to alternatives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RouteKey {
    /// [`TABLE_MAIN`] or [`TABLE_LOCAL`].
    pub table: u32,
    /// The destination.
    pub destination: IpNet,
    /// Type of service that the packet must have; 0 for any. Always 0 in IPv6.
    pub tos: u8,
    /// Metric; the lowest wins.
    pub priority: u32,
    /// The packet's source must be in here; length 0 for any. Always length 0 in IPv4.
    pub source: IpNet,
}

/// Why a route is not a plain one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Oddity {
    /// Several next hops.
    Multipath,
    /// Lightweight tunnel encapsulation.
    Encapsulation,
    /// A gateway of the other family (`via inet6`).
    OtherFamilyGateway,
    /// A nexthop object (`nhid`).
    NextHopObject,
    /// An attribute that Podlane does not know.
    Unknown,
}

/// One route.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Route {
    /// Its type, `RTN_*` of `linux/rtnetlink.h`.
    pub kind: u8,
    /// Its scope, `RT_SCOPE_*`.
    pub scope: u8,
    /// The gateway, of the route's own family.
    pub gateway: Option<IpAddr>,
    /// The interface that it leaves through.
    pub oif: Option<u32>,
    /// Source address for the node's own packets.
    pub preferred_source: Option<IpAddr>,
    /// Metric `mtu`, bytes.
    pub mtu: Option<u32>,
    /// Why it is not plain.
    pub oddity: Option<Oddity>,
    /// Interfaces of the next hops of a multipath route.
    pub other_links: Vec<u32>,
    /// Hash of everything else that the kernel said about it, so that two routes which differ only there stay two.
    pub fingerprint: u64,
}

impl Route {
    /// Whether its type is `unicast`.
    pub fn is_unicast(&self) -> bool {
        super::event::is_unicast(self.kind)
    }

    /// Whether IPv6 never makes it one of several next hops of a route (`rt6_qualify_for_ecmp`, `net/ipv6/ip6_fib.h`).
    fn stands_alone(&self) -> bool {
        self.gateway.is_none() && self.oddity.is_none()
    }

    /// Whether it leads out of an interface, alone or among others.
    pub fn uses(&self, ifindex: u32) -> bool {
        self.oif == Some(ifindex) || self.other_links.contains(&ifindex)
    }
}

/// A policy rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Its priority; the lowest is asked first.
    pub priority: u32,
    /// The table it sends to.
    pub table: u32,
    /// Whether it sends every packet to `table` and does nothing else.
    pub plain: bool,
    /// Hash of the whole rule.
    pub fingerprint: u64,
}

/// Routes of one family.
pub type Routes = BTreeMap<RouteKey, Vec<Route>>;

/// What the kernel knows of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct World {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of interfaces.
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Forwarding databases of all bridges, as far as the mirror's limits go.
    pub fdb: BTreeMap<FdbKey, FdbEntry>,
    /// How much of them that is.
    pub crowd: Crowd,
    /// Neighbours with a usable link-layer address.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// IPv4 routes of the main and the local table. Several under one key are a set, sorted: the order in which the kernel
    /// tries them is not kept, because traffic for such a key is left to the kernel.
    pub routes4: Routes,
    /// IPv6 routes, likewise.
    pub routes6: Routes,
    /// Policy rules of both families, sorted.
    pub rules: Vec<Rule>,
    /// Interfaces with queueing disciplines that may hold, drop or redirect packets, by index: their kinds (`tbf`).
    pub qdiscs: BTreeMap<u32, BTreeSet<String>>,
    /// Parts of which a message could not be read, or that could not be brought up to date: what is said about them here
    /// may be wrong, and traffic that depends on them belongs to the kernel.
    pub doubtful: Changes,
}

/// How many bits in front two addresses of a family share.
fn common_bits(one: IpAddr, other: IpAddr) -> u8 {
    let bits = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => 0,
    };
    bits as u8
}

/// What applying an event did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Parts that are different now.
    pub changed: Changes,
    /// Parts that the event did not determine: dump them again.
    pub stale: Changes,
}

impl Applied {
    fn changed_if(different: bool, part: Changes) -> Applied {
        Applied { changed: if different { part } else { Changes::NONE }, stale: Changes::NONE }
    }

    fn stale(part: Changes) -> Applied {
        Applied { changed: Changes::NONE, stale: part }
    }
}

impl World {
    /// Applies one event.
    pub fn apply(&mut self, event: Event) -> Applied {
        match event {
            Event::Link(link) => self.set_link(*link),
            Event::LinkGone(ifindex) => self.remove_link(ifindex),
            Event::BridgePort(ifindex, bridge, port) => self.set_bridge_port(ifindex, bridge, port),
            Event::BridgePortGone(ifindex) => self.remove_bridge_port(ifindex),
            Event::Address(key, address) => {
                Applied::changed_if(self.addresses.insert(key, address) != Some(address), Changes::ADDRESSES)
            }
            Event::AddressGone(key) => self.remove_address(&key),
            Event::Fdb(key, entry) => self.set_fdb(key, entry),
            Event::FdbGone(key) => self.remove_fdb(&key),
            Event::Neighbour(key, neighbour) => {
                Applied::changed_if(self.neighbours.insert(key, neighbour) != Some(neighbour), Changes::NEIGHBOURS)
            }
            Event::NeighbourGone(key) => {
                Applied::changed_if(self.neighbours.remove(&key).is_some(), Changes::NEIGHBOURS)
            }
            Event::Route(key, route, placing) => self.set_route(key, *route, placing),
            Event::RouteGone(key, route) => self.remove_route(&key, &route),
            Event::Rule(rule) => self.set_rule(rule),
            Event::RuleGone(rule) => self.remove_rule(&rule),
            Event::Qdisc(ifindex, kind) => {
                Applied::changed_if(self.qdiscs.entry(ifindex).or_default().insert(kind), Changes::LINKS)
            }
            Event::Qdiscs => Applied::stale(Changes::QDISCS),
            Event::NextHopObject => Applied::stale(Changes::ROUTES4 | Changes::ROUTES6),
            Event::Switches => Applied::changed_if(true, Changes::SWITCHES),
            Event::Unreadable(parts) => {
                let new = parts - self.doubtful;
                self.doubtful |= parts;
                Applied { changed: new, stale: parts }
            }
        }
    }

    /// The interface of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The routes of a family.
    pub fn routes(&self, family: Family) -> &Routes {
        match family {
            Family::V4 => &self.routes4,
            Family::V6 => &self.routes6,
        }
    }

    /// The route of the main table with the longest prefix that covers an address and of these the lowest metric, with others
    /// of the same metric.
    pub fn route_to(&self, address: IpAddr) -> Option<(IpNet, &[Route])> {
        let (bits, any) = match address {
            IpAddr::V4(_) => (32, IpNet::V4(Ipv4Net::default())),
            IpAddr::V6(_) => (128, IpNet::V6(Ipv6Net::default())),
        };
        let routes = self.routes(Family::of(&address));
        let key = |destination| RouteKey { table: TABLE_MAIN, destination, tos: 0, priority: 0, source: any };
        let last = |destination| RouteKey { tos: u8::MAX, priority: u32::MAX, ..key(destination) };
        let mut length = bits;
        loop {
            // Networks are sorted by address and then length, so the last one before this one is the longest that covers the
            // address, or has more in common with it than any that does.
            let destination = IpNet::new(address, length).ok()?.trunc();
            let (found, _) = routes.range(..=last(destination)).next_back()?;
            if found.table != TABLE_MAIN {
                return None;
            }
            if found.destination.contains(&address) {
                let (found, alternatives) = routes.range(key(found.destination)..).next()?;
                return Some((found.destination, alternatives));
            }
            length = common_bits(address, found.destination.network()).min(length.checked_sub(1)?);
        }
    }

    fn routes_mut(&mut self, family: Family) -> &mut Routes {
        match family {
            Family::V4 => &mut self.routes4,
            Family::V6 => &mut self.routes6,
        }
    }

    fn family_uses(&self, family: Family, ifindex: u32) -> bool {
        self.routes(family).values().flatten().any(|route| route.uses(ifindex))
    }

    /// Whether an IPv4 route leads through an interface that is down, which the kernel does not allow: its end was not told.
    /// Seen where a notification of its beginning is applied to a dump that is newer than its end.
    fn keeps_unreachable_routes(&self, ifindex: u32) -> bool {
        self.routes4.values().flatten().any(|route| route.is_unicast() && route.uses(ifindex))
    }

    /// IPv4 drops a device's routes without telling when the device goes down or joins a VRF (`fib_flush`,
    /// `net/ipv4/fib_frontend.c`); IPv6 tells, but only before the device is gone.
    fn set_link(&mut self, mut link: Link) -> Applied {
        let ifindex = link.ifindex;
        let old = self.links.get(&ifindex);
        // The flags of a port may be left out of a message that is about something else; they do not change by that.
        if link.bridge_port.is_none()
            && let Some(old) = old
            && link.master.is_some()
            && link.master == old.master
        {
            link.bridge_port = old.bridge_port.clone();
        }
        let mut stale = Changes::NONE;
        let dropped = old.is_some_and(|old| old.up && !link.up || old.master != link.master);
        if dropped && self.family_uses(Family::V4, ifindex) || !link.up && self.keeps_unreachable_routes(ifindex) {
            stale |= Changes::ROUTES4;
        }
        let different = self.links.insert(ifindex, link.clone()).as_ref() != Some(&link);
        Applied { stale, ..Applied::changed_if(different, Changes::LINKS) }
    }

    fn remove_link(&mut self, ifindex: u32) -> Applied {
        let mut applied = Applied::changed_if(self.links.remove(&ifindex).is_some(), Changes::LINKS);
        self.qdiscs.remove(&ifindex);
        let mut drop_from = |before: usize, after: usize, part: Changes| {
            applied.changed |= if before == after { Changes::NONE } else { part };
        };
        let before = self.addresses.len();
        self.addresses.retain(|key, _| key.ifindex != ifindex);
        drop_from(before, self.addresses.len(), Changes::ADDRESSES);
        let before = self.neighbours.len();
        self.neighbours.retain(|key, _| key.ifindex != ifindex);
        drop_from(before, self.neighbours.len(), Changes::NEIGHBOURS);
        let gone = self.retain_fdb(|key, entry| key.bridge != ifindex && entry.port != ifindex);
        drop_from(gone, 0, Changes::FDB);
        for family in [Family::V4, Family::V6] {
            if self.family_uses(family, ifindex) {
                applied.stale |= family.routes();
            }
        }
        applied
    }

    fn set_bridge_port(&mut self, ifindex: u32, bridge: u32, port: BridgePort) -> Applied {
        // Only a link that is gone by now is unknown: the kernel tells of a link before it tells of a port.
        let Some(link) = self.links.get_mut(&ifindex) else { return Applied::default() };
        let different = link.master != Some(bridge) || link.bridge_port.as_ref() != Some(&port);
        link.master = Some(bridge);
        link.bridge_port = Some(port);
        Applied::changed_if(different, Changes::LINKS)
    }

    fn remove_bridge_port(&mut self, ifindex: u32) -> Applied {
        let Some(link) = self.links.get_mut(&ifindex) else { return Applied::default() };
        let different = link.bridge_port.is_some();
        link.bridge_port = None;
        link.master = None;
        let mut applied = Applied::changed_if(different, Changes::LINKS);
        if self.retain_fdb(|_, entry| entry.port != ifindex) != 0 {
            applied.changed |= Changes::FDB;
        }
        applied
    }

    /// An entry that there is no room for, and that was somewhere else until now, is not there any more either.
    fn set_fdb(&mut self, key: FdbKey, entry: FdbEntry) -> Applied {
        if self.fdb.get(&key) == Some(&entry) {
            return Applied::default();
        }
        let removed = self.remove_fdb(&key);
        if !self.crowd.enter(&entry) {
            return removed;
        }
        self.fdb.insert(key, entry);
        Applied { stale: removed.stale, ..Applied::changed_if(true, Changes::FDB) }
    }

    fn remove_fdb(&mut self, key: &FdbKey) -> Applied {
        let Some(entry) = self.fdb.remove(key) else { return Applied::default() };
        let stale = if self.crowd.leave(&entry) { Changes::FDB } else { Changes::NONE };
        Applied { stale, ..Applied::changed_if(true, Changes::FDB) }
    }

    /// Drops entries; how many.
    fn retain_fdb(&mut self, keep: impl Fn(&FdbKey, &FdbEntry) -> bool) -> usize {
        let before = self.fdb.len();
        let crowd = &mut self.crowd;
        self.fdb.retain(|key, entry| {
            let kept = keep(key, entry);
            // What was left out of these went with them.
            if !kept {
                crowd.leave(entry);
            }
            kept
        });
        before - self.fdb.len()
    }

    /// IPv4 drops routes whose preferred source was this address without telling (`fib_sync_down_addr`).
    fn remove_address(&mut self, key: &AddressKey) -> Applied {
        let mut applied = Applied::changed_if(self.addresses.remove(key).is_some(), Changes::ADDRESSES);
        let flushes = key.local.is_ipv4()
            && self.routes4.values().flatten().any(|route| route.preferred_source == Some(key.local));
        if flushes {
            applied.stale |= Changes::ROUTES4;
        }
        applied
    }

    fn set_route(&mut self, key: RouteKey, route: Route, placing: Placing) -> Applied {
        let family = Family::of(&key.destination.addr());
        let part = family.routes();
        let alternatives = self.routes_mut(family).entry(key).or_default();
        let place = match alternatives.binary_search(&route) {
            // Seen by the dump already, or said twice. A replacement among several is another matter.
            Ok(_) if placing != Placing::Replace || alternatives.len() == 1 => return Applied::default(),
            Ok(place) | Err(place) => place,
        };
        // IPv6 joins routes with a gateway to one with several next hops and tells of the joined one.
        let joins = family == Family::V6 && !alternatives.iter().chain([&route]).all(Route::stands_alone);
        match (alternatives.len(), placing) {
            (_, Placing::Listed) => alternatives.insert(place, route),
            (0, _) | (1, Placing::Replace) => *alternatives = vec![route],
            // Which one is replaced depends on an order that is not kept.
            (_, Placing::Replace) => return Applied::stale(part),
            _ if joins => return Applied::stale(part),
            _ => alternatives.insert(place, route),
        }
        Applied::changed_if(true, part)
    }

    /// A deletion of a route that is not held is nothing new if the key is not held either; otherwise the two pictures differ.
    fn remove_route(&mut self, key: &RouteKey, route: &Route) -> Applied {
        let family = Family::of(&key.destination.addr());
        let part = family.routes();
        let routes = self.routes_mut(family);
        let Some(alternatives) = routes.get_mut(key) else { return Applied::default() };
        let Ok(place) = alternatives.binary_search(route) else { return Applied::stale(part) };
        alternatives.remove(place);
        if alternatives.is_empty() {
            routes.remove(key);
        }
        Applied::changed_if(true, part)
    }

    fn set_rule(&mut self, rule: Rule) -> Applied {
        match self.rules.binary_search(&rule) {
            Ok(_) => Applied::default(),
            Err(place) => {
                self.rules.insert(place, rule);
                Applied::changed_if(true, Changes::RULES)
            }
        }
    }

    /// The kernel may hold a rule twice, so what is left after a deletion has to be asked.
    fn remove_rule(&mut self, rule: &Rule) -> Applied {
        let held = self.rules.binary_search(rule);
        if let Ok(place) = held {
            self.rules.remove(place);
        }
        Applied { stale: Changes::RULES, ..Applied::changed_if(held.is_ok(), Changes::RULES) }
    }

    /// Takes the named parts from `fresh`, which holds the result of a dump, and says which were different.
    pub(super) fn adopt(&mut self, fresh: World, parts: Changes) -> Changes {
        fn take<T: PartialEq>(own: &mut T, fresh: T, part: Changes, parts: Changes, changed: &mut Changes) {
            if parts.intersects(part) && *own != fresh {
                *own = fresh;
                *changed |= part;
            }
        }
        let mut changed = Changes::NONE;
        take(&mut self.links, fresh.links, Changes::LINKS, parts, &mut changed);
        take(&mut self.addresses, fresh.addresses, Changes::ADDRESSES, parts, &mut changed);
        take(&mut self.fdb, fresh.fdb, Changes::FDB, parts, &mut changed);
        if parts.intersects(Changes::FDB) {
            self.crowd = fresh.crowd;
        }
        take(&mut self.neighbours, fresh.neighbours, Changes::NEIGHBOURS, parts, &mut changed);
        take(&mut self.routes4, fresh.routes4, Changes::ROUTES4, parts, &mut changed);
        take(&mut self.routes6, fresh.routes6, Changes::ROUTES6, parts, &mut changed);
        take(&mut self.rules, fresh.rules, Changes::RULES, parts, &mut changed);
        if parts.intersects(Changes::QDISCS) && self.qdiscs != fresh.qdiscs {
            self.qdiscs = fresh.qdiscs;
            changed |= Changes::LINKS;
        }
        let doubtful = (self.doubtful - parts) | fresh.doubtful.and(parts);
        if doubtful != self.doubtful {
            // A doubt that came or went changes what may be done with the part.
            changed |= (doubtful - self.doubtful) | (self.doubtful - doubtful);
            self.doubtful = doubtful;
        }
        changed
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plain route out of an interface.
    pub fn route(oif: u32) -> Route {
        Route {
            kind: libc::RTN_UNICAST,
            scope: 0,
            gateway: None,
            oif: Some(oif),
            preferred_source: None,
            mtu: None,
            oddity: None,
            other_links: Vec::new(),
            fingerprint: 0,
        }
    }

    /// Against asking every route.
    #[test]
    fn the_route_to_an_address_is_that_of_the_longest_prefix() {
        let mut world = World::default();
        let networks = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.128/25", "10.128.0.0/9"];
        let networks = networks.into_iter().chain(["9.0.0.0/8", "fd00::/8", "fd00::2/128", "fd00:0:0:1::/64", "::/0"]);
        for (number, text) in networks.enumerate() {
            let destination: IpNet = text.parse().unwrap();
            let source = if text.contains(':') { "::/0" } else { "0.0.0.0/0" }.parse().unwrap();
            for priority in [5, 7] {
                let key = RouteKey { table: TABLE_MAIN, destination, tos: 0, priority, source };
                let routes = vec![route(number as u32 + priority)];
                world.routes_mut(Family::of(&destination.addr())).insert(key, routes);
            }
        }
        let local = RouteKey { table: TABLE_LOCAL, ..*world.routes4.keys().next().unwrap() };
        world.routes4.insert(local, vec![route(99)]);
        let asked = ["10.1.2.3", "10.1.2.4", "10.1.2.200", "10.1.9.1", "10.200.0.1", "9.9.9.9", "11.0.0.1", "8.1.1.1"];
        for text in asked.into_iter().chain(["fd00::2", "fd00::3", "fd00:0:0:1::9", "fe80::1", "ff02::1"]) {
            let address: IpAddr = text.parse().unwrap();
            let all = world.routes(Family::of(&address)).iter();
            let covering = all.filter(|(key, _)| key.table == TABLE_MAIN && key.destination.contains(&address));
            let best = covering.min_by_key(|(key, _)| (u8::MAX - key.destination.prefix_len(), key.priority));
            let expected = best.map(|(key, routes)| (key.destination, &routes[..]));
            assert_eq!(world.route_to(address), expected, "{text}");
        }
    }
}
