//! A pod's routes that leave the node, and the metric `mtu` that is put on them: while the pod's own MTU is larger than what
//! the node's uplinks carry, and while its packets of IPv6 carry a jumbo header.
//!
//! A route is kept as the bytes that the kernel told, and changed by sending them back with another metric: so nothing else
//! about it changes, whatever attributes it has. A route that cannot be sent back as it was is no reason to change it all
//! the same; it is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_REPLACE, parse_u32};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::{LargeError, Pod};
use crate::mirror::RequestSocket;

/// Bytes of a route without what may differ between two looks at it (metrics, ages, flags): what it is known by.
pub type RouteId = Vec<u8>;

/// Bytes of the netlink header, and of the route's own.
const NETLINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
/// Places in the latter (`struct rtmsg`, `linux/rtnetlink.h`).
const FAMILY: usize = 0;
const PREFIX: usize = 1;
const TABLE: usize = 4;
const PROTOCOL: usize = 5;
const KIND: usize = 7;
const FLAGS: std::ops::Range<usize> = 8..12;
/// `RTAX_MTU`, one of the metrics.
const METRIC_MTU: u16 = 2;
/// `RTPROT_RA`: the kernel made it of a router's advertisement.
const PROTOCOL_RA: u8 = 9;
/// `RTNH_F_ONLINK`, the one flag of a route that a request may hold.
const FLAG_ONLINK: u32 = 4;

/// The metric `mtu`, bytes, by family; `None` leaves its routes alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metric {
    /// For routes of IPv4.
    pub ipv4: Option<u32>,
    /// For those of IPv6.
    pub ipv6: Option<u32>,
}

impl Metric {
    fn of(&self, route: &Route) -> Option<u32> {
        if route.0[FAMILY] == libc::AF_INET as u8 { self.ipv4 } else { self.ipv6 }
    }
}

/// A route as the kernel told it: header and attributes.
#[derive(Clone, PartialEq, Eq)]
pub struct Route(Vec<u8>);

impl Route {
    fn attributes(&self) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.0.get(ROUTE_HEADER..).unwrap_or_default())
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        self.attributes().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.attribute(kind).and_then(|value| parse_u32(value).ok())
    }

    fn flags(&self) -> u32 {
        u32::from_ne_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// The metric `mtu`, bytes.
    pub fn mtu(&self) -> Option<u32> {
        let metrics = self.attribute(libc::RTA_METRICS)?;
        attributes(metrics).find(|(kind, _)| *kind == METRIC_MTU).and_then(|(_, value)| parse_u32(value).ok())
    }

    /// What it is known by.
    pub fn id(&self) -> RouteId {
        self.without(&[libc::RTA_METRICS, libc::RTA_CACHEINFO])
    }

    /// What the kernel tells routes apart by: two with the same cannot be replaced one by one.
    fn key(&self) -> (u8, u8, u32, u8, u32, Vec<u8>, Vec<u8>) {
        let bytes = |kind| self.attribute(kind).unwrap_or_default().to_vec();
        let table = self.number(libc::RTA_TABLE).unwrap_or(u32::from(self.0[TABLE]));
        let priority = self.number(libc::RTA_PRIORITY).unwrap_or(0);
        (self.0[FAMILY], self.0[PREFIX], table, self.0[3], priority, bytes(libc::RTA_DST), bytes(libc::RTA_SRC))
    }

    /// Whether it leads through a gateway that `ifindex` leads to.
    fn leaves_through(&self, ifindex: u32) -> bool {
        let has_gateway = self.attribute(libc::RTA_GATEWAY).is_some() || self.attribute(libc::RTA_VIA).is_some();
        let direct = has_gateway && self.number(libc::RTA_OIF) == Some(ifindex);
        direct || self.hops().any(|oif| oif == ifindex)
    }

    /// Interfaces of the next hops of a multipath route (`struct rtnexthop`).
    fn hops(&self) -> impl Iterator<Item = u32> {
        let mut rest = self.attribute(libc::RTA_MULTIPATH).unwrap_or_default();
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let oif = u32::from_ne_bytes(rest.get(4..8)?.try_into().ok()?);
            rest = rest.get(length.max(8).next_multiple_of(4)..).unwrap_or_default();
            Some(oif)
        })
    }

    /// Why it cannot be sent back as it was, if so.
    fn obstacle(&self) -> Option<&'static str> {
        let expires = self.attribute(libc::RTA_CACHEINFO).and_then(|ages| ages.get(8..12));
        let lasts = expires.is_none_or(|seconds| seconds == [0; 4]);
        match () {
            () if self.attribute(libc::RTA_MULTIPATH).is_some() => Some("has several next hops"),
            () if self.attribute(RTA_NH_ID).is_some() => Some("uses a nexthop object"),
            () if self.0[PROTOCOL] == PROTOCOL_RA || !lasts => Some("comes from a router's advertisement"),
            () => None,
        }
    }

    fn without(&self, kinds: &[u16]) -> Vec<u8> {
        let mut bytes = self.0[..ROUTE_HEADER].to_vec();
        bytes[FLAGS].copy_from_slice(&(self.flags() & FLAG_ONLINK).to_ne_bytes());
        let all = whole_attributes(self.0.get(ROUTE_HEADER..).unwrap_or_default());
        for (_, whole) in all.filter(|(kind, _)| !kinds.contains(kind)) {
            bytes.extend(whole);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// A request that gives it this metric and leaves the others as they are. It replaces; it never makes a route that has
    /// gone meanwhile anew.
    fn request(&self, mtu: Option<u32>) -> Vec<u8> {
        let mut metrics = Vec::new();
        let old = attributes(self.attribute(libc::RTA_METRICS).unwrap_or_default());
        for (kind, value) in old.filter(|(kind, _)| *kind != METRIC_MTU) {
            push(&mut metrics, kind, value);
        }
        if let Some(mtu) = mtu {
            push(&mut metrics, METRIC_MTU, &mtu.to_ne_bytes());
        }
        let mut bytes = vec![0; NETLINK_HEADER];
        bytes[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        bytes.extend(self.id());
        if !metrics.is_empty() {
            push(&mut bytes, libc::RTA_METRICS, &metrics);
        }
        bytes
    }
}

/// As a person names it: destination and gateway.
impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attribute(libc::RTA_DST).and_then(address) {
            Some(destination) => write!(out, "{destination}/{}", self.0[PREFIX])?,
            None => out.write_str("default")?,
        }
        match self.attribute(libc::RTA_GATEWAY).and_then(address) {
            Some(gateway) => write!(out, " via {gateway}"),
            None => Ok(()),
        }
    }
}

/// `RTA_NH_ID` (`linux/rtnetlink.h`).
const RTA_NH_ID: u16 = 30;
/// `NLA_TYPE_MASK`: without the two flags of an attribute's type.
const TYPE: u16 = 0x3fff;

/// Types and values.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    whole_attributes(bytes).map(|(kind, whole)| (kind, &whole[4..]))
}

/// Types, and the bytes of header and value.
fn whole_attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE;
        let whole = rest.get(..length).filter(|whole| whole.len() >= 4)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole))
    })
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).map(IpAddr::V4);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).map(IpAddr::V6)).ok()
}

/// The unicast routes of both families and all tables: those that leave through a gateway behind the pod's interface, and
/// the others.
fn list(inside: &mut RequestSocket, pod: &Pod) -> Result<(Vec<Route>, Vec<Route>), LargeError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let listed = inside.dump(RouteNetlinkMessage::GetRoute(message), "list a pod's routes", |header, payload| {
            if header.message_type == libc::RTM_NEWROUTE && payload.len() >= ROUTE_HEADER {
                all.push(Route(payload.to_vec()));
            }
        });
        match listed {
            // A kernel without IPv6.
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) && family == AddressFamily::Inet6 => {}
            listed => listed.map(drop).map_err(|error| pod.failed(error))?,
        }
    }
    // Exceptions of IPv6 (learned path MTUs) are listed by some kernels; they are no routes.
    all.retain(|route| route.0[KIND] == libc::RTN_UNICAST && route.flags() & libc::RTM_F_CLONED == 0);
    Ok(all.into_iter().partition(|route| route.leaves_through(pod.peer)))
}

/// The unicast routes of all tables, and of the families that `metric` speaks of, that leave through a gateway behind the
/// pod's interface.
///
/// # Errors
/// If the kernel does not list them, or one of them cannot be changed.
pub fn leaving(inside: &mut RequestSocket, pod: &Pod, metric: Metric) -> Result<Vec<Route>, LargeError> {
    let (mut leaving, others) = list(inside, pod)?;
    leaving.retain(|route| metric.of(route).is_some());
    let mut keys: BTreeSet<_> = others.iter().map(Route::key).collect();
    for route in &leaving {
        let alike = (!keys.insert(route.key())).then_some("has the same key as another one");
        if let Some(why) = route.obstacle().or(alike) {
            return Err(LargeError::Route { name: pod.name.clone(), route: route.to_string(), why });
        }
    }
    Ok(leaving)
}

/// Puts `metric` on every route that leaves and has no such metric, or one of ours (`ours`, which is kept up to date). Routes
/// in `keep` get the metric that is said there: the kernel changes those of IPv6 with the interface's MTU
/// (`rt6_mtu_change_route`, `net/ipv6/route.c`).
///
/// # Errors
/// If the kernel refuses; what was done until then is in `ours`.
pub fn mark(
    inside: &mut RequestSocket,
    pod: &Pod,
    metric: Metric,
    keep: &BTreeMap<RouteId, u32>,
    ours: &mut BTreeSet<RouteId>,
) -> Result<(), LargeError> {
    let mut present = BTreeSet::new();
    for route in leaving(inside, pod, metric)? {
        let Some(mtu) = metric.of(&route) else { continue };
        let (id, now) = (route.id(), route.mtu());
        let wanted = match (keep.get(&id), now) {
            (Some(kept), _) => *kept,
            (None, Some(other)) if !ours.contains(&id) => other,
            (None, _) => mtu,
        };
        if now != Some(wanted) {
            replace(inside, pod, &route, Some(wanted))?;
        }
        if now.is_none() && !keep.contains_key(&id) {
            ours.insert(id.clone());
        }
        present.insert(id);
    }
    // One that went and comes back with a metric is somebody's.
    ours.retain(|id| present.contains(id));
    Ok(())
}

/// Takes our `metric` off those of `ours` that still have it.
///
/// # Errors
/// If the kernel refuses.
pub fn unmark(
    inside: &mut RequestSocket,
    pod: &Pod,
    metric: Metric,
    ours: &BTreeSet<RouteId>,
) -> Result<(), LargeError> {
    for route in list(inside, pod)?.0 {
        if ours.contains(&route.id()) && route.mtu().is_some() && route.mtu() == metric.of(&route) {
            replace(inside, pod, &route, None)?;
        }
    }
    Ok(())
}

/// Whether every route that leaves keeps within `metric`: with what is on it, or with the pod's own MTU, `mtu`.
///
/// # Errors
/// [`LargeError::Route`], which names one that does not.
pub fn keep_within(inside: &mut RequestSocket, pod: &Pod, metric: Metric, mtu: u32) -> Result<(), LargeError> {
    let larger = |route: &Route| metric.of(route).is_some_and(|most| route.mtu().unwrap_or(mtu) > most);
    match leaving(inside, pod, metric)?.into_iter().find(larger) {
        Some(route) => Err(LargeError::Route {
            name: pod.name.clone(),
            route: route.to_string(),
            why: "has a metric mtu of its own that leaves no room for the jumbo header",
        }),
        None => Ok(()),
    }
}

fn replace(inside: &mut RequestSocket, pod: &Pod, route: &Route, mtu: Option<u32>) -> Result<(), LargeError> {
    let action = match mtu {
        Some(mtu) => format!("give the route {route} of a pod the MTU {mtu}"),
        None => format!("take the MTU off the route {route} of a pod"),
    };
    match inside.request_bytes(&route.request(mtu), NLM_F_REPLACE, &action) {
        // It has gone since it was listed.
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
        answer => answer.map_err(|error| pod.failed(error)),
    }
}
