//! What this node has and lacks: the lines of `podlane check`, and the few of them without which `podlane run` does not
//! begin.
//!
//! Nothing here changes anything on the node, except that [`preflight`] raises this process's own limit of locked memory.
//! Facts are gathered by small readers and judged by pure functions, so that the judgement of every kind of node can be
//! tested on one.

mod machine;
mod network;
mod preflight;
mod privileges;
mod render;

use serde::Serialize;

use crate::bpf::pins::{NoBpffs, find_root};
use crate::compile::Wanted;
use crate::config::{Config, ConfigError, DEFAULT_FRAMES};
use crate::control;
use crate::mirror::World;
use podlane_dataplane::limits::CHUNK_SIZE;

pub use machine::kernel_is_at_least;
pub(crate) use network::candidates;
pub use preflight::{PreflightError, preflight};
pub use privileges::{Memlock, NEEDED_CAPABILITIES, missing_capabilities};

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Podlane runs, with less than it could have.
    Warn,
    /// Podlane does not run.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How good it is.
    pub level: Level,
    /// What was looked at, in a word or two.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Line {
    fn new(level: Level, subject: &str, found: impl Into<String>, cure: Option<String>) -> Self {
        Line { level, subject: subject.to_owned(), found: found.into(), cure }
    }

    fn ok(subject: &str, found: impl Into<String>) -> Self {
        Line::new(Level::Ok, subject, found, None)
    }

    fn warn(subject: &str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Line::new(Level::Warn, subject, found, Some(cure.into()))
    }

    fn fail(subject: &str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Line::new(Level::Fail, subject, found, Some(cure.into()))
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this shape: 1.
    pub schema: u32,
    /// Podlane's version.
    pub version: String,
    /// Whether no line fails.
    pub ok: bool,
    /// The lines, the machine's first.
    pub checks: Vec<Line>,
}

impl Report {
    /// Of these lines.
    pub fn new(checks: Vec<Line>) -> Self {
        let ok = checks.iter().all(|line| line.level != Level::Fail);
        Report { schema: 1, version: env!("CARGO_PKG_VERSION").to_owned(), ok, checks }
    }
}

/// What a daemon of this configuration would do with these interfaces.
pub(crate) fn wanted(world: &World, config: &Config) -> Wanted {
    network::wanted(world, config, |link| link.rx_queues)
}

/// Looks at this node. With a configuration that cannot be used the machine is looked at all the same.
pub fn check(config: &Result<Config, ConfigError>) -> Report {
    let umem_bytes = config.as_ref().map_or(u64::from(DEFAULT_FRAMES) * CHUNK_SIZE as u64, Config::umem_bytes);
    let mut lines = machine::lines(umem_bytes);
    lines.extend(configuration(config));
    if let Ok(config) = config {
        lines.push(instance(config));
        lines.push(survival(config));
        lines.extend(network::lines(config));
    }
    Report::new(lines)
}

fn configuration(config: &Result<Config, ConfigError>) -> Vec<Line> {
    let subject = "configuration";
    let error = match config {
        Ok(config) => {
            let source = match &config.file {
                Some(file) => file.display().to_string(),
                None => "command line".to_owned(),
            };
            let workers = config.workers();
            let noun = if workers == 1 { "worker" } else { "workers" };
            let cpus = crate::config::format_list(&config.cpus);
            let found = format!("{source}: {workers} {noun} on CPU {cpus}, {} MiB of UMEM", config.umem_bytes() >> 20);
            let notes = config.notes.iter().map(|note| Line::new(Level::Warn, subject, note.as_str(), None));
            return std::iter::once(Line::ok(subject, found)).chain(notes).collect();
        }
        Err(error) => error,
    };
    if error.is_unconfigured() {
        let found = "no bridge and uplink are named, so only the machine was looked at";
        return vec![Line::warn(subject, found, error.sentences().join("; "))];
    }
    error.sentences().into_iter().map(|sentence| Line::new(Level::Fail, subject, sentence, None)).collect()
}

/// Whether the daemon runs already. That is no fault; but then its XDP programs are on the interfaces.
fn instance(config: &Config) -> Line {
    let name = config.instance.as_str();
    match control::occupant(&control::socket_path(name)) {
        Ok(control::Occupant::Alive { pid: Some(pid) }) => {
            Line::ok("instance", format!("\"{name}\" runs already, as process {pid}"))
        }
        Ok(control::Occupant::Alive { pid: None }) => Line::ok("instance", format!("\"{name}\" runs already")),
        Ok(_) => Line::ok("instance", format!("\"{name}\" does not run")),
        Err(error) => {
            Line::warn("instance", format!("cannot see whether \"{name}\" runs: {}", error.desc()), "run this as root")
        }
    }
}

/// Whether what is attached outlives the daemon.
fn survival(config: &Config) -> Line {
    let subject = "bpffs";
    match find_root(&config.bpffs) {
        Ok(root) => {
            Line::ok(subject, format!("programs and maps outlive podlane in {}", root.join("podlane").display()))
        }
        Err(NoBpffs::Off) => Line::ok(subject, "programs and maps go when podlane stops, as configured"),
        Err(error) => {
            let sentence = error.to_string();
            let (found, cure) = sentence.split_once(": ").unwrap_or((&sentence, "mount -t bpf bpf /sys/fs/bpf"));
            Line::warn(subject, format!("{found}, so programs and maps go when podlane stops"), cure)
        }
    }
}

#[cfg(test)]
mod tests;
