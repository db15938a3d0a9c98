//! What one frame costs by kind of traffic, in batches of 64: parsing, deciding, rewriting, checksums, and the whole of a
//! worker's turn over queues in memory.
//!
//! `cargo bench -p podlane-benches --bench frames -- bridge-ipv4` runs a part of it.

mod common;

use std::sync::Arc;

use common::*;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use crossbeam::channel;
use crossbeam::queue::ArrayQueue;
use podlane_dataplane::PortId;
use podlane_dataplane::afxdp::{MemoryQueue, Umem, Waiter};
use podlane_dataplane::forward::{Rewrite, Verdict, decide};
use podlane_dataplane::packet::{Headers, checksum, parse, rewrite};
use podlane_dataplane::table::Tables;
use podlane_dataplane::worker::{Command, Egress, FramePool, Handoff, Homes, LEARN_QUEUE, Worker, WorkerParts};

fn headers_of(frame: &[u8]) -> Option<Headers> {
    parse(frame, frame.len() as u32).ok()
}

fn decisions(criterion: &mut Criterion) {
    let tables = node();
    for kind in forwarded(&mut Random(5)) {
        let mut group = criterion.benchmark_group(kind.name);
        let batch = &kind.frames;
        let parsed: Vec<Headers> = batch.iter().map(|frame| headers_of(frame).expect("an ordinary frame")).collect();
        for headers in &parsed {
            let verdict = decide(headers, kind.ingress, &tables);
            assert!(matches!(verdict, Verdict::Forward { .. }), "{}: {headers:?} {verdict:?}", kind.name);
        }
        group.bench_function("parse", |b| per_item(b, batch, |frame| parse(frame, frame.len() as u32)));
        group.bench_function("decide", |b| per_item(b, &parsed, |headers| decide(headers, kind.ingress, &tables)));
        let mut work = batch.clone();
        let mut next = 0;
        group.bench_function("parse+decide+rewrite", |b| {
            per_item(b, batch, |frame| {
                let headers = headers_of(frame)?;
                let verdict = decide(&headers, kind.ingress, &tables);
                next = (next + 1) % work.len();
                if let Verdict::Forward { rewrite: Rewrite::Route { destination, source }, .. } = verdict {
                    rewrite::route(&mut work[next], &headers, destination, source);
                }
                Some(verdict)
            });
        });
        group.bench_function("partial-checksum", |b| {
            let both: Vec<_> = batch.iter().zip(&parsed).collect();
            per_item(b, &both, |(frame, headers)| rewrite::partial_checksum(frame, headers));
        });
    }
    for kind in passed(&mut Random(6)) {
        let verdict = |frame: &Vec<u8>| match parse(frame, frame.len() as u32) {
            Ok(headers) => decide(&headers, kind.ingress, &tables),
            Err(reason) => Verdict::Kernel(reason),
        };
        for frame in &kind.frames {
            assert_eq!(Some(verdict(frame)), kind.passed.map(Verdict::Kernel), "{}", kind.name);
        }
        criterion.benchmark_group(kind.name).bench_function("parse+decide", |b| per_item(b, &kind.frames, verdict));
    }
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let headers = [[0x45_u8; 20]; 64];
    group.bench_function("ipv4-header", |b| per_item(b, &headers, checksum::ipv4_header_is_right));
    let random = &mut Random(9);
    let words: Vec<[u16; 3]> = (0..KEYS).map(|_| [0; 3].map(|_: u16| random.next() as u16)).collect();
    group.bench_function("update", |b| {
        per_item(b, &words, |[sum, before, after]| checksum::update(*sum, *before, *after));
    });
    for bytes in [64, 1_480, 65_000] {
        let data = [vec![0x5a_u8; bytes]];
        group.bench_function(BenchmarkId::new("sum", bytes), |b| {
            per_item(b, &data, |data| {
                let mut sum = checksum::Sum::new();
                sum.add(data);
                sum.fold()
            });
        });
    }
    let kind = &forwarded(&mut Random(5))[0];
    let frame = &kind.frames[0];
    let headers = headers_of(frame).expect("an ordinary frame");
    let place = rewrite::l4_checksum_location(&headers).expect("UDP has a checksum");
    group.bench_function("complete/64", |b| {
        per_item(b, &kind.frames, |frame| rewrite::completed_checksum([frame.as_slice()], &headers, place));
    });
}

/// A worker that serves so many pods by queues in memory that keep nothing.
fn worker(pods: u16) -> (Worker<MemoryQueue>, Umem) {
    let umem = Umem::new(16_384).expect("64 MiB");
    let homes = Homes::new(1, umem.frames());
    let share = homes.split(umem.take_frames()).remove(0);
    let (waiter, waker) = Waiter::new().expect("an event descriptor");
    drop(waiter);
    let mut worker = Worker::new(WorkerParts {
        id: 0,
        umem: umem.clone(),
        pool: FramePool::new(0, homes, share),
        counters: Arc::default(),
        activity: Arc::default(),
        learn: Arc::new(ArrayQueue::new(LEARN_QUEUE)),
        handoff: Handoff::new(vec![waker]),
        commands: channel::unbounded().1,
    });
    let tables = Tables::default();
    for port in (0..pods).map(PortId) {
        let mut queue = MemoryQueue::new(&umem, port.0 + 1, false);
        queue.discard = true;
        let _ = worker.obey(Command::AddQueue { port, queue, transmits: true }, &tables);
        let _ = worker.obey(Command::SetEgress { port, egress: Egress::Own }, &tables);
    }
    (worker, umem)
}

/// One turn over a batch: received, decided, put into the other queue, sent, completed, filled again. The queues are in memory
/// and cost more than rings do (`rings`), so this is what to watch for changes.
fn turns(criterion: &mut Criterion) {
    let tables = Tables::clone(&node());
    let mut group = criterion.benchmark_group("turn");
    let frame = frame(pod_mac(1), pod_mac(0), (&pod_address4(0).octets(), &pod_address4(1).octets()));
    for pods in [2, 50, PODS] {
        let (mut worker, _umem) = worker(pods);
        // As many as the fill ring holds when all of them share the memory.
        let batch = 32;
        group.bench_function(BenchmarkId::new("bridge-ipv4", pods), |b| {
            per_batch(b, batch, || {
                let queue = worker.queues_mut(PortId(0)).next().expect("it was added");
                (0..batch).for_each(|_| assert!(queue.arrive(&frame, 2048)));
                assert_eq!(worker.turn(&tables, 1), batch);
            });
        });
        group.bench_function(BenchmarkId::new("nothing-to-do", pods), |b| {
            per_item(b, &[()], |()| worker.turn(&tables, 1))
        });
    }
}

criterion_group! { name = benches; config = short(); targets = decisions, checksums, turns }
criterion_main!(benches);
