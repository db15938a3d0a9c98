//! Writes to the kernel: keeping FDB entries and neighbours alive, the host port, MTUs; and the few values that are read
//! elsewhere than from netlink's route family (sysctls, channel counts).
//!
//! Everything acts in the calling thread's network namespace: sockets belong to it from when they are opened, and
//! `/proc/sys/net` shows that of the thread which opens a file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator, parse_u16, parse_u32};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE, NETLINK_XFRM};
use nix::libc;
use podlane_dataplane::MacAddr;

use crate::mirror::event::{self, Event};
use crate::mirror::socket;
use crate::mirror::world::{Link, LinkKind};
use crate::mirror::{NetlinkError, RequestSocket};

/// What went wrong while something was written to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A name of the host port is taken by somebody else's interface.
    #[error(
        "interface {name} exists and is not this instance's host port ({what}); rename or delete it, or choose another \
         instance's names"
    )]
    ForeignInterface {
        /// The interface's name.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// An interface name is not one.
    #[error("\"{0}\" is not an interface name: 1 to 15 bytes without '/' and white space")]
    BadName(String),
    /// An interface is not there.
    #[error("there is no interface {0} in this network namespace")]
    NoInterface(String),
    /// A sysctl could not be written.
    #[error("writing {path} failed: {source}")]
    Sysctl {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl KernelError {
    /// The error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            KernelError::Netlink(error) => error.errno(),
            KernelError::Sysctl { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A connection to the kernel for writing.
#[derive(Debug)]
pub struct Kernel {
    requests: RequestSocket,
    ethtool: Option<Ethtool>,
    ipsec: Option<RequestSocket>,
}

/// The names of the host port's two ends.
#[derive(Clone, Copy, Debug)]
pub struct HostPortNames<'a> {
    /// The end that Podlane transmits to.
    pub near: &'a str,
    /// The end that is a member of the bridge.
    pub member: &'a str,
}

impl Default for HostPortNames<'_> {
    fn default() -> Self {
        HostPortNames { near: "podlane0", member: "podlane1" }
    }
}

/// The host port's two interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// Index of the end that Podlane transmits to.
    pub near: u32,
    /// Index of the end that is a member of the bridge.
    pub member: u32,
}

/// The first five bytes of the host port's MAC addresses ("\xfepodl"): locally administered and higher than those of
/// vendors and of most generators, because a bridge takes the lowest address of its members for its own
/// (`br_stp_recalculate_bridge_id`). They also mark a pair as ours between its creation and its naming by an alias.
const HOST_PORT_MAC: [u8; 5] = [0xfe, b'p', b'o', b'd', b'l'];

impl Kernel {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Kernel { requests: RequestSocket::open(NETLINK_ROUTE)?, ethtool: None, ipsec: None })
    }

    /// Lets the bridge learn that `mac` is behind its member `ifindex`, or refresh what it knows, as if it had received a
    /// frame from there: a dynamic entry is created, moved, or its age set back (`NTF_USE`, `__br_fdb_add` in
    /// `net/bridge/br_fdb.c`). Like a received frame it moves a static entry too, unless that is sticky, so do not call it
    /// for an address with a static entry. Nothing happens on a port that may not learn now.
    ///
    /// # Errors
    /// If `ifindex` is not a member of a bridge, or the kernel refuses.
    pub fn learn_fdb(&mut self, ifindex: u32, mac: MacAddr) -> Result<(), KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Reachable;
        message.header.flags = NeighbourFlags::Use | NeighbourFlags::Controller;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
        let action = format!("learn {mac} on interface {ifindex}");
        Ok(self.requests.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE, &action)?)
    }

    /// Tells the kernel that the neighbour `address` on `ifindex` is in use, as if it had sent a packet there: a stale entry
    /// is checked and becomes reachable or fails (`NTF_USE`, `neigh_add` in `net/core/neighbour.c`). Never creates an
    /// entry. False: there is none.
    ///
    /// Do not call it for a configured entry ([`crate::mirror::world::NudState::is_configured`]): the kernel takes away its
    /// `permanent` state.
    ///
    /// # Errors
    /// If the kernel refuses for another reason.
    pub fn use_neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<bool, KernelError> {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour_in_use(ifindex, address));
        let action = format!("use neighbour {address} on interface {ifindex}");
        match self.requests.request(message, 0, &action) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the kernel find out who has `address` on `ifindex`, by ARP or neighbour discovery, as if it had a packet to send
    /// there (`NTF_USE` on a new entry, `neigh_add` in `net/core/neighbour.c`). Returns at once; the answer comes as a change
    /// of the neighbour table.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn resolve_neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<(), KernelError> {
        let action = format!("resolve {address} on interface {ifindex}");
        let message = RouteNetlinkMessage::NewNeighbour(neighbour_in_use(ifindex, address));
        Ok(self.requests.request(message, NLM_F_CREATE, &action)?)
    }

    /// How many IPsec policies (`ip xfrm policy`) this network namespace has.
    ///
    /// # Errors
    /// If the kernel does not answer. One without IPsec has none.
    pub fn ipsec_policies(&mut self) -> Result<u32, KernelError> {
        /// `XFRM_MSG_GETSPDINFO` and `XFRMA_SPD_INFO` (`linux/xfrm.h`).
        const GET_SPD_INFO: u16 = 0x25;
        const SPD_INFO: u16 = 1;
        if self.ipsec.is_none() {
            match RequestSocket::open(NETLINK_XFRM) {
                Ok(socket) => self.ipsec = Some(socket),
                Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(ipsec) = &mut self.ipsec else { return Ok(0) };
        // A header, which the socket completes, and flags.
        let mut request = [0; 20];
        request[4..6].copy_from_slice(&GET_SPD_INFO.to_ne_bytes());
        let mut policies = 0;
        ipsec.get_bytes(&request, "count IPsec policies", |_, payload| {
            let found = NlasIterator::new(payload.get(4..).unwrap_or_default()).map_while(Result::ok);
            for info in found.filter(|nla| nla.kind() == SPD_INFO) {
                // Inwards, outwards and forwarded; those of single sockets follow and are no business of ours.
                let counts = info.value().as_chunks::<4>().0.iter().take(3);
                policies = counts.map(|count| u32::from_ne_bytes(*count)).fold(0, u32::saturating_add);
            }
        })?;
        Ok(policies)
    }

    /// Makes the way into the kernel: a veth pair whose `member` end is a member of `bridge` that neither learns nor is
    /// flooded to, both ends up, without IPv6 addresses, with `mtu` (see [`crate::compile::host_port_mtu`]). A pair of this
    /// instance that a killed daemon left is removed first.
    ///
    /// # Errors
    /// If one of the names belongs to another interface, or the kernel refuses a step; nothing is left behind then.
    pub fn create_host_port(
        &mut self,
        bridge: u32,
        names: HostPortNames<'_>,
        instance: &str,
        mtu: u32,
    ) -> Result<HostPort, KernelError> {
        self.delete_host_port(names, instance)?;
        self.open_host_port(Some(bridge), names, instance, mtu)
    }

    /// The host port of `instance`: the one that an earlier daemon has left, put in order, or a new one. Without a bridge it
    /// is a member of none yet.
    ///
    /// # Errors
    /// As [`Kernel::create_host_port`].
    pub fn open_host_port(
        &mut self,
        bridge: Option<u32>,
        names: HostPortNames<'_>,
        instance: &str,
        mtu: u32,
    ) -> Result<HostPort, KernelError> {
        let (near, member) = (self.link(names.near)?, self.link(names.member)?);
        let is_ours = |link: &Link| link.kind == LinkKind::Veth && link.alias == alias_of(instance);
        if let (Some(near), Some(member)) = (near, member)
            && is_ours(&near)
            && is_ours(&member)
            && near.peer == Some(member.ifindex)
        {
            match self.dress_pair(bridge, names, instance) {
                Ok(port) => return Ok(port),
                Err(error) => tracing::debug!(%error, "the host port is made anew"),
            }
        }
        self.delete_host_port(names, instance)?;
        self.create_pair(names, mtu)?;
        let made = self.dress_pair(bridge, names, instance);
        if made.is_err() {
            // The first error is the one to report.
            let _ = self.delete_link(names.near);
        }
        made
    }

    /// Removes the host port of `instance` if there is one. False: there was none.
    ///
    /// # Errors
    /// If one of the names belongs to another interface, or the kernel refuses.
    pub fn delete_host_port(&mut self, names: HostPortNames<'_>, instance: &str) -> Result<bool, KernelError> {
        let mut found = false;
        for name in [names.near, names.member] {
            if let Some(link) = self.link(name)? {
                check_ours(&link, instance)?;
                found = true;
            }
        }
        // Deleting one end deletes both; only an end that was moved elsewhere would survive, and that is not ours then.
        for name in [names.near, names.member] {
            if found && self.link(name)?.is_some() {
                self.delete_link(name)?;
            }
        }
        Ok(found)
    }

    fn create_pair(&mut self, names: HostPortNames<'_>, mtu: u32) -> Result<(), KernelError> {
        let end = |name: &str, number: u8| {
            let [a, b, c, d, e] = HOST_PORT_MAC;
            vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Address(vec![a, b, c, d, e, number]),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::NumTxQueues(1),
                LinkAttribute::NumRxQueues(1),
            ]
        };
        let mut peer = LinkMessage::default();
        peer.attributes = end(names.member, 1);
        let mut message = LinkMessage::default();
        message.attributes = end(names.near, 0);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let action = format!("create the host port {} with its peer {}", names.near, names.member);
        Ok(self.requests.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &action)?)
    }

    fn dress_pair(
        &mut self,
        bridge: Option<u32>,
        names: HostPortNames<'_>,
        instance: &str,
    ) -> Result<HostPort, KernelError> {
        let index = |kernel: &mut Self, name: &str| -> Result<u32, KernelError> {
            kernel.link(name)?.map(|link| link.ifindex).ok_or_else(|| KernelError::NoInterface(name.to_owned()))
        };
        let port = HostPort { near: index(self, names.near)?, member: index(self, names.member)? };
        for (ifindex, name) in [(port.near, names.near), (port.member, names.member)] {
            let alias = LinkAttribute::IfAlias(alias_of(instance));
            self.set_link(ifindex, vec![alias], &format!("set the alias of {name}"))?;
            disable_ipv6(name)?;
        }
        if let Some(bridge) = bridge {
            self.join_bridge(port.member, names.member, bridge)?;
        }
        for (ifindex, name) in [(port.near, names.near), (port.member, names.member)] {
            self.set_up(ifindex, name)?;
        }
        Ok(port)
    }

    /// Makes the host port's member end `name` a member of `bridge`, as it must be again when the bridge was made anew.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn join_bridge(&mut self, member: u32, name: &str, bridge: u32) -> Result<(), KernelError> {
        let action = format!("make {name} a member of the bridge");
        self.set_link(member, vec![LinkAttribute::Controller(bridge)], &action)?;
        self.quieten(member, name)
    }

    /// No learning, so that frames which a worker hands to the kernel do not move their senders' FDB entries here; no
    /// flooding, so that broadcasts do not come back.
    fn quieten(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(false),
                InfoBridgePort::MulticastFlood(false),
                InfoBridgePort::BroadcastFlood(false),
            ])),
        ]));
        let action = format!("switch learning and flooding off on {name}");
        Ok(self.requests.request(RouteNetlinkMessage::NewLink(message), 0, &action)?)
    }

    fn set_up(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Ok(self.requests.request(RouteNetlinkMessage::SetLink(message), 0, &format!("bring {name} up"))?)
    }

    fn set_link(&mut self, ifindex: u32, attributes: Vec<LinkAttribute>, action: &str) -> Result<(), KernelError> {
        Ok(set_link(&mut self.requests, ifindex, attributes, action)?)
    }

    fn delete_link(&mut self, name: &str) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Ok(self.requests.request(RouteNetlinkMessage::DelLink(message), 0, &format!("delete {name}"))?)
    }

    /// Sets an interface's MTU, bytes.
    ///
    /// # Errors
    /// If the kernel refuses, for example because the device cannot.
    pub fn set_mtu(&mut self, ifindex: u32, mtu: u32) -> Result<(), KernelError> {
        let action = format!("set the MTU of interface {ifindex} to {mtu}");
        self.set_link(ifindex, vec![LinkAttribute::Mtu(mtu)], &action)
    }

    /// The interface of this name, as it is now.
    ///
    /// # Errors
    /// If `name` cannot be one, or the kernel does not answer.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let bytes = socket::emit(RouteNetlinkMessage::GetLink(message));
        let mut found = None;
        let answer = self.requests.get_bytes(&bytes, &format!("show {name}"), |header, payload| {
            if let Some(Event::Link(link)) = event::read(header, payload, true) {
                found = Some(*link);
            }
        });
        match answer {
            Ok(()) => Ok(found),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The interfaces' indices, in the order of their names.
    ///
    /// # Errors
    /// On the first name that is none or that no interface has.
    pub fn resolve_names<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<u32>, KernelError> {
        let mut indices = Vec::new();
        for name in names {
            let link = self.link(name)?.ok_or_else(|| KernelError::NoInterface(name.to_owned()))?;
            indices.push(link.ifindex);
        }
        Ok(indices)
    }

    /// Receive queues that an interface uses now, at least 1: those that a socket can be bound to. Netlink's link messages
    /// only tell how many a device was allocated with, which for a veth is the number of CPUs while it uses one.
    ///
    /// # Errors
    /// If the kernel does not answer. A driver that does not tell is taken to have one queue.
    pub fn rx_queues(&mut self, ifindex: u32) -> Result<u32, KernelError> {
        Ok(self.queues(ifindex)?.0)
    }

    /// Receive and transmit queues that an interface uses now, each at least 1.
    ///
    /// # Errors
    /// As [`Kernel::rx_queues`].
    pub fn queues(&mut self, ifindex: u32) -> Result<(u32, u32), KernelError> {
        if self.ethtool.is_none() {
            self.ethtool = Some(Ethtool::open()?);
        }
        let Some(ethtool) = &mut self.ethtool else { return Ok((1, 1)) };
        match ethtool.channels(ifindex) {
            Ok((rx, tx)) => Ok((rx.max(1), tx.max(1))),
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Ok((1, 1)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sets attributes of an interface of the socket's network namespace.
pub(crate) fn set_link(
    requests: &mut RequestSocket,
    ifindex: u32,
    attributes: Vec<LinkAttribute>,
    action: &str,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    requests.request(RouteNetlinkMessage::SetLink(message), 0, action)
}

fn neighbour_in_use(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

impl Kernel {
    /// Switches generic receive offload of an interface on or off. Returns whether that changed anything.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_gro(&mut self, ifindex: u32, on: bool) -> Result<bool, KernelError> {
        if self.ethtool.is_none() {
            self.ethtool = Some(Ethtool::open()?);
        }
        let Some(ethtool) = &mut self.ethtool else { return Ok(false) };
        if ethtool.gro(ifindex)? == on {
            return Ok(false);
        }
        ethtool.set_gro(ifindex, on)?;
        Ok(true)
    }
}

fn alias_of(instance: &str) -> String {
    format!("podlane {instance}")
}

/// Ours are: veths with this instance's alias; and, if the daemon was killed before it could set that, veths without any
/// alias that have the host port's MAC address.
fn check_ours(link: &Link, instance: &str) -> Result<(), KernelError> {
    let marked =
        link.alias == alias_of(instance) || link.alias.is_empty() && link.mac.octets().starts_with(&HOST_PORT_MAC);
    if link.kind == LinkKind::Veth && marked {
        return Ok(());
    }
    let what = if link.alias.is_empty() {
        format!("its kind is {} and it does not have Podlane's alias", link.kind.name())
    } else {
        format!("its kind is {} and its alias \"{}\"", link.kind.name(), link.alias)
    };
    Err(KernelError::ForeignInterface { name: link.name.clone(), what })
}

/// The rules of `dev_valid_name` (`net/core/dev.c`).
fn check_name(name: &str) -> Result<(), KernelError> {
    let bad = name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || name == "."
        || name == ".."
        || name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace());
    if bad { Err(KernelError::BadName(name.to_owned())) } else { Ok(()) }
}

fn disable_ipv6(name: &str) -> Result<(), KernelError> {
    let path = sysctl_path("ipv6", name, "disable_ipv6");
    match fs::write(&path, "1") {
        // A kernel without IPv6 has nothing to disable.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KernelError::Sysctl { path: path.display().to_string(), source }),
        Ok(()) => Ok(()),
    }
}

fn sysctl_path(family: &str, interface: &str, name: &str) -> PathBuf {
    ["/proc/sys/net", family, "conf", interface, name].iter().collect()
}

fn read_sysctl(family: &str, interface: &str, name: &str) -> Option<i64> {
    fs::read_to_string(sysctl_path(family, interface, name)).ok()?.trim().parse().ok()
}

/// Whether the kernel forwards packets at all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Switches {
    /// Why IPv4 is not forwarded: the sysctls that are 0. Empty: it is.
    pub ipv4_off: Vec<String>,
    /// Why IPv6 is not forwarded, likewise.
    pub ipv6_off: Vec<String>,
    /// Whether the node has IPsec policies, which say for routed packets whether they may pass and whether encrypted.
    pub ipsec: bool,
    /// IPv6 MTU of interfaces by name, bytes; where it is smaller than the interface's it counts for routed packets.
    pub ipv6_mtu: BTreeMap<String, u32>,
}

/// Reads the switches that decide whether packets which come in through the bridge or an uplink are forwarded: in IPv4 each
/// interface's own `forwarding` (`ip_route_input_slow`, `net/ipv4/route.c`), in IPv6 only that of `all` (`ip6_forward`,
/// `net/ipv6/ip6_output.c`). Interfaces that do not exist are left out.
pub fn read_switches<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> Switches {
    let mut switches = Switches::default();
    match read_sysctl("ipv6", "all", "forwarding") {
        Some(0) => switches.ipv6_off.push("net.ipv6.conf.all.forwarding".to_owned()),
        Some(_) => {}
        None => switches.ipv6_off.push("net.ipv6 (the kernel has no IPv6)".to_owned()),
    }
    for interface in interfaces {
        if read_sysctl("ipv4", interface, "forwarding") == Some(0) {
            switches.ipv4_off.push(format!("net.ipv4.conf.{interface}.forwarding"));
        }
        if let Some(mtu) = read_sysctl("ipv6", interface, "mtu") {
            switches.ipv6_mtu.insert(interface.to_owned(), u32::try_from(mtu).unwrap_or(u32::MAX));
        }
    }
    switches
}

/// The ethtool family of generic netlink (`Documentation/networking/ethtool-netlink.rst`), as far as channels and GRO go.
#[derive(Debug)]
struct Ethtool {
    requests: RequestSocket,
    family: u16,
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `ETHTOOL_A_*_HEADER` of every message, and in it the interface.
const HEADER: u16 = 1 | NESTED;
const HEADER_DEV_INDEX: u16 = 1;
/// `ETHTOOL_A_BITSET_BITS`, and in each bit its name.
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
/// The kernel's name of generic receive offload (`net/ethtool/common.c`).
const GRO: &[u8] = b"rx-gro";

impl Ethtool {
    /// Finds the family's number (`CTRL_CMD_GETFAMILY`, `linux/genetlink.h`).
    fn open() -> Result<Self, NetlinkError> {
        const CONTROL: u16 = 0x10;
        const GET_FAMILY: u8 = 3;
        const FAMILY_ID: u16 = 1;
        const FAMILY_NAME: u16 = 2;
        let mut requests = RequestSocket::open(NETLINK_GENERIC)?;
        let mut family = 0;
        let request = generic(CONTROL, GET_FAMILY, &[(FAMILY_NAME, b"ethtool\0")]);
        requests.get_bytes(&request, "find the ethtool family", |_, payload| {
            family = generic_attributes(payload)
                .find(|(kind, _)| *kind == FAMILY_ID)
                .and_then(|(_, value)| parse_u16(&value).ok())
                .unwrap_or(family);
        })?;
        Ok(Ethtool { requests, family })
    }

    /// Whether generic receive offload is on.
    fn gro(&mut self, ifindex: u32) -> Result<bool, NetlinkError> {
        const FEATURES_GET: u8 = 11;
        const ACTIVE: u16 = 4;
        let device = attribute(HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
        let request = generic(self.family, FEATURES_GET, &[(HEADER, &device)]);
        let mut on = false;
        let action = format!("show the features of interface {ifindex}");
        self.requests.get_bytes(&request, &action, |_, payload| {
            // The active features come as a list of those that are on, by name.
            for (_, bitset) in generic_attributes(payload).filter(|(kind, _)| *kind == ACTIVE) {
                for (_, bits) in nested(&bitset).filter(|(kind, _)| *kind == BITSET_BITS) {
                    on |= nested(&bits).any(|(_, bit)| {
                        nested(&bit).any(|(kind, name)| kind == BIT_NAME && name.strip_suffix(b"\0") == Some(GRO))
                    });
                }
            }
        })?;
        Ok(on)
    }

    fn set_gro(&mut self, ifindex: u32, on: bool) -> Result<(), NetlinkError> {
        const FEATURES_SET: u8 = 12;
        const WANTED: u16 = 3 | NESTED;
        const BIT: u16 = 1 | NESTED;
        const BIT_VALUE: u16 = 3;
        let device = attribute(HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
        let mut bit = attribute(BIT_NAME, &[GRO, b"\0"].concat());
        if on {
            bit.extend(attribute(BIT_VALUE, &[]));
        }
        let bits = attribute(BITSET_BITS | NESTED, &attribute(BIT, &bit));
        let request = generic(self.family, FEATURES_SET, &[(HEADER, &device), (WANTED, &bits)]);
        self.requests.get_bytes(&request, &format!("set the features of interface {ifindex}"), |_, _| {})
    }

    /// Receive and transmit channels in use: those of their own and those combined with the other kind.
    fn channels(&mut self, ifindex: u32) -> Result<(u32, u32), NetlinkError> {
        const CHANNELS_GET: u8 = 17;
        const RX_COUNT: u16 = 6;
        const TX_COUNT: u16 = 7;
        const COMBINED_COUNT: u16 = 9;
        let device = attribute(HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
        let request = generic(self.family, CHANNELS_GET, &[(HEADER, &device)]);
        let (mut rx, mut tx) = (0u32, 0u32);
        let action = format!("show the channels of interface {ifindex}");
        self.requests.get_bytes(&request, &action, |_, payload| {
            for (kind, value) in generic_attributes(payload) {
                let Ok(count) = parse_u32(&value) else { continue };
                if matches!(kind, RX_COUNT | COMBINED_COUNT) {
                    rx = rx.saturating_add(count);
                }
                if matches!(kind, TX_COUNT | COMBINED_COUNT) {
                    tx = tx.saturating_add(count);
                }
            }
        })?;
        Ok((rx, tx))
    }
}

/// A generic netlink request: 16 bytes for the netlink header, of which the type is set, then command and version.
fn generic(family: u16, command: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[4..6].copy_from_slice(&family.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    for (kind, value) in attributes {
        bytes.extend(attribute(*kind, value));
    }
    bytes
}

/// An attribute as bytes, with its padding.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes inside of one.
pub(crate) fn nested(value: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    NlasIterator::new(value).map_while(Result::ok).map(|nla| (nla.kind() & !NESTED, nla.value().to_vec()))
}

fn generic_attributes(payload: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    NlasIterator::new(payload.get(4..).unwrap_or_default())
        .map_while(Result::ok)
        .map(|nla| (nla.kind() & !NESTED, nla.value().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: LinkKind, alias: &str, mac: [u8; 6]) -> Link {
        Link { name: "podlane0".into(), kind, alias: alias.into(), mac: MacAddr::new(mac), ..Link::default() }
    }

    #[test]
    fn only_our_own_pair_may_be_removed() {
        let ours = [0xfe, b'p', b'o', b'd', b'l', 0];
        let other = [2, 0, 0, 0, 0, 1];
        assert!(check_ours(&link(LinkKind::Veth, "podlane a", other), "a").is_ok());
        assert!(check_ours(&link(LinkKind::Veth, "", ours), "a").is_ok());
        for foreign in [
            link(LinkKind::Veth, "podlane b", ours),
            link(LinkKind::Veth, "", other),
            link(LinkKind::Bridge, "podlane a", ours),
            link(LinkKind::Other("dummy".into()), "", ours),
        ] {
            let error = check_ours(&foreign, "a").unwrap_err().to_string();
            assert!(error.starts_with("interface podlane0 exists"), "{error}");
        }
    }

    #[test]
    fn names_that_the_kernel_would_not_take_are_refused() {
        for name in ["", "a/b", "with space", "sixteen-bytes-is", ".", "..", "a:b"] {
            assert!(matches!(check_name(name), Err(KernelError::BadName(_))), "{name}");
        }
        assert!(check_name("fifteen-bytes-x").is_ok());
    }
}
