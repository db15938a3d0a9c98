//! Services: connections that the kernel translates, by rules as kube-proxy writes them, beside connections that it does not.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, Counters, Least};
use podlane_tests::command::{self, Background, wait_for};
use podlane_tests::testbed::{Family, repository};
use podlane_tests::traffic::{Datagrams, Way};
use serde_json::Value;

use super::{Case, families, podlane_families};

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        families("iptables", |bed, family| services(bed, family, "iptables")),
        families("nftables", |bed, family| services(bed, family, "nftables")),
        families("one_source_port", one_source_port),
        families("refused_by_a_backend", refused_by_a_backend),
        families("within_the_cluster_iptables", |bed, family| within_the_cluster(bed, family, "iptables")),
        families("within_the_cluster_nftables", |bed, family| within_the_cluster(bed, family, "nftables")),
        families("connection_survives", connection_survives),
        podlane_families("network_policy", network_policy),
        podlane_families("network_policy_bypassed", network_policy_bypassed),
    ]
}

/// How often a server is asked: more than the packets that may go another way by chance.
const ROUNDS: u64 = 60;
/// The port on which the backends answer.
const BACKEND: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long Podlane is away: longer than a second, for which the kernel path goes on by itself.
const WITHOUT: Duration = Duration::from_millis(1500);

/// The address of service `number`.
fn service_address(number: u8, family: Family) -> IpAddr {
    let text = family.pick(format!("10.96.0.{number}"), format!("fd00:10:96::{number}"));
    text.parse().expect("an address")
}

/// Rules that are in force on every node until they are removed.
struct Rules {
    mode: &'static str,
    family: Family,
}

impl Rules {
    fn script(action: &str, mode: &str, family: Family) -> Command {
        let mut script = Command::new("bash");
        script.arg(repository().join("tests/kube-proxy.sh")).args([action, mode, family.name()]);
        script
    }

    fn apply(bed: &Bed, tool: &[&str], rules: &str) -> Result<()> {
        for node in 1..=bed.shape.nodes {
            let mut command = bed.command(&format!("node{node}"), tool[0]);
            command::run_with_input(command.args(&tool[1..]), rules.to_owned(), PATIENCE)?;
        }
        Ok(())
    }

    fn install(bed: &Bed, mode: &'static str, family: Family) -> Result<Rules> {
        let backend =
            |pod: &str| -> Result<String> { Ok(SocketAddr::new(bed.address(pod, family)?, BACKEND).to_string()) };
        let (near, far, own) = (backend("pod2")?, backend("pod4")?, backend("pod1")?);
        let mut services = Vec::new();
        for protocol in ["tcp", "udp"] {
            let cluster = |number, to: &str| {
                format!("s{number}-{protocol}/{protocol}/cluster/{}/80/Cluster/{to}", service_address(number, family))
            };
            services.extend([
                cluster(1, &near),
                cluster(2, &far),
                cluster(3, &own),
                cluster(4, &format!("{near},{far}")),
            ]);
            let port =
                |kind, port, policy, to: &str| format!("p{port}-{protocol}/{protocol}/{kind}/-/{port}/{policy}/{to}");
            services.extend([port("node", 30_080, "Cluster", &far), port("node", 30_081, "Cluster", &near)]);
            services.extend([port("node", 30_082, "Local", &near), port("host", 8081, "Local", &near)]);
        }
        Self::install_services(bed, mode, family, &services)
    }

    fn install_services(bed: &Bed, mode: &'static str, family: Family, services: &[String]) -> Result<Rules> {
        let mut script = Self::script("rules", mode, family);
        script.arg(family.pick("10.244.0.0/16", "fd00:10:244::/48")).args(services);
        let rules = command::run(&mut script, PATIENCE)?;
        let restore = family.pick("iptables-restore", "ip6tables-restore");
        match mode {
            "iptables" => Self::apply(bed, &[restore, "--noflush"], &rules)?,
            _ => Self::apply(bed, &["nft", "-f", "-"], &rules)?,
        }
        Ok(Rules { mode, family })
    }

    fn remove(self, bed: &Bed) -> Result<()> {
        let rules = command::run(&mut Self::script("remove", self.mode, self.family), PATIENCE)?;
        Self::apply(bed, &["nft", "-f", "-"], &rules)
    }
}

fn probe(bed: &Bed, place: &str) -> Command {
    bed.command(place, podlane_tests::traffic::probe_binary())
}

/// A pod that answers on [`BACKEND`].
fn answers(bed: &Bed, pod: &str, family: Family, udp: bool) -> Result<Background> {
    let mut answer = probe(bed, pod);
    let bind = SocketAddr::new(bed.address(pod, family)?, BACKEND).to_string();
    answer.args(["--deadline-s", "120", "answer", "--bind", &bind, "--name", pod]);
    if udp {
        answer.arg("--udp");
    }
    Background::start_ready(&mut answer)
}

/// Asks the servers in turn, and gives their answers.
fn ask(bed: &Bed, place: &str, to: &[SocketAddr], udp: bool, more: &[&str]) -> Result<Vec<Value>> {
    let mut ask = probe(bed, place);
    ask.args(["ask", "--rounds", &ROUNDS.to_string()]).args(more);
    for to in to {
        ask.args(["--to", &to.to_string()]);
    }
    if udp {
        ask.arg("--udp");
    }
    let result =
        Background::start(&mut ask)?.finish(PATIENCE).with_context(|| format!("{place} asks {to:?}, udp {udp}"))?;
    Ok(result["answers"].as_array().context("no answers")?.clone())
}

/// `place` asks `to`; `by` must answer and see `saw`.
fn asked(bed: &Bed, place: &str, to: SocketAddr, udp: bool, by: &str, saw: IpAddr) -> Result<()> {
    let answer = &ask(bed, place, &[to], udp, &[])?[0];
    ensure!(
        answer["by"] == by && answer["saw"] == saw.to_string().as_str(),
        "{place} asked {to} (udp {udp}) and got {answer}, not of {by}, who sees {saw}"
    );
    Ok(())
}

/// Frames that came in through a port were left to the kernel as ones of translated connections: one for each question.
fn was_translated(bed: &Bed, before: &Counters, node: usize, port: &str) -> Result<()> {
    bed.was_passed(before, node, port, "translated", ROUNDS)
}

/// Connections from pod to pod are Podlane's beside all that.
fn pods_are_fast(bed: &Bed, family: Family) -> Result<()> {
    for to in ["pod2", "pod4"] {
        let way = bed.way("pod1", to, family)?;
        bed.warm_up(&way)?;
        let mut attempts = 3;
        wait_for("connections from pod to pod to be Podlane's", PATIENCE, || {
            let before = bed.counters()?;
            bed.tcp(&way, 2 << 20, 2 << 20)?;
            bed.udp(&way, &Datagrams::windowed(&[24, 1400], 500))?.intact()?;
            attempts -= 1;
            // One whose first packet met a worker that did not run is the kernel's; on a busy machine another one is tried.
            match bed.went_through(&before, &way, Least::bytes(2 << 20)) {
                Err(error) if attempts == 0 => Err(error),
                outcome => Ok(outcome.ok()),
            }
        })?;
    }
    Ok(())
}

fn services(bed: &mut Bed, family: Family, mode: &'static str) -> Result<()> {
    let rules = Rules::install(bed, mode, family)?;
    pods_are_fast(bed, family)?;
    for udp in [false, true] {
        all_services(bed, family, udp).with_context(|| format!("{mode}, udp {udp}"))?;
    }
    pods_are_fast(bed, family)?;
    rules.remove(bed)
}

fn all_services(bed: &Bed, family: Family, udp: bool) -> Result<()> {
    let servers = ["pod1", "pod2", "pod4"].map(|pod| answers(bed, pod, family, udp));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let service = |number| SocketAddr::new(service_address(number, family), 80);
    let node = |port| Ok::<_, anyhow::Error>(SocketAddr::new(bed.address("node1", family)?, port));
    let [pod, outside] = [bed.address("pod1", family)?, bed.address("outside", family)?];

    let before = bed.counters()?;
    asked(bed, "pod1", service(1), udp, "pod2", pod).context("a ClusterIP with its backend on the same node")?;
    was_translated(bed, &before, 1, "veth-pod2")?;

    let before = bed.counters()?;
    asked(bed, "pod1", service(2), udp, "pod4", pod).context("a ClusterIP with its backend on another node")?;
    was_translated(bed, &before, 1, "eth0")?;

    // As the bridge plugin's `hairpinMode` does it: br_netfilter sends the packet back to where it came from.
    bed.exec("node1", &["bridge", "link", "set", "dev", "veth-pod1", "hairpin", "on"])?;
    asked(bed, "pod1", service(3), udp, "pod1", bed.address("gateway1", family)?).context("hairpin")?;
    bed.exec("node1", &["bridge", "link", "set", "dev", "veth-pod1", "hairpin", "off"])?;
    ask(bed, "pod1", &[service(4); 8], udp, &[]).context("a ClusterIP with backends on both nodes")?;

    let masqueraded = bed.address("node1", family)?;
    asked(bed, "outside", node(30_080)?, udp, "pod4", masqueraded)
        .context("a NodePort, masqueraded, to another node")?;
    let gateway = bed.address("gateway1", family)?;
    asked(bed, "outside", node(30_081)?, udp, "pod2", gateway).context("a NodePort, masqueraded, on the same node")?;
    asked(bed, "outside", node(30_082)?, udp, "pod2", outside).context("a NodePort that keeps the source")?;
    let before = bed.counters()?;
    asked(bed, "pod3", node(30_082)?, udp, "pod2", bed.address("pod3", family)?).context("a NodePort from a pod")?;
    was_translated(bed, &before, 1, "veth-pod2")?;
    asked(bed, "outside", node(8081)?, udp, "pod2", outside).context("a host port")?;
    servers.into_iter().try_for_each(|server| server.finish(PATIENCE).map(drop))
}

/// A client that uses one source port for a service and for the pod behind it, both at the same time.
fn one_source_port(bed: &mut Bed, family: Family) -> Result<()> {
    let rules = Rules::install(bed, "iptables", family)?;
    for (number, backend) in [(1, "pod2"), (2, "pod4")] {
        let service = SocketAddr::new(service_address(number, family), 80);
        let direct = SocketAddr::new(bed.address(backend, family)?, BACKEND);
        for (udp, order) in [(false, [service, direct]), (true, [service, direct]), (true, [direct, service])] {
            // Each time another port, so that no connection of before is in the way.
            let port =
                (42_000 + u16::from(udp) * 100 + u16::from(number) * 10 + u16::from(order[0] == direct)).to_string();
            let server = answers(bed, backend, family, udp)?;
            let answers = ask(bed, "pod1", &order, udp, &["--from-port", &port])
                .with_context(|| format!("one port for {order:?}, udp {udp}"))?;
            ensure!(answers.iter().all(|answer| answer["by"] == backend), "{order:?}, udp {udp}: {answers:?}");
            server.finish(PATIENCE)?;
        }
    }
    rules.remove(bed)
}

/// Nobody listens behind a service: the backend's ICMP error is about the service's address when it comes to the client.
fn refused_by_a_backend(bed: &mut Bed, family: Family) -> Result<()> {
    let rules = Rules::install(bed, "nftables", family)?;
    for number in [1, 2] {
        let service = SocketAddr::new(service_address(number, family), 80);
        let refused = ask(bed, "pod1", &[service], true, &[]).expect_err("nobody listens");
        ensure!(format!("{refused:#}").contains("refused"), "the client is not told: {refused:#}");
    }
    let direct = SocketAddr::new(bed.address("pod2", family)?, BACKEND);
    let refused = ask(bed, "pod1", &[direct], true, &[]).expect_err("nobody listens");
    ensure!(format!("{refused:#}").contains("refused"), "the client is not told: {refused:#}");
    rules.remove(bed)
}

/// A service whose address is one of the cluster's own networks, like a pod's: it is found in kube-proxy's rules and named, and
/// what is routed is left to the kernel, which translates it.
fn within_the_cluster(bed: &mut Bed, family: Family, mode: &'static str) -> Result<()> {
    let address: IpAddr = family.pick("10.244.9.1", "fd00:10:244:9::1").parse()?;
    let service = SocketAddr::new(address, 80);
    let backend = SocketAddr::new(bed.address("pod4", family)?, BACKEND);
    let services = ["tcp", "udp"].map(|kind| format!("in-{kind}/{kind}/cluster/{address}/80/Cluster/{backend}"));
    bed.expect_complaint("may send connections between pods elsewhere");
    let rules = Rules::install_services(bed, mode, family, &services)?;
    if bed.has_podlane() {
        wait_for("the service to be found", PATIENCE, || {
            let said = podlane_tests::daemon::status_text(&bed.instance(1))?;
            Ok(said.contains(&format!("(service {address} in chain")).then_some(()))
        })?;
        let routing = bed.status(1)?.routing;
        let (concerned, other) = family.pick((&routing.ipv4, &routing.ipv6), (&routing.ipv6, &routing.ipv4));
        ensure!(concerned == "netfilter" && other == "on", "{routing:?}");
    }
    for udp in [false, true] {
        let server = answers(bed, "pod4", family, udp)?;
        asked(bed, "pod1", service, udp, "pod4", bed.address("pod1", family)?)?;
        server.finish(PATIENCE)?;
    }
    rules.remove(bed)?;
    pods_are_fast(bed, family)
}

/// A connection that lasts.
struct Lasting {
    server: Background,
    client: Background,
    way: Way,
}

impl Lasting {
    fn start(bed: &Bed, way: &Way) -> Result<Lasting> {
        let mut serve = probe(bed, &way.to);
        let bind = SocketAddr::new(way.address, 0).to_string();
        serve.args(["--deadline-s", "120", "lasting-serve", "--bind", &bind, "--flow", "7"]);
        let server = Background::start_ready(&mut serve)?;
        let to = SocketAddr::new(way.address, server.port()?).to_string();
        let mut connect = probe(bed, &way.from);
        connect.args(["--deadline-s", "120", "lasting-connect", "--to", &to, "--flow", "7", "--rate-mbit", "20"]);
        Ok(Lasting { server, client: Background::start(&mut connect)?, way: way.clone() })
    }

    fn finish(self) -> Result<()> {
        let sent = self.client.finish(PATIENCE).with_context(|| format!("the sender, {:?}", self.way))?;
        self.server.finish(PATIENCE).with_context(|| format!("the receiver, {:?}: {sent}", self.way))?;
        let pause = sent["longest_write_ms"].as_f64().context("longest_write_ms")?;
        ensure!(pause < 5000.0, "{:?} stood still for {pause} ms", self.way);
        Ok(())
    }
}

/// Connections from pod to pod outlive the coming, going and coming of Podlane, on nodes that drop what conntrack calls
/// invalid, whether they began with Podlane or before it.
fn connection_survives(bed: &mut Bed, family: Family) -> Result<()> {
    let rules = Rules::install(bed, "iptables", family)?;
    let ways = [bed.way("pod1", "pod2", family)?, bed.way("pod1", "pod4", family)?];
    ways.iter().try_for_each(|way| if bed.has_podlane() { bed.warm_up(way) } else { Ok(()) })?;
    let with: Vec<Lasting> = ways.iter().map(|way| Lasting::start(bed, way)).collect::<Result<_>>()?;
    moves_on(bed, &ways)?;
    if bed.has_podlane() {
        bed.end_daemon(1)?;
    }
    let before: Vec<Lasting> = ways.iter().map(|way| Lasting::start(bed, way)).collect::<Result<_>>()?;
    std::thread::sleep(WITHOUT);
    if bed.has_podlane() {
        bed.start_daemon(1)?;
        moves_on(bed, &ways)?;
        bed.end_daemon(1)?;
        std::thread::sleep(WITHOUT);
        bed.start_daemon(1)?;
        moves_on(bed, &ways)?;
    }
    with.into_iter().chain(before).try_for_each(Lasting::finish)?;
    rules.remove(bed)
}

/// Waits until bytes have moved through Podlane, if it is there.
fn moves_on(bed: &Bed, ways: &[Way]) -> Result<()> {
    if !bed.has_podlane() {
        return Ok(());
    }
    let before = bed.counters()?;
    for way in ways {
        wait_for("the connection to go through Podlane", PATIENCE, || {
            Ok((bed.forwarded_bytes(&before, way)? > 500_000).then_some(()))
        })?;
    }
    Ok(())
}

/// A rule that forbids datagrams from pod1 to one port, at the hook where policies are.
const POLICY: &str = "table inet netpol { chain forward { type filter hook forward priority 0; policy accept; \
                      ct state established,related accept; udp dport 8080 drop; }; }";

/// Whether a question gets an answer.
fn is_answered(bed: &Bed, to: &str, family: Family) -> Result<bool> {
    let mut one = probe(bed, "pod1");
    let to = SocketAddr::new(bed.address(to, family)?, BACKEND).to_string();
    one.args(["--deadline-s", "2", "ask", "--udp", "--to", &to]);
    Ok(Background::start(&mut one)?.finish(PATIENCE).is_ok())
}

/// Rules of others that forbid something between pods are found, named, and obeyed: by the kernel, which gets the traffic.
fn network_policy(bed: &mut Bed, family: Family) -> Result<()> {
    let servers =
        ["pod2", "pod4"].map(|pod| answers(bed, pod, family, true)).into_iter().collect::<Result<Vec<_>>>()?;
    for to in ["pod2", "pod4"] {
        bed.warm_up(&bed.way("pod1", to, family)?)?;
        ensure!(is_answered(bed, to, family)?, "{to} does not answer before there are rules");
    }
    bed.expect_complaint("inet netpol chain forward");
    Rules::apply(bed, &["nft", "-f", "-"], POLICY)?;
    for to in ["pod2", "pod4"] {
        wait_for("the rules to be obeyed", PATIENCE, || Ok((!is_answered(bed, to, family)?).then_some(())))
            .with_context(|| format!("datagrams to {to}"))?;
    }
    let before = bed.counters()?;
    bed.tcp(&bed.way("pod1", "pod2", family)?, 1 << 20, 1 << 20).context("what the rules allow")?;
    bed.was_passed(&before, 1, "veth-pod1", "netfilter", 10)?;
    let routing = bed.status(1)?.routing;
    ensure!(
        routing.ipv4 == "netfilter" && routing.ipv6 == "netfilter" && routing.bridging == "netfilter",
        "{routing:?}"
    );
    let said = podlane_tests::daemon::status_text(&bed.instance(1))?;
    let sentence =
        "Table inet netpol chain forward (hook forward) has rules that may drop, hold or change pods' packets";
    ensure!(said.contains(sentence), "status does not name the rules: {said}");
    Rules::apply(bed, &["nft", "-f", "-"], "delete table inet netpol")?;
    pods_are_fast(bed, family)?;
    servers.into_iter().try_for_each(|server| server.finish(PATIENCE).map(drop))
}

/// The same with `bypass_netfilter`: they are named, and not obeyed.
fn network_policy_bypassed(bed: &mut Bed, family: Family) -> Result<()> {
    bed.end_daemon(1)?;
    bed.start_daemon_with(1, &["--bypass-netfilter"])?;
    bed.expect_complaint("inet netpol chain forward");
    bed.expect_complaint("bypass_netfilter");
    let mut nft = bed.command("node1", "nft");
    command::run_with_input(nft.args(["-f", "-"]), POLICY.to_owned(), PATIENCE)?;
    wait_for("the rules to be named", PATIENCE, || {
        let said = podlane_tests::daemon::status_text(&bed.instance(1))?;
        Ok(said.contains("bypass_netfilter: they are bypassed").then_some(()))
    })?;
    let server = answers(bed, "pod2", family, true)?;
    bed.warm_up(&bed.way("pod1", "pod2", family)?)?;
    // A question for which the worker has no time on a busy machine is the kernel's, which obeys.
    wait_for("an answer in spite of the rules", PATIENCE, || Ok(is_answered(bed, "pod2", family)?.then_some(())))?;
    server.finish(PATIENCE)?;
    bed.sh("node1", "nft delete table inet netpol")?;
    bed.end_daemon(1)?;
    bed.start_daemon(1)
}
