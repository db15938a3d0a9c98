//! Rings over plain memory, one thread at both ends: what an entry costs in batches of 64, ours beside general queues; and the
//! hand-off between two workers. `benches/xsk-rs` has xsk-rs's rings beside ours over real sockets.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use podlane_dataplane::afxdp::{Piece, Umem, Waiter, plain_ring};
use podlane_dataplane::worker::Handoff;
use podlane_dataplane::{PortId, limits};

const ENTRIES: u32 = 2048;

/// In batches as large as a worker's: written, published, seen, read, released.
fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let (mut producer, mut consumer) = plain_ring::<u64>(ENTRIES).expect("some KiB");
    let mut sum = 0;
    group.bench_function("produce+consume", |b| {
        per_batch(b, limits::BATCH, || {
            assert!(producer.space(limits::BATCH as u32) >= limits::BATCH as u32);
            (0..limits::BATCH as u64).for_each(|entry| producer.push(entry));
            producer.publish();
            let count = consumer.available(limits::BATCH as u32);
            (0..count).for_each(|ahead| sum += consumer.peek(ahead));
            consumer.release(count);
        });
    });
    let queue = ArrayQueue::new(ENTRIES as usize);
    group.bench_function("produce+consume-crossbeam", |b| {
        per_batch(b, limits::BATCH, || {
            (0..limits::BATCH as u64).for_each(|entry| queue.push(entry).expect("it is empty"));
            (0..limits::BATCH).for_each(|_| sum += queue.pop().expect("it is full"));
        });
    });
    let (sender, receiver) = std::sync::mpsc::sync_channel(ENTRIES as usize);
    group.bench_function("produce+consume-mpsc", |b| {
        per_batch(b, limits::BATCH, || {
            (0..limits::BATCH as u64).for_each(|entry| sender.send(entry).expect("it is open"));
            (0..limits::BATCH).for_each(|_| sum += receiver.recv().expect("it is full"));
        });
    });
    std::hint::black_box(sum);
}

/// A packet from one worker to another and taken there, in batches of 64, without the wake-up.
fn handoff(criterion: &mut Criterion) {
    let umem = Umem::new(64).expect("256 KiB");
    let (_waiter, waker) = Waiter::new().expect("an event descriptor");
    let handoff = Handoff::new(vec![waker.clone(), waker]);
    let mut frames = umem.take_frames();
    let mut pieces: Vec<Piece> = Vec::with_capacity(limits::MAX_PIECES);
    criterion.benchmark_group("hand-off").bench_function("hand-over+take", |b| {
        per_batch(b, limits::BATCH, || {
            for frame in frames.drain(..) {
                pieces.push(Piece { frame, offset: 256, bytes: 60, more: false, metadata: false });
                assert!(handoff.hand_over(0, 1, (PortId(1), 0), &mut pieces));
            }
            while handoff.take(0, 1, &mut pieces).is_some() {
                frames.extend(pieces.drain(..).map(|piece| piece.frame));
            }
        });
    });
}

criterion_group! { name = benches; config = short(); targets = rings, handoff }
criterion_main!(benches);
