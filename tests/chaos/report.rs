//! What was measured: a table for people, and JSON for programs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use podlane_tests::load::Outcome;
use serde::Serialize;

/// The number of the schema of the JSON.
const SCHEMA: u32 = 1;

/// What an event cost the flows of one way.
#[derive(Serialize)]
pub struct Row {
    /// The event.
    pub event: &'static str,
    /// The path of node1's ports.
    pub path: &'static str,
    /// Datagrams that may be lost; `None` where that is only measured.
    pub allowed: Option<u64>,
    /// Which attempt at measuring it, from 1.
    pub attempt: u32,
    /// False where the machine itself stood still or lost packets, so that it was measured again.
    pub judged: bool,
    /// What became of the flows.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What was counted before and after cycles of pods and restarts.
#[derive(Serialize)]
pub struct Leaks {
    /// The path of node1's ports.
    pub path: &'static str,
    /// Pods that were added and removed.
    pub pods: u32,
    /// Times that the daemon was ended and started.
    pub restarts: u32,
    /// What was counted.
    pub counts: Vec<Count>,
}

/// One of the things that must not become more.
#[derive(Serialize)]
pub struct Count {
    /// What, and over what.
    pub what: String,
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
    /// How much more there may be.
    pub margin: u64,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    leaks: Vec<Leaks>,
}

impl Report {
    /// Adds what an event cost.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds what became more or did not.
    pub fn add_leaks(&mut self, leaks: Leaks) {
        self.leaks.push(leaks);
    }

    /// Prints the tables.
    pub fn print(&self, took: Duration) {
        if !self.rows.is_empty() {
            self.print_rows();
        }
        for leaks in &self.leaks {
            leaks.print();
        }
        println!("\nchaos: {:.0} s", took.as_secs_f64());
    }

    fn print_rows(&self) {
        println!(
            "\n{:<18} {:<7} {:<20} {:<3} {:>8} {:>5} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>9} {:>7}",
            "event",
            "path",
            "where",
            "ip",
            "sent",
            "lost",
            "lost ms",
            "allowed",
            "gap ms",
            "delay ms",
            "TCP ms",
            "pings",
            "sender ms",
            "skipped"
        );
        for row in &self.rows {
            let Outcome { place, family, stream, tcp, ping } = &row.outcome;
            let allowed = row.allowed.map_or("-".to_owned(), |count| format!("{:.0} ms", count as f64 / 10.0));
            println!(
                "{:<18} {:<7} {place:<20} {family:<3} {:>8} {:>5} {:>7.1} {allowed:>8} {:>8.1} {:>8.1} {:>8.1} {:>6} {:>9.1} {:>7}{}",
                row.event,
                row.path,
                stream.sent,
                stream.lost(),
                stream.lost_ms(),
                stream.longest_gap_ms,
                stream.slowest_ms,
                tcp.longest_pause_ms,
                ping.lost,
                stream.latest_ms,
                stream.skipped,
                if row.judged { "" } else { "  the machine was too busy: measured again" },
            );
        }
        println!(
            "lost: datagrams of 10,000 a second, wherever on their way, and the same in milliseconds of the stream; gap: the longest\n\
             run of lost ones; delay: the slowest datagram; TCP: the longest pause of a connection, every one of which survived;\n\
             pings: lost of 100 a second; sender: how late the sender itself was at worst, and how much it skipped therefore."
        );
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &Path, long: bool) -> Result<()> {
        let form = if long { "long" } else { "short" };
        let value = serde_json::json!({ "schema": SCHEMA, "form": form, "rows": self.rows, "leaks": self.leaks });
        let text = serde_json::to_string_pretty(&value)? + "\n";
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }
}

impl Leaks {
    fn print(&self) {
        println!(
            "\n{}: {} pods added and removed, then {} restarts\n{:<52} {:>10} {:>10} {:>10}",
            self.path, self.pods, self.restarts, "what", "before", "after", "margin"
        );
        for Count { what, before, after, margin } in &self.counts {
            println!("{what:<52} {before:>10} {after:>10} {margin:>10}");
        }
    }
}
