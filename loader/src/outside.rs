//! One door to everything that reads bytes which others wrote, for the fuzz targets (`fuzz/`). Nothing else uses it.
//!
//! What is public anyway is not here: [`crate::config::Config::from_text`], [`crate::mirror::event::read`],
//! [`crate::capture::wire::read`], [`crate::bpf::ProgramRecord::read`].

use std::io::{self, Read};
use std::path::Path;

use podlane_dataplane::tap::Filter;

use crate::bpf::filter::{Hook, Instruction, translate};
use crate::capture::pcapng::{Blocks, Entry};
use crate::carry::file::Saved;
use crate::carry::sums::Count;
use crate::control::{self, AskError, BadRequest, Request};
use crate::large::memory::Left;
use crate::mirror::{NetlinkHeaderView, socket};
use crate::names::cni::{self, CniPod};
use crate::status::Status;

/// What the daemon makes of the bytes of a client; `None` if the client goes without a request.
pub fn request(stream: &mut impl Read) -> Option<Result<Request, BadRequest>> {
    control::read_whole_request(stream)
}

/// What `podlane status` makes of an answer.
///
/// # Errors
/// [`AskError::Garbled`].
pub fn status(answer: &str) -> Result<Status, AskError> {
    control::understand("default", answer)
}

/// The messages in what one receive call on a netlink socket gave.
pub fn netlink(bytes: &[u8]) -> impl Iterator<Item = (NetlinkHeaderView, &[u8])> {
    socket::messages(bytes)
}

/// The pod and the interfaces of a file of the container runtime's.
pub fn cni_result(text: &[u8]) -> Option<(CniPod, Vec<String>)> {
    cni::understand(text)
}

/// The file of counters, read, taken over as a next daemon does and added to as much again, and written again.
pub fn counters(text: &[u8]) -> Option<Vec<u8>> {
    let mut saved = Saved::read(text, Path::new("counters")).ok()?;
    saved.workers.iter_mut().for_each(|(_, sums)| sums.carry(&sums.clone()));
    for (_, sums) in &mut saved.ports {
        let settled = sums.clone().settled();
        sums.carry(&settled);
    }
    saved.write().ok()
}

/// `large.json`, read and written again.
pub fn large(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&Left::read(text).ok()?).ok()
}

/// A capture's filter for the XDP program or for the tc program.
pub fn filter(filter: &Filter, for_tc: bool) -> Vec<Instruction> {
    translate(filter, if for_tc { Hook::Tc } else { Hook::Xdp }, 3, 4, 1)
}

/// A capture file of one interface with these packets.
///
/// # Errors
/// Those of `out`.
pub fn capture_file(out: &mut impl io::Write, name: &str, filter: &str, packets: &[Entry<'_>]) -> io::Result<()> {
    let mut blocks = Blocks::default();
    blocks.section(out)?;
    blocks.interface(out, name, 65_000, filter)?;
    for packet in packets {
        blocks.packet(out, packet)?;
    }
    blocks.statistics(out, 0, 1, packets.len() as u64, 0).map(drop)
}

pub use crate::capture::pcapng::Entry as CapturedPacket;
pub use crate::capture::print::summary;
