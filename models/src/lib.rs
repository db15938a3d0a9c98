//! What Podlane's threads share, under loom.
//!
//! The files that rest on an order of memory accesses are compiled here once more, from where they stand in the product, with
//! loom's atomics and cells behind `crate::sync` (`dataplane/src/sync.rs`). The models in `tests/` then run every interleaving
//! of a few threads, with every value that a load may give. What the product takes from other crates has a stand-in in
//! [`sync`] that promises as little as the original does; that the originals keep their promises is trusted here, and looked
//! at by miri (`scripts/miri.sh`), which runs them as they are.
//!
//! `scripts/models.sh --mutants` weakens one order after the other and expects the models to notice.
// The unit tests in the files are of the product; a lint of all targets would compile them here.
#![cfg(not(test))]
#![allow(missing_docs, dead_code, unsafe_code)]
// Loom checks what its cells are accessed by, so they need not be for one thread only.
#![allow(clippy::arc_with_non_send_sync)]

pub mod afxdp;
pub mod sync;
pub mod table;
pub mod tap;
pub mod worker;

/// Small, so that a ring is full after a few steps.
pub mod limits {
    pub const HANDOFF_RING: usize = 3;
    pub const MAX_PORTS: usize = 2;
}

pub mod addr {
    pub use podlane_dataplane::{MacAddr, PortId};
}
