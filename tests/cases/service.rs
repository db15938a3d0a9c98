//! The daemon as a service: what the service manager is told, and that it runs with the capabilities that its unit names and
//! no others.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::command;
use podlane_tests::daemon::binary;
use podlane_tests::testbed::Family;

use super::guard;

/// The unit as it is installed.
const UNIT: &str = include_str!("../../packaging/podlane.service");
/// What the service manager would wait for a sign of life.
const WATCHDOG: Duration = Duration::from_secs(2);
/// A worker is taken to hang when it has not beaten for so long.
const FRESH: Duration = Duration::from_secs(2);

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Manager {
    fn listen(bed: &Bed) -> Result<Manager> {
        let path = std::env::temp_dir().join(format!("podlane-notify-{}", bed.instance(1)));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        Ok(Manager { socket, path })
    }

    /// The next message, if one comes in time.
    fn next(&self, patience: Duration) -> Result<Option<String>> {
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        match self.socket.recv(&mut bytes) {
            Ok(count) => Ok(Some(String::from_utf8(bytes[..count].to_vec())?)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a message with this line; gives it.
    fn wait_for(&self, line: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if message.lines().any(|told| told.starts_with(line)) {
                return Ok(message);
            }
        }
        bail!("nobody was told {line} within {patience:?}")
    }

    /// Signs of life within a time.
    fn signs(&self, time: Duration) -> Result<usize> {
        let deadline = Instant::now() + time;
        let mut signs = 0;
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            signs += usize::from(message.lines().any(|line| line == "WATCHDOG=1"));
        }
        Ok(signs)
    }
}

/// The number of a worker's thread.
fn worker(pid: u32, name: &str) -> Result<Pid> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.trim() == name {
            let number = task.file_name().to_string_lossy().parse()?;
            return Ok(Pid::from_raw(number));
        }
    }
    bail!("{pid} has no thread {name}")
}

/// Ready, signs of life, reloading, stopping; and no sign of life while a worker hangs, whatever the others do.
pub fn is_told(bed: &mut Bed) -> Result<()> {
    let long = Duration::from_secs(10);
    bed.stop_daemon(1)?;
    let manager = Manager::listen(bed)?;
    let mut run = bed.podlane_run(1)?;
    run.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    bed.start_daemon_as(1, &mut run)?;
    manager.wait_for("READY=1", long)?;
    manager.wait_for("STATUS=ports: 4, workers: ", long)?;
    ensure!(manager.signs(WATCHDOG)? >= 3, "four signs of life are due in the watchdog's time");
    bed.daemon(1)?.signal(Signal::SIGHUP)?;
    let reloading = manager.wait_for("RELOADING=1", long)?;
    ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait_for("READY=1", long)?;
    // A tracer stops one thread and leaves the others alone.
    let hung = worker(bed.daemon(1)?.pid(), "podlane-w0")?;
    ptrace::seize(hung, ptrace::Options::empty()).context("tracing a worker")?;
    ptrace::interrupt(hung).context("stopping a worker")?;
    bed.expect_complaint("has not come around for");
    manager.wait_for("STATUS=worker 0 has not come around for", long)?;
    let signs = manager.signs(FRESH)?;
    nix::sys::wait::waitpid(hung, Some(nix::sys::wait::WaitPidFlag::__WALL))?;
    ptrace::detach(hung, None).context("letting the worker go on")?;
    ensure!(signs == 0, "{signs} signs of life came from a daemon whose worker hangs");
    manager.wait_for("WATCHDOG=1", long)?;
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    bed.stop_daemon(1)?;
    manager.wait_for("STOPPING=1", long)?;
    bed.start_daemon(1)
}

/// The unit's capabilities, in small letters and without "CAP_".
fn of_the_unit() -> Result<Vec<String>> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let words = line.context("the unit bounds no capabilities")?.split_ascii_whitespace();
    words.map(|word| Ok(word.strip_prefix("CAP_").context("CAP_…")?.to_lowercase())).collect()
}

/// `podlane run` of node1 with these capabilities and no way to others.
fn bounded(bed: &Bed, capabilities: &[String]) -> Result<Command> {
    let run = bed.podlane_run(1)?;
    let set: Vec<String> = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let program = binary()?;
    let mut bounded = Command::new(run.get_program());
    for word in run.get_args() {
        if word == program.as_os_str() {
            bounded.args(["setpriv", "--no-new-privs"]);
            bounded
                .arg(format!("--bounding-set=-all{}", set.concat()))
                .args(["--inh-caps=-all", "--ambient-caps=-all"]);
        }
        bounded.arg(word);
    }
    // As much locked memory as every process may have; more takes a limit that the unit raises.
    bounded.args(["--frames", "2048"]);
    Ok(bounded)
}

/// The bits of one of a thread's sets.
fn held(task: &str, set: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{task}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(set)).with_context(|| format!("no {set}"))?;
    Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
}

/// The capability without which it works as well: see `docs/source-guard.md`.
const OPTIONAL: &str = "net_broadcast";

/// It runs with those of the unit; without any one of them but one it says which is missing; threads other than the loop have
/// none.
pub fn capabilities(bed: &mut Bed) -> Result<()> {
    let all = of_the_unit()?;
    ensure!(all.len() == 5, "{all:?}");
    bed.stop_daemon(1)?;
    for missing in &all {
        let fewer: Vec<String> = all.iter().filter(|name| *name != missing).cloned().collect();
        if missing == OPTIONAL {
            bed.start_daemon_as(1, &mut bounded(bed, &fewer)?)?;
            guard::wait_for_guard(bed, "pod1", Family::V4)?;
            bed.stop_daemon(1)?;
            continue;
        }
        let said = bed.refused(&mut bounded(bed, &fewer)?)?;
        let expected = format!("podlane run lacks CAP_{}: ", missing.to_uppercase());
        ensure!(said.contains(&expected), "without {missing}: {said}");
    }
    bed.start_daemon_as(1, &mut bounded(bed, &all)?)?;
    let pid = bed.daemon(1)?.pid().to_string();
    ensure!(held(&pid, "CapEff")?.count_ones() == 5, "the daemon has other capabilities than these five");
    let mut names = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name().to_string_lossy().into_owned();
        let thread = format!("{pid}/task/{task}");
        let name = fs::read_to_string(format!("/proc/{thread}/comm"))?;
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let bits = held(&thread, set)?;
            // NET_ADMIN and NET_RAW, without which the kernel does not tell netfilter's rules.
            let of_rules =
                if name.trim() == "podlane-rules" && matches!(set, "CapEff" | "CapPrm") { 0b11 << 12 } else { 0 };
            ensure!(task == pid || bits == of_rules, "thread {name} has {bits:x} in {set}");
        }
        names.insert(name.trim().to_owned());
    }
    ensure!(names.contains("podlane-w0") && names.contains("podlane-metrics"), "{names:?}");
    for family in [Family::V4, Family::V6] {
        for (from, to) in [("pod1", "pod2"), ("pod1", "pod4")] {
            bed.warm_up(&bed.way(from, to, family)?)?;
        }
    }
    // The commands of the daemon do what they do: another path, a capture, a trace.
    let other = if bed.path == DataPath::Kernel { "af_xdp" } else { "kernel" };
    for path in [other, bed.path.name()] {
        command::run(bed.podlane(1)?.args(["path", path, "--instance", &bed.instance(1)]), Duration::from_secs(10))?;
    }
    bed.stop_daemon(1)?;
    bed.start_daemon(1)
}
