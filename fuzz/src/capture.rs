//! Captured packets: what the daemon sends to `podlane capture`, what the programs in the kernel hand to the daemon, the line for
//! each packet, and the file that they are written to.
//!
//! Input: the bytes of the stream behind its first line.

use podlane::bpf::{ProgramRecord, RECORD_BYTES};
use podlane::capture::wire::{Message, Packet, Seer, read};
use podlane::outside::{self, CapturedPacket};
use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::tap::{Direction, Outcome};

use crate::Seeds;
use crate::decide::frames;

/// Reads messages to the end of the stream or of the sense, and writes their packets to a file.
///
/// # Panics
/// If a message does not survive being written and read, or the file cannot be read back.
pub fn run(bytes: &[u8]) {
    let _ = ProgramRecord::read(bytes);
    let _ = outside::summary(bytes.get(RECORD_BYTES..).unwrap_or(bytes));
    let mut packets = Vec::new();
    let mut rest = bytes;
    while let Ok(Some((message, taken))) = read(rest) {
        let mut written = Vec::new();
        message.write(&mut written);
        assert_eq!(read(&written), Ok(Some((message.clone(), written.len()))));
        // What is not whole yet is waited for.
        assert_eq!(read(&rest[..taken - 1]), Ok(None));
        if let Message::Packet(packet) = message {
            assert!(!outside::summary(packet.bytes).contains('\n'));
            packets.push(packet);
        }
        rest = &rest[taken..];
    }
    check_file(&packets);
}

/// A packet as the file has it.
fn entry<'a>(packet: &Packet<'a>) -> CapturedPacket<'a> {
    CapturedPacket {
        interface: 0,
        time_ns: packet.time_ns(),
        frame_bytes: packet.frame_bytes,
        outbound: packet.direction == Direction::Tx,
        id: packet.id,
        comment: "so",
        bytes: packet.bytes,
    }
}

fn check_file(packets: &[Packet<'_>]) {
    let entries: Vec<_> = packets.iter().map(entry).collect();
    let mut file = Vec::new();
    outside::capture_file(&mut file, "veth0", "tcp", &entries).expect("memory takes everything");
    let kinds = walk(&file);
    assert_eq!(kinds.len(), packets.len() + 3);
    assert_eq!(kinds[..2], [0x0a0d_0d0a, 1]);
    assert!(kinds[2..].iter().rev().skip(1).all(|kind| *kind == 6) && kinds.last() == Some(&5));
}

/// The kinds of the blocks of a pcapng file, which must say their length in front and behind, in whole words.
fn walk(mut file: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a word"));
    let mut kinds = Vec::new();
    while !file.is_empty() {
        let length = word(file, 4) as usize;
        assert!(length >= 12 && length.is_multiple_of(4));
        assert_eq!(word(file, length - 4) as usize, length);
        kinds.push(word(file, 0));
        file = &file[length..];
    }
    kinds
}

/// Streams of every kind of message, and a record of the kernel's program.
pub fn seeds() -> Seeds {
    let frames = frames(6);
    let outcomes = [
        Outcome::Forwarded { to: 9, routed: true },
        Outcome::Forwarded { to: 9, routed: false },
        Outcome::Passed(PassReason::TooBig),
        Outcome::Dropped(DropReason::TxRingFull),
        Outcome::Sent { from: 4 },
        Outcome::Sent { from: 0 },
    ];
    let mut all = Vec::new();
    for (number, (outcome, (_, frame))) in outcomes.into_iter().zip(&frames).enumerate() {
        let mut stream = Vec::new();
        Message::Interface { ifindex: 4, name: "veth0" }.write(&mut stream);
        let packet = Packet {
            times_ns: [1_700_000_000_000_000_000, 1_700_000_000_000_001_000],
            id: number as u64,
            ifindex: 4,
            frame_bytes: frame.len() as u32,
            gso_size: if number == 0 { 1448 } else { 0 },
            direction: if matches!(outcome, Outcome::Sent { .. }) { Direction::Tx } else { Direction::Rx },
            outcome,
            seer: [Seer::Worker, Seer::Xdp, Seer::Tc][number % 3],
            bytes: frame,
        };
        Message::Packet(packet).write(&mut stream);
        Message::Lost { ifindex: 4, records: 7 }.write(&mut stream);
        Message::End("the daemon ends").write(&mut stream);
        all.push((format!("stream-{number}"), stream));
    }
    let mut record = [0; RECORD_BYTES];
    (record[0], record[24], record[32], record[44]) = (1, 4, 60, 1);
    all.push(("record".to_owned(), [&record[..], &frames[0].1].concat()));
    all
}
