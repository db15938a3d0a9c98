//! What a container runtime keeps of its CNI calls: one file of JSON for each interface that it gave a pod.
//!
//! containerd, CRI-O and everything else that calls plugins through libcni writes
//! `/var/lib/cni/results/<network>-<container>-<interface>` when a plugin has added an interface, and removes it when the
//! interface is gone. In it are the arguments of the call, in which Kubernetes' runtimes pass the pod's name and namespace
//! (`K8S_POD_NAME`, `K8S_POD_NAMESPACE`), and the plugin's result, which lists the interfaces: those outside of a sandbox are
//! on the node, and one of them is the host end of the pod's veth.
//!
//! Whoever can write there is root, and yet nothing is trusted: plain files only, so many and so large, and what does not read
//! as such a file is left out. A directory full of rubbish costs names, and nothing else.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use nix::libc;
use podlane_dataplane::MacAddr;
use serde::Deserialize;

use super::{NamedBy, PodName};

/// Where libcni keeps its results.
pub const DIRECTORY: &str = "/var/lib/cni/results";
/// Files that are read: several interfaces for each of the most pods that a node can have.
pub const MOST_FILES: usize = 4096;
/// Bytes of the largest file that is read. A real one has some thousand.
pub const MOST_FILE_BYTES: u64 = 256 << 10;
/// Bytes that are read in all.
pub const MOST_BYTES: u64 = 32 << 20;
/// Interfaces, and addresses, of one result that are looked at.
pub const MOST_INTERFACES: usize = 16;

/// A pod, as a result tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniPod {
    /// Its name.
    pub name: PodName,
    /// The addresses that it was given.
    pub addresses: Vec<IpAddr>,
    /// The MAC addresses of its interfaces, as far as they were told.
    pub macs: Vec<MacAddr>,
}

/// The pods by the host end of their veth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniNames {
    pods: HashMap<String, CniPod>,
    /// Files that were left out: too many, too large, unreadable, or no result with a name.
    pub left_out: usize,
}

impl CniNames {
    /// One pod, by the host end of its veth.
    #[cfg(test)]
    pub(crate) fn of(interface: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let name = PodName { namespace: None, pod: "pod".to_owned(), by: NamedBy::Cni };
        let pod = CniPod { name, addresses: addresses.into_iter().collect(), macs: Vec::new() };
        CniNames { pods: HashMap::from([(interface.to_owned(), pod)]), left_out: 0 }
    }

    /// The pod at the other end of an interface of this node.
    pub fn get(&self, interface: &str) -> Option<&CniPod> {
        self.pods.get(interface)
    }

    /// Interfaces with a name.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Reads a directory. Where two files tell of the same interface, the newer one is right: an interface's name may have been
    /// given away again before its file was removed.
    ///
    /// # Errors
    /// If the directory cannot be read. A file that cannot is left out.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut found = CniNames::default();
        let mut newest: HashMap<String, SystemTime> = HashMap::new();
        let mut budget = MOST_BYTES;
        for (index, entry) in fs::read_dir(directory)?.enumerate() {
            let file = entry.ok().filter(|_| index < MOST_FILES).and_then(|entry| read_file(&entry.path(), budget));
            let told = file.and_then(|(modified, text)| {
                budget = budget.saturating_sub(text.len() as u64);
                understand(&text).map(|(pod, interfaces)| (modified, pod, interfaces))
            });
            let Some((modified, pod, interfaces)) = told else {
                found.left_out += 1;
                if index >= MOST_FILES {
                    break;
                }
                continue;
            };
            for interface in interfaces {
                if newest.get(&interface).is_none_or(|known| *known <= modified) {
                    newest.insert(interface.clone(), modified);
                    found.pods.insert(interface, pod.clone());
                }
            }
        }
        Ok(found)
    }
}

/// When a plain file was written, and what is in it. Links are not followed, and a pipe is not waited for.
fn read_file(path: &Path, budget: u64) -> Option<(SystemTime, Vec<u8>)> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    let most = MOST_FILE_BYTES.min(budget);
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= most).then_some((metadata.modified().ok()?, text))
}

/// The members of a file that are looked at (`cachedInfo` in libcni's `api.go`).
#[derive(Deserialize)]
struct CachedInfo {
    kind: String,
    #[serde(rename = "cniArgs", default)]
    arguments: Option<Vec<(String, String)>>,
    result: CachedResult,
}

#[derive(Deserialize)]
struct CachedResult {
    #[serde(default)]
    interfaces: Option<Vec<CachedInterface>>,
    #[serde(default)]
    ips: Option<Vec<CachedAddress>>,
}

#[derive(Deserialize)]
struct CachedAddress {
    /// With the length of its network.
    address: String,
}

#[derive(Deserialize)]
struct CachedInterface {
    name: String,
    #[serde(default)]
    sandbox: String,
    #[serde(default)]
    mac: String,
}

/// The pod of a file, and its interfaces on the node.
pub(crate) fn understand(text: &[u8]) -> Option<(CniPod, Vec<String>)> {
    let info: CachedInfo = serde_json::from_slice(text).ok()?;
    if info.kind != "cniCacheV1" {
        return None;
    }
    let arguments = info.arguments.unwrap_or_default();
    let argument = |key: &str| arguments.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let name = PodName::checked(argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")?, NamedBy::Cni)?;
    let interfaces = info.result.interfaces.unwrap_or_default();
    let (on_node, in_pod): (Vec<_>, Vec<_>) =
        interfaces.into_iter().take(MOST_INTERFACES).partition(|interface| interface.sandbox.is_empty());
    let macs = in_pod.iter().filter_map(|interface| interface.mac.parse().ok()).collect();
    let addresses = info.result.ips.unwrap_or_default().into_iter().take(MOST_INTERFACES);
    let addresses = addresses.filter_map(|told| told.address.parse::<IpNet>().ok()).map(|network| network.addr());
    let pod = CniPod { name, addresses: addresses.collect(), macs };
    Some((pod, on_node.into_iter().map(|interface| interface.name).collect()))
}
