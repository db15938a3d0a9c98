//! What runs through a testbed while something happens to its nodes: for each way and family a paced stream of datagrams, a TCP
//! connection and a ping, started before and judged after.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bed::Bed;
use crate::command::{self, Background, wait_for};
use crate::testbed::Family;
use crate::traffic::{Way, new_flow, probe_binary};

/// Datagrams a second of one stream.
pub const RATE: u64 = 10_000;
/// Megabits a second of one TCP connection: enough to keep segments on their way at any time, and not so much that the
/// connections fight the streams for the processors.
pub const TCP_MBIT: u64 = 50;
/// Echo requests a second.
pub const PINGS: u64 = 100;
/// How long a probe may take to end: it waits for what is still on its way, TCP for what it must repeat.
const END: Duration = Duration::from_secs(30);
/// No load is under way for longer, seconds.
const DEADLINE: &str = "300";

/// Between which kinds of places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Where {
    /// Two pods of node1.
    Node,
    /// From a pod of node1 to one of node2.
    Out,
    /// From a pod of node2 to one of node1.
    In,
    /// From node1 itself to a pod of it.
    Host,
}

impl Where {
    /// All of them.
    pub const ALL: [Where; 4] = [Where::Node, Where::Out, Where::In, Where::Host];

    /// In the report.
    pub fn name(self) -> &'static str {
        match self {
            Where::Node => "pod→pod, one node",
            Where::Out => "pod→pod, other node",
            Where::In => "other node's pod→pod",
            Where::Host => "host→pod",
        }
    }

    fn ends(self) -> (&'static str, &'static str) {
        match self {
            Where::Node => ("pod1", "pod2"),
            Where::Out => ("pod1", "pod4"),
            Where::In => ("pod4", "pod1"),
            Where::Host => ("node1", "pod2"),
        }
    }

    /// From where to where.
    ///
    /// # Errors
    /// If the testbed has no such places.
    pub fn way(self, bed: &Bed, family: Family) -> Result<Way> {
        let (from, to) = self.ends();
        bed.way(from, to, family)
    }
}

/// Which flows run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of which families.
    pub families: Vec<Family>,
    /// Along which ways.
    pub wheres: Vec<Where>,
    /// The processor that the probes stay on, for what must not meet something else there.
    pub cpu: Option<usize>,
}

/// A run of datagrams that did not arrive.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Gap {
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// When the last one before it was sent, milliseconds of the machine's monotonic clock.
    pub at_ms: f64,
    /// From then until the next one that arrived was sent, milliseconds.
    pub ms: f64,
}

/// What became of a stream.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stream {
    /// Datagrams that the sender's kernel took.
    #[serde(default)]
    pub sent: u64,
    /// Different ones that arrived.
    pub received: u64,
    /// One more than the highest number that arrived.
    pub next: u64,
    /// Ones that arrived again.
    pub duplicates: u64,
    /// Ones that a later one overtook.
    pub reordered: u64,
    /// Ones with wrong content.
    pub corrupt: u64,
    /// Datagrams of somebody else.
    pub strangers: u64,
    /// What the kernel dropped at the receiving socket: the receiver did not run.
    pub socket_drops: u64,
    /// Gaps, not counting one at the end.
    pub gap_count: u64,
    /// The longest, milliseconds.
    pub longest_gap_ms: f64,
    /// The largest ones.
    pub gaps: Vec<Gap>,
    /// The longest that a datagram was on its way, milliseconds.
    pub slowest_ms: f64,
    /// The longest that nothing arrived, milliseconds.
    pub longest_pause_ms: f64,
    /// Datagrams that the sender did not send because it was not running.
    #[serde(default)]
    pub skipped: u64,
    /// The longest that the sender was behind its times, milliseconds.
    #[serde(default)]
    pub latest_ms: f64,
}

impl Stream {
    /// Datagrams that were sent and did not reach the receiver's socket.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received + self.socket_drops)
    }

    /// The same in milliseconds of the stream.
    pub fn lost_ms(&self) -> f64 {
        self.lost() as f64 * 1e3 / RATE as f64
    }

    /// Whether the sender sent most of what it should have: else it was no stream of so many a second.
    pub fn kept_its_rate(&self) -> bool {
        self.skipped * 10 <= self.sent + self.skipped
    }

    fn finish(sender: Background, receiver: Background) -> Result<Stream> {
        let sent = sender.finish(END).context("the sender of the stream")?;
        let mut stream: Stream = serde_json::from_value(receiver.finish(END).context("the receiver of the stream")?)?;
        let refused = sent["refused"].as_object().is_none_or(serde_json::Map::is_empty);
        ensure!(refused, "the kernel refused to send: {}", sent["refused"]);
        let number = |name: &str| sent[name].as_u64().with_context(|| format!("no {name}: {sent}"));
        stream.sent = number("sent")?;
        stream.skipped = number("skipped")?;
        stream.latest_ms = sent["latest_ms"].as_f64().context("no latest_ms")?;
        stream.close_the_end();
        Ok(stream)
    }

    /// What is missing at the end is known only with the sender's count.
    fn close_the_end(&mut self) {
        if self.sent > self.next {
            let count = self.sent - self.next;
            let ms = count as f64 * 1e3 / RATE as f64;
            self.gaps.push(Gap { first: self.next, count, at_ms: 0.0, ms });
            self.gap_count += 1;
            self.longest_gap_ms = self.longest_gap_ms.max(ms);
        }
    }
}

/// What became of a TCP connection: it has survived, or there would be an error in place of this.
#[derive(Clone, Debug, Serialize)]
pub struct Lasting {
    /// Bytes, all of which arrived as they were sent.
    pub bytes: u64,
    /// The longest that the receiver read nothing, milliseconds.
    pub longest_pause_ms: f64,
}

/// What became of a ping.
#[derive(Clone, Debug, Serialize)]
pub struct Pings {
    /// Requests.
    pub sent: u64,
    /// Answers that did not come.
    pub lost: u64,
}

/// What became of the flows of one way.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Between which places.
    pub place: &'static str,
    /// "v4" or "v6".
    pub family: &'static str,
    /// The datagrams.
    pub stream: Stream,
    /// The connection.
    pub tcp: Lasting,
    /// The echo requests.
    pub ping: Pings,
}

/// `ping` until told.
struct Pinger(Child);

impl Pinger {
    fn start(mut command: Command, to: &Way) -> Result<Pinger> {
        let interval = format!("{}", 1.0 / PINGS as f64);
        command.args(["ping", "-q", "-n", "-i", &interval, "-W", "1", &to.address.to_string()]);
        let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Pinger(pipes.spawn().context("starting ping")?))
    }

    fn finish(mut self) -> Result<Pings> {
        command::signal(&self.0, Signal::SIGINT)?;
        wait_for("ping to end", END, || Ok(self.0.try_wait()?))?;
        let mut text = String::new();
        use std::io::Read;
        self.0.stdout.take().context("ping's output")?.read_to_string(&mut text)?;
        read_ping(&text).with_context(|| format!("ping said: {text}"))
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// "1000 packets transmitted, 998 received, +2 duplicates, 0.2% packet loss, time 9990ms"
fn read_ping(text: &str) -> Result<Pings> {
    let line = text.lines().find(|line| line.contains("packets transmitted")).context("no summary")?;
    ensure!(!line.contains("duplicates") && !line.contains("corrupted"), "answers were repeated or corrupted");
    let number = |part: &str| -> Result<u64> {
        let words = line.split(", ").find(|words| words.contains(part)).with_context(|| format!("no '{part}'"))?;
        Ok(words.split(' ').next().unwrap_or_default().parse()?)
    };
    let (sent, received) = (number("packets transmitted")?, number("received")?);
    // The last request's answer may still have been on its way.
    Ok(Pings { sent, lost: (sent - received).saturating_sub(1) })
}

struct Flow {
    at: Where,
    family: Family,
    stream: (Background, Background),
    tcp: (Background, Background),
    ping: Pinger,
}

/// Flows under way.
pub struct Load {
    flows: Vec<Flow>,
}

impl Load {
    /// Starts every flow of a plan, over ways that are known to work.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start(bed: &Bed, plan: &Plan) -> Result<Load> {
        for (at, family) in pairs(plan) {
            let way = at.way(bed, family)?;
            if at == Where::Host { bed.ping(&way, 100, 2)? } else { bed.warm_up(&way)? }
        }
        let flows = pairs(plan).map(|(at, family)| start(bed, plan, at, family)).collect::<Result<_>>()?;
        Ok(Load { flows })
    }

    /// Ends every flow.
    ///
    /// # Errors
    /// If a TCP connection broke, or a probe failed.
    pub fn finish(self) -> Result<Vec<Outcome>> {
        self.flows.into_iter().map(Flow::finish).collect()
    }
}

fn pairs(plan: &Plan) -> impl Iterator<Item = (Where, Family)> {
    plan.wheres.iter().flat_map(|at| plan.families.iter().map(|family| (*at, *family)))
}

/// A command inside of a place, on the processor of the plan.
fn inside(bed: &Bed, plan: &Plan, place: &str) -> Command {
    match plan.cpu {
        Some(cpu) => {
            let mut command = bed.command(place, "taskset");
            command.args(["-c", &cpu.to_string()]);
            command
        }
        None => bed.command(place, "env"),
    }
}

fn start(bed: &Bed, plan: &Plan, at: Where, family: Family) -> Result<Flow> {
    let way = at.way(bed, family)?;
    let flow = new_flow().to_string();
    let probe = |place: &str, words: &[&str]| {
        let mut command = inside(bed, plan, place);
        command.arg(probe_binary()).args(["--deadline-s", DEADLINE]).args(words);
        command
    };
    let bind = std::net::SocketAddr::new(way.address, 0).to_string();
    let to = |receiver: &Background| -> Result<String> {
        Ok(std::net::SocketAddr::new(way.address, receiver.port()?).to_string())
    };
    let receiver = Background::start_ready(&mut probe(&way.to, &["stream-receive", "--bind", &bind, "--flow", &flow]))?;
    let server = Background::start_ready(&mut probe(&way.to, &["lasting-serve", "--bind", &bind, "--flow", &flow]))?;
    let (rate, mbit) = (RATE.to_string(), TCP_MBIT.to_string());
    let (stream_to, tcp_to) = (to(&receiver)?, to(&server)?);
    let sender = Background::start(&mut probe(
        &way.from,
        &["stream-send", "--to", &stream_to, "--flow", &flow, "--rate", &rate],
    ))?;
    let client = Background::start(&mut probe(
        &way.from,
        &["lasting-connect", "--to", &tcp_to, "--flow", &flow, "--rate-mbit", &mbit],
    ))?;
    let ping = Pinger::start(inside(bed, plan, &way.from), &way)?;
    Ok(Flow { at, family, stream: (sender, receiver), tcp: (client, server), ping })
}

impl Flow {
    fn finish(self) -> Result<Outcome> {
        let (place, family) = (self.at.name(), self.family.name());
        let of = || format!("{place}, {family}");
        let stream = Stream::finish(self.stream.0, self.stream.1).with_context(of)?;
        let client = self.tcp.0.finish(END).context("the TCP connection").with_context(of)?;
        let server = self.tcp.1.finish(END).context("the TCP connection").with_context(of)?;
        let ping = self.ping.finish().with_context(of)?;
        Ok(Outcome { place, family, stream, tcp: lasting(&client, &server)?, ping })
    }
}

fn lasting(client: &Value, server: &Value) -> Result<Lasting> {
    Ok(Lasting {
        bytes: client["sent"].as_u64().context("no count of bytes")?,
        longest_pause_ms: server["longest_pause_ms"].as_f64().context("no pause")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(sent: u64, received: u64, next: u64, socket_drops: u64) -> Stream {
        Stream {
            sent,
            received,
            next,
            socket_drops,
            duplicates: 0,
            reordered: 0,
            corrupt: 0,
            strangers: 0,
            gap_count: 0,
            longest_gap_ms: 0.0,
            gaps: vec![],
            slowest_ms: 0.0,
            longest_pause_ms: 0.0,
            skipped: 0,
            latest_ms: 0.0,
        }
    }

    #[test]
    fn what_the_receiver_dropped_is_not_lost_by_others() {
        assert_eq!(stream(100, 90, 100, 4).lost(), 6);
        assert!((stream(1000, 800, 1000, 0).lost_ms() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn the_end_of_a_stream_is_a_gap_as_well() {
        let mut stream = stream(100, 90, 90, 0);
        stream.close_the_end();
        assert_eq!((stream.gap_count, stream.gaps[0].count, stream.gaps[0].first), (1, 10, 90));
    }

    #[test]
    fn a_summary_of_ping_is_read() {
        let pings = read_ping("x\n1000 packets transmitted, 990 received, +1 errors, 1% packet loss, time 9990ms\n");
        assert_eq!(pings.map(|pings| (pings.sent, pings.lost)).unwrap(), (1000, 9));
        assert!(read_ping("5 packets transmitted, 5 received, +1 duplicates, 0% packet loss, time 40ms").is_err());
        assert!(read_ping("").is_err());
    }
}
