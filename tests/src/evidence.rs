//! Who lost what: everything on the way that counts a packet as dropped, before and after.
//!
//! The interfaces and the protocols of each place, the machine's backlogs (which no namespace has to itself: other work on the
//! machine shows there too), and the daemons' own counters. A loss that nobody here admits to is the worst finding of all.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bed::Bed;
use crate::status::Status;

/// Words in the names of counters that tell of losses.
const TELLING: [&str; 12] = [
    "Drop",
    "Err",
    "Discard",
    "NoRoutes",
    "Retrans",
    "Timeout",
    "Abort",
    "Overflow",
    "AddrErrors",
    "HdrErrors",
    "Invalid",
    "Unknown",
];

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub struct Evidence(BTreeMap<String, u64>);

impl Evidence {
    /// Reads everything.
    ///
    /// # Errors
    /// If a place cannot be looked into.
    pub fn gather(bed: &Bed, places: &[&str]) -> Result<Evidence> {
        let mut evidence = Evidence::default();
        for place in places {
            evidence.protocols(place, &bed.sh(place, "cat /proc/net/snmp /proc/net/netstat")?);
            evidence.protocols6(place, &bed.sh(place, "cat /proc/net/snmp6")?);
            evidence.interfaces(place, &bed.exec(place, &["ip", "-s", "-j", "link"])?)?;
            evidence.conntrack(place, &bed.sh(place, "cat /proc/net/stat/nf_conntrack 2>/dev/null || true")?);
        }
        evidence.backlogs(&std::fs::read_to_string("/proc/net/softnet_stat").context("/proc/net/softnet_stat")?);
        for node in 1..=bed.shape.nodes {
            // A node whose daemon is not there, or does not answer, has nothing to tell.
            if let Ok(status) = bed.status(node) {
                evidence.daemon(node, &status);
            }
        }
        Ok(evidence)
    }

    fn add(&mut self, name: String, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// Lines in pairs: names, numbers.
    fn protocols(&mut self, place: &str, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            for (name, number) in pair[0].split_ascii_whitespace().zip(pair[1].split_ascii_whitespace()).skip(1) {
                if TELLING.iter().any(|word| name.contains(word)) {
                    self.add(format!("{place} {name}"), number.parse().unwrap_or(0));
                }
            }
        }
    }

    fn protocols6(&mut self, place: &str, text: &str) {
        for (name, number) in text.lines().filter_map(|line| line.split_once(char::is_whitespace)) {
            if TELLING.iter().any(|word| name.contains(word)) {
                self.add(format!("{place} {name}"), number.trim().parse().unwrap_or(0));
            }
        }
    }

    fn interfaces(&mut self, place: &str, json: &str) -> Result<()> {
        let links: Vec<Value> = serde_json::from_str(json).context("ip -j link")?;
        for link in links {
            let name = link["ifname"].as_str().unwrap_or("?").to_owned();
            for way in ["rx", "tx"] {
                for what in ["dropped", "errors", "over_errors", "carrier_errors"] {
                    let count = link["stats64"][way][what].as_u64().unwrap_or(0);
                    self.add(format!("{place} {name} {way} {what}"), count);
                }
            }
        }
        Ok(())
    }

    /// Hexadecimal columns under their names, a line for each processor.
    fn conntrack(&mut self, place: &str, text: &str) {
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
        for line in lines {
            for (name, number) in names.iter().zip(line.split_ascii_whitespace()) {
                if matches!(*name, "invalid" | "insert_failed" | "drop" | "early_drop" | "icmp_error") {
                    self.add(format!("{place} conntrack {name}"), u64::from_str_radix(number, 16).unwrap_or(0));
                }
            }
        }
    }

    /// The second column is what was dropped because a processor's backlog was full, the third how often it ran out of time.
    fn backlogs(&mut self, text: &str) {
        for line in text.lines() {
            let mut columns = line.split_ascii_whitespace().skip(1);
            for what in ["dropped", "squeezed"] {
                let count = columns.next().and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(0);
                self.add(format!("machine backlog {what}"), count);
            }
        }
    }

    fn daemon(&mut self, node: usize, status: &Status) {
        for port in &status.ports {
            let groups = [
                ("dropped", &port.dropped.by_reason),
                ("socket_drops", &port.socket_drops),
                ("passed", &port.passed.by_reason),
                ("left to the kernel", &port.kernel.by_reason),
            ];
            for (group, reasons) in groups {
                for (reason, count) in reasons {
                    self.add(format!("node{node} podlane {} {group} {reason}", port.name), *count);
                }
            }
        }
    }

    /// How much a counter has grown since `before`, all those with this text in their names together.
    pub fn grown(&self, before: &Evidence, text: &str) -> u64 {
        self.since(before).iter().filter(|(name, _)| name.contains(text)).map(|(_, count)| count).sum()
    }

    /// What has grown, by name. A counter that has begun anew counts from 0.
    pub fn since(&self, before: &Evidence) -> BTreeMap<String, u64> {
        let grown = self.0.iter().map(|(name, count)| {
            let old = before.0.get(name).copied().unwrap_or(0);
            (name.clone(), if *count >= old { count - old } else { *count })
        });
        grown.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_every_kind_are_read() {
        let mut before = Evidence::default();
        before.protocols("pod1", "Ip: InReceives InDiscards\nIp: 5 2\n");
        before.backlogs("00000010 00000001 00000002 0\n00000010 00000003 00000000 0\n");
        let mut after = Evidence::default();
        after.protocols("pod1", "Ip: InReceives InDiscards\nIp: 9 4\n");
        after.protocols6("pod1", "Ip6InDiscards \t 3\nIp6InReceives 8\n");
        after.backlogs("00000010 0000000a 00000002 0\n00000010 00000003 00000000 0\n");
        after.conntrack("node1", "entries  searched invalid drop\n00000001  00000000 0000001f 00000000\n00000001  00000000 00000001 00000000\n");
        after
            .interfaces("node1", r#"[{"ifname":"eth0","stats64":{"rx":{"dropped":7,"errors":0},"tx":{"dropped":0}}}]"#)
            .unwrap();
        let grown: Vec<(String, u64)> = after.since(&before).into_iter().collect();
        let expected = [
            ("machine backlog dropped", 9),
            ("node1 conntrack invalid", 32),
            ("node1 eth0 rx dropped", 7),
            ("pod1 InDiscards", 2),
            ("pod1 Ip6InDiscards", 3),
        ];
        assert_eq!(grown, expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(after.grown(&before, "InDiscards"), 5);
    }
}
