//! The single-producer single-consumer rings that AF_XDP shares with the kernel.
//!
//! A ring is an array whose size is a power of two and two free-running 32-bit counters. The producer writes entries and
//! then advances its counter with release order; the consumer reads the counter with acquire order, then the entries
//! (`tools/lib/bpf` and `net/xdp/xsk_queue.h` have the same pairing). Each side keeps a cached copy of the other's counter
//! and looks at the shared one only when the cache says that there is no room or nothing to take.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::sys::Mapping;
use crate::sync::{AtomicU32, Cell, Ordering};

/// Where a ring lies; shared by both kinds of end.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<Cell<T>>,
    mask: u32,
    /// Keeps the memory mapped. `None` only in tests over plain memory.
    _mapping: Option<Arc<Mapping>>,
    _entries: PhantomData<T>,
}

// SAFETY: the pointers lead into the mapping that the value owns; the counters are atomics, and entries are touched only by
// the one producer or the one consumer that the index protocol permits.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// Interprets a mapping made by `mmap` of a ring of `size` entries by the offsets that the kernel gave.
    fn new(mapping: Arc<Mapping>, offsets: &libc::xdp_ring_offset, size: u32) -> Self {
        assert!(size.is_power_of_two());
        let end = offsets.desc as usize + size as usize * std::mem::size_of::<Cell<T>>();
        assert!(end <= mapping.bytes(), "the ring's entries lie inside of its mapping");
        let base = mapping.base();
        // SAFETY: the kernel's offsets lie inside of the mapping (asserted for the largest one) and are aligned for their
        // types, as the kernel places them in cache lines of their own.
        unsafe {
            Shared {
                producer: base.byte_add(offsets.producer as usize).cast(),
                consumer: base.byte_add(offsets.consumer as usize).cast(),
                flags: base.byte_add(offsets.flags as usize).cast(),
                entries: base.byte_add(offsets.desc as usize).cast(),
                mask: size - 1,
                _mapping: Some(mapping),
                _entries: PhantomData,
            }
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points to a live, aligned 32-bit counter in the mapping, only ever accessed atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    /// The cell of the entry that a free-running counter points to.
    fn entry(&self, counter: u32) -> &Cell<T> {
        // SAFETY: masked, so inside of the array, which lives in the mapping; what is in the cell is not touched here.
        unsafe { self.entries.add((counter & self.mask) as usize).as_ref() }
    }

    fn size(&self) -> u32 {
        self.mask + 1
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// Our end of a ring that the kernel consumes: fill and TX.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Shared<T>,
    /// What we have written, published or not.
    head: u32,
    /// What we have published.
    published: u32,
    cached_consumer: u32,
}

impl<T: Copy> Producer<T> {
    /// Over a mapped ring.
    pub fn new(mapping: impl Into<Arc<Mapping>>, offsets: &libc::xdp_ring_offset, size: u32) -> Self {
        Self::over(Shared::new(mapping.into(), offsets, size))
    }

    fn over(shared: Shared<T>) -> Self {
        let head = shared.producer().load(Ordering::Relaxed);
        let cached_consumer = shared.consumer().load(Ordering::Acquire);
        Producer { shared, head, published: head, cached_consumer }
    }

    /// How many entries can be written now; looks at the consumer when the cache shows less than `wanted`.
    #[inline]
    pub fn space(&mut self, wanted: u32) -> u32 {
        let room = self.shared.size() - self.head.wrapping_sub(self.cached_consumer);
        if room >= wanted {
            return room;
        }
        self.cached_consumer = self.shared.consumer().load(Ordering::Acquire);
        self.shared.size() - self.head.wrapping_sub(self.cached_consumer)
    }

    /// Writes one entry. The caller has seen [`Producer::space`] for it.
    #[inline]
    pub fn push(&mut self, entry: T) {
        debug_assert!(self.head.wrapping_sub(self.cached_consumer) < self.shared.size());
        // SAFETY: the consumer does not read it before `publish`, and has released it before, as `space` saw with acquire
        // order.
        self.shared.entry(self.head).with_mut(|place| unsafe { place.write(entry) });
        self.head = self.head.wrapping_add(1);
    }

    /// Lets the consumer see what was written.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.head {
            self.shared.producer().store(self.head, Ordering::Release);
            self.published = self.head;
        }
    }

    /// Entries that were written and that the consumer has not yet taken.
    #[inline]
    pub fn pending(&mut self) -> u32 {
        self.cached_consumer = self.shared.consumer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.cached_consumer)
    }

    /// Whether the consumer asked to be woken.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }
}

/// Our end of a ring that the kernel produces: RX and completion.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Shared<T>,
    tail: u32,
    cached_producer: u32,
}

impl<T: Copy> Consumer<T> {
    /// Over a mapped ring.
    pub fn new(mapping: impl Into<Arc<Mapping>>, offsets: &libc::xdp_ring_offset, size: u32) -> Self {
        Self::over(Shared::new(mapping.into(), offsets, size))
    }

    fn over(shared: Shared<T>) -> Self {
        let tail = shared.consumer().load(Ordering::Relaxed);
        let cached_producer = shared.producer().load(Ordering::Acquire);
        Consumer { shared, tail, cached_producer }
    }

    /// How many entries can be read; looks at the producer when the cache shows less than `wanted`.
    #[inline]
    pub fn available(&mut self, wanted: u32) -> u32 {
        let known = self.cached_producer.wrapping_sub(self.tail);
        if known >= wanted {
            return known;
        }
        self.cached_producer = self.shared.producer().load(Ordering::Acquire);
        self.cached_producer.wrapping_sub(self.tail)
    }

    /// Reads the entry `ahead` places after the next one, without taking it. The caller has seen it
    /// [`Consumer::available`].
    #[inline]
    pub fn peek(&self, ahead: u32) -> T {
        debug_assert!(ahead < self.cached_producer.wrapping_sub(self.tail));
        // SAFETY: the producer published it before `available` saw its counter with acquire order, and does not write it
        // again before `release`.
        self.shared.entry(self.tail.wrapping_add(ahead)).with(|place| unsafe { place.read() })
    }

    /// Starts to fetch the next `count` entries into the cache, which the producer on another core has just written.
    #[inline]
    pub fn prefetch(&self, count: u32) {
        #[cfg(target_arch = "x86_64")]
        for ahead in (0..count).step_by((64 / size_of::<T>()).max(1)) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let entry = std::ptr::from_ref(self.shared.entry(self.tail.wrapping_add(ahead)));
            // SAFETY: a prefetch reads nothing as far as the program can tell, and this one points into the array besides.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(entry.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = count;
    }

    /// Gives the next `count` entries back to the producer.
    #[inline]
    pub fn release(&mut self, count: u32) {
        debug_assert!(count <= self.cached_producer.wrapping_sub(self.tail));
        self.tail = self.tail.wrapping_add(count);
        self.shared.consumer().store(self.tail, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring in plain memory, with counters that start close to their overflow.
    struct Plain {
        counters: Box<[AtomicU32; 3]>,
        entries: Box<[Cell<u64>; 8]>,
    }

    impl Plain {
        fn new(start: u32) -> Self {
            Plain {
                counters: Box::new([AtomicU32::new(start), AtomicU32::new(start), AtomicU32::new(0)]),
                entries: Box::new(std::array::from_fn(|_| Cell::new(0))),
            }
        }

        /// For one end; `self` outlives it.
        fn shared(&self) -> Shared<u64> {
            Shared {
                producer: NonNull::from(&self.counters[0]),
                consumer: NonNull::from(&self.counters[1]),
                flags: NonNull::from(&self.counters[2]),
                entries: NonNull::from(&self.entries[..]).cast(),
                mask: 7,
                _mapping: None,
                _entries: PhantomData,
            }
        }
    }

    #[test]
    fn entries_arrive_in_order_across_the_overflow_of_the_counters() {
        let plain = Plain::new(u32::MAX - 5);
        let mut producer = Producer::over(plain.shared());
        let mut consumer = Consumer::over(plain.shared());
        let (mut sent, mut received) = (0u64, 0u64);
        for round in 0..50u64 {
            let burst = round % 9;
            for _ in 0..burst {
                if producer.space(1) == 0 {
                    break;
                }
                producer.push(sent);
                sent += 1;
            }
            producer.publish();
            let ready = consumer.available(8);
            let take = ready.min((round % 4 + 1) as u32);
            for ahead in 0..take {
                assert_eq!(consumer.peek(ahead), received);
                received += 1;
            }
            consumer.release(take);
        }
        assert!(sent > 60 && sent - received <= 8);
    }

    #[test]
    fn a_full_ring_has_no_space_and_unpublished_entries_are_not_seen() {
        let plain = Plain::new(0);
        let mut producer = Producer::over(plain.shared());
        let mut consumer = Consumer::over(plain.shared());
        for value in 0..8 {
            assert!(producer.space(1) >= 1);
            producer.push(value);
        }
        assert_eq!(producer.space(1), 0);
        assert_eq!(consumer.available(1), 0);
        producer.publish();
        assert_eq!(consumer.available(1), 8);
        assert_eq!(producer.pending(), 8);
        consumer.release(3);
        assert_eq!(producer.space(4), 3);
        assert_eq!(producer.pending(), 5);
    }

    /// Two threads on one ring, across the overflow. Under miri every access is checked for races and every load may give an
    /// older value that the memory model allows.
    #[test]
    fn a_producer_and_a_consumer_in_two_threads_lose_nothing() {
        const ENTRIES: u64 = if cfg!(miri) { 60 } else { 10_000 };
        let plain = Plain::new(u32::MAX - 20);
        let (mut producer, mut consumer) = (Producer::over(plain.shared()), Consumer::over(plain.shared()));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < ENTRIES {
                    let burst = u64::from(producer.space(3).min(3)).min(ENTRIES - next);
                    (next..next + burst).for_each(|entry| producer.push(entry));
                    producer.publish();
                    next += burst;
                    std::thread::yield_now();
                }
            });
            let mut next = 0;
            while next < ENTRIES {
                let ready = consumer.available(2);
                for ahead in 0..ready {
                    assert_eq!(consumer.peek(ahead), next);
                    next += 1;
                }
                consumer.release(ready);
                std::thread::yield_now();
            }
        });
    }
}
