use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::metrics;
use crate::status::tests::example;
use crate::status::{Breakdown, SocketDrops};

fn place() -> Place {
    Place { boot: "a-boot".to_owned(), network: 7 }
}

fn open(directory: &tempfile::TempDir) -> Carried {
    Carried::from(Memory::at(directory.path().join("x.counters")), place())
}

/// Every interface is there and is what it was.
fn there(name: &str, ifindex: u32) -> Option<Identity> {
    Some(Identity::interface(name, ifindex, "02:00:00:00:00:01"))
}

/// A status with every port open, as this daemon alone would tell it and with what was carried on.
fn told(carried: &mut Carried, mut own: Status) -> Status {
    for port in &own.ports {
        carried.claim(PortId(port.id as u16), &there(&port.name, port.ifindex).unwrap());
    }
    carried.add_to(&mut own);
    own
}

/// The samples of all counters.
fn counters(status: &Status) -> BTreeMap<String, f64> {
    let text = metrics::encode(status.clone()).unwrap();
    let kinds: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(_, kind)| ["counter", "histogram"].contains(kind))
        .collect();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let name = sample.split('{').next()?;
        let family = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))?;
        kinds.get(family)?;
        Some((sample.to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

#[test]
fn every_counter_of_the_metrics_is_carried_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = open(&directory);
    let mut status = told(&mut first, example());
    status.ports[1].tx_dropped = Breakdown::of([("egress_gone", 9)]);
    first.save(&status, there, true);

    let mut second = open(&directory);
    let twice = told(&mut second, status.clone());
    // What stands for the daemon itself and not for packets.
    let its_own = ["podlane_takeovers_total", "podlane_counters_save_failures_total"];
    let (once, twice) = (counters(&status), counters(&twice));
    assert!(once.len() > 80, "{once:?}");
    for (sample, value) in once.iter().filter(|(sample, _)| !its_own.iter().any(|own| sample.starts_with(own))) {
        let sum = twice[sample];
        assert!((sum - 2.0 * value).abs() <= 1e-9 * sum, "{sample}: {value} became {sum}");
    }
    assert_eq!(twice["podlane_takeovers_total{previous=\"ended\"}"], 1.0);
}

#[test]
fn an_end_and_a_kill_are_told_apart_and_the_beginning_stays() {
    let directory = tempfile::tempdir().unwrap();
    let since = open(&directory).told.since_s;
    let mut last = open(&directory);
    for (ended, expected) in [(true, (1, 0)), (false, (1, 1)), (true, (2, 1))] {
        let status = told(&mut last, example());
        last.save(&status, there, ended);
        last = open(&directory);
        assert_eq!((last.told.takeovers, last.told.takeovers_after_kill), expected);
        assert!(last.told.since_s - since < 60.0);
    }
    let mode = std::fs::metadata(directory.path().join("x.counters")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn another_interface_of_the_same_name_begins_at_0() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = open(&directory);
    let status = told(&mut first, example());
    first.save(&status, there, true);
    let pod = PortId(1);
    let rx = |identity: Identity| {
        let mut next = open(&directory);
        next.claim(pod, &identity);
        let mut own = example();
        next.add_to(&mut own);
        own.ports[1].rx_packets - example().ports[1].rx_packets
    };
    assert_eq!(rx(there("veth-pod1", 11).unwrap()), 1_234_597);
    assert_eq!(rx(Identity::interface("veth-pod1", 12, "02:00:00:00:00:01")), 0, "another index");
    assert_eq!(rx(Identity::interface("veth-pod1", 11, "02:00:00:00:00:02")), 0, "another address");
    assert_eq!(rx(Identity::interface("veth-pod2", 11, "02:00:00:00:00:01")), 0, "another name");
}

#[test]
fn a_port_that_is_closed_and_opened_again_goes_on_and_one_that_is_gone_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let mut carried = open(&directory);
    let (port, identity) = (PortId(1), there("veth-pod1", 11));
    let own = PortSums { rx_packets: 5, passed: Breakdown::of([("not_ip", 5)]), ..PortSums::default() };
    for rounds in 1..=3 {
        carried.claim(port, identity.as_ref().unwrap());
        carried.release(port, identity.clone(), own.clone());
        assert_eq!(carried.waiting[identity.as_ref().unwrap()].rx_packets, 5 * rounds);
    }
    let mut status = example();
    status.ports.clear();
    carried.save(&status, there, false);
    assert_eq!(open(&directory).waiting.len(), 1);
    carried.save(&status, |_, _| None, false);
    assert_eq!(open(&directory).waiting.len(), 0);
    carried.claim(port, identity.as_ref().unwrap());
    carried.release(port, None, own);
    assert!(carried.waiting.is_empty() && carried.claimed.is_empty());
}

#[test]
fn accounts_of_a_moment_under_load_are_settled_upwards() {
    let sums = PortSums {
        rx_packets: 1000,
        steered: 900,
        passed: Breakdown::of([("not_ip", 90)]),
        socket_drops: SocketDrops { rx_ring_full: 10, ..SocketDrops::default() },
        worker_rx: 850,
        forwarded: 840,
        ..PortSums::default()
    };
    let mut status = example();
    status.ports.truncate(1);
    let balanced = |sums: &PortSums, status: &mut Status| {
        let port = crate::status::PortStatus { tx_packets: 0, tx_bytes: 0, ..status.ports[0].clone() };
        status.ports[0] = port;
        let mut port = status.ports[0].clone();
        sums.add_to(&mut port);
        port.balances()
    };
    assert!(!balanced(&sums, &mut status));
    let settled = sums.clone().settled();
    assert!(balanced(&settled, &mut status), "{settled:?}");
    assert_eq!(settled.rx_packets, 1000);
    // 10 in a worker's hands, 40 in a socket, 10 in the program.
    assert_eq!(settled.dropped, Breakdown::of([("daemon_ended", 60)]));
    // And where the end was counted, but not yet the beginning.
    let ahead = PortSums { forwarded: 2000, ..sums };
    let settled = ahead.settled();
    assert!(balanced(&settled, &mut status), "{settled:?}");
    assert_eq!((settled.rx_packets, settled.dropped.total), (2100, 0));
}

#[test]
fn what_cannot_be_read_is_told_and_begins_at_0() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.counters");
    let mut first = open(&directory);
    let status = told(&mut first, example());
    first.save(&status, there, true);
    let good = std::fs::read(&path).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let begun = open(&directory);
        assert!(begun.waiting.is_empty() && begun.told.takeovers == 0);
        Memory::at(path.clone()).load(&place()).map(|saved| saved.map(drop)).unwrap_err().to_string()
    };
    let mut bit = good.clone();
    *bit.last_mut().unwrap() ^= 1;
    assert!(error(&bit).ends_with("is damaged (its checksum is wrong)"));
    assert!(error(&good[..good.len() / 2]).ends_with("is damaged (its checksum is wrong)"));
    assert!(error(b"").contains("no file of counters"));
    assert!(error(&vec![b'x'; 1000]).contains("no file of counters"));
    let other = String::from_utf8(good.clone()).unwrap().replacen("counters 1 ", "counters 2 ", 1);
    assert!(error(other.as_bytes()).contains("of this version"));
    let json = b"{\"place\":3}";
    let lying = [format!("podlane-counters 1 {:08x}\n", crc32fast::hash(json)).as_bytes(), json].concat();
    assert!(error(&lying).contains("damaged (invalid type"), "{}", error(&lying));
    assert!(error(&vec![0; file::MAX_BYTES as usize + 1]).contains("larger than 8 MiB"));
    std::fs::write(&path, &good).unwrap();
    let elsewhere = Place { boot: "another".to_owned(), ..place() };
    let error = Memory::at(path.clone()).load(&elsewhere).unwrap_err().to_string();
    assert!(error.ends_with("is of another boot or another network namespace"), "{error}");
    // A link that somebody has put there is not followed.
    let target = directory.path().join("target");
    std::fs::rename(&path, &target).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    assert!(matches!(Memory::at(path.clone()).load(&place()), Err(LoadError::Read { .. })));
}

#[test]
fn counts_at_the_end_of_their_range_stay_there() {
    let most = PortSums {
        rx_packets: u64::MAX,
        forwarded: u64::MAX,
        passed: Breakdown::of([("ttl", u64::MAX)]),
        ..PortSums::default()
    };
    let mut twice = most.clone().settled();
    twice.carry(&most);
    assert_eq!((twice.rx_packets, twice.settled().worker_rx), (u64::MAX, u64::MAX));
}

#[test]
fn a_place_that_cannot_be_written_is_told_once_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let mut carried = Carried::from(Memory::at(directory.path().join("gone/x.counters")), place());
    assert_eq!(carried.note(), None);
    for failures in 1..=2 {
        carried.save(&example(), there, false);
        assert_eq!(carried.told.save_failures, failures);
    }
    assert!(carried.note().unwrap().contains("gone/x.counters"));
    std::fs::create_dir(directory.path().join("gone")).unwrap();
    carried.save(&example(), there, false);
    assert_eq!((carried.note(), carried.told.save_failures), (None, 2));
}

/// The whole of a full node fits, by far.
#[test]
fn the_largest_node_fits_into_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut carried = open(&directory);
    let mut status = told(&mut carried, example());
    let reasons = podlane_dataplane::forward::PassReason::ALL.iter().map(|reason| (reason.name(), u64::MAX / 64));
    let full = Breakdown::of(reasons);
    let pod = crate::status::PortStatus { passed: full.clone(), kernel: full, ..status.ports[1].clone() };
    status.ports = (0..podlane_dataplane::limits::MAX_PORTS as u32)
        .map(|id| crate::status::PortStatus { id, ifindex: 10 + id, ..pod.clone() })
        .collect();
    carried.save(&status, there, true);
    let bytes = std::fs::metadata(directory.path().join("x.counters")).unwrap().len();
    assert!(carried.told.save_failures == 0 && bytes < file::MAX_BYTES / 2, "{bytes}");
    assert_eq!(open(&directory).waiting.len(), podlane_dataplane::limits::MAX_PORTS);
}
