//! Publication of snapshots.

#[path = "../../dataplane/src/table/snapshot.rs"]
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
