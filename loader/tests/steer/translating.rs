//! Connections that conntrack translates, and those that it has followed, in both programs; and how the node's rules are read.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_NETFILTER;
use podlane::mirror::RequestSocket;
use podlane::netfilter::rules::{Taken, judge};
use podlane::netfilter::watch::Watch;
use podlane_dataplane::PortId;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::{Path as ServedBy, Translation};

use crate::frames::*;
use crate::net;
use crate::world::{A, B, Outcome, Repeated, World};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`.
const LIBERAL: u8 = 8;
const CLIENT: u16 = 4000;
const SERVER: u16 = 80;

/// From pod B to pod A.
const BACK: Path = Path { source_mac: POD_B, destination_mac: POD_A, source: (1, 11), destination: (1, 10) };

fn address(family: Family, subnet: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => ip4(subnet, host).into(),
        Family::V6 => ip6(subnet, host).into(),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `CTA_TUPLE_*` (`linux/netfilter/nfnetlink_conntrack.h`).
fn tuple(kind: u16, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    let first = if from.0.is_ipv4() { 1 } else { 3 };
    let addresses = [attribute(first, &octets(from.0)), attribute(first + 1, &octets(to.0))].concat();
    let ports =
        [attribute(1, &[protocol]), attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())].concat();
    attribute(kind | NESTED, &[attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &ports)].concat())
}

/// Puts a connection into the kernel's conntrack: from pod A to `to`, which is translated to `backend` if there is one.
fn connect(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16), backend: Option<(IpAddr, u16)>, tcp_flags: u8) {
    const NESTED: u16 = 1 << 15;
    let mut message = vec![0; 16];
    // IPCTNL_MSG_CT_NEW of NFNL_SUBSYS_CTNETLINK.
    message[4..6].copy_from_slice(&(1_u16 << 8).to_ne_bytes());
    message.extend([if from.0.is_ipv4() { 2 } else { 10 }, 0, 0, 0]);
    message.extend(tuple(1, protocol, from, to));
    message.extend(tuple(2, protocol, to, from));
    // IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED.
    message.extend(attribute(3, &14_u32.to_be_bytes()));
    message.extend(attribute(7, &600_u32.to_be_bytes()));
    if protocol == TCP {
        let flags = |kind| attribute(kind, &[tcp_flags, 0xff]);
        // TCP_CONNTRACK_ESTABLISHED.
        let state = [attribute(1, &[3]), flags(4), flags(5)].concat();
        message.extend(attribute(4 | NESTED, &attribute(1 | NESTED, &state)));
    }
    if let Some((address, port)) = backend {
        let (least, most) = if address.is_ipv4() { (1, 2) } else { (4, 5) };
        let ports = [attribute(1, &port.to_be_bytes()), attribute(2, &port.to_be_bytes())].concat();
        let range =
            [attribute(least, &octets(address)), attribute(most, &octets(address)), attribute(3 | NESTED, &ports)];
        message.extend(attribute(13 | NESTED, &range.concat()));
    }
    let mut requests = RequestSocket::open(NETLINK_NETFILTER).unwrap();
    requests.request_bytes(&message, NLM_F_CREATE | NLM_F_EXCL, "make a connection").unwrap();
}

impl World {
    fn translate(&mut self, translation: Translation) {
        self.change(|tables| tables.routing.translation = translation);
    }
}

/// Whether both programs leave a frame to the kernel as one of a translated connection; otherwise both take it.
#[track_caller]
fn is_kernels(world: &mut World, ingress: PortId, frame: &[u8]) -> bool {
    let xdp = match world.program(ingress, frame) {
        Outcome::Steered => false,
        Outcome::Passed(PassReason::Translated) => true,
        other => panic!("XDP: {other:?}"),
    };
    world.change_port(ingress, |port| port.path = ServedBy::Kernel);
    let tc = match world.repeats(ingress, frame, 0).unwrap() {
        Repeated::Forwarded(..) => false,
        Repeated::Passed(PassReason::Translated) => true,
        other => panic!("tc: {other:?}"),
    };
    world.change_port(ingress, |port| port.path = ServedBy::AfXdp);
    assert_eq!(xdp, tc, "the paths differ about {frame:02x?}");
    xdp
}

fn frame(family: Family, protocol: u8, path: Path, ports: (u16, u16)) -> Vec<u8> {
    if protocol == UDP {
        return udp(family, path, ports, 30);
    }
    let mut frame = tcp(family, path, 30);
    put16(&mut frame, L4[family as usize], ports.0);
    put16(&mut frame, L4[family as usize] + 2, ports.1);
    frame
}

#[test]
fn both_directions_of_what_conntrack_translates_are_the_kernels() {
    net::test("both_directions_of_what_conntrack_translates_are_the_kernels", || {
        let mut world = World::new();
        for family in FAMILIES {
            let (client, backend) = (address(family, 1, 10), address(family, 1, 11));
            let service = address(family, 200, 1);
            for protocol in [TCP, UDP] {
                let answer = frame(family, protocol, BACK, (SERVER, CLIENT));
                let direct = frame(family, protocol, BRIDGED, (CLIENT, SERVER));
                let other = frame(family, protocol, BRIDGED, (CLIENT + 1, SERVER));
                world.translate(Translation::Strict);
                assert!(!is_kernels(&mut world, B, &answer), "nobody translates it yet");
                connect(protocol, (client, CLIENT), (service, 443), Some((backend, SERVER)), 0);
                assert!(is_kernels(&mut world, B, &answer), "{family:?} {protocol}: the backend's answer");
                assert!(is_kernels(&mut world, A, &direct), "{family:?} {protocol}: from the same port to the backend");
                assert!(!is_kernels(&mut world, A, &other), "{family:?} {protocol}: from another port");
                world.translate(Translation::Liberal);
                assert!(is_kernels(&mut world, B, &answer), "liberal is only about windows");
                world.translate(Translation::None);
                assert!(!is_kernels(&mut world, B, &answer), "a node that does not translate asks nobody");
            }
        }
    });
}

#[test]
fn tcp_that_conntrack_has_followed_strictly_stays_with_it() {
    net::test("tcp_that_conntrack_has_followed_strictly_stays_with_it", || {
        let mut world = World::new();
        for family in FAMILIES {
            let (client, server) = (address(family, 1, 10), address(family, 1, 11));
            for (port, flags, is_strict) in [(CLIENT, 0, true), (CLIENT + 1, LIBERAL, false)] {
                connect(TCP, (client, port), (server, SERVER), None, flags);
                let there = frame(family, TCP, BRIDGED, (port, SERVER));
                let back = frame(family, TCP, BACK, (SERVER, port));
                for (translation, expected) in [(Translation::Strict, is_strict), (Translation::Liberal, false)] {
                    world.translate(translation);
                    assert_eq!(is_kernels(&mut world, A, &there), expected, "{family:?} {flags} {translation:?}");
                    assert_eq!(is_kernels(&mut world, B, &back), expected, "{family:?} {flags} {translation:?}");
                }
            }
            connect(UDP, (client, CLIENT), (server, SERVER), None, 0);
            world.translate(Translation::Strict);
            assert!(
                !is_kernels(&mut world, A, &frame(family, UDP, BRIDGED, (CLIENT, SERVER))),
                "datagrams have no window"
            );
        }
    });
}

/// An ICMP error from pod B about a packet of pod A's.
fn error(family: Family, quoted: &[u8]) -> Vec<u8> {
    let mut error = echo(family, BACK, quoted.len());
    let l4 = L4[family as usize];
    // Destination unreachable, port.
    (error[l4], error[l4 + 1]) = if family == Family::V4 { (3, 3) } else { (1, 4) };
    error[l4 + 8..].copy_from_slice(quoted);
    error
}

#[test]
fn icmp_errors_go_with_the_connection_that_they_quote() {
    net::test("icmp_errors_go_with_the_connection_that_they_quote", || {
        let mut world = World::new();
        world.translate(Translation::Strict);
        for family in FAMILIES {
            let (client, backend) = (address(family, 1, 10), address(family, 1, 11));
            connect(UDP, (client, CLIENT), (address(family, 200, 1), 53), Some((backend, SERVER)), 0);
            let quoted = |port| udp(family, BRIDGED, (port, SERVER), 30)[L3..].to_vec();
            assert!(is_kernels(&mut world, B, &error(family, &quoted(CLIENT))), "{family:?}: of a service");
            assert!(!is_kernels(&mut world, B, &error(family, &quoted(CLIENT + 1))), "{family:?}: of a pod");
            assert!(is_kernels(&mut world, B, &error(family, &quoted(CLIENT)[..10])), "{family:?}: of who knows what");
            let mut odd = quoted(CLIENT + 1);
            odd[0] = 0;
            assert!(is_kernels(&mut world, B, &error(family, &odd)), "{family:?}: of nothing");
            assert!(!is_kernels(&mut world, B, &echo(family, BACK, 30)), "{family:?}: an echo is no error");
        }
    });
}

/// Has nftables read rules.
fn nft(rules: &str) {
    use std::io::Write;
    // A block ends with its line.
    let rules = rules.replace("} }", "}\n}").replace("} chain", "}\nchain");
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// What is found in rules, as nftables writes them, by a node of three ports.
fn found(rules: &str) -> Vec<String> {
    nft(&format!("flush ruleset\n{rules}"));
    found_now()
}

/// What is found in the rules that are there.
fn found_now() -> Vec<String> {
    let watch = Watch::start().unwrap();
    let cluster: Vec<IpNet> = ["10.244.0.0/16", "fd00::/16"].map(|network| network.parse().unwrap()).into();
    let taken =
        Taken { bridge: "cbr0", uplinks: &["eth0"], pods: &["veth1", "veth2"], cluster: &cluster, bridged: [true; 2] };
    let concerned = judge(&watch.rules().tables, &taken);
    concerned.sentences
}

#[test]
fn rules_of_nftables_are_read_and_judged() {
    net::test("rules_of_nftables_are_read_and_judged", || {
        let forward = |rules: &str| {
            format!("table ip t {{ chain c {{ type filter hook forward priority 0; policy accept; {rules}; }} }}")
        };
        for harmless in [
            "",
            "counter accept",
            "ct state established,related accept; meta mark set 5 counter",
            "ct state invalid drop",
            "iifname \"docker0\" drop",
            "oifname \"docker0\" drop",
            "iifname { \"cbr0\" } accept",
            "ip daddr 169.254.169.254 drop",
            "ip saddr 192.168.0.0/16 drop",
            "ip daddr != 10.244.0.0/16 drop",
            "ip saddr 10.244.0.0/16 accept; drop",
            "accept; drop",
        ] {
            assert_eq!(found(&forward(harmless)), [""; 0], "{harmless}");
        }
        for (harmful, what) in [
            ("drop", "drop in chain c"),
            ("iifname \"cbr0\" oifname \"cbr0\" drop", "drop in chain c"),
            ("iifname \"e*\" drop", "drop in chain c"),
            ("iifname != \"docker0\" drop", "drop in chain c"),
            ("ip daddr 10.244.3.0/24 drop", "drop in chain c"),
            ("ip daddr 10.0.0.0/8 drop", "drop in chain c"),
            ("ip daddr != 10.244.1.0/24 drop", "drop in chain c"),
            ("tcp dport 80 reject", "reject in chain c"),
            ("ct state vmap { invalid : drop, established : accept }", "verdict map in chain c"),
            ("ip dscp set cs1", "changes the packet in chain c"),
            ("ct state new limit rate 1/second accept; tcp flags syn drop", "drop in chain c"),
        ] {
            let sentences = found(&forward(harmful));
            assert!(sentences.len() == 1 && sentences[0].contains(what), "{harmful}: {sentences:?}");
            assert!(sentences[0].starts_with("table ip t chain c (hook forward)"), "{sentences:?}");
        }
        let jumping = "table inet t { chain far { drop; } chain near { jump far; } chain unused { drop; } \
                       chain c { type filter hook forward priority 0; policy accept; ip6 saddr fd00::/16 goto near; } }";
        assert!(found(jumping)[0].contains("drop in chain far"));
        let policy =
            "table inet t { chain c { type filter hook forward priority 0; policy drop; iifname \"x\" accept; } }";
        assert!(found(policy)[0].contains("(policy drop)"));
        let elsewhere = "table inet t { chain c { type filter hook input priority 0; policy drop; } \
                         chain n { type nat hook prerouting priority -100; ip daddr 10.96.0.1 dnat ip to 10.244.1.2; } }";
        assert_eq!(found(elsewhere), [""; 0]);
        let known = "table ip kube-proxy { chain c { type filter hook forward priority 0; policy accept; \
                     ip daddr 10.244.0.9 reject; } }";
        assert_eq!(found(known), [""; 0]);
        let kube_proxy = |family: &str, kind: &str, elements: &str| {
            format!(
                "table {family} kube-proxy {{ set cluster-ips {{ type {kind}_addr; elements = {{ {elements} }}; }}; \
                 chain c {{ type nat hook prerouting priority -100; }} }}"
            )
        };
        assert_eq!(found(&kube_proxy("ip", "ipv4", "10.96.0.1, 10.96.0.10")), [""; 0]);
        for (family, kind, elements, service) in [
            ("ip", "ipv4", "10.96.0.1, 10.244.9.1, 10.96.0.10", "10.244.9.1"),
            ("ip6", "ipv6", "2001:db8::1, fd00:0:9::1", "fd00:0:9::1"),
        ] {
            let expected = format!(
                "table {family} kube-proxy chain cluster-ips (hook prerouting) has rules that may send connections between \
                 pods elsewhere (service {service} in chain cluster-ips)"
            );
            assert_eq!(found(&kube_proxy(family, kind, elements)), [expected]);
        }
        let redirects = |family: &str, rules: &str| {
            format!(
                "table {family} t {{ chain d {{ {rules}; }} \
                     chain c {{ type nat hook prerouting priority -100; fib daddr type local jump d; {rules}; }} }}"
            )
        };
        for harmless in
            ["ip daddr 10.96.0.1 dnat to 10.244.1.2", "fib daddr type local meta l4proto tcp redirect to :80", "accept"]
        {
            assert_eq!(found(&redirects("ip", harmless)), [""; 0], "{harmless}");
        }
        for (harmful, what) in [
            ("ip daddr 10.244.9.1 dnat to 10.244.1.2", "nat in chain c"),
            ("fib daddr type != local meta l4proto tcp redirect to :80", "redir in chain c"),
            ("fib saddr type local meta l4proto tcp redirect to :80", "redir in chain c"),
            ("ip daddr . tcp dport vmap { 10.244.9.1 . 80 : accept }", "verdict map in chain c"),
        ] {
            let sentences = found(&redirects("ip", harmful));
            assert!(sentences.len() == 1 && sentences[0].contains(what), "{harmful}: {sentences:?}");
            assert!(sentences[0].contains("may send connections between pods elsewhere"), "{sentences:?}");
        }
        let ingress = |device: &str| {
            format!("table netdev t {{ chain c {{ type filter hook ingress device {device} priority 0; drop; }} }}")
        };
        net::ip("link add name eth0 type bridge");
        net::ip("link add name docker0 type bridge");
        assert_eq!(found(&ingress("docker0")), [""; 0]);
        assert!(found(&ingress("eth0"))[0].contains("hook ingress"));
    });
}

#[test]
fn changes_of_rules_are_followed() {
    net::test("changes_of_rules_are_followed", || {
        let watch = Watch::start().unwrap();
        assert!(!watch.rules().translates());
        let wait = |what: &str, is_there: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !is_there() {
                assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", watch.rules());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        nft("table ip n { chain c { type nat hook postrouting priority 100; masquerade; } }");
        wait("a masquerade", &|| watch.has_changed() && watch.rules().translates());
        nft("delete table ip n");
        wait("no masquerade", &|| watch.has_changed() && !watch.rules().translates());
        // What changes nothing that matters is not told.
        nft("table ip n { chain c { counter; } }");
        std::thread::sleep(Duration::from_millis(200));
        assert!(!watch.has_changed());
    });
}

/// The old iptables, if this machine has its programs.
#[test]
fn the_old_iptables_is_read() {
    net::test("the_old_iptables_is_read", || {
        if Command::new("iptables-legacy").arg("--version").output().is_err() {
            return net::skipped("the_old_iptables_is_read", "there is no iptables-legacy");
        }
        net::run("iptables-legacy", "-t filter -A FORWARD -s 10.244.1.0/24 -p tcp -j REJECT");
        let watch = Watch::start().unwrap();
        let rules = watch.rules();
        assert!(!rules.translates() && rules.unknown.is_empty(), "{rules:?}");
        let cluster: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap()];
        let taken = Taken { bridge: "cbr0", uplinks: &[], pods: &[], cluster: &cluster, bridged: [false; 2] };
        let concerned = judge(&rules.tables, &taken);
        assert_eq!((concerned.routed, concerned.bridged), ([true, false], false));
        assert!(concerned.sentences[0].contains("REJECT in chain FORWARD"), "{concerned:?}");
        net::run("iptables-legacy", "-t nat -A POSTROUTING -j MASQUERADE");
        net::run("iptables-legacy", "-t nat -A PREROUTING -d 10.244.9.1 -j DNAT --to-destination 10.244.1.2");
        let start = Instant::now();
        while !watch.rules().translates() {
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(10));
        }
        let sentences = judge(&watch.rules().tables, &taken).sentences;
        assert!(sentences.iter().any(|sentence| sentence.contains("DNAT in chain PREROUTING")), "{sentences:?}");
    });
}

/// iptables that is made of nftables writes some of its matches in a form of its own.
#[test]
fn rules_of_iptables_over_nftables_are_read() {
    net::test("rules_of_iptables_over_nftables_are_read", || {
        if Command::new("iptables-nft").arg("--version").output().is_err() {
            return net::skipped("rules_of_iptables_over_nftables_are_read", "there is no iptables-nft");
        }
        let nat = |rule: &str| net::run("iptables-nft", &format!("-t nat {rule}"));
        nat("-N DOCKER");
        nat("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER");
        nat("-A DOCKER -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80");
        nat("-N KUBE-SERVICES");
        nat("-N KUBE-SVC-1");
        nat("-A PREROUTING -m comment --comment portals -j KUBE-SERVICES");
        nat("-A KUBE-SERVICES -d 10.96.0.1 -p tcp --dport 80 -j KUBE-SVC-1");
        nat("-A KUBE-SVC-1 -p tcp -j DNAT --to-destination 10.244.1.2:80");
        assert_eq!(found_now(), [""; 0]);
        nat("-A KUBE-SERVICES -d 10.244.9.1 -p tcp --dport 80 -j KUBE-SVC-1");
        let sentences = found_now();
        assert!(
            sentences.len() == 1 && sentences[0].contains("service 10.244.9.1 in chain KUBE-SERVICES"),
            "{sentences:?}"
        );
        nat("-F KUBE-SERVICES");
        nat("-A PREROUTING -m addrtype ! --dst-type LOCAL -j DOCKER");
        let sentences = found_now();
        assert!(sentences.len() == 1 && sentences[0].contains("target DNAT in chain DOCKER"), "{sentences:?}");
    });
}

/// Not a test: prints what the look-ups cost. `cargo test --release --test steer -- --ignored --nocapture cost_of_translation`
#[test]
#[ignore = "a measurement"]
fn cost_of_translation() {
    net::test("cost_of_translation", || {
        let mut world = World::new();
        for family in FAMILIES {
            let (client, server) = (address(family, 1, 10), address(family, 1, 11));
            connect(TCP, (client, CLIENT + 1), (server, SERVER), None, LIBERAL);
        }
        let ifindex = world.tables.ports.get(A).unwrap().ifindex;
        for round in 0..2 {
            for (what, translation, port) in [
                ("no rules", Translation::None, CLIENT),
                ("rules, unknown to conntrack", Translation::Strict, CLIENT),
                ("rules, known to conntrack", Translation::Strict, CLIENT + 1),
            ] {
                world.translate(translation);
                for family in FAMILIES {
                    let frame = frame(family, TCP, BRIDGED, (port, SERVER));
                    world.change_port(A, |port| port.path = ServedBy::AfXdp);
                    let xdp =
                        (0..20).map(|_| world.steering.test_run(&frame, frame.len(), ifindex, 0, 200_000).unwrap().ns);
                    let xdp = xdp.min().unwrap();
                    world.change_port(A, |port| port.path = ServedBy::Kernel);
                    let tc = (0..20).map(|_| world.steering.test_repeat(&frame, ifindex, 0, 200_000).unwrap().0.ns);
                    println!("round {round}, {family:?}, {what}: XDP {xdp} ns, tc {} ns", tc.min().unwrap());
                }
            }
        }
    });
}
