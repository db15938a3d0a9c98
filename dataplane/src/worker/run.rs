//! The loop around a worker: heartbeat, commands, turns, and what to do when there is nothing to do.

use std::ops::ControlFlow;

use super::pace::Pace;
use super::{Command, Worker, WorkerCounters};
use crate::afxdp::{Heartbeat, QueueIo, Slept, Waiter, clock};
use crate::limits;
use crate::table::{Reader, Tables};

/// What a worker without work does: it keeps looking for `spin_us`, then sleeps until a frame, a command or a hand-off
/// arrives. It wakes every [`limits::HEARTBEAT_PERIOD_MS`] for its heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    /// Microseconds of looking before sleeping. More lowers the latency of sparse traffic by the cost of a wake-up and
    /// burns the core for longer; 0 sleeps at once.
    pub spin_us: u32,
}

/// Runs `worker` on the calling thread until it is told to stop, pinned to `cpu` where given.
pub fn run<Q: QueueIo>(
    mut worker: Worker<Q>,
    mut tables: Reader,
    heartbeat: Heartbeat,
    waiter: Waiter,
    idle: IdlePolicy,
    cpu: Option<usize>,
) {
    if let Some(id) = cpu {
        // The loader has checked that the CPU exists and is allowed; should it have been taken away since, an unpinned
        // worker is better than none.
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let mut spin_ns = u64::from(idle.spin_us) * 1000;
    let mut idle_since_ns = None;
    let mut busy = Busy { since_ns: clock::precise_ns(), noted_ns: 0 };
    let mut busy_turns = 0u32;
    let mut nap = Nap::default();
    let mut pace = Pace::default();
    loop {
        let now_ns = clock::coarse_ns();
        heartbeat.beat(now_ns);
        while let Some(command) = worker.next_command() {
            if let Command::SetIdle(idle) = command {
                spin_ns = u64::from(idle.spin_us) * 1000;
            } else if obey(&mut worker, &waiter, command, tables.load()).is_break() {
                return;
            }
        }
        let packets = worker.turn(tables.load(), (now_ns / 1_000_000_000) as u32);
        if packets != 0 {
            idle_since_ns = None;
            busy_turns = busy_turns.wrapping_add(1);
            if now_ns >= busy.noted_ns + BUSY_NOTE_NS {
                busy.note(now_ns, worker.counters());
            }
            if busy_turns.is_multiple_of(limits::UNWATCH_TURNS) {
                worker.unwatch_busy(&waiter);
            }
            if packets < limits::PACE_PACKETS {
                let now_ns = clock::precise_ns();
                if let Some(until_ns) = pace.pause(packets, now_ns) {
                    busy.idle(now_ns, true, worker.counters());
                    busy.idle(wait_until(until_ns), false, worker.counters());
                }
            }
            continue;
        }
        let now_ns = clock::precise_ns();
        busy.idle(now_ns, idle_since_ns.is_none(), worker.counters());
        let since_ns = *idle_since_ns.get_or_insert(now_ns);
        if now_ns - since_ns < spin_ns {
            std::hint::spin_loop();
            continue;
        }
        worker.watch_all(&waiter);
        let nap_ms = nap.length_ms(worker.unsent());
        let slept = waiter.sleep(nap_ms, || worker.work_waits());
        worker.counters().sleeps.add(u64::from(slept != Slept::NotAtAll));
        worker.counters().wakeups.add(u64::from(slept == Slept::UntilWoken));
        // Woken for nothing but the heartbeat, it goes back to sleep at once.
        idle_since_ns = Some(0);
        busy.since_ns = clock::precise_ns();
    }
}

/// Looks at nothing but the clock until it says `until_ns`; what it says then.
fn wait_until(until_ns: u64) -> u64 {
    loop {
        let now_ns = clock::precise_ns();
        if now_ns >= until_ns {
            return now_ns;
        }
        std::hint::spin_loop();
    }
}

/// How long a worker sleeps at most: less while there are packets that the kernel did not take, since it has to come by to offer
/// them again.
#[derive(Debug, Default)]
struct Nap {
    /// Pieces that were left the last time.
    unsent: usize,
    length_ms: u64,
}

impl Nap {
    /// The length of the next one, `unsent` pieces being left, milliseconds.
    fn length_ms(&mut self, unsent: usize) -> u64 {
        let stuck = unsent == self.unsent;
        self.unsent = unsent;
        self.length_ms = match unsent {
            0 => limits::HEARTBEAT_PERIOD_MS,
            _ if stuck => (2 * self.length_ms).min(limits::HEARTBEAT_PERIOD_MS),
            _ => limits::TX_RETRY_MS,
        };
        self.length_ms
    }
}

/// How long a worker without a pause may count before what it was busy is written down.
const BUSY_NOTE_NS: u64 = 20_000_000;

/// The time in which a worker has packets: from the last look that found none to the next. The clock that tells it is asked
/// only by a worker that looked in vain, and a few times a second.
struct Busy {
    /// Up to here everything is counted, by the precise clock.
    since_ns: u64,
    /// When it was last written down under load, by the coarse one.
    noted_ns: u64,
}

impl Busy {
    /// Counts what a worker has been busy that still is.
    fn note(&mut self, coarse_ns: u64, counters: &WorkerCounters) {
        self.idle(clock::precise_ns(), true, counters);
        self.noted_ns = coarse_ns;
    }

    /// Counts the time up to now if it `was_busy`, and leaves it out if not.
    fn idle(&mut self, now_ns: u64, was_busy: bool, counters: &WorkerCounters) {
        if was_busy {
            counters.busy_ns.add(now_ns.saturating_sub(self.since_ns));
        }
        self.since_ns = now_ns;
    }
}

/// Keeps what the worker sleeps on in step with what it serves.
fn obey<Q: QueueIo>(worker: &mut Worker<Q>, waiter: &Waiter, command: Command<Q>, tables: &Tables) -> ControlFlow<()> {
    match &command {
        Command::AddQueue { queue, .. } => {
            // Without it the worker still finds the packets, at the latest when it wakes for its heartbeat.
            let _ = waiter.add(queue);
        }
        Command::RemovePort { port, .. } => worker.queues(*port).for_each(|queue| waiter.remove(queue)),
        _ => {}
    }
    worker.obey(command, tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_with_packets_that_were_not_taken_sleeps_shortly() {
        let mut nap = Nap::default();
        let mut lengths = |unsent: &[usize]| unsent.iter().map(|unsent| nap.length_ms(*unsent)).collect::<Vec<_>>();
        assert_eq!(lengths(&[0, 0]), [20, 20]);
        assert_eq!(lengths(&[300, 200, 100, 0]), [1, 1, 1, 20]);
        assert_eq!(lengths(&[7; 7]), [1, 2, 4, 8, 16, 20, 20], "of a device that is down, say");
        assert_eq!(lengths(&[8, 0, 8]), [1, 20, 1]);
    }

    #[test]
    fn time_without_packets_is_not_busy() {
        let counters = WorkerCounters::default();
        let mut busy = Busy { since_ns: 100, noted_ns: 0 };
        busy.idle(150, false, &counters);
        busy.idle(400, true, &counters);
        busy.idle(1000, false, &counters);
        assert_eq!(counters.busy_ns.get(), 250, "from the look that found nothing to the next one");
        busy.idle(900, true, &counters);
        assert_eq!(counters.busy_ns.get(), 250, "a clock that ran backwards adds nothing");
        busy.note(7, &counters);
        assert!(counters.busy_ns.get() > 250 && busy.noted_ns == 7);
        assert!(busy.since_ns > 900, "what was written down is not counted again");
    }
}
