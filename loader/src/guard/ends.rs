//! Pods' own ends of their veths: MAC address, IP addresses, and whether somebody may stand behind.
//!
//! The kernel answers for another network namespace by the id that it has here (`IFLA_TARGET_NETNSID`,
//! `IFA_TARGET_NETNSID`), so no thread has to enter it. A second socket hears of changes in all of them
//! (`NETLINK_LISTEN_ALL_NSID`); from it only the numbers of the interfaces concerned are taken, as a hint to look again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use podlane_dataplane::MacAddr;

use super::settle::is_link_local;
use crate::mirror::socket::{self, NetlinkError, RequestSocket, failed};
use crate::mirror::world::Link;

/// What is known of the other end of a pod's veth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Nothing, for this reason, as a clause.
    Unknown(&'static str),
    /// What it has.
    Own {
        /// Its MAC address.
        macs: BTreeSet<MacAddr>,
        /// Its IP addresses.
        addresses: BTreeSet<IpAddr>,
        /// Whether it has more addresses than are looked at.
        more: bool,
        /// Why others may send through it, as a clause; `None` if none do.
        behind: Option<String>,
    },
}

impl End {
    /// Whether what the pod was known to have before stays its own: the end tells less than it did. Sandboxes with a network
    /// stack of their own (gVisor) take the addresses off the interface that they send through.
    pub(super) fn keeps(&self) -> bool {
        match self {
            End::Unknown(_) | End::Own { behind: Some(_), .. } | End::Own { more: true, .. } => true,
            End::Own { addresses, .. } => !addresses.iter().any(|address| !is_link_local(address)),
        }
    }

    /// Why nothing is known.
    pub(super) fn unknown(&self) -> &'static str {
        match self {
            End::Unknown(why) => why,
            End::Own { .. } => "its interface has none",
        }
    }
}

/// Interfaces of a pod, and addresses of one family on its own, that are looked at: what a pod may have us do is bounded. Of
/// what is beyond we know no more than of a pod that cannot be looked at.
pub const MOST: usize = 64;
/// Notifications that are read in one go.
const MESSAGES: usize = 4096;
/// Multicast groups: LINK, IPV4_IFADDR, IPV6_IFADDR.
const GROUPS: [u32; 3] = [1, 5, 9];
/// `IFLA_TARGET_NETNSID` and `IFA_TARGET_NETNSID` of `linux/if_link.h` and `linux/if_addr.h`.
const LINK_TARGET: u16 = 46;
const ADDRESS_TARGET: u16 = 10;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// Looks at them.
#[derive(Debug)]
pub struct Ends {
    requests: RequestSocket,
    /// Hears of changes in all namespaces that have an id here.
    changes: Socket,
    hears: bool,
    buffer: Vec<u8>,
}

impl Ends {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut changes = Socket::new(NETLINK_ROUTE).map_err(failed("opening a socket"))?;
        changes.bind_auto().map_err(failed("binding a socket"))?;
        changes.set_non_blocking(true).map_err(failed("making a socket non-blocking"))?;
        let hears = match changes.set_listen_all_namespaces(true) {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(%error, "no CAP_NET_BROADCAST: pods are looked at often instead of when they change");
                false
            }
        };
        for group in GROUPS {
            changes.add_membership(group).map_err(failed("subscribing"))?;
        }
        Ok(Ends { requests: RequestSocket::open(NETLINK_ROUTE)?, changes, hears, buffer: vec![0; socket::BUFFER] })
    }

    /// Readable when something changed somewhere.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Whether changes in pods are heard of.
    pub fn hears(&self) -> bool {
        self.hears
    }

    /// The indices of interfaces of which something was heard since the last call, whichever namespace they are in. What is
    /// lost when the queue overflows is found by the next look at all.
    pub fn heard(&mut self) -> BTreeSet<u32> {
        let mut heard = BTreeSet::new();
        for _ in 0..MESSAGES {
            match self.changes.recv_from(&mut &mut self.buffer[..], 0) {
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) => {
                    let bytes = self.buffer.get(..length).unwrap_or_default();
                    heard.extend(socket::messages(bytes).filter_map(|(_, payload)| u32_at(payload, 4)));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => break,
            }
        }
        heard
    }

    /// Looks at the other end of a veth.
    pub fn of(&mut self, link: &Link) -> End {
        let Some(peer) = link.peer else { return End::Unknown("it is no veth") };
        let Some(netns) = link.peer_netns else {
            return End::Unknown("its other end is not in a network namespace of its own");
        };
        self.read(peer, netns).unwrap_or_else(|error| {
            tracing::debug!(%error, interface = link.name, "looking at a pod's own interface");
            End::Unknown("the kernel does not tell of its other end")
        })
    }

    fn read(&mut self, peer: u32, netns: i32) -> Result<End, NetlinkError> {
        let (links, all_links) = self.links(netns)?;
        let own = match links.iter().find(|link| link.ifindex == peer) {
            Some(own) => Some(own.clone()),
            None if all_links => None,
            None => self.link(peer, netns)?,
        };
        let Some(own) = own else { return Ok(End::Unknown("its other end is gone")) };
        let mut addresses = BTreeSet::new();
        let mut all = true;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let (some, all_of_family) = self.addresses(family, peer, netns)?;
            addresses.extend(some);
            all &= all_of_family;
        }
        let name = |ifindex| links.iter().find(|link| link.ifindex == ifindex).map_or("another", |link| &link.name);
        let upper = links.iter().find(|link| link.lower == Some(peer));
        let behind = match (own.master, upper) {
            (Some(master), _) => Some(format!("its interface is a member of {} in there", name(master))),
            (None, Some(upper)) => Some(format!("{} in there stands on its interface", upper.name)),
            (None, None) if !all_links => Some(format!("there are more than {MOST} interfaces in there")),
            (None, None) => None,
        };
        Ok(End::Own { macs: own.mac.into_iter().collect(), addresses, more: !all, behind })
    }

    /// A namespace's interfaces, and whether these are all.
    fn links(&mut self, netns: i32) -> Result<(Vec<OtherLink>, bool), NetlinkError> {
        let mut links = Vec::new();
        let request = request(libc::RTM_GETLINK, &[0; LINK_HEADER], LINK_TARGET, netns);
        let all = self.requests.dump_bytes_until(&request, "list a pod's interfaces", |_, payload| {
            if links.len() == MOST {
                return ControlFlow::Break(());
            }
            links.extend(other_link(payload));
            ControlFlow::Continue(())
        })?;
        Ok((links, all))
    }

    /// One interface of it.
    fn link(&mut self, ifindex: u32, netns: i32) -> Result<Option<OtherLink>, NetlinkError> {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        let request = request(libc::RTM_GETLINK, &header, LINK_TARGET, netns);
        let mut link = None;
        self.requests.get_bytes(&request, "show a pod's interface", |_, payload| link = other_link(payload))?;
        Ok(link)
    }

    /// An interface's addresses of one family, and whether these are all.
    fn addresses(&mut self, family: i32, ifindex: u32, netns: i32) -> Result<(BTreeSet<IpAddr>, bool), NetlinkError> {
        let mut addresses = BTreeSet::new();
        let mut header = [0; ADDRESS_HEADER];
        header[0] = family as u8;
        header[4..].copy_from_slice(&ifindex.to_ne_bytes());
        let request = request(libc::RTM_GETADDR, &header, ADDRESS_TARGET, netns);
        let asked = self.requests.dump_bytes_until(&request, "list a pod's addresses", |_, payload| {
            let address = address_of(payload, ifindex);
            if address.is_some() && addresses.len() == MOST {
                return ControlFlow::Break(());
            }
            addresses.extend(address);
            ControlFlow::Continue(())
        });
        match asked {
            // Without IPv6 there is no such family.
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok((addresses, true)),
            asked => asked.map(|all| (addresses, all)),
        }
    }
}

/// An interface in a pod.
#[derive(Clone)]
struct OtherLink {
    ifindex: u32,
    name: String,
    mac: Option<MacAddr>,
    master: Option<u32>,
    /// The interface of the same namespace that it stands on (VLAN, macvlan).
    lower: Option<u32>,
}

fn other_link(payload: &[u8]) -> Option<OtherLink> {
    let mut link =
        OtherLink { ifindex: u32_at(payload, 4)?, name: String::new(), mac: None, master: None, lower: None };
    let mut is_elsewhere = false;
    for attribute in NlasIterator::new(payload.get(LINK_HEADER..)?).map_while(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr::new).filter(|mac| mac.is_station()),
            libc::IFLA_IFNAME => {
                link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_LINK => link.lower = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => is_elsewhere = true,
            _ => {}
        }
    }
    link.lower = link.lower.filter(|lower| !is_elsewhere && *lower != link.ifindex);
    Some(link)
}

/// The address of an `RTM_NEWADDR` if it is one of this interface.
fn address_of(payload: &[u8], ifindex: u32) -> Option<IpAddr> {
    if u32_at(payload, 4)? != ifindex {
        return None;
    }
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(payload.get(ADDRESS_HEADER..)?).map_while(Result::ok) {
        match attribute.kind() {
            libc::IFA_LOCAL => local = ip(attribute.value()),
            libc::IFA_ADDRESS => address = ip(attribute.value()),
            _ => {}
        }
    }
    local.or(address)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A dump request for another namespace: the message's header, in which the rest is filled in when it is sent, its fixed
/// part, and one attribute.
fn request(message_type: u16, fixed: &[u8], attribute: u16, netns: i32) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[4..6].copy_from_slice(&message_type.to_ne_bytes());
    bytes.extend(fixed);
    bytes.extend(8u16.to_ne_bytes());
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(netns.to_ne_bytes());
    bytes
}
