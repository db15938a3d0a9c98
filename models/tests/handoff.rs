//! Hand-off between workers: packets arrive whole and in order, and no worker sleeps on one.

use loom::thread;
use podlane_models::addr::PortId;
use podlane_models::afxdp::{Piece, Waker};
use podlane_models::sync::Ordering;
use podlane_models::worker::handoff::Handoff;

fn handoff() -> (Handoff, Vec<Waker>) {
    let wakers: Vec<_> = (0..2).map(|_| Waker::default()).collect();
    (Handoff::new(wakers.clone()), wakers)
}

fn packet(frames: &[u32]) -> Vec<Piece> {
    let last = frames.len() - 1;
    frames.iter().enumerate().map(|(place, &frame)| Piece { frame, more: place < last }).collect()
}

/// Two packets of two pieces through a ring of three places: the second finds no room until the first is taken, and then goes in
/// whole.
#[test]
fn packets_arrive_whole_and_in_order() {
    loom::model(|| {
        let (handoff, _) = handoff();
        let taker = handoff.clone();
        let giver = thread::spawn(move || {
            for number in 0..2 {
                let mut pieces = packet(&[10 * number, 10 * number + 1]);
                while !handoff.hand_over(0, 1, (PortId(number as u16), u64::from(number)), &mut pieces) {
                    assert_eq!(pieces.len(), 2, "nothing of it was taken");
                    thread::yield_now();
                }
                assert!(pieces.is_empty());
            }
        });
        for number in 0..2_u32 {
            let mut pieces = Vec::new();
            let (port, since_ns) = loop {
                match taker.take(0, 1, &mut pieces) {
                    Some(taken) => break taken,
                    None => thread::yield_now(),
                }
            };
            assert_eq!((port, since_ns), (PortId(number as u16), u64::from(number)));
            assert_eq!(pieces.iter().map(|piece| piece.frame).collect::<Vec<_>>(), [10 * number, 10 * number + 1]);
        }
        giver.join().unwrap();
        assert_eq!(taker.frames(1), 0);
    });
}

/// A worker that finds nothing and goes to sleep has been woken, if it was handed something.
#[test]
fn no_worker_sleeps_on_a_packet() {
    loom::model(|| {
        let (handoff, wakers) = handoff();
        let sleeper = wakers[1].clone();
        let looked = handoff.clone();
        let worker = thread::spawn(move || {
            sleeper.sleeping.begin();
            let stays_awake = looked.waiting(1);
            if stays_awake {
                sleeper.sleeping.end();
            }
            stays_awake
        });
        assert!(handoff.hand_over(0, 1, (PortId(0), 0), &mut packet(&[1])));
        handoff.wake(1);
        let stays_awake = worker.join().unwrap();
        let woken = wakers[1].event.load(Ordering::Acquire);
        assert!(stays_awake || woken, "it sleeps, and nobody wakes it");
    });
}
