//! Large frames inside of the node: a larger MTU and larger segmentation sizes for pods of the node, and for nobody else.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podlane_tests::bed::{Bed, FOLLOW, Least};
use podlane_tests::command::{self, wait_for};
use podlane_tests::testbed::Family;
use podlane_tests::traffic::{Datagrams, Way};

/// How long an unchangeable pod is waited for, and some.
const GRACE: Duration = Duration::from_secs(8);
const TCP_BYTES: u64 = 24 << 20;

/// The value after a word in what `ip` prints.
fn after<T: std::str::FromStr>(text: &str, word: &str) -> Option<T> {
    text.split_ascii_whitespace().skip_while(|other| *other != word).nth(1)?.parse().ok()
}

/// MTUs of a pod's veth: host end and pod's end.
fn mtus(bed: &Bed, pod: &str) -> Result<[usize; 2]> {
    let node = format!("node{}", bed.node_of(pod)?);
    let host = bed.exec(&node, &["ip", "link", "show", &format!("veth-{pod}")])?;
    let inner = bed.exec(pod, &["ip", "link", "show", "eth0"])?;
    Ok([after(&host, "mtu").context("an MTU")?, after(&inner, "mtu").context("an MTU")?])
}

/// `mtu` of a pod's default routes, IPv4 and IPv6.
fn metrics(bed: &Bed, pod: &str) -> Result<[Option<usize>; 2]> {
    let route = |family: &str| bed.exec(pod, &["ip", family, "route", "show", "default"]);
    Ok([after(&route("-4")?, "mtu"), after(&route("-6")?, "mtu")])
}

/// Every pod of node1 has, or has not, the larger MTU, with all that belongs to it.
fn is_raised(bed: &Bed, raised: bool) -> Result<()> {
    let large = bed.shape.local_mtu.context("no local_mtu in this testbed")?;
    let (mtu, metric) = if raised { (large, Some(bed.shape.uplink_mtu)) } else { (bed.shape.mtu, None) };
    for pod in ["pod1", "pod2", "pod3"] {
        let (now, metrics) = (mtus(bed, pod)?, metrics(bed, pod)?);
        ensure!(
            now == [mtu; 2] && metrics == [metric; 2],
            "{pod}: MTUs {now:?}, metrics {metrics:?}, not {mtu}, {metric:?}"
        );
    }
    let bridge = bed.exec("node1", &["ip", "link", "show", "cbr0"])?;
    ensure!(after(&bridge, "mtu") == Some(mtu), "the bridge does not follow its members: {bridge}");
    let Ok(status) = bed.status(1) else { return Ok(()) };
    let port = status.port("veth-pod1").context("no port veth-pod1")?;
    ensure!(port.local_mtu == raised.then_some(large as u32), "status says {:?}", port.local_mtu);
    Ok(())
}

/// Waits for [`is_raised`].
fn wait_until_raised(bed: &Bed, raised: bool) -> Result<()> {
    let mut last = None;
    let waited = wait_for("the pods' MTU", GRACE, || match is_raised(bed, raised) {
        Ok(()) => Ok(Some(())),
        Err(error) => {
            last = Some(error);
            Ok(None)
        }
    });
    waited.map_err(|error| last.map_or(error, |last| last.context("at last")))
}

/// Bytes of a TCP segment on the average, and whether the sender's kernel has made fragments, while `work` is done at a pod.
fn segments(bed: &Bed, pod: &str, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let count = || bed.kernel_counter(pod, Family::V4, "Tcp OutSegs"); // both families
    let before = count()?;
    work()?;
    Ok(bytes / (count()? - before).max(1))
}

fn fragments(bed: &Bed, pod: &str, family: Family) -> Result<u64> {
    bed.kernel_counter(pod, family, family.pick("Ip FragCreates", "Ip6FragCreates"))
}

/// Pod to pod: TCP in large segments, large datagrams in one piece.
pub fn inside(bed: &mut Bed, family: Family) -> Result<()> {
    is_raised(bed, true)?;
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let before = bed.counters()?;
    let segment = segments(bed, "pod1", TCP_BYTES, || bed.tcp(&way, TCP_BYTES, 0).map(drop))?;
    ensure!(segment > 10_000, "TCP segments had {segment} bytes on the average");
    bed.tcp(&way, TCP_BYTES, TCP_BYTES)?;
    let cut = fragments(bed, "pod1", family)?;
    let datagrams = Datagrams { window: 16, ..Datagrams::windowed(&[24, 1400, 8000, 60_000], 400) };
    bed.udp(&way, &datagrams)?.intact()?;
    ensure!(fragments(bed, "pod1", family)? == cut, "datagrams were sent in fragments");
    bed.ping(&way, 60_000, 3)?;
    bed.went_through(&before, &way, Least { packets: 400, bytes: 2 * TCP_BYTES })
}

/// A pod of another node: nothing is different from without.
pub fn to_another_node(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "pod4", family)?;
    bed.warm_up(&way)?;
    let before = bed.counters()?;
    let segment = segments(bed, "pod1", TCP_BYTES, || bed.tcp(&way, TCP_BYTES, 0).map(drop))?;
    ensure!(segment <= 1448, "TCP segments had {segment} bytes on the average");
    bed.tcp(&way, TCP_BYTES, TCP_BYTES)?;
    bed.udp(&way, &Datagrams::windowed(&[24, family.pick(1472, 1452)], 1000))?.intact()?;
    bed.went_through(&before, &way, Least { packets: 1000, bytes: 2 * TCP_BYTES })?;
    // Larger ones leave the pod as fragments, which are the kernel's, at once: nobody has to tell the sender.
    let (cut, told) = (fragments(bed, "pod1", family)?, too_big(bed, family)?);
    bed.udp(&way, &Datagrams::windowed(&[4000], 300))?.intact()?;
    ensure!(fragments(bed, "pod1", family)? >= cut + 900, "datagrams were not cut by their sender");
    ensure!(too_big(bed, family)? == told, "the pod had to be told that its packets are too big");
    bed.udp(&bed.way("pod4", "pod1", family)?, &Datagrams::windowed(&[1400, 4000], 300))?.intact()
}

/// What a pod was told about packets that are too big. IPv4: all unreachables.
fn too_big(bed: &Bed, family: Family) -> Result<u64> {
    bed.kernel_counter("pod1", family, family.pick("Icmp InDestUnreachs", "Icmp6InPktTooBigs"))
}

/// Hosts outside of the cluster.
pub fn to_the_outside(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "outside", family)?;
    let told = too_big(bed, family)?;
    bed.ping(&way, 1000, 3)?;
    bed.tcp(&way, 4 << 20, 4 << 20)?;
    bed.udp(&way, &Datagrams::windowed(&[24, 1400, 4000], 300))?.intact()?;
    ensure!(too_big(bed, family)? == told, "the pod had to be told that its packets are too big");
    Ok(())
}

/// The node itself, by the bridge's address (large packets) and by its uplink's (not).
pub fn with_the_node(bed: &mut Bed, family: Family) -> Result<()> {
    for (from, to, address) in [
        ("pod1", "node1", "gateway1"),
        ("pod1", "node1", "node1"),
        ("node1", "pod1", "pod1"),
        ("node2", "pod1", "pod1"),
    ] {
        let way = Way { from: from.to_owned(), to: to.to_owned(), address: bed.address(address, family)? };
        bed.tcp(&way, 4 << 20, 4 << 20)?;
        bed.udp(&way, &Datagrams { window: 16, ..Datagrams::windowed(&[24, 1400, 8000, 60_000], 60) })?.intact()?;
    }
    Ok(())
}

/// A pod that comes later, and whose routes come later still, is treated the same.
pub fn comes_later(bed: &mut Bed) -> Result<()> {
    let new = bed.new_pod();
    bed.add_pod(1, &new, None)?;
    let (mtu, metric) = (bed.shape.local_mtu.context("no local_mtu")?, bed.shape.uplink_mtu);
    wait_for("the new pod's MTU and routes", FOLLOW, || {
        Ok((mtus(bed, &new)? == [mtu; 2] && metrics(bed, &new)? == [Some(metric); 2]).then_some(()))
    })?;
    for family in Family::BOTH {
        let way = bed.way("pod1", &new, family)?;
        bed.warm_up(&way)?;
        bed.udp(&way, &Datagrams { window: 16, ..Datagrams::windowed(&[8000, 60_000], 60) })?.intact()?;
        bed.tcp(&bed.way("pod4", &new, family)?, 1 << 20, 1 << 20)?;
    }
    bed.del_pod(&new)?;
    wait_until_raised(bed, true)
}

/// A member of the bridge that is not to be changed would lose large frames: all pods get their MTU back, and have the
/// larger one again when it is gone.
pub fn all_or_none(bed: &mut Bed) -> Result<()> {
    bed.expect_complaint("local_mtu = 65000 is not in force");
    bed.sh(
        "node1",
        "ip link add narrow type veth peer name other; ip link set narrow master cbr0 up; ip link set other up",
    )?;
    wait_until_raised(bed, false)?;
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.udp(&way, &Datagrams::windowed(&[1400, 8000], 100))?.intact()?;
    bed.exec("node1", &["ip", "link", "del", "narrow"])?;
    wait_until_raised(bed, true)
}

/// SIGTERM: everything is as before. SIGKILL: it stays, pods go on talking, and the next daemon knows what was before.
pub fn ended(bed: &mut Bed) -> Result<()> {
    bed.stop_daemon(1)?;
    is_raised(bed, false)?;
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.udp(&way, &Datagrams::windowed(&[1400, 8000], 100))?.intact()?;
    bed.start_daemon(1)?;
    wait_until_raised(bed, true)?;
    let mut daemon = bed.take_daemon(1)?;
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    is_raised(bed, true)?;
    bed.udp(&way, &Datagrams { window: 16, ..Datagrams::windowed(&[1400, 60_000], 100) })?.intact()?;
    bed.start_daemon(1)?;
    wait_until_raised(bed, true)?;
    bed.stop_daemon(1)?;
    is_raised(bed, false)?;
    bed.start_daemon(1)?;
    wait_until_raised(bed, true)
}

/// Bytes of the largest piece that the kernel makes by itself, with its headers.
const SMALL: u64 = 65_536 + 14;

/// Bytes of a piece on the average, in which pod1 sends over TCP.
fn pieces(bed: &Bed, way: &Way) -> Result<u64> {
    let count = || -> Result<[u64; 2]> {
        let text = bed.exec("node1", &["cat", "/proc/net/dev"])?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("veth-pod1:"));
        let mut numbers = line.context("no veth-pod1")?.split_ascii_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(bytes), Some(packets)) => Ok([bytes?, packets?]),
            _ => bail!("no numbers"),
        }
    };
    let before = count()?;
    bed.tcp(way, 256 << 20, 0)?;
    let after = count()?;
    Ok((after[0] - before[0]) / (after[1] - before[1]).max(1))
}

/// TCP goes in pieces that are larger than 64 KiB, or it does not.
fn is_big(bed: &Bed, big: bool) -> Result<()> {
    for family in Family::BOTH {
        let mean = pieces(bed, &bed.way("pod1", "pod2", family)?)?;
        ensure!((mean > SMALL) == big, "pieces of TCP over {family:?} have {mean} bytes on the average");
    }
    let Ok(status) = bed.status(1) else { return Ok(()) };
    let told = status.port("veth-pod1").context("no port")?.big_tcp;
    ensure!(told.is_some() == big, "status says {told:?}");
    Ok(())
}

/// TCP between pods goes in pieces that are larger than 64 KiB; elsewhere it arrives as ever, and nobody refuses a piece.
pub fn super_frames(bed: &mut Bed, family: Family) -> Result<()> {
    let way = bed.way("pod1", "pod2", family)?;
    bed.warm_up(&way)?;
    let before = bed.counters()?;
    let mean = pieces(bed, &way)?;
    ensure!(mean > SMALL, "pieces of TCP have {mean} bytes on the average");
    bed.tcp(&way, TCP_BYTES, TCP_BYTES)?;
    bed.went_through(&before, &way, Least::bytes(TCP_BYTES))?;
    let told = too_big(bed, family)?;
    for to in ["pod4", "outside"] {
        let start = Instant::now();
        bed.tcp(&bed.way("pod1", to, family)?, TCP_BYTES, TCP_BYTES)?;
        // A kernel that refuses what a pod sends makes it wait for seconds.
        ensure!(start.elapsed() < Duration::from_secs(5), "{to}: it took {:?}", start.elapsed());
    }
    ensure!(too_big(bed, family)? == told, "the pod was told that its pieces are too big");
    Ok(())
}

/// The other path cannot carry them: they go before it and come after it. And they go with the daemon.
pub fn super_frames_go(bed: &mut Bed) -> Result<()> {
    let change = |bed: &Bed, path: &str| -> Result<()> {
        let instance = bed.instance(1);
        command::run(bed.podlane(1)?.args(["path", path, "--instance", &instance]), Duration::from_secs(10)).map(drop)
    };
    for _ in 0..2 {
        change(bed, "af_xdp")?;
        is_big(bed, false)?;
        change(bed, "kernel")?;
        is_big(bed, true)?;
    }
    bed.stop_daemon(1)?;
    is_big(bed, false)?;
    bed.start_daemon(1)?;
    bed.warm_up(&bed.way("pod1", "pod2", Family::V4)?)?;
    is_big(bed, true)
}
