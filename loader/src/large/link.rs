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

/// Up to how many bytes an interface merges what it receives, and takes what is to be cut when it sends; IPv4 since Linux 6.3,
/// IPv6 since 5.19. 0: not known, and not to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// `gso_ipv4_max_size`.
    pub gso: u32,
    /// `gro_ipv4_max_size`.
    pub gro: u32,
    /// `gso_max_size`, which is that of IPv6.
    #[serde(default)]
    pub gso6: u32,
    /// `gro_max_size`, which is that of IPv6.
    #[serde(default)]
    pub gro6: u32,
}

impl Sizes {
    /// `bytes` for IPv4, and nothing for IPv6.
    pub fn ipv4(bytes: u32) -> Sizes {
        Sizes { gso: bytes, gro: bytes, ..Sizes::default() }
    }

    /// `bytes` for both.
    pub fn both(bytes: u32) -> Sizes {
        Sizes { gso: bytes, gro: bytes, gso6: bytes, gro6: bytes }
    }

    /// Whether these are `put`, as far as that says anything.
    pub fn are(&self, put: &Sizes) -> bool {
        let same = |now: u32, put: u32| put == 0 || now == put;
        same(self.gso, put.gso) && same(self.gro, put.gro) && same(self.gso6, put.gso6) && same(self.gro6, put.gro6)
    }

    /// Of these only what `put` says anything of.
    pub fn as_far_as(&self, put: &Sizes) -> Sizes {
        let of = |size: u32, put: u32| if put == 0 { 0 } else { size };
        Sizes {
            gso: of(self.gso, put.gso),
            gro: of(self.gro, put.gro),
            gso6: of(self.gso6, put.gso6),
            gro6: of(self.gro6, put.gro6),
        }
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
    const GSO_MAX_SIZE: u16 = 41;
    const GRO_MAX_SIZE: u16 = 58;
    const GSO_IPV4_MAX_SIZE: u16 = 63;
    const GRO_IPV4_MAX_SIZE: u16 = 64;
    let mut state = State::default();
    let mut ipv6 = [0; 2];
    for nla in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()).map_while(Result::ok) {
        let Ok(value) = parse_u32(nla.value()) else { continue };
        match nla.kind() {
            libc::IFLA_MTU => state.mtu = value,
            libc::IFLA_LINK => state.peer = Some(value),
            GSO_MAX_SIZE => ipv6[0] = value,
            GRO_MAX_SIZE => ipv6[1] = value,
            GSO_IPV4_MAX_SIZE => state.sizes.get_or_insert_default().gso = value,
            GRO_IPV4_MAX_SIZE => state.sizes.get_or_insert_default().gro = value,
            _ => {}
        }
    }
    if let Some(sizes) = &mut state.sizes {
        [sizes.gso6, sizes.gro6] = ipv6;
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

/// Sets an interface's sizes, in the order in which the kernel reads them: a small one for IPv6 is one for IPv4 as well
/// (`netif_set_gso_max_size`).
///
/// # Errors
/// If the kernel refuses.
pub fn set_sizes(requests: &mut RequestSocket, ifindex: u32, sizes: Sizes) -> Result<(), NetlinkError> {
    let action = format!("set the segmentation sizes of interface {ifindex} to {}", sizes.gso);
    let all = [
        (sizes.gso6, LinkAttribute::GsoMaxSize(sizes.gso6)),
        (sizes.gro6, LinkAttribute::GroMaxSize(sizes.gro6)),
        (sizes.gso, LinkAttribute::GsoIpv4MaxSize(sizes.gso)),
        (sizes.gro, LinkAttribute::GroIpv4MaxSize(sizes.gro)),
    ];
    let sizes = all.into_iter().filter(|(size, _)| *size != 0).map(|(_, attribute)| attribute).collect();
    set_link(requests, ifindex, sizes, &action)
}
