//! The configuration: read from a TOML file and the command line, judged as a whole, and from then on typed.
//!
//! [`Settings`] are what a person said; [`Config`] is what Podlane works with. Between the two stands [`Config::resolve`],
//! which collects every mistake instead of stopping at the first. After it nothing of a configuration can be wrong except
//! its relation to the node (does the bridge exist?), which [`crate::check`] looks at.

mod cidr;
mod cpus;
mod effective;
mod file;
mod judge;
mod names;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use judge::Judge;
use podlane_dataplane::limits::CHUNK_SIZE;

use crate::bpf::pins::Root;
use crate::engine::ZeroCopy;
use crate::large::Wish;
use crate::log::{Format, LogFilter};

pub use cidr::BadCidr;
pub use cpus::{BadCpuList, Host, MAX_CPU, format_list};
pub use file::{KEYS, nearest};
pub use names::{
    BadInstanceName, BadInterfaceName, InstanceName, InterfaceName, MAX_INSTANCE_NAME, MAX_INTERFACE_NAME,
};
pub use settings::{ConfigError, Given, Origin, Problem, Settings};

/// The file that is read if none is named and this one exists.
pub const DEFAULT_FILE: &str = "/etc/podlane/podlane.toml";
/// Fewest UMEM frames.
pub const MIN_FRAMES: u32 = 2048;
/// UMEM frames if none are given: 64 MiB.
pub const DEFAULT_FRAMES: u32 = 16_384;
/// Most UMEM frames: 1 GiB.
pub const MAX_FRAMES: u32 = 262_144;
/// Workers if none are given and the machine has that many CPUs. Workers sleep when idle, so a CPU is not lost to one; but
/// each adds rings to every port, and four forward more than the uplinks of common nodes carry.
pub const DEFAULT_WORKERS: usize = 4;
/// Microseconds that a worker without traffic keeps looking before it sleeps, if none are given.
pub const DEFAULT_IDLE_SPIN_US: u32 = 50;
/// Most microseconds of looking.
pub const MAX_IDLE_SPIN_US: u32 = 1_000_000;

/// How XDP programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// By the driver, before an skb exists; where a driver cannot, the port stays with the kernel.
    #[default]
    Native,
    /// By the stack, after the skb was built: works with every driver, and super-frames are left to the kernel.
    Generic,
}

/// Whether checksums of transmitted frames may be left to the kernel through AF_XDP TX metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ChecksumMetadata {
    /// Where the kernel has it (6.8 and later), and in software otherwise.
    #[default]
    Auto,
    /// Always in software.
    Off,
}

/// What a person says of the path of a port's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PathChoice {
    /// Through AF_XDP sockets and a worker.
    #[default]
    AfXdp,
    /// Repeated in the kernel by the tc program.
    Kernel,
    /// AF_XDP where a port's sockets are zero-copy, the kernel elsewhere.
    Auto,
}

impl PathChoice {
    /// The words for them, in the order of their definition.
    pub const WORDS: [(&'static str, PathChoice); 3] =
        [("af_xdp", PathChoice::AfXdp), ("kernel", PathChoice::Kernel), ("auto", PathChoice::Auto)];

    /// The words alone.
    pub fn words() -> [&'static str; 3] {
        Self::WORDS.map(|(word, _)| word)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::words()[self as usize]
    }
}

/// What a pod's port may send from, where its addresses are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuardChoice {
    /// [`GuardChoice::Cluster`] for the pods that Podlane's own network plugin connected, [`GuardChoice::Off`] for all others:
    /// a node that another plugin set up goes on allowing what it allowed.
    #[default]
    Auto,
    /// Anything.
    Off,
    /// Its own MAC addresses; of the cluster's IP addresses, its own.
    Cluster,
    /// Its own MAC and IP addresses.
    Strict,
}

impl GuardChoice {
    /// The words for them.
    pub const WORDS: [(&'static str, GuardChoice); 4] = [
        ("auto", GuardChoice::Auto),
        ("off", GuardChoice::Off),
        ("cluster", GuardChoice::Cluster),
        ("strict", GuardChoice::Strict),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Name of this daemon.
    pub instance: InstanceName,
    /// The path of all ports that `port_paths` does not name.
    pub path: PathChoice,
    /// The path of single ports, by their interface.
    pub port_paths: BTreeMap<InterfaceName, PathChoice>,
    /// The source guard of all ports that `port_guards` does not name.
    pub source_guard: GuardChoice,
    /// The source guard of single ports, by their interface.
    pub port_guards: BTreeMap<InterfaceName, GuardChoice>,
    /// Whether packets are taken past netfilter rules that may drop, hold or change them.
    pub bypass_netfilter: bool,
    /// The bridge whose members are pods.
    pub bridge: InterfaceName,
    /// Interfaces towards other nodes; empty (said explicitly in the file) for a node that serves only its own pods.
    pub uplinks: Vec<InterfaceName>,
    /// Networks of the cluster's pods, without overlaps; empty: the node's own pod subnets.
    pub cluster_cidrs: Vec<IpNet>,
    /// The CPU of each worker; its length is the number of workers, 1 to [`podlane_dataplane::limits::MAX_WORKERS`].
    pub cpus: Vec<usize>,
    /// UMEM frames of [`CHUNK_SIZE`] bytes; a power of two from [`MIN_FRAMES`] to [`MAX_FRAMES`].
    pub frames: u32,
    /// Where metrics are told over HTTP; `None` for nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Where the container runtime keeps its CNI results, which tell pods' names; `None` if they are not read.
    pub cni_cache: Option<PathBuf>,
    /// Where programs and maps are pinned, so that they outlive the daemon.
    pub bpffs: Root,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
    /// Whether uplinks' sockets are zero-copy.
    pub zero_copy: ZeroCopy,
    /// Whether checksums may be left to TX metadata.
    pub checksum_metadata: ChecksumMetadata,
    /// How long a worker without traffic keeps looking before it sleeps.
    pub idle_spin: Duration,
    /// Large frames inside of the node.
    pub large: Wish,
    /// Bridge members that are left to the kernel.
    pub skip: Vec<InterfaceName>,
    /// What is logged.
    pub log: LogFilter,
    /// How its lines look; `None` for finding out.
    pub log_format: Option<Format>,
    /// Sentences about what is allowed but perhaps not meant; for the log and `podlane status`.
    pub notes: Vec<String>,
    /// What it was made of, for reading it again.
    pub said: Said,
}

/// What a configuration was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The command line's settings, which win.
    pub command_line: Settings,
    /// The file that the command line names.
    pub file: Option<PathBuf>,
    /// All settings with their places, the file's under the command line's.
    pub all: Settings,
}

impl Config {
    /// Number of worker threads.
    pub fn workers(&self) -> usize {
        self.cpus.len()
    }

    /// Bytes of the UMEM, all of it locked memory.
    pub fn umem_bytes(&self) -> u64 {
        u64::from(self.frames) * CHUNK_SIZE as u64
    }

    /// Reads the file (`file`, or [`DEFAULT_FILE`] if that exists) and puts the command line's settings over it.
    ///
    /// # Errors
    /// Every mistake of both, each with its place.
    pub fn load(command_line: Settings, file: Option<&Path>, host: &Host) -> Result<Config, ConfigError> {
        let said = Said { command_line: command_line.clone(), file: file.map(Path::to_owned), ..Said::default() };
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let config = match file {
            None => Config::resolve(command_line, Vec::new(), None, host),
            Some(path) => {
                let text = file::load(path).map_err(|problem| ConfigError::new(Some(path), vec![problem]))?;
                Config::from_text(command_line, &text, path, host)
            }
        };
        config.map(|config| Config { said: Said { all: config.said.all, ..said }, ..config })
    }

    /// Reads the same again: the file as it is now, under what the command line said then.
    ///
    /// # Errors
    /// Every mistake, each with its place. A file that was read and is gone is one: nobody means all of its settings to be
    /// forgotten.
    pub fn again(&self, host: &Host) -> Result<Config, ConfigError> {
        let file = self.said.file.as_deref().or(self.file.as_deref());
        if let Some(path) = file {
            file::can_be_read_again(path).map_err(|problem| ConfigError::new(Some(path), vec![problem]))?;
        }
        let config = Config::load(self.said.command_line.clone(), file, host)?;
        Ok(Config { said: Said { file: self.said.file.clone(), ..config.said }, ..config })
    }

    /// Like [`Config::load`], of a file that was read already; `path` is only named in messages.
    ///
    /// # Errors
    /// Every mistake, each with its place.
    pub fn from_text(command_line: Settings, text: &str, path: &Path, host: &Host) -> Result<Config, ConfigError> {
        let (settings, problems) = file::read(text);
        Config::resolve(command_line.over(settings), problems, Some(path), host)
    }

    /// Judges settings as a whole; `problems` are those that were found while reading them.
    ///
    /// # Errors
    /// Every mistake, each with its place.
    pub fn resolve(
        settings: Settings,
        problems: Vec<Problem>,
        file: Option<&Path>,
        host: &Host,
    ) -> Result<Config, ConfigError> {
        // A mistake in a key also makes it look absent; only a readable file can lack something.
        let readable = problems.is_empty();
        let all = settings.clone();
        let mut judge = Judge { problems };
        let path = judge.choice(settings.path, &PathChoice::WORDS);
        let port_paths = settings.port_paths.unwrap_or_default();
        let port_paths = judge.ports(port_paths, &PathChoice::WORDS, ("PATH", "kernel"));
        let source_guard = judge.choice(settings.source_guard, &GuardChoice::WORDS);
        let port_guards = settings.port_guards.unwrap_or_default();
        let port_guards = judge.ports(port_guards, &GuardChoice::WORDS, ("GUARD", "off"));
        let instance = settings.instance.map_or_else(|| Some(InstanceName::default()), |name| judge.parse(&name));
        let (bridge, uplinks) = judge.interfaces(settings.bridge, settings.uplinks, readable);
        let skip = judge.skip(settings.skip.unwrap_or_default(), &uplinks);
        let cluster_cidrs = judge.cidrs(settings.cluster_cidrs.unwrap_or_default());
        let mut notes = Vec::new();
        let cpus = judge.cpus(settings.workers, settings.cpus, host, &mut notes);
        let frames = judge.frames(settings.frames);
        let spin = judge.number(settings.idle_spin_us, 0, MAX_IDLE_SPIN_US, "microseconds");
        let large = judge.large(settings.big_tcp, settings.local_mtu);
        let metrics_address = judge.metrics_address(settings.metrics_address);
        let cni_cache = judge.cni_cache(settings.cni_cache);
        let bpffs = judge.bpffs(settings.bpffs);
        let xdp_mode = judge.choice(settings.xdp_mode, &[("native", XdpMode::Native), ("generic", XdpMode::Generic)]);
        let zero_copy = [("auto", ZeroCopy::Auto), ("require", ZeroCopy::Require), ("off", ZeroCopy::Off)];
        let zero_copy = judge.choice(settings.zero_copy, &zero_copy);
        let checksum_metadata = judge
            .choice(settings.checksum_metadata, &[("auto", ChecksumMetadata::Auto), ("off", ChecksumMetadata::Off)]);
        let log = settings.log.map_or_else(|| Some(LogFilter::default()), |log| judge.parse(&log));
        let log_format = judge.choice(settings.log_format, &Format::WORDS);
        match (instance, bridge) {
            (Some(instance), Some(bridge)) if judge.problems.is_empty() => Ok(Config {
                file: file.map(Path::to_owned),
                instance,
                path: path.unwrap_or_default(),
                port_paths,
                source_guard: source_guard.unwrap_or_default(),
                port_guards,
                bypass_netfilter: settings.bypass_netfilter.is_some_and(|given| given.value),
                bridge,
                uplinks,
                cluster_cidrs,
                cpus,
                frames: frames.unwrap_or(DEFAULT_FRAMES),
                xdp_mode: xdp_mode.unwrap_or_default(),
                zero_copy: zero_copy.unwrap_or(ZeroCopy::Auto),
                checksum_metadata: checksum_metadata.unwrap_or_default(),
                idle_spin: Duration::from_micros(spin.unwrap_or(DEFAULT_IDLE_SPIN_US).into()),
                large,
                metrics_address,
                cni_cache,
                bpffs,
                skip,
                log: log.unwrap_or_default(),
                log_format: log_format.flatten(),
                notes,
                said: Said { all, ..Said::default() },
            }),
            _ => Err(ConfigError::new(file, judge.problems)),
        }
    }
}

#[cfg(test)]
mod tests;
