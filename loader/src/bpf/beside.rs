//! What others have at tc of a port that packets which Podlane takes do not come to.
//!
//! On the af_xdp path that is all of it: a frame is taken in front of tc ingress, and an AF_XDP socket sends past tc egress
//! (`__dev_direct_xmit`). On the kernel path it is what comes behind our program at tc ingress (tcx programs one after the
//! other, then the filters of a clsact: `sch_handle_ingress`), and the egress of a pod's port, which `bpf_redirect_peer`
//! passes by; an uplink's egress is on the way.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use podlane_dataplane::table::Path;

use super::repeat::{HANDLE, PRIORITY, TcLink};
use super::{Steering, TcKind, sys};
use crate::kernel::nested;
use crate::mirror::{NetlinkError, RequestSocket};

/// A port, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// Interface index.
    pub ifindex: u32,
    /// The path that its frames take.
    pub path: Path,
    /// Whether it is an uplink.
    pub is_uplink: bool,
}

/// `struct tcmsg` in front of the attributes (`linux/rtnetlink.h`), and in it the handle and what holds the priority.
const HEADER: usize = 20;
const HANDLE_AT: usize = 8;
const INFO_AT: usize = 16;
/// `TCA_KIND`.
const KIND: u16 = 1;

/// A filter of somebody.
struct Filter {
    kind: String,
    priority: u32,
    handle: u32,
}

impl Beside {
    /// What is passed by, in a person's words; nothing where there is nothing, or where it cannot be found out.
    pub fn passed_by(self, steering: &Steering, requests: &mut RequestSocket) -> Vec<String> {
        let own = match steering.tc_links.get(&self.ifindex) {
            Some(TcLink::Tcx(link)) => sys::link_state(link.as_fd()).ok().map(|state| state.program),
            _ => None,
        };
        let mut found = Vec::new();
        for is_egress in [false, true] {
            if is_egress && self.is_uplink && self.path == Path::Kernel {
                continue;
            }
            let place = if is_egress { "egress" } else { "ingress" };
            let programs = sys::tcx_programs(self.ifindex, is_egress).unwrap_or_default();
            let programs = behind(programs, own, !is_egress && self.path == Path::Kernel);
            found.extend(programs.iter().map(|id| format!("program {id} at {place}")));
            let filters = filters(requests, self.ifindex, is_egress).unwrap_or_default();
            let kinds: BTreeSet<String> = filters
                .into_iter()
                .filter(|filter| is_egress || !self.comes_first_or_is_ours(filter, steering))
                .map(|filter| filter.kind)
                .collect();
            found.extend(kinds.iter().map(|kind| format!("{kind} filter at {place}")));
        }
        found
    }

    /// Whether a filter at tc ingress is ours, or sees packets before ours does.
    fn comes_first_or_is_ours(self, filter: &Filter, steering: &Steering) -> bool {
        let is_ours = filter.kind == "bpf" && filter.priority == PRIORITY && filter.handle == HANDLE;
        let has_filter = matches!(steering.tc_links.get(&self.ifindex), Some(TcLink::Clsact(_)));
        let comes_first = self.path == Path::Kernel && filter.priority < PRIORITY;
        steering.tc_kind == TcKind::Clsact && has_filter && (is_ours || comes_first)
    }
}

/// Programs of others: those behind ours where only these are passed by.
fn behind(mut programs: Vec<u32>, own: Option<u32>, only_behind: bool) -> Vec<u32> {
    let place = programs.iter().position(|id| Some(*id) == own);
    match place {
        Some(place) if only_behind => programs.split_off(place + 1),
        _ => {
            programs.retain(|id| Some(*id) != own);
            programs
        }
    }
}

/// The filters of a clsact on one side of an interface.
fn filters(requests: &mut RequestSocket, ifindex: u32, is_egress: bool) -> Result<Vec<Filter>, NetlinkError> {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: if is_egress { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS },
    };
    let mut filters = Vec::new();
    let request = RouteNetlinkMessage::GetTrafficFilter(message);
    requests.dump(request, "list filters", |_, payload| {
        let word =
            |at: usize| payload.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word));
        let handle = word(HANDLE_AT);
        let kind = nested(payload.get(HEADER..).unwrap_or_default()).find(|(kind, _)| *kind == KIND);
        // The kernel lists what holds the filters of a priority as well; it has no handle.
        if let Some((_, kind)) = kind.filter(|_| handle != 0) {
            let kind = String::from_utf8_lossy(&kind).trim_end_matches('\0').to_owned();
            filters.push(Filter { kind, priority: word(INFO_AT) >> 16, handle });
        }
    })?;
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::behind;

    #[test]
    fn on_the_kernel_path_programs_in_front_see_everything() {
        assert_eq!(behind(vec![3, 7, 5, 9], Some(7), true), [5, 9]);
        assert_eq!(behind(vec![3, 7, 5, 9], Some(7), false), [3, 5, 9]);
        assert_eq!(behind(vec![3, 5], None, true), [3, 5]);
        assert_eq!(behind(vec![7], Some(7), true), [0; 0]);
    }
}
