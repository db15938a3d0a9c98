//! The outcome of a decision.

use super::reason::PassReason;
use crate::addr::{MacAddr, PortId};

/// What happens to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send it out of `port` after `rewrite`.
    Forward {
        /// The port it leaves through.
        port: PortId,
        /// What changes in its headers.
        rewrite: Rewrite,
        /// The neighbour or FDB entry that was used, an index into the workers' activity tables
        /// ([`crate::table::Activity`]), so that the loader can keep used entries alive in the kernel.
        used: u32,
    },
    /// Leave it to the kernel.
    Kernel(PassReason),
}

/// What changes in a forwarded frame's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rewrite {
    /// Bridged: not a bit.
    None,
    /// Routed: new MAC addresses, TTL or hop limit less one, IPv4 header checksum updated incrementally (RFC 1624).
    Route {
        /// The next hop's MAC address.
        destination: MacAddr,
        /// The MAC address of the interface that it leaves through.
        source: MacAddr,
    },
}
