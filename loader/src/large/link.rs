//! The two things that are changed at an end of a veth: its MTU, and the sizes up to which packets are merged and cut.
//!
//! Everything acts in the network namespace of the socket that is handed in. That is deliberate: the kernel reads links of
//! another namespace by `IFLA_TARGET_NETNSID`, but in a request that sets something it takes that attribute for an order
//! to *move* the interface of this number from the caller's namespace to the other (`do_setlink`, `net/core/rtnetlink.c`).
//! So whoever wants to change the pod's end goes there, see [`super::netns`].

use netlink_packet_core::{NlasIterator, parse_u32};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::mirror::socket;
use crate::mirror::{NetlinkError, RequestSocket};

/// Up to how many bytes an interface merges what it receives, and takes what is to be cut when it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// `gso_max_size`.
    pub gso: u32,
    /// `gro_max_size`.
    pub gro: u32,
    /// `gso_ipv4_max_size`; `None` before Linux 6.3, where IPv4 has at most 65,536.
    pub gso_ipv4: Option<u32>,
    /// `gro_ipv4_max_size`, likewise.
    pub gro_ipv4: Option<u32>,
}

impl Sizes {
    /// All of them `bytes`, as far as this kernel has them.
    pub fn all(self, bytes: u32) -> Sizes {
        Sizes { gso: bytes, gro: bytes, gso_ipv4: self.gso_ipv4.map(|_| bytes), gro_ipv4: self.gro_ipv4.map(|_| bytes) }
    }

    /// In an order that the kernel keeps: it makes the IPv4 sizes follow the others where these are at most 65,536.
    fn attributes(self) -> Vec<LinkAttribute> {
        let mut attributes = vec![LinkAttribute::GsoMaxSize(self.gso), LinkAttribute::GroMaxSize(self.gro)];
        attributes.extend(self.gso_ipv4.map(LinkAttribute::GsoIpv4MaxSize));
        attributes.extend(self.gro_ipv4.map(LinkAttribute::GroIpv4MaxSize));
        attributes
    }
}

/// An end of a veth as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Its MTU, bytes.
    pub mtu: u32,
    /// The index of its other end, in that end's namespace.
    pub peer: Option<u32>,
    /// Its sizes.
    pub sizes: Sizes,
}

/// Reads the interface `ifindex`. `None`: there is none.
///
/// # Errors
/// If the kernel does not answer.
pub fn read(requests: &mut RequestSocket, ifindex: u32) -> Result<Option<State>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let bytes = socket::emit(RouteNetlinkMessage::GetLink(message));
    let mut found = None;
    let answer = requests.get_bytes(&bytes, &format!("show interface {ifindex}"), |_, payload| {
        found = Some(state(payload));
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        answer => answer.map(|()| found),
    }
}

/// Only what is wanted is looked at: an attribute of some newer kernel that cannot be read does no harm.
fn state(payload: &[u8]) -> State {
    const HEADER: usize = 16;
    // Of linux/if_link.h.
    const GSO_MAX_SIZE: u16 = 41;
    const GRO_MAX_SIZE: u16 = 58;
    const GSO_IPV4_MAX_SIZE: u16 = 63;
    const GRO_IPV4_MAX_SIZE: u16 = 64;
    let mut state = State::default();
    for nla in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()).map_while(Result::ok) {
        let Ok(value) = parse_u32(nla.value()) else { continue };
        match nla.kind() {
            libc::IFLA_MTU => state.mtu = value,
            libc::IFLA_LINK => state.peer = Some(value),
            GSO_MAX_SIZE => state.sizes.gso = value,
            GRO_MAX_SIZE => state.sizes.gro = value,
            GSO_IPV4_MAX_SIZE => state.sizes.gso_ipv4 = Some(value),
            GRO_IPV4_MAX_SIZE => state.sizes.gro_ipv4 = Some(value),
            _ => {}
        }
    }
    state
}

/// Sets an interface's MTU, bytes.
///
/// # Errors
/// If the kernel refuses.
pub fn set_mtu(requests: &mut RequestSocket, ifindex: u32, mtu: u32) -> Result<(), NetlinkError> {
    set(requests, ifindex, vec![LinkAttribute::Mtu(mtu)], &format!("set the MTU of interface {ifindex} to {mtu}"))
}

/// Sets an interface's sizes.
///
/// # Errors
/// If the kernel refuses, as one before 5.19 does beyond 65,536 bytes.
pub fn set_sizes(requests: &mut RequestSocket, ifindex: u32, sizes: Sizes) -> Result<(), NetlinkError> {
    let action = format!("set the segmentation sizes of interface {ifindex} to {}", sizes.gso);
    set(requests, ifindex, sizes.attributes(), &action)
}

fn set(
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
