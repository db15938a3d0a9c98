//! `podlane status` for people. Every line fits into [`WIDTH`](super::WIDTH) columns; every port's row adds up in sight.

use std::fmt::Write;

use super::table::{Cell, Table, thousands, wrap};
use crate::config::GuardChoice;
use crate::names::{NamedBy, PodName};
use crate::printable;

use super::{Breakdown, ClusterSource, CopyMode, PortKind, PortStatus, PortXdpMode, Status, WorkerStatus, sentence};

/// Units of [`Status::uptime_s`] in the order in which they are shown: seconds of each and its sign.
pub const UPTIME_PARTS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];

impl Status {
    /// The whole as text, ending with a newline.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.render_head(&mut out);
        self.render_list(&mut out, "Notes", self.notes.iter().cloned());
        self.render_ports(&mut out);
        self.render_accounts(&mut out);
        self.render_sent(&mut out);
        self.render_list(
            &mut out,
            "Left to the kernel",
            self.refused.iter().map(|refused| format!("{}: {}", refused.name, refused.why)),
        );
        self.render_workers(&mut out);
        self.render_tables(&mut out);
        self.render_umem(&mut out);
        printable::lines(&out).into_owned()
    }

    fn render_head(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "podlane {}, instance {}, process {}, up {}",
            self.version,
            self.instance,
            self.pid,
            uptime(self.uptime_s)
        );
        let uplinks = if self.uplinks.is_empty() { "none".to_owned() } else { self.uplinks.join(", ") };
        let source = match self.cluster_source {
            ClusterSource::Configured => "configured",
            ClusterSource::PodSubnets => "this node's pod subnets, none are configured",
        };
        let cluster = format!("{} ({source})", self.cluster_cidrs.join(", "));
        field(out, "path", &self.path);
        field(out, "bridge", &format!("{}: {}", self.bridge, self.bridge_state));
        field(out, "uplinks", &uplinks);
        field(out, "cluster", &cluster);
        let switches = [
            ("IPv4 routing", &self.routing.ipv4),
            ("IPv6 routing", &self.routing.ipv6),
            ("bridging", &self.routing.bridging),
        ];
        if let Some(carried) = self.carried() {
            field(out, "counters", &carried);
        }
        if let Some(place) = &self.survival.pinned_at {
            let gap = self.survival.gap_ms.map(|ms| format!("; taken over after {ms:.0} ms")).unwrap_or_default();
            field(out, "pinned", &format!("{place}{gap}"));
        }
        for (name, state) in switches {
            match sentence(state) {
                Some(why) => field(out, name, &format!("off ({state}): {why}")),
                None => field(out, name, state),
            }
        }
    }

    /// That the counters are older than the daemon.
    fn carried(&self) -> Option<String> {
        let counts = &self.counters;
        let killed = match counts.takeovers_after_kill {
            0 => String::new(),
            killed => format!(" ({} killed)", thousands(killed)),
        };
        let daemons = counts.takeovers.saturating_add(counts.takeovers_after_kill);
        let since = uptime(self.uptime_s + self.start_time_s - counts.since_s);
        let one = if daemons == 1 { "daemon" } else { "daemons" };
        (daemons > 0).then(|| format!("for {since}, carried on from {} {one}{killed}", thousands(daemons)))
    }

    fn render_list(&self, out: &mut String, title: &str, sentences: impl ExactSizeIterator<Item = String>) {
        if sentences.len() == 0 {
            return;
        }
        let _ = writeln!(out, "\n{title}");
        for text in sentences {
            lines(out, wrap("  - ", &text));
        }
    }

    fn render_ports(&self, out: &mut String) {
        let _ = writeln!(out, "\nPorts");
        let mut table =
            Table::new(["ID", "NAME", "KIND", "STATE", "MTU", "QUEUES", "PATH", "XDP", "SOCKETS", "LARGE", "CSUM"]);
        for port in &self.ports {
            table.row(port_cells(port));
            if let Some(name) = port.pod_name() {
                table.lines(wrap("      ", &format!("pod {name}{}", told_by(&name))));
            }
            if let Some(why) = &port.why {
                table.lines(wrap("      ", why));
            }
            if port.kind != PortKind::Host && port.why_path != "as configured" {
                table.lines(wrap("      ", &format!("path {}: {}", port.path, port.why_path)));
            }
            table.lines(large_line(port));
            table.lines(guard_lines(port));
        }
        if self.ports.is_empty() {
            table.lines(["  none".to_owned()]);
        }
        table.render(out);
    }

    fn render_accounts(&self, out: &mut String) {
        if self.ports.is_empty() {
            return;
        }
        let _ = writeln!(out, "\nPackets received, and what became of them");
        let mut table =
            Table::new(["PORT", "RX", "", "WORKER", "", "REPEATED", "", "KERNEL", "", "PASSED", "", "DROPPED"]);
        for port in &self.ports {
            table.row([
                Cell::text(&port.name),
                Cell::Number(port.rx_packets),
                Cell::Sign("="),
                Cell::Number(port.forwarded),
                Cell::Sign("+"),
                Cell::Number(port.repeated),
                Cell::Sign("+"),
                Cell::Number(port.kernel.total),
                Cell::Sign("+"),
                Cell::Number(port.passed.total),
                Cell::Sign("+"),
                Cell::Number(
                    port.dropped.total.saturating_add(port.guarded.total).saturating_add(port.socket_drops.total()),
                ),
            ]);
            table.lines(reason_lines(port));
        }
        table.render(out);
        lines(
            out,
            wrap(
                "  ",
                "WORKER: forwarded by a worker; REPEATED: forwarded in the kernel, on the kernel path; KERNEL: handed to the \
                 kernel by a worker; PASSED: left to the kernel by the port's program.",
            ),
        );
    }

    fn render_sent(&self, out: &mut String) {
        if self.ports.is_empty() {
            return;
        }
        let _ = writeln!(out, "\nPackets sent, and by whom");
        let mut table = Table::new(["PORT", "WORKER", "REPEATED", "LOST"]);
        for port in &self.ports {
            table.row([
                Cell::text(&port.name),
                Cell::Number(port.tx_packets),
                Cell::Number(port.repeated_out),
                Cell::Number(port.tx_dropped.total),
            ]);
            table.lines(lost_lines(port));
        }
        table.render(out);
    }

    fn render_workers(&self, out: &mut String) {
        let _ = writeln!(out, "\nWorkers");
        let mut frames = Table::new(["ID", "CPU", "HEARTBEAT", "PORTS", "RX", "FORWARDED", "KERNEL", "DROPPED"]);
        let mut turns =
            Table::new(["ID", "BATCHES", "PER BATCH", "SLEEPS", "WAKE-UPS", "TX CALLS", "HANDED OUT", "HANDED IN"]);
        let mut stays = Table::new(["ID", "PACKETS STAYED", "P50", "P99", "NO FREE FRAME"]);
        let mut queues = Table::new(["ID", "BUSY", "NS A PACKET", "FRAMES: RX", "HANDED IN", "TX", "FILL"]);
        for worker in &self.workers {
            frames.row(frame_cells(worker));
            turns.row(turn_cells(worker));
            stays.row(stay_cells(worker));
            queues.row(queue_cells(worker));
        }
        frames.render(out);
        turns.render(out);
        stays.render(out);
        queues.render(out);
    }

    fn render_tables(&self, out: &mut String) {
        let tables = &self.tables;
        let of = |count: u64, limit: u64| format!("{} of at most {}", thousands(count), thousands(limit));
        let _ = writeln!(out, "\nTables");
        field(out, "generation", &thousands(tables.generation));
        field(out, "ports", &of(tables.ports, tables.port_limit));
        field(out, "MAC addresses", &of(tables.fdb, tables.fdb_limit));
        field(out, "neighbours", &of(tables.neighbours, tables.neighbour_limit));
        field(out, "IPv4 routes", &of(tables.routes_ipv4, tables.route_limit));
        field(out, "IPv6 routes", &of(tables.routes_ipv6, tables.route_limit));
        let memory = format!(
            "{}; the routes' tables take {} bytes",
            of(tables.next_hops, tables.next_hop_limit),
            thousands(tables.fib_bytes)
        );
        field(out, "next hops", &memory);
        let mirror = &self.mirror;
        let mirrored = format!(
            "{} netlink messages, {} times read anew, {} overruns",
            thousands(mirror.messages),
            thousands(mirror.redumps),
            thousands(mirror.overruns)
        );
        field(out, "mirror", &mirrored);
        let in_force = format!(
            "{} µs after the last change, {} µs at most",
            thousands(mirror.last_change_us),
            thousands(mirror.slowest_change_us)
        );
        field(out, "in force", &in_force);
        let learning = &self.learning;
        let learned = format!(
            "{} reports of MAC addresses, {} accepted, {} refused by a limit",
            thousands(learning.reports),
            thousands(learning.accepted),
            thousands(learning.limited)
        );
        field(out, "learning", &learned);
    }

    fn render_umem(&self, out: &mut String) {
        let umem = &self.umem;
        let mebibytes = umem.frames.saturating_mul(umem.chunk_bytes) >> 20;
        let _ = writeln!(
            out,
            "\nUMEM: {} frames of {} bytes ({} MiB)",
            thousands(umem.frames),
            thousands(umem.chunk_bytes),
            thousands(mebibytes)
        );
        let places: Vec<_> =
            umem.places().iter().map(|(place, count)| format!("{place} {}", thousands(*count))).collect();
        let missing = i128::from(umem.frames) - i128::from(umem.sum());
        let verdict = if umem.sum_ok {
            "all accounted for".to_owned()
        } else if missing >= 0 {
            format!("{missing} in no place")
        } else {
            format!("{} in two places", -missing)
        };
        lines(out, wrap("  ", &format!("{} = {}: {verdict}", places.join(" + "), thousands(umem.sum()))));
    }
}

/// A name and its value, in lines.
fn field(out: &mut String, name: &str, value: &str) {
    lines(out, wrap(&format!("  {name:<14}"), value));
}

fn lines(out: &mut String, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

/// The two largest units that are not zero, or `0 s`.
pub(crate) fn uptime(seconds: f64) -> String {
    let mut rest = seconds as u64;
    let mut parts = Vec::new();
    for (length, sign) in UPTIME_PARTS {
        if rest / length > 0 || !parts.is_empty() {
            parts.push(format!("{} {sign}", rest / length));
        }
        rest %= length;
    }
    parts.truncate(2);
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

fn port_cells(port: &PortStatus) -> [Cell; 11] {
    let kind = match port.kind {
        PortKind::Pod => "pod",
        PortKind::Uplink => "uplink",
        PortKind::Host => "host",
    };
    let xdp = match port.xdp_mode {
        PortXdpMode::Native => "native",
        PortXdpMode::Generic => "generic",
        PortXdpMode::None => "-",
    };
    let sockets = match port.copy_mode {
        CopyMode::Copy => "copy",
        CopyMode::ZeroCopy => "zero-copy",
        CopyMode::None => "-",
    };
    let large = if port.multi_buffer { "forwarded" } else { "to kernel" };
    let checksums = if port.checksum_metadata { "kernel" } else { "worker" };
    [
        Cell::Number(port.id.into()),
        Cell::text(&port.name),
        Cell::text(kind),
        Cell::text(&port.state),
        Cell::Number(port.mtu.into()),
        Cell::Number(port.queues.into()),
        Cell::text(if port.kind == PortKind::Host { "-" } else { &port.path }),
        Cell::text(xdp),
        Cell::text(sockets),
        Cell::text(large),
        Cell::text(checksums),
    ]
}

/// Where a name that is not the runtime's comes from.
fn told_by(name: &PodName) -> &'static str {
    match name.by {
        NamedBy::Alias => " (the interface's alias)",
        NamedBy::Cni => "",
    }
}

/// What a pod may send from, or why that is not watched.
fn guard_lines(port: &PortStatus) -> Vec<String> {
    let Some(guard) = &port.source_guard else { return Vec::new() };
    let mut own: Vec<&str> = guard.macs.iter().chain(&guard.addresses).map(String::as_str).collect();
    if own.is_empty() {
        own.push("nothing");
    }
    let mut lines = match guard.active {
        true => wrap("      ", &format!("guard {}: {}", guard.wanted, own.join(", "))),
        false if guard.wanted == GuardChoice::Off.word() => Vec::new(),
        false => wrap("      ", &format!("not guarded: {}", guard.why)),
    };
    let refused = guard.refused.iter().map(|refused| format!("may not send from {refused}"));
    lines.extend(refused.flat_map(|text| wrap("      ", &text)));
    lines
}

/// What a pod was given for large frames inside of the node, if anything.
fn large_line(port: &PortStatus) -> Option<String> {
    let big_tcp = port.big_tcp.map(|bytes| format!("BIG TCP up to {} bytes", thousands(bytes.into())));
    let local_mtu = port.local_mtu.map(|mtu| format!("MTU {mtu} inside of the node"));
    let parts: Vec<_> = big_tcp.into_iter().chain(local_mtu).collect();
    (!parts.is_empty()).then(|| format!("      {}", parts.join(", ")))
}

/// The reasons of one port, the most frequent first, each with its sentence.
fn reason_lines(port: &PortStatus) -> Vec<String> {
    let mut reasons = Vec::new();
    let columns =
        [("kernel", &port.kernel), ("passed", &port.passed), ("dropped", &port.guarded), ("dropped", &port.dropped)];
    for (column, parts) in columns {
        reasons.extend(sorted(parts).map(|(name, count)| (column, name, count, sentence(name).unwrap_or(""))));
    }
    let socket_drops = port.socket_drops.parts();
    reasons.extend(socket_drops.iter().map(|&(name, count, sentence)| ("dropped", name, count, sentence)));
    reasons.retain(|(_, _, count, _)| *count > 0);
    let digits = reasons.iter().map(|(_, _, count, _)| thousands(*count).len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (column, name, count, sentence) in reasons {
        lines.extend(wrap(&format!("      {column:<8}{name:<17}{:>digits$}  ", thousands(count)), sentence));
    }
    match port.in_flight() {
        0 => {}
        more @ 1.. => lines.extend(wrap("      ", &format!("{more} more received and still on their way"))),
        fewer => lines.extend(wrap(
            "      ",
            &format!("{} counted at their end only: traffic ran on while it was counted", -fewer),
        )),
    }
    lines
}

/// Why packets for this port were not sent.
fn lost_lines(port: &PortStatus) -> Vec<String> {
    let parts = sorted(&port.tx_dropped);
    parts
        .flat_map(|(name, count)| {
            wrap(&format!("      lost    {name:<17}{}  ", thousands(count)), sentence(name).unwrap_or(""))
        })
        .collect()
}

fn sorted(parts: &Breakdown) -> impl Iterator<Item = (&str, u64)> {
    let mut parts: Vec<_> = parts.by_reason.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    parts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    parts.into_iter()
}

fn frame_cells(worker: &WorkerStatus) -> [Cell; 8] {
    [
        Cell::Number(worker.id.into()),
        Cell::Number(worker.cpu.into()),
        Cell::text(format!("{:.0} ms ago", worker.heartbeat_age_ms)),
        Cell::Number(worker.ports.into()),
        Cell::Number(worker.rx),
        Cell::Number(worker.forwarded),
        Cell::Number(worker.kernel),
        Cell::Number(worker.dropped),
    ]
}

fn queue_cells(worker: &WorkerStatus) -> [Cell; 7] {
    let packets = worker.rx.saturating_add(worker.handoff_in);
    let per_packet = if packets == 0 { 0.0 } else { worker.busy_ns as f64 / packets as f64 };
    [
        Cell::Number(worker.id.into()),
        Cell::text(format!("{:.1} s", worker.busy_ns as f64 / 1e9)),
        Cell::text(format!("{per_packet:.0}")),
        Cell::Number(worker.rx_frames),
        Cell::Number(worker.handoff_frames),
        Cell::Number(worker.tx_frames),
        Cell::Number(worker.fill_frames),
    ]
}

fn turn_cells(worker: &WorkerStatus) -> [Cell; 8] {
    let per_batch = if worker.batches == 0 { 0.0 } else { worker.rx as f64 / worker.batches as f64 };
    [
        Cell::Number(worker.id.into()),
        Cell::Number(worker.batches),
        Cell::text(format!("{per_batch:.1}")),
        Cell::Number(worker.sleeps),
        Cell::Number(worker.wakeups),
        Cell::Number(worker.tx_syscalls),
        Cell::Number(worker.handoff_out),
        Cell::Number(worker.handoff_in),
    ]
}

/// How long packets stayed with a worker.
fn stay_cells(worker: &WorkerStatus) -> [Cell; 5] {
    let time = |us: Option<f64>| match us {
        None => "-".to_owned(),
        Some(us) if us < 100.0 => format!("{us:.1} µs"),
        Some(us) if us < 10_000.0 => format!("{us:.0} µs"),
        Some(us) => format!("{:.0} ms", us / 1000.0),
    };
    let residence = &worker.residence;
    [
        Cell::Number(worker.id.into()),
        Cell::Number(residence.count()),
        Cell::text(time(residence.p50_us)),
        Cell::text(time(residence.p99_us)),
        Cell::Number(worker.fill_starved),
    ]
}
