//! Reading the rules of nftables, and of iptables that is made of it, from the kernel (`linux/netfilter/nf_tables.h`).
//!
//! Only chains that a packet on its way through the node can come to are read, so that the thousands of chains that kube-proxy
//! has for its services cost nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::libc;

use super::rules::{self, Base, Chain, Condition, Effect, Family, Hook, Interface, Part, Table};
use crate::kernel::{attribute, nested};
use crate::mirror::{NetlinkError, RequestSocket};

/// How often it is read again if the rules change meanwhile.
const ATTEMPTS: usize = 5;
/// Chains whose rules are read at most.
const MAX_CHAINS: usize = 4096;
/// Rules of one chain that are read at most. What is beyond counts for the worst, as a chain that was not read does.
const MAX_RULES: usize = 65_536;

/// `NFNL_SUBSYS_NFTABLES`, and in it the messages.
const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;
/// `nfgenmsg` in front of the attributes.
const HEADER: usize = 4;

/// What was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Read {
    /// The number that the kernel gives to the rules as they are now.
    pub generation: u32,
    /// Tables with the chains that matter.
    pub tables: Vec<Table>,
    /// Chains that translate addresses, as "table ip kube-proxy chain nat-prerouting".
    pub translating: Vec<String>,
    /// Whether the rules changed each time while they were read.
    pub is_torn: bool,
}

/// The number that the kernel gives to the rules as they are now; 0 if it has no nftables.
///
/// # Errors
/// If the kernel does not answer.
pub fn generation(requests: &mut RequestSocket) -> Result<u32, NetlinkError> {
    let mut generation = 0;
    let request = message(GET_GENERATION, 0, &[]);
    let answer = requests.get_bytes(&request, "tell the generation of nftables' rules", |_, payload| {
        generation = attributes(payload).find(|(kind, _)| *kind == 1).map_or(0, |(_, value)| word(&value));
    });
    match answer {
        Err(error) if is_absent(&error) => Ok(0),
        answer => answer.map(|()| generation),
    }
}

/// Reads what matters.
///
/// # Errors
/// If the kernel does not answer.
pub fn read(requests: &mut RequestSocket) -> Result<Read, NetlinkError> {
    let mut read = Read::default();
    for _ in 0..ATTEMPTS {
        read = read_once(requests)?;
        if !read.is_torn && generation(requests)? == read.generation {
            return Ok(read);
        }
    }
    Ok(Read { is_torn: true, ..read })
}

fn read_once(requests: &mut RequestSocket) -> Result<Read, NetlinkError> {
    let mut read = Read { generation: generation(requests)?, ..Read::default() };
    let mut tables: BTreeMap<(Family, String), Table> = BTreeMap::new();
    let (mut wanted, mut kube_proxies) = (Vec::new(), BTreeMap::new());
    read.is_torn |= !dump(requests, GET_CHAIN, 0, &[], "list nftables' chains", |family, payload| {
        let Some(family) = family_of(family) else { return };
        let Some((table, chain, base)) = read_chain(family, payload) else { return };
        if base.is_nat {
            read.translating.push(format!("table {} {table} chain {chain}", family.word()));
        }
        if rules::is_known_table(family, &table) {
            kube_proxies.insert(family, table);
        } else if rules::is_bypassed(family, &base) {
            wanted.push((family, table, chain, Some(base)));
        }
    })?;
    for (family, table) in kube_proxies {
        let (addresses, complete) = read_addresses(requests, family, &table, rules::KUBE_SERVICES)?;
        read.is_torn |= !complete;
        tables.insert((family, table), rules::services(family, &addresses));
    }
    let mut count = 0;
    while let Some((family, table, chain, base)) = wanted.pop() {
        let key = (family, table.clone());
        let entry = tables.entry(key).or_insert_with(|| Table {
            family,
            name: table.clone(),
            is_legacy: false,
            chains: BTreeMap::new(),
        });
        count += 1;
        if entry.chains.contains_key(&chain) || count > MAX_CHAINS {
            continue;
        }
        let (rules, complete) = read_rules(requests, family, &table, &chain)?;
        read.is_torn |= !complete;
        for part in rules.iter().flatten() {
            if let Part::Do(Effect::Jump(to) | Effect::Goto(to)) = part
                && !rules::is_known_chain(&table, to)
                && !rules::is_service_chain(&table, to)
            {
                wanted.push((family, table.clone(), to.clone(), None));
            }
        }
        entry.chains.insert(chain, Chain { base, rules });
    }
    read.tables = tables.into_values().collect();
    read.translating.sort();
    Ok(read)
}

fn is_absent(error: &NetlinkError) -> bool {
    let absent = [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::ENOENT, libc::EINVAL];
    error.errno().is_some_and(|errno| absent.contains(&errno))
}

/// Sends a dump request; a kernel without nftables has nothing. False: what it says changed meanwhile.
fn dump(
    requests: &mut RequestSocket,
    kind: u16,
    family: u8,
    attributes: &[u8],
    action: &str,
    mut each: impl FnMut(u8, &[u8]),
) -> Result<bool, NetlinkError> {
    let request = message(kind, family, attributes);
    let answer =
        requests.dump_bytes(&request, action, |_, payload| each(payload.first().copied().unwrap_or(0), payload));
    match answer {
        Err(error) if is_absent(&error) => Ok(true),
        answer => answer,
    }
}

/// A request: 16 bytes of header, of which the type is set, `nfgenmsg`, and attributes.
fn message(kind: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[4..6].copy_from_slice(&(SUBSYSTEM | kind).to_ne_bytes());
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    nested(payload.get(HEADER..).unwrap_or_default())
}

fn word(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// `NFPROTO_*`.
fn family_of(number: u8) -> Option<Family> {
    Some(match number {
        1 => Family::Inet,
        2 => Family::Ip,
        5 => Family::Netdev,
        7 => Family::Bridge,
        10 => Family::Ip6,
        // ARP is the kernel's anyway.
        _ => return None,
    })
}

fn number_of(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Netdev => 5,
        Family::Bridge => 7,
        Family::Ip6 => 10,
    }
}

/// A base chain (`NFTA_CHAIN_*`): its table, its name, and where it hangs. `None`: it is no base chain.
fn read_chain(family: Family, payload: &[u8]) -> Option<(String, String, Base)> {
    let (mut table, mut chain, mut hook) = (String::new(), String::new(), None);
    let (mut is_nat, mut drops) = (false, false);
    for (kind, value) in attributes(payload) {
        match kind {
            1 => table = text(&value),
            3 => chain = text(&value),
            4 => hook = read_hook(family, &value),
            // NF_DROP is 0.
            5 => drops = word(&value) == 0,
            7 => is_nat = text(&value) == "nat",
            _ => {}
        }
    }
    let (hook, devices) = hook?;
    Some((table, chain, Base { hook, is_nat, drops, devices }))
}

/// `NFTA_HOOK_*`.
fn read_hook(family: Family, value: &[u8]) -> Option<(Hook, Vec<String>)> {
    let (mut number, mut devices) = (None, Vec::new());
    for (kind, value) in nested(value) {
        match kind {
            1 => number = Some(word(&value)),
            3 => devices.push(text(&value)),
            4 => devices.extend(nested(&value).map(|(_, name)| text(&name))),
            _ => {}
        }
    }
    devices.sort();
    devices.dedup();
    let hook = match (family, number?) {
        (Family::Netdev, 0) | (Family::Inet, 5) => Hook::Ingress,
        (Family::Netdev, 1) => Hook::Egress,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    };
    Some((hook, devices))
}

/// The rules of a chain, and whether they did not change meanwhile.
fn read_rules(
    requests: &mut RequestSocket,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<(Vec<Vec<Part>>, bool), NetlinkError> {
    let named = |kind, name: &str| attribute(kind, &[name.as_bytes(), b"\0"].concat());
    let wanted = [named(1, table), named(2, chain)].concat();
    let mut rules = Vec::new();
    let number = number_of(family);
    let complete = dump(requests, GET_RULE, number, &wanted, "list nftables' rules", |_, payload| {
        let mut own = (String::new(), String::new());
        let mut expressions = Vec::new();
        for (kind, value) in attributes(payload) {
            match kind {
                1 => own.0 = text(&value),
                2 => own.1 = text(&value),
                4 => expressions = value,
                _ => {}
            }
        }
        // A kernel that does not know the filter sends the rules of all chains.
        let is_own = own.0 == table && own.1 == chain;
        match rules.len() {
            0..MAX_RULES if is_own => rules.push(read_rule(family, &expressions)),
            MAX_RULES if is_own => rules.push(vec![Part::Do(Effect::Harm("more rules than are read".to_owned()))]),
            _ => {}
        }
    })?;
    Ok((rules, complete))
}

/// The addresses in a set, none if there is no such set, and whether it did not change meanwhile.
fn read_addresses(
    requests: &mut RequestSocket,
    family: Family,
    table: &str,
    set: &str,
) -> Result<(Vec<IpAddr>, bool), NetlinkError> {
    let named = |kind, name: &str| attribute(kind, &[name.as_bytes(), b"\0"].concat());
    let wanted = [named(1, table), named(2, set)].concat();
    let mut addresses = Vec::new();
    let number = number_of(family);
    // NFTA_SET_ELEM_LIST_ELEMENTS, a list of elements of which each has its NFTA_SET_ELEM_KEY.
    let complete = dump(requests, GET_ELEMENTS, number, &wanted, "list a set of nftables", |_, payload| {
        for (_, elements) in attributes(payload).filter(|(kind, _)| *kind == 3) {
            let keys = nested(&elements).filter_map(|(_, element)| value_in(&element, 1));
            addresses.extend(keys.filter_map(|key| address(&key)).take(MAX_RULES.saturating_sub(addresses.len())));
        }
    })?;
    Ok((addresses, complete))
}

/// An address from its bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// What a register holds.
#[derive(Clone)]
enum Loaded {
    InName,
    OutName,
    State,
    /// What kind of address the destination is to this node.
    DestinationType,
    /// `NFPROTO_*` of a packet in a table of both families.
    Protocol,
    /// That many bytes of an address.
    Address {
        bytes: usize,
        mask: Option<Vec<u8>>,
        is_v6: bool,
    },
    Unknown,
}

/// A rule while its expressions are read.
struct RuleReader {
    family: Family,
    /// In a table of both families, the one that the rule is about.
    is_v6: Option<bool>,
    registers: HashMap<u32, Loaded>,
    parts: Vec<Part>,
}

fn read_rule(family: Family, expressions: &[u8]) -> Vec<Part> {
    let is_v6 = match family {
        Family::Ip => Some(false),
        Family::Ip6 => Some(true),
        _ => None,
    };
    let mut reader = RuleReader { family, is_v6, registers: HashMap::new(), parts: Vec::new() };
    for (_, element) in nested(expressions) {
        let (mut name, mut data) = (String::new(), Vec::new());
        for (kind, value) in nested(&element) {
            match kind {
                1 => name = text(&value),
                2 => data = value,
                _ => {}
            }
        }
        reader.expression(&name, &data);
    }
    reader.parts
}

/// The value of an attribute of an expression.
fn find(data: &[u8], wanted: u16) -> Option<Vec<u8>> {
    nested(data).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn number(data: &[u8], wanted: u16) -> Option<u32> {
    find(data, wanted).map(|value| word(&value))
}

/// `NFTA_DATA_VALUE` within an attribute.
fn value_in(data: &[u8], wanted: u16) -> Option<Vec<u8>> {
    find(&find(data, wanted)?, 1)
}

impl RuleReader {
    fn does(&mut self, effect: Effect) {
        self.parts.push(Part::Do(effect));
    }

    fn harms(&mut self, what: &str) {
        self.does(Effect::Harm(what.to_owned()));
    }

    fn only_if(&mut self, condition: Condition) {
        self.parts.push(Part::If(condition));
    }

    fn expression(&mut self, name: &str, data: &[u8]) {
        match name {
            "immediate" => self.immediate(data),
            "meta" => self.meta(data),
            "payload" => self.payload(data),
            "bitwise" => self.bitwise(data),
            "ct" => self.ct(data),
            "cmp" => self.compare(data),
            // A map from the register 0 is one of verdicts, which may be any.
            "lookup" if number(data, 3) == Some(0) => self.harms("verdict map"),
            "lookup" => self.looked_up(data),
            "match" => self.matched(data),
            "target" => self.target(data),
            "exthdr" if number(data, 7).is_some() => self.harms("changes headers"),
            "reject" => self.harms("reject"),
            "queue" => self.harms("queue"),
            "tproxy" | "synproxy" | "fwd" | "dup" | "nat" | "masq" | "redir" => self.harms(name),
            "fib" => self.fib(data),
            // They load something, count, note, or have the packet go on as it is.
            "byteorder" | "exthdr" | "hash" | "numgen" | "osf" | "rt" | "socket" | "tunnel" | "xfrm" => {
                for register in [1, 2].into_iter().filter_map(|kind| number(data, kind)) {
                    self.registers.insert(register, Loaded::Unknown);
                }
            }
            "counter" | "log" | "last" | "notrack" | "objref" | "flow_offload" => {}
            "limit" | "quota" | "connlimit" | "range" | "dynset" | "inner" => self.only_if(Condition::Other),
            other => self.harms(&format!("expression {other}")),
        }
    }

    /// `NFTA_IMMEDIATE_*`, `NFTA_VERDICT_*`.
    fn immediate(&mut self, data: &[u8]) {
        let register = number(data, 1).unwrap_or(0);
        if register != 0 {
            self.registers.insert(register, Loaded::Unknown);
            return;
        }
        let verdict = find(data, 2).and_then(|data| find(&data, 2)).unwrap_or_default();
        let chain = find(&verdict, 2).map(|name| text(&name)).unwrap_or_default();
        match number(&verdict, 1).unwrap_or(0).cast_signed() {
            1 => self.does(Effect::Accept),
            0 => self.harms("drop"),
            -1 | -2 => {}
            -3 => self.does(Effect::Jump(chain)),
            -4 => self.does(Effect::Goto(chain)),
            -5 => self.does(Effect::Return),
            _ => self.harms("verdict"),
        }
    }

    /// `NFTA_FIB_*`, of which `NFT_FIB_RESULT_ADDRTYPE` of `NFTA_FIB_F_DADDR` alone is known.
    fn fib(&mut self, data: &[u8]) {
        let is_destination = number(data, 2) == Some(3) && number(data, 3) == Some(2);
        let loaded = if is_destination { Loaded::DestinationType } else { Loaded::Unknown };
        self.registers.insert(number(data, 1).unwrap_or(0), loaded);
    }

    /// `NFTA_META_*`, `NFT_META_*`.
    fn meta(&mut self, data: &[u8]) {
        let key = number(data, 2).unwrap_or(u32::MAX);
        if number(data, 3).is_some() {
            // Priority, mark and tracing leave the packet what it is.
            if !matches!(key, 1 | 3 | 14) {
                self.harms("changes meta data");
            }
            return;
        }
        let loaded = match key {
            6 => Loaded::InName,
            7 => Loaded::OutName,
            15 if self.family == Family::Inet => Loaded::Protocol,
            _ => Loaded::Unknown,
        };
        self.registers.insert(number(data, 1).unwrap_or(0), loaded);
    }

    /// `NFTA_PAYLOAD_*`: addresses in the network header.
    fn payload(&mut self, data: &[u8]) {
        if number(data, 5).is_some() {
            self.harms("changes the packet");
            return;
        }
        let (base, offset) = (number(data, 2), number(data, 3));
        let bytes = number(data, 4).unwrap_or(0) as usize;
        let loaded = match (base, offset, self.is_v6) {
            (Some(1), Some(12 | 16), Some(false)) if (1..=4).contains(&bytes) => {
                Loaded::Address { bytes, mask: None, is_v6: false }
            }
            (Some(1), Some(8 | 24), Some(true)) if (1..=16).contains(&bytes) => {
                Loaded::Address { bytes, mask: None, is_v6: true }
            }
            _ => Loaded::Unknown,
        };
        self.registers.insert(number(data, 1).unwrap_or(0), loaded);
    }

    /// `NFTA_BITWISE_*`, as far as it masks.
    fn bitwise(&mut self, data: &[u8]) {
        let (from, to) = (number(data, 1).unwrap_or(0), number(data, 2).unwrap_or(0));
        let mask = value_in(data, 4);
        let is_masking =
            value_in(data, 5).is_none_or(|xor| xor.iter().all(|byte| *byte == 0)) && number(data, 6).unwrap_or(0) == 0;
        let loaded = match (self.registers.get(&from).cloned(), mask) {
            (Some(Loaded::Address { bytes, mask: None, is_v6 }), Some(mask)) if is_masking => {
                Loaded::Address { bytes, mask: Some(mask), is_v6 }
            }
            // NF_CT_STATE_INVALID_BIT is the lowest, in the machine's order.
            (Some(Loaded::State), Some(mask)) if is_masking && mask == 1u32.to_ne_bytes() => Loaded::State,
            _ => Loaded::Unknown,
        };
        self.registers.insert(to, loaded);
    }

    /// `NFTA_CT_*`, `NFT_CT_*`.
    fn ct(&mut self, data: &[u8]) {
        let key = number(data, 2).unwrap_or(u32::MAX);
        if number(data, 4).is_some() {
            // Look-ups are made in the default zone.
            if key == 17 {
                self.harms("sets a conntrack zone");
            }
            return;
        }
        let loaded = if key == 0 { Loaded::State } else { Loaded::Unknown };
        self.registers.insert(number(data, 1).unwrap_or(0), loaded);
    }

    /// `NFTA_CMP_*`; the operators 0 and 1 are "equal" and "not equal".
    fn compare(&mut self, data: &[u8]) {
        let loaded = self.registers.get(&number(data, 1).unwrap_or(0)).cloned().unwrap_or(Loaded::Unknown);
        let negated = match number(data, 2) {
            Some(0) => false,
            Some(1) => true,
            _ => return self.only_if(Condition::Other),
        };
        let value = value_in(data, 3).unwrap_or_default();
        if matches!(loaded, Loaded::Protocol) && !negated {
            self.is_v6 = family_of(value.first().copied().unwrap_or(0)).map(|family| family == Family::Ip6);
        }
        let condition = match loaded {
            Loaded::InName => Condition::In(interface(&value, negated)),
            Loaded::OutName => Condition::Out(interface(&value, negated)),
            Loaded::State if negated && value.iter().all(|byte| *byte == 0) => Condition::Invalid,
            Loaded::Address { bytes, mask, is_v6 } => match network(&value, bytes, mask.as_deref(), is_v6) {
                Some(network) => Condition::End { network, negated },
                None => Condition::Other,
            },
            // RTN_LOCAL, in the machine's order.
            Loaded::DestinationType if !negated && value == 2u32.to_ne_bytes() => Condition::ForNode,
            Loaded::State | Loaded::DestinationType | Loaded::Protocol | Loaded::Unknown => Condition::Other,
        };
        self.only_if(condition);
    }

    /// A look-up in a set; a map from one value to another is not a condition on its own, but only some values are in it.
    fn looked_up(&mut self, data: &[u8]) {
        if let Some(register) = number(data, 3) {
            self.registers.insert(register, Loaded::Unknown);
        }
        self.only_if(Condition::Other);
    }

    /// An iptables match, `NFTA_MATCH_*`.
    fn matched(&mut self, data: &[u8]) {
        let name = find(data, 1).map(|name| text(&name)).unwrap_or_default();
        let info = find(data, 3).unwrap_or_default();
        match name.as_str() {
            "comment" => {}
            "conntrack" if is_only_invalid(&info) => self.only_if(Condition::Invalid),
            "addrtype" if number(data, 2) == Some(1) && is_for_node(&info) => self.only_if(Condition::ForNode),
            _ => self.only_if(Condition::Other),
        }
    }

    /// An iptables target, `NFTA_TARGET_*`.
    fn target(&mut self, data: &[u8]) {
        let name = find(data, 1).map(|name| text(&name)).unwrap_or_default();
        let info = find(data, 3).unwrap_or_default();
        if is_harmful_target(&name) || name == "CT" && info.get(2..4).is_none_or(|zone| zone != [0, 0]) {
            self.harms(&format!("target {name}"));
        }
    }
}

/// Targets of iptables that leave a packet what it is and let it go on.
pub fn is_harmful_target(name: &str) -> bool {
    const HARMLESS: [&str; 16] = [
        "AUDIT",
        "CLASSIFY",
        "CONNMARK",
        "CONNSECMARK",
        "CT",
        "IDLETIMER",
        "LED",
        "LOG",
        "MARK",
        "NFLOG",
        "NOTRACK",
        "RATEEST",
        "SECMARK",
        "SET",
        "TRACE",
        "ULOG",
    ];
    !HARMLESS.contains(&name)
}

/// Whether `xt_conntrack_mtinfo1` to `3` (`linux/netfilter/xt_conntrack.h`) asks for nothing but the state INVALID: behind
/// eight addresses, two times and five numbers of 16 bits are the flags, their inversion and the states.
fn is_only_invalid(info: &[u8]) -> bool {
    const FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
    let short = |at: usize| info.get(at..).and_then(<[u8]>::first_chunk).map(|short| u16::from_ne_bytes(*short));
    short(FLAGS) == Some(1) && short(FLAGS + 2) == Some(0) && short(FLAGS + 4) == Some(1)
}

/// Whether `xt_addrtype_info_v1` (`linux/netfilter/xt_addrtype.h`: kinds of source and destination, flags) asks for nothing but
/// a destination of kind `XT_ADDRTYPE_LOCAL`, not inverted.
fn is_for_node(info: &[u8]) -> bool {
    let kinds = [0u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat();
    info.get(..8) == Some(&[kinds.as_slice(), &[0; 4]].concat())
}

/// A name that is compared as a whole has its zero byte; one without is a beginning.
fn interface(value: &[u8], negated: bool) -> Interface {
    Interface { name: text(value), is_prefix: !value.contains(&0), negated }
}

/// The network that a comparison of the first bytes of an address, masked or not, asks for.
fn network(value: &[u8], bytes: usize, mask: Option<&[u8]>, is_v6: bool) -> Option<IpNet> {
    let value = value.get(..bytes)?;
    let length = match mask {
        None => bytes * 8,
        Some(mask) => {
            let mask = mask.get(..bytes)?;
            let ones = mask.iter().map(|byte| byte.leading_ones() as usize).take_while(|ones| *ones == 8).count();
            let rest = mask.get(ones).map_or(0, |byte| byte.leading_ones() as usize);
            let is_prefix = mask.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() == ones * 8 + rest;
            if !is_prefix {
                return None;
            }
            ones * 8 + rest
        }
    };
    let address = match is_v6 {
        false => {
            let mut octets = [0; 4];
            octets.get_mut(..bytes)?.copy_from_slice(value);
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        true => {
            let mut octets = [0; 16];
            octets.get_mut(..bytes)?.copy_from_slice(value);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    };
    IpNet::new(address, u8::try_from(length).ok()?).ok().map(|network| network.trunc())
}
