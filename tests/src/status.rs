//! What `podlane status --json` says (schema 1), and the equations that must hold in it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The whole answer, as far as the tests look at it. A field that is missing is an error: the schema is a contract.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Status {
    pub schema: u32,
    pub version: String,
    pub instance: String,
    pub pid: u32,
    pub path: String,
    pub kernel_program: String,
    pub bridge: String,
    pub uplinks: Vec<String>,
    pub routing: Routing,
    pub workers: Vec<Worker>,
    pub ports: Vec<Port>,
    pub refused: Vec<Refused>,
    pub umem: Umem,
    pub accounts_balance: bool,
}

/// Which decisions are mirrored: "on", or the name of the reason why not.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Routing {
    pub ipv4: String,
    pub ipv6: String,
    pub bridging: String,
}

/// A worker thread.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Worker {
    pub id: u32,
    pub cpu: Option<u32>,
    pub forwarded: u64,
    pub handoff_in: u64,
    pub handoff_out: u64,
}

/// Frames by reason.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct ByReason {
    pub total: u64,
    pub by_reason: BTreeMap<String, u64>,
}

/// A port.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Port {
    pub name: String,
    pub ifindex: u32,
    pub kind: String,
    pub queues: u32,
    pub xdp_mode: String,
    pub state: String,
    pub big_tcp: Option<u32>,
    pub local_mtu: Option<u32>,
    pub why: Option<String>,
    pub rx_packets: u64,
    pub path: String,
    pub steered: u64,
    pub repeated: u64,
    pub repeated_bytes: u64,
    pub passed: ByReason,
    pub guarded: ByReason,
    pub source_guard: Option<SourceGuard>,
    pub socket_drops: BTreeMap<String, u64>,
    pub worker_rx: u64,
    pub forwarded: u64,
    pub forwarded_bytes: u64,
    pub kernel: ByReason,
    pub dropped: ByReason,
    pub tx_packets: u64,
}

/// What a pod may send from.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct SourceGuard {
    pub active: bool,
    pub why: String,
    pub addresses: Vec<String>,
    pub refused: Vec<String>,
}

/// An interface that Podlane leaves alone.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Refused {
    pub name: String,
    pub why: String,
}

/// UMEM frames by place.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the schema's")]
pub struct Umem {
    pub frames: u64,
    pub chunk_bytes: u64,
    pub free: u64,
    pub fill: u64,
    pub rx: u64,
    pub worker: u64,
    pub handoff: u64,
    pub tx: u64,
    pub sum_ok: bool,
}

impl Status {
    /// The port of an interface.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// Every equation that does not hold, as a sentence. Empty once traffic is quiet.
    pub fn imbalances(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut equal = |what: String, left: u64, right: u64| {
            if left != right {
                wrong.push(format!("{what}: {left} ≠ {right}"));
            }
        };
        for port in &self.ports {
            let name = &port.name;
            let drops: u64 = port.socket_drops.values().sum();
            let outcomes = port.passed.total + port.guarded.total + port.steered + port.repeated;
            equal(format!("{name}: rx_packets = passed + guarded + steered + repeated"), port.rx_packets, outcomes);
            equal(format!("{name}: steered = worker_rx + socket_drops"), port.steered, port.worker_rx + drops);
            let outcomes = port.forwarded + port.kernel.total + port.dropped.total;
            equal(format!("{name}: worker_rx = forwarded + kernel + dropped"), port.worker_rx, outcomes);
            for (what, counts) in [("passed", &port.passed), ("kernel", &port.kernel), ("dropped", &port.dropped)] {
                equal(format!("{name}: {what}.total = its reasons"), counts.total, counts.by_reason.values().sum());
            }
        }
        let umem = &self.umem;
        let places = umem.free + umem.fill + umem.rx + umem.worker + umem.handoff + umem.tx;
        equal("UMEM: frames = sum of the places".to_owned(), umem.frames, places);
        if !umem.sum_ok {
            wrong.push("UMEM: sum_ok is false".to_owned());
        }
        if !self.accounts_balance {
            wrong.push("accounts_balance is false".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced() -> Status {
        let none = || ByReason { total: 0, by_reason: BTreeMap::new() };
        Status {
            schema: 1,
            version: "0.1.0".into(),
            instance: "x".into(),
            pid: 1,
            path: "af_xdp".into(),
            kernel_program: String::new(),
            bridge: "cbr0".into(),
            uplinks: vec![],
            routing: Routing { ipv4: "on".into(), ipv6: "on".into(), bridging: "on".into() },
            workers: vec![],
            ports: vec![Port {
                name: "veth".into(),
                ifindex: 2,
                kind: "pod".into(),
                queues: 1,
                xdp_mode: "native".into(),
                state: "forwarding".into(),
                big_tcp: None,
                local_mtu: None,
                why: None,
                path: "af_xdp".into(),
                rx_packets: 12,
                steered: 7,
                repeated: 2,
                repeated_bytes: 200,
                passed: ByReason { total: 3, by_reason: BTreeMap::from([("not_ip".into(), 3)]) },
                guarded: none(),
                source_guard: None,
                socket_drops: BTreeMap::from([("rx_ring_full".into(), 1)]),
                worker_rx: 6,
                forwarded: 6,
                forwarded_bytes: 600,
                kernel: none(),
                dropped: none(),
                tx_packets: 0,
            }],
            refused: vec![],
            umem: Umem {
                frames: 9,
                chunk_bytes: 4096,
                free: 4,
                fill: 1,
                rx: 1,
                worker: 1,
                handoff: 1,
                tx: 1,
                sum_ok: true,
            },
            accounts_balance: true,
        }
    }

    #[test]
    fn every_equation_is_looked_at() {
        assert_eq!(balanced().imbalances(), Vec::<String>::new());
        let break_and_count = |change: fn(&mut Status)| {
            let mut status = balanced();
            change(&mut status);
            status.imbalances().len()
        };
        assert_eq!(break_and_count(|status| status.ports[0].rx_packets += 1), 1);
        assert_eq!(break_and_count(|status| status.ports[0].repeated -= 1), 1);
        assert_eq!(break_and_count(|status| status.ports[0].socket_drops.clear()), 1);
        assert_eq!(break_and_count(|status| status.ports[0].forwarded -= 1), 1);
        assert_eq!(break_and_count(|status| status.ports[0].passed.by_reason.clear()), 1);
        assert_eq!(break_and_count(|status| status.umem.tx += 1), 1);
        assert_eq!(break_and_count(|status| status.umem.sum_ok = false), 1);
        assert_eq!(break_and_count(|status| status.accounts_balance = false), 1);
    }
}
