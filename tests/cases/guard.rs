//! What a pod can do to others: the source guard, the limits of learning, and the frames of a neighbour that floods. Pod 1 is
//! guarded; pods 2 and 3 are not.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, FOLLOW, Least};
use podlane_tests::command::{self, wait_for};
use podlane_tests::frames::{self, Ends, Mac};
use podlane_tests::status::SourceGuard;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, sniffed};
use serde_json::Value;

/// No one listens here.
const PORT: u16 = 9;
const COUNT: u64 = 5;
/// The pause between two frames, microseconds.
const PACE_US: u64 = 100;
const BROADCAST: Mac = [0xff; 6];
/// Learned addresses that one port may have in the tables.
const MOST_LEARNED: u64 = 64;

/// Waits until a pod of node 1 is guarded with its address.
pub fn wait_for_guard(bed: &Bed, pod: &str, family: Family) -> Result<()> {
    let (port, address) = (format!("veth-{pod}"), bed.address(pod, family)?.to_string());
    wait_for(&format!("{pod} to be guarded with {address}"), FOLLOW, || {
        let status = bed.status(1)?;
        let guard = status.port(&port).and_then(|port| port.source_guard.as_ref());
        Ok(guard.is_some_and(|guard| guard.active && guard.addresses.contains(&address)).then_some(()))
    })
}

/// Frames that the guard of pod 1 has dropped.
fn guarded(bed: &Bed) -> Result<u64> {
    Ok(bed.status(1)?.port("veth-pod1").map_or(0, |port| port.guarded.total))
}

/// Frames that pod 1 is to send, and what becomes of them.
#[derive(Default)]
struct Tries(Vec<Try>);

struct Try {
    what: String,
    marker: Vec<u8>,
    frame: Vec<u8>,
    arrives: bool,
}

impl Tries {
    /// One more, made of a marker that no other one has.
    fn add(&mut self, what: impl Into<String>, arrives: bool, frame: impl FnOnce(&[u8]) -> Vec<u8>) {
        let marker = format!("<podlane-test guard {:03}>", self.0.len()).into_bytes();
        self.0.push(Try { what: what.into(), frame: frame(&marker), marker, arrives });
    }

    /// Sends each a few times. They all come to pod 3, or are all dropped by the guard.
    fn send(&self, bed: &Bed) -> Result<()> {
        let before = guarded(bed)?;
        let names: Vec<String> = (0..self.0.len()).map(|number| format!("try{number}")).collect();
        let expected = |one: &Try| if one.arrives { COUNT } else { 0 };
        let both = || names.iter().zip(&self.0);
        let matches: Vec<_> = both().map(|(name, one)| (name.as_str(), &one.marker[..], expected(one))).collect();
        let sniffer = bed.sniff("pod3", "eth0", &matches)?;
        let frames: Vec<_> = self.0.iter().map(|one| (COUNT, PACE_US, one.frame.clone())).collect();
        let (sent, refused) = bed.send_frames("pod1", "eth0", &frames)?;
        ensure!(sent == COUNT * self.0.len() as u64, "only {sent} frames were sent: {refused}");
        let seen = sniffed(sniffer)?;
        for (name, one) in both() {
            let incoming = seen.found(name)?.incoming;
            ensure!(incoming == expected(one), "{}: {incoming} of {COUNT} arrived", one.what);
        }
        let foreign = self.0.iter().filter(|one| !one.arrives).count() as u64;
        wait_for("the guard's count", FOLLOW, || Ok((guarded(bed)? - before == COUNT * foreign).then_some(())))
    }
}

/// Pod 1 sends under its own name, under others', and so that nobody should see whose name it is.
pub fn foreign_senders(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "pod3", family)?;
    bed.warm_up(&way)?;
    bed.warm_up(&bed.way("pod2", "pod3", family)?)?;
    wait_for_guard(bed, "pod1", family)?;
    let own = Ends {
        source_mac: bed.mac("pod1", "eth0")?,
        destination_mac: bed.mac("pod3", "eth0")?,
        source: bed.address("pod1", family)?,
        destination: way.address,
    };
    let to_all = Ends { destination_mac: BROADCAST, ..own };
    let taken = take_others(bed, family)?;
    let mut tries = Tries::default();
    tries.add("its own", true, |marker| own.udp(PORT, marker));
    tries.add("its own to everybody", true, |marker| to_all.udp(PORT, marker));
    tries.add("neighbours told of its own IP address", true, |marker| claim(&own, own.source, marker));
    let others = [("another pod's", bed.address("pod2", family)?), ("the gateway's", bed.address("gateway1", family)?)];
    for (whose, source) in others.into_iter().chain(taken.iter().copied()) {
        let foreign = Ends { source, ..own };
        let broadcast = Ends { source: foreign.source, ..to_all };
        tries.add(format!("{whose} IP address"), false, |marker| foreign.udp(PORT, marker));
        tries.add(format!("{whose}, to everybody"), false, |marker| broadcast.udp(PORT, marker));
        tries.add(format!("{whose} behind a tag"), false, |marker| tagged(&foreign.udp(PORT, marker)));
        tries.add(format!("{whose} in a fragment"), false, |marker| fragment(&foreign, marker));
        tries.add(format!("{whose} said to be here"), false, |marker| claim(&own, foreign.source, marker));
        if family == Family::V6 {
            tries.add(format!("{whose} said so in a fragment"), false, |marker| {
                hidden_claim(&own, foreign.source, marker)
            });
        }
    }
    let macs = [bed.mac("pod2", "eth0")?, bed.mac("node1", "cbr0")?, [0; 6], [0x01, 0, 0x5e, 0, 0, 1]];
    for source_mac in macs {
        let foreign = Ends { source_mac, ..own };
        tries.add(frames::mac_text(source_mac), false, |marker| foreign.udp(PORT, marker));
    }
    let nobody = Ends { source: family.pick("0.0.0.0", "::").parse()?, ..to_all };
    tries.add("an address still to come", true, |marker| nobody.udp(PORT, marker));
    // What the documentation says is not seen: the inside of a tunnel.
    let foreign = Ends { source: bed.address("pod2", family)?, ..own };
    tries.add("a tunnel", true, |marker| {
        own.ip_packet(family.pick(4, 41), &foreign.udp(PORT, marker)[frames::ETHERNET..])
    });
    tries.send(bed)?;
    for (_, address) in taken {
        bed.exec("pod1", &["ip", "address", "del", &address.to_string(), "dev", "eth0"])?;
    }
    tables_stay(bed, &own, family)?;
    if family == Family::V4 { outlives_the_daemon(bed, &own) } else { Ok(()) }
}

/// Pod 1 gives itself addresses that are not to be had: of a pod on another node, and of its IPv6 router on the bridge.
fn take_others(bed: &mut Bed, family: Family) -> Result<Vec<(&'static str, IpAddr)>> {
    bed.expect_complaint("a pod has addresses that it may not send from");
    let mut others = vec![("another node's pod's", bed.address("pod4", family)?)];
    if family == Family::V6 {
        let shown = bed.exec("node1", &["ip", "-6", "-o", "address", "show", "dev", "cbr0", "scope", "link"])?;
        let router = shown.split_ascii_whitespace().find_map(|word| word.strip_suffix("/64")?.parse().ok());
        others.push(("the router's", router.context("the bridge has no link-local address")?));
    }
    for (_, address) in &others {
        let text = address.to_string();
        bed.sh("pod1", &format!("ip address add {text} dev eth0 {}", family.pick("", "nodad")))?;
        wait_for(&format!("{text} to be refused"), FOLLOW, || {
            let status = bed.status(1)?;
            let guard = status.port("veth-pod1").and_then(|port| port.source_guard.as_ref());
            let is_refused = |guard: &SourceGuard| guard.refused.iter().any(|refused| refused.starts_with(&text));
            Ok(guard.is_some_and(is_refused).then_some(()))
        })?;
    }
    Ok(others)
}

/// With somebody in front of its interface pod 1 is guarded as before, by the next daemon too.
fn outlives_the_daemon(bed: &mut Bed, own: &Ends) -> Result<()> {
    // It is down, so that it does no more than be there, and take what comes in.
    bed.sh("pod1", "ip link add name before type bridge; ip link set eth0 master before")?;
    bed.end_daemon(1)?;
    bed.start_daemon(1)?;
    wait_for_guard(bed, "pod1", Family::V4)?;
    let foreign = Ends { source: bed.address("pod2", Family::V4)?, ..*own };
    let mut tries = Tries::default();
    tries.add("its own", true, |marker| own.udp(PORT, marker));
    tries.add("another pod's, with a bridge before its interface", false, |marker| foreign.udp(PORT, marker));
    tries.send(bed)?;
    bed.exec("pod1", &["ip", "link", "del", "before"])?;
    bed.warm_up(&bed.way("pod1", "pod3", Family::V4)?)
}

/// With a priority tag in front of what it holds, which receivers take off.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat()
}

/// The first fragment of a larger packet.
fn fragment(ends: &Ends, marker: &[u8]) -> Vec<u8> {
    if ends.is_ipv4() {
        let mut frame = ends.udp(PORT, marker);
        frame[frames::ETHERNET + 6] = 0x20;
        frames::fix_ipv4_header(&mut frame);
        return frame;
    }
    let header = [17, 0, 0, 1, 0, 0, 0, 7];
    ends.ip_packet(44, &[&header, marker].concat())
}

/// Says that an address is at the MAC address of `own`: an ARP reply to everybody, or a neighbour advertisement from the
/// sender's own address. The marker follows behind it, where nobody looks.
fn claim(own: &Ends, address: IpAddr, marker: &[u8]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let to_all = Ends { destination_mac: BROADCAST, ..*own };
            let addresses = [&own.source_mac[..], &address.octets(), &BROADCAST, &address.octets()].concat();
            to_all.ethernet(0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 2], &addresses[..], marker].concat())
        }
        IpAddr::V6(address) => {
            let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0], &address.octets()[..], &[2, 1], &own.source_mac, marker];
            let mut frame = own.ip_packet(58, &message.concat());
            frame[frames::ETHERNET + 7] = 255;
            frame
        }
    }
}

/// The same for IPv6, in a fragment that is the whole packet.
fn hidden_claim(own: &Ends, address: IpAddr, marker: &[u8]) -> Vec<u8> {
    let plain = claim(own, address, marker);
    let (header, message) = plain.split_at(frames::ETHERNET + 40);
    let mut frame = [header, &[58, 0, 0, 0, 0, 0, 0, 9], message].concat();
    frame[frames::ETHERNET + 4..][..2].copy_from_slice(&(message.len() as u16 + 8).to_be_bytes());
    frame[frames::ETHERNET + 6] = 44;
    frame
}

/// Flooded with MAC addresses, the bridge learns none of them; entries of others, static ones too, are where they were.
fn tables_stay(bed: &Bed, own: &Ends, family: Family) -> Result<()> {
    let fixed: Mac = [0x06, 0, 0, 0xff, 0, family.pick(4, 6)];
    bed.exec("node1", &["bridge", "fdb", "replace", &frames::mac_text(fixed), "dev", "veth-pod2", "master", "static"])?;
    let entries = [bed.mac("pod2", "eth0")?, fixed].map(|mac| format!("{} dev veth-pod2 ", frames::mac_text(mac)));
    let before = guarded(bed)?;
    let made_up = |number: u64| [0x06, 0, 0, family.pick(4, 6), (number >> 8) as u8, number as u8];
    let flood = (0..2000).map(|number| (1, 0, Ends { source_mac: made_up(number), ..*own }.udp(PORT, b"flood")));
    let foreign = Ends { source_mac: fixed, ..*own }.udp(PORT, b"flood");
    bed.send_frames("pod1", "eth0", &flood.chain([(10, 0, foreign)]).collect::<Vec<_>>())?;
    wait_for("the flood to be dropped", FOLLOW, || Ok((guarded(bed)? - before == 2010).then_some(())))?;
    let fdb = bed.exec("node1", &["bridge", "fdb", "show", "br", "cbr0"])?;
    for entry in entries {
        ensure!(fdb.contains(&entry), "'{entry}' is not where it was:\n{fdb}");
    }
    ensure!(!fdb.contains(&format!("06:00:00:0{}:", family.pick(4, 6))), "made-up addresses were learned:\n{fdb}");
    bed.exec("node1", &["bridge", "fdb", "del", &frames::mac_text(fixed), "dev", "veth-pod2", "master"])?;
    bed.warm_up(&bed.way("pod2", "pod3", family)?)
}

/// A pod that nobody guards makes up more addresses than one port may have in the tables.
pub fn learning_limits(bed: &mut Bed) -> Result<()> {
    let family = Family::V4;
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let own = Ends {
        source_mac: bed.mac("pod3", "eth0")?,
        destination_mac: bed.mac("pod2", "eth0")?,
        source: bed.address("pod3", family)?,
        destination: way.address,
    };
    let known = || -> Result<u64> {
        let mut status = bed.podlane(1)?;
        status.args(["status", "--json", "--instance", &bed.instance(1)]);
        let status: Value = serde_json::from_str(&command::run(&mut status, FOLLOW)?)?;
        status["tables"]["fdb"].as_u64().context("tables.fdb")
    };
    let usual = known()?;
    let made_up = |number: u64| [0x06, 0, 0, 0x33, (number >> 8) as u8, number as u8];
    let flood = (0..1000).map(|number| (1, 200, Ends { source_mac: made_up(number), ..own }.udp(PORT, b"flood")));
    bed.send_frames("pod3", "eth0", &flood.collect::<Vec<_>>())?;
    wait_for("the port to have learned something", FOLLOW, || Ok((known()? > usual + 32).then_some(())))?;
    wait_for("others' packets through Podlane", FOLLOW, || {
        let before = bed.counters()?;
        bed.udp(&way, &Datagrams::windowed(&[64, 1400], 500))?.intact()?;
        Ok(bed.went_through(&before, &way, Least::packets(500)).ok())
    })?;
    let more = known()? - usual;
    ensure!(more <= MOST_LEARNED, "{more} made-up addresses are in the tables");
    bed.exec("node1", &["ip", "link", "set", "dev", "veth-pod3", "type", "bridge_slave", "fdb_flush"])?;
    wait_for("the port to have forgotten them", FOLLOW, || Ok((known()? <= usual).then_some(())))?;
    bed.warm_up(&bed.way("pod3", "pod2", family)?)
}

/// A neighbour that sends as fast as it can takes no frames from the others: no queue of theirs runs dry, and nothing of what
/// they send is lost for that.
pub fn flooding_neighbour(bed: &mut Bed, family: Family) -> Result<()> {
    let (way, flooded) = (bed.way("pod1", "pod4", family)?, bed.way("pod2", "pod3", family)?);
    bed.warm_up(&way)?;
    bed.warm_up(&flooded)?;
    let ran_dry = |bed: &Bed| -> Result<u64> {
        let status = bed.status(1)?;
        let port = status.port("veth-pod1").context("no port of pod 1")?;
        Ok(port.socket_drops.get("fill_ring_empty").copied().unwrap_or(0) + port.dropped.total)
    };
    let before = ran_dry(bed)?;
    let flood = bed.start_udp(&flooded, &Datagrams::steady(64, 0))?;
    let received = bed.udp(&way, &Datagrams::windowed(&[64, 1400], 3000));
    let flood = flood.finish()?;
    let received = received?;
    received.intact()?;
    ensure!(flood.sent > received.sent, "the neighbour did not flood: {flood:?}");
    flood.unharmed()?;
    let after = ran_dry(bed)?;
    ensure!(after == before, "{} of pod 1's frames were lost for want of frames or room", after - before);
    Ok(())
}
