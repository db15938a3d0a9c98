//! Compiles the XDP program of the tests' veth pair, which the comparison's headers assemble.

fn main() {
    println!("cargo::rerun-if-changed=src/steer.c");
    println!("cargo::rerun-if-changed=../e2e/kernel.h");
    cc::Build::new().file("src/steer.c").include("../e2e").warnings(true).compile("podlane_steer");
}
