//! The histogram of residence times in `podlane status`.

use podlane_dataplane::worker::{RESIDENCE_BOUNDS_NS, Residence};
use serde::{Deserialize, Serialize};

/// How long packets stayed with a worker, from its taking them out of an RX ring to its kick of the TX ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidenceStatus {
    /// Upper bounds of the buckets, microseconds.
    pub le_us: Vec<u64>,
    /// Packets by bucket, those of a bucket not in the ones above it; one more than there are bounds.
    pub packets: Vec<u64>,
    /// The times of all packets together, nanoseconds.
    pub sum_ns: u64,
    /// Half of the packets stayed no longer, microseconds; `None` without packets.
    pub p50_us: Option<f64>,
    /// All but a hundredth of the packets stayed no longer, microseconds.
    pub p99_us: Option<f64>,
}

impl ResidenceStatus {
    /// From a worker's histogram.
    pub fn of(residence: &Residence) -> Self {
        let counted = ResidenceStatus {
            le_us: RESIDENCE_BOUNDS_NS.iter().map(|bound| bound / 1000).collect(),
            packets: residence.buckets().to_vec(),
            sum_ns: residence.sum_ns(),
            ..ResidenceStatus::default()
        };
        counted.with_quantiles()
    }

    /// Adds what earlier daemons counted. Counts by other buckets cannot be added and are left out.
    pub fn carry(&mut self, earlier: &ResidenceStatus) {
        if self.le_us == earlier.le_us && self.packets.len() == earlier.packets.len() {
            let both = self.packets.iter_mut().zip(&earlier.packets);
            both.for_each(|(count, earlier)| *count = count.saturating_add(*earlier));
            self.sum_ns = self.sum_ns.saturating_add(earlier.sum_ns);
        }
        *self = std::mem::take(self).with_quantiles();
    }

    /// Packets in all.
    pub fn count(&self) -> u64 {
        self.packets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn with_quantiles(mut self) -> Self {
        (self.p50_us, self.p99_us) = (self.quantile_us(0.5), self.quantile_us(0.99));
        self
    }

    /// The time that the share `quantile` of the packets did not exceed, microseconds: evenly spread inside of a bucket, as
    /// Prometheus' `histogram_quantile` has it; the highest bound for what lies above.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.count() as f64;
        let (mut below, mut from) = (0.0, 0.0);
        for (bound, count) in self.le_us.iter().zip(&self.packets) {
            let (bound, count) = (*bound as f64, *count as f64);
            if count > 0.0 && below + count >= rank {
                return Some(from + (bound - from) * (rank - below) / count);
            }
            (below, from) = (below + count, bound);
        }
        (self.count() > 0).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_where_prometheus_would_put_them() {
        let residence = Residence::default();
        assert_eq!(ResidenceStatus::of(&residence).p50_us, None);
        residence.add(1500, 50);
        residence.add(4000, 49);
        residence.add(80_000_000, 1);
        let told = ResidenceStatus::of(&residence);
        assert_eq!((told.count(), told.p50_us, told.p99_us), (100, Some(2.0), Some(5.0)));
        assert_eq!(told.quantile_us(0.25), Some(1.5));
        assert_eq!(told.quantile_us(1.0), Some(100_000.0));
        residence.add(1_000_000_000, 1000);
        assert_eq!(ResidenceStatus::of(&residence).p99_us, Some(100_000.0), "the highest bound");
    }

    #[test]
    fn earlier_counts_are_added_bucket_by_bucket() {
        let residence = Residence::default();
        residence.add(1500, 7);
        let (mut now, mut earlier) = (ResidenceStatus::of(&residence), ResidenceStatus::of(&residence));
        now.carry(&earlier);
        assert_eq!((now.packets[1], now.sum_ns), (14, 21_000));
        earlier.le_us[0] = 3;
        now.carry(&earlier);
        assert_eq!(now.packets[1], 14, "other bounds");
    }
}
