//! A netlink socket for requests: one at a time, each answered by an acknowledgement, an object or a dump. Podlane's daemon
//! and its CNI plugin share it.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// What went wrong on a netlink socket.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call on the socket failed.
    #[error("netlink: {action} failed: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("netlink: the kernel refused to {action}: {source}{}", .message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        action: String,
        /// The error code as an I/O error.
        source: io::Error,
        /// The kernel's own sentence, if it gave one (extended acknowledgement).
        message: Option<String>,
    },
    /// The answer is not what the protocol says.
    #[error("netlink: malformed answer to {0}")]
    Malformed(String),
    /// Every repetition of a dump was interrupted by changes.
    #[error("netlink: the dump of {0} was interrupted by changes every time")]
    Interrupted(&'static str),
}

impl NetlinkError {
    /// The error number, if the kernel or the system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Socket { source, .. } | NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Malformed(_) | NetlinkError::Interrupted(_) => None,
        }
    }
}

/// Says of a system call's error what was tried.
pub fn failed(action: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { action, source }
}

/// Bytes of the receive buffer in user space; the kernel makes dump pieces of at most 32 KiB (`net/netlink/af_netlink.c`).
pub const BUFFER: usize = 128 * 1024;

/// Time that an answer may take. The kernel answers at once unless somebody holds its configuration lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message's header, as far as it is needed to understand the message.
#[derive(Clone, Copy, Debug)]
pub struct NetlinkHeaderView {
    /// Type, `RTM_*`.
    pub message_type: u16,
    /// Flags, `NLM_F_*`.
    pub flags: u16,
    /// Sequence number of the request that it answers; 0 for notifications.
    pub sequence: u32,
}

/// Splits what one receive call gave into messages. Trailing bytes that are no message end the iteration.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (NetlinkHeaderView, &[u8])> {
    const HEADER: usize = 16;
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let payload = bytes.get(HEADER..length)?;
        let view = NetlinkHeaderView {
            message_type: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((view, payload))
    })
}

/// The socket.
#[derive(Debug)]
pub struct RequestSocket {
    protocol: isize,
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RequestSocket {
    /// Opens one for `protocol` (`NETLINK_ROUTE`, …) in the calling thread's network namespace.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let socket = connected(protocol)?;
        Ok(RequestSocket { protocol, socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and waits for its acknowledgement. `action` completes "the kernel refused to …".
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16, action: &str) -> Result<(), NetlinkError> {
        self.request_bytes(&emit(message), flags, action)
    }

    /// The same for a message that is bytes already: 16 bytes of header, of which length, flags and sequence number are
    /// filled in here, and the payload.
    pub fn request_bytes(&mut self, bytes: &[u8], flags: u16, action: &str) -> Result<(), NetlinkError> {
        self.transact(bytes, flags | NLM_F_ACK, action, |_, _| ControlFlow::Continue(())).map(|_| ())
    }

    /// Sends a dump request and hands every message of the answer to `each`. True: the kernel says that the picture is
    /// consistent; false: it changed meanwhile, ask again.
    pub fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        action: &str,
        each: impl FnMut(NetlinkHeaderView, &[u8]),
    ) -> Result<bool, NetlinkError> {
        self.transact(&emit(message), NLM_F_DUMP, action, always(each))
    }

    /// The same for a message that is bytes already, as [`RequestSocket::request_bytes`] wants them.
    pub fn dump_bytes(
        &mut self,
        bytes: &[u8],
        action: &str,
        each: impl FnMut(NetlinkHeaderView, &[u8]),
    ) -> Result<bool, NetlinkError> {
        self.transact(bytes, NLM_F_DUMP, action, always(each))
    }

    /// The same as far as `each` wants to hear, for what others can make as long as they like; the kernel does not list the
    /// rest. True: it wanted to hear all.
    pub fn dump_bytes_until(
        &mut self,
        bytes: &[u8],
        action: &str,
        mut each: impl FnMut(NetlinkHeaderView, &[u8]) -> ControlFlow<()>,
    ) -> Result<bool, NetlinkError> {
        let mut all = true;
        self.transact(bytes, NLM_F_DUMP, action, |header, payload| {
            let wish = each(header, payload);
            all &= wish.is_continue();
            wish
        })?;
        Ok(all)
    }

    /// Sends a request for one object and hands it to `each`.
    pub fn get_bytes(
        &mut self,
        bytes: &[u8],
        action: &str,
        each: impl FnMut(NetlinkHeaderView, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.transact(bytes, NLM_F_ACK, action, always(each)).map(|_| ())
    }

    fn transact(
        &mut self,
        request: &[u8],
        flags: u16,
        action: &str,
        mut each: impl FnMut(NetlinkHeaderView, &[u8]) -> ControlFlow<()>,
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut bytes = request.to_vec();
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&bytes, 0).map_err(failed("sending a request"))?;
        let mut consistent = true;
        loop {
            let received = loop {
                match self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other.map_err(failed("waiting for an answer"))?,
                }
            };
            let bytes =
                self.buffer.get(..received).ok_or_else(|| NetlinkError::Malformed(format!("request to {action}")))?;
            for (header, payload) in messages(bytes) {
                // What is left of a request that ran into its timeout.
                if header.sequence != self.sequence {
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.message_type {
                    NLMSG_DONE | NLMSG_ERROR => return finish(header, payload, action).map(|()| consistent),
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => consistent = false,
                    _ => {
                        if each(header, payload).is_break() {
                            // A dump ends with its socket only.
                            self.socket = connected(self.protocol)?;
                            return Ok(consistent);
                        }
                    }
                }
            }
        }
    }
}

/// Hears everything.
fn always(mut each: impl FnMut(NetlinkHeaderView, &[u8])) -> impl FnMut(NetlinkHeaderView, &[u8]) -> ControlFlow<()> {
    move |header, payload| {
        each(header, payload);
        ControlFlow::Continue(())
    }
}

/// A socket that speaks to the kernel.
fn connected(protocol: isize) -> Result<Socket, NetlinkError> {
    let mut socket = Socket::new(protocol).map_err(failed("opening a socket"))?;
    socket.bind_auto().map_err(failed("binding a socket"))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connecting a socket to the kernel"))?;
    // Both are comforts: the kernel's own sentences on errors, and exact checks of requests.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    let _ = socket.set_netlink_get_strict_chk(true);
    let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &patience)
        .map_err(|errno| failed("setting a timeout")(errno.into()))?;
    Ok(socket)
}

/// A message as bytes, with the type in its header.
pub fn emit(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The end of an answer: the error code, and the sentence that the kernel may add (`NLMSGERR_ATTR_MSG`).
fn finish(header: NetlinkHeaderView, payload: &[u8], action: &str) -> Result<(), NetlinkError> {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 {
        return Ok(());
    }
    // The code, then (for an error) the header of the refused request, then attributes.
    let skip = if header.message_type == NLMSG_ERROR { 20 } else { 4 };
    let message = netlink_packet_core::NlasIterator::new(payload.get(skip..).unwrap_or_default())
        .map_while(Result::ok)
        .find(|nla| nla.kind() == 1)
        .map(|nla| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned());
    Err(NetlinkError::Refused { action: action.to_owned(), source: io::Error::from_raw_os_error(-code), message })
}
