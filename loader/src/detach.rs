//! `podlane detach`: takes back everything that a daemon has left on the node.
//!
//! Programs come off first, so that what follows changes nothing for traffic: offloads, the pods' sizes, MTUs and routes, the
//! host port, and at last the pins. Each step can be done again, so an interrupted detach is completed by the next. What
//! belongs to somebody else by now is left alone.

use std::fmt::Write;

use nix::net::if_::if_indextoname;
use serde::Serialize;

use crate::bpf::pins::{self, Hook, Layout, NoBpffs, PinError, Pins, Root, find_root};
use crate::control::{Control, ControlError};
use crate::kernel::{HostPortNames, Kernel, KernelError};
use crate::large::{self, Large};
use crate::takeover::{TakeOverError, relieve};

/// Names that a line lists.
const LISTED: usize = 8;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Whose traces.
    pub instance: String,
    /// Where they are pinned.
    pub root: Root,
    /// Have a running daemon stop first.
    pub stop: bool,
}

/// Not everything could be taken back.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// A daemon runs.
    #[error("{0}, or have it stop by `podlane detach --stop`")]
    Running(String),
    /// It does not stop.
    #[error(transparent)]
    Stop(#[from] TakeOverError),
    /// The control socket's directory.
    #[error(transparent)]
    Control(ControlError),
    /// The named directory is no bpffs.
    #[error(transparent)]
    Bpffs(#[from] NoBpffs),
    /// Pins.
    #[error("{0}; run this as root")]
    Pin(#[from] PinError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Sizes and MTUs.
    #[error("giving the pods their sizes back: {0}")]
    Large(#[from] crate::mirror::NetlinkError),
}

/// A program that was taken off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenOff {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// `xdp`, `tcx` or `clsact`.
    pub hook: &'static str,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this shape: 1.
    pub schema: u32,
    /// The instance.
    pub instance: String,
    /// The process that was stopped.
    pub stopped: Option<u64>,
    /// Programs that were taken off.
    pub programs: Vec<TakenOff>,
    /// Interfaces whose generic receive offload was switched off again.
    pub offloads: Vec<String>,
    /// Pods that have their segmentation sizes back.
    pub sizes: usize,
    /// Pods that have their MTUs and routes back.
    pub mtus: usize,
    /// Whether there was a host port.
    pub host_port: bool,
    /// Directories of pins that were removed.
    pub pins: Vec<String>,
    /// Directories of pins of other network namespaces whose programs are attached there: detach inside of those.
    pub elsewhere: Vec<String>,
}

/// Takes everything back.
///
/// # Errors
/// [`DetachError`]; what was done until then is done.
pub fn detach(wish: &Wish) -> Result<Report, DetachError> {
    let instance = wish.instance.as_str();
    let mut report = Report { schema: 1, instance: instance.to_owned(), ..Report::default() };
    // Both are held to the end, so that no daemon starts, or prepares to take over, meanwhile.
    let _turn = crate::survival::take_turn(&wish.root, instance)?;
    let _control = if wish.stop {
        let (control, pid) = relieve(instance)?;
        report.stopped = pid;
        control
    } else {
        Control::open(instance).map_err(|error| match error {
            ControlError::Occupied { .. } => DetachError::Running(occupied(&error)),
            error => DetachError::Control(error),
        })?
    };
    let mut kernel = Kernel::open()?;
    let root = match find_root(&wish.root) {
        Ok(root) => Some(root),
        // A daemon without bpffs has left nothing there.
        Err(NoBpffs::NotMounted | NoBpffs::Off) => None,
        Err(error) => return Err(error.into()),
    };
    let own = root.as_ref().map(|root| Pins::of(root, instance)).transpose()?;
    if let Some(own) = &own {
        take_off(own, &mut kernel, &mut report)?;
    }
    let mut large = Large::open(large::Wish::default(), instance)?;
    (report.sizes, report.mtus) = large.held();
    large.end();
    report.host_port = match kernel.delete_host_port(HostPortNames::default(), instance) {
        // Somebody else has an interface of that name.
        Err(KernelError::ForeignInterface { .. }) => false,
        deleted => deleted?,
    };
    for pins in root.iter().map(|root| Pins::everywhere(root, instance)).collect::<Result<Vec<_>, _>>()?.concat() {
        let path = pins.directory().display().to_string();
        let is_own = own.as_ref().is_some_and(|own| own.directory() == pins.directory());
        if !is_own && !pins::plan(Layout::own(), &pins.found()?).links.is_empty() {
            report.elsewhere.push(path);
            continue;
        }
        let is_empty = pins.found()?.is_empty();
        pins.remove()?;
        if !is_empty {
            report.pins.push(path);
        }
    }
    Ok(report)
}

/// The beginning of the sentence, up to the cure.
fn occupied(error: &ControlError) -> String {
    let sentence = error.to_string();
    sentence.split_once(", or ").map_or(sentence.clone(), |(start, _)| start.to_owned())
}

fn take_off(pins: &Pins, kernel: &mut Kernel, report: &mut Report) -> Result<(), DetachError> {
    let plan = pins::plan(Layout::own(), &pins.found()?);
    // Before the links go, by which these interfaces are known again.
    for ifindex in plan.gro {
        if kernel.set_gro(ifindex, false).unwrap_or(false) {
            report.offloads.push(name(ifindex));
        }
    }
    pins.take_off(&plan.links)?;
    for (hook, ifindex) in plan.links {
        let hook = if hook == Hook::Tcx { "tcx" } else { "xdp" };
        report.programs.push(TakenOff { interface: name(ifindex), ifindex, hook });
    }
    for ifindex in plan.filters {
        if pins.take_off_filter(ifindex)? {
            report.programs.push(TakenOff { interface: name(ifindex), ifindex, hook: "clsact" });
        }
    }
    Ok(())
}

/// The interface's name, or its index if it is going away.
fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("#{ifindex}"))
}

impl Report {
    /// For people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |sentence: String| {
            let _ = writeln!(text, "{sentence}");
        };
        if let Some(pid) = self.stopped {
            line(format!("stopped process {pid}"));
        }
        if !self.programs.is_empty() {
            let names: Vec<_> =
                self.programs.iter().map(|taken| format!("{} ({})", taken.interface, taken.hook)).collect();
            line(format!("took {} off: {}", count(names.len(), "program"), listed(&names)));
        }
        if !self.offloads.is_empty() {
            line(format!("switched generic receive offload off again: {}", listed(&self.offloads)));
        }
        for (pods, what) in [(self.sizes, "segmentation sizes"), (self.mtus, "MTUs and routes")] {
            if pods > 0 {
                line(format!("gave {} their {what} back", count(pods, "pod")));
            }
        }
        if self.host_port {
            line("removed the host port podlane0".to_owned());
        }
        for path in &self.pins {
            line(format!("removed {path}"));
        }
        for path in &self.elsewhere {
            line(format!("left {path}: its programs are in another network namespace, detach there (nsenter --net=…)"));
        }
        if text.is_empty() {
            return format!("nothing of podlane instance \"{}\" is on this node\n", self.instance);
        }
        text
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_told_and_nothing_is_too() {
        let nothing = Report { instance: "blue".to_owned(), ..Report::default() };
        assert_eq!(nothing.render(), "nothing of podlane instance \"blue\" is on this node\n");
        let taken = |ifindex: u32| TakenOff { interface: format!("veth{ifindex}"), ifindex, hook: "tcx" };
        let report = Report {
            stopped: Some(7),
            programs: (1..=10).map(taken).collect(),
            offloads: vec!["veth1".to_owned()],
            mtus: 1,
            host_port: true,
            pins: vec!["/sys/fs/bpf/podlane/blue/1".to_owned()],
            ..nothing
        };
        let text = report.render();
        assert!(
            text.contains("took 10 programs off: veth1 (tcx), veth2 (tcx)") && text.contains("and 2 more"),
            "{text}"
        );
        assert!(text.contains("gave 1 pod their MTUs and routes back") && !text.contains("sizes"), "{text}");
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn a_running_daemon_is_named_with_the_cure() {
        let error = ControlError::Occupied { instance: "blue".to_owned(), pid: Some(7) };
        let sentence = DetachError::Running(occupied(&error)).to_string();
        assert_eq!(
            sentence,
            "podlane instance \"blue\" runs already as process 7; stop it first, or have it stop by `podlane detach --stop`"
        );
    }
}
