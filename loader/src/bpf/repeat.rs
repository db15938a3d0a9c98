//! Attaching the tc program to interfaces: at tcx where the kernel has it, as a clsact filter where it has not.
//!
//! A tcx link goes with this process, like an XDP link. A clsact filter stays behind a process that was killed; what it
//! then does is pass every frame, because nobody shows any more that the tables are kept up to date
//! ([`podlane_dataplane::limits::TABLES_STALE_MS`]), and the next start replaces it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::btf::{Btf, types};
use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHook};
use nix::libc;

use super::attach::current_name;
use super::error::AttachError;
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
const PRIORITY: u32 = 49_000;
/// The filter's handle within its priority.
const HANDLE: u32 = 1;

/// An attached tc program.
#[derive(Debug)]
pub(super) enum TcLink {
    /// Goes with the process.
    Tcx { link: OwnedFd },
    /// Detached by request.
    Clsact { filter: TcHook, own_qdisc: bool },
}

impl Drop for TcLink {
    fn drop(&mut self) {
        let (filter, own_qdisc) = match self {
            TcLink::Tcx { link } => return sys::detach_link(link.as_fd()),
            TcLink::Clsact { filter, own_qdisc } => (filter, own_qdisc),
        };
        // The interface may be gone, and the filter with it.
        if let Err(error) = filter.detach() {
            tracing::debug!(%error, "removing the tc filter");
        }
        if *own_qdisc && let Err(error) = filter.attach_point(TC_INGRESS | TC_EGRESS).destroy() {
            tracing::debug!(%error, "removing the clsact qdisc");
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
    /// Attaching again changes nothing.
    ///
    /// # Errors
    /// See [`AttachError`]; the interface stays as it was.
    pub fn attach_repeat(&mut self, ifindex: u32, name: &str) -> Result<(), AttachError> {
        if self.tc_links.contains_key(&ifindex) {
            return Ok(());
        }
        let kind = self.tc_kind;
        let program = self.repeat_program(name)?.as_fd();
        let link = match kind {
            TcKind::Tcx => sys::create_tcx_link(program, ifindex).map(|link| TcLink::Tcx { link }),
            TcKind::Clsact => attach_filter(program, ifindex),
        };
        let link = link.map_err(|error| explain(error, ifindex, name))?;
        self.tc_links.insert(ifindex, link);
        Ok(())
    }

    /// Takes the tc program off interface `ifindex`. It is no error if it was not attached or the interface is gone.
    pub fn detach_repeat(&mut self, ifindex: u32) {
        self.tc_links.remove(&ifindex);
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

fn attach_filter(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<TcLink> {
    let own_qdisc = sys::create_clsact(ifindex)?;
    let mut filter = TcHook::new(program);
    filter.ifindex(ifindex as i32).attach_point(TC_INGRESS).handle(HANDLE).priority(PRIORITY).replace(true);
    let attached = filter.attach().map_err(|error| io::Error::other(error.to_string()));
    let link = TcLink::Clsact { filter, own_qdisc };
    // On failure the qdisc goes again.
    attached.map(|_| link)
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
