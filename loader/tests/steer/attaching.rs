//! Attaching and detaching, and every refusal that can be had on this machine.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netlink_sys::protocols::NETLINK_ROUTE;
use podlane::bpf::{AttachError, Beside, Steering, TcKind, XdpMode};
use podlane::mirror::RequestSocket;
use podlane_dataplane::table::Path;

use crate::net::{self, Namespace, ifindex, ip};

/// What `ip` says of an interface's XDP program.
fn shown(name: &str) -> String {
    let output = std::process::Command::new("ip").args(["-details", "link", "show", name]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn veth() {
    ip("link add name host type veth peer name pod");
}

#[test]
fn native_means_native_and_dropping_detaches() {
    net::test("native_means_native_and_dropping_detaches", || {
        veth();
        let mut steering = Steering::load().unwrap();
        assert_eq!(steering.attach(ifindex("host"), "host", XdpMode::Native).unwrap(), XdpMode::Native);
        assert!(shown("host").contains(" xdp ") && !shown("host").contains("xdpgeneric"), "{}", shown("host"));
        // Once more changes nothing.
        assert_eq!(steering.attach(ifindex("host"), "host", XdpMode::Generic).unwrap(), XdpMode::Native);
        assert_eq!(steering.attached().collect::<Vec<_>>(), [(ifindex("host"), XdpMode::Native)]);
        steering.detach(&[ifindex("host")]);
        steering.detach(&[ifindex("host")]);
        assert!(!shown("host").contains("xdp"));
        steering.attach(ifindex("host"), "host", XdpMode::Native).unwrap();
        drop(steering);
        assert!(!shown("host").contains("xdp"));
    });
}

/// Only with receive offload on does a veth go on polling, and its queue serving, while a program goes.
#[test]
fn programs_come_and_go_while_frames_flow() {
    net::test("programs_come_and_go_while_frames_flow", || {
        veth();
        net::run("ethtool", "-K host gro on");
        ip("link set host mtu 9000 up");
        ip("link set pod mtu 9000 address 02:00:00:00:00:01 up");
        ip("addr add 192.0.2.1/24 dev host");
        let pod = Namespace::new();
        ip(&format!("link set pod netns {}", pod.path()));
        pod.enter(|| {
            ip("link set pod up");
            ip("addr add 192.0.2.2/24 dev pod");
        });
        let receiver = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let to = receiver.local_addr().unwrap();
        let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        // Waits for one that was sent after now: others may still wait in the socket.
        let receive = |sent: &AtomicU64| {
            let next = sent.load(Ordering::SeqCst) + 1;
            let mut number = [0; 8];
            while u64::from_ne_bytes(number) < next {
                receiver.recv(&mut number).unwrap();
            }
        };
        std::thread::scope(|scope| {
            let sender = pod.enter(|| std::net::UdpSocket::bind("192.0.2.2:0").unwrap());
            let (sent, stop) = (&sent, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let number = sent.fetch_add(1, Ordering::SeqCst) + 1;
                    let _ = sender.send_to(&number.to_ne_bytes(), to);
                }
            });
            let mut steering = Steering::load().unwrap();
            for _ in 0..30 {
                steering.attach(ifindex("host"), "host", XdpMode::Native).unwrap();
                receive(sent);
                steering.detach(&[ifindex("host")]);
                assert!(!shown("host").contains("xdp"));
                receive(sent);
            }
            stop.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn what_was_attached_to_an_interface_before_is_lost() {
    net::test("what_was_attached_to_an_interface_before_is_lost", || {
        veth();
        let index = ifindex("host");
        let mut steering = Steering::load().unwrap();
        for round in 0..2 {
            steering.attach(index, "host", XdpMode::Native).unwrap();
            steering.attach_repeat(index, "host").unwrap();
            assert!(!steering.has_lost(index), "round {round}");
            ip("link del host");
            ip(&format!("link add name host index {index} type veth peer name pod"));
            assert!(steering.has_lost(index), "round {round}");
            steering.detach(&[index]);
            steering.detach_repeat(index);
            assert!(!steering.has_lost(index), "nothing is attached");
        }
        // Another namespace and back: the program is still on it, but no socket that was bound to it.
        steering.attach(index, "host", XdpMode::Native).unwrap();
        let other = Namespace::new();
        let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        ip(&format!("link set host netns {}", other.path()));
        other.enter(|| ip(&format!("link set host netns {own}")));
        assert!(steering.has_lost(ifindex("host")));
    });
}

#[test]
fn generic_only_when_asked_for() {
    net::test("generic_only_when_asked_for", || {
        veth();
        let mut steering = Steering::load().unwrap();
        // Loopback has no native XDP; the kernel would fall back to generic if it were let.
        let error = steering.attach(ifindex("lo"), "lo", XdpMode::Native).unwrap_err();
        assert!(matches!(error, AttachError::NoNativeXdp { .. }), "{error}");
        assert!(!shown("lo").contains("xdp"));
        assert_eq!(steering.attach(ifindex("lo"), "lo", XdpMode::Generic).unwrap(), XdpMode::Generic);
        assert_eq!(steering.attach(ifindex("host"), "host", XdpMode::Generic).unwrap(), XdpMode::Generic);
        assert!(shown("host").contains("xdpgeneric"));
    });
}

#[test]
fn a_foreign_program_is_named() {
    net::test("a_foreign_program_is_named", || {
        veth();
        let mut first = Steering::load().unwrap();
        let mut second = Steering::load().unwrap();
        for (there, ours) in [(XdpMode::Native, XdpMode::Native), (XdpMode::Generic, XdpMode::Native)] {
            first.attach(ifindex("host"), "host", there).unwrap();
            let error = second.attach(ifindex("host"), "host", ours).unwrap_err();
            let AttachError::Foreign { id, ref program, .. } = error else { panic!("{error}") };
            assert!(program.starts_with("podlane_steer") && program.len() <= 15, "{program}");
            let sentence =
                format!("host already has XDP program id {id} ({program}); detach it or set `skip = [\"host\"]`");
            assert_eq!(error.to_string(), sentence);
            assert!(shown("host").contains(&format!("id {id}")));
            first.detach(&[ifindex("host")]);
        }
        second.attach(ifindex("host"), "host", XdpMode::Native).unwrap();
    });
}

#[test]
fn more_queues_at_the_other_end_are_refused() {
    net::test("more_queues_at_the_other_end_are_refused", || {
        ip("link add name host numtxqueues 1 numrxqueues 1 type veth peer name pod numtxqueues 4 numrxqueues 1");
        let mut steering = Steering::load().unwrap();
        let error = steering.attach(ifindex("host"), "host", XdpMode::Native).unwrap_err();
        assert!(matches!(error, AttachError::Queues { .. }), "{error}");
    });
}

#[test]
fn a_removed_interface_is_no_error_to_detach() {
    net::test("a_removed_interface_is_no_error_to_detach", || {
        veth();
        let mut steering = Steering::load().unwrap();
        let h = ifindex("host");
        steering.attach(h, "host", XdpMode::Native).unwrap();
        ip("link del host");
        steering.detach(&[h]);
        let error = steering.attach(h, "host", XdpMode::Native).unwrap_err();
        assert_eq!(error.to_string(), "host is gone");
        assert!(steering.attach(u32::MAX, "host", XdpMode::Native).is_err());
    });
}

#[test]
fn what_others_have_at_tc_is_found() {
    net::test("what_others_have_at_tc_is_found", || {
        veth();
        let index = ifindex("host");
        let (mut first, mut second) = (Steering::load().unwrap(), Steering::load().unwrap());
        if first.tc_kind() != TcKind::Tcx {
            return net::skipped("what_others_have_at_tc_is_found", "this kernel has no tcx");
        }
        let mut requests = RequestSocket::open(NETLINK_ROUTE).unwrap();
        let mut passed_by = |steering: &Steering, path, is_uplink| {
            Beside { ifindex: index, path, is_uplink }.passed_by(steering, &mut requests)
        };
        first.attach_repeat(index, "host").unwrap();
        assert_eq!(passed_by(&first, Path::Kernel, false), [""; 0], "nobody else is there");
        second.attach_repeat(index, "host").unwrap();
        assert_eq!(passed_by(&second, Path::Kernel, false), [""; 0], "who was there before sees everything");
        let later = passed_by(&first, Path::Kernel, false);
        assert!(later.len() == 1 && later[0].starts_with("program ") && later[0].ends_with(" at ingress"), "{later:?}");
        assert_eq!(passed_by(&second, Path::AfXdp, false).len(), 1, "nobody sees what XDP takes");
        drop(second);
        net::run("tc", "qdisc add dev host clsact");
        assert_eq!(passed_by(&first, Path::AfXdp, false), [""; 0], "a queueing discipline alone does nothing");
        net::run("tc", "filter add dev host ingress protocol all u32 match u32 0 0 classid 1:1");
        net::run("tc", "filter add dev host egress protocol all u32 match u32 0 0 classid 1:1");
        let both = ["u32 filter at ingress", "u32 filter at egress"];
        for (path, is_uplink, expected) in [
            (Path::Kernel, false, &both[..]),
            (Path::Kernel, true, &both[..1]),
            (Path::AfXdp, false, &both[..]),
            (Path::AfXdp, true, &both[..]),
        ] {
            assert_eq!(passed_by(&first, path, is_uplink), expected, "{path:?}, uplink {is_uplink}");
        }
    });
}
