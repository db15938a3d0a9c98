//! One queue of one interface, with its four rings.
//!
//! A queue is two sockets that share fill and completion ring: one receives, one transmits. One could do both, but a worker
//! sleeps on the receiving one by epoll, and the kernel tells a socket's sleepers of every packet that it has finished
//! sending (`sock_wfree` → `sk_write_space`, `net/core/sock.c`): the second socket has none, which saves some 5 % of the
//! cost of a packet.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::ring::{Consumer, Producer};
use super::sys::{self, Mapping};
use super::umem::{ClosedSocket, Frame, Umem};
use super::{Piece, QueueFrames, QueueIo};
use crate::limits;

/// Entries of each of the four rings of a socket.
pub const RING_ENTRIES: u32 = 2048;
/// Packets per transmit call in copy mode, where the kernel lets us choose (6.17 and later).
const TX_BUDGET: u32 = 256;
/// Bytes that the kernel may hold in socket buffers for packets on their way out; the default carries only three packets
/// of 64 KiB.
const SEND_BUFFER_BYTES: libc::c_int = 8 << 20;
/// Transmit calls that one kick makes without progress before it leaves the rest for the next round.
const IDLE_KICKS: u32 = 2;
/// How often is looked whether a driver has let go of a socket's memory.
const RELEASE_ATTEMPTS: u32 = 250;
/// The pause in between.
const RELEASE_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// What to ask of the kernel at bind.
#[derive(Clone, Copy, Debug)]
pub struct BindOptions {
    /// Ask for TX metadata when this is the socket that registers the UMEM.
    pub checksum_metadata: bool,
}

/// What the socket became.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XskMode {
    /// The driver reads and writes the UMEM itself.
    pub zero_copy: bool,
    /// Packets may be spread over several frames.
    pub multi_buffer: bool,
    /// TX metadata is accepted.
    pub checksum_metadata: bool,
}

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what} failed for AF_XDP on interface index {ifindex} queue {queue}: {source}{cure}")]
pub struct BindError {
    /// The step.
    pub what: &'static str,
    /// The interface.
    pub ifindex: u32,
    /// The queue.
    pub queue: u32,
    /// The kernel's answer.
    pub source: io::Error,
    cure: &'static str,
}

impl BindError {
    fn new(what: &'static str, ifindex: u32, queue: u32, source: io::Error) -> Self {
        let cure = match source.raw_os_error() {
            Some(libc::EBUSY) => "; another AF_XDP socket holds this queue: stop its owner",
            Some(libc::EPERM) => "; the capability CAP_NET_RAW is needed",
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                "; raise the locked-memory limit (LimitMEMLOCK=infinity) or lower `frames`"
            }
            Some(libc::EAFNOSUPPORT) => "; the kernel lacks CONFIG_XDP_SOCKETS",
            _ => "",
        };
        BindError { what, ifindex, queue, source, cure }
    }

    /// Whether trying again a little later may help: a socket on this queue is still being closed.
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EBUSY)
    }

    /// Whether it is the driver that says no, so that copy mode may do: not for want of privileges or memory, nor because
    /// the queue is taken or the interface down or gone.
    pub fn is_the_drivers(&self) -> bool {
        let others = [libc::EBUSY, libc::EPERM, libc::ENETDOWN, libc::ENODEV];
        self.source.raw_os_error().is_none_or(|error| !others.contains(&error))
    }
}

/// A descriptor of the socket for those who do not move frames: to put it into an XSKMAP, to read its statistics, and to
/// share its UMEM.
#[derive(Clone, Debug)]
pub struct SocketHandle {
    fd: Arc<OwnedFd>,
}

impl AsFd for SocketHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel dropped between the XDP program and the rings (`struct xdp_statistics`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketStatistics {
    /// Packets lost because there was no frame in the fill ring (or the packet did not fit).
    pub rx_dropped: u64,
    /// Packets lost because the RX ring was full.
    pub rx_ring_full: u64,
}

impl SocketHandle {
    /// Reads the statistics; zeros if the kernel refuses, as it does for a socket whose device is gone.
    pub fn statistics(&self) -> SocketStatistics {
        let zero = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        sys::get_option(self.fd.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, zero).map_or_else(
            |_| SocketStatistics::default(),
            |raw| SocketStatistics { rx_dropped: raw.rx_dropped, rx_ring_full: raw.rx_ring_full },
        )
    }
}

/// A bound queue with its rings.
#[derive(Debug)]
pub struct Socket {
    /// The socket that receives; the one that the XSKMAP and others know.
    fd: Arc<OwnedFd>,
    /// The socket that transmits.
    tx_fd: OwnedFd,
    /// Interface and queue.
    place: (u32, u32),
    /// Our number for it, below `u16::MAX`; unique among the open sockets of the UMEM.
    number: u16,
    umem: Umem,
    mode: XskMode,
    rx: Consumer<libc::xdp_desc>,
    tx: Producer<libc::xdp_desc>,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    fill_outstanding: usize,
    tx_outstanding: usize,
}

impl Socket {
    /// Registers `umem` with the kernel through a new socket and binds it: the anchor, whose device must outlive all other
    /// sockets, since each of them shares the memory by naming it.
    ///
    /// The anchor decides for all: copy mode, need-wakeup, and multi-buffer and TX metadata where the kernel has them.
    pub fn bind_anchor(
        umem: &Umem,
        ifindex: u32,
        queue: u32,
        number: u16,
        options: BindOptions,
    ) -> Result<Self, BindError> {
        let fd = new_fd(ifindex, queue)?;
        let metadata = register(umem, fd.as_fd(), options.checksum_metadata)
            .map_err(|source| BindError::new("registering the UMEM", ifindex, queue, source))?;
        umem.set_metadata(metadata);
        let plain = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;
        let explain = |(what, source)| BindError::new(what, ifindex, queue, source);
        let rings = ReceiveRings::new(fd.as_fd()).map_err(explain)?;
        let multi_buffer = match bind(fd.as_fd(), ifindex, queue, plain | sys::XDP_USE_SG, None) {
            Ok(()) => true,
            // Kernels before 6.6 do not know the flag.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                bind(fd.as_fd(), ifindex, queue, plain, None)
                    .map_err(|source| BindError::new("bind", ifindex, queue, source))?;
                false
            }
            Err(source) => return Err(BindError::new("bind", ifindex, queue, source)),
        };
        let mode = XskMode { zero_copy: false, multi_buffer, checksum_metadata: metadata };
        Self::assemble(fd, ifindex, queue, number, umem, mode, rings)
    }

    /// Binds a socket whose frames the driver itself reads and writes. The first of an interface registers `umem` once
    /// more, as a UMEM of that interface's own; the others share it by naming the first (`share`).
    ///
    /// The kernel has all sockets of one UMEM in one mode, so the memory that copy-mode sockets use is registered again.
    /// What counts for ownership is the token: a frame is an address in the same pages for both, and goes from one to the
    /// other without being copied. A UMEM for each interface needs no anchor: it goes with the interface.
    ///
    /// # Errors
    /// [`BindError::is_the_drivers`] if the driver cannot do it.
    pub fn bind_zero_copy(
        umem: &Umem,
        share: Option<(&SocketHandle, XskMode)>,
        ifindex: u32,
        queue: u32,
        number: u16,
    ) -> Result<Self, BindError> {
        if let Some((first, mode)) = share {
            return Self::bind_shared(umem, first, mode, ifindex, queue, number);
        }
        let flags = libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP;
        match Self::bind_first_zero_copy(umem, flags | sys::XDP_USE_SG, ifindex, queue, number) {
            // Kernels before 6.6 do not know the flag, and some drivers have zero-copy for frames of one piece only.
            Err(error) if matches!(error.source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                Self::bind_first_zero_copy(umem, flags, ifindex, queue, number)
            }
            bound => bound,
        }
    }

    fn bind_first_zero_copy(umem: &Umem, flags: u16, ifindex: u32, queue: u32, number: u16) -> Result<Self, BindError> {
        let fd = new_fd(ifindex, queue)?;
        let explain = |(what, source)| BindError::new(what, ifindex, queue, source);
        // Few drivers finish checksums for AF_XDP; a worker does it before the packet gets here.
        register(umem, fd.as_fd(), false).map_err(|source| explain(("registering the UMEM for zero-copy", source)))?;
        let rings = ReceiveRings::new(fd.as_fd()).map_err(explain)?;
        bind(fd.as_fd(), ifindex, queue, flags, None).map_err(|source| explain(("zero-copy bind", source)))?;
        let multi_buffer = flags & sys::XDP_USE_SG != 0;
        let mode = XskMode { zero_copy: true, multi_buffer, checksum_metadata: false };
        Self::assemble(fd, ifindex, queue, number, umem, mode, rings)
    }

    /// Binds another socket that shares the anchor's memory and mode.
    pub fn bind_shared(
        umem: &Umem,
        anchor: &SocketHandle,
        mode: XskMode,
        ifindex: u32,
        queue: u32,
        number: u16,
    ) -> Result<Self, BindError> {
        let fd = new_fd(ifindex, queue)?;
        let explain = |(what, source)| BindError::new(what, ifindex, queue, source);
        let rings = ReceiveRings::new(fd.as_fd()).map_err(explain)?;
        bind(fd.as_fd(), ifindex, queue, libc::XDP_SHARED_UMEM, Some(anchor.fd.as_raw_fd()))
            .map_err(|source| BindError::new("bind", ifindex, queue, source))?;
        Self::assemble(fd, ifindex, queue, number, umem, mode, rings)
    }

    /// Adds the transmitting socket to a bound receiving one: naming that shares its fill and completion ring.
    fn assemble(
        fd: OwnedFd,
        ifindex: u32,
        queue: u32,
        number: u16,
        umem: &Umem,
        mode: XskMode,
        rings: ReceiveRings,
    ) -> Result<Self, BindError> {
        let tx_fd = new_fd(ifindex, queue)?;
        let tx = transmit_ring(tx_fd.as_fd()).map_err(|(what, source)| BindError::new(what, ifindex, queue, source))?;
        bind(tx_fd.as_fd(), ifindex, queue, libc::XDP_SHARED_UMEM, Some(fd.as_raw_fd()))
            .map_err(|source| BindError::new("bind for transmission", ifindex, queue, source))?;
        // Both are improvements that a kernel may lack; the transmit loop works without them.
        let _ = sys::set_option(tx_fd.as_fd(), libc::SOL_XDP, sys::XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let _ = sys::set_option(tx_fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES);
        Ok(Socket {
            fd: Arc::new(fd),
            tx_fd,
            place: (ifindex, queue),
            number,
            umem: umem.clone(),
            mode,
            rx: rings.rx,
            tx,
            fill: rings.fill,
            completion: rings.completion,
            fill_outstanding: 0,
            tx_outstanding: 0,
        })
    }

    /// Puts one piece into the TX ring, which has room for it.
    #[inline]
    fn describe(&mut self, piece: Piece) {
        let more = if piece.more { sys::XDP_PKT_CONTD } else { 0 };
        let metadata = if piece.metadata { sys::XDP_TX_METADATA } else { 0 };
        let addr = self.umem.give(piece.frame, self.number) + u64::from(piece.offset);
        self.tx.push(libc::xdp_desc { addr, len: u32::from(piece.bytes), options: more | metadata });
    }

    /// What the socket became.
    pub fn mode(&self) -> XskMode {
        self.mode
    }

    /// A handle for the control side. While one exists the socket stays open.
    pub fn handle(&self) -> SocketHandle {
        SocketHandle { fd: Arc::clone(&self.fd) }
    }

    /// Closes the socket, which must be the last that holds it open. Waits for the kernel's receive path, some
    /// milliseconds, with zero-copy until the driver has let go of the memory, and in copy mode until what was transmitted has
    /// left, half a second at most each: not for a worker thread.
    ///
    /// `is_veth`: the interface is a veth, whose packets are copies. With some drivers the kernel sends from the memory itself in
    /// copy mode as well (`IFF_TX_SKB_NO_LINEAR`, as virtio_net has it; `xsk_build_skb_zerocopy`, `net/xdp/xsk.c`), and nobody
    /// can ask which they are. A veth is not waited for because its other end may hold a packet for as long as it likes.
    ///
    /// The proof that is returned gets the frames back ([`Umem::reclaim`]).
    ///
    /// # Errors
    /// [`CloseError`]; the frames must not be used again then.
    pub fn close(mut self, is_veth: bool) -> Result<ClosedSocket, CloseError> {
        if Arc::strong_count(&self.fd) > 1 {
            return Err(CloseError::Held);
        }
        let has_left = self.mode.zero_copy || is_veth || comes_true(|| self.in_flight() == 0);
        let (number, zero_copy, (ifindex, queue)) = (self.number, self.mode.zero_copy, self.place);
        drop(self);
        if !has_left || zero_copy && !driver_let_go(ifindex, queue) {
            return Err(CloseError::NotReleased);
        }
        Ok(ClosedSocket(number))
    }

    /// Frames that the kernel has taken from the TX ring and is not done with.
    fn in_flight(&mut self) -> usize {
        let waiting = self.tx.pending() + self.completion.available(RING_ENTRIES);
        self.tx_outstanding.saturating_sub(waiting as usize)
    }
}

/// A socket's frames cannot be had back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseError {
    /// A [`SocketHandle`] exists.
    #[error("a handle of it is still held")]
    Held,
    /// The driver may still write to its frames, or send from them.
    #[error("the driver has not let go of its memory")]
    NotReleased,
}

/// Waits until the driver of a queue has given up the memory of a zero-copy socket that was closed, half a second at most.
///
/// Closing leaves that to a work queue (`xp_put_pool`, `net/xdp/xsk_buff_pool.c`), and until it has run the card may write
/// to frames in its fill ring. The queue is taken for so long, and the kernel frees it as the last step (`xp_clear_dev`):
/// so a bind that is not `EBUSY` shows that it is over. With the interface gone the kernel did it at once.
fn driver_let_go(ifindex: u32, queue: u32) -> bool {
    comes_true(|| match probe_queue(ifindex, queue) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    })
}

/// Waits until something is true, half a second at most; whether it is.
fn comes_true(mut is_true: impl FnMut() -> bool) -> bool {
    for _ in 0..RELEASE_ATTEMPTS {
        if is_true() {
            return true;
        }
        std::thread::sleep(RELEASE_PAUSE);
    }
    false
}

/// Binds a socket with memory of its own to a queue, in copy mode, which asks nothing of the driver.
fn probe_queue(ifindex: u32, queue: u32) -> io::Result<()> {
    let umem = Umem::new(1).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let fd = sys::socket()?;
    register(&umem, fd.as_fd(), false)?;
    make_rings(fd.as_fd(), &[libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING])
        .map_err(|(_, error)| error)?;
    bind(fd.as_fd(), ifindex, queue, libc::XDP_COPY, None)
}

impl QueueIo for Socket {
    fn number(&self) -> u16 {
        self.number
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    #[inline]
    fn ready(&mut self) -> bool {
        self.rx.available(1) != 0
    }

    #[inline]
    fn receive(&mut self, max_packets: usize, out: &mut Vec<Piece>) -> usize {
        let available = self.rx.available(1);
        self.rx.prefetch(available.min(max_packets as u32));
        let (mut packets, mut taken, mut ahead) = (0, 0, 0);
        // `taken` only moves past whole packets: the tail of one that is still being written stays in the ring.
        while ahead < available && packets < max_packets {
            let last = self.rx.peek(ahead).options & sys::XDP_PKT_CONTD == 0;
            ahead += 1;
            if last {
                packets += 1;
                taken = ahead;
            }
        }
        for ahead in 0..taken {
            let descriptor = self.rx.peek(ahead);
            if let Some((frame, offset)) = self.umem.take_back(descriptor.addr, self.number) {
                let bytes = descriptor.len.min(limits::CHUNK_SIZE as u32 - u32::from(offset)) as u16;
                let more = descriptor.options & sys::XDP_PKT_CONTD != 0;
                let piece = Piece { frame, offset, bytes, more, metadata: false };
                // The bytes were written by another core; fetching a whole batch at once hides the wait for each.
                self.umem.prefetch(&piece);
                out.push(piece);
                self.fill_outstanding -= 1;
            }
        }
        self.rx.release(taken);
        packets
    }

    fn fill_space(&mut self) -> usize {
        self.fill.space(RING_ENTRIES) as usize
    }

    #[inline]
    fn fill(&mut self, frames: &mut Vec<Frame>, most: usize) {
        let count = most.min(frames.len()).min(self.fill.space(most as u32) as usize);
        for frame in frames.drain(frames.len() - count..) {
            let address = self.umem.give(frame, self.number);
            self.fill.push(address);
        }
        self.fill.publish();
        self.fill_outstanding += count;
    }

    #[inline]
    fn fill_outstanding(&self) -> usize {
        self.fill_outstanding
    }

    #[inline]
    fn transmit(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let count = pieces.len() as u32;
        if self.tx.space(count) < count {
            return false;
        }
        match pieces.len() {
            // Nearly all packets; taking one off is a tenth of the work of draining a list.
            1 => pieces.pop().into_iter().for_each(|piece| self.describe(piece)),
            _ => pieces.drain(..).for_each(|piece| self.describe(piece)),
        }
        self.tx_outstanding += count as usize;
        true
    }

    fn kick(&mut self) -> u32 {
        self.tx.publish();
        let (mut calls, mut idle) = (0, 0);
        let mut before = self.tx.pending();
        while before != 0 && idle < IDLE_KICKS {
            if self.mode.zero_copy && !self.tx.needs_wakeup() {
                break;
            }
            calls += 1;
            let result = sys::send_wakeup(self.tx_fd.as_fd());
            let after = self.tx.pending();
            let again = match result {
                Ok(()) => true,
                Err(error) => matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR | libc::EINVAL)
                ),
            };
            if !again || self.mode.zero_copy {
                // The device is down or gone; what is queued waits for it, or for the port's removal. A driver with
                // zero-copy was told and sends in its own time.
                break;
            }
            idle = if after == before { idle + 1 } else { 0 };
            before = after;
        }
        calls
    }

    #[inline]
    fn tx_unsent(&mut self) -> usize {
        self.tx.pending() as usize
    }

    #[inline]
    fn tx_outstanding(&self) -> usize {
        self.tx_outstanding
    }

    #[inline]
    fn complete(&mut self, out: &mut Vec<Frame>) {
        let count = self.completion.available(1);
        for ahead in 0..count {
            if let Some((frame, _)) = self.umem.take_back(self.completion.peek(ahead), self.number) {
                out.push(frame);
                self.tx_outstanding -= 1;
            }
        }
        if count != 0 {
            self.completion.release(count);
        }
    }

    #[inline]
    fn wake_fill(&mut self) -> u32 {
        if !self.fill.needs_wakeup() {
            return 0;
        }
        // A failure means that the device is down: there is nobody to wake.
        let _ = sys::receive_wakeup(self.fd.as_fd());
        1
    }

    fn checksum_metadata(&self) -> bool {
        self.mode.checksum_metadata
    }

    fn frames(&mut self) -> QueueFrames {
        let rx = u64::from(self.rx.available(RING_ENTRIES)).min(self.fill_outstanding as u64);
        QueueFrames { fill: self.fill_outstanding as u64 - rx, rx, tx: self.tx_outstanding as u64 }
    }
}

/// The rings of the receiving socket, mapped; the completion ring is shared with the transmitting one.
struct ReceiveRings {
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    completion: Consumer<u64>,
}

/// Bytes of a descriptor, and of an address in the fill and completion rings.
const DESCRIPTOR: usize = std::mem::size_of::<libc::xdp_desc>();
const ADDRESS: usize = std::mem::size_of::<u64>();

impl ReceiveRings {
    fn new(fd: BorrowedFd<'_>) -> Result<Self, (&'static str, io::Error)> {
        make_rings(fd, &[libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING])?;
        let at = offsets(fd)?;
        let rx = map_ring(fd, &at.rx, DESCRIPTOR, libc::XDP_PGOFF_RX_RING as u64)?;
        let fill = map_ring(fd, &at.fr, ADDRESS, libc::XDP_UMEM_PGOFF_FILL_RING)?;
        let completion = map_ring(fd, &at.cr, ADDRESS, libc::XDP_UMEM_PGOFF_COMPLETION_RING)?;
        Ok(ReceiveRings {
            rx: Consumer::new(rx, &at.rx, RING_ENTRIES),
            fill: Producer::new(fill, &at.fr, RING_ENTRIES),
            completion: Consumer::new(completion, &at.cr, RING_ENTRIES),
        })
    }
}

fn transmit_ring(fd: BorrowedFd<'_>) -> Result<Producer<libc::xdp_desc>, (&'static str, io::Error)> {
    make_rings(fd, &[libc::XDP_TX_RING])?;
    let at = offsets(fd)?;
    let tx = map_ring(fd, &at.tx, DESCRIPTOR, libc::XDP_PGOFF_TX_RING as u64)?;
    Ok(Producer::new(tx, &at.tx, RING_ENTRIES))
}

fn make_rings(fd: BorrowedFd<'_>, names: &[libc::c_int]) -> Result<(), (&'static str, io::Error)> {
    for name in names {
        sys::set_option(fd, libc::SOL_XDP, *name, &RING_ENTRIES).map_err(|error| ("making the rings", error))?;
    }
    Ok(())
}

fn offsets(fd: BorrowedFd<'_>) -> Result<libc::xdp_mmap_offsets, (&'static str, io::Error)> {
    let none = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let zero = libc::xdp_mmap_offsets { rx: none(), tx: none(), fr: none(), cr: none() };
    sys::get_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, zero)
        .map_err(|error| ("reading the rings' layout", error))
}

fn map_ring(
    fd: BorrowedFd<'_>,
    offsets: &libc::xdp_ring_offset,
    entry_bytes: usize,
    page_offset: u64,
) -> Result<Mapping, (&'static str, io::Error)> {
    Mapping::shared(fd, offsets.desc as usize + RING_ENTRIES as usize * entry_bytes, page_offset)
        .map_err(|error| ("mapping the rings", error))
}

fn new_fd(ifindex: u32, queue: u32) -> Result<OwnedFd, BindError> {
    sys::socket().map_err(|source| BindError::new("opening the socket", ifindex, queue, source))
}

/// Registers the memory, with TX metadata if the kernel takes it; returns whether it did.
fn register(umem: &Umem, fd: BorrowedFd<'_>, metadata: bool) -> io::Result<bool> {
    let mut request = libc::xdp_umem_reg {
        addr: umem.address(),
        len: umem.bytes(),
        chunk_size: limits::CHUNK_SIZE as u32,
        headroom: 0,
        flags: if metadata { libc::XDP_UMEM_TX_METADATA_LEN } else { 0 },
        tx_metadata_len: if metadata { sys::TX_METADATA_BYTES as u32 } else { 0 },
    };
    match sys::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &request) {
        Ok(()) => Ok(metadata),
        // Kernels before 6.11 do not know the flag.
        Err(error) if metadata && error.raw_os_error() == Some(libc::EINVAL) => {
            request.flags = 0;
            request.tx_metadata_len = 0;
            sys::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &request).map(|()| false)
        }
        Err(error) => Err(error),
    }
}

fn bind(fd: BorrowedFd<'_>, ifindex: u32, queue: u32, flags: u16, share: Option<RawFd>) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: share.map_or(0, |fd| fd as u32),
    };
    sys::bind(fd, &address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring in plain memory, of which each side may have an end.
    fn plain_ring() -> (Arc<Mapping>, libc::xdp_ring_offset) {
        let mapping = Mapping::anonymous(256 + RING_ENTRIES as usize * DESCRIPTOR).unwrap();
        (Arc::new(mapping), libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 256 })
    }

    /// A socket in copy mode of which the kernel knows nothing, and the kernel's ends of its rings for sending.
    fn unbound() -> (Socket, Consumer<libc::xdp_desc>, Producer<u64>) {
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let [(rx, at), (tx, _), (fill, _), (completion, _)] = [(); 4].map(|()| plain_ring());
        let kernel =
            (Consumer::new(tx.clone(), &at, RING_ENTRIES), Producer::new(completion.clone(), &at, RING_ENTRIES));
        let socket = Socket {
            fd: Arc::new(fd()),
            tx_fd: fd(),
            place: (0, 0),
            number: 3,
            umem: Umem::new(8).unwrap(),
            mode: XskMode { zero_copy: false, multi_buffer: true, checksum_metadata: false },
            rx: Consumer::new(rx, &at, RING_ENTRIES),
            tx: Producer::new(tx, &at, RING_ENTRIES),
            fill: Producer::new(fill, &at, RING_ENTRIES),
            completion: Consumer::new(completion, &at, RING_ENTRIES),
            fill_outstanding: 0,
            tx_outstanding: 0,
        };
        (socket, kernel.0, kernel.1)
    }

    #[test]
    fn a_socket_whose_packets_have_not_left_gives_no_frame_back_unless_they_were_copied() {
        // Frames that the kernel takes from the TX ring, those of them that have left, and whether the interface is a veth.
        for (taken, left, is_veth, gives_back) in
            [(0, 0, false, true), (2, 2, false, true), (2, 1, false, false), (2, 1, true, true)]
        {
            let (mut socket, mut tx, mut completion) = unbound();
            for frame in socket.umem.take_frames().into_iter().take(3) {
                let piece = Piece { frame, offset: 256, bytes: 60, more: false, metadata: false };
                assert!(socket.transmit(&mut vec![piece]));
            }
            socket.tx.publish();
            assert_eq!(tx.available(3), 3);
            assert!(completion.space(left) >= left);
            (0..left).for_each(|ahead| completion.push(tx.peek(ahead).addr));
            completion.publish();
            tx.release(taken);
            assert_eq!(socket.in_flight(), (taken - left) as usize);
            let closed = socket.close(is_veth);
            assert_eq!(closed.is_ok(), gives_back, "{taken} taken, {left} left, veth {is_veth}: {closed:?}");
        }
    }
}
