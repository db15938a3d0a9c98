//! Packets in words: one line for each, and what became of it.

use std::fmt::Write;

use etherparse::{Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use podlane_dataplane::tap::{Direction, Outcome};

use super::client::{Names, name_of};
use super::wire::{Packet, Seer};

/// What became of a packet, as a comment in a file.
pub fn verdict(packet: &Packet<'_>, names: &Names) -> String {
    let mut text = match packet.outcome {
        Outcome::Forwarded { to, routed } => {
            format!("forwarded to {}, {}", name_of(names, to), if routed { "routed" } else { "bridged" })
        }
        Outcome::Passed(reason) => format!("left to the kernel: {}: {}", reason.name(), reason.sentence()),
        Outcome::Dropped(reason) => format!("dropped: {}: {}", reason.name(), reason.sentence()),
        Outcome::Sent { from: 0 } => "sent; handed over by another worker".to_owned(),
        Outcome::Sent { from } => format!("sent; came in through {}", name_of(names, from)),
    };
    if packet.gso_size != 0 {
        let _ = write!(text, "; super-frame, segments of {} bytes", packet.gso_size);
    }
    let _ = write!(text, " ({})", packet.seer.name());
    text
}

/// The same in a few words.
fn short_verdict(packet: &Packet<'_>, names: &Names) -> String {
    match packet.outcome {
        Outcome::Forwarded { to, routed } => {
            format!("forwarded to {}, {}", name_of(names, to), if routed { "routed" } else { "bridged" })
        }
        Outcome::Passed(reason) => format!("left to the kernel: {}", reason.name()),
        Outcome::Dropped(reason) => format!("dropped: {}", reason.name()),
        Outcome::Sent { .. } => "sent".to_owned(),
    }
}

/// A time of day, UTC, with microseconds.
pub fn time_of_day(ns: u64) -> String {
    let seconds = ns / 1_000_000_000 % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:06}", seconds % 60, ns % 1_000_000_000 / 1000)
}

/// A packet in one line, without its end.
pub fn line(packet: &Packet<'_>, names: &Names) -> String {
    let arrow = match packet.direction {
        Direction::Rx => "in ",
        Direction::Tx => "out",
    };
    let seer = match packet.seer {
        Seer::Worker => "worker",
        Seer::Xdp => "xdp   ",
        Seer::Tc => "tc    ",
    };
    format!(
        "{} {:<15} {arrow} {seer} {}, {} bytes: {}",
        time_of_day(packet.time_ns()),
        name_of(names, packet.ifindex),
        summary(packet.bytes),
        packet.frame_bytes,
        short_verdict(packet, names)
    )
}

/// Addresses, protocol and what matters most of it. Never fails: what cannot be read is told by its EtherType.
pub fn summary(frame: &[u8]) -> String {
    let ethertype = || match frame {
        [.., _, _] if frame.len() >= 14 => format!("ethertype 0x{:02x}{:02x}", frame[12], frame[13]),
        _ => "cut off in its Ethernet header".to_owned(),
    };
    let Ok(parsed) = LaxSlicedPacket::from_ethernet(frame) else { return ethertype() };
    let tagged = if parsed.link_exts.is_empty() { "" } else { "vlan " };
    let (source, destination, protocol, fragment) = match &parsed.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let ends = (header.source_addr().to_string(), header.destination_addr().to_string());
            (ends.0, ends.1, ip.payload_ip_number().0, ip.is_payload_fragmented())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let ends = (header.source_addr().to_string(), header.destination_addr().to_string());
            (ends.0, ends.1, ip.payload().ip_number.0, ip.is_payload_fragmented())
        }
        Some(LaxNetSlice::Arp(_)) => return format!("{tagged}arp"),
        None => return format!("{tagged}{}", ethertype()),
    };
    let with_port = |address: &str, port: u16| match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    match &parsed.transport {
        _ if fragment => format!("{tagged}{source} > {destination} fragment of protocol {protocol}"),
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.psh(), 'P'), (tcp.ack(), '.')];
            let flags: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
            let (from, to) = (with_port(&source, tcp.source_port()), with_port(&destination, tcp.destination_port()));
            format!("{tagged}{from} > {to} tcp [{flags}] seq {}", tcp.sequence_number())
        }
        Some(TransportSlice::Udp(udp)) => {
            let (from, to) = (with_port(&source, udp.source_port()), with_port(&destination, udp.destination_port()));
            format!("{tagged}{from} > {to} udp")
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let what = match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => format!("echo request {} {}", echo.id, echo.seq),
                Icmpv4Type::EchoReply(echo) => format!("echo reply {} {}", echo.id, echo.seq),
                _ => format!("type {} code {}", icmp.type_u8(), icmp.code_u8()),
            };
            format!("{tagged}{source} > {destination} icmp {what}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let what = match icmp.icmp_type() {
                Icmpv6Type::EchoRequest(echo) => format!("echo request {} {}", echo.id, echo.seq),
                Icmpv6Type::EchoReply(echo) => format!("echo reply {} {}", echo.id, echo.seq),
                _ => format!("type {} code {}", icmp.type_u8(), icmp.code_u8()),
            };
            format!("{tagged}{source} > {destination} icmp6 {what}")
        }
        _ => format!("{tagged}{source} > {destination} protocol {protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use podlane_dataplane::forward::{DropReason, PassReason};
    use proptest::prelude::*;

    use super::*;

    fn tcp() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut frame = Vec::new();
        builder.tcp(4000, 80, 7, 1000).syn().write(&mut frame, &[]).unwrap();
        frame
    }

    #[test]
    fn a_packet_is_one_line() {
        let names = Names::from([(1, "veth-pod1".to_owned()), (2, "eth0".to_owned())]);
        let bytes = tcp();
        let packet = Packet {
            times_ns: [(86_400 + 3_661) * 1_000_000_000 + 5_999, 0],
            id: 1,
            ifindex: 1,
            frame_bytes: 54,
            gso_size: 0,
            direction: Direction::Rx,
            outcome: Outcome::Forwarded { to: 2, routed: true },
            seer: Seer::Worker,
            bytes: &bytes,
        };
        assert_eq!(
            line(&packet, &names),
            "01:01:01.000005 veth-pod1       in  worker 10.0.0.1:4000 > 10.0.0.2:80 tcp [S] seq 7, 54 bytes: forwarded to \
             eth0, routed"
        );
        let told = |outcome| verdict(&Packet { outcome, gso_size: 1448, seer: Seer::Tc, ..packet.clone() }, &names);
        assert_eq!(told(packet.outcome), "forwarded to eth0, routed; super-frame, segments of 1448 bytes (tc)");
        assert!(told(Outcome::Passed(PassReason::Ttl)).starts_with("left to the kernel: ttl: TTL or hop limit"));
        assert!(told(Outcome::Dropped(DropReason::TxRingFull)).starts_with("dropped: tx_ring_full: "));
        assert!(told(Outcome::Sent { from: 1 }).starts_with("sent; came in through veth-pod1;"));
        assert!(told(Outcome::Sent { from: 9 }).contains("an interface that is gone"));
    }

    #[test]
    fn every_family_has_its_words() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        builder.udp(53, 54).write(&mut frame, &[0; 9]).unwrap();
        assert_eq!(summary(&frame), "[101:101:101:101:101:101:101:101]:53 > [202:202:202:202:202:202:202:202]:54 udp");
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.icmpv4_echo_reply(5, 6).write(&mut frame, &[]).unwrap();
        assert_eq!(summary(&frame), "10.0.0.1 > 10.0.0.2 icmp echo reply 5 6");
        assert_eq!(summary(&tcp()[..40]), "10.0.0.1 > 10.0.0.2 protocol 6");
        assert_eq!(summary(&[[2; 12].as_slice(), &[0x88, 0xcc], &[0; 20]].concat()), "ethertype 0x88cc");
        assert_eq!(summary(&[1, 2]), "cut off in its Ethernet header");
    }

    proptest! {
        #[test]
        fn garbage_has_a_line_too(bytes in prop::collection::vec(any::<u8>(), 0..100), version in 0_u8..16) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                (bytes[12], bytes[13], bytes[14]) = (8, 0, version << 4 | 5);
            }
            prop_assert!(!summary(&bytes).contains('\n'));
        }
    }
}
