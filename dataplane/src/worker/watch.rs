//! Who looks on while a worker forwards: nobody, or a tap.
//!
//! The packet path is written once, over [`Watch`]. With [`Nobody`] every call is nothing and is compiled to nothing; which
//! of the two it is, is asked once for each batch.

use super::packet_path::Batch;
use crate::addr::PortId;
use crate::afxdp::{FrameMemory, Piece};
use crate::forward::DropReason;
use crate::tap::{Bytes, Copied, Direction, Outcome, Record, Ring, Tap};

/// The bytes of a packet in a worker's hands.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    memory: &'a FrameMemory,
    packet: &'a [Piece],
}

/// The same with the first piece at hand, where nearly everything stands that a filter looks at.
struct Opened<'a> {
    first: &'a [u8],
    all: View<'a>,
}

impl Bytes for View<'_> {
    fn len(&self) -> u32 {
        self.packet.iter().map(|piece| u32::from(piece.bytes)).sum()
    }

    fn read(&self, at: u32, out: &mut [u8]) -> bool {
        self.open().read(at, out)
    }
}

impl Bytes for Opened<'_> {
    fn len(&self) -> u32 {
        self.all.len()
    }

    #[inline]
    fn read(&self, at: u32, out: &mut [u8]) -> bool {
        self.first.read(at, out) || (self.all.packet.len() > 1 && self.all.read_across(at as usize, out))
    }
}

impl<'a> View<'a> {
    /// The packet of these pieces.
    #[inline(always)]
    pub fn new(memory: &'a FrameMemory, packet: &'a [Piece]) -> Self {
        View { memory, packet }
    }

    #[inline]
    fn open(self) -> Opened<'a> {
        Opened { first: self.packet.first().map_or(&[][..], |piece| self.memory.bytes(piece)), all: self }
    }

    #[inline]
    fn matches(self, tap: &Tap) -> bool {
        tap.wish().filter.matches(&self.open())
    }

    /// The slow way, across pieces.
    #[cold]
    fn read_across(&self, mut skip: usize, out: &mut [u8]) -> bool {
        let mut filled = 0;
        for piece in self.packet {
            let bytes = self.memory.bytes(piece);
            let bytes = &bytes[skip.min(bytes.len())..];
            skip = skip.saturating_sub(usize::from(piece.bytes));
            let taken = bytes.len().min(out.len() - filled);
            out[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            filled += taken;
        }
        filled == out.len()
    }
}

/// The stations of a packet on its way.
pub(super) trait Watch {
    /// It is taken up.
    fn received(&mut self, frame: View<'_>);

    /// It is known what shall become of it. `changes`: what is sent may be other bytes than what was received.
    fn decided(&mut self, changes: bool);

    /// It is going to be put into the TX ring of a port by this worker.
    fn sending(&mut self, frame: View<'_>, port: PortId);

    /// What became of it.
    fn ended(&mut self, outcome: Ended);
}

/// What became of a packet that was received.
#[derive(Clone, Copy)]
pub(super) enum Ended {
    Forwarded { to: PortId, routed: bool },
    Passed(crate::forward::PassReason),
    Dropped(DropReason),
}

/// Nobody looks on.
pub(super) struct Nobody;

impl Watch for Nobody {
    #[inline(always)]
    fn received(&mut self, _: View<'_>) {}

    #[inline(always)]
    fn decided(&mut self, _: bool) {}

    #[inline(always)]
    fn sending(&mut self, _: View<'_>, _: PortId) {}

    #[inline(always)]
    fn ended(&mut self, _: Ended) {}
}

/// A tap looks on.
pub(super) struct Tapping<'a> {
    tap: &'a Tap,
    ring: &'a Ring,
    batch: Batch<'a>,
    /// The interface of the ingress port; 0 if the port has gone.
    ifindex: u32,
    wants_received: bool,
    /// When the batch was taken up.
    received_ns: u64,
    /// Of the present packet: whether it matched as it came in, and whether its bytes have changed since.
    matches: bool,
    changes: bool,
    frame_bytes: u32,
    decided_ns: u64,
    received: Option<Copied>,
    sent: Option<Sending>,
}

/// A packet that is being sent.
struct Sending {
    copied: Copied,
    ifindex: u32,
    frame_bytes: u32,
    rewritten_ns: u64,
}

impl<'a> Tapping<'a> {
    /// Looks on at a batch of worker `worker`; `None` if the tap is not on that worker.
    pub fn new(tap: &'a Tap, worker: usize, batch: Batch<'a>) -> Option<Self> {
        let ifindex = batch.from.map_or(0, |port| port.ifindex);
        Some(Tapping {
            tap,
            ring: tap.rings().get(worker)?,
            batch,
            ifindex,
            wants_received: tap.wants(Direction::Rx, ifindex),
            received_ns: tap.now_ns(),
            matches: false,
            changes: false,
            frame_bytes: 0,
            decided_ns: 0,
            received: None,
            sent: None,
        })
    }

    fn copy(&self, frame: View<'_>, port: PortId) -> Option<Copied> {
        self.ring.copy(&frame, self.tap.wish().snap_bytes, port)
    }

    fn ifindex_of(&self, port: PortId) -> u32 {
        self.batch.tables.ports.get(port).map_or(0, |port| port.ifindex)
    }
}

impl Watch for Tapping<'_> {
    #[inline]
    fn received(&mut self, frame: View<'_>) {
        self.matches = frame.matches(self.tap);
        if self.matches {
            self.frame_bytes = frame.len();
            self.received = if self.wants_received { self.copy(frame, self.batch.ingress) } else { None };
        }
    }

    #[inline]
    fn decided(&mut self, changes: bool) {
        self.changes = changes;
        if self.matches {
            self.decided_ns = self.tap.now_ns();
        }
    }

    #[inline]
    fn sending(&mut self, frame: View<'_>, port: PortId) {
        let matches = match self.changes && self.tap.filters_sent() {
            true => frame.matches(self.tap),
            false => self.matches,
        };
        let ifindex = self.ifindex_of(port);
        if matches && self.tap.wants(Direction::Tx, ifindex) {
            let rewritten_ns = self.tap.now_ns();
            let copied = self.copy(frame, port);
            self.sent = copied.map(|copied| Sending { copied, ifindex, frame_bytes: frame.len(), rewritten_ns });
        }
    }

    #[inline]
    fn ended(&mut self, ended: Ended) {
        if self.received.is_none() && self.sent.is_none() {
            return;
        }
        let packet = self.ring.number_packet();
        if let Some(copied) = self.received.take() {
            let outcome = match ended {
                Ended::Forwarded { to, routed } => Outcome::Forwarded { to: self.ifindex_of(to), routed },
                Ended::Passed(reason) => Outcome::Passed(reason),
                Ended::Dropped(reason) => Outcome::Dropped(reason),
            };
            let record = Record {
                packet,
                first_ns: self.received_ns,
                second_ns: self.decided_ns.max(self.received_ns),
                ifindex: self.ifindex,
                frame_bytes: self.frame_bytes,
                direction: Direction::Rx,
                outcome,
            };
            self.ring.commit(copied, record);
        }
        let Some(Sending { copied, ifindex, frame_bytes, rewritten_ns }) = self.sent.take() else { return };
        if let Ended::Dropped(_) = ended {
            return self.ring.discard(copied);
        }
        let record = Record {
            packet,
            first_ns: rewritten_ns,
            second_ns: self.tap.now_ns(),
            ifindex,
            frame_bytes,
            direction: Direction::Tx,
            outcome: Outcome::Sent { from: self.ifindex },
        };
        self.ring.commit(copied, record);
    }
}

/// A packet that another worker has handed over, to be sent through `port`: a copy of it, if it is wanted.
pub(super) struct Handed<'a> {
    tap: &'a Tap,
    ring: &'a Ring,
    sending: Sending,
}

impl<'a> Handed<'a> {
    /// Looks at the packet before it is sent.
    pub fn look(tap: &'a Tap, worker: usize, frame: View<'_>, port: PortId, ifindex: u32) -> Option<Self> {
        if !tap.wants(Direction::Tx, ifindex) || !frame.matches(tap) {
            return None;
        }
        let ring = tap.rings().get(worker)?;
        let rewritten_ns = tap.now_ns();
        let copied = ring.copy(&frame, tap.wish().snap_bytes, port)?;
        Some(Handed { tap, ring, sending: Sending { copied, ifindex, frame_bytes: frame.len(), rewritten_ns } })
    }

    /// Records what became of it. Which packet it was on the other side is not known here.
    pub fn ended(self, dropped: Option<DropReason>) {
        let Sending { copied, ifindex, frame_bytes, rewritten_ns } = self.sending;
        let record = Record {
            packet: 0,
            first_ns: rewritten_ns,
            second_ns: self.tap.now_ns(),
            ifindex,
            frame_bytes,
            direction: Direction::Tx,
            outcome: dropped.map_or(Outcome::Sent { from: 0 }, Outcome::Dropped),
        };
        self.ring.commit(copied, record);
    }
}
