//! A small node: the tables that the tests start from, the loaded program, and the Rust engine as the reference.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::libc;
use podlane::bpf::{PortCounters, Steering};
use podlane_dataplane::afxdp::clock;
use podlane_dataplane::forward::{DropReason, PassReason, Rewrite, Verdict, decide, guard};
use podlane_dataplane::packet::{Segments, parse, parse_super_frame, rewrite};
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, HostTable, LinkId, NextHop, NextHopAction, Path, Port, PortKind, PortTable,
    Tables,
};
use podlane_dataplane::{MacAddr, PortId, limits};

use crate::frames::{BRIDGE_MAC, OTHER_NODE, POD_A, POD_B, POD_C, UPLINK_MAC, ip4, ip6};
use crate::net::{ifindex, ip};

pub const A: PortId = PortId(0);
pub const B: PortId = PortId(1);
pub const UPLINK: PortId = PortId(2);
pub const C: PortId = PortId(3);
/// Ports that frames can come in through in a test run; there is an interface with two queues behind each.
pub const INGRESS: [PortId; 4] = [A, B, UPLINK, C];

/// Their interfaces.
pub const INTERFACES: [&str; 4] = ["pod-a", "pod-b", "uplink", "pod-c"];

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const REDIRECT: u32 = 4;
/// Of tc.
const NEXT: i32 = -1;
const TC_DROP: u32 = 2;
const TC_REDIRECT: u32 = 7;
/// What the route by way of `ROUTE_MTU_SUBNET` carries at most, bytes.
pub const ROUTE_MTU: u32 = 600;

/// What the program did with one frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    Steered,
    Passed(PassReason),
    Dropped(DropReason),
}

/// What the tc program did with one frame.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Repeated {
    /// Out of this port, as these bytes.
    Forwarded(PortId, Vec<u8>),
    Passed(PassReason),
    Dropped(DropReason),
}

/// The loaded program over the tables of a small node. Every queue has a socket, every worker is alive.
pub struct World {
    pub steering: Steering,
    pub tables: Tables,
    sockets: Vec<OwnedFd>,
}

impl World {
    /// In the calling thread's namespace, which gets four interfaces.
    pub fn new() -> Self {
        let queues = "numtxqueues 2 numrxqueues 2";
        ip(&format!("link add name pod-a {queues} type veth peer name pod-b {queues}"));
        ip(&format!("link add name uplink {queues} type veth peer name pod-c {queues}"));
        let mut steering = Steering::load().unwrap();
        let tables = tables(INTERFACES.map(ifindex));
        // Into both copies.
        steering.sync(&tables).unwrap();
        steering.sync(&tables).unwrap();
        let mut world = World { steering, tables, sockets: Vec::new() };
        world.stay_alive();
        for port in INGRESS {
            for queue in 0..2 {
                world.give_socket(port, queue);
            }
        }
        world
    }

    /// Worker 0 and the tables look alive for an hour, however long this thread waits for a processor.
    pub fn stay_alive(&self) {
        let end_ns = clock::coarse_ns() + 3_600_000_000_000;
        self.steering.beat(0, end_ns).unwrap();
        self.steering.vouch(end_ns);
    }

    /// Worker 0 shows that it was alive so many milliseconds ago.
    pub fn beat(&self, age_ms: u64) {
        self.steering.beat(0, clock::coarse_ns() - age_ms * 1_000_000).unwrap();
    }

    /// A test run only looks the socket up, so it need not be bound.
    pub fn give_socket(&mut self, port: PortId, queue: u32) {
        let socket = unbound_socket();
        self.steering.set_socket(port, queue, socket.as_fd(), 0).unwrap();
        self.sockets.push(socket.into());
    }

    /// Closes all sockets.
    pub fn close_sockets(&mut self) {
        self.sockets.clear();
    }

    /// Changes the tables and writes them.
    pub fn change(&mut self, change: impl FnOnce(&mut Tables)) {
        change(&mut self.tables);
        self.steering.sync(&self.tables).unwrap();
    }

    /// Brings the copy of the tables that is not in force in step, so that what a change writes is only the change.
    pub fn settle(&mut self) {
        self.steering.sync(&self.tables).unwrap();
    }

    /// Changes one port.
    pub fn change_port(&mut self, id: PortId, change: impl FnOnce(&mut Port)) {
        let mut ports: Vec<_> = self.tables.ports.iter().map(|(id, port)| (id, port.clone())).collect();
        change(&mut ports.iter_mut().find(|(other, _)| *other == id).unwrap().1);
        self.change(|tables| tables.ports = Arc::new(PortTable::new(ports)));
    }

    /// What the engine says of a frame.
    pub fn engine(&self, ingress: PortId, frame: &[u8]) -> Outcome {
        if let Err(reason) = guard(frame, ingress, &self.tables) {
            return Outcome::Dropped(reason);
        }
        let verdict = match parse(frame, frame.len() as u32) {
            Ok(headers) => decide(&headers, ingress, &self.tables),
            Err(reason) => Verdict::Kernel(reason),
        };
        match verdict {
            Verdict::Forward { .. } => Outcome::Steered,
            Verdict::Kernel(reason) => Outcome::Passed(reason),
        }
    }

    /// What the program does with a frame of which `linear` bytes are in one piece. Verdict and all counters must agree.
    pub fn program_with_linear(&self, ingress: PortId, queue: u32, frame: &[u8], linear: usize) -> Outcome {
        let before = self.steering.counters(ingress).unwrap();
        let ifindex = self.tables.ports.get(ingress).unwrap().ifindex;
        let run = self.steering.test_run(frame, linear, ifindex, queue, 1).unwrap();
        let after = self.steering.counters(ingress).unwrap();
        outcome(run.verdict, &before, &after, frame.len())
    }

    /// What the program does with a frame on queue 0.
    pub fn program(&self, ingress: PortId, frame: &[u8]) -> Outcome {
        self.program_with_linear(ingress, 0, frame, frame.len().min(MAX_LINEAR))
    }

    /// What the engine says of a frame, or of a super-frame with segments of `gso_size`, and what leaves.
    pub fn engine_repeats(&self, ingress: PortId, frame: &[u8], gso_size: u16) -> Repeated {
        if let Err(reason) = guard(frame, ingress, &self.tables) {
            return Repeated::Dropped(reason);
        }
        let bytes = frame.len() as u32;
        let segments = Segments { bytes: gso_size, encapsulated: false };
        let parsed = if gso_size == 0 { parse(frame, bytes) } else { parse_super_frame(frame, bytes, segments) };
        let headers = match parsed {
            Ok(headers) => headers,
            Err(reason) => return Repeated::Passed(reason),
        };
        match decide(&headers, ingress, &self.tables) {
            Verdict::Kernel(reason) => Repeated::Passed(reason),
            Verdict::Forward { port, rewrite, .. } => {
                let mut out = frame.to_vec();
                if let Rewrite::Route { destination, source } = rewrite {
                    rewrite::route(&mut out, &headers, destination, source);
                }
                Repeated::Forwarded(port, out)
            }
        }
    }

    /// What the tc program does with a frame, or with a super-frame. Verdict and all counters must agree; what it leaves to
    /// the kernel it must not have changed. `None`: no test run is to be had with a frame that ends within its IP header.
    pub fn repeats(&mut self, ingress: PortId, frame: &[u8], gso_size: u16) -> Option<Repeated> {
        let all = |world: &World| INGRESS.map(|port| world.steering.counters(port).unwrap());
        let ifindex = self.tables.ports.get(ingress).unwrap().ifindex;
        let before = all(self);
        let (run, out) = match self.steering.test_repeat(frame, ifindex, gso_size.into(), 1) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput && frame.len() < 54 => return None,
            run => run.unwrap(),
        };
        let after = all(self);
        let own = INGRESS.iter().position(|port| *port == ingress).unwrap();
        let (old, new) = (&before[own], &after[own]);
        let bytes = frame.len() as u64;
        assert_eq!((new.rx_packets - old.rx_packets, new.rx_bytes - old.rx_bytes), (1, bytes));
        if let Some(reason) = dropped(old, new) {
            assert_eq!((run.verdict, out.as_slice()), (TC_DROP, frame));
            return Some(Repeated::Dropped(reason));
        }
        if new.repeated == old.repeated {
            assert_eq!((run.verdict as i32, out.as_slice()), (NEXT, frame));
            let passed = |reason: &&PassReason| new.passed[**reason as usize] != old.passed[**reason as usize];
            return Some(Repeated::Passed(*PassReason::ALL.iter().find(passed).unwrap()));
        }
        assert_eq!(run.verdict, TC_REDIRECT);
        assert_eq!(new.repeated_bytes - old.repeated_bytes, bytes);
        let left = |index: &usize| after[*index].repeated_out != before[*index].repeated_out;
        let egress = (0..INGRESS.len()).find(left).expect("it left through some port");
        assert_eq!(after[egress].repeated_out_bytes - before[egress].repeated_out_bytes, bytes);
        Some(Repeated::Forwarded(INGRESS[egress], out))
    }

    /// The tc program leaves a frame of a port on the other path alone, uncounted; so does the XDP program.
    pub fn other_program_keeps_out(&mut self, ingress: PortId, frame: &[u8]) {
        let port = self.tables.ports.get(ingress).unwrap().clone();
        let before = self.steering.counters(ingress).unwrap();
        let verdict = match port.path {
            Path::AfXdp => {
                let Ok((run, out)) = self.steering.test_repeat(frame, port.ifindex, 0, 1) else { return };
                assert_eq!(out, frame);
                assert_eq!(run.verdict as i32, NEXT);
                PASS
            }
            Path::Kernel => {
                let linear = frame.len().min(MAX_LINEAR);
                self.steering.test_run(frame, linear, port.ifindex, 0, 1).unwrap().verdict
            }
        };
        assert_eq!(verdict, PASS);
        assert_eq!(self.steering.counters(ingress).unwrap(), before);
    }

    /// Program and engine leave the frame to the kernel for `reason`.
    #[track_caller]
    pub fn passes(&self, ingress: PortId, frame: &[u8], reason: PassReason) {
        assert_eq!(self.engine(ingress, frame), Outcome::Passed(reason), "the engine about {frame:02x?}");
        assert_eq!(self.program(ingress, frame), Outcome::Passed(reason), "the program about {frame:02x?}");
    }

    /// Program and engine take the frame.
    #[track_caller]
    pub fn steers(&self, ingress: PortId, frame: &[u8]) {
        assert_eq!(self.engine(ingress, frame), Outcome::Steered, "the engine about {frame:02x?}");
        assert_eq!(self.program(ingress, frame), Outcome::Steered, "the program about {frame:02x?}");
    }
}

/// An AF_XDP socket without rings or interface.
pub fn unbound_socket() -> socket2::Socket {
    socket2::Socket::new(libc::AF_XDP.into(), libc::SOCK_RAW.into(), None).unwrap()
}

/// The most that a test run puts into one piece: a page without head- and tailroom (`net/bpf/test_run.c`).
pub const MAX_LINEAR: usize = 4096 - 256 - 320;

/// Reads one frame's outcome from verdict and counters, which must tell the same story.
pub fn outcome(verdict: u32, before: &PortCounters, after: &PortCounters, bytes: usize) -> Outcome {
    assert_eq!(after.rx_packets - before.rx_packets, 1);
    assert_eq!(after.rx_bytes - before.rx_bytes, bytes as u64);
    let dropped = dropped(before, after);
    let (steered, passed) = (after.steered - before.steered, after.passed_total() - before.passed_total());
    assert_eq!(steered + passed + u64::from(dropped.is_some()), 1);
    if let Some(reason) = dropped {
        assert_eq!(verdict, DROP);
        return Outcome::Dropped(reason);
    }
    if after.steered != before.steered {
        assert_eq!(verdict, REDIRECT);
        return Outcome::Steered;
    }
    assert_eq!(verdict, PASS);
    let reason =
        PassReason::ALL.iter().find(|&&reason| after.passed[reason as usize] != before.passed[reason as usize]);
    Outcome::Passed(*reason.unwrap())
}

/// Why a frame was dropped between two looks at the counters.
fn dropped(before: &PortCounters, after: &PortCounters) -> Option<DropReason> {
    let counted = |reason: &&DropReason| after.dropped[**reason as usize] != before.dropped[**reason as usize];
    DropReason::ALL.iter().find(counted).copied()
}

pub fn port(ifindex: u32, kind: PortKind, router_mac: MacAddr) -> Port {
    Port {
        ifindex,
        kind,
        router_mac,
        mtu: 1500,
        max_frame: limits::MAX_FRAME as u32,
        forwarding: true,
        learning: true,
        isolated: false,
        partial_checksums: kind == PortKind::Pod,
        path: Path::AfXdp,
        peer: kind == PortKind::Pod,
    }
}

/// The node's tables. Subnet 1 is the node's own, subnet 2 another node's; 3 to 6 are special cases.
pub fn tables([a, b, uplink, c]: [u32; 4]) -> Tables {
    let ports = PortTable::new([
        (A, port(a, PortKind::Pod, BRIDGE_MAC)),
        (B, port(b, PortKind::Pod, BRIDGE_MAC)),
        (UPLINK, port(uplink, PortKind::Uplink, UPLINK_MAC)),
        (C, port(c, PortKind::Pod, BRIDGE_MAC)),
    ]);
    let entry = |port| FdbEntry { port, is_static: false, activity: limits::MAX_NEIGHBOURS as u32 };
    let (fdb, _) = Fdb::new([(POD_A, entry(A)), (POD_B, entry(B)), (POD_C, entry(C))]);
    let adjacency = |port, destination, source| Adjacency { port, destination, source, activity: 0 };
    let adjacencies = vec![
        adjacency(UPLINK, OTHER_NODE, UPLINK_MAC),
        adjacency(A, POD_A, BRIDGE_MAC),
        adjacency(B, POD_B, BRIDGE_MAC),
    ];
    let mut hosts = HostTable::default();
    for (host, adjacency) in [(10, 1), (11, 2)] {
        hosts.insert4(LinkId::BRIDGE, ip4(1, host), adjacency);
        hosts.insert6(LinkId::BRIDGE, ip6(1, host), adjacency);
    }
    let hop = |action| NextHop { action, mtu: u32::MAX };
    let next_hops = vec![
        hop(NextHopAction::OnLink(LinkId::BRIDGE)),
        hop(NextHopAction::Gateway(0)),
        hop(NextHopAction::Kernel(PassReason::ForNode)),
        hop(NextHopAction::Kernel(PassReason::RouteKind)),
        hop(NextHopAction::Gateway(77)),
        NextHop { action: NextHopAction::Gateway(0), mtu: ROUTE_MTU },
    ];
    let subnets = [(1, 0), (2, 1), (3, 3), (4, 4), (5, 5), (6, 999)];
    let routes4 = subnets.map(|(subnet, hop)| (ip4(subnet, 0).to_bits(), 24, hop));
    let routes6 = subnets.map(|(subnet, hop)| (ip6(subnet, 0).to_bits(), 64, hop));
    Tables {
        ports: Arc::new(ports),
        fdb: Arc::new(fdb),
        fib4: Arc::new(Fib::new(routes4.into_iter().chain([(ip4(1, 1).to_bits(), 32, 2)]))),
        fib6: Arc::new(Fib::new(routes6.into_iter().chain([(ip6(1, 1).to_bits(), 128, 2)]))),
        next_hops: Arc::new(next_hops),
        hosts: Arc::new(hosts),
        adjacencies: Arc::new(adjacencies),
        cluster: Arc::new(Cluster::new([(ip4(0, 0), 16)], [(ip6(0, 0), 16)]).unwrap()),
        ..Tables::default()
    }
}
