//! Forwarding decisions: a pure function of a frame's headers and a table snapshot.
//!
//! [`decide`](decide()) asks the questions in the order in which the BPF program asks them (`bpf/decide.h`), so that a frame
//! that was steered to a worker gets the same answer there unless the world changed in between. Before it stands the source
//! guard ([`guard`](guard())), which looks at the bytes of every frame, those that no decision is made about included.

mod bridge;
mod decide;
mod guard;
mod reason;
mod route;
mod verdict;

pub use decide::decide;
pub use guard::guard;
pub use reason::{DropReason, PassReason};
pub use verdict::{Rewrite, Verdict};
