//! A veth pair in a network namespace of the calling thread's own: the queue under test at one end, a packet socket at the
//! other. It goes with the thread.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use podlane_dataplane::afxdp::conformance::Rig;
use podlane_dataplane::afxdp::{BindOptions, ClosedSocket, Frame, FrameMemory, QueueIo, Socket, Umem};

use crate::XskQueue;

/// Where the queue is.
const OWN: &str = "own0";
/// Where the packets come from and go to.
const PEER: &str = "peer0";
/// The frames of a test: more than both rings that it fills have entries.
const FRAMES: u32 = 4096;
/// The Ethernet type of the tests' packets.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// How long a packet may take to come out at the other end.
const PATIENCE: Duration = Duration::from_millis(100);

unsafe extern "C" {
    fn podlane_steer(interface: *const libc::c_char, socket: libc::c_int) -> libc::c_int;
}

fn check(result: libc::c_int, what: &str) -> libc::c_int {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("the command ip, of iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// Index of an interface of this namespace.
fn interface_index(name: &str) -> u32 {
    let name = CString::new(name).expect("no zero byte");
    // SAFETY: a string that ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{}", io::Error::last_os_error());
    index
}

/// One of the two implementations.
pub trait Implementation: QueueIo + Sized {
    /// Opens queue 0 of `interface` over a UMEM of its own.
    fn open(interface: &str) -> (Self, Umem);
    /// What goes into the XSKMAP.
    fn raw_fd(&self) -> RawFd;
    /// Whether it carries packets of several frames.
    fn carries_large(&self) -> bool;
    /// Closes it.
    fn close(self) -> ClosedSocket;
}

impl Implementation for Socket {
    fn open(interface: &str) -> (Self, Umem) {
        let umem = Umem::new(FRAMES).expect("16 MiB");
        let options = BindOptions { checksum_metadata: true };
        let socket = Socket::bind_anchor(&umem, interface_index(interface), 0, 7, options).expect("a socket");
        (socket, umem)
    }

    fn raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.handle()).as_raw_fd()
    }

    fn carries_large(&self) -> bool {
        self.mode().multi_buffer
    }

    fn close(self) -> ClosedSocket {
        Socket::close(self, true).expect("no handle is left")
    }
}

impl Implementation for XskQueue {
    fn open(interface: &str) -> (Self, Umem) {
        XskQueue::open(interface, FRAMES, 7).expect("a socket")
    }

    fn raw_fd(&self) -> RawFd {
        XskQueue::raw_fd(self)
    }

    fn carries_large(&self) -> bool {
        true
    }

    fn close(self) -> ClosedSocket {
        XskQueue::close(self)
    }
}

/// An implementation at one end of a veth pair.
pub struct Veth<Q> {
    queue: Q,
    umem: Umem,
    peer: OwnedFd,
    _steering: OwnedFd,
}

impl<Q: Implementation> Veth<Q> {
    /// Makes a namespace for the calling thread, which stays in it, and the pair.
    pub fn new() -> Self {
        // SAFETY: no pointers; it concerns this thread only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }, "a network namespace (is this root?)");
        ip(&format!("link add {OWN} mtu 9000 type veth peer name {PEER} mtu 9000"));
        for end in [OWN, PEER] {
            // Nobody else talks.
            ip(&format!("link set {end} arp off addrgenmode none multicast off"));
            ip(&format!("link set {end} up"));
        }
        let (queue, umem) = Q::open(OWN);
        let name = CString::new(OWN).expect("no zero byte");
        // SAFETY: a string that ends with a zero byte, and an open descriptor.
        let steering = unsafe { podlane_steer(name.as_ptr(), queue.raw_fd()) };
        // SAFETY: just made for us.
        let steering = unsafe { OwnedFd::from_raw_fd(check(steering, "the XDP program")) };
        Veth { queue, umem, peer: packet_socket(), _steering: steering }
    }

    /// Sends a packet from the other end.
    pub fn send(&self, packet: &[u8]) {
        // SAFETY: the slice is readable for the length of the call.
        let sent = unsafe { libc::send(self.peer.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert_eq!(sent, packet.len() as isize, "{}", io::Error::last_os_error());
    }

    /// A packet that has come to the other end, if one has.
    pub fn taken(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65_536];
        // SAFETY: the buffer is writable for the length of the call.
        let got =
            unsafe { libc::recv(self.peer.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        bytes.truncate(usize::try_from(got).ok()?);
        Some(bytes)
    }
}

impl<Q: Implementation> Default for Veth<Q> {
    fn default() -> Self {
        Self::new()
    }
}

/// A packet socket at the other end that hears what comes in there and not what it sends itself.
fn packet_socket() -> OwnedFd {
    let protocol = u16::from_be_bytes(ETHER_TYPE).to_be();
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    // SAFETY: just made for us.
    let socket = unsafe { OwnedFd::from_raw_fd(check(fd, "a packet socket")) };
    // SAFETY: all zeros are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = interface_index(PEER) as i32;
    let bytes = size_of_val(&address) as libc::socklen_t;
    // SAFETY: a valid address of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) }, "bind");
    let buffer: libc::c_int = 64 << 20;
    for (level, option, value) in [
        (libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1),
        (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1),
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, buffer),
    ] {
        let at = (&raw const value).cast();
        // SAFETY: a readable integer.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, 4) }, "an option of the packet socket");
    }
    socket
}

impl<Q: Implementation> Rig for Veth<Q> {
    type Queue = Q;

    fn queue(&mut self) -> &mut Q {
        &mut self.queue
    }

    fn memory(&self) -> FrameMemory {
        self.umem.memory()
    }

    fn frames(&mut self) -> Vec<Frame> {
        self.umem.take_frames()
    }

    fn arrive(&mut self, packet: &[u8]) {
        self.send(packet);
    }

    fn departed(&mut self, count: usize) -> Vec<Vec<u8>> {
        let (mut packets, start) = (Vec::new(), Instant::now());
        while packets.len() < count && start.elapsed() < PATIENCE {
            match self.taken() {
                Some(packet) => packets.push(packet),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        packets
    }

    fn carries_large(&self) -> bool {
        self.queue.carries_large()
    }

    fn close(self) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.umem.reclaim(self.queue.close(), &mut frames);
        frames
    }
}
