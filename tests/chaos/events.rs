//! What happens to node1, and what it may cost.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::command::{self, Background, wait_for};
use podlane_tests::evidence::Evidence;
use podlane_tests::frames;
use podlane_tests::load::{Load, Outcome, PINGS, Plan, RATE, Where};
use podlane_tests::testbed::Family;

use crate::report::{Report, Row};

/// Where counters are read.
const PLACES: [&str; 7] = ["node1", "node2", "pod1", "pod2", "pod3", "pod4", "segment"];
/// How often an event is measured before a loss is believed that the machine itself may be guilty of.
const ATTEMPTS: u32 = 3;
/// A sender that was this late was kept from running, and so was everything else, milliseconds.
const MACHINE_STOOD_STILL_MS: f64 = 20.0;
/// Routes of each family that come at once.
const MANY_ROUTES: usize = 5000;

/// An event.
pub struct Event {
    /// In the names of the trials.
    pub name: &'static str,
    /// Without Podlane it has no meaning.
    pub needs_podlane: bool,
    /// What it may cost a stream on the path `af_xdp`, milliseconds of it; `None` is measured and said, not judged.
    af_xdp_ms: Option<u64>,
    /// The same on the path `kernel`.
    kernel_ms: Option<u64>,
    /// The flows that run meanwhile, by turns.
    plans: fn(DataPath, bool) -> Vec<Plan>,
    run: fn(&mut Bed, bool) -> Result<()>,
}

/// Every event.
pub static ALL: [Event; 8] = [
    Event { needs_podlane: false, ..event("calm", Some(0), Some(0), calm) },
    event("sigterm_and_start", Some(20), Some(0), sigterm_and_start),
    event("sigkill_and_start", Some(20), Some(0), sigkill_and_start),
    event("upgrade", Some(20), Some(0), upgrade),
    event("sigstop", Some(120), Some(0), sigstop),
    Event { needs_podlane: false, ..event("pods_beside", Some(0), Some(0), pods_beside) },
    Event { needs_podlane: false, ..event("routes", Some(0), Some(0), routes) },
    Event { needs_podlane: false, plans: on_the_other_processor, ..event("flood", None, Some(0), flood) },
];

const fn event(
    name: &'static str,
    af_xdp_ms: Option<u64>,
    kernel_ms: Option<u64>,
    run: fn(&mut Bed, bool) -> Result<()>,
) -> Event {
    Event { name, needs_podlane: true, af_xdp_ms, kernel_ms, plans: by_turns, run }
}

/// Two ways at a time, which two processors can carry beside what is measured. The long form has every way in both families, the
/// short one each way in one family, and on the other path in the other family.
fn by_turns(path: DataPath, long: bool) -> Vec<Plan> {
    let plan = |family: Family, wheres: [Where; 2]| Plan { families: vec![family], wheres: wheres.to_vec(), cpu: None };
    let [first, second] = if path == DataPath::Kernel { [Family::V6, Family::V4] } else { Family::BOTH };
    let (inside, between) = ([Where::Node, Where::In], [Where::Out, Where::Host]);
    let short = vec![plan(first, inside), plan(second, between)];
    if long { [short, vec![plan(second, inside), plan(first, between)]].concat() } else { short }
}

/// Flows that stay on one processor, so that what is queued on the other is not in their way.
fn on_the_other_processor(path: DataPath, long: bool) -> Vec<Plan> {
    by_turns(path, long).into_iter().map(|plan| Plan { cpu: Some(1), ..plan }).collect()
}

impl Event {
    /// Datagrams that a stream may lose on a path.
    fn allowed(&self, path: DataPath) -> Option<u64> {
        let ms = match path {
            DataPath::Kernel | DataPath::Without => self.kernel_ms,
            DataPath::AfXdp | DataPath::Mixed => self.af_xdp_ms,
        };
        Some(ms? * RATE / 1000)
    }
}

/// Measures an event, and judges what it cost.
pub fn run(bed: &mut Bed, event: &Event, long: bool, report: &mut Report) -> Result<()> {
    (event.plans)(bed.path, long).iter().try_for_each(|plan| judged(bed, event, plan, long, report))
}

fn judged(bed: &mut Bed, event: &Event, plan: &Plan, long: bool, report: &mut Report) -> Result<()> {
    let allowed = event.allowed(bed.path);
    for attempt in 1..=ATTEMPTS {
        let measured = measure(bed, event, plan, long).with_context(|| format!("attempt {attempt}"))?;
        let faults = faults(&measured.outcomes, allowed);
        // What the machine lost by itself says nothing of Podlane. It is measured again, and told in the report.
        let again = !faults.is_empty() && measured.machine_is_guilty() && attempt < ATTEMPTS;
        for outcome in &measured.outcomes {
            report.add(Row {
                event: event.name,
                path: bed.path.name(),
                allowed,
                attempt,
                judged: !again,
                outcome: outcome.clone(),
            });
        }
        if again {
            continue;
        }
        ensure!(faults.is_empty(), "{}\n{}", measured.describe(), faults.join("\n"));
        return Ok(());
    }
    bail!("the machine was too busy {ATTEMPTS} times")
}

/// What is not as it should be, in sentences.
fn faults(outcomes: &[Outcome], allowed: Option<u64>) -> Vec<String> {
    let mut faults = Vec::new();
    for Outcome { place, family, stream, tcp, ping } in outcomes {
        let mut fault = |what: String| faults.push(format!("{place}, {family}: {what}"));
        if stream.corrupt + stream.duplicates + stream.strangers > 0 || stream.received == 0 || tcp.bytes == 0 {
            fault(format!("datagrams were changed, repeated or not seen at all: {stream:?}, {tcp:?}"));
        }
        if !stream.kept_its_rate() {
            fault(format!("the sender was too late for {} datagrams, and sent {}", stream.skipped, stream.sent));
        }
        let Some(allowed) = allowed else { continue };
        if stream.lost() > allowed {
            fault(format!("{} datagrams of {} were lost, not {allowed} at most", stream.lost(), stream.sent));
        }
        // A pause of so many milliseconds can begin just before a request.
        let pings = if allowed == 0 { 0 } else { allowed * PINGS / RATE + 1 };
        if ping.lost > pings {
            fault(format!("{} pings of {} were lost, not {pings} at most", ping.lost, ping.sent));
        }
    }
    faults
}

struct Measured {
    outcomes: Vec<Outcome>,
    before: Evidence,
    after: Evidence,
}

impl Measured {
    fn machine_is_guilty(&self) -> bool {
        self.after.grown(&self.before, "machine backlog dropped") > 0
            || self.outcomes.iter().any(|outcome| outcome.stream.latest_ms > MACHINE_STOOD_STILL_MS)
            || self.outcomes.iter().any(|outcome| !outcome.stream.kept_its_rate())
    }

    /// For the one who must find out why.
    fn describe(&self) -> String {
        let mut text = String::from("What was counted meanwhile:");
        for (name, count) in self.after.since(&self.before) {
            let _ = write!(text, "\n  {name}: {count}");
        }
        for outcome in self.outcomes.iter().filter(|outcome| outcome.stream.gap_count > 0) {
            let _ = write!(text, "\n{}, {}: {:?}", outcome.place, outcome.family, outcome.stream);
        }
        text
    }
}

fn measure(bed: &mut Bed, event: &Event, plan: &Plan, long: bool) -> Result<Measured> {
    let before = Evidence::gather(bed, &PLACES)?;
    let load = Load::start(bed, plan)?;
    wait_for_podlane(bed, plan)?;
    let happened = (event.run)(bed, long).and_then(|()| wait_for_podlane(bed, plan));
    let outcomes = load.finish();
    happened?;
    let outcomes = outcomes?;
    let after = Evidence::gather(bed, &PLACES)?;
    Ok(Measured { outcomes, before, after })
}

/// Waits until Podlane forwards every flow, be it for the first time or again.
fn wait_for_podlane(bed: &Bed, plan: &Plan) -> Result<()> {
    if !bed.has_podlane() {
        hold(Duration::from_millis(300));
        return Ok(());
    }
    for (at, family) in plan.wheres.iter().flat_map(|at| plan.families.iter().map(move |family| (*at, *family))) {
        // The host's own packets are the kernel's.
        if at == Where::Host {
            continue;
        }
        let way = at.way(bed, family)?;
        let before = bed.counters()?;
        wait_for(&format!("Podlane to forward: {way:?}"), Duration::from_secs(10), || {
            Ok((bed.forwarded_bytes(&before, &way)? >= 100_000).then_some(()))
        })?;
    }
    Ok(())
}

/// Lets the streams run: what is measured takes its time.
fn hold(time: Duration) {
    std::thread::sleep(time);
}

fn calm(_: &mut Bed, long: bool) -> Result<()> {
    hold(Duration::from_secs(if long { 10 } else { 2 }));
    Ok(())
}

/// Long enough that what Podlane leaves behind is no longer trusted at the end: both states are crossed.
const WITHOUT_DAEMON: Duration = Duration::from_millis(1500);

fn sigterm_and_start(bed: &mut Bed, _: bool) -> Result<()> {
    bed.end_daemon(1)?;
    hold(WITHOUT_DAEMON);
    bed.start_daemon(1)
}

/// A second daemon takes over from the one that runs.
fn upgrade(bed: &mut Bed, _: bool) -> Result<()> {
    bed.take_over(1)
}

fn sigkill_and_start(bed: &mut Bed, _: bool) -> Result<()> {
    let mut daemon = bed.take_daemon(1)?;
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    hold(WITHOUT_DAEMON);
    bed.start_daemon(1)
}

fn sigstop(bed: &mut Bed, long: bool) -> Result<()> {
    bed.daemon(1)?.signal(Signal::SIGSTOP)?;
    hold(Duration::from_secs(if long { 10 } else { 3 }));
    bed.daemon(1)?.signal(Signal::SIGCONT)
}

/// Pods are added to node1 and removed again, all of them; the same ones each time, because the addresses of removed pods stay
/// theirs and a subnet has no more than 250.
fn pods_beside(bed: &mut Bed, long: bool) -> Result<()> {
    let first = bed.shape.nodes * bed.shape.pods + 1;
    let pods: Vec<String> = (first..).take(if long { 100 } else { 8 }).map(|number| format!("pod{number}")).collect();
    pods.iter().try_for_each(|pod| bed.add_pod(1, pod, None))?;
    listed(bed, &pods, true)?;
    pods.iter().try_for_each(|pod| bed.del_pod(pod))?;
    listed(bed, &pods, false)
}

/// The daemon of node1 lists all of these pods' ports, or none of them.
fn listed(bed: &Bed, pods: &[String], wanted: bool) -> Result<()> {
    if !bed.has_podlane() {
        return Ok(());
    }
    let what = if wanted { "every pod to be a port" } else { "no removed pod to be a port" };
    wait_for(what, Duration::from_secs(15), || {
        let status = bed.status(1)?;
        Ok(pods.iter().all(|pod| status.port(&format!("veth-{pod}")).is_some() == wanted).then_some(()))
    })
}

/// The routes to two other nodes flap, one of which is not there; then thousands of routes come and go.
fn routes(bed: &mut Bed, long: bool) -> Result<()> {
    let flaps = if long { 50 } else { 10 };
    for family in Family::BOTH {
        let hop = bed.address("node2", family)?.to_string();
        let nobody = family.pick("192.168.100.77", "fd00:192:168:100::77");
        for (network, via) in [(7, hop.as_str()), (8, nobody)] {
            let network = family.pick(format!("10.244.{network}.0/24"), format!("fd00:10:244:{network}::/64"));
            for _ in 0..flaps {
                for verb in ["add", "del"] {
                    bed.exec("node1", &["ip", "route", verb, &network, "via", via, "dev", "eth0"])?;
                }
            }
        }
        for verb in ["add", "del"] {
            let lines: String = (0..MANY_ROUTES).map(|index| route(verb, family, index, &hop)).collect();
            let mut batch = bed.command("node1", "ip");
            batch.args([family.pick("-4", "-6"), "-batch", "-"]);
            command::run_with_input(&mut batch, lines, Duration::from_secs(60))?;
            hold(Duration::from_millis(500));
        }
    }
    Ok(())
}

/// One of thousands of routes into the cluster, a line for `ip -batch`.
fn route(verb: &str, family: Family, index: usize, hop: &str) -> String {
    match family {
        Family::V4 => format!("route {verb} 10.244.{}.{}/32 via {hop} dev eth0\n", 128 + index / 250, index % 250),
        Family::V6 => format!("route {verb} fd00:10:244:{:x}::/64 via {hop} dev eth0\n", 0x8000 + index),
    }
}

/// pod3, beside the flows, sends garbage as fast as one processor makes it.
fn flood(bed: &mut Bed, long: bool) -> Result<()> {
    let to = frames::mac_text(bed.mac("pod1", "eth0")?);
    let mut command = bed.command("pod3", podlane_tests::traffic::probe_binary());
    command.args(["--deadline-s", "120", "flood", "--cpu", "0", "--to", &to]);
    let flood = Background::start_ready(&mut command)?;
    hold(Duration::from_secs(if long { 10 } else { 2 }));
    let result = flood.finish(Duration::from_secs(10))?;
    let sent = result["sent"].as_u64().context("no count of frames")?;
    ensure!(sent > 10_000, "the neighbour did not flood: {result}");
    println!("the neighbour sent {sent} frames in {:.1} s", result["seconds"].as_f64().unwrap_or(0.0));
    Ok(())
}
