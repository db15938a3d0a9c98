//! Follows the node's rules on a thread of its own: reading them may take a while where somebody has many, and the daemon's
//! loop has none.
//!
//! nftables tells of each change; the old iptables, IPVS and the sysctls do not, so they are looked at once a second, and the
//! rules of the old iptables, which another program has to read, every [`LEGACY`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};

use super::rules::Family;
use super::{Legacy, Rules, calls, has_ipvs, is_liberal, legacy, nft};
use crate::mirror::socket::failed;
use crate::mirror::{NetlinkError, RequestSocket};
use crate::privileges;

/// The pause between two looks at what nobody tells of.
const LOOK: Duration = Duration::from_secs(1);
/// The pause between two readings of the old iptables.
const LEGACY: Duration = Duration::from_secs(10);
/// The pause between two readings is at least that many times as long as the last one took, so that rules that never rest
/// cost at most a tenth of a processor.
const SHARE: u32 = 10;
/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Bytes of the queue of events. They only say that something changed, and an overflow says that as well.
const QUEUE_BYTES: usize = 64 << 10;

/// The thread, which ends when this is dropped, after the reading that it is at.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    known: ArcSwap<Rules>,
    /// Wakes the daemon's loop: there are other rules.
    changed: EventFd,
    /// Wakes the thread: it is to end.
    end: EventFd,
    ended: AtomicBool,
}

impl Watch {
    /// Reads the rules of the calling thread's network namespace and follows them.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn start() -> Result<Watch, NetlinkError> {
        let events = subscribe()?;
        let mut follower = Follower {
            requests: events.is_some().then(|| RequestSocket::open(NETLINK_NETFILTER)).transpose()?,
            events,
            legacy: BTreeMap::new(),
            generation: 0,
            legacy_read: Instant::now(),
        };
        follower.read_legacy();
        let first = follower.read();
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let event = || event().map_err(|errno| failed("making an event")(errno.into()));
        let known = ArcSwap::from_pointee(first);
        let shared = Arc::new(Shared { known, changed: event()?, end: event()?, ended: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("podlane-rules".to_owned());
        let follow = move || {
            privileges::keep_for_rules();
            follower.follow(&theirs)
        };
        thread.spawn(follow).map_err(failed("starting a thread"))?;
        Ok(Watch { shared })
    }

    /// Readable when [`Watch::has_changed`] has something to tell.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.changed.as_fd()
    }

    /// Whether the rules are others than at the last call.
    pub fn has_changed(&self) -> bool {
        self.shared.changed.read().is_ok()
    }

    /// The rules.
    pub fn rules(&self) -> Arc<Rules> {
        self.shared.known.load_full()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // It fails only when it was written 2^64 times already.
        let _ = self.shared.end.write(1);
    }
}

/// A socket that becomes readable when rules of nftables change; `None` where the kernel has none of it.
fn subscribe() -> Result<Option<Socket>, NetlinkError> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        socket => socket.map_err(failed("opening a socket"))?,
    };
    setsockopt(&socket.as_fd(), sockopt::RcvBuf, &QUEUE_BYTES)
        .map_err(|errno| failed("sizing the receive queue")(errno.into()))?;
    socket.bind_auto().map_err(failed("binding a socket"))?;
    socket.set_non_blocking(true).map_err(failed("making a socket non-blocking"))?;
    // Without the group the generation is asked for once a second.
    if let Err(error) = socket.add_membership(GROUP) {
        tracing::debug!(%error, "subscribing to changes of nftables");
    }
    Ok(Some(socket))
}

struct Follower {
    /// `None` where the kernel has none of it.
    requests: Option<RequestSocket>,
    events: Option<Socket>,
    legacy: BTreeMap<Family, Legacy>,
    generation: u32,
    legacy_read: Instant,
}

impl Follower {
    fn read(&mut self) -> Rules {
        let (rules, generation) = Rules::read(self.requests.as_mut(), &self.legacy);
        self.generation = generation;
        rules
    }

    fn read_legacy(&mut self) {
        self.legacy = [Family::Ip, Family::Ip6].map(|family| (family, Legacy::read(family))).into();
        self.legacy_read = Instant::now();
    }

    fn follow(mut self, shared: &Shared) {
        let mut pause = Duration::ZERO;
        let mut read = Instant::now();
        while !shared.ended.load(Ordering::Relaxed) {
            let told = self.wait(&shared.end);
            let known = shared.known.load();
            if !(told | self.is_other(&known)) {
                continue;
            }
            drop(known);
            // Rules come in bursts: one more is not worth a reading before its time.
            let rest = pause.saturating_sub(read.elapsed());
            if !rest.is_zero() {
                std::thread::sleep(rest);
                self.drain();
            }
            let begun = Instant::now();
            let rules = self.read();
            read = Instant::now();
            pause = (read - begun).saturating_mul(SHARE).min(LOOK);
            if **shared.known.load() != rules {
                shared.known.store(Arc::new(rules));
                // It fails only when it was written 2^64 times already.
                let _ = shared.changed.write(1);
            }
        }
    }

    /// Waits for an event or for the time to look. Whether there was one.
    fn wait(&self, end: &EventFd) -> bool {
        let mut fds = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.events.as_ref().map(|events| PollFd::new(events.as_fd(), PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, timeout).is_err() {
            return false;
        }
        self.drain()
    }

    /// Takes all events. Whether there were any.
    fn drain(&self) -> bool {
        let Some(events) = &self.events else { return false };
        let (mut buffer, mut any) = (vec![0; 16 << 10], false);
        loop {
            match events.recv_from(&mut &mut buffer[..], libc::MSG_TRUNC) {
                Ok(_) => any = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return any,
            }
        }
    }

    /// Whether what nobody tells of is other than it was.
    fn is_other(&mut self, known: &Rules) -> bool {
        let names_changed = self.legacy.iter().any(|(family, legacy)| legacy::Names::read(*family) != legacy.names);
        let is_due =
            self.legacy_read.elapsed() >= LEGACY && self.legacy.values().any(|legacy| !legacy.names.is_empty());
        if names_changed || is_due {
            self.read_legacy();
            return true;
        }
        let generation = self.requests.as_mut().and_then(|requests| nft::generation(requests).ok());
        let generation = generation.unwrap_or(self.generation);
        generation != self.generation
            || (has_ipvs(), is_liberal(), calls()) != (known.has_ipvs, known.is_liberal, known.calls)
    }
}
