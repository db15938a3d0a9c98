//! A neighbour that floods: garbage of every kind, as fast as one processor makes it, until told.
//!
//! Frames to nobody, to everybody, to its neighbours and to its gateway; of lengths, types, versions and addresses that follow
//! from a seed. None of them is a sensible packet for anybody but a few that a real flood would hold as well.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::packet_socket::PacketSocket;
use super::{Flood, content, print, standard_input_closed};
use crate::frames::Mac;

/// Different frames.
const FRAMES: u64 = 256;
/// Frames between two looks at the standard input.
const BATCH: usize = 64;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Sends until the standard input is closed.
pub fn flood(options: &Flood) -> Result<Value> {
    if let Some(cpu) = options.cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
    }
    let socket = PacketSocket::open(&options.interface, false)?;
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|number| frame(options.seed, number, &options.to)).collect();
    let enough = standard_input_closed();
    print(&json!({ "event": "ready" }));
    let start = Instant::now();
    let (mut sent, mut refused) = (0_u64, BTreeMap::<String, u64>::new());
    let mut next = frames.iter().cycle();
    while !enough.load(Ordering::Acquire) {
        for frame in next.by_ref().take(BATCH) {
            match socket.send(frame) {
                Ok(_) => sent += 1,
                Err(error) => *refused.entry(error.to_string()).or_default() += 1,
            }
        }
    }
    Ok(json!({ "sent": sent, "refused": refused, "seconds": start.elapsed().as_secs_f64() }))
}

/// Frame `number` of the flood.
fn frame(seed: u64, number: u64, to: &Mac) -> Vec<u8> {
    let mut chance = [0; 16];
    content::fill(seed, number << 16, &mut chance);
    let length = ETHERNET + 46 + usize::from(u16::from_le_bytes([chance[0], chance[1]])) % 1400;
    let mut frame = vec![0; length];
    content::fill(seed, (number << 16) + 16, &mut frame);
    match number % 8 {
        0 => frame[..6].copy_from_slice(&[0xff; 6]),
        // A station that there is none of: the bridge floods it.
        1 => frame[..6].copy_from_slice(&[2, 0xde, 0xad, 0, 0, chance[2]]),
        _ => frame[..6].copy_from_slice(to.as_slice()),
    }
    // Not a group's address, which a switch would refuse at once.
    frame[6] = frame[6] & 0xfc | 2;
    let kind: [u8; 2] = match number / 8 % 4 {
        0 => [8, 0],
        1 => [0x86, 0xdd],
        2 => [8, 6],
        _ => [chance[3], chance[4]],
    };
    frame[12..14].copy_from_slice(&kind);
    // Half of what claims to be IP has at least the right version.
    if (number / 32).is_multiple_of(2) {
        match kind {
            [8, 0] => frame[ETHERNET] = 0x45,
            [0x86, 0xdd] => frame[ETHERNET] = 0x60,
            _ => {}
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flood_is_of_many_kinds() {
        let to = [2, 0, 0, 0, 0, 9];
        let frames: Vec<Vec<u8>> = (0..FRAMES).map(|number| frame(5, number, &to)).collect();
        let count = |is: fn(&[u8]) -> bool| frames.iter().filter(|frame| is(frame)).count();
        assert_eq!(count(|frame| frame[..6] == [0xff; 6]), 32);
        assert_eq!(count(|frame| frame[..6] == [2, 0, 0, 0, 0, 9]), 192);
        assert!(count(|frame| frame[12..15] == [8, 0, 0x45]) >= 32);
        assert!(frames.iter().all(|frame| (60..1514).contains(&frame.len()) && frame[6] & 1 == 0));
        let lengths: std::collections::BTreeSet<usize> = frames.iter().map(Vec::len).collect();
        assert!(lengths.len() > 100);
    }
}
