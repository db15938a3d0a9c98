//! `podlane trace --live`: real packets, stage by stage.
//!
//! A packet makes two records, one where it is received and one where it is sent. They carry the same number, unless the
//! worker that received it handed it to another one; then they are recognised by what routing leaves as it is.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use podlane_dataplane::tap::{Direction, Outcome};
use serde::Serialize;

use super::client::{Capture, CaptureError, Names, Sink, interruption, name_of};
use super::command::MisuseError;
use super::print;
use super::wire::{Packet, Seer};
use super::{Question, libpcap};
use crate::kernel::HostPortNames;
use crate::trace::Protocol;

/// How long the second record of a packet is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// Packets that wait for it at most.
const MAX_WAITING: usize = 65_536;
/// Bytes of a packet that are asked for: enough for its headers.
const SNAP_BYTES: u32 = 160;

/// What is to be followed.
#[derive(Debug)]
pub struct LiveQuestion {
    /// Sender.
    pub from: IpAddr,
    /// Receiver.
    pub to: IpAddr,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only this port of TCP or UDP.
    pub port: Option<u16>,
    /// Not the answers.
    pub one_way: bool,
    /// End after so many packets.
    pub count: Option<u64>,
    /// End after so long.
    pub duration: Option<Duration>,
    /// JSON lines.
    pub json: bool,
}

impl LiveQuestion {
    /// The expression that picks these packets.
    fn expression(&self) -> String {
        let (from, to) = (self.from, self.to);
        let mut text = match self.one_way {
            true => format!("src host {from} and dst host {to}"),
            false => format!("((src host {from} and dst host {to}) or (src host {to} and dst host {from}))"),
        };
        match self.protocol {
            Some(Protocol::Icmp) => text.push_str(" and (icmp or icmp6)"),
            Some(protocol) => text.push_str(&format!(" and {}", protocol.word())),
            None => {}
        }
        if let Some(port) = self.port {
            text.push_str(&format!(" and port {port}"));
        }
        text
    }
}

/// Follows packets until it is enough.
///
/// # Errors
/// [`CaptureError`].
pub fn follow(
    instance: &str,
    question: &LiveQuestion,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<(), CaptureError> {
    let filter = libpcap::compile(&question.expression()).map_err(MisuseError::from)?;
    let interrupted = interruption()?;
    let capture = Capture::begin(instance, &Question { snap_bytes: SNAP_BYTES, ..Question::new(&filter) })?;
    // People who see nothing want to know that it runs.
    let _ = writeln!(err, "following {} and {}; Ctrl-C ends it; times are UTC", question.from, question.to);
    let mut follower = Follower {
        out,
        json: question.json,
        waiting: VecDeque::new(),
        told: 0,
        most: question.count.unwrap_or(u64::MAX),
        end: question.duration.map(|duration| Instant::now() + duration),
    };
    let totals = match capture.run(&mut follower, &interrupted) {
        Err(CaptureError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        totals => totals?,
    };
    follower.tell_rest().map_err(CaptureError::Write)?;
    let lost: u64 = totals.lost.values().sum();
    if lost != 0 {
        let _ = writeln!(err, "{lost} records were lost on the way here");
    }
    Ok(())
}

/// A station of a packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stage {
    /// `received`, `decided`, `rewritten`, `sent`, `passed` or `dropped`.
    pub stage: &'static str,
    /// The interface.
    pub at: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
}

/// A packet and its way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Followed {
    /// Counts from 1.
    pub packet: u64,
    /// What it is.
    pub summary: String,
    /// Its bytes, Ethernet header included.
    pub bytes: u32,
    /// `worker`, `xdp` or `tc`.
    pub seen_by: &'static str,
    /// Where it came in, if that was seen.
    pub ingress: Option<String>,
    /// Where it goes, if Podlane forwards it.
    pub egress: Option<String>,
    /// Whether it was routed, and not bridged.
    pub routed: bool,
    /// Why it is the kernel's, or why it was dropped; a name of `podlane status`.
    pub reason: Option<&'static str>,
    /// In the order of time.
    pub stages: Vec<Stage>,
}

/// A packet of which the second record is to come.
struct Waiting {
    followed: Followed,
    /// The worker or program that numbered it, and the number.
    number: (Seer, u64),
    content: Vec<u8>,
    egress: u32,
    since: Instant,
}

struct Follower<'a, W> {
    out: &'a mut W,
    json: bool,
    waiting: VecDeque<Waiting>,
    told: u64,
    most: u64,
    end: Option<Instant>,
}

impl<W: Write> Follower<'_, W> {
    fn tell(&mut self, mut followed: Followed) -> io::Result<()> {
        if self.told >= self.most {
            return Ok(());
        }
        self.told += 1;
        followed.packet = self.told;
        if self.json {
            let line = serde_json::to_string(&followed).map_err(io::Error::other)?;
            writeln!(self.out, "{line}")
        } else {
            self.out.write_all(render(&followed).as_bytes())
        }
    }

    /// Packets whose second record has not come; all that wait longer than `patience`.
    fn give_up(&mut self, patience: Duration) -> io::Result<()> {
        while self.waiting.front().is_some_and(|waiting| waiting.since.elapsed() >= patience) {
            if let Some(waiting) = self.waiting.pop_front() {
                self.tell(waiting.followed)?;
            }
        }
        Ok(())
    }

    fn tell_rest(&mut self) -> io::Result<()> {
        self.give_up(Duration::ZERO)?;
        self.out.flush()
    }

    fn received(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<()> {
        let at = name_of(names, packet.ifindex);
        let stage = |stage, time_ns| Stage { stage, at: at.clone(), time_ns };
        let [received_ns, decided_ns] = packet.times_ns;
        let mut followed = Followed {
            packet: 0,
            summary: print::summary(packet.bytes),
            bytes: packet.frame_bytes,
            seen_by: packet.seer.name(),
            ingress: Some(at.clone()),
            egress: None,
            routed: false,
            reason: None,
            stages: vec![stage("received", received_ns), stage("decided", decided_ns)],
        };
        match packet.outcome {
            Outcome::Forwarded { to, routed } => {
                followed.egress = Some(name_of(names, to));
                followed.routed = routed;
                if self.waiting.len() >= MAX_WAITING {
                    self.give_up(Duration::ZERO)?;
                }
                self.waiting.push_back(Waiting {
                    followed,
                    number: (packet.seer, packet.id),
                    content: content(packet.bytes),
                    egress: to,
                    since: Instant::now(),
                });
                return Ok(());
            }
            Outcome::Passed(reason) => {
                followed.stages.push(stage("passed", decided_ns));
                followed.reason = Some(reason.name());
            }
            Outcome::Dropped(reason) => {
                followed.stages.push(stage("dropped", decided_ns));
                followed.reason = Some(reason.name());
            }
            Outcome::Sent { .. } => {}
        }
        self.tell(followed)
    }

    fn sent(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<()> {
        let content = content(packet.bytes);
        let found = self.waiting.iter().position(|waiting| match packet.id {
            0 => waiting.egress == packet.ifindex && waiting.content == content,
            id => waiting.number == (packet.seer, id),
        });
        let at = name_of(names, packet.ifindex);
        let mut followed = match found.and_then(|index| self.waiting.remove(index)) {
            Some(waiting) => waiting.followed,
            // Its first record was lost, or it did not match as it came in.
            None => Followed {
                packet: 0,
                summary: print::summary(packet.bytes),
                bytes: packet.frame_bytes,
                seen_by: packet.seer.name(),
                ingress: None,
                egress: Some(at.clone()),
                routed: false,
                reason: None,
                stages: Vec::new(),
            },
        };
        let stage = |stage, time_ns| Stage { stage, at: at.clone(), time_ns };
        if followed.routed {
            followed.stages.push(stage("rewritten", packet.times_ns[0]));
        }
        match packet.outcome {
            Outcome::Dropped(reason) => {
                followed.stages.push(stage("dropped", packet.times_ns[1]));
                followed.reason = Some(reason.name());
            }
            _ => followed.stages.push(stage("sent", packet.times_ns[1])),
        }
        self.tell(followed)
    }
}

impl<W: Write> Sink for Follower<'_, W> {
    fn packet(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<ControlFlow<()>> {
        match packet.direction {
            Direction::Rx => self.received(packet, names)?,
            // What a worker passes it sends to the kernel through the host port; the first record tells that already.
            Direction::Tx if name_of(names, packet.ifindex) == HostPortNames::default().near => {}
            Direction::Tx => self.sent(packet, names)?,
        }
        Ok(if self.told >= self.most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn lost(&mut self, _: u32, _: u64, _: &Names) -> io::Result<()> {
        Ok(())
    }

    fn pause(&mut self, _: &Names) -> io::Result<ControlFlow<()>> {
        self.give_up(PATIENCE)?;
        self.out.flush()?;
        let late = self.end.is_some_and(|end| Instant::now() >= end);
        Ok(if late || self.told >= self.most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// What routing and finishing checksums leave as it is: addresses, identification, and the L4 header without its checksum.
fn content(frame: &[u8]) -> Vec<u8> {
    const L3: usize = 14;
    let at = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    let (protocol, l4, mut content) = match at(12..14) {
        [0x08, 0x00] => {
            let header = usize::from(frame.get(L3).map_or(5, |byte| byte & 0xf)) * 4;
            let protocol = frame.get(L3 + 9).copied().unwrap_or(0);
            (protocol, L3 + header, [at(L3 + 2..L3 + 8), &[protocol], at(L3 + 12..L3 + 20)].concat())
        }
        _ => {
            let protocol = frame.get(L3 + 6).copied().unwrap_or(0);
            (protocol, L3 + 40, [at(L3..L3 + 7), at(L3 + 8..L3 + 40)].concat())
        }
    };
    let rest = frame.get(l4..).unwrap_or_default();
    let checksum = match protocol {
        6 => 16..18,
        17 => 6..8,
        _ => 2..4,
    };
    let kept = rest.iter().take(48).enumerate().filter(|(index, _)| !checksum.contains(index));
    content.extend(kept.map(|(_, byte)| *byte));
    content
}

/// For people.
fn render(followed: &Followed) -> String {
    let mut text = format!("#{} {}, {} bytes\n", followed.packet, followed.summary, followed.bytes);
    let start = followed.stages.first().map_or(0, |stage| stage.time_ns);
    let width = followed.stages.iter().map(|stage| stage.at.chars().count()).max().unwrap_or(0);
    for (index, stage) in followed.stages.iter().enumerate() {
        let time = match index {
            0 => print::time_of_day(stage.time_ns),
            _ => format!("+{:.1} µs", stage.time_ns.saturating_sub(start) as f64 / 1000.0),
        };
        text.push_str(&format!("   {time:>15}  {:<width$}  {}\n", stage.at, words(followed, stage)));
    }
    if followed.egress.is_some() && !followed.stages.iter().any(|stage| matches!(stage.stage, "sent" | "dropped")) {
        text.push_str(&format!("   {:>15}  {:<width$}  not seen leaving: its second record was lost\n", "", ""));
    }
    text
}

fn words(followed: &Followed, stage: &Stage) -> String {
    let egress = followed.egress.as_deref().unwrap_or("the kernel");
    match stage.stage {
        "received" => match followed.seen_by {
            "worker" => "received by a worker".to_owned(),
            program => format!("received, {program} program"),
        },
        "decided" if followed.egress.is_some() => {
            format!("decided: to {egress}, {}", if followed.routed { "routed" } else { "bridged" })
        }
        "decided" => "decided".to_owned(),
        "rewritten" => "rewritten: new MAC addresses, TTL less one".to_owned(),
        "passed" => format!("left to the kernel: {0}; see `podlane explain {0}`", followed.reason.unwrap_or_default()),
        "dropped" => format!("dropped: {0}; see `podlane explain {0}`", followed.reason.unwrap_or_default()),
        other => other.to_owned(),
    }
}
