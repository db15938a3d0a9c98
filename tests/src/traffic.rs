//! Traffic between places of a testbed, and what became of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::command::{self, Background};
use crate::frames;
use crate::testbed::{Family, Testbed};

const PROBE: Duration = Duration::from_secs(35);

/// The probe: beside the tests in the target directory.
pub fn probe_binary() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors().nth(2).unwrap_or(&test).join("podlane-probe")
}

/// A number that no other flow of this process has.
pub(crate) fn new_flow() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// From a place to an address at a place.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it starts.
    pub from: String,
    /// Where it ends.
    pub to: String,
    /// The address at the end.
    pub address: IpAddr,
}

/// How datagrams are sent.
#[derive(Clone, Debug)]
pub struct Datagrams {
    /// Payload bytes of datagram 0, 1, … in turn.
    pub sizes: Vec<usize>,
    /// How many; `None` until told.
    pub count: Option<u64>,
    /// Unacknowledged ones at most; 0 for any number.
    pub window: u64,
    /// Pause between two, microseconds.
    pub pace_us: u64,
    /// UDP_SEGMENT.
    pub gso: Option<u16>,
}

impl Datagrams {
    /// `count` datagrams as fast as a small window allows, so that none has a reason to get lost.
    pub fn windowed(sizes: &[usize], count: u64) -> Datagrams {
        Datagrams { sizes: sizes.to_vec(), count: Some(count), window: 32, pace_us: 0, gso: None }
    }

    /// One every `pace_us` until told.
    pub fn steady(size: usize, pace_us: u64) -> Datagrams {
        Datagrams { sizes: vec![size], count: None, window: 0, pace_us, gso: None }
    }

    fn sizes_text(&self) -> String {
        self.sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// What the receiver of datagrams counted.
#[derive(Clone, Debug, Deserialize)]
pub struct Received {
    /// Datagrams that the sender sent.
    pub sent: u64,
    /// Different ones that arrived whole.
    pub received: u64,
    /// Those that did not.
    pub lost: u64,
    /// Ones that arrived again.
    pub duplicates: u64,
    /// Ones that a later one overtook.
    pub reordered: u64,
    /// Ones of a wrong size.
    pub wrong_size: u64,
    /// Ones with wrong content.
    pub corrupt: u64,
    /// Datagrams of somebody else.
    pub strangers: u64,
    /// What was wrong first.
    pub first_fault: Option<String>,
    /// The numbers of the first that are missing.
    pub first_missing: Vec<u64>,
    /// The longest pause between two arrivals, milliseconds.
    pub max_gap_ms: f64,
}

impl Received {
    /// Everything arrived once and as it was sent.
    ///
    /// # Errors
    /// If not.
    pub fn intact(&self) -> Result<()> {
        ensure!(self.lost == 0, "datagrams were lost: {self:?}");
        self.unharmed()
    }

    /// What arrived is as it was sent; some may be missing.
    ///
    /// # Errors
    /// If not.
    pub fn unharmed(&self) -> Result<()> {
        let harm = self.wrong_size + self.corrupt + self.duplicates + self.strangers;
        ensure!(harm == 0 && self.received > 0, "datagrams were changed, repeated or not seen at all: {self:?}");
        Ok(())
    }
}

/// The receiver of a flow whose sender is still to come.
pub struct Receiver {
    process: Background,
    flow: String,
}

/// A flow of datagrams that is under way.
pub struct Flow {
    sender: Background,
    receiver: Background,
    way: Way,
}

/// Frames that contain a marker.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// That came in.
    pub incoming: u64,
    /// The first different ones of these.
    pub frames: Vec<Vec<u8>>,
}

/// What a sniffer saw.
#[derive(Clone, Debug)]
pub struct Sniffed(Value);

impl Sniffed {
    /// The frames that matched.
    ///
    /// # Errors
    /// If the sniffer's answer is not in its format.
    pub fn found(&self, name: &str) -> Result<Found> {
        let Some(found) = self.0["found"].get(name) else { return Ok(Found::default()) };
        let frames = found["frames"].as_array().context("frames")?;
        Ok(Found {
            incoming: found["incoming"].as_u64().context("incoming")?,
            frames: frames
                .iter()
                .map(|frame| frames::from_hex(frame.as_str().context("a frame")?))
                .collect::<Result<_>>()?,
        })
    }

    /// A count by its name: frames, complete, partial, bad, largest.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn count(&self, name: &str) -> Result<u64> {
        self.0[name].as_u64().with_context(|| format!("the sniffer counted no {name}: {}", self.0))
    }

    /// No frame had a wrong checksum, or an unfinished one that the kernel did not know of.
    ///
    /// # Errors
    /// If one had.
    pub fn checksums_are_right(&self) -> Result<()> {
        let bad = self.count("bad")?;
        ensure!(bad == 0, "{bad} frames had bad checksums, the first: {}", self.0["first_bad"]);
        ensure!(self.count("complete")? + self.count("partial")? > 0, "the sniffer saw no checksum: {}", self.0);
        Ok(())
    }
}

impl Testbed {
    /// From one place to another.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn way(&self, from: &str, to: &str, family: Family) -> Result<Way> {
        Ok(Way { from: from.to_owned(), to: to.to_owned(), address: self.address(to, family)? })
    }

    fn probe(&self, place: &str) -> Command {
        self.command(place, probe_binary())
    }

    /// Runs ping; gives how many answers came and what it printed.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn ping_output(&self, from: &str, to: IpAddr, options: &[&str]) -> Result<(u64, String)> {
        let mut ping = self.command(from, "ping");
        ping.args(["-n", "-i", "0.02", "-W", "2"]).args(options).arg(to.to_string());
        let output = command::output(&mut ping, Duration::from_secs(15))?;
        let text = format!("{}{}", output.stdout, output.stderr);
        let received = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .and_then(|line| line.split(", ").nth(1))
            .and_then(|part| part.split(' ').next())
            .and_then(|number| number.parse().ok());
        match received {
            Some(received) => Ok((received, text)),
            None => bail!("ping {options:?} {to} from {from}: {text}"),
        }
    }

    /// Pings; every answer must come, and with the content that was sent.
    ///
    /// # Errors
    /// If not.
    pub fn ping(&self, way: &Way, bytes: usize, count: u64) -> Result<()> {
        let (received, text) =
            self.ping_output(&way.from, way.address, &["-c", &count.to_string(), "-s", &bytes.to_string()])?;
        let intact = !text.contains("wrong data byte") && !text.contains("truncated") && !text.contains("DUP!");
        ensure!(received == count && intact, "ping of {bytes} bytes, {way:?}: {text}");
        Ok(())
    }

    /// Pings; no answer must come.
    ///
    /// # Errors
    /// If one does.
    pub fn ping_fails(&self, way: &Way) -> Result<String> {
        let (received, text) = self.ping_output(&way.from, way.address, &["-c", "3", "-W", "0.3", "-w", "1"])?;
        ensure!(received == 0, "{way:?} must not be reachable: {text}");
        Ok(text)
    }

    /// Starts a flow of datagrams.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_udp(&self, way: &Way, datagrams: &Datagrams) -> Result<Flow> {
        let receiver = self.udp_receiver(&way.to, way.address, datagrams)?;
        self.udp_sender(way, receiver, datagrams, &[])
    }

    /// Starts the receiver of a flow at a place, on one of its addresses or, before it has any, on all.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn udp_receiver(&self, place: &str, bind: IpAddr, datagrams: &Datagrams) -> Result<Receiver> {
        let flow = new_flow().to_string();
        let mut receive = self.probe(place);
        let bind = SocketAddr::new(bind, 0).to_string();
        receive.args(["--deadline-s", "120", "udp-receive", "--bind", &bind, "--flow", &flow]);
        let process = Background::start_ready(receive.args(["--sizes", &datagrams.sizes_text()]))?;
        Ok(Receiver { process, flow })
    }

    /// Starts the sender of a flow, with further options.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn udp_sender(&self, way: &Way, to: Receiver, datagrams: &Datagrams, options: &[&str]) -> Result<Flow> {
        let mut send = self.probe(&way.from);
        let address = SocketAddr::new(way.address, to.process.port()?).to_string();
        send.args(["--deadline-s", "120", "udp-send", "--to", &address, "--flow", &to.flow]);
        send.args(["--sizes", &datagrams.sizes_text(), "--window", &datagrams.window.to_string()]);
        send.args(["--pace-us", &datagrams.pace_us.to_string()]).args(options);
        if let Some(count) = datagrams.count {
            send.args(["--count", &count.to_string()]);
        }
        if let Some(bytes) = datagrams.gso {
            send.args(["--gso", &bytes.to_string()]);
        }
        Ok(Flow { sender: Background::start(&mut send)?, receiver: to.process, way: way.clone() })
    }

    /// Sends datagrams to their end.
    ///
    /// # Errors
    /// If a probe fails; what arrived is for the caller to judge.
    pub fn udp(&self, way: &Way, datagrams: &Datagrams) -> Result<Received> {
        self.start_udp(way, datagrams)?.finish()
    }

    /// A TCP connection that carries `forth` bytes to the far end and `back` bytes to the near one at the same time.
    ///
    /// # Errors
    /// If not every byte arrives as it was sent. Gives the address that the server saw.
    pub fn tcp(&self, way: &Way, forth: u64, back: u64) -> Result<IpAddr> {
        self.tcp_through(way, 0, None, [forth, back])
    }

    /// The same to a port that the server is told, by way of another address that leads to it.
    ///
    /// # Errors
    /// Likewise.
    pub fn tcp_through(
        &self,
        way: &Way,
        port: u16,
        through: Option<SocketAddr>,
        [forth, back]: [u64; 2],
    ) -> Result<IpAddr> {
        let flow = new_flow().to_string();
        let mut serve = self.probe(&way.to);
        let bind = SocketAddr::new(way.address, port).to_string();
        serve.args(["tcp-serve", "--bind", &bind, "--flow", &flow]);
        serve.args(["--send", &back.to_string(), "--receive", &forth.to_string()]);
        let server = Background::start_ready(&mut serve)?;
        let to = through.unwrap_or(SocketAddr::new(way.address, server.port()?)).to_string();
        let mut connect = self.probe(&way.from);
        connect.args(["tcp-connect", "--to", &to, "--flow", &flow]);
        connect.args(["--send", &forth.to_string(), "--receive", &back.to_string()]);
        let client = Background::start(&mut connect)?.finish(PROBE).with_context(|| format!("TCP client, {way:?}"));
        let server = server.finish(PROBE).with_context(|| format!("TCP server, {way:?}"));
        client?;
        Ok(server?["peer"].as_str().context("no peer in the result")?.parse()?)
    }

    /// Sends frames as they are: (how many, pause in microseconds, frame). Gives how many were sent and what the kernel
    /// refused.
    ///
    /// # Errors
    /// If the probe fails.
    pub fn send_frames(&self, place: &str, interface: &str, frames: &[(u64, u64, Vec<u8>)]) -> Result<(u64, Value)> {
        let mut send = self.probe(place);
        send.args(["send-frames", "--interface", interface]);
        let mut sender = Background::start_ready(&mut send)?;
        for (count, pace, frame) in frames {
            sender.write(&format!("{count} {pace} {}\n", frames::to_hex(frame)))?;
        }
        let result = sender.finish(PROBE)?;
        Ok((result["sent"].as_u64().context("sent")?, result["refused"].clone()))
    }

    /// Starts looking at an interface. `matches`: name, marker bytes, how many are to come in.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn sniff(&self, place: &str, interface: &str, matches: &[(&str, &[u8], u64)]) -> Result<Background> {
        let mut sniff = self.probe(place);
        sniff.args(["--deadline-s", "120", "sniff", "--interface", interface]);
        for (name, bytes, count) in matches {
            sniff.args(["--match", &format!("{name}={}", frames::to_hex(bytes))]);
            sniff.args(["--expect", &format!("{name}={count}")]);
        }
        Background::start_ready(&mut sniff)
    }

    /// A counter of `/proc/net/snmp` or `/proc/net/snmp6` at a place, such as "Udp InCsumErrors" or "Udp6InCsumErrors".
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn kernel_counter(&self, place: &str, family: Family, name: &str) -> Result<u64> {
        let text = self.exec(place, &["cat", family.pick("/proc/net/snmp", "/proc/net/snmp6")])?;
        let found = match family {
            Family::V4 => {
                let (group, field) = name.split_once(' ').context("write GROUP FIELD")?;
                let mut lines = text.lines().filter(|line| line.starts_with(&format!("{group}:")));
                let column = lines.next().and_then(|line| line.split_ascii_whitespace().position(|word| word == field));
                column.and_then(|column| lines.next()?.split_ascii_whitespace().nth(column)?.parse().ok())
            }
            Family::V6 => text.lines().find_map(|line| {
                let mut words = line.split_ascii_whitespace();
                (words.next()? == name).then(|| words.next()?.parse().ok())?
            }),
        };
        found.with_context(|| format!("{place} has no counter {name}"))
    }
}

/// Ends a sniffer after the expected frames have come (or it has given up waiting for them).
///
/// # Errors
/// If the probe fails.
pub fn sniffed(sniffer: Background) -> Result<Sniffed> {
    sniffer.finish(Duration::from_secs(20)).map(Sniffed)
}

impl Flow {
    /// Ends the flow and gives what arrived.
    ///
    /// # Errors
    /// If a probe fails.
    pub fn finish(self) -> Result<Received> {
        let Flow { sender, receiver, way } = self;
        let sent = sender.finish(Duration::from_secs(60)).with_context(|| format!("UDP sender, {way:?}"))?;
        let received =
            receiver.finish(Duration::from_secs(10)).with_context(|| format!("UDP receiver, {way:?}: {sent}"))?;
        let errors = &sent["errors"];
        ensure!(
            errors.as_object().is_none_or(serde_json::Map::is_empty),
            "{way:?}: the kernel refused to send: {errors}"
        );
        Ok(serde_json::from_value(received)?)
    }
}
