//! Counters: one writer each, read by the loader at any time.

use super::counter::Counter;
use super::residence::Residence;
use crate::addr::PortId;
use crate::forward::{DropReason, PassReason};
use crate::limits;

/// What one worker did for one port. Receive counts stand at the ingress port, transmit counts at the egress port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Packets taken from the port's RX rings: the sum of `forwarded`, `kernel` and `dropped`.
    pub rx: Counter,
    /// Packets put into some port's TX ring, or handed to the worker that does.
    pub forwarded: Counter,
    /// Their bytes, Ethernet header included.
    pub forwarded_bytes: Counter,
    /// Packets given back to the kernel through the host port, by reason.
    pub kernel: [Counter; PassReason::COUNT],
    /// Packets dropped, by reason.
    pub dropped: [Counter; DropReason::COUNT],
    /// Packets put into this port's TX rings.
    pub tx: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Packets that another worker received, counted as forwarded and handed over for this port, and that could not be
    /// sent, by reason.
    pub tx_dropped: [Counter; DropReason::COUNT],
}

impl PortCounters {
    /// All counters back to 0, while no worker serves the port.
    pub fn reset(&self) {
        let single = [&self.rx, &self.forwarded, &self.forwarded_bytes, &self.tx, &self.tx_bytes];
        single.into_iter().chain(&self.kernel).chain(&self.dropped).chain(&self.tx_dropped).for_each(Counter::reset);
    }
}

/// Everything that one worker counts.
#[derive(Debug)]
pub struct WorkerCounters {
    ports: Box<[PortCounters]>,
    /// Receive batches with at least one packet.
    pub batches: Counter,
    /// Times that it went to sleep.
    pub sleeps: Counter,
    /// Times that a frame, a command or a hand-off ended its sleep.
    pub wakeups: Counter,
    /// Transmit and wake-up system calls.
    pub tx_syscalls: Counter,
    /// Packets handed to other workers.
    pub handoff_out: Counter,
    /// Packets taken from other workers.
    pub handoff_in: Counter,
    /// Nanoseconds in which it had packets: from the last look that found none to the next one, without the pauses in which it
    /// lets packets come together.
    pub busy_ns: Counter,
    /// Learn reports made.
    pub learn_reports: Counter,
    /// Sightings that a port's allowance suppressed.
    pub learn_limited: Counter,
    /// Times that a fill ring could not be topped up because no frame was free.
    pub fill_starved: Counter,
    /// How long packets stayed.
    pub residence: Residence,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        WorkerCounters {
            ports: (0..limits::MAX_PORTS).map(|_| PortCounters::default()).collect(),
            batches: Counter::default(),
            sleeps: Counter::default(),
            wakeups: Counter::default(),
            tx_syscalls: Counter::default(),
            handoff_out: Counter::default(),
            handoff_in: Counter::default(),
            busy_ns: Counter::default(),
            learn_reports: Counter::default(),
            learn_limited: Counter::default(),
            fill_starved: Counter::default(),
            residence: Residence::default(),
        }
    }
}

impl WorkerCounters {
    /// The counters of one port.
    ///
    /// # Panics
    /// If the number is not below [`limits::MAX_PORTS`]; the loader hands the numbers out.
    #[inline]
    pub fn port(&self, port: PortId) -> &PortCounters {
        &self.ports[port.index()]
    }
}
