//! `podlane run` in a node.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::command::{self, wait_for};
use crate::status::Status;

/// Where the control sockets are.
pub const SOCKETS: &str = "/run/podlane";
/// Where all programs are pinned.
pub const PINS: &str = "/sys/fs/bpf/podlane";
/// The line that says that everything is attached.
const READY: &str = "podlane is ready";
/// How long a daemon may take to attach to a handful of ports, on a busy machine.
const START: Duration = Duration::from_secs(20);
/// How long it may take to go.
pub const STOP: Duration = Duration::from_secs(10);

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    /// `--instance`.
    pub instance: String,
    log: Arc<Mutex<Vec<String>>>,
    /// Lines of the log that have been judged already.
    judged: usize,
}

/// The binary: `PODLANE_BIN`, or the one beside the tests in the target directory.
///
/// # Errors
/// If there is none, with how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PODLANE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "PODLANE_BIN is {}, which is no file", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe().context("finding the test's own program")?;
    let beside = test.parent().and_then(Path::parent).map(|directory| directory.join("podlane"));
    match beside {
        Some(path) if path.is_file() => Ok(path),
        _ => bail!(
            "there is no podlane beside {}: build it (cargo build --bin podlane) or set PODLANE_BIN",
            test.display()
        ),
    }
}

/// The control socket of an instance.
pub fn control_socket(instance: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{instance}.sock"))
}

/// Where the programs of an instance are pinned, in whichever network namespaces.
pub fn pins(instance: &str) -> PathBuf {
    Path::new(PINS).join(instance)
}

/// Whether this Podlane leaves to the kernel what the kernel translates: then it has a reason of that name.
///
/// # Errors
/// If it cannot be asked.
pub fn keeps_translated() -> Result<bool> {
    let mut explain = Command::new(binary()?);
    Ok(command::output(explain.args(["explain", "translated"]), Duration::from_secs(10))?.status.success())
}

/// Memory that a process has resident, bytes.
///
/// # Errors
/// If it is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kibibytes * 1024)
}

/// Asks a daemon how it is.
///
/// # Errors
/// If it does not answer, or not in the schema.
pub fn status_text(instance: &str) -> Result<String> {
    let mut status = Command::new(binary()?);
    command::run(status.args(["status", "--json", "--instance", instance]), Duration::from_secs(10))
}

impl Daemon {
    /// Starts `command`, which runs `podlane run … --instance instance`, without waiting for anything.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, instance: &str) -> Result<Daemon> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                writer.lock().expect("no holder panics").push(line);
            }
        });
        Ok(Daemon { child, instance: instance.to_owned(), log, judged: 0 })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends before, or takes too long.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let ready = wait_for("the daemon to be ready", START, || {
            if self.log_lines().iter().any(|line| line.contains(READY)) {
                return Ok(Some(()));
            }
            match self.child.try_wait()? {
                Some(status) => bail!("podlane ended with {status} before it was ready"),
                None => Ok(None),
            }
        });
        ready.with_context(|| format!("the log of {}:\n{}", self.instance, self.log_lines().join("\n")))
    }

    /// Its log so far.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().expect("no holder panics").clone()
    }

    /// The lines with level WARN or ERROR (or a panic) that have come since the last call.
    pub fn new_complaints(&mut self) -> Vec<String> {
        let lines = self.log_lines();
        let new = lines.get(self.judged..).unwrap_or_default();
        self.judged = lines.len();
        new.iter().filter(|line| is_complaint(line)).cloned().collect()
    }

    /// Its process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// If it does not answer, or not in the schema.
    pub fn status(&self) -> Result<Status> {
        let text = status_text(&self.instance)?;
        serde_json::from_str(&text)
            .with_context(|| format!("the status of {} is not in the schema: {text}", self.instance))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        command::signal(&self.child, signal)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the daemon to end", STOP, || Ok(self.child.try_wait()?))
            .with_context(|| format!("the log of {}:\n{}", self.instance, self.log_lines().join("\n")))
    }

    /// Processor time that it has used, of all its threads.
    ///
    /// # Errors
    /// If it is gone.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_ascii_whitespace().collect();
        // utime and stime are fields 14 and 15 of proc(5), in ticks of 10 ms; field 3 is the first after the name.
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

/// The level is the first or, behind a time, the second word of a line.
fn is_complaint(line: &str) -> bool {
    let plain = without_colours(line);
    plain.split_ascii_whitespace().take(2).any(|word| word == "WARN" || word == "ERROR")
        || plain.contains("panicked at")
}

/// Removes "ESC [ … m".
fn without_colours(line: &str) -> String {
    let mut pieces = line.split('\u{1b}');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A stopped process must go on to be able to end; SIGKILL needs no such help.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::is_complaint;

    #[test]
    fn complaints_are_told_from_news() {
        assert!(is_complaint("2026-11-22T15:00:00.000000Z  WARN podlane: eth7 is refused"));
        assert!(is_complaint("\u{1b}[2m2026-11-22T15:00:00Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m podlane: x"));
        assert!(is_complaint("thread 'worker-0' panicked at src/x.rs:1:1:"));
        assert!(!is_complaint("2026-11-22T15:00:00.000000Z  INFO podlane: podlane is ready: no ERRORs"));
    }
}
