//! What the kernel must allow this process: capabilities and locked memory.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

/// The capabilities without which `podlane run` cannot work, and what each is for.
pub const NEEDED_CAPABILITIES: [(Capability, &str); 4] = [
    (Capability::CAP_NET_ADMIN, "attach XDP programs and make the host port"),
    (Capability::CAP_NET_RAW, "open AF_XDP sockets"),
    (Capability::CAP_BPF, "load XDP programs and their maps"),
    (Capability::CAP_PERFMON, "let the kernel's verifier follow their pointers"),
];

/// The needed capabilities that this process lacks (in its effective set), by name. All of them if the kernel does not tell.
pub fn missing_capabilities() -> Vec<&'static str> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    missing_of(&held)
}

pub(super) fn missing_of(held: &CapsHashSet) -> Vec<&'static str> {
    NEEDED_CAPABILITIES.iter().filter(|(needed, _)| !held.contains(needed)).map(|(needed, _)| name(*needed)).collect()
}

fn name(capability: Capability) -> &'static str {
    match capability {
        Capability::CAP_NET_ADMIN => "CAP_NET_ADMIN",
        Capability::CAP_NET_RAW => "CAP_NET_RAW",
        Capability::CAP_BPF => "CAP_BPF",
        Capability::CAP_PERFMON => "CAP_PERFMON",
        _ => "another capability",
    }
}

/// How to get capabilities, as the end of a sentence.
pub(super) fn capability_cure() -> String {
    let names: Vec<_> = NEEDED_CAPABILITIES.iter().map(|(needed, _)| name(*needed)).collect();
    format!(
        "run it as root, or with AmbientCapabilities={} in its systemd unit, or with these added in the pod's \
         securityContext",
        names.join(" ")
    )
}

/// Whether `needed` bytes may be locked. UMEM is the only locked memory: since Linux 5.11 BPF maps do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memlock {
    /// The limit does not apply: `CAP_IPC_LOCK` (`xdp_umem_account_pages`, `net/xdp/xdp_umem.c`).
    Unlimited,
    /// The limit is high enough.
    Enough {
        /// Bytes.
        limit: u64,
    },
    /// The limit is too low, and this process may raise it itself.
    Raisable {
        /// Bytes, up to the hard limit or with `CAP_SYS_RESOURCE` beyond.
        limit: u64,
    },
    /// The limit is too low.
    TooLow {
        /// The hard limit, bytes.
        limit: u64,
    },
}

impl Memlock {
    /// Asks the kernel.
    pub fn read(needed: u64) -> Self {
        let held = caps::read(None, CapSet::Effective).unwrap_or_default();
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((0, 0));
        Self::judge(needed, soft, hard, &held)
    }

    pub(super) fn judge(needed: u64, soft: rlim_t, hard: rlim_t, held: &CapsHashSet) -> Self {
        let reaches = |limit: rlim_t| limit == RLIM_INFINITY || limit >= needed;
        if held.contains(&Capability::CAP_IPC_LOCK) {
            Memlock::Unlimited
        } else if reaches(soft) {
            Memlock::Enough { limit: soft }
        } else if reaches(hard) || held.contains(&Capability::CAP_SYS_RESOURCE) {
            Memlock::Raisable { limit: soft }
        } else {
            Memlock::TooLow { limit: hard }
        }
    }

    /// Raises this process's limit to `needed` bytes if that is necessary and possible.
    ///
    /// # Errors
    /// The hard limit in bytes, if it is too low.
    pub fn ensure(needed: u64) -> Result<(), u64> {
        match Self::read(needed) {
            Memlock::Unlimited | Memlock::Enough { .. } => Ok(()),
            Memlock::TooLow { limit } => Err(limit),
            Memlock::Raisable { limit } => {
                let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|_| limit)?;
                setrlimit(Resource::RLIMIT_MEMLOCK, needed, hard.max(needed)).map_err(|_| limit)
            }
        }
    }
}

/// How to get locked memory, as the end of a sentence.
pub(super) const MEMLOCK_CURE: &str = "raise the limit (LimitMEMLOCK=infinity in the systemd unit, `ulimit -l unlimited` in \
                                       a shell), add CAP_IPC_LOCK, or lower `frames`";

/// Bytes for people, in MiB where they are at least one.
pub(super) fn mebibytes(bytes: u64) -> String {
    match bytes {
        RLIM_INFINITY => "no limit".to_owned(),
        0x10_0000.. => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}
