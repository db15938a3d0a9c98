//! Pods that come and go while others talk.

use anyhow::{Context, Result};
use podlane_tests::bed::{Bed, FOLLOW, Least};
use podlane_tests::command::wait_for;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::Datagrams;

/// The daemon of node1 does (or does not) list a port.
fn listed(bed: &Bed, port: &str, wanted: bool) -> Result<()> {
    if !bed.has_podlane() {
        return Ok(());
    }
    let what = format!("{port} {} the ports of node1", if wanted { "among" } else { "gone from" });
    wait_for(&what, FOLLOW, || Ok((bed.status(1)?.port(port).is_some() == wanted).then_some(())))
}

/// A pod is removed and comes back three times, each time with another MAC address on the same IP address. It is reachable
/// each time, and traffic between other pods does not lose a packet.
pub fn come_and_go(bed: &mut Bed, family: Family) -> Result<()> {
    let others = [bed.way("pod1", "pod2", family)?, bed.way("pod4", "pod1", family)?];
    others.iter().try_for_each(|way| bed.warm_up(way))?;
    let before = bed.counters()?;
    let flows: Vec<_> =
        others.iter().map(|way| bed.start_udp(way, &Datagrams::steady(1000, 500))).collect::<Result<_>>()?;
    for round in 1..=3 {
        bed.del_pod("pod3")?;
        listed(bed, "veth-pod3", false)?;
        bed.add_pod(1, "pod3", Some(&format!("02:00:00:00:{:02x}:{round:02x}", family.pick(4, 6))))?;
        listed(bed, "veth-pod3", true)?;
        for from in ["pod1", "pod4"] {
            bed.warm_up(&bed.way(from, "pod3", family)?).with_context(|| format!("round {round}"))?;
        }
    }
    for flow in flows {
        flow.finish()?.intact()?;
    }
    others.iter().try_for_each(|way| bed.went_through(&before, way, Least::packets(500)))
}

/// The first pod of a node goes, then a new one comes: nothing may hang on the first one's interface.
pub fn first_goes(bed: &mut Bed, family: Family) -> Result<()> {
    let new = bed.new_pod();
    bed.del_pod("pod1")?;
    listed(bed, "veth-pod1", false)?;
    bed.add_pod(1, &new, None)?;
    for from in ["pod2", "pod4"] {
        bed.warm_up(&bed.way(from, &new, family)?)?;
        bed.tcp(&bed.way(from, &new, family)?, 1 << 20, 1 << 20)?;
    }
    bed.del_pod(&new)?;
    bed.add_pod(1, "pod1", None)?;
    for from in ["pod2", "pod4"] {
        bed.warm_up(&bed.way(from, "pod1", family)?)?;
    }
    Ok(())
}
