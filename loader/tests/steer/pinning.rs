//! Programs, links and maps that outlive whoever loaded them, and the next one that adopts them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use podlane::bpf::pins::{Pins, Root, find_root};
use podlane::bpf::{Adopted, Steering, TcKind, Writes, XdpMode};
use podlane_dataplane::PortId;
use podlane_dataplane::afxdp::clock;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::limits;
use podlane_dataplane::table::{Guard, GuardTable};

use crate::frames::{POD_A, POD_B, ip4};
use crate::net::{self, ifindex, ip};
use crate::repeating::{Node, arrives};
use crate::world::A;

/// A directory of pins of its own; removed in the end.
struct Place(Pins);

impl Place {
    fn new(name: &str) -> Self {
        let root = find_root(&Root::Found).expect("bpffs is mounted");
        Place(Pins::of(&root, &format!("test-{}-{name}", std::process::id())).unwrap())
    }

    fn open(&self) -> Steering {
        Steering::open(self.0.clone()).unwrap()
    }

    /// The names in the directory.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The directory of maps.
    fn maps(&self) -> PathBuf {
        let names = self.names();
        let maps: Vec<_> = names.iter().filter(|name| name.starts_with("maps-")).collect();
        assert_eq!(maps.len(), 1, "{names:?}");
        self.0.directory().join(maps[0])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.remove().unwrap();
    }
}

fn test(name: &'static str, body: impl FnOnce(Place) + Send + 'static) {
    net::test(name, move || body(Place::new(&name.replace('_', "-"))));
}

/// Another loader takes the place of the first one.
fn replace(node: &mut Node, place: &Place) -> Adopted {
    node.steering = place.open();
    assert!(arrives(node), "nobody has the programs open, and they still forward");
    node.steering.adopt().unwrap()
}

/// This guard on the port of pod A.
fn guarding(guard: Guard) -> Arc<GuardTable> {
    Arc::new(GuardTable::new([(A, guard)]))
}

fn attach(node: &mut Node) {
    for name in ["host-a", "host-b"] {
        node.steering.attach_repeat(ifindex(name), name).unwrap();
    }
}

#[test]
fn the_next_loader_goes_on() {
    test("the_next_loader_goes_on", |place| {
        let mut node = Node::over(place.open(), TcKind::Tcx);
        node.steering.sync(&node.tables).unwrap();
        node.vouch();
        assert!(arrives(&node));
        let (generation, programs) = (node.steering.generation(), place.0.programs().unwrap());
        assert_eq!(programs.len(), 2);

        let adopted = replace(&mut node, &place);
        assert!(adopted.maps && adopted.links == 2 && adopted.last_beat_ns > clock::coarse_ns(), "{adopted:?}");
        assert_eq!(adopted.ports.len(), 4);
        assert_eq!(adopted.ports[..2], [(ifindex("host-a"), A), (ifindex("host-b"), PortId(1))]);
        assert_eq!(node.steering.generation(), generation);
        let nothing = Writes { updated: 0, removed: 0 };
        assert_eq!((0..2).map(|_| node.steering.sync(&node.tables).unwrap()).collect::<Vec<_>>(), [nothing; 2]);
        assert_eq!(node.steering.generation(), generation + 2);

        attach(&mut node);
        let now = place.0.programs().unwrap();
        assert!(now.len() == 2 && now.iter().all(|id| !programs.contains(id)), "{programs:?} {now:?}");
        node.steering.settle();
        node.vouch();
        assert!(arrives(&node));
        node.steering.detach_repeat(ifindex("host-b"));
        assert_eq!(place.0.programs().unwrap().len(), 1);
    });
}

#[test]
fn what_an_earlier_writer_left_does_not_stay() {
    test("what_an_earlier_writer_left_does_not_stay", |place| {
        let mut node = Node::over(place.open(), TcKind::Tcx);
        let own = Guard::new([POD_A], [ip4(1, 10).into()]).unwrap();
        node.tables.guards = guarding(own);
        for _ in 0..2 {
            node.steering.sync(&node.tables).unwrap();
        }
        node.vouch();
        assert_eq!(replace(&mut node, &place).guards, [(ifindex("host-a"), own)]);
        let none = podlane_dataplane::table::Tables::default();
        // In each copy everything goes that this loader never wrote itself.
        for _ in 0..2 {
            assert!(node.steering.sync(&none).unwrap().removed > 10);
        }
        node.steering = place.open();
        assert_eq!(node.steering.adopt().unwrap().ports, []);
        // A guard of nothing is all zeros in the map, as an empty place.
        node.tables.guards = guarding(Guard::new([], []).unwrap());
        node.steering.sync(&node.tables).unwrap();
        node.vouch();
        assert!(!arrives(&node), "judged by an earlier writer's guard");
    });
}

#[test]
fn ports_that_nobody_wants_are_let_go() {
    test("ports_that_nobody_wants_are_let_go", |place| {
        let mut node = Node::over(place.open(), TcKind::Tcx);
        node.vouch();
        ip("link add name other type veth peer name end");
        node.steering.attach(ifindex("other"), "other", XdpMode::Native).unwrap();
        let shown = || {
            let output = Command::new("ip").args(["-d", "link", "show", "other"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(replace(&mut node, &place).links, 3);
        node.steering.attach_repeat(ifindex("host-a"), "host-a").unwrap();
        assert!(shown().contains(" xdp "), "{}", shown());
        node.steering.settle();
        assert!(!shown().contains("xdp"), "{}", shown());
        assert_eq!(place.0.programs().unwrap().len(), 1);
    });
}

#[test]
fn another_mode_replaces_the_program() {
    test("another_mode_replaces_the_program", |place| {
        ip("link add name host type veth peer name end");
        let mut steering = place.open();
        steering.attach(ifindex("host"), "host", XdpMode::Native).unwrap();
        drop(steering);
        let mut steering = place.open();
        assert_eq!(steering.adopt().unwrap().links, 1);
        assert_eq!(steering.attach(ifindex("host"), "host", XdpMode::Generic).unwrap(), XdpMode::Generic);
        let (native, generic) = (format!("xdp-native-{}", ifindex("host")), format!("xdp-generic-{}", ifindex("host")));
        assert!(place.names().contains(&generic) && !place.names().contains(&native), "{:?}", place.names());
    });
}

#[test]
fn another_layout_is_replaced_under_running_programs() {
    test("another_layout_is_replaced_under_running_programs", |place| {
        let mut node = Node::over(place.open(), TcKind::Tcx);
        node.vouch();
        let old = place.0.directory().join("maps-0000000000000001");
        fs::rename(place.maps(), &old).unwrap();
        let adopted = replace(&mut node, &place);
        assert!(!adopted.maps && adopted.links == 2 && adopted.ports.is_empty(), "{adopted:?}");
        assert!(old.exists() && arrives(&node), "the old programs go on until they are replaced");
        node.steering.sync(&node.tables).unwrap();
        node.vouch();
        for name in ["host-a", "host-b"] {
            node.steering.attach_repeat(ifindex(name), name).unwrap();
            assert!(arrives(&node), "one program of each version");
        }
        node.steering.settle();
        assert!(!old.exists() && arrives(&node));
        assert!(place.maps().join("fdb").exists());
    });
}

#[test]
fn half_of_the_maps_are_not_used() {
    test("half_of_the_maps_are_not_used", |place| {
        let mut node = Node::over(place.open(), TcKind::Tcx);
        node.vouch();
        fs::remove_file(place.maps().join("fdb")).unwrap();
        fs::create_dir(place.0.directory().join("unfinished-0000000000000001")).unwrap();
        let adopted = replace(&mut node, &place);
        assert!(!adopted.maps && adopted.links == 2, "{adopted:?}");
        assert!(place.maps().join("fdb").exists() && !place.names().iter().any(|name| name.starts_with("unfinished")));
    });
}

#[test]
fn links_of_interfaces_that_are_gone_are_cleared() {
    test("links_of_interfaces_that_are_gone_are_cleared", |place| {
        let node = Node::over(place.open(), TcKind::Tcx);
        drop(node.steering);
        ip("link del host-b");
        let mut steering = place.open();
        assert_eq!(steering.adopt().unwrap().links, 1);
        assert_eq!(place.names().iter().filter(|name| name.starts_with("tcx-")).count(), 1);
    });
}

#[test]
fn a_clsact_filter_is_replaced_and_its_qdisc_removed_if_ours() {
    test("a_clsact_filter_is_replaced_and_its_qdisc_removed_if_ours", |place| {
        let shown = || String::from_utf8(Command::new("tc").args(["qdisc", "show"]).output().unwrap().stdout).unwrap();
        let mut node = Node::over(place.open(), TcKind::Clsact);
        net::run("tc", "qdisc del dev host-b clsact");
        net::run("tc", "qdisc add dev host-b clsact");
        node.steering.detach_repeat(ifindex("host-b"));
        net::run("tc", "qdisc replace dev host-b clsact");
        attach(&mut node);
        node.vouch();
        let adopted = replace(&mut node, &place);
        assert!(adopted.maps && adopted.links == 2, "{adopted:?}");
        node.steering.set_tc_kind(TcKind::Clsact);
        attach(&mut node);
        node.steering.settle();
        assert!(arrives(&node));
        node.steering.detach_repeat(ifindex("host-a"));
        node.steering.detach_repeat(ifindex("host-b"));
        assert!(!shown().contains("host-a") || !shown().contains("clsact ffff: dev host-a"), "{}", shown());
        assert!(shown().contains("clsact ffff: dev host-b"), "somebody else's stays: {}", shown());
        assert!(!place.names().iter().any(|name| name.starts_with("filter") || name.starts_with("qdisc")));
    });
}

/// An index that is given out again while nobody keeps the tables leads nobody astray.
#[test]
fn orphaned_tables_do_not_lead_to_another_interface() {
    test("orphaned_tables_do_not_lead_to_another_interface", |place| {
        let node = Node::over(place.open(), TcKind::Tcx);
        let orphaned = || node.steering.vouch(clock::coarse_ns() - (limits::TABLES_ORPHANED_MS + 100) * 1_000_000);
        let eventually = |wanted: bool, vouch: &dyn Fn()| {
            // The clock is asked once in a tick.
            (0..20).any(|_| {
                vouch();
                std::thread::sleep(Duration::from_millis(10));
                arrives(&node) == wanted
            })
        };
        assert!(eventually(true, &orphaned), "nothing has changed, so the tables are right");
        let index = ifindex("host-b");
        ip("link del host-b");
        let pod = node.pods[1].path();
        ip(&format!("link add name host-b index {index} type veth peer name eth0 address {POD_B} netns {pod}"));
        ip("link set host-b up");
        node.pods[1].enter(|| {
            ip("link set eth0 up");
            ip(&format!("address add {}/24 dev eth0", ip4(1, 11)));
        });
        assert!(eventually(true, &|| node.vouch()), "kept tables are believed, so the new interface would be reached");
        assert!(eventually(false, &orphaned), "a packet went to an interface that the tables do not mean");
        assert_ne!(node.steering.counters(A).unwrap().passed[PassReason::TablesStale as usize], 0);
    });
}

#[test]
fn detach_takes_everything_off() {
    test("detach_takes_everything_off", |place| {
        let node = Node::over(place.open(), TcKind::Tcx);
        node.vouch();
        let found = place.0.found().unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        place.0.take_off(&[(podlane::bpf::pins::Hook::Tcx, ifindex("host-a"))]).unwrap();
        assert!(!arrives(&node), "taken off at once, although somebody has it open");
    });
}
