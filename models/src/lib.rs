//! What Podlane's threads share, under loom.
//!
//! The files that rest on an order of memory accesses are compiled here once more, from where they stand in the product, with
//! loom's atomics and cells behind `crate::sync` (`dataplane/src/sync.rs`). The models in `tests/` then run every interleaving
//! of a few threads, with every value that a load may give. What the product takes from other crates has a stand-in in
//! [`sync`] that promises as little as the original does; that the originals keep their promises is trusted here, and looked
//! at by miri (`scripts/miri.sh`), which runs them as they are.
//!
//! `scripts/models.sh --mutants` weakens one order after the other and expects the models to notice.
#![allow(missing_docs, dead_code, unsafe_code)]

pub mod sync;

/// Small, so that a ring is full after a few steps.
pub mod limits {
    pub const HANDOFF_RING: usize = 3;
    pub const MAX_PORTS: usize = 2;
}

pub mod addr {
    pub use podlane_dataplane::{MacAddr, PortId};
}

pub mod afxdp {
    #[path = "../../../dataplane/src/afxdp/ring.rs"]
    pub mod ring;
    #[path = "../../../dataplane/src/afxdp/sleeping.rs"]
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
    #[derive(Clone, Debug)]
    pub struct Waker {
        pub sleeping: Arc<Sleeping>,
        pub event: Arc<AtomicBool>,
    }

    impl Waker {
        pub fn new() -> Self {
            Waker { sleeping: Arc::new(Sleeping::new()), event: Arc::new(AtomicBool::new(false)) }
        }

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
}

pub mod worker {
    #[path = "../../../dataplane/src/worker/counter.rs"]
    pub mod counter;
    #[path = "../../../dataplane/src/worker/handoff.rs"]
    pub mod handoff;

    pub use counter::Counter;
}

pub mod tap {
    #[path = "../../../dataplane/src/tap/ring.rs"]
    pub mod ring;

    pub use podlane_dataplane::tap::filter::Bytes;
    pub use podlane_dataplane::tap::{Direction, Outcome, Record};
}

pub mod table {
    #[path = "../../../dataplane/src/table/snapshot.rs"]
    pub mod snapshot;

    use crate::sync::Cell;

    /// A snapshot of two parts that belong together. Loom objects to whoever reads one that is still being written.
    #[derive(Debug)]
    pub struct Tables {
        pub generation: u64,
        pub ports: Cell<u64>,
        pub routes: Cell<u64>,
    }

    impl Tables {
        pub fn of(content: u64) -> Self {
            Tables { generation: 0, ports: Cell::new(content), routes: Cell::new(content) }
        }

        /// Its content.
        pub fn read(&self) -> (u64, u64) {
            // SAFETY: nobody writes to a snapshot that was published; loom watches that.
            (self.ports.with(|part| unsafe { *part }), self.routes.with(|part| unsafe { *part }))
        }
    }

    impl Default for Tables {
        fn default() -> Self {
            Tables::of(0)
        }
    }
}
