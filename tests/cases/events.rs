//! The world changes under the daemon, in whatever order: uplink and bridge go and come, pods vanish, others' programs appear,
//! the kernel's messages get lost. Traffic goes on or comes back, the status says in a sentence what is the matter meanwhile,
//! and nothing is left of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use podlane_tests::bed::{Bed, DataPath, FOLLOW, Least};
use podlane_tests::command::{self, wait_for};
use podlane_tests::daemon;
use podlane_tests::frames;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Way};
use serde_json::Value;

use super::bad_input::Foreign;
use super::{Case, podlane_once};

/// The cases, of every path.
pub fn cases() -> Vec<Case> {
    let unmixed: &[DataPath] = &[DataPath::AfXdp, DataPath::Kernel];
    vec![
        podlane_once("uplink_goes_and_comes", uplink_goes_and_comes),
        podlane_once("uplink_comes_after_the_daemon", uplink_comes_after_the_daemon),
        podlane_once("bridge_goes_and_comes", bridge_goes_and_comes),
        podlane_once("mtu_changes", mtu_changes),
        Case { paths: unmixed, ..podlane_once("foreign_program", foreign_program) },
        podlane_once("bandwidth_limit", bandwidth_limit),
        podlane_once("filter_at_tc", filter_at_tc),
        podlane_once("namespace_vanishes", namespace_vanishes),
        podlane_once("index_at_once_given_out_again", index_at_once_given_out_again),
        podlane_once("moved_away_and_back", moved_away_and_back),
        podlane_once("messages_lost", messages_lost),
        podlane_once("loop_hangs", loop_hangs),
        Case { paths: unmixed, ..podlane_once("bpffs_comes_and_goes", bpffs_comes_and_goes) },
        Case { paths: unmixed, ..podlane_once("many_pods_at_once", many_pods_at_once) },
    ]
}

fn status(bed: &Bed) -> Result<Value> {
    Ok(serde_json::from_str(&daemon::status_text(&bed.instance(1))?)?)
}

/// Waits until the status has a sentence with these words, or has none any more.
fn says(bed: &Bed, words: &str, wanted: bool) -> Result<()> {
    let what = format!("the status {} \"{words}\"", if wanted { "to say" } else { "to say no more" });
    let mut last = String::new();
    wait_for(&what, FOLLOW * 3, || {
        last = daemon::status_text(&bed.instance(1))?;
        Ok((last.contains(words) == wanted).then_some(()))
    })
    .with_context(|| last.clone())
}

/// A flow inside of the node, of which nothing may be missing whatever `event` does elsewhere.
fn beside_a_flow(bed: &mut Bed, event: fn(&mut Bed) -> Result<()>) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    beside(bed, &way, event)
}

fn beside(bed: &mut Bed, way: &Way, event: fn(&mut Bed) -> Result<()>) -> Result<()> {
    bed.warm_up(way)?;
    let flow = bed.start_udp(way, &Datagrams::steady(600, 1000))?;
    event(bed)?;
    flow.finish()?.intact().context("the flow beside it")
}

/// Both families work from pod1 to another pod, by way of Podlane.
fn works(bed: &Bed, to: &str) -> Result<()> {
    Family::BOTH.iter().try_for_each(|family| bed.warm_up(&bed.way("pod1", to, *family)?))
}

/// Makes eth0 of node1 and its other end anew.
fn plug_in(bed: &Bed, [near, far]: [frames::Mac; 2]) -> Result<()> {
    let (near, far, segment) = (frames::mac_text(near), frames::mac_text(far), bed.namespace("segment"));
    bed.sh(
        "node1",
        &format!("ip link add eth0 address {near} type veth peer name node1 address {far} netns {segment}; ip link set eth0 up"),
    )?;
    bed.sh("segment", "ip link set node1 addrgenmode none; ip link set node1 master seg0 up")?;
    set_uplink_up(bed)
}

/// The addresses and routes of node1's uplink: the kernel drops most of them when it goes down.
fn set_uplink_up(bed: &Bed) -> Result<()> {
    bed.sh(
        "node1",
        "ip link set eth0 up
         ip addr replace 192.168.100.1/24 dev eth0
         ip addr replace fd00:192:168:100::1/64 dev eth0
         ip route replace default via 192.168.100.254
         ip route replace default via fd00:192:168:100::254
         ip route replace 10.244.2.0/24 via 192.168.100.2
         ip route replace fd00:10:244:2::/64 via fd00:192:168:100::2",
    )?;
    Ok(())
}

/// Packets for a pod whose bandwidth somebody limits go through that limit, and past it again when it is gone. The one that
/// gets it sends a flow meanwhile, and is sent none: the kernel drops what it is to send through an interface while it
/// exchanges that interface's queueing discipline (`dev_deactivate` in `net/sched/sch_generic.c`).
fn bandwidth_limit(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod2", "pod1", Family::V4)?;
    beside(bed, &way, |bed| {
        for (qdisc, place) in [("root tbf rate 1gbit burst 1mb latency 50ms", "root"), ("ingress", "ingress")] {
            bed.sh("node1", &format!("tc qdisc add dev veth-pod2 {qdisc}"))?;
            says(bed, "veth-pod2 has the queueing discipline", true)?;
            for family in Family::BOTH {
                bed.ping(&bed.way("pod1", "pod2", family)?, 56, 20).context("by way of the kernel")?;
            }
            if place == "root" {
                let script = "tc -s qdisc show dev veth-pod2 | sed -n 's/.* bytes \\([0-9]*\\) pkt.*/\\1/p'";
                let through = bed.sh("node1", script)?;
                ensure!(through.trim() != "0", "nothing went through the limit: {through}");
            }
            bed.sh("node1", &format!("tc qdisc del dev veth-pod2 {place}"))?;
            says(bed, "veth-pod2 has the queueing discipline", false)?;
            works(bed, "pod2").context("without a limit")?;
        }
        Ok(())
    })
}

/// What others have at tc is not waited for, and the status names it.
fn filter_at_tc(bed: &mut Bed) -> Result<()> {
    // Before Linux 6.6 the kernel path has a clsact of its own there.
    bed.sh("node1", "tc qdisc add dev veth-pod2 clsact 2>/dev/null || true")?;
    bed.sh("node1", "tc filter add dev veth-pod2 egress protocol all prio 7 u32 match u32 0 0 classid 1:1")?;
    says(bed, "others have at tc: veth-pod2 (u32 filter at egress)", true)?;
    works(bed, "pod2")?;
    bed.sh("node1", "tc filter del dev veth-pod2 egress prio 7")?;
    says(bed, "others have at tc", false)
}

fn uplink_goes_and_comes(bed: &mut Bed) -> Result<()> {
    works(bed, "pod4")?;
    let macs = [bed.mac("node1", "eth0")?, bed.mac("segment", "node1")?];
    beside_a_flow(bed, |bed| {
        let out = bed.way("pod1", "pod4", Family::V4)?;
        bed.sh("node1", "ip link set eth0 down")?;
        says(bed, "eth0 is down", true)?;
        bed.ping_fails(&out)?;
        set_uplink_up(bed)?;
        works(bed, "pod4").context("down and up")?;
        bed.sh("segment", "ip link set node1 down")?;
        says(bed, "eth0 has no carrier", true)?;
        bed.sh("segment", "ip link set node1 up")?;
        works(bed, "pod4").context("unplugged and plugged in")?;
        bed.sh("node1", "ip link set eth0 name eth9")?;
        says(bed, "there is no interface eth0", true)?;
        bed.ping(&out, 56, 20).context("by way of the kernel")?;
        bed.sh("node1", "ip link set eth9 name eth0")?;
        works(bed, "pod4").context("renamed and named again")
    })?;
    beside_a_flow(bed, |bed| {
        bed.sh("node1", "ip link del eth0")?;
        says(bed, "there is no interface eth0", true)
    })?;
    plug_in(bed, macs)?;
    works(bed, "pod4").context("deleted and made anew")?;
    says(bed, "there is no interface eth0", false)
}

/// The daemon starts while its uplink has another name, under traffic that the kernel carries, and takes it when it has its own.
fn uplink_comes_after_the_daemon(bed: &mut Bed) -> Result<()> {
    works(bed, "pod4")?;
    beside_a_flow(bed, |bed| {
        let out = bed.way("pod1", "pod4", Family::V4)?;
        bed.end_daemon(1)?;
        bed.sh("node1", "ip link set eth0 name eth9")?;
        bed.expect_complaint("there is no interface eth0; waiting for it");
        bed.start_daemon(1)?;
        says(bed, "there is no interface eth0", true)?;
        bed.ping(&out, 56, 20)?;
        bed.sh("node1", "ip link set eth9 name eth0")?;
        works(bed, "pod4")
    })
}

/// The bridge's addresses, and the routes to them.
fn set_bridge_up(bed: &Bed) -> Result<()> {
    bed.sh(
        "node1",
        "ip link set cbr0 up; ip addr replace 10.244.1.1/24 dev cbr0; ip addr replace fd00:10:244:1::1/64 dev cbr0",
    )?;
    Ok(())
}

fn bridge_goes_and_comes(bed: &mut Bed) -> Result<()> {
    let mac = frames::mac_text(bed.mac("node1", "cbr0")?);
    let both = |bed: &Bed| works(bed, "pod2").and_then(|()| works(bed, "pod4"));
    both(bed)?;
    let inside = bed.way("pod1", "pod2", Family::V4)?;
    bed.sh("node1", "ip link set cbr0 name cbr9")?;
    says(bed, "there is no interface cbr0", true)?;
    bed.ping(&inside, 56, 20).context("by way of the kernel")?;
    bed.sh("node1", "ip link set cbr9 name cbr0")?;
    says(bed, "there is no interface cbr0", false)?;
    both(bed).context("renamed and named again")?;
    bed.sh("node1", "ip link set cbr0 down")?;
    says(bed, "cbr0 is down", true)?;
    bed.ping_fails(&inside).context("through a bridge that is down")?;
    set_bridge_up(bed)?;
    both(bed).context("down and up")?;
    bed.sh("node1", "ip link del cbr0")?;
    says(bed, "there is no interface cbr0", true)?;
    bed.ping_fails(&inside).context("without a bridge")?;
    bed.sh(
        "node1",
        &format!(
            "ip link add cbr0 address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             ip link set cbr0 mtu 1500
             for pod in 1 2 3; do ip link set veth-pod$pod master cbr0 up; done"
        ),
    )?;
    set_bridge_up(bed)?;
    both(bed).context("deleted and made anew")
}

/// Pings of so many bytes go through Podlane, once the mirror has heard of the MTU.
fn carries(bed: &Bed, way: &Way, bytes: usize) -> Result<()> {
    let mut last = None;
    let found = wait_for(&format!("{bytes} bytes through Podlane, {way:?}"), FOLLOW, || {
        let before = bed.counters()?;
        let carried = bed.ping(way, bytes, 3).and_then(|()| bed.went_through(&before, way, Least::packets(3)));
        Ok(match carried {
            Ok(()) => Some(()),
            Err(error) => {
                last = Some(error);
                None
            }
        })
    });
    found.map_err(|error| error.context(last.map(|last| format!("{last:#}")).unwrap_or_default()))
}

/// MTUs of uplink and pods become smaller and larger under traffic.
fn mtu_changes(bed: &mut Bed) -> Result<()> {
    works(bed, "pod4")?;
    beside_a_flow(bed, |bed| {
        let out = bed.way("pod1", "pod4", Family::V4)?;
        carries(bed, &out, 1472)?;
        // On both ends: a veth takes nothing that is larger than its own.
        let set = |bed: &Bed, mtu: u32| {
            let nodes = ["node1", "node2"];
            nodes.iter().try_for_each(|node| bed.sh(node, &format!("ip link set eth0 mtu {mtu}")).map(drop))
        };
        set(bed, 1400)?;
        carries(bed, &out, 1372)?;
        // What is too large now is the kernel's: it tells the pod, which cuts its packets from then on.
        let before = bed.counters()?;
        wait_for("the pod to learn of the smaller MTU", FOLLOW, || Ok(bed.ping(&out, 1472, 1).ok()))?;
        bed.was_passed(&before, 1, "veth-pod1", "too_big", 1)?;
        set(bed, 1500)?;
        ["pod1", "pod4"].iter().try_for_each(|pod| bed.sh(pod, "ip route flush cache").map(drop))?;
        carries(bed, &out, 1472)
    })?;
    let inside = bed.way("pod1", "pod3", Family::V4)?;
    let set = |bed: &Bed, mtu: u32| -> Result<()> {
        for pod in ["pod1", "pod3"] {
            bed.sh("node1", &format!("ip link set veth-{pod} mtu {mtu}"))?;
            bed.sh(pod, &format!("ip link set eth0 mtu {mtu}"))?;
        }
        Ok(())
    };
    for (mtu, bytes) in [(1300, 1272), (9000, 8972), (1500, 1472)] {
        set(bed, mtu)?;
        carries(bed, &inside, bytes).with_context(|| format!("pods' MTU {mtu}"))?;
    }
    Ok(())
}

/// The pin of the program on an interface of node1.
fn pin_of(bed: &Bed, interface: &str) -> Result<PathBuf> {
    let index = bed.sh("node1", &format!("ip -o link show {interface} | cut -d: -f1"))?;
    let hook = if bed.path == DataPath::Kernel { "tcx" } else { "xdp-native" };
    let pins = bed.exec("node1", &["find", &daemon::pins(&bed.instance(1)).display().to_string()])?;
    let end = format!("/{hook}-{}", index.trim());
    Ok(pins.lines().find(|pin| pin.ends_with(&end)).with_context(|| format!("no pin {end}: {pins}"))?.into())
}

/// While the daemon runs, nobody's XDP program takes the place of its own. While it does not, somebody removes a pin and attaches
/// his: the next daemon leaves that port to the kernel, says whose program is there, and takes the port when that is gone. Where
/// the port takes the kernel path the two do not meet.
fn foreign_program(bed: &mut Bed) -> Result<()> {
    works(bed, "pod2")?;
    if bed.path == DataPath::Kernel {
        let foreign = Foreign::attach(bed, "veth-pod1")?;
        works(bed, "pod2").context("beside somebody's XDP program")?;
        drop(foreign);
        return works(bed, "pod2");
    }
    ensure!(Foreign::attach(bed, "veth-pod1").is_err(), "somebody's program took the place of Podlane's");
    works(bed, "pod2")?;
    bed.end_daemon(1)?;
    fs::remove_file(pin_of(bed, "veth-pod1")?)?;
    let foreign = Foreign::attach(bed, "veth-pod1")?;
    // The bed's commands need no more than its name.
    let way = bed.way("pod1", "pod2", Family::V4)?;
    let mut run = bed.podlane_run(1)?;
    let mut daemon = daemon::Daemon::start(&mut run, &bed.instance(1))?;
    daemon.wait_until_ready()?;
    says(bed, "foreign", true)?;
    bed.ping(&way, 56, 20).context("by way of the kernel")?;
    drop(foreign);
    says(bed, "foreign", false)?;
    daemon.signal(Signal::SIGTERM)?;
    daemon.wait()?;
    bed.start_daemon(1)?;
    works(bed, "pod2")
}

/// A network namespace goes with everything in it, in the middle of traffic and while its settings are being changed.
fn namespace_vanishes(bed: &mut Bed) -> Result<()> {
    let descriptors =
        |bed: &mut Bed| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", bed.daemon(1)?.pid()))?.count()) };
    works(bed, "pod3")?;
    let before = descriptors(bed)?;
    beside_a_flow(bed, |bed| {
        for _ in 0..3 {
            let (address, place) = (bed.address("pod3", Family::V4)?.to_string(), bed.namespace("pod3"));
            let mut ping = bed.command("pod1", "ping");
            let mut ping = ping.args(["-q", "-i", "0.002", &address]).stdout(Stdio::null()).spawn()?;
            // From outside: a namespace lives for as long as a process is in it.
            let set = |mtu: u32| format!("ip -n {place} link set eth0 mtu {mtu} 2>/dev/null");
            let change = format!("while {} && {}; do :; done", set(1400), set(1500));
            let mut changing = Command::new("sh").args(["-c", &change]).spawn()?;
            let counted = bed.counters()?;
            let way = bed.way("pod1", "pod3", Family::V4)?;
            let flows = wait_for("the ping to be under way", FOLLOW, || {
                Ok((bed.forwarded_bytes(&counted, &way)? > 5_000).then_some(()))
            });
            let gone = command::run(Command::new("ip").args(["netns", "del", &place]), FOLLOW);
            changing.wait()?;
            let closed = wait_for("the port to be closed", FOLLOW, || {
                Ok(bed.status(1)?.port("veth-pod3").is_none().then_some(()))
            });
            ping.kill()?;
            ping.wait()?;
            flows.and(gone.map(drop)).and(closed)?;
            bed.add_pod(1, "pod3", None)?;
            works(bed, "pod3")?;
        }
        Ok(())
    })?;
    bed.audit()?;
    let after = descriptors(bed)?;
    ensure!(after <= before, "{before} descriptors before, {after} after");
    Ok(())
}

/// veth-pod3 goes, and another interface gets its name and its index before the daemon can have heard of either.
fn index_at_once_given_out_again(bed: &mut Bed) -> Result<()> {
    works(bed, "pod3")?;
    let (mac, address) = (frames::mac_text(bed.mac("pod3", "eth0")?), bed.address("pod3", Family::V4)?);
    let host = frames::mac_text(bed.mac("node1", "veth-pod3")?);
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    let swapped = bed.sh(
        "node1",
        &format!(
            "index=$(ip -o link show veth-pod3 | cut -d: -f1)
             ip link del veth-pod3
             ip link add veth-pod3 index $index address {host} type veth peer name eth0 address {mac} netns {pod}
             ip link set veth-pod3 addrgenmode none
             ip link set veth-pod3 master cbr0 up",
            pod = bed.namespace("pod3")
        ),
    );
    bed.daemon(1)?.signal(Signal::SIGCONT)?;
    swapped?;
    bed.sh(
        "pod3",
        &format!("ip link set eth0 up; ip addr add {address}/24 dev eth0; ip route add default via 10.244.1.1"),
    )?;
    bed.warm_up(&bed.way("pod1", "pod3", Family::V4)?)?;
    bed.warm_up(&bed.way("pod4", "pod3", Family::V4)?)?;
    bed.del_pod("pod3")?;
    bed.add_pod(1, "pod3", None)?;
    works(bed, "pod3")
}

/// A pod's interface is in another namespace for a moment: the kernel closes what was bound to it, and nothing about it looks
/// different afterwards.
fn moved_away_and_back(bed: &mut Bed) -> Result<()> {
    works(bed, "pod3")?;
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    let (node, outside) = (bed.namespace("node1"), bed.namespace("outside"));
    let moved = bed.sh("node1", &format!("ip link set veth-pod3 netns {outside}")).and_then(|_| {
        bed.sh("outside", &format!("ip link set veth-pod3 netns {node}"))?;
        bed.sh("node1", "ip link set veth-pod3 addrgenmode none; ip link set veth-pod3 master cbr0 up")
    });
    bed.daemon(1)?.signal(Signal::SIGCONT)?;
    moved?;
    works(bed, "pod3")
}

/// Routes that come and go while the daemon is stopped: more messages than its queue holds.
const STORM: usize = 110_000;

/// The kernel has more to say than the daemon's queue holds: what changed meanwhile is known afterwards all the same.
fn messages_lost(bed: &mut Bed) -> Result<()> {
    works(bed, "pod4")?;
    let overruns = |bed: &Bed| -> Result<u64> { status(bed)?["mirror"]["overruns"].as_u64().context("no overruns") };
    let hop = bed.address("node2", Family::V4)?;
    let before = overruns(bed)?;
    let missing = missing_routes(bed)?;
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    let mut lines = String::new();
    for index in 0..STORM {
        let (third, fourth) = (128 + index / 250 % 100, index % 250);
        let verb = if index / 25_000 % 2 == 0 { "add" } else { "del" };
        let _ = writeln!(lines, "route {verb} 10.244.{third}.{fourth}/32 via {hop} dev eth0");
    }
    let mut batch = bed.command("node1", "ip");
    let storm = command::run_with_input(batch.args(["-batch", "-"]), lines, Duration::from_secs(60));
    // The last that happens, of which no message tells.
    let last = storm.and_then(|_| {
        bed.del_pod("pod3")?;
        bed.sh("node1", &format!("ip route add 10.244.77.0/24 via {hop} dev eth0; ip route del 10.244.2.0/24"))
    });
    let added = bed.add_pod(1, "pod3", Some("02:00:00:00:77:03"));
    bed.daemon(1)?.signal(Signal::SIGCONT)?;
    last?;
    added?;
    wait_for("the loss to be noticed", FOLLOW, || Ok((overruns(bed)? > before).then_some(())))?;
    same_routes(bed, missing)?;
    works(bed, "pod3")?;
    bed.sh(
        "node1",
        &format!("ip route show | sed -n 's/^10.244.[0-9.]* via .*/route del &/p' | ip -batch -; ip route add 10.244.2.0/24 via {hop}"),
    )?;
    same_routes(bed, missing)?;
    works(bed, "pod4")?;
    bed.del_pod("pod3")?;
    bed.add_pod(1, "pod3", None)?;
    works(bed, "pod3")
}

/// IPv4 routes of the kernel that do not stand in the tables: those that Podlane has no use for.
fn missing_routes(bed: &Bed) -> Result<i64> {
    let tables = status(bed)?["tables"]["routes_ipv4"].as_i64().context("no count of routes")?;
    let kernel = bed.sh("node1", "ip route show table main; ip route show table local")?;
    Ok(kernel.lines().count() as i64 - tables)
}

/// Of the kernel's routes as many are missing in the tables as before.
fn same_routes(bed: &Bed, before: i64) -> Result<()> {
    wait_for("the tables to have every route", FOLLOW, || Ok((missing_routes(bed)? == before).then_some(())))
        .with_context(|| format!("{before} were missing before, now {:?}", missing_routes(bed)))
}

/// The loop that follows the kernel hangs while the workers go on. Nobody may rely on what it last knew for longer than a second.
fn loop_hangs(bed: &mut Bed) -> Result<()> {
    works(bed, "pod3")?;
    let way = bed.way("pod1", "pod2", Family::V4)?;
    let flow = bed.start_udp(&way, &Datagrams::steady(600, 1000))?;
    let before = bed.counters()?;
    // A tracer stops one thread, here the first, and leaves the others alone.
    let hung = Pid::from_raw(bed.daemon(1)?.pid() as i32);
    ptrace::seize(hung, ptrace::Options::empty()).context("tracing the loop")?;
    ptrace::interrupt(hung).context("stopping the loop")?;
    waitpid(hung, Some(WaitPidFlag::__WALL))?;
    let since = Instant::now();
    let told = while_it_hangs(bed);
    // Long enough that the tables are trusted no more.
    std::thread::sleep(Duration::from_millis(1500).saturating_sub(since.elapsed()));
    ptrace::detach(hung, None).context("letting the loop go on")?;
    told?;
    wait_for("the daemon to answer", FOLLOW, || Ok(bed.status(1).ok()))?;
    bed.was_passed(&before, 1, "veth-pod1", "tables_stale", 100)?;
    let received = flow.finish()?;
    received.intact().context("the flow beside it")?;
    works(bed, "pod3")?;
    bed.del_pod("pod3")?;
    bed.add_pod(1, "pod3", None)?;
    works(bed, "pod3")
}

/// A pod is replaced by another with the same addresses, MAC included, of which the daemon cannot know.
fn while_it_hangs(bed: &mut Bed) -> Result<()> {
    let mac = frames::mac_text(bed.mac("pod3", "eth0")?);
    bed.del_pod("pod3")?;
    bed.add_pod(1, "pod3", Some(&mac))?;
    for family in Family::BOTH {
        let way = bed.way("pod1", "pod3", family)?;
        wait_for("the new pod to be reached", Duration::from_millis(1500), || Ok(bed.ping(&way, 56, 1).ok()))?;
        bed.ping(&way, 56, 20)?;
    }
    Ok(())
}

/// A bpffs of the case's own.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(bed: &Bed) -> Result<Bpffs> {
        let path = std::env::temp_dir().join(format!("{}-bpf", bed.name));
        fs::create_dir(&path)?;
        let bpffs = Bpffs(path);
        command::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs.0), FOLLOW)?;
        Ok(bpffs)
    }

    fn unmount(&self) -> Result<()> {
        command::run(Command::new("umount").arg(&self.0), FOLLOW).map(drop)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// The bpffs with the pins is unmounted under the daemon: it goes on, and everything ends with it. The next one says that there
/// is none.
fn bpffs_comes_and_goes(bed: &mut Bed) -> Result<()> {
    bed.stop_daemon(1)?;
    let bpffs = Bpffs::mount(bed)?;
    let directory = bpffs.0.display().to_string();
    let file = std::env::temp_dir().join(format!("{}-bpffs.toml", bed.name));
    fs::write(&file, format!("bpffs = \"{directory}\"\n"))?;
    let config = file.display().to_string();
    let outcome = (|| {
        bed.start_daemon_with(1, &["--config", &config])?;
        works(bed, "pod2")?;
        bpffs.unmount()?;
        beside_a_flow(bed, |bed| {
            bed.del_pod("pod3")?;
            bed.add_pod(1, "pod3", None)?;
            works(bed, "pod3")?;
            let way = bed.way("pod1", "pod3", Family::V4)?;
            bed.expect_complaint("is not on bpffs");
            bed.expect_complaint("pinned");
            bed.end_daemon(1)?;
            bed.ping(&way, 56, 20).context("by way of the kernel")
        })?;
        bed.start_daemon_with(1, &["--config", &config])?;
        says(bed, "is not on bpffs", true)?;
        works(bed, "pod2")
    })();
    let ended = outcome.and_then(|()| bed.end_daemon(1)).and_then(|()| bed.nothing_is_left(1));
    fs::remove_file(&file)?;
    ended?;
    bed.start_daemon(1)
}

/// Pods that come at once: all that a /24 has room for beside those that are there.
const MANY: std::ops::RangeInclusive<usize> = 5..=254;

/// Every address of the node's subnet gets a pod, at once.
fn many_pods_at_once(bed: &mut Bed) -> Result<()> {
    let memory = |bed: &mut Bed| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", bed.daemon(1)?.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_ascii_whitespace().nth(1).context("no number")?.parse()?)
    };
    works(bed, "pod2")?;
    let before = memory(bed)?;
    let name = bed.name.clone();
    let pod = |host: usize| format!("{name}-pod{}", 1000 + host);
    let made: String = MANY.map(|host| format!("netns add {}\n", pod(host))).collect();
    command::run_with_input(Command::new("ip").args(["-batch", "-"]), made, Duration::from_secs(30))?;
    let outcome = connect_many(bed, &pod, before, memory);
    let removed: String = MANY.map(|host| format!("netns del {}\n", pod(host))).collect();
    command::run_with_input(Command::new("ip").args(["-batch", "-"]), removed, Duration::from_secs(30))?;
    outcome?;
    wait_for(
        "the ports to be closed",
        Duration::from_secs(30),
        || Ok((bed.status(1)?.ports.len() == 5).then_some(())),
    )?;
    works(bed, "pod2")
}

fn connect_many(
    bed: &mut Bed,
    pod: &dyn Fn(usize) -> String,
    before: u64,
    memory: impl Fn(&mut Bed) -> Result<u64>,
) -> Result<()> {
    let mut lines = String::new();
    for host in MANY {
        let _ = writeln!(lines, "link add veth-m{host} type veth peer name eth0 netns {}", pod(host));
        let _ = writeln!(lines, "link set veth-m{host} master cbr0 up");
    }
    let start = Instant::now();
    let mut batch = bed.command("node1", "ip");
    command::run_with_input(batch.args(["-batch", "-"]), lines, Duration::from_secs(60))?;
    for host in MANY {
        let lines =
            format!("link set eth0 up\naddr add 10.244.1.{host}/24 dev eth0\nroute add default via 10.244.1.1\n");
        let mut inside = Command::new("ip");
        inside.args(["-n", &pod(host), "-batch", "-"]);
        command::run_with_input(&mut inside, lines, FOLLOW)?;
    }
    let connected = start.elapsed();
    let is_port = |bed: &Bed| -> Result<Option<usize>> {
        let ports = bed.status(1)?.ports.len();
        Ok((ports == MANY.count() + 5).then_some(ports))
    };
    wait_for("every pod to be a port", Duration::from_secs(30), || is_port(bed))?;
    let served = start.elapsed();
    wait_for("every pod to be reached by way of Podlane", Duration::from_secs(30), || {
        let each = "for host in $(seq 5 254); do echo 10.244.1.$host; done | xargs -P 16 -n 1 ping -q -c 2 -i 0.2 -W 2";
        bed.sh("pod1", &format!("{each} >/dev/null"))?;
        let ports: BTreeMap<String, u64> =
            bed.status(1)?.ports.into_iter().map(|port| (port.name, port.forwarded + port.repeated)).collect();
        Ok(MANY.clone().all(|host| ports.get(&format!("veth-m{host}")).is_some_and(|count| *count > 0)).then_some(()))
    })?;
    println!(
        "{} pods: connected after {:.1} s, ports after {:.1} s, reached after {:.1} s; {} KiB more memory",
        MANY.count(),
        connected.as_secs_f64(),
        served.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        memory(bed)?.saturating_sub(before)
    );
    Ok(())
}
