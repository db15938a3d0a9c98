//! Metrics tell what the status tells, as Prometheus wants it, and counters outlive the daemon that counted them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::Bed;
use podlane_tests::command::wait_for;
use podlane_tests::daemon;
use podlane_tests::status::Status;
use podlane_tests::testbed::Family;
use serde_json::Value;

const COUNT: u64 = 5;
/// How often a daemon saves its counters unasked (`PERIOD` in `loader/src/carry`), and what a busy machine may add.
const SAVED: Duration = Duration::from_secs(20);

/// What a reader who accepts `accept` is answered by node 1: head and body.
fn scrape(bed: &Bed, accept: &str) -> Result<(String, String)> {
    let get = format!(
        "exec 3<>/dev/tcp/127.0.0.1/9477 && printf 'GET /metrics HTTP/1.0\\r\\nAccept: {accept}\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let answer = bed.exec("node1", &["bash", "-c", &get])?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

/// A sample's value.
fn sample(text: &str, sample: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    value.with_context(|| format!("no {sample} in {text}"))
}

/// The same numbers in both words and in both formats; promtool finds nothing to say.
pub fn tell_the_status(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    bed.ping(&way, 64, COUNT)?;
    let before = bed.status(1)?;
    let (head, text) = scrape(bed, "*/*")?;
    let (older_head, older) = scrape(bed, "text/plain")?;
    let after = bed.status(1)?;
    ensure!(head.contains("application/openmetrics-text") && text.ends_with("# EOF\n"), "not OpenMetrics: {text}");
    ensure!(
        older_head.contains("text/plain; version=0.0.4") && !older.contains("# EOF"),
        "not the older format: {older}"
    );
    for name in ["veth-pod1", "eth0"] {
        let count = |status: &Status| status.port(name).map(|port| port.rx_packets).context("no such port");
        for text in [&text, &older] {
            let told = sample(text, &format!("podlane_port_received_packets_total{{port=\"{name}\"}}"))?;
            ensure!(
                (count(&before)?..=count(&after)?).contains(&told),
                "{name}: metrics tell {told}, status something else"
            );
        }
    }
    let residence: u64 = older
        .lines()
        .filter(|line| line.starts_with("podlane_worker_residence_seconds_count"))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).context("no number"))
        .sum::<Result<u64>>()?;
    let by_workers = before.ports.iter().map(|port| port.forwarded).sum::<u64>();
    ensure!(residence >= by_workers, "{residence} packets have a residence time, of {by_workers} forwarded");
    promtool_agrees(&older)?;
    dashboard_is_served(&older)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn promtool_agrees(text: &str) -> Result<()> {
    let mut promtool = Command::new(root().join("scripts/promtool.sh"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("scripts/promtool.sh")?;
    promtool.stdin.take().context("piped")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {}\n{said}\n{text}", output.status);
    Ok(())
}

/// Every metric that the dashboard and the alert rules ask for is in a scrape of a real daemon.
fn dashboard_is_served(text: &str) -> Result<()> {
    let mut there = BTreeSet::new();
    for (name, kind) in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
        match kind {
            "histogram" => there.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}"))),
            _ => drop(there.insert(name.to_owned())),
        }
    }
    for file in ["packaging/grafana/podlane.json", "packaging/prometheus/podlane.rules.yml"] {
        let asking = std::fs::read_to_string(root().join(file)).context(file)?;
        let words = asking.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("podlane_")).collect();
        ensure!(asked.len() > 10, "{file} asks for {asked:?} only");
        let missing: Vec<_> = asked.iter().filter(|name| !there.contains(**name)).collect();
        ensure!(missing.is_empty(), "{file} asks for {missing:?}, which no daemon tells");
    }
    Ok(())
}

/// Everything that may only grow, by its place in the JSON of the status: what is counted for interfaces that stay, for
/// workers, and for the node.
fn counts(bed: &Bed) -> Result<Vec<(String, u64)>> {
    let status: Value = serde_json::from_str(&daemon::status_text(&bed.instance(1))?)?;
    let mut found = Vec::new();
    for port in status["ports"].as_array().context("ports")? {
        let name = &port["name"];
        for field in ["rx_packets", "rx_bytes", "steered", "repeated", "repeated_bytes", "worker_rx", "forwarded"] {
            found.push((format!("{name} {field}"), &port[field]));
        }
        for field in ["forwarded_bytes", "tx_packets", "tx_bytes", "repeated_out", "repeated_out_bytes"] {
            found.push((format!("{name} {field}"), &port[field]));
        }
        for field in ["passed", "kernel", "dropped"] {
            found.push((format!("{name} {field}"), &port[field]["total"]));
        }
    }
    for worker in status["workers"].as_array().context("workers")? {
        for field in ["rx", "forwarded", "batches", "sleeps", "tx_syscalls", "handoff_in", "handoff_out"] {
            found.push((format!("worker {} {field}", worker["id"]), &worker[field]));
        }
        found.push((format!("worker {} residence", worker["id"]), &worker["residence"]["sum_ns"]));
    }
    for field in ["messages", "redumps"] {
        found.push((field.to_owned(), &status["mirror"][field]));
    }
    found.push(("takeovers".to_owned(), &status["counters"]["takeovers"]));
    found.push(("takeovers_after_kill".to_owned(), &status["counters"]["takeovers_after_kill"]));
    let number = |(place, value): (String, &Value)| {
        let count = value.as_u64().with_context(|| format!("{place} is {value}"))?;
        Ok((place, count))
    };
    found.into_iter().map(number).collect()
}

fn nothing_ran_backwards(before: &[(String, u64)], after: &[(String, u64)]) -> Result<()> {
    for (place, old) in before {
        let new = after.iter().find(|(other, _)| other == place).with_context(|| format!("{place} is gone"))?.1;
        ensure!(new >= *old, "{place} ran backwards, from {old} to {new}");
    }
    Ok(())
}

/// Packets from pod 1 that Podlane forwarded, on either path.
fn forwarded(bed: &Bed) -> Result<u64> {
    let status = bed.status(1)?;
    let port = status.port("veth-pod1").context("veth-pod1 is no port")?;
    Ok(port.forwarded + port.repeated)
}

/// Sends datagrams that are forwarded, and says how many: no more and no less are counted.
fn forwarded_exactly(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    let before = forwarded(bed)?;
    bed.ping(&way, 64, COUNT)?;
    let after = forwarded(bed)?;
    ensure!(after == before + COUNT, "{COUNT} packets were sent, and {} counted", after - before);
    Ok(())
}

/// Over SIGTERM, over SIGKILL after a status was told, and over SIGKILL after the daemon had saved by itself: the next one
/// goes on from the same counts, and the accounts add up.
pub fn counters_outlive_the_daemon(bed: &mut Bed) -> Result<()> {
    forwarded_exactly(bed)?;
    bed.audit()?;
    let (before, exact) = (counts(bed)?, forwarded(bed)?);
    bed.stop_daemon(1)?;
    bed.start_daemon(1)?;
    nothing_ran_backwards(&before, &counts(bed)?)?;
    ensure!(forwarded(bed)? == exact, "{exact} packets were forwarded before SIGTERM, {} after", forwarded(bed)?);
    forwarded_exactly(bed)?;
    bed.audit()?;

    let (before, exact) = (counts(bed)?, forwarded(bed)?);
    kill(bed)?;
    nothing_ran_backwards(&before, &counts(bed)?)?;
    ensure!(forwarded(bed)? == exact, "{exact} packets were forwarded before SIGKILL, {} after", forwarded(bed)?);
    forwarded_exactly(bed)?;

    let (before, exact) = (counts(bed)?, forwarded(bed)?);
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.ping(&way, 64, COUNT)?;
    let (pinged, file) = (SystemTime::now(), counters_file(bed));
    wait_for("the counters to be saved", SAVED, || Ok((file.metadata()?.modified()? > pinged).then_some(())))?;
    kill(bed)?;
    let after = counts(bed)?;
    nothing_ran_backwards(&before, &after)?;
    ensure!(forwarded(bed)? == exact + COUNT, "{} packets were saved, not {}", forwarded(bed)?, exact + COUNT);
    let takeovers = |place: &str| after.iter().find(|(other, _)| other == place).map(|(_, count)| *count);
    let before = |place: &str| before.iter().find(|(other, _)| other == place).map(|(_, count)| count + 1);
    ensure!(takeovers("takeovers_after_kill") == before("takeovers_after_kill"), "the kill was not counted: {after:?}");
    Ok(())
}

fn counters_file(bed: &Bed) -> PathBuf {
    daemon::control_socket(&bed.instance(1)).with_extension("counters")
}

fn kill(bed: &mut Bed) -> Result<()> {
    let mut daemon = bed.take_daemon(1)?;
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    bed.start_daemon(1)
}

/// A file that is damaged is a sentence in the log, and everything begins at 0; so it does where there is none.
pub fn a_damaged_file_of_counters(bed: &mut Bed) -> Result<()> {
    forwarded_exactly(bed)?;
    bed.stop_daemon(1)?;
    let file = counters_file(bed);
    let mut bytes = std::fs::read(&file).context("the file of counters")?;
    *bytes.last_mut().context("an empty file")? ^= 1;
    std::fs::write(&file, bytes)?;
    bed.start_daemon(1)?;
    bed.expect_complaint("counters begin at 0");
    let told = bed.daemon(1)?.log_lines().iter().any(|line| line.contains("is damaged (its checksum is wrong)"));
    ensure!(told, "the log does not say that {} is damaged", file.display());
    let begun = forwarded(bed)?;
    ensure!(begun < COUNT, "counters began at {begun}");
    forwarded_exactly(bed)
}
