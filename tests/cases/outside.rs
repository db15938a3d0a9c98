//! Hosts outside of the cluster: the kernel's in both directions.

use anyhow::{Result, ensure};
use podlane_tests::bed::Bed;
use podlane_tests::testbed::Family;
use podlane_tests::traffic::Datagrams;

/// A pod's traffic leaves with its node's address, and the answers find back.
pub fn masquerade(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "outside", family)?;
    let before = bed.counters()?;
    bed.ping(&way, 1000, 3)?;
    let peer = bed.tcp(&way, 4 << 20, 4 << 20)?;
    let node = bed.address("node1", family)?;
    ensure!(peer == node, "outside saw {peer} and not the node's address {node}");
    bed.udp(&way, &Datagrams::windowed(&[24, 1400], 500))?.intact()?;
    bed.was_passed(&before, 1, "veth-pod1", "outside_cluster", 500)
}

/// A pod's traffic is routed to the outside with its own address, and the node drops what conntrack calls invalid: it
/// must see both directions of such a connection, whoever opens it, and connections inside of the cluster must not care.
pub fn asymmetry(bed: &mut Bed, family: Family) -> Result<()> {
    let rules = "nft add table inet strict; \
        nft add chain inet strict forward '{ type filter hook forward priority 0; policy accept; }'; \
        nft add rule inet strict forward ct state invalid counter drop";
    for node in ["node1", "node2"] {
        bed.sh(node, rules)?;
    }
    let before = bed.counters()?;
    let way = bed.way("pod1", "outside", family)?;
    let pod = bed.address("pod1", family)?;
    for _ in 0..3 {
        let peer = bed.tcp(&way, 2 << 20, 2 << 20)?;
        ensure!(peer == pod, "outside saw {peer} and not the pod's address {pod}");
    }
    bed.udp(&way, &Datagrams::windowed(&[24, 1400], 500))?.intact()?;
    bed.was_passed(&before, 1, "veth-pod1", "outside_cluster", 500)?;
    bed.was_passed(&before, 1, "eth0", "outside_cluster", 100)?;
    bed.tcp(&bed.way("outside", "pod1", family)?, 2 << 20, 2 << 20)?;
    for to in ["pod2", "pod4"] {
        let way = bed.way("pod1", to, family)?;
        bed.warm_up(&way)?;
        bed.tcp(&way, 2 << 20, 2 << 20)?;
    }
    for node in ["node1", "node2"] {
        bed.sh(node, "nft delete table inet strict")?;
    }
    Ok(())
}
