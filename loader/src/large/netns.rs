//! The pods' network namespaces: finding the one that an interface's other end is in, and going there.
//!
//! The kernel tells a number for that namespace (`IFLA_LINK_NETNSID`), which is no way in. A way in is a file: those that
//! container runtimes and `ip netns` bind in a directory, and the one of every process. Each is asked for its number
//! (`RTM_GETNSID`) until the right one is found. The work is bounded: every namespace is asked once, whatever the number
//! of processes in it, and a search is not repeated at once when it was in vain.
//!
//! Inside acts a thread that ends when it is done. Nothing is kept open: a socket or a file of a pod's namespace would
//! keep the pod's network alive after the pod.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netlink_packet_core::{NlasIterator, parse_i32};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};

use super::{LargeError, Pod};
use crate::mirror::RequestSocket;
use crate::mirror::socket;

/// Directories in which container runtimes and `ip netns` bind network namespaces.
const DIRECTORIES: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// Files that one search looks at: a node has some hundred pods, and a few thousand processes.
const MOST_FILES: usize = 65_536;
/// How long after a search the next one begins at the earliest.
const PAUSE: Duration = Duration::from_millis(100);

/// What is known of the way to the namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Files, by the number that this namespace has for theirs.
    files: BTreeMap<i32, PathBuf>,
    searched: Option<Instant>,
}

impl Namespaces {
    /// Opens the namespace that this one calls `pod.netns`.
    ///
    /// # Errors
    /// If there is no way to it.
    pub fn find(&mut self, requests: &mut RequestSocket, pod: &Pod) -> Result<File, LargeError> {
        if let Some(file) = self.known(requests, pod.netns) {
            return Ok(file);
        }
        if self.searched.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.search(requests);
            self.searched = Some(Instant::now());
        }
        self.known(requests, pod.netns).ok_or_else(|| LargeError::NoNamespace { name: pod.name.clone() })
    }

    /// The file that was the right one before may lead elsewhere by now.
    fn known(&self, requests: &mut RequestSocket, netns: i32) -> Option<File> {
        let file = File::open(self.files.get(&netns)?).ok()?;
        (number(requests, &file) == Some(netns)).then_some(file)
    }

    fn search(&mut self, requests: &mut RequestSocket) {
        self.files.clear();
        let mut asked = HashSet::new();
        for path in candidates().take(MOST_FILES) {
            let Ok(inode) = fs::metadata(&path).map(|metadata| metadata.ino()) else { continue };
            if !asked.insert(inode) {
                continue;
            }
            // Those that may not be opened, and files that are no namespace, are none that lead anywhere.
            let number = File::open(&path).ok().and_then(|file| number(requests, &file));
            if let Some(number) = number.filter(|number| *number >= 0) {
                self.files.entry(number).or_insert(path);
            }
        }
    }
}

/// The files bound in directories first: they stay, a process may end.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |directory: &str| fs::read_dir(Path::new(directory)).into_iter().flatten().flatten();
    let bound = DIRECTORIES.into_iter().flat_map(entries).map(|entry| entry.path());
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = entries("/proc").filter(move |entry| is_process(&entry.file_name()));
    bound.chain(processes.map(|entry| entry.path().join("ns/net")))
}

/// The number that the namespace of `requests` has for another; negative or `None` without one.
fn number(requests: &mut RequestSocket, file: &File) -> Option<i32> {
    /// `NETNSA_NSID` (`linux/net_namespace.h`).
    const NSID: u16 = 1;
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(u32::try_from(file.as_raw_fd()).ok()?));
    let bytes = socket::emit(RouteNetlinkMessage::GetNsId(message));
    let mut number = None;
    let answer = requests.get_bytes(&bytes, "tell a namespace's number", |_, payload| {
        number = NlasIterator::new(payload.get(4..).unwrap_or_default())
            .map_while(Result::ok)
            .find(|nla| nla.kind() == NSID)
            .and_then(|nla| parse_i32(nla.value()).ok());
    });
    answer.ok().and(number)
}

/// Has `work` done inside of a pod's namespace, with a socket there.
///
/// # Errors
/// If the namespace cannot be entered; otherwise what `work` says.
pub fn visit<T: Send>(
    file: &File,
    pod: &Pod,
    work: impl FnOnce(&mut RequestSocket) -> Result<T, LargeError> + Send,
) -> Result<T, LargeError> {
    let enter = |source: std::io::Error| LargeError::Enter { name: pod.name.clone(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("podlane-visit".to_owned()).spawn_scoped(scope, || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| enter(errno.into()))?;
            let mut inside = RequestSocket::open(NETLINK_ROUTE).map_err(|error| pod.failed(error))?;
            work(&mut inside)
        });
        let joined = thread.map_err(enter)?.join();
        joined.unwrap_or_else(|_| Err(enter(std::io::Error::other("the thread inside of it panicked"))))
    })
}
