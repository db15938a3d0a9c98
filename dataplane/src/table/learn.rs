//! Learning: telling the loader of source MAC addresses that the bridge would have learned had it seen the frame.
//!
//! A worker never changes the FDB. It reports a new or moved address upwards, the loader checks it and writes it to the
//! kernel's FDB, and the mirror publishes it. Reports are limited so that a pod that makes up addresses can neither flood
//! the loader nor crowd out other pods: every port has its own allowance per second
//! ([`limits::MAX_LEARN_REPORTS_PER_SECOND`]), and an address that was just reported is not reported again.

use crate::addr::{MacAddr, PortId};
use crate::limits;

/// A source MAC address was seen on a pod port where the FDB does not have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LearnReport {
    /// Where it was seen.
    pub port: PortId,
    /// The address.
    pub mac: MacAddr,
}

/// Recently reported addresses that one worker remembers.
const RECENT: usize = 256;

/// Decides which sightings become reports. One per worker.
#[derive(Debug)]
pub struct LearnLimiter {
    second: u32,
    /// Reports of the current second, by port.
    spent: Box<[u32]>,
    /// Direct-mapped memory of reports of the current second.
    recent: Box<[Option<(LearnReport, u64)>; RECENT]>,
}

impl Default for LearnLimiter {
    fn default() -> Self {
        LearnLimiter { second: 0, spent: vec![0; limits::MAX_PORTS].into(), recent: Box::new([None; RECENT]) }
    }
}

/// What became of a sighting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting {
    /// Report it.
    Report,
    /// It was reported within this second.
    Known,
    /// The port's allowance is spent.
    Limited,
}

impl LearnLimiter {
    /// Judges a sighting at `now_s`, seconds of any monotonic clock, against tables of `generation`. A repeat is only
    /// suppressed while the tables are the same: an address that was taken away in between is reported again at once.
    #[inline]
    pub fn sight(&mut self, report: LearnReport, generation: u64, now_s: u32) -> Sighting {
        if now_s != self.second {
            self.second = now_s;
            self.spent.fill(0);
            self.recent.fill(None);
        }
        // By the address alone: a sighting elsewhere overwrites it, so one that moves back is reported again.
        let slot = &mut self.recent[report.mac.to_u64() as usize % RECENT];
        if *slot == Some((report, generation)) {
            return Sighting::Known;
        }
        let Some(spent) = self.spent.get_mut(report.port.index()) else { return Sighting::Limited };
        if *spent >= limits::MAX_LEARN_REPORTS_PER_SECOND {
            return Sighting::Limited;
        }
        *spent += 1;
        *slot = Some((report, generation));
        Sighting::Report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(port: u16, mac: u64) -> LearnReport {
        LearnReport { port: PortId(port), mac: MacAddr::from_u64(mac) }
    }

    #[test]
    fn a_port_that_makes_up_addresses_spends_only_its_own_allowance() {
        let mut limiter = LearnLimiter::default();
        let made_up =
            (0..1000).filter(|mac| limiter.sight(report(1, 0x0200_0000_0000 + mac), 1, 7) == Sighting::Report);
        assert_eq!(made_up.count() as u32, limits::MAX_LEARN_REPORTS_PER_SECOND);
        assert_eq!(limiter.sight(report(2, 0x0200_0000_ffff), 1, 7), Sighting::Report);
        assert_eq!(limiter.sight(report(1, 0x0200_0000_ffff), 1, 7), Sighting::Limited);
        assert_eq!(limiter.sight(report(1, 0x0200_0000_ffff), 1, 8), Sighting::Report);
    }

    #[test]
    fn the_same_sighting_is_reported_once_a_second() {
        let mut limiter = LearnLimiter::default();
        assert_eq!(limiter.sight(report(1, 2), 1, 1), Sighting::Report);
        assert_eq!(limiter.sight(report(1, 2), 1, 1), Sighting::Known);
        assert_eq!(limiter.sight(report(2, 2), 1, 1), Sighting::Report, "moved to another port");
        assert_eq!(limiter.sight(report(2, 2), 2, 1), Sighting::Report, "the tables have changed since");
        assert_eq!(limiter.sight(report(1, 2), 2, 1), Sighting::Report, "and moved back");
        assert_eq!(limiter.sight(report(1, 2), 2, 1), Sighting::Known);
        assert_eq!(limiter.sight(report(1, 2), 2, 2), Sighting::Report);
    }
}
