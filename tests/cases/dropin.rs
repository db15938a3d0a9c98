//! Drop-in: a node whose bridge and pods somebody else's plugins made. Podlane serves the pods that were there and those that
//! come, and when it goes the node and the pods are as they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, DataPath, FOLLOW};
use podlane_tests::command::{self, wait_for};
use podlane_tests::daemon::keeps_translated;
use podlane_tests::frames::{Ends, parse_mac};
use podlane_tests::node_state::NodeState;
use podlane_tests::stock::{BRIDGE, Pod, Stock};
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Way, sniffed};
use serde_json::{Value, json};

/// Rounds in which a new pod's first packet may not be lost.
const FIRST_PACKETS: usize = 6;
/// What a bulk transfer carries, bytes.
const BULK: u64 = 4 << 20;

/// Both nodes as the stock plugin has made them, two pods on each.
struct Scene {
    stocks: [Stock; 2],
    pods: Vec<Pod>,
}

impl Scene {
    /// Makes them, with changes to the plugin's configuration. The testbed's own bridge makes way.
    fn new(bed: &mut Bed, changes: &Value) -> Result<Scene> {
        for node in ["node1", "node2"] {
            let _ = bed.exec(node, &["ip", "link", "del", "cbr0"]);
        }
        let stocks = [Stock::new(bed, 1, changes)?, Stock::new(bed, 2, changes)?];
        let mut pods = Vec::new();
        for (name, stock) in [("old1", 0), ("old2", 0), ("old3", 1), ("old4", 1)] {
            pods.push(stocks[stock].add(name)?);
        }
        Ok(Scene { stocks, pods })
    }

    /// Everything goes, the bridge too.
    fn end(self, bed: &mut Bed) -> Result<()> {
        for pod in &self.pods {
            self.stocks[pod.node - 1].remove(&pod.name)?;
        }
        for node in ["node1", "node2"] {
            bed.exec(node, &["ip", "link", "del", BRIDGE])?;
        }
        Ok(())
    }

    /// One packet from every pod to every other, to its gateway, and from its node: whoever has to know whom knows him then.
    fn everybody_talks(&self, bed: &Bed) -> Result<()> {
        for from in &self.pods {
            for family in Family::BOTH {
                for to in self.pods.iter().filter(|to| to.name != from.name) {
                    one_ping(bed, &from.name, to, family)?;
                }
                let gateway = bed.address(&format!("gateway{}", from.node), family)?;
                bed.ping(&Way { from: from.name.clone(), to: "its gateway".to_owned(), address: gateway }, 56, 1)?;
                one_ping(bed, &format!("node{}", from.node), from, family)?;
            }
        }
        Ok(())
    }

    fn state(&self, bed: &Bed) -> Result<Vec<NodeState>> {
        let pods = self.pods.iter().map(|pod| pod.name.as_str());
        ["node1", "node2"].into_iter().chain(pods).map(|place| NodeState::read(bed, place)).collect()
    }
}

fn one_ping(bed: &Bed, from: &str, to: &Pod, family: Family) -> Result<()> {
    bed.ping(&Way { from: from.to_owned(), to: to.name.clone(), address: to.address(family)? }, 56, 1)
}

fn differences(before: &[NodeState], after: &[NodeState]) -> Vec<String> {
    before.iter().zip(after).flat_map(|(before, after)| before.differences(after)).collect()
}

/// The daemons, on this bridge.
fn start(bed: &mut Bed, options: &[&str]) -> Result<()> {
    for node in [1, 2] {
        let mut run = bed.podlane(node)?;
        run.args(["run", "--bridge", BRIDGE, "--uplink", "eth0", "--instance", &bed.instance(node)]);
        run.args(["--cluster-cidr", "10.244.0.0/16", "--cluster-cidr", "fd00:10:244::/48"]);
        run.arg("--cni-cache").arg(bed.cni_cache(node));
        bed.start_daemon_as(node, run.args(options))?;
    }
    Ok(())
}

/// The path that a testbed's name stands for; on a mixed one Podlane chooses.
fn path(bed: &Bed) -> &'static str {
    match bed.path {
        DataPath::AfXdp => "af_xdp",
        DataPath::Kernel => "kernel",
        DataPath::Without | DataPath::Mixed => "auto",
    }
}

/// Packets of a port that Podlane forwarded, in whichever way.
fn forwarded(bed: &Bed, node: usize, port: &str) -> Result<u64> {
    let status = bed.status(node)?;
    Ok(status.port(port).map_or(0, |port| port.forwarded + port.repeated))
}

/// Packets from one pod to another come to go through Podlane, at each node on their way.
fn goes_through(bed: &Bed, from: &Pod, to: &Pod, family: Family) -> Result<()> {
    let mut places = vec![(from.node, from.port.as_str())];
    if from.node != to.node {
        places.push((to.node, "eth0"));
    }
    let what = format!("Podlane to forward from {} to {}, {}", from.name, to.name, family.name());
    wait_for(&what, FOLLOW, || {
        let count = || places.iter().map(|(node, port)| forwarded(bed, *node, port)).collect::<Result<Vec<_>>>();
        let before = count()?;
        one_ping(bed, &from.name, to, family)?;
        Ok(count()?.iter().zip(&before).all(|(after, before)| after > before).then_some(()))
    })
}

/// The way there and back, inside of a node and between nodes.
fn all_go_through(bed: &Bed, scene: &Scene) -> Result<()> {
    for family in Family::BOTH {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (3, 2)] {
            goes_through(bed, &scene.pods[from], &scene.pods[to], family)?;
        }
    }
    Ok(())
}

/// Everything: pods that were there, that come, that go, that die; then the daemons are ended, and nothing is different.
pub fn pods_of_others(bed: &mut Bed) -> Result<()> {
    let scene = Scene::new(bed, &json!({}))?;
    scene.everybody_talks(bed)?;
    let before = scene.state(bed)?;
    let values: usize = before.iter().map(NodeState::len).sum();
    ensure!(values > 5000, "only {values} values of {} places were read", before.len());
    start(bed, &["--path", path(bed)])?;
    scene.everybody_talks(bed)?;
    all_go_through(bed, &scene)?;
    // The comparison sees what it is for.
    let meanwhile = differences(&before, &scene.state(bed)?);
    ensure!(meanwhile.iter().any(|line| line.contains("podlane0")), "the host port is no difference: {meanwhile:#?}");
    let takes_offload = meanwhile.iter().any(|line| line.contains("old1") && line.contains("tcp-segmentation-offload"));
    ensure!(takes_offload == (bed.path == DataPath::AfXdp), "TSO in the pod: {meanwhile:#?}");
    let (newcomer, gone) = comes_and_goes(bed, &scene)?;
    bed.audit()?;
    for node in [1, 2] {
        bed.stop_daemon(node)?;
    }
    scene.everybody_talks(bed)?;
    like_the_others(bed, &newcomer)?;
    scene.stocks[0].remove(&newcomer.name)?;
    let mut left = differences(&before, &scene.state(bed)?);
    // Whoever has talked to a pod that is gone has it among its neighbours still, as without Podlane.
    let is_gone = |line: &str| line.contains(": neighbour: ") && gone.iter().any(|pod| pod.is_in(line));
    left.retain(|line| !is_gone(line));
    ensure!(left.is_empty(), "after detach:\n{}", left.join("\n"));
    scene.end(bed)
}

/// Pods come while Podlane runs, and their first packets arrive; some go again in whichever way. Gives one that stays, and all of
/// them.
fn comes_and_goes(bed: &mut Bed, scene: &Scene) -> Result<(Pod, Vec<Pod>)> {
    let stock = &scene.stocks[0];
    let mut all = Vec::new();
    for round in 0..FIRST_PACKETS {
        let pod = stock.add("new1")?;
        for family in Family::BOTH {
            // The first packet of the pod, or the first one to it.
            if round % 2 == 0 {
                one_ping(bed, "new1", &scene.pods[round % 4], family)?;
            } else {
                one_ping(bed, &scene.pods[round % 4].name, &pod, family)?;
            }
        }
        goes_through(bed, &pod, &scene.pods[1], Family::V4)?;
        if round % 3 == 0 {
            stock.kill("new1")?;
            stock.forget("new1")?;
        } else {
            stock.remove("new1")?;
        }
        wait_for("the port to be gone", FOLLOW, || Ok(bed.status(1)?.port(&pod.port).is_none().then_some(())))?;
        all.push(pod);
    }
    let stays = stock.add("new2")?;
    goes_through(bed, &stays, &scene.pods[1], Family::V4)?;
    goes_through(bed, &stays, &scene.pods[2], Family::V6)?;
    let way = Way { from: "new2".to_owned(), to: "old3".to_owned(), address: scene.pods[2].address(Family::V4)? };
    bed.tcp(&way, BULK, BULK)?;
    all.push(stays.clone());
    Ok((stays, all))
}

/// A pod that came while Podlane ran is not different from one that was there before.
fn like_the_others(bed: &Bed, newcomer: &Pod) -> Result<()> {
    let read = |name: &str| -> Result<String> {
        let sizes =
            "ip -d -o link show dev eth0 | grep -o -E 'mtu [0-9]+|(gso|gro|tso)_[a-z_0-9]* [0-9]+|maxmtu [0-9]+'";
        bed.sh(name, &format!("ethtool -k eth0; {sizes}"))
    };
    let (old, new) = (read("old1")?, read(&newcomer.name)?);
    ensure!(old == new, "not like a pod that was there before:\n{old}\n{new}");
    Ok(())
}

/// What Podlane changes inside of pods, and a daemon that is killed: `detach` gives everything back.
pub fn gives_back(bed: &mut Bed) -> Result<()> {
    let scene = Scene::new(bed, &json!({}))?;
    scene.everybody_talks(bed)?;
    let before = scene.state(bed)?;
    let (options, words): (&[&str], _) = match bed.path {
        DataPath::Kernel => (&["--path", "kernel", "--big-tcp", "131072"], "gso_max_size: 65536 → 131072"),
        // It changes its path below.
        _ => (&["--path", "af_xdp", "--local-mtu", "9000"], "mtu: 1500 → 9000"),
    };
    start(bed, options)?;
    all_go_through(bed, &scene)?;
    wait_for("the pods to be changed", FOLLOW, || {
        let changed = before[2].differences(&NodeState::read(bed, "old1")?);
        Ok(changed.iter().any(|line| line.contains(words)).then_some(()))
    })?;
    if bed.path == DataPath::Mixed {
        for path in ["kernel", "af_xdp", "kernel"] {
            for node in [1, 2] {
                let mut change = bed.podlane(node)?;
                command::run(change.args(["path", path, "--instance", &bed.instance(node)]), Duration::from_secs(10))?;
            }
            all_go_through(bed, &scene)?;
        }
    }
    scene.everybody_talks(bed)?;
    for node in [1, 2] {
        let mut daemon = bed.take_daemon(node)?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        let said = bed.detach(node)?;
        ensure!(said.contains("removed the host port"), "{said}");
        bed.nothing_is_left(node)?;
    }
    scene.everybody_talks(bed)?;
    let left = differences(&before, &scene.state(bed)?);
    ensure!(left.is_empty(), "after detach:\n{}", left.join("\n"));
    scene.end(bed)
}

/// Options of the stock plugin that change what the bridge does: Podlane does the same, or leaves it to the kernel and says why.
pub fn options_of_others(bed: &mut Bed) -> Result<()> {
    for (changes, check) in [
        (json!({ "hairpinMode": true }), hairpin as fn(&Bed, &Scene) -> Result<()>),
        (json!({ "promiscMode": true }), promiscuous),
        (json!({ "vlan": 100 }), vlan),
        (json!({ "isGateway": false, "isDefaultGateway": false }), no_gateway),
        (json!({ "ipMasq": true }), masquerade),
    ] {
        if changes["vlan"].is_number() && !filters_by_vlan(bed) {
            println!("    skipped: {changes} (this kernel's bridge has no VLAN filtering)");
            continue;
        }
        if changes["ipMasq"] == true && !keeps_translated()? {
            println!("    skipped: {changes} (this Podlane does not keep translated traffic apart)");
            continue;
        }
        let scene = Scene::new(bed, &changes).with_context(|| changes.to_string())?;
        start(bed, &["--path", path(bed)])?;
        check(bed, &scene).with_context(|| changes.to_string())?;
        bed.audit()?;
        for node in [1, 2] {
            bed.stop_daemon(node)?;
        }
        scene.end(bed)?;
    }
    Ok(())
}

/// Whether the kernel has what the plugin's option `vlan` needs (`CONFIG_BRIDGE_VLAN_FILTERING`).
fn filters_by_vlan(bed: &Bed) -> bool {
    bed.sh("node1", "ip link add filters type bridge vlan_filtering 1; ip link del filters").is_ok()
}

fn hairpin(bed: &Bed, scene: &Scene) -> Result<()> {
    let ports = bed.exec("node1", &["bridge", "-d", "link", "show", "dev", &scene.pods[0].port])?;
    ensure!(ports.contains("hairpin on"), "{ports}");
    scene.everybody_talks(bed)?;
    all_go_through(bed, scene)?;
    ensure!(reflects(bed, &scene.pods[0])?, "the bridge does not send a frame back to where it came from");
    Ok(())
}

/// Whether a frame to an address that is behind the pod itself comes back to it.
fn reflects(bed: &Bed, pod: &Pod) -> Result<bool> {
    const BEHIND: &str = "02:00:00:00:99:99";
    bed.exec("node1", &["bridge", "fdb", "add", BEHIND, "dev", &pod.port, "master", "dynamic"])?;
    let address = pod.address(Family::V4)?;
    let ends = Ends {
        source_mac: bed.mac(&pod.name, "eth0")?,
        destination_mac: parse_mac(BEHIND)?,
        source: address,
        destination: address,
    };
    let sniffer = bed.sniff(&pod.name, "eth0", &[("reflected", b"to whom is behind me", 3)])?;
    bed.send_frames(&pod.name, "eth0", &[(3, 1000, ends.udp(9, b"to whom is behind me"))])?;
    Ok(sniffed(sniffer)?.found("reflected")?.incoming >= 3)
}

fn promiscuous(bed: &Bed, scene: &Scene) -> Result<()> {
    let bridge = bed.exec("node1", &["ip", "-d", "link", "show", "dev", BRIDGE])?;
    ensure!(bridge.contains("PROMISC"), "{bridge}");
    scene.everybody_talks(bed)?;
    all_go_through(bed, scene)?;
    says(bed, "promiscuous")
}

fn vlan(bed: &Bed, scene: &Scene) -> Result<()> {
    let count = || -> Result<u64> { scene.pods.iter().map(|pod| forwarded(bed, pod.node, &pod.port)).sum() };
    let before = count()?;
    for (from, to) in [(0, 1), (1, 0), (2, 3)] {
        for family in Family::BOTH {
            one_ping(bed, &scene.pods[from].name, &scene.pods[to], family)?;
        }
    }
    ensure!(count()? == before, "Podlane forwards although the bridge filters by VLAN");
    ensure!(bed.status(1)?.routing.bridging == "bridge_feature", "{:?}", bed.status(1)?.routing);
    says(bed, "The bridge filters by VLAN")
}

fn no_gateway(bed: &Bed, scene: &Scene) -> Result<()> {
    for family in Family::BOTH {
        for (from, to) in [(0, 1), (1, 0), (3, 2)] {
            goes_through(bed, &scene.pods[from], &scene.pods[to], family)?;
        }
        // Without a route the pods of other nodes are out of reach, and no packet is even sent.
        let far = scene.pods[2].address(family)?.to_string();
        let said = bed.exec("old1", &["ping", "-c", "1", "-W", "1", &far]).map_err(|error| error.to_string());
        ensure!(said.is_err_and(|said| said.contains("unreachable")), "old1 reaches {far}");
    }
    Ok(())
}

/// The plugin's rules would give the node's address to whatever leaves the node's own network, to pods of other nodes too. Podlane
/// takes what both ends in the cluster send each other, as docs/services.md says: they see each other's own addresses.
fn masquerade(bed: &Bed, scene: &Scene) -> Result<()> {
    scene.everybody_talks(bed)?;
    for family in Family::BOTH {
        let expected = scene.pods[0].address(family)?;
        for pod in &scene.pods[1..3] {
            let way = Way { from: "old1".to_owned(), to: pod.name.clone(), address: pod.address(family)? };
            let seen = bed.tcp(&way, BULK, BULK)?;
            ensure!(seen == expected, "{} sees {seen}, not {expected}", pod.name);
        }
        goes_through(bed, &scene.pods[0], &scene.pods[1], family)?;
    }
    Ok(())
}

/// `podlane status` has a sentence with these words.
fn says(bed: &Bed, words: &str) -> Result<()> {
    let mut status = bed.podlane(1)?;
    let said = command::run(status.args(["status", "--instance", &bed.instance(1)]), Duration::from_secs(10))?;
    ensure!(said.contains(words), "no word of {words:?} in:\n{said}");
    Ok(())
}
