//! Reading the configuration again: what may change while the daemon runs, what waits for a restart, and how the answer reads.
//!
//! The rule is the same for SIGHUP and `podlane reload`. The file is read and judged as a whole, under the options of the command
//! line that the daemon was started with. If anything is wrong with it, alone or on this node, nothing changes. If nothing is,
//! every setting that can be changed while the daemon runs comes into force at once, in one publication of the tables; a
//! setting that cannot keeps the value that it had, and the answer and `podlane status` name it until the restart.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Config, KEYS};

/// When a changed setting comes into force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// As soon as the file is read again.
    Now,
    /// When the daemon starts: memory, threads and sockets are made by it.
    Restart,
}

/// Every setting, and when it comes into force.
pub const SETTINGS: [(&str, When); KEYS.len()] = [
    ("instance", When::Restart),
    ("path", When::Now),
    ("port_paths", When::Now),
    ("source_guard", When::Now),
    ("port_guards", When::Now),
    ("bypass_netfilter", When::Now),
    ("bridge", When::Now),
    ("uplinks", When::Now),
    ("cluster_cidrs", When::Now),
    ("workers", When::Restart),
    ("cpus", When::Restart),
    ("frames", When::Restart),
    ("xdp_mode", When::Restart),
    ("zero_copy", When::Restart),
    ("checksum_metadata", When::Restart),
    ("idle_spin_us", When::Now),
    ("big_tcp", When::Now),
    ("local_mtu", When::Now),
    ("metrics_address", When::Now),
    ("cni_cache", When::Now),
    ("bpffs", When::Restart),
    ("skip", When::Now),
    ("log", When::Now),
    ("log_format", When::Now),
];

/// A setting that has another value than the one in force, both in the words of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub setting: String,
    /// In force until now.
    pub from: Value,
    /// Said by the file, or the default.
    pub to: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({} → {})", self.setting, plain(&self.from), plain(&self.to))
    }
}

/// A value without quotes and brackets.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// What the settings of `new` change in `old`: what comes into force now, and what waits for a restart.
pub fn changes(old: &Config, new: &Config) -> (Vec<Change>, Vec<Change>) {
    let (from, to) = (words(old), words(new));
    let changed = SETTINGS.iter().filter(|(key, _)| from[*key] != to[*key]);
    let (now, later): (Vec<_>, Vec<_>) = changed.partition(|(_, when)| *when == When::Now);
    let change = |key: &str| Change { setting: key.to_owned(), from: from[key].clone(), to: to[key].clone() };
    let list = |keys: Vec<&(&str, When)>| keys.into_iter().map(|(key, _)| change(key)).collect();
    (list(now), list(later))
}

/// A configuration in the words of the file; CPUs in the order of their workers, which matters here.
fn words(config: &Config) -> Value {
    let mut words = config.effective();
    words["cpus"] = config.cpus.iter().copied().collect();
    words
}

/// Gives `new` the values of `old` for everything that waits for a restart.
pub fn keep_fixed(old: &Config, new: Config) -> Config {
    Config {
        instance: old.instance.clone(),
        cpus: old.cpus.clone(),
        frames: old.frames,
        xdp_mode: old.xdp_mode,
        zero_copy: old.zero_copy,
        checksum_metadata: old.checksum_metadata,
        bpffs: old.bpffs.clone(),
        // They speak of workers and CPUs.
        notes: old.notes.clone(),
        ..new
    }
}

/// What became of reading the configuration again.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// It was only looked at: nothing was changed.
    pub only_checked: bool,
    /// What is wrong, each a sentence with its place; then nothing was changed.
    pub problems: Vec<String>,
    /// What is in force since, or would be.
    pub changed: Vec<Change>,
    /// What waits for a restart.
    pub restart: Vec<Change>,
    /// What else there is to say.
    pub remarks: Vec<String>,
}

impl Outcome {
    /// Whether the configuration was, or would be, refused.
    pub fn is_refused(&self) -> bool {
        !self.problems.is_empty()
    }

    /// For people, with an end of line. Problems are [`Outcome::complaint`].
    pub fn render(&self) -> String {
        let name = self.name();
        let mut lines = vec![match (self.only_checked, self.changed.is_empty()) {
            (true, true) => format!("{name} would change nothing while podlane runs"),
            (true, false) => format!("{name} is valid here, and would change:"),
            (false, true) => format!("{name} was read again; nothing has changed"),
            (false, false) => format!("{name} was read again; in force since:"),
        }];
        lines.extend(self.changed.iter().map(|change| format!("  {change}")));
        lines.extend(self.restart.iter().map(|change| format!("needs a restart: {change}")));
        lines.extend(self.remarks.iter().cloned());
        lines.join("\n") + "\n"
    }

    /// Why it is refused, for people.
    pub fn complaint(&self) -> String {
        let begin = format!("{} is refused, and nothing has changed", self.name());
        match self.problems.as_slice() {
            [only] => format!("{begin}: {only}"),
            all => format!("{begin}:\n  {}", all.join("\n  ")),
        }
    }

    fn name(&self) -> String {
        self.file.as_ref().map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    /// Sentences for `podlane status`, to stay there until the next reading.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let refused = self.is_refused().then(|| self.complaint().replace("\n  ", " "));
        refused.into_iter().chain(self.restart.iter().map(|change| format!("needs a restart: {change}")))
    }

    /// Tells the log.
    pub fn log(&self) {
        if self.is_refused() {
            for problem in &self.problems {
                tracing::error!(reason = problem, "the configuration is refused, and nothing has changed");
            }
            return;
        }
        tracing::info!("{} was read again; changes: {}", self.name(), self.changed.len());
        for change in &self.changed {
            tracing::info!("in force: {change}");
        }
        for change in &self.restart {
            tracing::warn!(reason = change.setting, "needs a restart: {change}");
        }
        for remark in &self.remarks {
            tracing::warn!(reason = remark, "reading the configuration again");
        }
    }
}

#[cfg(test)]
mod tests;
