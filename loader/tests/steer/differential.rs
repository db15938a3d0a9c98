//! Random frames over random tables: the program must decide as the engine does, reason for reason.
//!
//! The XDP program answers for ports of the af_xdp path, the tc program for those of the kernel path, and there the bytes
//! that leave are compared as well. The numbers come from a small generator with a fixed seed, so a failure repeats;
//! `PODLANE_SEED` picks another run and `PODLANE_ROUNDS` a longer one (each is a world and 200 frames). The fuzz target `kernel`
//! asks the same of frames that a search makes.

use std::sync::Arc;

use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, Guard, GuardTable, HostTable, LinkId, NextHop, NextHopAction,
    Path as ServedBy, PortKind, PortTable, Routing, Tables,
};
use podlane_dataplane::{MacAddr, PortId};

use crate::frames::*;
use crate::net;
use crate::world::{INGRESS, INTERFACES, Outcome, Repeated, UPLINK, World, port};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

const MACS: [MacAddr; 9] =
    [POD_A, POD_B, POD_C, BRIDGE_MAC, UPLINK_MAC, OTHER_NODE, NOBODY, MacAddr::BROADCAST, MacAddr::ZERO];

pub fn random_tables(random: &mut Random, ifindexes: [u32; 4]) -> Tables {
    let ports: Vec<_> =
        INGRESS.into_iter().zip(ifindexes).map(|(id, ifindex)| (id, random_port(random, id, ifindex))).collect();
    let entry = |port| FdbEntry { port, is_static: false, activity: 0 };
    let fdb: Vec<_> = MACS[..8].iter().map(|&mac| (mac, entry(PortId(random.below(5) as u16)))).collect();
    let fdb: Vec<_> = fdb.into_iter().filter(|_| !random.one_in(6)).collect();
    let link = |random: &mut Random| random.pick(&[LinkId::BRIDGE, LinkId::uplink(UPLINK)]);
    let mut hosts = HostTable::default();
    for _ in 0..random.below(12) {
        let (subnet, host) = (random.below(4) as u8, random.below(4) as u8);
        hosts.insert4(link(random), ip4(subnet, host), random.below(5) as u32);
        hosts.insert6(link(random), ip6(subnet, host), random.below(5) as u32);
    }
    let adjacencies = (0..random.below(5)).map(|_| Adjacency {
        port: PortId(random.below(5) as u16),
        destination: OTHER_NODE,
        source: UPLINK_MAC,
        activity: 0,
    });
    let adjacencies: Vec<_> = adjacencies.collect();
    let next_hops: Vec<_> = (0..random.below(8)).map(|_| random_next_hop(random)).collect();
    let routes = |random: &mut Random| -> Vec<(u8, u8, u8, u32)> {
        (0..random.below(12))
            .map(|_| {
                (
                    random.below(4) as u8,
                    random.below(4) as u8,
                    random.pick(&[0, 8, 16, 24, 30, 32]),
                    random.below(9) as u32,
                )
            })
            .collect()
    };
    let routes4: Vec<_> = routes(random)
        .into_iter()
        .map(|(subnet, host, length, hop)| (ip4(subnet, host).to_bits(), length, hop))
        .collect();
    let routes6: Vec<_> = routes(random)
        .into_iter()
        .map(|(subnet, host, length, hop)| (ip6(subnet, host).to_bits(), length * 4, hop))
        .collect();
    let cidr = |random: &mut Random| (random.below(4) as u8, random.pick(&[0_u8, 8, 16, 16, 24, 31]));
    let cluster4: Vec<_> =
        (0..random.below(4)).map(|_| cidr(random)).map(|(net, length)| (ip4(net, 0), length)).collect();
    let cluster6: Vec<_> =
        (0..random.below(4)).map(|_| cidr(random)).map(|(net, length)| (ip6(net, 0), length * 2)).collect();
    let off = |random: &mut Random| random.one_in(8).then(|| random.pick(PassReason::ALL));
    Tables {
        ports: Arc::new(PortTable::new(ports)),
        fdb: Arc::new(Fdb::new(fdb).0),
        fib4: Arc::new(Fib::new(routes4)),
        fib6: Arc::new(Fib::new(routes6)),
        next_hops: Arc::new(next_hops),
        hosts: Arc::new(hosts),
        adjacencies: Arc::new(adjacencies),
        cluster: Arc::new(Cluster::new(cluster4, cluster6).unwrap()),
        routing: Routing {
            ipv4_off: off(random),
            ipv6_off: off(random),
            bridge_off: off(random),
            ..Routing::default()
        },
        guards: Arc::new(GuardTable::new(INGRESS.into_iter().filter_map(|id| Some((id, random_guard(random)?))))),
        tap: None,
        ..Tables::default()
    }
}

/// Of some of the addresses that frames have; half of the ports have none.
fn random_guard(random: &mut Random) -> Option<Guard> {
    if random.one_in(2) {
        return None;
    }
    let macs = (0..1 + random.below(4)).map(|_| random.pick(&MACS[..7]));
    let macs: Vec<_> = macs.collect();
    let addresses = (0..random.below(9)).map(|_| (random.below(4) as u8, random.below(4) as u8));
    let addresses: Vec<_> = addresses.collect();
    let ipv4 = addresses.iter().map(|&(subnet, host)| ip4(subnet, host).into());
    let ipv6 = addresses.iter().map(|&(subnet, host)| ip6(subnet, host).into());
    Some(Guard::new(macs, ipv4.chain(ipv6)).unwrap().with(random.one_in(2), random.one_in(2)))
}

/// ARP, or neighbour discovery, from a pod.
fn random_neighbour_frame(random: &mut Random) -> Vec<u8> {
    let mac = |random: &mut Random| random.pick(&MACS[..7]);
    let address = |random: &mut Random| (random.below(4) as u8, random.below(4) as u8);
    let (source, claimed) = (address(random), address(random));
    let path =
        Path { source_mac: mac(random), destination_mac: random.pick(&MACS), source, destination: address(random) };
    if random.one_in(2) {
        let sender = if random.one_in(2) { path.source_mac } else { mac(random) };
        return arp(path, sender, claimed);
    }
    let mut frame = advertisement(path, claimed);
    if random.one_in(3) {
        frame[L4[1]] = 133 + random.below(5) as u8;
    }
    if random.one_in(4) {
        frame[L3 + 6] = random.pick(&[0, 43, 44, 51, 60, 58]);
    }
    if random.one_in(6) {
        frame[L3 + 8..L3 + 10].copy_from_slice(&[0xfe, 0x80]);
    }
    if random.one_in(6) {
        frame.truncate(14 + random.below(frame.len() as u64 - 13) as usize);
    }
    frame
}

fn random_port(random: &mut Random, id: PortId, ifindex: u32) -> podlane_dataplane::table::Port {
    let kind = random.pick(&[PortKind::Pod, PortKind::Pod, PortKind::Uplink, PortKind::Host]);
    let mut port =
        port(ifindex, if id == UPLINK { PortKind::Uplink } else { kind }, random.pick(&[BRIDGE_MAC, UPLINK_MAC]));
    port.forwarding = !random.one_in(8);
    port.isolated = random.one_in(3);
    port.partial_checksums = random.one_in(2);
    port.mtu = random.pick(&[80, 100, 1500, 9000]);
    port.max_frame = random.pick(&[90, 200, 4096, 65_014]);
    port.path = random.pick(&[ServedBy::AfXdp, ServedBy::Kernel]);
    port.learning = !random.one_in(4);
    port.peer = random.one_in(2);
    port
}

fn random_next_hop(random: &mut Random) -> NextHop {
    let action = match random.below(4) {
        0 => NextHopAction::Kernel(random.pick(PassReason::ALL)),
        1 => NextHopAction::OnLink(random.pick(&[LinkId::BRIDGE, LinkId::uplink(UPLINK)])),
        _ => NextHopAction::Gateway(random.below(5) as u32),
    };
    NextHop { action, mtu: random.pick(&[60, 100, u32::MAX]) }
}

/// A frame that is nearly right, so that it gets far; then, sometimes, bent.
pub fn random_frame(random: &mut Random) -> Vec<u8> {
    let family = random.pick(&FAMILIES);
    let address = |random: &mut Random| (random.below(4) as u8, random.below(4) as u8);
    let path = Path {
        source_mac: random.pick(&MACS[..7]),
        destination_mac: random.pick(&MACS),
        source: address(random),
        destination: address(random),
    };
    let payload = random.below(120) as usize;
    let mut frame = match random.below(3) {
        0 => tcp(family, path, payload),
        1 => {
            let ports = [53, 4789, 8472, 6081, 5555, 6080, 2152, 6635, 80, 443, 1234, 9999];
            udp(family, path, (random.pick(&ports[8..]), random.pick(&ports)), payload)
        }
        _ => echo(family, path, payload),
    };
    if family == Family::V6 && random.one_in(12) {
        let right = (frame.len() - L4[1] + 8) as u64;
        let length = random.pick(&[right, right, right + 1, 7, 30, u64::from(u32::MAX)]);
        make_jumbo(&mut frame, length as u32);
    }
    if random.one_in(4) {
        frame.resize(frame.len() + random.below(40) as usize, 0);
    }
    if random.one_in(2) {
        bend(random, family, &mut frame);
    }
    frame
}

fn bend(random: &mut Random, family: Family, frame: &mut Vec<u8>) {
    let l4 = L4[usize::from(family == Family::V6)];
    match random.below(11) {
        9 => put16(frame, L3 + if family == Family::V4 { 2 } else { 4 }, 0),
        10 => {
            let at = (l4 + 12).min(frame.len() - 1);
            frame[at] = random.pick(&[0x40, 0x50, 0x80, 0xf0]);
        }
        0 => frame[L3] = random.pick(&[0x45, 0x46, 0x4f, 0x44, 0x60, 0x50, 0x00]),
        1 => put16(frame, L3 + 2, random.below(200) as u16),
        2 => put16(frame, L3 + 4, random.below(200) as u16),
        3 => put16(frame, L3 + 6, random.pick(&[0x4000, 0x2000, 0x8000, 1, 0])),
        4 => frame[L3 + 8 - usize::from(family == Family::V6)] = random.below(3) as u8,
        5 => frame[L3 + if family == Family::V4 { 9 } else { 6 }] = random.next() as u8,
        6 => put16(frame, 12, random.pick(&[0x0800, 0x86dd, 0x8100, 0x88a8, 0x0806])),
        7 => frame[l4..].iter_mut().take(8).for_each(|byte| *byte = random.pick(&[0, 133, 137, 53, 255])),
        _ => {
            let at = random.below(frame.len() as u64) as usize;
            frame[at] ^= 1 << random.below(8);
        }
    }
    if random.one_in(3) {
        frame.truncate(14 + random.below(frame.len() as u64 - 13) as usize);
    }
    if family == Family::V4 && frame.len() >= 34 && random.one_in(2) {
        fix_ipv4_checksum(frame);
    }
}

#[test]
fn program_and_engine_agree() {
    net::test("program_and_engine_agree", || {
        let seed = std::env::var("PODLANE_SEED").map_or(1, |text| text.parse().expect("PODLANE_SEED is a number"));
        let mut random = Random(seed);
        let mut world = World::new();
        let ifindexes = INTERFACES.map(net::ifindex);
        let mut seen = std::collections::HashMap::new();
        let rounds =
            std::env::var("PODLANE_ROUNDS").map_or(400_u32, |text| text.parse().expect("PODLANE_ROUNDS is a number"));
        let (mut supers, mut too_short) = (0, 0);
        for round in 0..rounds {
            let tables = random_tables(&mut random, ifindexes);
            world.change(|current| *current = tables.clone());
            for _ in 0..200 {
                let is_neighbours = random.one_in(6);
                let frame = if is_neighbours { random_neighbour_frame(&mut random) } else { random_frame(&mut random) };
                let ingress = random.pick(&INGRESS);
                let context = || format!("seed {seed}, round {round}, from {ingress}: {frame:02x?}\n{:#?}", tables);
                let path = tables.ports.get(ingress).unwrap().path;
                let outcome = match path {
                    ServedBy::AfXdp => {
                        let (engine, program) = (world.engine(ingress, &frame), world.program(ingress, &frame));
                        assert_eq!(program, engine, "{}", context());
                        engine
                    }
                    ServedBy::Kernel => {
                        let gso_size = if random.one_in(3) { 20 + random.below(1600) as u16 } else { 0 };
                        let engine = world.engine_repeats(ingress, &frame, gso_size);
                        let Some(program) = world.repeats(ingress, &frame, gso_size) else {
                            too_short += 1;
                            continue;
                        };
                        assert_eq!(program, engine, "segments of {gso_size}, {}", context());
                        supers += u32::from(gso_size != 0 && matches!(engine, Repeated::Forwarded(..)));
                        match engine {
                            Repeated::Forwarded(..) => Outcome::Steered,
                            Repeated::Passed(reason) => Outcome::Passed(reason),
                            Repeated::Dropped(reason) => Outcome::Dropped(reason),
                        }
                    }
                };
                world.other_program_keeps_out(ingress, &frame);
                *seen.entry((path, outcome)).or_insert(0_u32) += 1;
            }
        }
        for path in [ServedBy::AfXdp, ServedBy::Kernel] {
            let happens = |reason: &&PassReason| match path {
                ServedBy::AfXdp => !ONLY_REPEATED.contains(reason),
                ServedBy::Kernel => !ONLY_STEERED.contains(reason),
            };
            let missing = |reason: &&PassReason| !seen.contains_key(&(path, Outcome::Passed(**reason)));
            let missing: Vec<_> = DECIDED.iter().filter(happens).filter(missing).collect();
            assert!(
                missing.is_empty() && seen[&(path, Outcome::Steered)] > 100,
                "reasons that never came up on {path:?}: {missing:?}; {seen:?}"
            );
            for reason in &DropReason::ALL[DropReason::FIRST_OF_GUARD..] {
                assert!(seen.contains_key(&(path, Outcome::Dropped(*reason))), "{reason:?} on {path:?}: {seen:?}");
            }
        }
        assert!(too_short < rounds * 10, "{too_short} frames were too short for a test run");
        assert!(supers > 20, "{supers} super-frames were forwarded");
    });
}

/// Reasons of one path alone.
const ONLY_STEERED: [PassReason; 2] = [PassReason::FrameSize, PassReason::HiddenChecksum];
const ONLY_REPEATED: [PassReason; 2] = [PassReason::UnknownSource, PassReason::SuperFrame];

/// Reasons that a decision can come to by itself.
const DECIDED: [PassReason; 20] = [
    PassReason::UnknownSource,
    PassReason::SuperFrame,
    PassReason::NotIp,
    PassReason::Vlan,
    PassReason::Group,
    PassReason::Malformed,
    PassReason::Options,
    PassReason::Fragment,
    PassReason::Ttl,
    PassReason::Protocol,
    PassReason::NeighbourDiscovery,
    PassReason::OutsideCluster,
    PassReason::UnknownMac,
    PassReason::NoRoute,
    PassReason::Unresolved,
    PassReason::TooBig,
    PassReason::Hairpin,
    PassReason::PortState,
    PassReason::FrameSize,
    PassReason::HiddenChecksum,
];
