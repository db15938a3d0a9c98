//! Compiles the BPF programs with clang and generates their skeletons (`$OUT_DIR/<program>.skel.rs`).
//!
//! The programs include nothing but `bpf/*.h` and the helper headers that come with libbpf, so clang is all they need.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;

/// Programs in `bpf/`, without `.bpf.c`.
const PROGRAMS: [&str; 4] = ["steer", "steer_veth", "steer_generic", "repeat"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            for line in sentence.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
    let sources = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../bpf");
    let output = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var_os("CLANG").unwrap_or_else(|| OsString::from("clang"));
    require_clang(&clang)?;
    watch(&sources)?;
    for program in PROGRAMS {
        let source = sources.join(format!("{program}.bpf.c"));
        SkeletonBuilder::new()
            .source(&source)
            .clang(&clang)
            // 32-bit registers: shorter programs, and bounds that the verifier can follow. Linux 5.1.
            .clang_args(["-mcpu=v3", "-Wall", "-Wextra", "-Wshadow", "-Werror"])
            .build_and_generate(output.join(format!("{program}.skel.rs")))
            .map_err(|error| format!("{} does not build: {error:#}", source.display()))?;
    }
    Ok(())
}

/// Has cargo run this again when any BPF source changes, comes or goes.
fn watch(sources: &Path) -> Result<(), String> {
    let describe = |error| format!("{} cannot be read: {error}", sources.display());
    println!("cargo::rerun-if-changed={}", sources.display());
    for entry in fs::read_dir(sources).map_err(describe)? {
        println!("cargo::rerun-if-changed={}", entry.map_err(describe)?.path().display());
    }
    Ok(())
}

fn require_clang(clang: &OsString) -> Result<(), String> {
    let cure = "Podlane's XDP programs are compiled by clang 14 or newer: install it (Debian: apt-get install clang) or \
                name it in the environment variable CLANG";
    match Command::new(clang).arg("--print-targets").output() {
        Ok(output) if !output.status.success() => {
            Err(format!("{} --print-targets failed ({}). {cure}", clang.display(), output.status))
        }
        Ok(output) if !String::from_utf8_lossy(&output.stdout).contains("bpf") => {
            Err(format!("{} has no BPF target. {cure}", clang.display()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{} cannot be run: {error}. {cure}", clang.display())),
    }
}
