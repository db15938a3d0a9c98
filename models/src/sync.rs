//! Loom's in the place of `dataplane/src/sync.rs`.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use loom::sync::Mutex;
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// A thread that waits for another one gives way to it.
pub fn spin_loop() {
    loom::thread::yield_now();
}

/// A cell whose accesses loom checks: one that another thread's is not ordered with fails the model.
#[derive(Debug)]
pub struct Cell<T>(loom::cell::UnsafeCell<T>);

impl<T> Cell<T> {
    pub fn new(value: T) -> Self {
        Cell(loom::cell::UnsafeCell::new(value))
    }

    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        self.0.with(read)
    }

    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        self.0.with_mut(write)
    }
}

/// `crossbeam::queue::ArrayQueue` as far as it promises: what was pushed is popped once, in order, and popping it sees what was
/// written before it was pushed. Its length is looked at without any order, as an outsider's look may be.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    items: Mutex<VecDeque<T>>,
    length: AtomicUsize,
    capacity: usize,
}

impl<T> ArrayQueue<T> {
    pub fn new(capacity: usize) -> Self {
        ArrayQueue { items: Mutex::new(VecDeque::new()), length: AtomicUsize::new(0), capacity }
    }

    pub fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.items.lock().expect("no holder panics");
        if items.len() == self.capacity {
            return Err(item);
        }
        items.push_back(item);
        self.length.store(items.len(), Ordering::Relaxed);
        Ok(())
    }

    pub fn pop(&self) -> Option<T> {
        let mut items = self.items.lock().expect("no holder panics");
        let item = items.pop_front()?;
        self.length.store(items.len(), Ordering::Relaxed);
        Some(item)
    }

    pub fn len(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// `arc_swap::ArcSwap` as far as it promises: a load gives the last value that was stored, or an earlier one, never one that is
/// older than what this thread has seen, and sees what was written before that was stored.
#[derive(Debug)]
pub struct ArcSwap<T> {
    values: Mutex<Vec<Arc<T>>>,
    newest: AtomicUsize,
}

impl<T> ArcSwap<T> {
    pub fn from_pointee(value: T) -> Self {
        ArcSwap { values: Mutex::new(vec![Arc::new(value)]), newest: AtomicUsize::new(0) }
    }

    pub fn store(&self, value: Arc<T>) {
        let mut values = self.values.lock().expect("no holder panics");
        values.push(value);
        self.newest.store(values.len() - 1, Ordering::Release);
    }

    pub fn load(&self) -> Arc<T> {
        self.load_full()
    }

    pub fn load_full(&self) -> Arc<T> {
        let newest = self.newest.load(Ordering::Acquire);
        Arc::clone(&self.values.lock().expect("no holder panics")[newest])
    }
}

/// `arc_swap::Cache`: the value of the last look, and another one if it has changed.
#[derive(Clone, Debug)]
pub struct Cache<A, V> {
    from: A,
    seen: V,
}

impl<T> Cache<Arc<ArcSwap<T>>, Arc<T>> {
    pub fn new(from: Arc<ArcSwap<T>>) -> Self {
        let seen = from.load_full();
        Cache { from, seen }
    }

    pub fn load(&mut self) -> &T {
        self.seen = self.from.load_full();
        self.seen.deref()
    }
}
