//! What a person said, before anybody judged it: the same settings from the file and from the command line, each value with
//! the place where it was written, so that a complaint can point there.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file: line (from 1) and key.
    Line(usize, &'static str),
    /// On the command line: the option with its dashes.
    Option(&'static str),
    /// The file itself, which the sentence names.
    File,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub origin: Origin,
}

/// Everything that can be set. `None` means that nobody set it; an empty list means that somebody set it to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `instance`
    pub instance: Option<Given<String>>,
    /// `path`
    pub path: Option<Given<String>>,
    /// `port_paths`, each `IFACE=PATH`
    pub port_paths: Option<Vec<Given<String>>>,
    /// `source_guard`
    pub source_guard: Option<Given<String>>,
    /// `port_guards`, each `IFACE=GUARD`
    pub port_guards: Option<Vec<Given<String>>>,
    /// `bypass_netfilter`
    pub bypass_netfilter: Option<Given<bool>>,
    /// `bridge`
    pub bridge: Option<Given<String>>,
    /// `uplinks`
    pub uplinks: Option<Vec<Given<String>>>,
    /// `cluster_cidrs`
    pub cluster_cidrs: Option<Vec<Given<String>>>,
    /// `workers`
    pub workers: Option<Given<i64>>,
    /// `cpus`, in the list format
    pub cpus: Option<Given<String>>,
    /// `frames`
    pub frames: Option<Given<i64>>,
    /// `xdp_mode`
    pub xdp_mode: Option<Given<String>>,
    /// `zero_copy`
    pub zero_copy: Option<Given<String>>,
    /// `checksum_metadata`
    pub checksum_metadata: Option<Given<String>>,
    /// `idle_spin_us`
    pub idle_spin_us: Option<Given<i64>>,
    /// `big_tcp`
    pub big_tcp: Option<Given<i64>>,
    /// `local_mtu`
    pub local_mtu: Option<Given<i64>>,
    /// `metrics_address`
    pub metrics_address: Option<Given<String>>,
    /// `cni_cache`
    pub cni_cache: Option<Given<String>>,
    /// `bpffs`
    pub bpffs: Option<Given<String>>,
    /// `skip`
    pub skip: Option<Vec<Given<String>>>,
    /// `log`
    pub log: Option<Given<String>>,
    /// `log_format`
    pub log_format: Option<Given<String>>,
}

impl Settings {
    /// These settings, completed from `file` where they are silent. Lists are replaced, not joined.
    pub fn over(self, file: Settings) -> Settings {
        Settings {
            instance: self.instance.or(file.instance),
            path: self.path.or(file.path),
            port_paths: self.port_paths.or(file.port_paths),
            source_guard: self.source_guard.or(file.source_guard),
            port_guards: self.port_guards.or(file.port_guards),
            bypass_netfilter: self.bypass_netfilter.or(file.bypass_netfilter),
            bridge: self.bridge.or(file.bridge),
            uplinks: self.uplinks.or(file.uplinks),
            cluster_cidrs: self.cluster_cidrs.or(file.cluster_cidrs),
            workers: self.workers.or(file.workers),
            cpus: self.cpus.or(file.cpus),
            frames: self.frames.or(file.frames),
            xdp_mode: self.xdp_mode.or(file.xdp_mode),
            zero_copy: self.zero_copy.or(file.zero_copy),
            checksum_metadata: self.checksum_metadata.or(file.checksum_metadata),
            idle_spin_us: self.idle_spin_us.or(file.idle_spin_us),
            big_tcp: self.big_tcp.or(file.big_tcp),
            local_mtu: self.local_mtu.or(file.local_mtu),
            metrics_address: self.metrics_address.or(file.metrics_address),
            cni_cache: self.cni_cache.or(file.cni_cache),
            bpffs: self.bpffs.or(file.bpffs),
            skip: self.skip.or(file.skip),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` for something that is missing.
    pub origin: Option<Origin>,
    /// What, and the cure; without a full stop.
    pub sentence: String,
}

impl Problem {
    /// A complaint about a given value.
    pub fn at(origin: Origin, sentence: impl fmt::Display) -> Self {
        Problem { origin: Some(origin), sentence: sentence.to_string() }
    }

    /// A complaint about something that nobody wrote.
    pub fn absent(sentence: impl fmt::Display) -> Self {
        Problem { origin: None, sentence: sentence.to_string() }
    }
}

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

/// Problems beyond this number are counted, not listed.
const LISTED: usize = 20;

impl ConfigError {
    /// Of at least one problem; they are put in the order of their lines.
    pub fn new(file: Option<&Path>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match problem.origin {
            Some(Origin::Line(line, _)) => line,
            Some(Origin::File) => 0,
            Some(Origin::Option(_)) => usize::MAX - 1,
            None => usize::MAX,
        });
        ConfigError { file: file.map(Path::to_owned), problems }
    }

    /// One sentence for each problem, beginning with its place, as in `/etc/podlane/podlane.toml:7: frames: …`.
    pub fn sentences(&self) -> Vec<String> {
        self.problems.iter().map(|problem| self.sentence(problem)).collect()
    }

    /// Whether bridge and uplinks both are missing and nothing else is wrong: nobody configured this node.
    pub fn is_unconfigured(&self) -> bool {
        self.problems.len() == 2 && self.problems.iter().all(|problem| problem.origin.is_none())
    }

    fn sentence(&self, problem: &Problem) -> String {
        match (problem.origin, &self.file) {
            (Some(Origin::Line(line, "")), Some(file)) => format!("{}:{line}: {}", file.display(), problem.sentence),
            (Some(Origin::Line(line, key)), Some(file)) => {
                format!("{}:{line}: {key}: {}", file.display(), problem.sentence)
            }
            (Some(Origin::Line(line, key)), None) => format!("line {line}: {key}: {}", problem.sentence),
            (Some(Origin::Option(option)), _) => format!("{option}: {}", problem.sentence),
            (None | Some(Origin::File), _) => problem.sentence.clone(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentences = self.sentences();
        if let [only] = sentences.as_slice() {
            return out.write_str(only);
        }
        write!(out, "the configuration has {} mistakes:", sentences.len())?;
        for sentence in sentences.iter().take(LISTED) {
            write!(out, "\n  {sentence}")?;
        }
        match sentences.len().checked_sub(LISTED) {
            Some(more @ 1..) => write!(out, "\n  … and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}
