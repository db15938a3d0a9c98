//! The decision: admit the frame, then bridge or route it.

use super::{PassReason, Verdict, bridge, route};
use crate::addr::PortId;
use crate::packet::{Headers, Network};
use crate::table::{PortKind, Tables};

/// Decides what happens to a frame that came in through `ingress` and whose headers are `headers`.
///
/// Never allocates, never looks at a clock, has no state: the same frame and snapshot give the same verdict.
#[inline]
pub fn decide(headers: &Headers, ingress: PortId, tables: &Tables) -> Verdict {
    match admit(headers, ingress, tables) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Kernel(reason),
    }
}

#[inline]
fn admit(headers: &Headers, ingress: PortId, tables: &Tables) -> Result<Verdict, PassReason> {
    let port = tables.ports.get(ingress).filter(|port| port.forwarding).ok_or(PassReason::PortState)?;
    if port.partial_checksums && headers.may_hide_checksum {
        return Err(PassReason::HiddenChecksum);
    }
    if !both_ends_in_cluster(headers, tables) {
        return Err(PassReason::OutsideCluster);
    }
    if headers.destination_mac == port.router_mac {
        return route::route(headers, ingress, tables);
    }
    match port.kind {
        PortKind::Pod => bridge::bridge(headers, ingress, port, tables),
        // An uplink in promiscuous mode sees frames for other stations; they are not ours to bridge.
        PortKind::Uplink | PortKind::Host => Err(PassReason::UnknownMac),
    }
}

#[inline]
fn both_ends_in_cluster(headers: &Headers, tables: &Tables) -> bool {
    match headers.network {
        Network::V4 { source, destination } => {
            tables.cluster.contains4(source) && tables.cluster.contains4(destination)
        }
        Network::V6 { source, destination } => {
            tables.cluster.contains6(source) && tables.cluster.contains6(destination)
        }
    }
}
