//! The words in which workers tell the XDP program that they are alive.
//!
//! They lie in a BPF array map that both sides see as memory: one 64-bit word per worker, 64 bytes apart, holding the
//! `CLOCK_MONOTONIC_COARSE` time in nanoseconds of the last beat.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys::Mapping;
use crate::limits;

/// Bytes from one worker's word to the next: a cache line, so that workers do not disturb each other.
const STRIDE: usize = 64;

/// All workers' words.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    memory: Arc<Mapping>,
}

impl Heartbeats {
    /// Bytes of the map: [`limits::MAX_WORKERS`] words, [`STRIDE`] apart, rounded up to a page.
    pub const BYTES: usize = (limits::MAX_WORKERS * STRIDE).next_multiple_of(4096);

    /// Maps the BPF array map behind `fd`, which must have the flag `BPF_F_MMAPABLE` and values that make up at least
    /// [`limits::MAX_WORKERS`] × 64 bytes.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Heartbeats { memory: Arc::new(Mapping::shared(fd, Self::BYTES, 0)?) })
    }

    /// Words that no XDP program reads, for tests.
    pub fn private() -> io::Result<Self> {
        Ok(Heartbeats { memory: Arc::new(Mapping::anonymous(Self::BYTES)?) })
    }

    /// The word of one worker.
    ///
    /// # Panics
    /// If `worker` is not below [`limits::MAX_WORKERS`].
    pub fn worker(&self, worker: usize) -> Heartbeat {
        assert!(worker < limits::MAX_WORKERS);
        Heartbeat { memory: Arc::clone(&self.memory), worker }
    }
}

/// One worker's word.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    memory: Arc<Mapping>,
    worker: usize,
}

impl Heartbeat {
    /// Writes that the worker is alive at `now_ns` ([`super::clock::coarse_ns`]).
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        self.word().store(now_ns, Ordering::Relaxed);
    }

    /// When it last was, nanoseconds; 0 for never.
    #[inline]
    pub fn last_ns(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: `worker` is below the number of words, so this is inside of the mapping and aligned to 64 bytes; both our
        // threads and the XDP program access it only as one aligned 64-bit word.
        unsafe { &*self.memory.base().as_ptr().add(self.worker * STRIDE).cast::<AtomicU64>() }
    }
}
