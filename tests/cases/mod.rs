//! The cases, and the testbeds that they run in.
//!
//! A case gets a testbed in which everything works, and leaves it so. What it checks is written so that it holds without
//! Podlane as well, wherever that has a meaning: "exactly as without Podlane" is then a matter of running both.

mod bad_input;
mod bugreport;
mod bulk;
mod capture;
mod cni;
mod dropin;
mod events;
mod guard;
mod large;
mod layer2;
mod lifecycle;
mod metrics;
mod names;
mod node;
mod outside;
mod ping;
mod pods;
mod reload;
mod routes;
mod service;
mod services;
mod survival;
mod trace;
mod walk;

use anyhow::Result;
use podlane_tests::bed::{Bed, Counters, DataPath, Least};
use podlane_tests::testbed::{Family, Shape, Topology};
use podlane_tests::traffic::Way;

/// How a case runs.
#[derive(Clone, Copy)]
pub enum Run {
    /// Once for each address family.
    Families(fn(&mut Bed, Family) -> Result<()>),
    /// Once.
    Once(fn(&mut Bed) -> Result<()>),
}

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: Run,
    /// On which paths.
    pub paths: &'static [DataPath],
}

/// On every path.
const EVERY: &[DataPath] = &[DataPath::Without, DataPath::AfXdp, DataPath::Kernel, DataPath::Mixed];
/// With Podlane, each port on the same path.
const UNMIXED: &[DataPath] = &[DataPath::Without, DataPath::AfXdp, DataPath::Kernel];
/// Only with Podlane.
const PODLANE: &[DataPath] = &[DataPath::AfXdp, DataPath::Kernel, DataPath::Mixed];

const fn families(name: &'static str, run: fn(&mut Bed, Family) -> Result<()>) -> Case {
    Case { name, run: Run::Families(run), paths: EVERY }
}

const fn once(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Case {
    Case { name, run: Run::Once(run), paths: EVERY }
}

const fn podlane_families(name: &'static str, run: fn(&mut Bed, Family) -> Result<()>) -> Case {
    Case { paths: PODLANE, ..families(name, run) }
}

const fn podlane_once(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Case {
    Case { paths: PODLANE, ..once(name, run) }
}

/// What the daemon has no part in is tested once.
const fn without_once(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Case {
    Case { paths: &[DataPath::Without], ..once(name, run) }
}

/// Cases that share a testbed.
pub struct Group {
    /// The testbed.
    pub shape: Shape,
    /// Over which topologies.
    pub topologies: &'static [Topology],
    /// On which paths.
    pub paths: &'static [DataPath],
    /// The cases, in the order in which they run.
    pub cases: Vec<Case>,
}

/// The testbed whose nodes get their bridge and pods from the stock plugins.
const DROPIN: &str = "dropin";
/// A case with some of them.
const STOCK_CHAIN: &str = "cni_in_a_stock_chain";
/// What needs the stock plugins, which are fetched.
pub const NEED_STOCK: [&str; 2] = [DROPIN, STOCK_CHAIN];

const BOTH: &[Topology] = &[Topology::Direct, Topology::Cloud];

const PLAIN: Shape = Shape::PLAIN;

const BULK: [Case; 3] =
    [families("tcp_bulk", bulk::tcp), families("udp_bulk", bulk::udp), families("checksums", bulk::checksums)];

/// Every group. Adding a case is adding it here.
pub fn groups() -> Vec<Group> {
    let with = |case: Case| [&[case], BULK.as_slice()].concat();
    let ping = families("ping", ping::sizes);
    let group = |shape: Shape, cases: Vec<Case>| Group { shape, topologies: BOTH, paths: EVERY, cases };
    let unmixed = |shape: Shape, cases: Vec<Case>| Group { paths: UNMIXED, ..group(shape, cases) };
    vec![
        group(PLAIN, plain_cases()),
        group(Shape { name: "mtu9000", mtu: 9000, uplink_mtu: 9000, ..PLAIN }, with(ping)),
        unmixed(Shape { name: "mtu65000", mtu: 65000, uplink_mtu: 65000, ..PLAIN }, with(ping)),
        group(
            Shape { name: "small_uplink", mtu: 9000, uplink_mtu: 1500, ..PLAIN },
            vec![
                families("path_mtu", ping::path_mtu),
                families("udp_larger_than_the_path", ping::larger_than_the_path),
            ],
        ),
        group(Shape { name: "checksum_offload_off", pods_checksum_offload: false, ..PLAIN }, with(ping)),
        unmixed(Shape { name: "bare_wire", uplink_checksum_offload: false, ..PLAIN }, with(ping)),
        group(
            Shape { name: "more_queues_than_workers", queues: 4, uplink_queues: 2, workers: Some(2), ..PLAIN },
            [with(ping), vec![families("bursts", layer2::bursts), families("many_flows", bulk::many_flows)]].concat(),
        ),
        group(
            Shape { name: "two_workers_one_queue", workers: Some(2), ..PLAIN },
            [with(ping), vec![families("bursts", layer2::bursts), families("many_flows", bulk::many_flows)]].concat(),
        ),
        unmixed(
            Shape { name: "no_masquerade", masquerade: false, strict_conntrack: true, ..PLAIN },
            vec![families("asymmetry", outside::asymmetry)],
        ),
        unmixed(
            Shape { name: "three_nodes", nodes: 3, pods: 1, ..PLAIN },
            vec![families("node_goes_and_comes", routes::node_goes_and_comes)],
        ),
        Group {
            paths: PODLANE,
            ..group(Shape { name: "local_mtu", local_mtu: Some(65_000), ..PLAIN }, local_mtu_cases())
        },
        Group {
            paths: &[DataPath::Kernel],
            ..group(
                Shape { name: "big_tcp", big_tcp: Some(196_608), ..PLAIN },
                vec![families("super_frames", large::super_frames), once("super_frames_go", large::super_frames_go)],
            )
        },
        Group {
            topologies: &[Topology::Direct],
            paths: PODLANE,
            ..group(Shape { name: "faults", ..PLAIN }, vec![once("troubleshooting", walk::troubleshooting)])
        },
        Group {
            topologies: &[Topology::Direct],
            paths: PODLANE,
            ..group(Shape { name: "survival", ..PLAIN }, survival::cases())
        },
        group(Shape { name: "services", strict_conntrack: true, ..PLAIN }, services::cases()),
        Group {
            topologies: &[Topology::Direct],
            paths: PODLANE,
            ..group(
                Shape { name: DROPIN, pods: 0, daemons: false, ..PLAIN },
                vec![
                    once("pods_of_others", dropin::pods_of_others),
                    once("gives_back", dropin::gives_back),
                    once("options_of_others", dropin::options_of_others),
                ],
            )
        },
        Group {
            topologies: &[Topology::Direct],
            paths: PODLANE,
            ..group(Shape { name: "events", ..PLAIN }, events::cases())
        },
        Group {
            shape: Shape { name: "bad_input", daemons: false, ..PLAIN },
            topologies: &[Topology::Direct],
            paths: &[DataPath::AfXdp],
            cases: bad_input::cases(),
        },
    ]
}

fn local_mtu_cases() -> Vec<Case> {
    vec![
        families("inside", large::inside),
        families("to_another_node", large::to_another_node),
        families("to_the_outside", large::to_the_outside),
        families("with_the_node", large::with_the_node),
        families("checksums", bulk::checksums),
        once("comes_later", large::comes_later),
        once("all_or_none", large::all_or_none),
        once("ended", large::ended),
    ]
}

fn plain_cases() -> Vec<Case> {
    let mut cases = vec![families("ping", ping::sizes)];
    cases.extend(BULK);
    cases.extend([
        families("ttl", ping::ttl),
        families("traceroute", ping::traceroute),
        families("fragments", ping::fragments),
        families("udp_gso", bulk::udp_gso),
        families("super_frames", bulk::super_frames),
        families("pod_to_itself", node::pod_to_itself),
        families("pod_to_node", node::pod_to_node),
        families("node_to_pod", node::node_to_pod),
        families("masquerade", outside::masquerade),
        families("bursts", layer2::bursts),
        families("flooding", layer2::flooding),
        families("learned_mac_moves", layer2::learned_mac_moves),
        families("garbage", layer2::garbage),
        podlane_families("foreign_senders", guard::foreign_senders),
        podlane_once("learning_limits", guard::learning_limits),
        podlane_families("flooding_neighbour", guard::flooding_neighbour),
        families("corrupt_checksum_from_pod", layer2::corrupt_checksum_from_pod),
        families("corrupt_checksum_from_wire", layer2::corrupt_checksum_from_wire),
        families("pods_come_and_go", pods::come_and_go),
        families("first_pod_goes", pods::first_goes),
        families("route_comes_and_goes", routes::route_comes_and_goes),
        families("rules", routes::rules),
        families("ipsec", routes::ipsec),
        families("blackhole", routes::blackhole),
        families("multipath", routes::multipath),
        podlane_families("trace", trace::agrees_with_traffic),
        podlane_once("bugreport", bugreport::alive),
        Case { paths: &[DataPath::AfXdp], ..once("bugreport_of_the_dead", bugreport::dead) },
        podlane_once("metrics", metrics::tell_the_status),
        podlane_once("counters_outlive_the_daemon", metrics::counters_outlive_the_daemon),
        podlane_once("a_damaged_file_of_counters", metrics::a_damaged_file_of_counters),
        podlane_families("capture", capture::reads_right),
        podlane_families("capture_tells_why", capture::tells_why),
        podlane_families("trace_live", capture::live),
        podlane_once("capture_killed", capture::killed),
        podlane_once("capture_limits", capture::limits),
        podlane_once("pods_by_name", names::pods_by_name),
        podlane_once("status_schema", names::status_schema),
        once("cni_connects", cni::connects),
        once("cni_first_packets", cni::first_packets),
        Case { paths: UNMIXED, ..once("cni_streams_from_birth", cni::streams_from_birth) },
        podlane_once("cni_without_the_daemon", cni::without_the_daemon),
        Case { paths: &[DataPath::AfXdp, DataPath::Kernel], ..once("cni_many_at_once", cni::many_at_once) },
        without_once("cni_undoes_every_step", cni::undoes_every_step),
        without_once("cni_killed_at_any_time", cni::killed_at_any_time),
        without_once("cni_collects_garbage", cni::collects_garbage),
        without_once("cni_makes_the_bridge", cni::makes_the_bridge),
        without_once("cni_refusals", cni::refusals),
        without_once("cni_delegates", cni::delegates),
        without_once("cni_in_a_chain", cni::in_a_chain),
        Case { paths: UNMIXED, ..once(STOCK_CHAIN, cni::in_a_stock_chain) },
        without_once("cni_full_disk", cni::full_disk),
        podlane_once("idle", lifecycle::idle),
        podlane_families("stopped_daemon", lifecycle::stopped),
        podlane_families("killed_daemon", lifecycle::killed),
        podlane_families("ended_daemon", lifecycle::ended),
        podlane_families("reload", reload::loses_nothing),
        podlane_families("reload_ports", reload::ports_go_and_come),
        podlane_once("reload_bridge", reload::another_bridge),
        Case { paths: &[DataPath::AfXdp], ..once("reload_refused", reload::refused) },
        Case { paths: &[DataPath::AfXdp], ..once("service_manager", service::is_told) },
        Case { paths: &[DataPath::AfXdp, DataPath::Kernel], ..once("capabilities", service::capabilities) },
        Case { paths: &[DataPath::AfXdp], ..families("path_changes", lifecycle::path_changes) },
        Case { paths: &[DataPath::AfXdp], ..once("wrong_path_changes", lifecycle::wrong_path_changes) },
    ]);
    cases
}

/// Inside of a node, and between nodes.
fn ways(bed: &Bed, family: Family) -> Result<[Way; 2]> {
    Ok([bed.way("pod1", "pod2", family)?, bed.way("pod1", "pod4", family)?])
}

/// The opposite direction.
fn back(bed: &Bed, way: &Way, family: Family) -> Result<Way> {
    bed.way(&way.to, &way.from, family)
}

/// [`Bed::went_through`] for both directions.
fn both_went_through(bed: &Bed, before: &Counters, way: &Way, family: Family, least: Least) -> Result<()> {
    bed.went_through(before, way, least)?;
    bed.went_through(before, &back(bed, way, family)?, least)
}
