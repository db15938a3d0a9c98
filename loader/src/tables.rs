//! The daemon's own tables for people who look for a fault: what it believes, beside what the kernel says.
//!
//! The control socket hands them out page by page, so that no answer keeps the daemon's thread for long. Pages of one table
//! may be of different generations; each says of which it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podlane_dataplane::PortId;
use podlane_dataplane::table::{Fib, FibKey, LinkId, NextHopAction, Port, PortKind, Tables};
use serde_json::{Value, json};

use crate::ports::path_name;

/// Entries of one page.
pub const PAGE: usize = 2048;

/// A table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Ports as decisions see them.
    Ports,
    /// MAC addresses behind ports.
    Fdb,
    /// Hosts with their MAC addresses, of both families.
    Neighbours,
    /// IPv4 routes.
    Fib4,
    /// IPv6 routes.
    Fib6,
}

impl Table {
    /// The words for them.
    pub const WORDS: [(&'static str, Table); 5] = [
        ("ports", Table::Ports),
        ("fdb", Table::Fdb),
        ("neighbours", Table::Neighbours),
        ("fib4", Table::Fib4),
        ("fib6", Table::Fib6),
    ];

    /// The table of this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, table)| *table)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// The entries of a table from `offset` on, at most [`PAGE`] of them, as
/// `{"table":"fib4","generation":7,"total":1,"offset":0,"entries":[…]}`.
pub fn page(tables: &Tables, names: &BTreeMap<PortId, String>, table: Table, offset: usize) -> Value {
    let place = Names { tables, names };
    fn cut<T>(all: impl Iterator<Item = T>, offset: usize, tell: impl FnMut(T) -> Value) -> Vec<Value> {
        all.skip(offset).take(PAGE).map(tell).collect()
    }
    let (total, entries) = match table {
        Table::Ports => (tables.ports.len(), cut(tables.ports.iter(), offset, |(id, port)| place.port_entry(id, port))),
        Table::Fdb => (
            tables.fdb.len(),
            cut(
                tables.fdb.iter(),
                offset,
                |(mac, entry)| json!({ "mac": mac.to_string(), "port": place.port(entry.port), "static": entry.is_static }),
            ),
        ),
        Table::Neighbours => {
            let hosts4 = tables.hosts.iter4().map(|(link, address, index)| (link, IpAddr::from(address), index));
            let hosts6 = tables.hosts.iter6().map(|(link, address, index)| (link, IpAddr::from(address), index));
            let tell = |(link, address, index)| place.neighbour(link, address, index);
            (tables.hosts.len(), cut(hosts4.chain(hosts6), offset, tell))
        }
        Table::Fib4 => (tables.fib4.len(), place.routes(&tables.fib4, offset, |bits| Ipv4Addr::from_bits(bits).into())),
        Table::Fib6 => (tables.fib6.len(), place.routes(&tables.fib6, offset, |bits| Ipv6Addr::from_bits(bits).into())),
    };
    json!({
        "table": table.word(), "generation": tables.generation, "total": total, "offset": offset, "entries": entries,
    })
}

/// Names instead of numbers.
struct Names<'a> {
    tables: &'a Tables,
    names: &'a BTreeMap<PortId, String>,
}

impl Names<'_> {
    fn port(&self, id: PortId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("port {id}"))
    }

    fn link(&self, link: LinkId) -> String {
        if link == LinkId::BRIDGE { "bridge".to_owned() } else { self.port(PortId(link.0)) }
    }

    fn port_entry(&self, id: PortId, port: &Port) -> Value {
        let kind = match port.kind {
            PortKind::Pod => "pod",
            PortKind::Uplink => "uplink",
            PortKind::Host => "host",
        };
        json!({
            "id": id.0, "name": self.port(id), "ifindex": port.ifindex, "kind": kind,
            "router_mac": port.router_mac.to_string(), "mtu": port.mtu, "max_frame": port.max_frame,
            "forwarding": port.forwarding, "learning": port.learning, "isolated": port.isolated,
            "partial_checksums": port.partial_checksums, "path": path_name(port.path),
            "peer": port.peer,
        })
    }

    fn neighbour(&self, link: LinkId, address: IpAddr, adjacency: u32) -> Value {
        let mut entry = json!({ "link": self.link(link), "address": address });
        if let Some(found) = self.tables.adjacencies.get(adjacency as usize) {
            entry["mac"] = json!(found.destination.to_string());
            entry["port"] = json!(self.port(found.port));
            entry["source_mac"] = json!(found.source.to_string());
        }
        entry
    }

    fn routes<K: FibKey>(&self, fib: &Fib<K>, offset: usize, address: impl Fn(K) -> IpAddr) -> Vec<Value> {
        let routes = fib.iter().skip(offset).take(PAGE);
        routes
            .map(|(key, length, index)| {
                let mut entry = json!({ "destination": format!("{}/{length}", address(key)) });
                let Some(next_hop) = self.tables.next_hops.get(index as usize) else { return entry };
                if next_hop.mtu != u32::MAX {
                    entry["mtu"] = json!(next_hop.mtu);
                }
                match next_hop.action {
                    NextHopAction::Kernel(reason) => entry["kernel"] = json!(reason.name()),
                    NextHopAction::OnLink(link) => entry["on_link"] = json!(self.link(link)),
                    NextHopAction::Gateway(index) => {
                        let found = self.tables.adjacencies.get(index as usize);
                        entry["gateway_mac"] = json!(found.map(|found| found.destination.to_string()));
                        entry["port"] = json!(found.map(|found| self.port(found.port)));
                    }
                }
                entry
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podlane_dataplane::MacAddr;
    use podlane_dataplane::forward::PassReason;
    use podlane_dataplane::table::{Adjacency, Fdb, FdbEntry, HostTable, NextHop};

    use super::*;

    fn tables() -> Tables {
        let (port, mac) = (PortId(3), MacAddr::new([2, 0, 0, 0, 0, 1]));
        let mut hosts = HostTable::default();
        hosts.insert4(LinkId::BRIDGE, Ipv4Addr::new(10, 244, 1, 2), 0);
        hosts.insert6(LinkId::uplink(port), Ipv6Addr::LOCALHOST, 9);
        let entry = |number: u64| (MacAddr::from_u64(number), FdbEntry { port, is_static: false, activity: 0 });
        let action = [
            NextHopAction::Gateway(0),
            NextHopAction::Kernel(PassReason::ForNode),
            NextHopAction::OnLink(LinkId::BRIDGE),
        ];
        let next_hops = action.map(|action| NextHop { action, mtu: u32::MAX });
        Tables {
            generation: 7,
            fdb: Arc::new(Fdb::new((1..=5000).map(entry)).0),
            fib4: Arc::new(Fib::new([(0, 0, 0), (0x0a00_0000, 8, 1), (0x0af4_0100, 24, 2), (1, 32, 77)])),
            next_hops: Arc::new(next_hops.to_vec()),
            hosts: Arc::new(hosts),
            adjacencies: Arc::new(vec![Adjacency { port, destination: mac, source: MacAddr::ZERO, activity: 0 }]),
            ..Tables::default()
        }
    }

    fn names() -> BTreeMap<PortId, String> {
        BTreeMap::from([(PortId(3), "eth0".to_owned())])
    }

    #[test]
    fn every_table_has_its_own_word() {
        assert!(Table::WORDS.iter().all(|(word, table)| table.word() == *word && Table::of(word) == Some(*table)));
        assert_eq!(Table::of("fib5"), None);
    }

    #[test]
    fn routes_and_neighbours_are_told_with_names() {
        let told = page(&tables(), &names(), Table::Fib4, 0);
        assert_eq!((&told["generation"], &told["total"]), (&json!(7), &json!(4)));
        let expected = json!([
            { "destination": "0.0.0.0/0", "gateway_mac": "02:00:00:00:00:01", "port": "eth0" },
            { "destination": "0.0.0.1/32" },
            { "destination": "10.0.0.0/8", "kernel": "for_node" },
            { "destination": "10.244.1.0/24", "on_link": "bridge" },
        ]);
        assert_eq!(told["entries"], expected);
        let told = page(&tables(), &names(), Table::Neighbours, 0);
        assert_eq!(told["entries"][0]["mac"], "02:00:00:00:00:01");
        assert_eq!(told["entries"][1], json!({ "link": "eth0", "address": "::1" }));
    }

    #[test]
    fn pages_are_bounded_and_complete() {
        let tables = tables();
        let mut seen = std::collections::BTreeSet::new();
        for (offset, expected) in [(0, PAGE), (PAGE, PAGE), (2 * PAGE, 5000 - 2 * PAGE), (5000, 0), (usize::MAX, 0)] {
            let told = page(&tables, &names(), Table::Fdb, offset);
            let entries = told["entries"].as_array().unwrap();
            assert_eq!(entries.len(), expected);
            seen.extend(entries.iter().map(|entry| entry["mac"].to_string()));
        }
        assert_eq!(seen.len(), 5000);
        assert_eq!(page(&Tables::default(), &names(), Table::Ports, 0)["entries"], json!([]));
    }
}
