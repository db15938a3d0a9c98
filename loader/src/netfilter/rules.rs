//! Netfilter rules as far as they matter here, and what they may do to packets that Podlane would take past them.
//!
//! A rule is read as a list of conditions and effects, whoever wrote it: nftables, iptables over nftables, or the old
//! iptables. What is not understood counts for the worst: a condition may hold, an effect may be anything. So a rule set is
//! harmless only if nothing in it can drop, hold or change a packet between two addresses of the cluster that comes in and
//! goes out through Podlane's ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Chains that are followed into each other at most; the kernel allows 16.
const MAX_DEPTH: usize = 32;
/// Rules that are looked at for one base chain; a set of jumps can be walked in more ways than it has rules.
const MAX_STEPS: usize = 200_000;
/// Sentences that are told at most.
pub const MAX_FINDINGS: usize = 16;

/// The family of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// Frames that a bridge forwards.
    Bridge,
    /// Frames of single interfaces.
    Netdev,
}

impl Family {
    /// Its word in nftables.
    pub fn word(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
            Family::Netdev => "netdev",
        }
    }
}

/// Where a base chain hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Of everything that comes in.
    Prerouting,
    /// What is for the node.
    Input,
    /// What is forwarded.
    Forward,
    /// What the node sends.
    Output,
    /// Everything that goes out.
    Postrouting,
    /// An interface, on the way in.
    Ingress,
    /// An interface, on the way out.
    Egress,
}

impl Hook {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
            Hook::Ingress => "ingress",
            Hook::Egress => "egress",
        }
    }
}

/// What makes a chain a base chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// Where it hangs.
    pub hook: Hook,
    /// Whether it is of type `nat`.
    pub is_nat: bool,
    /// What becomes of a packet that comes to its end.
    pub drops: bool,
    /// The interfaces of `ingress` and `egress`.
    pub devices: Vec<String>,
}

/// A name of an interface in a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The name, or its beginning.
    pub name: String,
    /// Only the beginning.
    pub is_prefix: bool,
    /// Any other one.
    pub negated: bool,
}

impl Interface {
    fn may_be(&self, name: &str) -> bool {
        let same = if self.is_prefix { name.starts_with(&self.name) } else { name == self.name };
        same != self.negated
    }
}

/// Under which a rule goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// The interface on which it came in.
    In(Interface),
    /// The interface through which it goes out.
    Out(Interface),
    /// One end of it lies in a network, or outside of it.
    End {
        /// The network.
        network: IpNet,
        /// Outside.
        negated: bool,
    },
    /// Conntrack calls it invalid. What Podlane takes would be valid, had conntrack seen all of its connection.
    Invalid,
    /// It is for an address of the node itself. Podlane takes no such packet.
    ForNode,
    /// Anything else.
    Other,
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The chain ends, and the packet goes on.
    Accept,
    /// The packet is lost, held or changed: with these words.
    Harm(String),
    /// On in another chain, and back.
    Jump(String),
    /// On in another chain, and not back.
    Goto(String),
    /// Back.
    Return,
}

/// A part of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// If this does not hold, the rule ends.
    If(Condition),
    /// This happens.
    Do(Effect),
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chain {
    /// Where it hangs; `None` if it is only jumped to.
    pub base: Option<Base>,
    /// Its rules, each with its parts in their order.
    pub rules: Vec<Vec<Part>>,
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Whether it is one of the old iptables.
    pub is_legacy: bool,
    /// Its chains.
    pub chains: BTreeMap<String, Chain>,
}

/// What Podlane takes, as far as rules can tell it from other traffic.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// The pod bridge.
    pub bridge: &'a str,
    /// The uplinks.
    pub uplinks: &'a [&'a str],
    /// The pods' ports.
    pub pods: &'a [&'a str],
    /// Both ends of every packet lie in here.
    pub cluster: &'a [IpNet],
    /// Whether bridged IPv4 and IPv6 packets go through the tables of their families as well (br_netfilter).
    pub bridged: [bool; 2],
}

/// Traffic that rules concern.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Concerned {
    /// Routed packets of IPv4 and of IPv6.
    pub routed: [bool; 2],
    /// Bridged frames.
    pub bridged: bool,
    /// Single ports, with the sentence that says why.
    pub ports: BTreeMap<String, String>,
    /// Whether rules drop what conntrack calls invalid. Connections that it has followed must stay with it then.
    pub drops_invalid: bool,
    /// A sentence for each rule set that was found.
    pub sentences: Vec<String>,
}

impl Concerned {
    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        self.routed == [true; 2] && self.bridged
    }
}

/// Which traffic a base chain sees.
#[derive(Clone, Copy, Default)]
struct Scope {
    routed: [bool; 2],
    bridged: bool,
}

/// Chains of kube-proxy and kubelet in the tables of iptables. They deal with service addresses, and drop what conntrack calls
/// invalid: nothing of that concerns packets from pod to pod that nobody translates.
const KUBE_CHAINS: [&str; 12] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-KUBELET-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
/// Chains of the table `nat` that mark packets, or are about the node's own ports: of kube-proxy and of the CNI plugin `portmap`.
const NAT_CHAINS: [&str; 7] = [
    "CNI-HOSTPORT-DNAT",
    "KUBE-KUBELET-CANARY",
    "KUBE-MARK-DROP",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-CANARY",
];
/// How the names of kube-proxy's chains for single services begin, of which there may be many thousands.
const SERVICE_CHAINS: [&str; 5] = ["KUBE-EXT-", "KUBE-FW-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-"];
/// The table of kube-proxy's nftables mode. What it does to service addresses only follows from its set of them.
const KUBE_TABLE: &str = "kube-proxy";
/// That set.
pub const KUBE_SERVICES: &str = "cluster-ips";

/// Whether a jump to this chain is known to do nothing to what Podlane takes.
pub fn is_known_chain(table: &str, chain: &str) -> bool {
    match table {
        "filter" | "mangle" | "raw" => KUBE_CHAINS.contains(&chain),
        "nat" => NAT_CHAINS.contains(&chain),
        _ => false,
    }
}

/// Whether a jump to this chain sends a packet to one of a service's pods instead.
pub fn is_service_chain(table: &str, chain: &str) -> bool {
    table == "nat" && SERVICE_CHAINS.iter().any(|beginning| chain.starts_with(beginning))
}

/// Whether a table is kube-proxy's.
pub fn is_known_table(family: Family, name: &str) -> bool {
    matches!(family, Family::Ip | Family::Ip6) && name == KUBE_TABLE
}

/// Whether packets that Podlane forwards would meet a base chain. Of those that translate, only the ones that change where a
/// connection goes matter: with another source it comes to the same pod.
pub fn is_bypassed(family: Family, base: &Base) -> bool {
    let on_the_way = matches!(base.hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting);
    let by_device = matches!(base.hook, Hook::Ingress | Hook::Egress);
    let of_bridge = family == Family::Bridge && matches!(base.hook, Hook::Input | Hook::Output);
    match base.is_nat {
        true => base.hook == Hook::Prerouting,
        false => on_the_way || by_device || of_bridge,
    }
}

/// What stands for kube-proxy's table in its nftables mode: a rule for each service address.
pub fn services(family: Family, addresses: &[IpAddr]) -> Table {
    let base = Base { hook: Hook::Prerouting, is_nat: true, drops: false, devices: Vec::new() };
    let service = |address: &IpAddr| {
        let end = Condition::End { network: IpNet::from(*address), negated: false };
        vec![Part::If(end), Part::Do(Effect::Harm(format!("service {address}")))]
    };
    let chain = Chain { base: Some(base), rules: addresses.iter().map(service).collect() };
    let chains = BTreeMap::from([(KUBE_SERVICES.to_owned(), chain)]);
    Table { family, name: KUBE_TABLE.to_owned(), is_legacy: false, chains }
}

/// Finds what may happen to packets that Podlane takes.
pub fn judge(tables: &[Table], taken: &Taken<'_>) -> Concerned {
    let mut concerned = Concerned::default();
    for table in tables {
        for (name, chain) in &table.chains {
            let Some(base) = chain.base.as_ref().filter(|base| is_bypassed(table.family, base)) else { continue };
            judge_base(table, name, base, taken, &mut concerned);
        }
    }
    concerned
}

fn judge_base(table: &Table, name: &str, base: &Base, taken: &Taken<'_>, concerned: &mut Concerned) {
    let by_device = matches!(base.hook, Hook::Ingress | Hook::Egress);
    let own: Vec<&str> = match by_device {
        false => Vec::new(),
        true => base.devices.iter().map(String::as_str).filter(|device| taken.has(device)).collect(),
    };
    if by_device && own.is_empty() {
        return;
    }
    let mut walk =
        Walk { table, taken, steps: MAX_STEPS, found: Vec::new(), walked: BTreeSet::new(), drops_invalid: false };
    let goes_on = walk.chain(name, None, 0);
    concerned.drops_invalid |= walk.drops_invalid;
    if goes_on && base.drops {
        walk.found.push((None, "policy drop".to_owned()));
    }
    for (port, what) in walk.found {
        let place = if table.is_legacy { "iptables-legacy table" } else { "table" };
        let may = match base.is_nat {
            true => "send connections between pods elsewhere",
            false => "drop, hold or change pods' packets",
        };
        let sentence = format!(
            "{place} {} {} chain {name} (hook {}) has rules that may {may} ({what})",
            table.family.word(),
            table.name,
            base.hook.word()
        );
        let ports: Vec<&str> = port.as_deref().map_or_else(|| own.clone(), |port| vec![port]);
        if ports.is_empty() || ports.contains(&taken.bridge) {
            concerned.add(scope(table.family, base.hook, taken));
        }
        for port in ports.into_iter().filter(|port| *port != taken.bridge) {
            concerned.ports.entry(port.to_owned()).or_insert_with(|| sentence.clone());
        }
        if !concerned.sentences.contains(&sentence) && concerned.sentences.len() < MAX_FINDINGS {
            concerned.sentences.push(sentence);
        }
    }
}

fn scope(family: Family, hook: Hook, taken: &Taken<'_>) -> Scope {
    let [four, six] = taken.bridged;
    match family {
        Family::Ip => Scope { routed: [true, false], bridged: four },
        Family::Ip6 => Scope { routed: [false, true], bridged: six },
        Family::Inet => Scope { routed: [true; 2], bridged: four || six },
        // The bridge forwards what it bridges; the rest of its hooks sees what is routed to and from pods as well.
        Family::Bridge if hook == Hook::Forward => Scope { routed: [false; 2], bridged: true },
        Family::Bridge => Scope { routed: [true; 2], bridged: true },
        // Only the bridge itself comes here: what is routed from and to pods.
        Family::Netdev => Scope { routed: [true; 2], bridged: false },
    }
}

impl Concerned {
    fn add(&mut self, scope: Scope) {
        self.routed = [self.routed[0] || scope.routed[0], self.routed[1] || scope.routed[1]];
        self.bridged |= scope.bridged;
    }
}

impl Taken<'_> {
    fn has(&self, interface: &str) -> bool {
        self.bridge == interface || self.uplinks.contains(&interface) || self.pods.contains(&interface)
    }

    /// Whether a packet that is taken may come in or go out through it, as rules of this family see it.
    fn may_use(&self, family: Family, wanted: &Interface) -> bool {
        let pods: &[&str] = if matches!(family, Family::Bridge | Family::Netdev) { self.pods } else { &[] };
        let all = [self.bridge].into_iter().chain(self.uplinks.iter().copied()).chain(pods.iter().copied());
        all.into_iter().any(|name| wanted.may_be(name))
    }

    /// Whether one end of a packet that is taken lies there. In tables of both families the other one's packets are elsewhere.
    fn has_end(&self, family: Family, network: &IpNet, negated: bool) -> Holds {
        let of_family = |own: &&IpNet| own.addr().is_ipv4() == network.addr().is_ipv4();
        let own: Vec<&IpNet> = self.cluster.iter().filter(of_family).collect();
        let all = own.iter().all(|own| network.contains(*own));
        let some = own.iter().any(|own| network.contains(*own) || own.contains(network));
        let (all, some) = if negated { (!some, !all) } else { (all, some) };
        match (some, all && matches!(family, Family::Ip | Family::Ip6)) {
            (false, _) => Holds::Never,
            (true, true) => Holds::Always,
            (true, false) => Holds::Maybe,
        }
    }
}

/// A walk through the chains from one base chain.
struct Walk<'a> {
    table: &'a Table,
    taken: &'a Taken<'a>,
    steps: usize,
    /// What may happen, and if it may happen only on one port, to which.
    found: Vec<(Option<String>, String)>,
    /// Chains that were walked already, for any port, and whether one comes back from them.
    walked: BTreeSet<(String, bool)>,
    drops_invalid: bool,
}

impl Walk<'_> {
    fn find(&mut self, port: Option<&str>, what: String) {
        let found = (port.map(str::to_owned), what);
        let known = self.found.iter().any(|(other, what)| other.is_none() && *what == found.1);
        if !known && !self.found.contains(&found) && self.found.len() < MAX_FINDINGS {
            self.found.push(found);
        }
    }

    /// Walks a chain; `port` is the only one whose packets come here. Whether one may come to its end or back.
    fn chain(&mut self, name: &str, port: Option<&str>, depth: usize) -> bool {
        let table = self.table;
        for comes_back in [true, false] {
            if port.is_none() && self.walked.contains(&(name.to_owned(), comes_back)) {
                return comes_back;
            }
        }
        let Some(chain) = table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            self.find(port, format!("chain {name} is too deep or unknown"));
            return true;
        };
        let mut comes_back = true;
        for rule in &chain.rules {
            let Some(steps) = self.steps.checked_sub(1) else {
                self.find(port, "more rules than can be looked at".to_owned());
                break;
            };
            self.steps = steps;
            match self.rule(name, rule, port, depth) {
                Next::Rule => {}
                Next::Back => break,
                Next::Never => {
                    comes_back = false;
                    break;
                }
            }
        }
        if port.is_none() {
            self.walked.insert((name.to_owned(), comes_back));
        }
        comes_back
    }

    /// Where every packet goes after a rule; [`Next::Rule`] if only some go elsewhere.
    fn rule(&mut self, chain: &str, rule: &[Part], port: Option<&str>, depth: usize) -> Next {
        let mut port = port.map(str::to_owned);
        let mut is_certain = true;
        for part in rule {
            let effect = match part {
                Part::If(condition) => match self.holds(condition, &mut port) {
                    Holds::Never => {
                        let harms = |part: &Part| matches!(part, Part::Do(Effect::Harm(_)));
                        self.drops_invalid |= *condition == Condition::Invalid && rule.iter().any(harms);
                        return Next::Rule;
                    }
                    Holds::Always => continue,
                    Holds::Maybe => {
                        is_certain = false;
                        continue;
                    }
                },
                Part::Do(effect) => effect,
            };
            let certainly = |next| if is_certain { next } else { Next::Rule };
            match effect {
                Effect::Accept => return certainly(Next::Never),
                Effect::Return => return certainly(Next::Back),
                Effect::Harm(what) => self.find(port.as_deref(), format!("{what} in chain {chain}")),
                Effect::Jump(to) if is_known_chain(&self.table.name, to) => {}
                Effect::Goto(to) if is_known_chain(&self.table.name, to) => return certainly(Next::Back),
                Effect::Jump(to) | Effect::Goto(to) if is_service_chain(&self.table.name, to) => {
                    self.find(port.as_deref(), format!("service {} in chain {chain}", address_of(rule)));
                }
                Effect::Jump(to) => {
                    if !self.chain(to, port.as_deref(), depth + 1) {
                        return certainly(Next::Never);
                    }
                }
                Effect::Goto(to) => {
                    let comes_back = self.chain(to, port.as_deref(), depth + 1);
                    return certainly(if comes_back { Next::Back } else { Next::Never });
                }
            }
        }
        Next::Rule
    }

    fn holds(&self, condition: &Condition, port: &mut Option<String>) -> Holds {
        let family = self.table.family;
        let possible = match condition {
            Condition::In(interface) | Condition::Out(interface) => {
                let named = !interface.negated && !interface.is_prefix;
                if named && self.taken.pods.contains(&interface.name.as_str()) {
                    *port = Some(interface.name.clone());
                }
                self.taken.may_use(family, interface)
            }
            Condition::End { network, negated } => return self.taken.has_end(family, network, *negated),
            Condition::Invalid | Condition::ForNode => false,
            Condition::Other => true,
        };
        if possible { Holds::Maybe } else { Holds::Never }
    }
}

/// The address that a rule for a service is about.
fn address_of(rule: &[Part]) -> String {
    let end = |part: &Part| match part {
        Part::If(Condition::End { network, negated: false }) => Some(network.addr().to_string()),
        _ => None,
    };
    rule.iter().rev().find_map(end).unwrap_or_else(|| "of any address".to_owned())
}

enum Holds {
    Never,
    Maybe,
    Always,
}

enum Next {
    /// The rule behind it.
    Rule,
    /// The end of the chain.
    Back,
    /// Not back.
    Never,
}
