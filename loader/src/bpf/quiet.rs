//! Taking XDP programs off interfaces whose frames go on.
//!
//! To take an XDP program off a veth that polls anyway, because it has generic receive offload on, is a race in the kernel:
//! `veth_disable_xdp` (`drivers/net/veth.c`) takes away what a program sees of its receive queue (`xdp_rxq_info_unreg`) without
//! waiting for a poll that has the program in hand. A program that then asks on which interface it runs reads from address
//! 0xd8, and the node is down (seen on Linux 6.1). So every link is first given a program that asks for nothing, and detached
//! when no other can be running any more. One wait serves any number of links.

use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;

use super::pins::Hook;
use super::sys;

/// Detaches links, now. Their pins stay.
pub(super) fn detach<'a>(links: impl Iterator<Item = (Hook, BorrowedFd<'a>)> + Clone) {
    quieten(links.clone());
    links.for_each(|(_, link)| sys::detach_link(link));
}

fn quieten<'a>(links: impl Iterator<Item = (Hook, BorrowedFd<'a>)>) {
    let mut native = links.filter(|(hook, _)| *hook == Hook::Xdp(super::XdpMode::Native)).peekable();
    if native.peek().is_none() {
        return;
    }
    let passing = match sys::load_passing() {
        Ok(passing) => passing,
        Err(error) => return tracing::warn!(%error, "loading a program that passes everything"),
    };
    let mut updated = false;
    for (_, link) in native {
        match sys::update_link(link, passing.as_fd()) {
            Ok(()) => updated = true,
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => tracing::warn!(%error, "a program is taken off as it is: its link cannot be updated"),
        }
    }
    if updated {
        sys::wait_for_all_programs();
    }
}
