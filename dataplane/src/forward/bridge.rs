//! Bridging: the destination MAC address is another pod's (IEEE 802.1D forwarding, known unicast only).

use super::{PassReason, Rewrite, Verdict};
use crate::addr::PortId;
use crate::packet::{ETHERNET_BYTES, Headers};
use crate::table::{Path, Port, Tables};

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

/// Whether the frame may leave through `to`: within the MTUs, and within what the sockets on the way carry, if it goes that
/// way.
///
/// The MTU is compared with everything behind the Ethernet header. That is the IP packet, or more if there is padding behind
/// it: a bridge does not look at IP and drops by length of the frame (kernel `net/core/dev.c`, `is_skb_forwardable`), so what
/// looks short to IP must not pass here as a long frame.
#[inline]
pub fn fits(headers: &Headers, from: &Port, to: &Port, route_mtu: u32) -> Result<(), PassReason> {
    if headers.wire_bytes.saturating_sub(ETHERNET_BYTES as u32) > to.mtu.min(route_mtu) {
        return Err(PassReason::TooBig);
    }
    if from.path == Path::AfXdp && headers.frame_bytes > from.max_frame.min(to.max_frame) {
        return Err(PassReason::FrameSize);
    }
    Ok(())
}
