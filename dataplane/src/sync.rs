//! What threads share, through one door: atomics, cells, bounded queues, and snapshots.
//!
//! Files that rest on an order of memory accesses take everything from here. The models (`models/`) compile the same files with
//! loom's atomics and cells behind this door, and try every order that the memory model allows.

use std::cell::UnsafeCell;

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

pub(crate) use arc_swap::{ArcSwap, Cache};
pub(crate) use crossbeam::queue::ArrayQueue;

/// A value that several threads reach, of which some rule says who may touch it when. It lies in memory as the value alone.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Cell<T>(UnsafeCell<T>);

impl<T> Cell<T> {
    /// A cell that holds `value`.
    #[cfg(test)]
    pub(crate) fn new(value: T) -> Self {
        Cell(UnsafeCell::new(value))
    }

    /// Reads it by a pointer that is good for the call.
    #[inline]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Writes it by a pointer that is good for the call.
    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
