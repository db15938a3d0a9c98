//! What an operator can get wrong: one sentence with the cure, an exit code that is not 0, and nothing half-attached.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::Bed;
use podlane_tests::command;
use podlane_tests::daemon::Daemon;
use podlane_tests::testbed::Family;

use super::{Case, podlane_once};

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        podlane_once("unknown_interface", unknown_interface),
        podlane_once("interfaces_come_later", interfaces_come_later),
        podlane_once("no_bpffs", no_bpffs),
        podlane_once("not_a_bridge", not_a_bridge),
        podlane_once("cidrs", cidrs),
        podlane_once("configuration_file", configuration_file),
        podlane_once("processors", processors),
        podlane_once("capabilities", capabilities),
        podlane_once("locked_memory", locked_memory),
        podlane_once("instance_runs_already", instance_runs_already),
        podlane_once("status_of_nobody", status_of_nobody),
        podlane_once("check", check),
        podlane_once("foreign_program_on_a_pod", foreign_program_on_a_pod),
        podlane_once("foreign_program_on_the_uplink", foreign_program_on_the_uplink),
    ]
}

/// Runs `command`, which must be refused with a message that has all of `words` in it, and must leave nothing.
fn refused(bed: &Bed, command: &mut Command, words: &[&str]) -> Result<()> {
    let text = format!("{command:?}");
    let said = bed.refused(command).with_context(|| text.clone())?;
    let lower = said.to_lowercase();
    let missing: Vec<_> = words.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
    ensure!(missing.is_empty(), "{text}\nmust say {missing:?}, but says:\n{said}");
    bed.nothing_is_left(1).with_context(|| text)
}

fn run(bed: &Bed, options: &[&str]) -> Result<Command> {
    let mut run = bed.podlane(1)?;
    run.args(["run", "--instance", &bed.instance(1)]).args(options);
    Ok(run)
}

fn unknown_interface(bed: &mut Bed) -> Result<()> {
    let cidr = ["--cluster-cidr", "10.244.0.0/16"];
    let name = "a-name-that-is-too-long";
    refused(bed, run(bed, &["--bridge", "cbr0", "--uplink", name])?.args(cidr), &[name])
}

/// What is not there yet is named and waited for.
fn interfaces_come_later(bed: &mut Bed) -> Result<()> {
    let options = ["--bridge", "later0", "--uplink", "later1", "--cluster-cidr", "10.244.0.0/16"];
    let mut daemon = Daemon::start(&mut run(bed, &options)?, &bed.instance(1))?;
    daemon.wait_until_ready()?;
    let complaints = daemon.new_complaints();
    ensure!(complaints.len() == 2, "two interfaces are missing, and it says: {complaints:?}");
    let status = |bed: &Bed| -> Result<(String, Vec<String>)> {
        let status: serde_json::Value = serde_json::from_str(&podlane_tests::daemon::status_text(&bed.instance(1))?)?;
        let ports = status["ports"].as_array().into_iter().flatten();
        let names = ports.filter_map(|port| port["name"].as_str().map(str::to_owned));
        Ok((status["bridge_state"].as_str().unwrap_or_default().to_owned(), names.collect()))
    };
    let (state, ports) = status(bed)?;
    ensure!(state.contains("later0") && ports == ["podlane0"], "the bridge is {state}, the ports are {ports:?}");
    bed.sh(
        "node1",
        "ip link add later0 up type bridge; ip link add later1 type veth peer name later2; ip link set later1 up",
    )?;
    let come = command::wait_for("both to be served", Duration::from_secs(5), || {
        let (state, ports) = status(bed)?;
        Ok((state == "ok" && ports.contains(&"later1".to_owned())).then_some(()))
    });
    let member = bed.exec("node1", &["ip", "-d", "link", "show", "podlane1"]);
    // Made anew under their names, they are other interfaces.
    bed.sh("node1", "ip link del later0; ip link del later1")?;
    come?;
    ensure!(member?.contains("master later0"), "the host port is no member of the bridge");
    bed.sh(
        "node1",
        "ip link add later0 up type bridge; ip link add later1 type veth peer name later2; ip link set later1 up",
    )?;
    command::wait_for("both to be served again", Duration::from_secs(5), || {
        let (state, ports) = status(bed)?;
        let member = bed.exec("node1", &["ip", "-d", "link", "show", "podlane1"])?;
        Ok((state == "ok" && ports.contains(&"later1".to_owned()) && member.contains("master later0")).then_some(()))
    })?;
    daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
    let ended = daemon.wait()?;
    bed.sh("node1", "ip link del later0; ip link del later1")?;
    bed.detach(1)?;
    ensure!(ended.success(), "podlane ended with {ended}");
    bed.nothing_is_left(1)
}

/// Without a bpffs, which `ip netns exec` hides, everything goes with the daemon, and it says so.
fn no_bpffs(bed: &mut Bed) -> Result<()> {
    let mut hidden = Command::new("ip");
    let podlane = podlane_tests::daemon::binary()?;
    hidden.args(["netns", "exec", &bed.namespace("node1")]).arg(&podlane);
    hidden.args(["run", "--instance", &bed.instance(1), "--bridge", "cbr0", "--uplink", "eth0"]);
    hidden.args(["--cluster-cidr", "10.244.0.0/16"]);
    let mut daemon = Daemon::start(&mut hidden, &bed.instance(1))?;
    daemon.wait_until_ready()?;
    let complaints = daemon.new_complaints();
    ensure!(complaints.len() == 1 && complaints[0].contains("bpffs is not mounted"), "it says: {complaints:?}");
    let status = podlane_tests::daemon::status_text(&bed.instance(1))?;
    ensure!(status.contains("bpffs is not mounted"), "the status does not say it: {status}");
    daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
    let ended = daemon.wait()?;
    ensure!(ended.success(), "podlane ended with {ended}");
    bed.nothing_is_left(1)
}

fn not_a_bridge(bed: &mut Bed) -> Result<()> {
    refused(bed, &mut run(bed, &["--bridge", "eth0", "--uplink", "eth0"])?, &["eth0", "bridge"])
}

fn cidrs(bed: &mut Bed) -> Result<()> {
    let with = |cidrs: &[&str]| -> Result<Command> {
        let mut run = run(bed, &["--bridge", "cbr0", "--uplink", "eth0"])?;
        for cidr in cidrs {
            run.args(["--cluster-cidr", cidr]);
        }
        Ok(run)
    };
    refused(bed, &mut with(&["10.244.0.0/16", "10.244.1.0/24"])?, &["10.244.0.0/16", "10.244.1.0/24", "overlap"])?;
    refused(bed, &mut with(&["fd00:10:244::/48", "fd00:10:244:1::/64"])?, &["fd00:10:244:1::/64", "overlap"])?;
    for malformed in ["10.244.0.0/33", "banana", "10.244.0.0", "fd00::/129", "10.244.0.0/"] {
        refused(bed, &mut with(&[malformed])?, &[malformed])?;
    }
    // Bits beyond the prefix are more likely a slip than a wish.
    refused(bed, &mut with(&["10.244.1.1/16"])?, &["10.244.1.1/16", "10.244.0.0/16"])
}

/// A file that is removed again.
struct File(PathBuf);

impl File {
    fn new(bed: &Bed, name: &str, content: impl AsRef<[u8]>) -> Result<File> {
        let path = std::env::temp_dir().join(format!("{}-{name}", bed.name));
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(File(path))
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn configuration_file(bed: &mut Bed) -> Result<()> {
    for (content, words) in [
        ("bridgge = \"cbr0\"\n", &["bridgge"][..]),
        ("workers = \"two\"\n", &["workers"]),
        ("workers = 0\n", &["workers"]),
        ("bridge = \n", &["config.toml:1:"]),
        ("cluster_cidrs = [\"10.0.0.0/8\", \"10.1.0.0/16\"]\n", &["overlap"]),
        ("xdp_mode = \"fast\"\n", &["fast"]),
    ] {
        let file = File::new(bed, "config.toml", content)?;
        let path = file.text();
        refused(bed, &mut run(bed, &["--config", &path])?, words).with_context(|| content)?;
    }
    let gone = "/nonexistent/podlane.toml";
    refused(bed, &mut run(bed, &["--config", gone])?, &[gone])
}

fn processors(bed: &mut Bed) -> Result<()> {
    let plain = ["--bridge", "cbr0", "--uplink", "eth0"];
    refused(bed, run(bed, &plain)?.args(["--cpus", "1000"]), &["1000"])?;
    refused(bed, run(bed, &plain)?.args(["--cpus", "zero"]), &["zero"])?;
    refused(bed, run(bed, &plain)?.args(["--workers", "0"]), &["workers"])?;
    refused(bed, run(bed, &plain)?.args(["--workers", "1000"]), &["workers"])
}

/// `podlane run` with fewer privileges than root has.
fn with_setpriv(bed: &Bed, options: &[&str]) -> Result<Command> {
    let full = bed.podlane_run(1)?;
    let mut words = full.get_args();
    // "--net=NAMESPACE --" stays in front.
    let mut command = Command::new(full.get_program());
    command.args(words.by_ref().take(2)).args(options).args(words);
    Ok(command)
}

fn capabilities(bed: &mut Bed) -> Result<()> {
    for (dropped, named) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-all", "CAP_NET_ADMIN"),
    ] {
        let mut run = with_setpriv(bed, &["setpriv", &format!("--bounding-set={dropped}")])?;
        refused(bed, &mut run, &[named])?;
    }
    Ok(())
}

fn locked_memory(bed: &mut Bed) -> Result<()> {
    let drop = "--bounding-set=-sys_resource,-ipc_lock";
    let mut run = with_setpriv(bed, &["prlimit", "--memlock=65536:65536", "setpriv", drop])?;
    refused(bed, &mut run, &["memory", "memlock"])
}

fn instance_runs_already(bed: &mut Bed) -> Result<()> {
    bed.start_daemon(1)?;
    let said = bed.refused(&mut bed.podlane_run(1)?)?;
    ensure!(said.contains(&bed.instance(1)), "it must name the instance:\n{said}");
    // The first one must not have suffered.
    bed.warm_up(&bed.way("pod1", "pod2", Family::V4)?)?;
    bed.stop_daemon(1)
}

fn status_of_nobody(bed: &mut Bed) -> Result<()> {
    let mut status = bed.podlane(1)?;
    refused(bed, status.args(["status", "--instance", "nobody"]), &["nobody"])
}

fn check(bed: &mut Bed) -> Result<()> {
    let options = ["--bridge", "cbr0", "--uplink", "eth0", "--cluster-cidr", "10.244.0.0/16"];
    let said = command::run(bed.podlane(1)?.arg("check").args(options), Duration::from_secs(15))?;
    for word in ["kernel", "locked memory", "cbr0", "eth0", "capabilities"] {
        ensure!(said.to_lowercase().contains(&word.to_lowercase()), "podlane check does not mention {word}:\n{said}");
    }
    bed.nothing_is_left(1)?;
    let missing = bed
        .podlane(1)?
        .args(["check", "--bridge", "nope0", "--uplink", "eth0"])
        .output()
        .context("running podlane check")?;
    ensure!(!missing.status.success(), "podlane check is content with a bridge that does not exist");
    Ok(())
}

/// An XDP program that is not Podlane's; taken off again when dropped.
pub(super) struct Foreign<'a> {
    bed: &'a Bed,
    interface: String,
}

impl Foreign<'_> {
    pub(super) fn attach<'a>(bed: &'a Bed, interface: &str) -> Result<Foreign<'a>> {
        let source = File::new(
            bed,
            "foreign.c",
            "__attribute__((section(\"xdp\"), used)) int foreign(void *context) { return 2; /* XDP_PASS */ }\n\
             __attribute__((section(\"license\"), used)) char terms[] = \"GPL\";\n",
        )?;
        let object = File::new(bed, "foreign.o", "")?;
        let compile = ["-O2", "-g", "-target", "bpf", "-c", &source.text(), "-o", &object.text()].map(str::to_owned);
        command::run(Command::new("clang").args(compile), Duration::from_secs(30))?;
        bed.exec("node1", &["ip", "link", "set", "dev", interface, "xdp", "obj", &object.text(), "sec", "xdp"])?;
        Ok(Foreign { bed, interface: interface.to_owned() })
    }

    fn is_there(&self) -> Result<bool> {
        Ok(self.bed.exec("node1", &["ip", "-d", "link", "show", "dev", &self.interface])?.contains("xdp"))
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.bed.exec("node1", &["ip", "link", "set", "dev", &self.interface, "xdp", "off"]) {
            eprintln!("taking the foreign program off {}: {error:#}", self.interface);
        }
    }
}

/// Starts Podlane on a node where one interface has a program of somebody else; that one is refused, and stays as it is.
fn with_foreign_program(bed: &Bed, interface: &str, work: impl FnOnce(&Bed, &Daemon) -> Result<()>) -> Result<()> {
    let foreign = Foreign::attach(bed, interface)?;
    let mut daemon = Daemon::start(&mut bed.podlane_run(1)?, &bed.instance(1))?;
    daemon.wait_until_ready()?;
    let status = daemon.status()?;
    let refusal = status.refused.iter().find(|refused| refused.name == interface);
    let refusal = refusal.with_context(|| format!("{interface} is not among the refused: {:?}", status.refused))?;
    for word in ["XDP program", "foreign", "skip"] {
        ensure!(refusal.why.contains(word), "the reason does not mention '{word}': {}", refusal.why);
    }
    work(bed, &daemon)?;
    daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
    let ended = daemon.wait()?;
    ensure!(ended.success(), "podlane ended with {ended}");
    ensure!(foreign.is_there()?, "the foreign program was taken off {interface}");
    drop(foreign);
    bed.detach(1)?;
    bed.nothing_is_left(1)
}

/// Pings, and gives how many frames the workers forwarded from a port meanwhile.
fn forwarded(bed: &Bed, daemon: &Daemon, from: &str, to: &str) -> Result<u64> {
    let count = || -> Result<u64> {
        let port = format!("veth-{from}");
        Ok(daemon.status()?.port(&port).map_or(0, |port| port.forwarded))
    };
    let way = bed.way(from, to, Family::V4)?;
    bed.ping(&way, 64, 3)?; // the mirror hears of the neighbours
    let before = count()?;
    bed.ping(&way, 64, 10)?;
    Ok(count()? - before)
}

fn foreign_program_on_a_pod(bed: &mut Bed) -> Result<()> {
    with_foreign_program(bed, "veth-pod1", |bed, daemon| {
        ensure!(forwarded(bed, daemon, "pod1", "pod2")? == 0, "frames of a port that was refused were forwarded");
        podlane_tests::command::wait_for("the other pods to be served", Duration::from_secs(5), || {
            Ok((forwarded(bed, daemon, "pod2", "pod3")? >= 10).then_some(()))
        })
    })
}

/// Without its uplink Podlane would serve half a node; the operator has named it, so the operator is told.
fn foreign_program_on_the_uplink(bed: &mut Bed) -> Result<()> {
    let foreign = Foreign::attach(bed, "eth0")?;
    let said = bed.refused(&mut bed.podlane_run(1)?)?;
    for word in ["eth0", "XDP program", "foreign", "detach"] {
        ensure!(said.contains(word), "it must say '{word}', but says:\n{said}");
    }
    ensure!(foreign.is_there()?, "the foreign program was taken off");
    drop(foreign);
    bed.nothing_is_left(1)
}
