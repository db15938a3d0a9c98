use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::*;
use crate::status::tests::example;

fn metrics() -> String {
    encode(example()).unwrap()
}

fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[test]
fn what_the_status_says_is_there() {
    let text = metrics();
    for (sample, expected) in [
        ("podlane_uptime_seconds", 7384.5),
        ("podlane_port_received_packets_total{port=\"veth-pod1\"}", 1_234_597.0),
        ("podlane_port_received_bytes_total{port=\"veth-pod1\"}", 79_014_208.0),
        ("podlane_port_forwarded_packets_total{port=\"veth-pod1\",by=\"worker\"}", 1_234_000.0),
        ("podlane_port_passed_packets_total{port=\"veth-pod1\",by=\"program\",reason=\"outside_cluster\"}", 560.0),
        ("podlane_port_passed_packets_total{port=\"veth-pod1\",by=\"worker\",reason=\"unknown_mac\"}", 2.0),
        ("podlane_port_dropped_packets_total{port=\"veth-pod1\",by=\"socket\",reason=\"rx_ring_full\"}", 4.0),
        ("podlane_port_dropped_packets_total{port=\"veth-pod1\",by=\"worker\",reason=\"tx_ring_full\"}", 5.0),
        ("podlane_port_forwarding{port=\"eth0\"}", 0.0),
        ("podlane_accelerated{kind=\"ipv6\"}", 0.0),
        ("podlane_worker_heartbeat_age_seconds{worker=\"0\"}", 0.0032),
        ("podlane_worker_batches_total{worker=\"0\"}", 40_000.0),
        ("podlane_table_limit{table=\"fdb\"}", 16_384.0),
        ("podlane_umem_frames{place=\"free\"}", 12_000.0),
        ("podlane_refused_interfaces", 1.0),
        ("podlane_start_time_seconds", 1_795_400_000.25),
        ("podlane_takeovers_total{previous=\"killed\"}", 1.0),
        ("podlane_takeover_gap_seconds", 0.14225),
        ("podlane_port_dropped_packets_total{port=\"eth0\",by=\"worker\",reason=\"tx_ring_full\"}", 0.0),
        ("podlane_worker_residence_seconds_bucket{le=\"0.000005\",worker=\"0\"}", 34_000.0),
        ("podlane_worker_residence_seconds_bucket{le=\"+Inf\",worker=\"0\"}", 1_234_002.0),
        ("podlane_worker_residence_seconds_count{worker=\"0\"}", 1_234_002.0),
    ] {
        assert_eq!(value(&text, sample), Some(expected), "{sample}\n{text}");
    }
}

/// OpenMetrics 1.0: every family is described once, before its samples, with help; the text ends with a mark.
#[test]
fn the_text_is_well_formed() {
    let text = metrics();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let described: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let names: BTreeSet<_> = described.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names.len(), described.len(), "a family is described twice: {described:?}");
    assert_eq!(text.lines().filter(|line| line.starts_with("# HELP ")).count(), described.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let ends = ["_total", "_bucket", "_sum", "_count"];
        let family = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(names.contains(family) && name.starts_with("podlane_"), "{line}");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
}

fn get(server: &http::Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address().unwrap()).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_scrape_without_a_daemon_is_answered_with_a_sentence() {
    let server = http::Server::start("127.0.0.1:0".parse().unwrap(), "nobody-of-this-name").unwrap();
    let answer = get(&server, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("nobody-of-this-name"), "{answer}");
    assert!(get(&server, "GET /etc/passwd").starts_with("HTTP/1.1 404"));
    assert!(get(&server, "POST /metrics").starts_with("HTTP/1.1 405"));
    let error = http::Server::start(server.address().unwrap(), "other").unwrap_err().to_string();
    assert!(error.contains("metrics_address") && error.contains("in use"), "{error}");
}

/// Every place of a value in a JSON tree that is not a list or an object.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| leaves(item, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// Numbers and switches of the status that no metric tells, by the end of their place, and why.
const NOT_TOLD: &[(&str, &str)] = &[
    ("/schema", "the version of the JSON, not of the daemon"),
    ("/pid", "the process is known to who collects metrics of processes, and a number in no unit"),
    ("/total", "the sum of its parts, which are told"),
    ("/le_us", "the bounds of the buckets, which are labels; a daemon has one set of them"),
    ("/adopted_maps", "how one start went, which the log says; the gap that it made is told"),
    ("/adopted_links", "how one start went, which the log says; the gap that it made is told"),
    ("/p50_us", "histogram_quantile makes it of the buckets"),
    ("/p99_us", "histogram_quantile makes it of the buckets"),
];

/// Every number and every switch of the status changes the metrics when it changes, and a number is told in base units.
#[test]
fn nothing_that_the_status_counts_is_missing() {
    let mut status = example();
    let port = &mut status.ports[1];
    port.tx_dropped = Breakdown::of([("egress_gone", 3)]);
    (port.big_tcp, port.local_mtu) = (Some(196_608), Some(65_000));
    let tree = serde_json::to_value(status).unwrap();
    let told = |tree: &Value| encode(serde_json::from_value(tree.clone()).unwrap()).unwrap();
    let before = told(&tree);
    let mut places = Vec::new();
    leaves(&tree, "", &mut places);
    let (mut looked_at, mut used) = (0, BTreeSet::new());
    for place in places {
        let mut changed = tree.clone();
        let value = changed.pointer_mut(&place).unwrap();
        let number = 1_000_003.0;
        match value {
            Value::Bool(switch) => *switch = !*switch,
            Value::Number(_) => *value = if value.is_f64() { number.into() } else { 1_000_003.into() },
            _ => continue,
        }
        looked_at += 1;
        let field = place.trim_end_matches(|end: char| end.is_ascii_digit() || end == '/');
        if let Some((end, _)) = NOT_TOLD.iter().find(|(end, _)| field.ends_with(end)) {
            used.insert(*end);
            continue;
        }
        let after = told(&changed);
        assert_ne!(before, after, "{place} is in no metric: add one, or the reason why not");
        // A bucket is told together with those below it.
        if !tree.pointer(&place).unwrap().is_number() || place.contains("/packets/") || place.ends_with("/id") {
            continue;
        }
        let unit = [("_ms", 1e3), ("_us", 1e6), ("_ns", 1e9)].iter().find(|(end, _)| place.ends_with(end));
        let expected = number / unit.map_or(1.0, |(_, parts)| *parts);
        let values = after.lines().filter(|line| !before.contains(*line)).filter_map(|line| line.rsplit_once(' '));
        let exact = values.map(|(_, value)| value.parse::<f64>().unwrap()).any(|value| (value - expected).abs() < 1e-9);
        assert!(exact || place.ends_with("/cpu"), "{place} is not told as {expected}:\n{after}");
    }
    assert!(looked_at > 150, "{looked_at}");
    let unused: Vec<_> = NOT_TOLD.iter().filter(|(end, _)| !used.contains(end)).collect();
    assert!(unused.is_empty(), "these are told, or gone: {unused:?}");
}

/// The names of samples, of families without samples too, as a query can use them.
fn queryable(text: &str) -> BTreeSet<String> {
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = families.flat_map(|(name, kind)| match kind {
        "counter" => vec![format!("{name}_total")],
        "histogram" => ["bucket", "sum", "count"].iter().map(|end| format!("{name}_{end}")).collect(),
        _ => vec![name.to_owned()],
    });
    names.collect()
}

/// The words of a text that begin like our metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("podlane_") && !word.ends_with('_')).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let there = queryable(&metrics());
    let documented = named(include_str!("../../../docs/metrics.md"));
    assert_eq!(documented, there, "left: docs/metrics.md, right: the metrics");
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let there = queryable(&metrics());
    for (file, text) in [
        ("podlane.rules.yml", include_str!("../../../packaging/prometheus/podlane.rules.yml")),
        ("podlane.rules.test.yml", include_str!("../../../packaging/prometheus/podlane.rules.test.yml")),
        ("podlane.json", include_str!("../../../packaging/grafana/podlane.json")),
    ] {
        let mut asked = named(text);
        // The file of rules, in whose test it is named, is no metric.
        asked.retain(|name| !there.contains(name));
        assert!(asked.is_empty(), "{file}: {asked:?}");
    }
}

/// What Grafana needs of a dashboard: panels that do not overlap, numbers of their own, a data source to choose.
#[test]
fn the_dashboard_is_well_formed() {
    let board: Value = serde_json::from_str(include_str!("../../../packaging/grafana/podlane.json")).unwrap();
    for field in ["title", "uid", "schemaVersion", "time", "refresh"] {
        assert!(!board[field].is_null(), "{field}");
    }
    let variables = board["templating"]["list"].as_array().unwrap();
    let chosen = variables.iter().find(|variable| variable["name"] == "datasource").unwrap();
    assert!(chosen["type"] == "datasource" && chosen["query"] == "prometheus", "{chosen}");
    let names: BTreeSet<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    let (mut ids, mut cells, mut asking) = (BTreeSet::new(), BTreeSet::new(), 0);
    for panel in board["panels"].as_array().unwrap() {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is another panel's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title}");
        let own = (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line)));
        own.for_each(|cell| assert!(cells.insert(cell), "{title} lies over another panel"));
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        let references: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert_eq!(references.len(), targets.len(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().unwrap();
            assert!(!named(expression).is_empty(), "{title}: {expression}");
            let variables = expression.split('$').skip(1).map(|rest| {
                rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap()
            });
            for variable in variables.filter(|variable| !variable.starts_with("__")) {
                assert!(names.contains(variable), "{title}: {variable}");
            }
            asking += 1;
        }
    }
    assert!(asking > 20, "{asking}");
}

/// Prometheus' older format: the same samples, and families called as their samples. scripts/test.sh puts this file before
/// promtool.
#[test]
fn the_older_format_is_as_it_was() {
    let text = classic(&metrics());
    let file = include_str!("example.prom");
    assert_eq!(text, file, "\n{text}");
    let samples =
        |text: &str| -> Vec<String> { text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect() };
    assert_eq!(samples(&text), samples(&metrics()));
    assert!(text.contains("# TYPE podlane_netlink_messages_total counter\n") && !text.contains("# UNIT"), "{text}");
}
