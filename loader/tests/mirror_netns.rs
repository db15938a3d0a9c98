//! The mirror and the kernel writes against a real kernel, each test in a network namespace of its own. Needs root; prints
//! "skipped: not root" otherwise.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use podlane::compile::{Compiler, Input, PortAssignment, PortWish, compile, host_port_mtu, wanted_ports};
use podlane::guard::ends::{End, Ends, MOST};
use podlane::kernel::{HostPortNames, Kernel, KernelError, read_switches};
use podlane::mirror::world::{FdbKey, FdbKind, NeighbourKey, NudState, PortState};
use podlane::mirror::{Changes, Mirror, World};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{LinkId, NextHopAction, PortKind};
use podlane_dataplane::{MacAddr, PortId, limits};

/// Runs `test` in a thread with a network namespace of its own, which ends with the thread.
fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("{name}: skipped: not root");
        return;
    }
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run("ip link set lo up");
            test();
        })
        .unwrap()
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A second namespace: a thread's own, entered by its file.
struct Peer(std::fs::File);

impl Peer {
    fn new() -> Self {
        let home = own_namespace();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        let peer = Peer(own_namespace());
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        peer
    }

    /// Runs `work` inside, in this thread.
    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = own_namespace();
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let result = work();
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// Moves an interface of this namespace there.
    fn take(&self, interface: &str) {
        use std::os::fd::AsRawFd;
        run(&format!("ip link set {interface} netns /proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()));
    }
}

fn own_namespace() -> std::fs::File {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap()
}

fn run(command: &str) -> String {
    let words: Vec<_> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn batch(tool: &[&str], lines: impl IntoIterator<Item = String>) {
    let mut child = Command::new(tool[0]).args(&tool[1..]).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for line in lines {
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success(), "{tool:?} -batch");
}

fn opened() -> Mirror {
    let mut mirror = Mirror::open().unwrap();
    mirror.dump().unwrap();
    mirror
}

/// A world as far as it is told by notifications: no XDP program (attaching through a BPF link is silent) and no
/// reachability state (going from stale to delay is silent).
fn told(world: &World) -> World {
    let mut world = world.clone();
    for link in world.links.values_mut() {
        link.xdp_program = None;
    }
    for neighbour in world.neighbours.values_mut() {
        let configured = neighbour.state.is_configured();
        neighbour.state = NudState(u16::from(configured));
    }
    world
}

/// Reads until `done` says that the picture is as expected.
fn wait_for(mirror: &mut Mirror, what: &str, mut done: impl FnMut(&World) -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        mirror.read().unwrap();
        if done(mirror.world()) {
            return;
        }
        assert!(Instant::now() < end, "{what} did not happen; world: {:#?}", mirror.world());
        let mut fds = [PollFd::new(mirror.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
    }
}

/// Waits until the picture is that of a fresh dump (the kernel's own timers may change something between the two), and
/// returns what changed meanwhile.
fn assert_like_a_fresh_dump(mirror: &mut Mirror) -> Changes {
    let end = Instant::now() + Duration::from_secs(15);
    let mut changes = Changes::NONE;
    loop {
        changes |= mirror.read().unwrap();
        let (own, fresh) = (told(mirror.world()), told(opened().world()));
        if own == fresh {
            return changes;
        }
        if Instant::now() > end {
            assert_eq!(own.links, fresh.links);
            assert_eq!(own.addresses, fresh.addresses);
            assert_eq!(own.fdb, fresh.fdb);
            assert_eq!(own.neighbours, fresh.neighbours);
            assert_eq!(own.routes4, fresh.routes4);
            assert_eq!(own.routes6, fresh.routes6);
            assert_eq!(own, fresh);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn index(mirror: &Mirror, name: &str) -> u32 {
    mirror.world().link_named(name).unwrap_or_else(|| panic!("no {name}")).ifindex
}

/// A bridge with an address and two pods, an uplink with a gateway that answers.
struct Node {
    pods: Vec<Peer>,
    outside: Peer,
}

impl Node {
    fn new() -> Self {
        run("ip link add cbr0 type bridge");
        run("ip addr add 10.244.1.1/24 dev cbr0");
        run("ip addr add fd00:1::1/64 dev cbr0 nodad");
        run("ip link set cbr0 up");
        let pods = (2..4).map(pod).collect();
        let outside = Peer::new();
        run("ip link add eth0 type veth peer name far");
        outside.take("far");
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip addr add fd00:f::1/64 dev eth0 nodad");
        run("ip link set eth0 up");
        outside.inside(|| {
            run("ip addr add 192.0.2.2/24 dev far");
            run("ip addr add fd00:f::2/64 dev far nodad");
            run("ip link set far up");
        });
        run("ip route add 10.244.2.0/24 via 192.0.2.2");
        run("ip route add fd00:2::/64 via fd00:f::2");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        Node { pods, outside }
    }
}

fn pod(number: usize) -> Peer {
    let peer = Peer::new();
    run(&format!("ip link add veth{number} type veth peer name inner"));
    peer.take("inner");
    run(&format!("ip link set veth{number} master cbr0 up"));
    peer.inside(|| {
        run("ip link set inner name eth0");
        run(&format!("ip link set eth0 address 02:00:0a:f4:01:{number:02x} up"));
        run(&format!("ip addr add 10.244.1.{number}/24 dev eth0"));
        run(&format!("ip addr add fd00:1::{number}/64 dev eth0 nodad"));
        run("ip route add default via 10.244.1.1");
    });
    peer
}

fn ping(address: &str) {
    run(&format!("ping -c 1 -W 5 {address}"));
}

fn input(mirror: &Mirror) -> Input {
    let mut ports = BTreeMap::new();
    for (number, (name, kind)) in
        [("eth0", PortKind::Uplink), ("veth2", PortKind::Pod), ("veth3", PortKind::Pod)].into_iter().enumerate()
    {
        let assignment = PortAssignment {
            id: PortId(number as u16),
            kind,
            max_frame: limits::MAX_FRAME as u32,
            path: Default::default(),
        };
        ports.insert(index(mirror, name), assignment);
    }
    Input {
        bridge: index(mirror, "cbr0"),
        ports,
        cluster: Some(vec!["10.244.0.0/16".parse().unwrap(), "fd00::/32".parse().unwrap()]),
        switches: read_switches(["cbr0", "eth0"]),
        netfilter: Default::default(),
        owners: BTreeMap::new(),
    }
}

#[test]
fn a_node_is_mirrored_and_compiled() {
    in_namespace("a_node_is_mirrored_and_compiled", || {
        let mut mirror = opened();
        let node = Node::new();
        for (number, pod) in node.pods.iter().enumerate() {
            pod.inside(|| {
                ping("10.244.1.1");
                ping("fd00:1::1");
            });
            ping(&format!("10.244.1.{}", number + 2));
        }
        ping("192.0.2.2");
        ping("fd00:f::2");
        let bridge = mirror.read().map(|_| index(&mirror, "cbr0")).unwrap();
        wait_for(&mut mirror, "learning and carriers", |world| {
            let up = |name: &str| {
                world.link_named(name).is_some_and(|link| {
                    link.is_operational() && link.bridge_port.as_ref().is_some_and(|p| p.state == PortState::Forwarding)
                })
            };
            let known = |mac: &str| {
                let key = FdbKey { bridge, mac: mac.parse().unwrap(), vlan: 0 };
                world.fdb.get(&key).is_some_and(|entry| entry.kind == FdbKind::Dynamic)
            };
            up("veth2") && up("veth3") && known("02:00:0a:f4:01:02") && known("02:00:0a:f4:01:03")
        });
        assert_like_a_fresh_dump(&mut mirror);

        let input = input(&mirror);
        let compiled = compile(mirror.world(), &input);
        assert_eq!(compiled.notes, Vec::<String>::new());
        let tables = &compiled.tables;
        assert_eq!(tables.routing, Default::default());
        assert_eq!(tables.fdb.get("02:00:0a:f4:01:02".parse().unwrap()).map(|entry| entry.port), Some(PortId(1)));
        assert!(tables.ports.iter().all(|(_, port)| port.forwarding && port.partial_checksums));
        let router_mac = mirror.world().links[&bridge].mac;
        assert_eq!(tables.ports.get(PortId(1)).unwrap().router_mac, router_mac);
        assert!(tables.fdb.get(router_mac).is_none());

        let action4 = |text: &str| {
            let address: std::net::Ipv4Addr = text.parse().unwrap();
            tables.fib4.lookup(address.to_bits()).map(|index| tables.next_hops[index as usize].action)
        };
        let action6 = |text: &str| {
            let address: std::net::Ipv6Addr = text.parse().unwrap();
            tables.fib6.lookup(address.to_bits()).map(|index| tables.next_hops[index as usize].action)
        };
        assert_eq!(action4("10.244.1.2"), Some(NextHopAction::OnLink(LinkId::BRIDGE)));
        assert_eq!(action4("10.244.1.1"), Some(NextHopAction::Kernel(PassReason::ForNode)));
        assert_eq!(action4("10.244.1.255"), Some(NextHopAction::Kernel(PassReason::ForNode)));
        assert_eq!(action4("8.8.8.8"), None);
        assert_eq!(action6("fd00:1::2"), Some(NextHopAction::OnLink(LinkId::BRIDGE)));
        assert_eq!(action6("fd00:1::1"), Some(NextHopAction::Kernel(PassReason::ForNode)));
        assert_eq!(action6("fe80::1"), Some(NextHopAction::Kernel(PassReason::RouteKind)));
        // The sysfs that is mounted is another namespace's, so netlink is asked.
        let far = node.outside.inside(|| opened().world().link_named("far").unwrap().mac);
        for action in [action4("10.244.2.9"), action6("fd00:2::9")] {
            let Some(NextHopAction::Gateway(adjacency)) = action else { panic!("{action:?}") };
            let adjacency = tables.adjacencies[adjacency as usize];
            assert_eq!(adjacency.port, PortId(0));
            assert_eq!(adjacency.source, mirror.world().link_named("eth0").unwrap().mac);
            assert_eq!(adjacency.destination, far);
        }
        let host = tables.hosts.get4(LinkId::BRIDGE, "10.244.1.3".parse().unwrap()).unwrap();
        assert_eq!(tables.adjacencies[host as usize].port, PortId(2));
        assert_eq!(tables.adjacencies[host as usize].source, router_mac);

        changes_are_followed(&mut mirror, &input);
    });
}

/// Changes of every kind, each compared with a dump and a compilation from scratch.
fn changes_are_followed(mirror: &mut Mirror, input: &Input) {
    let mut compiler = Compiler::new();
    compiler.compile(mirror.world(), input, Changes::ALL);
    let redumps = mirror.counters().redumps;
    for command in [
        "ip route add 10.244.3.0/24 via 192.0.2.2 mtu 1400",
        "ip route replace 10.244.3.0/24 via 192.0.2.3",
        "ip route add 10.244.4.0/24 via 192.0.2.2 metric 10",
        "ip route add 10.244.4.0/24 via 192.0.2.3 metric 5",
        "ip route del 10.244.4.0/24 metric 5",
        "ip route add blackhole 10.244.5.0/24",
        "ip -6 route add fd00:3::/64 via fd00:f::2",
        "ip -6 route replace fd00:3::/64 via fd00:f::3",
        "ip -6 route add unreachable fd00:5::/64",
        "ip neigh add 192.0.2.3 lladdr 02:aa:00:00:00:03 dev eth0 nud permanent",
        "ip neigh replace 192.0.2.3 lladdr 02:aa:00:00:00:04 dev eth0 nud permanent",
        "ip neigh del 192.0.2.3 dev eth0",
        "bridge fdb add 02:bb:00:00:00:01 dev veth2 master static",
        "bridge fdb replace 02:bb:00:00:00:01 dev veth3 master static",
        "bridge fdb del 02:bb:00:00:00:01 dev veth3 master",
        "bridge link set dev veth2 isolated on learning off",
        "bridge link set dev veth2 isolated off learning on",
        "ip link set cbr0 type bridge ageing_time 10000",
        "ip link set veth2 mtu 1400",
        "ip link set veth2 mtu 1500",
        "ip link set veth3 alias hello",
        "ip addr add 10.99.0.1/24 dev cbr0",
        "ip route del 10.244.5.0/24",
        "ip -6 route del fd00:3::/64",
    ] {
        run(command);
        let changes = mirror.read().unwrap();
        assert!(!changes.is_empty(), "{command} changed nothing");
        let changes = changes | assert_like_a_fresh_dump(mirror);
        let compiled = compiler.compile(mirror.world(), input, changes);
        let scratch = compile(mirror.world(), input);
        assert!(compiled.tables.fib4.iter().map(|r| (r.0, r.1)).eq(scratch.tables.fib4.iter().map(|r| (r.0, r.1))));
        assert_eq!(*compiled.tables.ports, *scratch.tables.ports, "after {command}");
        assert_eq!(compiled.notes, scratch.notes);
    }
    assert_eq!(mirror.counters().redumps, redumps, "plain changes need no dump");
    // These say less than they do, or what they do depends on more than they say.
    for command in [
        "ip route add 10.244.6.0/24 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "ip -6 route add fd00:6::/64 nexthop via fd00:f::2 nexthop via fd00:f::3",
        "ip -6 route del fd00:6::/64 via fd00:f::3",
        "ip -6 route append fd00:6::/64 via fd00:f::4",
        "ip route append 10.244.4.0/24 via 192.0.2.3 metric 10",
        "ip route replace 10.244.4.0/24 via 192.0.2.4 metric 10",
        "ip nexthop add id 7 via 192.0.2.2 dev eth0",
        "ip route add 10.244.7.0/24 nhid 7",
        "ip nexthop replace id 7 via 192.0.2.3 dev eth0",
        "ip nexthop del id 7",
        "ip rule add from 10.244.1.2 lookup 100",
        "ip rule del from 10.244.1.2 lookup 100",
        "ip -6 rule add fwmark 1 lookup 100",
        "ip addr del 10.99.0.1/24 dev cbr0",
        "ip link set eth0 down",
        "ip link set eth0 up",
        "ip link del veth2",
        "ip link set veth3 nomaster",
        "ip link del eth0",
    ] {
        run(command);
        mirror.read().unwrap();
        assert_like_a_fresh_dump(mirror);
        assert_eq!(mirror.unsettled(), Changes::NONE, "after {command}");
    }
    let compiled = compiler.compile(mirror.world(), input, Changes::ALL);
    assert_eq!(compiled.tables.routing.ipv6_off, Some(PassReason::PolicyRules));
    assert_eq!(compiled.tables.routing.ipv4_off, None);
}

#[test]
fn what_limits_bandwidth_is_followed() {
    in_namespace("what_limits_bandwidth_is_followed", || {
        run("ip link add eth0 type veth peer name far");
        run("ip link set eth0 up");
        run("tc qdisc add dev eth0 root tbf rate 1mbit burst 10kb latency 50ms");
        let mut mirror = opened();
        let (near, far) = (index(&mirror, "eth0"), index(&mirror, "far"));
        let kinds = |world: &World, ifindex: u32| -> Vec<String> {
            world.qdiscs.get(&ifindex).into_iter().flatten().cloned().collect()
        };
        assert_eq!((kinds(mirror.world(), near), kinds(mirror.world(), far)), (vec!["tbf".to_owned()], vec![]));
        run("tc qdisc add dev far ingress");
        run("tc qdisc replace dev eth0 root pfifo limit 100");
        run("tc qdisc add dev eth0 clsact");
        let changed = assert_like_a_fresh_dump(&mut mirror);
        assert!(changed.intersects(Changes::LINKS), "{changed}");
        assert_eq!((kinds(mirror.world(), near), kinds(mirror.world(), far)), (vec![], vec!["ingress".to_owned()]));
        run("ip link del far");
        assert_like_a_fresh_dump(&mut mirror);
        assert!(mirror.world().qdiscs.is_empty());
        // A limit for one of an interface's queues.
        run("ip link add eth1 numtxqueues 2 type veth peer name far");
        run("ip link set eth1 up");
        run("ip link set far up");
        run("tc qdisc add dev eth1 root handle 1: mq");
        assert_like_a_fresh_dump(&mut mirror);
        let inside = index(&mirror, "eth1");
        assert_eq!(kinds(mirror.world(), inside), Vec::<String>::new());
        run("tc qdisc add dev eth1 parent 1:2 tbf rate 1mbit burst 10kb latency 50ms");
        assert_like_a_fresh_dump(&mut mirror);
        assert_eq!(kinds(mirror.world(), inside), vec!["tbf".to_owned()]);
    });
}

#[test]
fn an_overflown_queue_is_made_good() {
    in_namespace("an_overflown_queue_is_made_good", || {
        run("ip link add eth0 type veth peer name far");
        run("ip link set far up");
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip link set eth0 up");
        let mut mirror = Mirror::open_with_queue(4096).unwrap();
        mirror.dump().unwrap();
        for round in 0..4 {
            let word = if round % 2 == 0 { "add" } else { "del" };
            batch(&["ip"], (0..3000).map(|n| format!("route {word} 10.{}.{}.0/24 via 192.0.2.2", n / 256, n % 256)));
        }
        batch(&["ip"], (0..1000).map(|n| format!("route add 10.{}.{}.0/24 via 192.0.2.2", n / 256, n % 256)));
        mirror.read().unwrap();
        assert!(mirror.counters().overruns > 0);
        assert!(mirror.counters().redumps > 0);
        assert_like_a_fresh_dump(&mut mirror);
        let far = mirror.world().routes4.keys().filter(|key| key.destination.to_string().starts_with("10.")).count();
        assert_eq!(far, 1000);
        assert_eq!(mirror.world().doubtful, Changes::NONE);
    });
}

#[test]
fn a_dump_during_changes_converges() {
    in_namespace("a_dump_during_changes_converges", || {
        run("ip link add eth0 type veth peer name far");
        run("ip link set far up");
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip link set eth0 up");
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut feed = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            for round in 0..6 {
                for n in 0..2000 {
                    let word = if round % 2 == 0 { "add" } else { "del" };
                    writeln!(feed, "route {word} 10.{}.{}.0/24 via 192.0.2.2", n / 256, n % 256).unwrap();
                }
            }
            for n in 0..1500 {
                writeln!(feed, "route add 10.{}.{}.0/24 via 192.0.2.2", n / 256, n % 256).unwrap();
            }
        });
        let mut mirror = Mirror::open().unwrap();
        let mut dumps = 0;
        while child.try_wait().unwrap().is_none() {
            mirror.dump().unwrap();
            dumps += 1;
        }
        writer.join().unwrap();
        assert!(dumps > 1, "the changes were over before the second dump");
        assert_like_a_fresh_dump(&mut mirror);
        assert_eq!(mirror.world().routes4.keys().filter(|key| key.destination.prefix_len() == 24).count(), 1501);
    });
}

#[test]
fn fifteen_thousand_routes() {
    in_namespace("fifteen_thousand_routes", || {
        run("ip link add eth0 type veth peer name far");
        run("ip link set far up");
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip link set eth0 up");
        run("ip neigh add 192.0.2.2 lladdr 02:aa:00:00:00:02 dev eth0 nud permanent");
        batch(&["ip"], (0..15_000).map(|n| format!("route add 10.{}.{}.0/24 via 192.0.2.2", n / 256, n % 256)));
        let start = Instant::now();
        let mut mirror = opened();
        let dump = start.elapsed();
        let assignment =
            PortAssignment { id: PortId(0), kind: PortKind::Uplink, max_frame: 4000, path: Default::default() };
        let input = Input { ports: BTreeMap::from([(index(&mirror, "eth0"), assignment)]), ..Input::default() };
        let mut compiler = Compiler::new();
        let start = Instant::now();
        compiler.compile(mirror.world(), &input, Changes::ALL);
        let whole = start.elapsed();
        run("ip route add 11.0.0.0/8 via 192.0.2.2");
        let start = Instant::now();
        let changes = mirror.read().unwrap();
        let read = start.elapsed();
        assert_eq!(changes, Changes::ROUTES4);
        let start = Instant::now();
        let compiled = compiler.compile(mirror.world(), &input, changes);
        let recompiled = start.elapsed();
        assert!(compiled.tables.fib4.len() > 15_000);
        let fib = std::sync::Arc::clone(&compiled.tables.fib4);
        run("ip neigh replace 192.0.2.2 lladdr 02:aa:00:00:00:03 dev eth0 nud permanent");
        let start = Instant::now();
        let changes = mirror.read().unwrap();
        let compiled = compiler.compile(mirror.world(), &input, changes);
        let neighbour = start.elapsed();
        assert_eq!(changes, Changes::NEIGHBOURS);
        assert!(compiled.changed && std::sync::Arc::ptr_eq(&fib, &compiled.tables.fib4), "the FIB was not rebuilt");
        println!(
            "15,000 routes: open and dump {dump:?}, compile all {whole:?}, read one route {read:?}, compile it \
             {recompiled:?}, read and compile one neighbour {neighbour:?}"
        );
        assert!(dump < Duration::from_secs(5) && whole < Duration::from_secs(5));
    });
}

fn shown_fdb(mac: &str) -> String {
    run("bridge -s fdb show br cbr0").lines().filter(|line| line.starts_with(mac)).collect()
}

/// "used" and "updated" ages of an entry as `bridge -s` shows them ("used 3/2"), seconds.
fn updated_age(mac: &str) -> u32 {
    let shown = shown_fdb(mac);
    let ages = shown.split_whitespace().skip_while(|word| *word != "used").nth(1).unwrap_or_else(|| panic!("{shown}"));
    ages.split('/').nth(1).unwrap().parse().unwrap()
}

#[test]
fn learning_is_as_if_the_bridge_had_seen_the_frame() {
    in_namespace("learning_is_as_if_the_bridge_had_seen_the_frame", || {
        let _node = Node::new();
        let mut mirror = opened();
        wait_for(&mut mirror, "forwarding ports", |world| {
            ["veth2", "veth3"].iter().all(|name| {
                let port = world.link_named(name).and_then(|link| link.bridge_port.as_ref());
                port.is_some_and(|port| port.state == PortState::Forwarding)
            })
        });
        let (one, two) = (index(&mirror, "veth2"), index(&mirror, "veth3"));
        let bridge = index(&mirror, "cbr0");
        let mut kernel = Kernel::open().unwrap();
        let (text, mac) = ("02:cc:00:00:00:01", MacAddr::new([2, 0xcc, 0, 0, 0, 1]));
        let key = FdbKey { bridge, mac, vlan: 0 };
        kernel.learn_fdb(one, mac).unwrap();
        assert!(mirror.read().unwrap().intersects(Changes::FDB));
        let entry = mirror.world().fdb[&key];
        assert_eq!((entry.port, entry.kind), (one, FdbKind::Dynamic));
        // A refresh sets the age back and tells nobody.
        std::thread::sleep(Duration::from_millis(2100));
        assert!(updated_age(text) >= 2, "{}", shown_fdb(text));
        kernel.learn_fdb(one, mac).unwrap();
        assert_eq!(updated_age(text), 0, "{}", shown_fdb(text));
        assert!(!mirror.read().unwrap().intersects(Changes::FDB));
        // A dynamic entry moves.
        kernel.learn_fdb(two, mac).unwrap();
        mirror.read().unwrap();
        assert_eq!(mirror.world().fdb[&key].port, two);
        // It ages out like any other.
        run("ip link set cbr0 type bridge ageing_time 100");
        wait_for(&mut mirror, "ageing", |world| !world.fdb.contains_key(&key));
        run("ip link set cbr0 type bridge ageing_time 30000");
        // A static entry moves as well, as it does when a frame arrives; a sticky one does not.
        run(&format!("bridge fdb add {text} dev veth2 master static"));
        kernel.learn_fdb(two, mac).unwrap();
        mirror.read().unwrap();
        assert_eq!((mirror.world().fdb[&key].port, mirror.world().fdb[&key].kind), (two, FdbKind::Static));
        run(&format!("bridge fdb del {text} dev veth3 master"));
        run(&format!("bridge fdb add {text} dev veth2 master static sticky"));
        kernel.learn_fdb(two, mac).unwrap();
        mirror.read().unwrap();
        assert!(mirror.world().fdb[&key].sticky);
        assert_eq!(mirror.world().fdb[&key].port, one);
        // A local address stays local.
        let own = mirror.world().links[&one].mac;
        kernel.learn_fdb(two, own).unwrap();
        mirror.read().unwrap();
        assert_eq!(mirror.world().fdb[&FdbKey { bridge, mac: own, vlan: 0 }].kind, FdbKind::Local);
        // Not a port of a bridge.
        let error = kernel.learn_fdb(index(&mirror, "eth0"), mac).unwrap_err();
        assert!(error.to_string().contains("learn 02:cc:00:00:00:01"), "{error}");
        assert_like_a_fresh_dump(&mut mirror);
    });
}

#[test]
fn using_a_stale_neighbour_makes_it_reachable() {
    in_namespace("using_a_stale_neighbour_makes_it_reachable", || {
        let _node = Node::new();
        let mut mirror = opened();
        let mut kernel = Kernel::open().unwrap();
        let eth0 = index(&mirror, "eth0");
        // The first check of a stale entry waits for this long.
        std::fs::write("/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/neigh/eth0/delay_first_probe_time", "1").unwrap();
        for text in ["192.0.2.2", "fd00:f::2"] {
            let address: IpAddr = text.parse().unwrap();
            ping(text);
            let key = NeighbourKey { ifindex: eth0, address };
            wait_for(&mut mirror, "resolution", |world| world.neighbours.contains_key(&key));
            let mac = mirror.world().neighbours[&key].mac;
            run(&format!("ip neigh replace {text} lladdr {mac} dev eth0 nud stale"));
            wait_for(&mut mirror, "staleness", |world| world.neighbours[&key].state.is_stale());
            assert!(kernel.use_neighbour(eth0, address).unwrap());
            wait_for(&mut mirror, "reachability", |world| {
                world.neighbours[&key].state == NudState(nix::libc::NUD_REACHABLE)
            });
        }
        // Nothing is made up.
        let nobody: IpAddr = "192.0.2.77".parse().unwrap();
        assert!(!kernel.use_neighbour(eth0, nobody).unwrap());
        assert!(!run("ip neigh show nud all").contains("192.0.2.77"));
        // What the documentation warns of: a permanent entry does not stay permanent.
        run("ip neigh add 192.0.2.9 lladdr 02:aa:00:00:00:09 dev eth0 nud permanent");
        assert!(kernel.use_neighbour(eth0, "192.0.2.9".parse().unwrap()).unwrap());
        assert!(!run("ip neigh show 192.0.2.9").contains("PERMANENT"));
    });
}

#[test]
fn the_host_port_leaves_the_bridge_as_it_was() {
    in_namespace("the_host_port_leaves_the_bridge_as_it_was", || {
        let _node = Node::new();
        for interface in ["veth2", "veth3"] {
            run(&format!("ip link set {interface} mtu 9000"));
        }
        let mut mirror = opened();
        let mut kernel = Kernel::open().unwrap();
        let names = HostPortNames::default();
        let before = mirror.world().link_named("cbr0").unwrap().clone();
        assert_eq!(before.mtu, 9000);
        let mtu = host_port_mtu(mirror.world(), before.ifindex, &[]).unwrap();
        assert_eq!(mtu, 9000);
        let first = kernel.create_host_port(before.ifindex, names, "blue", mtu).unwrap();
        // A second start after a kill finds a stale pair.
        let port = kernel.create_host_port(before.ifindex, names, "blue", mtu).unwrap();
        assert_ne!(first, port);
        wait_for(&mut mirror, "the host port", |world| {
            let link = world.links.get(&port.member);
            let forwards = link.and_then(|link| link.bridge_port.as_ref()).map(|port| port.state);
            forwards == Some(PortState::Forwarding) && link.unwrap().is_operational()
        });
        let world = mirror.world();
        let member = &world.links[&port.member];
        let flags = member.bridge_port.as_ref().unwrap();
        assert!(!flags.learning && !flags.flooding);
        assert_eq!(member.alias, "podlane blue");
        assert_eq!(member.mtu, 9000);
        let shown = run("ip -d link show podlane1");
        for part in ["learning off", "flood off", "mcast_flood off", "bcast_flood off"] {
            assert!(shown.contains(part), "{shown}");
        }
        let bridge = &world.links[&before.ifindex];
        assert_eq!((bridge.mac, bridge.mtu), (before.mac, before.mtu));
        let ends = [port.near, port.member];
        assert!(world.addresses.keys().all(|key| !ends.contains(&key.ifindex)), "no addresses");
        assert_eq!(kernel.resolve_names(["podlane0", "podlane1"]).unwrap(), ends);

        let uplinks = ["eth0".to_owned(), "eth9".to_owned()];
        let wish = PortWish { bridge: "cbr0", uplinks: &uplinks, skip: &[], host_port: &ends };
        let wanted = wanted_ports(world, &wish, |link| kernel.rx_queues(link.ifindex).unwrap());
        let found: Vec<_> = wanted.ports.iter().map(|port| (port.name.as_str(), port.kind, port.queues)).collect();
        assert_eq!(found, [("eth0", PortKind::Uplink, 1), ("veth2", PortKind::Pod, 1), ("veth3", PortKind::Pod, 1)]);
        assert_eq!(wanted.refused.len(), 1);
        assert_eq!(wanted.refused[0].why, "there is no interface eth9");

        // The MTU follows the members.
        run("ip link set veth2 mtu 1400");
        kernel.set_mtu(port.member, 1600).unwrap();
        mirror.read().unwrap();
        assert_eq!(mirror.world().links[&port.member].mtu, 1600);
        assert_eq!(host_port_mtu(mirror.world(), before.ifindex, &ends), Some(9000));

        let refused = kernel.create_host_port(before.ifindex, names, "green", mtu).unwrap_err();
        assert!(matches!(refused, KernelError::ForeignInterface { .. }), "{refused}");
        assert!(refused.to_string().contains("podlane blue"), "{refused}");
        assert!(kernel.delete_host_port(names, "blue").unwrap());
        assert!(!kernel.delete_host_port(names, "blue").unwrap());
        run("ip link add podlane0 type bridge");
        let refused = kernel.create_host_port(before.ifindex, names, "blue", mtu).unwrap_err();
        assert!(refused.to_string().contains("its kind is bridge"), "{refused}");
        // A step that fails leaves nothing behind.
        run("ip link del podlane0");
        let no_bridge = kernel.create_host_port(index(&mirror, "eth0"), names, "blue", mtu).unwrap_err();
        assert!(no_bridge.to_string().contains("member of the bridge"), "{no_bridge}");
        assert!(kernel.link("podlane0").unwrap().is_none());
        mirror.read().unwrap();
        assert_like_a_fresh_dump(&mut mirror);
    });
}

#[test]
fn queues_in_use_are_not_queues_allocated() {
    in_namespace("queues_in_use_are_not_queues_allocated", || {
        run("ip link add one numrxqueues 4 numtxqueues 4 type veth peer name two numrxqueues 4 numtxqueues 4");
        run("ip link add three type veth peer name four");
        run("ip link add cbr0 type bridge");
        let mirror = opened();
        let mut kernel = Kernel::open().unwrap();
        let mut used = |name: &str| kernel.rx_queues(index(&mirror, name)).unwrap();
        assert_eq!(used("one"), 4);
        assert_eq!(used("three"), 1);
        assert_eq!(used("cbr0"), 1);
        assert_eq!(used("lo"), 1);
        assert_eq!(mirror.world().link_named("one").unwrap().rx_queues, 4);
    });
}

#[test]
fn switches_are_read_in_the_thread_s_namespace() {
    in_namespace("switches_are_read_in_the_thread_s_namespace", || {
        run("ip link add cbr0 type bridge");
        let mut mirror = opened();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let off = read_switches(["cbr0", "gone0"]);
        assert_eq!(off.ipv4_off, ["net.ipv4.conf.cbr0.forwarding"]);
        assert_eq!(off.ipv6_off, ["net.ipv6.conf.all.forwarding"]);
        mirror.read().unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        assert!(mirror.read().unwrap().intersects(Changes::SWITCHES));
        std::fs::write("/proc/sys/net/ipv6/conf/cbr0/mtu", "1300").unwrap();
        let on = read_switches(["cbr0"]);
        assert!(on.ipv4_off.is_empty() && on.ipv6_off.is_empty());
        assert_eq!(on.ipv6_mtu["cbr0"], 1300);
    });
}

/// What a pod has made without bound is looked at with one.
#[test]
fn pods_ends_are_looked_at_as_far_as_is_said() {
    in_namespace("pods_ends_are_looked_at_as_far_as_is_said", || {
        let peer = Peer::new();
        run("ip link add name end type veth peer name host");
        peer.take("end");
        let looked = |ends: &mut Ends| ends.of(opened().world().link_named("host").unwrap());
        let mut ends = Ends::open().unwrap();
        let told = |end: End| match end {
            End::Own { addresses, more, behind, .. } => (addresses.len(), more, behind),
            End::Unknown(why) => panic!("{why}"),
        };
        assert_eq!(told(looked(&mut ends)), (0, false, None));
        peer.inside(|| {
            run("ip link set end up");
            let addresses = (1..=300).map(|number| format!("address add fd00::{number:x}/64 dev end nodad"));
            batch(&["ip"], addresses.chain((1..=64).map(|number| format!("address add 10.1.0.{number}/24 dev end"))));
        });
        assert_eq!(told(looked(&mut ends)), (2 * MOST, true, None));
        // Before another end in there come more interfaces than are looked at.
        peer.inside(|| batch(&["ip"], (0..MOST).map(|number| format!("link add name d{number} type bridge"))));
        run("ip link add name late type veth peer name host2");
        peer.take("late");
        peer.inside(|| run("ip address add 10.2.0.7/24 dev late"));
        let mut looked = || told(ends.of(opened().world().link_named("host2").unwrap()));
        assert_eq!(looked(), (1, false, Some(format!("there are more than {MOST} interfaces in there"))));
        peer.inside(|| {
            run("ip link add name br0 type bridge");
            run("ip link set late master br0");
        });
        assert!(looked().2.is_some_and(|why| why.contains("is a member of")));
    });
}
