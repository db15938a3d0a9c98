//! What comes after the decision: sockets, heartbeats, counters, and frames in several pieces.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use podlane::bpf::XdpMode;
use podlane_dataplane::afxdp::{Heartbeats, clock};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{Fib, Tables};
use podlane_dataplane::{PortId, limits};

use crate::frames::*;
use crate::net;
use crate::world::{A, B, C, INGRESS, MAX_LINEAR, Outcome, PASS, UPLINK, World, outcome, unbound_socket};

#[test]
fn no_socket() {
    net::test("no_socket", || {
        let mut world = World::new();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let on_queue = |world: &World, queue| world.program_with_linear(A, queue, &frame, frame.len());
        assert_eq!(on_queue(&world, 1), Outcome::Steered);
        world.steering.clear_socket(A, 1).unwrap();
        world.steering.clear_socket(A, 1).unwrap();
        assert_eq!(on_queue(&world, 1), Outcome::Passed(PassReason::NoSocket));
        assert_eq!(on_queue(&world, 0), Outcome::Steered);
        world.give_socket(A, 1);
        assert_eq!(on_queue(&world, 1), Outcome::Steered);
        // A closed socket takes its entry along.
        world.close_sockets();
        assert_eq!(on_queue(&world, 1), Outcome::Passed(PassReason::NoSocket));
    });
}

#[test]
fn a_queue_beyond_the_limit_has_no_socket() {
    net::test("a_queue_beyond_the_limit_has_no_socket", || {
        let mut world = World::new();
        let queues = limits::MAX_QUEUES + 1;
        net::ip(&format!("link add name wide numtxqueues {queues} numrxqueues {queues} type veth peer name other"));
        world.change_port(A, |port| port.ifindex = net::ifindex("wide"));
        let frame = tcp(Family::V4, BRIDGED, 100);
        // Unchecked, this queue's number would select the first socket of port B.
        let outcome = world.program_with_linear(A, limits::MAX_QUEUES as u32, &frame, frame.len());
        assert_eq!(outcome, Outcome::Passed(PassReason::NoSocket));
    });
}

#[test]
fn worker_stalled() {
    net::test("worker_stalled", || {
        let world = World::new();
        let frame = tcp(Family::V6, BRIDGED, 100);
        for age_ms in [0, limits::HEARTBEAT_STALE_MS - 30] {
            // On a busy machine this thread may be away for longer than that: once is enough.
            let steered = (0..50).any(|_| {
                world.beat(age_ms);
                world.program(A, &frame) == Outcome::Steered
            });
            assert!(steered, "a heartbeat of {age_ms} ms");
        }
        for age_ms in [limits::HEARTBEAT_STALE_MS + 10, 10_000] {
            world.beat(age_ms);
            let outcome = world.program(A, &frame);
            assert_eq!(outcome, Outcome::Passed(PassReason::WorkerStalled), "a heartbeat of {age_ms} ms");
        }
        world.steering.beat(0, 0).unwrap();
        assert_eq!(world.program(A, &frame), Outcome::Passed(PassReason::WorkerStalled), "no heartbeat yet");
        // Clocks are read at different moments: a heartbeat may lie in the program's future.
        world.steering.beat(0, clock::coarse_ns() + 4_000_000).unwrap();
        assert_eq!(world.program(A, &frame), Outcome::Steered);
    });
}

/// A heartbeat may be young and its worker dead: it was given a frame and has not come by since.
#[test]
fn a_worker_that_was_given_a_frame_must_come_by() {
    net::test("a_worker_that_was_given_a_frame_must_come_by", || {
        let world = World::new();
        let heartbeats = Heartbeats::map(world.steering.heartbeats()).unwrap();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let longer = Duration::from_millis(limits::WORKER_WAIT_MS + 20);
        let rounds = (0..10).filter(|_| {
            heartbeats.worker(0).beat(clock::coarse_ns() + 4_000_000);
            // A worker with nothing to do need not come by.
            std::thread::sleep(longer);
            let given = (world.program(A, &frame), world.program(A, &frame));
            std::thread::sleep(longer);
            let waiting = world.program(A, &frame);
            heartbeats.worker(0).beat(clock::coarse_ns());
            let again = world.program(A, &frame);
            assert_eq!(waiting, Outcome::Passed(PassReason::WorkerStalled));
            // On a busy machine this thread may be away for longer than a heartbeat lasts.
            [given.0, given.1, again].iter().all(|outcome| *outcome == Outcome::Steered)
        });
        assert!(rounds.count() > 0, "a worker that comes by is given frames");
    });
}

/// Workers may be alive under a loader that hangs: what they are given depends on the tables' age.
#[test]
fn tables_that_nobody_keeps_steer_nothing() {
    net::test("tables_that_nobody_keeps_steer_nothing", || {
        let mut world = World::new();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let at_age = |world: &World, age_ms: u64| {
            world.steering.vouch(clock::coarse_ns() - age_ms * 1_000_000);
            world.program(A, &frame)
        };
        let stale = Outcome::Passed(PassReason::TablesStale);
        assert_eq!(at_age(&world, limits::TABLES_STALE_MS + 10), stale);
        // No port of this world was attached, so none is known to be still there.
        assert_eq!(at_age(&world, limits::TABLES_ORPHANED_MS + 10), stale);
        world.steering.attach(net::ifindex("pod-b"), "pod-b", XdpMode::Native).unwrap();
        // On a busy machine this thread may be away for longer than that: once is enough.
        assert!((0..50).any(|_| at_age(&world, limits::TABLES_STALE_MS / 2) == Outcome::Steered));
        assert_eq!(at_age(&world, limits::TABLES_STALE_MS + 10), stale);
        world.stay_alive();
        world.steers(A, &frame);
    });
}

#[test]
fn each_socket_is_judged_by_its_own_worker_through_the_shared_mapping() {
    net::test("each_socket_is_judged_by_its_own_worker_through_the_shared_mapping", || {
        let mut world = World::new();
        let heartbeats = Heartbeats::map(world.steering.heartbeats()).unwrap();
        let last = limits::MAX_WORKERS - 1;
        let socket = unbound_socket();
        world.steering.set_socket(B, 0, socket.as_fd(), last).unwrap();
        let from_b = tcp(Family::V4, Path { source_mac: POD_B, destination_mac: POD_A, ..BRIDGED }, 0);
        assert_eq!(world.program(B, &from_b), Outcome::Passed(PassReason::WorkerStalled));
        heartbeats.worker(0).beat(clock::coarse_ns() + 60_000_000_000);
        heartbeats.worker(last).beat(clock::coarse_ns() + 60_000_000_000);
        assert_eq!(world.program(B, &from_b), Outcome::Steered);
        heartbeats.worker(0).beat(1);
        let outcome = world.program(B, &from_b);
        assert_eq!(outcome, Outcome::Passed(PassReason::WorkerStalled), "the worker that sends to pod A is dead");
        assert_eq!(world.program(A, &tcp(Family::V4, BRIDGED, 0)), Outcome::Passed(PassReason::WorkerStalled));
    });
}

#[test]
fn numbers_beyond_the_limits_are_refused() {
    net::test("numbers_beyond_the_limits_are_refused", || {
        let mut world = World::new();
        let socket = unbound_socket();
        let fd = socket.as_fd();
        let beyond = PortId(limits::MAX_PORTS as u16);
        let sentence = |result: Result<(), podlane::bpf::BpfError>| result.unwrap_err().to_string();
        assert_eq!(sentence(world.steering.set_socket(beyond, 0, fd, 0)), "port 512 is beyond the limit of 512");
        assert_eq!(sentence(world.steering.set_socket(A, 16, fd, 0)), "queue 16 is beyond the limit of 16");
        assert_eq!(sentence(world.steering.set_socket(A, 0, fd, 16)), "worker 16 is beyond the limit of 16");
        assert!(world.steering.counters(beyond).is_err());
        assert!(world.steering.reset_counters(beyond).is_err());
    });
}

#[test]
fn counters_are_kept_by_port_and_reset() {
    net::test("counters_are_kept_by_port_and_reset", || {
        let mut world = World::new();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let ifindex = world.tables.ports.get(A).unwrap().ifindex;
        world.steering.test_run(&frame, frame.len(), ifindex, 0, 1000).unwrap();
        let counters = world.steering.counters(A).unwrap();
        assert_eq!((counters.rx_packets, counters.steered, counters.passed_total()), (1000, 1000, 0));
        assert_eq!(counters.rx_bytes, 1000 * frame.len() as u64);
        assert_eq!(world.steering.counters(B).unwrap(), Default::default());
        world.steering.reset_counters(A).unwrap();
        assert_eq!(world.steering.counters(A).unwrap(), Default::default());
    });
}

#[test]
fn interfaces_that_are_no_port_pass_and_are_counted_apart() {
    net::test("interfaces_that_are_no_port_pass_and_are_counted_apart", || {
        let world = World::new();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let before = world.steering.stray_counters().unwrap();
        let run = world.steering.test_run(&frame, frame.len(), net::ifindex("lo"), 0, 1).unwrap();
        let after = world.steering.stray_counters().unwrap();
        assert_eq!(outcome(run.verdict, &before, &after, frame.len()), Outcome::Passed(PassReason::PortState));
        for port in INGRESS {
            assert_eq!(world.steering.counters(port).unwrap(), Default::default());
        }
    });
}

#[test]
fn nothing_is_steered_before_the_first_snapshot() {
    net::test("nothing_is_steered_before_the_first_snapshot", || {
        let steering = podlane::bpf::Steering::load().unwrap();
        let frame = tcp(Family::V4, BRIDGED, 100);
        let run = steering.test_run(&frame, frame.len(), net::ifindex("lo"), 0, 1).unwrap();
        assert_eq!(run.verdict, PASS);
    });
}

#[test]
fn frames_in_several_pieces_are_steered() {
    net::test("frames_in_several_pieces_are_steered", || {
        let mut world = World::new();
        for port in [A, B, C, UPLINK] {
            world.change_port(port, |port| port.mtu = 65_000);
        }
        for family in FAMILIES {
            let frame = tcp(family, BRIDGED, 20_000);
            assert!(frame.len() > MAX_LINEAR);
            world.steers(A, &frame);
            let mut wrong = frame.clone();
            wrong[5] = 0x77;
            world.passes(A, &wrong, PassReason::UnknownMac);
        }
    });
}

#[test]
fn the_decision_does_not_depend_on_the_linear_part() {
    net::test("the_decision_does_not_depend_on_the_linear_part", || {
        let world = World::new();
        for family in FAMILIES {
            for frame in [tcp(family, BRIDGED, 100), udp(family, ROUTED, (1, 2), 30), echo(family, BRIDGED, 60)] {
                for linear in 14..frame.len() {
                    let ifindex = world.tables.ports.get(A).unwrap().ifindex;
                    let unsupported = world.steering.test_run(&frame, linear, ifindex, 0, 1).is_err();
                    if unsupported {
                        net::skipped("the_decision_does_not_depend_on_the_linear_part", "needs Linux 6.18");
                        return;
                    }
                    let outcome = world.program_with_linear(A, 0, &frame, linear);
                    assert_eq!(outcome, Outcome::Steered, "{linear} linear bytes");
                }
            }
        }
        // The shortest frames are read by the slow way too.
        let mut frame = echo(Family::V4, BRIDGED, 0);
        assert_eq!(frame.len(), 42);
        world.steers(A, &frame);
        frame.truncate(14);
        world.passes(A, &frame, PassReason::Malformed);
    });
}

/// What is remembered of a destination's route is of no other destination, and of no other tables: more destinations than a
/// line of `near_routes` remembers, and than all of them do, by routes of their own.
#[test]
fn remembered_routes_are_those_of_the_tables_in_force() {
    net::test("remembered_routes_are_those_of_the_tables_in_force", || {
        let mut world = World::new();
        for family in FAMILIES {
            let frame = |destination| tcp(family, Path { destination, ..ROUTED }, 100);
            // Subnet 2 has a gateway, 3 is the kernel's, and of 7 there is no route.
            for _ in 0..2 {
                for host in 2..=255 {
                    world.steers(A, &frame((2, host)));
                    world.passes(A, &frame((3, host)), PassReason::RouteKind);
                    world.passes(A, &frame((7, host)), PassReason::NoRoute);
                }
            }
            // The next hops change places: the very next frame goes by that.
            let swapped = |tables: &mut Tables| {
                let mut hops = (*tables.next_hops).clone();
                hops.swap(1, 3);
                tables.next_hops = hops.into();
            };
            for _ in 0..2 {
                world.change(swapped);
                world.passes(A, &frame((2, 5)), PassReason::RouteKind);
                world.steers(A, &frame((3, 5)));
                world.change(swapped);
                world.steers(A, &frame((2, 5)));
                world.passes(A, &frame((3, 5)), PassReason::RouteKind);
            }
            // And so do the routes themselves.
            let routes = (Arc::clone(&world.tables.fib4), Arc::clone(&world.tables.fib6));
            world.change(|tables| (tables.fib4, tables.fib6) = Default::default());
            world.passes(A, &frame((2, 5)), PassReason::NoRoute);
            world.change(|tables| (tables.fib4, tables.fib6) = routes);
            world.steers(A, &frame((2, 5)));
        }
        // A route for every second address, for as many as there are places for: each is found again or looked up.
        let every_second = (0..=255).flat_map(|net| (0..=255).step_by(2).map(move |host| (net, host)));
        let routes: Vec<_> = every_second.clone().map(|(net, host)| (ip4(net, host).to_bits(), 32, 1)).collect();
        assert!(routes.len() > limits::NEAR_ROUTES);
        world.change(|tables| tables.fib4 = Arc::new(Fib::new(routes)));
        for _ in 0..2 {
            for (net, host) in every_second.clone().filter(|(net, host)| *net != 1 && (host % 8) < 4) {
                world.steers(A, &tcp(Family::V4, Path { destination: (net, host), ..ROUTED }, 0));
                let without = tcp(Family::V4, Path { destination: (net, host + 1), ..ROUTED }, 0);
                world.passes(A, &without, PassReason::NoRoute);
            }
        }
    });
}

/// Not a test: prints what a run costs. `cargo test --release --test steer -- --ignored --nocapture cost`
#[test]
#[ignore = "a measurement"]
fn cost() {
    net::test("cost", || {
        let mut world = World::new();
        let measure = |world: &World, what: &str, frame: &[u8]| {
            let ifindex = world.tables.ports.get(A).unwrap().ifindex;
            let linear = frame.len().min(MAX_LINEAR);
            let runs = (0..5).map(|_| world.steering.test_run(frame, linear, ifindex, 0, 1_000_000).unwrap().ns);
            println!("{what}: {} ns, {:?}", runs.min().unwrap(), world.program(A, frame));
        };
        for routes in [12_u32, 15_000] {
            if routes > 100 {
                let more = (0..routes).map(|n| ((10 << 24) + (128 << 16) + n * 256, 24, 1));
                let all: Vec<_> = world.tables.fib4.iter().chain(more).collect();
                world.change(|tables| tables.fib4 = Fib::new(all).into());
                let more = (0..u128::from(routes)).map(|n| ((0xfd00_u128 << 112) + (1 << 100) + (n << 64), 64, 1));
                let all: Vec<_> = world.tables.fib6.iter().chain(more).collect();
                world.change(|tables| tables.fib6 = Fib::new(all).into());
            }
            for family in FAMILIES {
                measure(&world, &format!("{family:?} bridged tcp"), &tcp(family, BRIDGED, 100));
                measure(&world, &format!("{family:?} routed tcp, {routes} routes"), &tcp(family, ROUTED, 100));
                let on_link = Path { destination: (1, 11), ..ROUTED };
                measure(&world, &format!("{family:?} routed on-link, {routes} routes"), &tcp(family, on_link, 100));
            }
        }
        measure(&world, "short frame (slow read)", &echo(Family::V4, BRIDGED, 0));
        let mut arp = tcp(Family::V4, BRIDGED, 100);
        put16(&mut arp, 12, 0x0806);
        measure(&world, "not ip", &arp);
        world.change_port(A, |port| port.path = podlane_dataplane::table::Path::Kernel);
        let ifindex = world.tables.ports.get(A).unwrap().ifindex;
        for family in FAMILIES {
            for (what, path) in [("bridged", BRIDGED), ("routed", ROUTED)] {
                let frame = tcp(family, path, 100);
                let mut run = |repeat| world.steering.test_repeat(&frame, ifindex, 0, repeat).unwrap().0.ns;
                // Repeated runs route the same frame, so a routed one has no hops left after 63 of them.
                let ns = (0..200).map(|_| run(if what == "routed" { 60 } else { 200_000 })).min();
                println!("tc, {family:?} {what}: {} ns", ns.unwrap());
            }
        }
    });
}
