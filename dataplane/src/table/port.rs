//! Ports: the interfaces that the engine receives from and sends to.

use crate::addr::{MacAddr, PortId};
use crate::limits;

/// What hangs on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// The host end of a pod's veth pair, a member of the bridge.
    Pod,
    /// An interface towards other nodes.
    Uplink,
    /// The way into the kernel for frames that a worker already holds.
    Host,
}

/// How the frames that come in through a port are served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Path {
    /// The XDP program steers them into AF_XDP sockets, a worker decides and transmits.
    #[default]
    AfXdp,
    /// The tc program repeats the decision in the kernel.
    Kernel,
}

/// What a decision needs to know of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The interface's index in the kernel.
    pub ifindex: u32,
    /// What hangs on it.
    pub kind: PortKind,
    /// The MAC address that hosts behind this port send routed packets to: the bridge's for pods, its own for an uplink.
    pub router_mac: MacAddr,
    /// Largest IP packet that may leave through it, bytes.
    pub mtu: u32,
    /// Largest frame that its sockets carry, bytes with Ethernet header: [`limits::MAX_FRAME`] with multi-buffer support,
    /// one chunk without.
    pub max_frame: u32,
    /// Whether frames may be received and sent: the link is up and, for a bridge member, its STP state is forwarding.
    pub forwarding: bool,
    /// Whether new source MAC addresses may be learned on it (bridge port flag `learning`).
    pub learning: bool,
    /// Bridge port flag `isolated`: two isolated ports do not talk to each other.
    pub isolated: bool,
    /// Whether received frames may carry a partial L4 checksum: the interface is a veth, whose other end offloads
    /// checksums to nobody. Never true for a wire, whose corrupt checksums must stay visible.
    pub partial_checksums: bool,
    /// How frames that come in through it are served.
    pub path: Path,
    /// A pod's veth whose other end is in another network namespace, so that the kernel can hand it a frame directly
    /// (`bpf_redirect_peer` drops what stays in the same one).
    pub peer: bool,
}

/// Ports by [`PortId`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTable {
    slots: Vec<Option<Port>>,
}

impl PortTable {
    /// A table of the given ports.
    ///
    /// # Panics
    /// If a number is not below [`limits::MAX_PORTS`]: the loader hands the numbers out.
    pub fn new(ports: impl IntoIterator<Item = (PortId, Port)>) -> Self {
        let mut slots = Vec::new();
        for (id, port) in ports {
            assert!(id.index() < limits::MAX_PORTS, "port number {id} is beyond the limit");
            if slots.len() <= id.index() {
                slots.resize(id.index() + 1, None);
            }
            slots[id.index()] = Some(port);
        }
        PortTable { slots }
    }

    /// The port with this number.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&Port> {
        self.slots.get(id.index())?.as_ref()
    }

    /// All ports, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &Port)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((PortId(index as u16), slot.as_ref()?)))
    }

    /// How many ports there are.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
