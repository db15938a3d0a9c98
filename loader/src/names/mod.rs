//! Names of pods: what hangs on a port, in the words of the people who put it there.
//!
//! A pod's name comes from the alias of its interface on the node (`ip link set veth0 alias namespace/pod`), which somebody set
//! on purpose and which therefore wins, or from what the container runtime keeps of its CNI calls ([`cni`]). A pod of which
//! neither tells has the name of its interface. Names are labels and nothing else: no packet goes another way for one. They
//! come from files and attributes that others write, so only what looks like a name is taken for one ([`is_name`]); it
//! holds nothing that a terminal or a log would obey.

pub mod cni;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use watch::Watcher;

/// Bytes of the longest name of a pod (a DNS subdomain, as Kubernetes has it) or namespace.
pub const MOST_BYTES: usize = 253;

/// Who said the name of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    /// The alias of the interface.
    Alias,
    /// The cache of CNI results.
    Cni,
}

/// The name of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace, if it was told.
    pub namespace: Option<String>,
    /// Its name in there.
    pub pod: String,
    /// Who said so.
    pub by: NamedBy,
}

impl PodName {
    /// From the alias of an interface: `namespace/pod`, or `pod`. Anything else is somebody's remark and no name.
    pub fn from_alias(alias: &str) -> Option<Self> {
        let (namespace, pod) = match alias.split_once('/') {
            Some((namespace, pod)) => (Some(namespace), pod),
            None => (None, alias),
        };
        PodName::checked(namespace, pod, NamedBy::Alias)
    }

    /// Of names that others wrote; `None` if one of them is none.
    fn checked(namespace: Option<&str>, pod: &str, by: NamedBy) -> Option<Self> {
        (is_name(pod) && namespace.is_none_or(is_name)).then(|| PodName {
            namespace: namespace.map(str::to_owned),
            pod: pod.to_owned(),
            by,
        })
    }

    /// Whether a person means this pod by `word`: `namespace/pod`, or `pod`.
    fn is_meant_by(&self, word: &str) -> bool {
        match word.split_once('/') {
            Some((namespace, pod)) => self.namespace.as_deref() == Some(namespace) && self.pod == pod,
            None => self.pod == word,
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(out, "{namespace}/{}", self.pod),
            None => out.write_str(&self.pod),
        }
    }
}

/// Whether this can be the name of a pod or of a namespace: 1 to [`MOST_BYTES`] ASCII letters, digits, `-`, `.` and `_`.
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MOST_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

/// More than one port has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{word:?} is the name of several ports here: {interfaces}; name the interface, or write namespace/pod")]
pub struct AmbiguousName {
    word: String,
    interfaces: String,
}

/// Interfaces that the sentence of [`AmbiguousName`] lists.
const LISTED: usize = 8;

/// The interface that a person means by a word: an interface's own name, else `namespace/pod`, or `pod` if only one port here
/// has that name. `None` if nothing here has it.
///
/// # Errors
/// If it is the name of several.
pub fn interface_of(word: &str, ports: &[(String, Option<PodName>)]) -> Result<Option<String>, AmbiguousName> {
    if ports.iter().any(|(interface, _)| interface == word) {
        return Ok(Some(word.to_owned()));
    }
    let is_meant = |name: &Option<PodName>| name.as_ref().is_some_and(|name| name.is_meant_by(word));
    let mut meant: Vec<&str> =
        ports.iter().filter(|(_, name)| is_meant(name)).map(|(interface, _)| interface.as_str()).collect();
    // By name: the ports' own order changes with every daemon.
    meant.sort_unstable();
    match meant.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).to_owned())),
        listed => {
            let listed = &listed[..listed.len().min(LISTED)];
            Err(AmbiguousName { word: word.to_owned(), interfaces: listed.join(", ") })
        }
    }
}

/// An interface, as far as names need it.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// Its alias; empty for none.
    pub alias: &'a str,
}

/// What is known of the names of this node's pods.
#[derive(Debug, Default)]
pub struct Names {
    /// `None` where the configuration switches it off.
    cni: Option<Watcher>,
    /// What was logged, by interface.
    told: BTreeMap<u32, PodName>,
}

impl Names {
    /// Follows the CNI results in `directory`; without one, only aliases tell names.
    pub fn start(directory: Option<PathBuf>) -> Self {
        Names { cni: directory.map(Watcher::start), told: BTreeMap::new() }
    }

    /// Follows another directory from now on, or none. Until it is read, pods have the names of their interfaces.
    pub fn follow(&mut self, directory: Option<PathBuf>) {
        self.cni = directory.map(Watcher::start);
    }

    /// Has the CNI results read anew, in the background: a port appeared.
    pub fn refresh(&self) {
        if let Some(cni) = &self.cni {
            cni.refresh();
        }
    }

    /// The name of the pod behind an interface.
    pub fn of(&self, interface: Interface<'_>) -> Option<PodName> {
        let of_cni = || self.cni.as_ref()?.known().get(interface.name).map(|pod| pod.name.clone());
        PodName::from_alias(interface.alias).or_else(of_cni)
    }

    /// The CNI results that were read last; `None` if they are not read.
    pub fn cni(&self) -> Option<Arc<cni::CniNames>> {
        self.cni.as_ref().map(|cni| Arc::clone(&cni.known()))
    }

    /// The first address of this family that the pod behind an interface was given.
    pub fn address_of(&self, interface: &str, ipv6: bool) -> Option<IpAddr> {
        let known = self.cni.as_ref()?.known();
        known.get(interface)?.addresses.iter().find(|address| address.is_ipv6() == ipv6).copied()
    }

    /// Logs the names that are new among those of all pods' interfaces.
    pub fn tell<'a>(&mut self, interfaces: impl Iterator<Item = Interface<'a>>) {
        let mut told = BTreeMap::new();
        for interface in interfaces {
            let Some(name) = self.of(interface) else { continue };
            if self.told.get(&interface.ifindex) != Some(&name) {
                let namespace = name.namespace.as_deref().unwrap_or_default();
                tracing::info!(interface = interface.name, namespace, pod = name.pod, "a port has the name of its pod");
            }
            told.insert(interface.ifindex, name);
        }
        self.told = told;
    }
}

#[cfg(test)]
mod tests;
