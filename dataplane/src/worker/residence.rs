//! How long packets stay with the workers: a histogram, counted a batch at a time.
//!
//! A packet's time begins when a worker takes its batch out of the RX ring, and ends when the worker that transmits it has
//! kicked the TX rings of that turn. What the kernel does before and after (the RX ring, its own queues) is not seen from
//! here.

use super::counter::Counter;
use crate::afxdp::clock;

/// Upper bounds of the buckets, nanoseconds, from 1 µs to 100 ms; one more bucket takes everything above.
pub const RESIDENCE_BOUNDS_NS: [u64; 16] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];
/// Buckets.
pub const RESIDENCE_BUCKETS: usize = RESIDENCE_BOUNDS_NS.len() + 1;

/// The histogram of one worker, which writes it; anybody reads it.
#[derive(Debug, Default)]
pub struct Residence {
    buckets: [Counter; RESIDENCE_BUCKETS],
    sum_ns: Counter,
}

impl Residence {
    /// Counts `packets` that stayed for `ns` each; only the one writer may.
    #[inline]
    pub fn add(&self, ns: u64, packets: u64) {
        let bucket = RESIDENCE_BOUNDS_NS.iter().take_while(|bound| ns > **bound).count();
        self.buckets[bucket].add(packets);
        self.sum_ns.add(ns.saturating_mul(packets));
    }

    /// Packets by bucket; those of a bucket are not in the ones above it.
    pub fn buckets(&self) -> [u64; RESIDENCE_BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// The times of all packets together, nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.get()
    }
}

/// The packets of one turn that are in TX rings, and since when a worker has had them. The clock is read once for each batch
/// that is received, and once at the end of a turn.
#[derive(Debug)]
pub(super) struct Stays {
    /// Nanoseconds of the monotonic clock; another one in tests.
    pub(super) clock: fn() -> u64,
    /// When the present batch was received.
    since_ns: u64,
    /// Packets of the present batch that this worker does not transmit.
    away: u64,
    waiting: Vec<(u64, u64)>,
}

impl Default for Stays {
    fn default() -> Self {
        Stays { clock: clock::precise_ns, since_ns: 0, away: 0, waiting: Vec::new() }
    }
}

impl Stays {
    /// Makes room for the batches of `queues` queues and for `taken_over` packets of others, so that a turn allocates nothing.
    pub(super) fn reserve(&mut self, queues: usize, taken_over: usize) {
        self.waiting.reserve(queues + taken_over);
    }

    /// A batch was received.
    #[inline]
    pub(super) fn receive(&mut self) {
        (self.since_ns, self.away) = ((self.clock)(), 0);
    }

    /// When the present batch was received.
    #[inline]
    pub(super) fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// A packet of it was dropped or handed over.
    #[inline]
    pub(super) fn away(&mut self) {
        self.away += 1;
    }

    /// The batch had so many packets; those that did not go away are in TX rings.
    #[inline]
    pub(super) fn transmit(&mut self, packets: u64) {
        self.waiting.push((self.since_ns, packets.saturating_sub(self.away)));
    }

    /// A packet that another worker received at `since_ns` is in a TX ring. Those of one batch follow one another.
    #[inline]
    pub(super) fn transmit_handed(&mut self, since_ns: u64) {
        match self.waiting.last_mut() {
            Some((last, packets)) if *last == since_ns => *packets += 1,
            _ => self.waiting.push((since_ns, 1)),
        }
    }

    /// The TX rings were kicked.
    #[inline]
    pub(super) fn kicked(&mut self, residence: &Residence) {
        if self.waiting.is_empty() {
            return;
        }
        let now_ns = (self.clock)();
        for (since_ns, packets) in self.waiting.drain(..) {
            if packets != 0 {
                residence.add(now_ns.saturating_sub(since_ns), packets);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_the_first_bucket_that_it_does_not_exceed() {
        for (bucket, bound) in RESIDENCE_BOUNDS_NS.into_iter().enumerate() {
            let residence = Residence::default();
            residence.add(bound, 3);
            residence.add(bound + 1, 5);
            let mut expected = [0; RESIDENCE_BUCKETS];
            (expected[bucket], expected[bucket + 1]) = (3, 5);
            assert_eq!(residence.buckets(), expected, "{bound}");
            assert_eq!(residence.sum_ns(), 8 * bound + 5);
        }
        let residence = Residence::default();
        residence.add(0, 1);
        assert_eq!(residence.buckets()[0], 1);
    }
}
