//! Reading the old iptables, which the kernel has beside nftables and tells nobody of changes in: `iptables-legacy-save` does
//! it for us, where its tables are there at all.

use std::collections::BTreeMap;
use std::io::Read;
use std::iter::Peekable;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::nft::is_harmful_target;
use super::rules::{Base, Chain, Condition, Effect, Family, Hook, Interface, Part, Table};

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of its output that are read at most.
const MAX_BYTES: u64 = 64 << 20;

/// The tables that the kernel has for a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// Reads them; none where the kernel has no old iptables.
    pub fn read(family: Family) -> Names {
        let file = if family == Family::Ip6 { "ip6_tables_names" } else { "ip_tables_names" };
        let text = super::read_proc_net(file).unwrap_or_default();
        let mut names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        names.sort();
        Names(names)
    }

    /// Whether addresses are translated.
    pub fn translates(&self) -> bool {
        self.0.iter().any(|name| name == "nat")
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the rules of a family are.
///
/// # Errors
/// A sentence, if they cannot be read.
pub fn read(family: Family) -> Result<Vec<Table>, String> {
    let program = if family == Family::Ip6 { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
    let child =
        Command::new(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(
            |error| format!("the kernel has rules of the old iptables, and {program} cannot be run: {error}"),
        )?;
    let text = output(child).map_err(|why| format!("{program}, which reads the rules of the old iptables, {why}"))?;
    Ok(parse(family, &text))
}

fn output(mut child: Child) -> Result<String, String> {
    let Some(pipe) = child.stdout.take() else { return Err("has no output".to_owned()) };
    // A thread reads, so that the program can be ended when it takes too long.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.take(MAX_BYTES).read_to_string(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            ended => {
                // Both fail only for a process that is gone.
                let _ = child.kill();
                let _ = child.wait();
                return Err(ended.map_or_else(|error| error.to_string(), |_| "took too long".to_owned()));
            }
        }
    };
    let text = reader.join().map_err(|_| "could not be read".to_owned())?.map_err(|error| error.to_string())?;
    if status.success() { Ok(text) } else { Err(format!("failed ({status})")) }
}

/// The tables in the output of `iptables-save`.
pub fn parse(family: Family, text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let name = name.trim().to_owned();
            tables.push(Table { family, name, is_legacy: true, chains: BTreeMap::new() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_ascii_whitespace();
            let (Some(name), policy) = (words.next(), words.next()) else { continue };
            let base = base(&table.name, name, policy.unwrap_or("-"));
            table.chains.insert(name.to_owned(), Chain { base, rules: Vec::new() });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = words(rule);
            let Some((name, rule)) = words.split_first() else { continue };
            let chain = table.chains.entry(name.clone()).or_default();
            chain.rules.push(read_rule(rule));
        }
    }
    tables
}

fn base(table: &str, chain: &str, policy: &str) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    Some(Base { hook, is_nat: table == "nat", drops: policy == "DROP", devices: Vec::new() })
}

/// Words, of which some are quoted.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut quoted, mut escaped, mut begun) = (false, false, false);
    for character in line.chars() {
        match character {
            _ if escaped => {
                word.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(character);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn read_rule(words: &[String]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut words = words.iter().map(String::as_str).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        match word {
            "-i" => parts.push(Part::If(Condition::In(interface(argument(&mut words), negated)))),
            "-o" => parts.push(Part::If(Condition::Out(interface(argument(&mut words), negated)))),
            "-s" | "-d" => parts.push(Part::If(match network(argument(&mut words)) {
                Some(network) => Condition::End { network, negated },
                None => Condition::Other,
            })),
            "-j" | "-g" => {
                let target = argument(&mut words);
                parts.extend(effect(target, word == "-g", &mut words));
                // What follows are the target's own options.
                break;
            }
            // A module that is named is not a condition yet.
            "-m" => {
                argument(&mut words);
            }
            "--comment" => {
                argument(&mut words);
            }
            "--dst-type" if !negated && words.peek() == Some(&"LOCAL") => parts.push(Part::If(Condition::ForNode)),
            "--ctstate" | "--state" if !negated && words.peek() == Some(&"INVALID") => {
                parts.push(Part::If(Condition::Invalid));
            }
            _ if word.starts_with('-') => parts.push(Part::If(Condition::Other)),
            _ => {}
        }
        negated = false;
    }
    parts
}

fn argument<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> &'a str {
    words.next_if(|next| *next != "!").unwrap_or_default()
}

fn effect<'a>(target: &str, is_goto: bool, options: &mut impl Iterator<Item = &'a str>) -> Option<Part> {
    let effect = match target {
        "" => return None,
        _ if is_goto => Effect::Goto(target.to_owned()),
        "ACCEPT" => Effect::Accept,
        "RETURN" => Effect::Return,
        "DROP" | "REJECT" | "QUEUE" | "NFQUEUE" => Effect::Harm(target.to_owned()),
        "CT" => match options.any(|option| option.starts_with("--zone")) {
            true => Effect::Harm("target CT with a zone".to_owned()),
            false => return None,
        },
        _ if !is_harmful_target(target) => return None,
        _ if is_extension(target) => Effect::Harm(format!("target {target}")),
        chain => Effect::Jump(chain.to_owned()),
    };
    Some(Part::Do(effect))
}

/// Targets that are no chains.
fn is_extension(name: &str) -> bool {
    const TARGETS: [&str; 20] = [
        "CHECKSUM",
        "CLUSTERIP",
        "DNAT",
        "DNPT",
        "DSCP",
        "ECN",
        "HL",
        "HMARK",
        "MASQUERADE",
        "MIRROR",
        "NETMAP",
        "REDIRECT",
        "SNAT",
        "SNPT",
        "SYNPROXY",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TEE",
        "TOS",
        "TPROXY",
    ];
    TARGETS.contains(&name) || name == "TTL"
}

/// A name that ends with `+` is a beginning.
fn interface(word: &str, negated: bool) -> Interface {
    match word.strip_suffix('+') {
        Some(name) => Interface { name: name.to_owned(), is_prefix: true, negated },
        None => Interface { name: word.to_owned(), is_prefix: false, negated },
    }
}

fn network(word: &str) -> Option<IpNet> {
    let network = word.parse::<IpNet>().ok();
    network.or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from)).map(|network| network.trunc())
}
