//! The daemon is stopped, killed, ended, started again: the node never loses its network.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::Bed;
use podlane_tests::command::{self, wait_for};
use podlane_tests::status::Port;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Flow, Way};

/// Without a live worker, traffic goes on through the kernel after so long at most, milliseconds.
const TAKEN_OVER_MS: f64 = 120.0;
/// What the ports' first changes to the kernel path may cost where its program is a filter: the kernel makes the filter's qdisc
/// then, and drops what it is about to send to the interface itself (`net/sched/sch_api.c`, `qdisc_graft`). 100 ms' worth: such
/// kernels are tested in emulation, where workers come late as well.
const LOST_TO_QDISC: u64 = 200;

/// A daemon with nothing to do uses next to nothing.
pub fn idle(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod4", Family::V4)?;
    bed.warm_up(&way)?;
    bed.audit()?;
    let measured = Duration::from_secs(4);
    let before = bed.daemon(1)?.processor_time()?;
    std::thread::sleep(measured); // a measurement takes its time
    let used = bed.daemon(1)?.processor_time()? - before;
    // The kernel counts in ticks of 10 ms.
    let most = measured.mul_f64(0.01) + Duration::from_millis(10);
    ensure!(used <= most, "an idle daemon used {used:?} of {measured:?}");
    Ok(())
}

/// Flows into and out of node1, inside of it and from another node, one datagram a millisecond.
struct Flows {
    ways: Vec<Way>,
    flows: Vec<Flow>,
    /// A flow that Podlane never sees: how long the machine itself makes datagrams wait.
    control: Flow,
    /// The longest pause of the flows before anything is done to the daemon, milliseconds.
    noise: f64,
}

impl Flows {
    fn start(bed: &Bed, family: Family) -> Result<Flows> {
        let ways = vec![bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
        let steady = Datagrams::steady(1000, 1000);
        let mut noise: f64 = 0.0;
        for way in &ways {
            bed.warm_up(way)?;
            let calm = bed.udp(way, &Datagrams { count: Some(500), ..steady.clone() })?;
            calm.intact()?;
            noise = noise.max(calm.max_gap_ms);
        }
        let flows = ways.iter().map(|way| bed.start_udp(way, &steady)).collect::<Result<_>>()?;
        let control = bed.start_udp(&bed.way("outside", "node2", family)?, &steady)?;
        Ok(Flows { ways, flows, control, noise })
    }

    /// Waits until so many packets more have been forwarded by the kernel of node1.
    fn wait_for_kernel(&self, bed: &Bed, family: Family) -> Result<()> {
        let count = || bed.kernel_counter("node1", family, family.pick("Ip ForwDatagrams", "Ip6OutForwDatagrams"));
        let before = count()?;
        wait_for("the kernel to forward", Duration::from_secs(5), || Ok((count()? >= before + 200).then_some(())))
    }

    /// Waits until the workers forward both flows again.
    fn wait_for_workers(&self, bed: &Bed) -> Result<()> {
        for way in &self.ways {
            let before = bed.counters()?;
            wait_for("the workers to forward again", Duration::from_secs(10), || {
                Ok((bed.forwarded_bytes(&before, way)? >= 200_000).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Ends the flows. Datagrams may have been lost meanwhile, none may have been changed or repeated. Gives how long
    /// traffic stood still beyond what the machine itself makes it wait, milliseconds.
    fn finish(self) -> Result<f64> {
        let noise = self.noise.max(self.control.finish()?.max_gap_ms);
        let mut longest: f64 = 0.0;
        for flow in self.flows {
            let received = flow.finish()?;
            received.unharmed()?;
            longest = longest.max(received.max_gap_ms - noise);
        }
        Ok(longest)
    }
}

/// Takes a case's measurement of the pause, again where it is too long: another program may have had the processors just
/// then. A way that is really blocked is so each time.
pub(super) fn taken_over(bed: &mut Bed, family: Family, measure: fn(&mut Bed, Family) -> Result<f64>) -> Result<()> {
    let most = TAKEN_OVER_MS * f64::from(command::slowness());
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let pause = measure(bed, family)?;
        if pause <= most {
            return Ok(());
        }
        pauses.push(pause);
    }
    bail!("traffic stood still for more than {most} ms each time: {pauses:?}")
}

/// SIGSTOP: the XDP program notices that nobody drains the sockets. SIGCONT: the workers go on.
pub fn stopped(bed: &mut Bed, family: Family) -> Result<()> {
    taken_over(bed, family, |bed, family| {
        let flows = Flows::start(bed, family)?;
        bed.daemon(1)?.signal(Signal::SIGSTOP)?;
        let went_on = flows.wait_for_kernel(bed, family);
        bed.daemon(1)?.signal(Signal::SIGCONT)?;
        went_on?;
        flows.wait_for_workers(bed)?;
        flows.finish()
    })
}

/// SIGKILL: the sockets are gone. A new daemon takes over what the dead one left.
pub fn killed(bed: &mut Bed, family: Family) -> Result<()> {
    taken_over(bed, family, |bed, family| {
        let flows = Flows::start(bed, family)?;
        let mut daemon = bed.take_daemon(1)?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        flows.wait_for_kernel(bed, family)?;
        bed.start_daemon(1)?;
        flows.wait_for_workers(bed)?;
        flows.finish()
    })
}

/// SIGTERM: exit code 0, nothing is left in the node, traffic goes on; a new daemon starts.
pub fn ended(bed: &mut Bed, family: Family) -> Result<()> {
    taken_over(bed, family, |bed, family| {
        let flows = Flows::start(bed, family)?;
        bed.stop_daemon(1)?;
        // Entries that Podlane has written or has taken over would never age out.
        let fdb = bed.exec("node1", &["bridge", "-d", "fdb", "show", "br", "cbr0"])?;
        let neighbours = bed.exec("node1", &["ip", "-d", "neigh"])?;
        for (what, text) in [("FDB", fdb), ("neighbour table", neighbours)] {
            let left: Vec<&str> =
                text.lines().filter(|line| line.contains("extern_learn") || line.contains("managed")).collect();
            ensure!(left.is_empty(), "Podlane's entries are left in the {what}: {left:?}");
        }
        flows.wait_for_kernel(bed, family)?;
        bed.start_daemon(1)?;
        flows.wait_for_workers(bed)?;
        flows.finish()
    })
}

/// `podlane path` while traffic runs: every datagram arrives, and goes the way that was asked for from then on.
pub fn path_changes(bed: &mut Bed, family: Family) -> Result<()> {
    let ways = [bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
    ways.iter().try_for_each(|way| bed.warm_up(way))?;
    let flows: Vec<Flow> =
        ways.iter().map(|way| bed.start_udp(way, &Datagrams::steady(600, 500))).collect::<Result<_>>()?;
    // All ports, then one of them, then all again, which forgets what was said of the one.
    for (path, ports, expected) in [
        ("kernel", [].as_slice(), "kernel"),
        ("af_xdp", &[], "af_xdp"),
        ("auto", &[], "kernel"),
        ("af_xdp", &["veth-pod1"], "af_xdp"),
        ("af_xdp", &["eth0"], "af_xdp"),
        ("kernel", &["veth-pod1"], "kernel"),
        ("af_xdp", &[], "af_xdp"),
    ] {
        let instance = bed.instance(1);
        let mut change = bed.podlane(1)?;
        change.args(["path", path]).args(ports).args(["--instance", &instance]);
        command::run(&mut change, Duration::from_secs(10))?;
        let before = bed.status(1)?;
        for name in ["veth-pod1", "eth0"].iter().filter(|name| ports.is_empty() || ports.contains(name)) {
            let port = before.port(name).with_context(|| format!("{name} is no port"))?;
            ensure!(port.path == expected, "{name} takes the path {}, not {expected}", port.path);
            let by = |port: &Port| if expected == "kernel" { port.repeated } else { port.forwarded };
            wait_for(&format!("packets from {name} on the path {expected}"), Duration::from_secs(5), || {
                let now = bed.status(1)?;
                Ok(now.port(name).is_some_and(|now| by(now) >= by(port) + 300).then_some(()))
            })?;
        }
    }
    let most_lost = if bed.status(1)?.kernel_program == "clsact" { LOST_TO_QDISC } else { 0 };
    for flow in flows {
        let received = flow.finish()?;
        received.unharmed()?;
        ensure!(received.lost <= most_lost, "datagrams were lost: {received:?}");
    }
    Ok(())
}

/// A port that is not there, and a word that is no path, change nothing.
pub fn wrong_path_changes(bed: &mut Bed) -> Result<()> {
    let instance = bed.instance(1);
    for (arguments, code, sentence) in [
        (["path", "kernel", "veth-nobody"], 1, "there is no port veth-nobody"),
        (["path", "fast", "veth-pod1"], 2, "possible values: af_xdp, kernel, auto"),
    ] {
        let output = bed.podlane(1)?.args(arguments).args(["--instance", &instance]).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && text.contains(sentence), "{arguments:?}: {text}");
    }
    let status = bed.status(1)?;
    ensure!(status.ports.iter().all(|port| port.path == "af_xdp"), "a refused change changed a path");
    Ok(())
}
