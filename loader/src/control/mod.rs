//! The control socket: how `podlane status` and other programs on the node talk to a running daemon.
//!
//! A unix socket in `/run/podlane`, named after the instance; one line of JSON asks, one line of JSON answers, and the
//! connection is over. The daemon's side ([`Control`]) never waits for anybody, because the same thread keeps the node's
//! tables; the asking side ([`ask`]) waits for a stated time and then says in a sentence what is wrong.

mod client;
mod protocol;
mod server;
mod socket;

use std::path::PathBuf;

pub(crate) use client::understand;
pub use client::{AskError, PATIENCE, ask, ask_path, ask_reload, ask_status, ask_trace, open};
pub use protocol::{BadRequest, PortPath, Request, Response};
pub(crate) use server::read_whole_request;
pub use server::{Control, ControlError, MAX_CLIENTS, MAX_REQUEST, REQUEST_TIME, RESPONSE_TIME};
pub use socket::{Occupant, occupant};

/// Where the sockets are, unless the environment variable [`RUN_DIRECTORY_VARIABLE`] says otherwise.
pub const RUN_DIRECTORY: &str = "/run/podlane";
/// Names another directory for the sockets.
pub const RUN_DIRECTORY_VARIABLE: &str = "PODLANE_RUN_DIR";

/// The directory of the control sockets.
pub fn run_directory() -> PathBuf {
    match std::env::var_os(RUN_DIRECTORY_VARIABLE) {
        Some(directory) if !directory.is_empty() => directory.into(),
        _ => RUN_DIRECTORY.into(),
    }
}

/// The control socket of an instance.
pub fn socket_path(instance: &str) -> PathBuf {
    run_directory().join(format!("{instance}.sock"))
}

#[cfg(test)]
mod tests;
