use proptest::prelude::*;

use super::*;

fn port(id: u32, name: &str, kind: PortKind) -> PortStatus {
    PortStatus {
        id,
        name: name.to_owned(),
        ifindex: 10 + id,
        pod: None,
        namespace: None,
        named_by: None,
        kind,
        queues: 1,
        path: "af_xdp".to_owned(),
        why_path: "as configured".to_owned(),
        xdp_mode: PortXdpMode::Native,
        copy_mode: CopyMode::Copy,
        multi_buffer: true,
        checksum_metadata: true,
        state: "forwarding".to_owned(),
        mtu: 1500,
        big_tcp: None,
        local_mtu: None,
        why: None,
        path_switches: 0,
        rx_packets: 0,
        rx_bytes: 0,
        steered: 0,
        repeated: 0,
        repeated_bytes: 0,
        passed: Breakdown::default(),
        guarded: Breakdown::default(),
        source_guard: None,
        socket_drops: SocketDrops::default(),
        worker_rx: 0,
        forwarded: 0,
        forwarded_bytes: 0,
        kernel: Breakdown::default(),
        dropped: Breakdown::default(),
        tx_packets: 0,
        tx_bytes: 0,
        repeated_out: 0,
        repeated_out_bytes: 0,
        tx_dropped: Breakdown::default(),
    }
}

fn residence() -> ResidenceStatus {
    let counted = podlane_dataplane::worker::Residence::default();
    counted.add(1_500, 34_000);
    counted.add(12_000, 1_180_000);
    counted.add(90_000, 20_000);
    counted.add(150_000_000, 2);
    ResidenceStatus::of(&counted)
}

/// A busy pod, an idle uplink, and the host port.
pub(crate) fn example() -> Status {
    let pod = PortStatus {
        pod: Some("web-0".to_owned()),
        namespace: Some("shop".to_owned()),
        named_by: Some(crate::names::NamedBy::Cni),
        rx_packets: 1_234_597,
        rx_bytes: 79_014_208,
        steered: 1_234_011,
        passed: Breakdown::of([("not_ip", 26), ("outside_cluster", 560)]),
        source_guard: Some(GuardStatus {
            wanted: "cluster".to_owned(),
            active: true,
            why: "by the CNI result and the pod's own interface".to_owned(),
            macs: vec!["02:00:0a:f4:01:02".to_owned()],
            addresses: vec!["10.244.1.2".to_owned(), "fe80::aff:fef4:102".to_owned()],
            refused: Vec::new(),
        }),
        socket_drops: SocketDrops { rx_ring_full: 4, ..SocketDrops::default() },
        worker_rx: 1_234_007,
        forwarded: 1_234_000,
        forwarded_bytes: 78_976_000,
        kernel: Breakdown::of([("unknown_mac", 2)]),
        dropped: Breakdown::of([("tx_ring_full", 5)]),
        tx_packets: 998,
        tx_bytes: 63_872,
        tx_dropped: Breakdown::of([("tx_ring_full", 2)]),
        ..port(1, "veth-pod1", PortKind::Pod)
    };
    let uplink = PortStatus {
        state: "down".to_owned(),
        multi_buffer: false,
        checksum_metadata: false,
        why: Some("eth0 is down; bring it up: ip link set eth0 up".to_owned()),
        ..port(2, "eth0", PortKind::Uplink)
    };
    let host =
        PortStatus { xdp_mode: PortXdpMode::None, tx_packets: 2, tx_bytes: 128, ..port(0, "podlane0", PortKind::Host) };
    Status {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        instance: "default".to_owned(),
        pid: 4711,
        uptime_s: 7384.5,
        start_time_s: 1_795_400_000.25,
        path: "af_xdp".to_owned(),
        kernel_program: KernelProgram::Tcx,
        bridge: "cbr0".to_owned(),
        bridge_state: "ok".to_owned(),
        uplinks: vec!["eth0".to_owned()],
        cluster_cidrs: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()],
        cluster_source: ClusterSource::Configured,
        routing: RoutingStatus { ipv4: "on".into(), ipv6: "forwarding_off".into(), bridging: "on".into() },
        notes: vec!["2 workers share 1 CPU (0), which costs speed; name fewer workers".to_owned()],
        workers: vec![WorkerStatus {
            id: 0,
            cpu: 0,
            heartbeat_age_ms: 3.2,
            rx: 1_234_007,
            forwarded: 1_234_000,
            kernel: 2,
            dropped: 5,
            batches: 40_000,
            sleeps: 1200,
            wakeups: 1100,
            tx_syscalls: 41_000,
            handoff_out: 0,
            handoff_in: 0,
            fill_starved: 0,
            residence: residence(),
            ports: 3,
            busy_ns: 1_480_808_400,
            rx_frames: 200,
            tx_frames: 24,
            fill_frames: 4_096,
            handoff_frames: 0,
        }],
        ports: vec![host, pod, uplink],
        refused: vec![Refused {
            name: "eth7".to_owned(),
            why: "eth7 already has XDP program id 12 (xdp_filter); detach it or set `skip = [\"eth7\"]`".to_owned(),
        }],
        tables: TablesStatus {
            generation: 5,
            publications: 12,
            ports: 3,
            port_limit: 512,
            fdb: 3,
            fdb_limit: 16_384,
            neighbours: 3,
            neighbour_limit: 16_384,
            routes_ipv4: 9,
            routes_ipv6: 9,
            route_limit: 262_144,
            next_hops: 5,
            next_hop_limit: 16_384,
            fib_bytes: 16_448,
        },
        umem: UmemStatus {
            frames: 16_384,
            chunk_bytes: 4096,
            free: 12_000,
            fill: 4_096,
            rx: 200,
            worker: 64,
            handoff: 0,
            tx: 24,
            sum_ok: true,
        },
        mirror: MirrorStatus { messages: 311, redumps: 1, overruns: 0, last_change_us: 412, slowest_change_us: 2_950 },
        learning: LearningStatus { reports: 4, accepted: 3, limited: 1 },
        counters: CountersStatus { since_s: 1_795_300_000.5, takeovers: 2, takeovers_after_kill: 1, save_failures: 0 },
        survival: SurvivalStatus {
            pinned_at: Some("/sys/fs/bpf/podlane/default/4026531840".to_owned()),
            adopted_maps: true,
            adopted_links: 3,
            gap_ms: Some(142.25),
        },
        accounts_balance: true,
    }
}

const SNAPSHOT: &str = include_str!("snapshot.txt");

#[test]
fn the_text_is_as_it_was() {
    let text = example().render();
    assert_eq!(text, SNAPSHOT, "\n{text}");
}

#[test]
fn the_json_is_the_documented_example() {
    let documented = include_str!("../../../docs/status.md");
    let start = documented.find("```json\n").expect("an example") + "```json\n".len();
    let end = start + documented[start..].find("```").expect("its end");
    let parsed: Status = serde_json::from_str(&documented[start..end]).unwrap();
    assert_eq!(parsed, example());
    let documented: serde_json::Value = serde_json::from_str(&documented[start..end]).unwrap();
    assert_eq!(serde_json::to_value(example()).unwrap(), documented, "no field is missing from the example");
}

#[test]
fn every_reason_is_documented() {
    let documented = include_str!("../../../docs/status.md");
    let passes = PassReason::ALL.iter().map(|reason| (reason.name(), reason.sentence()));
    let drops = DropReason::ALL.iter().map(|reason| (reason.name(), reason.sentence()));
    for (name, sentence) in passes.chain(drops) {
        assert!(documented.contains(&format!("| `{name}` | {sentence} |\n")), "{name}");
    }
}

#[test]
fn every_field_of_the_json_is_documented() {
    fn keys(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
                if key != "by_reason" {
                    keys(value, found);
                }
                found.insert(key.clone());
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
            _ => {}
        }
    }
    let mut found = Default::default();
    keys(&serde_json::to_value(example()).unwrap(), &mut found);
    let documented = include_str!("../../../docs/status.md");
    let missing: Vec<_> = found.iter().filter(|key| !documented.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_schema_is_the_documented_one() {
    let documented = include_str!("../../../docs/status.schema.json");
    assert!(
        schema::text() == documented,
        "docs/status.schema.json is out of date: `podlane status --schema > docs/status.schema.json`"
    );
}

/// What the daemon says follows the schema; what lacks a field or has a wrong type does not.
#[test]
fn the_json_follows_the_schema() {
    let schema: serde_json::Value = serde_json::from_str(&schema::text()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut value = serde_json::to_value(example()).unwrap();
    let complaints: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    value["a_new_field"] = 1.into();
    assert!(validator.is_valid(&value), "later versions may say more");
    for (pointer, wrong) in [
        ("/ports/1/rx_packets", serde_json::json!(-1)),
        ("/ports/1/kind", serde_json::json!("server")),
        ("/ports/1/passed", serde_json::json!(3)),
        ("/workers/0/busy_ns", serde_json::Value::Null),
        ("/umem/sum_ok", serde_json::json!("yes")),
    ] {
        let mut spoilt = value.clone();
        *spoilt.pointer_mut(pointer).unwrap() = wrong;
        assert!(!validator.is_valid(&spoilt), "{pointer}");
    }
    value.as_object_mut().unwrap().remove("ports");
    assert!(!validator.is_valid(&value), "a field is missing");
}

#[test]
fn pods_are_shown_by_name_and_nothing_that_a_terminal_obeys() {
    let mut status = example();
    assert!(status.render().contains("\n      pod shop/web-0\n"));
    assert_eq!((status.ports[1].label(), status.ports[2].label()), ("shop/web-0".to_owned(), "eth0".to_owned()));
    status.ports[1].named_by = Some(crate::names::NamedBy::Alias);
    assert!(status.render().contains("\n      pod shop/web-0 (the interface's alias)\n"));
    status.ports[1].name = "veth\u{1b}[2J".to_owned();
    status.refused[0].why = "it\u{9b}is\u{202e}so".to_owned();
    let text = status.render();
    assert!(text.contains("veth\u{fffd}[2J") && text.contains("it\u{fffd}is\u{fffd}so"), "{text}");
}

#[test]
fn a_newer_daemon_may_say_more() {
    let mut value = serde_json::to_value(example()).unwrap();
    value["a_new_field"] = 1.into();
    value["ports"][0]["another"] = true.into();
    assert_eq!(serde_json::from_value::<Status>(value).unwrap(), example());
}

#[test]
fn accounts_that_do_not_add_up_are_noticed() {
    assert!(example().balances());
    for spoil in [
        |status: &mut Status| status.ports[1].rx_packets += 1,
        |status: &mut Status| status.ports[1].steered -= 1,
        |status: &mut Status| status.ports[1].worker_rx += 1,
        |status: &mut Status| status.ports[1].dropped.total += 1,
        |status: &mut Status| status.ports[1].socket_drops.other += 1,
        |status: &mut Status| status.umem.rx += 1,
    ] {
        let mut status = example();
        spoil(&mut status);
        assert!(!status.balances());
    }
}

#[test]
fn packets_on_their_way_are_shown_instead_of_hidden() {
    let mut status = example();
    status.ports[1].rx_packets += 7;
    assert!(status.render().contains("      7 more received and still on their way\n"));
    status.ports[1].rx_packets -= 10;
    assert!(status.render().contains("      3 counted at their end only"));
    status.umem.rx -= 1;
    status.umem.sum_ok = false;
    assert!(status.render().contains(": 1 in no place"));
    status.umem.rx += 3;
    assert!(status.render().contains(": 2 in two places"));
}

#[test]
fn large_frames_are_shown_where_they_are_set() {
    let mut status = example();
    assert!(!status.render().contains("inside of the node"));
    (status.ports[1].big_tcp, status.ports[1].local_mtu) = (Some(196_608), Some(65_000));
    assert!(status.render().contains("\n      BIG TCP up to 196,608 bytes, MTU 65000 inside of the node\n"));
}

#[test]
fn counters_become_names() {
    let mut counters = [0; PassReason::COUNT];
    counters[PassReason::Ttl as usize] = 3;
    counters[PassReason::NotIp as usize] = 4;
    assert_eq!(Breakdown::passes(&counters), Breakdown::of([("ttl", 3), ("not_ip", 4)]));
    assert_eq!(Breakdown::passes(&counters).total, 7);
    let mut counters = [0; DropReason::COUNT];
    counters[DropReason::EgressGone as usize] = 1;
    assert_eq!(Breakdown::drops(&counters), Breakdown::of([("egress_gone", 1)]));
    let off = podlane_dataplane::table::Routing { ipv4_off: Some(PassReason::PolicyRules), ..Default::default() };
    assert_eq!(RoutingStatus::new(&off).ipv4, "policy_rules");
    assert_eq!(RoutingStatus::new(&off).ipv6, "on");
}

#[test]
fn a_daemon_without_ports_is_shown() {
    let status =
        Status { ports: vec![], workers: vec![], refused: vec![], notes: vec![], uplinks: vec![], ..example() };
    let text = status.render();
    assert!(text.contains("Ports\n") && text.contains("\n  none\n") && !text.contains("Notes"), "{text}");
}

proptest! {
    /// Whatever the counters up to a trillion packets and the sentences are, no line is wider than a terminal.
    #[test]
    fn no_line_is_too_wide(
        counts in proptest::collection::vec(0..1_000_000_000_000u64, 6),
        reasons in proptest::collection::vec((0..PassReason::COUNT, 0..1_000_000_000_000u64), 0..5),
        why in "[a-z/ ]{0,300}",
        note in "[a-z/ ]{0,300}",
    ) {
        let mut status = example();
        status.notes = vec![note];
        let port = &mut status.ports[1];
        port.name = "exactly15bytes_".to_owned();
        port.why = Some(why);
        port.rx_packets = counts[0];
        port.forwarded = counts[1];
        port.repeated = counts[4];
        port.repeated_out = counts[3];
        port.tx_packets = counts[5];
        port.passed = Breakdown::of(reasons.iter().map(|&(reason, count)| (PassReason::ALL[reason].name(), count)));
        port.kernel = Breakdown::of([("ttl", counts[2] / 1_000_000)]);
        port.dropped = Breakdown::of([("tx_ring_full", counts[3] / 1000)]);
        status.workers[0].rx = counts[4];
        status.workers[0].forwarded = counts[4];
        let text = status.render();
        for line in text.lines() {
            prop_assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn json_round_trips(rx in any::<u64>(), uptime in any::<u32>()) {
        let mut status = example();
        status.ports[1].rx_packets = rx;
        status.uptime_s = uptime.into();
        let text = serde_json::to_string(&status).unwrap();
        prop_assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
