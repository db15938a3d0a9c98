//! ICMP: echo of all sizes, and the errors that a router has to send.

use anyhow::{Result, ensure};
use podlane_tests::bed::{Bed, Least};
use podlane_tests::testbed::{Family, Topology};
use podlane_tests::traffic::Datagrams;

use super::{back, both_went_through, ways};

/// Payload bytes.
const SIZES: [usize; 4] = [64, 1600, 3200, 8000];
const COUNT: u64 = 5;

/// Echo requests of all sizes, inside of a node and between nodes: what fits goes through the workers, what has to be
/// cut into fragments is the kernel's.
pub fn sizes(bed: &mut Bed, family: Family) -> Result<()> {
    let headers = family.pick(28, 48);
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        for bytes in SIZES {
            let before = bed.counters()?;
            bed.ping(&way, bytes, COUNT)?;
            if bytes + headers <= bed.shape.mtu {
                both_went_through(bed, &before, &way, family, Least::packets(COUNT))?;
            } else {
                bed.was_passed(&before, 1, "veth-pod1", "fragment", 2 * COUNT)?;
            }
        }
    }
    Ok(())
}

fn forget_path_mtu(bed: &Bed, family: Family) -> Result<()> {
    for pod in ["pod1", "pod4"] {
        bed.exec(pod, &["ip", family.pick("-4", "-6"), "route", "flush", "cache"])?;
    }
    Ok(())
}

/// A packet that is larger than the uplink: the node answers with the size that fits, and TCP finds its way by that.
pub fn path_mtu(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    forget_path_mtu(bed, family)?;
    let before = bed.counters()?;
    let (_, text) = bed.ping_output("pod1", way.address, &["-M", "do", "-s", "8000", "-c", "1", "-w", "2"])?;
    let gateway = bed.address("gateway1", family)?.to_string();
    let answered = text.lines().any(|line| line.contains(&gateway) && line.contains("mtu") && line.contains("1500"));
    ensure!(answered, "{gateway} must say that the MTU is 1500: {text}");
    bed.was_passed(&before, 1, "veth-pod1", "too_big", 1)?;
    for from in ["pod1", "pod4"] {
        forget_path_mtu(bed, family)?;
        let way = if from == "pod1" { way.clone() } else { back(bed, &way, family)? };
        let before = bed.counters()?;
        bed.tcp(&way, 4 << 20, 4 << 20)?;
        if bed.has_podlane() {
            // A few large segments are lost to the discovery; everything else is the workers'.
            bed.was_passed(&before, bed.node_of(from)?, &format!("veth-{from}"), "too_big", 1)?;
            grown(bed, &before, &way)?;
        }
    }
    Ok(())
}

fn grown(bed: &Bed, before: &podlane_tests::bed::Counters, way: &podlane_tests::traffic::Way) -> Result<()> {
    let bytes = bed.forwarded_bytes(before, way)?;
    ensure!(bytes >= 3 << 20, "the workers forwarded only {bytes} bytes of 4 MiB ({way:?})");
    Ok(())
}

/// Datagrams that fit the pod's link but not the path, sent by an application that lets the network cut them.
pub fn larger_than_the_path(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    forget_path_mtu(bed, family)?;
    for way in [way.clone(), back(bed, &way, family)?] {
        // Where only the sender may cut, the first datagram is lost, and brings the answer that tells the size: the
        // application hears of it as an error, or not, and the next ones are cut to fit.
        let discovery = bed.udp(&way, &Datagrams::windowed(&[8000], 3));
        if let Err(error) = discovery {
            let text = format!("{error:#}");
            ensure!(text.contains("Message too long"), "{text}");
        }
        bed.udp(&way, &Datagrams::windowed(&[8000, 100, 4000], 300))?.intact()?;
    }
    Ok(())
}

/// TTL or hop limit 1 ends at the node, 2 behind it.
pub fn ttl(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    let before = bed.counters()?;
    for (hops, answers) in path(bed, family)?.into_iter().take(2).enumerate() {
        let hops = (hops + 1).to_string();
        for _ in 0..3 {
            let (_, text) = bed.ping_output("pod1", way.address, &["-t", &hops, "-c", "1", "-w", "2"])?;
            let exceeded =
                text.lines().any(|line| line.contains(&format!("From {answers} ")) && line.contains("exceeded"));
            ensure!(exceeded, "hop {hops} must be {answers}: {text}");
        }
    }
    bed.was_passed(&before, 1, "veth-pod1", "ttl", 3)
}

/// The addresses that a packet from pod1 to pod4 meets.
fn path(bed: &Bed, family: Family) -> Result<Vec<String>> {
    let places: &[&str] = match bed.topology {
        Topology::Direct => &["gateway1", "node2", "pod4"],
        Topology::Cloud => &["gateway1", "hop1", "node2", "pod4"],
    };
    places.iter().map(|place| Ok(bed.address(place, family)?.to_string())).collect()
}

/// The way to a pod of another node as traceroute sees it, by UDP and by ICMP.
pub fn traceroute(bed: &mut Bed, family: Family) -> Result<()> {
    let [_, way] = ways(bed, family)?;
    bed.warm_up(&way)?;
    let expected = path(bed, family)?;
    for method in ["-U", "-I"] {
        let address = way.address.to_string();
        let text = bed.exec("pod1", &["traceroute", "-n", "-q", "1", "-w", "2", "-m", "8", method, &address])?;
        let hops: Vec<&str> = text
            .lines()
            .filter(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit()))
            .filter_map(|line| line.split_ascii_whitespace().nth(1))
            .collect();
        ensure!(hops == expected, "traceroute {method} must show {expected:?}: {text}");
    }
    Ok(())
}

/// Datagrams that are larger than every link, mixed with small ones.
pub fn fragments(bed: &mut Bed, family: Family) -> Result<()> {
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        for way in [way.clone(), back(bed, &way, family)?] {
            let before = bed.counters()?;
            bed.udp(&way, &Datagrams::windowed(&[4000, 100, 1473, 20_000], 400))?.intact()?;
            bed.was_passed(&before, bed.node_of(&way.from)?, &format!("veth-{}", way.from), "fragment", 600)?;
        }
    }
    Ok(())
}
