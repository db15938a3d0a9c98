//! The source guard in both programs, case by case, beside the engine's answer.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use podlane_dataplane::afxdp::clock;
use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::table::{Fdb, FdbEntry, Guard, GuardTable, Path as ServedBy};
use podlane_dataplane::{MacAddr, limits};

use crate::frames::*;
use crate::net;
use crate::world::{A, Outcome, Repeated, World};

const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa));

/// Pod A is host 10 of subnet 1, with a second address of each family.
fn own() -> Guard {
    let addresses = [ip4(1, 10).into(), ip4(1, 77).into(), ip6(1, 10).into(), ip6(1, 77).into(), LINK_LOCAL];
    Guard::new([POD_A], addresses).unwrap().with(false, true)
}

impl World {
    fn guard(&mut self, guard: Guard) {
        self.change(|tables| tables.guards = Arc::new(GuardTable::new([(A, guard)])));
    }
}

fn guarded(guard: Guard) -> World {
    let mut world = World::new();
    world.guard(guard);
    world
}

/// What all three say of a frame from pod A; they must agree.
fn judged(world: &mut World, frame: &[u8]) -> Option<DropReason> {
    let engine = world.engine(A, frame);
    assert_eq!(world.program(A, frame), engine, "the XDP program about {frame:02x?}");
    world.change_port(A, |port| port.path = ServedBy::Kernel);
    let repeats = world.engine_repeats(A, frame, 0);
    if let Some(program) = world.repeats(A, frame, 0) {
        assert_eq!(program, repeats, "the tc program about {frame:02x?}");
    }
    world.change_port(A, |port| port.path = ServedBy::AfXdp);
    match (engine, repeats) {
        (Outcome::Dropped(reason), Repeated::Dropped(same)) if reason == same => Some(reason),
        (Outcome::Dropped(_), _) | (_, Repeated::Dropped(_)) => panic!("the paths differ about {frame:02x?}"),
        _ => None,
    }
}

/// Nobody else is known to be behind pod A's port.
fn behind_pod_a(world: &mut World, macs: impl IntoIterator<Item = MacAddr>) {
    let macs: Vec<_> = macs.into_iter().collect();
    world.change(|tables| {
        let others: Vec<_> = tables.fdb.iter().filter(|(_, entry)| entry.port != A).collect();
        let here = |(index, mac): (usize, &MacAddr)| {
            (*mac, FdbEntry { port: A, is_static: false, activity: 100 + index as u32 })
        };
        tables.fdb = Arc::new(Fdb::new(others.into_iter().chain(macs.iter().enumerate().map(here))).0);
    });
}

fn from(source_mac: MacAddr, source: (u8, u8)) -> Path {
    Path { source_mac, source, ..BRIDGED }
}

fn with_vlan(mut frame: Vec<u8>, tags: &[u16]) -> Vec<u8> {
    for tag in tags.iter().rev() {
        frame.splice(12..12, [0x81, 0x00].into_iter().chain(tag.to_be_bytes()));
    }
    frame
}

#[test]
fn own_addresses_get_through_and_others_do_not() {
    net::test("own_addresses_get_through_and_others_do_not", || {
        let mut world = guarded(own());
        // With one station behind the port most is judged by its own entry; with two, none is.
        for (family, stations) in FAMILIES.into_iter().flat_map(|family| [(family, 1), (family, 2)]) {
            let second = (stations == 2).then_some(MacAddr::new([2, 0, 0, 0, 0xaa, 0xaa]));
            behind_pod_a(&mut world, [POD_A].into_iter().chain(second));
            let mut told = |path| judged(&mut world, &udp(family, path, (1, 2), 30));
            assert_eq!(told(BRIDGED), None);
            assert_eq!(told(ROUTED), None);
            assert_eq!(told(from(POD_A, (1, 77))), None, "a second address");
            assert_eq!(told(from(POD_A, (1, 11))), Some(DropReason::ForeignAddress), "pod B's");
            assert_eq!(told(from(POD_A, (1, 1))), Some(DropReason::ForeignAddress), "the gateway's");
            assert_eq!(told(from(POD_A, (2, 5))), Some(DropReason::ForeignAddress), "one of another node");
            assert_eq!(told(from(POD_B, (1, 10))), Some(DropReason::ForeignMac));
            assert_eq!(told(from(MacAddr::ZERO, (1, 10))), Some(DropReason::ForeignMac), "nobody's");
        }
    });
}

#[test]
fn addresses_outside_of_the_cluster_are_for_strict_guards() {
    net::test("addresses_outside_of_the_cluster_are_for_strict_guards", || {
        let mut world = World::new();
        for strict in [false, true] {
            world.guard(own().with(strict, true));
            let expected = strict.then_some(DropReason::ForeignAddress);
            for family in FAMILIES {
                let mut frame = udp(family, BRIDGED, (1, 2), 30);
                let at = L3 + if family == Family::V4 { 12 } else { 8 };
                frame[at] = 0x20;
                assert_eq!(judged(&mut world, &frame), expected, "{family:?}");
                let bytes = if family == Family::V4 { 4 } else { 16 };
                frame[at..at + bytes].fill(0);
                assert_eq!(judged(&mut world, &frame), None, "no address yet, {family:?}");
            }
        }
    });
}

#[test]
fn link_local_addresses_are_judged_where_the_pods_are_known() {
    net::test("link_local_addresses_are_judged_where_the_pods_are_known", || {
        let mut world = World::new();
        for (link_local, strict) in [(false, false), (false, true), (true, false), (true, true)] {
            world.guard(own().with(strict, link_local));
            let mut frame = udp(Family::V6, BRIDGED, (1, 2), 30);
            frame[L3 + 8..L3 + 24].fill(0);
            frame[L3 + 8..L3 + 10].copy_from_slice(&[0xfe, 0x80]);
            frame[L3 + 23] = 0xa;
            assert_eq!(judged(&mut world, &frame), None);
            frame[L3 + 23] = 0xb;
            assert_eq!(judged(&mut world, &frame), link_local.then_some(DropReason::ForeignAddress));
        }
    });
}

#[test]
fn arp_and_neighbour_discovery_speak_for_their_sender_only() {
    net::test("arp_and_neighbour_discovery_speak_for_their_sender_only", || {
        let mut world = guarded(own());
        let broadcast = Path { destination_mac: MacAddr::BROADCAST, ..BRIDGED };
        let foreign = Some(DropReason::FalseNeighbour);
        for path in [BRIDGED, broadcast] {
            assert_eq!(judged(&mut world, &arp(path, POD_A, (1, 10))), None);
            assert_eq!(judged(&mut world, &arp(path, POD_A, (1, 1))), foreign, "says it is the gateway");
            assert_eq!(judged(&mut world, &arp(path, POD_B, (1, 10))), foreign, "says it is elsewhere");
            assert_eq!(judged(&mut world, &advertisement(path, (1, 10))), None);
            assert_eq!(judged(&mut world, &advertisement(path, (1, 1))), foreign);
        }
        let mut probe = arp(broadcast, POD_A, (1, 10));
        probe[28..32].fill(0);
        assert_eq!(judged(&mut world, &probe), None, "an address that it asks for before it has it");
        assert_eq!(judged(&mut world, &arp(broadcast, POD_A, (1, 10))[..27]), Some(DropReason::HiddenSource));
        assert_eq!(judged(&mut world, &advertisement(BRIDGED, (1, 10))[..70]), Some(DropReason::HiddenSource));
        for router in [134, 137] {
            let mut frame = advertisement(BRIDGED, (1, 10));
            frame[L4[1]] = router;
            assert_eq!(judged(&mut world, &frame), foreign, "type {router}");
        }
    });
}

/// Everything by which a sender could be hidden from the guard and yet be read by a receiver.
#[test]
fn hidden_senders_are_dropped() {
    net::test("hidden_senders_are_dropped", || {
        let mut world = guarded(own());
        let hidden = Some(DropReason::HiddenSource);
        let foreign = udp(Family::V4, from(POD_A, (1, 11)), (1, 2), 30);
        assert_eq!(judged(&mut world, &with_vlan(foreign.clone(), &[0])), hidden, "a priority tag");
        assert_eq!(judged(&mut world, &with_vlan(foreign.clone(), &[0, 0])), hidden, "two of them");
        assert_eq!(judged(&mut world, &with_vlan(foreign, &[5])), hidden);
        for header in [0, 43, 51, 60, 135, 139, 140] {
            let mut frame = advertisement(BRIDGED, (1, 1));
            frame[L3 + 6] = header;
            assert_eq!(judged(&mut world, &frame), hidden, "behind extension header {header}");
            frame[L3 + 7] = 64;
            assert_eq!(judged(&mut world, &frame), None, "with a hop limit with which nobody accepts it");
        }
        let mut fragment = advertisement(BRIDGED, (1, 1));
        fragment[L3 + 6] = 44;
        for (inner, expected) in
            [(58, hidden), (0, hidden), (44, hidden), (60, hidden), (6, None), (17, None), (50, None)]
        {
            fragment[L3 + 7] = 255;
            fragment[L4[1]] = inner;
            assert_eq!(judged(&mut world, &fragment), expected, "in a fragment of {inner}");
            fragment[L3 + 7] = 64;
            assert_eq!(judged(&mut world, &fragment), None, "in a fragment of {inner} that has come through a router");
        }
        fragment[L3 + 7] = 255;
        assert_eq!(judged(&mut world, &fragment[..L4[1]]), hidden, "a fragment that says nothing");
        for family in FAMILIES {
            for frame in [tcp(family, BRIDGED, 0), tcp(family, from(POD_A, (1, 11)), 0)] {
                let header_end = L4[usize::from(family == Family::V6)];
                assert_eq!(judged(&mut world, &frame[..header_end - 1]), hidden, "cut within its IP header");
            }
        }
    });
}

/// IP headers that pass to the kernel for any reason are judged as well: fragments, options, a TTL of 1, lying lengths.
#[test]
fn what_would_pass_to_the_kernel_is_judged_too() {
    net::test("what_would_pass_to_the_kernel_is_judged_too", || {
        let mut world = guarded(own());
        for (source, expected) in [((1, 10), None), ((1, 11), Some(DropReason::ForeignAddress))] {
            let whole = udp(Family::V4, from(POD_A, source), (1, 2), 30);
            let bend: [fn(&mut Vec<u8>); 6] = [
                |frame| frame[L3] = 0x46,
                |frame| frame[L3 + 6] = 0x20,
                |frame| frame[L3 + 8] = 1,
                |frame| frame[L3 + 9] = 47,
                |frame| frame[L3 + 2] = 0x7f,
                |frame| frame[..6].fill(0xff),
            ];
            for bend in bend {
                let mut frame = whole.clone();
                bend(&mut frame);
                assert_ne!(world.engine(A, &frame), Outcome::Steered);
                assert_eq!(judged(&mut world, &frame), expected, "{frame:02x?}");
            }
        }
    });
}

#[test]
fn a_guard_outlives_a_pause_of_the_daemon_and_not_its_end() {
    net::test("a_guard_outlives_a_pause_of_the_daemon_and_not_its_end", || {
        let mut world = guarded(own());
        let foreign = arp(BRIDGED, POD_A, (1, 1));
        let beaten = |world: &World, age_ms: u64| world.steering.vouch(clock::coarse_ns() - age_ms * 1_000_000);
        for age_ms in [0, limits::TABLES_STALE_MS + 500, limits::GUARD_STALE_MS / 2] {
            beaten(&world, age_ms);
            assert_eq!(world.program(A, &foreign), Outcome::Dropped(DropReason::FalseNeighbour), "after {age_ms} ms");
        }
        beaten(&world, limits::GUARD_STALE_MS + 500);
        assert_eq!(world.program(A, &foreign), Outcome::Passed(PassReason::NotIp));
        world.change_port(A, |port| port.path = ServedBy::Kernel);
        for age_ms in [0, limits::TABLES_STALE_MS + 500, limits::GUARD_STALE_MS / 2] {
            beaten(&world, age_ms);
            let dropped = Some(Repeated::Dropped(DropReason::FalseNeighbour));
            assert_eq!(world.repeats(A, &foreign, 0), dropped, "after {age_ms} ms");
        }
        beaten(&world, limits::GUARD_STALE_MS + 500);
        assert_eq!(world.repeats(A, &foreign, 0), Some(Repeated::Passed(PassReason::NotIp)));
    });
}

/// Not a test: prints what the guard costs. `cargo test --test steer -- --ignored --nocapture cost_of_the_guard`
#[test]
#[ignore = "a measurement"]
fn cost_of_the_guard() {
    net::test("cost_of_the_guard", || {
        let mut world = World::new();
        let one = Guard::new([POD_A], [ip4(1, 10).into(), ip6(1, 10).into()]).unwrap();
        let last_of_eight = {
            let others = (20..27).flat_map(|host| [IpAddr::from(ip4(1, host)), IpAddr::from(ip6(1, host))]);
            Guard::new([POD_A], others.chain([ip4(1, 10).into(), ip6(1, 10).into()])).unwrap()
        };
        let guards = [("no guard", None), ("one address", Some(one)), ("the last of eight", Some(last_of_eight))];
        for round in 0..2 {
            for (what, guard) in guards {
                let table = GuardTable::new(guard.map(|guard| (A, guard)));
                world.change(|tables| tables.guards = Arc::new(table));
                for family in FAMILIES {
                    let frame = tcp(family, BRIDGED, 100);
                    world.change_port(A, |port| port.path = ServedBy::AfXdp);
                    let ifindex = world.tables.ports.get(A).unwrap().ifindex;
                    let xdp =
                        (0..20).map(|_| world.steering.test_run(&frame, frame.len(), ifindex, 0, 200_000).unwrap().ns);
                    let xdp = xdp.min().unwrap();
                    world.change_port(A, |port| port.path = ServedBy::Kernel);
                    let tc = (0..20).map(|_| world.steering.test_repeat(&frame, ifindex, 0, 200_000).unwrap().0.ns);
                    println!("round {round}, {family:?}, {what}: XDP {xdp} ns, tc {} ns", tc.min().unwrap());
                }
            }
        }
    });
}
