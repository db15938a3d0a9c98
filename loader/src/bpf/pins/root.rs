//! Where bpffs is mounted.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::statfs::{FsType, statfs};

/// Where the kernel's documentation, systemd and everybody else has it.
const USUAL: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (`linux/magic.h`).
const MAGIC: FsType = FsType(0xcafe_4a11);

/// Where to look for bpffs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Root {
    /// Where it is mounted.
    #[default]
    Found,
    /// There.
    At(PathBuf),
    /// Nowhere: nothing outlives the daemon.
    Off,
}

/// A text does not say where bpffs is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} does not begin with /; write a directory on bpffs with its whole path, such as \"/sys/fs/bpf\", or \"auto\" or \
     \"off\""
)]
pub struct BadRoot(pub String);

impl FromStr for Root {
    type Err = BadRoot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Root::Found),
            "off" => Ok(Root::Off),
            path if path.starts_with('/') => Ok(Root::At(path.into())),
            other => Err(BadRoot(other.to_owned())),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Root::Found => formatter.write_str("auto"),
            Root::At(path) => write!(formatter, "{}", path.display()),
            Root::Off => formatter.write_str("off"),
        }
    }
}

/// There is no bpffs to pin to.
#[derive(Debug, thiserror::Error)]
pub enum NoBpffs {
    /// It is not mounted.
    #[error("bpffs is not mounted here: mount -t bpf bpf /sys/fs/bpf, or let a container have the node's /sys/fs/bpf")]
    NotMounted,
    /// The directory that was named is something else.
    #[error("{path} is not on bpffs: name a directory where it is mounted (mount -t bpf bpf {path})", path = .0.display())]
    NotBpffs(PathBuf),
    /// It was switched off.
    #[error("bpffs = \"off\" in the configuration")]
    Off,
    /// It cannot be found out.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Finds the directory under which Podlane pins.
///
/// # Errors
/// [`NoBpffs`].
pub fn find_root(root: &Root) -> Result<PathBuf, NoBpffs> {
    match root {
        Root::Off => Err(NoBpffs::Off),
        Root::At(path) if is_bpffs(path) => Ok(path.clone()),
        Root::At(path) => Err(NoBpffs::NotBpffs(path.clone())),
        Root::Found => {
            let path = Path::new("/proc/self/mountinfo");
            let text = fs::read_to_string(path);
            let text = text.map_err(|source| NoBpffs::Unreadable { path: path.to_owned(), source })?;
            // Something else may have been mounted over one of them.
            mounts(&text).into_iter().find(|path| is_bpffs(path)).ok_or(NoBpffs::NotMounted)
        }
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == MAGIC)
}

/// Where `/proc/self/mountinfo` (proc_pid_mountinfo(5)) has bpffs mounted, the usual place first.
fn mounts(text: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (fields, source) = line.split_once(" - ")?;
            let place = fields.split(' ').nth(4)?;
            (source.split(' ').next() == Some("bpf")).then(|| PathBuf::from(unescaped(place)))
        })
        .collect();
    found.sort_by_key(|path| path != Path::new(USUAL));
    found
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(text: &str) -> String {
    let plain = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    plain.replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_is_found_among_the_mounts() {
        let text = "23 28 0:21 / /sys rw,nosuid - sysfs sysfs rw\n\
                    90 28 0:40 / /run/my\\040bpf rw shared:7 master:1 - bpf none rw,mode=700\n\
                    31 23 0:26 / /sys/fs/bpf rw,nosuid,nodev shared:9 - bpf bpf rw,mode=700\n\
                    32 23 0:27 / /mnt/bpf rw - ext4 /dev/bpf rw\n";
        assert_eq!(mounts(text), [Path::new(USUAL), Path::new("/run/my bpf")]);
        assert_eq!(mounts("23 28 0:21 / /sys rw - sysfs sysfs rw\nnonsense\n"), [] as [PathBuf; 0]);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for root in [Root::Found, Root::Off, Root::At("/sys/fs/bpf".into())] {
            assert_eq!(root.to_string().parse(), Ok(root));
        }
        assert_eq!("bpf".parse::<Root>(), Err(BadRoot("bpf".to_owned())));
    }

    #[test]
    fn another_file_system_is_refused_and_off_is_off() {
        assert!(matches!(find_root(&Root::At("/proc".into())), Err(NoBpffs::NotBpffs(_))));
        assert!(matches!(find_root(&Root::At("/nowhere".into())), Err(NoBpffs::NotBpffs(_))));
        assert!(matches!(find_root(&Root::Off), Err(NoBpffs::Off)));
    }
}
