//! Looking inside: `podlane trace` foretells what happens to real packets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, Least};
use podlane_tests::command;
use podlane_tests::testbed::Family;
use serde_json::Value;

use super::ways;

const COUNT: u64 = 3;

/// What the daemon of node 1 says of a packet.
fn foretold(bed: &Bed, from: &str, to: &str, options: &[&str]) -> Result<Value> {
    let mut trace = bed.podlane(1)?;
    trace.args(["trace", from, to, "--json", "--instance", &bed.instance(1)]).args(options);
    let output = command::output(&mut trace, Duration::from_secs(10))?;
    ensure!(output.status.success(), "{from} to {to}: {}{}", output.stdout, output.stderr);
    serde_json::from_str(&output.stdout).with_context(|| format!("not JSON: {}", output.stdout))
}

/// What is forwarded, where, and what is the kernel's and why: first the word, then the packets.
pub fn agrees_with_traffic(bed: &mut Bed, family: Family) -> Result<()> {
    let [near, far] = ways(bed, family)?;
    for (way, egress) in [(&near, "veth-pod2"), (&far, "eth0")] {
        bed.warm_up(way)?;
        // The node itself may never have talked to its pods: it finds out.
        let from = bed.address(&way.from, family)?.to_string();
        let told = foretold(bed, &from, &way.address.to_string(), &[])?;
        ensure!(told["handled_by"] == "podlane" && told["egress"] == egress, "{way:?}: {told}");
        let before = bed.counters()?;
        bed.ping(way, 64, COUNT)?;
        bed.went_through(&before, way, Least::packets(COUNT))?;
    }
    let back = foretold(bed, &far.address.to_string(), &bed.address("pod1", family)?.to_string(), &[])?;
    ensure!(back["ingress"] == "eth0" && back["egress"] == "veth-pod1", "the way back: {back}");

    let gateway = bed.address("gateway1", family)?;
    for (to, ttl, reason) in [(gateway, "64", "for_node"), (near.address, "1", "ttl"), (far.address, "1", "ttl")] {
        let told = foretold(bed, "veth-pod1", &to.to_string(), &["--ttl", ttl])?;
        ensure!(told["handled_by"] == "kernel" && told["reason"] == reason, "{to}, TTL {ttl}: {told}");
        let before = bed.counters()?;
        bed.ping_output("pod1", to, &["-c", &COUNT.to_string(), "-t", ttl, "-W", "0.5"])?;
        bed.was_passed(&before, 1, "veth-pod1", reason, COUNT)?;
    }
    Ok(())
}
