//! Which of a status' numbers are counters, and how they are added up.

use podlane_dataplane::forward::DropReason;
use serde::{Deserialize, Serialize};

use crate::status::{
    Breakdown, LearningStatus, MirrorStatus, PortStatus, ResidenceStatus, SocketDrops, Status, TablesStatus,
    WorkerStatus,
};

/// Something that is counted.
pub trait Count: Clone + Default {
    /// Adds what was counted before.
    fn carry(&mut self, earlier: &Self);
}

impl Count for u64 {
    fn carry(&mut self, earlier: &Self) {
        *self = self.saturating_add(*earlier);
    }
}

impl Count for Breakdown {
    fn carry(&mut self, earlier: &Self) {
        for (reason, count) in &earlier.by_reason {
            self.by_reason.entry(reason.clone()).or_default().carry(count);
        }
        self.total = self.by_reason.values().fold(0, |sum, count| sum.saturating_add(*count));
    }
}

impl Count for SocketDrops {
    fn carry(&mut self, earlier: &Self) {
        self.rx_ring_full.carry(&earlier.rx_ring_full);
        self.fill_ring_empty.carry(&earlier.fill_ring_empty);
        self.other.carry(&earlier.other);
    }
}

impl Count for ResidenceStatus {
    fn carry(&mut self, earlier: &Self) {
        ResidenceStatus::carry(self, earlier);
    }
}

/// The counters among the fields of a part of the status.
macro_rules! sums {
    ($(#[$meta:meta])* $sums:ident of $status:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $sums {
            $(pub(crate) $field: $kind,)*
        }

        impl $sums {
            /// What a status tells.
            pub fn of(status: &$status) -> Self {
                $sums { $($field: status.$field.clone()),* }
            }

            /// Adds it to what a status tells.
            pub fn add_to(&self, status: &mut $status) {
                $(status.$field.carry(&self.$field);)*
            }
        }

        impl Count for $sums {
            fn carry(&mut self, earlier: &Self) {
                $(self.$field.carry(&earlier.$field);)*
            }
        }
    };
}

sums! {
    /// What is counted for a port.
    PortSums of PortStatus {
        path_switches: u64,
        rx_packets: u64,
        rx_bytes: u64,
        steered: u64,
        repeated: u64,
        repeated_bytes: u64,
        passed: Breakdown,
        guarded: Breakdown,
        socket_drops: SocketDrops,
        worker_rx: u64,
        forwarded: u64,
        forwarded_bytes: u64,
        kernel: Breakdown,
        dropped: Breakdown,
        tx_packets: u64,
        tx_bytes: u64,
        repeated_out: u64,
        repeated_out_bytes: u64,
        tx_dropped: Breakdown,
    }
}

sums! {
    /// What a worker counts.
    WorkerSums of WorkerStatus {
        rx: u64,
        forwarded: u64,
        kernel: u64,
        dropped: u64,
        batches: u64,
        sleeps: u64,
        wakeups: u64,
        tx_syscalls: u64,
        handoff_out: u64,
        handoff_in: u64,
        fill_starved: u64,
        busy_ns: u64,
        residence: ResidenceStatus,
    }
}

sums! {
    /// What the mirror counts.
    MirrorSums of MirrorStatus { messages: u64, redumps: u64, overruns: u64 }
}

sums! {
    /// What is counted of the tables.
    TablesSums of TablesStatus { publications: u64 }
}

sums! {
    /// What learning counts.
    LearningSums of LearningStatus { reports: u64, accepted: u64, limited: u64 }
}

/// What is counted once for the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSums {
    mirror: MirrorSums,
    tables: TablesSums,
    learning: LearningSums,
}

impl NodeSums {
    /// What a status tells.
    pub fn of(status: &Status) -> Self {
        NodeSums {
            mirror: MirrorSums::of(&status.mirror),
            tables: TablesSums::of(&status.tables),
            learning: LearningSums::of(&status.learning),
        }
    }

    /// Adds it to what a status tells.
    pub fn add_to(&self, status: &mut Status) {
        self.mirror.add_to(&mut status.mirror);
        self.tables.add_to(&mut status.tables);
        self.learning.add_to(&mut status.learning);
    }
}

impl PortSums {
    /// With accounts that add up: they were not read at one instant, and packets were on their way. What was counted only at
    /// its start is counted as lost with the daemon, what was counted only at its end as received; no count becomes less.
    pub fn settled(mut self) -> Self {
        for parts in [&mut self.passed, &mut self.guarded, &mut self.kernel, &mut self.dropped, &mut self.tx_dropped] {
            parts.carry(&Breakdown::default());
        }
        let sum = |parts: &[u64]| parts.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
        let mut lost = 0;
        let mut level = |received: u64, ends: u64| {
            lost += received.saturating_sub(ends);
            received.max(ends)
        };
        let finished = sum(&[self.forwarded, self.kernel.total, self.dropped.total]);
        self.worker_rx = level(self.worker_rx, finished);
        let taken = sum(&[self.worker_rx, self.socket_drops.total()]);
        let steered = level(self.steered, taken);
        self.worker_rx = self.worker_rx.saturating_add(steered - taken);
        let decided = sum(&[self.passed.total, self.guarded.total, self.repeated, steered]);
        self.rx_packets = level(self.rx_packets, decided);
        let unknown = self.rx_packets - decided;
        self.steered = steered.saturating_add(unknown);
        self.worker_rx = self.worker_rx.saturating_add(unknown);
        self.dropped.carry(&Breakdown::of([(DropReason::DaemonEnded.name(), lost)]));
        self
    }
}
