//! AF_XDP: one memory, its rings, and the sockets that share it.
//!
//! This is the only module of the crate that talks to the kernel and the only one with `unsafe` code. Its safety rests on
//! one idea, **frame ownership by token**: every chunk of the UMEM is represented by exactly one [`Frame`] value, which
//! can be neither copied nor made outside of this module. Who holds the token may touch the bytes; putting it into a fill
//! or TX ring gives it to the kernel; the kernel gives it back through the RX or completion ring. So two threads, or a
//! thread and the kernel, never touch the same bytes at once, and at any time each frame is in exactly one place:
//! a free list, a fill ring, an RX ring, a worker's hands, a hand-off ring, a TX ring, a completion ring.
//!
//! The kernel knows the memory as several UMEMs: one of all copy-mode sockets, and one for each interface whose driver has
//! zero-copy. They are the same pages, so a frame moves between them by its address, and the token does not change.
//!
//! A worker sees a socket only through the [`QueueIo`] trait, statically dispatched, so that other implementations (one
//! in memory for tests among them) can stand in its place.
//!
//! Facts that shape the code, from `net/xdp/xsk.c` and `Documentation/networking/af_xdp.rst` in the kernel's source:
//! a device and queue has a fill and completion ring of its own even when the UMEM is shared; sockets that share take the
//! mode (copy or zero-copy), need-wakeup and multi-buffer flags of the first one; transmission in copy mode is one system
//! call for at most 32 packets, which fails with `EAGAIN` when there are more.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

pub mod clock;
#[cfg(any(test, feature = "bench"))]
pub mod conformance;
mod heartbeat;
mod memory;
#[cfg(feature = "bench")]
mod plain;
mod priority;
mod ring;
mod shared;
mod sleeping;
mod socket;
mod sys;
mod umem;
mod wait;

pub use heartbeat::{Heartbeat, Heartbeats};
pub use memory::MemoryQueue;
#[cfg(feature = "bench")]
pub use plain::plain_ring;
pub use priority::{PRIORITY_STEPS, raise_priority};
#[cfg(feature = "bench")]
pub use ring::{Consumer, Producer};
pub use shared::SharedWords;
pub use socket::{BindError, BindOptions, CloseError, Socket, SocketHandle, SocketStatistics, XskMode};
pub use umem::{ClosedSocket, Frame, FrameMemory, Umem, UmemError};
pub use wait::{Slept, Waiter, Waker};

/// One piece of a received or transmitted packet: a frame and where in it the bytes are.
#[derive(Debug)]
#[must_use = "a dropped piece is a leaked frame"]
pub struct Piece {
    /// The frame that holds the bytes; owned by whoever holds the piece.
    pub frame: Frame,
    /// Where the bytes start in the chunk.
    pub offset: u16,
    /// How many bytes there are.
    pub bytes: u16,
    /// Another piece of the same packet follows.
    pub more: bool,
    /// TX metadata stands in front of the bytes ([`FrameMemory::request_checksum`]); first piece only.
    pub metadata: bool,
}

/// The counts that a frame-conservation audit adds up for one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueFrames {
    /// In the fill ring or inside the kernel on their way to the RX ring.
    pub fill: u64,
    /// In the RX ring.
    pub rx: u64,
    /// In the TX ring, in flight, or in the completion ring.
    pub tx: u64,
}

/// The frame I/O of one queue of one port, as a worker uses it.
pub trait QueueIo {
    /// The number that tells this queue from the others of its UMEM.
    fn number(&self) -> u16;

    /// A descriptor that becomes readable when packets arrive, for sleeping; `None` for a queue that has none.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether packets are waiting to be received.
    fn ready(&mut self) -> bool;

    /// Takes whole packets, `max_packets` at most, and appends their pieces to `out` in order. Returns the packets taken.
    fn receive(&mut self, max_packets: usize, out: &mut Vec<Piece>) -> usize;

    /// How many frames the fill ring could take now.
    fn fill_space(&mut self) -> usize;

    /// Gives frames to the kernel to receive into; takes from the end of `frames` while there is room, `most` at most.
    fn fill(&mut self, frames: &mut Vec<Frame>, most: usize);

    /// Frames that this queue has been given for receiving and that have not come back: fill ring, kernel and RX ring.
    fn fill_outstanding(&self) -> usize;

    /// Queues a whole packet for transmission: all its pieces, or none when the ring lacks room. Pieces are taken out of
    /// `pieces` only on success. Nothing leaves before [`QueueIo::kick`].
    fn transmit(&mut self, pieces: &mut Vec<Piece>) -> bool;

    /// Tells the kernel to send what is queued; loops until the ring is drained or makes no progress. Returns the system
    /// calls made. Call it again later while [`QueueIo::tx_unsent`] is not 0.
    fn kick(&mut self) -> u32;

    /// Descriptors queued that the kernel has not yet taken from the TX ring.
    fn tx_unsent(&mut self) -> usize;

    /// Frames given to the kernel for transmission that have not come back.
    fn tx_outstanding(&self) -> usize;

    /// Takes back transmitted frames, appending them to `out`.
    fn complete(&mut self, out: &mut Vec<Frame>);

    /// Wakes the driver if it waits for the fill ring (`XDP_RING_NEED_WAKEUP`); returns the system calls made.
    fn wake_fill(&mut self) -> u32;

    /// Whether the socket can be told to finish a checksum by TX metadata.
    fn checksum_metadata(&self) -> bool;

    /// Where this queue's frames are.
    fn frames(&mut self) -> QueueFrames;
}
