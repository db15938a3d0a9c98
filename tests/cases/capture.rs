//! `podlane capture` and `podlane trace --live`: what they tell is what happened.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::command::{self, wait_for};
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Way};
use serde_json::Value;

use super::ways;

const COUNT: u64 = 5;

/// A capture on node 1, killed when dropped.
struct Capture(Child);

impl Capture {
    /// Starts `podlane` with these words and waits until it captures.
    fn start(bed: &mut Bed, words: &[&str]) -> Result<Capture> {
        let instance = bed.instance(1);
        let begun = |bed: &mut Bed| -> Result<usize> {
            let log = bed.daemon(1)?.log_lines();
            Ok(log.iter().filter(|line| line.contains("a capture has begun")).count())
        };
        let before = begun(bed)?;
        let mut podlane = bed.podlane(1)?;
        podlane.args(words).args(["--instance", &instance]).stdin(Stdio::null()).stderr(Stdio::piped());
        let capture = Capture(podlane.stdout(Stdio::piped()).spawn().context("starting podlane")?);
        wait_for("the capture to begin", Duration::from_secs(10), || Ok((begun(bed)? > before).then_some(())))?;
        Ok(capture)
    }

    /// Ends it as Ctrl-C does, and gives stdout and stderr.
    fn interrupt(mut self) -> Result<(String, String)> {
        command::signal(&self.0, Signal::SIGINT)?;
        self.finish()
    }

    /// Waits until it ends by itself.
    fn finish(&mut self) -> Result<(String, String)> {
        let status = wait_for("podlane to end", Duration::from_secs(20), || Ok(self.0.try_wait()?))?;
        let read = |pipe: Option<&mut dyn std::io::Read>| -> Result<String> {
            let mut text = String::new();
            pipe.context("no pipe")?.read_to_string(&mut text)?;
            Ok(text)
        };
        let out = read(self.0.stdout.as_mut().map(|pipe| pipe as _))?;
        let err = read(self.0.stderr.as_mut().map(|pipe| pipe as _))?;
        ensure!(status.success(), "podlane ended with {status}: {err}");
        Ok((out, err))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the daemon logs when everything is switched off again.
fn wait_until_over(bed: &mut Bed) -> Result<()> {
    wait_for("the capture to be over", Duration::from_secs(5), || {
        let log = bed.daemon(1)?.log_lines();
        let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
        Ok((count("a capture has begun") == count("the capture has ended")).then_some(()))
    })
}

/// A packet of a file, as tshark reads it.
#[derive(Debug)]
struct Read {
    interface: String,
    outbound: bool,
    comment: String,
    id: String,
    bytes: u64,
    kept: u64,
}

const FIELDS: [&str; 6] = [
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.comment",
    "frame.packet_id",
    "frame.len",
    "frame.cap_len",
];

/// Reads a file with tshark; `filter` is a display filter.
fn tshark(file: &Path, filter: &str) -> Result<Vec<Read>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-E", "separator=/t"]);
    tshark.args(FIELDS.iter().flat_map(|field| ["-e", field]));
    let text = command::run(&mut tshark, Duration::from_secs(60)).context("reading the capture with tshark")?;
    let number = |text: &str| text.parse().with_context(|| format!("{text:?} is no number"));
    let packet = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [interface, direction, comment, id, bytes, kept] = fields[..] else { bail!("not a packet: {line:?}") };
        let outbound = match direction {
            "0x00000001" | "0x1" | "1" => false,
            "0x00000002" | "0x2" | "2" => true,
            other => bail!("direction {other:?} in {line:?}"),
        };
        let (interface, comment, id) = (interface.to_owned(), comment.to_owned(), id.to_owned());
        Ok(Read { interface, outbound, comment, id, bytes: number(bytes)?, kept: number(kept)? })
    };
    text.lines().map(packet).collect()
}

/// How often each interface and direction occurs.
fn count(packets: &[Read]) -> BTreeMap<(&str, bool), u64> {
    let mut counts = BTreeMap::new();
    for packet in packets {
        *counts.entry((packet.interface.as_str(), packet.outbound)).or_default() += 1;
    }
    counts
}

fn egress(way: &Way) -> &'static str {
    if way.to == "pod2" { "veth-pod2" } else { "eth0" }
}

/// Pings and a TCP connection, each captured with a filter: every packet once where it came in and once where it left.
pub fn reads_right(bed: &mut Bed, family: Family) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("capture.pcapng");
    let name = file.to_str().context("a path without UTF-8")?;
    for way in &ways(bed, family)? {
        bed.warm_up(way)?;
        let (to, address) = (egress(way), way.address.to_string());
        let echo = family.pick("icmp[icmptype] == icmp-echo", "icmp6 and ip6[40] == 128");
        let filter = format!("{echo} and dst host {address}");
        let capture = Capture::start(bed, &["capture", "-w", name, &filter])?;
        bed.ping(way, 64, COUNT)?;
        let (_, told) = capture.interrupt()?;
        ensure!(told.contains(&format!("{} packets captured", 2 * COUNT)), "{told}");
        ensure!(told.contains("; 0 lost"), "{told}");
        let packets = tshark(&file, "icmp || icmpv6")?;
        let expected = BTreeMap::from([(("veth-pod1", false), COUNT), ((to, true), COUNT)]);
        ensure!(count(&packets) == expected, "{way:?}: {packets:#?}");
        let how = if to == "eth0" { "routed" } else { "bridged" };
        for packet in &packets {
            let begins = if packet.outbound { "sent".to_owned() } else { format!("forwarded to {to}, {how}") };
            ensure!(packet.comment.starts_with(&begins), "{way:?}: {packet:?}");
            ensure!(packet.kept == packet.bytes, "{packet:?}");
        }
        // One worker hands to the other without a number.
        if bed.path == DataPath::Kernel {
            let mut ids: Vec<_> = packets.iter().map(|packet| &packet.id).collect();
            ids.sort();
            ids.dedup();
            ensure!(ids.len() as u64 == COUNT, "{packets:#?}");
        }

        let capture = Capture::start(bed, &["capture", "-w", name, "-s", "96", "--port", "veth-pod1", "tcp"])?;
        bed.tcp(way, 300_000, 0)?;
        let (_, told) = capture.interrupt()?;
        ensure!(told.contains("; 0 lost"), "{told}");
        let packets = tshark(&file, "tcp")?;
        let counts = count(&packets);
        ensure!(counts.len() == 2 && counts.keys().all(|(port, _)| *port == "veth-pod1"), "{counts:?}");
        let carried: u64 = packets.iter().filter(|packet| !packet.outbound).map(|packet| packet.bytes).sum();
        ensure!(carried >= 300_000, "{carried} bytes of 300,000 in the file");
        ensure!(packets.iter().all(|packet| packet.kept <= 96), "more was kept than asked for");
        // The handshake, whatever became of the rest on its way through the offloads.
        let handshake = tshark(&file, "tcp.flags.syn == 1")?;
        ensure!(handshake.len() == 2, "{handshake:?}");
    }
    wait_until_over(bed)
}

/// What is the kernel's is in the file with its reason.
pub fn tells_why(bed: &mut Bed, family: Family) -> Result<()> {
    let [near, far] = ways(bed, family)?;
    bed.warm_up(&far)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("why.pcapng");
    let name = file.to_str().context("a path without UTF-8")?;
    let gateway = bed.address("gateway1", family)?;
    let capture = Capture::start(bed, &["capture", "-w", name, "--direction", "rx", "--port", "veth-pod1"])?;
    bed.ping_output("pod1", gateway, &["-c", "2", "-W", "1"])?;
    bed.ping_output("pod1", near.address, &["-c", "2", "-t", "1", "-W", "0.5"])?;
    capture.interrupt()?;
    let told = |address: String, reason: &str| -> Result<()> {
        let display = format!("{} == {address}", family.pick("ip.dst", "ipv6.dst"));
        let packets = tshark(&file, &format!("(icmp.type == 8 || icmpv6.type == 128) && {display}"))?;
        let begins = format!("left to the kernel: {reason}: ");
        ensure!(packets.len() == 2 && packets.iter().all(|packet| packet.comment.starts_with(&begins)), "{packets:?}");
        Ok(())
    };
    told(gateway.to_string(), "for_node")?;
    told(near.address.to_string(), "ttl")?;
    wait_until_over(bed)
}

/// Real packets, stage by stage.
pub fn live(bed: &mut Bed, family: Family) -> Result<()> {
    for way in &ways(bed, family)? {
        bed.warm_up(way)?;
        let (to, address) = (egress(way), way.address.to_string());
        let from = bed.address(&way.from, family)?.to_string();
        let count = COUNT.to_string();
        let words = ["trace", &from, &address, "--live", "--json", "--one-way", "--protocol", "icmp", "-c", &count];
        let mut capture = Capture::start(bed, &words)?;
        bed.ping(way, 64, COUNT)?;
        let (out, _) = capture.finish()?;
        let lines: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(lines.len() as u64 == COUNT, "{out}");
        let stages: &[&str] = match to {
            "eth0" => &["received", "decided", "rewritten", "sent"],
            _ => &["received", "decided", "sent"],
        };
        for packet in &lines {
            ensure!(packet["ingress"] == "veth-pod1" && packet["egress"] == to, "{packet}");
            let told = packet["stages"].as_array().context("no stages")?;
            ensure!(told.iter().map(|stage| &stage["stage"]).eq(stages.iter()), "{packet}");
            ensure!(told.iter().map(|stage| stage["time_ns"].as_u64()).is_sorted(), "{packet}");
        }
    }
    wait_until_over(bed)
}

/// A client that is killed leaves nothing behind, and another one can capture.
pub fn killed(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    for _ in 0..3 {
        let mut capture = Capture::start(bed, &["capture", "icmp"])?;
        let mut second = bed.podlane(1)?;
        second.args(["capture", "--instance", &bed.instance(1)]);
        let refused = command::output(&mut second, Duration::from_secs(10))?;
        ensure!(refused.stderr.contains("somebody captures already"), "{}{}", refused.stdout, refused.stderr);
        bed.ping(&way, 64, COUNT)?;
        capture.0.kill()?;
        capture.0.wait()?;
        wait_until_over(bed)?;
        bed.ping(&way, 64, COUNT)?;
    }
    Ok(())
}

/// Limits end it, and a ring keeps its last files.
pub fn limits(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("ring.pcapng");
    let name = file.to_str().context("a path without UTF-8")?;
    let words =
        ["capture", "-w", name, "-c", "25", "--ring-files", "2", "--ring-size", "4096", "--direction", "rx", "udp"];
    let mut capture = Capture::start(bed, &words)?;
    bed.udp(&way, &Datagrams { count: Some(50), ..Datagrams::steady(500, 1000) })?;
    let (_, told) = capture.finish()?;
    ensure!(told.contains("25 packets captured"), "{told}");
    let mut files: Vec<_> =
        std::fs::read_dir(directory.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    ensure!(files.len() == 2, "{files:?}");
    for file in &files {
        let packets = tshark(file, "udp")?;
        ensure!(!packets.is_empty() && packets.iter().all(|packet| !packet.outbound), "{packets:?}");
    }
    let mut capture = Capture::start(bed, &["capture", "--duration", "0.2"])?;
    capture.finish()?;
    wait_until_over(bed)
}
