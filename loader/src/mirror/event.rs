//! From netlink bytes to events: what one rtnetlink message says, in the words of the [`super::World`].
//!
//! The walk over the attributes is lenient where leaving something out is harmless (an attribute of an exotic link kind),
//! and strict where it is not: a route with an attribute that cannot be read, or is not known, is marked so that its
//! traffic stays with the kernel. Attributes that nobody needs here (statistics, `AF_SPEC`) are skipped unread, they are
//! most of the bytes of a link message.

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable, ParseableParametrized, parse_u32};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{
    BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkFlags, LinkHeader,
    LinkInfo, LinkXdp,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourHeader,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteLwEnCapType, RouteMetric, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader};
use netlink_packet_route::tc::TcHeader;
use nix::libc;
use podlane_dataplane::MacAddr;

use super::world::{
    Address, AddressKey, Bridge, BridgePort, Family, FdbEntry, FdbKey, FdbKind, Link, LinkKind, Neighbour,
    NeighbourKey, NudState, Oddity, PortState, Route, RouteKey, Rule, TABLE_LOCAL, TABLE_MAIN,
};
use super::{Changes, NetlinkHeaderView};

/// What one message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An interface appeared or changed; the whole of its state.
    Link(Box<Link>),
    /// An interface is gone.
    LinkGone(u32),
    /// A bridge port's attributes changed (`AF_BRIDGE` message): (interface, bridge, attributes).
    BridgePort(u32, u32, BridgePort),
    /// An interface left its bridge; the interface itself may live on.
    BridgePortGone(u32),
    /// An address appeared or changed.
    Address(AddressKey, Address),
    /// An address is gone.
    AddressGone(AddressKey),
    /// A forwarding database entry appeared, moved or changed.
    Fdb(FdbKey, FdbEntry),
    /// A forwarding database entry is gone.
    FdbGone(FdbKey),
    /// A neighbour has a usable link-layer address.
    Neighbour(NeighbourKey, Neighbour),
    /// A neighbour is gone, or has no usable link-layer address any more.
    NeighbourGone(NeighbourKey),
    /// A route was added or replaced; the flags of the message say which ([`Placing`]).
    Route(RouteKey, Box<Route>, Placing),
    /// A route is gone.
    RouteGone(RouteKey, Box<Route>),
    /// A policy rule was added.
    Rule(Rule),
    /// A policy rule is gone.
    RuleGone(Rule),
    /// An interface has a queueing discipline of this kind that may hold, drop or redirect packets: at its root, or at its
    /// ingress.
    Qdisc(u32, String),
    /// A queueing discipline came, changed or went.
    Qdiscs,
    /// A nexthop object changed; the kernel changes routes that use it without telling.
    NextHopObject,
    /// A sysctl of an interface changed (`forwarding`, IPv6 `mtu`).
    Switches,
    /// A message about this part could not be read: what it said is not known.
    Unreadable(Changes),
}

/// Where a new route goes among those with the same key (flags of the notification, `net/ipv4/fib_trie.c`,
/// `net/ipv6/ip6_fib.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placing {
    /// As a dump lists it: after those that were listed before.
    Listed,
    /// It takes the place of the first one.
    Replace,
    /// After the others.
    Append,
    /// Before the others, or it is the only one.
    Prepend,
}

/// Reads one message. `None`: the message is about something that the world does not hold.
///
/// `header` is the netlink header's type and flags, `payload` what follows it. `listed` says that the message is part of a
/// dump and not a notification.
pub fn read(header: NetlinkHeaderView, payload: &[u8], listed: bool) -> Option<Event> {
    match header.message_type {
        libc::RTM_NEWLINK => link(payload, false),
        libc::RTM_DELLINK => link(payload, true),
        libc::RTM_NEWADDR => address(payload, false),
        libc::RTM_DELADDR => address(payload, true),
        libc::RTM_NEWNEIGH => neighbour(payload, false),
        libc::RTM_DELNEIGH => neighbour(payload, true),
        libc::RTM_NEWROUTE => {
            let placing = if listed {
                Placing::Listed
            } else if header.flags & netlink_packet_core::NLM_F_REPLACE != 0 {
                Placing::Replace
            } else if header.flags & netlink_packet_core::NLM_F_APPEND != 0 {
                Placing::Append
            } else {
                Placing::Prepend
            };
            route(payload, Some(placing))
        }
        libc::RTM_DELROUTE => route(payload, None),
        libc::RTM_NEWRULE => rule(payload, false),
        libc::RTM_DELRULE => rule(payload, true),
        libc::RTM_NEWQDISC if listed => qdisc(payload),
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC => Some(Event::Qdiscs),
        // RTM_NEWNETCONF, RTM_DELNETCONF; RTM_NEWNEXTHOP, RTM_DELNEXTHOP (linux/rtnetlink.h).
        80 | 81 => Some(Event::Switches),
        104 | 105 => Some(Event::NextHopObject),
        _ => None,
    }
}

fn attributes(payload: &[u8], header_length: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(header_length..).unwrap_or_default()).map_while(Result::ok)
}

/// `TCA_KIND` (`linux/rtnetlink.h`).
const QDISC_KIND: u16 = 1;

/// Kinds that pass on what they are given, in some order, as fast as the device takes it (those that the kernel gives by
/// itself among them); and the place for filters of tc programs, which Podlane uses itself where there is no tcx. Not `fq`,
/// which may have a `maxrate`.
const PLAIN_QDISCS: [&str; 11] = [
    "noqueue",
    "pfifo_fast",
    "pfifo",
    "bfifo",
    "pfifo_head_drop",
    "fq_codel",
    "codel",
    "sfq",
    "mq",
    "mqprio",
    "clsact",
];

/// Whether the outermost or one inside of it: a plain one may have others for its queues.
fn qdisc(payload: &[u8]) -> Option<Event> {
    let header = TcHeader::parse(payload).ok()?;
    let kind = attributes(payload, QDISC_HEADER).find(|attribute| attribute.kind() == QDISC_KIND)?;
    let kind = String::from_utf8_lossy(kind.value()).trim_end_matches('\0').to_owned();
    let is_plain = PLAIN_QDISCS.contains(&kind.as_str());
    (!is_plain).then_some(Event::Qdisc(header.index as u32, kind))
}

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NEIGHBOUR_HEADER: usize = 12;
const ROUTE_HEADER: usize = 12;
const RULE_HEADER: usize = 12;
const QDISC_HEADER: usize = 20;

fn link(payload: &[u8], gone: bool) -> Option<Event> {
    let Ok(header) = LinkHeader::parse(payload) else { return Some(Event::Unreadable(Changes::LINKS)) };
    match (header.interface_family, gone) {
        (AddressFamily::Unspec, true) => Some(Event::LinkGone(header.index)),
        (AddressFamily::Unspec, false) => Some(Event::Link(Box::new(whole_link(&header, payload)))),
        (AddressFamily::Bridge, _) => bridge_port_message(&header, payload, gone),
        // The IPv6 side of an interface: its MTU for IPv6 is among what may have changed.
        (AddressFamily::Inet6, false) => Some(Event::Switches),
        _ => None,
    }
}

fn whole_link(header: &LinkHeader, payload: &[u8]) -> Link {
    let mut link = Link {
        ifindex: header.index,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp) && header.flags.contains(LinkFlags::Running),
        loopback: header.flags.contains(LinkFlags::Loopback),
        promiscuous: header.flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for nla in attributes(payload, LINK_HEADER) {
        if !matches!(
            nla.kind(),
            libc::IFLA_ADDRESS
                | libc::IFLA_IFNAME
                | libc::IFLA_MTU
                | libc::IFLA_LINK
                | libc::IFLA_MASTER
                | libc::IFLA_LINKINFO
                | libc::IFLA_IFALIAS
                | libc::IFLA_NUM_TX_QUEUES
                | libc::IFLA_NUM_RX_QUEUES
                | libc::IFLA_LINK_NETNSID
                | libc::IFLA_XDP
        ) {
            continue;
        }
        match LinkAttribute::parse_with_param(&nla, AddressFamily::Unspec) {
            Ok(LinkAttribute::Address(bytes)) => link.mac = mac(&bytes).unwrap_or_default(),
            Ok(LinkAttribute::IfName(name)) => link.name = name,
            Ok(LinkAttribute::Mtu(mtu)) => link.mtu = mtu,
            Ok(LinkAttribute::Link(peer)) => link.peer = Some(peer),
            Ok(LinkAttribute::LinkNetNsId(id)) => link.peer_netns = Some(id),
            Ok(LinkAttribute::Controller(master)) => link.master = Some(master).filter(|master| *master != 0),
            Ok(LinkAttribute::IfAlias(alias)) => link.alias = alias,
            Ok(LinkAttribute::NumTxQueues(count)) => link.tx_queues = count,
            Ok(LinkAttribute::NumRxQueues(count)) => link.rx_queues = count,
            Ok(LinkAttribute::Xdp(xdp)) => link.xdp_program = xdp_program(&xdp),
            Ok(LinkAttribute::LinkInfo(infos)) => link_info(&mut link, &infos),
            // A kind whose data cannot be read is none that Podlane serves.
            Err(_) if nla.kind() == libc::IFLA_LINKINFO => link.kind = LinkKind::Other("unreadable".into()),
            _ => {}
        }
    }
    link
}

fn xdp_program(xdp: &[LinkXdp]) -> Option<u32> {
    xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if *id != 0 => {
            Some(*id)
        }
        _ => None,
    })
}

fn link_info(link: &mut Link, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                link.kind = match kind {
                    netlink_packet_route::link::InfoKind::Veth => LinkKind::Veth,
                    netlink_packet_route::link::InfoKind::Bridge => LinkKind::Bridge,
                    other => LinkKind::Other(other.to_string()),
                }
            }
            LinkInfo::Data(InfoData::Bridge(attributes)) => link.bridge = Some(bridge(attributes)),
            LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                link.bridge_port = Some(bridge_port(attributes.iter()));
            }
            _ => {}
        }
    }
}

fn bridge(attributes: &[InfoBridge]) -> Bridge {
    let mut bridge = Bridge::default();
    for attribute in attributes {
        match attribute {
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            InfoBridge::AgeingTime(ticks) => bridge.ageing_ticks = *ticks,
            InfoBridge::StpState(state) => {
                bridge.stp = *state != netlink_packet_route::link::BridgeStpState::Disabled;
            }
            InfoBridge::NfCallIpTables(on) | InfoBridge::NfCallIp6Tables(on) => bridge.calls_netfilter |= *on,
            _ => {}
        }
    }
    bridge
}

fn bridge_port<'a>(attributes: impl Iterator<Item = &'a InfoBridgePort>) -> BridgePort {
    let mut port = BridgePort::default();
    for attribute in attributes {
        match attribute {
            InfoBridgePort::State(state) => {
                port.state = match state {
                    BridgePortState::Disabled => PortState::Disabled,
                    BridgePortState::Listening => PortState::Listening,
                    BridgePortState::Learning => PortState::Learning,
                    BridgePortState::Forwarding => PortState::Forwarding,
                    _ => PortState::Blocking,
                }
            }
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::UnicastFlood(on) => port.flooding = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Locked(on) => port.locked = *on,
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Guard(on) => port.guard = *on,
            InfoBridgePort::NeighSupress(on) => port.neigh_suppress = *on,
            InfoBridgePort::ProxyARP(on) => port.proxy_arp = *on,
            _ => {}
        }
    }
    port
}

/// `AF_BRIDGE` link messages: state and flags of a bridge port (`br_ifinfo_notify`, `net/bridge/br_netlink.c`).
fn bridge_port_message(header: &LinkHeader, payload: &[u8], gone: bool) -> Option<Event> {
    if gone {
        return Some(Event::BridgePortGone(header.index));
    }
    let mut master = None;
    let mut port = None;
    for nla in attributes(payload, LINK_HEADER) {
        match nla.kind() {
            libc::IFLA_MASTER => master = parse_u32(nla.value()).ok(),
            libc::IFLA_PROTINFO => {
                let inner: Vec<_> = NlasIterator::new(nla.value())
                    .map_while(Result::ok)
                    .filter_map(|nla| InfoBridgePort::parse(&nla).ok())
                    .collect();
                port = Some(bridge_port(inner.iter()));
            }
            _ => {}
        }
    }
    // A message about the bridge itself has neither.
    Some(Event::BridgePort(header.index, master?, port?))
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    Some(MacAddr::new(bytes.try_into().ok()?))
}

fn ip(family: AddressFamily, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        AddressFamily::Inet6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn address(payload: &[u8], gone: bool) -> Option<Event> {
    let Ok(header) = AddressHeader::parse(payload) else { return Some(Event::Unreadable(Changes::ADDRESSES)) };
    let (mut local, mut peer) = (None, None);
    for nla in attributes(payload, ADDRESS_HEADER) {
        match nla.kind() {
            libc::IFA_LOCAL => local = ip(header.family, nla.value()),
            libc::IFA_ADDRESS => peer = ip(header.family, nla.value()),
            _ => {}
        }
    }
    // IPv6 sends only IFA_ADDRESS; on a point-to-point link IFA_ADDRESS is the other end.
    let local = local.or(peer)?;
    let network = IpNet::new(peer.unwrap_or(local), header.prefix_len).ok()?.trunc();
    let key = AddressKey { ifindex: header.index, local, network };
    Some(if gone { Event::AddressGone(key) } else { Event::Address(key, Address { scope: u8::from(header.scope) }) })
}

fn neighbour(payload: &[u8], gone: bool) -> Option<Event> {
    let Ok(header) = NeighbourHeader::parse(payload) else {
        return Some(Event::Unreadable(Changes::NEIGHBOURS | Changes::FDB));
    };
    let mut address = None;
    let mut lladdr = None;
    let mut vlan = 0;
    let mut master = None;
    let mut extended = NeighbourExtFlags::empty();
    for nla in attributes(payload, NEIGHBOUR_HEADER) {
        match NeighbourAttribute::parse_with_param(&nla, header.family) {
            Ok(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))) => address = Some(IpAddr::V4(ip)),
            Ok(NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip))) => address = Some(IpAddr::V6(ip)),
            Ok(NeighbourAttribute::LinkLayerAddress(bytes)) => lladdr = mac(&bytes),
            Ok(NeighbourAttribute::Vlan(id)) => vlan = id,
            Ok(NeighbourAttribute::Controller(ifindex)) => master = Some(ifindex),
            Ok(NeighbourAttribute::ExtFlags(flags)) => extended = flags,
            _ => {}
        }
    }
    match header.family {
        // Entries without a master are a device's own filter lists or a VXLAN's table, not a bridge's.
        AddressFamily::Bridge => {
            let key = FdbKey { bridge: master?, mac: lladdr?, vlan };
            if gone { Some(Event::FdbGone(key)) } else { Some(Event::Fdb(key, fdb_entry(&header, extended))) }
        }
        AddressFamily::Inet | AddressFamily::Inet6 => {
            if header.flags.contains(NeighbourFlags::Proxy) {
                return None;
            }
            let key = NeighbourKey { ifindex: header.ifindex, address: address? };
            let state = NudState(u16::from(header.state));
            match lladdr.filter(|mac| mac.is_station()) {
                Some(mac) if !gone && state.is_valid() && !key.address.is_multicast() => {
                    Some(Event::Neighbour(key, Neighbour { mac, state }))
                }
                _ => Some(Event::NeighbourGone(key)),
            }
        }
        _ => None,
    }
}

/// What the bridge says of an entry (`fdb_to_nud` and `fdb_fill_info`, `net/bridge/br_fdb.c`): local entries are
/// `NUD_PERMANENT`, static ones `NUD_NOARP`.
fn fdb_entry(header: &NeighbourHeader, extended: NeighbourExtFlags) -> FdbEntry {
    let state = u16::from(header.state);
    let kind = if state & libc::NUD_PERMANENT != 0 {
        FdbKind::Local
    } else if state & libc::NUD_NOARP != 0 {
        FdbKind::Static
    } else if header.flags.contains(NeighbourFlags::ExtLearned) {
        FdbKind::ExternLearned
    } else {
        FdbKind::Dynamic
    };
    FdbEntry {
        port: header.ifindex,
        kind,
        sticky: header.flags.contains(NeighbourFlags::Sticky),
        locked: extended.contains(NeighbourExtFlags::Locked),
    }
}

/// `placing` is `None` for a deletion.
fn route(payload: &[u8], placing: Option<Placing>) -> Option<Event> {
    let unreadable = |family| Some(Event::Unreadable(Family::routes(family)));
    let Ok(header) = RouteHeader::parse(payload) else {
        return Some(Event::Unreadable(Changes::ROUTES4 | Changes::ROUTES6));
    };
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        // Multicast routing (RTNL_FAMILY_IPMR) and MPLS use the same messages.
        _ => return None,
    };
    // Exceptions (learned path MTUs, redirects) are not routes, and forwarding does not look at them.
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut reader = RouteReader::new(family, &header);
    for nla in attributes(payload, ROUTE_HEADER) {
        reader.attribute(&nla);
    }
    if reader.table != TABLE_MAIN && reader.table != TABLE_LOCAL {
        return None;
    }
    let Some((key, route)) = reader.finish() else { return unreadable(family) };
    Some(match placing {
        Some(placing) => Event::Route(key, Box::new(route), placing),
        None => Event::RouteGone(key, Box::new(route)),
    })
}

struct RouteReader<'a> {
    header: &'a RouteHeader,
    table: u32,
    destination: IpAddr,
    source: IpAddr,
    priority: u32,
    readable: bool,
    route: Route,
    hasher: DefaultHasher,
}

impl<'a> RouteReader<'a> {
    fn new(family: Family, header: &'a RouteHeader) -> Self {
        let any = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(u8::from(header.protocol));
        RouteReader {
            header,
            table: u32::from(header.table),
            destination: any,
            source: any,
            priority: 0,
            readable: true,
            route: Route {
                kind: u8::from(header.kind),
                scope: u8::from(header.scope),
                gateway: None,
                oif: None,
                preferred_source: None,
                mtu: None,
                oddity: None,
                other_links: Vec::new(),
                fingerprint: 0,
            },
            hasher,
        }
    }

    fn attribute(&mut self, nla: &NlaBuffer<&[u8]>) {
        let parameters = (self.header.address_family, self.header.kind, RouteLwEnCapType::None);
        // The kernel gives RTA_ENCAP a shape that depends on RTA_ENCAP_TYPE; that there is one is all that matters.
        if matches!(nla.kind(), libc::RTA_ENCAP | libc::RTA_ENCAP_TYPE) {
            return self.odd(Oddity::Encapsulation, nla);
        }
        let Ok(attribute) = RouteAttribute::parse_with_param(nla, parameters) else {
            self.readable &=
                !matches!(nla.kind(), libc::RTA_DST | libc::RTA_SRC | libc::RTA_TABLE | libc::RTA_PRIORITY);
            return self.odd(Oddity::Unknown, nla);
        };
        match attribute {
            RouteAttribute::Destination(address) => self.destination = self.own_family(&address),
            RouteAttribute::Source(address) => self.source = self.own_family(&address),
            RouteAttribute::Table(table) => self.table = table,
            RouteAttribute::Priority(priority) => self.priority = priority,
            RouteAttribute::Gateway(address) => self.route.gateway = Some(self.own_family(&address)),
            RouteAttribute::PrefSource(address) => self.route.preferred_source = Some(self.own_family(&address)),
            RouteAttribute::Oif(ifindex) => self.route.oif = Some(ifindex),
            RouteAttribute::Metrics(metrics) => {
                self.route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                self.hash(nla);
            }
            RouteAttribute::MultiPath(hops) => {
                self.route.other_links = hops.iter().map(|hop| hop.interface_index).collect();
                // The flags of each hop (dead, link down) change without a word: only links and gateways count.
                for hop in &hops {
                    self.hasher.write_u32(hop.interface_index);
                    self.hasher.write_u8(hop.hops);
                    for attribute in &hop.attributes {
                        if let RouteAttribute::Gateway(address) = attribute {
                            std::hash::Hash::hash(&self.own_family(address), &mut self.hasher);
                        }
                    }
                }
                self.route.oddity.get_or_insert(Oddity::Multipath);
            }
            RouteAttribute::Via(_) => self.odd(Oddity::OtherFamilyGateway, nla),
            RouteAttribute::NhId(_) => self.odd(Oddity::NextHopObject, nla),
            // Ages and preferences: of no account for forwarding, and not the same in every message about a route.
            RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_) => {}
            RouteAttribute::Preference(_) | RouteAttribute::Realm(_) => self.hash(nla),
            _ => self.odd(Oddity::Unknown, nla),
        }
    }

    fn odd(&mut self, oddity: Oddity, nla: &NlaBuffer<&[u8]>) {
        self.route.oddity.get_or_insert(oddity);
        self.hash(nla);
    }

    fn hash(&mut self, nla: &NlaBuffer<&[u8]>) {
        self.hasher.write_u16(nla.kind());
        self.hasher.write(nla.value());
    }

    fn own_family(&mut self, address: &RouteAddress) -> IpAddr {
        match address {
            RouteAddress::Inet(ip) => IpAddr::V4(*ip),
            RouteAddress::Inet6(ip) => IpAddr::V6(*ip),
            _ => {
                self.readable = false;
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            }
        }
    }

    fn finish(mut self) -> Option<(RouteKey, Route)> {
        let destination = IpNet::new(self.destination, self.header.destination_prefix_length).ok()?.trunc();
        let source = IpNet::new(self.source, self.header.source_prefix_length).ok()?.trunc();
        self.route.fingerprint = self.hasher.finish();
        let key = RouteKey { table: self.table, destination, tos: self.header.tos, priority: self.priority, source };
        self.readable.then_some((key, self.route))
    }
}

/// Whether a route type is the plain one.
pub(super) fn is_unicast(kind: u8) -> bool {
    RouteType::from(kind) == RouteType::Unicast
}

fn rule(payload: &[u8], gone: bool) -> Option<Event> {
    let Ok(header) = RuleHeader::parse(payload) else { return Some(Event::Unreadable(Changes::RULES)) };
    let family = match header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut hasher = DefaultHasher::new();
    hasher.write(payload.get(..RULE_HEADER).unwrap_or_default());
    let mut rule = Rule { family, priority: 0, table: u32::from(header.table), plain: true, fingerprint: 0 };
    let selects = header.dst_len != 0 || header.src_len != 0 || header.tos != 0;
    rule.plain &= !selects && header.action == RuleAction::ToTable && !header.flags.contains(RuleFlags::Invert);
    for nla in attributes(payload, RULE_HEADER) {
        match RuleAttribute::parse(&nla) {
            Ok(RuleAttribute::Priority(priority)) => rule.priority = priority,
            Ok(RuleAttribute::Table(table)) => rule.table = table,
            Ok(RuleAttribute::Protocol(_)) => {}
            // The kernel always says that it suppresses nothing.
            Ok(RuleAttribute::SuppressPrefixLen(u32::MAX)) => {}
            Ok(RuleAttribute::L3MDev(false)) => {}
            _ => rule.plain = false,
        }
        hasher.write_u16(nla.kind());
        hasher.write(nla.value());
    }
    rule.fingerprint = hasher.finish();
    Some(if gone { Event::RuleGone(rule) } else { Event::Rule(rule) })
}
