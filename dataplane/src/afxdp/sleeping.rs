//! Whether a worker sleeps, as those who give it work see it.

use crate::sync::{AtomicBool, Ordering, fence};

/// A worker's flag. Whoever gives work makes it visible first and then asks whether the worker must be woken; the worker says that
/// it is about to sleep first and then looks for work once more. Each writes, then reads what the other wrote, with a full
/// fence in between (Dekker's pattern): at least one of them sees the other, so no work waits for a worker that sleeps on.
#[derive(Debug, Default)]
pub struct Sleeping(AtomicBool);

impl Sleeping {
    /// The worker will sleep, unless it finds work behind this call.
    #[inline]
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
        // Pairs with the fence in `must_be_woken`.
        fence(Ordering::SeqCst);
    }

    /// The worker is awake again.
    #[inline]
    pub fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether a worker that was given work before this call has to be woken for it.
    #[inline]
    pub fn must_be_woken(&self) -> bool {
        // Pairs with the fence in `begin`.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}
