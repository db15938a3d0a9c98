//! Publication of tables: of snapshots to workers, and of the copies in the BPF maps to programs.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use podlane_models::table::Tables;
use podlane_models::table::snapshot::channel;

/// A worker sees whole snapshots, and never an older one after a newer one.
#[test]
fn workers_see_whole_snapshots_in_order() {
    loom::model(|| {
        let (publisher, mut reader) = channel();
        let writer = thread::spawn(move || {
            assert_eq!(publisher.publish(Tables::of(1)), 1);
            assert_eq!(publisher.publish(Tables::of(2)), 2);
        });
        let mut last = 0;
        for _ in 0..3 {
            let tables = reader.load();
            assert_eq!(tables.read(), (tables.generation, tables.generation));
            assert!(tables.generation >= last);
            last = tables.generation;
        }
        writer.join().unwrap();
        assert_eq!(reader.load().generation, 2);
    });
}

/// The copies of the tables in the BPF maps and the words that say which is which. This is `loader/src/bpf/generation.rs`, the order
/// of `Mirrored::sync` in `loader/src/bpf/sync.rs`, and `take_snapshot` and `is_torn` of `bpf/tables.h`, with two entries for
/// each copy.
struct Maps {
    current: AtomicU64,
    begun: AtomicU64,
    entries: [[AtomicU64; 2]; 2],
    orders: Orders,
}

/// What the machine keeps of the order in which the program says it.
#[derive(Clone, Copy)]
struct Orders {
    /// Of the program's loads but the first: x86 does not reorder loads with each other.
    load: Ordering,
    /// Of the loader's stores: x86 does not reorder stores with each other, and no system call with what is before it.
    store: Ordering,
    /// Whether the loader says that it begins before it writes.
    begins_first: bool,
}

/// What x86 keeps.
const X86: Orders = Orders { load: Ordering::Acquire, store: Ordering::Release, begins_first: true };

impl Maps {
    fn new(orders: Orders) -> Self {
        // Snapshot 1 is in force, in copy 1; copy 0 has what snapshot 0 had.
        let copy = |value| [AtomicU64::new(value), AtomicU64::new(value)];
        Maps { current: AtomicU64::new(1), begun: AtomicU64::new(1), entries: [copy(0), copy(1)], orders }
    }

    /// The loader writes a snapshot and puts it in force.
    fn sync(&self, generation: u64) {
        if self.orders.begins_first {
            self.begun.store(generation, self.orders.store);
        }
        for entry in &self.entries[generation as usize % 2] {
            entry.store(generation, self.orders.store);
        }
        if !self.orders.begins_first {
            self.begun.store(generation, self.orders.store);
        }
        self.current.store(generation, Ordering::Release);
    }

    /// A program decides by both entries; `None`: it saw that its snapshot was torn, and leaves the frame to the kernel.
    fn decide(&self) -> Option<(u64, [u64; 2])> {
        // What is read behind it is read at addresses that depend on it, which orders the loads on every machine.
        let generation = self.current.load(Ordering::Acquire);
        let copy = &self.entries[generation as usize % 2];
        let read = [copy[0].load(self.orders.load), copy[1].load(self.orders.load)];
        let is_torn = self.begun.load(self.orders.load) >= generation + 2;
        (!is_torn).then_some((generation, read))
    }
}

/// A program that runs while the loader publishes two snapshots, so that it comes around to the program's own copy.
fn model_of(orders: Orders) {
    loom::model(move || {
        let maps = Arc::new(Maps::new(orders));
        let program = Arc::clone(&maps);
        let frame = thread::spawn(move || {
            if let Some((generation, read)) = program.decide() {
                assert_eq!(read, [generation; 2], "half of another snapshot");
            }
        });
        maps.sync(2);
        maps.sync(3);
        frame.join().unwrap();
    });
}

#[test]
fn a_program_sees_one_snapshot_or_knows_that_it_does_not() {
    model_of(X86);
}

#[test]
#[should_panic(expected = "half of another snapshot")]
fn it_would_not_if_the_loader_began_after_writing() {
    model_of(Orders { begins_first: false, ..X86 });
}

#[test]
#[should_panic(expected = "half of another snapshot")]
fn it_would_not_on_a_machine_that_reorders_loads() {
    model_of(Orders { load: Ordering::Relaxed, ..X86 });
}

#[test]
#[should_panic(expected = "half of another snapshot")]
fn it_would_not_on_a_machine_that_reorders_stores() {
    model_of(Orders { store: Ordering::Relaxed, ..X86 });
}

/// Elsewhere than on x86 the loader waits, once it has begun, until every program has ended that may have taken the copy
/// (`wait_for_programs`): no order of the program's own loads is needed then. The wait is a grace period: a program has ended
/// before it is over, or begins after it has begun and sees what was written before.
#[test]
fn waiting_for_programs_does_without_an_order_of_loads() {
    loom::model(|| {
        let maps = Arc::new(Maps::new(Orders { load: Ordering::Relaxed, ..X86 }));
        let running = Arc::new(AtomicU64::new(0));
        let (program, runs) = (Arc::clone(&maps), Arc::clone(&running));
        let frame = thread::spawn(move || {
            runs.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if let Some((generation, read)) = program.decide() {
                assert_eq!(read, [generation; 2], "half of another snapshot");
            }
            runs.store(2, Ordering::Release);
        });
        for generation in [2, 3] {
            maps.begun.store(generation, Ordering::Release);
            fence(Ordering::SeqCst);
            while running.load(Ordering::Acquire) == 1 {
                thread::yield_now();
            }
            for entry in &maps.entries[generation as usize % 2] {
                entry.store(generation, Ordering::Release);
            }
            maps.current.store(generation, Ordering::Release);
        }
        frame.join().unwrap();
    });
}
