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

use crate::kernel::set_link;
use crate::mirror::socket;
use crate::mirror::{NetlinkError, RequestSocket};

/// Up to how many bytes of IPv4 an interface merges what it receives, and takes what is to be cut when it sends
/// (Linux 6.3).
///
/// IPv6 has sizes of its own (`gso_max_size`, `gro_max_size`), which are left alone: there a packet beyond 65,535 bytes
/// carries a jumbo header while it is inside of the kernel, and routing counts these 8 bytes into the segments that it will
/// become (`ip6_pkt_too_big`, `skb_gso_network_seglen`). So the kernel's own routing refuses every such packet whose
/// segments fill the MTU, and TCP that leaves a pod through it falls from gigabits to some megabits per second (seen on
/// Linux 6.18).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// `gso_ipv4_max_size`.
    pub gso: u32,
    /// `gro_ipv4_max_size`.
    pub gro: u32,
}

impl Sizes {
    /// Both of them `bytes`.
    pub fn both(bytes: u32) -> Sizes {
        Sizes { gso: bytes, gro: bytes }
    }
}

/// An end of a veth as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Its MTU, bytes.
    pub mtu: u32,
    /// The index of its other end, in that end's namespace.
    pub peer: Option<u32>,
    /// Its sizes; `None` before Linux 6.3.
    pub sizes: Option<Sizes>,
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
    const GSO_IPV4_MAX_SIZE: u16 = 63;
    const GRO_IPV4_MAX_SIZE: u16 = 64;
    let mut state = State::default();
    for nla in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()).map_while(Result::ok) {
        let Ok(value) = parse_u32(nla.value()) else { continue };
        match nla.kind() {
            libc::IFLA_MTU => state.mtu = value,
            libc::IFLA_LINK => state.peer = Some(value),
            GSO_IPV4_MAX_SIZE => state.sizes.get_or_insert_default().gso = value,
            GRO_IPV4_MAX_SIZE => state.sizes.get_or_insert_default().gro = value,
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
    set_link(requests, ifindex, vec![LinkAttribute::Mtu(mtu)], &format!("set the MTU of interface {ifindex} to {mtu}"))
}

/// Sets an interface's sizes.
///
/// # Errors
/// If the kernel refuses.
pub fn set_sizes(requests: &mut RequestSocket, ifindex: u32, sizes: Sizes) -> Result<(), NetlinkError> {
    let action = format!("set the IPv4 segmentation sizes of interface {ifindex} to {}", sizes.gso);
    let sizes = vec![LinkAttribute::GsoIpv4MaxSize(sizes.gso), LinkAttribute::GroIpv4MaxSize(sizes.gro)];
    set_link(requests, ifindex, sizes, &action)
}
