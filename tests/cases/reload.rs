//! The configuration is read again while traffic runs: nothing is lost, what is wrong changes nothing, and what is told is true.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::command::{self, wait_for};
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Flow};
use serde_json::Value;

use super::lifecycle::taken_over;

/// What a daemon takes to open and close ports on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

/// The file of node1's daemon; gone when dropped.
struct File {
    path: PathBuf,
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl File {
    /// The daemon of node1 again, with what the testbed says on its command line in a file.
    fn start(bed: &mut Bed, lines: &str) -> Result<File> {
        let path = std::env::temp_dir().join(format!("podlane-{}.toml", bed.instance(1)));
        let file = File { path };
        file.write(bed, lines)?;
        bed.stop_daemon(1)?;
        let mut run = bed.podlane(1)?;
        run.args(["run", "--instance", &bed.instance(1), "--config"]).arg(&file.path);
        bed.start_daemon_as(1, &mut run)?;
        Ok(file)
    }

    /// What every daemon of the testbed has, and these lines. `path` and `cluster_cidrs` are the testbed's unless the lines say so.
    fn write(&self, bed: &Bed, lines: &str) -> Result<()> {
        let mut text = format!("cni_cache = {:?}\n", bed.cni_cache(1));
        let usual = [
            ("bridge", "\"cbr0\"".to_owned()),
            ("uplinks", "[\"eth0\"]".to_owned()),
            ("cluster_cidrs", "[\"10.244.0.0/16\", \"fd00:10:244::/48\"]".to_owned()),
            ("path", format!("{:?}", if bed.path.name() == "kernel" { "kernel" } else { "af_xdp" })),
            ("port_paths", if bed.path.name() == "mixed" { "[\"veth-pod2=kernel\"]" } else { "[]" }.to_owned()),
        ];
        for (key, value) in usual.iter().filter(|(key, _)| !lines.lines().any(|line| line.starts_with(key))) {
            text.push_str(&format!("{key} = {value}\n"));
        }
        fs::write(&self.path, text + lines).with_context(|| format!("writing {}", self.path.display()))
    }
}

fn reload(bed: &Bed, options: &[&str]) -> Result<Command> {
    let mut reload = bed.podlane(1)?;
    reload.args(["reload", "--instance", &bed.instance(1)]).args(options);
    Ok(reload)
}

/// Reads the file again; `settings` change by it.
fn changes(bed: &Bed, file: &File, lines: &str, settings: &[&str]) -> Result<()> {
    file.write(bed, lines)?;
    let outcome: Value = serde_json::from_str(&command::run(&mut reload(bed, &["--json"])?, ANSWER)?)?;
    let named = |list: &Value| -> Vec<String> {
        let changes = list.as_array().into_iter().flatten();
        changes.filter_map(|change| change["setting"].as_str().map(str::to_owned)).collect()
    };
    ensure!(named(&outcome["changed"]) == settings, "{lines:?} changed {outcome}, not {settings:?}");
    Ok(())
}

/// A part of the daemon's status.
fn told(bed: &Bed, part: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&podlane_tests::daemon::status_text(&bed.instance(1))?)?;
    Ok(status[part].clone())
}

/// Waits for a note with this text.
fn wait_for_note(bed: &Bed, text: &str) -> Result<()> {
    wait_for(&format!("the note {text:?}"), Duration::from_secs(5), || {
        Ok(told(bed, "notes")?.to_string().contains(text).then_some(()))
    })
}

/// Everything that can change while the daemon runs changes, and every datagram arrives.
pub fn loses_nothing(bed: &mut Bed, family: Family) -> Result<()> {
    let file = File::start(bed, "")?;
    let ways = [bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
    ways.iter().try_for_each(|way| bed.warm_up(way))?;
    let flows: Vec<Flow> =
        ways.iter().map(|way| bed.start_udp(way, &Datagrams::steady(600, 500))).collect::<Result<_>>()?;
    changes(bed, &file, "", &[])?;
    changes(bed, &file, "log = \"debug\"\nlog_format = \"text\"\n", &["log", "log_format"])?;
    let wider = "cluster_cidrs = [\"10.244.0.0/16\", \"10.9.0.0/16\", \"fd00:10:244::/48\"]\nidle_spin_us = 0\n";
    changes(bed, &file, wider, &["cluster_cidrs", "idle_spin_us", "log", "log_format"])?;
    let cluster = told(bed, "cluster_cidrs")?.to_string();
    ensure!(cluster.contains("10.9.0.0/16"), "the network is not in force: {cluster}");
    changes(bed, &file, "skip = [\"veth-pod3\"]\n", &["cluster_cidrs", "idle_spin_us", "skip"])?;
    ensure!(bed.status(1)?.port("veth-pod3").is_none(), "a port that is skipped is one");
    changes(bed, &file, "metrics_address = \"127.0.0.1:9478\"\n", &["metrics_address", "skip"])?;
    ensure!(bed.status(1)?.port("veth-pod3").is_some(), "a port that is not skipped any more is none");
    bed.exec("node1", &["curl", "-fsS", "http://127.0.0.1:9478/metrics"])?;
    // The other path for all ports, and back; the note of the mixed testbed's single port goes and comes as well.
    let other = if bed.path.name() == "kernel" { "af_xdp" } else { "kernel" };
    let paths: &[&str] = if bed.path.name() == "mixed" {
        &["path", "port_paths", "metrics_address"]
    } else {
        &["path", "metrics_address"]
    };
    let all = format!("path = \"{other}\"\nport_paths = []\n");
    changes(bed, &file, &all, paths)?;
    ensure!(bed.status(1)?.port("eth0").is_some_and(|port| port.path == other), "the path is not {other}");
    let back: Vec<&str> = paths.iter().copied().filter(|setting| *setting != "metrics_address").collect();
    changes(bed, &file, "", &back)?;
    for flow in flows {
        flow.finish()?.intact()?;
    }
    drop(file);
    bed.stop_daemon(1)?;
    bed.start_daemon(1)
}

/// Ports become the kernel's and Podlane's again under traffic. On the kernel path nothing is lost. Where an XDP program comes off
/// a veth, its driver throws away what is in the veth's queue: a moment's packets.
pub fn ports_go_and_come(bed: &mut Bed, family: Family) -> Result<()> {
    taken_over(bed, family, |bed, family| {
        let file = File::start(bed, "")?;
        let ways = [bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
        ways.iter().try_for_each(|way| bed.warm_up(way))?;
        let flows: Vec<Flow> =
            ways.iter().map(|way| bed.start_udp(way, &Datagrams::steady(600, 500))).collect::<Result<_>>()?;
        for (lines, setting) in [("skip = [\"veth-pod1\"]\n", "skip"), ("uplinks = []\n", "uplinks")] {
            changes(bed, &file, lines, &[setting])?;
            changes(bed, &file, "", &[setting])?;
        }
        let mut longest: f64 = 0.0;
        for flow in flows {
            let received = flow.finish()?;
            if bed.path == DataPath::Kernel {
                received.intact()?;
            }
            received.unharmed()?;
            longest = longest.max(received.max_gap_ms);
        }
        ways.iter().try_for_each(|way| bed.warm_up(way))?;
        drop(file);
        bed.stop_daemon(1)?;
        bed.start_daemon(1)?;
        Ok(longest)
    })
}

/// Another bridge: its ports are the bridge's members, and the way into the kernel is one of them; then the first one again.
pub fn another_bridge(bed: &mut Bed) -> Result<()> {
    let file = File::start(bed, "")?;
    bed.sh("node1", "ip link add br9 type bridge && ip link set br9 up")?;
    let member = |bed: &Bed| -> Result<String> {
        let links: Value = serde_json::from_str(&bed.exec("node1", &["ip", "-j", "link", "show", "podlane1"])?)?;
        Ok(links[0]["master"].as_str().unwrap_or_default().to_owned())
    };
    changes(bed, &file, "bridge = \"br9\"\n", &["bridge"])?;
    wait_for("the host port to join br9", Duration::from_secs(5), || Ok((member(bed)? == "br9").then_some(())))?;
    let status = bed.status(1)?;
    ensure!(
        status.bridge == "br9" && status.port("veth-pod1").is_none(),
        "ports of another bridge: {:?}",
        status.ports
    );
    ensure!(status.port("eth0").is_some(), "an uplink is the same whatever the bridge");
    changes(bed, &file, "", &["bridge"])?;
    wait_for("the host port to join cbr0", Duration::from_secs(5), || Ok((member(bed)? == "cbr0").then_some(())))?;
    bed.exec("node1", &["ip", "link", "del", "br9"])?;
    for to in ["pod2", "pod4"] {
        bed.warm_up(&bed.way("pod1", to, Family::V4)?)?;
    }
    drop(file);
    bed.stop_daemon(1)?;
    bed.start_daemon(1)
}

/// A file that is wrong, in itself or on this node, changes nothing and says why, to whoever asks.
pub fn refused(bed: &mut Bed) -> Result<()> {
    let file = File::start(bed, "skip = [\"veth-pod3\"]\n")?;
    let name = file.path.display().to_string();
    bed.expect_complaint("the configuration is refused");
    bed.expect_complaint("needs a restart");
    let before = bed.status(1)?;
    for (lines, sentence) in [
        ("path = \"fast\"\n", "path: \"fast\" is not one of af_xdp, kernel, auto"),
        ("frames = 5000\nskip = [\"a b\"]\n", "frames: 5000 is not a power of two"),
        ("colour = 1\n", "there is no key \"colour\""),
        ("uplinks = [\"eth0\", \"eth7\"]\n", "uplinks: there is no interface eth7; name an interface towards"),
        ("bridge = \"eth0\"\nuplinks = []\n", "bridge: eth0 is not a bridge"),
        ("metrics_address = \"192.0.2.77:9000\"\n", "metrics are not served: 192.0.2.77:9000"),
    ] {
        file.write(bed, lines)?;
        for options in [["--check"].as_slice(), &[]] {
            // Whether an address can be listened at is only seen by listening.
            if options == ["--check"] && lines.starts_with("metrics") {
                continue;
            }
            let output = reload(bed, options)?.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(2), "{lines:?} {options:?}: {output:?}");
            ensure!(said.contains(sentence) && said.contains(&name), "{lines:?} {options:?}: {said}");
        }
        wait_for_note(bed, "is refused, and nothing has changed")?;
        let now = bed.status(1)?;
        let ports = |status: &podlane_tests::status::Status| -> Vec<(String, String)> {
            status.ports.iter().map(|port| (port.name.clone(), port.path.clone())).collect()
        };
        ensure!(ports(&now) == ports(&before) && now.uplinks == before.uplinks, "{lines:?} changed ports");
    }
    // By signal, and the file is gone.
    std::fs::remove_file(&file.path)?;
    bed.daemon(1)?.signal(Signal::SIGHUP)?;
    wait_for_note(bed, "No such file or directory")?;
    // A setting that waits does not keep the others from coming into force, and is told until the file says the old value.
    changes(bed, &file, "frames = 4096\n", &["skip"])?;
    wait_for_note(bed, "needs a restart: frames (16384 → 4096)")?;
    ensure!(bed.status(1)?.umem.frames == before.umem.frames, "the frames of the UMEM have changed");
    file.write(bed, "")?;
    bed.daemon(1)?.signal(Signal::SIGHUP)?;
    wait_for("no note of a restart", Duration::from_secs(5), || {
        Ok((!told(bed, "notes")?.to_string().contains("needs a restart")).then_some(()))
    })?;
    drop(file);
    bed.stop_daemon(1)?;
    bed.start_daemon(1)
}
