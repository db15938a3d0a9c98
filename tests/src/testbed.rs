//! A testbed of `scripts/netns-testbed.sh`: namespaces, addresses, commands inside.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::frames::{self, Mac};
use crate::leftovers;

/// Long enough for a small testbed on a busy machine; it takes half a second on a quiet one.
const SCRIPT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(15);

/// How the nodes are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// One segment, routes to each other.
    Direct,
    /// A default gateway each, and a router between.
    Cloud,
}

impl Topology {
    /// The script's word.
    pub fn name(self) -> &'static str {
        match self {
            Topology::Direct => "direct",
            Topology::Cloud => "cloud",
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// "v4" or "v6".
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        }
    }

    /// One of two things.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// Size and shape of a testbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Its name in the names of the tests.
    pub name: &'static str,
    /// Nodes.
    pub nodes: usize,
    /// Pods of each.
    pub pods: usize,
    /// MTU of pods and bridges, bytes.
    pub mtu: usize,
    /// MTU of uplinks, bytes.
    pub uplink_mtu: usize,
    /// Queues of a pod's veth.
    pub queues: usize,
    /// Queues of an uplink.
    pub uplink_queues: usize,
    /// Whether pods leave their checksums to be finished by others.
    pub pods_checksum_offload: bool,
    /// Whether the nodes do the same on their uplinks.
    pub uplink_checksum_offload: bool,
    /// Whether pods' traffic to the outside is masqueraded; if not, the outside has a route back.
    pub masquerade: bool,
    /// Whether the nodes' conntrack judges the windows of TCP connections, as it does by default. Then a connection whose first
    /// packet met a worker that a busy machine did not let run is the kernel's for good.
    pub strict_conntrack: bool,
    /// `--workers` of the daemons; `None` leaves it to them.
    pub workers: Option<usize>,
    /// `--local-mtu` of the daemons.
    pub local_mtu: Option<usize>,
    /// `--big-tcp` of the daemons.
    pub big_tcp: Option<usize>,
    /// Whether daemons are started before the first case, on the path `af_xdp`.
    pub daemons: bool,
}

impl Shape {
    /// Two nodes of three pods, nothing about them special.
    pub const PLAIN: Shape = Shape {
        name: "plain",
        nodes: 2,
        pods: 3,
        mtu: 1500,
        uplink_mtu: 1500,
        queues: 1,
        uplink_queues: 1,
        pods_checksum_offload: true,
        uplink_checksum_offload: true,
        masquerade: true,
        strict_conntrack: false,
        workers: None,
        local_mtu: None,
        big_tcp: None,
        daemons: true,
    };
}

/// A testbed that is up; removed when dropped.
pub struct Testbed {
    /// The instance's name.
    pub name: String,
    /// What it was built as.
    pub shape: Shape,
    /// How its nodes are connected.
    pub topology: Topology,
    /// Where each pod is, by the pod's number: the node's number and the last part of the addresses.
    pods: BTreeMap<usize, (usize, usize)>,
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

fn script() -> Command {
    let mut command = Command::new("bash");
    command.arg(repository().join("scripts/netns-testbed.sh"));
    command
}

/// Takes a testbed down, whatever is left of it.
///
/// # Errors
/// If the script fails.
pub fn down(name: &str) -> Result<()> {
    command::run(script().args(["down", "--name", name]), SCRIPT).map(drop)
}

impl Testbed {
    /// Builds one. Its name is unique to this process.
    ///
    /// # Errors
    /// If the script fails.
    pub fn up(topology: Topology, shape: Shape) -> Result<Testbed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = leftovers::instance_name(NUMBER.fetch_add(1, Ordering::Relaxed));
        leftovers::claim(&name)?;
        let mut up = script();
        let on_off = |on| if on { "on" } else { "off" };
        up.args(["up", "--name", &name, "--topology", topology.name()]);
        for (option, value) in [
            ("--nodes", shape.nodes),
            ("--pods", shape.pods),
            ("--mtu", shape.mtu),
            ("--uplink-mtu", shape.uplink_mtu),
            ("--queues", shape.queues),
            ("--uplink-queues", shape.uplink_queues),
        ] {
            up.arg(option).arg(value.to_string());
        }
        up.args(["--pods-checksum-offload", on_off(shape.pods_checksum_offload)]);
        if !shape.masquerade {
            up.args(["--no-masquerade", "--route-outside"]);
        }
        let places =
            (1..=shape.nodes * shape.pods).map(|pod| (pod, ((pod - 1) / shape.pods + 1, (pod - 1) % shape.pods + 2)));
        let testbed = Testbed { name, shape, topology, pods: places.collect() };
        command::run(&mut up, SCRIPT)?;
        testbed.prepare_nodes()?;
        Ok(testbed)
    }

    /// ICMP errors are rate-limited by the kernel (one a second to a peer), which would make tests wait for each other.
    fn prepare_nodes(&self) -> Result<()> {
        let mut routers: Vec<String> = (1..=self.shape.nodes).map(|node| format!("node{node}")).collect();
        routers.push(self.fabric().to_owned());
        for place in &routers {
            self.sh(place, "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")?;
        }
        if !self.shape.strict_conntrack {
            let liberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
            for node in 1..=self.shape.nodes {
                self.sh(&format!("node{node}"), &format!("! test -e {liberal} || echo 1 >{liberal}"))?;
            }
        }
        if !self.shape.uplink_checksum_offload {
            for node in 1..=self.shape.nodes {
                self.exec(&format!("node{node}"), &["ethtool", "-K", "eth0", "tx", "off"])?;
            }
        }
        Ok(())
    }

    /// The place between the nodes.
    pub fn fabric(&self) -> &'static str {
        match self.topology {
            Topology::Direct => "segment",
            Topology::Cloud => "router",
        }
    }

    /// The namespace of a place.
    pub fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.name)
    }

    /// A command that will run inside of a place, as a program there would: with that namespace's network, but the same
    /// files.
    pub fn command(&self, place: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(place))).arg("--").arg(program);
        command
    }

    /// Runs a command inside of a place; it must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn exec(&self, place: &str, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command")?;
        command::run(self.command(place, program).args(arguments), SHORT)
    }

    /// Runs a line of shell inside of a place; it must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn sh(&self, place: &str, line: &str) -> Result<String> {
        self.exec(place, &["sh", "-ec", line])
    }

    /// The number of the node that a pod is on.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn node_of(&self, pod: &str) -> Result<usize> {
        Ok(self.place_of(pod)?.0)
    }

    fn place_of(&self, pod: &str) -> Result<(usize, usize)> {
        let number: usize = pod
            .strip_prefix("pod")
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("'{pod}' is no pod"))?;
        self.pods.get(&number).copied().with_context(|| format!("there is no {pod}"))
    }

    /// The address of a pod, of a node's uplink ("node1"), of a node's bridge ("gateway1"), of a node's next hop
    /// ("hop1"), or of the host outside.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn address(&self, place: &str, family: Family) -> Result<IpAddr> {
        let cloud = self.topology == Topology::Cloud;
        let numbered = |prefix: &str| place.strip_prefix(prefix).and_then(|number| number.parse::<usize>().ok());
        let uplink = |node: usize, cloud_host: usize, direct_host: usize| {
            let (net, host) = if cloud { (100 + node, cloud_host) } else { (100, direct_host) };
            family.pick(format!("192.168.{net}.{host}"), format!("fd00:192:168:{net}::{host}"))
        };
        let text = if place == "outside" {
            family.pick("198.51.100.2", "2001:db8:ffff::2").to_owned()
        } else if let Some(node) = numbered("gateway") {
            family.pick(format!("10.244.{node}.1"), format!("fd00:10:244:{node}::1"))
        } else if let Some(node) = numbered("node") {
            uplink(node, 2, node)
        } else if let Some(node) = numbered("hop") {
            uplink(node, 1, 254)
        } else {
            let (node, host) = self.place_of(place)?;
            family.pick(format!("10.244.{node}.{host}"), format!("fd00:10:244:{node}::{host}"))
        };
        text.parse().with_context(|| format!("the address of {place}"))
    }

    /// A node's pods, as a prefix.
    pub fn pod_cidr(&self, node: usize, family: Family) -> String {
        family.pick(format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64"))
    }

    /// The next hop from node `from` to the pods of node `to`.
    ///
    /// # Errors
    /// Never for nodes that exist.
    pub fn next_hop(&self, from: usize, to: usize, family: Family) -> Result<IpAddr> {
        match self.topology {
            Topology::Direct => self.address(&format!("node{to}"), family),
            Topology::Cloud => self.address(&format!("hop{from}"), family),
        }
    }

    /// The MAC address of an interface, as the kernel says it.
    ///
    /// # Errors
    /// If there is no such place or interface.
    pub fn mac(&self, place: &str, interface: &str) -> Result<Mac> {
        let text = self.exec(place, &["ip", "-o", "link", "show", "dev", interface])?;
        let mut words = text.split_ascii_whitespace();
        words.find(|word| *word == "link/ether").context("no link/ether")?;
        frames::parse_mac(words.next().unwrap_or_default())
    }

    /// The name of a pod that there never was.
    pub fn new_pod(&self) -> String {
        format!("pod{}", self.pods.keys().last().copied().unwrap_or(0) + 1)
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// If the script fails.
    pub fn del_pod(&self, pod: &str) -> Result<()> {
        command::run(script().args(["del-pod", pod, "--name", &self.name]), SCRIPT).map(drop)
    }

    /// Adds a pod; one that was there before comes back with its addresses.
    ///
    /// # Errors
    /// If the script fails.
    pub fn add_pod(&mut self, node: usize, pod: &str, mac: Option<&str>) -> Result<()> {
        let mut add = script();
        add.args(["add-pod", &format!("node{node}"), pod, "--name", &self.name]);
        if let Some(mac) = mac {
            add.args(["--mac", mac]);
        }
        let said = command::run(&mut add, SCRIPT)?;
        // "pod7 on node1: 10.244.1.5 fd00:10:244:1::5 02:…"
        let address = said.split_ascii_whitespace().find_map(|word| word.parse::<std::net::Ipv4Addr>().ok());
        let Some(address) = address else { bail!("add-pod said no address: {said}") };
        let number = pod.strip_prefix("pod").and_then(|number| number.parse().ok()).context("no pod's name")?;
        self.pods.insert(number, (node, usize::from(address.octets()[3])));
        Ok(())
    }

    /// Takes it down; dropping it does the same, but cannot say that it failed.
    ///
    /// # Errors
    /// If the script fails or something is left.
    pub fn take_down(self) -> Result<()> {
        let name = self.name.clone();
        drop(self);
        let left: Vec<_> = std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")))
            .collect();
        ensure!(left.is_empty(), "namespaces are left over: {left:?}");
        Ok(())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if let Err(error) = down(&self.name) {
            eprintln!("taking the testbed {} down: {error:#}", self.name);
        }
        leftovers::release(&self.name);
    }
}
