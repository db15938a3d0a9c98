//! What `podlane run` looks at before it touches anything: a daemon that cannot work says so in one sentence and leaves the
//! node as it was.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use podlane_dataplane::table::PortKind;

use super::network::{self, Program, candidates, foreign_cure};
use super::privileges::{MEMLOCK_CURE, Memlock, capability_cure, mebibytes, missing_capabilities};
use crate::bpf::pins::{Pins, find_root};
use crate::compile::Refusal;
use crate::config::Config;
use crate::control::{self, ControlError, Occupant};
use crate::mirror::{NetlinkError, World};
use crate::takeover::Start;

/// How long our own program on an uplink is waited for: the kernel detaches it a moment after its daemon was killed.
const DETACHING: Duration = Duration::from_secs(3);

/// Why the daemon does not start. Each is a sentence with its cure.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Not root, and not all capabilities.
    #[error("podlane run lacks {missing}: {cure}", missing = .0.join(", "), cure = capability_cure())]
    Capabilities(Vec<&'static str>),
    /// UMEM does not fit into the limit.
    #[error("{needed} of locked memory are needed and the limit is {limit}: {MEMLOCK_CURE}", needed = mebibytes(*.needed), limit = mebibytes(*.limit))]
    LockedMemory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        limit: u64,
    },
    /// The process has a monotonic clock of its own.
    #[error(
        "podlane is in a time namespace whose monotonic clock is {offset} s off the kernel's, by which its programs judge \
         whether it is alive: run it in the first time namespace"
    )]
    Clock {
        /// Seconds, and perhaps nanoseconds.
        offset: String,
    },
    /// The control socket is another daemon's, or cannot be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The kernel does not tell its interfaces.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The bridge or an uplink cannot be used.
    #[error("{why}; {cure}")]
    Interface {
        /// What is wrong.
        why: String,
        /// What to do.
        cure: String,
    },
    /// An uplink has an XDP program.
    #[error("{name} already has XDP program {program}; {cure}")]
    Program {
        /// The uplink.
        name: String,
        /// Number and name of the program.
        program: String,
        /// What to do.
        cure: String,
    },
}

/// Whether a daemon of this configuration can work on this node, without changing the node.
///
/// Raises this process's limit of locked memory where that is needed and allowed.
///
/// # Errors
/// The first thing that stands in the way.
pub fn preflight(config: &Config, start: Start) -> Result<(), PreflightError> {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(PreflightError::Capabilities(missing));
    }
    if let Some(offset) = fs::read_to_string("/proc/self/timens_offsets").ok().and_then(|text| clock_offset(&text)) {
        return Err(PreflightError::Clock { offset });
    }
    if start == Start::Alone {
        not_occupied(config)?;
    }
    let world = network::read_world()?;
    interfaces(&world, config)?;
    programs(world, config)?;
    let needed = config.umem_bytes();
    Memlock::ensure(needed).map_err(|limit| PreflightError::LockedMemory { needed, limit })
}

/// The offset of the monotonic clock as time_namespaces(7) describes the file, if there is any.
fn clock_offset(text: &str) -> Option<String> {
    let fields = text.lines().map(str::split_ascii_whitespace).find_map(|mut line| {
        matches!(line.next(), Some("monotonic" | "1")).then(|| [line.next().unwrap_or("0"), line.next().unwrap_or("0")])
    })?;
    match fields {
        ["0", "0"] => None,
        [seconds, "0"] => Some(seconds.to_owned()),
        [seconds, nanoseconds] => Some(format!("{seconds} s and {nanoseconds} n")),
    }
}

fn not_occupied(config: &Config) -> Result<(), ControlError> {
    let path = control::socket_path(config.instance.as_str());
    match control::occupant(&path) {
        Ok(Occupant::Alive { pid }) => Err(ControlError::Occupied { instance: config.instance.to_string(), pid }),
        Ok(Occupant::Dead | Occupant::Nobody) => Ok(()),
        Err(error) => Err(ControlError::Socket { path, error }),
    }
}

/// Whether the bridge is one, and every uplink can be a port. Those that are not there yet are waited for.
pub(super) fn interfaces(world: &World, config: &Config) -> Result<(), PreflightError> {
    let wanted = network::wanted(world, config, |link| link.rx_queues);
    // One that is not there may come; one that is something else is a mistake.
    if wanted.bridge.is_none() && world.link_named(config.bridge.as_str()).is_some() {
        let cure = format!("name the pods' bridge with --bridge: {}", candidates(world, true));
        return Err(PreflightError::Interface { why: wanted.bridge_problem, cure });
    }
    let is_uplink = |name: &str| config.uplinks.iter().any(|uplink| uplink.as_str() == name);
    let is_there = |name: &str| world.link_named(name).is_some();
    let wrong = |refusal: &Refusal| refusal.for_good && is_uplink(&refusal.name) && is_there(&refusal.name);
    match wanted.refused.into_iter().find(wrong) {
        Some(refusal) => {
            let cure = format!("name an interface towards the other nodes with --uplink: {}", candidates(world, false));
            Err(PreflightError::Interface { why: refusal.why, cure })
        }
        None => Ok(()),
    }
}

/// The programs that an earlier daemon of this instance has left, for this one to replace.
fn left_programs(config: &Config) -> Vec<u32> {
    let root = find_root(&config.bpffs).ok();
    let pins = root.and_then(|root| Pins::of(&root, config.instance.as_str()).ok());
    pins.and_then(|pins| pins.programs().ok()).unwrap_or_default()
}

/// Whether no uplink has an XDP program. A pod's port with one is no reason not to start: it stays with the kernel.
fn programs(mut world: World, config: &Config) -> Result<(), PreflightError> {
    let deadline = Instant::now() + DETACHING;
    let left = left_programs(config);
    loop {
        let wanted = network::wanted(&world, config, |link| link.rx_queues);
        let uplinks = wanted.ports.iter().filter(|port| port.kind == PortKind::Uplink);
        let mut uplinks = uplinks.filter_map(|port| Some((port.name.clone(), port.xdp_program?)));
        let Some((name, id)) = uplinks.find(|(_, id)| !left.contains(id)) else {
            return Ok(());
        };
        let program = Program::find(id);
        if program.is_ours() && Instant::now() < deadline {
            sleep(Duration::from_millis(50));
            world = network::read_world()?;
            continue;
        }
        let cure = match program.is_ours() {
            true => format!("another podlane instance serves {name}; stop it first"),
            false => foreign_cure(&name),
        };
        return Err(PreflightError::Program { name, program: program.describe(), cure });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_its_own_is_noticed() {
        for (text, offset) in [
            ("monotonic           0         0\nboottime            0         0\n", None),
            ("monotonic      864000         0\nboottime            0         0\n", Some("864000")),
            ("1 0 5", Some("0 s and 5 n")),
            ("", None),
        ] {
            assert_eq!(clock_offset(text).as_deref(), offset, "{text}");
        }
    }
}
