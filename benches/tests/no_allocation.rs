//! Nothing on the packet path allocates: counted by the allocator itself, over every kind of traffic.
//!
//! The tables and frames are those of the benches. The count is this thread's alone, so tests beside it do not disturb.

#[path = "../benches/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::*;
use crossbeam::channel;
use crossbeam::queue::ArrayQueue;
use podlane_dataplane::afxdp::{MemoryQueue, Umem, Waiter, Waker};
use podlane_dataplane::forward::decide;
use podlane_dataplane::packet::parse;
use podlane_dataplane::table::channel as publish;
use podlane_dataplane::worker::{Command, Egress, FramePool, Handoff, Homes, LEARN_QUEUE, Worker, WorkerParts};
use podlane_dataplane::{PortId, limits};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that is ending has no count any more, and no packets either.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8]))), 1);
}

#[test]
fn parsing_deciding_and_reading_tables_do_not_allocate() {
    let (publisher, mut reader) = publish();
    publisher.publish(node());
    // Once to take the snapshot in.
    let _ = reader.load();
    let random = &mut Random(5);
    let mut kinds = forwarded(random);
    kinds.extend(passed(random));
    let count = allocations(|| {
        for kind in &kinds {
            for frame in &kind.frames {
                if let Ok(headers) = parse(frame, frame.len() as u32) {
                    std::hint::black_box(decide(&headers, kind.ingress, reader.load()));
                }
            }
        }
    });
    assert_eq!(count, 0);
}

const HOST: PortId = PortId(PODS + 1);

/// Two workers: the first has the pods 0 and 1 and the host port, the second the uplink.
fn workers(umem: &Umem, metadata: bool) -> Vec<Worker<MemoryQueue>> {
    let homes = Homes::new(2, umem.frames());
    let wakers: Vec<Waker> = (0..2).map(|_| Waiter::new().expect("an event descriptor").1).collect();
    let handoff = Handoff::new(wakers);
    let shares = homes.split(umem.take_frames()).into_iter().enumerate();
    let mut workers: Vec<_> = shares
        .map(|(id, share)| {
            Worker::new(WorkerParts {
                id,
                umem: umem.clone(),
                pool: FramePool::new(id, homes.clone(), share),
                counters: Arc::default(),
                activity: Arc::default(),
                learn: Arc::new(ArrayQueue::new(LEARN_QUEUE)),
                handoff: handoff.clone(),
                commands: channel::unbounded().1,
            })
        })
        .collect();
    let tables = podlane_dataplane::table::Tables::default();
    for (owner, port) in [(0, PortId(0)), (0, PortId(1)), (0, HOST), (1, UPLINK)] {
        for (id, worker) in workers.iter_mut().enumerate() {
            let egress = if id == owner { Egress::Own } else { Egress::Worker(owner as u8) };
            let _ = worker.obey(Command::SetEgress { port, egress }, &tables);
        }
        let mut queue = MemoryQueue::new(umem, port.0 + 1, metadata);
        queue.discard = true;
        let _ = workers[owner].obey(Command::AddQueue { port, queue, transmits: true }, &tables);
    }
    workers
}

/// Bridged, routed out by hand-off, and every kind that goes back to the kernel; the first rounds fill what grows.
fn turns(metadata: bool) {
    let umem = Umem::new(8192).expect("32 MiB");
    let mut workers = workers(&umem, metadata);
    let mut tables = node();
    let mut host = tables.ports.get(PortId(0)).expect("a pod").clone();
    host.kind = podlane_dataplane::table::PortKind::Host;
    let ports: Vec<_> = (0..=PODS).map(PortId).filter_map(|id| Some((id, tables.ports.get(id)?.clone()))).collect();
    tables.ports = Arc::new(podlane_dataplane::table::PortTable::new(ports.into_iter().chain([(HOST, host)])));
    workers.iter_mut().for_each(|worker| {
        let _ = worker.obey(Command::SetHostPort(HOST), &tables);
    });
    let bridged = frame(pod_mac(1), pod_mac(0), (&pod_address4(0).octets(), &pod_address4(1).octets()));
    let random = &mut Random(7);
    let mut batches = vec![vec![bridged; limits::BATCH]];
    batches.extend(forwarded(random).into_iter().filter(|kind| kind.name.starts_with("route-out")).map(|k| k.frames));
    batches.extend(passed(random).into_iter().map(|kind| kind.frames));
    let mut round = || {
        for frames in &batches {
            let queue = workers[0].queues_mut(PortId(0)).next().expect("it was added");
            frames.iter().for_each(|frame| assert!(queue.arrive(frame, 2048)));
            assert_eq!(workers[0].turn(&tables, 1), frames.len());
            workers[1].turn(&tables, 1);
        }
    };
    (0..50).for_each(|_| round());
    assert_eq!(allocations(|| (0..50).for_each(|_| round())), 0, "metadata {metadata}");
    let forwarded: u64 = workers[0].counters().port(PortId(0)).forwarded.get();
    assert_eq!(forwarded, 100 * 3 * limits::BATCH as u64, "bridged, and routed in both families");
    assert_eq!(workers[1].counters().port(UPLINK).tx.get(), 100 * 2 * limits::BATCH as u64);
}

#[test]
fn a_workers_turn_does_not_allocate() {
    turns(false);
    turns(true);
}
