//! The UMEM: the memory that all sockets share, cut into chunks of one page, and the tokens that stand for them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use super::sys::{self, Mapping, TX_METADATA_BYTES, XskTxMetadata};
use super::{Piece, QueueFrames};
use crate::limits;

/// The token of one UMEM chunk: who holds it owns the bytes. It cannot be copied, and only [`Umem::take_frames`] and the
/// rings make one.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped frame is leaked: nobody can use its memory any more"]
pub struct Frame(u32);

impl Frame {
    /// The chunk's number, below the UMEM's frame count.
    #[inline]
    pub fn index(&self) -> u32 {
        self.0
    }
}

/// The memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// The number of frames is 0 or not a power of two.
    #[error("{0} UMEM frames; use a power of two, for example 16384")]
    BadFrameCount(u32),
    /// `mmap` failed.
    #[error("cannot map {mib} MiB for the UMEM: {source}; lower `frames` or free memory")]
    Memory {
        /// What was asked for.
        mib: usize,
        /// Why not.
        source: io::Error,
    },
}

/// The place of a frame that is with no socket: free list, hands, or hand-off ring.
const WITH_WORKERS: u16 = 0;

/// The memory, shared by all workers and sockets. Cloning it clones a reference.
#[derive(Clone, Debug)]
pub struct Umem {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    memory: Mapping,
    frames: u32,
    /// Which socket a frame was given to (its number plus one), or [`WITH_WORKERS`]. Written only by the holder of the
    /// token; read by [`Umem::reclaim`] after the socket is closed.
    places: Box<[AtomicU16]>,
    taken: AtomicBool,
    /// Whether sockets accept TX metadata; known when the first socket has registered the memory.
    metadata: AtomicBool,
}

impl Umem {
    /// Maps memory for `frames` chunks of [`limits::CHUNK_SIZE`].
    pub fn new(frames: u32) -> Result<Self, UmemError> {
        if !frames.is_power_of_two() {
            return Err(UmemError::BadFrameCount(frames));
        }
        let bytes = frames as usize * limits::CHUNK_SIZE;
        let memory = Mapping::anonymous(bytes).map_err(|source| UmemError::Memory { mib: bytes >> 20, source })?;
        Ok(Self::of(memory, frames))
    }

    fn of(memory: Mapping, frames: u32) -> Self {
        let places = (0..frames).map(|_| AtomicU16::new(WITH_WORKERS)).collect();
        let taken = AtomicBool::new(false);
        Umem { inner: Arc::new(Inner { memory, frames, places, taken, metadata: AtomicBool::new(false) }) }
    }

    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        self.inner.frames
    }

    /// The tokens of all frames, in order. They exist once: a second call returns none.
    pub fn take_frames(&self) -> Vec<Frame> {
        if self.inner.taken.swap(true, Ordering::AcqRel) {
            Vec::new()
        } else {
            (0..self.inner.frames).map(Frame).collect()
        }
    }

    /// Access to the bytes, for one worker.
    pub fn memory(&self) -> FrameMemory {
        FrameMemory { umem: self.clone() }
    }

    /// Whether sockets of this UMEM accept TX metadata.
    pub fn metadata(&self) -> bool {
        self.inner.metadata.load(Ordering::Acquire)
    }

    /// After socket `socket` was closed: the tokens of all frames that it was given and did not return, appended to `out`.
    ///
    /// The kernel gives no frame back from a closed socket's rings, so this is the only way to get them. Closing waits for
    /// the kernel's receive path (`xsk_unbind_dev` → `synchronize_net`, `net/xdp/xsk.c`), so no frame is written to afterwards;
    /// with zero-copy it waits for the driver besides. Nor is any sent from: what the kernel did not take goes with the socket,
    /// and what it took in copy mode was copied before or has left ([`super::Socket::close`]).
    pub fn reclaim(&self, closed: ClosedSocket, out: &mut Vec<Frame>) {
        let place = closed.0 + 1;
        for (index, slot) in self.inner.places.iter().enumerate() {
            if slot.load(Ordering::Acquire) == place {
                slot.store(WITH_WORKERS, Ordering::Release);
                out.push(Frame(index as u32));
            }
        }
    }

    /// Pretends that sockets accept TX metadata, or not.
    #[cfg(test)]
    pub(crate) fn set_metadata_for_tests(&self, supported: bool) {
        self.set_metadata(supported);
    }

    pub(super) fn set_metadata(&self, supported: bool) {
        self.inner.metadata.store(supported, Ordering::Release);
    }

    pub(super) fn address(&self) -> u64 {
        self.inner.memory.base().as_ptr() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.inner.memory.bytes() as u64
    }

    /// Starts to bring the first bytes of a piece into the cache.
    #[inline]
    pub(super) fn prefetch(&self, piece: &Piece) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = piece.frame.0 as usize * limits::CHUNK_SIZE + usize::from(piece.offset);
            // SAFETY: only a hint, which faults on no address; this one lies in the mapping besides.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.inner.memory.base().as_ptr().add(start).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = piece;
    }

    /// Gives a token to a socket: it becomes the address that goes into a ring.
    #[inline]
    pub(super) fn give(&self, frame: Frame, socket: u16) -> u64 {
        self.inner.places[frame.0 as usize].store(socket + 1, Ordering::Release);
        u64::from(frame.0) * limits::CHUNK_SIZE as u64
    }

    /// Takes a token back for an address that came out of a socket's ring, with the offset into the chunk. `None` for an
    /// address that was not given to this socket: the kernel's word is checked, so that no token can ever exist twice.
    #[inline]
    pub(super) fn take_back(&self, address: u64, socket: u16) -> Option<(Frame, u16)> {
        let index = usize::try_from(address / limits::CHUNK_SIZE as u64).ok()?;
        let place = self.inner.places.get(index)?;
        if place.load(Ordering::Relaxed) != socket + 1 {
            return None;
        }
        place.store(WITH_WORKERS, Ordering::Relaxed);
        Some((Frame(index as u32), (address % limits::CHUNK_SIZE as u64) as u16))
    }
}

/// For other implementations of [`super::QueueIo`], whose rings the tokens pass through as numbers.
#[cfg(feature = "bench")]
impl Umem {
    /// A UMEM of `frames` chunks, a power of two, from `base` on, that another library has registered with the kernel.
    ///
    /// # Safety
    /// The chunks are mapped, aligned to [`limits::CHUNK_SIZE`], and touched by nobody else, while `owner` lives.
    pub unsafe fn over(
        base: std::ptr::NonNull<u8>,
        frames: u32,
        owner: Box<dyn std::any::Any + Send + Sync>,
    ) -> Result<Self, UmemError> {
        if !frames.is_power_of_two() {
            return Err(UmemError::BadFrameCount(frames));
        }
        // SAFETY: as the caller promises.
        let memory = unsafe { Mapping::foreign(base, frames as usize * limits::CHUNK_SIZE, owner) };
        Ok(Self::of(memory, frames))
    }

    /// Gives a token to queue `number`: its chunk's address in the UMEM, to be put into a ring.
    #[inline]
    pub fn lend(&self, frame: Frame, number: u16) -> u64 {
        self.give(frame, number)
    }

    /// The token, and the offset into its chunk, for an address that came out of a ring of queue `number`. `None` for one that
    /// was not lent to it.
    ///
    /// # Safety
    /// The address has just come out of an RX or completion ring: the kernel does not touch the chunk any more.
    #[inline]
    pub unsafe fn return_lent(&self, address: u64, number: u16) -> Option<(Frame, u16)> {
        self.take_back(address, number)
    }
}

#[cfg(feature = "bench")]
impl ClosedSocket {
    /// Says that queue `number` is closed.
    ///
    /// # Safety
    /// It is: the kernel touches none of the chunks that were lent to it.
    pub unsafe fn assume(number: u16) -> Self {
        ClosedSocket(number)
    }
}

/// Proof that a socket was closed; only closing one makes it.
#[derive(Debug)]
#[must_use = "the socket's frames are lost until they are reclaimed"]
pub struct ClosedSocket(pub(super) u16);

/// Access to the bytes of frames whose token one holds.
#[derive(Clone, Debug)]
pub struct FrameMemory {
    umem: Umem,
}

impl FrameMemory {
    /// The bytes of a piece.
    ///
    /// # Panics
    /// If the piece reaches beyond its chunk, which only a wrong offset written by our own code could cause.
    #[inline]
    pub fn bytes<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        let (start, bytes) = self.range(piece.frame.0, piece.offset, piece.bytes);
        // SAFETY: inside of the mapping (checked by `range`), which lives as long as `self`; the piece's token proves that
        // neither the kernel nor another thread writes to it, and the shared borrow of the piece that we do not either.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }

    /// The bytes of a piece, to be changed.
    ///
    /// # Panics
    /// As [`FrameMemory::bytes`].
    #[inline]
    pub fn bytes_mut<'a>(&'a self, piece: &'a mut Piece) -> &'a mut [u8] {
        let (start, bytes) = self.range(piece.frame.0, piece.offset, piece.bytes);
        // SAFETY: as in `bytes`; the exclusive borrow of the one token of this chunk makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// Asks whoever transmits the packet to finish its L4 checksum: writes TX metadata in front of `piece`, which is the
    /// packet's first. `start` and `offset` are where the summed bytes begin in the packet and, from there, where the
    /// checksum field is, in bytes (`Documentation/networking/xsk-tx-metadata.rst`). Returns false, and changes nothing,
    /// when there is no room in front of the packet.
    #[inline]
    pub fn request_checksum(&self, piece: &mut Piece, start: u16, offset: u16) -> bool {
        let Some(metadata_at) = usize::from(piece.offset).checked_sub(TX_METADATA_BYTES) else {
            return false;
        };
        if metadata_at % 8 != 0 {
            return false;
        }
        let metadata = XskTxMetadata {
            flags: sys::XDP_TXMD_FLAGS_CHECKSUM,
            csum_start: start,
            csum_offset: offset,
            padding: 0,
            launch_time: 0,
        };
        let (at, _) = self.range(piece.frame.0, metadata_at as u16, TX_METADATA_BYTES as u16);
        // SAFETY: inside of the chunk, 8-byte aligned (chunks are page-aligned), and ours by the token.
        unsafe { at.cast::<XskTxMetadata>().write(metadata) };
        piece.metadata = true;
        true
    }

    /// Takes back what [`FrameMemory::request_checksum`] asked for, for a socket that cannot be asked: where the summed
    /// bytes begin in the packet and, from there, where the checksum field is. `None` if nothing was asked for.
    pub fn withdraw_request(&self, piece: &mut Piece) -> Option<(u16, u16)> {
        if !std::mem::take(&mut piece.metadata) {
            return None;
        }
        let metadata_at = usize::from(piece.offset).checked_sub(TX_METADATA_BYTES)?;
        let (at, _) = self.range(piece.frame.0, metadata_at as u16, TX_METADATA_BYTES as u16);
        // SAFETY: inside of the chunk, aligned as it was for `request_checksum`, which wrote it and alone sets the mark that
        // was just taken away; ours by the token.
        let metadata = unsafe { at.cast::<XskTxMetadata>().read() };
        Some((metadata.csum_start, metadata.csum_offset))
    }

    /// Start and length of a range inside of a chunk.
    #[inline]
    fn range(&self, frame: u32, offset: u16, bytes: u16) -> (*mut u8, usize) {
        let (offset, bytes) = (usize::from(offset), usize::from(bytes));
        assert!(offset + bytes <= limits::CHUNK_SIZE && frame < self.umem.inner.frames);
        let start = frame as usize * limits::CHUNK_SIZE + offset;
        // SAFETY: the chunk lies in the mapping, since `frame` is below the frame count.
        (unsafe { self.umem.inner.memory.base().as_ptr().add(start) }, bytes)
    }
}

impl std::ops::AddAssign for QueueFrames {
    fn add_assign(&mut self, other: Self) {
        self.fill += other.fill;
        self.rx += other.rx;
        self.tx += other.tx;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_exist_once_and_come_back_only_from_where_they_went() {
        let umem = Umem::new(8).unwrap();
        let mut frames = umem.take_frames();
        assert_eq!(frames.len(), 8);
        assert!(umem.take_frames().is_empty());
        let address = umem.give(frames.pop().unwrap(), 3);
        assert_eq!(umem.take_back(address + 256, 4), None, "another socket cannot return it");
        let (frame, offset) = umem.take_back(address + 256, 3).unwrap();
        assert_eq!((frame.index(), offset), (7, 256));
        assert_eq!(umem.take_back(address, 3), None, "it cannot come back twice");
        assert_eq!(umem.take_back(u64::MAX, 3), None);
    }

    #[test]
    fn a_closed_socket_gives_its_frames_back_once() {
        let umem = Umem::new(8).unwrap();
        for frame in umem.take_frames() {
            let socket = u16::from(frame.index() % 2 == 0);
            umem.give(frame, socket);
        }
        let mut back = Vec::new();
        umem.reclaim(ClosedSocket(1), &mut back);
        assert_eq!(back.iter().map(Frame::index).collect::<Vec<_>>(), [0, 2, 4, 6]);
        umem.reclaim(ClosedSocket(1), &mut back);
        assert_eq!(back.len(), 4);
    }

    #[test]
    fn metadata_needs_room() {
        let umem = Umem::new(2).unwrap();
        let memory = umem.memory();
        let frame = umem.take_frames().pop().unwrap();
        let mut piece = Piece { frame, offset: 8, bytes: 60, more: false, metadata: false };
        assert!(!memory.request_checksum(&mut piece, 34, 16));
        piece.offset = 256;
        assert!(memory.request_checksum(&mut piece, 34, 16) && piece.metadata);
        piece.offset = (256 - TX_METADATA_BYTES) as u16;
        assert_eq!(memory.bytes(&piece)[..12], [2, 0, 0, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
    }

    #[test]
    fn bad_frame_counts_are_refused() {
        assert!(matches!(Umem::new(0), Err(UmemError::BadFrameCount(0))));
        assert!(matches!(Umem::new(1000), Err(UmemError::BadFrameCount(1000))));
    }
}
