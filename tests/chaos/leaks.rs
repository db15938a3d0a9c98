//! Nothing becomes more: pods come and go under one daemon, then daemons come and go over the same pods.
//!
//! What a daemon holds (frames, descriptors, threads, mappings, memory) is compared before and after the pods; what a daemon
//! leaves behind (pins, namespaces, links, routes, neighbours, files) before and after the restarts. Memory has a margin,
//! because an allocator keeps what it once had; everything else has none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, FOLLOW};
use podlane_tests::command::wait_for;
use podlane_tests::daemon;
use podlane_tests::testbed::Family;

use crate::report::{Count, Leaks, Report};

/// Memory that a daemon may keep of what it used once, KiB: caches of the allocator, tables that have grown.
const MEMORY_MARGIN_KIB: u64 = 4096;
/// Pods that come and go before the first count: what grows once has grown then.
const WARM_UP: u32 = 4;
/// Where BPF objects are pinned.
const BPFFS: &str = "/sys/fs/bpf";

type Counts = BTreeMap<&'static str, u64>;

/// Pods come and go, daemons come and go, and nothing is left of either.
pub fn run(bed: &mut Bed, long: bool, report: &mut Report) -> Result<()> {
    let (pods, restarts) = if long { (1000, 100) } else { (12, 4) };
    let mut leaks = Leaks { path: bed.path.name(), pods, restarts, counts: Vec::new() };
    let outcome = cycle_pods(bed, pods, &mut leaks.counts).and_then(|()| restart(bed, restarts, &mut leaks.counts));
    let more: Vec<String> = leaks
        .counts
        .iter()
        .filter(|count| count.after > count.before + count.margin)
        .map(|count| format!("{}: {} before, {} after", count.what, count.before, count.after))
        .collect();
    report.add_leaks(leaks);
    outcome?;
    ensure!(more.is_empty(), "there is more than before of:\n{}", more.join("\n"));
    Ok(())
}

fn cycle_pods(bed: &mut Bed, pods: u32, counts: &mut Vec<Count>) -> Result<()> {
    let pod = bed.new_pod();
    for _ in 0..WARM_UP {
        cycle(bed, &pod)?;
    }
    let (held, left) = (settled(bed, held)?, settled(bed, left)?);
    for _ in 0..pods {
        cycle(bed, &pod)?;
    }
    compare(bed, "pods", &held, self::held, counts)?;
    compare(bed, "pods", &left, self::left, counts)
}

/// A pod comes, is a port, answers, goes, is none.
fn cycle(bed: &mut Bed, pod: &str) -> Result<()> {
    bed.add_pod(1, pod, None)?;
    is_port(bed, pod, true)?;
    for family in Family::BOTH {
        bed.ping(&bed.way("pod4", pod, family)?, 100, 1)?;
    }
    bed.del_pod(pod)?;
    is_port(bed, pod, false)
}

fn is_port(bed: &Bed, pod: &str, wanted: bool) -> Result<()> {
    let (port, what) = (format!("veth-{pod}"), if wanted { "to be a port" } else { "to be no port" });
    wait_for(&format!("{pod} {what}"), FOLLOW, || Ok((bed.status(1)?.port(&port).is_some() == wanted).then_some(())))
}

/// By turns as an operator ends it, killed, and taken over from.
fn restart(bed: &mut Bed, restarts: u32, counts: &mut Vec<Count>) -> Result<()> {
    let (held, left) = (settled(bed, held)?, settled(bed, left)?);
    for round in 0..restarts {
        if round % 3 == 2 {
            bed.take_over(1)?;
            continue;
        }
        if round % 3 == 0 {
            bed.end_daemon(1)?;
        } else {
            let mut daemon = bed.take_daemon(1)?;
            daemon.signal(Signal::SIGKILL)?;
            daemon.wait()?;
        }
        bed.start_daemon(1)?;
        bed.audit().with_context(|| format!("after restart {}", round + 1))?;
    }
    compare(bed, "restarts", &held, self::held, counts)?;
    compare(bed, "restarts", &left, self::left, counts)
}

/// Counts until two counts in a row agree: what has just gone may still be going.
fn settled(bed: &mut Bed, count: fn(&Bed) -> Result<Counts>) -> Result<Counts> {
    bed.audit()?;
    let mut last: Option<Counts> = None;
    wait_for("counts that stay as they are", Duration::from_secs(10), || {
        let now = count(bed)?;
        std::thread::sleep(Duration::from_millis(100));
        let same = last.as_ref() == Some(&now);
        last = Some(now);
        Ok(if same { last.clone() } else { None })
    })
}

fn compare(
    bed: &mut Bed,
    over: &str,
    before: &Counts,
    count: fn(&Bed) -> Result<Counts>,
    counts: &mut Vec<Count>,
) -> Result<()> {
    let after = settled(bed, count)?;
    for (what, before) in before {
        let margin = if what.ends_with("KiB") { MEMORY_MARGIN_KIB } else { 0 };
        counts.push(Count {
            what: format!("{what}, over the {over}"),
            before: *before,
            after: after.get(what).copied().unwrap_or(0),
            margin,
        });
    }
    Ok(())
}

/// What the daemon of node1 holds.
fn held(bed: &Bed) -> Result<Counts> {
    let status = bed.status(1)?;
    ensure!(status.umem.sum_ok, "frames of the UMEM are missing: {:?}", status.umem);
    let pid = status.pid;
    let process = |file: &str| format!("/proc/{pid}/{file}");
    let entries =
        |file: &str| -> Result<u64> { Ok(fs::read_dir(process(file)).context("looking into /proc")?.count() as u64) };
    let memory = fs::read_to_string(process("status"))?;
    let kib = |name: &str| -> Result<u64> {
        let line = memory.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        line.split_ascii_whitespace().nth(1).context("no number")?.parse().with_context(|| line.to_owned())
    };
    Ok(Counts::from([
        ("frames outside of the free list and the fill rings", in_use(&status)),
        (
            "frames of the UMEM that are in no place",
            status.umem.frames - in_use(&status) - status.umem.free - status.umem.fill,
        ),
        ("ports", status.ports.len() as u64),
        ("descriptors", entries("fd")?),
        ("threads", entries("task")?),
        ("mappings", fs::read_to_string(process("maps"))?.lines().count() as u64),
        ("anonymous memory, KiB", kib("RssAnon:")?),
        ("locked memory, KiB", kib("VmLck:")?),
    ]))
}

fn in_use(status: &podlane_tests::status::Status) -> u64 {
    let umem = &status.umem;
    umem.rx + umem.worker + umem.handoff + umem.tx
}

/// What is in the node and on the machine because of the daemon of node1.
fn left(bed: &Bed) -> Result<Counts> {
    let lines = |words: &[&str]| -> Result<u64> { Ok(bed.exec("node1", words)?.lines().count() as u64) };
    let instance = bed.instance(1);
    Ok(Counts::from([
        ("links", lines(&["ip", "-o", "link"])?),
        ("routes, IPv4, every table", lines(&["ip", "-4", "route", "show", "table", "all"])?),
        ("routes, IPv6, every table", lines(&["ip", "-6", "route", "show", "table", "all"])?),
        ("rules", lines(&["ip", "rule"])? + lines(&["ip", "-6", "rule"])?),
        ("static neighbours", permanent(&bed.exec("node1", &["ip", "-d", "neigh"])?)),
        ("static FDB entries", permanent(&bed.exec("node1", &["bridge", "-d", "fdb", "show"])?)),
        ("network namespaces", named("/run/netns", &bed.name)),
        ("pins", files(Path::new(BPFFS), &instance)),
        ("files in /run/podlane", named(daemon::SOCKETS, &instance)),
        ("mounts", fs::read_to_string("/proc/self/mounts")?.matches(&bed.name).count() as u64),
    ]))
}

/// Entries that no timer removes.
fn permanent(text: &str) -> u64 {
    let stays = ["PERMANENT", "permanent", "static", "extern_learn", "managed", "NOARP"];
    text.lines().filter(|line| stays.iter().any(|word| line.contains(word))).count() as u64
}

/// Entries of a directory whose names begin so.
fn named(directory: &str, start: &str) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start)).count() as u64
}

/// Files under a directory that have this word in their paths.
fn files(directory: &Path, word: &str) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let count =
        |path: &Path| if path.is_dir() { files(path, word) } else { u64::from(path.to_string_lossy().contains(word)) };
    entries.map(|entry| count(&entry.path())).sum()
}
