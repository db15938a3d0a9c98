//! The rules: what each setting may be, alone and beside the others. One method per setting; a mistake becomes a sentence
//! and the others are judged all the same.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use podlane_dataplane::limits::{CHUNK_SIZE, MAX_CLUSTER_CIDRS, MAX_PORTS, MAX_UPLINKS, MAX_WORKERS};

use super::cpus::{self, Host};
use super::file::nearest;
use super::settings::{Given, Problem};
use crate::bpf::pins::Root;
use crate::large::{MAX_BIG_TCP, MAX_LOCAL_MTU, MIN_BIG_TCP, MIN_LOCAL_MTU, Wish};
use crate::metrics::http::DEFAULT_ADDRESS;
use crate::names::cni;

use super::{DEFAULT_FILE, DEFAULT_WORKERS, InterfaceName, MAX_FRAMES, MIN_FRAMES, cidr};

/// Judges settings and collects what is wrong with them.
pub struct Judge {
    /// What is wrong so far.
    pub problems: Vec<Problem>,
}

impl Judge {
    fn complain<T>(&mut self, given: &Given<T>, sentence: impl Display) {
        self.problems.push(Problem::at(given.origin, sentence));
    }

    /// Any type that reads itself from text.
    pub fn parse<T: FromStr<Err: Display>>(&mut self, given: &Given<String>) -> Option<T> {
        given.value.parse().map_err(|error| self.complain(given, error)).ok()
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, given: Option<Given<String>>, choices: &[(&str, T)]) -> Option<T> {
        let given = given?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == given.value) {
            return Some(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let meant = nearest(&given.value, &words).map(|word| format!("; did you mean {word:?}?")).unwrap_or_default();
        self.complain(&given, format_args!("{:?} is not one of {}{meant}", given.value, words.join(", ")));
        None
    }

    /// A whole number of a range.
    pub fn number(&mut self, given: Option<Given<i64>>, least: u32, most: u32, unit: &str) -> Option<u32> {
        let given = given?;
        let number = u32::try_from(given.value).ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.complain(
                &given,
                format_args!("{} is out of range; allowed are {least} to {most} {unit}", given.value),
            );
        }
        number
    }

    /// Where metrics are told; `None` for nowhere.
    pub fn metrics_address(&mut self, given: Option<Given<String>>) -> Option<SocketAddr> {
        let Some(given) = given else { return DEFAULT_ADDRESS.parse().ok() };
        if given.value == "off" {
            return None;
        }
        let address = given.value.parse().ok();
        if address.is_none() {
            let hint = "write an IP address and a port, such as \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"";
            self.complain(&given, format_args!("{:?} is not an address to listen at; {hint}", given.value));
        }
        address
    }

    /// Where the container runtime keeps its CNI results; `None` if pods' names are not read there.
    pub fn cni_cache(&mut self, given: Option<Given<String>>) -> Option<PathBuf> {
        let Some(given) = given else { return Some(PathBuf::from(cni::DIRECTORY)) };
        if given.value == "off" {
            return None;
        }
        let path = PathBuf::from(&given.value);
        if !path.is_absolute() {
            let hint = "write a directory with its whole path, such as \"/var/lib/cni/results\", or \"off\"";
            self.complain(&given, format_args!("{:?} does not begin with /; {hint}", given.value));
            return None;
        }
        Some(path)
    }

    /// Where bpffs is; it is looked for unless somebody says it.
    pub fn bpffs(&mut self, given: Option<Given<String>>) -> Root {
        let Some(given) = given else { return Root::Found };
        let root: Result<Root, _> = given.value.parse();
        root.unwrap_or_else(|error| {
            self.complain(&given, error);
            Root::Found
        })
    }

    /// Sizes for frames inside of the node; 0 is off.
    pub fn large(&mut self, big_tcp: Option<Given<i64>>, local_mtu: Option<Given<i64>>) -> Wish {
        let mut judge = |given: Option<Given<i64>>, least, most, unit| {
            let given = given.filter(|given| given.value != 0);
            self.number(given, least, most, unit)
        };
        Wish {
            big_tcp: judge(big_tcp, MIN_BIG_TCP, MAX_BIG_TCP, "bytes, and 0 for off"),
            local_mtu: judge(local_mtu, MIN_LOCAL_MTU, MAX_LOCAL_MTU, "bytes, and 0 for off"),
        }
    }

    /// Choices for single ports, each port once. `example` is one, with the word for what is chosen in front.
    pub fn ports<T: Copy>(
        &mut self,
        given: Vec<Given<String>>,
        choices: &[(&str, T)],
        example: (&str, &str),
    ) -> BTreeMap<InterfaceName, T> {
        let mut chosen = BTreeMap::new();
        if let Some(beyond) = given.get(MAX_PORTS) {
            self.complain(
                beyond,
                format_args!("{} ports are given and at most {MAX_PORTS} are supported", given.len()),
            );
            return chosen;
        }
        for item in given {
            let Some((name, word)) = item.value.split_once('=') else {
                let (what, example) = example;
                self.complain(&item, format_args!("{:?} is not IFACE={what}, such as veth0={example}", item.value));
                continue;
            };
            let part = |text: &str| Given { value: text.trim().to_owned(), origin: item.origin };
            let name: Option<InterfaceName> = self.parse(&part(name));
            let choice = self.choice(Some(part(word)), choices);
            let (Some(name), Some(choice)) = (name, choice) else { continue };
            if chosen.contains_key(&name) {
                self.complain(&item, format_args!("{name} is given twice; leave one out"));
            }
            chosen.insert(name, choice);
        }
        chosen
    }

    /// Bridge and uplinks, which must be given and must differ. What is absent is only complained about if `readable`.
    pub fn interfaces(
        &mut self,
        bridge: Option<Given<String>>,
        uplinks: Option<Vec<Given<String>>>,
        readable: bool,
    ) -> (Option<InterfaceName>, Vec<InterfaceName>) {
        if bridge.is_none() && readable {
            self.problems.push(Problem::absent(format_args!(
                "no bridge is named; say --bridge NAME or write bridge = \"cbr0\" in {DEFAULT_FILE}"
            )));
        }
        if uplinks.is_none() && readable {
            self.problems.push(Problem::absent(format_args!(
                "no uplink is named; say --uplink NAME or write uplinks = [\"eth0\"] in {DEFAULT_FILE} (uplinks \
                 = [] on a node without neighbours)"
            )));
        }
        let name = bridge.as_ref().and_then(|given| self.parse::<InterfaceName>(given));
        let uplinks = uplinks.unwrap_or_default();
        if let Some(same) = uplinks.iter().find(|uplink| bridge.as_ref().is_some_and(|name| name.value == uplink.value))
        {
            self.complain(
                same,
                format_args!(
                    "{:?} is the bridge; an uplink is an interface of its own towards other nodes",
                    same.value
                ),
            );
        }
        if let Some(beyond) = uplinks.get(MAX_UPLINKS) {
            self.complain(
                beyond,
                format_args!("{} uplinks are given and at most {MAX_UPLINKS} are supported", uplinks.len()),
            );
            return (name, Vec::new());
        }
        (name, self.names(uplinks))
    }

    /// Interfaces to leave alone, which are none of the uplinks.
    pub fn skip(&mut self, given: Vec<Given<String>>, uplinks: &[InterfaceName]) -> Vec<InterfaceName> {
        for item in &given {
            if uplinks.iter().any(|uplink| uplink.as_str() == item.value) {
                self.complain(item, format_args!("{} is an uplink; name it in one of the two only", item.value));
            }
        }
        self.names(given)
    }

    /// Interface names without repetition.
    pub fn names(&mut self, given: Vec<Given<String>>) -> Vec<InterfaceName> {
        let mut names: Vec<InterfaceName> = Vec::new();
        if let Some(beyond) = given.get(MAX_PORTS) {
            self.complain(
                beyond,
                format_args!("{} names are given and at most {MAX_PORTS} ports are supported", given.len()),
            );
            return names;
        }
        for item in given {
            match self.parse(&item) {
                Some(name) if names.contains(&name) => {
                    self.complain(&item, format_args!("{name} is given twice; leave one out"));
                }
                Some(name) => names.push(name),
                None => {}
            }
        }
        names
    }

    /// Cluster CIDRs without overlaps.
    pub fn cidrs(&mut self, given: Vec<Given<String>>) -> Vec<IpNet> {
        let mut networks: Vec<IpNet> = Vec::new();
        for item in &given {
            // Enough to know that one family has too many; every further one would be compared with all before it.
            if networks.len() > 2 * MAX_CLUSTER_CIDRS {
                break;
            }
            let network = match cidr::parse(&item.value) {
                Ok(network) => network,
                Err(error) => {
                    self.complain(item, error);
                    continue;
                }
            };
            match networks.iter().find_map(|earlier| cidr::overlap(*earlier, network)) {
                Some(sentence) => self.complain(item, sentence),
                None => networks.push(network),
            }
        }
        if let (Some(sentence), Some(last)) = (cidr::too_many(&networks), given.last()) {
            self.complain(last, sentence);
        }
        networks
    }

    /// UMEM frames: a power of two.
    pub fn frames(&mut self, given: Option<Given<i64>>) -> Option<u32> {
        let given = given?;
        let memory = |frames: u32| format!("{frames} ({} MiB)", (u64::from(frames) * CHUNK_SIZE as u64) >> 20);
        let frames = u32::try_from(given.value).ok().filter(|frames| (MIN_FRAMES..=MAX_FRAMES).contains(frames));
        match frames {
            Some(frames) if frames.is_power_of_two() => Some(frames),
            Some(frames) => {
                let above = frames.next_power_of_two();
                let (below, above) = (memory(above / 2), memory(above));
                self.complain(
                    &given,
                    format_args!(
                        "{frames} is not a power of two; {below} and {above} of locked memory are the nearest"
                    ),
                );
                None
            }
            None => {
                let (least, most) = (memory(MIN_FRAMES), memory(MAX_FRAMES));
                self.complain(
                    &given,
                    format_args!(
                        "{} is out of range; allowed are powers of two from {least} to {most} of locked memory",
                        given.value
                    ),
                );
                None
            }
        }
    }

    /// The CPU of each worker, from the two settings that speak of it.
    ///
    /// Named CPUs carry one worker each. Without names the allowed CPUs are taken in their order, and again from the first
    /// if there are more workers than CPUs, which is noted.
    pub fn cpus(
        &mut self,
        workers: Option<Given<i64>>,
        cpus: Option<Given<String>>,
        host: &Host,
        notes: &mut Vec<String>,
    ) -> Vec<usize> {
        let count = self.number(workers.clone(), 1, MAX_WORKERS as u32, "workers").map(|count| count as usize);
        let Some(cpus) = cpus else {
            let count = count.unwrap_or_else(|| host.allowed_cpus.len().clamp(1, DEFAULT_WORKERS));
            if count > host.allowed_cpus.len() {
                let (number, list) = (host.allowed_cpus.len(), cpus::format_list(&host.allowed_cpus));
                let noun = if number == 1 { "CPU" } else { "CPUs" };
                notes.push(format!(
                    "{count} workers share {number} {noun} ({list}), which costs speed; name fewer workers"
                ));
            }
            return host.allowed_cpus.iter().copied().cycle().take(count).collect();
        };
        let mut list = match cpus::parse_list(&cpus.value) {
            Ok(list) => list,
            Err(error) => {
                self.complain(&cpus, error);
                return Vec::new();
            }
        };
        if let Some(sentence) = list.iter().find_map(|&cpu| cpus::unusable(cpu, host)) {
            self.complain(&cpus, sentence);
        }
        match count {
            Some(count) if count > list.len() => {
                let named = list.len();
                let sentence = format!(
                    "{count} workers need {count} CPUs and cpus = \"{}\" names {named}; name more, or leave \
                     `workers` out",
                    cpus.value
                );
                self.complain(&cpus, sentence);
            }
            Some(count) => list.truncate(count),
            None if list.len() > MAX_WORKERS => self.complain(
                &cpus,
                format_args!(
                    "{} CPUs are named and at most {MAX_WORKERS} workers are supported; name fewer CPUs",
                    list.len()
                ),
            ),
            None => {}
        }
        list
    }
}
