//! Large frames inside of the node against a real kernel: what is put at both ends of pods' veths and on pods' routes, and
//! that all of it is given back. Each test in network namespaces of its own. Needs root; prints "skipped: not root" otherwise.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns, unshare};
use podlane::large::link::{self, Sizes};
use podlane::large::{Large, Node, Wish};
use podlane::mirror::{Mirror, RequestSocket};

/// Runs `test` in a thread with a network namespace of its own, which ends with the thread.
fn in_namespace(name: &str, test: impl FnOnce(&str) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("{name}: skipped: not root");
        return;
    }
    let instance = format!("test-{name}-{}", std::process::id());
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            test(&instance);
        })
        .unwrap()
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn run(command: &str) -> String {
    let words: Vec<_> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pod: a namespace to which nothing leads but the process in it.
struct Pod {
    number: usize,
    process: Child,
}

impl Pod {
    /// With `vethN` as a member of cbr0, and a gateway in both families.
    fn new(number: usize) -> Pod {
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        // Indices differ on the two sides, so that nothing works by accident.
        run("ip link add spare type veth peer name other");
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let pod = Pod { number, process };
        run(&format!("ip link add veth{number} type veth peer name eth0 netns {}", pod.process.id()));
        run(&format!("ip link set veth{number} master cbr0 up"));
        for command in [
            "ip link set eth0 up".to_owned(),
            format!("ip addr add 10.244.1.{number}/24 dev eth0"),
            format!("ip addr add fd00:1::{number}/64 dev eth0 nodad"),
            "ip route add default via 10.244.1.1".to_owned(),
            "ip -6 route add default via fd00:1::1".to_owned(),
        ] {
            pod.inside(&command);
        }
        pod
    }

    fn inside(&self, command: &str) -> String {
        run(&format!("nsenter --net=/proc/{}/ns/net {command}", self.process.id()))
    }

    /// MTU at the host end and at the pod's.
    fn mtus(&self) -> [u32; 2] {
        let mtu = |text: String| {
            let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
            words.nth(1).and_then(|word| word.parse().ok()).expect("an MTU")
        };
        [mtu(run(&format!("ip link show veth{}", self.number))), mtu(self.inside("ip link show eth0"))]
    }

    /// IPv4 segmentation sizes of both ends.
    fn sizes(&self) -> [Sizes; 2] {
        let read = |requests: &mut RequestSocket, line: String| {
            let index = line.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
            link::read(requests, index).unwrap().expect("an interface").sizes.expect("Linux 6.3")
        };
        let host = run(&format!("ip -o link show veth{}", self.number));
        let [mut here, mut there] = [RequestSocket::open(NETLINK_ROUTE).unwrap(), self.socket()];
        [read(&mut here, host), read(&mut there, self.inside("ip -o link show eth0"))]
    }

    fn socket(&self) -> RequestSocket {
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let there = std::fs::File::open(format!("/proc/{}/ns/net", self.process.id())).unwrap();
        setns(there.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let socket = RequestSocket::open(NETLINK_ROUTE).unwrap();
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        socket
    }

    /// Routes of all tables, without those that the kernel makes.
    fn routes(&self) -> Vec<String> {
        let text = [self.inside("ip route show table all"), self.inside("ip -6 route show table all")].concat();
        let ours = |line: &&str| line.contains(" via ") || line.contains("10.9.");
        text.lines().filter(ours).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A bridge, an uplink, pods 2 and 3.
fn node() -> [Pod; 2] {
    run("ip link set lo up");
    run("ip link add eth0 type veth peer name far");
    run("ip link set eth0 up");
    run("ip link add cbr0 type bridge");
    run("ip link set cbr0 up");
    [Pod::new(2), Pod::new(3)]
}

/// One turn of the daemon's loop.
fn follow(large: &mut Large, kernel_path: bool) {
    follow_without(large, kernel_path, "");
}

/// The same, with one member of the bridge that is left to the kernel.
fn follow_without(large: &mut Large, kernel_path: bool, skip: &str) {
    follow_with(large, kernel_path, skip, u32::MAX);
}

/// The same, with AF_XDP sockets that carry packets of so many bytes at most.
fn follow_with(large: &mut Large, kernel_path: bool, skip: &str, most_by_sockets: u32) {
    let mut mirror = Mirror::open().unwrap();
    mirror.dump().unwrap();
    let world = mirror.world();
    let bridge = world.link_named("cbr0").map(|link| link.ifindex);
    let pods: BTreeSet<u32> = world
        .links
        .values()
        .filter(|link| link.master == bridge && link.name != skip)
        .map(|link| link.ifindex)
        .collect();
    let kernel_path = if kernel_path { pods.clone() } else { BTreeSet::new() };
    let uplinks = vec!["eth0"];
    large.follow(&Node { world, bridge, host_port: [0, 0], pods, kernel_path, uplinks, most_by_sockets });
}

fn mtu(local_mtu: u32) -> Wish {
    Wish { big_tcp: None, local_mtu: Some(local_mtu) }
}

#[test]
fn mtu_and_routes_are_changed_and_given_back() {
    in_namespace("routes", |instance| {
        let pods = node();
        for route in [
            "ip route add 10.9.1.0/24 via 10.244.1.1 mtu 1400",
            "ip route add 10.9.2.0/24 via 10.244.1.1 advmss 1200 src 10.244.1.2",
            "ip route add 10.9.3.0/24 dev eth0",
            "ip route add default via 10.244.1.1 table 100 metric 7",
            // The kernel raises this metric with the interface's MTU.
            "ip -6 route add fd00:9:1::/64 via fd00:1::1 mtu 1500",
            "ip -6 route add fd00:9:2::/64 via fd00:1::1 mtu 1400",
            "ip -6 route add fd00:9:3::/64 via fd00:1::1 metric 5 table 100",
        ] {
            pods[0].inside(route);
        }
        let before = pods.each_ref().map(Pod::routes);
        let mut large = Large::open(mtu(65_000), instance).unwrap();
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[65_000; 2]; 2]);
        let expected = |line: &String| match line {
            line if line.contains(" mtu ") || !line.contains(" via ") => line.clone(),
            line if line.contains("advmss") => line.replace("advmss", "mtu 1500 advmss"),
            line if line.contains(" pref ") => line.replace(" pref ", " mtu 1500 pref "),
            line => format!("{line} mtu 1500"),
        };
        let marked: Vec<String> = before[0].iter().map(expected).collect();
        assert_eq!(pods[0].routes(), marked);
        // Again: nothing more happens. A route that comes later is marked as well.
        follow(&mut large, false);
        assert_eq!(pods[0].routes(), marked);
        pods[1].inside("ip route add 10.9.4.0/24 via 10.244.1.1");
        std::thread::sleep(Duration::from_millis(150)); // the first look at the routes is due
        assert!(large.is_due());
        follow(&mut large, false);
        assert!(pods[1].inside("ip route show 10.9.4.0/24").contains("mtu 1500"));
        pods[1].inside("ip route del 10.9.4.0/24");
        large.end();
        assert_eq!(pods.each_ref().map(Pod::mtus), [[1500; 2]; 2]);
        assert_eq!(pods.each_ref().map(Pod::routes), before);
    });
}

#[test]
fn a_killed_daemon_is_cleaned_up_after() {
    in_namespace("killed", |instance| {
        std::fs::create_dir_all("/run/podlane").unwrap();
        let pods = node();
        let before = pods.each_ref().map(Pod::routes);
        let mut large = Large::open(Wish { big_tcp: Some(100_000), local_mtu: Some(9000) }, instance).unwrap();
        follow(&mut large, true);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[9000; 2]; 2]);
        drop(large);
        // The next one wants less.
        let mut large = Large::open(mtu(4000), instance).unwrap();
        follow(&mut large, true);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[4000; 2]; 2]);
        assert_eq!(pods[0].sizes(), [Sizes::both(65_536); 2]);
        drop(large);
        // And the one after that nothing.
        let mut large = Large::open(Wish::default(), instance).unwrap();
        follow(&mut large, true);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[1500; 2]; 2]);
        assert_eq!(pods.each_ref().map(Pod::routes), before);
        large.end();
    });
}

#[test]
fn one_pod_that_cannot_be_changed_leaves_all_as_they_are() {
    in_namespace("obstacle", |instance| {
        let pods = node();
        pods[1].inside("ip route add 10.9.0.0/24 nexthop via 10.244.1.1 nexthop via 10.244.1.9");
        let mut large = Large::open(mtu(65_000), instance).unwrap();
        follow(&mut large, false);
        assert_eq!(pods[1].mtus(), [1500; 2], "never half");
        std::thread::sleep(Duration::from_millis(2100)); // the grace is over
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[1500; 2]; 2]);
        assert!(pods[0].routes().iter().all(|route| !route.contains("mtu")));
        let notes: Vec<&str> = large.notes().collect();
        assert!(
            notes.len() == 1 && notes[0].contains("veth3: the pod's route 10.9.0.0/24 has several next hops"),
            "{notes:?}"
        );
        // A narrow member that is no pod, and a value that the uplink has already, are told as well.
        pods[1].inside("ip route del 10.9.0.0/24");
        let mut large = Large::open(mtu(9000), instance).unwrap();
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[9000; 2]; 2]);
        large.end();
        follow_without(&mut large, false, "veth3");
        assert_eq!(pods.each_ref().map(Pod::mtus), [[1500; 2]; 2]);
        assert!(large.notes().any(|note| note.contains("veth3 is a member of the bridge with a smaller MTU")));
        let mut large = Large::open(mtu(1500), instance).unwrap();
        follow(&mut large, false);
        assert!(large.notes().any(|note| note.contains("the uplinks' MTU is 1500 already")));
        large.end();
        // Sockets that carry less are in the way of those whose packets they carry.
        let mut large = Large::open(mtu(9000), instance).unwrap();
        follow_with(&mut large, false, "", 3500);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[1500; 2]; 2]);
        assert!(large.notes().any(|note| note.contains("packets of at most 3500 bytes")));
        follow_with(&mut large, true, "", 3500);
        assert_eq!(pods.each_ref().map(Pod::mtus), [[9000; 2]; 2]);
        follow_with(&mut large, false, "", 9000);
        assert_eq!((pods.each_ref().map(Pod::mtus), large.notes().count()), ([[9000; 2]; 2], 0));
        large.end();
    });
}

#[test]
fn sizes_come_with_the_kernel_path_and_go_with_it() {
    in_namespace("sizes", |instance| {
        let pods = node();
        let before = pods.each_ref().map(Pod::sizes);
        let mut large = Large::open(Wish { big_tcp: Some(196_608), local_mtu: None }, instance).unwrap();
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::sizes), before, "not on the af_xdp path");
        follow(&mut large, true);
        assert_eq!(pods.each_ref().map(Pod::sizes), [[Sizes::both(196_608); 2]; 2]);
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::sizes), before);
        follow(&mut large, true);
        // Somebody else's change stays.
        pods[1].inside("ip link set eth0 gso_max_size 60000"); // which the IPv4 size follows
        large.end();
        assert_eq!(pods[0].sizes(), before[0]);
        assert_eq!(pods[1].sizes()[1], Sizes { gso: 60_000, gro: 196_608, gso6: 60_000, gro6: 196_608 });
    });
}

fn big(local_mtu: Option<u32>) -> Wish {
    Wish { big_tcp: Some(196_608), local_mtu }
}

/// Routes of IPv6 that leave have this metric, and those of IPv4 none or another one.
fn assert_room(pods: &[Pod; 2], ipv4: Option<&str>, ipv6: Option<&str>) {
    for line in pods.iter().flat_map(Pod::routes) {
        let expected = if line.contains("fd00:") { ipv6 } else { ipv4 };
        assert_eq!(line.split_once(" mtu ").map(|(_, rest)| &rest[..4]), expected, "{line}");
    }
}

#[test]
fn routes_of_ipv6_leave_room_for_the_jumbo_header() {
    in_namespace("jumbo", |instance| {
        let pods = node();
        let before = pods.each_ref().map(Pod::routes);
        let mut large = Large::open(big(None), instance).unwrap();
        follow(&mut large, true);
        assert_room(&pods, None, Some("1492"));
        // A route that comes later as well, and the uplink's MTU counts.
        pods[1].inside("ip -6 route add fd00:9::/64 via fd00:1::1");
        run("ip link set eth0 mtu 1400");
        follow(&mut large, true);
        assert_room(&pods, None, Some("1392"));
        pods[1].inside("ip -6 route del fd00:9::/64");
        run("ip link set eth0 mtu 1500");
        // The other path takes the sizes away, and with them the reason.
        follow(&mut large, false);
        assert_eq!(pods.each_ref().map(Pod::routes), before);
        follow(&mut large, true);
        large.end();
        assert_eq!(pods.each_ref().map(Pod::routes), before);
        // Both: whichever of them goes first, the other one's metric is there in the end.
        let mut large = Large::open(big(Some(9000)), instance).unwrap();
        follow(&mut large, false);
        assert_room(&pods, Some("1500"), Some("1492"));
        follow(&mut large, true);
        assert_room(&pods, Some("1500"), Some("1492"));
        large.end();
        assert_eq!(pods.each_ref().map(Pod::routes), before);
        follow(&mut large, true);
        assert_room(&pods, Some("1500"), Some("1492"));
        follow(&mut large, false);
        follow(&mut large, false);
        assert_room(&pods, Some("1500"), Some("1492"));
        large.end();
        assert_eq!(pods.each_ref().map(Pod::routes), before);
    });
}

#[test]
fn a_pod_whose_routes_have_no_room_is_left_with_ipv4() {
    in_namespace("noroom", |instance| {
        let pods = node();
        let before = pods.each_ref().map(Pod::sizes);
        pods[1].inside("ip -6 route add fd00:9::/64 via fd00:1::1 mtu 1500");
        let routes = pods.each_ref().map(Pod::routes);
        let mut large = Large::open(big(None), instance).unwrap();
        follow(&mut large, true);
        let only_ipv4 = |found: Sizes| Sizes { gso: 196_608, gro: 196_608, ..found };
        assert_eq!(pods[0].sizes(), [Sizes::both(196_608); 2]);
        assert_eq!(pods[1].sizes(), before[1].map(only_ipv4));
        assert_eq!(pods[1].routes(), routes[1], "all or nothing");
        let notes: Vec<&str> = large.notes().collect();
        assert!(
            notes.len() == 1
                && notes[0].contains("IPv4 only")
                && notes[0].contains("veth3: the pod's route fd00:9::/64"),
            "{notes:?}"
        );
        // One that comes later takes it away.
        pods[0].inside("ip -6 route add fd00:9::/64 via fd00:1::1 mtu 1500");
        std::thread::sleep(Duration::from_millis(150)); // the first look at the routes is due
        follow(&mut large, true);
        assert_eq!(pods[0].sizes(), before[0].map(only_ipv4));
        assert_eq!(large.notes().count(), 2);
        pods[0].inside("ip -6 route del fd00:9::/64");
        large.end();
        assert_eq!(pods.each_ref().map(Pod::sizes), before);
        assert_eq!(pods.each_ref().map(Pod::routes), routes);
    });
}
