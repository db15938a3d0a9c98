//! Netlink: any bytes as what the kernel says, through mirror and compiler to tables that decide.
//!
//! Input: a byte whose bit 0 says whether the cluster's CIDRs are configured and whose bit 1 says what follows: messages as they
//! are in a receive buffer, or bytes that well-formed messages are made of ([`Made`]), which bent bytes hardly ever are. Of the
//! sequence number of each message, bit 0 says whether it is part of a dump, and bit 1 whether the tables are compiled behind
//! it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use arbitrary::{Arbitrary, Unstructured};
use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use podlane::compile::{Compiler, Input, PortAssignment, compile};
use podlane::mirror::{Changes, World, event};
use podlane::outside;
use podlane_dataplane::forward::{Verdict, decide};
use podlane_dataplane::packet::parse;
use podlane_dataplane::table::{Path, PortKind, Tables};
use podlane_dataplane::{PortId, limits};

use crate::Seeds;
use crate::decide::frames;
use crate::shared::meaning::meaning;

const BRIDGE: u32 = 2;
const UPLINK: u32 = 3;
const PODS: [u32; 3] = [4, 5, 6];
/// Messages of one input that are compiled behind: each costs a compilation from scratch besides.
const COMPILED: usize = 8;
/// Bytes of a netlink header.
const HEADER: usize = 16;

fn input(configured: bool) -> Input {
    let assignment =
        |id, kind, path| PortAssignment { id: PortId(id), kind, max_frame: limits::MAX_FRAME as u32, path };
    let pods = PODS.into_iter().zip(1..).map(|(ifindex, id)| (ifindex, assignment(id, PortKind::Pod, Path::AfXdp)));
    let mut ports: BTreeMap<_, _> = pods.collect();
    ports.insert(UPLINK, assignment(0, PortKind::Uplink, Path::Kernel));
    let networks = ["10.0.0.0/8", "fd00::/16"].map(|network| network.parse().expect("a network"));
    Input { bridge: BRIDGE, ports, cluster: configured.then(|| networks.into()), ..Input::default() }
}

/// Applies all messages, compiles on the way and at the end, and decides some frames.
///
/// # Panics
/// If a message that comes twice makes a difference, or tables that were compiled step by step are not those from scratch.
pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let made = if mode & 2 == 0 { bytes.to_vec() } else { made(bytes) };
    let input = input(mode & 1 != 0);
    let (mut world, mut compiler, mut pending, mut compiled) = (World::default(), Compiler::new(), Changes::ALL, 0);
    for (header, payload) in outside::netlink(&made) {
        let Some(event) = event::read(header, payload, header.sequence & 1 != 0) else { continue };
        let applied = world.apply(event.clone());
        pending |= applied.changed | applied.stale;
        let once = world.clone();
        let again = world.apply(event.clone());
        // What is stale is dumped again, so a difference there does not last.
        if again.stale.is_empty() {
            assert_eq!(world, once, "{event:?} is applied twice");
        }
        pending |= again.changed | again.stale;
        if header.sequence & 2 != 0 && compiled < COMPILED {
            check(&mut compiler, &world, &input, std::mem::replace(&mut pending, Changes::NONE));
            compiled += 1;
        }
    }
    check(&mut compiler, &world, &input, pending);
}

fn check(compiler: &mut Compiler, world: &World, input: &Input, pending: Changes) {
    let step_by_step = compiler.compile(world, input, pending);
    assert_eq!(meaning(&step_by_step), meaning(&compile(world, input)));
    decide_some(&step_by_step.tables);
}

fn decide_some(tables: &Tables) {
    thread_local!(static FRAMES: Vec<Vec<u8>> = frames(12).into_iter().map(|(_, frame)| frame).collect());
    FRAMES.with(|frames| {
        for frame in frames {
            let Ok(headers) = parse(frame, frame.len() as u32) else { continue };
            for ingress in 0..4 {
                if let Verdict::Forward { port, .. } = decide(&headers, PortId(ingress), tables) {
                    assert!(tables.ports.get(port).is_some());
                }
            }
        }
    });
}

/// A well-formed message: type and flags, the fields in front of the attributes, and attributes.
#[derive(Arbitrary, Debug)]
struct Made {
    kind: u8,
    flags: u16,
    sequence: u8,
    fields: [u8; 16],
    attributes: Vec<Attribute>,
}

#[derive(Arbitrary, Debug)]
struct Attribute {
    kind: u8,
    value: Value,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Byte(u8),
    Short(u16),
    /// An interface, a metric, a table: mostly one that there is.
    Small(u8),
    Word(u32),
    Address4([u8; 2]),
    Address6([u8; 2]),
    Mac(u8),
    Bytes(Vec<u8>),
    Nested(Vec<(u8, Vec<u8>)>),
}

/// Message types, and bytes of the fields of each.
const KINDS: [(u16, usize); 14] = [
    (NEW_LINK, 16),
    (DEL_LINK, 16),
    (20, 8),
    (21, 8),
    (NEW_ROUTE, 12),
    (NEW_ROUTE, 12),
    (DEL_ROUTE, 12),
    (NEW_NEIGHBOUR, 12),
    (NEW_NEIGHBOUR, 12),
    (DEL_NEIGHBOUR, 12),
    (NEW_RULE, 12),
    (33, 12),
    (80, 4),
    (104, 8),
];

fn made(bytes: &[u8]) -> Vec<u8> {
    let messages = Vec::<Made>::arbitrary_take_rest(Unstructured::new(bytes)).unwrap_or_default();
    let mut all = Vec::new();
    for made in messages {
        let (kind, fields) = KINDS[usize::from(made.kind) % KINDS.len()];
        let mut payload = made.fields[..fields].to_vec();
        // Families, kinds and prefixes that make sense are rare among all.
        payload[0] = [2, 10, 7, 0, payload[0]][usize::from(payload[0]) % 5];
        match kind {
            NEW_LINK | DEL_LINK | NEW_NEIGHBOUR | DEL_NEIGHBOUR => {
                payload[4..8].copy_from_slice(&(2 + u32::from(made.fields[4]) % 6).to_ne_bytes());
            }
            NEW_ROUTE | DEL_ROUTE => {
                payload[1] = [0, 8, 16, 24, 32, 64, 128, payload[1]][usize::from(payload[1]) % 8];
                payload[4] = [254, 255, 253, payload[4]][usize::from(payload[4]) % 4];
                payload[7] = [1, 2, 6, payload[7]][usize::from(payload[7]) % 4];
            }
            _ => {}
        }
        for Attribute { kind, value } in made.attributes {
            attribute(&mut payload, kind, &value.bytes());
        }
        message(&mut all, kind, made.flags, made.sequence.into(), &payload);
    }
    all
}

impl Value {
    fn bytes(self) -> Vec<u8> {
        match self {
            Value::Byte(byte) => vec![byte],
            Value::Short(short) => short.to_ne_bytes().to_vec(),
            Value::Small(small) => u32::from(small % 8).to_ne_bytes().to_vec(),
            Value::Word(word) => word.to_ne_bytes().to_vec(),
            Value::Address4([block, host]) => vec![10, 244, block % 4, host % 4],
            Value::Address6([block, host]) => {
                vec![0xfd, 0, 0, 0x10, 2, 0x44, 0, block % 4, 0, 0, 0, 0, 0, 0, 0, host % 4]
            }
            Value::Mac(last) => vec![2, 0, 0, 0, 0, last % 8],
            Value::Bytes(bytes) => bytes,
            Value::Nested(attributes) => {
                let mut nested = Vec::new();
                attributes.iter().for_each(|(kind, value)| attribute(&mut nested, *kind, value));
                nested
            }
        }
    }
}

fn attribute(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = &value[..value.len().min(1024)];
    out.extend((value.len() as u16 + 4).to_ne_bytes());
    out.extend(u16::from(kind % 72).to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    out.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

// `RTM_*` (linux/rtnetlink.h).
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const NEW_RULE: u16 = 32;

/// Messages one behind the other.
#[derive(Default)]
struct Told(Vec<u8>);

impl Told {
    fn tell(&mut self, kind: u16, one: &impl Emitable) -> &mut Self {
        let mut payload = vec![0; one.buffer_len()];
        one.emit(&mut payload);
        message(&mut self.0, kind, 0, 2, &payload);
        self
    }

    fn node(&mut self) -> &mut Self {
        let options = InfoData::Bridge(vec![InfoBridge::VlanFiltering(false)]);
        let bridge = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(options)];
        self.tell(NEW_LINK, &link(BRIDGE, "cbr0", bridge, None)).tell(NEW_LINK, &link(UPLINK, "eth0", vec![], None));
        for ifindex in PODS {
            self.tell(NEW_LINK, &pod(ifindex));
        }
        for (family, table, priority) in [(2, 255, 0), (2, 254, 32766), (2, 253, 32767), (10, 255, 0), (10, 254, 32766)]
        {
            self.tell(NEW_RULE, &rule(AddressFamily::from(family), table, priority));
        }
        self
    }
}

fn link(ifindex: u32, name: &str, infos: Vec<LinkInfo>, master: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
    let mac = LinkAttribute::Address(vec![2, 0, 0, 0, 1, ifindex as u8]);
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(1500), mac];
    message.attributes.extend((!infos.is_empty()).then_some(LinkAttribute::LinkInfo(infos)));
    message.attributes.extend(master.map(LinkAttribute::Controller));
    message
}

fn pod(ifindex: u32) -> LinkMessage {
    let port = vec![InfoBridgePort::State(BridgePortState::Forwarding), InfoBridgePort::Learning(true)];
    let infos = vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(port)),
    ];
    link(ifindex, &format!("veth{ifindex}"), infos, Some(BRIDGE))
}

fn rule(family: AddressFamily, table: u8, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(table.into()),
        RuleAttribute::SuppressPrefixLen(u32::MAX),
    ];
    message
}

fn route(network: &str, table: u8, kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let (address, length) = network.split_once('/').expect("a network");
    let address: IpAddr = address.parse().expect("an address");
    let mut message = RouteMessage::default();
    message.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = length.parse().expect("a length");
    message.header.table = table;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(address.into()), RouteAttribute::Table(table.into())];
    message.attributes.extend(attributes);
    message
}

fn unicast(network: &str, attributes: Vec<RouteAttribute>) -> RouteMessage {
    route(network, 254, RouteType::Unicast, attributes)
}

fn via(gateway: &str) -> Vec<RouteAttribute> {
    let gateway: IpAddr = gateway.parse().expect("an address");
    vec![RouteAttribute::Oif(UPLINK), RouteAttribute::Gateway(gateway.into())]
}

fn neighbour(ifindex: u32, address: &str, last: u8) -> NeighbourMessage {
    let address: IpAddr = address.parse().expect("an address");
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Reachable;
    let mac = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 10, 244, 1, last]);
    message.attributes = vec![NeighbourAttribute::Destination(address.into()), mac];
    message
}

fn fdb(port: u32, last: u8) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Reachable;
    let mac = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 10, 244, 1, last]);
    message.attributes = vec![mac, NeighbourAttribute::Controller(BRIDGE)];
    message
}

/// What becomes of a node.
type Tell = fn(&mut Told);

fn stations(told: &mut Told) {
    told.tell(NEW_NEIGHBOUR, &fdb(4, 1)).tell(NEW_NEIGHBOUR, &fdb(5, 2)).tell(NEW_NEIGHBOUR, &fdb(5, 1));
    told.tell(DEL_NEIGHBOUR, &fdb(5, 1)).tell(DEL_LINK, &pod(5));
}

fn routes(told: &mut Told) {
    let on_bridge = |network| unicast(network, vec![RouteAttribute::Oif(BRIDGE)]);
    told.tell(NEW_ROUTE, &on_bridge("10.244.1.0/24")).tell(NEW_ROUTE, &on_bridge("fd00:10:244:1::/64"));
    told.tell(NEW_ROUTE, &unicast("10.244.2.0/24", via("192.0.2.2")));
    told.tell(NEW_NEIGHBOUR, &neighbour(UPLINK, "192.0.2.2", 9));
    told.tell(NEW_NEIGHBOUR, &neighbour(BRIDGE, "10.244.1.2", 1)).tell(NEW_NEIGHBOUR, &fdb(4, 1));
    told.tell(NEW_NEIGHBOUR, &neighbour(BRIDGE, "fd00:10:244:1::2", 1));
    told.tell(DEL_NEIGHBOUR, &neighbour(UPLINK, "192.0.2.2", 9));
    told.tell(DEL_ROUTE, &unicast("10.244.2.0/24", via("192.0.2.2")));
}

fn odd_routes(told: &mut Told) {
    told.tell(NEW_ROUTE, &route("10.244.3.0/24", 254, RouteType::BlackHole, vec![]));
    told.tell(NEW_ROUTE, &route("10.244.1.1/32", 255, RouteType::Local, vec![RouteAttribute::Oif(BRIDGE)]));
    let mtu = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]);
    told.tell(NEW_ROUTE, &unicast("fd00:10:244:2::/64", [via("fe80::1"), vec![mtu]].concat()));
    told.tell(NEW_ROUTE, &unicast("0.0.0.0/0", [via("192.0.2.1"), vec![RouteAttribute::Priority(5)]].concat()));
}

fn rules(told: &mut Told) {
    told.tell(NEW_RULE, &rule(AddressFamily::Inet, 100, 1000));
}

/// A node whose parts come and go, in the kernel's words; and bytes for messages to be made of.
pub fn seeds() -> Seeds {
    let histories: [(&str, Tell); 4] =
        [("stations", stations), ("routes", routes), ("odd-routes", odd_routes), ("rules", rules)];
    let mut all = Seeds::new();
    for (name, tell) in histories {
        let mut told = Told::default();
        tell(told.node());
        all.push((name.to_owned(), [&[1][..], &told.0].concat()));
        all.push((format!("{name}-own-networks"), [&[0][..], &told.0].concat()));
    }
    let mut random = crate::random::Random(5);
    for number in 0..6 {
        let mut input = vec![2 | (number & 1)];
        input.extend((0..400).map(|_| random.number() as u8));
        all.push((format!("made-{number}"), input));
    }
    all
}
