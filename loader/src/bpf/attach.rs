//! Attaching the program to interfaces, by links that the kernel takes away with this process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{Xdp, XdpFlags};
use nix::libc;

use super::error::AttachError;
use super::pins::Hook;
use super::{Steering, load, sys};
use crate::kernel::Kernel;
use crate::mirror::world::LinkKind;

/// Where in the receive path a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum XdpMode {
    /// In the driver, on raw frames (`XDP_FLAGS_DRV_MODE`). A veth pair stops offering TSO to its other end.
    Native,
    /// In the stack, on socket buffers (`XDP_FLAGS_SKB_MODE`): slower, for drivers without XDP. Super-frames pass.
    Generic,
}

impl Steering {
    /// Attaches the program to interface `ifindex` of the calling thread's network namespace; `name` is for messages. The
    /// mode is exactly the one asked for, never another instead, and is returned. Attaching again changes nothing and
    /// returns the mode in use.
    ///
    /// # Errors
    /// See [`AttachError`]; the interface stays as it was.
    pub fn attach(&mut self, ifindex: u32, name: &str, mode: XdpMode) -> Result<XdpMode, AttachError> {
        if let Some((mode, _)) = self.links.get(&ifindex) {
            return Ok(*mode);
        }
        let program = match mode {
            XdpMode::Native => self.native_program(ifindex, name)?.try_clone_to_owned(),
            XdpMode::Generic => self.generic_program(name)?.as_fd().try_clone_to_owned(),
        };
        let program = program.map_err(|source| AttachError::Other { name: name.to_owned(), source })?;
        // There can be one XDP program, so one in the other mode has to go first.
        let other = if mode == XdpMode::Native { XdpMode::Generic } else { XdpMode::Native };
        if let Some(link) = self.adopted.remove(&(Hook::Xdp(other), ifindex)) {
            self.release(vec![(Hook::Xdp(other), ifindex, link)]);
        }
        let create = || sys::create_link(program.as_fd(), ifindex, mode);
        let created = self.adopt_link(Hook::Xdp(mode), ifindex, program.as_fd(), create);
        let link = created.map_err(|error| explain(error, ifindex, name, mode, self.native.as_fd()))?;
        self.links.insert(ifindex, (mode, link));
        self.enter_device(ifindex);
        Ok(mode)
    }

    /// Takes the program off these interfaces, an earlier daemon's as well. When this returns no frame enters the program there
    /// any more. It is no error if it was not attached or the interface is gone. Takes some ten milliseconds, however many
    /// they are.
    pub fn detach(&mut self, interfaces: &[u32]) {
        let mut links = Vec::new();
        for ifindex in interfaces {
            let own = self.links.remove(ifindex);
            links.extend(own.map(|(mode, link)| (Hook::Xdp(mode), *ifindex, link)));
            let hooks = [XdpMode::Native, XdpMode::Generic].map(Hook::Xdp);
            let adopted = |hook| Some((hook, *ifindex, self.adopted.remove(&(hook, *ifindex))?));
            links.extend(hooks.into_iter().filter_map(adopted));
        }
        self.release(links);
        interfaces.iter().for_each(|ifindex| self.leave_device(*ifindex));
    }

    /// Interfaces that the program is attached to, and how.
    pub fn attached(&self) -> impl Iterator<Item = (u32, XdpMode)> {
        self.links.iter().map(|(ifindex, (mode, _))| (*ifindex, *mode))
    }

    /// Whether frames whose VLAN tag travels beside them, as a veth's do by default, are recognised and left to the kernel:
    /// on veths in native mode from Linux 6.3 on. Elsewhere such frames look untagged, and nobody may send them.
    pub fn sees_veth_tags(&self) -> bool {
        self.veth.is_some()
    }

    fn native_program(&self, ifindex: u32, name: &str) -> Result<BorrowedFd<'_>, AttachError> {
        match &self.veth {
            Some(veth) if is_veth(ifindex, name)? => Ok(veth.as_fd()),
            _ => Ok(self.native.as_fd()),
        }
    }

    fn generic_program(&mut self, name: &str) -> Result<&load::Program, AttachError> {
        if self.generic.is_none() {
            let loaded = load::generic(&self.mirrored, &self.plain);
            let failed = |source| AttachError::NoGenericMode { name: name.to_owned(), source: Box::new(source) };
            self.generic = Some(loaded.map_err(failed)?);
            self.capture_there_as_well(load::Kind::Generic);
        }
        self.generic.as_ref().ok_or_else(|| AttachError::Gone { name: name.to_owned() })
    }
}

/// Whether an interface is a veth. The program for veths must run on no other: it looks behind the driver's structure.
fn is_veth(ifindex: u32, name: &str) -> Result<bool, AttachError> {
    let failed = |error| AttachError::Other { name: name.to_owned(), source: io::Error::other(error) };
    // It may have been renamed since the caller looked.
    let current = current_name(ifindex).ok_or_else(|| AttachError::Gone { name: name.to_owned() })?;
    let link = Kernel::open().and_then(|mut kernel| kernel.link(&current)).map_err(failed)?;
    match link {
        Some(link) if link.ifindex == ifindex => Ok(link.kind == LinkKind::Veth),
        _ => Err(AttachError::Gone { name: name.to_owned() }),
    }
}

/// The name of an interface of the calling thread's namespace; `None` if there is none with this index.
pub(super) fn current_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    // nix 0.31 reports an unknown index as an empty name.
    (!name.is_empty()).then_some(name)
}

/// Turns the kernel's number into a sentence (`net/core/dev.c` `dev_xdp_attach`, `drivers/net/veth.c` `veth_xdp_set`).
fn explain(error: io::Error, ifindex: u32, name: &str, mode: XdpMode, program: BorrowedFd<'_>) -> AttachError {
    let name = name.to_owned();
    // Attaching to an interface that is not there gives EINVAL, like much else.
    if current_name(ifindex).is_none() {
        return AttachError::Gone { name };
    }
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => match foreign_program(ifindex, program) {
            Some((id, program)) => AttachError::Foreign { name, id, program },
            None => AttachError::Other { name, source: error },
        },
        Some(libc::EOPNOTSUPP) if mode == XdpMode::Native => AttachError::NoNativeXdp { name },
        Some(libc::ENOSPC) => AttachError::Queues { name },
        Some(libc::ERANGE | libc::EINVAL) => AttachError::Settings { name },
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission { name },
        _ => AttachError::Other { name, source: error },
    }
}

/// Number and name of the XDP program that interface `ifindex` already has, in whichever mode.
fn foreign_program(ifindex: u32, any: BorrowedFd<'_>) -> Option<(u32, String)> {
    let found = Xdp::new(any).query(i32::try_from(ifindex).ok()?, XdpFlags::NONE).ok()?;
    let ids = [found.prog_id, found.drv_prog_id, found.skb_prog_id, found.hw_prog_id];
    let id = ids.into_iter().find(|&id| id != 0)?;
    let mut programs = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default());
    let name = programs.find(|info| info.id == id).map_or_else(|| OsString::from("name unknown"), |info| info.name);
    Some((id, name.to_string_lossy().into_owned()))
}
