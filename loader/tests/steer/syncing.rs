//! Writing snapshots: only differences, and limits with names.

use std::sync::Arc;
use std::time::Instant;

use podlane::bpf::{BpfError, Steering, Writes};
use podlane_dataplane::limits;
use podlane_dataplane::table::{Fdb, FdbEntry, Fib, HostTable, LinkId, NextHop, NextHopAction, Tables};

use crate::frames::*;
use crate::net;
use crate::world::{A, B, INTERFACES, Outcome, World};

const NOTHING: Writes = Writes { updated: 0, removed: 0 };

#[test]
fn the_same_snapshot_writes_nothing() {
    net::test("the_same_snapshot_writes_nothing", || {
        let mut world = World::new();
        assert_eq!(world.steering.sync(&world.tables).unwrap(), NOTHING);
        // Nor does an equal one made of new parts.
        let copy = crate::world::tables(INTERFACES.map(net::ifindex));
        assert_eq!(world.steering.sync(&copy).unwrap(), NOTHING);
    });
}

#[test]
fn one_changed_route_among_fifteen_thousand_is_one_quick_write() {
    net::test("one_changed_route_among_fifteen_thousand_is_one_quick_write", || {
        let mut world = World::new();
        let routes: Vec<(u32, u8, u32)> = (0..15_000).map(|n| ((11 << 24) + n * 256, 24, 1)).collect();
        world.change(|tables| tables.fib4 = Arc::new(Fib::new(routes.iter().copied())));
        world.settle();
        let mut other = routes.clone();
        other[7_777].2 = 3;
        world.tables.fib4 = Arc::new(Fib::new(other.iter().copied()));
        let start = Instant::now();
        assert_eq!(world.steering.sync(&world.tables).unwrap(), Writes { updated: 1, removed: 0 });
        let took = start.elapsed();
        println!("one changed route: {took:?}");
        assert!(took.as_millis() < 250, "{took:?}");
        world.settle();
        other.remove(7_777);
        world.tables.fib4 = Arc::new(Fib::new(other));
        assert_eq!(world.steering.sync(&world.tables).unwrap(), Writes { updated: 0, removed: 1 });
    });
}

#[test]
fn removed_entries_are_gone() {
    net::test("removed_entries_are_gone", || {
        let mut world = World::new();
        for family in FAMILIES {
            assert_eq!(world.program(A, &tcp(family, BRIDGED, 0)), Outcome::Steered);
        }
        let ports = world.tables.ports.clone();
        let everything = world.tables.clone();
        world.change(|tables| {
            *tables = Tables { ports: ports.clone(), cluster: tables.cluster.clone(), ..Tables::default() }
        });
        for family in FAMILIES {
            for path in [BRIDGED, ROUTED] {
                let frame = tcp(family, path, 0);
                assert_eq!(world.program(A, &frame), world.engine(A, &frame));
                assert_ne!(world.program(A, &frame), Outcome::Steered);
            }
        }
        world.change(|tables| *tables = everything);
        for family in FAMILIES {
            for path in [BRIDGED, ROUTED] {
                world.steers(A, &tcp(family, path, 0));
            }
        }
    });
}

#[test]
fn a_port_number_that_moves_to_another_interface_takes_nothing_along() {
    net::test("a_port_number_that_moves_to_another_interface_takes_nothing_along", || {
        let mut world = World::new();
        let (old, new) = (net::ifindex(INTERFACES[0]), net::ifindex("lo"));
        let frame = tcp(Family::V4, BRIDGED, 0);
        world.change_port(A, |port| port.ifindex = new);
        assert_eq!(world.program(A, &frame), Outcome::Steered);
        let before = world.steering.counters(A).unwrap();
        world.steering.test_run(&frame, frame.len(), old, 0, 1).unwrap();
        assert_eq!(world.steering.counters(A).unwrap(), before);
    });
}

#[test]
fn a_full_map_is_named_and_nothing_is_written() {
    net::test("a_full_map_is_named_and_nothing_is_written", || {
        let mut world = World::new();
        let good = world.tables.clone();
        let mut hosts = HostTable::default();
        for n in 0..=limits::MAX_NEIGHBOURS as u32 {
            hosts.insert4(LinkId::BRIDGE, std::net::Ipv4Addr::from_bits((10 << 24) + n), 1);
        }
        world.tables.hosts = Arc::new(hosts);
        world.tables.fib4 = Arc::default();
        let generation = world.steering.generation();
        let error = world.steering.sync(&world.tables).unwrap_err();
        assert_eq!(world.steering.generation(), generation);
        assert!(matches!(error, BpfError::Full { table: "IPv4 neighbours", count: 16_385, limit: 16_384 }), "{error}");
        let hops = vec![NextHop { action: NextHopAction::Gateway(0), mtu: 0 }; limits::MAX_NEXT_HOPS + 1];
        world.tables = Tables { next_hops: Arc::new(hops), ..good.clone() };
        let error = world.steering.sync(&world.tables).unwrap_err();
        assert_eq!(
            error.to_string(),
            "16385 next hops, but the XDP program has room for 16384: the snapshot is not used"
        );
        world.tables = good;
        assert_eq!(world.steering.sync(&world.tables).unwrap(), NOTHING);
        world.steers(A, &tcp(Family::V4, ROUTED, 0));
    });
}

#[test]
fn a_full_table_can_be_replaced_by_another() {
    net::test("a_full_table_can_be_replaced_by_another", || {
        let mut steering = Steering::load().unwrap();
        let fdb = |from: u64| {
            let macs =
                (from..from + limits::MAX_FDB as u64).map(|n| podlane_dataplane::MacAddr::from_u64(n + (2 << 40)));
            let (fdb, left_out) = Fdb::new(macs.map(|mac| (mac, FdbEntry { port: B, is_static: false, activity: 0 })));
            assert_eq!(left_out, 0);
            Tables { fdb: Arc::new(fdb), ..Tables::default() }
        };
        // Of each copy of the tables. Besides the entries themselves, the places are written at which some are found faster.
        steering.sync(&fdb(0)).unwrap();
        steering.sync(&fdb(0)).unwrap();
        let all = limits::MAX_FDB;
        for _ in 0..2 {
            let writes = steering.sync(&fdb(all as u64)).unwrap();
            assert!((all..2 * all).contains(&writes.updated) && (all..2 * all).contains(&writes.removed), "{writes:?}");
        }
        let writes = steering.sync(&fdb(all as u64 + 1)).unwrap();
        assert!((1..5).contains(&writes.updated) && (1..5).contains(&writes.removed), "{writes:?}");
    });
}
