//! `podlane-probe`: sends and receives the traffic of the system tests inside of a pod; see [`podlane_tests::probe`].

fn main() -> std::process::ExitCode {
    podlane_tests::probe::main()
}
