//! The ring of captured frames.

#[path = "../../dataplane/src/tap/ring.rs"]
pub mod ring;

pub use podlane_dataplane::tap::filter::Bytes;
pub use podlane_dataplane::tap::{Direction, Outcome, Record};
