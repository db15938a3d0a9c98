//! Frames as such: counted one by one, learned from, flooded, and broken ones.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, FOLLOW, Least};
use podlane_tests::command::wait_for;
use podlane_tests::frames::{self, Checksum, ETHERNET, Ends, Mac};
use podlane_tests::testbed::{Family, Topology};
use podlane_tests::traffic::{Way, sniffed};

use super::{back, ways};

/// No one listens here.
const PORT: u16 = 9;

/// From a pod to another: with the other's MAC address on the same node, with the gateway's across nodes.
fn ends(bed: &Bed, way: &Way, family: Family) -> Result<Ends> {
    let node = bed.node_of(&way.from)?;
    let destination_mac = if bed.node_of(&way.to)? == node {
        bed.mac(&way.to, "eth0")?
    } else {
        bed.mac(&format!("node{node}"), "cbr0")?
    };
    Ok(Ends {
        source_mac: bed.mac(&way.from, "eth0")?,
        destination_mac,
        source: bed.address(&way.from, family)?,
        destination: way.address,
    })
}

/// Bytes that no other frame contains.
fn marker(text: &str) -> Vec<u8> {
    format!("<podlane-test {text}>").into_bytes()
}

/// Exactly so many frames at once: one, two, and one more than a veth's ring or a batch holds.
pub fn bursts(bed: &mut Bed, family: Family) -> Result<()> {
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        for way in [way.clone(), back(bed, &way, family)?] {
            for count in [1, 2, 257] {
                burst(bed, &way, family, count).with_context(|| format!("{count} frames, {way:?}"))?;
            }
        }
    }
    Ok(())
}

fn burst(bed: &Bed, way: &Way, family: Family, count: u64) -> Result<()> {
    let ends = ends(bed, way, family)?;
    let marker = marker(&format!("burst {count}"));
    let frame = ends.udp(PORT, &marker);
    let before = bed.counters()?;
    let sniffer = bed.sniff(&way.to, "eth0", &[("burst", &marker, count)])?;
    let (sent, refused) = bed.send_frames(&way.from, "eth0", &[(count, 0, frame.clone())])?;
    ensure!(sent == count, "only {sent} frames were sent: {refused}");
    // The receiver's "port unreachable" answers quote the frame, but leave the pod: only what comes in is counted.
    let found = sniffed(sniffer)?.found("burst")?;
    ensure!(found.incoming == count, "{} frames arrived", found.incoming);
    bed.went_through(&before, way, Least::packets(count))?;
    let [arrived] = found.frames.as_slice() else {
        anyhow::bail!("the same frame arrived in {} different shapes", found.frames.len());
    };
    if bed.node_of(&way.from)? == bed.node_of(&way.to)? {
        ensure!(*arrived == frame, "a bridged frame was changed: {}", frames::to_hex(arrived));
        return Ok(());
    }
    let routers = match bed.topology {
        Topology::Direct => 2,
        Topology::Cloud => 3,
    };
    let node = bed.node_of(&way.to)?;
    let mut expected = Ends {
        source_mac: bed.mac(&format!("node{node}"), "cbr0")?,
        destination_mac: bed.mac(&way.to, "eth0")?,
        ..ends
    }
    .udp_with_hops(64 - routers, PORT, &marker);
    if ends.is_ipv4() {
        // The builder's identification is its own; everything else must be equal, the header checksum included.
        expected[ETHERNET + 4..ETHERNET + 8].copy_from_slice(&frame[ETHERNET + 4..ETHERNET + 8]);
        frames::fix_ipv4_header(&mut expected);
    }
    ensure!(
        *arrived == expected,
        "a routed frame arrived as\n{}\nand not as\n{}",
        frames::to_hex(arrived),
        frames::to_hex(&expected)
    );
    Ok(())
}

/// Unknown unicast, broadcast and multicast reach every other pod of the node once and unchanged, and no other node.
pub fn flooding(bed: &mut Bed, family: Family) -> Result<()> {
    const COUNT: u64 = 10;
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let plain = ends(bed, &way, family)?;
    let group: IpAddr = family.pick("239.1.2.3", "ff05::1234").parse()?;
    let stranger: IpAddr = family.pick("10.244.1.250", "fd00:10:244:1::250").parse()?;
    let kinds: [(&str, Mac, IpAddr); 3] = [
        ("unicast", [0x02, 0, 0, 0xee, 0xee, family.pick(4, 6)], stranger),
        ("broadcast", [0xff; 6], stranger),
        ("multicast", frames::group_mac(group), group),
    ];
    for (name, destination_mac, destination) in kinds {
        let marker = marker(&format!("flood {name}"));
        let frame = Ends { destination_mac, destination, ..plain }.udp(PORT, &marker);
        let near = ["pod2", "pod3"].map(|pod| bed.sniff(pod, "eth0", &[(name, &marker, COUNT)]));
        let others = ["pod1", "pod4"].map(|pod| bed.sniff(pod, "eth0", &[(name, &marker, 0)]));
        let (sent, refused) = bed.send_frames("pod1", "eth0", &[(COUNT, 0, frame.clone())])?;
        ensure!(sent == COUNT, "only {sent} frames were sent: {refused}");
        for sniffer in near {
            let found = sniffed(sniffer?)?.found(name)?;
            ensure!(
                found.incoming == COUNT && found.frames == [frame.clone()],
                "{name}: a pod of the node got {found:?}"
            );
        }
        for sniffer in others {
            let found = sniffed(sniffer?)?.found(name)?;
            ensure!(found.incoming == 0, "{name}: the sender or another node's pod got {found:?}");
        }
    }
    Ok(())
}

/// A MAC address that is heard behind one port, then behind another: frames follow it.
pub fn learned_mac_moves(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let plain = ends(bed, &way, family)?;
    let nomad: Mac = [0x02, 0, 0, 0xaa, 0xbb, family.pick(4, 6)];
    let address: IpAddr = family.pick("10.244.1.200", "fd00:10:244:1::200").parse()?;
    let from_nomad =
        Ends { source_mac: nomad, destination_mac: plain.source_mac, source: address, destination: plain.source };
    let to_nomad = Ends { destination_mac: nomad, destination: address, ..plain };
    for (home, elsewhere) in [("pod2", "pod3"), ("pod3", "pod2"), ("pod2", "pod3")] {
        bed.send_frames(home, "eth0", &[(1, 0, from_nomad.udp(PORT, b"here I am"))])?;
        let entry = format!("{} dev veth-{home} ", frames::mac_text(nomad));
        let learned = wait_for(&format!("'{entry}' in the FDB"), FOLLOW, || {
            Ok(bed.exec("node1", &["bridge", "fdb", "show", "br", "cbr0"])?.contains(&entry).then_some(()))
        });
        learned.with_context(|| bed.exec("node1", &["bridge", "fdb", "show", "br", "cbr0"]).unwrap_or_default())?;
        wait_for(&format!("frames to {home} through the workers"), FOLLOW, || {
            let before = bed.counters()?;
            follow(bed, home, elsewhere, &to_nomad)?;
            Ok(bed.went_through(&before, &way, Least::packets(5)).ok())
        })?;
    }
    Ok(())
}

fn follow(bed: &Bed, home: &str, elsewhere: &str, ends: &Ends) -> Result<()> {
    let marker = marker("to the nomad");
    let here = bed.sniff(home, "eth0", &[("nomad", &marker, 5)])?;
    let there = bed.sniff(elsewhere, "eth0", &[("nomad", &marker, 0)])?;
    bed.send_frames("pod1", "eth0", &[(5, 0, ends.udp(PORT, &marker))])?;
    let (here, there) = (sniffed(here)?.found("nomad")?.incoming, sniffed(there)?.found("nomad")?.incoming);
    ensure!(here == 5 && there == 0, "of 5 frames, {here} came to {home} and {there} to {elsewhere}");
    Ok(())
}

/// Broken frames of every kind harm nobody, and frames of other protocols get through.
pub fn garbage(bed: &mut Bed, family: Family) -> Result<()> {
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        let ends = ends(bed, &way, family)?;
        let mut batch: Vec<_> = broken(&ends).into_iter().map(|frame| (3, 0, frame)).collect();
        batch.extend(random(&ends, 3000).into_iter().map(|frame| (1, 0, frame)));
        let (sent, _) = bed.send_frames("pod1", "eth0", &batch)?;
        ensure!(sent > 3000, "only {sent} frames were sent");
        bed.ping(&way, 64, 3)?;
    }
    // IEEE 802 local experimental EtherType 1, and IP protocols that Podlane does not know.
    let way = bed.way("pod1", "pod2", family)?;
    let ends = ends(bed, &way, family)?;
    let marker = marker("other protocol");
    for frame in [ends.ethernet(0x88b5, &marker), ends.ip_packet(132, &marker), ends.ip_packet(253, &marker)] {
        let sniffer = bed.sniff("pod2", "eth0", &[("other", &marker, 5)])?;
        bed.send_frames("pod1", "eth0", &[(5, 0, frame.clone())])?;
        let found = sniffed(sniffer)?.found("other")?;
        ensure!(found.incoming == 5 && found.frames == [frame.clone()], "{}: {found:?}", frames::to_hex(&frame));
    }
    Ok(())
}

/// Every lie that a header can tell.
fn broken(ends: &Ends) -> Vec<Vec<u8>> {
    let good = ends.udp(PORT, &[0x5a; 100]);
    let mut frames = Vec::new();
    // Cut at every length; a packet socket refuses less than an Ethernet header.
    frames.extend((ETHERNET..good.len()).map(|length| good[..length].to_vec()));
    let mut change = |changes: &[(usize, u8)], fix: bool| {
        let mut frame = good.clone();
        for (at, byte) in changes {
            frame[*at] = *byte;
        }
        if fix && ends.is_ipv4() {
            frames::fix_ipv4_header(&mut frame);
        }
        frames.push(frame);
    };
    let ip = ETHERNET;
    let l4 = frames::l4_offset(&good);
    let lengths = if ends.is_ipv4() { ip + 2 } else { ip + 4 };
    for (high, low) in [(0, 0), (0, 1), (0, 19), (0, 20), (0, 27), (5, 0), (0xff, 0xff)] {
        change(&[(lengths, high), (lengths + 1, low)], true); // the packet's length
        change(&[(l4 + 4, high), (l4 + 5, low)], true); // the datagram's length
    }
    for first in [0x00, 0x40, 0x41, 0x44, 0x46, 0x4f, 0x50, 0x60, 0x6f, 0xf5, 0xff] {
        change(&[(ip, first)], true); // version, header length
    }
    let next = if ends.is_ipv4() { ip + 9 } else { ip + 6 };
    for protocol in 0..=255 {
        change(&[(next, protocol)], true);
    }
    if ends.is_ipv4() {
        change(&[(ip + 10, 0xde), (ip + 11, 0xad)], false); // a wrong header checksum
        change(&[(ip + 6, 0x80)], true); // the reserved bit
        change(&[(ip + 6, 0x20)], true); // more fragments
        change(&[(ip + 6, 0x1f), (ip + 7, 0xff)], true); // beyond 64 KiB
    }
    change(&[(6, 0x01)], false); // from a group
    change(&[(6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 0)], false); // from nobody
    change(&[(12, 0x81), (13, 0x00)], false); // a VLAN tag where the header was
    frames
}

/// Random bytes behind plausible MAC addresses and EtherTypes; the same ones each time.
fn random(ends: &Ends, count: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count)
        .map(|_| {
            let ethertype = [0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, next() as u16][next() as usize % 6];
            let length = next() as usize % 200;
            let bytes: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            let mut frame = ends.ethernet(ethertype, &bytes);
            // Half of them look like IP at least in their first byte.
            if next() % 2 == 0 && frame.len() > ETHERNET {
                frame[ETHERNET] = if ethertype == 0x0800 { 0x45 } else { 0x60 };
            }
            frame
        })
        .collect()
}

/// A datagram whose checksum is neither right nor unfinished.
fn corrupt(ends: &Ends, hops: u8, marker: &[u8]) -> Result<Vec<u8>> {
    let mut frame = ends.udp_with_hops(hops, PORT, marker);
    let field = frames::l4_offset(&frame) + 6;
    frame[field] ^= 0x3c;
    frame[field + 1] ^= 0xa5;
    ensure!(frames::l4_checksum(&frame) == Checksum::Wrong, "the frame to send is not corrupt");
    Ok(frame)
}

/// Sends corrupt frames; they must arrive as corrupt as they were, and the receiver must notice.
fn stays_corrupt(bed: &Bed, from: &str, interface: &str, to: &str, family: Family, ends: &Ends) -> Result<()> {
    const COUNT: u64 = 20;
    let marker = marker(&format!("corrupt for {to}"));
    let frame = corrupt(ends, 64, &marker)?;
    let counter = family.pick("Udp InCsumErrors", "Udp6InCsumErrors");
    let errors = bed.kernel_counter(to, family, counter)?;
    let sniffer = bed.sniff(to, "eth0", &[("corrupt", &marker, COUNT)])?;
    let (sent, refused) = bed.send_frames(from, interface, &[(COUNT, 0, frame)])?;
    ensure!(sent == COUNT, "only {sent} frames were sent: {refused}");
    let found = sniffed(sniffer)?.found("corrupt")?;
    ensure!(found.incoming == COUNT, "{} of {COUNT} frames arrived", found.incoming);
    for frame in &found.frames {
        let checksum = frames::l4_checksum(frame);
        ensure!(checksum == Checksum::Wrong, "a corrupt checksum became {checksum:?}: {}", frames::to_hex(frame));
    }
    let noticed = bed.kernel_counter(to, family, counter)? - errors;
    ensure!(noticed >= COUNT, "{to} noticed only {noticed} of {COUNT} wrong checksums");
    Ok(())
}

/// A corrupt checksum from a pod is not made good.
pub fn corrupt_checksum_from_pod(bed: &mut Bed, family: Family) -> Result<()> {
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        let ends = ends(bed, &way, family)?;
        stays_corrupt(bed, &way.from, "eth0", &way.to, family, &ends)?;
    }
    Ok(())
}

/// A corrupt checksum from the wire is not made good.
pub fn corrupt_checksum_from_wire(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod4", "pod1", family)?;
    bed.warm_up(&way)?;
    let ends = Ends {
        source_mac: bed.mac(bed.fabric(), "node1")?,
        destination_mac: bed.mac("node1", "eth0")?,
        source: bed.address("pod4", family)?,
        destination: way.address,
    };
    stays_corrupt(bed, bed.fabric(), "node1", "pod1", family, &ends)
}
