//! What the node's netfilter rules mean for Podlane, whose packets go past them.
//!
//! Two questions are asked of the rules. Do they translate addresses ([`Rules::translates`])? Then the programs in the kernel
//! ask conntrack about each packet, and what it translates stays with the kernel (`bpf/translated.h`). And may they drop, hold
//! or change a packet that Podlane would take ([`rules::judge`])? Then it is left to the kernel, unless the configuration says
//! `bypass_netfilter`.
//!
//! The rules are read on a thread of its own ([`watch`]), since somebody may have many of them: nftables by netlink ([`nft`]),
//! the old iptables by its own program ([`legacy`]).

pub mod legacy;
pub mod nft;
pub mod rules;
#[cfg(test)]
mod tests;
pub mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use podlane_dataplane::table::{PortKind, Translation};

use crate::compile::{Wanted, bridge_networks};
use crate::config::Config;
use crate::mirror::{RequestSocket, World};
use rules::{Concerned, Family, Table, Taken};

/// The node's rules, as far as they matter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// What translates addresses: chains and tables, by name.
    pub translating: Vec<String>,
    /// Tables with the chains that forwarded packets meet.
    pub tables: Vec<Table>,
    /// What could not be read and may be anything, as sentences.
    pub unknown: Vec<String>,
    /// Whether there are IPVS services. Their translation is not marked in conntrack.
    pub has_ipvs: bool,
    /// Sysctl `nf_conntrack_tcp_be_liberal`.
    pub is_liberal: bool,
    /// Sysctls `bridge-nf-call-iptables` and `bridge-nf-call-ip6tables`.
    pub calls: [bool; 2],
}

/// What Podlane does about the rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// What is asked of conntrack.
    pub translation: Translation,
    /// Whether everything is left to the kernel, since what it translates cannot be told.
    pub is_blind: bool,
    /// What rules concern, unless they are to be bypassed.
    pub left: Concerned,
    /// Sentences for a person.
    pub notes: Vec<String>,
}

/// Sentences about translation are the same wherever they are said.
const IPVS: &str = "The node has IPVS services (ipvsadm -L), whose translation conntrack does not tell: all traffic is left to \
                    the kernel; run kube-proxy in its nftables or iptables mode.";

impl Rules {
    /// Whether anything translates addresses.
    pub fn translates(&self) -> bool {
        !self.translating.is_empty()
    }

    /// What follows. `can_look_up`: whether the programs in the kernel can ask conntrack; `bypass`: whether rules that filter
    /// are to be bypassed.
    pub fn effects(&self, taken: &Taken<'_>, can_look_up: bool, bypass: bool) -> Effects {
        let mut effects = Effects::default();
        let concerned = self.concerned(taken);
        effects.is_blind = self.translates() && !can_look_up;
        if can_look_up && (self.translates() || concerned.drops_invalid) {
            effects.translation = if self.is_liberal { Translation::Liberal } else { Translation::Strict };
        }
        if effects.is_blind {
            effects.notes.push(format!(
                "The node translates addresses ({}), and Podlane's programs cannot ask this kernel's conntrack about them: all \
                 traffic is left to the kernel. Where nf_conntrack is a module, load it before Podlane is started, and give \
                 Podlane CAP_SYS_ADMIN (docs/services.md).",
                listed(&self.translating)
            ));
        }
        if self.has_ipvs {
            effects.is_blind = true;
            effects.notes.push(IPVS.to_owned());
        }
        for sentence in &concerned.sentences {
            let end =
                if bypass { "bypass_netfilter: they are bypassed" } else { "what they concern is left to the kernel" };
            let mut sentence = format!("{sentence}: {end}.");
            if let Some(first) = sentence.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            effects.notes.push(sentence);
        }
        if !bypass {
            effects.left = concerned;
        }
        effects
    }

    /// What follows for the ports that a configuration wants.
    pub fn effects_here(&self, world: &World, config: &Config, wanted: &Wanted, can_look_up: bool) -> Effects {
        let uplinks: Vec<&str> = config.uplinks.iter().map(|name| name.as_str()).collect();
        let pods = wanted.ports.iter().filter(|port| port.kind == PortKind::Pod);
        let pods: Vec<&str> = pods.map(|port| port.name.as_str()).collect();
        let own = bridge_networks(world, wanted.bridge.unwrap_or(0));
        let bridge = world.link_named(config.bridge.as_str()).and_then(|link| link.bridge.as_ref());
        // A bridge may hand frames to the tables of IP by an attribute of its own, too.
        let calls = bridge.is_some_and(|bridge| bridge.calls_netfilter);
        let taken = Taken {
            bridge: config.bridge.as_str(),
            uplinks: &uplinks,
            pods: &pods,
            cluster: if config.cluster_cidrs.is_empty() { &own } else { &config.cluster_cidrs },
            bridged: self.calls.map(|all| all || calls),
        };
        self.effects(&taken, can_look_up, config.bypass_netfilter)
    }

    /// What rules concern. What could not be read concerns everything.
    fn concerned(&self, taken: &Taken<'_>) -> Concerned {
        let mut concerned = rules::judge(&self.tables, taken);
        if !self.unknown.is_empty() {
            (concerned.routed, concerned.bridged) = ([true; 2], true);
            concerned.sentences.extend(self.unknown.iter().cloned());
        }
        concerned
    }

    /// Reads everything once.
    fn read(requests: Option<&mut RequestSocket>, legacy: &BTreeMap<Family, Legacy>) -> (Rules, u32) {
        let mut rules = Rules { has_ipvs: has_ipvs(), is_liberal: is_liberal(), calls: calls(), ..Rules::default() };
        let mut generation = 0;
        match requests.map_or_else(|| Ok(nft::Read::default()), nft::read) {
            Ok(read) => {
                // What changes all the time is read again soon.
                generation = if read.is_torn { 0 } else { read.generation };
                (rules.translating, rules.tables) = (read.translating, read.tables);
            }
            Err(error) => rules.unknown.push(format!("nftables' rules cannot be read ({error})")),
        }
        for (family, legacy) in legacy {
            if legacy.names.translates() {
                rules.translating.push(format!("iptables-legacy table {} nat", family.word()));
            }
            match &legacy.tables {
                Ok(tables) => rules.tables.extend(tables.iter().cloned()),
                Err(sentence) => rules.unknown.push(sentence.clone()),
            }
        }
        (rules, generation)
    }
}

/// The old iptables of a family.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Legacy {
    names: legacy::Names,
    tables: Result<Vec<Table>, String>,
}

impl Legacy {
    fn read(family: Family) -> Legacy {
        let names = legacy::Names::read(family);
        let tables = if names.is_empty() { Ok(Vec::new()) } else { legacy::read(family) };
        Legacy { names, tables }
    }
}

/// The first of some names, and how many more there are.
fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [one, more @ ..] => format!("{one} and {} more", more.len()),
    }
}

fn sysctl_is_on(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

fn is_liberal() -> bool {
    sysctl_is_on("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
}

fn calls() -> [bool; 2] {
    ["iptables", "ip6tables"].map(|name| sysctl_is_on(&format!("/proc/sys/net/bridge/bridge-nf-call-{name}")))
}

/// Behind three lines of headings are services.
fn has_ipvs() -> bool {
    read_proc_net("ip_vs").is_some_and(|text| text.lines().count() > 3)
}

/// A file of `/proc/net` of the calling thread's network namespace; `/proc/net` itself is the process's.
fn read_proc_net(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/thread-self/net").join(name)).ok()
}
