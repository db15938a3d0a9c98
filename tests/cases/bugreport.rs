//! `podlane bugreport`: the archive has what it says, whatever state the daemon is in.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::Bed;
use podlane_tests::command;
use podlane_tests::daemon::binary;
use podlane_tests::testbed::Family;
use serde_json::Value;

/// How long a report may take, with a daemon that does not answer and on a busy machine.
const REPORT: Duration = Duration::from_secs(60);

/// A report that was unpacked.
struct Unpacked {
    directory: PathBuf,
    /// State and reason by file, from the list.
    states: BTreeMap<String, (String, String)>,
    /// What was printed.
    said: String,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Unpacked {
    /// Has node1's report made and unpacks it with the system's own tar.
    fn make(bed: &Bed) -> Result<Unpacked> {
        let directory = std::env::temp_dir().join(format!("bugreport-{}", bed.instance(1)));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let mut unpacked = Unpacked { directory, states: BTreeMap::new(), said: String::new() };
        let archive = unpacked.directory.join("report.tar.gz");
        let mut report = bed.podlane(1)?;
        report.args(["bugreport", "--instance", &bed.instance(1), "-o"]).arg(&archive);
        unpacked.said = command::run(&mut report, REPORT)?;
        let mode = fs::metadata(&archive)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "others may read it: {mode:o}");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&archive).arg("-C").arg(&unpacked.directory).arg("--strip-components=1");
        command::run(&mut tar, REPORT)?;
        fs::remove_file(&archive)?;
        unpacked.read_list()?;
        Ok(unpacked)
    }

    fn read_list(&mut self) -> Result<()> {
        let list = self.text("MANIFEST")?;
        let rows = list.lines().skip_while(|line| !line.starts_with("FILE ")).skip(1);
        for row in rows {
            let columns: Vec<&str> = row.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
            let [name, bytes, state, _source, ..] = columns.as_slice() else { anyhow::bail!("not a row: {row}") };
            let path = self.directory.join(name);
            match fs::metadata(&path) {
                Ok(file) => {
                    ensure!(bytes.parse() == Ok(file.len()) && *state != "failed", "{row}: {} bytes", file.len())
                }
                Err(_) => ensure!(*state == "failed" && columns.len() == 5, "{row}: not there, and no word why"),
            }
            let why = columns.get(4).copied().unwrap_or_default();
            self.states.insert((*name).to_owned(), ((*state).to_owned(), why.to_owned()));
        }
        let there = files(&self.directory, Path::new(""))?;
        let listed: Vec<&String> = there.iter().filter(|name| self.states.contains_key(*name)).collect();
        ensure!(listed.len() + 1 == there.len(), "not everything is on the list: {there:?}");
        Ok(())
    }

    fn text(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.directory.join(name)).with_context(|| format!("{name} in the report; {}", self.said))
    }

    fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_str(&self.text(name)?).with_context(|| format!("{name} is not JSON"))
    }

    fn has(&self, name: &str, text: &str) -> Result<()> {
        let found = self.text(name)?;
        ensure!(found.contains(text), "{name} has no {text:?}: {found}");
        Ok(())
    }

    fn failed(&self, name: &str, why: &str) -> Result<()> {
        let (state, told) = self.states.get(name).with_context(|| format!("{name} is not listed"))?;
        ensure!(state == "failed" && told.contains(why), "{name}: {state}, {told}");
        Ok(())
    }
}

fn files(top: &Path, below: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(top.join(below))? {
        let name = below.join(entry?.file_name());
        if top.join(&name).is_dir() {
            names.extend(files(top, &name)?);
        } else {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Of a daemon at work: everything that it knows is there, and agrees with what it says otherwise.
pub fn alive(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod4", Family::V4)?;
    bed.warm_up(&way)?;
    let report = Unpacked::make(bed)?;
    let pid = bed.daemon(1)?.pid();
    let instance = bed.instance(1);
    let expected = format!("Instance \"{instance}\" runs as process {pid} and answers.");
    ensure!(report.said.contains(&expected), "{}", report.said);
    report.has("MANIFEST", &expected)?;
    for (name, (state, why)) in &report.states {
        let is_ours =
            ["daemon/", "log/daemon", "config/effective", "config/would-be", "check", "versions", "machine/limits"]
                .iter()
                .any(|part| name.starts_with(part));
        ensure!(!is_ours || state == "ok", "{name}: {state}, {why}");
    }
    let status = report.json("daemon/status.json")?;
    ensure!(status["pid"] == pid && status["schema"] == 1, "another status: {status}");
    ensure!(report.json("config/effective.json")?["instance"] == instance, "another configuration");
    ensure!(report.json("config/would-be.json")?["bridge"] == "cbr0", "the daemon's options are not read");
    report.has("daemon/metrics.txt", "podlane_port_received_packets_total{port=\"veth-pod1\"")?;
    report.has("log/daemon.txt", "podlane is ready")?;
    report.has("daemon/process.txt", "the same as that of this report")?;
    report.has("daemon/threads.txt", "waits in: ")?;

    let entries = |name: &str, key: &str, value: &str| -> Result<Value> {
        let table = report.json(&format!("daemon/tables/{name}.json"))?;
        ensure!(table["about"]["total"].as_u64() == table["entries"].as_array().map(|all| all.len() as u64), "{table}");
        let found = table["entries"].as_array().into_iter().flatten().find(|entry| entry[key] == value);
        found.cloned().with_context(|| format!("no {key} {value} in {table}"))
    };
    let pod = bed.address("pod1", Family::V4)?.to_string();
    ensure!(entries("neighbours", "address", &pod)?["port"] == "veth-pod1", "pod1 is elsewhere");
    ensure!(
        entries("fib4", "destination", "10.244.1.0/24")?["on_link"] == "bridge",
        "the pods' own network is elsewhere"
    );
    entries("fdb", "port", "veth-pod1")?;
    entries("ports", "name", "eth0")?;

    let bpf = report.json("kernel/bpf.json")?;
    let own = |kind: &str| bpf[kind].as_array().into_iter().flatten().filter(|one| one["daemon"] == true).count();
    ensure!(own("programs") > 0 && own("maps") > 5 && own("links") > 1, "not the daemon's programs: {bpf}");
    let links = report.json("kernel/links.json")?;
    ensure!(links.as_array().is_some_and(|all| all.iter().any(|link| link["ifname"] == "cbr0")), "no bridge: {links}");
    report.has("kernel/ethtool/eth0.txt", "driver: veth")?;
    report.has("kernel/switches.txt", "net/ipv4/conf/cbr0/rp_filter = ")?;
    ensure!(!report.states.contains_key("kernel/nft-rules.txt"), "rules are copied without being asked for");

    // Asked from outside of the node, it says that the network is not the daemon's.
    let archive = std::env::temp_dir().join(format!("bugreport-{instance}.tar.gz"));
    let mut outside = Command::new(binary()?);
    outside.args(["bugreport", "--instance", &instance, "-o"]).arg(&archive);
    let said = command::run(&mut outside, REPORT);
    let _ = fs::remove_file(&archive);
    ensure!(said?.contains("The daemon is in ANOTHER network namespace"), "another network is taken for the daemon's");
    Ok(())
}

/// Of a daemon that hangs, and of one that was killed: that is told, and all that the kernel knows.
pub fn dead(bed: &mut Bed) -> Result<()> {
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    let report = Unpacked::make(bed);
    let pid = bed.daemon(1)?.pid();
    bed.daemon(1)?.signal(Signal::SIGCONT)?;
    let report = report?;
    ensure!(report.said.contains(&format!("is there as process {pid}, but: ")), "{}", report.said);
    report.failed("daemon/status.json", "has not answered within 5 s")?;
    report.failed("daemon/tables/fdb.json", "not asked")?;
    report.has("daemon/threads.txt", "State: T (stopped)")?;

    let mut daemon = bed.take_daemon(1)?;
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    let report = Unpacked::make(bed);
    bed.start_daemon(1)?;
    let report = report?;
    ensure!(report.said.contains("No daemon was asked: no podlane instance"), "{}", report.said);
    report.failed("daemon/status.json", "answers at")?;
    report.failed("daemon/process.txt", "no process is known")?;
    for name in ["versions.txt", "check.json", "kernel/bpf.json", "kernel/links.json", "machine/interrupts.txt"] {
        ensure!(
            report.states.get(name).is_some_and(|(state, _)| state == "ok"),
            "{name}: {:?}",
            report.states.get(name)
        );
    }
    Ok(())
}
