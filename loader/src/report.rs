//! Answers to the control socket's questions, read from the live daemon.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_ROUTE;
use podlane_dataplane::table::{PortKind, Tables};
use podlane_dataplane::worker::{FrameCount, PortCounters};
use podlane_dataplane::{PortId, limits};
use serde_json::json;

use crate::bpf::{Beside, Steering, TcKind, XdpMode};
use crate::carry::PortSums;
use crate::control::{Request, Response};
use crate::daemon::Daemon;
use crate::engine::{self, Engine};
use crate::mirror::RequestSocket;
use crate::mirror::world::PortState;
use crate::names::AmbiguousName;
use crate::ports::{OpenPort, path_name};
use crate::status::{
    Breakdown, ClusterSource, CopyMode, KernelProgram, LearningStatus, MirrorStatus, PortStatus, PortXdpMode, Refused,
    ResidenceStatus, RoutingStatus, SCHEMA, SocketDrops, Status, TablesStatus, UmemStatus, WorkerStatus,
};
use crate::{log, tables, trace};

/// Frames move while they are counted worker by worker; so many counts are tried before one that does not add up is told.
const AUDITS: usize = 5;

/// Answers one request.
pub fn answer(daemon: &Daemon, request: &Request) -> Response {
    match request {
        Request::Ping => Response::Pong { pid: std::process::id() },
        Request::Status => Response::Status(Box::new(status(daemon, true))),
        Request::Trace(question) => {
            match trace::trace(question, &daemon.tables(), &names(daemon), daemon.mirror.world()) {
                Ok(trace) => Response::Trace(Box::new(trace)),
                Err(error) => Response::Error(error.to_string()),
            }
        }
        Request::Tables { table, offset } => {
            Response::Value(tables::page(&daemon.tables(), &names(daemon), *table, *offset))
        }
        Request::Log => {
            let recent = log::recent();
            Response::Value(json!({ "lines": recent.lines, "forgotten": recent.forgotten }))
        }
        Request::Config => Response::Value(daemon.config.effective()),
        Request::Capture(_) => Response::Error("the daemon starts captures by itself".to_owned()),
        Request::LetGo { .. } => Response::Error("the daemon lets go by itself".to_owned()),
        Request::Path { .. } => Response::Error("the daemon changes paths by itself".to_owned()),
        Request::Reload { .. } => Response::Error("the daemon reads its configuration by itself".to_owned()),
    }
}

/// A question whose ends are pods by name, with their interfaces or addresses instead.
///
/// # Errors
/// If a name is that of several ports.
pub fn locate(daemon: &Daemon, question: &trace::Question) -> Result<trace::Question, AmbiguousName> {
    let named: Vec<_> = daemon.ports.open().map(|port| (port.link.name.clone(), daemon.pod_name(port))).collect();
    let question = question.by_interfaces(&named)?;
    let given = |interface: &str, ipv6: bool| daemon.names.address_of(interface, ipv6);
    Ok(trace::with_addresses(&question, &daemon.tables(), &names(daemon), given))
}

/// The names of the open ports.
fn names(daemon: &Daemon) -> BTreeMap<PortId, String> {
    daemon.ports.open().map(|port| (port.id, port.link.name.clone())).collect()
}

/// Everything about the daemon. `audit` has the workers count their frames, which waits for them; without, `umem` is empty and
/// the workers' frames are 0.
pub fn status(daemon: &Daemon, audit: bool) -> Status {
    let config = &daemon.config;
    let tables = daemon.tables();
    let engine = daemon.engine.as_ref();
    let mut notes = config.notes.clone();
    notes.extend(daemon.metrics_note.clone());
    notes.extend(daemon.reloaded.notes());
    notes.extend(mode_notes(daemon).map(str::to_owned));
    notes.extend(daemon.large.notes().map(str::to_owned));
    notes.extend(daemon.carried.note());
    notes.extend(daemon.survival.notes());
    notes.extend(daemon.notes.iter().cloned());
    notes.extend(daemon.guards.note().map(str::to_owned));
    notes.extend(learn_note(daemon.learn_refused));
    notes.extend(audit.then(|| beside_note(daemon)).flatten());
    let audited = engine.filter(|_| audit);
    let frames = audited.map(count_frames).unwrap_or_default();
    let mut status = Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: config.instance.to_string(),
        pid: std::process::id(),
        uptime_s: daemon.started.elapsed().as_secs_f64(),
        start_time_s: daemon.start_time_s,
        path: daemon.path_choice().word().to_owned(),
        kernel_program: match daemon.steering.tc_kind() {
            TcKind::Tcx => KernelProgram::Tcx,
            TcKind::Clsact => KernelProgram::Clsact,
        },
        bridge: config.bridge.to_string(),
        bridge_state: bridge_state(daemon, &tables),
        uplinks: config.uplinks.iter().map(ToString::to_string).collect(),
        cluster_cidrs: cluster(&tables),
        cluster_source: if config.cluster_cidrs.is_empty() {
            ClusterSource::PodSubnets
        } else {
            ClusterSource::Configured
        },
        routing: RoutingStatus::new(&tables.routing),
        notes,
        workers: engine.map(|engine| workers(engine, &frames)).unwrap_or_default(),
        ports: engine.map(|engine| ports(daemon, engine, &tables)).unwrap_or_default(),
        refused: refused(daemon),
        tables: table_sizes(&tables),
        umem: audited.map(|engine| umem(engine, &frames)).unwrap_or_default(),
        mirror: mirror(daemon),
        learning: engine.map(|engine| learning(daemon, engine)).unwrap_or_default(),
        counters: Default::default(),
        survival: daemon.survival.status(&daemon.steering),
        accounts_balance: false,
    };
    daemon.carried.add_to(&mut status);
    status.accounts_balance = status.balances();
    status
}

/// What the way in which the program is attached means for the node.
fn mode_notes(daemon: &Daemon) -> impl Iterator<Item = &'static str> {
    let generic = daemon.config.xdp_mode == crate::config::XdpMode::Generic;
    let tags_hidden = generic || !daemon.steering.sees_veth_tags();
    let cost = "generic XDP: frames are copied once more, and segmentation super-frames (bulk TCP) go through the kernel; \
                set `xdp_mode = \"native\"` unless a driver lacks it";
    let tags = "VLAN tags that a veth carries beside the frame are invisible here and would be lost: switch them off in pods \
                that use VLANs with `ethtool -K eth0 tx-vlan-hw-insert off`, or use native XDP on Linux 6.3 or newer";
    generic.then_some(cost).into_iter().chain(tags_hidden.then_some(tags))
}

/// That pods tried to have the bridge learn more than they may.
fn learn_note(refused: u64) -> Option<String> {
    let most = limits::MAX_LEARNED_PER_PORT;
    (refused > 0).then(|| {
        format!(
            "{refused} times a pod's frame would have taught the bridge a MAC address beyond the {most} of its port, or one \
             that is static or known to be another pod's: it was forwarded, and nothing was learned."
        )
    })
}

/// That others have something at tc of ports that packets which Podlane takes do not come to.
fn beside_note(daemon: &Daemon) -> Option<String> {
    /// Ports that are named.
    const MOST: usize = 8;
    // All that is lost for want of an answer is a sentence.
    let mut requests = RequestSocket::open(NETLINK_ROUTE).ok()?;
    let mut found = Vec::new();
    for port in daemon.ports.open().filter(|port| port.link.kind != PortKind::Host) {
        let is_uplink = port.link.kind == PortKind::Uplink;
        let beside = Beside { ifindex: port.link.ifindex, path: port.path, is_uplink };
        let passed_by = beside.passed_by(&daemon.steering, &mut requests);
        if !passed_by.is_empty() {
            found.push(format!("{} ({})", port.link.name, passed_by.join(", ")));
        }
    }
    let more = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    let more = if more > 0 { format!(" and {more} more ports") } else { String::new() };
    (!found.is_empty())
        .then(|| format!("What Podlane takes does not come to what others have at tc: {}{more}.", found.join("; ")))
}

fn bridge_state(daemon: &Daemon, tables: &Tables) -> String {
    let problem = &daemon.wanted.bridge_problem;
    match tables.routing.bridge_off {
        _ if !problem.is_empty() => problem.clone(),
        Some(reason) => reason.sentence().to_owned(),
        None => "ok".to_owned(),
    }
}

fn cluster(tables: &Tables) -> Vec<String> {
    let ipv4 = tables.cluster.ipv4().map(|(address, length)| format!("{address}/{length}"));
    let ipv6 = tables.cluster.ipv6().map(|(address, length)| format!("{address}/{length}"));
    ipv4.chain(ipv6).collect()
}

fn workers(engine: &Engine, frames: &[FrameCount]) -> Vec<WorkerStatus> {
    (0..engine.workers())
        .map(|id| {
            let (cpu, counters, age_ns) = engine.worker(id);
            let totals = engine.totals(id);
            let frames = frames.get(id).copied().unwrap_or_default();
            WorkerStatus {
                id: id as u32,
                cpu: cpu as u32,
                heartbeat_age_ms: age_ns as f64 / 1e6,
                rx: totals.rx,
                forwarded: totals.forwarded,
                kernel: totals.kernel,
                dropped: totals.dropped,
                batches: counters.batches.get(),
                sleeps: counters.sleeps.get(),
                wakeups: counters.wakeups.get(),
                tx_syscalls: counters.tx_syscalls.get(),
                handoff_out: counters.handoff_out.get(),
                handoff_in: counters.handoff_in.get(),
                fill_starved: counters.fill_starved.get(),
                residence: ResidenceStatus::of(&counters.residence),
                ports: engine.queues_of(id) as u32,
                busy_ns: counters.busy_ns.get(),
                rx_frames: frames.rx,
                tx_frames: frames.tx,
                fill_frames: frames.fill,
                handoff_frames: frames.handoff,
            }
        })
        .collect()
}

fn ports(daemon: &Daemon, engine: &Engine, tables: &Tables) -> Vec<PortStatus> {
    let mut ports: Vec<PortStatus> =
        daemon.ports.counted().map(|port| port_status(daemon, engine, tables, port)).collect();
    ports.sort_by_key(|port| port.id);
    ports
}

fn port_status(daemon: &Daemon, engine: &Engine, tables: &Tables, port: &OpenPort) -> PortStatus {
    let entry = tables.ports.get(port.id);
    let counted = port_counts(engine, &daemon.steering, port.id, port.switches, port.socket_drops());
    let mode = port.sockets;
    let pod = daemon.pod_name(port);
    let (state, why) = state(daemon, port, entry.is_some_and(|entry| entry.forwarding));
    PortStatus {
        id: u32::from(port.id.0),
        name: port.link.name.clone(),
        ifindex: port.link.ifindex,
        named_by: pod.as_ref().map(|name| name.by),
        namespace: pod.as_ref().and_then(|name| name.namespace.clone()),
        pod: pod.map(|name| name.pod),
        kind: port.link.kind.into(),
        queues: port.link.queues,
        path: path_name(port.path).to_owned(),
        why_path: port.why_path.clone(),
        xdp_mode: match port.xdp_mode {
            Some(XdpMode::Native) => PortXdpMode::Native,
            Some(XdpMode::Generic) => PortXdpMode::Generic,
            None => PortXdpMode::None,
        },
        copy_mode: if mode.zero_copy { CopyMode::ZeroCopy } else { CopyMode::Copy },
        multi_buffer: mode.multi_buffer,
        checksum_metadata: mode.checksum_metadata,
        state,
        mtu: entry.map_or(0, |entry| entry.mtu),
        big_tcp: daemon.large.big_tcp(port.link.ifindex),
        local_mtu: daemon.large.local_mtu(port.link.ifindex),
        why,
        path_switches: counted.path_switches,
        rx_packets: counted.rx_packets,
        rx_bytes: counted.rx_bytes,
        steered: counted.steered,
        repeated: counted.repeated,
        repeated_bytes: counted.repeated_bytes,
        passed: counted.passed,
        guarded: counted.guarded,
        source_guard: daemon.guards.status(port.link.ifindex),
        socket_drops: counted.socket_drops,
        worker_rx: counted.worker_rx,
        forwarded: counted.forwarded,
        forwarded_bytes: counted.forwarded_bytes,
        kernel: counted.kernel,
        dropped: counted.dropped,
        tx_packets: counted.tx_packets,
        tx_bytes: counted.tx_bytes,
        repeated_out: counted.repeated_out,
        repeated_out_bytes: counted.repeated_out_bytes,
        tx_dropped: counted.tx_dropped,
    }
}

/// What this daemon has counted for a port, by the program and by the workers.
pub fn port_counts(
    engine: &Engine,
    steering: &Steering,
    port: PortId,
    path_switches: u64,
    socket_drops: SocketDrops,
) -> PortSums {
    let program = steering.counters(port).unwrap_or_default();
    let workers: Vec<_> = (0..engine.workers()).map(|id| engine.worker(id).1.port(port)).collect();
    let total = |of: &dyn Fn(&PortCounters) -> u64| -> u64 { workers.iter().map(|counters| of(counters)).sum() };
    let each = |count: usize, of: &dyn Fn(&PortCounters, usize) -> u64| -> Vec<u64> {
        (0..count).map(|index| total(&|counters| of(counters, index))).collect()
    };
    PortSums {
        path_switches,
        socket_drops,
        rx_packets: program.rx_packets,
        rx_bytes: program.rx_bytes,
        steered: program.steered,
        repeated: program.repeated,
        repeated_bytes: program.repeated_bytes,
        passed: Breakdown::passes(&program.passed),
        guarded: Breakdown::drops(&program.dropped),
        worker_rx: total(&|counters| counters.rx.get()),
        forwarded: total(&|counters| counters.forwarded.get()),
        forwarded_bytes: total(&|counters| counters.forwarded_bytes.get()),
        kernel: Breakdown::passes(&each(program.passed.len(), &|counters, reason| counters.kernel[reason].get())),
        dropped: Breakdown::drops(&each(DROPS, &|counters, reason| counters.dropped[reason].get())),
        tx_packets: total(&|counters| counters.tx.get()),
        tx_bytes: total(&|counters| counters.tx_bytes.get()),
        repeated_out: program.repeated_out,
        repeated_out_bytes: program.repeated_out_bytes,
        tx_dropped: Breakdown::drops(&each(DROPS, &|counters, reason| counters.tx_dropped[reason].get())),
    }
}

/// What the programs finished for a port without any daemon. What they steered is left out: it was lost with the worker that
/// should have counted it, or that worker had finished it.
pub fn between(program: &crate::bpf::PortCounters) -> PortSums {
    PortSums {
        rx_packets: program.passed_total() + program.repeated,
        rx_bytes: program.rx_bytes,
        repeated: program.repeated,
        repeated_bytes: program.repeated_bytes,
        passed: Breakdown::passes(&program.passed),
        repeated_out: program.repeated_out,
        repeated_out_bytes: program.repeated_out_bytes,
        ..PortSums::default()
    }
}

const DROPS: usize = podlane_dataplane::forward::DropReason::COUNT;

/// One word for the port's state, and a sentence when it is not forwarding.
fn state(daemon: &Daemon, port: &OpenPort, forwarding: bool) -> (String, Option<String>) {
    let name = &port.link.name;
    if forwarding {
        return ("forwarding".to_owned(), None);
    }
    let Some(link) = daemon.mirror.world().links.get(&port.link.ifindex) else {
        return ("gone".to_owned(), Some(format!("{name} was removed")));
    };
    let blocked = link.bridge_port.as_ref().is_some_and(|port| port.state != PortState::Forwarding);
    let (word, why) = match () {
        () if !link.up => ("down", format!("{name} is down; `ip link set {name} up` brings it up")),
        () if !link.carrier => ("no_carrier", format!("{name} has no carrier: its other end is down")),
        () if port.link.kind == PortKind::Pod && blocked => {
            ("blocked", format!("{name} is not forwarding on the bridge (spanning tree)"))
        }
        () => ("kernel", format!("{name} is left to the kernel; see the notes")),
    };
    (word.to_owned(), Some(why))
}

fn refused(daemon: &Daemon) -> Vec<Refused> {
    let never = daemon.wanted.refused.iter().map(|refusal| (&refusal.name, &refusal.why));
    let not_now = daemon.ports.refused().map(|refusal| (&refusal.name, &refusal.why));
    never.chain(not_now).map(|(name, why)| Refused { name: name.clone(), why: why.clone() }).collect()
}

fn table_sizes(tables: &Tables) -> TablesStatus {
    TablesStatus {
        generation: tables.generation,
        publications: tables.generation,
        ports: tables.ports.len() as u64,
        port_limit: limits::MAX_PORTS as u64,
        fdb: tables.fdb.len() as u64,
        fdb_limit: limits::MAX_FDB as u64,
        neighbours: tables.adjacencies.len() as u64,
        neighbour_limit: limits::MAX_NEIGHBOURS as u64,
        routes_ipv4: tables.fib4.len() as u64,
        routes_ipv6: tables.fib6.len() as u64,
        route_limit: limits::MAX_ROUTES as u64,
        next_hops: tables.next_hops.len() as u64,
        next_hop_limit: limits::MAX_NEXT_HOPS as u64,
        fib_bytes: (tables.fib4.bytes() + tables.fib6.bytes()) as u64,
    }
}

/// The frames of each worker by place; empty if a worker does not answer.
fn count_frames(engine: &Engine) -> Vec<FrameCount> {
    let mut counts = Vec::new();
    for _ in 0..AUDITS {
        // A worker that does not answer now will not a moment later either; the count then does not add up.
        let Ok(counted) = engine.audit_each() else { break };
        counts = counted;
        if engine::sum(&counts).sum() == u64::from(engine.frames()) {
            break;
        }
    }
    counts
}

fn umem(engine: &Engine, frames: &[FrameCount]) -> UmemStatus {
    let count = engine::sum(frames);
    let frames = u64::from(engine.frames());
    UmemStatus {
        frames,
        chunk_bytes: limits::CHUNK_SIZE as u64,
        free: count.free,
        fill: count.fill,
        rx: count.rx,
        worker: count.worker,
        handoff: count.handoff,
        tx: count.tx,
        sum_ok: count.sum() == frames,
    }
}

fn mirror(daemon: &Daemon) -> MirrorStatus {
    let counters = daemon.mirror.counters();
    MirrorStatus {
        messages: counters.messages,
        redumps: counters.redumps,
        overruns: counters.overruns,
        last_change_us: daemon.followed.last.as_micros() as u64,
        slowest_change_us: daemon.followed.slowest.as_micros() as u64,
    }
}

fn learning(daemon: &Daemon, engine: &Engine) -> LearningStatus {
    let each = |of: &dyn Fn(&podlane_dataplane::worker::WorkerCounters) -> u64| -> u64 {
        (0..engine.workers()).map(|id| of(engine.worker(id).1)).sum()
    };
    LearningStatus {
        reports: each(&|counters| counters.learn_reports.get()),
        accepted: daemon.learned,
        limited: each(&|counters| counters.learn_limited.get()).saturating_add(daemon.learn_refused),
    }
}
