//! A real container runtime: containerd and runc, in two nodes, run real containers whose network a CNI plugin makes, Podlane's
//! own or the stock one with Podlane as a drop-in. The containers talk to each other, to a service by its name, and to their
//! nodes, and keep their sandbox's address when they are killed and run again.
//!
//! `cargo test -p podlane-tests --test runtime -- [FILTER]` as root; the names are `PLUGIN::PATH`. Where containerd cannot be
//! fetched every case is skipped by its name, and the exit code says so ([`SKIPPED`]).

mod node;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use podlane_tests::bed::{Bed, DataPath, FOLLOW};
use podlane_tests::command::{self, wait_for};
use podlane_tests::testbed::{Family, Shape, Topology};
use podlane_tests::{daemon, leftovers, stock, traffic};
use serde_json::{Value, json};

use node::Runtime;

/// Exit code if every case was skipped, as automake has it.
const SKIPPED: u8 = 77;
const SHORT: Duration = Duration::from_secs(60);

/// Two nodes without pods.
const SHAPE: Shape = Shape { name: "runtime", pods: 0, daemons: false, ..Shape::PLAIN };
/// The name that pods ask for, and the addresses of the name server's service and of the one that has the name.
const NAME: &str = "web.podlane.test";
const RESOLVER: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const SERVICE: [&str; 2] = ["10.96.0.20", "fd00:10:96::14"];
/// Datagrams of a flow between two containers.
const DATAGRAMS: &str = "200";
const SIZES: &str = "24,512,1400";

/// Who makes the pods' network.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Podlane,
    Stock,
}

impl Plugin {
    fn name(self) -> &'static str {
        match self {
            Plugin::Podlane => "podlane-cni",
            Plugin::Stock => "stock",
        }
    }

    /// The testbed's own bridge, which Podlane's plugin finds, or the one that the stock plugin makes.
    fn bridge(self) -> &'static str {
        match self {
            Plugin::Podlane => "cbr0",
            Plugin::Stock => stock::BRIDGE,
        }
    }

    fn conflist(self, bed: &Bed, node: usize, place: &Path) -> Value {
        let networks = Family::BOTH.map(|family| bed.pod_cidr(node, family));
        let data = Runtime::ipam(place);
        // With hairpin mode, because pods also come to themselves by way of a service, which br_netfilter bridges.
        let plugin = match self {
            Plugin::Podlane => json!({
                "type": "podlane-cni", "bridge": "cbr0", "podCIDRs": networks, "dataDir": data, "hairpinMode": true,
                "controlSocket": daemon::control_socket(&bed.instance(node)),
            }),
            Plugin::Stock => json!({
                "type": "bridge", "bridge": stock::BRIDGE, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": data,
                    "ranges": networks.map(|network| json!([{ "subnet": network }])),
                },
            }),
        };
        // What ctr of Debian 12 knows.
        json!({ "cniVersion": "1.0.0", "name": "podlane-test", "plugins": [plugin] })
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case has the machine for itself.
    arguments.test_threads = Some(1);
    let trials = trials();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let why = match (nix::unistd::geteuid().is_root(), stock::unpacked()) {
        (false, _) => Some("containers and network namespaces need root".to_owned()),
        (true, Err(why)) => Some(format!("containerd is not to be had here: {why:#}")),
        (true, Ok(_)) => None,
    };
    if let Some(why) = why {
        for trial in trials.iter().filter(|trial| !arguments.is_filtered_out(trial)) {
            println!("test {} ... skipped ({why})", trial.name());
        }
        return ExitCode::from(SKIPPED);
    }
    leftovers::remove_of_the_dead();
    if let Err(error) = leftovers::remove_own_at_signals() {
        eprintln!("cannot handle signals: {error:#}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for plugin in [Plugin::Podlane, Plugin::Stock] {
        for path in [DataPath::Without, DataPath::AfXdp, DataPath::Kernel] {
            // What the containers do is right if it works without Podlane; once is enough for that.
            if path == DataPath::Without && plugin == Plugin::Podlane {
                continue;
            }
            trials.push(Trial::test(format!("{}::{}", plugin.name(), path.name()), move || {
                run(plugin, path).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    trials
}

/// The nodes, their runtimes, and where each pod is.
struct Cluster {
    bed: Bed,
    plugin: Plugin,
    runtimes: Vec<Runtime>,
}

/// A pod: its sandbox, the container that serves in it, its node, its addresses.
#[derive(Clone, Debug)]
struct Pod {
    sandbox: String,
    server: String,
    node: usize,
    addresses: [IpAddr; 2],
}

fn run(plugin: Plugin, path: DataPath) -> Result<()> {
    let mut cluster = Cluster::up(plugin, path)?;
    // With the stock plugin one pod of each node is older than Podlane; its own plugin is used while the daemon runs.
    let mut pods = Vec::new();
    if plugin == Plugin::Podlane {
        cluster.start_podlane()?;
    }
    for node in [1, 2] {
        pods.push(cluster.pod(node, "a")?);
    }
    if plugin == Plugin::Stock {
        cluster.start_podlane()?;
    }
    for node in [1, 2] {
        pods.push(cluster.pod(node, "b")?);
    }
    let outcome = cluster.everything(&mut pods);
    outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.bed.describe()))?;
    cluster.end(&pods)
}

impl Cluster {
    fn up(plugin: Plugin, path: DataPath) -> Result<Cluster> {
        let bed = Bed::up(path, Topology::Direct, SHAPE)?;
        if plugin == Plugin::Stock {
            for node in ["node1", "node2"] {
                bed.exec(node, &["ip", "link", "del", "cbr0"])?;
            }
        }
        let image = image(&bed)?;
        let mut runtimes = Vec::new();
        for node in [1, 2] {
            let place = std::env::temp_dir().join(leftovers::runtime_name(&bed.name, node));
            runtimes.push(Runtime::start(&bed, node, image.path(), &plugin.conflist(&bed, node, &place))?);
        }
        Ok(Cluster { bed, plugin, runtimes })
    }

    fn start_podlane(&mut self) -> Result<()> {
        if !self.bed.has_podlane() {
            return Ok(());
        }
        for node in [1, 2] {
            let mut run = self.bed.podlane(node)?;
            run.args(["run", "--bridge", self.plugin.bridge(), "--uplink", "eth0"]);
            run.args(["--instance", &self.bed.instance(node), "--path", self.bed.path.name()]);
            run.args(["--cluster-cidr", "10.244.0.0/16", "--cluster-cidr", "fd00:10:244::/48"]);
            self.bed.start_daemon_as(node, &mut run)?;
        }
        Ok(())
    }

    fn runtime(&mut self, node: usize) -> &mut Runtime {
        &mut self.runtimes[node - 1]
    }

    /// A pod with a web server.
    fn pod(&mut self, node: usize, name: &str) -> Result<Pod> {
        let (sandbox, server) = (format!("sandbox-{name}"), format!("server-{name}"));
        let runtime = self.runtime(node);
        runtime.run_sandbox(&sandbox)?;
        runtime.run_in(&sandbox, &server, &["httpd", "-f", "-p", "80", "-h", "/www"])?;
        let addresses = addresses(runtime, &server)?;
        Ok(Pod { sandbox, server, node, addresses })
    }

    /// What the containers of a cluster do.
    fn everything(&mut self, pods: &mut [Pod]) -> Result<()> {
        let before = self.forwarded()?;
        for from in pods.iter() {
            for to in pods.iter().filter(|to| to.addresses != from.addresses) {
                self.talk(from, to)?;
            }
        }
        self.datagrams(&pods[0], &pods[2], 0)?;
        self.datagrams(&pods[1], &pods[0], 1)?;
        for pod in pods.iter() {
            self.probe_from_the_node(pod)?;
        }
        let after = self.forwarded()?;
        // Some three hundred packets of each transfer to another pod.
        let least = if self.bed.has_podlane() { 1000 } else { 0 };
        ensure!(after >= before + least, "Podlane has forwarded {} packets", after - before);
        self.recreate(pods)?;
        if !self.bed.has_podlane() || daemon::keeps_translated()? {
            self.service_by_name(pods)?;
        } else {
            println!(
                "    skipped: a service by its name ({} does not keep translated traffic apart)",
                self.bed.path.name()
            );
        }
        self.bed.audit()
    }

    /// Packets that Podlane has forwarded on both nodes.
    fn forwarded(&self) -> Result<u64> {
        if !self.bed.has_podlane() {
            return Ok(0);
        }
        let mut sum = 0;
        for node in [1, 2] {
            sum += self.bed.status(node)?.ports.iter().map(|port| port.forwarded + port.repeated).sum::<u64>();
        }
        Ok(sum)
    }

    /// ping and HTTP from one container to another, both families; the first ping arrives.
    fn talk(&mut self, from: &Pod, to: &Pod) -> Result<()> {
        let one = |address: IpAddr| {
            let url = format!("http://{}/bulk", in_url(address));
            format!("ping -c 3 -i 0.1 -W 2 {address} | grep ' 3 packets received'; {}", fetch(&url))
        };
        let script = to.addresses.map(one).join("; ");
        self.runtime(from.node).exec(&from.server, &["sh", "-exc", &script]).map(drop)
    }

    /// Datagrams whose content is checked.
    fn datagrams(&mut self, from: &Pod, to: &Pod, family: usize) -> Result<()> {
        let bind = format!("{}:7000", in_url(to.addresses[family]));
        let words = ["udp-receive", "--bind", &bind, "--flow", "7", "--sizes", SIZES];
        let receiver = self.runtime(to.node).probe(&to.sandbox, "receiver", &words)?;
        let words = format!("udp-send --to {bind} --flow 7 --sizes {SIZES} --count {DATAGRAMS} --window 32");
        let sent = self.runtime(from.node).exec(&from.server, &["sh", "-c", &node::as_child(&words)])?;
        let received: traffic::Received = serde_json::from_value(receiver.finish(SHORT)?)?;
        received.intact().with_context(|| sent)
    }

    /// As kubelet asks whether a container is well.
    fn probe_from_the_node(&self, pod: &Pod) -> Result<()> {
        let busybox = stock::unpacked()?.join("bin/busybox");
        for address in pod.addresses {
            let url = format!("http://{}/", in_url(address));
            let mut get = self.bed.command(&format!("node{}", pod.node), &busybox);
            let said = command::run(get.args(["wget", "-qO-", &url]), SHORT)?;
            ensure!(said == "from a container\n", "{url}: {said}");
        }
        Ok(())
    }

    /// A container is killed and run again in its sandbox: the addresses are the same, and it serves at once.
    fn recreate(&mut self, pods: &mut [Pod]) -> Result<()> {
        let pod = pods[0].clone();
        let runtime = self.runtime(pod.node);
        runtime.kill(&pod.server)?;
        let server = format!("{}-again", pod.server);
        runtime.run_in(&pod.sandbox, &server, &["httpd", "-f", "-p", "80", "-h", "/www"])?;
        let again = addresses(runtime, &server)?;
        ensure!(again == pod.addresses, "the addresses were {:?} and are {again:?}", pod.addresses);
        pods[0].server = server;
        let (here, there) = (pods[2].clone(), pods[1].clone());
        self.talk(&here, &pods[0])?;
        self.talk(&there, &pods[0])
    }

    /// Pods find a service by its name: they ask the service of the name server, which is a pod of node1, and are sent to one of
    /// two web servers on different nodes. Everything of it is translated by the nodes' kernels.
    fn service_by_name(&mut self, pods: &[Pod]) -> Result<()> {
        let [dns, web] = [&pods[2], &pods[0]];
        for node in ["node1", "node2"] {
            let rules = [0, 1].map(|family| rules(family, dns, [web, &pods[1]])).concat();
            command::run_with_input(self.bed.command(node, "nft").args(["-f", "-"]), rules, SHORT)?;
        }
        let words =
            ["dns-serve", "--bind", "[::]:53", "--name", NAME, "--address", SERVICE[0], "--address", SERVICE[1]];
        let server = self.runtime(dns.node).probe(&dns.sandbox, "name-server", &words)?;
        for from in pods {
            // The last one as the container's own /etc/resolv.conf has it.
            for resolver in [RESOLVER[0], RESOLVER[1], ""] {
                let [four, six] = SERVICE;
                let script =
                    format!("nslookup {NAME} {resolver} >/tmp/said; grep -F {four} /tmp/said; grep -F {six} /tmp/said");
                let asked = self.runtime(from.node).exec(&from.server, &["sh", "-exc", &script]);
                asked.with_context(|| format!("{} asks {resolver:?}", from.server))?;
            }
            let urls = SERVICE.map(|service| service.parse().map(|address| format!("http://{}/bulk", in_url(address))));
            let urls = urls.into_iter().collect::<Result<Vec<_>, _>>()?;
            let fetches: Vec<String> = urls.iter().cycle().take(8).map(|url| fetch(url)).collect();
            self.runtime(from.node).exec(&from.server, &["sh", "-exc", &fetches.join("; ")])?;
        }
        let result = server.finish(SHORT)?;
        // Two kinds of address of two resolvers, and of one without being told which.
        ensure!(result["questions"].as_u64() >= Some(6 * pods.len() as u64), "{result}");
        for node in ["node1", "node2"] {
            self.bed.sh(node, "nft delete table ip service; nft delete table ip6 service")?;
        }
        Ok(())
    }

    /// Containers end, sandboxes last; then neither plugin nor runtime nor Podlane has left anything.
    fn end(mut self, pods: &[Pod]) -> Result<()> {
        for pod in pods {
            self.runtime(pod.node).kill(&pod.server)?;
            self.runtime(pod.node).kill(&pod.sandbox)?;
        }
        for runtime in &self.runtimes {
            let left = runtime.reservations()?;
            ensure!(left.is_empty(), "reservations are left: {left}");
        }
        for node in [1, 2] {
            let members = self.bed.exec(&format!("node{node}"), &["ip", "-br", "link", "show", "type", "veth"])?;
            let left: Vec<_> = members.lines().filter(|line| line.starts_with("veth")).collect();
            ensure!(left.is_empty(), "interfaces are left: {left:?}");
        }
        if self.bed.has_podlane() {
            for node in [1, 2] {
                wait_for("the ports to be gone", FOLLOW, || {
                    Ok(self.bed.status(node)?.ports.iter().all(|port| port.kind != "pod").then_some(()))
                })?;
            }
        }
        self.runtimes.into_iter().try_for_each(Runtime::end)?;
        self.bed.take_down()
    }
}

/// The image, in a file that goes when this is dropped.
fn image(bed: &Bed) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().prefix(&leftovers::runtime_name(&bed.name, "")).suffix(".log").tempfile()?;
    let path: [PathBuf; 2] = [stock::unpacked()?.join("bin/busybox"), traffic::probe_binary()];
    let mut make = Command::new("sh");
    make.args(["-euc", include_str!("image.sh"), "image.sh"]).args(&path).arg(RESOLVER[0]).arg(file.path());
    command::run(&mut make, SHORT).context("making the image")?;
    Ok(file)
}

/// Both addresses of a container's pod.
fn addresses(runtime: &Runtime, container: &str) -> Result<[IpAddr; 2]> {
    // ctr loses what a command printed whose end it hears of first.
    let said = wait_for("ctr to hand on what ip printed", SHORT, || {
        let said = runtime.exec(container, &["ip", "addr", "show", "dev", "eth0"])?;
        Ok(said.contains("inet6").then_some(said))
    })?;
    let of = |word: &str| -> Result<IpAddr> {
        let line = said.lines().find(|line| line.trim().starts_with(word) && line.contains("scope global"));
        let address = line.and_then(|line| line.trim().split([' ', '/']).nth(1));
        Ok(address.with_context(|| format!("no {word} in {said}"))?.parse()?)
    };
    Ok([of("inet ")?, of("inet6 ")?])
}

/// A line of shell that fetches what the web servers have, and fails unless all of it comes.
fn fetch(url: &str) -> String {
    format!("test $(wget -qO- {url} | wc -c) = 1000000")
}

fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// What kube-proxy does with two services: the name server's, of one pod, and the web servers', of two; who comes to himself by way
/// of a service comes under the node's name.
fn rules(family: usize, dns: &Pod, web: [&Pod; 2]) -> String {
    let ip = ["ip", "ip6"][family];
    let (resolver, service, dns) = (RESOLVER[family], SERVICE[family], dns.addresses[family]);
    let web = web.map(|pod| pod.addresses[family]);
    let to = |address: IpAddr, port: u16| format!("{}:{port}", in_url(address));
    format!(
        "table {ip} service {{
            chain translate {{
                {ip} daddr {resolver} udp dport 53 dnat to {2}
                {ip} daddr {resolver} tcp dport 53 dnat to {2}
                {ip} daddr {service} tcp dport 80 numgen inc mod 2 0 dnat to {3}
                {ip} daddr {service} tcp dport 80 dnat to {4}
            }}
            chain prerouting {{ type nat hook prerouting priority dstnat; jump translate; }}
            chain output {{ type nat hook output priority -100; jump translate; }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                {ip} saddr {0} {ip} daddr {0} masquerade
                {ip} saddr {1} {ip} daddr {1} masquerade
                {ip} saddr {dns} {ip} daddr {dns} masquerade
            }}
        }}\n",
        web[0],
        web[1],
        to(dns, 53),
        to(web[0], 80),
        to(web[1], 80),
    )
}
