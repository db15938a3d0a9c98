//! Network namespaces that live as long as a test.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// Says that a test was skipped, and why; on standard error itself, because the harness hides what a passing test prints.
pub fn skipped(name: &str, why: &str) {
    std::io::stderr().write_all(format!("SKIPPED {name}: {why}\n").as_bytes()).unwrap();
}

/// Runs a test in a thread with a network namespace of its own, loopback up, or says that it cannot without root.
pub fn test(name: &str, body: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        skipped(name, "loading BPF programs and making network namespaces needs root");
        return;
    }
    let worker = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        body();
    });
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in the calling thread's namespace.
pub fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The index of an interface of the calling thread's namespace.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Another namespace, gone when this is dropped and nothing runs in it any more.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Namespace(made.join().unwrap())
    }

    /// A path by which `ip link set … netns` finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `body` in it, in a thread of its own.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            inside.join().unwrap()
        })
    }
}

/// Gives every packet that leaves interface `name` the VLAN tag 5 in the way of the kernel's own VLAN interfaces: beside
/// the frame, for the device to insert. A tc program does it, since a kernel may lack VLAN interfaces.
pub fn tag_on_egress(name: &str) {
    const PROGRAM: &str = r#"
        static long (*skb_vlan_push)(void *skb, unsigned short protocol, unsigned short tag) = (void *)18;
        __attribute__((section("classifier"), used)) int tag(void *skb)
        {
            skb_vlan_push(skb, __builtin_bswap16(0x8100), 5);
            return 0;
        }
        __attribute__((section("license"), used)) char name_of_license[] = "GPL";
    "#;
    let directory = tempfile::tempdir().unwrap();
    let [source, object] = ["tag.c", "tag.o"].map(|file| directory.path().join(file).display().to_string());
    std::fs::write(&source, PROGRAM).unwrap();
    run("clang", &format!("-O2 -g -target bpf -c {source} -o {object}"));
    run("tc", &format!("qdisc add dev {name} clsact"));
    run("tc", &format!("filter add dev {name} egress bpf direct-action object-file {object} section classifier"));
}
