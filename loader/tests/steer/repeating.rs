//! The tc program on real veths: attached in both ways, between two pods, with what becomes of super-frames and of tables
//! that nobody keeps.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podlane::bpf::{Steering, TcKind};
use podlane_dataplane::afxdp::clock;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::limits;
use podlane_dataplane::table::{Path, PortTable, Tables};

use crate::frames::{POD_A, POD_B, ip4};
use crate::net::{self, Namespace, ifindex, ip};
use crate::world::{A, B, tables};

/// Two pods behind `host-a` and `host-b`, which nothing but the tc program connects.
pub struct Node {
    pub steering: Steering,
    pub tables: Tables,
    pub pods: [Namespace; 2],
}

impl Node {
    fn new(kind: TcKind) -> Self {
        Node::over(Steering::load().unwrap(), kind)
    }

    /// With programs that are loaded already.
    pub fn over(mut steering: Steering, kind: TcKind) -> Self {
        let pods = [Namespace::new(), Namespace::new()];
        for (pod, (name, mac)) in pods.iter().zip([("host-a", POD_A), ("host-b", POD_B)]) {
            ip(&format!("link add name {name} type veth peer name eth0 address {mac} netns {}", pod.path()));
            ip(&format!("link set {name} up"));
        }
        for (pod, (own, other, mac)) in pods.iter().zip([(10, 11, POD_B), (11, 10, POD_A)]) {
            pod.enter(|| {
                ip("link set eth0 up");
                ip(&format!("address add {}/24 dev eth0", ip4(1, own)));
                ip(&format!("neigh add {} lladdr {mac} dev eth0", ip4(1, other)));
            });
        }
        steering.set_tc_kind(kind);
        let mut tables = tables([ifindex("host-a"), ifindex("host-b"), 1002, 1003]);
        let ports = tables.ports.iter().map(|(id, port)| {
            (id, {
                let mut port = port.clone();
                port.path = Path::Kernel;
                port
            })
        });
        tables.ports = Arc::new(PortTable::new(ports.collect::<Vec<_>>()));
        steering.sync(&tables).unwrap();
        for name in ["host-a", "host-b"] {
            steering.attach_repeat(ifindex(name), name).unwrap();
            // Again changes nothing.
            steering.attach_repeat(ifindex(name), name).unwrap();
        }
        Node { steering, tables, pods }
    }

    pub fn vouch(&self) {
        self.steering.vouch(clock::coarse_ns() + 60_000_000_000);
    }
}

/// A connection through the program, with segmentation offload: fewer and larger packets than a wire would see.
fn carries_tcp(kind: TcKind) {
    const BYTES: usize = 4 << 20;
    let node = Node::new(kind);
    node.vouch();
    let listener = node.pods[1].enter(|| TcpListener::bind((ip4(1, 11), 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let sent: Vec<u8> = (0..BYTES).map(|n| (n * 31 % 251) as u8).collect();
    node.pods[0].enter(|| {
        let mut stream = TcpStream::connect_timeout(&(ip4(1, 11), port).into(), Duration::from_secs(5)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    assert!(reader.join().unwrap() == sent, "what arrived is not what was sent");
    let counters = node.steering.counters(A).unwrap();
    assert!(counters.repeated_bytes >= BYTES as u64);
    let per_packet = counters.repeated_bytes / counters.repeated;
    assert!(per_packet > 3000, "{per_packet} bytes in a packet: the pod lost its segmentation offload");
    assert_eq!(node.steering.counters(B).unwrap().repeated_out, counters.repeated);
}

#[test]
fn tcp_keeps_its_super_frames_at_tcx() {
    net::test("tcp_keeps_its_super_frames_at_tcx", || carries_tcp(TcKind::Tcx));
}

#[test]
fn tcp_keeps_its_super_frames_at_clsact() {
    net::test("tcp_keeps_its_super_frames_at_clsact", || carries_tcp(TcKind::Clsact));
}

#[test]
fn a_filter_outlives_a_change_of_the_path_and_is_made_anew_if_somebody_took_it() {
    net::test("a_filter_outlives_a_change_of_the_path", || {
        let shown = |what: &str, more: &str| {
            let arguments = format!("{what} show dev host-a {more}");
            let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let filters = || shown("filter", "ingress").matches("handle 0x1").count();
        let mut node = Node::new(TcKind::Clsact);
        let index = ifindex("host-a");
        node.steering.retire_repeat(index);
        assert_eq!(filters(), 1, "a qdisc that is removed takes packets along");
        node.steering.attach_repeat(index, "host-a").unwrap();
        assert_eq!(filters(), 1);
        net::run("tc", "filter del dev host-a ingress");
        assert_eq!(filters(), 0);
        node.steering.attach_repeat(index, "host-a").unwrap();
        assert_eq!(filters(), 1);
        // With another's qdisc in the place of ours.
        net::run("tc", "qdisc del dev host-a clsact");
        net::run("tc", "qdisc add dev host-a clsact");
        node.steering.attach_repeat(index, "host-a").unwrap();
        assert_eq!(filters(), 1);
        node.steering.detach_repeat(index);
        assert_eq!(filters(), 0);
        assert!(shown("qdisc", "").contains("clsact"), "it was another's");
    });
}

#[test]
fn detaching_leaves_nothing() {
    net::test("detaching_leaves_nothing", || {
        let shown = || String::from_utf8(Command::new("tc").args(["qdisc", "show"]).output().unwrap().stdout).unwrap();
        let mut node = Node::new(TcKind::Clsact);
        assert!(shown().contains("clsact"));
        node.steering.detach_repeat(ifindex("host-a"));
        node.steering.detach_repeat(ifindex("host-a"));
        drop(node);
        assert!(!shown().contains("clsact"), "{}", shown());
        // Somebody else's stays.
        ip("link add name mine type veth peer name other");
        net::run("tc", "qdisc add dev mine clsact");
        let mut steering = Steering::load().unwrap();
        steering.set_tc_kind(TcKind::Clsact);
        steering.attach_repeat(ifindex("mine"), "mine").unwrap();
        drop(steering);
        assert!(shown().contains("clsact"));
    });
}

/// Whether a datagram from pod A reached pod B within a moment.
pub fn arrives(node: &Node) -> bool {
    let receiver = node.pods[1].enter(|| std::net::UdpSocket::bind((ip4(1, 11), 0)).unwrap());
    let port = receiver.local_addr().unwrap().port();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    node.pods[0].enter(|| {
        std::net::UdpSocket::bind((ip4(1, 10), 0)).unwrap().send_to(b"hello", (ip4(1, 11), port)).unwrap();
    });
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn tables_that_nobody_keeps_are_not_trusted() {
    net::test("tables_that_nobody_keeps_are_not_trusted", || {
        let node = Node::new(TcKind::Tcx);
        node.vouch();
        assert!(arrives(&node));
        // As if the last sign of life were older than is trusted; the clock is looked at once in a tick.
        node.steering.vouch(clock::coarse_ns() - (limits::TABLES_STALE_MS + 500) * 1_000_000);
        let start = Instant::now();
        while arrives(&node) {
            assert!(start.elapsed() < Duration::from_secs(10), "stale tables are still used");
        }
        assert_ne!(node.steering.counters(A).unwrap().passed[PassReason::TablesStale as usize], 0);
        node.vouch();
        assert!(arrives(&node), "trusted again at once");
    });
}
