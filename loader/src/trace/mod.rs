//! `podlane trace`: what this node does with a packet, step by step, in the order in which the packet meets things.
//!
//! Nothing is guessed and nothing is sent. The packet is built as its sender would build it, read by the dataplane's own
//! [`packet::parse`], and put before the dataplane's own [`decide`] with the tables that are in force; the steps only tell what
//! was looked up on the way. What the tables cannot know is the sender's own routing: a pod is taken to hold the bridge's subnet
//! for its own and to send everything else to the node, as the usual plugins set it up.

mod ends;
mod kernel;
mod render;

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::PacketBuilder;
use podlane_dataplane::forward::{DropReason, PassReason, Rewrite, Verdict, decide, guard};
use podlane_dataplane::packet::{self, ETHERNET_BYTES};
use podlane_dataplane::table::{NextHopAction, Path, Port, PortKind, Tables, Translation};
use podlane_dataplane::{MacAddr, PortId};
use serde::{Deserialize, Serialize};

use crate::explain;
use crate::mirror::World;
use crate::names::{self, AmbiguousName, PodName};
use ends::{Ends, FirstHop};

/// Bytes of the packet if none are given: those of a usual ping.
pub const DEFAULT_BYTES: u32 = 84;
/// Bytes of the largest packet that can be asked for, IP header included.
pub const MAX_BYTES: u32 = 65_535;
/// Time to live of the packet if none is given: Linux' own.
pub const DEFAULT_TTL: u8 = 64;
/// Source port of TCP and UDP, from the range that Linux takes for clients.
const SOURCE_PORT: u16 = 40_000;

/// What kind of packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// An echo request of the addresses' family.
    #[default]
    Icmp,
    /// A segment.
    Tcp,
    /// A datagram.
    Udp,
}

impl Protocol {
    const WORDS: [(&'static str, Protocol); 3] =
        [("icmp", Protocol::Icmp), ("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

    /// The words for them.
    pub fn words() -> [&'static str; 3] {
        Self::WORDS.map(|(word, _)| word)
    }

    /// The protocol of this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, protocol)| *protocol)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::words()[self as usize]
    }
}

/// A packet, as a person describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Who sends: an IP address, the name of a pod on this node or its interface here.
    pub from: String,
    /// Who shall receive, likewise.
    pub to: String,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination port of TCP or UDP.
    #[serde(default)]
    pub port: u16,
    /// Bytes of the IP packet, header included.
    #[serde(default = "default_bytes")]
    pub bytes: u32,
    /// Time to live or hop limit.
    #[serde(default = "default_ttl")]
    pub ttl: u8,
    /// Whether IPv6 is meant where an interface has addresses of both families.
    #[serde(default)]
    pub ipv6: bool,
    /// Whether the daemon may have the kernel ask for MAC addresses that it does not know, and answer "ask again" meanwhile.
    #[serde(default)]
    pub may_resolve: bool,
}

fn default_bytes() -> u32 {
    DEFAULT_BYTES
}

fn default_ttl() -> u8 {
    DEFAULT_TTL
}

impl Question {
    /// The same with the interfaces of pods in place of their names. An IP address is an address, whatever is called like it.
    ///
    /// # Errors
    /// If a name is that of several ports.
    pub fn by_interfaces(&self, ports: &[(String, Option<PodName>)]) -> Result<Self, AmbiguousName> {
        let interface = |word: &str| -> Result<String, AmbiguousName> {
            let found = if word.parse::<IpAddr>().is_ok() { None } else { names::interface_of(word, ports)? };
            Ok(found.unwrap_or_else(|| word.to_owned()))
        };
        Ok(Question { from: interface(&self.from)?, to: interface(&self.to)?, ..self.clone() })
    }
}

/// Who handles the packet in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// Podlane forwards it.
    Podlane,
    /// The kernel does what it would do without Podlane.
    Kernel,
    /// Nobody: the source guard drops it.
    Dropped,
}

/// Something that the packet meets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Where: `pod`, an interface's name, `bridge`, `route`, `neighbour`, `conntrack`, `kernel`, `network`.
    pub at: String,
    /// What happens there.
    pub what: String,
}

/// The way of a packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Sender.
    pub from: IpAddr,
    /// Receiver.
    pub to: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port of TCP or UDP.
    pub port: u16,
    /// Bytes of the IP packet.
    pub bytes: u32,
    /// Time to live or hop limit at the start.
    pub ttl: u8,
    /// The snapshot of the tables by which this was decided.
    pub generation: u64,
    /// In the order of the way.
    pub steps: Vec<Step>,
    /// Who handles it.
    pub handled_by: Handler,
    /// The interface on this node through which it comes in.
    pub ingress: String,
    /// The interface through which Podlane sends it.
    pub egress: Option<String>,
    /// Why it is the kernel's; a name that `podlane explain` knows.
    pub reason: Option<String>,
}

/// A question without an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceError {
    /// A word that is neither an address nor a port.
    #[error(
        "{0:?} is neither an IP address nor a pod or an interface of this daemon's ports; `podlane status` lists them"
    )]
    Unknown(String),
    /// A port behind which nobody is known.
    #[error(
        "no {family} address is known behind {name} yet; name the pod's address instead, or ping it from the node once"
    )]
    Nobody {
        /// The port.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// An uplink stands for many senders.
    #[error("behind {0} are all other nodes; name the address of a pod there instead")]
    Uplink(String),
    /// The sender is not behind any port.
    #[error(
        "nothing of {0} comes in through a port of this node: no pod here has that address and no route leads to it through an uplink"
    )]
    Elsewhere(IpAddr),
    /// The sender is this node.
    #[error(
        "{0} is this node itself: its packets start in the kernel, which hands them to the bridge or the uplink without Podlane"
    )]
    Node(IpAddr),
    /// One end speaks IPv4, the other IPv6.
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
    /// Both ends are the same.
    #[error("{0} talks to itself: that does not leave the pod")]
    Itself(IpAddr),
    /// Smaller than its own headers.
    #[error("such a packet has at least {0} bytes")]
    TooShort(u32),
    /// Larger than an IP packet can be.
    #[error("such a packet has at most {MAX_BYTES} bytes")]
    TooLong,
}

/// Names of the daemon's ports.
pub type Names = BTreeMap<PortId, String>;

/// The same question with an address for each end that is an interface behind which none is known; `given` tells those that
/// pods were given, by interface and whether it is of IPv6.
pub fn with_addresses(
    question: &Question,
    tables: &Tables,
    names: &Names,
    given: impl Fn(&str, bool) -> Option<IpAddr>,
) -> Question {
    let ipv6 = ends::is_ipv6(question);
    let end = |word: &String| {
        let nobody = word.parse::<IpAddr>().is_err()
            && matches!(ends::behind(word, ipv6, tables, names), Err(TraceError::Nobody { .. }));
        let address = if nobody { given(word, ipv6) } else { None };
        address.map_or_else(|| word.clone(), |address| address.to_string())
    };
    Question { from: end(&question.from), to: end(&question.to), ..question.clone() }
}

/// The ends of a question that are on the bridge's own subnet and whose MAC address the node does not know.
pub fn unresolved(question: &Question, tables: &Tables) -> Vec<IpAddr> {
    let ends = [&question.from, &question.to].into_iter().filter_map(|word| word.parse().ok());
    ends.filter(|address| ends::is_unresolved(*address, tables)).collect()
}

/// Answers a question from the tables. What is left to the kernel is told from `world`, the kernel's own.
///
/// # Errors
/// [`TraceError`]: the question names nobody, or a packet that cannot be.
pub fn trace(question: &Question, tables: &Tables, names: &Names, world: &World) -> Result<Trace, TraceError> {
    let ends = ends::find(question, tables, names)?;
    let frame = build(question, &ends)?;
    let mut way = Way {
        tables,
        names,
        world,
        ends: &ends,
        protocol: question.protocol,
        bytes: question.bytes,
        steps: Vec::new(),
    };
    let fate = way.follow(&frame);
    let Way { steps, .. } = way;
    let (handled_by, egress, reason) = match fate {
        Fate::Decided(Verdict::Forward { port, .. }) => (Handler::Podlane, Some(name_of(names, port)), None),
        Fate::Decided(Verdict::Kernel(reason)) => (Handler::Kernel, None, Some(reason.name().to_owned())),
        Fate::Dropped(reason) => (Handler::Dropped, None, Some(reason.name().to_owned())),
    };
    Ok(Trace {
        from: ends.from,
        to: ends.to,
        protocol: question.protocol,
        port: question.port,
        bytes: question.bytes,
        ttl: question.ttl,
        generation: tables.generation,
        steps,
        handled_by,
        ingress: name_of(names, ends.ingress),
        egress,
        reason,
    })
}

fn name_of(names: &Names, port: PortId) -> String {
    names.get(&port).cloned().unwrap_or_else(|| format!("port {port}"))
}

/// The frame as it reaches the node.
fn build(question: &Question, ends: &Ends) -> Result<Vec<u8>, TraceError> {
    let ethernet = PacketBuilder::ethernet2(ends.source_mac.octets(), ends.first_hop.mac().octets());
    let ip = match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), question.ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), question.ttl),
        (from, to) => return Err(TraceError::Families(from, to)),
    };
    // The packet is made in memory: whoever asks does not say how much of it.
    if question.bytes > MAX_BYTES {
        return Err(TraceError::TooLong);
    }
    let mut frame = Vec::new();
    let wanted = question.bytes as usize + ETHERNET_BYTES;
    macro_rules! write {
        ($builder:expr) => {{
            let builder = $builder;
            let headers = builder.size(0);
            let payload = wanted.checked_sub(headers).ok_or(TraceError::TooShort((headers - ETHERNET_BYTES) as u32))?;
            // Writing to memory fails only where a length field is too small, which `MAX_BYTES` excludes.
            let _ = builder.write(&mut frame, &vec![0; payload]);
        }};
    }
    match (question.protocol, ends.to) {
        (Protocol::Icmp, IpAddr::V4(_)) => write!(ip.icmpv4_echo_request(1, 1)),
        (Protocol::Icmp, IpAddr::V6(_)) => write!(ip.icmpv6_echo_request(1, 1)),
        (Protocol::Tcp, _) => write!(ip.tcp(SOURCE_PORT, question.port, 1, 65_535)),
        (Protocol::Udp, _) => write!(ip.udp(SOURCE_PORT, question.port)),
    }
    Ok(frame)
}

/// The end of a packet's way here.
enum Fate {
    Decided(Verdict),
    Dropped(DropReason),
}

/// A packet on its way, and what has been told of it.
struct Way<'a> {
    tables: &'a Tables,
    names: &'a Names,
    world: &'a World,
    ends: &'a Ends,
    protocol: Protocol,
    bytes: u32,
    steps: Vec<Step>,
}

impl Way<'_> {
    fn step(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.steps.push(Step { at: at.into(), what: what.into() });
    }

    fn follow(&mut self, frame: &[u8]) -> Fate {
        self.sent();
        if let FirstHop::Unanswered = self.ends.first_hop {
            self.step(
                "bridge",
                "the pod's question who has that address is a broadcast, which the kernel's bridge floods",
            );
            return self.kernel(PassReason::Group);
        }
        let Some(from) = self.tables.ports.get(self.ends.ingress) else { return self.kernel(PassReason::PortState) };
        if frame.len() - ETHERNET_BYTES > from.mtu as usize && !self.ends.is_remote {
            self.step(
                "pod",
                format!("larger than its interface's MTU ({}): cut into fragments there, or refused", from.mtu),
            );
            return self.kernel(PassReason::Fragment);
        }
        self.received(from);
        if let Err(reason) = guard(frame, self.ends.ingress, self.tables) {
            let told = explain::of_drop(reason);
            self.step("guard", format!("dropped ({}): {}", told.reason, told.meaning));
            return Fate::Dropped(reason);
        }
        let headers = match packet::parse(frame, frame.len() as u32) {
            Ok(headers) => headers,
            Err(reason) => return self.kernel(reason),
        };
        let verdict = decide(&headers, self.ends.ingress, self.tables);
        match verdict {
            Verdict::Forward { port, rewrite, .. } => {
                self.asked_for();
                self.forwarded(from, port, rewrite);
            }
            Verdict::Kernel(reason) => {
                if let FirstHop::Node(_) = self.ends.first_hop {
                    self.steps.extend(kernel::steps(self.world, self.ends.to, self.bytes, reason));
                }
                return self.kernel(reason);
            }
        }
        Fate::Decided(verdict)
    }

    fn sent(&mut self) {
        let Ends { from, to, source_mac, .. } = *self.ends;
        if self.ends.is_remote {
            return self.step("network", format!("comes from another node, sent by {source_mac}"));
        }
        let what = match self.ends.first_hop {
            FirstHop::Neighbour(mac) => format!("eth0 of {from} sends to {mac}: {to} is on the pod's own subnet"),
            FirstHop::Node(mac) => match self.next_hop() {
                Some(NextHopAction::Kernel(PassReason::ForNode)) => {
                    format!("eth0 of {from} sends to the node ({mac}), which has {to} itself")
                }
                _ => format!("eth0 of {from} sends to the node ({mac}): {to} is not on the pod's own subnet"),
            },
            FirstHop::Unanswered => {
                format!("eth0 of {from} asks who has {to}, which is on the pod's own subnet; no answer is known here")
            }
        };
        self.step("pod", what);
    }

    fn received(&mut self, from: &Port) {
        let program = match from.path {
            Path::AfXdp => "path af_xdp: the XDP program would give the frame to a worker, if that forwards it",
            Path::Kernel => "path kernel: the tc program decides",
        };
        self.step(name_of(self.names, self.ends.ingress), program);
    }

    /// Conntrack's answer is about one connection, and a question here is not about a certain one.
    fn asked_for(&mut self) {
        let strict = match self.tables.routing.translation {
            _ if self.protocol == Protocol::Icmp => return,
            Translation::None => return,
            Translation::Strict if self.protocol == Protocol::Tcp => ", or has followed since its SYN,",
            Translation::Strict | Translation::Liberal => "",
        };
        let end = "is the kernel's (translated); any other goes on";
        self.step(
            "conntrack",
            format!("the node translates addresses or drops invalid packets, so it is asked: a connection that it translates{strict} {end}"),
        );
    }

    fn forwarded(&mut self, from: &Port, port: PortId, rewrite: Rewrite) {
        match rewrite {
            Rewrite::None => {
                self.step("bridge", format!("{} is behind {}", self.ends.first_hop.mac(), name_of(self.names, port)))
            }
            Rewrite::Route { destination, source } => self.routed(port, destination, source),
        }
        let Some(to) = self.tables.ports.get(port) else { return };
        let how = match (from.path, to.kind) {
            (Path::AfXdp, _) => "the worker puts the same frame into this interface's TX ring",
            (Path::Kernel, PortKind::Pod) if to.peer => "handed straight to the pod's end of the veth",
            (Path::Kernel, _) => "put into this interface's queue",
        };
        self.step(name_of(self.names, port), format!("{how}; MTU {}", to.mtu));
        match to.kind {
            PortKind::Pod => self.step("pod", format!("eth0 of {} receives it", self.ends.to)),
            PortKind::Uplink | PortKind::Host => self.step("network", "the next hop receives it"),
        }
    }

    fn routed(&mut self, port: PortId, destination: MacAddr, source: MacAddr) {
        let name = name_of(self.names, port);
        let route = match self.next_hop() {
            Some(NextHopAction::Gateway(index)) => match ends::address_of(self.tables, index, self.ends.to) {
                Some(gateway) => format!("{} is reached through {gateway} on {name}", self.ends.to),
                None => format!("{} is reached through a gateway on {name}", self.ends.to),
            },
            _ => format!("{} is on a network of the node's own", self.ends.to),
        };
        self.step("route", route);
        self.step("neighbour", format!("next hop {destination} behind {name}; sent from {source}, TTL less one"));
    }

    fn next_hop(&self) -> Option<NextHopAction> {
        ends::next_hop(self.tables, self.ends.to)
    }

    fn kernel(&mut self, reason: PassReason) -> Fate {
        let told = explain::of_pass(reason);
        self.step("kernel", format!("left to the kernel ({}): {}", told.reason, told.meaning));
        Fate::Decided(Verdict::Kernel(reason))
    }
}

#[cfg(test)]
mod tests;
