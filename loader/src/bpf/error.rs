//! What can go wrong between the loader and the kernel's BPF machinery, each with its cure.

use std::io;

use super::pins::PinError;

/// Loading the programs, or reading and writing their maps, failed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel does not let this process load BPF programs.
    #[error("the XDP program {program} may not be loaded: run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Permission {
        /// Name of the program.
        program: &'static str,
    },
    /// The process may not open as many files as it takes.
    #[error("too many open files for the XDP program {program}: raise the limit (ulimit -n 65536, LimitNOFILE=65536)")]
    Descriptors {
        /// Name of the program.
        program: &'static str,
    },
    /// The kernel refused a program or one of its maps; libbpf's own words are in the log.
    #[error("the kernel refused the XDP program {program}: {source}; Podlane needs Linux 6.1 or newer")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The loader and the program were not built from the same sources.
    #[error(
        "the BPF map {map} has {found} bytes per element where {expected} were expected: rebuild the podlane binary"
    )]
    Layout {
        /// Name of the map.
        map: String,
        /// Bytes of key and value in the program.
        found: u32,
        /// Bytes of key and value in the loader.
        expected: u32,
    },
    /// A table has more entries than its BPF map can take.
    #[error("{count} {table}, but the XDP program has room for {limit}: the snapshot is not used")]
    Full {
        /// What the entries are, in the plural.
        table: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// Reading or writing a map failed.
    #[error("the BPF map of {table} cannot be accessed: {source}")]
    Map {
        /// What the entries are, in the plural.
        table: &'static str,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// A pin cannot be read or made.
    #[error("what outlives the daemon cannot be kept: {0}")]
    Pin(#[from] PinError),
    /// A pinned map is not what it should be.
    #[error(
        "the pinned BPF map {map} is not Podlane's: remove it, and all that is pinned with it, by `podlane detach`"
    )]
    Pinned {
        /// Its name.
        map: String,
    },
    /// A socket was offered for a queue, port or worker beyond the limits.
    #[error("{what} {number} is beyond the limit of {limit}")]
    Beyond {
        /// Port, queue or worker.
        what: &'static str,
        /// The number that was given.
        number: usize,
        /// Numbers are below this.
        limit: usize,
    },
}

/// Attaching the program to an interface failed. The port is left to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another XDP program is there; there can be one per interface.
    #[error("{name} already has XDP program id {id} ({program}); detach it or set `skip = [\"{name}\"]`")]
    Foreign {
        /// The interface.
        name: String,
        /// The kernel's number of that program.
        id: u32,
        /// Its name, as far as the kernel keeps it (15 characters).
        program: String,
    },
    /// The interface was removed.
    #[error("{name} is gone")]
    Gone {
        /// The interface.
        name: String,
    },
    /// The driver has no native XDP.
    #[error(
        "the driver of {name} has no native XDP for multi-buffer programs; set `xdp_mode = \"generic\"` to run the slower \
         generic mode, or `skip = [\"{name}\"]`"
    )]
    NoNativeXdp {
        /// The interface.
        name: String,
    },
    /// The interface's offloads or queues stand in the way (`ENOSPC`).
    #[error(
        "{name} has fewer receive queues than its peer or the node's CPUs have transmit queues; give both ends of a veth \
         pair the same number (ip link add … numtxqueues N numrxqueues N, or ethtool -L), or set `skip = [\"{name}\"]`"
    )]
    Queues {
        /// The interface.
        name: String,
    },
    /// The driver cannot run XDP at the interface's present settings (`ERANGE`, `EINVAL`).
    #[error(
        "the driver of {name} refuses XDP at its present settings: its MTU or its peer's may be too large for XDP, or LRO \
         is on (ethtool -K {name} lro off); change them or set `skip = [\"{name}\"]`"
    )]
    Settings {
        /// The interface.
        name: String,
    },
    /// Not enough capabilities.
    #[error("attaching to {name} is not permitted: run as root or with CAP_BPF and CAP_NET_ADMIN")]
    Permission {
        /// The interface.
        name: String,
    },
    /// Generic mode was asked for and cannot be made safe on this kernel.
    #[error(
        "{name} cannot be served in generic mode: this kernel does not let an XDP program see whether a frame is a \
         segmentation super-frame, which AF_XDP would corrupt (Linux 6.2 or newer with BTF is needed: {source}); set \
         `xdp_mode = \"native\"` or `skip = [\"{name}\"]`"
    )]
    NoGenericMode {
        /// The interface.
        name: String,
        /// Why the generic program did not load.
        source: Box<BpfError>,
    },
    /// The kernel path was asked for and its program cannot be loaded.
    #[error(
        "{name} cannot be served by the kernel path: {source}; set `path = \"af_xdp\"` for it, or `skip = [\"{name}\"]`"
    )]
    NoKernelPath {
        /// The interface.
        name: String,
        /// Why the tc program did not load.
        source: Box<BpfError>,
    },
    /// Anything else.
    #[error("attaching to {name} failed: {source}; set `skip = [\"{name}\"]` to leave it to the kernel")]
    Other {
        /// The interface.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}
