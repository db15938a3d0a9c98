//! Where programs, links and maps live on while no daemon runs: a directory of bpffs for each instance and network
//! namespace.
//!
//! ```text
//! <bpffs>/podlane/<instance>/<number of the network namespace>/
//!     maps-<layout>/<map>       the maps that outlive a daemon, all of them
//!     unfinished-<layout>/      the same while it is being filled
//!     xdp-native-<ifindex>      a link; also xdp-generic-<ifindex> and tcx-<ifindex>
//!     filter-<ifindex>/         a mark: our filter of a clsact qdisc, which is no link and cannot be pinned
//!     qdisc-<ifindex>/          a mark: that qdisc was made by us
//!     gro-<ifindex>/            a mark: we switched generic receive offload on
//! ```
//!
//! Maps are pinned before the first link, by renaming a directory that is complete, and removed after the last one; so a
//! daemon that dies at any step leaves maps that can be used, or none. A mark is made before what it stands for (that of a
//! qdisc after it) and removed after it. What is to be done with a directory that was found is a pure function of its
//! content, [`plan`].
//!
//! The number of the network namespace keeps daemons apart that have one name in different namespaces: an interface's index
//! means something else in each. A number is given out again only when its namespace is gone, and then its links are
//! attached to nothing, which [`plan`] sees.

mod layout;
mod plan;
mod root;
mod turn;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use libbpf_rs::MapHandle;

use super::quiet;
use super::sys::{self, LinkState};
pub use layout::Layout;
pub use plan::{Entry, Found, Hook, Kind, Plan, plan};
pub use root::{BadRoot, NoBpffs, Root, find_root};
pub use turn::Turn;

/// The maps that outlive a daemon. The others belong to a capture, which does not, or are a cache.
pub(super) const MAPS: [&str; 20] = [
    "generations",
    "near_interfaces",
    "interfaces",
    "ports",
    "guards",
    "near_stations",
    "fdb",
    "hosts4",
    "hosts6",
    "adjacencies",
    "next_hops",
    "fib4",
    "fib6",
    "nodes",
    "sockets",
    "owners",
    "heartbeats",
    "counters",
    "used",
    "devices",
];

/// How often a directory is made that somebody else removes.
const ATTEMPTS: u32 = 10;

/// The directory of one instance in the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

/// Something in the directory cannot be read, made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = .path.display())]
pub struct PinError {
    /// What.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

fn at(path: &Path) -> impl Fn(io::Error) -> PinError {
    move |source| PinError { path: path.to_owned(), source }
}

/// The directory of all namespaces of an instance.
fn instance_directory(root: &Path, instance: &str) -> PathBuf {
    root.join("podlane").join(instance)
}

/// The number of the calling thread's network namespace.
fn namespace() -> Result<u64, PinError> {
    let path = Path::new("/proc/thread-self/ns/net");
    Ok(fs::metadata(path).map_err(at(path))?.ino())
}

impl Pins {
    /// Those of `instance` in the calling thread's network namespace, whether or not there are any.
    ///
    /// # Errors
    /// If the namespace cannot be told.
    pub fn of(root: &Path, instance: &str) -> Result<Self, PinError> {
        Ok(Pins { directory: instance_directory(root, instance).join(namespace()?.to_string()) })
    }

    /// Those of `instance` in all network namespaces, gone ones included.
    ///
    /// # Errors
    /// If the directory cannot be read; that there is none is no error.
    pub fn everywhere(root: &Path, instance: &str) -> Result<Vec<Self>, PinError> {
        let names = list(&instance_directory(root, instance))?;
        Ok(names.into_iter().map(|name| Pins { directory: instance_directory(root, instance).join(name) }).collect())
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory, for root only.
    ///
    /// # Errors
    /// If that is not allowed, because bpffs is mounted read-only for example.
    pub fn create(&self) -> Result<(), PinError> {
        let mut made = Ok(());
        // Another instance that leaves at this moment may take the directories above away while they are empty; and this one,
        // if it is of the same name, after it was found and before it is looked at.
        let vanished =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
            if !made.as_ref().is_err_and(vanished) {
                break;
            }
        }
        made.map_err(at(&self.directory))
    }

    /// What is in the directory.
    ///
    /// # Errors
    /// If it cannot be read; that there is none is no error.
    pub fn found(&self) -> Result<Vec<Found>, PinError> {
        let mut found = Vec::new();
        for name in list(&self.directory)? {
            let path = self.directory.join(&name);
            let kind = match Entry::parse(&name) {
                Entry::Maps(_) => Kind::Maps { complete: MAPS.iter().all(|map| path.join(map).exists()) },
                Entry::Link(..) => {
                    Kind::Link(self.link(&name).ok().and_then(|link| sys::link_state(link.as_fd()).ok()))
                }
                _ => Kind::Other,
            };
            found.push(Found { name, kind });
        }
        Ok(found)
    }

    /// Opens a map of `layout`.
    pub(super) fn map(&self, layout: Layout, name: &str) -> Result<MapHandle, PinError> {
        let path = self.directory.join(Entry::Maps(layout).name()).join(name);
        MapHandle::from_pinned_path(&path).map_err(|error| at(&path)(io::Error::other(error.to_string())))
    }

    /// Pins the maps of `layout`, all of them or none.
    pub(super) fn pin_maps<'a>(
        &self,
        layout: Layout,
        maps: impl IntoIterator<Item = (&'static str, BorrowedFd<'a>)>,
    ) -> Result<(), PinError> {
        let unfinished = self.directory.join(Entry::Unfinished(layout).name());
        let finished = self.directory.join(Entry::Maps(layout).name());
        remove(&unfinished)?;
        fs::create_dir(&unfinished).map_err(at(&unfinished))?;
        for (name, map) in maps {
            let path = unfinished.join(name);
            sys::pin(map, &path).map_err(at(&path))?;
        }
        remove(&finished)?;
        fs::rename(&unfinished, &finished).map_err(at(&finished))
    }

    /// Opens a link.
    pub(super) fn link(&self, name: &str) -> Result<OwnedFd, PinError> {
        let path = self.directory.join(name);
        sys::open_pin(&path).map_err(at(&path))
    }

    /// Pins a link, in the place of one that is attached to nothing any more.
    pub(super) fn pin_link(&self, hook: Hook, ifindex: u32, link: BorrowedFd<'_>) -> Result<(), PinError> {
        let path = self.directory.join(Entry::Link(hook, ifindex).name());
        remove(&path)?;
        sys::pin(link, &path).map_err(at(&path))
    }

    /// Makes a mark.
    pub(super) fn mark(&self, entry: Entry) -> Result<(), PinError> {
        let path = self.directory.join(entry.name());
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Whether there is this mark.
    pub(super) fn is_marked(&self, entry: Entry) -> bool {
        self.directory.join(entry.name()).is_dir()
    }

    /// Removes an entry; that there is none is no error. A link is attached for as long as somebody has it open.
    pub(super) fn clear(&self, entry: Entry) -> Result<(), PinError> {
        self.clear_named(&entry.name())
    }

    /// The same, by its name.
    pub(super) fn clear_named(&self, name: &str) -> Result<(), PinError> {
        remove(&self.directory.join(name))
    }

    /// Takes the programs of links off their interfaces, now.
    ///
    /// # Errors
    /// If a pin cannot be opened or removed.
    pub fn take_off(&self, links: &[(Hook, u32)]) -> Result<(), PinError> {
        let open = |(hook, ifindex): &(Hook, u32)| Ok((*hook, self.link(&Entry::Link(*hook, *ifindex).name())?));
        let opened = links.iter().map(open).collect::<Result<Vec<_>, PinError>>()?;
        quiet::detach(opened.iter().map(|(hook, link)| (*hook, link.as_fd())));
        links.iter().try_for_each(|(hook, ifindex)| self.clear(Entry::Link(*hook, *ifindex)))
    }

    /// Removes a clsact filter, and its qdisc if that is ours. Whether the filter was there.
    ///
    /// # Errors
    /// If the marks cannot be removed.
    pub fn take_off_filter(&self, ifindex: u32) -> Result<bool, PinError> {
        let path = Path::new("/dev/null");
        let any = fs::File::open(path).map_err(at(path))?;
        let found = super::repeat::remove_filter(any.as_fd(), Some(self), ifindex);
        self.clear(Entry::Qdisc(ifindex))?;
        self.clear(Entry::Filter(ifindex))?;
        Ok(found)
    }

    /// Removes the directory with all that is in it, and those above it that are empty then. Links first: maps without
    /// programs do nothing, programs without maps would be a state that nobody knows.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        let mut names = list(&self.directory)?;
        names.sort_by_key(|name| matches!(Entry::parse(name), Entry::Maps(_)));
        names.iter().try_for_each(|name| self.clear_named(name))?;
        remove(&self.directory)?;
        self.remove_directories();
        Ok(())
    }

    /// Removes the directory and those above it as far as they are empty: others may have theirs beside it.
    fn remove_directories(&self) {
        for directory in self.directory.ancestors().take(3) {
            let _ = fs::remove_dir(directory);
        }
    }

    /// The programs that the links of this directory run, by the kernel's numbers.
    ///
    /// # Errors
    /// As [`Pins::found`].
    pub fn programs(&self) -> Result<Vec<u32>, PinError> {
        let state = |found: Found| if let Kind::Link(state) = found.kind { state } else { None };
        Ok(self.found()?.into_iter().filter_map(state).map(|link: LinkState| link.program).collect())
    }
}

/// The names in a directory; none if there is no directory.
fn list(directory: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(at(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a pin, or a directory with the pins in it.
fn remove(path: &Path) -> Result<(), PinError> {
    let is_directory = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(at(path))?.is_dir(),
    };
    if !is_directory {
        return fs::remove_file(path).map_err(at(path));
    }
    for name in list(path)? {
        let pin = path.join(name);
        fs::remove_file(&pin).map_err(at(&pin))?;
    }
    fs::remove_dir(path).map_err(at(path))
}
