//! Hand-off and counters.

#[path = "../../dataplane/src/worker/counter.rs"]
pub mod counter;
#[path = "../../dataplane/src/worker/handoff.rs"]
pub mod handoff;

pub use counter::Counter;
