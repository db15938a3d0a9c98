//! When a worker had better not look again at once.
//!
//! A worker that is faster than its sender finds one packet at each look. Every look pulls the cache lines of the ring's index
//! and newest descriptors over to the worker's CPU, and the sender's, on which the kernel fills the ring, has to fetch them back
//! for its next packet. The fast one thereby slows down the slow one, and handles packets singly, each with a system call of its
//! own. A short pause lets some packets come together. Only dense traffic is made to wait: a request and its answer are not.

use crate::limits;

/// How densely packets come, as one worker sees it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When it had looked and found packets for the last time.
    found_ns: u64,
}

impl Pace {
    /// Until when to leave the rings alone after a turn that found `packets` and ended at `now_ns`. `None` if they come so
    /// sparsely that whoever sent them may be waiting for an answer, or so densely that they come together by themselves.
    ///
    /// Turns of [`limits::PACE_PACKETS`] and more need not be told here.
    #[inline]
    pub fn pause(&mut self, packets: usize, now_ns: u64) -> Option<u64> {
        let since_ns = now_ns.saturating_sub(self.found_ns);
        self.found_ns = now_ns;
        let is_dense = since_ns <= packets as u64 * limits::PACE_PACKET_NS;
        (is_dense && packets < limits::PACE_PACKETS).then_some(now_ns + limits::PACE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a worker look at packets that come every `interval_ns`, of which each costs it `cost_ns`, and a look without any
    /// 50 ns. Returns the packets it found in the last of 1,000 turns that found some, and whether it paused after it.
    fn stream(interval_ns: u64, cost_ns: u64) -> (u64, bool) {
        let mut pace = Pace::default();
        let (mut now_ns, mut taken, mut last) = (1_000_000, 1_000_000 / interval_ns, (0, false));
        let mut turns = 0;
        while turns < 1000 {
            let packets = now_ns / interval_ns - taken;
            taken += packets;
            now_ns += 50 + packets * cost_ns;
            if packets != 0 {
                let pause = pace.pause(packets as usize, now_ns);
                last = (packets, pause.is_some());
                now_ns = pause.unwrap_or(now_ns);
                turns += 1;
            }
        }
        last
    }

    #[test]
    fn packets_of_a_fast_sender_come_together() {
        let (packets, paused) = stream(700, 400);
        assert!((3..=8).contains(&packets) && paused, "{packets} of them");
        let (packets, paused) = stream(250, 150);
        assert!((8..=limits::PACE_PACKETS as u64).contains(&packets) && paused, "{packets} of them");
    }

    #[test]
    fn a_sender_that_is_slow_is_not_made_to_wait() {
        for interval_ns in [2_200, 5_000, 20_000, 1_000_000] {
            assert_eq!(stream(interval_ns, 400), (1, false), "{interval_ns} ns between packets");
        }
    }

    #[test]
    fn an_answer_that_follows_a_request_is_not_made_to_wait() {
        let mut pace = Pace::default();
        for request_ns in (0..100_000).step_by(20_000) {
            assert_eq!(pace.pause(1, 50_000 + request_ns), None);
            assert_eq!(pace.pause(1, 50_000 + request_ns + 3_000), None, "3 us of work in between");
        }
    }

    #[test]
    fn a_full_turn_is_followed_by_a_look_at_once() {
        let mut pace = Pace::default();
        assert_eq!(pace.pause(limits::PACE_PACKETS, 1_000), None);
        assert_eq!(pace.pause(limits::PACE_PACKETS - 1, 2_000), Some(2_000 + limits::PACE_NS), "almost full");
    }

    #[test]
    fn a_clock_that_ran_backwards_is_no_reason_to_wait_long() {
        let mut pace = Pace::default();
        pace.pause(1, 1_000_000);
        assert_eq!(pace.pause(1, 10), Some(10 + limits::PACE_NS));
    }
}
