//! `podlane capture`: packets as Podlane sees them, on both paths, with what became of each.
//!
//! The client ([`command`]) compiles the filter ([`libpcap`]) and asks the daemon, which puts a tap on its workers
//! ([`podlane_dataplane::tap`]) and stages in front of its programs (`bpf/capture.h`), and starts a thread that tells the
//! client what is recorded ([`session`], in the words of [`wire`]). The client writes pcapng files ([`pcapng`], [`files`]),
//! prints lines ([`print`]), or follows single packets ([`live`]).
//!
//! While nobody captures, all of it is absent: workers look once for each batch, and in the programs there is a jump to the
//! next instruction. When the client goes, however it goes, the daemon switches everything off again.

pub mod client;
pub mod command;
mod files;
pub mod libpcap;
pub mod live;
pub(crate) mod pcapng;
pub(crate) mod print;
mod session;
pub mod wire;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use podlane_dataplane::afxdp::clock;
use podlane_dataplane::limits;
use podlane_dataplane::table::Publisher;
use podlane_dataplane::tap::{Filter, Instruction, MAX_SNAP_BYTES, Tap, Wish};
use serde::{Deserialize, Serialize};

use crate::bpf::Steering;
use session::{Parts, Session, refuse};

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// A classic BPF program: code, jump if true, jump if false, operand of each instruction. None: every packet.
    #[serde(default)]
    pub filter: Vec<(u16, u8, u8, u32)>,
    /// Interfaces of ports; none means all.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Bytes that are kept of each packet.
    #[serde(default = "most_snap_bytes")]
    pub snap_bytes: u32,
    /// Whether received packets are wanted.
    #[serde(default = "yes")]
    pub rx: bool,
    /// Whether sent packets are wanted.
    #[serde(default = "yes")]
    pub tx: bool,
}

fn most_snap_bytes() -> u32 {
    MAX_SNAP_BYTES
}

fn yes() -> bool {
    true
}

impl Question {
    /// Asks for the packets that match `filter`.
    pub fn new(filter: &Filter) -> Self {
        let one = |one: &Instruction| (one.code, one.jt, one.jf, one.k);
        Question {
            filter: filter.instructions().iter().map(one).collect(),
            ports: Vec::new(),
            snap_bytes: MAX_SNAP_BYTES,
            rx: true,
            tx: true,
        }
    }

    /// Judges it; `ifindex_of` finds a port by its name.
    fn wish(&self, ifindex_of: impl Fn(&str) -> Option<u32>) -> Result<Wish, String> {
        if !(1..=MAX_SNAP_BYTES).contains(&self.snap_bytes) {
            return Err(format!("{} bytes of a packet cannot be kept; 1 to {MAX_SNAP_BYTES} can", self.snap_bytes));
        }
        if self.ports.len() > limits::MAX_CAPTURE_PORTS {
            return Err(format!("a capture can be restricted to {} ports at most", limits::MAX_CAPTURE_PORTS));
        }
        let one = |&(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction { code, jt, jf, k };
        let filter = match self.filter.is_empty() {
            true => Filter::everything(),
            false => Filter::new(self.filter.iter().map(one).collect()).map_err(|error| error.to_string())?,
        };
        let mut interfaces = Vec::new();
        for name in &self.ports {
            let ifindex = ifindex_of(name);
            interfaces.push(ifindex.ok_or_else(|| format!("there is no port {name}; `podlane status` lists them"))?);
        }
        Ok(Wish {
            filter,
            snap_bytes: self.snap_bytes,
            rx: self.rx,
            tx: self.tx,
            interfaces: (!interfaces.is_empty()).then_some(interfaces),
        })
    }
}

/// What the daemon's loop keeps of captures. There is one at a time: it has the rings and the stages to itself.
#[derive(Debug, Default)]
pub struct Captures {
    current: Option<(Session, Arc<Tap>)>,
    /// Taps that some worker may still hold by an older snapshot; their memory is given back here and not there.
    retired: Vec<Arc<Tap>>,
}

impl Captures {
    /// The tap of the capture that runs, to be part of every snapshot.
    pub fn tap(&self) -> Option<Arc<Tap>> {
        self.current.as_ref().map(|(_, tap)| Arc::clone(tap))
    }

    /// Starts a capture for a client, or tells it why not.
    pub fn start(
        &mut self,
        question: &Question,
        stream: UnixStream,
        workers: usize,
        steering: &mut Steering,
        publisher: &Publisher,
        ifindex_of: impl Fn(&str) -> Option<u32>,
    ) {
        self.end(steering, publisher);
        if self.current.is_some() {
            return refuse(stream, "somebody captures already, and there can be one capture or live trace at a time");
        }
        let wish = match question.wish(ifindex_of) {
            Ok(wish) => wish,
            Err(sentence) => return refuse(stream, &sentence),
        };
        let tap = Arc::new(Tap::new(wish, workers, clock::precise_ns));
        let parts = Parts { stream, tap: Arc::clone(&tap), records: steering.records(), publisher: publisher.clone() };
        // What goes wrong before the thread is ready, it tells the client itself.
        let (session, go) = match Session::start(parts) {
            Ok(started) => started,
            Err(sentence) => return tracing::warn!("{sentence}"),
        };
        if let Err(error) = steering.start_capture(tap.wish()) {
            tracing::warn!("a capture cannot begin: {error}");
            let _ = go.send(Err(error.to_string()));
            return session.stop();
        }
        self.current = Some((session, tap));
        publish(publisher, self.tap());
        // Should the thread have ended already, the next look notices it.
        let _ = go.send(Ok(()));
        tracing::info!("a capture has begun");
    }

    /// Switches everything off if the client of the capture has gone.
    pub fn end(&mut self, steering: &mut Steering, publisher: &Publisher) {
        self.retired.retain(|tap| Arc::strong_count(tap) > 1);
        if self.current.as_ref().is_some_and(|(session, _)| session.has_ended()) {
            self.switch_off(steering, publisher);
        }
    }

    /// Ends the capture, if there is one.
    pub fn switch_off(&mut self, steering: &mut Steering, publisher: &Publisher) {
        let Some((session, tap)) = self.current.take() else { return };
        steering.stop_capture();
        publish(publisher, None);
        session.stop();
        self.retired.push(tap);
        tracing::info!("the capture has ended");
    }
}

/// Puts the same tables in force with another tap.
fn publish(publisher: &Publisher, tap: Option<Arc<Tap>>) {
    let mut tables = podlane_dataplane::table::Tables::clone(&publisher.current());
    tables.tap = tap;
    publisher.publish(tables);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_judged() {
        let ifindex_of = |name: &str| (name == "veth1").then_some(7);
        let good = Question::new(&Filter::everything());
        let wish = good.wish(ifindex_of).unwrap();
        assert_eq!((wish.filter, wish.interfaces), (Filter::everything(), None));
        let with = |change: fn(&mut Question)| {
            let mut question = good.clone();
            change(&mut question);
            question.wish(ifindex_of)
        };
        assert_eq!(with(|q| q.ports = vec!["veth1".into()]).unwrap().interfaces, Some(vec![7]));
        assert_eq!(with(|q| q.filter.clear()).unwrap().filter, Filter::everything());
        for (change, expected) in [
            ((|q| q.ports = vec!["veth2".into()]) as fn(&mut Question), "there is no port veth2"),
            (|q| q.ports = vec!["veth1".into(); 65], "64 ports at most"),
            (|q| q.snap_bytes = 0, "0 bytes"),
            (|q| q.snap_bytes = 65_001, "1 to 65000"),
            (|q| q.filter = vec![(0xffff, 0, 0, 0)], "instruction 0"),
        ] {
            let error = with(change).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let parsed: Question = serde_json::from_str("{}").unwrap();
        assert!(parsed.rx && parsed.tx && parsed.snap_bytes == MAX_SNAP_BYTES);
    }
}
