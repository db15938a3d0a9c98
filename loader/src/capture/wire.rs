//! What a daemon that captures tells its client: after one line of JSON, messages of a length, a kind and a body. Numbers are
//! little-endian, times nanoseconds since 1970.

use podlane_dataplane::forward::{DropReason, PassReason};
use podlane_dataplane::tap::{Direction, Outcome};

/// Bytes of a message's body at most.
pub const MAX_BODY: usize = 1 << 17;
/// Length and kind.
const HEADER_BYTES: usize = 5;
/// Bytes of a packet's message before the frame's own.
const PACKET_BYTES: usize = 44;

/// Who saw a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Seer {
    /// A worker.
    Worker = 0,
    /// The XDP program.
    Xdp = 1,
    /// The tc program.
    Tc = 2,
}

impl Seer {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Seer::Worker => "worker",
            Seer::Xdp => "xdp",
            Seer::Tc => "tc",
        }
    }
}

/// A captured frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// Received and decided; or rewritten and sent.
    pub times_ns: [u64; 2],
    /// The same for both records of a frame; 0 if unknown.
    pub id: u64,
    /// The interface.
    pub ifindex: u32,
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
    /// Payload of each segment of a super-frame; 0 for any other.
    pub gso_size: u32,
    /// Received or sent.
    pub direction: Direction,
    /// What became of it.
    pub outcome: Outcome,
    /// Who saw it.
    pub seer: Seer,
    /// Its first bytes.
    pub bytes: &'a [u8],
}

impl Packet<'_> {
    /// When it was received, or when it was sent.
    pub fn time_ns(&self) -> u64 {
        match self.direction {
            Direction::Rx => self.times_ns[0],
            Direction::Tx => self.times_ns[1],
        }
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// An interface that packets will name.
    Interface {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: &'a str,
    },
    /// A frame.
    Packet(Packet<'a>),
    /// Records lost since the start, of one interface; 0 stands for those that are no port any more.
    Lost {
        /// The interface.
        ifindex: u32,
        /// How many.
        records: u64,
    },
    /// Nothing will follow; and why.
    End(&'a str),
}

/// A message that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the daemon sent something that this version does not understand; use the podlane of its version")]
pub struct Garbled;

impl Message<'_> {
    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; HEADER_BYTES]);
        out[start + 4] = match self {
            Message::Interface { ifindex, name } => {
                out.extend(ifindex.to_le_bytes());
                out.extend(name.as_bytes());
                1
            }
            Message::Packet(packet) => {
                write_packet(packet, out);
                2
            }
            Message::Lost { ifindex, records } => {
                out.extend(ifindex.to_le_bytes());
                out.extend(records.to_le_bytes());
                3
            }
            Message::End(why) => {
                out.extend(why.as_bytes());
                4
            }
        };
        let body = (out.len() - start - HEADER_BYTES) as u32;
        out[start..start + 4].copy_from_slice(&body.to_le_bytes());
    }
}

/// The first message in `bytes` and how many bytes it takes; `None` if it is not whole yet.
///
/// # Errors
/// [`Garbled`].
pub fn read(bytes: &[u8]) -> Result<Option<(Message<'_>, usize)>, Garbled> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if length > MAX_BODY {
        return Err(Garbled);
    }
    let Some(body) = bytes.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
    let message = match header[4] {
        1 => {
            let (ifindex, name) = body.split_first_chunk().ok_or(Garbled)?;
            let name = std::str::from_utf8(name).map_err(|_| Garbled)?;
            Message::Interface { ifindex: u32::from_le_bytes(*ifindex), name }
        }
        2 => Message::Packet(read_packet(body).ok_or(Garbled)?),
        3 => {
            let mut fields = Fields(body);
            Message::Lost { ifindex: fields.u32().ok_or(Garbled)?, records: fields.u64().ok_or(Garbled)? }
        }
        4 => Message::End(std::str::from_utf8(body).map_err(|_| Garbled)?),
        _ => return Err(Garbled),
    };
    Ok(Some((message, HEADER_BYTES + length)))
}

fn write_packet(packet: &Packet<'_>, out: &mut Vec<u8>) {
    let (outcome, reason, other) = match packet.outcome {
        Outcome::Forwarded { to, routed } => (0, u8::from(routed), to),
        Outcome::Passed(reason) => (1, reason as u8, 0),
        Outcome::Dropped(reason) => (2, reason as u8, 0),
        Outcome::Sent { from } => (3, 0, from),
    };
    out.extend(packet.times_ns[0].to_le_bytes());
    out.extend(packet.times_ns[1].to_le_bytes());
    out.extend(packet.id.to_le_bytes());
    for field in [packet.ifindex, other, packet.frame_bytes, packet.gso_size] {
        out.extend(field.to_le_bytes());
    }
    let direction = u8::from(packet.direction == Direction::Tx);
    out.extend([direction, outcome, reason, packet.seer as u8]);
    out.extend(packet.bytes);
}

fn read_packet(body: &[u8]) -> Option<Packet<'_>> {
    let (header, bytes) = body.split_at_checked(PACKET_BYTES)?;
    let mut fields = Fields(header);
    let times_ns = [fields.u64()?, fields.u64()?];
    let id = fields.u64()?;
    let [ifindex, other, frame_bytes, gso_size] = [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
    let [direction, outcome, reason, seer] = *fields.0.first_chunk()?;
    let outcome = match outcome {
        0 => Outcome::Forwarded { to: other, routed: reason != 0 },
        1 => Outcome::Passed(*PassReason::ALL.get(usize::from(reason))?),
        2 => Outcome::Dropped(*DropReason::ALL.get(usize::from(reason))?),
        3 => Outcome::Sent { from: other },
        _ => return None,
    };
    let direction = if direction == 0 { Direction::Rx } else { Direction::Tx };
    let seer = *[Seer::Worker, Seer::Xdp, Seer::Tc].get(usize::from(seer))?;
    Some(Packet { times_ns, id, ifindex, frame_bytes, gso_size, direction, outcome, seer, bytes })
}

/// Takes numbers from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let packet = Packet {
            times_ns: [1, 2],
            id: 3,
            ifindex: 4,
            frame_bytes: 5,
            gso_size: 6,
            direction: Direction::Tx,
            outcome: Outcome::Sent { from: 7 },
            seer: Seer::Tc,
            bytes: &[8, 9],
        };
        let received = |outcome| Packet { direction: Direction::Rx, outcome, seer: Seer::Worker, ..packet.clone() };
        let all = [
            Message::Interface { ifindex: 1, name: "veth0" },
            Message::Packet(packet.clone()),
            Message::Packet(received(Outcome::Forwarded { to: 9, routed: true })),
            Message::Packet(received(Outcome::Passed(PassReason::TablesStale))),
            Message::Packet(received(Outcome::Dropped(DropReason::PortBlocked))),
            Message::Lost { ifindex: 1, records: 2 },
            Message::End("so"),
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|message| message.write(&mut bytes));
        let mut rest = bytes.as_slice();
        for message in &all {
            assert_eq!(read(&rest[..4]), Ok(None));
            let (read, taken) = read(rest).unwrap().unwrap();
            assert_eq!(&read, message);
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(0_u8..8, 0..80)) {
            let _ = read(&bytes);
        }
    }
}
