//! What arrives at an interface: counts by marker, and a check of every L4 checksum.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::packet_socket::{PacketSocket, Seen};
use super::{Sniff, print, standard_input_closed};
use crate::frames::{self, Checksum};

/// Frames that contain some bytes.
#[derive(Clone)]
pub struct Match {
    name: String,
    bytes: Vec<u8>,
}

pub fn parse_match(text: &str) -> Result<Match> {
    let (name, hex) = text.split_once('=').ok_or_else(|| anyhow!("write NAME=HEX, not '{text}'"))?;
    Ok(Match { name: name.to_owned(), bytes: frames::from_hex(hex)? })
}

pub fn parse_expectation(text: &str) -> Result<(String, u64)> {
    let (name, count) = text.split_once('=').ok_or_else(|| anyhow!("write NAME=COUNT, not '{text}'"))?;
    Ok((name.to_owned(), count.parse().context("the count")?))
}

#[derive(Default)]
struct Found {
    incoming: u64,
    outgoing: u64,
    frames: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Counts {
    frames: u64,
    complete: u64,
    partial: u64,
    bad: u64,
    first_bad: Option<String>,
    largest: usize,
    found: BTreeMap<String, Found>,
}

impl Counts {
    fn add(&mut self, frame: &Seen, options: &Sniff) {
        for Match { name, bytes } in &options.matches {
            if frame.bytes.windows(bytes.len()).any(|window| window == bytes) {
                let found = self.found.entry(name.clone()).or_default();
                if frame.outgoing {
                    found.outgoing += 1;
                } else {
                    found.incoming += 1;
                    if found.frames.len() < options.keep && !found.frames.iter().any(|kept| kept == frame.bytes) {
                        found.frames.push(frame.bytes.to_vec());
                    }
                }
            }
        }
        if frame.outgoing {
            return;
        }
        self.frames += 1;
        self.largest = self.largest.max(frame.bytes.len());
        match (frames::l4_checksum(frame.bytes), frame.checksum_not_ready) {
            (Checksum::None, _) => {}
            (Checksum::Right | Checksum::Either, false) => self.complete += 1,
            // Whoever leaves it to the device must have put the pseudo-header's sum there (kernel skbuff.h).
            (Checksum::PseudoHeader | Checksum::Either, true) => self.partial += 1,
            (checksum, not_ready) => {
                self.bad += 1;
                self.first_bad.get_or_insert_with(|| {
                    let bytes = &frame.bytes[..frame.bytes.len().min(96)];
                    format!("{checksum:?}, not ready: {not_ready}, {}", frames::to_hex(bytes))
                });
            }
        }
    }

    fn complete(&self, options: &Sniff) -> bool {
        options.expect.iter().all(|(name, count)| self.found.get(name).map_or(0, |found| found.incoming) >= *count)
    }

    fn result(&self) -> Value {
        let found: BTreeMap<_, _> = self
            .found
            .iter()
            .map(|(name, found)| {
                let frames: Vec<String> = found.frames.iter().map(|frame| frames::to_hex(frame)).collect();
                (name, json!({ "incoming": found.incoming, "outgoing": found.outgoing, "frames": frames }))
            })
            .collect();
        json!({
            "frames": self.frames, "complete": self.complete, "partial": self.partial, "bad": self.bad,
            "first_bad": self.first_bad, "largest": self.largest, "found": found,
        })
    }
}

pub fn sniff(options: &Sniff) -> Result<Value> {
    let mut socket = PacketSocket::open(&options.interface, true)?;
    let closed = standard_input_closed();
    print(&json!({ "event": "ready" }));
    let mut counts = Counts::default();
    let tick = Duration::from_millis(20);
    while !closed.load(Ordering::Acquire) {
        if let Some(frame) = socket.receive(tick)? {
            counts.add(&frame, options);
        }
    }
    let give_up = Instant::now() + Duration::from_millis(options.give_up_ms);
    while !counts.complete(options) && Instant::now() < give_up {
        if let Some(frame) = socket.receive(tick)? {
            counts.add(&frame, options);
        }
    }
    let end = Instant::now() + Duration::from_millis(options.settle_ms);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match socket.receive(left)? {
            Some(frame) => counts.add(&frame, options),
            None if left.is_zero() => return Ok(counts.result()),
            None => {}
        }
    }
}
