//! The CNI protocol, versions 0.4.0, 1.0.0 and 1.1.0: a call in environment variables and JSON on standard input, an answer
//! in JSON on standard output.
//!
//! Everything that comes in was written by others and is judged before anything is done: sizes, names, numbers. What is
//! wrong is refused with the specification's number and a sentence that says which field it was.

pub mod call;
pub mod config;
pub mod failure;
pub mod result;
pub mod version;

pub use call::{Call, Command};
pub use config::Config;
pub use failure::{Failure, code};
pub use result::{Dns, Interface, Ip, Outcome, Route};
pub use version::Version;

#[cfg(test)]
mod tests;
