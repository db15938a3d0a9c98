//! The node itself at one end: never Podlane's, always reachable.

use anyhow::Result;
use podlane_tests::bed::Bed;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Way};

/// Everything that an application may do.
fn talk(bed: &Bed, way: &Way) -> Result<()> {
    bed.ping(way, 64, 3)?;
    bed.ping(way, 3000, 3)?;
    bed.tcp(way, 1 << 20, 1 << 20)?;
    bed.udp(way, &Datagrams::windowed(&[24, 1400, 3000], 150))?.intact()
}

fn way(bed: &Bed, from: &str, to: &str, address: &str, family: Family) -> Result<Way> {
    Ok(Way { from: from.to_owned(), to: to.to_owned(), address: bed.address(address, family)? })
}

/// A pod and its own address.
pub fn pod_to_itself(bed: &mut Bed, family: Family) -> Result<()> {
    talk(bed, &bed.way("pod1", "pod1", family)?)
}

/// A pod and every address of both nodes.
pub fn pod_to_node(bed: &mut Bed, family: Family) -> Result<()> {
    for (node, address) in [("node1", "gateway1"), ("node1", "node1"), ("node2", "node2"), ("node2", "gateway2")] {
        talk(bed, &way(bed, "pod1", node, address, family)?)?;
    }
    Ok(())
}

/// A node and pods, its own and another node's.
pub fn node_to_pod(bed: &mut Bed, family: Family) -> Result<()> {
    for (node, pod) in [("node1", "pod1"), ("node1", "pod4"), ("node2", "pod1")] {
        talk(bed, &bed.way(node, pod, family)?)?;
    }
    Ok(())
}
