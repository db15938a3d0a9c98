//! The decision: admit the frame, then bridge or route it.

use super::{PassReason, Verdict, bridge, route};
use crate::addr::PortId;
use crate::packet::{Headers, Network};
use crate::table::{Path, Port, PortKind, Tables};

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
    if port.partial_checksums && port.path == Path::AfXdp && headers.may_hide_checksum {
        return Err(PassReason::HiddenChecksum);
    }
    if !both_ends_in_cluster(headers, tables) {
        return Err(PassReason::OutsideCluster);
    }
    if !sender_is_known(headers, ingress, port, tables) {
        return Err(PassReason::UnknownSource);
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

/// Whether the bridge knows the sender to be where it is. What a worker forwards it reports, and the loader teaches the
/// bridge; nobody reports what the kernel path forwards, so an unknown or moved sender is shown to the bridge itself.
#[inline]
fn sender_is_known(headers: &Headers, ingress: PortId, port: &Port, tables: &Tables) -> bool {
    if port.kind != PortKind::Pod || port.path != Path::Kernel || !port.learning {
        return true;
    }
    tables.fdb.get(headers.source_mac).is_some_and(|entry| entry.port == ingress)
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
