//! A worker's free frames, and how many of them each queue may hold for receiving.
//!
//! Every frame has a home: the worker that it belonged to at the start. A frame that ends its way at another worker (a
//! hand-off) is sent home through a ring, so no worker can be drained by traffic in one direction.
//!
//! A frame in a fill ring cannot be taken out again, so a queue that once filled up and then fell silent keeps its frames.
//! Therefore half of the frames are put aside for the minimum of every queue that may still come ([`capacity`]), and a queue
//! gets a fair share of what is left. The loader opens no more queues than that, so none can ever be without frames. One that
//! has received nothing yet gets a part of its share only: pods come one after the other, and the first ones would keep shares
//! of a time when there were few. Where there are many queues, a share is soon used up while a worker waits for its core; a
//! queue that receives much is lent more, as long as that leaves as much again to spare.
//!
//! A queue that falls silent does not pay back. So half of every queue's share is owed to it for as long as it does not hold
//! it, and is given to nobody else: those that flood one after the other divide the other half, and one that begins after them
//! still gets half of its share.
//!
//! What lingers on its way out (in the TX ring of a receiver that takes nothing, in the ring to a worker that does not run)
//! comes out of what is to spare: half of what is put aside may be lent for it, and a part of all frames is never ([`TX_KEEPS`],
//! [`HANDOFF_KEEPS`]), so that the queues that work go on. One TX ring may hold at most a quarter of what is to spare, so the
//! first one leaves something to the others, as in the shared memory of a switch (Choudhury and Hahne, 1998). An empty place
//! takes a single packet in any case, so a receiver that takes what it gets works with nothing to spare as well. Frames are
//! those of other workers, too, so the least of all workers counts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::afxdp::Frame;
use crate::limits::{BATCH, HANDOFF_RING};

/// Frames that every queue is granted, whatever the others do.
pub const MIN_FILL: usize = 32;
/// Frames that a queue holds for receiving at most.
pub const MAX_FILL: usize = 2048;

/// The part of the frames to spare that one TX ring may hold: a fourth.
const TX_PART: usize = 4;
/// The part of all frames that a ring to another worker may hold: a sixteenth.
const HANDOFF_PART: usize = 16;
/// Thirty-seconds of all frames that no queue is granted beyond its minimum.
/// More than [`TX_KEEPS`], or the packets of queues that were filled well could not be sent.
const FILL_KEEPS: usize = 5;
/// Thirty-seconds of all frames that must stay free for what lingers in TX rings.
const TX_KEEPS: usize = 3;
/// The same in sixty-fourths for the rings to other workers: less, so that lingering packets do not close them.
const HANDOFF_KEEPS: usize = 1;

/// Frames that a queue holds at most before it has received anything.
const IDLE_FILL: usize = 64;
/// A queue should hold this part of the packets that it receives in a second: a thirty-second, what arrives in 31 ms.
const RATE_PART: usize = 32;

/// How many queues can receive from a pool of `frames` frames.
pub const fn capacity(frames: usize) -> usize {
    frames / (2 * MIN_FILL)
}

/// The rings through which frames go home, one per worker.
#[derive(Clone, Debug)]
pub struct Homes {
    rings: Arc<[ArrayQueue<Frame>]>,
    /// What each worker has to spare, as of its last turn.
    spare: Arc<[AtomicUsize]>,
    frames_per_worker: u32,
}

impl Homes {
    /// For `workers` workers that share `frames` frames equally; the remainder goes to the last one.
    pub fn new(workers: usize, frames: u32) -> Self {
        // A ring that could take every frame never refuses one.
        let rings = (0..workers).map(|_| ArrayQueue::new(frames as usize)).collect();
        let frames_per_worker = frames / workers as u32;
        let spare = (0..workers).map(|_| AtomicUsize::new(frames_per_worker as usize)).collect();
        Homes { rings, spare, frames_per_worker }
    }

    fn home(&self, frame: &Frame) -> usize {
        ((frame.index() / self.frames_per_worker) as usize).min(self.rings.len() - 1)
    }

    /// Sends a frame home. It comes back only if there is no room for it, and there is room for every frame there is.
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        self.rings[self.home(&frame)].push(frame)
    }

    /// The numbers of the frames that are at home at `worker`.
    fn own(&self, worker: usize) -> Range<u32> {
        let start = self.frames_per_worker * worker as u32;
        let is_last = worker + 1 == self.rings.len();
        start..if is_last { u32::MAX } else { start + self.frames_per_worker }
    }

    /// Splits all frames by home.
    pub fn split(&self, frames: Vec<Frame>) -> Vec<Vec<Frame>> {
        let mut split: Vec<Vec<Frame>> = self.rings.iter().map(|_| Vec::new()).collect();
        for frame in frames {
            let home = self.home(&frame);
            split[home].push(frame);
        }
        split
    }
}

/// The free frames of one worker.
#[derive(Debug)]
pub struct FramePool {
    worker: usize,
    homes: Homes,
    /// The least that any other worker has to spare, as of the last turn.
    least_elsewhere: usize,
    /// The frames that are at home here; a comparison is cheaper than the division that finds another home.
    own: Range<u32>,
    free: Vec<Frame>,
    total: usize,
    /// Frames that are kept for queues that may still come.
    put_aside: usize,
    /// Frames that a queue holds for receiving when there are enough.
    share: usize,
    /// Frames of its share that no other queue can take from it: half.
    floor: usize,
    /// What all queues together lack of their floors.
    owed: usize,
}

impl FramePool {
    /// The pool of `worker` over the frames that are at home there.
    pub fn new(worker: usize, homes: Homes, mut free: Vec<Frame>) -> Self {
        let total = free.len();
        // Frames of other workers pass through for a moment; room for them, so that the packet path never allocates.
        free.reserve(BATCH * crate::limits::MAX_PIECES);
        let own = homes.own(worker);
        let least_elsewhere = usize::MAX;
        let (put_aside, share, floor, owed) = (0, 0, 0, 0);
        let mut pool = FramePool { worker, homes, least_elsewhere, own, free, total, put_aside, share, floor, owed };
        pool.divide([]);
        pool
    }

    /// Divides the frames among the queues that receive from this pool now; `held`: what each of them holds. The share is asked for
    /// at every batch and changes with their number only.
    pub fn divide(&mut self, held: impl IntoIterator<Item = usize, IntoIter: ExactSizeIterator>) {
        let held = held.into_iter();
        let queues = held.len();
        self.put_aside = MIN_FILL * capacity(self.total).saturating_sub(queues);
        let left = self.total.saturating_sub(self.put_aside);
        let divided = (left * 3 / 4).min(left.saturating_sub(self.total * FILL_KEEPS / 32));
        let each = divided / queues.max(1);
        self.share = each.clamp(MIN_FILL, MAX_FILL);
        self.floor = (each / 2).clamp(MIN_FILL, MAX_FILL);
        self.owed = held.map(|held| self.floor.saturating_sub(held)).sum();
    }

    /// A queue that held `before` frames holds `now`.
    #[inline]
    pub fn note_held(&mut self, before: usize, now: usize) {
        let settled = self.owed - self.floor.saturating_sub(before);
        self.owed = settled + self.floor.saturating_sub(now);
    }

    /// Whether a queue that holds `outstanding`, and receives nothing now, should be looked at again: it lacks so many frames that it
    /// is to get some as soon as there are some.
    #[inline]
    pub fn lacks(&self, outstanding: usize, rate: usize) -> bool {
        outstanding < MIN_FILL || outstanding + BATCH / 2 <= self.share_at(rate)
    }

    /// A queue's share, without what it may be lent.
    #[inline]
    fn share_at(&self, rate: usize) -> usize {
        if rate == 0 { self.share.min(IDLE_FILL) } else { self.share }
    }

    /// Frames in the free list, and of ours on their way home.
    pub fn free(&self) -> usize {
        self.free.len() + self.homes.rings[self.worker].len()
    }

    /// Frames that a queue holding `outstanding`, as was noted, should be given now. `rate`: packets per second that it received
    /// lately; 0 only if it never received any.
    #[inline]
    pub fn grant(&self, outstanding: usize, rate: usize) -> usize {
        let wanted = (rate / RATE_PART).min(MAX_FILL);
        let guaranteed = MIN_FILL.saturating_sub(outstanding);
        let left = self.free.len().saturating_sub(self.put_aside + self.total * FILL_KEEPS / 32);
        // What is owed to the others is not there for this one.
        let own = self.floor.saturating_sub(outstanding);
        let within_reach = left.min(own + left.saturating_sub(self.owed));
        let fair = self.share_at(rate).saturating_sub(outstanding).min(within_reach);
        let borrowed = outstanding.saturating_sub(self.share);
        // What it borrows stays at most as much as is left for the others.
        let lent = wanted.saturating_sub(outstanding + fair).min((left - fair).saturating_sub(borrowed) / 2);
        let lent = lent.min(within_reach - fair);
        (fair + lent).max(guaranteed).min(self.free.len())
    }

    /// Frames that may linger in TX rings.
    #[inline]
    fn spare(&self) -> usize {
        self.free.len().saturating_sub(self.put_aside / 2 + self.total * TX_KEEPS / 32)
    }

    /// Frames that one TX ring may hold now.
    #[inline]
    pub fn tx_share(&self) -> usize {
        self.spare().min(self.least_elsewhere) / TX_PART
    }

    /// How many frames the ring to another worker, which holds so many, may hold after a batch of one port: three quarters of
    /// the room may be taken, so that the ports that come after it find some.
    #[inline]
    pub fn handoff_limit(&self, held: usize) -> usize {
        let spare = self.free.len().saturating_sub(self.put_aside / 2 + self.total * HANDOFF_KEEPS / 64);
        let room = (self.total / HANDOFF_PART).min(HANDOFF_RING).saturating_sub(held);
        held + (3 * room.min(spare)).div_ceil(4)
    }

    /// Tells the others how many frames are to spare here, and looks how many are there. Once for each turn.
    #[inline]
    pub fn compare(&mut self) {
        // The numbers only steer: nothing is read by them.
        self.homes.spare[self.worker].store(self.spare(), Ordering::Relaxed);
        let others = self.homes.spare.iter().enumerate().filter(|(worker, _)| *worker != self.worker);
        self.least_elsewhere = others.map(|(_, spare)| spare.load(Ordering::Relaxed)).min().unwrap_or(usize::MAX);
    }

    /// The free list, for a fill ring to take from.
    pub fn list(&mut self) -> &mut Vec<Frame> {
        &mut self.free
    }

    /// Takes in the frames that other workers sent home.
    #[inline]
    pub fn collect_returned(&mut self) {
        while let Some(frame) = self.homes.rings[self.worker].pop() {
            self.free.push(frame);
        }
    }

    /// Takes frames back, keeping those at home here and sending the others home; `frames` is empty afterwards.
    #[inline]
    pub fn put(&mut self, frames: &mut Vec<Frame>) {
        for frame in frames.drain(..) {
            self.put_one(frame);
        }
    }

    /// Takes one frame back.
    #[inline]
    pub fn put_one(&mut self, frame: Frame) {
        let kept = if self.own.contains(&frame.index()) { Some(frame) } else { self.homes.send(frame).err() };
        self.free.extend(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afxdp::Umem;

    #[test]
    fn frames_go_home() {
        let umem = Umem::new(64).unwrap();
        let homes = Homes::new(2, 64);
        let mut split = homes.split(umem.take_frames()).into_iter();
        let mut first = FramePool::new(0, homes.clone(), split.next().unwrap());
        let mut second = FramePool::new(1, homes, split.next().unwrap());
        assert_eq!((first.free(), second.free()), (32, 32));
        let mut stray: Vec<_> = second.list().drain(..10).collect();
        first.put(&mut stray);
        assert_eq!((first.free(), second.free()), (32, 32), "on their way home they count there");
        second.collect_returned();
        assert_eq!(second.list().len(), 32);
    }

    #[test]
    fn a_queue_is_looked_at_until_no_frame_would_be_granted_that_is_worth_it() {
        let umem = Umem::new(2048).unwrap();
        let mut pool = FramePool::new(0, Homes::new(1, 2048), umem.take_frames());
        pool.divide([0]);
        assert_eq!(pool.grant(0, 0), IDLE_FILL, "nothing came yet");
        assert!(pool.lacks(IDLE_FILL - BATCH / 2, 0) && !pool.lacks(IDLE_FILL, 0));
        let share = pool.grant(0, 1);
        assert!(share > 2 * BATCH, "{share}");
        assert!(pool.lacks(0, 1) && pool.lacks(share - BATCH / 2, 1));
        assert!(!pool.lacks(share, 1) && !pool.lacks(share - BATCH / 2 + 1, 1));
        pool.divide(vec![0; capacity(2048)]);
        assert!(!pool.lacks(share, 1), "its share is smaller now");
        assert!(pool.lacks(MIN_FILL - 1, 1), "the minimum is granted whatever the share");
        pool.divide([0]);
        assert!(pool.lacks(share - BATCH / 2, 1), "and grows again");
    }

    /// A pool with what its queues hold.
    struct Queues {
        pool: FramePool,
        held: Vec<Vec<Frame>>,
    }

    impl Queues {
        fn new(frames: u32) -> Self {
            let pool = FramePool::new(0, Homes::new(1, frames), Umem::new(frames).unwrap().take_frames());
            Queues { pool, held: Vec::new() }
        }

        fn add(&mut self) {
            self.held.push(Vec::new());
            self.pool.divide(self.held.iter().map(Vec::len));
        }

        /// A queue that receives at `rate` takes what it is granted; returns what it holds then.
        fn fill(&mut self, queue: usize, rate: usize) -> usize {
            let (pool, held) = (&mut self.pool, &mut self.held[queue]);
            let before = held.len();
            let at = pool.list().len() - pool.grant(before, rate);
            held.extend(pool.list().drain(at..));
            pool.note_held(before, held.len());
            held.len()
        }

        /// A queue receives all that it holds, and its packets leave at once.
        fn drain(&mut self, queue: usize) {
            self.pool.note_held(self.held[queue].len(), 0);
            self.pool.put(&mut self.held[queue]);
        }
    }

    /// Fifty-five pods come one after the other beside one that receives 15,000 packets a second, and are silent.
    #[test]
    fn silent_queues_leave_a_busy_one_what_it_needs() {
        let mut queues = Queues::new(8192);
        queues.add();
        for silent in 1..55 {
            queues.add();
            queues.fill(silent, 0);
            // It receives what it holds, and gets new ones.
            queues.drain(0);
            queues.fill(0, 15_000);
        }
        let busy = queues.held[0].len();
        assert!(busy >= 15_000 / RATE_PART, "{busy} for 31 ms");
        let busy = queues.fill(0, usize::MAX);
        let second = queues.fill(1, usize::MAX);
        assert!(second > MIN_FILL && second < busy, "a second one gets less: {second}");
    }

    /// Whatever the others have taken: half of an equal share, which is what is left of a share that was lent.
    #[test]
    fn a_queue_that_begins_after_others_have_flooded_gets_half_of_its_share() {
        for (frames, count) in [(16_384, 11), (16_384, 100), (2048, 8), (1024, 16)] {
            let mut queues = Queues::new(frames);
            (0..count).for_each(|_| queues.add());
            for queue in 0..count {
                queues.fill(queue, 0);
            }
            let share = queues.pool.share;
            for flooded in 0..count {
                let held = (0..50).map(|_| queues.fill(flooded, usize::MAX)).max().unwrap();
                assert!(held >= (share / 2).max(MIN_FILL), "{frames}, queue {flooded}: {held} of {share}");
            }
        }
    }

    /// Every queue takes what it is granted and falls silent: the worst that can happen to those that come later.
    #[test]
    fn every_queue_gets_its_minimum_even_when_the_first_ones_never_give_back() {
        for (frames, greed) in [(2048u32, 0), (16_384, 0), (2048, usize::MAX), (16_384, usize::MAX)] {
            let mut queues = Queues::new(frames);
            for newest in 0..capacity(frames as usize) {
                queues.add();
                // The worker fills a new queue first, then tops up whichever receives.
                for queue in (0..=newest).rev() {
                    queues.fill(queue, greed);
                }
                let held = queues.held[newest].len();
                assert!((MIN_FILL..=MAX_FILL).contains(&held), "queue {newest}: {held}");
            }
            assert_eq!(queues.held.iter().map(Vec::len).sum::<usize>() + queues.pool.free(), frames as usize);
        }
    }
}
