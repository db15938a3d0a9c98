//! The table of `benches/compare.sh`: medians with their spread, and the ratios that Podlane promises.
//!
//! The script appends what it sees to one file, a line a fact, its fields separated by tabs:
//!
//! ```text
//! fact         KEY    TEXT
//! peer         NAME   TITLE    SETTINGS
//! failed       NAME   REPEATS  REASON
//! sample       NAME   REPEAT   MEASURE   VALUE
//! ```
//!
//! This program reads it and prints a table for people, or writes everything as JSON. Repeats are interleaved over the
//! peers, so a ratio is given twice: of the medians (which decides), and as the range of the repeats' own ratios (which
//! says how far to trust it).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A column of the table.
struct Measure {
    name: &'static str,
    title: &'static str,
    decimals: usize,
}

const MEASURES: [Measure; 14] = [
    Measure { name: "xdp_mpps", title: "64 B xdp, Mpps", decimals: 3 },
    Measure { name: "xdp_offered_mpps", title: "offered", decimals: 3 },
    Measure { name: "xdp_busy_ns", title: "CPU ns/frame", decimals: 0 },
    Measure { name: "skb_mpps", title: "64 B skb, Mpps", decimals: 3 },
    Measure { name: "skb_offered_mpps", title: "offered", decimals: 3 },
    Measure { name: "skb_cost", title: "CPU s/Mpkt", decimals: 2 },
    Measure { name: "tcp_gbit", title: "TCP, Gbit/s", decimals: 2 },
    Measure { name: "tcp_back_gbit", title: "TCP back, Gbit/s", decimals: 2 },
    Measure { name: "tcp_cost", title: "CPU s/GB", decimals: 2 },
    Measure { name: "tcp_large_gbit", title: "TCP, 1 MiB writes", decimals: 2 },
    Measure { name: "ping_us", title: "ping avg, µs", decimals: 1 },
    Measure { name: "rr_us", title: "TCP rr, µs", decimals: 1 },
    Measure { name: "idle_cpu_percent", title: "idle CPU, %", decimals: 1 },
    Measure { name: "xdp_cost", title: "CPU s/Mpkt xdp", decimals: 2 },
];

/// Which way a measure should go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Higher,
    Lower,
}

/// One promise: Podlane's median of a measure is at least (or at most) `factor` times the best of the named peers' medians.
struct Promise {
    title: &'static str,
    of: &'static str,
    measure: &'static str,
    against: &'static [&'static str],
    better: Better,
    factor: f64,
}

const fn promise(
    title: &'static str,
    of: &'static str,
    measure: &'static str,
    against: &'static [&'static str],
    better: Better,
    factor: f64,
) -> Promise {
    Promise { title, of, measure, against, better, factor }
}

const KERNEL: &str = "podlane-kernel";
const NODES: &str = "nodes-podlane";
const NODES_PLAIN: &str = "nodes-podlane-plain";

const PROMISES: [Promise; 20] = [
    promise("64 bytes, Podlane / Open vSwitch", "podlane", "xdp_mpps", &["ovs"], Better::Higher, 1.0),
    promise("64 bytes, Podlane / bare loop", "podlane", "xdp_mpps", &["loop", "loop-spin"], Better::Higher, 0.9),
    promise("TCP, Podlane / Open vSwitch", "podlane", "tcp_gbit", &["ovs"], Better::Higher, 1.0),
    promise("TCP, Podlane with local_mtu / Open vSwitch", "podlane-local", "tcp_gbit", &["ovs"], Better::Higher, 1.5),
    promise("64 bytes xdp, kernel path / bridge", KERNEL, "xdp_mpps", &["bridge"], Better::Higher, 1.8),
    promise("64 bytes skb, kernel path / bridge", KERNEL, "skb_mpps", &["bridge"], Better::Higher, 1.4),
    promise("64 bytes xdp, kernel path / bare redirect", KERNEL, "xdp_mpps", &["peer"], Better::Higher, 0.9),
    promise("64 bytes skb, kernel path / bare redirect", KERNEL, "skb_mpps", &["peer"], Better::Higher, 0.9),
    promise("TCP, kernel path / bridge", KERNEL, "tcp_gbit", &["bridge"], Better::Higher, 1.0),
    promise(
        "TCP, 1 MiB writes, kernel path with big_tcp / bridge",
        "podlane-big",
        "tcp_large_gbit",
        &["bridge"],
        Better::Higher,
        1.5,
    ),
    promise("ping time, kernel path / bridge", KERNEL, "ping_us", &["bridge"], Better::Lower, 0.9),
    promise("TCP request/response time, kernel path / bridge", KERNEL, "rr_us", &["bridge"], Better::Lower, 0.9),
    promise("CPU per gigabyte, kernel path / bridge", KERNEL, "tcp_cost", &["bridge"], Better::Lower, 0.9),
    promise("CPU per million packets, kernel path / bridge", KERNEL, "skb_cost", &["bridge"], Better::Lower, 0.9),
    promise("two nodes, 64 bytes skb / kernel routing", NODES, "skb_mpps", &["nodes-kernel"], Better::Higher, 1.2),
    promise("two nodes, TCP / kernel routing", NODES, "tcp_gbit", &["nodes-kernel"], Better::Higher, 1.0),
    promise("two nodes, ping time / kernel routing", NODES, "ping_us", &["nodes-kernel"], Better::Lower, 0.95),
    promise("plain uplink, 64 bytes skb", NODES_PLAIN, "skb_mpps", &["nodes-kernel-plain"], Better::Higher, 1.2),
    promise("plain uplink, TCP", NODES_PLAIN, "tcp_gbit", &["nodes-kernel-plain"], Better::Higher, 1.0),
    promise("plain uplink, ping time", NODES_PLAIN, "ping_us", &["nodes-kernel-plain"], Better::Lower, 0.95),
];

/// The samples of one measure of one peer, by repeat.
type Samples = BTreeMap<u32, f64>;

#[derive(Default)]
struct Peer {
    title: String,
    settings: String,
    failed: Option<Failed>,
    samples: BTreeMap<String, Samples>,
}

/// Repeats in which a peer could not be measured to the end, and the last reason.
#[derive(Clone)]
struct Failed {
    repeats: u32,
    reason: String,
}

impl Peer {
    fn summary(&self, measure: &str) -> Option<Summary> {
        Summary::of(self.samples.get(measure)?.values().copied())
    }
}

/// Everything of one run; peers and facts in the order in which the script named them.
#[derive(Default)]
struct Run {
    facts: Vec<(String, String)>,
    order: Vec<String>,
    peers: BTreeMap<String, Peer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

impl Summary {
    /// `None` without a value. The median of an even number of values is the mean of the two in the middle.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Summary { median, min, max })
    }
}

/// How a promise stands in this run.
struct Verdict {
    promise: &'static Promise,
    /// The peer with the best median, the ratio of the medians, and the ratios of single repeats. `None` when one side
    /// was not measured.
    measured: Option<(String, f64, Summary)>,
}

impl Promise {
    fn is_kept(&self, ratio: f64) -> bool {
        match self.better {
            Better::Higher => ratio >= self.factor,
            Better::Lower => ratio <= self.factor,
        }
    }
}

impl Verdict {
    fn word(&self) -> &'static str {
        match &self.measured {
            None => "not measured",
            Some((_, ratio, _)) if self.promise.is_kept(*ratio) => "ok",
            Some(_) => "MISSED",
        }
    }
}

fn parse(text: &str) -> Result<Run> {
    let mut run = Run::default();
    for (index, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        parse_line(&mut run, &fields).with_context(|| format!("line {}: \"{line}\"", index + 1))?;
    }
    Ok(run)
}

fn parse_line(run: &mut Run, fields: &[&str]) -> Result<()> {
    match *fields {
        ["fact", key, text] => run.facts.push((key.to_owned(), text.to_owned())),
        ["peer", name, title, settings] => {
            run.order.push(name.to_owned());
            let peer = run.peers.entry(name.to_owned()).or_default();
            (peer.title, peer.settings) = (title.to_owned(), settings.to_owned());
        }
        ["failed", name, repeats, reason] => {
            let repeats = repeats.parse().context("the number of repeats is not a number")?;
            run.peers.entry(name.to_owned()).or_default().failed = Some(Failed { repeats, reason: reason.to_owned() });
        }
        ["sample", name, repeat, measure, value] => {
            let repeat = repeat.parse().context("the repeat is not a number")?;
            let value: f64 = value.parse().context("the value is not a number")?;
            if !value.is_finite() {
                bail!("the value is not finite");
            }
            let peer = run.peers.entry(name.to_owned()).or_default();
            peer.samples.entry(measure.to_owned()).or_default().insert(repeat, value);
        }
        _ => bail!("not a line that compare.sh writes"),
    }
    Ok(())
}

/// The ratio of two peers in every repeat that measured both.
fn paired_ratios(over: &Samples, under: &Samples) -> impl Iterator<Item = f64> {
    over.iter().filter_map(|(repeat, value)| Some(value / under.get(repeat).filter(|v| **v > 0.0)?))
}

fn judge(run: &Run, promise: &'static Promise) -> Verdict {
    let measured = (|| {
        let podlane = run.peers.get(promise.of)?;
        let (rival, rival_summary) = promise
            .against
            .iter()
            .filter_map(|name| Some((*name, run.peers.get(*name)?.summary(promise.measure)?)))
            .max_by(|a, b| match promise.better {
                Better::Higher => a.1.median.total_cmp(&b.1.median),
                Better::Lower => b.1.median.total_cmp(&a.1.median),
            })?;
        let own = podlane.summary(promise.measure)?;
        if rival_summary.median <= 0.0 {
            return None;
        }
        let repeats = Summary::of(paired_ratios(
            podlane.samples.get(promise.measure)?,
            run.peers[rival].samples.get(promise.measure)?,
        ))?;
        Some((rival.to_owned(), own.median / rival_summary.median, repeats))
    })();
    Verdict { promise, measured }
}

fn cell(summary: Option<Summary>, decimals: usize) -> String {
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

fn table(run: &Run) -> String {
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
    let _ = write!(text, "\n{}", align(&promise_rows(run)));
    text
}

fn promise_rows(run: &Run) -> Vec<Vec<String>> {
    let row = |promise: &'static Promise| {
        let verdict = judge(run, promise);
        let (ratio, repeats) = match &verdict.measured {
            None => ("–".to_owned(), String::new()),
            Some((_, ratio, r)) => (format!("{ratio:.3}"), format!("({:.3}–{:.3} in single repeats)", r.min, r.max)),
        };
        let sign = if promise.better == Better::Higher { '≥' } else { '≤' };
        let wanted = format!("wanted {sign} {:?}", promise.factor);
        vec![promise.title.to_owned(), ratio, repeats, wanted, verdict.word().to_owned()]
    };
    // Only what this run is about.
    PROMISES.iter().filter(|promise| run.peers.contains_key(promise.of)).map(row).collect()
}

fn as_json(run: &Run) -> Value {
    let peer = |name: &String| {
        let peer = &run.peers[name];
        let measures: serde_json::Map<String, Value> = peer
            .samples
            .iter()
            .filter_map(|(measure, samples)| {
                let s = peer.summary(measure)?;
                let values: Vec<f64> = samples.values().copied().collect();
                Some((measure.clone(), json!({"median": s.median, "min": s.min, "max": s.max, "samples": values})))
            })
            .collect();
        json!({"name": name, "title": peer.title, "settings": peer.settings, "failed_repeats": peer.failed.as_ref().map_or(0, |f| f.repeats),
               "failure": peer.failed.as_ref().map(|f| &f.reason),
               "measures": measures})
    };
    let promise = |promise| {
        let verdict = judge(run, promise);
        let measured = verdict.measured.as_ref();
        json!({"title": promise.title, "measure": promise.measure, "better": if promise.better == Better::Higher { "higher" } else { "lower" }, "factor": promise.factor,
               "verdict": verdict.word(), "against": measured.map(|m| &m.0), "ratio": measured.map(|m| m.1),
               "ratio_min": measured.map(|m| m.2.min), "ratio_max": measured.map(|m| m.2.max)})
    };
    json!({
        "schema": 1,
        "facts": run.facts.iter().cloned().collect::<BTreeMap<_, _>>(),
        "peers": run.order.iter().map(peer).collect::<Vec<_>>(),
        "promises": PROMISES.iter().filter(|promise| run.peers.contains_key(promise.of)).map(promise).collect::<Vec<_>>(),
    })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (results, json_to) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [results] => (results, None),
        [results, "--json", file] => (results, Some(file)),
        _ => bail!("usage: compare-report RESULTS [--json FILE|-]"),
    };
    let text = std::fs::read_to_string(results).with_context(|| format!("cannot read {results}"))?;
    let run = parse(&text).with_context(|| format!("{results} is not a file of results"))?;
    if json_to != Some("-") {
        print!("{}", table(&run));
    }
    if let Some(file) = json_to {
        let mut document = serde_json::to_string_pretty(&as_json(&run))?;
        document.push('\n');
        if file == "-" {
            print!("{document}");
        } else {
            std::fs::write(file, document).with_context(|| format!("cannot write {file}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(samples: &[(&str, u32, &str, f64)]) -> Run {
        let mut text = String::from("fact\tkernel\t6.18\n");
        for name in ["podlane", "ovs", "loop", "loop-spin"] {
            let _ = writeln!(text, "peer\t{name}\tthe {name}\tsettings");
        }
        for (name, repeat, measure, value) in samples {
            let _ = writeln!(text, "sample\t{name}\t{repeat}\t{measure}\t{value}");
        }
        parse(&text).expect("the lines are right")
    }

    #[test]
    fn median_is_the_middle_of_the_sorted_values() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0].into_iter()), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of([4.0, 1.0].into_iter()), Some(Summary { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Summary::of(std::iter::empty()), None);
    }

    #[test]
    fn a_promise_is_judged_against_the_best_rival() {
        let run = run_of(&[
            ("podlane", 1, "xdp_mpps", 0.45),
            ("ovs", 1, "xdp_mpps", 0.40),
            ("loop", 1, "xdp_mpps", 0.40),
            ("loop-spin", 1, "xdp_mpps", 0.60),
        ]);
        assert_eq!(judge(&run, &PROMISES[0]).word(), "ok");
        let loops = judge(&run, &PROMISES[1]);
        assert_eq!(loops.word(), "MISSED");
        assert_eq!(loops.measured.map(|m| m.0).as_deref(), Some("loop-spin"));
        assert_eq!(judge(&run, &PROMISES[2]).word(), "not measured");
    }

    #[test]
    fn ratios_of_repeats_are_taken_within_a_repeat() {
        let run = run_of(&[
            ("podlane", 1, "xdp_mpps", 1.0),
            ("podlane", 2, "xdp_mpps", 2.0),
            ("podlane", 3, "xdp_mpps", 9.0),
            ("ovs", 1, "xdp_mpps", 2.0),
            ("ovs", 2, "xdp_mpps", 2.0),
        ]);
        let (_, ratio, repeats) = judge(&run, &PROMISES[0]).measured.expect("both were measured");
        assert_eq!(ratio, 1.0);
        assert_eq!((repeats.min, repeats.max), (0.5, 1.0), "repeat 3 has no partner");
    }

    #[test]
    fn the_table_names_who_could_not_be_measured_and_why() {
        let mut run = run_of(&[("loop", 1, "xdp_mpps", 0.4)]);
        run.peers.get_mut("ovs").expect("named").failed =
            Some(Failed { repeats: 3, reason: "not installed".to_owned() });
        let text = table(&run);
        assert!(text.contains("the ovs: 3 repeats could not be measured: not installed"), "{text}");
        assert!(text.contains("0.400"), "{text}");
        assert_eq!(as_json(&run)["peers"][1]["failure"], "not installed");
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        for bad in ["sample\tx\t1\ty\tNaN", "sample\tx\tone\ty\t1", "something", "sample\tx\t1\ty\t"] {
            let error = parse(bad).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(error.contains("line 1"), "{bad}: {error}");
        }
    }
}
