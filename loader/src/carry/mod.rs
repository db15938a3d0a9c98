//! Counters outlive the daemon that counted them.
//!
//! What is counted is saved every [`PERIOD`], whenever it is told to somebody, and at the end; the next daemon of the same
//! name adds it to what it counts itself. So a count that was told never runs backwards, whatever ended the daemon, and a
//! killed one loses what it counted since it last told or saved. A worker is known by its number. A port is known by the name,
//! the index and the MAC address of its interface, all three: another pod's veth differs in one of them and begins at 0. The
//! host port, which every daemon makes anew, is known by its name.

pub(crate) mod file;
pub(crate) mod sums;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podlane_dataplane::PortId;
use serde::{Deserialize, Serialize};

use crate::status::{CountersStatus, Status};
pub use file::ProgramCounters;
use file::{LoadError, Memory, Place, Saved};
pub use sums::PortSums;
use sums::{Count, NodeSums, WorkerSums};

/// How often counters are saved if nobody asks for them.
pub const PERIOD: Duration = Duration::from_secs(10);

/// By what a port is known again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    name: String,
    ifindex: u32,
    mac: String,
}

impl Identity {
    /// Of somebody's interface.
    pub fn interface(name: &str, ifindex: u32, mac: impl std::fmt::Display) -> Self {
        Identity { name: name.to_owned(), ifindex, mac: mac.to_string() }
    }

    /// The interface's name and index.
    pub fn place(&self) -> (&str, u32) {
        (&self.name, self.ifindex)
    }

    /// Of an interface that every daemon makes anew.
    pub fn own(name: &str) -> Self {
        Identity { name: name.to_owned(), ifindex: 0, mac: String::new() }
    }
}

/// What earlier daemons counted, and where it is kept.
#[derive(Debug)]
pub struct Carried {
    memory: Memory,
    place: Place,
    told: CountersStatus,
    node: NodeSums,
    workers: BTreeMap<u32, WorkerSums>,
    /// Of open ports, by number.
    claimed: BTreeMap<PortId, PortSums>,
    /// Of ports that are not open, or not yet.
    waiting: BTreeMap<Identity, PortSums>,
    /// What the programs' counters showed when the last daemon saved, or when this one last noted it.
    programs: Vec<ProgramCounters>,
    saved: Instant,
    /// The last attempt to save failed, as was said.
    failing: bool,
}

impl Carried {
    /// What the last daemon of this name has left, or nothing, with a sentence in the log where there is something that cannot
    /// be used.
    pub fn open(instance: &str) -> Self {
        Self::from(Memory::of(instance), Place::here())
    }

    fn from(memory: Memory, place: Place) -> Self {
        let saved = match memory.load(&place) {
            Ok(saved) => saved,
            Err(error) => {
                match error {
                    LoadError::OtherPlace { .. } => tracing::info!("counters begin at 0: {error}"),
                    _ => tracing::warn!("counters begin at 0: {error}"),
                }
                None
            }
        };
        let told = CountersStatus { since_s: unix_s(), ..CountersStatus::default() };
        let mut carried = Carried {
            memory,
            place,
            told,
            node: NodeSums::default(),
            workers: BTreeMap::new(),
            claimed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            programs: Vec::new(),
            saved: Instant::now(),
            failing: false,
        };
        if let Some(saved) = saved {
            carried.take_over(saved);
        }
        carried
    }

    fn take_over(&mut self, saved: Saved) {
        self.told = CountersStatus { save_failures: 0, ..saved.counters };
        let count = if saved.ended { &mut self.told.takeovers } else { &mut self.told.takeovers_after_kill };
        *count = count.saturating_add(1);
        (self.node, self.workers) = (saved.node, saved.workers.into_iter().collect());
        self.waiting = saved.ports.into_iter().map(|(identity, sums)| (identity, sums.settled())).collect();
        self.programs = saved.programs;
        let how = if saved.ended { "has ended" } else { "was killed" };
        tracing::info!("counters go on from those of the last daemon, which {how}");
    }

    /// What the programs' counters showed when the last daemon saved.
    pub fn take_programs(&mut self) -> Vec<ProgramCounters> {
        std::mem::take(&mut self.programs)
    }

    /// Notes what the programs' counters show, to be saved with the next count.
    pub fn note_programs(&mut self, programs: Vec<ProgramCounters>) {
        self.programs = programs;
    }

    /// What the programs counted for a port since the last daemon saved, which no daemon has told yet.
    pub fn add_between(&mut self, identity: Identity, between: &PortSums) {
        self.waiting.entry(identity).or_default().carry(between);
    }

    /// A port is open: it goes on from what is kept under its identity.
    pub fn claim(&mut self, port: PortId, identity: &Identity) {
        let waiting = &mut self.waiting;
        self.claimed.entry(port).or_insert_with(|| waiting.remove(identity).unwrap_or_default());
    }

    /// A port was closed after this daemon had counted `own` for it. Its sums wait for it to be opened again, if its interface
    /// is still there and has an `identity`.
    pub fn release(&mut self, port: PortId, identity: Option<Identity>, own: PortSums) {
        let mut sums = self.claimed.remove(&port).unwrap_or_default();
        sums.carry(&own);
        if let Some(identity) = identity {
            self.waiting.insert(identity, sums.settled());
        }
    }

    /// Adds what earlier daemons counted to what this one did.
    pub fn add_to(&self, status: &mut Status) {
        status.counters = self.told;
        self.node.add_to(status);
        for worker in &mut status.workers {
            if let Some(sums) = self.workers.get(&worker.id) {
                sums.add_to(worker);
            }
        }
        for port in &mut status.ports {
            if let Some(sums) = u16::try_from(port.id).ok().and_then(|id| self.claimed.get(&PortId(id))) {
                sums.add_to(port);
            }
        }
    }

    /// Whether it is time to save.
    pub fn is_due(&self) -> bool {
        self.saved.elapsed() >= PERIOD
    }

    /// Saves what `status` tells, so that the next daemon tells no less. `identify` gives the identity that an interface of
    /// this name and index has now, if there is such a one. `ended`: this is the last count.
    pub fn save(&mut self, status: &Status, identify: impl Fn(&str, u32) -> Option<Identity>, ended: bool) {
        self.saved = Instant::now();
        self.waiting.retain(|waiting, _| identify(&waiting.name, waiting.ifindex).as_ref() == Some(waiting));
        let mut workers = self.workers.clone();
        workers.extend(status.workers.iter().map(|worker| (worker.id, WorkerSums::of(worker))));
        let open =
            status.ports.iter().filter_map(|port| Some((identify(&port.name, port.ifindex)?, PortSums::of(port))));
        let waiting = self.waiting.iter().map(|(identity, sums)| (identity.clone(), sums.clone()));
        let saved = Saved {
            place: self.place.clone(),
            ended,
            counters: self.told,
            node: NodeSums::of(status),
            workers: workers.into_iter().collect(),
            ports: open.chain(waiting).collect(),
            programs: self.programs.clone(),
        };
        match self.memory.save(&saved) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.told.save_failures += 1;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, path = %self.memory.path().display(), "saving the counters");
                }
            }
        }
    }

    /// A sentence while counters cannot be saved.
    pub fn note(&self) -> Option<String> {
        self.failing.then(|| {
            let path = self.memory.path().display();
            format!("counters cannot be saved to {path} and will begin at an older count after a restart; see the log")
        })
    }
}

/// The time, seconds of Unix time.
pub fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
