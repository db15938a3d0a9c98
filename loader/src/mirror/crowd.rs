//! How many learned MAC addresses of each bridge port are mirrored.
//!
//! The kernel's bridge learns whatever a port sends, without a limit unless one is set (`fdb_max_learned`). The mirror keeps
//! so many of each port and so many of all ([`limits::MAX_MIRRORED_PER_PORT`], [`limits::MAX_MIRRORED`]); every port may have
//! some in any case, so that no flood takes another port's place. What is left out is the kernel's to forward. When a port
//! that was too full has become half empty, the table is read again, since what was left out may still be there.

use std::collections::BTreeMap;

use podlane_dataplane::limits;

use super::world::{FdbEntry, FdbKind};

/// The count. It follows from the entries but for what was left out, so two worlds are not told apart by it.
#[derive(Clone, Debug, Default)]
pub struct Crowd {
    ports: BTreeMap<u32, Port>,
    all: usize,
    left_out: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Port {
    count: usize,
    was_full: bool,
}

impl PartialEq for Crowd {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Crowd {}

/// Whether an entry counts: what was configured does not.
fn counts(entry: &FdbEntry) -> bool {
    entry.kind == FdbKind::Dynamic
}

impl Crowd {
    /// An entry comes; false if it must be left out.
    pub(super) fn enter(&mut self, entry: &FdbEntry) -> bool {
        if !counts(entry) {
            return true;
        }
        let port = self.ports.entry(entry.port).or_default();
        let has_room = port.count < limits::MAX_MIRRORED_PER_PORT && self.all < limits::MAX_MIRRORED;
        if port.count >= limits::MAX_LEARNED_PER_PORT && !has_room {
            port.was_full = true;
            self.left_out += 1;
            return false;
        }
        port.count += 1;
        self.all += 1;
        true
    }

    /// An entry goes. Whether the table is to be read again.
    pub(super) fn leave(&mut self, entry: &FdbEntry) -> bool {
        if !counts(entry) {
            return false;
        }
        let Some(port) = self.ports.get_mut(&entry.port) else { return false };
        port.count = port.count.saturating_sub(1);
        self.all = self.all.saturating_sub(1);
        let read_again = port.was_full && port.count <= limits::MAX_MIRRORED_PER_PORT / 2;
        port.was_full &= !read_again;
        if port.count == 0 {
            self.ports.remove(&entry.port);
        }
        read_again
    }

    /// Times that an entry was left out.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(port: u32) -> FdbEntry {
        FdbEntry { port, kind: FdbKind::Dynamic, sticky: false, locked: false }
    }

    #[test]
    fn one_port_cannot_take_the_others_places() {
        let mut crowd = Crowd::default();
        let flood = |crowd: &mut Crowd, port| (0..100_000).filter(|_| crowd.enter(&learned(port))).count();
        assert_eq!(flood(&mut crowd, 1), limits::MAX_MIRRORED_PER_PORT);
        for port in 2..=200 {
            assert!(flood(&mut crowd, port) >= limits::MAX_LEARNED_PER_PORT);
        }
        assert!((0..limits::MAX_LEARNED_PER_PORT).all(|_| crowd.enter(&learned(999))));
        assert!(!crowd.enter(&learned(999)), "all places are taken, beyond what everybody has");
        assert!(
            crowd.enter(&FdbEntry { kind: FdbKind::Static, ..learned(1) }),
            "what was configured is never left out"
        );
        assert!(crowd.all <= limits::MAX_MIRRORED + 200 * limits::MAX_LEARNED_PER_PORT);
    }

    #[test]
    fn after_a_flood_the_table_is_read_again_once() {
        let mut crowd = Crowd::default();
        let count = limits::MAX_MIRRORED_PER_PORT;
        assert!((0..count).all(|_| crowd.enter(&learned(1))));
        assert!(!crowd.enter(&learned(1)));
        assert_eq!((0..count).filter(|_| crowd.leave(&learned(1))).count(), 1);
        assert!(crowd.enter(&learned(1)) && !crowd.leave(&learned(1)));
        assert_eq!((crowd.all, crowd.left_out()), (0, 1));
    }
}
