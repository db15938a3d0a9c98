//! What outlives a daemon, seen by the one that comes after it.
//!
//! Programs, links and maps are pinned ([`crate::bpf::pins`]), the host port and the pods' sizes stay as they are, and the
//! counters are in their file. A daemon that starts adopts all of it; one that stops leaves all of it. Without a bpffs to pin
//! to, nothing outlives the daemon, which then takes everything back when it stops.

use std::time::Duration;

use crate::bpf::pins::{NoBpffs, PinError, Pins, Root, Turn, find_root};
use crate::bpf::{Adopted, BpfError, Steering};
use crate::status::SurvivalStatus;

/// What is known of the daemons before this one, and whether there can be any after it.
#[derive(Debug, Default)]
pub struct Survival {
    /// Why nothing outlives this daemon.
    note: Option<String>,
    /// Whether this daemon finds nothing of its instance on the node: it leaves nothing either if it cannot start.
    pub is_first: bool,
    adopted: Adopted,
    /// How long nobody kept the tables, from the last daemon's last word to this one's first.
    gap: Option<Duration>,
}

/// Waits until nobody else of this instance starts or is taken off the node, and holds that up until the turn is dropped.
/// `None` where nothing can be pinned; [`load`] says why.
///
/// # Errors
/// If somebody is at it for too long.
pub fn take_turn(root: &Root, instance: &str) -> Result<Option<Turn>, PinError> {
    let Ok(root) = find_root(root) else { return Ok(None) };
    match Pins::of(&root, instance)?.take_turn() {
        Err(error) if error.source.kind() != std::io::ErrorKind::TimedOut => Ok(None),
        turn => turn.map(Some),
    }
}

/// Loads the programs, over the maps that an earlier daemon of this instance has left if there are any. Nothing that runs is
/// touched.
///
/// # Errors
/// As [`Steering::open`], but for pins that cannot be made: then nothing outlives this daemon.
pub fn load(root: &Root, instance: &str) -> Result<(Steering, Survival), BpfError> {
    let unpinned = |note: Option<String>| {
        if let Some(note) = &note {
            tracing::warn!("{note}");
        }
        Steering::load().map(|steering| (steering, Survival { note, is_first: true, ..Survival::default() }))
    };
    let says = |why: &dyn std::fmt::Display| {
        Some(format!("programs and maps go when podlane stops, and traffic then passes to the kernel: {why}"))
    };
    let pins = match find_root(root) {
        Ok(root) => Pins::of(&root, instance)?,
        Err(NoBpffs::Off) => return unpinned(None),
        Err(error) => return unpinned(says(&error)),
    };
    let is_first = pins.found().is_ok_and(|found| found.is_empty());
    match Steering::open(pins.clone()) {
        Ok(steering) => Ok((steering, Survival { is_first, ..Survival::default() })),
        Err(BpfError::Pin(error)) => unpinned(says(&error)),
        Err(error) => {
            // The first error is the one to report.
            if is_first {
                let _ = pins.remove();
            }
            Err(error)
        }
    }
}

impl Survival {
    /// Notes what was adopted.
    pub fn adopted(&mut self, adopted: Adopted) {
        if adopted.links > 0 || adopted.maps {
            let maps = if adopted.maps { "its maps" } else { "no maps, because they are of another version" };
            tracing::info!(
                links = adopted.links,
                "adopting what an earlier daemon has left: its programs' places and {maps}"
            );
        }
        self.adopted = adopted;
    }

    /// Notes that tables of this daemon are in force, at `now_ns` of `CLOCK_MONOTONIC_COARSE`.
    pub fn in_force(&mut self, now_ns: u64) {
        if self.gap.is_none() && self.adopted.last_beat_ns != 0 {
            let gap = Duration::from_nanos(now_ns.saturating_sub(self.adopted.last_beat_ns));
            tracing::info!(gap_ms = gap.as_millis() as u64, "took over; so long nobody kept the tables");
            self.gap = Some(gap);
        }
    }

    /// Sentences for the status.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.note.iter().cloned()
    }

    /// For the status.
    pub fn status(&self, steering: &Steering) -> SurvivalStatus {
        SurvivalStatus {
            pinned_at: steering.pins().map(|pins| pins.directory().display().to_string()),
            adopted_maps: self.adopted.maps,
            adopted_links: self.adopted.links as u64,
            gap_ms: self.gap.map(|gap| gap.as_micros() as f64 / 1000.0),
        }
    }
}
