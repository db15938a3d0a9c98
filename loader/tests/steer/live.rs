//! The program attached to a veth pair, a pod behind it and an AF_XDP socket in front: what really reaches the socket, in
//! native and in generic mode, super-frames among it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use podlane::bpf::{PortCounters, Steering, XdpMode};
use podlane_dataplane::afxdp::{BindOptions, QueueIo, Socket, Umem, clock};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::packet::parse;

use crate::frames::{BRIDGE_MAC, Family, POD_B, ip4, ip6};
use crate::net::{self, Namespace, ifindex, ip};
use crate::world::{A, tables};

/// Bytes of each datagram, and of each segment of a super-frame.
const DATAGRAM: usize = 400;

/// A pod behind interface `host`, whose queue has a bound socket.
struct Node {
    steering: Steering,
    socket: Socket,
    pod: Namespace,
    umem: Umem,
}

impl Node {
    fn new(mode: XdpMode) -> Self {
        let pod = Namespace::new();
        ip(&format!("link add name host address {BRIDGE_MAC} type veth peer name eth0 netns {}", pod.path()));
        for address in ["10.244.1.1/24", "fd00:1::1/64 nodad"] {
            ip(&format!("address add {address} dev host"));
        }
        ip("link set host up");
        pod.enter(|| {
            ip("link set lo up");
            ip("link set eth0 up");
            for address in ["10.244.1.10/24", "fd00:1::a/64 nodad"] {
                ip(&format!("address add {address} dev eth0"));
            }
            for neighbour in ["10.244.1.11", "fd00:1::b"] {
                ip(&format!("neigh add {neighbour} lladdr {POD_B} dev eth0"));
            }
        });
        let h = ifindex("host");
        let mut steering = Steering::load().unwrap();
        // Only `host` is there; the other ports need not be.
        steering.sync(&tables([h, 1001, 1002, 1003])).unwrap();
        assert_eq!(steering.attach(h, "host", mode).unwrap(), mode);
        let umem = Umem::new(1024).unwrap();
        let mut socket = Socket::bind_anchor(&umem, h, 0, 0, BindOptions { checksum_metadata: false }).unwrap();
        let mut frames = umem.take_frames();
        socket.fill(&mut frames, 512);
        let handle = socket.handle();
        steering.set_socket(A, 0, handle.as_fd(), 0).unwrap();
        Node { steering, socket, pod, umem }
    }

    /// The worker and the tables look alive for a minute.
    fn beat(&self) {
        self.steering.beat(0, clock::coarse_ns() + 60_000_000_000).unwrap();
        self.steering.vouch(clock::coarse_ns() + 60_000_000_000);
    }

    fn counters(&self) -> PortCounters {
        self.steering.counters(A).unwrap()
    }

    /// UDP payloads that reach the socket before `count` of them are there or a second has gone.
    fn receive(&mut self, count: usize) -> Vec<usize> {
        let memory = self.umem.memory();
        let (mut pieces, mut payloads) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while payloads.len() < count && start.elapsed() < Duration::from_secs(1) {
            self.socket.receive(64, &mut pieces);
            for piece in pieces.drain(..) {
                let bytes = memory.bytes(&piece);
                let headers = parse(bytes, bytes.len() as u32).unwrap();
                payloads.push(bytes.len() - usize::from(headers.l4_offset) - 8);
            }
            std::thread::yield_now();
        }
        payloads
    }

    /// Has the pod send `segments` datagrams to pod B by one call, cut by the kernel (`UDP_SEGMENT`).
    fn send_segmented(&self, family: Family, segments: usize) {
        self.send(family, |socket| {
            setsockopt(socket, sockopt::UdpGsoSegment, &(DATAGRAM as i32)).unwrap();
            socket.send(&vec![7; segments * DATAGRAM]).unwrap();
        });
    }

    fn send_plain(&self, family: Family, count: usize) {
        self.send(family, |socket| {
            for _ in 0..count {
                socket.send(&[7; DATAGRAM]).unwrap();
            }
        });
    }

    fn send(&self, family: Family, how: impl FnOnce(&UdpSocket) + Send) {
        self.pod.enter(|| {
            let (from, to) = match family {
                Family::V4 => (ip4(1, 10).into(), ip4(1, 11).into()),
                Family::V6 => (std::net::IpAddr::from(ip6(1, 10)), std::net::IpAddr::from(ip6(1, 11))),
            };
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect((to, 7)).unwrap();
            how(&socket);
        });
    }

    /// Waits until the counter has grown by `by`.
    fn wait_for(&self, what: &str, count: impl Fn(&PortCounters) -> u64, by: u64, before: &PortCounters) {
        let start = Instant::now();
        while count(&self.counters()) < count(before) + by {
            assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?}", self.counters());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn super_frames(counters: &PortCounters) -> u64 {
    counters.passed[PassReason::SuperFrame as usize]
}

#[test]
fn native_steers_what_the_pod_cuts_itself() {
    net::test("native_steers_what_the_pod_cuts_itself", || {
        let mut node = Node::new(XdpMode::Native);
        for family in [Family::V4, Family::V6] {
            node.beat();
            node.send_plain(family, 5);
            assert_eq!(node.receive(5), [DATAGRAM; 5], "{:?}", node.counters());
            // Native XDP takes UDP segmentation offload from the pod, so the socket gets datagrams, not super-frames.
            node.send_segmented(family, 8);
            assert_eq!(node.receive(8), [DATAGRAM; 8], "{:?}", node.counters());
        }
        assert_eq!(super_frames(&node.counters()), 0);
    });
}

#[test]
fn a_dead_worker_gets_nothing() {
    net::test("a_dead_worker_gets_nothing", || {
        let mut node = Node::new(XdpMode::Native);
        node.beat();
        node.send_plain(Family::V4, 1);
        assert_eq!(node.receive(1), [DATAGRAM]);
        node.steering.beat(0, clock::coarse_ns() - 200_000_000).unwrap();
        let before = node.counters();
        node.send_plain(Family::V4, 3);
        let stalled = |counters: &PortCounters| counters.passed[PassReason::WorkerStalled as usize];
        node.wait_for("stalled", stalled, 3, &before);
        assert!(node.receive(1).is_empty());
    });
}

#[test]
fn generic_steers_plain_datagrams_and_passes_udp_super_frames() {
    net::test("generic_steers_plain_datagrams_and_passes_udp_super_frames", || {
        let mut node = Node::new(XdpMode::Generic);
        for family in [Family::V4, Family::V6] {
            node.beat();
            node.send_plain(family, 5);
            assert_eq!(node.receive(5), [DATAGRAM; 5], "{:?}", node.counters());
            // Two segments are shorter than the MTU together: the frame looks like one datagram of 800 bytes.
            for segments in [2, 3, 20] {
                let before = node.counters();
                node.send_segmented(family, segments);
                node.wait_for("super-frame", super_frames, 1, &before);
                assert_eq!(super_frames(&node.counters()) - super_frames(&before), 1);
                assert_eq!(node.counters().steered, before.steered);
            }
            assert!(node.receive(1).is_empty());
        }
    });
}

#[test]
fn generic_passes_tcp_super_frames() {
    net::test("generic_passes_tcp_super_frames", || {
        const BYTES: usize = 4 << 20;
        let node = Node::new(XdpMode::Generic);
        node.beat();
        for listen in ["10.244.1.1:4000", "[fd00:1::1]:4000"] {
            let before = node.counters();
            let listener = TcpListener::bind(listen).unwrap();
            let (sent, received) = node.pod.enter(|| {
                let mut stream = TcpStream::connect(listen).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                let reader = std::thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()).unwrap());
                stream.write_all(&vec![7; BYTES]).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                (BYTES as u64, reader.join().unwrap())
            });
            assert_eq!(sent, received);
            let after = node.counters();
            assert!(super_frames(&after) - super_frames(&before) > 10, "{after:?}");
            // Handshake and acknowledgements are no super-frames; they are for the node itself.
            let for_node = PassReason::ForNode as usize;
            assert!(after.passed[for_node] - before.passed[for_node] >= 2, "{after:?}");
            assert_eq!(after.steered, before.steered);
        }
    });
}

#[test]
fn a_vlan_tag_beside_the_frame_is_seen() {
    net::test("a_vlan_tag_beside_the_frame_is_seen", || {
        let mut node = Node::new(XdpMode::Native);
        if !node.steering.sees_veth_tags() {
            net::skipped("a_vlan_tag_beside_the_frame_is_seen", "needs Linux 6.3");
            return;
        }
        node.beat();
        node.pod.enter(|| net::tag_on_egress("eth0"));
        let before = node.counters();
        node.send_plain(Family::V4, 5);
        let tagged = |counters: &PortCounters| counters.passed[PassReason::Vlan as usize];
        node.wait_for("tagged frames", tagged, 5, &before);
        assert!(node.receive(1).is_empty());
        assert_eq!(node.counters().steered, before.steered);
    });
}
