//! Rings, and who sleeps.

#[path = "../../dataplane/src/afxdp/ring.rs"]
pub mod ring;
#[path = "../../dataplane/src/afxdp/sleeping.rs"]
pub mod sleeping;

use std::sync::Arc;

use sleeping::Sleeping;

use crate::sync::{AtomicBool, Ordering};

/// A piece of a packet. Its frame is a number here; the product's is a token that cannot be copied.
#[derive(Debug)]
pub struct Piece {
    pub frame: u32,
    pub more: bool,
}

/// The product's without the system calls: a write to the event descriptor sets a flag.
#[derive(Clone, Debug, Default)]
pub struct Waker {
    pub sleeping: Arc<Sleeping>,
    pub event: Arc<AtomicBool>,
}

impl Waker {
    pub fn wake(&self) {
        if self.sleeping.must_be_woken() {
            self.event.store(true, Ordering::Release);
        }
    }
}

/// The memory of a ring of [`sys::ENTRIES`] entries, in the place of a mapping.
pub mod sys {
    use std::mem::offset_of;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use crate::sync::{AtomicU32, Cell};

    pub const ENTRIES: u32 = 2;

    #[derive(Debug)]
    #[repr(C)]
    struct Memory {
        producer: AtomicU32,
        consumer: AtomicU32,
        flags: AtomicU32,
        entries: [Cell<u64>; ENTRIES as usize],
    }

    #[derive(Clone, Debug)]
    pub struct Mapping(Arc<Memory>);

    impl Mapping {
        /// With both counters at `start`.
        pub fn new(start: u32) -> Self {
            let counter = |value| AtomicU32::new(value);
            let entries = std::array::from_fn(|_| Cell::new(0));
            Mapping(Arc::new(Memory { producer: counter(start), consumer: counter(start), flags: counter(0), entries }))
        }

        pub fn offsets() -> libc::xdp_ring_offset {
            libc::xdp_ring_offset {
                producer: offset_of!(Memory, producer) as u64,
                consumer: offset_of!(Memory, consumer) as u64,
                desc: offset_of!(Memory, entries) as u64,
                flags: offset_of!(Memory, flags) as u64,
            }
        }

        pub fn base(&self) -> NonNull<u8> {
            NonNull::from(&*self.0).cast()
        }

        pub fn bytes(&self) -> usize {
            size_of::<Memory>()
        }
    }
}
