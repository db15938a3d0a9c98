//! Routes that change, and routes that are not Podlane's to follow.

use anyhow::{Result, ensure};
use podlane_tests::bed::{Bed, FOLLOW};
use podlane_tests::command::wait_for;
use podlane_tests::testbed::{Family, Topology};
use podlane_tests::traffic::{Datagrams, Way};

use super::ways;

/// `ip -4 …` or `ip -6 …`.
fn ip(bed: &Bed, place: &str, family: Family, line: &str) -> Result<()> {
    let mut words = vec!["ip", family.pick("-4", "-6")];
    words.extend(line.split_ascii_whitespace());
    bed.exec(place, &words).map(drop)
}

/// Waits until no ping is answered any more: at once without Podlane, when the mirror has followed with it.
fn unreachable(bed: &Bed, way: &Way) -> Result<()> {
    wait_for(&format!("no more answers, {way:?}"), FOLLOW, || {
        let (received, _) = bed.ping_output(&way.from, way.address, &["-c", "2", "-W", "0.2", "-w", "1"])?;
        Ok((received == 0).then_some(()))
    })?;
    bed.ping_fails(way).map(drop)
}

/// A network behind a pod: its route comes and goes, and packets follow it.
pub fn route_comes_and_goes(bed: &mut Bed, family: Family) -> Result<()> {
    let (network, address) =
        family.pick(("10.244.77.0/24", "10.244.77.5"), ("fd00:10:244:77::/64", "fd00:10:244:77::5"));
    let length = family.pick(32, 128);
    let pod = bed.address("pod4", family)?;
    ip(bed, "pod4", family, &format!("addr add {address}/{length} dev lo"))?;
    ip(bed, "node2", family, &format!("route add {network} via {pod}"))?;
    let (place, via) = match bed.topology {
        Topology::Direct => ("node1", bed.address("node2", family)?),
        Topology::Cloud => ("router", bed.address("node2", family)?),
    };
    let way = Way { from: "pod1".into(), to: "pod4".into(), address: address.parse()? };
    for _ in 0..2 {
        unreachable(bed, &way)?;
        ip(bed, place, family, &format!("route add {network} via {via}"))?;
        bed.warm_up(&way)?;
        ip(bed, place, family, &format!("route del {network} via {via}"))?;
    }
    unreachable(bed, &way)?;
    ip(bed, "node2", family, &format!("route del {network} via {pod}"))?;
    ip(bed, "pod4", family, &format!("addr del {address}/{length} dev lo"))
}

/// A node goes, and comes back as a new machine with another MAC address. Traffic between others loses nothing.
pub fn node_goes_and_comes(bed: &mut Bed, family: Family) -> Result<()> {
    let (way, other) = (bed.way("pod1", "pod3", family)?, bed.way("pod1", "pod2", family)?);
    bed.warm_up(&way)?;
    bed.warm_up(&other)?;
    let flow = bed.start_udp(&other, &Datagrams::steady(1000, 500))?;
    let network = bed.pod_cidr(3, family);
    let via = bed.address("node3", family)?;
    let places: &[&str] = match bed.topology {
        Topology::Direct => &["node1", "node2"],
        Topology::Cloud => &["router"],
    };
    for round in 1..=2 {
        for place in places {
            ip(bed, place, family, &format!("route del {network} via {via}"))?;
        }
        unreachable(bed, &way)?;
        let mac = format!("02:00:00:00:{round:02x}:{:02x}", family.pick(0x44, 0x66));
        bed.exec("node3", &["ip", "link", "set", "eth0", "address", &mac])?;
        for place in places {
            ip(bed, place, family, &format!("route add {network} via {via}"))?;
        }
        bed.warm_up(&way)?;
    }
    flow.finish()?.intact()
}

/// What node 1 says of routing: "on", or why it is left to the kernel.
fn routing(bed: &Bed, family: Family) -> Result<String> {
    let routing = bed.status(1)?.routing;
    Ok(family.pick(routing.ipv4, routing.ipv6))
}

/// Waits until node 1 says that of routing; nobody says anything without Podlane.
fn routing_becomes(bed: &Bed, family: Family, wanted: &str) -> Result<()> {
    if !bed.has_podlane() {
        return Ok(());
    }
    let what = format!("routing to be \"{wanted}\"");
    wait_for(&what, FOLLOW, || Ok((routing(bed, family)? == wanted).then_some(())))
}

/// A routing rule that Podlane does not mirror: the kernel decides, and `status` says why.
pub fn rules(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    let (from, to) = (bed.address("pod1", family)?, way.address);
    ip(bed, "node1", family, &format!("rule add from {from} to {to} prohibit"))?;
    routing_becomes(bed, family, "policy_rules")?;
    unreachable(bed, &way)?;
    let before = bed.counters()?;
    bed.ping(&bed.way("pod2", "pod4", family)?, 100, 3)?;
    bed.was_passed(&before, 1, "veth-pod2", "policy_rules", 3)?;
    ip(bed, "node1", family, &format!("rule del from {from} to {to} prohibit"))?;
    bed.warm_up(&way)?;
    if bed.has_podlane() {
        let routing = routing(bed, family)?;
        ensure!(routing == "on", "routing must be on again: {routing}");
    }
    Ok(())
}

/// An IPsec policy of the node that forbids what routing would allow: it holds for pods as without Podlane.
pub fn ipsec(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    let (from, to) = (bed.address("pod1", family)?, way.address);
    for direction in ["out", "fwd"] {
        let policy = format!("src {from} dst {to} dir {direction} action block");
        bed.sh("node1", &format!("ip xfrm policy add {policy}"))?;
    }
    routing_becomes(bed, family, "policy_rules")?;
    unreachable(bed, &way)?;
    bed.sh("node1", "ip xfrm policy flush")?;
    routing_becomes(bed, family, "on")?;
    bed.warm_up(&way)
}

/// A route that leads nowhere hides the one behind it, for its destination only.
pub fn blackhole(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    let neighbour = bed.way("pod1", "pod5", family)?;
    bed.warm_up(&way)?;
    for kind in ["blackhole", "unreachable", "prohibit"] {
        let route = format!("{kind} {}/{}", way.address, family.pick(32, 128));
        ip(bed, "node1", family, &format!("route add {route}"))?;
        unreachable(bed, &way)?;
        bed.warm_up(&neighbour)?;
        ip(bed, "node1", family, &format!("route del {route}"))?;
        bed.warm_up(&way)?;
    }
    Ok(())
}

/// Several next hops for one destination: the kernel chooses.
pub fn multipath(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    let hop = bed.next_hop(1, 2, family)?;
    // Another address of the next hop.
    let (place, device, second) = match bed.topology {
        Topology::Direct => ("node2", "eth0", family.pick("192.168.100.202", "fd00:192:168:100::202")),
        Topology::Cloud => ("router", "node1", family.pick("192.168.101.202", "fd00:192:168:101::202")),
    };
    let length = family.pick(24, 64);
    let network = bed.pod_cidr(2, family);
    let nodad = family.pick("", "nodad");
    ip(bed, place, family, &format!("addr add {second}/{length} dev {device} {nodad}"))?;
    ip(
        bed,
        "node1",
        family,
        &format!("route replace {network} nexthop via {hop} dev eth0 nexthop via {second} dev eth0"),
    )?;
    // With Podlane, until the mirror has followed: counted as "route_kind" then.
    wait_for("both next hops to be the kernel's", FOLLOW, || {
        let before = bed.counters()?;
        bed.ping(&way, 100, 10)?;
        Ok(bed.was_passed(&before, 1, "veth-pod1", "route_kind", 10).ok())
    })?;
    bed.tcp(&way, 1 << 20, 1 << 20)?;
    ip(bed, "node1", family, &format!("route del {network}"))?;
    if bed.topology == Topology::Direct {
        ip(bed, "node1", family, &format!("route add {network} via {hop}"))?;
    }
    ip(bed, place, family, &format!("addr del {second}/{length} dev {device}"))?;
    bed.warm_up(&way)
}
