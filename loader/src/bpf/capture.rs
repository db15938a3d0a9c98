//! Capture on the kernel's side: switching the stages in front of the programs on and off, and reading what they record.
//!
//! The order matters. The stages behind the first are filled before it, and stay filled afterwards, so that a frame that is
//! on its way through them always finds the next one; taking the first away is what switches capture off.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::limits;
use podlane_dataplane::tap::{Direction, Outcome, Record, Wish};

use super::error::BpfError;
use super::filter::{self, Hook};
use super::load::{self, Kind, Program};
use super::{Steering, layout, sys};

/// Bytes of `struct capture_record`, which a frame's first bytes follow.
pub const RECORD_BYTES: usize = 48;

// enum stage of bpf/capture.h.
const FIRST: i32 = 0;
const CAPTURE: i32 = 1;
const FILTER_SENT: i32 = 2;
const SENT: i32 = 3;

/// Which program made a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The XDP program.
    Xdp,
    /// The tc program.
    Tc,
}

/// A record of a program, and what only a program knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramRecord {
    /// As a worker would say it.
    pub record: Record,
    /// Where it was made.
    pub place: Place,
    /// Payload of each segment of a super-frame, bytes; 0 for any other.
    pub gso_size: u32,
    /// EtherType and control information of a VLAN tag that travels beside the frame.
    pub vlan: Option<(u16, u16)>,
}

impl ProgramRecord {
    /// Reads `struct capture_record`. `None` if it is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<RECORD_BYTES>()?;
        let u64_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        let u32_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let u16_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let (other, reason) = (u32_at(28)?, bytes[46]);
        let direction = if bytes[44] == 1 { Direction::Rx } else { Direction::Tx };
        let outcome = match bytes[45] {
            0 => Outcome::Forwarded { to: other, routed: reason != 0 },
            1 => Outcome::Passed(*PassReason::ALL.get(usize::from(reason))?),
            2 => Outcome::Dropped(*DropReason::ALL.get(usize::from(reason))?),
            3 => Outcome::Sent { from: other },
            _ => return None,
        };
        let record = Record {
            packet: u64_at(0)?,
            first_ns: u64_at(8)?,
            second_ns: u64_at(16)?,
            ifindex: u32_at(24)?,
            frame_bytes: u32_at(32)?,
            direction,
            outcome,
        };
        let (vlan_type, vlan_tag) = (u16_at(40)?, u16_at(42)?);
        Some(ProgramRecord {
            record,
            place: if bytes[47] == 1 { Place::Xdp } else { Place::Tc },
            gso_size: u32_at(36)?,
            vlan: (vlan_type != 0).then_some((vlan_type, vlan_tag)),
        })
    }
}

/// What is needed to read the programs' records, from any thread.
#[derive(Clone, Debug)]
pub struct Records {
    /// The perf event array that they are written to.
    pub events: Arc<MapHandle>,
    lost: Arc<MapHandle>,
}

impl Records {
    /// Records that found no room since the capture began, by port number; the last is of interfaces that are no port.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn lost(&self) -> Result<Vec<u64>, BpfError> {
        let failed = |source| BpfError::Map { table: "lost records", source };
        let mut lost = Vec::with_capacity(limits::MAX_PORTS + 1);
        for port in 0..=limits::MAX_PORTS as u32 {
            let cpus = self.lost.lookup_percpu(&port.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
            let count = |cpu: &Vec<u8>| cpu.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            lost.push(cpus.iter().flatten().map(count).sum());
        }
        Ok(lost)
    }
}

/// The state of capture.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// Programs behind the filter, by which they stand behind. Once loaded they stay.
    recording: Vec<(Kind, Vec<OwnedFd>)>,
    /// What is being captured, and the filters in front of the programs.
    active: Option<Wish>,
    filters: Vec<OwnedFd>,
}

impl Steering {
    /// Has the programs make records of what `wish` describes, on all interfaces that they are attached to now or later.
    /// Somebody must read [`Steering::records`].
    ///
    /// # Errors
    /// [`BpfError::Load`] if the kernel refuses the filter, [`BpfError::Map`]; nothing is captured then.
    pub fn start_capture(&mut self, wish: &Wish) -> Result<(), BpfError> {
        self.stop_capture();
        let started = self.prepare_capture(wish).and_then(|()| {
            self.capture.active = Some(wish.clone());
            self.loaded().into_iter().try_for_each(|kind| self.arm(kind))
        });
        if started.is_err() {
            self.stop_capture();
        }
        started
    }

    /// Has the programs make no records any more.
    pub fn stop_capture(&mut self) {
        self.capture.active = None;
        for kind in self.loaded() {
            if let Some(program) = self.program_of(kind) {
                clear(&program.stages, FIRST);
                clear(&program.stages, FILTER_SENT);
            }
        }
        self.capture.filters.clear();
    }

    /// To read what the programs record.
    pub fn records(&self) -> Records {
        Records { events: Arc::clone(&self.plain.capture_events), lost: Arc::clone(&self.plain.capture_lost) }
    }

    /// Writes the settings, and sets the counters of lost records to zero.
    fn prepare_capture(&mut self, wish: &Wish) -> Result<(), BpfError> {
        let failed = |source| BpfError::Map { table: "capture settings", source };
        let settings = layout::capture_settings(wish);
        self.plain.capture_settings.update(&[0; 4], &settings, MapFlags::ANY).map_err(failed)?;
        let old: Vec<_> = self.plain.captured.keys().collect();
        for key in old {
            self.plain.captured.delete(&key).map_err(failed)?;
        }
        for ifindex in wish.interfaces.iter().flatten() {
            self.plain.captured.update(&ifindex.to_ne_bytes(), &[0; 4], MapFlags::ANY).map_err(failed)?;
        }
        let zeros = vec![vec![0; 8]; libbpf_rs::num_possible_cpus().map_err(failed)?];
        for port in 0..=limits::MAX_PORTS as u32 {
            self.plain.capture_lost.update_percpu(&port.to_ne_bytes(), &zeros, MapFlags::ANY).map_err(failed)?;
        }
        Ok(())
    }

    /// A program that was loaded while somebody captures. It forwards as well without being captured.
    pub(super) fn capture_there_as_well(&mut self, kind: Kind) {
        if self.capture.active.is_some()
            && let Err(error) = self.arm(kind)
        {
            tracing::warn!("{kind:?} frames are not captured: {error}");
        }
    }

    fn loaded(&self) -> Vec<Kind> {
        let all = [Kind::Native, Kind::Veth, Kind::Generic, Kind::Repeat];
        all.into_iter().filter(|kind| self.program_of(*kind).is_some()).collect()
    }

    fn program_of(&self, kind: Kind) -> Option<&Program> {
        match kind {
            Kind::Native => Some(&self.native),
            Kind::Veth => self.veth.as_ref(),
            Kind::Generic => self.generic.as_ref(),
            Kind::Repeat => self.repeat.as_ref(),
        }
    }

    /// Puts the stages in front of one program.
    fn arm(&mut self, kind: Kind) -> Result<(), BpfError> {
        let recording = match self.capture.recording.iter().position(|(loaded, _)| *loaded == kind) {
            Some(at) => self.capture.recording.swap_remove(at).1,
            None => match self.program_of(kind) {
                Some(program) => load::recording(kind, program, &self.mirrored, &self.plain)?,
                None => return Ok(()),
            },
        };
        self.capture.recording.push((kind, recording));
        let (Some(program), Some((_, recording)), Some(wish)) =
            (self.program_of(kind), self.capture.recording.last(), &self.capture.active)
        else {
            return Ok(());
        };
        let stages = &program.stages;
        let filter = |hook, next| {
            let scratch = self.plain.capture_scratch.as_fd().as_raw_fd();
            let program = filter::translate(&wish.filter, hook, scratch, stages.as_fd().as_raw_fd(), next);
            let refused = |error| BpfError::Load { program: "of the filter", source: libbpf_rs::Error::from(error) };
            sys::load_program(hook, &program).map_err(refused)
        };
        let [decides, records] = &recording[..] else { return Ok(()) };
        set(stages, SENT, records)?;
        let filters = if kind == Kind::Repeat {
            set(stages, CAPTURE, decides)?;
            let filters = vec![filter(Hook::Tc, SENT)?, filter(Hook::Tc, CAPTURE)?];
            set(stages, FILTER_SENT, &filters[0])?;
            set(stages, FIRST, &filters[1])?;
            filters
        } else {
            let filters = vec![filter(Hook::Xdp, SENT)?];
            set(stages, FILTER_SENT, &filters[0])?;
            set(stages, FIRST, decides)?;
            filters
        };
        self.capture.filters.extend(filters);
        Ok(())
    }
}

fn set(stages: &MapHandle, stage: i32, program: &OwnedFd) -> Result<(), BpfError> {
    let written = stages.update(&stage.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes(), MapFlags::ANY);
    written.map_err(|source| BpfError::Map { table: "capture stages", source })
}

fn clear(stages: &MapHandle, stage: i32) {
    match stages.delete(&stage.to_ne_bytes()) {
        Err(error) if error.kind() != ErrorKind::NotFound => tracing::warn!(%error, "switching capture off"),
        _ => {}
    }
}
