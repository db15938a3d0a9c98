//! Publication of snapshots: one writer, many readers that neither lock nor count references per packet.

use std::sync::Arc;

use super::Tables;
use crate::sync::{ArcSwap, Cache};

/// The writing end.
#[derive(Debug, Clone)]
pub struct Publisher {
    shared: Arc<ArcSwap<Tables>>,
}

/// A reading end; every worker has its own.
#[derive(Debug, Clone)]
pub struct Reader {
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
}

/// A publisher and a first reader over the empty snapshot.
pub fn channel() -> (Publisher, Reader) {
    let publisher = Publisher { shared: Arc::new(ArcSwap::from_pointee(Tables::default())) };
    let reader = publisher.reader();
    (publisher, reader)
}

impl Publisher {
    /// Makes `tables` the current snapshot. Its generation becomes the last one's plus one, which is returned.
    pub fn publish(&self, mut tables: Tables) -> u64 {
        tables.generation = self.shared.load().generation + 1;
        let generation = tables.generation;
        self.shared.store(Arc::new(tables));
        generation
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Tables> {
        self.shared.load_full()
    }

    /// Another reading end.
    pub fn reader(&self) -> Reader {
        Reader { cache: Cache::new(Arc::clone(&self.shared)) }
    }
}

impl Reader {
    /// The current snapshot: one atomic load unless it has changed since the last call. Call it once per batch.
    #[inline]
    pub fn load(&mut self) -> &Tables {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over arc-swap as it is; under miri every access is checked for races, and every snapshot must be freed.
    #[test]
    fn a_reader_sees_snapshots_in_order() {
        const SNAPSHOTS: u64 = if cfg!(miri) { 10 } else { 1000 };
        let (publisher, mut reader) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=SNAPSHOTS {
                    assert_eq!(publisher.publish(Tables::default()), number);
                }
            });
            let mut last = 0;
            while last < SNAPSHOTS {
                let generation = reader.load().generation;
                assert!(generation >= last);
                last = generation;
                std::thread::yield_now();
            }
        });
    }
}
