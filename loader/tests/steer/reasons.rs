//! One test for every reason that the engine and the program share, in both families where there are two.

use podlane_dataplane::MacAddr;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::packet::l4::{ICMPV6, UDP};

use crate::frames::*;
use crate::net;
use crate::world::{A, B, C, ROUTE_MTU, UPLINK, World};

/// From another node to pod A.
const ARRIVING: Path =
    Path { source_mac: OTHER_NODE, destination_mac: UPLINK_MAC, source: (2, 5), destination: (1, 10) };

fn to_subnet(subnet: u8) -> Path {
    Path { destination: (subnet, 5), ..ROUTED }
}

#[test]
fn tcp_udp_and_icmp_between_pods_and_nodes_are_steered() {
    net::test("tcp_udp_and_icmp_between_pods_and_nodes_are_steered", || {
        let world = World::new();
        for family in FAMILIES {
            for (ingress, path) in [(A, BRIDGED), (A, ROUTED), (UPLINK, ARRIVING)] {
                world.steers(ingress, &tcp(family, path, 0));
                world.steers(ingress, &tcp(family, path, 1400));
                world.steers(ingress, &udp(family, path, (4000, 53), 0));
                world.steers(ingress, &udp(family, path, (4000, 53), 1400));
                world.steers(ingress, &echo(family, path, 56));
            }
        }
    });
}

#[test]
fn ethernet_padding_is_no_reason() {
    net::test("ethernet_padding_is_no_reason", || {
        let world = World::new();
        let mut frame = udp(Family::V4, BRIDGED, (4000, 53), 1);
        frame.resize(60, 0);
        world.steers(A, &frame);
    });
}

#[test]
fn not_ip() {
    net::test("not_ip", || {
        let world = World::new();
        let mut frame = tcp(Family::V4, BRIDGED, 100);
        for ethertype in [0x0806, 0x88cc, 0x05dc, 0x8847, 0] {
            put16(&mut frame, 12, ethertype);
            world.passes(A, &frame, PassReason::NotIp);
        }
    });
}

#[test]
fn vlan() {
    net::test("vlan", || {
        let world = World::new();
        let mut frame = tcp(Family::V4, BRIDGED, 100);
        for ethertype in [0x8100, 0x88a8] {
            put16(&mut frame, 12, ethertype);
            world.passes(A, &frame, PassReason::Vlan);
        }
    });
}

#[test]
fn group() {
    net::test("group", || {
        let world = World::new();
        for family in FAMILIES {
            for group in
                [MacAddr::BROADCAST, MacAddr::new([0x33, 0x33, 0, 0, 0, 1]), MacAddr::new([1, 0, 0x5e, 0, 0, 1])]
            {
                world.passes(A, &tcp(family, Path { destination_mac: group, ..BRIDGED }, 0), PassReason::Group);
            }
        }
    });
}

#[test]
fn malformed_ethernet() {
    net::test("malformed_ethernet", || {
        let world = World::new();
        for source in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr::new([3, 0, 0, 0, 0, 1])] {
            let frame = tcp(Family::V4, Path { source_mac: source, ..BRIDGED }, 0);
            world.passes(A, &frame, PassReason::Malformed);
        }
    });
}

#[test]
fn malformed_ipv4() {
    net::test("malformed_ipv4", || {
        let world = World::new();
        let good = tcp(Family::V4, BRIDGED, 100);
        let bend = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            world.passes(A, &frame, PassReason::Malformed);
        };
        bend(&|frame| frame[L3] = 0x44);
        bend(&|frame| frame[L3] = 0x65);
        bend(&|frame| put16(frame, L3 + 2, 19));
        bend(&|frame| put16(frame, L3 + 2, 39));
        bend(&|frame| put16(frame, L3 + 2, good.len() as u16 - 13));
        for length in 14..34 {
            bend(&|frame| frame.truncate(length));
        }
    });
}

#[test]
fn malformed_ipv6() {
    net::test("malformed_ipv6", || {
        let world = World::new();
        let good = tcp(Family::V6, BRIDGED, 100);
        let bend = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            world.passes(A, &frame, PassReason::Malformed);
        };
        bend(&|frame| frame[L3] = 0x40);
        bend(&|frame| put16(frame, L3 + 4, 19));
        bend(&|frame| put16(frame, L3 + 4, good.len() as u16 - 53));
        for length in 14..54 {
            bend(&|frame| frame.truncate(length));
        }
    });
}

#[test]
fn malformed_l4() {
    net::test("malformed_l4", || {
        let world = World::new();
        for (family, l4) in FAMILIES.into_iter().zip(L4) {
            let good = udp(family, BRIDGED, (4000, 53), 100);
            for length in [107, 109, 0] {
                let mut frame = good.clone();
                put16(&mut frame, l4 + 4, length);
                world.passes(A, &frame, PassReason::Malformed);
            }
            // The IP packet ends inside of the L4 header.
            for (good, header) in
                [(tcp(family, BRIDGED, 50), 20), (udp(family, BRIDGED, (1, 2), 50), 8), (echo(family, BRIDGED, 50), 8)]
            {
                let mut frame = good.clone();
                match family {
                    Family::V4 => put16(&mut frame, L3 + 2, 20 + header - 1),
                    Family::V6 => put16(&mut frame, L3 + 4, header - 1),
                }
                world.passes(A, &frame, PassReason::Malformed);
            }
        }
    });
}

#[test]
fn a_wrong_ipv4_checksum_is_bridged_but_not_routed() {
    net::test("a_wrong_ipv4_checksum_is_bridged_but_not_routed", || {
        let world = World::new();
        for (path, bridged) in [(BRIDGED, true), (ROUTED, false)] {
            let mut frame = tcp(Family::V4, path, 100);
            frame[L3 + 10] ^= 0x40;
            if bridged { world.steers(A, &frame) } else { world.passes(A, &frame, PassReason::Malformed) }
        }
    });
}

#[test]
fn options() {
    net::test("options", || {
        let world = World::new();
        let mut frame = tcp(Family::V4, BRIDGED, 100);
        frame[L3] = 0x46;
        world.passes(A, &frame, PassReason::Options);
        let mut frame = tcp(Family::V6, BRIDGED, 100);
        for header in [0, 43, 50, 51, 59, 60, 135, 139, 140] {
            frame[L3 + 6] = header;
            world.passes(A, &frame, PassReason::Options);
        }
    });
}

#[test]
fn fragment() {
    net::test("fragment", || {
        let world = World::new();
        let mut frame = tcp(Family::V4, BRIDGED, 100);
        for bits in [0x2000, 0x0001, 0x6000, 0x8000] {
            put16(&mut frame, L3 + 6, bits);
            world.passes(A, &frame, PassReason::Fragment);
        }
        put16(&mut frame, L3 + 6, 0x4000);
        world.steers(A, &frame);
        let mut frame = tcp(Family::V6, BRIDGED, 100);
        frame[L3 + 6] = 44;
        world.passes(A, &frame, PassReason::Fragment);
    });
}

#[test]
fn ttl() {
    net::test("ttl", || {
        let world = World::new();
        for (family, offset) in [(Family::V4, 8), (Family::V6, 7)] {
            let mut frame = tcp(family, BRIDGED, 100);
            for ttl in [0, 1] {
                frame[L3 + offset] = ttl;
                world.passes(A, &frame, PassReason::Ttl);
            }
            frame[L3 + offset] = 2;
            world.steers(A, &frame);
        }
    });
}

#[test]
fn protocol() {
    net::test("protocol", || {
        let world = World::new();
        for (family, offset) in [(Family::V4, 9), (Family::V6, 6)] {
            let mut frame = tcp(family, BRIDGED, 100);
            for protocol in [2, 47, 132, 4, 255] {
                frame[L3 + offset] = protocol;
                world.passes(A, &frame, PassReason::Protocol);
            }
        }
        let mut frame = echo(Family::V4, BRIDGED, 100);
        frame[L3 + 9] = ICMPV6;
        world.passes(A, &frame, PassReason::Protocol);
    });
}

#[test]
fn neighbour_discovery() {
    net::test("neighbour_discovery", || {
        let world = World::new();
        let mut frame = echo(Family::V6, BRIDGED, 56);
        for (kind, is_discovery) in [(132, false), (133, true), (135, true), (136, true), (137, true), (138, false)] {
            frame[L4[1]] = kind;
            if is_discovery {
                world.passes(A, &frame, PassReason::NeighbourDiscovery);
            } else {
                world.steers(A, &frame);
            }
        }
    });
}

#[test]
fn outside_cluster() {
    net::test("outside_cluster", || {
        let mut world = World::new();
        for (family, source, bytes) in [(Family::V4, L3 + 12, 4), (Family::V6, L3 + 8, 16)] {
            for path in [BRIDGED, ROUTED] {
                for address in [source, source + bytes] {
                    let mut frame = tcp(family, path, 100);
                    frame[address] = 0x20;
                    world.passes(A, &frame, PassReason::OutsideCluster);
                }
            }
        }
        world.change(|tables| tables.cluster = Default::default());
        for family in FAMILIES {
            world.passes(A, &tcp(family, BRIDGED, 100), PassReason::OutsideCluster);
        }
    });
}

#[test]
fn the_last_of_sixteen_cluster_cidrs_counts() {
    net::test("the_last_of_sixteen_cluster_cidrs_counts", || {
        let mut world = World::new();
        let v4 = (0..15).map(|other| (std::net::Ipv4Addr::new(192, 168, other, 0), 24)).chain([(ip4(0, 0), 16)]);
        let v6 = (0..15).map(|other| (ip6(200 + other, 0), 32)).chain([(ip6(0, 0), 19)]);
        let cluster = podlane_dataplane::table::Cluster::new(v4, v6).unwrap();
        world.change(|tables| tables.cluster = cluster.into());
        for family in FAMILIES {
            world.steers(A, &tcp(family, BRIDGED, 100));
        }
    });
}

#[test]
fn for_node_route_kind_and_no_route() {
    net::test("for_node_route_kind_and_no_route", || {
        let world = World::new();
        for family in FAMILIES {
            let to_node = Path { destination: (1, 1), ..ROUTED };
            world.passes(A, &tcp(family, to_node, 100), PassReason::ForNode);
            world.passes(A, &tcp(family, to_subnet(3), 100), PassReason::RouteKind);
            // Subnet 6 leads to a next hop that does not exist; subnet 9 is in no route.
            world.passes(A, &tcp(family, to_subnet(6), 100), PassReason::NoRoute);
            world.passes(A, &tcp(family, to_subnet(9), 100), PassReason::NoRoute);
        }
    });
}

#[test]
fn unknown_mac() {
    net::test("unknown_mac", || {
        let world = World::new();
        for family in FAMILIES {
            world.passes(A, &tcp(family, Path { destination_mac: NOBODY, ..BRIDGED }, 0), PassReason::UnknownMac);
            // An uplink bridges nothing, not even to an address that the FDB knows.
            world.passes(UPLINK, &tcp(family, Path { destination_mac: POD_B, ..ARRIVING }, 0), PassReason::UnknownMac);
        }
    });
}

#[test]
fn routing_switched_off_names_its_reason() {
    net::test("routing_switched_off_names_its_reason", || {
        let mut world = World::new();
        for reason in [PassReason::PolicyRules, PassReason::ForwardingOff] {
            world.change(|tables| tables.routing.ipv4_off = Some(reason));
            world.passes(A, &tcp(Family::V4, ROUTED, 0), reason);
            world.steers(A, &tcp(Family::V6, ROUTED, 0));
            world.change(|tables| {
                tables.routing.ipv4_off = None;
                tables.routing.ipv6_off = Some(reason);
            });
            world.passes(A, &tcp(Family::V6, ROUTED, 0), reason);
            world.steers(A, &tcp(Family::V4, ROUTED, 0));
            world.steers(A, &tcp(Family::V6, BRIDGED, 0));
            world.change(|tables| tables.routing.ipv6_off = None);
        }
    });
}

#[test]
fn bridge_feature() {
    net::test("bridge_feature", || {
        let mut world = World::new();
        world.change(|tables| tables.routing.bridge_off = Some(PassReason::BridgeFeature));
        for family in FAMILIES {
            world.passes(A, &tcp(family, BRIDGED, 0), PassReason::BridgeFeature);
            world.steers(A, &tcp(family, ROUTED, 0));
        }
    });
}

#[test]
fn unresolved() {
    net::test("unresolved", || {
        let world = World::new();
        for family in FAMILIES {
            world.passes(A, &tcp(family, to_subnet(4), 0), PassReason::Unresolved);
            let unknown_neighbour = Path { destination: (1, 200), ..ROUTED };
            world.passes(A, &tcp(family, unknown_neighbour, 0), PassReason::Unresolved);
        }
    });
}

#[test]
fn too_big() {
    net::test("too_big", || {
        let mut world = World::new();
        world.change_port(B, |port| port.mtu = 1000);
        for (family, headers) in [(Family::V4, 40), (Family::V6, 60)] {
            world.steers(A, &tcp(family, BRIDGED, 1000 - headers));
            world.passes(A, &tcp(family, BRIDGED, 1001 - headers), PassReason::TooBig);
            // Padding counts as the kernel counts it.
            let mut padded = tcp(family, BRIDGED, 1000 - headers);
            padded.push(0);
            world.passes(A, &padded, PassReason::TooBig);
            let limited = to_subnet(5);
            world.steers(A, &tcp(family, limited, ROUTE_MTU as usize - headers));
            world.passes(A, &tcp(family, limited, ROUTE_MTU as usize + 1 - headers), PassReason::TooBig);
        }
    });
}

#[test]
fn frame_size() {
    net::test("frame_size", || {
        let mut world = World::new();
        for port in [A, B] {
            world.change_port(port, |port| port.max_frame = 1000);
            for (family, headers) in [(Family::V4, 54), (Family::V6, 74)] {
                world.steers(A, &tcp(family, BRIDGED, 1000 - headers));
                world.passes(A, &tcp(family, BRIDGED, 1001 - headers), PassReason::FrameSize);
            }
            world.change_port(port, |port| port.max_frame = 65_014);
        }
    });
}

#[test]
fn hairpin() {
    net::test("hairpin", || {
        let world = World::new();
        for family in FAMILIES {
            world.passes(A, &tcp(family, Path { destination_mac: POD_A, ..BRIDGED }, 0), PassReason::Hairpin);
            let back = Path { destination: (1, 10), ..ROUTED };
            world.passes(A, &tcp(family, back, 0), PassReason::Hairpin);
            let transit = Path { destination: (2, 9), ..ARRIVING };
            world.passes(UPLINK, &tcp(family, transit, 0), PassReason::Hairpin);
        }
    });
}

#[test]
fn port_state() {
    net::test("port_state", || {
        let mut world = World::new();
        world.change_port(B, |port| port.forwarding = false);
        for family in FAMILIES {
            world.passes(A, &tcp(family, BRIDGED, 0), PassReason::PortState);
            let routed_to_b = Path { destination: (1, 11), ..ARRIVING };
            world.passes(UPLINK, &tcp(family, routed_to_b, 0), PassReason::PortState);
            world.passes(B, &tcp(family, BRIDGED, 0), PassReason::PortState);
        }
    });
}

#[test]
fn isolated_ports_reach_only_others() {
    net::test("isolated_ports_reach_only_others", || {
        let mut world = World::new();
        world.change_port(A, |port| port.isolated = true);
        world.change_port(C, |port| port.isolated = true);
        for family in FAMILIES {
            world.passes(A, &tcp(family, Path { destination_mac: POD_C, ..BRIDGED }, 0), PassReason::PortState);
            world.steers(A, &tcp(family, BRIDGED, 0));
        }
    });
}

#[test]
fn hidden_checksum() {
    net::test("hidden_checksum", || {
        let world = World::new();
        for family in FAMILIES {
            for port in [4789, 8472, 6081, 5555, 6080, 2152, 6635] {
                for ports in [(port, 9), (9, port)] {
                    world.passes(A, &udp(family, BRIDGED, ports, 100), PassReason::HiddenChecksum);
                    // From a wire every checksum is complete.
                    world.steers(UPLINK, &udp(family, ARRIVING, ports, 100));
                }
            }
        }
        let mut frame = udp(Family::V4, BRIDGED, (1, 2), 100);
        assert_eq!(frame[L3 + 9], UDP);
        put16(&mut frame, L4[0] + 6, 0);
        world.passes(A, &frame, PassReason::HiddenChecksum);
        let mut frame = udp(Family::V6, BRIDGED, (1, 2), 100);
        put16(&mut frame, L4[1] + 6, 0);
        world.passes(A, &frame, PassReason::HiddenChecksum);
    });
}
