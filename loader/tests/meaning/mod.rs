//! What compiled tables mean, to compare two of them.

use std::collections::{BTreeMap, BTreeSet};

use podlane::compile::Compiled;
use podlane_dataplane::limits;
use podlane_dataplane::table::{Adjacency, NextHopAction};

/// The tables without indices, which may differ: what look-ups give.
pub fn meaning(compiled: &Compiled) -> String {
    let tables = &compiled.tables;
    let adjacency = |index: u32| {
        let Adjacency { port, destination, source, activity } = tables.adjacencies[index as usize];
        assert!((activity as usize) < limits::MAX_NEIGHBOURS);
        (port, destination, source)
    };
    let hop = |index: u32| {
        let hop = tables.next_hops[index as usize];
        let gateway = if let NextHopAction::Gateway(index) = hop.action { Some(adjacency(index)) } else { None };
        (gateway.is_none().then_some(hop.action), gateway, hop.mtu)
    };
    let fdb: BTreeMap<_, _> = tables.fdb.iter().map(|(mac, entry)| (mac, (entry.port, entry.is_static))).collect();
    let hosts4: BTreeSet<_> = tables.hosts.iter4().map(|(link, address, a)| (link, address, adjacency(a))).collect();
    let hosts6: BTreeSet<_> = tables.hosts.iter6().map(|(link, address, a)| (link, address, adjacency(a))).collect();
    let fib4: BTreeMap<_, _> = tables.fib4.iter().map(|(bits, length, value)| ((bits, length), hop(value))).collect();
    let fib6: BTreeMap<_, _> = tables.fib6.iter().map(|(bits, length, value)| ((bits, length), hop(value))).collect();
    format!(
        "{:#?}\n{fdb:#?}\n{hosts4:#?}\n{hosts6:#?}\n{fib4:#?}\n{fib6:#?}\n{:?}\n{:?}\n{:?}",
        tables.ports, tables.cluster, tables.routing, compiled.notes
    )
}
