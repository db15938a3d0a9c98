//! Traces over tables that were made by hand: one node with two pods, an uplink, and another node behind it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use podlane_dataplane::limits;
use podlane_dataplane::table::{Adjacency, Cluster, Fdb, FdbEntry, Fib, HostTable, LinkId, NextHop, PortTable};

use super::*;

const POD1: PortId = PortId(1);
const POD2: PortId = PortId(2);
const UPLINK: PortId = PortId(3);
const BRIDGE_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xbb]);
const UPLINK_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xaa]);
const GATEWAY_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0xee]);

fn pod_mac(port: PortId) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 1, port.0 as u8])
}

fn tables() -> Tables {
    let port = |ifindex, kind, router_mac, path| Port {
        ifindex,
        kind,
        router_mac,
        mtu: if kind == PortKind::Uplink { 1400 } else { 1500 },
        max_frame: limits::MAX_FRAME as u32,
        forwarding: true,
        learning: true,
        isolated: false,
        partial_checksums: kind == PortKind::Pod,
        path,
        peer: kind == PortKind::Pod,
    };
    let entry = |port: PortId| (pod_mac(port), FdbEntry { port, is_static: false, activity: 0 });
    let adjacency = |port, destination, source| Adjacency { port, destination, source, activity: 0 };
    let mut hosts = HostTable::default();
    for (index, pod) in [(1, POD1), (2, POD2)] {
        hosts.insert4(LinkId::BRIDGE, Ipv4Addr::new(10, 244, 1, 1 + pod.0 as u8), index);
        hosts.insert6(LinkId::BRIDGE, Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1 + pod.0), index);
        hosts.insert6(LinkId::BRIDGE, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, pod.0), index);
    }
    hosts.insert4(LinkId::uplink(UPLINK), Ipv4Addr::new(192, 0, 2, 2), 0);
    let next_hop = |action| NextHop { action, mtu: u32::MAX };
    Tables {
        generation: 7,
        ports: Arc::new(PortTable::new([
            (POD1, port(11, PortKind::Pod, BRIDGE_MAC, Path::AfXdp)),
            (POD2, port(12, PortKind::Pod, BRIDGE_MAC, Path::Kernel)),
            (UPLINK, port(13, PortKind::Uplink, UPLINK_MAC, Path::AfXdp)),
        ])),
        fdb: Arc::new(Fdb::new([entry(POD1), entry(POD2)]).0),
        fib4: Arc::new(Fib::new([
            (Ipv4Addr::new(10, 244, 1, 0).to_bits(), 24, 0),
            (Ipv4Addr::new(10, 244, 1, 1).to_bits(), 32, 2),
            (Ipv4Addr::new(10, 244, 2, 0).to_bits(), 24, 1),
        ])),
        fib6: Arc::new(Fib::new([(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0).to_bits(), 64, 0)])),
        next_hops: Arc::new(vec![
            next_hop(NextHopAction::OnLink(LinkId::BRIDGE)),
            next_hop(NextHopAction::Gateway(0)),
            next_hop(NextHopAction::Kernel(PassReason::ForNode)),
        ]),
        adjacencies: Arc::new(vec![
            adjacency(UPLINK, GATEWAY_MAC, UPLINK_MAC),
            adjacency(POD1, pod_mac(POD1), BRIDGE_MAC),
            adjacency(POD2, pod_mac(POD2), BRIDGE_MAC),
        ]),
        hosts: Arc::new(hosts),
        cluster: Arc::new(
            Cluster::new(
                [(Ipv4Addr::new(10, 244, 0, 0), 16)],
                [(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 48)],
            )
            .unwrap(),
        ),
        ..Tables::default()
    }
}

fn names() -> Names {
    [(POD1, "veth-pod1"), (POD2, "veth-pod2"), (UPLINK, "eth0")].map(|(port, name)| (port, name.to_owned())).into()
}

fn question(from: &str, to: &str) -> Question {
    Question {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: Protocol::Icmp,
        port: 80,
        bytes: DEFAULT_BYTES,
        ttl: DEFAULT_TTL,
        ipv6: false,
        may_resolve: false,
    }
}

fn ask(question: &Question) -> Trace {
    trace(question, &tables(), &names(), &World::default()).unwrap()
}

fn places(trace: &Trace) -> Vec<&str> {
    trace.steps.iter().map(|step| step.at.as_str()).collect()
}

#[test]
fn a_neighbour_is_bridged_in_both_families_and_by_every_kind_of_name() {
    for (from, to) in [
        ("10.244.1.2", "10.244.1.3"),
        ("veth-pod1", "10.244.1.3"),
        ("veth-pod1", "veth-pod2"),
        ("fd00:10:244:1::2", "veth-pod2"),
        ("veth-pod1", "fd00:10:244:1::3"),
    ] {
        let trace = ask(&question(from, to));
        assert_eq!(places(&trace), ["pod", "veth-pod1", "bridge", "veth-pod2", "pod"], "{from} {to}");
        assert_eq!((trace.handled_by, trace.egress.as_deref()), (Handler::Podlane, Some("veth-pod2")));
        assert!(trace.steps[1].what.contains("af_xdp") && trace.steps[2].what.contains("02:00:00:00:01:02"));
    }
}

#[test]
fn another_node_is_reached_by_route_and_its_packets_come_back() {
    let trace = ask(&question("veth-pod2", "10.244.2.9"));
    assert_eq!(places(&trace), ["pod", "veth-pod2", "route", "neighbour", "eth0", "network"]);
    assert!(trace.steps[1].what.contains("path kernel"), "{trace:?}");
    assert!(trace.steps[2].what.contains("192.0.2.2") && trace.steps[3].what.contains("02:00:00:00:00:ee"));
    let back = ask(&question("10.244.2.9", "10.244.1.3"));
    assert_eq!(places(&back), ["network", "eth0", "route", "neighbour", "veth-pod2", "pod"]);
    assert_eq!(back.ingress, "eth0");
}

#[test]
fn what_the_kernel_handles_is_told_with_its_reason() {
    let reason = |question: &Question| ask(question).reason;
    let usual = question("veth-pod1", "10.244.1.3");
    assert_eq!(reason(&Question { ttl: 1, ..usual.clone() }).as_deref(), Some("ttl"));
    assert_eq!(reason(&Question { bytes: 1501, ..usual.clone() }).as_deref(), Some("fragment"));
    let far = Question { bytes: 1401, ..question("veth-pod1", "10.244.2.9") };
    assert_eq!(reason(&far).as_deref(), Some("too_big"));
    assert_eq!(reason(&Question { bytes: 1400, ..far }), None);
    assert_eq!(reason(&Question { bytes: 1500, ..usual.clone() }), None);
    let tunnel = Question { protocol: Protocol::Udp, port: 4789, ..usual };
    assert_eq!(reason(&tunnel).as_deref(), Some("hidden_checksum"));
    for (to, expected) in [
        ("10.244.1.1", "for_node"),
        ("10.244.1.77", "group"),
        ("10.244.3.1", "no_route"),
        ("1.1.1.1", "outside_cluster"),
    ] {
        let trace = ask(&question("veth-pod1", to));
        assert_eq!((trace.reason.as_deref(), trace.handled_by), (Some(expected), Handler::Kernel), "{to}");
        assert_eq!(places(&trace).last(), Some(&"kernel"));
    }
}

#[test]
fn a_question_about_nobody_is_answered_with_a_sentence() {
    let error = |from: &str, to: &str| trace(&question(from, to), &tables(), &names(), &World::default()).unwrap_err();
    assert_eq!(error("veth9", "10.244.1.3"), TraceError::Unknown("veth9".into()));
    assert_eq!(error("eth0", "10.244.1.3"), TraceError::Uplink("eth0".into()));
    assert_eq!(error("10.244.1.2", "fd00::1").to_string(), "10.244.1.2 and fd00::1 are of different families");
    assert!(matches!(error("10.244.1.2", "veth-pod1"), TraceError::Itself(_)));
    assert!(matches!(error("10.244.1.1", "veth-pod1"), TraceError::Node(_)));
    assert!(matches!(error("10.9.9.9", "veth-pod1"), TraceError::Elsewhere(_)));
    let short = Question { bytes: 20, protocol: Protocol::Tcp, ..question("veth-pod1", "veth-pod2") };
    assert_eq!(trace(&short, &tables(), &names(), &World::default()), Err(TraceError::TooShort(40)));
    let long = Question { bytes: u32::MAX, ..question("veth-pod1", "veth-pod2") };
    assert_eq!(trace(&long, &tables(), &names(), &World::default()), Err(TraceError::TooLong));
    let mut empty = tables();
    empty.hosts = Arc::default();
    let nobody = trace(&question("veth-pod1", "10.244.1.3"), &empty, &names(), &World::default()).unwrap_err();
    assert_eq!(nobody, TraceError::Nobody { name: "veth-pod1".into(), family: "IPv4" });
}

#[test]
fn only_unknown_neighbours_on_the_bridge_are_to_be_resolved() {
    let unknown = |from: &str, to: &str| unresolved(&question(from, to), &tables());
    assert_eq!(unknown("10.244.1.2", "10.244.1.3"), Vec::<IpAddr>::new());
    assert_eq!(unknown("10.244.1.77", "10.244.2.9"), ["10.244.1.77".parse::<IpAddr>().unwrap()]);
    assert_eq!(unknown("veth-pod1", "fd00:10:244:1::77"), ["fd00:10:244:1::77".parse::<IpAddr>().unwrap()]);
    assert_eq!(unknown("1.1.1.1", "10.244.1.1"), Vec::<IpAddr>::new());
}

#[test]
fn the_drawing_fits_and_the_largest_packets_can_be_asked_for() {
    for (protocol, ipv6) in
        [(Protocol::Icmp, false), (Protocol::Tcp, true), (Protocol::Udp, true), (Protocol::Udp, false)]
    {
        let question = Question { protocol, ipv6, bytes: 65_535, ..question("veth-pod1", "veth-pod2") };
        let trace = ask(&question);
        assert_eq!(trace.reason.as_deref(), Some("fragment"));
        let text = trace.render();
        assert!(text.lines().all(|line| line.chars().count() <= crate::status::WIDTH), "{text}");
        assert!(text.contains("`podlane explain fragment`"), "{text}");
        let json = serde_json::to_string(&trace).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&json).unwrap(), trace);
    }
}
