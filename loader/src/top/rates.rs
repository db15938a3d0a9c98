//! From two answers of the daemon to rates: what changed, divided by the time in between.
//!
//! The time is the daemon's own ([`Status::uptime_s`] of both answers), so a slow terminal or a stopped `top` makes no rate
//! wrong. Counters begin anew with a daemon and with a port; what is not of the same life is not compared and has no rate.

use std::collections::BTreeMap;

use crate::status::{PortKind, PortStatus, Status, WorkerStatus};

/// Seconds between two answers below which no rate is told.
const LEAST_SECONDS: f64 = 0.001;

/// A rate, in units a second; `None` where two samples cannot be compared.
pub type Rate = Option<f64>;

/// Everything that changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Seconds between the two answers; `None` while there is only one.
    pub seconds: Option<f64>,
    /// Ports of pods, uplinks and the host port.
    pub ports: Vec<PortRates>,
    /// Workers.
    pub workers: Vec<WorkerRates>,
    /// What was not forwarded, by port and reason.
    pub reasons: Vec<ReasonRate>,
    /// All ports together.
    pub total: TotalRates,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortRates {
    /// The pod, or else the interface.
    pub label: String,
    /// The interface.
    pub interface: String,
    /// `pod`, `uplink` or `host`.
    pub kind: &'static str,
    /// The path of what comes in through it.
    pub path: String,
    /// `forwarding`, or another word.
    pub state: String,
    /// Packets that came in.
    pub rx_packets: Rate,
    /// Bits that came in, Ethernet headers included.
    pub rx_bits: Rate,
    /// Packets that Podlane sent out.
    pub tx_packets: Rate,
    /// Their bits.
    pub tx_bits: Rate,
    /// Packets left to the kernel, by the program or by a worker.
    pub passed: Rate,
    /// Packets lost.
    pub dropped: Rate,
    /// The reason for which most were lost.
    pub drop_reason: String,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerRates {
    /// Its number.
    pub id: u32,
    /// Its CPU.
    pub cpu: u32,
    /// The share of the time in which it had packets, 0 to 1.
    pub load: Rate,
    /// Packets that it received or took over.
    pub packets: Rate,
    /// Packets of one batch.
    pub batch: Rate,
    /// Nanoseconds for one packet.
    pub ns_per_packet: Rate,
    /// Packets dropped.
    pub dropped: Rate,
    /// Times that it went to sleep.
    pub sleeps: Rate,
    /// System calls to transmit.
    pub calls: Rate,
    /// Packets handed to other workers.
    pub handed_out: Rate,
    /// UMEM frames that wait in its RX rings.
    pub rx_frames: u64,
    /// UMEM frames on their way out.
    pub tx_frames: u64,
    /// UMEM frames to receive into.
    pub fill_frames: u64,
    /// UMEM frames that others handed to it.
    pub handoff_frames: u64,
    /// Milliseconds since its last sign of life.
    pub heartbeat_age_ms: f64,
}

/// What becomes of packets that Podlane does not forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Lost.
    Dropped,
    /// The kernel's.
    Passed,
}

impl Fate {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Fate::Dropped => "dropped",
            Fate::Passed => "passed",
        }
    }
}

/// One reason at one port.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasonRate {
    /// The port's label.
    pub label: String,
    /// What became of the packets.
    pub fate: Fate,
    /// Why; a name that `podlane explain` knows.
    pub reason: String,
    /// Packets a second.
    pub rate: Rate,
    /// Packets since the counters began.
    pub total: u64,
}

/// All ports together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TotalRates {
    /// Packets that came in.
    pub rx_packets: Rate,
    /// Their bits.
    pub rx_bits: Rate,
    /// Of these, forwarded by workers.
    pub by_workers: Rate,
    /// Of these, forwarded in the kernel by the tc program.
    pub in_kernel: Rate,
    /// Of these, left to the kernel.
    pub passed: Rate,
    /// Of these, lost.
    pub dropped: Rate,
}

/// What changed from one answer to the next; without an earlier one, or with one of another daemon, no rates.
pub fn between(before: Option<&Status>, after: &Status) -> Rates {
    let before = before.filter(|before| before.pid == after.pid && before.instance == after.instance);
    let seconds = before.map(|before| after.uptime_s - before.uptime_s).filter(|seconds| *seconds >= LEAST_SECONDS);
    let span = before.zip(seconds);
    let earlier_port = |port: &PortStatus| {
        let (before, seconds) = span?;
        let earlier = before.ports.iter().find(|earlier| earlier.id == port.id)?;
        let is_same = earlier.ifindex == port.ifindex && have_grown(earlier, port);
        is_same.then_some((earlier, seconds))
    };
    let earlier_worker = |worker: &WorkerStatus| {
        let (before, seconds) = span?;
        let earlier = before.workers.iter().find(|earlier| earlier.id == worker.id)?;
        let is_same = earlier.rx <= worker.rx && earlier.busy_ns <= worker.busy_ns && earlier.batches <= worker.batches;
        is_same.then_some((earlier, seconds))
    };
    let mut rates = Rates { seconds, ..Rates::default() };
    for port in &after.ports {
        let earlier = earlier_port(port);
        rates.reasons.extend(reasons(port, earlier));
        rates.ports.push(port_rates(port, earlier));
        rates.total.add(port, earlier);
    }
    rates.workers = after.workers.iter().map(|worker| worker_rates(worker, earlier_worker(worker))).collect();
    rates
}

/// Whether a port's counters can be those of the same port later: none has shrunk.
fn have_grown(earlier: &PortStatus, later: &PortStatus) -> bool {
    let counters = |port: &PortStatus| {
        [port.rx_packets, port.rx_bytes, port.tx_bytes, port.repeated_out_bytes, port.forwarded, port.repeated]
    };
    counters(earlier).iter().zip(counters(later)).all(|(earlier, later)| *earlier <= later)
}

/// The growth a second of a number of `later` since `earlier`; `None` if it shrank.
fn growth<T>(later: &T, earlier: Option<(&T, f64)>, number: impl Fn(&T) -> u64) -> Rate {
    let (earlier, seconds) = earlier?;
    let grown = number(later).checked_sub(number(earlier))?;
    Some(grown as f64 / seconds)
}

fn passed(port: &PortStatus) -> u64 {
    port.passed.total.saturating_add(port.kernel.total)
}

fn dropped(port: &PortStatus) -> u64 {
    let lost = port.dropped.total.saturating_add(port.tx_dropped.total).saturating_add(port.socket_drops.total());
    lost.saturating_add(port.guarded.total)
}

fn port_rates(port: &PortStatus, earlier: Option<(&PortStatus, f64)>) -> PortRates {
    let rate = |number: &dyn Fn(&PortStatus) -> u64| growth(port, earlier, number);
    let bits = |number: &dyn Fn(&PortStatus) -> u64| rate(number).map(|bytes| bytes * 8.0);
    let worst = reasons(port, earlier)
        .into_iter()
        .filter(|reason| reason.fate == Fate::Dropped && reason.rate.is_some_and(|rate| rate > 0.0))
        .max_by(|one, other| one.rate.unwrap_or_default().total_cmp(&other.rate.unwrap_or_default()));
    PortRates {
        label: port.label(),
        interface: port.name.clone(),
        kind: match port.kind {
            PortKind::Pod => "pod",
            PortKind::Uplink => "uplink",
            PortKind::Host => "host",
        },
        path: if port.kind == PortKind::Host { "-".to_owned() } else { port.path.clone() },
        state: port.state.clone(),
        rx_packets: rate(&|port| port.rx_packets),
        rx_bits: bits(&|port| port.rx_bytes),
        tx_packets: rate(&|port| port.tx_packets.saturating_add(port.repeated_out)),
        tx_bits: bits(&|port| port.tx_bytes.saturating_add(port.repeated_out_bytes)),
        passed: rate(&passed),
        dropped: rate(&dropped),
        drop_reason: worst.map(|worst| worst.reason).unwrap_or_default(),
    }
}

fn worker_rates(worker: &WorkerStatus, earlier: Option<(&WorkerStatus, f64)>) -> WorkerRates {
    let rate = |number: &dyn Fn(&WorkerStatus) -> u64| growth(worker, earlier, number);
    let per = |many: Rate, few: Rate| many.zip(few).filter(|(_, few)| *few > 0.0).map(|(many, few)| many / few);
    let packets = rate(&|worker| worker.rx.saturating_add(worker.handoff_in));
    let busy_ns = rate(&|worker| worker.busy_ns);
    WorkerRates {
        id: worker.id,
        cpu: worker.cpu,
        load: busy_ns.map(|ns| (ns / 1e9).min(1.0)),
        packets,
        batch: per(rate(&|worker| worker.rx), rate(&|worker| worker.batches)),
        ns_per_packet: per(busy_ns, packets),
        dropped: rate(&|worker| worker.dropped),
        sleeps: rate(&|worker| worker.sleeps),
        calls: rate(&|worker| worker.tx_syscalls),
        handed_out: rate(&|worker| worker.handoff_out),
        rx_frames: worker.rx_frames,
        tx_frames: worker.tx_frames,
        fill_frames: worker.fill_frames,
        handoff_frames: worker.handoff_frames,
        heartbeat_age_ms: worker.heartbeat_age_ms,
    }
}

/// Packets by fate and reason; what a socket could not take and what could not be sent is lost like the rest.
fn counted(port: &PortStatus) -> BTreeMap<(Fate, &str), u64> {
    let mut all: BTreeMap<(Fate, &str), u64> = BTreeMap::new();
    let parts = [
        (Fate::Dropped, &port.guarded),
        (Fate::Dropped, &port.dropped),
        (Fate::Dropped, &port.tx_dropped),
        (Fate::Passed, &port.passed),
        (Fate::Passed, &port.kernel),
    ];
    let named = parts
        .into_iter()
        .flat_map(|(fate, parts)| parts.by_reason.iter().map(move |(reason, count)| (fate, reason.as_str(), *count)));
    let of_sockets = port.socket_drops.parts().map(|(reason, count, _)| (Fate::Dropped, reason, count));
    for (fate, reason, count) in named.chain(of_sockets).filter(|(_, _, count)| *count > 0) {
        let sum = all.entry((fate, reason)).or_default();
        *sum = sum.saturating_add(count);
    }
    all
}

fn reasons(port: &PortStatus, earlier: Option<(&PortStatus, f64)>) -> Vec<ReasonRate> {
    let before = earlier.map(|(earlier, seconds)| (counted(earlier), seconds));
    let rate = |key: &(Fate, &str), total: u64| {
        let (before, seconds) = before.as_ref()?;
        // A reason that is new has not occurred before.
        let grown = total.checked_sub(before.get(key).copied().unwrap_or(0))?;
        Some(grown as f64 / seconds)
    };
    let told = counted(port).into_iter().map(|(key, total)| ReasonRate {
        label: port.label(),
        fate: key.0,
        reason: key.1.to_owned(),
        rate: rate(&key, total),
        total,
    });
    told.collect()
}

impl TotalRates {
    /// Ports that cannot be compared are left out; the host port receives nothing.
    fn add(&mut self, port: &PortStatus, earlier: Option<(&PortStatus, f64)>) {
        let add = |sum: &mut Rate, factor: f64, number: &dyn Fn(&PortStatus) -> u64| {
            if let Some(rate) = growth(port, earlier, number) {
                *sum = Some(sum.unwrap_or_default() + factor * rate);
            }
        };
        add(&mut self.rx_packets, 1.0, &|port| port.rx_packets);
        add(&mut self.rx_bits, 8.0, &|port| port.rx_bytes);
        add(&mut self.by_workers, 1.0, &|port| port.forwarded);
        add(&mut self.in_kernel, 1.0, &|port| port.repeated);
        add(&mut self.passed, 1.0, &passed);
        add(&mut self.dropped, 1.0, &dropped);
    }
}
