//! The worker over queues in memory: real frames and tables, no kernel.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crossbeam::channel::{self, Sender};
use crossbeam::queue::ArrayQueue;
use etherparse::PacketBuilder;

use super::*;
use crate::MacAddr;
use crate::afxdp::{MemoryQueue, Slept, Waiter};
use crate::forward::{DropReason, PassReason};
use crate::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, LinkId, NextHop, NextHopAction, Path, Port, PortKind, PortTable,
};
use crate::tap::{Direction, Filter, Outcome, Record, Tap, Wish};

const FRAMES: u32 = 1024;
const HOST: PortId = PortId(0);
const POD1: PortId = PortId(1);
const POD2: PortId = PortId(2);
const UPLINK: PortId = PortId(3);
const BRIDGE_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xbb]);
const UPLINK_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xaa]);
const GATEWAY_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xee]);

fn pod_mac(port: PortId) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 1, port.0 as u8])
}

fn pod_ip(port: PortId) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, port.0 as u8)
}

const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);

fn tables() -> Tables {
    let port = |ifindex, kind, router_mac| Port {
        ifindex,
        kind,
        router_mac,
        mtu: 9000,
        max_frame: limits::MAX_FRAME as u32,
        forwarding: true,
        learning: true,
        isolated: false,
        partial_checksums: kind == PortKind::Pod,
        path: Path::AfXdp,
        peer: kind == PortKind::Pod,
    };
    let ports = PortTable::new([
        (HOST, port(10, PortKind::Host, BRIDGE_MAC)),
        (POD1, port(11, PortKind::Pod, BRIDGE_MAC)),
        (POD2, port(12, PortKind::Pod, BRIDGE_MAC)),
        (UPLINK, port(13, PortKind::Uplink, UPLINK_MAC)),
    ]);
    let entry = |port: PortId| {
        (
            pod_mac(port),
            FdbEntry { port, is_static: false, activity: limits::MAX_NEIGHBOURS as u32 + u32::from(port.0) },
        )
    };
    let adjacency = |port, destination, source, activity| Adjacency { port, destination, source, activity };
    let mut hosts = crate::table::HostTable::default();
    hosts.insert4(LinkId::BRIDGE, pod_ip(POD1), 1);
    Tables {
        ports: Arc::new(ports),
        fdb: Arc::new(Fdb::new([entry(POD1), entry(POD2)]).0),
        fib4: Arc::new(Fib::new([
            (Ipv4Addr::new(10, 244, 1, 0).to_bits(), 24, 0),
            (Ipv4Addr::new(10, 244, 2, 0).to_bits(), 24, 1),
        ])),
        next_hops: Arc::new(vec![
            NextHop { action: NextHopAction::OnLink(LinkId::BRIDGE), mtu: u32::MAX },
            NextHop { action: NextHopAction::Gateway(0), mtu: u32::MAX },
        ]),
        adjacencies: Arc::new(vec![
            adjacency(UPLINK, GATEWAY_MAC, UPLINK_MAC, 5),
            adjacency(POD1, pod_mac(POD1), BRIDGE_MAC, 6),
        ]),
        hosts: Arc::new(hosts),
        cluster: Arc::new(Cluster::new([(Ipv4Addr::new(10, 244, 0, 0), 16)], []).unwrap()),
        ..Tables::default()
    }
}

fn udp(from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.0.octets(), to.0.octets())
        .ipv4(from.1.octets(), to.1.octets(), 64)
        .udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// Workers over one UMEM, with the loader's ends of everything.
struct Rig {
    umem: Umem,
    workers: Vec<Worker<MemoryQueue>>,
    commands: Vec<Sender<Command<MemoryQueue>>>,
    learn: Arc<ArrayQueue<LearnReport>>,
    tables: Tables,
}

impl Rig {
    fn new(workers: usize) -> Rig {
        Rig::with_frames(workers, FRAMES)
    }

    fn with_frames(workers: usize, frames: u32) -> Rig {
        let umem = Umem::new(frames).unwrap();
        let homes = Homes::new(workers, frames);
        let wakers = (0..workers).map(|_| Waiter::new().unwrap().1).collect();
        let handoff = Handoff::new(wakers);
        let learn = Arc::new(ArrayQueue::new(LEARN_QUEUE));
        let mut rig = Rig { umem, workers: Vec::new(), commands: Vec::new(), learn, tables: tables() };
        for (id, share) in homes.split(rig.umem.take_frames()).into_iter().enumerate() {
            let (sender, commands) = channel::unbounded();
            rig.commands.push(sender);
            rig.workers.push(Worker::new(WorkerParts {
                id,
                umem: rig.umem.clone(),
                pool: FramePool::new(id, homes.clone(), share),
                counters: Arc::default(),
                activity: Arc::default(),
                learn: Arc::clone(&rig.learn),
                handoff: handoff.clone(),
                commands,
            }));
        }
        rig
    }

    /// One worker that serves all four ports.
    fn single(metadata: bool) -> Rig {
        let mut rig = Rig::new(1);
        for port in [HOST, POD1, POD2, UPLINK] {
            rig.add(0, port, metadata);
        }
        rig.tell(0, Command::SetHostPort(HOST));
        rig
    }

    fn add(&mut self, worker: usize, port: PortId, metadata: bool) {
        let queue = MemoryQueue::new(&self.umem, port.0 + 100, metadata);
        self.tell(worker, Command::AddQueue { port, queue, transmits: true });
        for other in 0..self.workers.len() {
            let egress = if other == worker { Egress::Own } else { Egress::Worker(worker as u8) };
            self.tell(other, Command::SetEgress { port, egress });
        }
    }

    fn tell(&mut self, worker: usize, command: Command<MemoryQueue>) {
        self.commands[worker].send(command).unwrap();
        while let Some(command) = self.workers[worker].next_command() {
            let _ = self.workers[worker].obey(command, &self.tables);
        }
    }

    fn queue(&mut self, worker: usize, port: PortId) -> &mut MemoryQueue {
        &mut self.workers[worker].slots.iter_mut().find(|slot| slot.port == port).unwrap().queue
    }

    fn turn(&mut self) {
        for worker in &mut self.workers {
            worker.turn(&self.tables, 100);
        }
    }

    fn sent(&mut self, worker: usize, port: PortId) -> Vec<(Vec<u8>, bool)> {
        std::mem::take(&mut self.queue(worker, port).sent)
    }

    fn count(&mut self) -> FrameCount {
        let mut sum = FrameCount::default();
        for worker in 0..self.workers.len() {
            let (reply, answer) = channel::bounded(1);
            self.tell(worker, Command::Audit { reply });
            sum += answer.recv().unwrap();
        }
        sum
    }

    /// Packets on their way from the first worker to the second.
    fn handoff_waiting(&self) -> usize {
        self.workers[0].handoff.between(0, 1)
    }

    fn assert_conserved(&mut self) {
        let count = self.count();
        assert_eq!(count.sum(), u64::from(self.umem.frames()), "{count:?}");
        assert_eq!(count.worker, 0, "{count:?}");
    }

    fn assert_balanced(&self, port: PortId) {
        for worker in &self.workers {
            let counters = worker.counters.port(port);
            let kernel: u64 = counters.kernel.iter().map(Counter::get).sum();
            let dropped: u64 = counters.dropped.iter().map(Counter::get).sum();
            assert_eq!(counters.rx.get(), counters.forwarded.get() + kernel + dropped, "port {port}");
        }
    }
}

#[test]
fn a_bridged_packet_leaves_as_it_came() {
    let mut rig = Rig::single(false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"hello");
    assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    rig.turn();
    assert_eq!(rig.sent(0, POD2), [(frame, false)]);
    let counters = rig.workers[0].counters.port(POD1);
    assert_eq!((counters.rx.get(), counters.forwarded.get()), (1, 1));
    assert_eq!(rig.workers[0].counters.port(POD2).tx.get(), 1);
    assert_eq!(rig.workers[0].activity.last_used_s(limits::MAX_NEIGHBOURS as u32 + 1), 100, "source entry used");
    let destination = limits::MAX_NEIGHBOURS as u32 + 2;
    assert_eq!(rig.workers[0].activity.last_used_s(destination), 0, "a bridge forgets a station that is only sent to");
    assert_eq!(rig.learn.pop(), None);
    rig.assert_conserved();
}

#[test]
fn a_routed_packet_gets_new_macs_and_a_lower_ttl_and_keeps_its_payload() {
    let mut rig = Rig::single(false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (BRIDGE_MAC, REMOTE), &[7; 100]);
    assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    rig.turn();
    let [(out, _)] = &rig.sent(0, UPLINK)[..] else { panic!("not sent") };
    let out = etherparse::SlicedPacket::from_ethernet(out).unwrap();
    let Some(etherparse::LinkSlice::Ethernet2(ethernet)) = out.link else { panic!() };
    assert_eq!((ethernet.destination(), ethernet.source()), (GATEWAY_MAC.octets(), UPLINK_MAC.octets()));
    let Some(etherparse::NetSlice::Ipv4(ipv4)) = out.net else { panic!() };
    assert_eq!(ipv4.header().ttl(), 63);
    assert_eq!(ipv4.header().header_checksum(), ipv4.header().to_header().calc_header_checksum());
    assert_eq!(rig.workers[0].activity.last_used_s(5), 100);
    rig.assert_conserved();
}

#[test]
fn a_packet_of_many_pieces_arrives_whole_and_one_of_too_many_is_dropped() {
    let mut rig = Rig::single(false);
    let payload: Vec<u8> = (0..8000u32).map(|byte| byte as u8).collect();
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &payload);
    assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    assert!(rig.queue(0, POD1).arrive(&frame, 300));
    rig.turn();
    assert_eq!(rig.sent(0, POD2), [(frame, false)]);
    assert_eq!(rig.workers[0].counters.port(POD1).dropped[DropReason::TooManyPieces as usize].get(), 1);
    rig.assert_balanced(POD1);
    rig.assert_conserved();
}

#[test]
fn a_busy_queue_wakes_nobody_until_the_worker_is_about_to_sleep() {
    let mut rig = Rig::single(false);
    let (waiter, _) = Waiter::new().unwrap();
    let (reader, mut sender) = std::io::pipe().unwrap();
    rig.queue(0, POD1).readable = Some(reader.into());
    waiter.add(rig.queue(0, POD1)).unwrap();
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"hello");
    for _ in 1..limits::UNWATCH_PACKETS {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
        rig.turn();
    }
    rig.workers[0].unwatch_busy(&waiter);
    sender.write_all(b"a").unwrap();
    assert_eq!(waiter.sleep(0, || false), Slept::UntilWoken, "not busy enough");
    assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    rig.turn();
    rig.workers[0].unwatch_busy(&waiter);
    sender.write_all(b"b").unwrap();
    assert_eq!(waiter.sleep(0, || false), Slept::UntilTimeout, "no longer watched");
    rig.workers[0].watch_all(&waiter);
    assert_eq!(waiter.sleep(0, || false), Slept::UntilWoken, "what came meanwhile is not missed");
    sender.write_all(b"c").unwrap();
    assert_eq!(waiter.sleep(0, || false), Slept::UntilWoken);
}

#[test]
fn what_the_engine_cannot_finish_goes_to_the_kernel_through_the_host_port() {
    let mut rig = Rig::single(false);
    let stranger = MacAddr::new([2, 0, 0, 9, 9, 9]);
    let unknown = udp((pod_mac(POD1), pod_ip(POD1)), (stranger, pod_ip(POD2)), b"x");
    assert!(rig.queue(0, POD1).arrive(&unknown, 3840));
    let unresolved = udp((GATEWAY_MAC, REMOTE), (UPLINK_MAC, pod_ip(POD2)), b"y");
    assert!(rig.queue(0, UPLINK).arrive(&unresolved, 3840));
    rig.turn();
    let sent = rig.sent(0, HOST);
    assert_eq!(sent[0].0, unknown, "as it was");
    assert_eq!(sent[1].0[..6], BRIDGE_MAC.octets(), "from an uplink, addressed to the bridge");
    assert_eq!(sent[1].0[6..], unresolved[6..]);
    assert_eq!(rig.workers[0].counters.port(POD1).kernel[PassReason::UnknownMac as usize].get(), 1);
    assert_eq!(rig.workers[0].counters.port(UPLINK).kernel[PassReason::Unresolved as usize].get(), 1);
    rig.assert_conserved();
}

/// A frame as a pod with checksum offload sends it: the field holds the folded pseudo-header sum.
fn with_partial_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    let udp_bytes = (frame.len() - 34) as u32;
    let mut sum: u32 = frame[26..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum += 17 + udp_bytes;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[40..42].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

#[test]
fn a_partial_checksum_is_requested_where_the_socket_can_and_finished_here_where_it_cannot() {
    let whole = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &[3; 5001]);
    let partial = with_partial_checksum(whole.clone());
    // A zero-copy card cannot be asked although the sockets of the same memory that copy can.
    for (asked, metadata) in [(true, true), (false, false), (true, false)] {
        let mut rig = Rig::single(metadata);
        rig.umem.set_metadata_for_tests(asked);
        assert!(rig.queue(0, POD1).arrive(&partial, 3840));
        assert!(rig.queue(0, POD1).arrive(&whole, 3840));
        rig.turn();
        let sent = rig.sent(0, POD2);
        let first = if metadata { (partial.clone(), true) } else { (whole.clone(), false) };
        assert_eq!(sent[0].1, first.1);
        assert!(sent[0].0 == first.0, "asked {asked}, metadata {metadata}");
        assert!(sent[1] == (whole.clone(), false), "a complete checksum is left alone");
    }
}

#[test]
fn a_checksum_from_a_wire_is_never_touched() {
    let mut rig = Rig::single(true);
    rig.umem.set_metadata_for_tests(true);
    let looks_partial =
        with_partial_checksum(udp((GATEWAY_MAC, REMOTE), (UPLINK_MAC, pod_ip(POD1)), b"corrupt by chance"));
    assert!(rig.queue(0, UPLINK).arrive(&looks_partial, 3840));
    rig.turn();
    let [(out, requested)] = &rig.sent(0, POD1)[..] else { panic!("not sent") };
    assert!(!requested);
    assert_eq!(out[34..], looks_partial[34..]);
}

#[test]
fn a_full_tx_ring_drops_and_counts_and_leaks_nothing() {
    let mut rig = Rig::single(false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    rig.queue(0, POD2).tx_room = 3;
    rig.queue(0, POD2).stuck = true;
    for _ in 0..5 {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    }
    rig.turn();
    assert_eq!(rig.workers[0].counters.port(POD1).dropped[DropReason::TxRingFull as usize].get(), 2);
    rig.assert_balanced(POD1);
    rig.assert_conserved();
    rig.queue(0, POD2).stuck = false;
    rig.turn();
    assert_eq!(rig.sent(0, POD2).len(), 3);
    rig.assert_conserved();
}

#[test]
fn packets_that_the_kernel_did_not_take_are_known_before_a_sleep_and_go_with_the_next_turn() {
    let mut rig = Rig::single(false);
    rig.queue(0, POD2).stuck = true;
    assert_eq!(rig.workers[0].unsent(), 0);
    for _ in 0..3 {
        assert!(rig.queue(0, POD1).arrive(&pod_to_pod(POD1, POD2), 3840));
    }
    rig.turn();
    assert_eq!((rig.workers[0].unsent(), rig.workers[0].work_waits()), (3, false));
    rig.queue(0, POD2).stuck = false;
    rig.turn();
    assert_eq!((rig.workers[0].unsent(), rig.sent(0, POD2).len()), (0, 3));
}

#[test]
fn new_and_moved_source_addresses_are_reported_and_known_and_static_ones_are_not() {
    let mut rig = Rig::single(false);
    let moved = udp((pod_mac(POD2), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    let new = udp((MacAddr::new([2, 9, 9, 9, 9, 9]), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    for frame in [&moved, &new, &new] {
        assert!(rig.queue(0, POD1).arrive(frame, 3840));
    }
    rig.turn();
    assert_eq!(rig.learn.pop(), Some(LearnReport { port: POD1, mac: pod_mac(POD2) }));
    assert_eq!(rig.learn.pop(), Some(LearnReport { port: POD1, mac: MacAddr::new([2, 9, 9, 9, 9, 9]) }));
    assert_eq!(rig.learn.pop(), None);
    let entries: Vec<_> =
        rig.tables.fdb.iter().map(|(mac, entry)| (mac, FdbEntry { is_static: true, ..entry })).collect();
    rig.tables.fdb = Arc::new(Fdb::new(entries).0);
    assert!(rig.queue(0, POD1).arrive(&moved, 3840));
    rig.turn();
    assert_eq!(rig.learn.pop(), None, "a static entry never moves by learning");
}

#[test]
fn a_packet_for_another_workers_port_is_handed_over_and_its_frame_comes_home() {
    let mut rig = Rig::new(2);
    rig.add(0, POD1, false);
    rig.add(1, POD2, false);
    let payload = vec![5; 9000 - 28];
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &payload);
    for _ in 0..5 {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    }
    rig.turn();
    assert_eq!(rig.sent(1, POD2).len(), 5);
    assert_eq!(rig.workers[0].counters.handoff_out.get(), 5);
    assert_eq!(rig.workers[1].counters.handoff_in.get(), 5);
    rig.turn();
    rig.assert_conserved();
    let home: usize = rig.workers.iter_mut().map(|worker| worker.pool.list().len()).sum();
    let fill: usize =
        [(0, POD1), (1, POD2)].map(|(worker, port)| rig.queue(worker, port).fill_outstanding()).iter().sum();
    assert_eq!(home + fill, FRAMES as usize);
}

#[test]
fn a_full_hand_off_ring_drops_and_counts() {
    let mut rig = Rig::new(2);
    rig.add(0, POD1, false);
    rig.add(1, POD2, false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    let mut arrived = 0;
    while rig.workers[0].counters.port(POD1).dropped[DropReason::HandoffFull as usize].get() == 0 {
        let fits = rig.queue(0, POD1).arrive(&frame, 3840);
        arrived += u64::from(fits);
        // Only the first worker runs, so the ring to the second one fills up, or the frames run out.
        let tables = rig.tables.clone();
        rig.workers[0].turn(&tables, 1);
        if !fits && rig.workers[0].pool.list().is_empty() {
            break;
        }
    }
    assert_eq!(rig.workers[0].counters.port(POD1).rx.get(), arrived);
    rig.assert_balanced(POD1);
    rig.assert_conserved();
}

/// Pods beyond the first two, which are only sent to.
fn more_pods(rig: &mut Rig, count: u16) -> Vec<PortId> {
    let more: Vec<PortId> = (4..4 + count).map(PortId).collect();
    let mut ports: Vec<_> = rig.tables.ports.iter().map(|(id, port)| (id, port.clone())).collect();
    let mut fdb: Vec<_> = rig.tables.fdb.iter().collect();
    let template = rig.tables.ports.get(POD1).unwrap().clone();
    for port in &more {
        ports.push((*port, Port { ifindex: 10 + u32::from(port.0), ..template.clone() }));
        fdb.push((pod_mac(*port), FdbEntry { port: *port, is_static: false, activity: 0 }));
    }
    (rig.tables.ports, rig.tables.fdb) = (Arc::new(PortTable::new(ports)), Arc::new(Fdb::new(fdb).0));
    more
}

fn pod_to_pod(from: PortId, to: PortId) -> Vec<u8> {
    udp((pod_mac(from), pod_ip(from)), (pod_mac(to), pod_ip(to)), b"x")
}

/// A pod that sends to receivers which take nothing, as fast as it is served, for thousands of packets.
#[test]
fn receivers_that_take_nothing_do_not_collect_the_frames_of_others() {
    // As many queues as the worker's frames are enough for.
    let mut rig = Rig::single(false);
    let stuck = more_pods(&mut rig, capacity(FRAMES as usize) as u16 - 4);
    for port in &stuck {
        rig.add(0, *port, false);
        rig.queue(0, *port).stuck = true;
    }
    let victims = udp((pod_mac(POD2), pod_ip(POD2)), (BRIDGE_MAC, REMOTE), b"y");
    for turn in 0..1000 {
        while rig.queue(0, POD1).arrive(&pod_to_pod(POD1, stuck[turn % stuck.len()]), 3840) {}
        for _ in 0..8 {
            assert!(rig.queue(0, POD2).arrive(&victims, 3840), "turn {turn}: {:?}", rig.count());
        }
        rig.turn();
        assert_eq!(rig.sent(0, UPLINK).len(), 8, "turn {turn}");
    }
    let counters = rig.workers[0].counters.port(POD1);
    assert!(counters.dropped[DropReason::TxRingFull as usize].get() > 1000, "the flood was one");
    let victim = rig.workers[0].counters.port(POD2);
    assert_eq!((victim.rx.get(), victim.forwarded.get()), (8000, 8000));
    rig.assert_conserved();
}

/// The same where the receivers belong to another worker, which holds the first one's frames then.
#[test]
fn receivers_of_another_worker_that_take_nothing_do_not_collect_frames_either() {
    let mut rig = Rig::new(2);
    let stuck = more_pods(&mut rig, 5);
    for (worker, port) in [(0, HOST), (0, POD1), (0, POD2), (1, UPLINK)] {
        rig.add(worker, port, false);
    }
    for port in &stuck {
        rig.add(1, *port, false);
        rig.queue(1, *port).stuck = true;
    }
    let victims = [
        (udp((pod_mac(POD2), pod_ip(POD2)), (BRIDGE_MAC, REMOTE), b"y"), 1, UPLINK),
        (pod_to_pod(POD2, POD1), 0, POD1),
    ];
    for turn in 0..1000 {
        while rig.queue(0, POD1).arrive(&pod_to_pod(POD1, stuck[turn % stuck.len()]), 3840) {}
        for (frame, ..) in &victims {
            for _ in 0..4 {
                assert!(rig.queue(0, POD2).arrive(frame, 3840), "turn {turn}: {:?}", rig.count());
            }
        }
        rig.turn();
        for (_, worker, port) in &victims {
            let (sent, losses) = (rig.sent(*worker, *port).len(), &rig.workers[0].counters.port(POD2).dropped);
            let later = &rig.workers[1].counters.port(*port).tx_dropped;
            assert_eq!(sent, 4, "turn {turn}, to {port}: {losses:?} {later:?}");
        }
    }
    rig.assert_conserved();
}

/// A worker that is slower than what one pod sends its way still gets everything from the others.
#[test]
fn a_pod_that_fills_the_hand_off_ring_leaves_room_in_it() {
    let mut rig = Rig::with_frames(2, 16_384);
    let [flooded] = more_pods(&mut rig, 1)[..] else { panic!() };
    for (worker, port) in [(0, POD1), (0, POD2), (1, UPLINK), (1, flooded)] {
        rig.add(worker, port, false);
    }
    let victims = udp((pod_mac(POD2), pod_ip(POD2)), (BRIDGE_MAC, REMOTE), b"y");
    let (tables, mut delivered) = (rig.tables.clone(), 0);
    for turn in 0..1000 {
        for _ in 0..limits::BATCH {
            assert!(rig.queue(0, POD1).arrive(&pod_to_pod(POD1, flooded), 3840));
        }
        for _ in 0..2 {
            assert!(rig.queue(0, POD2).arrive(&victims, 3840));
        }
        rig.workers[0].turn(&tables, 1);
        // The second worker takes less than one batch for each of the first one's turns.
        if turn % 2 == 0 {
            rig.workers[1].turn(&tables, 1);
        }
        delivered += rig.sent(1, UPLINK).len();
        rig.sent(1, flooded);
    }
    let waiting = rig.handoff_waiting();
    assert!(rig.workers[0].counters.port(POD1).dropped[DropReason::HandoffFull as usize].get() > 1000);
    assert_eq!(rig.workers[0].counters.port(POD2).dropped[DropReason::HandoffFull as usize].get(), 0);
    assert!(delivered + waiting >= 2000, "{delivered} were delivered and {waiting} packets wait");
    rig.assert_conserved();
}

/// Nine pods send as fast as they are served, one after the other, and are silent from then on.
#[test]
fn pods_that_have_flooded_keep_no_frames_that_a_later_one_needs() {
    for frames in [2048, 16_384] {
        let mut rig = Rig::with_frames(1, frames);
        rig.add(0, HOST, false);
        rig.tell(0, Command::SetHostPort(HOST));
        let pods = more_pods(&mut rig, 10);
        pods.iter().for_each(|pod| rig.add(0, *pod, false));
        let mut flood = |pod: PortId, now_s| {
            let frame = udp((pod_mac(pod), pod_ip(pod)), (MacAddr::BROADCAST, pod_ip(POD2)), b"x");
            let (mut least, tables) = (usize::MAX, rig.tables.clone());
            for round in 0..400 {
                let arrived = (0..).take_while(|_| rig.queue(0, pod).arrive(&frame, 3840)).count();
                // A queue to which nothing came yet holds little.
                least = if round == 0 { least } else { least.min(arrived) };
                for _ in 0..40 {
                    rig.workers[0].turn(&tables, now_s);
                }
                rig.sent(0, HOST);
            }
            rig.assert_conserved();
            least
        };
        let least: Vec<usize> = (0..).zip(&pods).map(|(second, pod)| flood(*pod, 100 + 100 * second)).collect();
        // An equal share is 50 frames of 2048, and 544 of 16,384; fewer than half a batch are not worth topping up for.
        let half = if frames == 2048 { 32 } else { 272 - limits::BATCH / 2 };
        assert!(least.iter().all(|burst| *burst >= half), "{frames}: bursts of {least:?} packets");
    }
}

#[test]
fn a_removed_port_gives_all_its_frames_back() {
    let mut rig = Rig::single(false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    rig.queue(0, POD2).stuck = true;
    for _ in 0..7 {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    }
    rig.turn();
    // POD2 now holds frames in its TX ring, and both hold some in their fill rings; one more waits in POD2's RX ring.
    assert!(rig.queue(0, POD2).arrive(&frame, 3840));
    for port in [POD2, POD1] {
        let (reply, answer) = channel::bounded(1);
        rig.tell(0, Command::RemovePort { port, reply });
        let queues = answer.recv().unwrap();
        assert_eq!(queues.len(), 1);
        let owed = rig.workers[0].limbo;
        rig.assert_conserved();
        let closed = queues.into_iter().map(MemoryQueue::close).collect();
        let (reply, answer) = channel::bounded(1);
        rig.tell(0, Command::Reclaim { closed, reply });
        assert_eq!(answer.recv().unwrap() as u64, owed);
        rig.assert_conserved();
    }
    rig.turn();
    let count = rig.count();
    assert_eq!(count.tx, 0);
}

/// The second worker obeys and is off its CPU for a moment; the first has not come to its own command yet.
#[test]
fn a_packet_handed_over_for_a_removed_port_is_not_sent_to_the_next_port_of_that_number() {
    let mut rig = Rig::new(2);
    for (worker, port) in [(0, POD1), (1, POD2), (1, UPLINK)] {
        rig.add(worker, port, false);
    }
    let large = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &[7; 8000]);
    let other = udp((pod_mac(POD1), pod_ip(POD1)), (BRIDGE_MAC, REMOTE), b"x");
    for frame in [&large, &other, &large] {
        assert!(rig.queue(0, POD1).arrive(frame, 3840));
    }
    let (reply, answer) = channel::bounded(1);
    rig.tell(1, Command::RemovePort { port: POD2, reply });
    let closed = answer.recv().unwrap().into_iter().map(MemoryQueue::close).collect();
    let tables = rig.tables.clone();
    rig.workers[0].turn(&tables, 100);
    assert_eq!(rig.handoff_waiting(), 7, "two packets of three pieces, and one");
    let (reply, _answer) = channel::bounded(1);
    rig.tell(0, Command::RemovePort { port: POD2, reply });
    let (reply, _answer) = channel::bounded(1);
    rig.tell(1, Command::Reclaim { closed, reply });
    rig.add(1, POD2, false);
    rig.turn();
    assert_eq!(rig.sent(1, POD2), []);
    assert_eq!(rig.sent(1, UPLINK).len(), 1, "what is for others goes its way");
    let counters = &rig.workers[1].counters;
    assert_eq!(counters.port(POD2).tx_dropped[DropReason::EgressGone as usize].get(), 2);
    assert_eq!(counters.handoff_in.get(), 3);
    rig.turn();
    rig.assert_conserved();
}

#[test]
fn a_packet_for_a_port_that_was_removed_is_dropped_by_name() {
    let mut rig = Rig::single(false);
    let (reply, _answer) = channel::bounded(1);
    rig.tell(0, Command::RemovePort { port: POD2, reply });
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    rig.turn();
    assert_eq!(rig.workers[0].counters.port(POD1).dropped[DropReason::EgressGone as usize].get(), 1);
    rig.assert_balanced(POD1);
}

/// What the tap has, with the frames' bytes; one worker's after the other's.
fn tapped(tap: &Tap) -> Vec<(Record, Vec<u8>)> {
    let take = |ring: &crate::tap::Ring| {
        let mut bytes = Vec::new();
        ring.take(&mut bytes).map(|record| (record, bytes))
    };
    tap.rings().iter().flat_map(|ring| std::iter::from_fn(move || take(ring))).collect()
}

fn tap_on(rig: &mut Rig, change: impl FnOnce(&mut Wish)) -> Arc<Tap> {
    let mut wish = Wish { filter: Filter::everything(), snap_bytes: 65_000, rx: true, tx: true, interfaces: None };
    change(&mut wish);
    let tap = Arc::new(Tap::new(wish, rig.workers.len(), || 7));
    rig.tables.tap = Some(Arc::clone(&tap));
    tap
}

#[test]
fn a_tap_sees_packets_as_they_come_and_as_they_leave() {
    let mut rig = Rig::single(false);
    let tap = tap_on(&mut rig, |_| {});
    let payload: Vec<u8> = (0..8000u32).map(|byte| byte as u8).collect();
    let bridged = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &payload);
    let routed = udp((pod_mac(POD1), pod_ip(POD1)), (BRIDGE_MAC, REMOTE), b"routed");
    for (frame, port, to) in [(&bridged, POD2, 12), (&routed, UPLINK, 13)] {
        assert!(rig.queue(0, POD1).arrive(frame, 3840));
        rig.turn();
        let sent = rig.sent(0, port);
        let records = tapped(&tap);
        let [(received, before), (left, after)] = &records[..] else { panic!("{records:?}") };
        assert_eq!((before, after), (frame, &sent[0].0));
        assert_eq!(
            (received.ifindex, received.direction, received.frame_bytes),
            (11, Direction::Rx, frame.len() as u32)
        );
        assert_eq!(received.outcome, Outcome::Forwarded { to, routed: port == UPLINK });
        assert_eq!((left.ifindex, left.direction, left.outcome), (to, Direction::Tx, Outcome::Sent { from: 11 }));
        assert!(received.packet != 0 && received.packet == left.packet);
    }
    rig.assert_conserved();
}

#[test]
fn a_tap_is_told_why_packets_go_elsewhere() {
    let mut rig = Rig::single(false);
    let tap = tap_on(&mut rig, |wish| wish.tx = false);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    let mut arp = frame.clone();
    arp[13] = 6;
    rig.queue(0, POD2).tx_room = 1;
    rig.queue(0, POD2).stuck = true;
    for arriving in [&frame, &frame, &arp] {
        assert!(rig.queue(0, POD1).arrive(arriving, 3840));
    }
    assert!(rig.queue(0, POD1).arrive(&[&frame[..], &[0; 8000]].concat(), 300));
    rig.turn();
    let outcomes: Vec<Outcome> = tapped(&tap).into_iter().map(|(record, _)| record.outcome).collect();
    let expected = [
        Outcome::Forwarded { to: 12, routed: false },
        Outcome::Dropped(DropReason::TxRingFull),
        Outcome::Passed(PassReason::NotIp),
        Outcome::Dropped(DropReason::TooManyPieces),
    ];
    assert_eq!(outcomes, expected);
    rig.assert_conserved();
}

#[test]
fn a_tap_takes_only_what_is_wished() {
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (BRIDGE_MAC, REMOTE), b"wish");
    // load byte 22 (TTL), compare, return
    let ttl = |ttl| {
        let one = |code, jt, jf, k| crate::tap::Instruction { code, jt, jf, k };
        Filter::new(vec![one(0x30, 0, 0, 22), one(0x15, 0, 1, ttl), one(6, 0, 0, 1), one(6, 0, 0, 0)]).unwrap()
    };
    let seen = |change: &dyn Fn(&mut Wish)| {
        let mut rig = Rig::single(false);
        let tap = tap_on(&mut rig, |wish| change(wish));
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
        rig.turn();
        assert_eq!(rig.sent(0, UPLINK).len(), 1);
        tapped(&tap).into_iter().map(|(record, bytes)| (record.direction, bytes.len())).collect::<Vec<_>>()
    };
    let (rx, tx) = ((Direction::Rx, frame.len()), (Direction::Tx, frame.len()));
    assert_eq!(seen(&|_| {}), [rx, tx]);
    assert_eq!(seen(&|wish| wish.tx = false), [rx]);
    assert_eq!(seen(&|wish| wish.rx = false), [tx]);
    assert_eq!(seen(&|wish| wish.interfaces = Some(vec![13])), [tx]);
    assert_eq!(seen(&|wish| wish.interfaces = Some(vec![12])), []);
    assert_eq!(seen(&|wish| wish.snap_bytes = 20), [(Direction::Rx, 20), (Direction::Tx, 20)]);
    assert_eq!(seen(&|wish| wish.filter = ttl(64)), [rx]);
    assert_eq!(seen(&|wish| wish.filter = ttl(63)), [tx], "what is sent is judged as it is sent");
    assert_eq!(seen(&|wish| wish.filter = ttl(5)), []);
}

#[test]
fn a_handed_over_packet_is_seen_where_it_leaves() {
    let mut rig = Rig::new(2);
    rig.add(0, POD1, false);
    rig.add(1, POD2, false);
    let tap = tap_on(&mut rig, |_| {});
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    rig.queue(1, POD2).tx_room = 1;
    rig.queue(1, POD2).stuck = true;
    for _ in 0..2 {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
    }
    rig.turn();
    let outcomes: Vec<Outcome> = tapped(&tap).into_iter().map(|(record, _)| record.outcome).collect();
    let forwarded = Outcome::Forwarded { to: 12, routed: false };
    let dropped = Outcome::Dropped(DropReason::TxRingFull);
    assert_eq!(outcomes, [forwarded, forwarded, Outcome::Sent { from: 0 }, dropped]);
}

#[test]
fn a_tap_that_nobody_empties_loses_records_and_no_packet() {
    let mut rig = Rig::single(false);
    let tap = tap_on(&mut rig, |_| {});
    let payload = vec![3; 3000];
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), &payload);
    let mut sent = 0;
    for _ in 0..12_000 {
        assert!(rig.queue(0, POD1).arrive(&frame, 3840));
        rig.turn();
        sent += rig.sent(0, POD2).len();
    }
    assert_eq!(sent, 12_000);
    let kept = tapped(&tap).len() as u64;
    assert_eq!(kept + tap.lost(POD1) + tap.lost(POD2), 24_000);
    assert!(tap.lost(POD1) > 0 && tap.lost(POD2) > 0 && kept > 1000);
    rig.assert_balanced(POD1);
    rig.assert_conserved();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever arrives wherever, while ports get stuck and recover: no frame is lost, every packet is accounted for.
    #[test]
    fn frames_are_conserved_under_any_traffic(
        steps in proptest::collection::vec((0u8..6, 1u16..4, 0usize..5000, 60usize..3840, 1usize..40), 1..60),
        workers in 1usize..4,
        is_tapped in proptest::prelude::any::<bool>(),
    ) {
        let mut rig = Rig::new(workers);
        let _tap = is_tapped.then(|| tap_on(&mut rig, |wish| wish.snap_bytes = 100));
        for (index, port) in [HOST, POD1, POD2, UPLINK].into_iter().enumerate() {
            rig.add(index % workers, port, false);
        }
        for worker in 0..workers {
            rig.tell(worker, Command::SetHostPort(HOST));
        }
        for (kind, port, payload, piece, burst) in steps {
            let port = PortId(port);
            let owner = port.index() % workers;
            let payload = vec![1; payload];
            let destination = match kind {
                0 => (pod_mac(POD2), pod_ip(POD2)),
                1 => (BRIDGE_MAC, REMOTE),
                2 => (UPLINK_MAC, pod_ip(POD1)),
                3 => (MacAddr::BROADCAST, pod_ip(POD2)),
                4 => { let queue = rig.queue(owner, port); queue.stuck = !queue.stuck; continue }
                _ => { rig.turn(); continue }
            };
            let frame = udp((pod_mac(port), pod_ip(port)), destination, &payload);
            for _ in 0..burst {
                rig.queue(owner, port).arrive(&frame, piece);
            }
            rig.turn();
            rig.assert_conserved();
            for port in [POD1, POD2, UPLINK] {
                rig.assert_balanced(port);
            }
        }
    }
}

/// A clock that goes on by a microsecond with every look at it.
fn ticking() -> u64 {
    thread_local!(static NOW: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    NOW.with(|now| {
        now.set(now.get() + 1000);
        now.get()
    })
}

#[test]
fn the_time_from_rx_to_tx_is_counted_for_every_packet_that_is_sent_and_no_other() {
    let mut rig = Rig::single(false);
    rig.workers[0].stays.clock = ticking;
    let good = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"hello");
    let back = udp((pod_mac(POD2), pod_ip(POD2)), (pod_mac(POD1), pod_ip(POD1)), b"hello");
    (0..3).for_each(|_| assert!(rig.queue(0, POD1).arrive(&good, 3840)));
    assert!(rig.queue(0, POD2).arrive(&back, 3840));
    rig.turn();
    // Two batches: the first was received a microsecond before the second, the kick a microsecond after that.
    let residence = &rig.workers[0].counters.residence;
    assert_eq!((residence.buckets()[..3].to_vec(), residence.sum_ns()), (vec![1, 3, 0], 3 * 2000 + 1000));

    (rig.queue(0, POD2).tx_room, rig.queue(0, POD2).stuck) = (1, true);
    (0..3).for_each(|_| assert!(rig.queue(0, POD1).arrive(&good, 3840)));
    rig.turn();
    let counters = &rig.workers[0].counters;
    assert_eq!(counters.port(POD1).dropped[DropReason::TxRingFull as usize].get(), 2);
    assert_eq!(counters.residence.buckets().iter().sum::<u64>(), 5, "only one more is in a TX ring");
    rig.turn();
    let looked = ticking();
    rig.turn();
    assert_eq!(ticking() - looked, 1000, "a turn without packets does not look at the clock");
}

#[test]
fn the_time_of_a_packet_that_was_handed_over_begins_with_the_first_worker() {
    let mut rig = Rig::new(2);
    rig.add(0, POD1, false);
    rig.add(1, POD2, false);
    rig.workers.iter_mut().for_each(|worker| worker.stays.clock = ticking);
    let frame = udp((pod_mac(POD1), pod_ip(POD1)), (pod_mac(POD2), pod_ip(POD2)), b"x");
    (0..5).for_each(|_| assert!(rig.queue(0, POD1).arrive(&frame, 3840)));
    rig.turn();
    let [first, second] = [0, 1].map(|worker| &rig.workers[worker].counters.residence);
    assert_eq!(first.buckets().iter().sum::<u64>(), 0, "it sent nothing");
    // Looks at the clock: received, end of the first worker's turn, end of the second's.
    assert_eq!((second.buckets()[1], second.sum_ns()), (5, 5 * 2000));
}

#[test]
fn a_rate_is_that_of_the_last_two_seconds() {
    let mut rate = super::Rate::default();
    assert_eq!(rate.per_second(7), 0);
    rate.note(100, 7);
    assert_eq!(rate.per_second(7), 100);
    rate.note(1, 8);
    assert_eq!(rate.per_second(8), 100, "the second before counts while the present one is young");
    rate.note(300, 8);
    assert_eq!((rate.per_second(8), rate.per_second(9)), (301, 301));
    assert_eq!(rate.per_second(10), 1, "a silent queue has none, but had one");
    rate.note(5, 10);
    assert_eq!(rate.per_second(10), 5, "a second without a packet ends it");
}
