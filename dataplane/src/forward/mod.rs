//! Forwarding decisions: a pure function of a frame's headers and a table snapshot.
//!
//! [`decide`](decide()) asks the questions in the order in which the BPF program asks them (`bpf/decide.h`), so that a frame
//! that was steered to a worker gets the same answer there unless the world changed in between.

mod bridge;
mod decide;
mod reason;
mod route;
mod verdict;

pub use decide::decide;
pub use reason::{DropReason, PassReason};
pub use verdict::{Rewrite, Verdict};
