//! The frame-conservation audit: where every frame of the UMEM is.

use std::ops::AddAssign;

/// Frames by place, as one worker counts them between two batches. Summed over all workers while no frame moves, the
/// places add up to the UMEM's frame count; anything else is a leak or a frame that exists twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameCount {
    /// In the free list, or on the way home to it.
    pub free: u64,
    /// In fill rings or inside the kernel on the way to an RX ring; or in a removed queue, to be reclaimed.
    pub fill: u64,
    /// In RX rings.
    pub rx: u64,
    /// In this worker's hands.
    pub worker: u64,
    /// In hand-off rings towards this worker.
    pub handoff: u64,
    /// In TX rings, in flight, or in completion rings.
    pub tx: u64,
}

impl FrameCount {
    /// All places together.
    pub fn sum(&self) -> u64 {
        self.free + self.fill + self.rx + self.worker + self.handoff + self.tx
    }
}

impl AddAssign for FrameCount {
    fn add_assign(&mut self, other: Self) {
        self.free += other.free;
        self.fill += other.fill;
        self.rx += other.rx;
        self.worker += other.worker;
        self.handoff += other.handoff;
        self.tx += other.tx;
    }
}
