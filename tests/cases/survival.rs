//! Programs, links and maps outlive the daemon: it is restarted, killed, replaced while traffic runs, and taken back at last.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, DataPath, FOLLOW, Least};
use podlane_tests::command::{self, wait_for};
use podlane_tests::daemon;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Flow};

use super::{Case, podlane_families, podlane_once};

/// The cases, of every path.
pub fn cases() -> Vec<Case> {
    vec![
        podlane_families("ended_and_started", ended_and_started),
        podlane_families("killed_and_started", killed_and_started),
        podlane_families("taken_over", taken_over),
        podlane_families("another_version", another_version),
        podlane_once("detached", detached),
        podlane_once("host_port_deleted", host_port_deleted),
        Case { paths: &[DataPath::Kernel], ..podlane_once("index_given_out_again", index_given_out_again) },
    ]
}

/// Datagrams of a millisecond each that may be missing on the af_xdp path: what the workers held.
const HELD: u64 = 20;
/// How often a case is measured, if another program had the processors at the wrong moment.
const ATTEMPTS: usize = 3;

/// Runs `event` under one datagram a millisecond inside of the node and from another one. Nothing may be lost on the kernel
/// path, and no more than what workers held on any other.
fn under_traffic(bed: &mut Bed, family: Family, event: fn(&mut Bed) -> Result<()>) -> Result<()> {
    let allowed = if bed.path == DataPath::Kernel { 0 } else { HELD };
    let mut lost = Vec::new();
    for _ in 0..ATTEMPTS {
        let ways = [bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
        ways.iter().try_for_each(|way| bed.warm_up(way))?;
        let start = |way| bed.start_udp(way, &Datagrams::steady(600, 1000));
        let flows: Vec<Flow> = ways.iter().map(start).collect::<Result<_>>()?;
        event(bed)?;
        for way in &ways {
            forwards_again(bed, way)?;
        }
        let mut most = 0;
        for flow in flows {
            let received = flow.finish()?;
            received.unharmed()?;
            most = most.max(received.lost);
        }
        if most <= allowed {
            return Ok(());
        }
        lost.push(most);
    }
    anyhow::bail!("so many datagrams were lost on a way, each time, and {allowed} may be: {lost:?}")
}

fn forwards_again(bed: &Bed, way: &podlane_tests::traffic::Way) -> Result<()> {
    let before = bed.counters()?;
    wait_for("Podlane to forward again", FOLLOW, || Ok((bed.forwarded_bytes(&before, way)? >= 60_000).then_some(())))
}

/// What `ip` says of the programs on veth-pod1: their numbers, and that they are there.
fn programs(bed: &Bed) -> Result<Vec<String>> {
    let pins = bed.exec("node1", &["find", &daemon::pins(&bed.instance(1)).display().to_string(), "-type", "f"])?;
    Ok(pins.lines().filter(|pin| !pin.contains("/maps-")).map(str::to_owned).collect())
}

/// The daemon's own word on what it adopted.
fn has_adopted(bed: &Bed, same_maps: bool) -> Result<()> {
    let status: serde_json::Value = serde_json::from_str(&daemon::status_text(&bed.instance(1))?)?;
    let survival = &status["survival"];
    ensure!(survival["adopted_maps"] == same_maps && survival["adopted_links"] == 4, "it adopted {survival}");
    ensure!(survival["gap_ms"].is_number() == same_maps, "it says of the gap: {survival}");
    Ok(())
}

fn ended_and_started(bed: &mut Bed, family: Family) -> Result<()> {
    under_traffic(bed, family, |bed| {
        let before = programs(bed)?;
        ensure!(before.len() == 4, "three pods and an uplink have a program each: {before:?}");
        bed.end_daemon(1)?;
        ensure!(programs(bed)? == before, "stopping changed what is attached");
        bed.start_daemon(1)?;
        has_adopted(bed, true)
    })
}

fn killed_and_started(bed: &mut Bed, family: Family) -> Result<()> {
    under_traffic(bed, family, |bed| {
        let mut daemon = bed.take_daemon(1)?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        bed.start_daemon(1)?;
        has_adopted(bed, true)
    })
}

fn taken_over(bed: &mut Bed, family: Family) -> Result<()> {
    under_traffic(bed, family, |bed| {
        let mut old = bed.take_daemon(1)?;
        bed.start_daemon_with(1, &["--take-over"])?;
        let status = old.wait()?;
        ensure!(status.success(), "the old daemon ended with {status}");
        has_adopted(bed, true)
    })
}

/// The directory of maps of node1's daemon.
fn maps(bed: &Bed) -> Result<PathBuf> {
    let places = fs::read_dir(daemon::pins(&bed.instance(1)))?.collect::<Result<Vec<_>, _>>()?;
    let [place] = &places[..] else { anyhow::bail!("one network namespace is pinned for: {places:?}") };
    let mut maps = Vec::new();
    for entry in fs::read_dir(place.path())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("maps-")) {
            maps.push(path);
        }
    }
    ensure!(maps.len() == 1, "maps of one layout are pinned: {maps:?}");
    maps.pop().context("no maps")
}

/// What a daemon of another layout has left is replaced in place.
fn another_version(bed: &mut Bed, family: Family) -> Result<()> {
    under_traffic(bed, family, |bed| {
        bed.end_daemon(1)?;
        let own = maps(bed)?;
        fs::rename(&own, own.with_file_name("maps-00000000000000ab"))?;
        bed.start_daemon(1)?;
        ensure!(maps(bed)? == own, "the maps of the other layout are still there");
        has_adopted(bed, false)
    })
}

/// `podlane detach` refuses beside a daemon, has it stop if told to, and can be repeated.
fn detached(bed: &mut Bed) -> Result<()> {
    let words = |bed: &Bed, more: &[&str]| -> Result<command::Output> {
        let instance = bed.instance(1);
        let mut detach = bed.podlane(1)?;
        command::output(detach.args(["detach", "--instance", &instance]).args(more), Duration::from_secs(15))
    };
    let refused = words(bed, &[])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("--stop"), "it says: {}", refused.stderr);
    bed.warm_up(&bed.way("pod1", "pod2", Family::V4)?)?;
    let mut daemon = bed.take_daemon(1)?;
    let done = words(bed, &["--stop", "--json"])?;
    let status = daemon.wait()?;
    ensure!(done.status.success() && status.success(), "detach: {} {}, daemon: {status}", done.stdout, done.stderr);
    let report: serde_json::Value = serde_json::from_str(&done.stdout)?;
    let programs = report["programs"].as_array().map_or(0, Vec::len);
    ensure!(programs == 4 && report["host_port"] == true, "it reports {report}");
    bed.nothing_is_left(1)?;
    let again = bed.detach(1)?;
    ensure!(again.contains("nothing of podlane instance"), "it says: {again}");
    bed.start_daemon(1)
}

/// Somebody deletes `podlane0`: it is made anew, and traffic goes on.
fn host_port_deleted(bed: &mut Bed) -> Result<()> {
    bed.expect_complaint("podlane0 was deleted by somebody");
    bed.exec("node1", &["ip", "link", "del", "podlane0"])?;
    let way = bed.way("pod1", "pod2", Family::V4)?;
    wait_for("podlane0 to be made anew", FOLLOW, || Ok(bed.exec("node1", &["ip", "link", "show", "podlane0"]).ok()))?;
    wait_for("the daemon to answer", FOLLOW, || Ok(bed.status(1).ok()))?;
    bed.warm_up(&way)?;
    let before = bed.counters()?;
    bed.ping(&way, 56, 20)?;
    bed.went_through(&before, &way, Least::packets(20))
}

/// A pod goes while the daemon hangs, and another interface gets its index: nothing that was for the pod reaches that.
fn index_given_out_again(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    let flow = bed.start_udp(&way, &Datagrams::steady(200, 500))?;
    forwards_again(bed, &way)?;
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    let outside = bed.namespace("outside");
    // In one go: the tables are believed for a second at most. Without addresses nobody sends anything of his own accord.
    let swap = format!(
        "index=$(cat /sys/class/net/veth-pod2/ifindex 2>/dev/null || ip -o link show veth-pod2 | cut -d: -f1)
         ip link del veth-pod2
         ip link add name impostor index $index type veth peer name impostor1 netns {outside}
         sysctl -qw net.ipv6.conf.impostor.disable_ipv6=1
         ip link set impostor up"
    );
    let swapped = bed
        .sh("node1", &swap)
        .and_then(|_| bed.sh("outside", "sysctl -qw net.ipv6.conf.impostor1.disable_ipv6=1; ip link set impostor1 up"));
    let received = || -> Result<u64> {
        let text = bed.exec("outside", &["ip", "-j", "-s", "link", "show", "impostor1"])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["rx"]["packets"].as_u64().context("no counter")
    };
    let stray = swapped.and_then(|_| {
        // The flow goes on for the rest of the second and beyond.
        let way = bed.way("pod1", "pod3", Family::V4)?;
        wait_for("traffic that goes through the kernel", FOLLOW, || Ok(bed.ping(&way, 56, 3).ok()))?;
        std::thread::sleep(Duration::from_millis(1200)); // until the tables are believed no more
        received()
    });
    bed.daemon(1)?.signal(Signal::SIGCONT)?;
    drop(flow);
    let removed = bed.sh("node1", "ip link del impostor");
    bed.del_pod("pod2")?;
    bed.add_pod(1, "pod2", None)?;
    bed.warm_up(&way)?;
    removed?;
    let stray = stray?;
    ensure!(stray == 0, "{stray} packets for a pod that was gone reached another interface");
    Ok(())
}
