//! Metrics in OpenMetrics text: everything that `podlane status` tells, for Prometheus and what reads its format.
//!
//! Names follow Prometheus' conventions: `podlane_` in front, base units, counters end in `_total`. The text is made from a
//! [`Status`], so that metrics and status cannot disagree, and nothing is counted for metrics alone. Programs that do not know
//! OpenMetrics get the older text format of Prometheus ([`classic`]).

pub mod http;

use std::collections::BTreeSet;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use podlane_dataplane::forward::DropReason;

use crate::status::{Breakdown, PortStatus, Status, WorkerStatus};

/// The media type of the text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of Prometheus' older text format.
pub const CLASSIC_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn encode(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("podlane");
    registry.register_collector(Box::new(Snapshot(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// OpenMetrics text, as made by [`encode`], in Prometheus' older format: there a counter's family is called like its samples, and
/// neither units nor the end are told.
pub fn classic(text: &str) -> String {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: BTreeSet<&str> = described.collect();
    let mut classic = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) => {
                let total = if counters.contains(name) { "_total" } else { "" };
                classic.push_str(&format!("# {what} {name}{total} {rest}\n"));
            }
            _ => {
                classic.push_str(line);
                classic.push('\n');
            }
        }
    }
    classic
}

#[derive(Debug)]
struct Snapshot(Status);

/// Label and value.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// The metrics of one name, by their labels.
struct Family<'e> {
    encoder: MetricEncoder<'e>,
}

impl Family<'_> {
    /// The only metric of this name.
    fn only_counter(self, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder)
    }

    /// The only metric of this name.
    fn only_gauge(self, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.encoder)
    }

    /// A histogram with these upper bounds; one more count than there are bounds.
    fn histogram(&mut self, labels: &Labels<'_>, sum: f64, bounds: &[f64], counts: &[u64]) -> fmt::Result {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
        let count = counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        self.encoder.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn counter(&mut self, labels: &Labels<'_>, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder.encode_family(labels)?)
    }

    fn seconds(&mut self, labels: &Labels<'_>, value: f64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder.encode_family(labels)?)
    }

    fn gauge(&mut self, labels: &Labels<'_>, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.encoder.encode_family(labels)?)
    }
}

/// A number of the program's and one of the workers'.
type ByBoth = fn(&PortStatus) -> [u64; 2];
/// A size of a port, where it has one.
type OfPort = fn(&PortStatus) -> Option<u32>;
/// A counter of a port.
type CountOfPort = fn(&PortStatus) -> u64;
/// A number of one worker.
type OfWorker = fn(&WorkerStatus) -> u64;

/// Where a port's packets went, by who let them go there: the program in the kernel, or a worker.
const PROGRAM: (&str, &str) = ("by", "program");
const WORKER: (&str, &str) = ("by", "worker");

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.daemon(&mut encoder)?;
        self.counting(&mut encoder)?;
        self.ports(&mut encoder)?;
        self.port_packets(&mut encoder)?;
        self.port_outcomes(&mut encoder)?;
        self.workers(&mut encoder)?;
        self.residence(&mut encoder)?;
        self.tables(&mut encoder)?;
        self.umem(&mut encoder)?;
        self.mirror(&mut encoder)
    }
}

fn counters<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
    unit: Option<&'e Unit>,
) -> Result<Family<'e>, fmt::Error> {
    Ok(Family { encoder: encoder.encode_descriptor(name, help, unit, MetricType::Counter)? })
}

fn gauges<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
    unit: Option<&'e Unit>,
) -> Result<Family<'e>, fmt::Error> {
    Ok(Family { encoder: encoder.encode_descriptor(name, help, unit, MetricType::Gauge)? })
}

fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Snapshot {
    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.0;
        let program = word(&status.kernel_program);
        let labels = vec![
            ("version", status.version.as_str()),
            ("instance_name", &status.instance),
            ("path", &status.path),
            ("bridge", &status.bridge),
            ("kernel_program", &program),
        ];
        gauges(encoder, "build_info", "Version, name and ways of the daemon", None)?.gauge(&labels, 1.0)?;
        gauges(encoder, "uptime", "Time since the daemon started", Some(&Unit::Seconds))?
            .only_gauge(status.uptime_s)?;
        gauges(encoder, "start_time", "When the daemon started, in Unix time", Some(&Unit::Seconds))?
            .only_gauge(status.start_time_s)?;
        gauges(encoder, "notes", "Sentences that `podlane status` has for the operator", None)?
            .only_gauge(status.notes.len() as f64)?;
        let balanced = if status.accounts_balance { 1.0 } else { 0.0 };
        gauges(
            encoder,
            "accounts_balanced",
            "1 if every received packet and every UMEM frame is accounted for; 0 is usual while traffic flows",
            None,
        )?
        .only_gauge(balanced)?;
        gauges(encoder, "refused_interfaces", "Interfaces that would be ports but are left to the kernel", None)?
            .only_gauge(status.refused.len() as f64)?;
        let mut routing = gauges(
            encoder,
            "accelerated",
            "1 if packets of this kind are forwarded, 0 if all are left to the kernel",
            None,
        )?;
        for (kind, state) in
            [("ipv4", &status.routing.ipv4), ("ipv6", &status.routing.ipv6), ("bridging", &status.routing.bridging)]
        {
            routing.gauge(&vec![("kind", kind)], if state == "on" { 1.0 } else { 0.0 })?;
        }
        Ok(())
    }

    /// What the counters themselves are worth.
    fn counting(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = &self.0.counters;
        gauges(
            encoder,
            "counters_start_time",
            "When the counters began at 0, in Unix time: earlier than the daemon if they were carried on",
            Some(&Unit::Seconds),
        )?
        .only_gauge(counts.since_s)?;
        let mut takeovers =
            counters(encoder, "takeovers", "Daemons from which a next one took the counters over, by their end", None)?;
        takeovers.counter(&vec![("previous", "ended")], counts.takeovers)?;
        takeovers.counter(&vec![("previous", "killed")], counts.takeovers_after_kill)?;
        if let Some(gap_ms) = self.0.survival.gap_ms {
            let help = "How long nobody kept the tables before this daemon took over";
            gauges(encoder, "takeover_gap", help, Some(&Unit::Seconds))?.only_gauge(gap_ms / 1000.0)?;
        }
        counters(encoder, "counters_save_failures", "Times that this daemon could not save its counters", None)?
            .only_counter(counts.save_failures)
    }

    fn ports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ports = &self.0.ports;
        let mut info = gauges(encoder, "port_info", "What a port is; the value is its interface index", None)?;
        for port in ports {
            let (kind, mode, copy) = (word(&port.kind), word(&port.xdp_mode), word(&port.copy_mode));
            let (pieces, checksums) = (port.multi_buffer.to_string(), port.checksum_metadata.to_string());
            let id = port.id.to_string();
            let mut labels = vec![
                ("port", port.name.as_str()),
                ("kind", &kind),
                ("path", &port.path),
                ("xdp_mode", &mode),
                ("state", &port.state),
                ("number", &id),
                ("copy_mode", &copy),
                ("multi_buffer", &pieces),
                ("checksum_metadata", &checksums),
            ];
            labels.extend(port.namespace.as_deref().map(|namespace| ("namespace", namespace)));
            labels.extend(port.pod.as_deref().map(|pod| ("pod", pod)));
            info.gauge(&labels, f64::from(port.ifindex))?;
        }
        let mut up = gauges(encoder, "port_forwarding", "1 if frames may enter and leave through the port", None)?;
        for port in ports {
            up.gauge(&vec![("port", &port.name)], if port.state == "forwarding" { 1.0 } else { 0.0 })?;
        }
        let sizes: [(&str, &str, Option<&Unit>, OfPort); 5] = [
            ("port_mtu", "Largest IP packet", Some(&Unit::Bytes), |port| Some(port.mtu)),
            (
                "port_local_mtu",
                "MTU for traffic inside of the node, where Podlane set one",
                Some(&Unit::Bytes),
                |port| port.local_mtu,
            ),
            ("port_big_tcp", "Segmentation size, where Podlane set one", Some(&Unit::Bytes), |port| port.big_tcp),
            ("port_queues", "Queues with a socket", None, |port| Some(port.queues)),
            ("port_guarded", "1 if the pod may send from its own addresses only", None, |port| {
                port.source_guard.as_ref().map(|guard| u32::from(guard.active))
            }),
        ];
        for (name, help, unit, value) in sizes {
            let mut family = gauges(encoder, name, help, unit)?;
            for port in ports {
                let Some(value) = value(port) else { continue };
                family.gauge(&vec![("port", &port.name)], f64::from(value))?;
            }
        }
        Ok(())
    }

    fn port_packets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ports = &self.0.ports;
        let each: [(&str, &str, Option<&Unit>, ByBoth); 4] = [
            ("port_forwarded_packets", "Packets that came in through the port and were forwarded", None, |port| {
                [port.repeated, port.forwarded]
            }),
            ("port_forwarded", "Their bytes, Ethernet header included", Some(&Unit::Bytes), |port| {
                [port.repeated_bytes, port.forwarded_bytes]
            }),
            ("port_transmitted_packets", "Packets forwarded out of the port", None, |port| {
                [port.repeated_out, port.tx_packets]
            }),
            ("port_transmitted", "Their bytes", Some(&Unit::Bytes), |port| [port.repeated_out_bytes, port.tx_bytes]),
        ];
        for (name, help, unit, value) in each {
            let mut family = counters(encoder, name, help, unit)?;
            for port in ports {
                for (by, value) in [PROGRAM, WORKER].into_iter().zip(value(port)) {
                    family.counter(&vec![("port", &port.name), by], value)?;
                }
            }
        }
        let each: [(&str, &str, Option<&Unit>, CountOfPort); 5] = [
            (
                "port_received_packets",
                "Packets that the port's program saw; a segmentation super-frame counts once",
                None,
                |port| port.rx_packets,
            ),
            ("port_received", "Their bytes, Ethernet header included", Some(&Unit::Bytes), |port| port.rx_bytes),
            ("port_steered_packets", "Of these, given to AF_XDP sockets", None, |port| port.steered),
            ("port_worker_received_packets", "Of these, received by workers", None, |port| port.worker_rx),
            ("port_path_switches", "Times that the port changed its path", None, |port| port.path_switches),
        ];
        for (name, help, unit, value) in each {
            let mut family = counters(encoder, name, help, unit)?;
            for port in ports {
                family.counter(&vec![("port", &port.name)], value(port))?;
            }
        }
        Ok(())
    }

    /// What was not forwarded, by reason; `podlane explain` knows them all.
    fn port_outcomes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ports = &self.0.ports;
        let mut passed = counters(
            encoder,
            "port_passed_packets",
            "Packets left to the kernel, which handles them as without Podlane",
            None,
        )?;
        for port in ports {
            by_reason(&mut passed, port, PROGRAM, &port.passed)?;
            by_reason(&mut passed, port, WORKER, &port.kernel)?;
        }
        let mut dropped =
            counters(encoder, "port_dropped_packets", "Packets that came in through the port and were lost", None)?;
        for port in ports {
            by_reason(&mut dropped, port, WORKER, &with_zeros(&port.dropped, WORKERS))?;
            let guards: &[DropReason] = if port.source_guard.is_some() { GUARDS } else { &[] };
            by_reason(&mut dropped, port, PROGRAM, &with_zeros(&port.guarded, guards))?;
            for (reason, count, _) in port.socket_drops.parts() {
                dropped.counter(&vec![("port", &port.name), ("by", "socket"), ("reason", reason)], count)?;
            }
        }
        let mut dropped = counters(
            encoder,
            "port_transmit_dropped_packets",
            "Packets handed to this port's worker that it could not send",
            None,
        )?;
        for port in ports {
            by_reason(&mut dropped, port, WORKER, &with_zeros(&port.tx_dropped, WORKERS))?;
        }
        Ok(())
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let workers: Vec<_> = self.0.workers.iter().map(|worker| (worker.id.to_string(), worker)).collect();
        let mut info = gauges(encoder, "worker_info", "The CPU that a worker is pinned to", None)?;
        for (id, worker) in &workers {
            info.gauge(&vec![("worker", id), ("cpu", &worker.cpu.to_string())], 1.0)?;
        }
        let mut queues = gauges(encoder, "worker_ports", "Ports on which a worker owns a queue", None)?;
        for (id, worker) in &workers {
            queues.gauge(&vec![("worker", id)], f64::from(worker.ports))?;
        }
        let mut age =
            gauges(encoder, "worker_heartbeat_age", "Time since the worker's last sign of life", Some(&Unit::Seconds))?;
        for (id, worker) in &workers {
            age.gauge(&vec![("worker", id)], worker.heartbeat_age_ms / 1000.0)?;
        }
        let each: [(&str, &str, OfWorker); 11] = [
            ("worker_received_packets", "Packets taken from RX rings", |worker| worker.rx),
            ("worker_forwarded_packets", "Of these, forwarded", |worker| worker.forwarded),
            ("worker_passed_packets", "Of these, handed to the kernel", |worker| worker.kernel),
            ("worker_dropped_packets", "Of these, dropped", |worker| worker.dropped),
            ("worker_batches", "Batches of received packets", |worker| worker.batches),
            ("worker_sleeps", "Times that it went to sleep", |worker| worker.sleeps),
            ("worker_wakeups", "Times that something else than its timer woke it", |worker| worker.wakeups),
            ("worker_transmit_syscalls", "System calls to transmit", |worker| worker.tx_syscalls),
            ("worker_fill_starvations", "Times that a fill ring got no frame because none was free", |worker| {
                worker.fill_starved
            }),
            ("worker_handed_over_packets", "Packets handed to other workers", |worker| worker.handoff_out),
            ("worker_taken_over_packets", "Packets taken from other workers", |worker| worker.handoff_in),
        ];
        for (name, help, value) in each {
            let mut family = counters(encoder, name, help, None)?;
            for (id, worker) in &workers {
                family.counter(&vec![("worker", id)], value(worker))?;
            }
        }
        let mut busy =
            counters(encoder, "worker_busy", "Time in which the worker had packets to handle", Some(&Unit::Seconds))?;
        for (id, worker) in &workers {
            busy.seconds(&vec![("worker", id)], worker.busy_ns as f64 / 1e9)?;
        }
        let mut frames = gauges(encoder, "worker_frames", "UMEM frames in a worker's rings, by ring", None)?;
        for (id, worker) in &workers {
            let rings = [
                ("rx", worker.rx_frames),
                ("tx", worker.tx_frames),
                ("fill", worker.fill_frames),
                ("handoff", worker.handoff_frames),
            ];
            for (ring, count) in rings {
                frames.gauge(&vec![("worker", id), ("ring", ring)], count as f64)?;
            }
        }
        Ok(())
    }

    fn residence(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "From a worker's taking packets out of an RX ring to its kick of the TX ring";
        let unit = Unit::Seconds;
        let encoder = encoder.encode_descriptor("worker_residence", help, Some(&unit), MetricType::Histogram)?;
        let mut family = Family { encoder };
        for worker in &self.0.workers {
            let residence = &worker.residence;
            let bounds: Vec<_> = residence.le_us.iter().map(|bound| *bound as f64 / 1e6).collect();
            let id = worker.id.to_string();
            family.histogram(&vec![("worker", &id)], residence.sum_ns as f64 / 1e9, &bounds, &residence.packets)?;
        }
        Ok(())
    }

    fn tables(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tables = &self.0.tables;
        let sizes = [
            ("ports", tables.ports, tables.port_limit),
            ("fdb", tables.fdb, tables.fdb_limit),
            ("neighbours", tables.neighbours, tables.neighbour_limit),
            ("routes_ipv4", tables.routes_ipv4, tables.route_limit),
            ("routes_ipv6", tables.routes_ipv6, tables.route_limit),
            ("next_hops", tables.next_hops, tables.next_hop_limit),
        ];
        let mut entries = gauges(encoder, "table_entries", "Entries of a table", None)?;
        for (table, count, _) in sizes {
            entries.gauge(&vec![("table", table)], count as f64)?;
        }
        let mut limits = gauges(encoder, "table_limit", "Most entries that a table can have", None)?;
        for (table, _, limit) in sizes {
            limits.gauge(&vec![("table", table)], limit as f64)?;
        }
        counters(encoder, "table_publications", "Snapshots of the tables that were put in force", None)?
            .only_counter(tables.publications)?;
        gauges(encoder, "table_generation", "Number of the snapshot in force; a daemon begins at 0", None)?
            .only_gauge(tables.generation as f64)?;
        gauges(encoder, "table_fib", "Memory of the compiled routes", Some(&Unit::Bytes))?
            .only_gauge(tables.fib_bytes as f64)
    }

    fn umem(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let umem = &self.0.umem;
        let mut frames = gauges(encoder, "umem_frames", "UMEM frames by the place where they are", None)?;
        for (place, count) in umem.places() {
            frames.gauge(&vec![("place", place)], count as f64)?;
        }
        gauges(encoder, "umem_frames_limit", "UMEM frames in all", None)?.only_gauge(umem.frames as f64)?;
        gauges(encoder, "umem_frame_size", "Memory of one UMEM frame", Some(&Unit::Bytes))?
            .only_gauge(umem.chunk_bytes as f64)?;
        let sum_ok = if umem.sum_ok { 1.0 } else { 0.0 };
        gauges(encoder, "umem_accounted", "1 if every UMEM frame was found in one place", None)?.only_gauge(sum_ok)
    }

    fn mirror(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (mirror, learning) = (&self.0.mirror, &self.0.learning);
        let each = [
            ("netlink_messages", "Netlink messages received", mirror.messages),
            ("netlink_redumps", "Times that all of the kernel's tables were read anew", mirror.redumps),
            ("netlink_overruns", "Times that the kernel lost messages for us", mirror.overruns),
            ("learning_reports", "New or moved MAC addresses that workers saw", learning.reports),
            ("learning_accepted", "Of these, told to the bridge", learning.accepted),
            ("learning_limited", "Sightings that a limit suppressed", learning.limited),
        ];
        for (name, help, value) in each {
            counters(encoder, name, help, None)?.only_counter(value)?;
        }
        let mut took = gauges(
            encoder,
            "table_change_duration",
            "From reading a change of the kernel's tables to its being in force on both paths",
            Some(&Unit::Seconds),
        )?;
        took.gauge(&vec![("which", "last")], mirror.last_change_us as f64 / 1e6)?;
        took.gauge(&vec![("which", "slowest")], mirror.slowest_change_us as f64 / 1e6)
    }
}

/// Reasons of workers, and those of the source guard, which also a worker may have.
const WORKERS: &[DropReason] = DropReason::ALL.split_at(DropReason::FIRST_OF_GUARD).0;
const GUARDS: &[DropReason] = DropReason::ALL.split_at(DropReason::FIRST_OF_GUARD).1;

/// Losses are few in kind, and an alert must see the first of them as an increase.
fn with_zeros(drops: &Breakdown, reasons: &[DropReason]) -> Breakdown {
    let mut all = drops.clone();
    reasons.iter().for_each(|reason| {
        all.by_reason.entry(reason.name().to_owned()).or_default();
    });
    all
}

/// Absent reasons have not occurred yet.
fn by_reason(
    family: &mut Family<'_>,
    port: &PortStatus,
    by: (&'static str, &'static str),
    parts: &Breakdown,
) -> fmt::Result {
    for (reason, count) in &parts.by_reason {
        family.counter(&vec![("port", &port.name), by, ("reason", reason)], *count)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
