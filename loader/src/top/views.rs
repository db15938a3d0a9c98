//! What `top` shows: ports, workers and drops, as sheets.

use super::rates::{Fate, PortRates, Rate, Rates, ReasonRate, WorkerRates};
use super::sheet::{Cell, Column, Row, Sheet, Tone};
use crate::explain;

/// Share of its time from which on a worker has little to spare, and from which on it has nothing.
const BUSY: f64 = 0.7;
const FULL: f64 = 0.9;

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Ports with their rates.
    #[default]
    Ports,
    /// Workers.
    Workers,
    /// What is not forwarded, and why.
    Drops,
}

const fn column(title: &'static str, width: usize, rank: u8) -> Column {
    Column { title, width, rank }
}

const PORTS: &[Column] = &[
    column("POD", 11, 0),
    column("INTERFACE", 15, 6),
    column("KIND", 6, 7),
    column("PATH", 7, 3),
    column("RX PPS", 7, 0),
    column("RX BIT/S", 9, 1),
    column("TX PPS", 7, 2),
    column("TX BIT/S", 9, 2),
    column("PASSED", 7, 3),
    column("DROPPED", 8, 0),
    column("STATE", 10, 4),
    column("WHY DROPPED", 16, 5),
];

const WORKERS: &[Column] = &[
    column("WORKER", 7, 0),
    column("CPU", 4, 4),
    column("LOAD", 6, 0),
    column("PPS", 7, 0),
    column("BATCH", 6, 1),
    column("NS/PKT", 7, 0),
    column("RXQ", 6, 2),
    column("TXQ", 6, 2),
    column("FILL", 6, 3),
    column("DROPPED", 8, 1),
    column("SLEEPS", 7, 4),
    column("CALLS", 7, 6),
    column("HANDED", 7, 6),
    column("HANDQ", 6, 6),
    column("BEAT MS", 8, 5),
];

const DROPS: &[Column] = &[
    column("POD", 11, 0),
    column("FATE", 8, 2),
    column("REASON", 16, 0),
    column("PPS", 7, 0),
    column("TOTAL", 14, 1),
    column("MEANING", 100, 3),
];

impl View {
    /// In the order of their keys, 1 to 3.
    pub const ALL: [View; 3] = [View::Ports, View::Workers, View::Drops];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            View::Ports => "ports",
            View::Workers => "workers",
            View::Drops => "drops",
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [Column] {
        match self {
            View::Ports => PORTS,
            View::Workers => WORKERS,
            View::Drops => DROPS,
        }
    }

    /// The column by which it is sorted until somebody chooses another.
    pub fn first_sort(self) -> usize {
        let title = match self {
            View::Ports => "RX BIT/S",
            View::Workers => "WORKER",
            View::Drops => "PPS",
        };
        self.columns().iter().position(|column| column.title == title).unwrap_or(0)
    }

    /// Whether that is from the smallest number up.
    pub fn first_reversed(self) -> bool {
        self == View::Workers
    }

    /// Its rows, as they come.
    pub fn sheet(self, rates: &Rates) -> Sheet {
        let rows = match self {
            View::Ports => rates.ports.iter().map(port_row).collect(),
            View::Workers => rates.workers.iter().map(worker_row).collect(),
            View::Drops => {
                let mut reasons: Vec<_> = rates.reasons.iter().collect();
                reasons.sort_by_key(|reason| (reason.fate, std::cmp::Reverse(reason.total)));
                reasons.into_iter().map(reason_row).collect()
            }
        };
        Sheet { columns: self.columns(), rows }
    }
}

fn activity(rate: Rate) -> Tone {
    if rate.is_some_and(|rate| rate > 0.0) { Tone::Plain } else { Tone::Dim }
}

fn alarm(rate: Rate, tone: Tone) -> Tone {
    if rate.is_some_and(|rate| rate > 0.0) { tone } else { Tone::Dim }
}

fn port_row(port: &PortRates) -> Row {
    let is_off = port.state != "forwarding" && port.kind != "host";
    // What does not forward has no path; the word for why is more to the point, and column STATE is not always there.
    let path = if is_off { &port.state } else { &port.path };
    let state = if is_off { Tone::Warn } else { Tone::Plain };
    let cells = vec![
        Cell::Text(port.label.clone()),
        Cell::Text(port.interface.clone()),
        Cell::Text(port.kind.to_owned()),
        Cell::Text(path.clone()),
        Cell::Number(port.rx_packets),
        Cell::Number(port.rx_bits),
        Cell::Number(port.tx_packets),
        Cell::Number(port.tx_bits),
        Cell::Number(port.passed),
        Cell::Number(port.dropped),
        Cell::Text(port.state.clone()),
        Cell::Text(port.drop_reason.clone()),
    ];
    let tones = vec![
        state,
        Tone::Plain,
        Tone::Plain,
        state,
        activity(port.rx_packets),
        activity(port.rx_bits),
        activity(port.tx_packets),
        activity(port.tx_bits),
        activity(port.passed),
        alarm(port.dropped, Tone::Bad),
        state,
        Tone::Bad,
    ];
    Row { cells, tones }
}

fn worker_row(worker: &WorkerRates) -> Row {
    let load = match worker.load {
        Some(load) if load >= FULL => Tone::Bad,
        Some(load) if load >= BUSY => Tone::Warn,
        _ => Tone::Plain,
    };
    let cells = vec![
        Cell::Count(worker.id.into()),
        Cell::Count(worker.cpu.into()),
        Cell::Share(worker.load),
        Cell::Number(worker.packets),
        Cell::Number(worker.batch),
        Cell::Number(worker.ns_per_packet),
        Cell::Count(worker.rx_frames),
        Cell::Count(worker.tx_frames),
        Cell::Count(worker.fill_frames),
        Cell::Number(worker.dropped),
        Cell::Number(worker.sleeps),
        Cell::Number(worker.calls),
        Cell::Number(worker.handed_out),
        Cell::Count(worker.handoff_frames),
        Cell::Number(Some(worker.heartbeat_age_ms)),
    ];
    let mut tones = vec![Tone::Plain; cells.len()];
    (tones[2], tones[9]) = (load, alarm(worker.dropped, Tone::Bad));
    Row { cells, tones }
}

/// What a reason means; nothing for one of a newer daemon.
fn meaning(reason: &str) -> String {
    explain::named(reason).map(|told| told.meaning.to_owned()).unwrap_or_default()
}

fn reason_row(reason: &ReasonRate) -> Row {
    let tone = match reason.fate {
        Fate::Dropped => Tone::Bad,
        Fate::Passed => Tone::Plain,
    };
    let tone = alarm(reason.rate, tone);
    let cells = vec![
        Cell::Text(reason.label.clone()),
        Cell::Text(reason.fate.word().to_owned()),
        Cell::Text(reason.reason.clone()),
        Cell::Number(reason.rate),
        Cell::Count(reason.total),
        Cell::Text(meaning(&reason.reason)),
    ];
    let tones = vec![Tone::Plain, tone, tone, tone, Tone::Plain, Tone::Dim];
    Row { cells, tones }
}
