//! The tap: copies of frames for whoever captures, made by the workers on their way.
//!
//! A [`Tap`] is part of a snapshot of the tables while somebody captures, and absent otherwise: a worker looks once for each
//! batch whether there is one. With it, every frame is put before its [`Filter`]; of one that matches, the worker copies the
//! first bytes into its [`Ring`] as they came in, with what was decided, and once more as they leave. Records may be lost
//! there, frames never are.

pub mod filter;
mod ring;

pub use filter::{Bytes, Filter, FilterError, Instruction};
pub use ring::{Copied, Ring};

use crate::addr::PortId;
use crate::forward::{DropReason, PassReason};

/// Memory for the rings of all workers together, bytes.
pub const RING_BYTES: usize = 32 << 20;
/// Bytes of a frame that can be kept at most: the kernel's own records have a length of 16 bits.
pub const MAX_SNAP_BYTES: u32 = 65_000;

/// Which way a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Received on the interface.
    Rx,
    /// Sent through it.
    Tx,
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Received, and forwarded.
    Forwarded {
        /// The interface that it leaves through.
        to: u32,
        /// Whether it was routed, and not bridged.
        routed: bool,
    },
    /// Received, and left to the kernel.
    Passed(PassReason),
    /// Received, and dropped.
    Dropped(DropReason),
    /// Sent.
    Sent {
        /// The interface that it came in through; 0 if the worker that sends it was not told.
        from: u32,
    },
}

/// What is said of a copied frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The same for both records of a frame, and for no other frame of this worker; 0 if it is not known.
    pub packet: u64,
    /// Received, or rewritten; nanoseconds of the tap's clock. All frames of a batch are received at one time.
    pub first_ns: u64,
    /// Decided, or sent.
    pub second_ns: u64,
    /// The interface.
    pub ifindex: u32,
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
    /// Received or sent.
    pub direction: Direction,
    /// What became of it.
    pub outcome: Outcome,
}

impl Record {
    /// Of no frame.
    pub const EMPTY: Record = Record {
        packet: 0,
        first_ns: 0,
        second_ns: 0,
        ifindex: 0,
        frame_bytes: 0,
        direction: Direction::Rx,
        outcome: Outcome::Sent { from: 0 },
    };
}

/// What is to be captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Which frames.
    pub filter: Filter,
    /// Bytes that are kept of each, at most [`MAX_SNAP_BYTES`].
    pub snap_bytes: u32,
    /// Whether received frames are wanted.
    pub rx: bool,
    /// Whether sent frames are wanted.
    pub tx: bool,
    /// Only of these interfaces; `None` for all.
    pub interfaces: Option<Vec<u32>>,
}

impl Wish {
    fn wants(&self, direction: Direction, ifindex: u32) -> bool {
        let wanted = match direction {
            Direction::Rx => self.rx,
            Direction::Tx => self.tx,
        };
        wanted && self.interfaces.as_ref().is_none_or(|interfaces| interfaces.contains(&ifindex))
    }
}

/// A tap on all workers.
#[derive(Debug)]
pub struct Tap {
    wish: Wish,
    /// Whether what is sent after routing has to be put before the filter again.
    filters_sent: bool,
    clock: fn() -> u64,
    rings: Box<[Ring]>,
}

impl Tap {
    /// A tap on so many workers; `clock` gives nanoseconds of `CLOCK_MONOTONIC`.
    pub fn new(wish: Wish, workers: usize, clock: fn() -> u64) -> Self {
        let share = RING_BYTES / workers.max(1);
        let rings = (0..workers).map(|worker| Ring::new(worker as u8, share, wish.snap_bytes as usize)).collect();
        Tap { filters_sent: wish.filter.looks_at_rewritten_bytes(), wish, clock, rings }
    }

    /// What it captures.
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The rings, by worker.
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// The tap's clock.
    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        (self.clock)()
    }

    pub(crate) fn filters_sent(&self) -> bool {
        self.filters_sent
    }

    /// Whether a frame is to be recorded in this direction at this interface.
    #[inline]
    pub(crate) fn wants(&self, direction: Direction, ifindex: u32) -> bool {
        self.wish.wants(direction, ifindex)
    }

    /// Records lost for want of room at a port, by all workers.
    pub fn lost(&self, port: PortId) -> u64 {
        self.rings.iter().map(|ring| ring.lost(port)).sum()
    }
}
