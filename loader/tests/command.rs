//! The command against the real kernel: every way in which `podlane run` must refuse to start, with its sentence, its exit
//! code, and a node that is as it was; `podlane status` and `podlane check` on such a node. Each test has a network namespace
//! of its own. Needs root; prints "skipped: not root" otherwise.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use nix::poll::{PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use podlane::control::{Control, Response};
use podlane::mirror::Mirror;
use podlane::mirror::world::Link;

/// A node in a network namespace that ends with its thread: `cbr0` with a pod, and `eth0` towards another node.
struct Node {
    run_directory: tempfile::TempDir,
}

fn on_a_node(name: &str, test: impl FnOnce(&Node) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("{name}: skipped: not root");
        return;
    }
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for command in [
            "ip link add cbr0 type bridge",
            "ip address add 10.244.1.1/24 dev cbr0",
            "ip link add eth0 type veth peer name other",
            "ip link add vethpod1 type veth peer name pod1",
            "ip link set vethpod1 master cbr0",
            "ip link set cbr0 up",
            "ip link set eth0 up",
            "ip link set other up",
            "ip link set vethpod1 up",
            "ip link set pod1 up",
        ] {
            must(command);
        }
        wait_for_carrier();
        test(&Node { run_directory: tempfile::tempdir().unwrap() });
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body).unwrap();
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn must(command: &str) -> String {
    let words: Vec<_> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The kernel tells carriers a moment after the interfaces are up.
fn wait_for_carrier() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut mirror = Mirror::open().unwrap();
    loop {
        mirror.dump().unwrap();
        let links = mirror.world().links.values();
        if links.filter(|link| !link.loopback).all(Link::is_operational) {
            return;
        }
        assert!(Instant::now() < deadline, "no carrier: {:?}", mirror.world().links);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything about this namespace's interfaces that a daemon changes and time does not.
fn interfaces() -> Vec<String> {
    let mut mirror = Mirror::open().unwrap();
    mirror.dump().unwrap();
    let links = mirror.world().links.values();
    let facts = |link: &Link| (link.mac, link.mtu, link.up, link.master, link.xdp_program, link.bridge_port.is_some());
    links.map(|link| format!("{} {:?}", link.name, facts(link))).collect()
}

impl Node {
    fn podlane(&self, line: &str) -> Command {
        self.equipped(Command::new(env!("CARGO_BIN_EXE_podlane")), line)
    }

    fn equipped(&self, mut command: Command, line: &str) -> Command {
        command.args(line.split_whitespace()).env("PODLANE_RUN_DIR", self.run_directory.path());
        command
    }

    /// What `podlane run` says when it refuses to start, having changed nothing.
    fn refusal(&self, line: &str) -> (i32, String) {
        self.refused(&mut self.podlane(&format!("run --config /dev/null {line}")))
    }

    fn refused(&self, command: &mut Command) -> (i32, String) {
        let before = interfaces();
        let output = command.output().unwrap();
        assert_eq!(interfaces(), before, "something was changed");
        assert_eq!(text(&output.stdout), "");
        (output.status.code().expect("an exit code"), text(&output.stderr))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const USUAL: &str = "--bridge cbr0 --uplink eth0 --cluster-cidr 10.244.0.0/16 --frames 2048";

#[test]
fn unusable_interfaces_are_refused() {
    on_a_node("unusable_interfaces", |node| {
        let (code, sentence) = node.refusal("--bridge eth0 --uplink other");
        assert!(code == 1 && sentence.contains("eth0 is not a bridge (its kind is veth)"), "{sentence}");
        let (code, sentence) = node.refusal("--bridge cbr0 --uplink vethpod1");
        assert!(code == 1 && sentence.contains("vethpod1 is a member of cbr0"), "{sentence}");
    });
}

#[test]
fn bad_configurations_are_refused_with_two() {
    on_a_node("bad_configurations", |node| {
        let (code, sentence) = node.refusal("--bridge cbr0 --uplink eth0 --cpus 1000");
        assert!(code == 2 && sentence.starts_with("podlane: --cpus: CPU 1000 does not exist"), "{sentence}");
        let overlapping = "--bridge cbr0 --uplink eth0 --cluster-cidr 10.0.0.0/8 --cluster-cidr 10.1.0.0/16";
        let (code, sentence) = node.refusal(overlapping);
        assert!(code == 2 && sentence.contains("10.1.0.0/16 and 10.0.0.0/8 overlap"), "{sentence}");
        let file = node.run_directory.path().join("podlane.toml");
        std::fs::write(&file, "brigde = \"cbr0\"\nuplinks = [\"eth0\"]\n").unwrap();
        let (code, sentence) = node.refused(&mut node.podlane(&format!("run --config {}", file.display())));
        let expected = format!("podlane: {}:1: there is no key \"brigde\"; did you mean `bridge`?\n", file.display());
        assert_eq!((code, sentence), (2, expected));
    });
}

#[test]
fn each_missing_capability_is_named() {
    on_a_node("each_missing_capability", |node| {
        // What the bounding set of this thread lacks, a program that it starts cannot get, although it is root's.
        for capability in [Capability::CAP_BPF, Capability::CAP_NET_RAW] {
            caps::drop(None, CapSet::Bounding, capability).unwrap();
            let (code, sentence) = node.refusal(USUAL);
            assert!(code == 1 && sentence.starts_with("podlane: podlane run lacks "), "{sentence}");
            assert!(sentence.contains(&capability.to_string()), "{sentence}");
            assert!(sentence.contains("run it as root"), "{sentence}");
        }
        let output = node.podlane(&format!("check --config /dev/null {USUAL}")).output().unwrap();
        let report = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1));
        assert!(report.contains("FAIL  capabilities"), "{report}");
        assert!(report.contains("CAP_NET_RAW (to open AF_XDP sockets)"), "{report}");
        assert!(report.contains("FAIL  AF_XDP"), "{report}");
    });
}

#[test]
fn too_little_locked_memory_is_refused_with_the_need() {
    on_a_node("too_little_locked_memory", |node| {
        for capability in [Capability::CAP_IPC_LOCK, Capability::CAP_SYS_RESOURCE] {
            caps::drop(None, CapSet::Bounding, capability).unwrap();
        }
        // Only a shell lowers the limit of one program instead of that of all tests.
        let mut command = Command::new("sh");
        let line = format!("ulimit -l 64; exec {} run --config /dev/null {USUAL}", env!("CARGO_BIN_EXE_podlane"));
        command.args(["-c", &line]);
        let (code, sentence) = node.refused(&mut node.equipped(command, ""));
        let expected = "podlane: 8 MiB of locked memory are needed and the limit is 64 KiB: raise the limit";
        assert!(code == 1 && sentence.starts_with(expected), "{sentence}");
    });
}

#[test]
fn an_uplink_with_another_xdp_program_is_refused() {
    on_a_node("another_xdp_program", |node| {
        stranger(node.run_directory.path(), "eth0");
        let (code, sentence) = node.refusal(USUAL);
        assert!(code == 1 && sentence.starts_with("podlane: eth0 already has XDP program id "), "{sentence}");
        assert!(sentence.contains("(stranger)") && sentence.ends_with("ip link set dev eth0 xdp off\n"), "{sentence}");
        let output = node.podlane(&format!("check --config /dev/null {USUAL} --json")).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let line = line_of(&report, "uplink eth0");
        assert_eq!((output.status.code(), line["level"].as_str()), (Some(1), Some("fail")));
        must("ip link set dev eth0 xdpgeneric off");
        // A pod's port with one stays with the kernel, and is no reason not to start.
        stranger(node.run_directory.path(), "vethpod1");
        let output = node.podlane(&format!("check --config /dev/null {USUAL} --json")).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line_of(&report, "port vethpod1")["level"], "warn");
        assert_eq!(line_of(&report, "uplink eth0")["level"], "ok");
        assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()));
    });
}

fn line_of<'r>(report: &'r serde_json::Value, subject: &str) -> &'r serde_json::Value {
    let lines = report["checks"].as_array().unwrap();
    lines.iter().find(|line| line["subject"] == subject).unwrap_or_else(|| panic!("no {subject}: {report}"))
}

/// Attaches an XDP program that is not ours.
fn stranger(directory: &Path, interface: &str) {
    let (source, object) = (directory.join("stranger.c"), directory.join("stranger.o"));
    let program = "__attribute__((section(\"xdp\"), used)) int stranger(void *context) { return 2; }\n";
    std::fs::write(&source, program).unwrap();
    must(&format!("clang -g -O2 -target bpf -c {} -o {}", source.display(), object.display()));
    must(&format!("ip link set dev {interface} xdpgeneric obj {} sec xdp", object.display()));
}

#[test]
fn a_second_daemon_of_a_name_is_refused() {
    on_a_node("a_second_daemon", |node| {
        let first = Control::open_at("default", &node.run_directory.path().join("default.sock")).unwrap();
        let (code, sentence) = node.refusal(USUAL);
        let pid = std::process::id();
        let expected = format!("podlane: podlane instance \"default\" runs already as process {pid}; stop it first");
        assert!(code == 1 && sentence.starts_with(&expected), "{sentence}");
        assert!(first.path().exists());
    });
}

#[test]
fn status_asks_and_says_what_is_wrong() {
    on_a_node("status_asks", |node| {
        let ask = |line: &str| -> (Option<i32>, Output) {
            let output = node.podlane(line).output().unwrap();
            (output.status.code(), output)
        };
        let (code, output) = ask("status --instance nobody");
        let path = node.run_directory.path().join("nobody.sock");
        let expected = format!(
            "podlane: no podlane instance \"nobody\" answers at {}: is the service running? (systemctl status podlane)\n",
            path.display()
        );
        assert_eq!((code, text(&output.stdout), text(&output.stderr)), (Some(1), String::new(), expected));
        let documented = include_str!("../../docs/status.md");
        let example = documented.split("```").nth(1).unwrap().strip_prefix("json\n").unwrap();
        let example: podlane::status::Status = serde_json::from_str(example).unwrap();
        let mut control = Control::open_at("default", &node.run_directory.path().join("default.sock")).unwrap();
        for line in ["status", "status --json"] {
            let mut child = node.podlane(line).stdout(std::process::Stdio::piped()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                poll(&mut control.poll_fds().collect::<Vec<_>>(), PollTimeout::from(20u8)).unwrap();
                control.serve(|_| Response::Status(Box::new(example.clone())));
            }
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0));
            match line {
                "status" => assert_eq!(text(&output.stdout), example.render()),
                _ => assert_eq!(serde_json::from_slice::<podlane::status::Status>(&output.stdout).unwrap(), example),
            }
        }
    });
}

#[test]
fn check_changes_nothing_and_finds_a_good_node_good() {
    on_a_node("check_changes_nothing", |node| {
        let before = interfaces();
        let output = node.podlane(&format!("check --config /dev/null {USUAL}")).output().unwrap();
        assert_eq!(interfaces(), before);
        let report = text(&output.stdout);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{report}");
        for line in ["ok    bridge cbr0", "ok    uplink eth0", "ok    AF_XDP", "ok    cluster CIDRs"] {
            assert!(report.contains(line), "{report}");
        }
        assert!(std::fs::read_dir(node.run_directory.path()).unwrap().next().is_none(), "check opens no socket");
    });
}

#[test]
fn a_daemon_runs_answers_and_leaves_nothing() {
    on_a_node("a_daemon_runs", |node| {
        let before = interfaces();
        let mut child = node.podlane(&format!("run --config /dev/null {USUAL} --workers 1")).spawn().unwrap();
        let socket = node.run_directory.path().join("default.sock");
        let deadline = Instant::now() + Duration::from_secs(30);
        let status = loop {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            assert!(Instant::now() < deadline, "it does not answer");
            let output = node.podlane("status --json").output().unwrap();
            match serde_json::from_slice::<podlane::status::Status>(&output.stdout) {
                Ok(status) if status.ports.len() == 3 => break status,
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        assert_eq!((status.pid, status.umem.frames), (child.id(), 2048));
        let (code, sentence) = {
            let output = node.podlane(&format!("run --config /dev/null {USUAL}")).output().unwrap();
            (output.status.code(), text(&output.stderr))
        };
        assert!(code == Some(1) && sentence.contains("runs already as process"), "{sentence}");
        let report = text(&node.podlane(&format!("check --config /dev/null {USUAL}")).output().unwrap().stdout);
        assert!(report.contains("Podlane's XDP program is on it"), "{report}");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(!socket.exists());
        let detached = node.podlane("detach").output().unwrap();
        assert_eq!(detached.status.code(), Some(0), "{}", text(&detached.stderr));
        assert_eq!(interfaces(), before, "the node is as it was");
    });
}
