//! The way of records from a worker to whoever captures: slots of a fixed size that go round between two bounded queues.
//!
//! The worker takes empty slots, fills them and hands them over; the reader empties them and gives them back. There is one
//! writer and one reader, nothing is allocated after the start, and neither waits for the other: without an empty slot a
//! record is lost, and counted.

use super::{Bytes, Record};
use crate::addr::PortId;
use crate::limits;
use crate::sync::ArrayQueue;
use crate::worker::Counter;

/// Bytes of a frame in one slot at most; what is longer takes several.
const SLOT_BYTES: usize = 2048;
/// Slots of one ring.
const SLOTS: std::ops::RangeInclusive<usize> = 64..=16_384;

/// Bytes of a frame, or a part of them, and from the first slot of a frame its record.
#[derive(Debug)]
struct Slot {
    record: Record,
    bytes: Box<[u8]>,
    used: usize,
    rest: Option<Box<Slot>>,
}

/// A copy of a frame's first bytes for which a record is still to be made. Dropping it would lose its slots: it goes into
/// [`Ring::commit`] or [`Ring::discard`].
#[derive(Debug)]
#[must_use]
pub struct Copied(Box<Slot>);

/// The ring of one worker.
#[derive(Debug)]
pub struct Ring {
    empty: ArrayQueue<Box<Slot>>,
    full: ArrayQueue<Box<Slot>>,
    /// Packets that were recorded.
    packets: Counter,
    /// What tells them from other workers' packets.
    worker: u8,
    /// Bytes that one slot holds.
    slot_bytes: usize,
    /// Records without room, by port.
    lost: Box<[Counter]>,
}

impl Ring {
    /// The ring of worker `worker`, of about `bytes` for frames of which at most `snap_bytes` are kept.
    pub fn new(worker: u8, bytes: usize, snap_bytes: usize) -> Self {
        let slot_bytes = snap_bytes.clamp(1, SLOT_BYTES);
        let least = SLOTS.start() + snap_bytes / SLOT_BYTES;
        let slots = (bytes / slot_bytes).clamp(least, *SLOTS.end());
        let empty = ArrayQueue::new(slots);
        for _ in 0..slots {
            // Written to once, so that the worker is not the first to touch the memory.
            let bytes = vec![u8::MAX; slot_bytes].into();
            let slot = Slot { record: Record::EMPTY, bytes, used: 0, rest: None };
            let refused = empty.push(Box::new(slot));
            debug_assert!(refused.is_ok());
        }
        let lost = (0..limits::MAX_PORTS).map(|_| Counter::default()).collect();
        Ring { empty, full: ArrayQueue::new(slots), packets: Counter::default(), worker, slot_bytes, lost }
    }

    /// Copies the first `bytes` bytes of `frame`. `None`, counted as lost at `port`, if there is no room.
    pub fn copy<F: Bytes + ?Sized>(&self, frame: &F, bytes: u32, port: PortId) -> Option<Copied> {
        let bytes = bytes.min(frame.len());
        // From the last part to the first, so that each takes the one behind it.
        let mut rest = None;
        for part in (0..(bytes as usize).div_ceil(self.slot_bytes).max(1)).rev() {
            let Some(mut slot) = self.empty.pop() else {
                rest.into_iter().for_each(|slot| self.give_back(slot));
                self.lose(port);
                return None;
            };
            let start = part * self.slot_bytes;
            slot.used = (bytes as usize - start).min(self.slot_bytes);
            frame.read(start as u32, &mut slot.bytes[..slot.used]);
            slot.rest = rest;
            rest = Some(slot);
        }
        rest.map(Copied)
    }

    /// A number for the next packet; never 0, and none that another worker gives.
    pub fn number_packet(&self) -> u64 {
        self.packets.add(1);
        self.packets.get() << 8 | u64::from(self.worker)
    }

    /// Counts a record that found no room.
    pub fn lose(&self, port: PortId) {
        if let Some(lost) = self.lost.get(port.index()) {
            lost.add(1);
        }
    }

    /// Hands a frame's copy over, with what is to be said of it.
    pub fn commit(&self, mut copied: Copied, record: Record) {
        copied.0.record = record;
        // There are never more of them than slots.
        if let Err(slot) = self.full.push(copied.0) {
            self.give_back(slot);
        }
    }

    /// Takes a copy back of which nothing is to be said.
    pub fn discard(&self, copied: Copied) {
        self.give_back(copied.0);
    }

    fn give_back(&self, slot: Box<Slot>) {
        let mut next = Some(slot);
        while let Some(mut slot) = next {
            next = slot.rest.take();
            let refused = self.empty.push(slot);
            debug_assert!(refused.is_ok());
        }
    }

    /// The reader's end: the next record, with the frame's bytes appended to `bytes`.
    pub fn take(&self, bytes: &mut Vec<u8>) -> Option<Record> {
        let first = self.full.pop()?;
        let record = first.record;
        let mut next = Some(&first);
        while let Some(slot) = next {
            bytes.extend_from_slice(&slot.bytes[..slot.used]);
            next = slot.rest.as_ref();
        }
        self.give_back(first);
        Some(record)
    }

    /// Records that found no room, of one port.
    pub fn lost(&self, port: PortId) -> u64 {
        self.lost.get(port.index()).map_or(0, Counter::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| (n * 7 % 251) as u8).collect()
    }

    fn take(ring: &Ring) -> Option<(u64, Vec<u8>)> {
        let mut bytes = Vec::new();
        ring.take(&mut bytes).map(|record| (record.packet, bytes))
    }

    #[test]
    fn frames_of_any_length_come_out_as_they_went_in() {
        let ring = Ring::new(0, 1 << 20, 65_000);
        for round in 0..20 {
            for bytes in [0, 1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 65_000] {
                let copied = ring.copy(frame(bytes).as_slice(), 65_000, PortId(1)).unwrap();
                ring.commit(copied, Record { packet: round, ..Record::EMPTY });
                assert_eq!(take(&ring), Some((round, frame(bytes))), "{bytes} bytes");
            }
        }
        assert_eq!(take(&ring), None);
        assert_eq!(ring.lost(PortId(1)), 0);
    }

    #[test]
    fn a_long_frame_is_cut() {
        let ring = Ring::new(0, 0, 100);
        let copied = ring.copy(frame(1000).as_slice(), 100, PortId(1)).unwrap();
        ring.commit(copied, Record::EMPTY);
        assert_eq!(take(&ring), Some((0, frame(1000)[..100].to_vec())));
    }

    #[test]
    fn a_full_ring_loses_records_counts_them_and_recovers() {
        let ring = Ring::new(0, 0, 100);
        for packet in 0..100 {
            if let Some(copied) = ring.copy(frame(60).as_slice(), 100, PortId(7)) {
                ring.commit(copied, Record { packet, ..Record::EMPTY });
            }
        }
        assert_eq!(ring.lost(PortId(7)), 36);
        assert_eq!(ring.lost(PortId(8)), 0);
        let packets: Vec<u64> = std::iter::from_fn(|| take(&ring)).map(|(packet, _)| packet).collect();
        assert_eq!(packets, (0..64).collect::<Vec<u64>>());
        let copied = ring.copy(frame(60).as_slice(), 100, PortId(7)).unwrap();
        ring.discard(copied);
        assert_eq!(ring.empty.len(), 64);
    }

    #[test]
    fn a_frame_without_room_for_all_of_it_takes_none() {
        let ring = Ring::new(0, 0, 5000);
        let slots = ring.empty.len();
        let held: Vec<_> = (0..slots - 2).map_while(|_| ring.copy([].as_slice(), 5000, PortId(0))).collect();
        assert!(ring.copy(frame(5000).as_slice(), 5000, PortId(0)).is_none());
        assert_eq!((ring.empty.len(), ring.lost(PortId(0))), (2, 1));
        held.into_iter().for_each(|copied| ring.discard(copied));
        assert_eq!(ring.empty.len(), slots);
    }
}
