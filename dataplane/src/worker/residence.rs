//! How long packets stay with the workers: a histogram, counted a batch at a time.
//!
//! A packet's time begins when a worker takes its batch out of the RX ring, and ends when the worker that transmits it has
//! kicked the TX rings of that turn. What the kernel does before and after (the RX ring, its own queues) is not seen from
//! here.

use super::counters::Counter;

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
