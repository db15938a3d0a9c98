//! Interfaces: what the plugin asks of the kernel, by plain netlink.
//!
//! A pod's veth pair is made in one request: its end in the pod's namespace from the beginning, with the address, name and
//! MTU that it keeps, and the node's end as a member of the bridge. That spares the moves between namespaces, each of which
//! makes the kernel wait for all CPUs. [`Links`] speaks to one namespace, [`namespace`] goes to the pod's.

pub mod namespace;
mod read;

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use podlane_netlink::{NetlinkError, RequestSocket, emit};

pub use read::{FoundRoute, Link};

use crate::protocol::failure::{Failure, code};
use crate::protocol::result::Route;

/// How long a member of the bridge may take to forward, and an interface to be ready: the kernel does that in the
/// background.
const READY: Duration = Duration::from_secs(20);
/// Priority of an IPv6 address's own network (`IP6_RT_PRIO_ADDRCONF`, `include/net/ip6_route.h`).
const NETWORK_PRIORITY: u32 = 256;
/// How often is looked.
const TICK: Duration = Duration::from_micros(200);

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six pairs of hexadecimal digits with colons between them; `None` if a host cannot have it (a group's, or
    /// zero).
    pub fn read(text: &str) -> Option<Self> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let is_pair = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            *octet = u8::from_str_radix(parts.next().filter(is_pair)?, 16).ok()?;
        }
        (parts.next().is_none() && octets[0] & 1 == 0 && octets != [0; 6]).then_some(Mac(octets))
    }

    /// The address of who has an IP address: `0a:58` and IPv4's four bytes, as Kubernetes' plugins do it, or four bytes of
    /// a hash of IPv6's. Who gets an address that another pod had before then also gets its MAC address, and nobody has to
    /// forget anything.
    pub fn of(address: IpAddr) -> Self {
        let [a, b, c, d] = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
                address.octets().iter().fold(0x811c_9dc5, mix).to_be_bytes()
            }
        };
        Mac([0x0a, 0x58, a, b, c, d])
    }

    /// The address of the node's end of an attachment's veth pair. It is a high one: a bridge without an address of its own
    /// takes the lowest of its members (`br_stp_recalculate_bridge_id`), and must not take this one, of a pod that goes.
    pub fn of_host(hash: u64) -> Self {
        let [a, b, c, d, ..] = hash.to_be_bytes();
        Mac([0xfe, 0x58, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The interfaces of the namespace in which it was opened.
#[derive(Debug)]
pub struct Links {
    requests: RequestSocket,
}

/// A pod's veth pair that is to be made.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The node's end.
    pub host: &'a str,
    /// Its MAC address.
    pub host_mac: Mac,
    /// The bridge that it becomes a member of.
    pub bridge: u32,
    /// The pod's end.
    pub pod: &'a str,
    /// The pod's namespace.
    pub netns: BorrowedFd<'a>,
    /// The pod's MAC address; `None`: the kernel's choice.
    pub mac: Option<Mac>,
    /// Bytes, of both ends.
    pub mtu: u32,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Links {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// If there is none to be had.
    pub fn open() -> Result<Self, Failure> {
        Ok(Links { requests: RequestSocket::open(NETLINK_ROUTE)? })
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        let bytes = emit(RouteNetlinkMessage::GetLink(message));
        let answer = self.requests.get_bytes(&bytes, &format!("show {name}"), |_, payload| found = read::link(payload));
        match answer {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            answer => answer.map(|()| found),
        }
    }

    /// Makes a bridge that is not up yet, with a MAC address that does not follow its members'.
    ///
    /// # Errors
    /// If the kernel refuses, for example because one of that name is there.
    pub fn create_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        let action = format!("make the bridge {name}");
        self.requests.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &action)
    }

    /// Makes a veth pair: the pod's end is down, the node's is up and a member of the bridge.
    ///
    /// # Errors
    /// If the kernel refuses; nothing is left behind then.
    pub fn create_pair(&mut self, pair: &Pair<'_>) -> Result<(), NetlinkError> {
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pair.pod.to_owned()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NetNsFd(pair.netns.as_raw_fd()),
        ];
        peer.attributes.extend(pair.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        peer.attributes.extend(queues.clone());
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(pair.host.to_owned()),
            LinkAttribute::Address(pair.host_mac.0.to_vec()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::Controller(pair.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        message.attributes.extend(queues);
        let action = format!("make {} with its peer {} in the pod", pair.host, pair.pod);
        self.requests.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &action)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_up(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.requests.request(RouteNetlinkMessage::SetLink(message), 0, &format!("bring {name} up"))
    }

    /// Sets an interface's alias.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.set(index, attributes, &format!("set the alias of interface {index} to {alias}"))
    }

    /// Keeps the kernel from giving an interface an IPv6 address of its own: a bridge's member needs none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn without_own_address(&mut self, index: u32) -> Result<(), NetlinkError> {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let action = format!("switch address generation of interface {index} off");
        match self.set(index, vec![LinkAttribute::AfSpecUnspec(vec![none])], &action) {
            // A kernel without IPv6, or with it switched off for this interface.
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EINVAL)) => Ok(()),
            answer => answer,
        }
    }

    /// Lets the bridge send frames back through a member that they came from.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_hairpin(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let port = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(port)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let action = format!("switch hairpin mode of interface {index} on");
        self.requests.request(RouteNetlinkMessage::NewLink(message), 0, &action)
    }

    fn set(&mut self, index: u32, attributes: Vec<LinkAttribute>, action: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.requests.request(RouteNetlinkMessage::SetLink(message), 0, action)
    }

    /// Has the kernel tell the neighbours which addresses an interface has (gratuitous ARP, unsolicited neighbour
    /// advertisements), which it does when a MAC address is set and `arp_notify` and `ndisc_notify` are on. A packet socket
    /// could tell them as well, but the kernel waits for all CPUs when one is closed.
    ///
    /// It also forgets whom the interface knows, with the packets that wait for an answer (`neigh_changeaddr`): so this comes
    /// before there is a route by which a pod could send.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn announce(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let address = vec![LinkAttribute::Address(link.mac.0.to_vec())];
        self.set(link.index, address, &format!("set the MAC address of {} again", link.name))
    }

    /// Removes an interface. False: there was none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.requests.request(RouteNetlinkMessage::DelLink(message), 0, &format!("delete {name}")) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            answer => answer.map(|()| true),
        }
    }

    /// Gives an interface an address that can be used at once: nobody else is asked whether they have it, the IPAM knows.
    /// One that it has already is left as it is.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let no_question = if address.addr().is_ipv6() { AddressFlags::Nodad } else { AddressFlags::empty() };
        self.new_address(index, address, no_question)
    }

    /// Gives a pod's interface an address, without a route to the address's network, which [`Links::add_network`] adds: until
    /// then nobody can send. Where `accept_dad` is 0 nobody is asked either, but the address shows when the kernel is done
    /// with it ([`Links::wait_until_heard`]).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_address_alone(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.new_address(index, address, AddressFlags::Noprefixroute)
    }

    /// Waits until an interface hears who asks for its IPv6 addresses: the kernel joins their groups in the background, and
    /// until then they are tentative.
    ///
    /// # Errors
    /// Code 11: it takes longer than it may; 100: the kernel does not answer.
    pub fn wait_until_heard(&mut self, index: u32) -> Result<(), Failure> {
        /// `IFA_F_TENTATIVE` (`linux/if_addr.h`).
        const TENTATIVE: u8 = 0x40;
        let begin = Instant::now();
        loop {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet6;
            message.header.index = index;
            let mut waits = false;
            self.requests.dump(RouteNetlinkMessage::GetAddress(message), "show addresses", |_, payload| {
                // Kernels before 5.0 tell all of them in any case.
                let is_its = payload.get(4..8) == Some(&index.to_ne_bytes()[..]);
                waits |= is_its && payload.get(2).is_some_and(|flags| flags & TENTATIVE != 0);
            })?;
            if !waits {
                return Ok(());
            }
            if begin.elapsed() > READY {
                let message = format!("the pod's IPv6 addresses were not ready within {} s", READY.as_secs());
                let details = "is net.ipv6.conf.all.accept_dad on in the pod's network namespace?";
                return Err(Failure::new(code::TRY_AGAIN, message).with_details(details));
            }
            std::thread::sleep(TICK);
        }
    }

    fn new_address(&mut self, index: u32, address: IpNet, flags: AddressFlags) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        if let IpAddr::V4(broadcast) = address.broadcast() {
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        if flags.contains(AddressFlags::Nodad) {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        let action = format!("give interface {index} the address {address}");
        match self.requests.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, &action) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            answer => answer,
        }
    }

    /// Adds the route to the network of an address, as the kernel itself would have made it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_network(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        if address.prefix_len() == address.max_prefix_len() {
            return Ok(());
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family(address.addr());
        message.header.destination_prefix_length = address.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Kernel;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Destination(address.network().into()), RouteAttribute::Oif(index)];
        match address.addr() {
            IpAddr::V4(own) => {
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::PrefSource(own.into()));
            }
            IpAddr::V6(_) => message.attributes.push(RouteAttribute::Priority(NETWORK_PRIORITY)),
        }
        let action = format!("add the route to {}", address.trunc());
        match self.requests.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, &action) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            answer => answer,
        }
    }

    /// Adds a route through an interface. A default route that is there already stays: another network's.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_route(&mut self, index: u32, route: &Route, gateway: Option<IpAddr>) -> Result<(), NetlinkError> {
        let through = gateway.map_or_else(String::new, |gateway| format!(" through {gateway}"));
        let action = format!("add the route to {}{through}", route.dst);
        let message = route_message(index, route, gateway);
        match self.requests.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, &action) {
            Err(error) if error.errno() == Some(libc::EEXIST) && route.dst.prefix_len() == 0 => Ok(()),
            answer => answer,
        }
    }

    /// Has an interface forget who has an address.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than that it knows nothing.
    pub fn forget_neighbour(&mut self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let action = format!("forget the neighbour {address}");
        match self.requests.request(RouteNetlinkMessage::DelNeighbour(message), 0, &action) {
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENXIO)) => Ok(()),
            answer => answer,
        }
    }

    /// The addresses of an interface, or of all, each with its interface's index.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        let mut found: Vec<(u32, IpNet)> = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(message);
        self.requests.dump(request, "show addresses", |_, payload| found.extend(read::address(payload)))?;
        // Kernels before 5.0 tell all of them in any case.
        found.retain(|(of, _)| index.is_none_or(|index| *of == index));
        Ok(found)
    }

    /// The routes of the main table.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn routes(&mut self) -> Result<Vec<FoundRoute>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            self.requests.dump(request, "show routes", |_, payload| found.extend(read::route(payload)))?;
        }
        Ok(found)
    }

    /// Waits until an interface is ready to send and, if it is a bridge's member, the bridge has switched it on (without STP,
    /// forwards). From 6.8 on the kernel finishes what is pending when it is asked, so the first look is the last.
    ///
    /// # Errors
    /// Code 11: it takes longer than it may; 100: the interface is gone.
    pub fn wait_until_ready(&mut self, name: &str) -> Result<Link, Failure> {
        let begin = Instant::now();
        loop {
            let Some(link) = self.find(name)? else {
                return Err(Failure::new(code::KERNEL, format!("{name} was removed by somebody else")));
            };
            if link.is_ready {
                return Ok(link);
            }
            if begin.elapsed() > READY {
                let message = format!("{name} was not ready within {} s", READY.as_secs());
                return Err(Failure::new(code::TRY_AGAIN, message).with_details("is the bridge up?"));
            }
            std::thread::sleep(TICK);
        }
    }
}

fn route_message(index: u32, route: &Route, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    let default_scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.scope = route.scope.map_or(default_scope, RouteScope::from);
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(route.dst.network().into()), RouteAttribute::Oif(index)];
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    message.attributes.extend(route.table.map(RouteAttribute::Table));
    let mtu = route.mtu.map(RouteMetric::Mtu);
    let metrics: Vec<RouteMetric> = mtu.into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Writes a sysctl of the calling thread's namespace, if it has another value. A kernel without it has nothing to set.
///
/// # Errors
/// Code 100: it cannot be written.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    let path: PathBuf = ["/proc/sys/net", name].iter().collect();
    let written = match fs::read_to_string(&path) {
        Ok(present) if present.trim() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(|error| Failure::new(code::KERNEL, format!("cannot set {} to {value}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_of_hosts_are_read_and_others_refused() {
        assert_eq!(Mac::read("0a:58:0A:f4:01:02").map(|mac| mac.to_string()).as_deref(), Some("0a:58:0a:f4:01:02"));
        for text in [
            "",
            "0a:58:0a:f4:01",
            "0a:58:0a:f4:01:02:03",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+a:58:0a:f4:01:02",
        ] {
            assert_eq!(Mac::read(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_always_has_the_same_mac_address() {
        assert_eq!(Mac::of("10.244.1.2".parse().unwrap()).to_string(), "0a:58:0a:f4:01:02");
        let six = |text: &str| Mac::of(text.parse().unwrap());
        assert_eq!(six("fd00::2"), six("fd00::2"));
        assert_ne!(six("fd00::2"), six("fd00::3"));
    }
}
