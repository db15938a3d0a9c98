//! The XDP and tc programs, driven for real: by `BPF_PROG_TEST_RUN` for every rule and reason of both families, against the Rust
//! engine with random frames and tables, and attached to veth pairs with AF_XDP sockets behind it.
//!
//! Each test runs in network namespaces of its own. Without root the tests cannot run; each says so on standard error.

mod attaching;
mod capturing;
mod differential;
mod frames;
mod guarding;
mod live;
mod net;
mod pinning;
mod reasons;
mod repeating;
mod steering;
mod syncing;
mod translating;
mod world;
