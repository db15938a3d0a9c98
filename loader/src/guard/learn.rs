//! Which reports of workers the kernel's bridge is taught.
//!
//! A report is refused if it would move a static entry, if the address is known to be another pod's or cannot be a station's,
//! or if the port has learned as many addresses as it may. What was taught since the tables were read counts as well, since
//! the mirror tells of it only later.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use podlane_dataplane::table::Tables;
use podlane_dataplane::table::learn::LearnReport;
use podlane_dataplane::{MacAddr, PortId, limits};

/// Judges the reports of one moment.
#[derive(Debug)]
pub struct Learner<'a> {
    tables: &'a Tables,
    owners: BTreeMap<MacAddr, u32>,
    /// Learned addresses of each port.
    counts: HashMap<PortId, usize>,
    /// What was taught in this moment.
    taught: HashSet<LearnReport>,
}

impl<'a> Learner<'a> {
    /// By these tables; `owners` are the interfaces of the pods that addresses are known to be of.
    pub fn new(tables: &'a Tables, owners: BTreeMap<MacAddr, u32>) -> Self {
        let mut counts = HashMap::new();
        for (_, entry) in tables.fdb.iter().filter(|(_, entry)| !entry.is_static) {
            *counts.entry(entry.port).or_default() += 1;
        }
        Learner { tables, owners, counts, taught: HashSet::new() }
    }

    /// Whether the bridge may learn what `report` says, of the port's interface `ifindex`; counted as learned then.
    pub fn may_learn(&mut self, report: LearnReport, ifindex: u32) -> bool {
        let known = self.tables.fdb.get(report.mac);
        if !report.mac.is_station()
            || known.is_some_and(|entry| entry.is_static)
            || self.owners.get(&report.mac).is_some_and(|owner| *owner != ifindex)
        {
            return false;
        }
        if known.is_some_and(|entry| entry.port == report.port) || self.taught.contains(&report) {
            return true;
        }
        let count = self.counts.entry(report.port).or_default();
        let has_room = *count < limits::MAX_LEARNED_PER_PORT;
        if has_room {
            *count += 1;
            self.taught.insert(report);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podlane_dataplane::table::{Fdb, FdbEntry};

    use super::*;

    fn report(port: u16, mac: u64) -> LearnReport {
        LearnReport { port: PortId(port), mac: MacAddr::from_u64(0x0200_0000_0000 + mac) }
    }

    fn tables(entries: &[(u16, u64, bool)]) -> Tables {
        let entry = |&(port, mac, is_static): &(u16, u64, bool)| {
            (report(port, mac).mac, FdbEntry { port: PortId(port), is_static, activity: 0 })
        };
        Tables { fdb: Arc::new(Fdb::new(entries.iter().map(entry)).0), ..Tables::default() }
    }

    #[test]
    fn a_flood_teaches_so_many_and_no_more_even_before_the_tables_tell() {
        let tables = tables(&[(1, 0, false), (2, 1, false)]);
        let mut learner = Learner::new(&tables, BTreeMap::new());
        let taught = (100..10_000).filter(|mac| learner.may_learn(report(1, *mac), 11)).count();
        assert_eq!(taught, limits::MAX_LEARNED_PER_PORT - 1);
        assert!(learner.may_learn(report(1, 0), 11), "what is known is refreshed");
        assert!(learner.may_learn(report(2, 55), 12), "another port's allowance is its own");
        assert!(!learner.may_learn(report(1, 1), 11), "nor does the flooding port get others' addresses");
    }

    #[test]
    fn static_entries_and_other_pods_addresses_stay_where_they_are() {
        let tables = tables(&[(2, 1, true), (2, 2, false)]);
        let owners = BTreeMap::from([(report(2, 2).mac, 12), (report(3, 3).mac, 13)]);
        let mut learner = Learner::new(&tables, owners);
        for mac in [1, 2, 3] {
            assert!(!learner.may_learn(report(1, mac), 11), "{mac}");
        }
        assert!(learner.may_learn(report(3, 3), 13), "its own");
        let group = LearnReport { port: PortId(1), mac: MacAddr::BROADCAST };
        assert!(!learner.may_learn(group, 11));
    }
}
