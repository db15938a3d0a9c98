//! What kernel pktgen sent, as it arrives: every packet once, with the size and the content that it left with.
//!
//! A pktgen packet is UDP; its payload begins with a mark, the packet's number (from 1) and the time, and the rest is zero
//! (`net/core/pktgen.c`, `pktgen_finalize_skb`).

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::packet_socket::{PacketSocket, Seen};
use super::{PktgenReceive, print};
use crate::frames::{self, Checksum};

/// `PKTGEN_MAGIC`.
const MARK: [u8; 4] = [0xbe, 0x9b, 0xe9, 0x55];
/// Where the mark is in an Ethernet frame with IPv4 without options and UDP.
const MARK_AT: usize = 14 + 20 + 8;
/// Where what is zero begins: behind mark, number and time.
const ZEROS_AT: usize = MARK_AT + 16;
const TTL_AT: usize = 14 + 8;
/// So many numbers of packets that are missing are named.
const MISSING_NAMED: usize = 32;
/// How long one look for a packet waits, milliseconds.
const LOOK_MS: u64 = 20;

/// What has arrived.
struct Arrived {
    /// Which numbers, from 1.
    seen: Vec<bool>,
    once: u64,
    again: u64,
    wrong: u64,
    first_wrong: Option<String>,
    hop_limits: Option<(u8, u8)>,
}

impl Arrived {
    /// Whether it is one of pktgen's.
    fn add(&mut self, frame: &Seen, size: usize) -> bool {
        if frame.outgoing || frame.bytes.get(MARK_AT..MARK_AT + 4) != Some(&MARK) {
            return false;
        }
        if let Err(why) = self.judge(frame, size) {
            self.wrong += 1;
            self.first_wrong.get_or_insert_with(|| {
                let head = &frame.bytes[..frame.bytes.len().min(96)];
                format!("{why}, {} bytes, {}", frame.bytes.len(), frames::to_hex(head))
            });
        }
        true
    }

    /// The numbers of the first that have not come: in the middle they were dropped, at the end they may be stuck somewhere.
    fn missing(&self) -> Vec<usize> {
        let missing = self.seen.iter().enumerate().filter(|(_, seen)| !**seen);
        missing.map(|(place, _)| place + 1).take(MISSING_NAMED).collect()
    }

    fn judge(&mut self, frame: &Seen, size: usize) -> Result<(), &'static str> {
        if frame.bytes.len() != size {
            return Err("another size");
        }
        if frame.bytes.get(ZEROS_AT..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
            return Err("another payload");
        }
        match (frames::l4_checksum(frame.bytes), frame.checksum_not_ready) {
            (Checksum::None | Checksum::Right | Checksum::Either, false) => {}
            // On its way between namespaces of one machine it may stay unfinished, if the kernel knows.
            (Checksum::PseudoHeader | Checksum::Either, true) => {}
            _ => return Err("a wrong checksum"),
        }
        let number =
            frame.bytes.get(MARK_AT + 4..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes);
        let place = number.and_then(|number| self.seen.get_mut((number as usize).checked_sub(1)?));
        let seen = place.ok_or("a number that was not sent")?;
        if std::mem::replace(seen, true) {
            self.again += 1;
            return Ok(());
        }
        self.once += 1;
        let ttl = frame.bytes[TTL_AT];
        let (least, most) = self.hop_limits.get_or_insert((ttl, ttl));
        (*least, *most) = ((*least).min(ttl), (*most).max(ttl));
        Ok(())
    }
}

/// Waits for `count` packets, and then for `settle_ms` whether any comes twice.
pub fn receive(options: &PktgenReceive) -> Result<Value> {
    let mut socket = PacketSocket::open(&options.interface, true)?;
    print(&json!({ "event": "ready" }));
    let mut arrived = Arrived {
        seen: vec![false; options.count as usize],
        once: 0,
        again: 0,
        wrong: 0,
        first_wrong: None,
        hop_limits: None,
    };
    let mut begun = false;
    // What is counted is looks that found nothing, not the time: a whole machine may have stood still, with packets on the way.
    let (mut in_vain, most) = (0, options.settle_ms.div_ceil(LOOK_MS));
    // Before the first packet its sender may need any time, which the deadline of every probe bounds.
    while !begun || in_vain < most {
        match socket.receive(Duration::from_millis(LOOK_MS))? {
            Some(frame) if arrived.add(&frame, options.size) => (in_vain, begun) = (0, true),
            Some(_) => {}
            None => in_vain += 1,
        }
    }
    Ok(json!({
        "arrived": arrived.once, "lost": u64::from(options.count) - arrived.once, "again": arrived.again, "wrong": arrived.wrong,
        "missing": arrived.missing(), "first_wrong": arrived.first_wrong, "hop_limits": arrived.hop_limits,
    }))
}
