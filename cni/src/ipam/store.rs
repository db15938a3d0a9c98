//! Reservations, in files.
//!
//! ```text
//! /var/lib/podlane/ipam/lock                                       held by whoever reads and writes
//! /var/lib/podlane/ipam/last                                       where the search for addresses goes on
//! /var/lib/podlane/ipam/BOOT-ID/HASH@10.244.1.2@fd00:10:244:1::2   one attachment
//! ```
//!
//! An attachment is one file, and its name holds its addresses: they are all there or none of them is, and a look at the
//! directory shows what is taken, without reading a file. The file is written under another name and renamed, so that half
//! of one is never seen; it is on the disk ([`Reserved::persist`]) before ADD succeeds. Releasing an address removes the
//! file, which works on a full disk too.
//!
//! The directory is named after the boot of the machine (`/proc/sys/kernel/random/boot_id`): pods do not outlive that, and
//! reservations of an earlier boot are void and removed. So a power cut cannot bring back what was removed, nor can it
//! leave behind anything that counts.
//!
//! All networks that keep their data in one directory share one space of addresses: no two pods of a node have the same
//! one, even where two configurations overlap.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::range::{Lease, MOST_RANGES, Plan, RangeSet};
use crate::protocol::failure::{Failure, code};

/// Attachments of one node. Its ports are at most 511; the rest is room for what is not Podlane's.
pub const MOST_ENTRIES: usize = 4096;
/// Bytes of the largest file that is read.
const MOST_BYTES: u64 = 256 << 10;
/// Time that others may hold the lock, each of them for less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The name under which files are written before they get their own. Writers hold the lock, so one is enough.
const NEW: &str = "new";

/// What the specification calls the primary key: who is connected to what, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// Its interface.
    pub interface: String,
}

impl Attachment {
    /// A number that stands for it, the same on every day (FNV-1a, 64 bits).
    pub fn hash(&self) -> u64 {
        let parts = [&self.network, &self.container, &self.interface];
        // A byte that is in none of them ends each.
        let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0xff]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// The file of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose it is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The bridge that it is connected to.
    pub bridge: String,
    /// Its addresses. None if an IPAM plugin gave them.
    pub addresses: Vec<IpAddr>,
}

impl Entry {
    fn file_name(&self) -> String {
        let addresses: String = self.addresses.iter().map(|address| format!("@{address}")).collect();
        format!("{:016x}{addresses}", self.attachment.hash())
    }
}

/// What a file's name says: the hash of its attachment, and addresses.
fn read_name(name: &str) -> Option<(u64, Vec<IpAddr>)> {
    let mut parts = name.split('@');
    let hash = parts.next().filter(|hash| hash.len() == 16)?;
    let addresses = parts.map(|part| part.parse().ok()).collect::<Option<_>>()?;
    Some((u64::from_str_radix(hash, 16).ok()?, addresses))
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    boot: String,
}

/// A reservation that was made or found.
#[derive(Debug)]
pub struct Reserved {
    /// What the pod is given, in the order of the plan.
    pub leases: Vec<Lease>,
    /// False: the attachment had it before; then it is not this call's to give back.
    pub fresh: bool,
    path: PathBuf,
}

impl Reserved {
    /// Has it written to the disk. Takes milliseconds, and needs no lock.
    ///
    /// # Errors
    /// Code 5: the disk is full, or broken.
    pub fn persist(&self) -> Result<(), Failure> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let sync = |path: &Path| -> Result<(), Failure> {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|error| failed("write to disk", path, error))
        };
        // Both at once: a file system with a journal then writes that once.
        std::thread::scope(|scope| {
            let name = scope.spawn(|| sync(directory));
            let content = sync(&self.path);
            let panicked = || Err(Failure::new(code::IO, "writing to disk panicked"));
            content.and(name.join().unwrap_or_else(|_| panicked()))
        })
    }
}

fn failed(action: &str, path: &Path, error: io::Error) -> Failure {
    let path = path.display();
    let cure = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "make room there, or name another directory as \"dataDir\"",
        Some(libc::EROFS | libc::EACCES) => "name a directory that can be written as \"dataDir\"",
        _ => "",
    };
    Failure::new(code::IO, format!("cannot {action} {path}: {error}")).with_details(cure)
}

/// Path, hash and addresses of files.
type Listed = Vec<(PathBuf, u64, Vec<IpAddr>)>;

impl Store {
    /// The reservations of this boot of the machine in `directory`, which need not be there yet.
    ///
    /// # Errors
    /// Code 5: the kernel does not tell its boot.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let boot = fs::read_to_string(BOOT_ID).map_err(|error| failed("read", Path::new(BOOT_ID), error))?;
        Ok(Store::of_boot(directory, boot.trim()))
    }

    /// The reservations of a boot.
    pub fn of_boot(directory: &Path, boot: &str) -> Self {
        Store { directory: directory.to_owned(), boot: boot.to_owned() }
    }

    fn current(&self) -> PathBuf {
        self.directory.join(&self.boot)
    }

    /// Reserves an address of each set of `plan`, or those that are `wanted` by name. An attachment that has some already
    /// gets them again. Without a plan there is an entry, and no address.
    ///
    /// # Errors
    /// Code 102: none is left, or a wanted one is taken or not in any range; 5: the directory cannot be written, which
    /// leaves it as it was; 11: the lock was not to be had.
    pub fn reserve(
        &self,
        attachment: &Attachment,
        bridge: &str,
        plan: Option<&Plan>,
        wanted: &[IpAddr],
    ) -> Result<Reserved, Failure> {
        let _lock = self.lock(true)?;
        self.begin_boot()?;
        let listed = self.list()?;
        if let Some((path, entry)) = find_in(&listed, attachment) {
            let leases = plan.map_or(Ok(Vec::new()), |plan| known_leases(plan, &entry))?;
            return Ok(Reserved { leases, fresh: false, path });
        }
        if listed.len() >= MOST_ENTRIES {
            let message = format!("{MOST_ENTRIES} containers are connected; no more fit on a node");
            return Err(Failure::new(code::NO_ADDRESS, message));
        }
        let taken: HashSet<IpAddr> = listed.into_iter().flat_map(|(_, _, addresses)| addresses).collect();
        let leases = plan.map_or(Ok(Vec::new()), |plan| self.choose(plan, wanted, &taken))?;
        let addresses = leases.iter().map(|lease| lease.address.addr()).collect();
        let entry = Entry { attachment: attachment.clone(), bridge: bridge.to_owned(), addresses };
        let path = self.current().join(entry.file_name());
        let text = serde_json::to_vec(&entry).map_err(|error| failed("write", &path, error.into()))?;
        write_whole(&path, &text)?;
        Ok(Reserved { leases, fresh: true, path })
    }

    /// Chooses addresses, and remembers where.
    fn choose(&self, plan: &Plan, wanted: &[IpAddr], taken: &HashSet<IpAddr>) -> Result<Vec<Lease>, Failure> {
        let no = |message: String| Err(Failure::new(code::NO_ADDRESS, message));
        let mut last = self.last();
        let mut leases = Vec::new();
        let mut open: Vec<IpAddr> = wanted.to_vec();
        for set in plan.sets() {
            let named = open.iter().position(|address| set.named(*address).is_some());
            let lease = match named.map(|index| open.swap_remove(index)) {
                Some(address) if taken.contains(&address) => {
                    return no(format!("{address} was asked for, and another pod has it"));
                }
                Some(address) => set.named(address),
                None => set.next(last.get(&set.key()).copied(), taken),
            };
            let Some(lease) = lease else { return Err(exhausted(set)) };
            last.insert(set.key(), lease.address.addr());
            leases.push(lease);
        }
        if let Some(address) = open.first() {
            return no(format!("{address} was asked for, and is in none of the ranges, or a gateway's"));
        }
        // Those of configurations that there were once are forgotten when there are too many.
        if last.len() > MOST_RANGES {
            last.retain(|key, _| plan.sets().iter().any(|set| set.key() == *key));
        }
        let text = serde_json::to_vec(&last).unwrap_or_default();
        write_over(&self.directory.join("last"), text)?;
        Ok(leases)
    }

    /// Whether an address of each set is left, for STATUS.
    ///
    /// # Errors
    /// Code 102: none is; 5 and 11: the directory is not to be had.
    pub fn has_room(&self, plan: &Plan) -> Result<(), Failure> {
        let listed = {
            let _lock = self.lock(true)?;
            self.list()?
        };
        let taken: HashSet<IpAddr> = listed.into_iter().flat_map(|(_, _, addresses)| addresses).collect();
        let full = plan.sets().iter().find(|set| set.next(None, &taken).is_none());
        full.map_or(Ok(()), |set| Err(exhausted(set)))
    }

    /// Where the search goes on, by set. A file that cannot be read only costs that addresses are reused sooner.
    fn last(&self) -> BTreeMap<IpAddr, IpAddr> {
        let text = read_small(&self.directory.join("last")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The entry of an attachment.
    ///
    /// # Errors
    /// Code 5 and 11: the directory cannot be read.
    pub fn find(&self, attachment: &Attachment) -> Result<Option<Entry>, Failure> {
        let _lock = self.lock(false)?;
        Ok(find_in(&self.list()?, attachment).map(|(_, entry)| entry))
    }

    /// Removes the entry of an attachment; its addresses are free. False: there was none.
    ///
    /// # Errors
    /// Code 5 and 11: the directory cannot be read or written.
    pub fn release(&self, attachment: &Attachment) -> Result<bool, Failure> {
        let _lock = self.lock(false)?;
        let Some((path, _)) = find_in(&self.list()?, attachment) else { return Ok(false) };
        fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
        Ok(true)
    }

    /// Every entry of a network.
    ///
    /// # Errors
    /// Code 5 and 11: the directory cannot be read.
    pub fn of_network(&self, network: &str) -> Result<Vec<Entry>, Failure> {
        let _lock = self.lock(false)?;
        let entries = self.list()?.into_iter().filter_map(|(path, ..)| read_entry(&path));
        Ok(entries.filter(|entry| entry.attachment.network == network).collect())
    }

    /// The files of this boot.
    fn list(&self) -> Result<Listed, Failure> {
        let directory = self.current();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failed("read", &directory, error))?,
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &directory, error))?;
            if let Some((hash, addresses)) = entry.file_name().to_str().and_then(read_name) {
                listed.push((entry.path(), hash, addresses));
            }
        }
        Ok(listed)
    }

    /// Makes the directory of this boot, and removes those of earlier ones.
    fn begin_boot(&self) -> Result<(), Failure> {
        let current = self.current();
        if current.is_dir() {
            return Ok(());
        }
        make_directory(&current)?;
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_old = name.to_str().is_some_and(|name| is_boot_id(name) && name != self.boot);
            if is_old && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // What cannot be removed is void all the same.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed("write to disk", &self.directory, error))
    }

    /// Holds the lock until what it returns is dropped. `None`: there is no directory and none was to be made, so nothing
    /// is there to be guarded.
    fn lock(&self, make: bool) -> Result<Option<Flock<File>>, Failure> {
        let path = self.directory.join("lock");
        let open = || {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path)
        };
        let opened = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if !make {
                    return Ok(None);
                }
                make_directory(&self.directory)?;
                open()
            }
            opened => opened,
        };
        let file = opened.map_err(|error| failed("open", &path, error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((file, Errno::EAGAIN)) => wait_for(file, &path).map(Some),
            Err((_, error)) => Err(failed("lock", &path, error.into())),
        }
    }
}

/// Waits for the lock in a thread of its own, which can be left behind if it takes too long.
fn wait_for(file: File, path: &Path) -> Result<Flock<File>, Failure> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)));
    match receive.recv_timeout(PATIENCE) {
        Ok(locked) => locked.map_err(|error| failed("lock", path, error.into())),
        Err(_) => {
            let message = format!("another process has held {} for {} s", path.display(), PATIENCE.as_secs());
            Err(Failure::new(code::TRY_AGAIN, message))
        }
    }
}

fn find_in(listed: &Listed, attachment: &Attachment) -> Option<(PathBuf, Entry)> {
    let hash = attachment.hash();
    let of_hash = listed.iter().filter(|(_, found, _)| *found == hash);
    let mut entries = of_hash.map(|(path, _, addresses)| {
        // A file that somebody has emptied is the attachment's all the same: its name says so.
        let from_name =
            || Entry { attachment: attachment.clone(), bridge: String::new(), addresses: addresses.clone() };
        (path.clone(), read_entry(path).unwrap_or_else(from_name))
    });
    entries.find(|(_, entry)| entry.attachment == *attachment)
}

fn exhausted(set: &RangeSet) -> Failure {
    let ranges: Vec<String> = set.ranges().iter().map(|range| format!("{}–{}", range.first, range.last)).collect();
    Failure::new(code::NO_ADDRESS, format!("every address of {} is taken", ranges.join(", ")))
        .with_details("remove pods, or give the node a larger network")
}

/// The leases of an attachment that comes again: its addresses, if the configuration still has them.
fn known_leases(plan: &Plan, entry: &Entry) -> Result<Vec<Lease>, Failure> {
    let lease = |address: &IpAddr| plan.sets().iter().find_map(|set| set.named(*address));
    let leases: Option<Vec<Lease>> = entry.addresses.iter().map(lease).collect();
    leases.filter(|leases| leases.len() == plan.sets().len()).ok_or_else(|| {
        let addresses: Vec<String> = entry.addresses.iter().map(IpAddr::to_string).collect();
        let addresses = addresses.join(", ");
        Failure::new(
            code::EXISTS,
            format!("the container has {addresses} already, which the configuration does not give"),
        )
        .with_details("DEL it first")
    })
}

fn is_boot_id(name: &str) -> bool {
    name.len() == 36 && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| failed("make", path, error))
}

/// Writes a file so that it is there as a whole or not at all.
fn write_whole(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let new = path.with_file_name(NEW);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed("write", path, error)
    })
}

/// Writes a file over what was there, with blanks up to its old end. That half of it is seen does not matter for what is
/// written so; replacing it would make some file systems write to the disk at once.
fn write_over(path: &Path, mut text: Vec<u8>) -> Result<(), Failure> {
    let mut write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let old = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(MOST_BYTES as usize);
        text.resize(text.len().max(old), b' ');
        file.write_all(&text)
    };
    write().map_err(|error| failed("write", path, error))
}

fn read_small(path: &Path) -> Option<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}

/// What is in a file. The addresses are those of its name, which are the ones that count.
fn read_entry(path: &Path) -> Option<Entry> {
    let mut entry: Entry = serde_json::from_slice(&read_small(path)?).ok()?;
    (_, entry.addresses) = read_name(path.file_name()?.to_str()?)?;
    Some(entry)
}
