//! A worker's free frames, and how many of them each queue may hold for receiving.
//!
//! Every frame has a home: the worker that it belonged to at the start. A frame that ends its way at another worker (a
//! hand-off) is sent home through a ring, so no worker can be drained by traffic in one direction.
//!
//! A frame in a fill ring cannot be taken out again, so a queue that once filled up and then fell silent keeps its frames.
//! Therefore half of the frames are put aside for the minimum of every queue that may still come ([`capacity`]), and a queue
//! gets a fair share of what is left. The loader opens no more queues than that, so none can ever be without frames.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::afxdp::Frame;

/// Frames that every queue is granted, whatever the others do.
pub const MIN_FILL: usize = 32;
/// Frames that a queue holds for receiving at most.
pub const MAX_FILL: usize = 2048;

/// How many queues can receive from a pool of `frames` frames.
pub const fn capacity(frames: usize) -> usize {
    frames / (2 * MIN_FILL)
}

/// The rings through which frames go home, one per worker.
#[derive(Clone, Debug)]
pub struct Homes {
    rings: Arc<[ArrayQueue<Frame>]>,
    frames_per_worker: u32,
}

impl Homes {
    /// For `workers` workers that share `frames` frames equally; the remainder goes to the last one.
    pub fn new(workers: usize, frames: u32) -> Self {
        // A ring that could take every frame never refuses one.
        let rings = (0..workers).map(|_| ArrayQueue::new(frames as usize)).collect();
        Homes { rings, frames_per_worker: frames / workers as u32 }
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
    /// The frames that are at home here; a comparison is cheaper than the division that finds another home.
    own: Range<u32>,
    free: Vec<Frame>,
    total: usize,
    /// Queues that receive from this pool now.
    queues: usize,
}

impl FramePool {
    /// The pool of `worker` over the frames that are at home there.
    pub fn new(worker: usize, homes: Homes, mut free: Vec<Frame>) -> Self {
        let total = free.len();
        // Frames of other workers pass through for a moment; room for them, so that the packet path never allocates.
        free.reserve(crate::limits::BATCH * crate::limits::MAX_PIECES);
        let own = homes.own(worker);
        FramePool { worker, homes, own, free, total, queues: 0 }
    }

    /// A queue was added.
    pub fn add_queue(&mut self) {
        self.queues += 1;
    }

    /// A queue was removed.
    pub fn remove_queue(&mut self) {
        self.queues -= 1;
    }

    /// Frames in the free list, and of ours on their way home.
    pub fn free(&self) -> usize {
        self.free.len() + self.homes.rings[self.worker].len()
    }

    /// Frames that a queue holding `outstanding` should be given now.
    #[inline]
    pub fn grant(&self, outstanding: usize) -> usize {
        let put_aside = MIN_FILL * capacity(self.total).saturating_sub(self.queues);
        let share = (self.total.saturating_sub(put_aside) * 3 / 4 / self.queues.max(1)).clamp(MIN_FILL, MAX_FILL);
        let guaranteed = MIN_FILL.saturating_sub(outstanding);
        let fair = share.saturating_sub(outstanding).min(self.free.len().saturating_sub(put_aside));
        fair.max(guaranteed).min(self.free.len())
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

    /// Every queue takes what it is granted and falls silent: the worst that can happen to those that come later.
    #[test]
    fn every_queue_gets_its_minimum_even_when_the_first_ones_never_give_back() {
        for frames in [2048u32, 16_384] {
            let umem = Umem::new(frames).unwrap();
            let mut pool = FramePool::new(0, Homes::new(1, frames), umem.take_frames());
            let mut kept: Vec<Vec<Frame>> = Vec::new();
            for queue in 0..capacity(frames as usize) {
                pool.add_queue();
                kept.push(Vec::new());
                // The worker fills a new queue first, then tops up whichever receives.
                for queue in kept.iter_mut().rev() {
                    let at = pool.list().len() - pool.grant(queue.len());
                    queue.extend(pool.list().drain(at..));
                }
                assert!((MIN_FILL..=MAX_FILL).contains(&kept[queue].len()), "queue {queue}: {}", kept[queue].len());
            }
            assert_eq!(kept.iter().map(Vec::len).sum::<usize>() + pool.free(), frames as usize);
        }
    }
}
