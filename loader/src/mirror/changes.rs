//! Which parts of the world changed: a small set, so that a moved MAC address does not rebuild the routes.

use std::fmt;
use std::ops::{BitOr, BitOrAssign, Sub};

/// A set of parts of the [`super::World`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Changes(u16);

const NAMES: [(Changes, &str); 9] = [
    (Changes::LINKS, "links"),
    (Changes::ADDRESSES, "addresses"),
    (Changes::FDB, "fdb"),
    (Changes::NEIGHBOURS, "neighbours"),
    (Changes::ROUTES4, "routes4"),
    (Changes::ROUTES6, "routes6"),
    (Changes::RULES, "rules"),
    (Changes::QDISCS, "qdiscs"),
    (Changes::SWITCHES, "switches"),
];

impl Changes {
    /// Nothing.
    pub const NONE: Changes = Changes(0);
    /// Interfaces, bridge and bridge port attributes included.
    pub const LINKS: Changes = Changes(1 << 0);
    /// Addresses of interfaces, both families.
    pub const ADDRESSES: Changes = Changes(1 << 1);
    /// Forwarding databases of bridges.
    pub const FDB: Changes = Changes(1 << 2);
    /// ARP and ND caches.
    pub const NEIGHBOURS: Changes = Changes(1 << 3);
    /// IPv4 routes of the main and the local table.
    pub const ROUTES4: Changes = Changes(1 << 4);
    /// IPv6 routes of the main and the local table.
    pub const ROUTES6: Changes = Changes(1 << 5);
    /// Policy rules, both families.
    pub const RULES: Changes = Changes(1 << 6);
    /// Queueing disciplines. That one came or went is told as a change of [`Changes::LINKS`].
    pub const QDISCS: Changes = Changes(1 << 7);
    /// A `forwarding` sysctl: it is not part of the world, read it again ([`crate::kernel::read_switches`]).
    pub const SWITCHES: Changes = Changes(1 << 8);
    /// Every part that a dump reads, that is all but [`Changes::SWITCHES`].
    pub const WORLD: Changes = Changes((1 << 8) - 1);
    /// Everything.
    pub const ALL: Changes = Changes((1 << 9) - 1);

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the two sets have a part in common.
    pub const fn intersects(self, other: Changes) -> bool {
        self.0 & other.0 != 0
    }

    /// The parts that are in both sets.
    pub const fn and(self, other: Changes) -> Changes {
        Changes(self.0 & other.0)
    }
}

impl BitOr for Changes {
    type Output = Changes;
    fn bitor(self, other: Changes) -> Changes {
        Changes(self.0 | other.0)
    }
}

impl BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Changes) {
        self.0 |= other.0;
    }
}

impl Sub for Changes {
    type Output = Changes;
    fn sub(self, other: Changes) -> Changes {
        Changes(self.0 & !other.0)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (part, name) in NAMES {
            if self.intersects(part) {
                write!(out, "{separator}{name}")?;
                separator = ", ";
            }
        }
        if self.is_empty() { out.write_str("nothing") } else { Ok(()) }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Changes({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_combine_and_read_well() {
        let set = Changes::FDB | Changes::ROUTES6;
        assert_eq!(set.to_string(), "fdb, routes6");
        assert_eq!((set - Changes::FDB).to_string(), "routes6");
        assert_eq!(Changes::NONE.to_string(), "nothing");
        assert!(Changes::ALL.intersects(Changes::SWITCHES) && !Changes::WORLD.intersects(Changes::SWITCHES));
        let all = NAMES.iter().fold(Changes::NONE, |all, (part, _)| all | *part);
        assert_eq!(all, Changes::ALL);
    }
}
