//! The conformance tests of the frame I/O (`dataplane/src/afxdp/conformance.rs`) for our own sockets and for xsk-rs's, each in
//! a thread with a network namespace of its own. Needs root.

use std::panic::{AssertUnwindSafe, catch_unwind};

use podlane_dataplane::afxdp::Socket;
use podlane_dataplane::afxdp::conformance::cases;
use podlane_xsk_rs::XskQueue;
use podlane_xsk_rs::veth::{Implementation, Veth};

/// Runs all cases for one implementation; returns how many failed.
fn run<Q: Implementation + 'static>(name: &str) -> usize {
    let mut failed = 0;
    for (case, test) in cases::<Veth<Q>>() {
        let run = move || catch_unwind(AssertUnwindSafe(|| test(Veth::new()))).is_ok();
        let passed = std::thread::spawn(run).join().unwrap_or(false);
        println!("test {name}::{case} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    failed
}

fn main() {
    let failed = run::<Socket>("podlane") + run::<XskQueue>("xsk_rs");
    let passed = 2 * cases::<Veth<Socket>>().len() - failed;
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    std::process::exit(i32::from(failed != 0));
}
