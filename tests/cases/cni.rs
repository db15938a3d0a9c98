//! The CNI plugin: pods that it connects, what it leaves and what it does not, alone and beside a running daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use podlane_cni::command::{Step, add};
use podlane_cni::protocol::{Call, Config, Failure};
use podlane_tests::bed::{Bed, FOLLOW};
use podlane_tests::cni::{self, Plugin};
use podlane_tests::command::wait_for;
use podlane_tests::status::Port;
use podlane_tests::stock;
use podlane_tests::testbed::{Family, Testbed};
use podlane_tests::traffic::{Datagrams, Way};
use serde_json::{Value, json};

/// Rounds in which no packet may be lost.
const ROUNDS: usize = 12;
/// Pods that are born under streams, and what each stream is: 600 ms of a packet each 2 ms.
const BIRTHS: usize = 6;
const BIRTH_DATAGRAMS: u64 = 300;
const BIRTH_PACE_US: u64 = 2_000;
/// Pods of one node.
const MANY: usize = 250;
/// What the daemon may use for each of them, bytes: its resident set and its UMEM, which is locked.
const MEMORY_OF_A_POD: u64 = 1 << 20;
/// How long the daemon may take to serve all of them, on a busy machine.
const SERVE_MANY: Duration = Duration::from_secs(60);
/// Rounds in which ADD is killed, and how much later each time.
const KILLS: u32 = 60;
const KILL_STEP: Duration = Duration::from_micros(250);
/// Calls that a busy runtime makes at once.
const AT_ONCE: usize = 32;

/// What can be seen of pods on the node: interfaces, addresses, routes, neighbours and FDB entries that are not passing.
fn node_state(bed: &Testbed, node: &str) -> Result<String> {
    // Neighbours come and go by themselves; those of the plugin's pods must not be left. Whom the kernel has asked for in vain
    // is none.
    let look = "ip -br link | cut -d' ' -f1 | sort; ip -br addr show cbr0; ip route; ip -6 route show dev cbr0; \
                ip neigh show dev cbr0 | grep -E '10\\.244\\.[0-9]+\\.1[0-9][0-9] |::1[0-9a-f][0-9a-f] ' | grep -v FAILED || true";
    bed.sh(node, look)
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("a result has ips")?;
    let read = |ip: &Value| -> Result<IpAddr> {
        let text = ip["address"].as_str().context("an address")?;
        Ok(text.split('/').next().unwrap_or_default().parse()?)
    };
    ips.iter().map(read).collect()
}

/// The interface on the node.
fn host_interface(result: &Value) -> Result<String> {
    Ok(result["interfaces"][1]["name"].as_str().context("the node's interface")?.to_owned())
}

/// One packet there and back, and no other.
fn one_ping(bed: &Bed, from: &str, to: IpAddr) -> Result<()> {
    let (received, text) = bed.ping_output(from, to, &["-c", "1", "-W", "2"])?;
    ensure!(received == 1, "from {from} to {to}: {text}");
    Ok(())
}

/// The files of reservations.
fn reservations(plugin: &Plugin<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for boot in fs::read_dir(&plugin.data)?.flatten().filter(|entry| entry.path().is_dir()) {
        found
            .extend(fs::read_dir(boot.path())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}

/// Two pods reach each other, the testbed's pods on both nodes and the node, in both families, through Podlane if it runs;
/// they have their names; CHECK agrees, and notices what is changed; DEL leaves nothing, as often as it is called.
pub fn connects(bed: &mut Bed) -> Result<()> {
    let before = node_state(bed, "node1")?;
    let mut plugin = Plugin::new(bed, 1, "connects")?;
    for pod in ["cni1", "cni2"] {
        plugin.new_pod(pod)?;
    }
    let one = plugin.call("ADD", "cni1", &json!({}))?.ok()?;
    let two = plugin.call("ADD", "cni2", &json!({}))?.ok()?;
    for (index, family) in Family::BOTH.into_iter().enumerate() {
        let near = addresses(&two)?[index];
        for to in [near, bed.address("pod1", family)?, bed.address("pod4", family)?, bed.address("gateway1", family)?] {
            one_ping(bed, "cni1", to)?;
        }
        for from in ["pod1", "pod4", "node1"] {
            one_ping(bed, from, near)?;
        }
        if bed.has_podlane() {
            forwards(bed, &host_interface(&one)?, "cni1", near)?;
        }
    }
    is_named(bed, &host_interface(&one)?)?;
    is_guarded(bed, &host_interface(&one)?, &addresses(&one)?)?;
    plugin.call("CHECK", "cni1", &json!({ "prevResult": one }))?.ok()?;
    checks_notice(bed, &plugin, &one)?;
    plugin.call("DEL", "cni1", &json!({ "prevResult": one }))?.ok()?;
    // The second one as after the end of its namespace.
    plugin.call_with("DEL", "cni2", &json!({}), &[("CNI_NETNS", "")])?.ok()?;
    for pod in ["cni1", "cni2"] {
        plugin.call("DEL", pod, &json!({}))?.ok()?;
        let inside = bed.exec(pod, &["ip", "-br", "link"])?;
        ensure!(!inside.contains("eth0"), "the pod has kept its interface: {inside}");
    }
    ensure!(reservations(&plugin)?.is_empty(), "reservations are left: {:?}", reservations(&plugin)?);
    let after = node_state(bed, "node1")?;
    ensure!(before == after, "the node is not as it was:\n{before}\n{after}");
    Ok(())
}

/// Packets from a new pod come to go through Podlane.
fn forwards(bed: &Bed, port: &str, from: &str, to: IpAddr) -> Result<()> {
    let count = || -> Result<u64> {
        let status = bed.status(1)?;
        Ok(status.port(port).map_or(0, |port| port.forwarded + port.repeated))
    };
    wait_for(&format!("Podlane to forward from {port} to {to}"), FOLLOW, || {
        let before = count()?;
        one_ping(bed, from, to)?;
        Ok((count()? > before).then_some(()))
    })
}

/// The plugin's pods may send from their own addresses only, without any setting; others' pods are left as they are.
fn is_guarded(bed: &Bed, port: &str, addresses: &[IpAddr]) -> Result<()> {
    if !bed.has_podlane() {
        return Ok(());
    }
    wait_for(&format!("{port} to be guarded"), FOLLOW, || {
        let status = bed.status(1)?;
        let guard = status.port(port).and_then(|port| port.source_guard.as_ref());
        let has = |address: &IpAddr| guard.is_some_and(|guard| guard.addresses.contains(&address.to_string()));
        Ok((guard.is_some_and(|guard| guard.active) && addresses.iter().all(has)).then_some(()))
    })?;
    let status = bed.status(1)?;
    let other = status.port("veth-pod2").and_then(|port| port.source_guard.as_ref());
    ensure!(other.is_some_and(|guard| !guard.active), "the guard of another plugin's pod: {other:?}");
    Ok(())
}

fn is_named(bed: &Bed, port: &str) -> Result<()> {
    let link = bed.exec("node1", &["ip", "link", "show", "dev", port])?;
    ensure!(link.contains("alias shop/cni1"), "{link}");
    if bed.has_podlane() {
        let mut status = bed.podlane(1)?;
        status.args(["status", "--json", "--instance", &bed.instance(1)]);
        let status: Value = serde_json::from_str(&podlane_tests::command::run(&mut status, FOLLOW)?)?;
        let ports = status["ports"].as_array().context("ports")?;
        let named =
            ports.iter().any(|told| told["name"] == port && told["namespace"] == "shop" && told["pod"] == "cni1");
        ensure!(named, "no port {port} with its pod's name: {ports:?}");
    }
    Ok(())
}

/// CHECK tells each thing that is not as ADD left it.
fn checks_notice(bed: &Bed, plugin: &Plugin<'_>, result: &Value) -> Result<()> {
    let host = host_interface(result)?;
    let [four, six] = addresses(result)?[..] else { anyhow::bail!("two addresses") };
    let four = format!("{four}/24");
    let six = format!("{six}/64");
    for (place, break_it, mend, word) in [
        ("cni1", "ip route del default".to_owned(), "ip route add default via 10.244.1.1".to_owned(), "route"),
        ("cni1", format!("ip addr del {six} dev eth0"), format!("ip addr add {six} dev eth0 nodad"), "address"),
        ("node1", format!("ip link set {host} nomaster"), format!("ip link set {host} master cbr0"), "member"),
        ("node1", format!("ip link set {host} down"), format!("ip link set {host} up"), "down"),
    ] {
        bed.sh(place, &break_it)?;
        let said = plugin.call("CHECK", "cni1", &json!({ "prevResult": result }))?.refused(101)?;
        ensure!(said.contains(word), "{break_it}: {said}");
        bed.sh(place, &mend)?;
    }
    // A default route of IPv6 goes with the address it was reached through.
    let _ = bed.sh("cni1", "ip -6 route add default via fd00:10:244:1::1");
    plugin.call("CHECK", "cni1", &json!({ "prevResult": result }))?.ok()?;
    let other = plugin.call("CHECK", "cni1", &json!({ "prevResult": null }))?.refused(7)?;
    ensure!(other.contains("prevResult"), "{other}");
    let mut moved = result.clone();
    moved["ips"][0]["address"] = json!(four.replace(".1", ".2"));
    plugin.call("CHECK", "cni1", &json!({ "prevResult": moved }))?.refused(101).map(drop)
}

/// The first packet of a new pod, and the first to it, arrive: in either family, while the daemon is busy attaching itself to
/// the new port. The address that was given back is not the next one to be given.
pub fn first_packets(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "first")?;
    plugin.new_pod("cni1")?;
    let mut given = BTreeSet::new();
    for round in 0..ROUNDS {
        let result = plugin.call("ADD", "cni1", &json!({}))?.ok()?;
        for (address, family) in addresses(&result)?.into_iter().zip(Family::BOTH) {
            ensure!(given.insert(address), "{address} was given twice in a row");
            let (near, far) = (bed.address("pod1", family)?, bed.address("pod4", family)?);
            let both = || {
                if round % 2 == 0 {
                    one_ping(bed, "cni1", near).and_then(|()| one_ping(bed, "pod4", address))
                } else {
                    one_ping(bed, "pod2", address).and_then(|()| one_ping(bed, "cni1", far))
                }
            };
            both().with_context(|| format!("round {round}"))?;
        }
        plugin.call("DEL", "cni1", &json!({ "prevResult": result }))?.ok()?;
    }
    Ok(())
}

/// Not one packet is lost of what a pod sends from the moment in which it has a route, while ADD is still at work, nor of what others
/// send to it from the moment in which ADD has returned, while the daemon attaches itself to the new port.
pub fn streams_from_birth(bed: &mut Bed) -> Result<()> {
    let datagrams = Datagrams { count: Some(BIRTH_DATAGRAMS), ..Datagrams::steady(600, BIRTH_PACE_US) };
    let mut plugin = Plugin::new(bed, 1, "birth")?;
    for round in 0..BIRTHS {
        let (index, family) = (round % 2, Family::BOTH[round % 2]);
        plugin.new_pod("cni1")?;
        let mut flows = Vec::new();
        for to in ["pod1", "pod4"] {
            let address = bed.address(to, family)?;
            let receiver = bed.udp_receiver(to, address, &datagrams)?;
            let way = Way { from: "cni1".to_owned(), to: to.to_owned(), address };
            flows.push((format!("cni1 to {to}"), bed.udp_sender(&way, receiver, &datagrams, &["--from-birth"])?));
        }
        let any: IpAddr = family.pick("0.0.0.0", "::").parse()?;
        let receivers = [bed.udp_receiver("cni1", any, &datagrams)?, bed.udp_receiver("cni1", any, &datagrams)?];
        let result = plugin.call("ADD", "cni1", &json!({}))?.ok()?;
        let address = addresses(&result)?[index];
        for (from, receiver) in ["pod2", "pod4"].into_iter().zip(receivers) {
            let way = Way { from: from.to_owned(), to: "cni1".to_owned(), address };
            flows.push((format!("{from} to cni1"), bed.udp_sender(&way, receiver, &datagrams, &[])?));
        }
        for (flow, sender) in flows {
            sender.finish()?.intact().with_context(|| format!("round {round}, {}, {flow}", family.name()))?;
        }
        if bed.has_podlane() {
            let port = host_interface(&result)?;
            let forwarded = bed.status(1)?.port(&port).map_or(0, |port| port.forwarded + port.repeated);
            ensure!(
                forwarded > 0,
                "round {round}: Podlane came too late to forward anything: a longer stream is needed"
            );
        }
        plugin.call("DEL", "cni1", &json!({ "prevResult": result }))?.ok()?;
        plugin.remove_pod("cni1")?;
    }
    Ok(())
}

/// STATUS says whether the daemon runs; pods are connected and talk while it does not, and it takes them over when it comes.
pub fn without_the_daemon(bed: &mut Bed) -> Result<()> {
    let socket = podlane_tests::daemon::control_socket(&bed.instance(1));
    let with_socket = json!({ "controlSocket": socket });
    let required = json!({ "controlSocket": socket, "requireDaemon": true });
    {
        let plugin = Plugin::new(bed, 1, "status")?;
        let alive = plugin.call("STATUS", "cni1", &required)?;
        ensure!(alive.success && alive.stderr.is_empty() && alive.said.is_null(), "{alive:?}");
    }
    bed.stop_daemon(1)?;
    let (port, given) = {
        let mut plugin = Plugin::new(bed, 1, "status")?;
        let gone = plugin.call("STATUS", "cni1", &with_socket)?;
        ensure!(gone.success && gone.stderr.contains("does not answer"), "{gone:?}");
        let said = plugin.call("STATUS", "cni1", &required)?.refused(50)?;
        ensure!(said.contains("does not answer"), "{said}");
        plugin.new_pod("cni1")?;
        let result = plugin.call("ADD", "cni1", &with_socket)?.ok()?;
        for family in Family::BOTH {
            one_ping(bed, "cni1", bed.address("pod1", family)?)?;
            one_ping(bed, "cni1", bed.address("pod4", family)?)?;
        }
        // The pod goes with the plugin here; its port is what the daemon must cope with below.
        (host_interface(&result)?, addresses(&result)?)
    };
    // Without DEL it stays among the node's neighbours, for later cases to find.
    for address in given {
        bed.sh("node1", &format!("ip neigh del {address} dev cbr0 || true"))?;
    }
    bed.start_daemon(1)?;
    wait_for(&format!("{port} to be gone"), FOLLOW, || Ok(bed.status(1)?.port(&port).is_none().then_some(())))
}

/// 250 pods, 32 calls at a time: all are connected, no address is given twice, and when all are removed nothing is left.
pub fn many_at_once(bed: &mut Bed) -> Result<()> {
    let before = node_state(bed, "node1")?;
    let mut plugin = Plugin::new(bed, 1, "many")?;
    let pods: Vec<String> = (0..MANY).map(|number| format!("m{number}")).collect();
    for pod in &pods {
        plugin.new_pod(pod)?;
    }
    // The testbed's own pods have 10.244.1.0/24; these get a network of their own on the same bridge.
    let range = |subnet: &str| json!([{ "subnet": subnet }]);
    let ranges = [range("10.244.128.0/23"), range("fd00:10:244:80::/64")];
    let changes = json!({ "ipam": { "ranges": ranges } });
    // Pods that are there notice nothing of it.
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    let stream = bed.start_udp(&way, &Datagrams::steady(600, BIRTH_PACE_US))?;
    let results = all_at_once(&pods, |pod| plugin.call("ADD", pod, &changes)?.ok())?;
    let mut given = BTreeSet::new();
    for address in results.values().map(addresses).collect::<Result<Vec<_>>>()?.concat() {
        ensure!(given.insert(address), "{address} was given twice");
    }
    ensure!(given.len() == 2 * MANY, "{} addresses", given.len());
    let state = bed.exec("node1", &["bridge", "link", "show"])?;
    let forwarding = results.values().filter(|result| {
        let name = result["interfaces"][1]["name"].as_str().unwrap_or("?").to_owned();
        state.lines().any(|line| line.contains(&name) && line.contains("state forwarding"))
    });
    let forwarding = forwarding.count();
    ensure!(forwarding == MANY, "{forwarding} members forward");
    one_ping(bed, &pods[0], addresses(&results[&pods[MANY - 1]])?[0])?;
    one_ping(bed, &pods[MANY / 2], addresses(&results[&pods[1]])?[1])?;
    if bed.has_podlane() {
        forwards(bed, &host_interface(&results[&pods[0]])?, &pods[0], addresses(&results[&pods[MANY - 1]])?[0])?;
        cost_little(bed)?;
    }
    stream.finish()?.intact().context("pod1 to pod2, while others came")?;
    all_at_once(&pods, |pod| plugin.call("DEL", pod, &changes)?.ok())?;
    ensure!(reservations(&plugin)?.is_empty(), "reservations are left: {:?}", reservations(&plugin)?);
    bed.sh("node1", "ip addr del 10.244.128.1/23 dev cbr0; ip addr del fd00:10:244:80::1/64 dev cbr0")?;
    if bed.has_podlane() {
        let is_left = |port: &Port| port.kind == "pod" && !port.name.starts_with("veth-pod");
        wait_for("the ports to be gone", SERVE_MANY, || Ok((!bed.status(1)?.ports.iter().any(is_left)).then_some(())))?;
    }
    let after = node_state(bed, "node1")?;
    ensure!(before == after, "the node is not as it was:\n{before}\n{after}");
    Ok(())
}

/// All pods are served, and the daemon's memory for them is within its bounds. UMEM that was used already counts twice here.
fn cost_little(bed: &Bed) -> Result<()> {
    let status = wait_for("every pod to be served", SERVE_MANY, || {
        let status = bed.status(1)?;
        let served = status.ports.iter().filter(|port| port.kind == "pod" && port.state == "forwarding").count();
        Ok((served >= MANY).then_some(status))
    })?;
    ensure!(status.refused.is_empty(), "left to the kernel: {:?}", status.refused);
    let resident = podlane_tests::daemon::resident_bytes(status.pid)?;
    let locked = status.umem.frames * status.umem.chunk_bytes;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("    {MANY} pods: {:.0} MiB resident, {:.0} MiB of UMEM", mebibytes(resident), mebibytes(locked));
    ensure!(
        resident + locked <= MANY as u64 * MEMORY_OF_A_POD,
        "{MANY} pods cost {:.0} MiB resident and {:.0} MiB of UMEM",
        mebibytes(resident),
        mebibytes(locked)
    );
    Ok(())
}

/// What a call says for each pod, so many calls at a time.
fn all_at_once(pods: &[String], call: impl Fn(&str) -> Result<Value> + Sync) -> Result<BTreeMap<String, Value>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = call(pod).with_context(|| pod.clone())?;
                results.lock().expect("no holder panics").insert(pod.clone(), result);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    Ok(results.into_inner().expect("no holder panics"))
}

/// Whatever step of ADD fails, nothing is left of it, and the next ADD succeeds.
pub fn undoes_every_step(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "undo")?;
    plugin.new_pod("cni1")?;
    let ipam = fake_ipam(&plugin)?;
    for changes in [json!({}), ipam] {
        let before = node_state(bed, "node1")?;
        let links = bed.exec("cni1", &["ip", "-o", "link"])?;
        for step in Step::ALL {
            let failure =
                add_in_process(bed, &plugin, &changes, step)?.err().with_context(|| format!("{step:?} failed"))?;
            ensure!(failure.message == "on purpose" && failure.details.is_empty(), "{step:?}: {failure}");
            let after = node_state(bed, "node1")?;
            ensure!(before == after, "{step:?} has left something:\n{before}\n{after}");
            ensure!(bed.exec("cni1", &["ip", "-o", "link"])? == links, "{step:?} has left something in the pod");
            ensure!(reservations(&plugin)?.is_empty(), "{step:?} has left {:?}", reservations(&plugin)?);
            ensure!(leases(&plugin)?.is_empty(), "{step:?} has left a lease: {:?}", leases(&plugin)?);
        }
        plugin.call("ADD", "cni1", &changes)?.ok()?;
        // One that comes again is refused, and takes nothing away from the first.
        plugin.call("ADD", "cni1", &changes)?.refused(103)?;
        one_ping(bed, "cni1", bed.address("pod1", Family::V4)?)?;
        ensure!(reservations(&plugin)?.len() == 1, "{:?}", reservations(&plugin)?);
        plugin.call("DEL", "cni1", &changes)?.ok()?;
    }
    Ok(())
}

/// An ADD that is killed, at a moment that differs from round to round, leaves nothing that DEL does not remove, and no
/// address is lost.
pub fn killed_at_any_time(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "killed")?;
    plugin.new_pod("cni1")?;
    let before = node_state(bed, "node1")?;
    let config = plugin.config(&json!({})).to_string();
    for round in 0..KILLS {
        let mut child = plugin.program("ADD", "cni1", &[])?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().context("piped")?.write_all(config.as_bytes())?;
        // From before it has begun to after it is done.
        std::thread::sleep(KILL_STEP * round);
        child.kill()?;
        child.wait()?;
        plugin.call("DEL", "cni1", &json!({}))?.ok()?;
        let after = node_state(bed, "node1")?;
        ensure!(before == after, "round {round} has left something:\n{before}\n{after}");
        ensure!(!bed.exec("cni1", &["ip", "-br", "link"])?.contains("eth0"), "round {round} has left an interface");
        let left: Vec<_> = reservations(&plugin)?.into_iter().filter(|name| name.contains('@')).collect();
        ensure!(left.is_empty(), "round {round} has left {left:?}");
    }
    let result = plugin.call("ADD", "cni1", &json!({}))?.ok()?;
    one_ping(bed, "cni1", bed.address("pod1", Family::V4)?)?;
    plugin.call("DEL", "cni1", &json!({ "prevResult": result }))?.ok().map(drop)
}

/// ADD by the library, in a thread that is inside of the node, with a failure after a step.
fn add_in_process(bed: &Bed, plugin: &Plugin<'_>, changes: &Value, fails: Step) -> Result<Result<(), Failure>> {
    let node = File::open(format!("/run/netns/{}", bed.namespace("node1")))?;
    let config = Config::read(plugin.config(changes).to_string().into_bytes())?;
    let call = Call {
        container: "container-cni1".to_owned(),
        netns: plugin.netns("cni1"),
        interface: "eth0".to_owned(),
        arguments: Vec::new(),
        path: vec![plugin.data.clone()],
    };
    let fault = |step: Step| if step == fails { Err(Failure::new(999, "on purpose")) } else { Ok(()) };
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&node, CloneFlags::CLONE_NEWNET)?;
            Ok(add(&call, &config, &fault, &mut |_| Ok(())))
        });
        inside.join().expect("the plugin does not panic")
    })
}

/// An IPAM plugin that gives one address, and remembers its calls in files beside it. Returns the configuration for it.
fn fake_ipam(plugin: &Plugin<'_>) -> Result<Value> {
    let path = plugin.data.join("fake-ipam");
    let script = r#"#!/bin/sh
input=$(cat)
here=$(dirname "$0")
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >>"$here/calls"
case $CNI_COMMAND in
ADD)
    if [ -e "$here/full" ]; then
        echo '{"cniVersion": "1.1.0", "code": 113, "msg": "no more", "details": "really"}'
        exit 1
    fi
    touch "$here/lease-$CNI_CONTAINERID"
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.244.1.200/24", "gateway": "10.244.1.1"}],
        "routes": [{"dst": "203.0.113.0/24"}], "dns": {"nameservers": ["10.244.1.1"]}}' ;;
DEL) rm -f "$here/lease-$CNI_CONTAINERID" ;;
GC) case $input in *valid-attachments*) rm -f "$here"/lease-* ;; esac ;;
esac
"#;
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(json!({ "ipam": { "type": "fake-ipam", "whatever": true } }))
}

/// What the IPAM plugin above has given and not taken back.
fn leases(plugin: &Plugin<'_>) -> Result<Vec<String>> {
    let names = fs::read_dir(&plugin.data)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("lease-")).collect())
}

/// Another plugin gives the addresses: it is called for every command, its errors are passed on, and what it gave is used.
pub fn delegates(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "ipam")?;
    plugin.new_pod("cni1")?;
    let changes = fake_ipam(&plugin)?;
    let result = plugin.call("ADD", "cni1", &changes)?.ok()?;
    ensure!(addresses(&result)? == ["10.244.1.200".parse::<IpAddr>()?], "{result}");
    ensure!(result["dns"]["nameservers"][0] == "10.244.1.1", "{result}");
    let routes = bed.exec("cni1", &["ip", "route"])?;
    ensure!(routes.contains("203.0.113.0/24 via 10.244.1.1") && routes.contains("default via 10.244.1.1"), "{routes}");
    one_ping(bed, "cni1", bed.address("pod4", Family::V4)?)?;
    let mut checked = changes.clone();
    checked["prevResult"] = result;
    plugin.call("CHECK", "cni1", &checked)?.ok()?;
    plugin.call("STATUS", "cni1", &changes)?.ok()?;
    let mut none_valid = changes.clone();
    none_valid["cni.dev/valid-attachments"] = json!([]);
    plugin.call("GC", "cni1", &none_valid)?.ok()?;
    ensure!(leases(&plugin)?.is_empty(), "{:?}", leases(&plugin)?);
    plugin.call("DEL", "cni1", &changes)?.ok()?;
    let calls = fs::read_to_string(plugin.data.join("calls"))?;
    let commands: Vec<&str> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(commands == ["ADD", "CHECK", "STATUS", "GC", "DEL"], "{commands:?}");
    fs::write(plugin.data.join("full"), "")?;
    let said = plugin.call("ADD", "cni1", &changes)?.refused(113)?;
    ensure!(said.contains("no more") && said.contains("really"), "{said}");
    let missing = json!({ "ipam": { "type": "not-there" } });
    let said = plugin.call("ADD", "cni1", &missing)?.refused(4)?;
    ensure!(said.contains("CNI_PATH"), "{said}");
    ensure!(!bed.exec("cni1", &["ip", "-br", "link"])?.contains("eth0"), "a failed ADD has left an interface");
    Ok(())
}

/// GC removes what is not on the list, of this network and no other, and nothing without a list.
pub fn collects_garbage(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "gc")?;
    let other = json!({ "name": "other" });
    let mut results = BTreeMap::new();
    for (pod, changes) in [("keep", json!({})), ("gone1", json!({})), ("gone2", json!({})), ("other", other.clone())] {
        plugin.new_pod(pod)?;
        results.insert(pod, plugin.call("ADD", pod, &changes)?.ok()?);
    }
    // The node remembers who they are.
    for pod in ["keep", "gone1", "gone2"] {
        for address in addresses(&results[pod])? {
            one_ping(bed, "node1", address)?;
        }
    }
    plugin.remove_pod("gone2")?;
    plugin.call("GC", "x", &json!({}))?.refused(7)?;
    plugin.call("GC", "x", &json!({ "cniVersion": "1.0.0" }))?.refused(1)?;
    ensure!(reservations(&plugin)?.len() == 4, "{:?}", reservations(&plugin)?);
    let valid = json!({ "cni.dev/valid-attachments": [
        { "containerID": "container-keep", "ifname": "eth0" }, { "containerID": "container-gone1", "ifname": "eth7" },
    ] });
    for _ in 0..2 {
        plugin.call("GC", "x", &valid)?.ok()?;
        ensure!(reservations(&plugin)?.len() == 2, "{:?}", reservations(&plugin)?);
        let state = node_state(bed, "node1")?;
        for (pod, stays) in [("keep", true), ("gone1", false), ("gone2", false), ("other", true)] {
            ensure!(state.contains(&host_interface(&results[pod])?) == stays, "{pod}: {state}");
            let neighbour = addresses(&results[pod])?.into_iter().any(|address| state.contains(&format!("{address} ")));
            ensure!(neighbour == (pod == "keep"), "{pod}: {state}");
        }
    }
    one_ping(bed, "keep", bed.address("pod1", Family::V4)?)?;
    plugin.call("DEL", "keep", &json!({}))?.ok()?;
    plugin.call("DEL", "other", &other).and_then(|answer| answer.ok()).map(drop)
}

/// The bridge is made with the gateways' addresses where there is none, by two calls at once too; a network that the node
/// itself is in is refused, and so is a bridge that is none.
pub fn makes_the_bridge(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 2, "bridge")?;
    let pods: Vec<String> = (0..8).map(|number| format!("b{number}")).collect();
    for pod in &pods {
        plugin.new_pod(pod)?;
    }
    let own = |cidrs: Value| json!({ "bridge": "cbr9", "mtu": 1400, "podCIDRs": cidrs, "ipam": null });
    let changes = own(json!(["10.98.0.0/24", "fd98::/64"]));
    all_at_once(&pods, |pod| plugin.call("ADD", pod, &changes)?.ok())?;
    let bridge = bed.exec("node2", &["ip", "addr", "show", "dev", "cbr9"])?;
    ensure!(bridge.contains("10.98.0.1/24") && bridge.contains("fd98::1/64"), "{bridge}");
    ensure!(bridge.contains("mtu 1400") && bridge.contains("0a:58:0a:62:00:01"), "{bridge}");
    one_ping(bed, "b0", "10.98.0.1".parse()?)?;
    one_ping(bed, "b0", "fd98::1".parse()?)?;
    all_at_once(&pods, |pod| plugin.call("DEL", pod, &changes)?.ok())?;
    let uplink = bed.address("node2", Family::V4)?;
    let overlapping = own(json!([bed_network(uplink)]));
    let said = plugin.call("ADD", "b0", &overlapping)?.refused(7)?;
    ensure!(said.contains("overlaps with the node's own address"), "{said}");
    let mut no_bridge = changes.clone();
    no_bridge["bridge"] = json!("eth0");
    plugin.call("ADD", "b0", &no_bridge)?.refused(7)?;
    plugin.call("STATUS", "b0", &no_bridge)?.refused(50)?;
    // One that is missing is made by ADD, unless there are pods that were connected to it.
    bed.exec("node2", &["ip", "link", "set", "cbr9", "name", "cbr8"])?;
    plugin.call("STATUS", "b0", &changes)?.ok()?;
    bed.exec("node2", &["ip", "link", "set", "cbr8", "name", "cbr9"])?;
    plugin.call("ADD", "b0", &changes)?.ok()?;
    bed.exec("node2", &["ip", "link", "set", "cbr9", "name", "cbr8"])?;
    for (cut_off, word) in [(&changes, "is gone; pods"), (&no_bridge, "is no bridge")] {
        let said = plugin.call("STATUS", "b0", cut_off)?.refused(51)?;
        ensure!(said.contains(word), "{said}");
    }
    bed.exec("node2", &["ip", "link", "set", "cbr8", "name", "cbr9"])?;
    plugin.call("STATUS", "b0", &changes)?.ok()?;
    plugin.call("DEL", "b0", &changes)?.ok()?;
    ensure!(reservations(&plugin)?.is_empty(), "{:?}", reservations(&plugin)?);
    bed.exec("node2", &["ip", "link", "del", "cbr9"]).map(drop)
}

/// The network of 256 addresses around one.
fn bed_network(address: IpAddr) -> String {
    let text = address.to_string();
    format!("{}.0/24", text.rsplit_once('.').map_or("", |(network, _)| network))
}

/// What a runtime can do wrong, and what the disk of addresses cannot give.
pub fn refusals(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "refusals")?;
    for pod in ["cni1", "cni2"] {
        plugin.new_pod(pod)?;
    }
    let node = format!("/run/netns/{}", bed.namespace("node1"));
    for (variables, code) in [
        ([("CNI_NETNS", "/run/netns/there-is-none")], 3),
        ([("CNI_NETNS", node.as_str())], 4),
        ([("CNI_NETNS", "/dev/null")], 4),
        ([("CNI_IFNAME", "lo")], 103),
        ([("CNI_COMMAND", "PLAY")], 4),
    ] {
        let said = plugin.call_with("ADD", "cni1", &json!({}), &variables)?.refused(code)?;
        ensure!(!said.is_empty(), "{variables:?}");
    }
    let one = [json!([{ "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.100", "rangeEnd": "10.244.1.100" }])];
    let changes = json!({ "ipam": { "ranges": one } });
    plugin.call("STATUS", "cni1", &changes)?.ok()?;
    plugin.call("ADD", "cni1", &changes)?.ok()?;
    let said = plugin.call("ADD", "cni2", &changes)?.refused(102)?;
    ensure!(said.contains("every address of 10.244.1.100–10.244.1.100 is taken"), "{said}");
    plugin.call("STATUS", "cni1", &changes)?.refused(50)?;
    plugin.call("STATUS", "cni1", &json!({ "cniVersion": "1.0.0" }))?.refused(1)?;
    plugin.call("DEL", "cni1", &changes)?.ok()?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let versions = plugin.call("VERSION", "cni1", &json!({ "cniVersion": version }))?.ok()?;
        ensure!(versions["cniVersion"] == version && versions["supportedVersions"].as_array().is_some(), "{versions}");
        let of_version = json!({ "cniVersion": version });
        let result = plugin.call("ADD", "cni1", &of_version)?.ok()?;
        ensure!(
            result["cniVersion"] == version && result["ips"][0].get("version").is_some() == (version == "0.4.0"),
            "{result}"
        );
        plugin.call("CHECK", "cni1", &json!({ "cniVersion": version, "prevResult": result }))?.ok()?;
        plugin.call("DEL", "cni1", &of_version)?.ok()?;
    }
    ensure!(reservations(&plugin)?.is_empty(), "{:?}", reservations(&plugin)?);
    Ok(())
}

/// After a plugin that makes something else, it adds to the result; after one that has made the interface, it names it.
pub fn in_a_chain(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "chain")?;
    plugin.new_pod("cni1")?;
    let before = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "net7", "sandbox": plugin.netns("cni1") }],
        "ips": [{ "address": "192.0.2.7/24", "interface": 0 }],
        "somebody": "else's",
    });
    let result = plugin.call("ADD", "cni1", &json!({ "prevResult": before }))?.ok()?;
    ensure!(result["interfaces"][0] == before["interfaces"][0] && result["somebody"] == "else's", "{result}");
    ensure!(result["ips"][0]["interface"] == 0 && result["ips"][1]["interface"] == 3, "{result}");
    plugin.call("CHECK", "cni1", &json!({ "prevResult": result }))?.ok()?;
    plugin.call("DEL", "cni1", &json!({ "prevResult": result }))?.ok()?;

    // Made by another plugin: the first of the testbed's own pods.
    let made = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "veth-pod1" }, { "name": "eth0", "sandbox": plugin.netns("cni1") }],
    });
    let chained = json!({ "prevResult": made, "ipam": null });
    let passed = plugin.call("ADD", "cni1", &chained)?.ok()?;
    ensure!(passed == made, "{passed}");
    let link = bed.exec("node1", &["ip", "link", "show", "dev", "veth-pod1"])?;
    ensure!(link.contains("alias shop/cni1"), "{link}");
    plugin.call("CHECK", "cni1", &chained)?.ok()?;
    plugin.call("DEL", "cni1", &chained)?.ok()?;
    one_ping(bed, "pod1", bed.address("pod2", Family::V4)?)?;
    bed.exec("node1", &["ip", "link", "set", "veth-pod1", "alias", ""])?;
    ensure!(reservations(&plugin)?.is_empty(), "{:?}", reservations(&plugin)?);
    Ok(())
}

/// In front of the stock plugins that runtimes chain: each takes the result, CHECK agrees with what they have changed, a port of the
/// node leads to the pod, and DEL leaves nothing of any of them.
pub fn in_a_stock_chain(bed: &mut Bed) -> Result<()> {
    const CONTAINER_PORT: u16 = 7777;
    const HOST_PORT: u16 = 18080;
    /// Bytes there and back.
    const CHAINED: [u64; 2] = [1 << 20, 1 << 20];
    let plugins = stock::plugins()?;
    let before = node_state(bed, "node1")?;
    let mut plugin = Plugin::new(bed, 1, "chain")?;
    plugin.new_pod("cni1")?;
    // What the stock ones of Debian 12 speak.
    let ours = json!({ "cniVersion": "1.0.0" });
    let mapping = json!([{ "hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": "tcp" }]);
    let chain = [
        ("tuning", json!({ "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" }, "mtu": 1400 })),
        ("bandwidth", json!({ "ingressRate": 1u64 << 33, "ingressBurst": 1u64 << 31 })),
        ("portmap", json!({ "runtimeConfig": { "portMappings": mapping } })),
    ];
    let call = |kind: &str, command: &str, config: &Value, previous: &Value| -> Result<Value> {
        let mut all = json!({ "cniVersion": "1.0.0", "name": "podlane", "type": kind, "prevResult": previous });
        config.as_object().into_iter().flatten().for_each(|(key, value)| all[key] = value.clone());
        let program = plugin.program_of(&plugins.join(kind), command, "cni1", &[]);
        cni::finish(program, &all)?.ok().with_context(|| format!("{command} of {kind}"))
    };
    let first = plugin.call("ADD", "cni1", &ours)?.ok()?;
    let mut result = first.clone();
    for (kind, config) in &chain {
        result = call(kind, "ADD", config, &result)?;
    }
    ensure!(result["ips"] == first["ips"], "{result}");
    if bed.has_podlane() {
        let port = host_interface(&first)?;
        wait_for(&format!("{port}, which is limited, to be the kernel's"), FOLLOW, || {
            let status = bed.status(1)?;
            let refused = status.refused.iter().find(|refused| refused.name == port);
            Ok(refused.filter(|refused| refused.why.contains("queueing discipline tbf")).map(|_| ()))
        })?;
    }
    plugin.call("CHECK", "cni1", &json!({ "cniVersion": "1.0.0", "prevResult": result }))?.ok()?;
    // That of portmap 1.1.1 looks for the rules of IPv4 among those of IPv6 as well.
    for (kind, config) in chain.iter().filter(|(kind, _)| *kind != "portmap") {
        call(kind, "CHECK", config, &result)?;
    }
    let address = addresses(&first)?[0];
    one_ping(bed, "cni1", bed.address("pod4", Family::V4)?)?;
    let to_pod = |from: &str| Way { from: from.to_owned(), to: "cni1".to_owned(), address };
    bed.tcp_through(&to_pod("pod4"), CONTAINER_PORT, None, CHAINED)?;
    let host_port = SocketAddr::new(bed.address("node1", Family::V4)?, HOST_PORT);
    bed.tcp_through(&to_pod("node2"), CONTAINER_PORT, Some(host_port), CHAINED)?;
    for (kind, config) in chain.iter().rev() {
        call(kind, "DEL", config, &result)?;
    }
    plugin.call("DEL", "cni1", &json!({ "cniVersion": "1.0.0", "prevResult": result }))?.ok()?;
    ensure!(reservations(&plugin)?.is_empty(), "{:?}", reservations(&plugin)?);
    let after = node_state(bed, "node1")?;
    ensure!(before == after, "the node is not as it was:\n{before}\n{after}");
    // The plugin's own chains stay for the next one, without a rule for anybody.
    let rules = bed.sh("node1", "nft list ruleset")?;
    ensure!(!rules.contains(&HOST_PORT.to_string()), "{rules}");
    Ok(())
}

/// A disk without room: ADD says so and leaves nothing; DEL works, and gives the address back.
pub fn full_disk(bed: &mut Bed) -> Result<()> {
    let mut plugin = Plugin::new(bed, 1, "disk")?;
    for pod in ["cni1", "cni2"] {
        plugin.new_pod(pod)?;
    }
    let binary = cni::binary()?;
    let call = |command: &str, pod: &str| {
        let (netns, config) = (plugin.netns(pod), plugin.config(&json!({})));
        let set = format!("CNI_COMMAND={command} CNI_CONTAINERID={pod} CNI_IFNAME=eth0 CNI_NETNS={netns} CNI_PATH=/");
        format!("echo '{config}' | {set} '{}' || true", binary.display())
    };
    let data = plugin.data.display();
    // A file system of its own, in a mount namespace of its own: filled to the last byte after the first pod.
    let script = format!(
        "mount -t tmpfs -o size=64k none '{data}'\n{}\ncat /dev/zero >'{data}/rubbish' 2>/dev/null || true\n{}\n\
         find '{data}' -name '*@*' | wc -l; find '{data}' -name new | wc -l\n{}\nfind '{data}' -name '*@*' | wc -l\n",
        call("ADD", "cni1"),
        call("ADD", "cni2"),
        call("DEL", "cni1"),
    );
    let mut inside = bed.command("node1", "unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let said = podlane_tests::command::run(&mut inside, FOLLOW * 4)?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 5, "{said}");
    ensure!(lines[0].contains("10.244.1.100"), "the first ADD: {said}");
    let refusal: Value = serde_json::from_str(lines[1])?;
    ensure!(refusal["code"] == 5 && refusal.to_string().contains("dataDir"), "the second ADD: {said}");
    ensure!(lines[2..] == ["1", "0", "0"], "reservations and half-written files: {said}");
    for pod in ["cni1", "cni2"] {
        ensure!(!bed.exec(pod, &["ip", "-br", "link"])?.contains("eth0"), "{pod} has an interface");
    }
    Ok(())
}
