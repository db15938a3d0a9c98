//! `podlane`: the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    podlane::cli::main(podlane::daemon::run)
}
