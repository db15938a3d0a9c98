//! The file of counters: a line with version, checksum and length, then JSON. It lies beside the control socket.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Identity;
use super::sums::{NodeSums, PortSums, WorkerSums};
use crate::control;
use crate::status::CountersStatus;

/// The first word of the file.
const NAME: &str = "podlane-counters";
/// The version of its shape. New counters do not change it; they begin at 0.
const VERSION: u32 = 1;
/// Bytes of the largest file: [`podlane_dataplane::limits::MAX_PORTS`] ports take a fraction of it.
pub const MAX_BYTES: u64 = 8 << 20;

/// Where interfaces are what they were: a kernel that has not been booted since, and a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub boot: String,
    pub network: u64,
}

impl Place {
    /// Of this process.
    pub fn here() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let network = fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
        Place { boot: boot.trim().to_owned(), network }
    }
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    pub place: Place,
    /// The daemon that saved it ended by itself, and this is its last count.
    pub ended: bool,
    pub counters: CountersStatus,
    pub node: NodeSums,
    pub workers: Vec<(u32, WorkerSums)>,
    pub ports: Vec<(Identity, PortSums)>,
    /// What the programs' counters of open ports showed then.
    #[serde(default)]
    pub programs: Vec<ProgramCounters>,
}

/// The programs' counters of a port, which go on counting while there is no daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCounters {
    /// Whose.
    pub identity: Identity,
    /// The number under which they are kept.
    pub port: u16,
    /// What they showed ([`crate::bpf::PortCounters::words`]).
    pub words: Vec<u64>,
}

impl Saved {
    /// Reads the text of the file, which is at `path`.
    pub(crate) fn read(text: &[u8], path: &Path) -> Result<Self, LoadError> {
        let path = || path.to_owned();
        let damaged = |what: &str| LoadError::Damaged { path: path(), what: what.to_owned() };
        let end =
            text.iter().take(64).position(|byte| *byte == b'\n').ok_or_else(|| LoadError::Foreign { path: path() })?;
        let (head, json) = (String::from_utf8_lossy(&text[..end]), &text[end + 1..]);
        let mut words = head.split(' ');
        if words.next() != Some(NAME) || words.next() != Some(&VERSION.to_string()) {
            return Err(LoadError::Foreign { path: path() });
        }
        if words.next() != Some(&checksum(json)) {
            return Err(damaged("its checksum is wrong"));
        }
        serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))
    }

    /// The text of the file.
    pub(crate) fn write(&self) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        Ok([format!("{NAME} {VERSION} {}\n", checksum(&json)).as_bytes(), &json].concat())
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} is no file of counters of this version", path.display())]
    Foreign { path: PathBuf },
    #[error("{} is damaged ({what})", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("{} is of another boot or another network namespace", path.display())]
    OtherPlace { path: PathBuf },
}

/// The file.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// Of an instance.
    pub fn of(instance: &str) -> Self {
        Self::at(control::run_directory().join(format!("{instance}.counters")))
    }

    pub fn at(path: PathBuf) -> Self {
        Memory { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved, if anything was.
    ///
    /// # Errors
    /// [`LoadError`]: there is a file that cannot be used.
    pub fn load(&self, place: &Place) -> Result<Option<Saved>, LoadError> {
        let path = || self.path.clone();
        let text = match self.read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| LoadError::Read { path: path(), error })?,
        };
        let saved = Saved::read(&text, &self.path)?;
        if saved.place != *place {
            return Err(LoadError::OtherPlace { path: path() });
        }
        Ok(Some(saved))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&self.path)?;
        if file.take(MAX_BYTES + 1).read_to_end(&mut text)? as u64 > MAX_BYTES {
            return Err(too_large());
        }
        Ok(text)
    }

    /// Writes it as a whole or not at all.
    ///
    /// # Errors
    /// The file system's, and for more than [`MAX_BYTES`].
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let text = saved.write()?;
        if text.len() as u64 > MAX_BYTES {
            return Err(too_large());
        }
        let new = self.path.with_extension("counters.new");
        let mut file = create(&new)?;
        file.write_all(&text)?;
        fs::rename(new, &self.path)
    }
}

/// Not through a link that somebody has put there, and for root only.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

fn checksum(json: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(json))
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it would be larger than {} MiB", MAX_BYTES >> 20))
}
