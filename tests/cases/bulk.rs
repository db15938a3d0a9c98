//! A lot of data, every byte of it checked.

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, DataPath, Least};
use podlane_tests::testbed::{Family, Topology};
use podlane_tests::traffic::{Datagrams, sniffed};

use super::{back, both_went_through, ways};

const TCP_BYTES: u64 = 24 << 20;

/// How often pods found a wrong checksum.
fn checksum_errors(bed: &Bed) -> Result<u64> {
    let mut errors = 0;
    for pod in ["pod1", "pod2", "pod4"] {
        errors += bed.kernel_counter(pod, Family::V4, "Tcp InCsumErrors")?; // both families
        errors += bed.kernel_counter(pod, Family::V4, "Udp InCsumErrors")?;
        errors += bed.kernel_counter(pod, Family::V6, "Udp6InCsumErrors")?;
    }
    Ok(errors)
}

/// One connection that carries data in both directions at once, inside of a node and between nodes.
pub fn tcp(bed: &mut Bed, family: Family) -> Result<()> {
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        let (before, errors) = (bed.counters()?, checksum_errors(bed)?);
        bed.tcp(&way, TCP_BYTES, TCP_BYTES)?;
        both_went_through(bed, &before, &way, family, Least::bytes(TCP_BYTES))?;
        ensure!(checksum_errors(bed)? == errors, "pods found wrong checksums ({way:?})");
    }
    Ok(())
}

/// The smallest, some, and the largest payload that fits a frame.
fn sizes(bed: &Bed, family: Family) -> Vec<usize> {
    vec![24, 100, 1000, bed.shape.mtu - family.pick(28, 48)]
}

/// Datagrams in both directions at once.
pub fn udp(bed: &mut Bed, family: Family) -> Result<()> {
    const COUNT: u64 = 4000;
    let datagrams = Datagrams::windowed(&sizes(bed, family), COUNT);
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        let (before, errors) = (bed.counters()?, checksum_errors(bed)?);
        let forth = bed.start_udp(&way, &datagrams)?;
        let other = bed.start_udp(&back(bed, &way, family)?, &datagrams)?;
        forth.finish()?.intact()?;
        other.finish()?.intact()?;
        both_went_through(bed, &before, &way, family, Least::packets(COUNT))?;
        ensure!(checksum_errors(bed)? == errors, "pods found wrong checksums ({way:?})");
    }
    Ok(())
}

/// Several flows at once between several pods: with more than one worker, on more than one of them.
pub fn many_flows(bed: &mut Bed, family: Family) -> Result<()> {
    let datagrams = Datagrams { window: 16, ..Datagrams::windowed(&sizes(bed, family), 1000) };
    let ways =
        [("pod1", "pod2"), ("pod2", "pod3"), ("pod3", "pod1"), ("pod1", "pod4"), ("pod5", "pod2"), ("pod3", "pod6")];
    let ways: Vec<_> = ways.iter().map(|(from, to)| bed.way(from, to, family)).collect::<Result<_>>()?;
    ways.iter().try_for_each(|way| bed.warm_up(way))?;
    let before = bed.counters()?;
    let flows: Vec<_> = ways.iter().map(|way| bed.start_udp(way, &datagrams)).collect::<Result<_>>()?;
    for flow in flows {
        flow.finish()?.intact()?;
    }
    ways.iter().try_for_each(|way| bed.went_through(&before, way, Least::packets(1000)))?;
    if bed.path == DataPath::AfXdp {
        let workers = bed.status(1)?.workers;
        ensure!(workers.len() == 2, "two workers were asked for: {workers:?}");
        let idle: Vec<_> = workers.iter().filter(|worker| worker.forwarded + worker.handoff_in == 0).collect();
        ensure!(idle.is_empty(), "these workers did nothing: {idle:?}");
    }
    Ok(())
}

/// What arrives in a pod, and what is on the wire, has a right checksum, or one that the kernel knows to be unfinished.
/// A device that does not finish checksums gets none of these.
pub fn checksums(bed: &mut Bed, family: Family) -> Result<()> {
    let wire = match bed.topology {
        Topology::Direct => "segment",
        Topology::Cloud => "router",
    };
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        let far = bed.sniff(&way.to, "eth0", &[])?;
        let near = bed.sniff("pod1", "eth0", &[])?;
        let wires = [bed.sniff(wire, "node1", &[])?, bed.sniff(wire, "node2", &[])?];
        bed.tcp(&way, 1 << 20, 1 << 20)?;
        bed.udp(&way, &Datagrams::windowed(&sizes(bed, family), 300))?.intact()?;
        bed.ping(&way, 1000, 3)?;
        sniffed(far)?.checksums_are_right()?;
        sniffed(near)?.checksums_are_right()?;
        for sniffer in wires {
            let seen = sniffed(sniffer)?;
            if way.to == "pod4" {
                seen.checksums_are_right()?;
                let partial = seen.count("partial")?;
                ensure!(
                    bed.shape.uplink_checksum_offload || partial == 0,
                    "{partial} frames left an uplink that finishes no checksums with unfinished ones"
                );
            }
        }
    }
    Ok(())
}

/// UDP segmentation offload: the receiver gets the datagrams that the sender cut, not the pieces of somebody else's cut.
pub fn udp_gso(bed: &mut Bed, family: Family) -> Result<()> {
    let large: Vec<usize> = std::iter::repeat_n(1200, 9).chain([707]).collect();
    let small: Vec<usize> = vec![100, 100, 100, 100, 60]; // together less than a frame
    for way in ways(bed, family)? {
        bed.warm_up(&way)?;
        for (sizes, gso) in [(&large, 1200), (&small, 100)] {
            let count = 60 * sizes.len() as u64;
            let datagrams =
                Datagrams { sizes: sizes.clone(), count: Some(count), window: 0, pace_us: 1500, gso: Some(gso) };
            for way in [way.clone(), back(bed, &way, family)?] {
                let before = bed.counters()?;
                bed.udp(&way, &datagrams)?.intact()?;
                // The kernel, Podlane's path there included, may forward the whole of a turn as one.
                let least = if bed.keeps_super_frames(&way)? { 60 } else { count };
                bed.went_through(&before, &way, Least::packets(least))?;
            }
        }
    }
    Ok(())
}

/// Bytes and packets that a pod has received.
fn received(bed: &Bed, pod: &str) -> Result<(u64, u64)> {
    let text = bed.exec(pod, &["ip", "-s", "-j", "link", "show", "dev", "eth0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let rx = &links[0]["stats64"]["rx"];
    let number = |name: &str| rx[name].as_u64().with_context(|| format!("ip told no {name}: {text}"));
    Ok((number("bytes")?, number("packets")?))
}

/// What TCP packets come as: in one piece of many segments where the kernel forwards, Podlane's path there included, since
/// nothing takes segmentation offload from the pod; in frames where workers do.
pub fn super_frames(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let before = received(bed, &way.to)?;
    bed.tcp(&way, TCP_BYTES, 0)?;
    let after = received(bed, &way.to)?;
    ensure!(after.0 - before.0 >= TCP_BYTES, "the pod's interface counted only {} bytes", after.0 - before.0);
    let mean = (after.0 - before.0) / (after.1 - before.1);
    let (mtu, keeps) = (bed.shape.mtu as u64, bed.keeps_super_frames(&way)?);
    ensure!(keeps == (mean > 2 * mtu), "{mean} bytes to a packet at an MTU of {mtu}, super-frames kept: {keeps}");
    ensure!(keeps || mean <= mtu + 14, "{mean} bytes to a frame at an MTU of {mtu}");
    Ok(())
}
