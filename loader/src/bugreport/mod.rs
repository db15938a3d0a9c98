//! `podlane bugreport`: everything that somebody far away needs to find a fault, in one archive.
//!
//! It asks the daemon (if one answers), the kernel and the node's own programs, each with a limit of bytes and of time, and
//! writes down of each what came of it. Nothing here changes anything, and nothing needs the daemon alive: that it is dead or
//! stuck is itself told. Packets are never in it.

mod archive;
mod daemon;
mod node;
mod settings;
mod source;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use archive::{Archive, Content, Entry, LIST_NAME, MAX_PART, MAX_WHOLE, Outcome};

use crate::check;
use crate::config::{Config, ConfigError, DEFAULT_FILE};
use crate::log;
use crate::status::{Cell, Table};
use daemon::Daemon;
use source::Programs;

/// Interfaces whose driver and features are told.
const MAX_INTERFACES: usize = 16;
/// Lines of the journal.
const JOURNAL_LINES: &str = "5000";

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The daemon.
    pub instance: String,
    /// Where the archive goes; without, into the current directory under a name of its own.
    pub output: Option<PathBuf>,
    /// The configuration file; without, the daemon's own, or the usual one.
    pub config: Option<PathBuf>,
    /// Whether firewall rules are copied, and not only counted.
    pub firewall: bool,
}

/// There is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file is there already.
    #[error("{path} exists already and is not overwritten; name another file with -o", path = .0.display())]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("cannot write {path}: {error}", path = .path.display())]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What was collected.
#[derive(Debug)]
pub struct Report {
    /// The archive.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// What was tried.
    pub entries: Vec<Entry>,
    /// Sentences about the whole.
    pub notes: Vec<String>,
}

/// Reads a configuration as the daemon with these words of the command line does; for [`write`], which cannot parse them.
pub type Load<'a> = &'a dyn Fn(&[String], Option<&Path>) -> Result<Result<Config, ConfigError>, String>;

/// Collects and writes.
///
/// # Errors
/// If the archive cannot be written. Whatever cannot be collected is told in the archive and is no error.
pub fn write(wish: &Wish, load: Load<'_>) -> Result<Report, ReportError> {
    let stamp: String = log::now().chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    let name = format!("podlane-bugreport-{}-{stamp}Z", wish.instance);
    let path = wish.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => ReportError::Exists(path.clone()),
        _ => ReportError::Write { path: path.clone(), error },
    };
    // Others must not read it, and a link that somebody laid there is not followed.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let written = collect(wish, load, &name, &file).and_then(|found| file.sync_all().map(|()| found));
    match written {
        Ok((entries, notes)) => {
            let bytes = file.metadata().map(|file| file.len()).unwrap_or(0);
            Ok(Report { path, bytes, entries, notes })
        }
        Err(error) => {
            let _ = fs::remove_file(&path);
            Err(failed(error))
        }
    }
}

fn collect(wish: &Wish, load: Load<'_>, name: &str, out: impl Write) -> io::Result<(Vec<Entry>, Vec<String>)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = Archive::new(out, name, now);
    let daemon = Daemon::find(&wish.instance);
    let programs = Programs::new(source::PATIENCE_FOR_ALL);
    let mut notes = vec![daemon.sentence()];
    if daemon.pid().is_some_and(node::is_elsewhere) {
        notes.push(
            "The daemon is in ANOTHER network namespace: what the kernel tells here is of another network.".to_owned(),
        );
    }
    if !nix::unistd::geteuid().is_root() {
        notes.push("It was not collected as root: what only root may see is missing. Run it as root.".to_owned());
    }
    archive.add("versions.txt", "this program, uname(2)", Ok(node::versions(programs)))?;
    let interfaces = configuration(wish, &daemon, load, &mut archive, &mut notes)?;
    daemon.collect(&mut archive)?;
    kernel(wish, programs, &daemon, &interfaces, &mut archive)?;
    machine(&daemon, &mut archive)?;
    let journal = ["journalctl", "--no-pager", "-o", "short-iso-precise", "-n", JOURNAL_LINES, "-u", "podlane"];
    program(programs, &mut archive, "log/journal.txt", &journal)?;
    if !wish.firewall {
        notes.push("Rules of firewalls are counted, not copied; --include-firewall copies them.".to_owned());
    }
    let head = format!("podlane bugreport of {}Z\n{}\n", &log::now()[..19], notes.join("\n"));
    let (_, entries) = archive.finish(&head)?;
    Ok((entries, notes))
}

fn program(programs: Programs, archive: &mut Archive<impl Write>, name: &str, words: &[&str]) -> io::Result<()> {
    archive.add(name, &words.join(" "), programs.run(words))
}

/// The configuration and what `podlane check` says of it. Gives the interfaces that it names.
fn configuration(
    wish: &Wish,
    daemon: &Daemon,
    load: Load<'_>,
    archive: &mut Archive<impl Write>,
    notes: &mut Vec<String>,
) -> io::Result<Vec<String>> {
    let loaded = load(&daemon.arguments(), wish.config.as_deref());
    let of_daemon = loaded.as_ref().ok().and_then(|loaded| loaded.as_ref().ok()).and_then(|config| config.file.clone());
    let file = wish.config.clone().or(of_daemon).unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let content = source::file(&file).and_then(|content| {
        let (text, left_out) = settings::known_keys(&String::from_utf8_lossy(&content.bytes))?;
        let mut content = Content::from(text);
        if !left_out.is_empty() {
            content.wrong =
                Some(format!("values of keys that Podlane does not know are left out: {}", left_out.join(", ")));
        }
        Ok(content)
    });
    if content.is_ok() {
        notes.push(format!("Comments of {} are left out.", file.display()));
    }
    archive.add("config/podlane.toml", &file.display().to_string(), content)?;
    let checked = loaded.map(|config| {
        let report = serde_json::to_vec_pretty(&check::check(&config)).unwrap_or_default();
        (Content::from(report), config.ok())
    });
    let (checked, config) = checked.map_or_else(|why| (Err(why), None), |(report, config)| (Ok(report), config));
    archive.add("check.json", "podlane check --json, with the daemon's options", checked)?;
    let effective = config.as_ref().map(|config| Content::from(pretty(&config.effective())));
    let none = "the configuration cannot be used; check.json says why".to_owned();
    archive.add("config/would-be.json", "the file and the daemon's options, read now", effective.ok_or(none))?;
    let Some(config) = config else { return Ok(Vec::new()) };
    Ok(std::iter::once(&config.bridge).chain(&config.uplinks).map(ToString::to_string).collect())
}

fn kernel(
    wish: &Wish,
    programs: Programs,
    daemon: &Daemon,
    named: &[String],
    archive: &mut Archive<impl Write>,
) -> io::Result<()> {
    archive.add("kernel/bpf.json", "bpf(2)", node::bpf(daemon.pid()))?;
    archive.add("kernel/switches.txt", "/proc/sys", Ok(node::switches(named)))?;
    for (name, words) in node::PROGRAMS {
        program(programs, archive, name, words)?;
    }
    for (name, path) in node::FILES {
        archive.add(name, path, source::file(Path::new(path)))?;
    }
    for name in interfaces(named, daemon).iter().take(MAX_INTERFACES) {
        archive.add(
            &format!("kernel/ethtool/{name}.txt"),
            &format!("ethtool of {name}"),
            node::interface(programs, name),
        )?;
    }
    archive.add("kernel/nft-counts.txt", "nft -j list ruleset, counted", node::nft_counts(programs))?;
    for (name, saver) in
        [("kernel/iptables-counts.txt", "iptables-save"), ("kernel/ip6tables-counts.txt", "ip6tables-save")]
    {
        archive.add(name, &format!("{saver}, counted"), node::iptables_counts(programs, saver))?;
    }
    if wish.firewall {
        program(programs, archive, "kernel/nft-rules.txt", &["nft", "-a", "list", "ruleset"])?;
        program(programs, archive, "kernel/iptables-rules.txt", &["iptables-save", "-c"])?;
        program(programs, archive, "kernel/ip6tables-rules.txt", &["ip6tables-save", "-c"])?;
    }
    Ok(())
}

/// The interfaces that the configuration names, then the daemon's ports, then all others; only names that are safe in a path.
fn interfaces(named: &[String], daemon: &Daemon) -> Vec<String> {
    let mut all: Vec<String> = named.iter().cloned().chain(daemon.ports()).collect();
    let mut others: Vec<_> = fs::read_dir("/sys/class/net").into_iter().flatten().flatten().collect();
    others.sort_by_key(fs::DirEntry::file_name);
    all.extend(others.iter().filter_map(|entry| entry.file_name().into_string().ok()));
    let mut seen = std::collections::BTreeSet::new();
    let is_safe = |name: &str| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c)) && !name.starts_with(['.', '-'])
    };
    all.retain(|name| is_safe(name) && seen.insert(name.clone()));
    all
}

fn machine(daemon: &Daemon, archive: &mut Archive<impl Write>) -> io::Result<()> {
    archive.add("machine/processors.txt", "/sys/devices/system/cpu", Ok(node::processors()))?;
    let whose = if daemon.pid().is_some() { "the daemon's /proc/PID/limits" } else { "/proc/self/limits" };
    archive.add("machine/limits.txt", &format!("{whose} and its control group"), node::limits(daemon.pid()))
}

fn pretty(value: &serde_json::Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

impl Report {
    /// For people: a table of what is in the archive, and what to know about it.
    pub fn render(&self) -> String {
        let mut table = Table::new(["file", "bytes", "", "why not"]);
        for entry in &self.entries {
            let why = log::clean(&entry.outcome.why().replace('\n', "; "), 60);
            table.row([
                Cell::text(&entry.name),
                Cell::Number(entry.bytes as u64),
                Cell::text(entry.outcome.word()),
                Cell::text(why),
            ]);
        }
        let count = |word: &str| self.entries.iter().filter(|entry| entry.outcome.word() == word).count();
        let mut text = String::new();
        table.render(&mut text);
        text.push('\n');
        self.notes.iter().for_each(|note| text.push_str(&format!("{}\n", log::clean(note, log::MAX_MESSAGE))));
        text.push_str(&format!(
            "{}: {} KiB, readable by you alone. {} parts, {} of them incomplete, and {} could not be had; {LIST_NAME} in it \
             says why.\nIt has this node's addresses, interfaces and routes, and no packets. Look it through before you \
             give it away.\n",
            self.path.display(),
            self.bytes.div_ceil(1024),
            count("ok") + count("partial"),
            count("partial"),
            count("failed"),
        ));
        text
    }
}

#[cfg(test)]
mod tests;
