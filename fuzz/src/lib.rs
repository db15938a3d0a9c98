//! Everything of Podlane that reads bytes from outside, each as a function of bytes that must not panic.
//!
//! A [`Target`] takes any bytes. It gives them to the code under test in the way in which they come in, and then asks for what
//! must hold: that a specification says the same, that what was read can be written and read again, that a limit holds. Three
//! things run targets: `tests/corpus.rs` on every file of `corpus/` and on inputs bent from them, in the normal test run;
//! libFuzzer (`libfuzzer/`, `scripts/fuzz.sh`), which searches by coverage; and whoever holds a crash in hands:
//! `cargo run -p podlane-fuzz --bin fuzz-seeds -- TARGET FILE`.
//!
//! Each target makes its own seeds, so the corpus is more than bytes that nobody can read; `fuzz-seeds` writes them.

pub mod answer;
pub mod capture;
pub mod config;
pub mod decide;
pub mod filter;
pub mod kernel;
pub mod names;
pub mod netlink;
pub mod packet;
pub mod random;
pub mod request;
pub mod saved;
mod shared;

// The node of the tests of the BPF programs; its files find each other at the root of their crate.
#[allow(dead_code, unused_imports)]
#[path = "../../loader/tests/steer/differential.rs"]
mod differential;
#[allow(dead_code, unused_imports)]
#[path = "../../loader/tests/steer/frames.rs"]
mod frames;
#[allow(dead_code, unused_imports)]
#[path = "../../loader/tests/steer/net.rs"]
mod net;
#[allow(dead_code, unused_imports)]
#[path = "../../loader/tests/steer/world.rs"]
mod world;

/// Inputs by name.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// Something that reads bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of the libFuzzer program, and of the folder of its corpus.
    pub name: &'static str,
    /// Reads them; panics if something is wrong.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Seeds,
    /// Bytes of an input at most that are worth a try.
    pub most_bytes: usize,
}

/// All targets.
pub const TARGETS: [Target; 11] = [
    Target { name: "packet", run: packet::run, seeds: packet::seeds, most_bytes: 2048 },
    Target { name: "decide", run: decide::run, seeds: decide::seeds, most_bytes: 2048 },
    Target { name: "kernel", run: kernel::run, seeds: kernel::seeds, most_bytes: 2048 },
    Target { name: "filter", run: filter::run, seeds: filter::seeds, most_bytes: 1024 },
    Target { name: "config", run: config::run, seeds: config::seeds, most_bytes: 8192 },
    Target { name: "request", run: request::run, seeds: request::seeds, most_bytes: 4096 },
    Target { name: "answer", run: answer::run, seeds: answer::seeds, most_bytes: 16384 },
    Target { name: "netlink", run: netlink::run, seeds: netlink::seeds, most_bytes: 8192 },
    Target { name: "capture", run: capture::run, seeds: capture::seeds, most_bytes: 2048 },
    Target { name: "names", run: names::run, seeds: names::seeds, most_bytes: 4096 },
    Target { name: "saved", run: saved::run, seeds: saved::seeds, most_bytes: 8192 },
];

/// Runs the target of this name.
///
/// # Panics
/// If the target does, or there is none of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}
