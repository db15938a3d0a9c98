//! A packet socket on one interface: whole frames in and out (packet(7)).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

nix::setsockopt_impl!(PacketAuxdata, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool, sockopt::SetBool);

/// Asks for a `tpacket_auxdata` with every frame.
#[derive(Clone)]
struct PacketAuxdata;

/// Bytes of the largest frame of a veth: 64 KiB of super-frame and headers.
const LARGEST: usize = (1 << 16) + 256;
const BUFFER: usize = 32 << 20;
/// `TP_STATUS_CSUMNOTREADY` (linux/if_packet.h): the checksum is left for the device to finish.
const CHECKSUM_NOT_READY: u32 = 1 << 3;
/// `PACKET_OUTGOING` (linux/if_packet.h).
const OUTGOING: u8 = 4;

/// The socket.
pub struct PacketSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// A frame that was seen.
pub struct Seen<'a> {
    pub bytes: &'a [u8],
    /// It was sent by this host, not received.
    pub outgoing: bool,
    /// Its L4 checksum is not finished and the kernel knows.
    pub checksum_not_ready: bool,
}

impl PacketSocket {
    /// A socket that sends out of `interface` and, with `listen`, sees every frame of it.
    pub fn open(interface: &str, listen: bool) -> Result<PacketSocket> {
        let protocol = if listen { Some(SockProtocol::EthAll) } else { None };
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("opening a packet socket (root?)")?;
        if listen {
            setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(&fd, PacketAuxdata, &true)?;
        }
        // Bound with protocol 0, a socket keeps the protocol that it was made with (net/packet/af_packet.c).
        bind(fd.as_raw_fd(), &link_address(interface)?).with_context(|| format!("binding to {interface}"))?;
        Ok(PacketSocket { fd, buffer: vec![0; LARGEST] })
    }

    pub fn send(&self, frame: &[u8]) -> nix::Result<usize> {
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(frame)], &[], MsgFlags::empty(), None)
    }

    /// The next frame, or `None` if there is none within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Seen<'_>>> {
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::microseconds(patience.as_micros().max(1) as i64))?;
        let mut control = nix::cmsg_space!([u8; 64]);
        let mut pieces = [IoSliceMut::new(&mut self.buffer)];
        let message = match recvmsg::<LinkAddr>(self.fd.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::empty())
        {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error).context("receiving frames"),
        };
        let outgoing = message.address.is_some_and(|address| address.pkttype() == OUTGOING);
        let checksum_not_ready = message.cmsgs()?.any(|control| match control {
            ControlMessageOwned::Unknown(unknown) => unknown
                .data_bytes
                .first_chunk()
                .is_some_and(|status| u32::from_ne_bytes(*status) & CHECKSUM_NOT_READY != 0),
            _ => false,
        });
        let bytes = message.bytes;
        Ok(Some(Seen { bytes: &self.buffer[..bytes], outgoing, checksum_not_ready }))
    }
}

/// The link-layer address of an interface carries its index, which is all that binding needs.
fn link_address(interface: &str) -> Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| anyhow!("there is no interface {interface}"))
}
