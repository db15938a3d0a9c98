//! Names of testbeds, and the removal of those that a killed run left behind.
//!
//! An instance is named after the process that owns it, and a file in `/run/podlane-tests` says which process that was
//! (its number and its start time, so that a number that was given out again is not mistaken for it). A run that ends in
//! any way but SIGKILL removes its own; the next run removes those of the dead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::testbed;

const DIRECTORY: &str = "/run/podlane-tests";

/// The instances that this process owns.
static OWN: Mutex<Own> = Mutex::new(Own { names: BTreeSet::new(), ending: false });

struct Own {
    names: BTreeSet<String>,
    /// The process is about to end: a case that goes on meanwhile must not build another one.
    ending: bool,
}

/// A name of at most eight letters and digits: "t", this process's number to the base 36, a letter.
pub fn instance_name(number: u32) -> String {
    let letter = char::from(b'a' + (number % 26) as u8);
    format!("t{}{letter}", base36(std::process::id()))
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(char::from_digit(number % 36, 36).expect("below the base"));
        number /= 36;
    }
    digits.iter().rev().collect()
}

/// Fields 1 and 22 of `/proc/PID/stat` (proc(5)): who it is, whatever becomes of its number.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    Some(format!("{pid} {}", after_name.split_ascii_whitespace().nth(19)?))
}

fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// What a container runtime in a node of an instance is called, wherever it needs a name.
pub fn runtime_name(instance: &str, node: impl std::fmt::Display) -> String {
    format!("podlane-runtime-{instance}-node{node}")
}

/// The cgroups that a container runtime of this name has made, in every hierarchy.
pub fn cgroups_of(runtime: &str) -> Vec<PathBuf> {
    const ROOT: &str = "/sys/fs/cgroup";
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([PathBuf::from(ROOT)]);
    all.map(|hierarchy| hierarchy.join(runtime)).filter(|path| path.is_dir()).collect()
}

/// Removes them; the processes in them are gone.
pub fn remove_cgroups(runtime: &str) {
    for cgroup in cgroups_of(runtime) {
        let inner = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        for container in inner.filter(|entry| entry.path().is_dir()) {
            let _ = fs::remove_dir(container.path());
        }
        let _ = fs::remove_dir(cgroup);
    }
}

/// Says that this process owns an instance.
///
/// # Errors
/// If the file cannot be written, or the process is being ended.
pub fn claim(name: &str) -> Result<()> {
    {
        let mut own = OWN.lock().expect("no holder panics");
        ensure!(!own.ending, "the run is being ended");
        own.names.insert(name.to_owned());
    }
    fs::create_dir_all(DIRECTORY).context("creating /run/podlane-tests")?;
    let identity = identity(std::process::id()).context("reading /proc/self/stat")?;
    fs::write(file(name), identity).with_context(|| format!("writing {}", file(name).display()))
}

/// Says that an instance is gone, and removes the control sockets of daemons that were killed in it, and what they pinned.
pub fn release(name: &str) {
    for pins in fs::read_dir(crate::daemon::PINS).into_iter().flatten().flatten() {
        if pins.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            // Of bpffs, where every directory must be empty before it goes, and nothing else is.
            let _ = fs::remove_dir_all(pins.path());
        }
    }
    for socket in fs::read_dir(crate::daemon::SOCKETS).into_iter().flatten().flatten() {
        if socket.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            let _ = fs::remove_file(socket.path());
        }
    }
    for place in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let place_name = place.file_name().to_string_lossy().into_owned();
        if place_name.starts_with(&runtime_name(name, "")) {
            remove_cgroups(place_name.trim_end_matches(".log"));
            // A mount point or a log; what was mounted there went with its processes.
            let _ = fs::remove_dir(place.path()).or_else(|_| fs::remove_file(place.path()));
        }
    }
    OWN.lock().expect("no holder panics").names.remove(name);
    let _ = fs::remove_file(file(name));
    let _ = fs::remove_dir(DIRECTORY);
}

/// Removes what this process owns, and lets it own nothing more: for a signal's sake, where no destructor runs.
pub fn remove_own() {
    let names = {
        let mut own = OWN.lock().expect("no holder panics");
        own.ending = true;
        own.names.clone()
    };
    for name in names {
        remove(&name);
    }
}

/// Has a signal that ends the process remove first what it owns.
///
/// # Errors
/// If the signals cannot be watched.
pub fn remove_own_at_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("registering")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\nended by signal {signal}: taking the testbeds down");
            remove_own();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Removes what dead processes owned.
pub fn remove_of_the_dead() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let owner = fs::read_to_string(entry.path()).unwrap_or_default();
        let pid = owner.split(' ').next().and_then(|pid| pid.parse().ok());
        if pid.and_then(identity).is_none_or(|alive| alive != owner) {
            let name = entry.file_name().to_string_lossy().into_owned();
            eprintln!("removing the testbed {name}, which a run that was killed has left behind");
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // `down` also ends the daemons inside.
    if let Err(error) = testbed::down(name) {
        eprintln!("taking the testbed {name} down: {error:#}");
    }
    release(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert!(instance_name(3).len() <= 8 && instance_name(0) != instance_name(1));
        assert_eq!(base36(4_194_304), "2hwcg");
    }

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let own = identity(std::process::id()).unwrap();
        assert!(own.starts_with(&std::process::id().to_string()) && own.split(' ').count() == 2);
        assert_eq!(identity(u32::MAX), None);
    }
}
