//! Bridging: the destination MAC address is another pod's (IEEE 802.1D forwarding, known unicast only).

use super::{PassReason, Rewrite, Verdict};
use crate::addr::PortId;
use crate::packet::Headers;
use crate::table::{Port, Tables};

/// Decides a frame from pod port `ingress` (whose entry is `from`) that is not addressed to the bridge itself.
#[inline]
pub fn bridge(headers: &Headers, ingress: PortId, from: &Port, tables: &Tables) -> Result<Verdict, PassReason> {
    if let Some(reason) = tables.routing.bridge_off {
        return Err(reason);
    }
    let entry = tables.fdb.get(headers.destination_mac).ok_or(PassReason::UnknownMac)?;
    if entry.port == ingress {
        return Err(PassReason::Hairpin);
    }
    let to = tables.ports.get(entry.port).filter(|to| to.forwarding).ok_or(PassReason::PortState)?;
    if from.isolated && to.isolated {
        return Err(PassReason::PortState);
    }
    fits(headers, from, to, u32::MAX)?;
    Ok(Verdict::Forward { port: entry.port, rewrite: Rewrite::None, used: entry.activity })
}

/// Whether the packet may leave through `to`: its IP packet within the MTUs, its frame within what the sockets carry.
#[inline]
pub fn fits(headers: &Headers, from: &Port, to: &Port, route_mtu: u32) -> Result<(), PassReason> {
    // The link layer's length counts too: a bridge does not look at IP and drops by frame length (kernel
    // net/bridge/br_forward.c, is_skb_forwardable), so padding beyond the IP packet must fit as well.
    if headers.l3_bytes > to.mtu.min(route_mtu) {
        return Err(PassReason::TooBig);
    }
    if headers.frame_bytes > from.max_frame.min(to.max_frame) {
        return Err(PassReason::FrameSize);
    }
    Ok(())
}
