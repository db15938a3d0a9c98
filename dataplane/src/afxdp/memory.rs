//! A queue in plain memory: what a test puts in is received, what is transmitted can be read back.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::umem::{ClosedSocket, Frame, FrameMemory, Umem};
use super::{Piece, QueueFrames, QueueIo};
use crate::limits;

/// An in-memory [`QueueIo`] over a real UMEM, for tests of the worker without root and without the kernel.
///
/// Frames go through the same tokens and places as with a socket. Transmitted packets are copied out on
/// [`QueueIo::kick`] and their frames completed at once.
#[derive(Debug)]
pub struct MemoryQueue {
    umem: Umem,
    memory: FrameMemory,
    number: u16,
    fill: VecDeque<u64>,
    rx: VecDeque<(u64, u16, bool)>,
    tx: VecDeque<(u64, u16, bool, bool)>,
    completed: VecDeque<u64>,
    /// Packets that have left, oldest first, with whether a checksum was requested by metadata.
    pub sent: Vec<(Vec<u8>, bool)>,
    /// Pieces that the TX ring takes.
    pub tx_room: usize,
    /// While set, [`QueueIo::kick`] sends nothing, like a device that is down.
    pub stuck: bool,
    /// While set, packets leave without being kept in `sent`, and without an allocation.
    pub discard: bool,
    /// What [`QueueIo::poll_fd`] gives: the reading end of a pipe, say.
    pub readable: Option<OwnedFd>,
    metadata: bool,
}

impl MemoryQueue {
    /// A queue numbered `number` among those of `umem`; `metadata`: it takes checksum requests.
    pub fn new(umem: &Umem, number: u16, metadata: bool) -> Self {
        MemoryQueue {
            umem: umem.clone(),
            memory: umem.memory(),
            number,
            fill: VecDeque::new(),
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            completed: VecDeque::new(),
            sent: Vec::new(),
            tx_room: 2048,
            stuck: false,
            discard: false,
            readable: None,
            metadata,
        }
    }

    /// Closes it, as [`super::Socket::close`] does.
    pub fn close(self) -> ClosedSocket {
        ClosedSocket(self.number)
    }

    /// A packet arrives, cut into pieces of `piece_bytes`. Returns false, like the kernel, when the fill ring has too few
    /// frames.
    pub fn arrive(&mut self, packet: &[u8], piece_bytes: usize) -> bool {
        let pieces = packet.chunks(piece_bytes).count();
        if self.fill.len() < pieces {
            return false;
        }
        for (index, bytes) in packet.chunks(piece_bytes).enumerate() {
            let address = self.fill.pop_front().expect("counted above");
            let at = address + limits::RX_HEADROOM as u64;
            let (frame, offset) = self.umem.take_back(at, self.number).expect("the fill ring holds our frames");
            let mut piece = Piece { frame, offset, bytes: bytes.len() as u16, more: false, metadata: false };
            self.memory.bytes_mut(&mut piece).copy_from_slice(bytes);
            self.umem.give(piece.frame, self.number);
            self.rx.push_back((at, bytes.len() as u16, index + 1 < pieces));
        }
        true
    }
}

impl QueueIo for MemoryQueue {
    fn number(&self) -> u16 {
        self.number
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.readable.as_ref().map(AsFd::as_fd)
    }

    fn ready(&mut self) -> bool {
        !self.rx.is_empty()
    }

    fn receive(&mut self, max_packets: usize, out: &mut Vec<Piece>) -> usize {
        let mut packets = 0;
        while packets < max_packets {
            let Some((address, bytes, more)) = self.rx.pop_front() else { break };
            let (frame, offset) = self.umem.take_back(address, self.number).expect("the RX ring holds our frames");
            out.push(Piece { frame, offset, bytes, more, metadata: false });
            packets += usize::from(!more);
        }
        packets
    }

    fn fill_space(&mut self) -> usize {
        2048 - self.fill.len()
    }

    fn fill(&mut self, frames: &mut Vec<Frame>, most: usize) {
        for _ in 0..most.min(self.fill_space()) {
            let Some(frame) = frames.pop() else { break };
            self.fill.push_back(self.umem.give(frame, self.number));
        }
    }

    fn fill_outstanding(&self) -> usize {
        self.fill.len() + self.rx.len()
    }

    fn transmit(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.tx.len() + pieces.len() > self.tx_room {
            return false;
        }
        for piece in pieces.drain(..) {
            let address = self.umem.give(piece.frame, self.number) + u64::from(piece.offset);
            self.tx.push_back((address, piece.bytes, piece.more, piece.metadata));
        }
        true
    }

    fn kick(&mut self) -> u32 {
        let (mut packet, mut checksum) = (Vec::new(), false);
        while !self.stuck
            && let Some((address, bytes, more, metadata)) = self.tx.pop_front()
        {
            let (frame, offset) = self.umem.take_back(address, self.number).expect("the TX ring holds our frames");
            let piece = Piece { frame, offset, bytes, more, metadata };
            if !self.discard {
                packet.extend_from_slice(self.memory.bytes(&piece));
            }
            checksum |= metadata;
            self.completed.push_back(self.umem.give(piece.frame, self.number));
            if !more && !self.discard {
                self.sent.push((std::mem::take(&mut packet), std::mem::take(&mut checksum)));
            }
        }
        1
    }

    fn tx_unsent(&mut self) -> usize {
        self.tx.len()
    }

    fn tx_outstanding(&self) -> usize {
        self.tx.len() + self.completed.len()
    }

    fn complete(&mut self, out: &mut Vec<Frame>) {
        while let Some(address) = self.completed.pop_front() {
            out.push(self.umem.take_back(address, self.number).expect("completed frames are ours").0);
        }
    }

    fn wake_fill(&mut self) -> u32 {
        0
    }

    fn checksum_metadata(&self) -> bool {
        self.metadata
    }

    fn frames(&mut self) -> QueueFrames {
        QueueFrames { fill: self.fill.len() as u64, rx: self.rx.len() as u64, tx: self.tx_outstanding() as u64 }
    }
}
