//! A testbed with or without Podlane: what a test case is handed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::command::{self, wait_for};
use crate::daemon::{self, Daemon};
use crate::status::{Port, Status};
use crate::testbed::{Family, Shape, Testbed, Topology};
use crate::traffic::Way;

/// How long traffic may take to be quiet and the accounts to balance.
const QUIET: Duration = Duration::from_secs(5);
/// How long the mirror may take to follow the kernel, on a busy machine.
pub const FOLLOW: Duration = Duration::from_secs(5);
/// Packets that the kernel may have handled besides, such as an answer to an earlier case.
const SLACK: u64 = 16;
/// What belongs to the kernel at any time, whatever a case sends.
const ALWAYS_KERNEL: [&str; 6] = ["not_ip", "nd", "group", "tables_changed", "tables_stale", STALLED];
/// Stands in a complaint that was held back, because it was said shortly before.
const AGAIN: &str = " in the last ";
/// The reason for which frames pass while their worker does not run: on a busy machine, nobody's fault.
const STALLED: &str = "worker_stalled";
/// The complaint about a worker that has not run for seconds: the same.
const STARVED: &str = " has not come around for ";

/// The ports that take the kernel path in a mixed testbed, by node: so that pod1, pod2 and pod4 meet in every pairing of
/// paths, inside of a node and between nodes.
const MIXED_KERNEL: [(usize, &str); 4] = [(1, "veth-pod2"), (2, "veth-pod4"), (2, "eth0"), (3, "veth-pod3")];

/// Who forwards the pods' packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataPath {
    /// The kernel alone: no Podlane. Shows that the tests and the testbed are right.
    Without,
    /// Podlane's workers, over AF_XDP sockets.
    AfXdp,
    /// Podlane's tc program, in the kernel.
    Kernel,
    /// Podlane, some ports on one path and some on the other.
    Mixed,
}

impl DataPath {
    /// The word in the names of tests.
    pub fn name(self) -> &'static str {
        match self {
            DataPath::Without => "without",
            DataPath::AfXdp => "af_xdp",
            DataPath::Kernel => "kernel",
            DataPath::Mixed => "mixed",
        }
    }

    /// Whether the frames that come in through a port of a node are repeated in the kernel.
    fn repeats(self, node: usize, port: &str) -> bool {
        match self {
            DataPath::Without | DataPath::AfXdp => false,
            DataPath::Kernel => true,
            DataPath::Mixed => MIXED_KERNEL.contains(&(node, port)),
        }
    }
}

/// The testbed and its daemons.
pub struct Bed {
    testbed: Testbed,
    /// Who forwards.
    pub path: DataPath,
    daemons: BTreeMap<usize, Daemon>,
    expected_complaints: Vec<String>,
    /// Of all cases before: a complaint that recurs is counted, and told up to a minute later.
    once_expected: Vec<String>,
}

/// What the nodes counted at one time.
pub struct Counters {
    nodes: BTreeMap<usize, NodeCounters>,
}

struct NodeCounters {
    /// Packets that the kernel forwarded, by family.
    kernel: [u64; 2],
    status: Option<Status>,
}

/// What a case says must have gone through the workers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Least {
    /// Frames at least.
    pub packets: u64,
    /// Bytes at least.
    pub bytes: u64,
}

impl Least {
    /// That many frames.
    pub fn packets(packets: u64) -> Least {
        Least { packets, bytes: 0 }
    }

    /// That many bytes, in whatever frames.
    pub fn bytes(bytes: u64) -> Least {
        Least { packets: 0, bytes }
    }
}

impl Deref for Bed {
    type Target = Testbed;

    fn deref(&self) -> &Testbed {
        &self.testbed
    }
}

impl DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Testbed {
        &mut self.testbed
    }
}

impl Bed {
    /// Builds a testbed and, with Podlane, starts a daemon in each node.
    ///
    /// # Errors
    /// If the testbed cannot be built or a daemon does not become ready.
    pub fn up(path: DataPath, topology: Topology, shape: Shape) -> Result<Bed> {
        let mut bed = Bed {
            testbed: Testbed::up(topology, shape)?,
            path,
            daemons: BTreeMap::new(),
            expected_complaints: vec![],
            once_expected: vec![],
        };
        bed.start_daemons()?;
        Ok(bed)
    }

    fn start_daemons(&mut self) -> Result<()> {
        if self.path == DataPath::Without || !self.shape.daemons {
            return Ok(());
        }
        for node in 1..=self.shape.nodes {
            let daemon = Daemon::start(&mut self.podlane_run(node)?, &self.instance(node))?;
            self.daemons.insert(node, daemon);
        }
        self.daemons.values_mut().try_for_each(Daemon::wait_until_ready)
    }

    /// The daemons' instance name in a node.
    pub fn instance(&self, node: usize) -> String {
        format!("{}-node{node}", self.name)
    }

    /// `podlane` inside of a node. With `nsenter` it sees the machine's bpffs, where it pins; `ip netns exec` would hide that
    /// behind a /sys of its own.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn podlane(&self, node: usize) -> Result<Command> {
        Ok(self.command(&format!("node{node}"), daemon::binary()?))
    }

    /// Where the daemon of a node looks for CNI results; there is none unless a case makes it.
    pub fn cni_cache(&self, node: usize) -> PathBuf {
        std::env::temp_dir().join(format!("podlane-cni-{}", self.instance(node)))
    }

    /// `podlane run` with the options of this testbed.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn podlane_run(&self, node: usize) -> Result<Command> {
        let mut run = self.podlane(node)?;
        run.args(["run", "--bridge", "cbr0", "--uplink", "eth0", "--instance", &self.instance(node)]);
        run.args(["--cluster-cidr", "10.244.0.0/16", "--cluster-cidr", "fd00:10:244::/48"]);
        // The others make up addresses in some cases, or send from a network behind them; pods of the plugin are guarded
        // without being asked for.
        run.args(["--port-guard", "veth-pod1=cluster"]);
        run.arg("--cni-cache").arg(self.cni_cache(node));
        if self.path == DataPath::Kernel {
            run.args(["--path", "kernel"]);
        }
        for (_, port) in MIXED_KERNEL.iter().filter(|(of, _)| self.path == DataPath::Mixed && *of == node) {
            run.args(["--port-path", &format!("{port}=kernel")]);
        }
        if let Some(workers) = self.shape.workers {
            run.args(["--workers", &workers.to_string()]);
        }
        for (option, bytes) in [("--local-mtu", self.shape.local_mtu), ("--big-tcp", self.shape.big_tcp)] {
            if let Some(bytes) = bytes {
                run.args([option, &bytes.to_string()]);
            }
        }
        Ok(run)
    }

    /// Starts the daemon of a node again after [`Bed::take_daemon`].
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_daemon(&mut self, node: usize) -> Result<()> {
        self.start_daemon_with(node, &[])
    }

    /// The same with more options.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_daemon_with(&mut self, node: usize, options: &[&str]) -> Result<()> {
        let mut run = self.podlane_run(node)?;
        self.start_daemon_as(node, run.args(options))
    }

    /// Like [`Bed::start_daemon`], by a command of the case's own.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_daemon_as(&mut self, node: usize, run: &mut Command) -> Result<()> {
        let mut daemon = Daemon::start(run, &self.instance(node))?;
        daemon.wait_until_ready()?;
        self.daemons.insert(node, daemon);
        Ok(())
    }

    /// A new daemon takes over from the one of a node, which ends well.
    ///
    /// # Errors
    /// If the new one does not become ready, or the old one does not end.
    pub fn take_over(&mut self, node: usize) -> Result<()> {
        let mut old = self.take_daemon(node)?;
        let mut new = Daemon::start(self.podlane_run(node)?.arg("--take-over"), &self.instance(node))?;
        new.wait_until_ready()?;
        self.daemons.insert(node, new);
        let status = old.wait()?;
        ensure!(status.success(), "the old podlane ended with {status}:\n{}", old.log_lines().join("\n"));
        Ok(())
    }

    /// The daemon of a node.
    ///
    /// # Errors
    /// If there is none.
    pub fn daemon(&mut self, node: usize) -> Result<&mut Daemon> {
        self.daemons.get_mut(&node).with_context(|| format!("no daemon runs in node{node}"))
    }

    /// Takes the daemon of a node out of the bed, for a case that ends it.
    ///
    /// # Errors
    /// If there is none.
    pub fn take_daemon(&mut self, node: usize) -> Result<Daemon> {
        self.daemons.remove(&node).with_context(|| format!("no daemon runs in node{node}"))
    }

    /// Whether Podlane runs.
    pub fn has_podlane(&self) -> bool {
        self.path != DataPath::Without
    }

    /// Whether super-frames reach the place where packets between two pods are first forwarded: then it counts fewer and
    /// larger packets than were sent.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn keeps_super_frames(&self, way: &Way) -> Result<bool> {
        let node = self.node_of(&way.from)?;
        Ok(!self.has_podlane() || self.path.repeats(node, &format!("veth-{}", way.from)))
    }

    /// What the daemon of a node says of itself.
    ///
    /// # Errors
    /// If there is none or it does not answer.
    pub fn status(&self, node: usize) -> Result<Status> {
        self.daemons.get(&node).with_context(|| format!("no daemon runs in node{node}"))?.status()
    }

    /// Complaints with this text in the daemons' logs are a part of the case.
    pub fn expect_complaint(&mut self, text: &str) {
        self.expected_complaints.push(text.to_owned());
    }

    /// Counts now.
    ///
    /// # Errors
    /// If a node does not answer.
    pub fn counters(&self) -> Result<Counters> {
        let mut nodes = BTreeMap::new();
        for node in 1..=self.shape.nodes {
            let place = format!("node{node}");
            let kernel = [
                self.kernel_counter(&place, Family::V4, "Ip ForwDatagrams")?,
                self.kernel_counter(&place, Family::V6, "Ip6OutForwDatagrams")?,
            ];
            let status = if self.daemons.contains_key(&node) { Some(self.status(node)?) } else { None };
            nodes.insert(node, NodeCounters { kernel, status });
        }
        Ok(Counters { nodes })
    }

    /// The ports through which a packet from one pod to another comes into the nodes on its way.
    fn ingress_ports(&self, from: &str, to: &str) -> Result<Vec<(usize, String)>> {
        let (first, last) = (self.node_of(from)?, self.node_of(to)?);
        let mut ports = vec![(first, format!("veth-{from}"))];
        if first != last {
            ports.push((last, "eth0".to_owned()));
        }
        Ok(ports)
    }

    /// The traffic between two pods since `before` went through the workers (with Podlane) or through the kernel
    /// (without): at least so much of it, and no more than a few packets the other way.
    ///
    /// # Errors
    /// If not.
    pub fn went_through(&self, before: &Counters, way: &Way, least: Least) -> Result<()> {
        let after = self.counters()?;
        let ports = self.ingress_ports(&way.from, &way.to)?;
        let family = usize::from(way.address.is_ipv6());
        let routed = ports.len() > 1;
        for (node, port) in &ports {
            let (old, new) = (&before.nodes[node], &after.nodes[node]);
            let by_kernel = new.kernel[family] - old.kernel[family];
            if !self.has_podlane() {
                ensure!(
                    !routed || by_kernel >= least.packets,
                    "node{node}'s kernel forwarded {by_kernel} packets, not {least:?}"
                );
                continue;
            }
            let stalled = stalled_since(old.status.as_ref(), new.status.as_ref());
            ensure!(
                by_kernel <= SLACK + stalled,
                "node{node}'s kernel forwarded {by_kernel} packets that were the workers'"
            );
            let new = find_port(&new.status, port).with_context(|| format!("node{node} after"))?;
            let old = find_port(&old.status, port).with_context(|| format!("node{node} before"))?;
            ensure!(new.ifindex == old.ifindex, "node{node}'s {port} is another interface than before");
            let sum = |port: &Port| (port.forwarded + port.repeated, port.forwarded_bytes + port.repeated_bytes);
            let (packets, bytes) = (sum(new).0 - sum(old).0, sum(new).1 - sum(old).1);
            let other = if self.path.repeats(*node, port) {
                new.forwarded - old.forwarded
            } else {
                new.repeated - old.repeated
            };
            ensure!(other == 0, "{other} packets from node{node}'s {port} took the other path ({way:?})");
            let passed = passed_since(old, new);
            // A worker that the machine has kept from running hands its frames to the kernel, as it should. But not
            // most of them.
            let share = if passed.contains_key(STALLED) { 2 } else { 1 };
            ensure!(
                packets >= least.packets / share && bytes >= least.bytes / share,
                "Podlane of node{node} forwarded {packets} frames and {bytes} bytes from {port}, not {least:?} \
                 ({way:?}; passed: {passed:?})"
            );
            let unexpected: u64 = passed
                .iter()
                .filter(|(reason, _)| !ALWAYS_KERNEL.contains(&reason.as_str()))
                .map(|(_, count)| count)
                .sum();
            ensure!(unexpected <= SLACK, "node{node} left frames from {port} to the kernel: {passed:?} ({way:?})");
        }
        Ok(())
    }

    /// At least `least` frames of a pod (or of an uplink) were left to the kernel for `reason` since `before`. Says
    /// nothing without Podlane.
    ///
    /// # Errors
    /// If not.
    pub fn was_passed(&self, before: &Counters, node: usize, port: &str, reason: &str, least: u64) -> Result<()> {
        if !self.has_podlane() {
            return Ok(());
        }
        let status = Some(self.status(node)?);
        let passed = passed_since(find_port(&before.nodes[&node].status, port)?, find_port(&status, port)?);
        let count = passed.get(reason).copied().unwrap_or(0);
        ensure!(count >= least, "node{node} passed {count} frames from {port} for {reason}, not {least}: {passed:?}");
        Ok(())
    }

    /// Bytes that Podlane has forwarded since `before` at the place where they forwarded least on the way.
    ///
    /// # Errors
    /// If a node on the way has no daemon.
    pub fn forwarded_bytes(&self, before: &Counters, way: &Way) -> Result<u64> {
        let mut least = u64::MAX;
        for (node, port) in self.ingress_ports(&way.from, &way.to)? {
            let now = Some(self.status(node)?);
            // A daemon that was started in between has counted from 0.
            let bytes = |port: &Port| port.forwarded_bytes + port.repeated_bytes;
            let old = find_port(&before.nodes[&node].status, &port).map_or(0, bytes);
            least = least.min(bytes(find_port(&now, &port)?).saturating_sub(old));
        }
        Ok(least)
    }

    /// Pings until it works, and with Podlane until it works through the workers in both directions: neighbours are
    /// resolved and mirrored then.
    ///
    /// # Errors
    /// If it takes longer than the mirror may.
    pub fn warm_up(&self, way: &Way) -> Result<()> {
        let back = Way { from: way.to.clone(), to: way.from.clone(), address: way.address };
        let mut last = None;
        let warm = wait_for(&format!("ping through the path {}, {way:?}", self.path.name()), FOLLOW * 2, || {
            let before = self.counters()?;
            let (received, text) = self.ping_output(&way.from, way.address, &["-c", "2", "-W", "0.3"])?;
            if received < 2 {
                last = Some(anyhow::anyhow!("{text}"));
                return Ok(None);
            }
            let through = self
                .went_through(&before, way, Least::packets(2))
                .and_then(|()| self.went_through(&before, &back, Least::packets(2)));
            match through {
                Ok(()) => Ok(Some(())),
                Err(error) => {
                    last = Some(error);
                    Ok(None)
                }
            }
        });
        warm.map_err(|error| match last {
            Some(last) => error.context(format!("at last: {last:#}")),
            None => error,
        })
    }

    /// The audit after a case: daemons alive, no complaint in their logs, accounts and UMEM balanced once it is quiet.
    ///
    /// # Errors
    /// If anything is wrong.
    pub fn audit(&mut self) -> Result<()> {
        let expected = std::mem::take(&mut self.expected_complaints);
        self.once_expected.extend(expected.iter().cloned());
        let known = &self.once_expected;
        for (node, daemon) in &mut self.daemons {
            ensure!(daemon.is_alive()?, "the daemon of node{node} is dead:\n{}", daemon.log_lines().join("\n"));
            let mut last = Vec::new();
            wait_for("the accounts to balance", QUIET, || {
                last = daemon.status()?.imbalances();
                Ok(last.is_empty().then_some(()))
            })
            .map_err(|error| error.context(format!("node{node}: {}", last.join("; "))))?;
            let mut complaints = daemon.new_complaints();
            complaints.retain(|line| !expected.iter().any(|text| line.contains(text)));
            complaints.retain(|line| !line.contains(STARVED));
            complaints.retain(|line| !line.contains(AGAIN) || !known.iter().any(|text| line.contains(text)));
            ensure!(complaints.is_empty(), "the daemon of node{node} complains:\n{}", complaints.join("\n"));
        }
        Ok(())
    }

    /// What a person wants to see when a case has failed.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (node, daemon) in &self.daemons {
            let status = daemon::status_text(&daemon.instance).unwrap_or_else(|error| format!("{error:#}"));
            let log = daemon.log_lines();
            let tail = log[log.len().saturating_sub(30)..].join("\n");
            let _ = write!(text, "\n--- node{node}: status\n{status}\n--- node{node}: log\n{tail}");
        }
        for node in 1..=self.shape.nodes {
            let look = "ip -br addr; bridge fdb show br cbr0; ip neigh; ip route; ip -6 route";
            let place = format!("node{node}");
            let _ = write!(text, "\n--- {place}: kernel\n{}", self.sh(&place, look).unwrap_or_default());
        }
        text
    }

    /// Ends the daemons as an operator does, and the testbed.
    ///
    /// # Errors
    /// If a daemon does not end with exit code 0, or leaves something behind.
    pub fn take_down(mut self) -> Result<()> {
        let nodes: Vec<usize> = self.daemons.keys().copied().collect();
        for node in nodes {
            self.stop_daemon(node)?;
        }
        self.testbed.take_down()
    }

    /// Ends the daemon of a node with SIGTERM and takes back what it left; then nothing may be left.
    ///
    /// # Errors
    /// If it does not end well or something is left.
    pub fn stop_daemon(&mut self, node: usize) -> Result<()> {
        self.end_daemon(node)?;
        self.detach(node)?;
        self.nothing_is_left(node)
    }

    /// Takes back what the daemon of a node has left. Gives what `podlane detach` said.
    ///
    /// # Errors
    /// If it fails.
    pub fn detach(&self, node: usize) -> Result<String> {
        let mut detach = self.podlane(node)?;
        command::run(detach.args(["detach", "--instance", &self.instance(node)]), Duration::from_secs(10))
    }

    /// Ends the daemon of a node with SIGTERM. What is pinned stays.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn end_daemon(&mut self, node: usize) -> Result<()> {
        let mut daemon = self.take_daemon(node)?;
        daemon.signal(Signal::SIGTERM)?;
        let status = daemon.wait()?;
        ensure!(status.success(), "podlane ended with {status} on SIGTERM:\n{}", daemon.log_lines().join("\n"));
        Ok(())
    }

    /// Nothing of Podlane is in a node: no program, no host port, no pin, no control socket.
    ///
    /// # Errors
    /// If there is something.
    pub fn nothing_is_left(&self, node: usize) -> Result<()> {
        let place = format!("node{node}");
        let links = self.exec(&place, &["ip", "-d", "link"])?;
        ensure!(!links.contains("podlane0"), "podlane0 is left over:\n{links}");
        // An XDP program shows as "xdp", "xdpgeneric" or "prog/xdp id 12".
        let attached: Vec<&str> = links.lines().filter(|line| line.contains("xdp")).collect();
        ensure!(attached.is_empty(), "XDP programs are left over: {attached:?}");
        let pins = daemon::pins(&self.instance(node));
        ensure!(!pins.exists(), "{} is left over", pins.display());
        let socket = daemon::control_socket(&self.instance(node));
        ensure!(!socket.exists(), "{} is left over", socket.display());
        let memory = socket.with_extension("large.json");
        ensure!(!memory.exists(), "{} is left over", memory.display());
        Ok(())
    }

    /// Runs `podlane` with arguments that it must refuse. Gives what it said on its standard error.
    ///
    /// # Errors
    /// If it succeeds, or goes on running.
    pub fn refused(&self, command: &mut Command) -> Result<String> {
        let output = command::output(command, Duration::from_secs(15))?;
        let said = format!("{}{}", output.stdout, output.stderr);
        // 1: failed at run time, 2: bad usage or configuration. 101 would be a panic.
        ensure!(
            matches!(output.status.code(), Some(1 | 2)),
            "podlane ended with {}, not 1 or 2:\n{said}",
            output.status
        );
        ensure!(!said.contains("panicked"), "podlane panicked:\n{said}");
        Ok(output.stderr)
    }
}

fn find_port<'a>(status: &'a Option<Status>, name: &str) -> Result<&'a Port> {
    let status = status.as_ref().context("no daemon runs there")?;
    status.port(name).with_context(|| format!("{name} is not among the ports: {:?}", status.ports))
}

fn stalled_since(old: Option<&Status>, new: Option<&Status>) -> u64 {
    let count = |status: &Status| -> u64 {
        status.ports.iter().map(|port| port.passed.by_reason.get(STALLED).copied().unwrap_or(0)).sum()
    };
    // Ports that have gone in between took their counts with them.
    new.map_or(0, count).saturating_sub(old.map_or(0, count))
}

fn passed_since(old: &Port, new: &Port) -> BTreeMap<String, u64> {
    let before = |reason: &String| old.passed.by_reason.get(reason).copied().unwrap_or(0);
    let grown = new.passed.by_reason.iter().map(|(reason, count)| (reason.clone(), count - before(reason)));
    grown.filter(|(_, count)| *count > 0).collect()
}
