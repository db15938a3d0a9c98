//! The kernel's state, mirrored: interfaces, addresses, bridge FDBs, neighbours, routes and rules of one network namespace.
//!
//! [`Mirror`] holds two netlink sockets and a [`World`]. It subscribes first and dumps afterwards, so nothing is missed in
//! between; notifications that arrived during the dump are applied to its result, which is harmless because applying is
//! idempotent. When the receive queue overflows, or a notification does not say enough, the parts concerned are dumped
//! again. All sockets belong to the network namespace of the thread that opened them.

mod changes;
mod crowd;
pub mod event;
pub mod world;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

pub use changes::Changes;
pub use event::Event;
pub use podlane_netlink as socket;
pub use podlane_netlink::{NetlinkError, NetlinkHeaderView, RequestSocket};
pub use world::World;

use socket::failed;

/// Bytes of the subscription's receive queue: room for some 50,000 notifications.
const QUEUE_BYTES: usize = 32 << 20;
/// Notifications that one [`Mirror::read`] takes before it returns to the event loop.
const MESSAGES_PER_READ: u64 = 100_000;
/// How often a dump is repeated within one call when changes interrupt it or outdate it.
const ATTEMPTS: usize = 8;

/// Multicast groups of the subscription (`RTNLGRP_*`, `linux/rtnetlink.h`).
const GROUPS: [u32; 13] = [
    1,  // LINK, also bridge ports (AF_BRIDGE)
    3,  // NEIGH, also bridge FDBs (AF_BRIDGE)
    4,  // TC: queueing disciplines
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    8,  // IPV4_RULE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
    19, // IPV6_RULE
    24, // IPV4_NETCONF: forwarding switches
    25, // IPV6_NETCONF
    32, // NEXTHOP: objects that routes may point to
    12, // IPV6_IFINFO: an IPv6 MTU may have changed
];

/// What the mirror has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Notifications received.
    pub messages: u64,
    /// Dumps of one or more parts after the first.
    pub redumps: u64,
    /// Times that the receive queue overflowed.
    pub overruns: u64,
}

/// A live picture of the kernel's state.
#[derive(Debug)]
pub struct Mirror {
    subscription: Socket,
    requests: RequestSocket,
    buffer: Vec<u8>,
    world: World,
    counters: Counters,
    /// Parts that have to be dumped (again).
    stale: Changes,
    /// Whether the first whole dump is done.
    dumped: bool,
}

impl Mirror {
    /// Subscribes in the calling thread's network namespace. Call [`Mirror::dump`] next.
    ///
    /// # Errors
    /// If a socket cannot be opened or bound.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_with_queue(QUEUE_BYTES)
    }

    /// The same with a receive queue of `bytes`, which must not be larger than `net.core.rmem_max` without
    /// `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// If a socket cannot be opened or bound.
    pub fn open_with_queue(bytes: usize) -> Result<Self, NetlinkError> {
        let mut subscription = Socket::new(NETLINK_ROUTE).map_err(failed("opening a socket"))?;
        if setsockopt(&subscription.as_fd(), sockopt::RcvBufForce, &bytes).is_err() {
            setsockopt(&subscription.as_fd(), sockopt::RcvBuf, &bytes)
                .map_err(|errno| failed("sizing the receive queue")(errno.into()))?;
        }
        subscription.bind_auto().map_err(failed("binding a socket"))?;
        subscription.set_non_blocking(true).map_err(failed("making a socket non-blocking"))?;
        for group in GROUPS {
            subscription.add_membership(group).map_err(failed("subscribing"))?;
        }
        Ok(Mirror {
            subscription,
            requests: RequestSocket::open(NETLINK_ROUTE)?,
            buffer: vec![0; socket::BUFFER],
            world: World::default(),
            counters: Counters::default(),
            stale: Changes::WORLD,
            dumped: false,
        })
    }

    /// Readable when [`Mirror::read`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.subscription.as_fd()
    }

    /// The picture as of the last [`Mirror::dump`] or [`Mirror::read`].
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Parts that could not be brought up to date yet because they changed too fast. While this is not empty, call
    /// [`Mirror::read`] again after a moment even if [`Mirror::fd`] is not readable; until then these parts are
    /// [`World::doubtful`].
    pub fn unsettled(&self) -> Changes {
        self.stale
    }

    /// Reads the whole state. Also the cure when in doubt, at any time.
    ///
    /// # Errors
    /// If a socket fails or the kernel refuses to answer; the picture is then as it was before.
    pub fn dump(&mut self) -> Result<Changes, NetlinkError> {
        self.refresh(Changes::WORLD)
    }

    /// Reads the named parts anew.
    ///
    /// # Errors
    /// As [`Mirror::dump`].
    pub fn refresh(&mut self, parts: Changes) -> Result<Changes, NetlinkError> {
        self.stale |= parts.and(Changes::WORLD);
        self.settle()
    }

    /// Applies all pending notifications, without waiting for one, and says which parts are different now.
    ///
    /// # Errors
    /// If a socket fails, or a dump that has become necessary fails. What was applied until then stays applied.
    pub fn read(&mut self) -> Result<Changes, NetlinkError> {
        let changed = self.apply_pending()?.changed;
        Ok(changed | self.settle()?)
    }

    /// Dumps what is stale until nothing is.
    fn settle(&mut self) -> Result<Changes, NetlinkError> {
        let mut changed = Changes::NONE;
        for attempt in 0..ATTEMPTS {
            let parts = self.stale;
            if parts.is_empty() {
                break;
            }
            self.counters.redumps += u64::from(self.dumped);
            let (fresh, consistent) = self.dump_parts(parts)?;
            if !consistent {
                continue;
            }
            changed |= self.world.adopt(fresh, parts);
            self.dumped |= parts == Changes::WORLD;
            self.stale = Changes::NONE;
            let pending = self.apply_pending()?;
            changed |= pending.changed;
            // The kernel walks neighbour tables and FDBs by position, so a deletion during the dump can hide another
            // entry. A hidden entry only means that its traffic passes to the kernel, so this is not repeated for ever.
            if attempt < ATTEMPTS / 2 {
                self.stale |= pending.deleted.and(parts);
            }
        }
        let doubtful = self.world.doubtful | self.stale;
        if doubtful != self.world.doubtful {
            changed |= self.stale;
            self.world.doubtful = doubtful;
        }
        Ok(changed)
    }

    /// Applies what is in the receive queue and notes in `stale` what has to be dumped.
    fn apply_pending(&mut self) -> Result<Pending, NetlinkError> {
        let mut pending = Pending::default();
        let limit = self.counters.messages + MESSAGES_PER_READ;
        while self.counters.messages < limit {
            match self.subscription.recv_from(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                // Only the kernel speaks for the kernel: other processes may send to a netlink socket too.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > self.buffer.len() => self.stale = Changes::WORLD,
                Ok((length, _)) => self.apply_bytes(length, &mut pending),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.counters.overruns += 1;
                    self.stale = Changes::WORLD;
                    // An interface may have been replaced by one that looks the same.
                    pending.changed |= Changes::SWITCHES | Changes::LINKS;
                }
                Err(error) => return Err(failed("reading notifications")(error)),
            }
        }
        Ok(pending)
    }

    fn apply_bytes(&mut self, length: usize, pending: &mut Pending) {
        for (header, payload) in socket::messages(&self.buffer[..length]) {
            self.counters.messages += 1;
            let Some(event) = event::read(header, payload, false) else { continue };
            match &event {
                Event::FdbGone(_) => pending.deleted |= Changes::FDB,
                Event::NeighbourGone(_) => pending.deleted |= Changes::NEIGHBOURS,
                _ => {}
            }
            let applied = self.world.apply(event);
            pending.changed |= applied.changed;
            self.stale |= applied.stale;
        }
    }

    /// Dumps the named parts into a fresh world. False: something changed meanwhile.
    fn dump_parts(&mut self, parts: Changes) -> Result<(World, bool), NetlinkError> {
        self.wait_for_writers()?;
        let mut fresh = World::default();
        let mut consistent = true;
        for (part, action, message) in dump_requests() {
            if !parts.intersects(part) {
                continue;
            }
            let mut each = |header: NetlinkHeaderView, payload: &[u8]| {
                if let Some(event) = event::read(header, payload, true) {
                    fresh.apply(event);
                }
            };
            match self.requests.dump(message, action, &mut each) {
                Ok(complete) => consistent &= complete,
                // A table that nobody has put a route into yet does not exist; without IPv6 nor does the family.
                Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((fresh, consistent))
    }

    /// Waits until no configuration change is under way. The kernel announces that a device goes down before it drops the
    /// device's routes, both under its configuration lock, while dumps do not take that lock: without waiting, a dump in
    /// between would bring back routes whose end is never announced. Asking for a single link takes the lock.
    fn wait_for_writers(&mut self) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = 1;
        let bytes = socket::emit(RouteNetlinkMessage::GetLink(message));
        match self.requests.get_bytes(&bytes, "show the loopback device", |_, _| ()) {
            Err(error) if error.errno() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Pending {
    changed: Changes,
    deleted: Changes,
}

/// The dump requests, in the order in which one part refers to another.
fn dump_requests() -> Vec<(Changes, &'static str, RouteNetlinkMessage)> {
    let mut links = LinkMessage::default();
    links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut requests = vec![(Changes::LINKS, "list the interfaces", RouteNetlinkMessage::GetLink(links))];
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut addresses = AddressMessage::default();
        addresses.header.family = family;
        requests.push((Changes::ADDRESSES, "list the addresses", RouteNetlinkMessage::GetAddress(addresses)));
        let mut neighbours = NeighbourMessage::default();
        neighbours.header.family = family;
        requests.push((Changes::NEIGHBOURS, "list the neighbours", RouteNetlinkMessage::GetNeighbour(neighbours)));
        let mut rules = RuleMessage::default();
        rules.header.family = family;
        requests.push((Changes::RULES, "list the routing rules", RouteNetlinkMessage::GetRule(rules)));
        for table in [world::TABLE_LOCAL, world::TABLE_MAIN] {
            let part = if family == AddressFamily::Inet { Changes::ROUTES4 } else { Changes::ROUTES6 };
            let mut routes = RouteMessage::default();
            routes.header.address_family = family;
            routes.header.table = table as u8;
            requests.push((part, "list the routes", RouteNetlinkMessage::GetRoute(routes)));
        }
    }
    let qdiscs = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    requests.push((Changes::QDISCS, "list the queueing disciplines", qdiscs));
    let mut fdb = NeighbourMessage::default();
    fdb.header.family = AddressFamily::Bridge;
    requests.push((Changes::FDB, "list the bridges' forwarding databases", RouteNetlinkMessage::GetNeighbour(fdb)));
    requests
}
