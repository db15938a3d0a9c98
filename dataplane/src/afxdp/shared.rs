//! 64-bit words that we and BPF programs see as the same memory: the elements of a BPF array map, one behind the other.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys::Mapping;

/// The words of one map.
#[derive(Debug)]
pub struct SharedWords {
    memory: Mapping,
    count: usize,
}

impl SharedWords {
    /// Maps the first `count` words of the BPF array map behind `fd`, which must have the flag `BPF_F_MMAPABLE`, values of a
    /// multiple of eight bytes, and at least so many words in all.
    pub fn map(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        Ok(SharedWords { memory: Mapping::shared(fd, (count * 8).next_multiple_of(4096), 0)?, count })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Reads one.
    ///
    /// # Panics
    /// If `index` is not below [`SharedWords::len`].
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Writes one. Everything that this thread wrote before, by system calls as well, is visible to whoever sees it.
    ///
    /// # Panics
    /// If `index` is not below [`SharedWords::len`].
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::SeqCst);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count);
        // SAFETY: the index is below the number of words, so this is inside of the mapping, which is page-aligned; both we
        // and the BPF programs access it only as one aligned 64-bit word.
        unsafe { &*self.memory.base().as_ptr().add(index * 8).cast::<AtomicU64>() }
    }
}
