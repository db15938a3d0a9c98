use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

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
        let family = name.strip_suffix("_total").unwrap_or(name);
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
