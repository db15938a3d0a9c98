use std::io;

use caps::{Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::resource::RLIM_INFINITY;
use podlane_dataplane::MacAddr;

use super::network::{Program, bridge, forwarding, netfilter, uplink, wanted};
use super::preflight::interfaces;
use super::privileges::missing_of;
use super::*;
use crate::config::{Host, Settings};
use crate::kernel::Switches;
use crate::mirror::World;
use crate::mirror::world::{Bridge, Link, LinkKind};
use crate::netfilter::Effects;
use crate::status::WIDTH;

fn config(text: &str) -> Result<Config, ConfigError> {
    let host = Host { allowed_cpus: vec![0, 1], online_cpus: vec![0, 1] };
    Config::from_text(Settings::default(), text, "/etc/podlane/podlane.toml".as_ref(), &host)
}

fn usual() -> Config {
    config("bridge = \"cbr0\"\nuplinks = [\"eth0\"]").unwrap()
}

/// A node with a bridge, an uplink and a pod; `change` spoils it.
fn world(change: impl FnOnce(&mut Link, &mut Link, &mut Link)) -> World {
    let link = |ifindex: u32, name: &str, kind| Link {
        ifindex,
        name: name.to_owned(),
        kind,
        mac: MacAddr::new([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
        up: true,
        carrier: true,
        rx_queues: 1,
        ..Link::default()
    };
    let mut bridge = Link { bridge: Some(Bridge::default()), ..link(2, "cbr0", LinkKind::Bridge) };
    let mut uplink = link(3, "eth0", LinkKind::Device);
    let mut pod = Link { master: Some(2), ..link(4, "veth-pod1", LinkKind::Veth) };
    change(&mut bridge, &mut uplink, &mut pod);
    World { links: [bridge, uplink, pod].into_iter().map(|link| (link.ifindex, link)).collect(), ..World::default() }
}

fn bridge_line(change: impl FnOnce(&mut Link, &mut Link, &mut Link)) -> Line {
    let world = world(change);
    bridge(&world, &usual(), &wanted(&world, &usual(), |link| link.rx_queues))
}

fn uplink_line(change: impl FnOnce(&mut Link, &mut Link, &mut Link)) -> Line {
    let world = world(change);
    let find = |id| Program { id, name: Some(if id == 1 { "podlane_steer" } else { "xdp_filter" }.to_owned()) };
    uplink(&world, "eth0", &wanted(&world, &usual(), |link| link.rx_queues), find)
}

#[test]
fn kernels_are_judged_by_their_version() {
    for (release, level) in [
        ("5.15.0-91-generic", Level::Fail),
        ("6.0.19", Level::Fail),
        ("6.1.0-18-amd64", Level::Warn),
        ("6.6.1", Level::Warn),
        ("6.8.0", Level::Ok),
        ("6.18.44-fc", Level::Ok),
        ("7.0-rc1", Level::Ok),
        ("", Level::Warn),
        ("unknown", Level::Warn),
    ] {
        assert_eq!(machine::kernel(release).level, level, "{release}");
    }
    let cure = machine::kernel("6.1.0").cure.unwrap();
    assert!(cure.contains("6.6: multi-buffer") && cure.contains("6.8: AF_XDP TX metadata"), "{cure}");
    let cure = machine::kernel("6.6.0").cure.unwrap();
    assert!(!cure.contains("multi-buffer") && cure.contains("TX metadata"), "{cure}");
}

#[test]
fn missing_capabilities_are_named_with_their_purpose() {
    let all: CapsHashSet = NEEDED_CAPABILITIES.iter().map(|(capability, _)| *capability).collect();
    assert!(missing_of(&all).is_empty());
    let mut fewer = all.clone();
    fewer.remove(&Capability::CAP_BPF);
    fewer.remove(&Capability::CAP_NET_RAW);
    assert_eq!(missing_of(&fewer), ["CAP_NET_RAW", "CAP_BPF"]);
    for (capability, _) in NEEDED_CAPABILITIES {
        let mut without = all.clone();
        without.remove(&capability);
        assert_eq!(missing_of(&without), [capability.to_string()]);
    }
    let line = machine::capabilities(&missing_of(&fewer), "");
    assert_eq!(line.level, Level::Fail);
    assert!(line.found.contains("CAP_NET_RAW (to open AF_XDP sockets), CAP_BPF (to load"), "{}", line.found);
    assert_eq!(machine::capabilities(&[], "         0          0 4294967295\n").level, Level::Ok);
    assert_eq!(machine::capabilities(&[], "         0       1000          1\n").level, Level::Fail);
    let sentence = PreflightError::Capabilities(missing_of(&fewer)).to_string();
    assert!(sentence.starts_with("podlane run lacks CAP_NET_RAW, CAP_BPF: run it as root, or"), "{sentence}");
}

#[test]
fn locked_memory_is_judged_by_limits_and_capabilities() {
    let none = CapsHashSet::new();
    let with = |capability| CapsHashSet::from([capability]);
    let judge = |soft, hard, held: &CapsHashSet| Memlock::judge(100, soft, hard, held);
    assert_eq!(judge(0, 0, &with(Capability::CAP_IPC_LOCK)), Memlock::Unlimited);
    assert_eq!(judge(100, 100, &none), Memlock::Enough { limit: 100 });
    assert_eq!(judge(RLIM_INFINITY, RLIM_INFINITY, &none), Memlock::Enough { limit: RLIM_INFINITY });
    assert_eq!(judge(99, 100, &none), Memlock::Raisable { limit: 99 });
    assert_eq!(judge(99, RLIM_INFINITY, &none), Memlock::Raisable { limit: 99 });
    assert_eq!(judge(99, 99, &with(Capability::CAP_SYS_RESOURCE)), Memlock::Raisable { limit: 99 });
    assert_eq!(judge(98, 99, &none), Memlock::TooLow { limit: 99 });
    let line = machine::locked_memory(64 << 20, Memlock::TooLow { limit: 8 << 20 });
    assert_eq!((line.level, line.found.as_str()), (Level::Fail, "64 MiB are needed; the limit is 8 MiB"));
    let sentence = PreflightError::LockedMemory { needed: 64 << 20, limit: 64 << 10 }.to_string();
    assert!(sentence.starts_with("64 MiB of locked memory are needed and the limit is 64 KiB: raise"), "{sentence}");
}

#[test]
fn sockets_memory_and_compiler_are_judged() {
    let refused = |errno: Errno| machine::af_xdp(Err(io::Error::from(errno)));
    assert_eq!(machine::af_xdp(Ok(())).level, Level::Ok);
    assert!(refused(Errno::EPERM).cure.unwrap().contains("CAP_NET_RAW"));
    assert!(refused(Errno::EAFNOSUPPORT).cure.unwrap().contains("CONFIG_XDP_SOCKETS"));
    assert_eq!(refused(Errno::ENOMEM).level, Level::Fail);
    let memory = |available: u64| {
        machine::memory(64 << 20, &format!("MemTotal:  9 kB\nMemAvailable:    {} kB\n", available << 10)).level
    };
    assert_eq!([memory(63), memory(100), memory(128)], [Level::Fail, Level::Warn, Level::Ok]);
    assert_eq!(machine::memory(1, "").level, Level::Warn);
    let jit = |value| machine::bpf_jit(value).level;
    assert_eq!([jit(Some("0")), jit(Some("1")), jit(None)], [Level::Warn, Level::Ok, Level::Ok]);
    assert_eq!([machine::btf(true).level, machine::btf(false).level], [Level::Ok, Level::Warn]);
}

#[test]
fn bridges_are_judged() {
    let line = bridge_line(|_, _, _| ());
    assert_eq!((line.level, line.found.as_str()), (Level::Ok, "1 pod, MTU 1500"));
    let line = bridge_line(|bridge, _, _| bridge.bridge.as_mut().unwrap().vlan_filtering = true);
    assert_eq!(line.level, Level::Warn);
    assert_eq!(line.cure.unwrap(), "ip link set cbr0 type bridge vlan_filtering 0");
    assert_eq!(bridge_line(|bridge, _, _| bridge.up = false).level, Level::Warn);
    let line = bridge_line(|bridge, _, _| bridge.name = "cni0".to_owned());
    assert_eq!((line.level, line.found.as_str()), (Level::Fail, "there is no interface cbr0"));
    assert_eq!(line.cure.unwrap(), "name the pods' bridge: here are cni0");
    let line = bridge_line(|bridge, _, _| bridge.kind = LinkKind::Other("bond".to_owned()));
    assert_eq!((line.level, line.found.as_str()), (Level::Fail, "cbr0 is not a bridge (its kind is bond)"));
    assert_eq!(line.cure.unwrap(), "name the pods' bridge: there is no bridge here");
}

#[test]
fn uplinks_are_judged() {
    let line = uplink_line(|_, _, _| ());
    assert_eq!((line.level, line.found.as_str()), (Level::Ok, "device, MTU 1500, 1 receive queue"));
    assert_eq!(uplink_line(|_, uplink, _| uplink.up = false).cure.unwrap(), "ip link set eth0 up");
    assert_eq!(uplink_line(|_, uplink, _| uplink.carrier = false).level, Level::Warn);
    let line = uplink_line(|_, uplink, _| uplink.name = "ens3".to_owned());
    assert_eq!((line.level, line.found.as_str()), (Level::Fail, "there is no interface eth0"));
    assert_eq!(line.cure.unwrap(), "name an interface towards the other nodes: here are ens3");
    assert_eq!(uplink_line(|_, uplink, _| uplink.master = Some(2)).level, Level::Fail);
    let line = uplink_line(|_, uplink, _| uplink.xdp_program = Some(12));
    assert_eq!(line.level, Level::Fail);
    assert!(line.found.ends_with("another XDP program is on it, id 12 (xdp_filter)"), "{}", line.found);
    assert!(line.cure.unwrap().ends_with("ip link set dev eth0 xdp off"));
    assert_eq!(uplink_line(|_, uplink, _| uplink.xdp_program = Some(1)).level, Level::Ok, "our own");
}

#[test]
fn a_daemon_does_not_start_over_unusable_interfaces() {
    let sentence = |change: fn(&mut Link, &mut Link, &mut Link)| {
        interfaces(&world(change), &usual()).map_err(|error| error.to_string())
    };
    assert_eq!(sentence(|_, _, _| ()), Ok(()));
    // What is not there yet is waited for.
    assert_eq!(sentence(|_, uplink, _| uplink.name = "ens3".to_owned()), Ok(()));
    assert_eq!(sentence(|bridge, _, _| bridge.name = "cni0".to_owned()), Ok(()));
    assert!(sentence(|_, uplink, _| uplink.loopback = true).unwrap_err().starts_with("eth0 is not an Ethernet"));
}

#[test]
fn the_kernels_switches_are_judged() {
    assert!(forwarding(&Switches::default()).iter().all(|line| line.level == Level::Ok));
    let off = Switches { ipv4_off: vec!["net.ipv4.conf.eth0.forwarding".to_owned()], ..Switches::default() };
    let lines = forwarding(&off);
    assert_eq!(lines[0].cure.as_deref(), Some("sysctl -w net.ipv4.conf.eth0.forwarding=1"));
    assert_eq!(lines[1].level, Level::Ok);
    let none = Switches { ipv6_off: vec!["net.ipv6 (the kernel has no IPv6)".to_owned()], ..Switches::default() };
    assert!(!forwarding(&none)[1].cure.as_ref().unwrap().contains("sysctl"));
    let levels = |effects: &Effects| netfilter(effects).iter().map(|line| line.level).collect::<Vec<_>>();
    assert_eq!(levels(&Effects::default()), [Level::Ok]);
    let found = Effects { notes: vec!["Table inet a chain b drops.".to_owned()], ..Effects::default() };
    assert_eq!(levels(&found), [Level::Warn, Level::Ok]);
}

#[test]
fn this_machine_is_looked_at_whatever_the_configuration() {
    let complete = check(&Ok(usual()));
    let incomplete = check(&config(""));
    let wrong = check(&config("bridge = 1\nframes = 7"));
    let subjects = |report: &Report| report.checks.iter().map(|line| line.subject.clone()).collect::<Vec<_>>();
    for report in [&complete, &incomplete, &wrong] {
        assert_eq!(subjects(report)[..2], ["kernel", "capabilities"]);
        assert_eq!(report.ok, report.checks.iter().all(|line| line.level != Level::Fail));
        for line in report.render(false).lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
    assert!(subjects(&complete).contains(&"bridge cbr0".to_owned()));
    let level = |report: &Report| {
        let lines: Vec<_> = report.checks.iter().filter(|line| line.subject == "configuration").collect();
        (lines.len(), lines[0].level)
    };
    assert_eq!(level(&complete), (1, Level::Ok));
    assert_eq!(level(&incomplete), (1, Level::Warn));
    assert_eq!(level(&wrong), (2, Level::Fail));
    assert_eq!(level(&check(&config("bridge = \"cbr0\""))), (1, Level::Fail), "half a configuration");
    assert!(!wrong.ok);
}

#[test]
fn the_text_has_a_verdict_and_colours_on_demand() {
    let report = Report::new(vec![
        Line::ok("kernel", "Linux 6.18"),
        Line::warn("uplink eth0", "it is down", "ip link set eth0 up"),
        Line::fail("AF_XDP", "a socket may not be opened", "run it as root or add CAP_NET_RAW"),
    ]);
    let expected = "\
ok    kernel       Linux 6.18
warn  uplink eth0  it is down
                   -> ip link set eth0 up
FAIL  AF_XDP       a socket may not be opened
                   -> run it as root or add CAP_NET_RAW

Podlane cannot run here yet: 1 failure and 1 warning.
";
    assert_eq!(report.render(false), expected);
    assert!(report.render(true).starts_with("\x1b[32mok\x1b[0m    kernel"));
    assert!(!report.ok);
    assert!(Report::new(vec![]).render(false).ends_with("\nPodlane can run here.\n"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["checks"][1]["level"], "warn");
    assert_eq!(json["checks"][1]["cure"], "ip link set eth0 up");
    assert!(json["checks"][0].get("cure").is_none());
}
