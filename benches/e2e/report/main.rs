//! The report of `benches/e2e/run.sh`: a table for the terminal, JSON, and a page with pictures.
//!
//! The script appends what it sees to one file, a line a fact, its fields separated by tabs:
//!
//! ```text
//! fact         KEY    TEXT
//! peer         NAME   TITLE    SETTINGS
//! failed       NAME   REPEATS  REASON
//! sample       NAME   REPEAT   MEASURE   VALUE
//! point        CURVE  NAME     X         REPEAT   MPPS   NANOSECONDS
//! ```
//!
//! Repeats are interleaved over the peers, so a ratio is given twice: of the medians (which decides), and as the range of the
//! repeats' own ratios (which says how far to trust it).

mod chart;
mod page;
mod promise;
mod run;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use promise::{Better, GUARDS, PROMISES, Promise, judge, verdicts};
use run::{Run, Samples, Summary};
use serde_json::{Map, Value, json};

fn summary_json(samples: &Samples) -> Option<Value> {
    let summary = Summary::of(samples.values().copied())?;
    let values: Vec<f64> = samples.values().copied().collect();
    Some(json!({"median": summary.median, "min": summary.min, "max": summary.max, "samples": values}))
}

fn promises_json(run: &Run, promises: &'static [Promise]) -> Vec<Value> {
    let one = |verdict: promise::Verdict| {
        let (promise, measured) = (verdict.promise, verdict.measured.as_ref());
        json!({"title": promise.title, "of": promise.of, "measure": promise.measure,
               "better": if promise.better == Better::Higher { "higher" } else { "lower" }, "factor": promise.factor,
               "verdict": verdict.word(), "against": measured.and_then(|m| m.rival.as_ref()), "ratio": measured.map(|m| m.figure),
               "ratio_min": measured.map(|m| m.repeats.min), "ratio_max": measured.map(|m| m.repeats.max)})
    };
    verdicts(run, promises).into_iter().map(one).collect()
}

fn curves_json(run: &Run) -> Vec<Value> {
    let one = |((curve, peer), points): (&(String, String), &run::Curve)| {
        let points: Vec<Value> = points
            .iter()
            .map(|(x, point)| json!({"x": x, "mpps": summary_json(&point.mpps), "cost_ns": summary_json(&point.cost_ns)}))
            .collect();
        json!({"curve": curve, "peer": peer, "points": points})
    };
    run.curves.iter().map(one).collect()
}

fn as_json(run: &Run) -> Value {
    let peer = |name: &String| {
        let peer = &run.peers[name];
        let measures: Map<String, Value> = peer
            .samples
            .iter()
            .filter_map(|(measure, samples)| Some((measure.clone(), summary_json(samples)?)))
            .collect();
        json!({"name": name, "title": peer.title, "settings": peer.settings,
               "failed_repeats": peer.failed.as_ref().map_or(0, |f| f.repeats),
               "failure": peer.failed.as_ref().map(|f| &f.reason), "measures": measures})
    };
    json!({
        "schema": 1,
        "facts": run.facts.iter().cloned().collect::<BTreeMap<_, _>>(),
        "peers": run.order.iter().map(peer).collect::<Vec<_>>(),
        "curves": curves_json(run),
        "promises": promises_json(run, &PROMISES),
    })
}

/// What is asked for.
#[derive(Default)]
struct Options {
    results: PathBuf,
    json: Option<PathBuf>,
    out: Option<PathBuf>,
    guard: bool,
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().map(PathBuf::from).context("a value is missing");
        match argument.to_str() {
            Some("--json") => options.json = Some(value()?),
            Some("--out") => options.out = Some(value()?),
            Some("--guard") => options.guard = true,
            _ if options.results.as_os_str().is_empty() => options.results = PathBuf::from(argument),
            _ => bail!("usage: e2e-report RESULTS [--json FILE|-] [--out DIRECTORY] [--guard]"),
        }
    }
    Ok(options)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn document(run: &Run) -> Result<String> {
    Ok(serde_json::to_string_pretty(&as_json(run))? + "\n")
}

/// Whether no guard is broken, after saying so. What was not measured is not held either.
fn guards_hold(run: &Run) -> bool {
    let mut hold = true;
    for verdict in GUARDS.iter().map(|guard| judge(run, guard)) {
        let kept = verdict.best_repeat_keeps_it();
        hold &= kept;
        let seen = verdict
            .measured
            .as_ref()
            .map_or("nothing".to_owned(), |m| format!("{:.2}–{:.2}", m.repeats.min, m.repeats.max));
        println!(
            "{}: {} {seen}, wanted {}",
            if kept { "ok" } else { "BROKEN" },
            verdict.promise.title,
            verdict.promise.wanted()
        );
    }
    hold
}

fn main() -> Result<ExitCode> {
    let options = options()?;
    let results = options.results.display().to_string();
    let text = std::fs::read_to_string(&options.results).with_context(|| format!("cannot read {results}"))?;
    let run = run::parse(&text).with_context(|| format!("{results} is not a file of results"))?;
    let only_json = options.json.as_deref() == Some(Path::new("-"));
    if !only_json {
        print!("{}", table::table(&run, if options.guard { &GUARDS } else { &PROMISES }));
    }
    match &options.json {
        Some(_) if only_json => print!("{}", document(&run)?),
        Some(file) => write(file, &document(&run)?)?,
        None => {}
    }
    if let Some(directory) = &options.out {
        write(&directory.join("report.json"), &document(&run)?)?;
        write(&directory.join("report.html"), &page::page(&run))?;
        write(&directory.join("summary.svg"), &chart::stack(&page::main_pictures(&run), &page::caption(&run)))?;
        eprintln!("{}", directory.join("report.html").display());
    }
    Ok(if !options.guard || guards_hold(&run) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_without_figures_is_broken() {
        assert!(!guards_hold(&run::parse("fact\tkernel\t6.18\n").expect("a fact")));
    }

    #[test]
    fn guards_hold_at_their_margins_and_break_below() {
        let sample = |bridge: &str| {
            let own = ["podlane", "podlane-kernel"].iter().flat_map(|name| {
                ["xdp_mpps", "skb_mpps", "tcp_gbit", "idle_cpu_percent"]
                    .map(|m| format!("sample\t{name}\t1\t{m}\t1.0\n"))
            });
            let rivals = ["peer", "loop-spin"].iter().flat_map(|name| {
                ["xdp_mpps", "skb_mpps", "tcp_gbit"].map(|m| format!("sample\t{name}\t1\t{m}\t1.5\n"))
            });
            let bridge = ["xdp_mpps", "skb_mpps", "tcp_gbit"].map(|m| format!("sample\tbridge\t1\t{m}\t{bridge}\n"));
            run::parse(&own.chain(rivals).chain(bridge).collect::<String>()).expect("samples")
        };
        assert!(guards_hold(&sample("0.7")));
        assert!(!guards_hold(&sample("0.9")), "1.11 times the bridge with xdp frames");
    }
}
