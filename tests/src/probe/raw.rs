//! Frames as they are written, good or bad.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::packet_socket::PacketSocket;
use super::{SendFrames, print};

pub fn send_frames(options: &SendFrames) -> Result<Value> {
    let socket = PacketSocket::open(&options.interface, false)?;
    print(&json!({ "event": "ready" }));
    let mut sent = 0_u64;
    let mut refused: BTreeMap<String, u64> = BTreeMap::new();
    for line in std::io::stdin().lines() {
        let line = line?;
        let (count, pace, frame) = parse(&line).with_context(|| format!("the line '{line}'"))?;
        for _ in 0..count {
            match socket.send(&frame) {
                Ok(_) => sent += 1,
                Err(error) => *refused.entry(error.to_string()).or_default() += 1,
            }
            if !pace.is_zero() {
                std::thread::sleep(pace);
            }
        }
    }
    Ok(json!({ "sent": sent, "refused": refused }))
}

fn parse(line: &str) -> Result<(u64, Duration, Vec<u8>)> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next().context("needs COUNT PACE_US HEX");
    Ok((word()?.parse()?, Duration::from_micros(word()?.parse()?), crate::frames::from_hex(word()?)?))
}
