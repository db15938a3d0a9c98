//! The rings that AF_XDP shares with the kernel: one of our ends against the other of our ends, which stands for the kernel's
//! (`net/xdp/xsk_queue.h` has the same pairing).

use loom::thread;
use podlane_models::afxdp::ring::{Consumer, Producer};
use podlane_models::afxdp::sys::{ENTRIES, Mapping};

fn ends(start: u32) -> (Producer<u64>, Consumer<u64>) {
    let mapping = Mapping::new(start);
    let offsets = Mapping::offsets();
    (Producer::new(mapping.clone(), &offsets, ENTRIES), Consumer::new(mapping, &offsets, ENTRIES))
}

/// Three entries through a ring of two, across the overflow of the counters: the third is written over the first. Loom objects
/// if it is written before the consumer has done with it, or read before it is written.
#[test]
fn an_entry_is_read_after_it_was_written_and_written_after_it_was_read() {
    loom::model(|| {
        let (mut producer, mut consumer) = ends(u32::MAX);
        let sender = thread::spawn(move || {
            for entry in 1..=3 {
                while producer.space(1) == 0 {
                    thread::yield_now();
                }
                producer.push(entry);
                producer.publish();
            }
        });
        for expected in 1..=3 {
            while consumer.available(1) == 0 {
                thread::yield_now();
            }
            assert_eq!(consumer.peek(0), expected);
            consumer.release(1);
        }
        sender.join().unwrap();
    });
}

/// What is written and not published is not seen, and what is published is seen whole.
#[test]
fn a_batch_is_published_at_once() {
    loom::model(|| {
        let (mut producer, mut consumer) = ends(5);
        let sender = thread::spawn(move || {
            assert_eq!(producer.space(2), 2);
            producer.push(7);
            producer.push(8);
            producer.publish();
        });
        match consumer.available(2) {
            0 => {}
            2 => assert_eq!((consumer.peek(0), consumer.peek(1)), (7, 8)),
            other => panic!("{other} entries of a batch of 2"),
        }
        sender.join().unwrap();
    });
}
