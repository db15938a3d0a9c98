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
        let umem = Umem::new(FRAMES).unwrap();
        let homes = Homes::new(workers, FRAMES);
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
            let _ = self.workers[worker].obey(command);
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

    fn assert_conserved(&mut self) {
        let count = self.count();
        assert_eq!(count.sum(), u64::from(FRAMES), "{count:?}");
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
    for metadata in [true, false] {
        let mut rig = Rig::single(metadata);
        rig.umem.set_metadata_for_tests(metadata);
        assert!(rig.queue(0, POD1).arrive(&partial, 3840));
        assert!(rig.queue(0, POD1).arrive(&whole, 3840));
        rig.turn();
        let sent = rig.sent(0, POD2);
        let first = if metadata { (partial.clone(), true) } else { (whole.clone(), false) };
        assert_eq!(sent[0].1, first.1);
        assert!(sent[0].0 == first.0, "metadata {metadata}");
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

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever arrives wherever, while ports get stuck and recover: no frame is lost, every packet is accounted for.
    #[test]
    fn frames_are_conserved_under_any_traffic(
        steps in proptest::collection::vec((0u8..6, 1u16..4, 0usize..5000, 60usize..3840, 1usize..40), 1..60),
        workers in 1usize..4,
    ) {
        let mut rig = Rig::new(workers);
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
