//! A number that one thread writes and any thread reads.

use crate::sync::{AtomicU64, Ordering};

/// A counter that one thread writes and any thread reads. Adding is a load and a store, not a locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the one writer may.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Back to 0, while the writer does not use it.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
