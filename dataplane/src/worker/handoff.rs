//! Hand-off: packets whose egress queue another worker owns.
//!
//! One bounded ring for each ordered pair of workers, so every ring has one producer and one consumer. A packet goes in
//! whole or not at all. The pieces carry their frames' tokens, so ownership moves with them and nothing is copied.

use std::sync::Arc;

use crate::addr::PortId;
use crate::afxdp::{Piece, Waker};
use crate::limits;
use crate::sync::{ArrayQueue, spin_loop};

/// A piece on its way to another worker.
#[derive(Debug)]
struct Handed {
    port: PortId,
    /// When its packet was received, nanoseconds of the monotonic clock.
    since_ns: u64,
    piece: Piece,
}

/// The rings of all pairs of workers.
#[derive(Clone, Debug)]
pub struct Handoff {
    /// `rings[from * workers + to]`.
    rings: Arc<[ArrayQueue<Handed>]>,
    wakers: Arc<[Waker]>,
    workers: usize,
}

impl Handoff {
    /// Rings between as many workers as there are wakers.
    pub fn new(wakers: Vec<Waker>) -> Self {
        let workers = wakers.len();
        let rings = (0..workers * workers).map(|_| ArrayQueue::new(limits::HANDOFF_RING)).collect();
        Handoff { rings, wakers: wakers.into(), workers }
    }

    /// How many workers take part.
    pub fn workers(&self) -> usize {
        self.workers
    }

    fn ring(&self, from: usize, to: usize) -> &ArrayQueue<Handed> {
        &self.rings[from * self.workers + to]
    }

    /// Pieces on the way from one worker to another.
    #[inline]
    pub fn between(&self, from: usize, to: usize) -> usize {
        self.ring(from, to).len()
    }

    /// Hands a whole packet for `port`, received at `since_ns`, over, emptying `pieces`; or leaves it there and returns false
    /// when the ring is full.
    #[inline]
    pub fn hand_over(&self, from: usize, to: usize, (port, since_ns): (PortId, u64), pieces: &mut Vec<Piece>) -> bool {
        let ring = self.ring(from, to);
        // We are the only producer, so the room can only grow after this look.
        if ring.capacity() - ring.len() < pieces.len() {
            return false;
        }
        for piece in pieces.drain(..) {
            let refused = ring.push(Handed { port, since_ns, piece });
            debug_assert!(refused.is_ok());
        }
        true
    }

    /// Wakes a worker that was handed something.
    #[inline]
    pub fn wake(&self, worker: usize) {
        self.wakers[worker].wake();
    }

    /// Takes the next whole packet that `from` handed to `to` into `pieces`, and returns its egress port and when it
    /// was received.
    #[inline]
    pub fn take(&self, from: usize, to: usize, pieces: &mut Vec<Piece>) -> Option<(PortId, u64)> {
        let ring = self.ring(from, to);
        let Handed { port, since_ns, piece } = ring.pop()?;
        let mut more = piece.more;
        pieces.push(piece);
        while more {
            // The producer may be between two pieces of this packet; it is running and will not stop there.
            let Some(Handed { piece, .. }) = ring.pop() else {
                spin_loop();
                continue;
            };
            more = piece.more;
            pieces.push(piece);
        }
        Some((port, since_ns))
    }

    /// Whether anything waits for worker `to`.
    pub fn waiting(&self, to: usize) -> bool {
        (0..self.workers).any(|from| !self.ring(from, to).is_empty())
    }

    /// Frames on their way to worker `to`.
    pub fn frames(&self, to: usize) -> u64 {
        (0..self.workers).map(|from| self.ring(from, to).len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afxdp::{Umem, Waiter};

    /// Two threads, over the queues as they are. Under miri every access to the frames' bytes is checked for races.
    #[test]
    fn packets_cross_threads_whole_in_order_and_with_their_bytes() {
        const PACKETS: u64 = if cfg!(miri) { 12 } else { 500 };
        let umem = Umem::new(8).unwrap();
        let (_waiter, waker) = Waiter::new().unwrap();
        let handoff = Handoff::new(vec![waker.clone(), waker]);
        let back = ArrayQueue::new(8);
        umem.take_frames().into_iter().for_each(|frame| drop(back.push(frame)));
        let piece = |number: u64, more: bool| loop {
            let Some(frame) = back.pop() else {
                std::thread::yield_now();
                continue;
            };
            let mut piece = Piece { frame, offset: 256, bytes: 8, more, metadata: false };
            umem.memory().bytes_mut(&mut piece).copy_from_slice(&number.to_ne_bytes());
            break piece;
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..PACKETS {
                    let mut pieces = vec![piece(number, true), piece(number, false)];
                    while !handoff.hand_over(0, 1, (PortId(3), number), &mut pieces) {
                        std::thread::yield_now();
                    }
                    handoff.wake(1);
                }
            });
            let mut pieces = Vec::new();
            for number in 0..PACKETS {
                while handoff.take(0, 1, &mut pieces) != Some((PortId(3), number)) {
                    assert!(pieces.is_empty());
                    std::thread::yield_now();
                }
                assert_eq!(pieces.len(), 2);
                for piece in pieces.drain(..) {
                    assert_eq!(umem.memory().bytes(&piece), number.to_ne_bytes());
                    back.push(piece.frame).unwrap();
                }
            }
        });
        assert_eq!((handoff.frames(1), handoff.waiting(1)), (0, false));
    }
}
