//! The report as text: a table of medians with their spread, and the promises.

use std::fmt::Write as _;

use crate::promise::{Promise, verdicts};
use crate::run::{Failed, Run, Summary};

/// A column of the table.
struct Measure {
    name: &'static str,
    title: &'static str,
    decimals: usize,
}

const fn measure(name: &'static str, title: &'static str, decimals: usize) -> Measure {
    Measure { name, title, decimals }
}

const MEASURES: [Measure; 23] = [
    measure("xdp_mpps", "64 B xdp, Mpps", 3),
    measure("xdp_offered_mpps", "offered", 3),
    measure("xdp_busy_ns", "CPU ns/frame", 0),
    measure("skb_mpps", "64 B skb, Mpps", 3),
    measure("skb_offered_mpps", "offered", 3),
    measure("skb_cost", "CPU s/Mpkt", 2),
    measure("xdp_imix_gbit", "IMIX xdp, Gbit/s", 2),
    measure("skb_imix_gbit", "IMIX skb, Gbit/s", 2),
    measure("skb_ndr_mpps", "NDR skb, Mpps", 3),
    measure("skb_pdr_mpps", "PDR skb, Mpps", 3),
    measure("latency_0_p99_us", "p99 idle, µs", 1),
    measure("latency_90_p99_us", "p99 at 90 %, µs", 1),
    measure("tcp_gbit", "TCP, Gbit/s", 2),
    measure("tcp8_gbit", "TCP 8 flows", 2),
    measure("tcp_back_gbit", "TCP back, Gbit/s", 2),
    measure("tcp_cost", "CPU s/GB", 2),
    measure("tcp_large_gbit", "TCP, 1 MiB writes", 2),
    measure("ping_us", "ping avg, µs", 1),
    measure("rr_us", "TCP rr, µs", 1),
    measure("connect_us", "connect+rr, µs", 1),
    measure("udp_rr_us", "UDP rr, µs", 1),
    measure("idle_cpu_percent", "idle CPU, %", 2),
    measure("memory_mib", "memory, MiB", 0),
];

/// "median (min–max)", or a dash.
pub fn cell(summary: Option<Summary>, decimals: usize) -> String {
    match summary {
        None => "–".to_owned(),
        Some(s) if s.min == s.max => format!("{:.decimals$}", s.median),
        Some(s) => format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", s.median, s.min, s.max),
    }
}

/// Lines the columns up; the first to the left, the others to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let _ = if column == 0 { write!(text, "{cell}{pad}") } else { write!(text, "  {pad}{cell}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// The whole table, with the standing of `promises`.
pub fn table(run: &Run, promises: &'static [Promise]) -> String {
    let mut text = String::new();
    for (key, fact) in &run.facts {
        let _ = writeln!(text, "{key}: {fact}");
    }
    for peer in run.order.iter().map(|name| &run.peers[name]).filter(|p| !p.settings.is_empty()) {
        let _ = writeln!(text, "{}: {}", peer.title, peer.settings);
    }
    let measured = |m: &&Measure| run.peers.values().any(|peer| peer.samples.contains_key(m.name));
    let titles = MEASURES.iter().filter(measured).map(|m| m.title.to_owned());
    let mut rows = vec![std::iter::once("median (min–max)".to_owned()).chain(titles).collect::<Vec<_>>()];
    for peer in run.order.iter().map(|name| &run.peers[name]).filter(|p| !p.samples.is_empty()) {
        let cells = MEASURES.iter().filter(measured).map(|m| cell(peer.summary(m.name), m.decimals));
        rows.push(std::iter::once(peer.title.clone()).chain(cells).collect());
    }
    let _ = write!(text, "\n{}", align(&rows));
    for peer in run.order.iter().map(|name| &run.peers[name]) {
        if let Some(Failed { repeats, reason }) = &peer.failed {
            let _ = writeln!(text, "{}: {repeats} repeats could not be measured: {reason}", peer.title);
        }
    }
    let _ = write!(text, "\n{}", align(&promise_rows(run, promises)));
    text
}

fn promise_rows(run: &Run, promises: &'static [Promise]) -> Vec<Vec<String>> {
    let row = |verdict: crate::promise::Verdict| {
        let (figure, repeats) = match &verdict.measured {
            None => ("–".to_owned(), String::new()),
            Some(m) => {
                (format!("{:.3}", m.figure), format!("({:.3}–{:.3} in single repeats)", m.repeats.min, m.repeats.max))
            }
        };
        let promise = verdict.promise;
        vec![
            promise.title.to_owned(),
            figure,
            repeats,
            format!("wanted {}", promise.wanted()),
            verdict.word().to_owned(),
        ]
    };
    verdicts(run, promises).into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::PROMISES;
    use crate::run::parse;

    #[test]
    fn the_table_names_who_could_not_be_measured_and_why() {
        let text = "sample\tloop\t1\txdp_mpps\t0.4\npeer\tloop\tthe loop\t\npeer\tovs\tthe ovs\t\nfailed\tovs\t3\tnot installed\n";
        let text = table(&parse(text).expect("the lines are right"), &PROMISES);
        assert!(text.contains("the ovs: 3 repeats could not be measured: not installed"), "{text}");
        assert!(text.contains("0.400"), "{text}");
    }
}
