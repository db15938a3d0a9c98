//! Which copy of the tables is in force: the loader's side of `struct generations` in `bpf/tables.h`.
//!
//! Snapshot *g* is in copy *g* mod 2. While it is written, programs read snapshot *g* − 1 in the other copy; a program that
//! is still at *g* − 2 sees that its copy was begun anew and leaves its frame to the kernel. That takes loads which are not
//! reordered, as on x86. Elsewhere the loader waits, before it writes over a copy, until every program that may read it has
//! ended (an RCU grace period, some milliseconds).

use std::os::fd::AsFd;

use libbpf_rs::MapHandle;
use podlane_dataplane::afxdp::SharedWords;

use super::error::BpfError;
use super::sync::check_sizes;

/// Words of `struct generations`.
const CURRENT: usize = 0;
const BEGUN: usize = 1;
const HEARTBEAT: usize = 2;
const WORDS: usize = 3;

/// The generations, in memory that the programs see as well.
#[derive(Debug)]
pub(super) struct Generations {
    words: SharedWords,
}

impl Generations {
    /// Maps them.
    pub(super) fn map(map: &MapHandle) -> Result<Self, BpfError> {
        check_sizes(map, 4, WORDS * 8)?;
        let words = SharedWords::map(map.as_fd(), WORDS);
        let words = words.map_err(|error| BpfError::Map { table: "generations", source: error.into() })?;
        Ok(Generations { words })
    }

    /// The snapshot in force; 0 before the first.
    pub(super) fn current(&self) -> u64 {
        self.words.load(CURRENT)
    }

    /// Says that snapshot `generation` is being written from now on, over its predecessor but one.
    pub(super) fn begin(&self, generation: u64) {
        self.words.store(BEGUN, generation);
        super::sys::wait_for_programs();
    }

    /// Puts snapshot `generation`, which is complete, in force.
    pub(super) fn make_current(&self, generation: u64) {
        self.words.store(CURRENT, generation);
    }

    /// When that was last shown; 0 for never.
    pub(super) fn last_beat(&self) -> u64 {
        self.words.load(HEARTBEAT)
    }

    /// Shows that the tables are being kept up to date at `now_ns` of `CLOCK_MONOTONIC_COARSE`.
    pub(super) fn beat(&self, now_ns: u64) {
        self.words.store(HEARTBEAT, now_ns);
    }
}
