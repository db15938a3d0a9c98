//! Attaching the tc program to interfaces: at tcx where the kernel has it, as a clsact filter where it has not.
//!
//! A tcx link is pinned, or goes with this process, like an XDP link. A clsact filter stays behind a process that ends
//! without removing it; what it then does is pass every frame, because nobody shows any more that the tables are kept up to
//! date ([`podlane_dataplane::limits::TABLES_STALE_MS`]), and the next start replaces it. To make or remove its qdisc, the
//! kernel takes the interface's queue out of service for a moment, and drops what it is about to send there
//! (`net/sched/sch_api.c`, `qdisc_graft`). So a filter stays for as long as the port is open, whatever path that takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::btf::{Btf, types};
use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHook};
use nix::libc;

use super::attach::current_name;
use super::error::AttachError;
use super::pins::{Entry, Hook, Pins};
use super::{Steering, load, sys};

/// Where in the kernel the tc program hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcKind {
    /// A tcx link (Linux 6.6).
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
}

/// The filter's place among others; low, so that it comes behind programs of those who chose one on purpose.
pub(super) const PRIORITY: u32 = 49_000;
/// The filter's handle within its priority.
pub(super) const HANDLE: u32 = 1;

/// An attached tc program.
#[derive(Debug)]
pub(super) enum TcLink {
    /// Goes with the process unless it is pinned.
    Tcx(OwnedFd),
    /// Detached by request.
    Clsact(Filter),
}

/// A filter of a clsact qdisc.
#[derive(Debug)]
pub(super) struct Filter {
    hook: TcHook,
    own_qdisc: bool,
    /// It outlives this process.
    stays: bool,
}

impl Filter {
    fn new(program: BorrowedFd<'_>, ifindex: u32) -> Self {
        let mut hook = TcHook::new(program);
        hook.ifindex(ifindex as i32).attach_point(TC_INGRESS).handle(HANDLE).priority(PRIORITY).replace(true);
        Filter { hook, own_qdisc: false, stays: false }
    }

    fn remove(&mut self) {
        self.stays = true;
        // The interface may be gone, and the filter with it.
        if let Err(error) = self.hook.detach() {
            tracing::debug!(%error, "removing the tc filter");
        }
        if self.own_qdisc
            && let Err(error) = self.hook.attach_point(TC_INGRESS | TC_EGRESS).destroy()
        {
            tracing::debug!(%error, "removing the clsact qdisc");
        }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if !self.stays {
            self.remove();
        }
    }
}

/// What this kernel has.
pub(super) fn best_kind() -> TcKind {
    let has_tcx = Btf::from_vmlinux().is_ok_and(|btf| btf.type_by_name::<types::Struct<'_>>("tcx_link").is_some());
    if has_tcx { TcKind::Tcx } else { TcKind::Clsact }
}

impl Steering {
    /// Attaches the tc program to tc ingress of interface `ifindex` of the calling thread's network namespace; `name` is for
    /// messages. It forwards nothing before the port's path is [`podlane_dataplane::table::Path::Kernel`] in the tables.
    /// Attaching again changes nothing, unless somebody took a filter away.
    ///
    /// # Errors
    /// See [`AttachError`]; the interface stays as it was.
    pub fn attach_repeat(&mut self, ifindex: u32, name: &str) -> Result<(), AttachError> {
        let is_there = |link: &mut TcLink| match link {
            TcLink::Tcx(_) => true,
            TcLink::Clsact(filter) => filter.hook.query().is_ok(),
        };
        match self.tc_links.get_mut(&ifindex).map(is_there) {
            Some(true) => return Ok(()),
            Some(false) => self.forget_filter(ifindex),
            None => {}
        }
        let program = self.repeat_program(name)?.as_fd().try_clone_to_owned();
        let program = program.map_err(|source| AttachError::Other { name: name.to_owned(), source })?;
        let link = match self.tc_kind {
            TcKind::Tcx => {
                let create = || sys::create_tcx_link(program.as_fd(), ifindex);
                self.adopt_link(Hook::Tcx, ifindex, program.as_fd(), create).map(TcLink::Tcx)
            }
            TcKind::Clsact => self.attach_filter(program.as_fd(), ifindex).map(TcLink::Clsact),
        };
        let link = link.map_err(|error| explain(error, ifindex, name))?;
        self.tc_links.insert(ifindex, link);
        self.enter_device(ifindex);
        Ok(())
    }

    /// Takes the tc program off interface `ifindex`, an earlier daemon's as well. It is no error if it was not attached or the
    /// interface is gone.
    pub fn detach_repeat(&mut self, ifindex: u32) {
        match self.tc_links.remove(&ifindex) {
            Some(TcLink::Tcx(link)) => self.release(vec![(Hook::Tcx, ifindex, link)]),
            Some(TcLink::Clsact(mut filter)) => {
                filter.remove();
                self.unmark(ifindex);
            }
            None => {
                if let Some(link) = self.adopted.remove(&(Hook::Tcx, ifindex)) {
                    self.release(vec![(Hook::Tcx, ifindex, link)]);
                }
                if self.take_filter(ifindex) {
                    self.release_filter(ifindex);
                }
            }
        }
        self.leave_device(ifindex);
    }

    /// The mark of the filter before the filter, that of the qdisc after it: a qdisc that is left over does nothing, but
    /// somebody else's must never be taken for ours.
    fn attach_filter(&mut self, program: BorrowedFd<'_>, ifindex: u32) -> io::Result<Filter> {
        let mut filter = Filter::new(program, ifindex);
        let was_adopted = self.take_filter(ifindex);
        if let Some(pins) = &self.pins {
            pins.mark(Entry::Filter(ifindex)).map_err(io::Error::other)?;
        }
        let made = sys::create_clsact(ifindex)?;
        filter.own_qdisc = made || was_adopted && owns_qdisc(self.pins.as_ref(), &mut filter, ifindex);
        filter.hook.attach().map_err(|error| io::Error::other(error.to_string()))?;
        if let Some(pins) = &self.pins {
            filter.stays = true;
            if filter.own_qdisc
                && let Err(error) = pins.mark(Entry::Qdisc(ifindex))
            {
                tracing::warn!(%error, "a clsact qdisc will be left over");
            }
        }
        Ok(filter)
    }

    fn take_filter(&mut self, ifindex: u32) -> bool {
        let found = self.adopted_filters.iter().position(|adopted| *adopted == ifindex);
        found.map(|at| self.adopted_filters.swap_remove(at)).is_some()
    }

    fn unmark(&self, ifindex: u32) {
        let Some(pins) = &self.pins else { return };
        if let Err(error) = pins.clear(Entry::Qdisc(ifindex)).and_then(|()| pins.clear(Entry::Filter(ifindex))) {
            tracing::warn!(%error, "removing a mark");
        }
    }

    /// Removes a filter that an earlier daemon left.
    pub(super) fn release_filter(&self, ifindex: u32) {
        remove_filter(self.native.as_fd(), self.pins.as_ref(), ifindex);
        self.unmark(ifindex);
    }

    /// Takes the tc program off a port that has left the kernel path, unless that costs it packets; it passes everything there.
    pub fn retire_repeat(&mut self, ifindex: u32) {
        if !matches!(self.tc_links.get(&ifindex), Some(TcLink::Clsact(_))) {
            self.detach_repeat(ifindex);
        }
    }

    /// Somebody took the filter away. A qdisc that is there may be theirs by now.
    fn forget_filter(&mut self, ifindex: u32) {
        if let Some(TcLink::Clsact(filter)) = self.tc_links.get_mut(&ifindex) {
            filter.stays = true;
        }
        self.tc_links.remove(&ifindex);
        self.unmark(ifindex);
    }

    /// How the tc program is attached.
    pub fn tc_kind(&self) -> TcKind {
        self.tc_kind
    }

    /// Has later attachments be of this kind, whatever the kernel could do.
    pub fn set_tc_kind(&mut self, kind: TcKind) {
        self.tc_kind = kind;
    }

    pub(super) fn repeat_program(&mut self, name: &str) -> Result<&load::Program, AttachError> {
        if self.repeat.is_none() {
            let loaded = load::repeat(&self.mirrored, &self.plain);
            let failed = |source| AttachError::NoKernelPath { name: name.to_owned(), source: Box::new(source) };
            self.repeat = Some(loaded.map_err(failed)?);
            self.capture_there_as_well(load::Kind::Repeat);
        }
        self.repeat.as_ref().ok_or_else(|| AttachError::Gone { name: name.to_owned() })
    }
}

/// Whether the qdisc under a filter of ours is ours as well. Without the filter the interface is another one than that of the
/// mark, under the same index.
fn owns_qdisc(pins: Option<&Pins>, filter: &mut Filter, ifindex: u32) -> bool {
    pins.is_some_and(|pins| pins.is_marked(Entry::Qdisc(ifindex))) && filter.hook.query().is_ok()
}

/// Removes a filter that a daemon left, and its qdisc if that is ours. Whether there was one. `any`: any open descriptor.
pub(super) fn remove_filter(any: BorrowedFd<'_>, pins: Option<&Pins>, ifindex: u32) -> bool {
    let mut filter = Filter::new(any, ifindex);
    filter.stays = true;
    let found = filter.hook.query().is_ok();
    if found {
        filter.own_qdisc = owns_qdisc(pins, &mut filter, ifindex);
        filter.remove();
    }
    found
}

/// Turns the kernel's number into a sentence.
fn explain(error: io::Error, ifindex: u32, name: &str) -> AttachError {
    let name = name.to_owned();
    if current_name(ifindex).is_none() {
        return AttachError::Gone { name };
    }
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission { name },
        _ => AttachError::Other { name, source: error },
    }
}
