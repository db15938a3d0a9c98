//! The frame I/O of a worker over **xsk-rs**, behind the same trait as ours.
//!
//! It shows what the trait asks of an implementation, and keeps ours honest: both pass the same conformance tests
//! (`tests/conformance.rs`) and stand in the same bench (`benches/io.rs`). The product does not use it, for three reasons:
//! xsk-rs cannot write TX metadata, so a pod's unfinished checksum would be summed by hand; it never gives back the frames that
//! a closed socket's rings hold (here they come back by our own book-keeping); and it pins an older libbpf.
//!
//! The memory is xsk-rs's; the tokens are ours, over that memory. xsk-rs gives out a descriptor for each chunk once and never
//! makes another, so there is a table of them, by chunk.

pub mod veth;

use std::ffi::CString;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

use podlane_dataplane::afxdp::{ClosedSocket, Frame, Piece, QueueFrames, QueueIo, Umem};
use podlane_dataplane::limits;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem as XskUmem};

/// Entries of each ring, as ours have.
const RING_ENTRIES: u32 = 2048;
/// The bit of a descriptor that says that the packet goes on in the next one (`linux/if_xdp.h`).
const XDP_PKT_CONTD: u32 = 1;
/// Transmit calls that one kick makes without progress before it leaves the rest for the next round, as ours does.
const IDLE_KICKS: u32 = 2;

/// Why a queue could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A size or name that xsk-rs does not take.
    #[error("xsk-rs refuses {0}")]
    Config(&'static str),
    /// The UMEM could not be made.
    #[error("xsk-rs cannot make the UMEM: {0}; is this root, and is the frame count a power of two?")]
    Umem(String),
    /// The socket could not be made.
    #[error("xsk-rs cannot open a socket on {interface}: {why}")]
    Socket {
        /// The interface.
        interface: String,
        /// xsk-rs's words.
        why: String,
    },
}

/// One queue of one interface.
#[derive(Debug)]
pub struct XskQueue {
    umem: Umem,
    memory: XskUmem,
    number: u16,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// By chunk: its descriptor as xsk-rs gave it out last.
    descriptors: Vec<FrameDesc>,
    /// What a call takes out of a ring, before it is sorted in.
    batch: Vec<FrameDesc>,
    /// Received descriptors whose packet is not whole yet or that nobody has asked for.
    pending: Vec<FrameDesc>,
    fill_outstanding: usize,
    tx_outstanding: usize,
}

impl XskQueue {
    /// Opens queue 0 of `interface` over a UMEM of `frames` chunks, a power of two; copy mode, need-wakeup, several pieces.
    pub fn open(interface: &str, frames: u32, number: u16) -> Result<(Self, Umem), OpenError> {
        let entries = QueueSize::new(RING_ENTRIES).map_err(|_| OpenError::Config("the size of the rings"))?;
        let chunk = FrameSize::new(limits::CHUNK_SIZE as u32).map_err(|_| OpenError::Config("the size of a chunk"))?;
        let config = UmemConfig::builder()
            .frame_size(chunk)
            .fill_queue_size(entries)
            .comp_queue_size(entries)
            .build()
            .map_err(|_| OpenError::Config("the UMEM's configuration"))?;
        let count = NonZeroU32::new(frames).ok_or(OpenError::Config("a UMEM without frames"))?;
        let (memory, mut descriptors) =
            XskUmem::new(config, count, false).map_err(|error| OpenError::Umem(error.to_string()))?;
        // SAFETY: nobody uses the frame yet, and the pointer is only counted back to the start of its chunk, the first.
        let first =
            unsafe { memory.data_mut(&mut descriptors[0]).contents_mut().as_mut_ptr().sub(limits::RX_HEADROOM) };
        let base = NonNull::new(first).ok_or(OpenError::Config("a UMEM at address 0"))?;
        // SAFETY: xsk-rs maps `frames` chunks of this size from `base` on, page-aligned, while a `memory` lives, and touches
        // their bytes only through the kernel, to which they are lent.
        let umem = unsafe { Umem::over(base, frames, Box::new(memory.clone())) }
            .map_err(|error| OpenError::Umem(error.to_string()))?;
        let config = SocketConfig::builder()
            .rx_queue_size(entries)
            .tx_queue_size(entries)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_USE_SG)
            .build();
        let refused = |why: String| OpenError::Socket { interface: interface.to_owned(), why };
        let name = CString::new(interface).map_err(|_| OpenError::Config("the interface's name"))?;
        // SAFETY: the only socket of this UMEM, and the descriptors that go through its rings are this UMEM's.
        let socket = unsafe { Socket::new(config, &memory, &Interface::new(name), 0) };
        let (tx, rx, rings) = socket.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            refused(format!("{error}{cause}"))
        })?;
        let (fill, completion) = rings.ok_or_else(|| refused("no fill and completion ring".to_owned()))?;
        let batch = vec![FrameDesc::default(); RING_ENTRIES as usize];
        let pending = Vec::with_capacity(2 * RING_ENTRIES as usize);
        let queue = XskQueue {
            umem: umem.clone(),
            memory,
            number,
            rx,
            tx,
            fill,
            completion,
            descriptors,
            batch,
            pending,
            fill_outstanding: 0,
            tx_outstanding: 0,
        };
        Ok((queue, umem))
    }

    /// The descriptor of its socket, for an XSKMAP.
    pub fn raw_fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    /// Closes it.
    pub fn close(self) -> ClosedSocket {
        let number = self.number;
        drop(self);
        // SAFETY: all four rings held the socket and are gone; closing waits for the kernel's receive path, and a packet
        // transmitted in copy mode was copied before.
        unsafe { ClosedSocket::assume(number) }
    }

    /// Takes what is in the RX ring out of it. xsk-rs cannot look at a ring without taking, so what belongs to a packet that
    /// is not whole, or was not asked for, waits with us.
    fn look(&mut self, most: usize) {
        let most = most.min(self.batch.len());
        // SAFETY: the descriptors that come out are this UMEM's, and the ones overwritten are only places for them.
        let count = unsafe { self.rx.consume(&mut self.batch[..most]) };
        self.pending.extend_from_slice(&self.batch[..count]);
    }

    /// The piece of a received descriptor, which is kept for the way out.
    fn received(&mut self, descriptor: FrameDesc) -> Option<Piece> {
        // SAFETY: it has come out of the RX ring.
        let (frame, offset) = unsafe { self.umem.return_lent(descriptor.addr() as u64, self.number) }?;
        self.descriptors[frame.index() as usize] = descriptor;
        self.fill_outstanding -= 1;
        let bytes = descriptor.lengths().data().min(limits::CHUNK_SIZE - usize::from(offset)) as u16;
        Some(Piece { frame, offset, bytes, more: descriptor.has_more_frames(), metadata: false })
    }

    /// The descriptor for a piece: its chunk's own, since xsk-rs makes none. Its address cannot be moved.
    fn describe(&mut self, piece: Piece) -> FrameDesc {
        let index = piece.frame.index() as usize;
        let address = self.umem.lend(piece.frame, self.number) + u64::from(piece.offset);
        let descriptor = &mut self.descriptors[index];
        assert_eq!(descriptor.addr() as u64, address, "xsk-rs sends a frame only from where it received");
        // SAFETY: the chunk is ours until the descriptor is in the ring.
        unsafe { self.memory.data_mut(descriptor) }.cursor().set_pos(usize::from(piece.bytes));
        descriptor.set_options(if piece.more { XDP_PKT_CONTD } else { 0 });
        *descriptor
    }
}

impl QueueIo for XskQueue {
    fn number(&self) -> u16 {
        self.number
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is open as long as the queue, which is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) })
    }

    fn ready(&mut self) -> bool {
        !self.pending.is_empty() || self.rx.nb_avail(1) != 0
    }

    fn receive(&mut self, max_packets: usize, out: &mut Vec<Piece>) -> usize {
        self.look(max_packets * limits::MAX_PIECES);
        let (mut packets, mut taken) = (0, 0);
        for (index, descriptor) in self.pending.iter().enumerate() {
            if packets == max_packets {
                break;
            }
            if !descriptor.has_more_frames() {
                packets += 1;
                taken = index + 1;
            }
        }
        for index in 0..taken {
            let piece = self.received(self.pending[index]);
            out.extend(piece);
        }
        self.pending.drain(..taken);
        packets
    }

    fn fill_space(&mut self) -> usize {
        self.fill.nb_free(RING_ENTRIES) as usize
    }

    fn fill(&mut self, frames: &mut Vec<Frame>, most: usize) {
        let count = most.min(frames.len()).min(self.fill.nb_free(most as u32) as usize);
        for (place, frame) in frames.drain(frames.len() - count..).enumerate() {
            self.batch[place] = self.descriptors[frame.index() as usize];
            self.umem.lend(frame, self.number);
        }
        // SAFETY: descriptors of this UMEM, of chunks that are lent to this queue.
        let filled = unsafe { self.fill.produce(&self.batch[..count]) };
        assert_eq!(filled, count, "there was room");
        self.fill_outstanding += count;
    }

    fn fill_outstanding(&self) -> usize {
        self.fill_outstanding
    }

    fn transmit(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let count = pieces.len();
        if (self.tx.nb_free(count as u32) as usize) < count {
            return false;
        }
        for (place, piece) in pieces.drain(..).enumerate() {
            self.batch[place] = self.describe(piece);
        }
        // SAFETY: descriptors of this UMEM, of chunks that are lent to this queue.
        let queued = unsafe { self.tx.produce(&self.batch[..count]) };
        assert_eq!(queued, count, "there was room");
        self.tx_outstanding += count;
        true
    }

    fn kick(&mut self) -> u32 {
        let (mut calls, mut idle) = (0, 0);
        let mut before = self.tx_unsent();
        while before != 0 && idle < IDLE_KICKS {
            calls += 1;
            if self.tx.wakeup().is_err() {
                break;
            }
            let after = self.tx_unsent();
            idle = if after == before { idle + 1 } else { 0 };
            before = after;
        }
        calls
    }

    fn tx_unsent(&mut self) -> usize {
        (RING_ENTRIES - self.tx.nb_free_exact()) as usize
    }

    fn tx_outstanding(&self) -> usize {
        self.tx_outstanding
    }

    fn complete(&mut self, out: &mut Vec<Frame>) {
        // SAFETY: as in `look`.
        let count = unsafe { self.completion.consume(&mut self.batch) };
        for index in 0..count {
            let descriptor = self.batch[index];
            // SAFETY: it has come out of the completion ring.
            if let Some((frame, _)) = unsafe { self.umem.return_lent(descriptor.addr() as u64, self.number) } {
                self.descriptors[frame.index() as usize] = descriptor;
                self.tx_outstanding -= 1;
                out.push(frame);
            }
        }
    }

    fn wake_fill(&mut self) -> u32 {
        if !self.fill.needs_wakeup() {
            return 0;
        }
        // A failure means that the device is down: there is nobody to wake.
        let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        1
    }

    fn checksum_metadata(&self) -> bool {
        false
    }

    fn frames(&mut self) -> QueueFrames {
        let rx = self.rx.nb_avail_exact() as usize + self.pending.len();
        QueueFrames { fill: (self.fill_outstanding - rx) as u64, rx: rx as u64, tx: self.tx_outstanding as u64 }
    }
}
