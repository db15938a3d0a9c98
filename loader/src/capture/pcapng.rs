//! Writing pcapng files (draft-ietf-opsawg-pcapng): a section, its interfaces, packets with direction and comment, and at the
//! end how many packets each interface lost.
//!
//! Our own, because the library for it has no stable release that builds with this workspace's Rust without an older
//! generation of macro crates; these are four kinds of blocks.

use std::io::{self, Write};

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_RESOLUTION: u16 = 9;
const INTERFACE_FILTER: u16 = 11;
const PACKET_FLAGS: u16 = 2;
const PACKET_ID: u16 = 5;
const STATISTICS_END: u16 = 3;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;
const STATISTICS_DELIVERED: u16 = 8;

/// A packet, as the file has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The interface, by the order in which they were written.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
    /// Sent, and not received.
    pub outbound: bool,
    /// The same for every sight of one packet; 0 if unknown.
    pub id: u64,
    /// Free text.
    pub comment: &'a str,
    /// The frame's first bytes.
    pub bytes: &'a [u8],
}

/// Assembles one block after the other.
#[derive(Debug, Default)]
pub struct Blocks {
    block: Vec<u8>,
}

impl Blocks {
    /// The start of a file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn section(&mut self, out: &mut impl Write) -> io::Result<usize> {
        self.begin(SECTION);
        self.put(&0x1a2b_3c4d_u32.to_le_bytes());
        self.put(&[1, 0, 0, 0]);
        self.put(&u64::MAX.to_le_bytes());
        self.option(SECTION_APPLICATION, concat!("podlane ", env!("CARGO_PKG_VERSION")).as_bytes());
        self.end(out)
    }

    /// An interface; they are numbered from 0.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn interface(&mut self, out: &mut impl Write, name: &str, snap_bytes: u32, filter: &str) -> io::Result<usize> {
        self.begin(INTERFACE);
        self.put(&ETHERNET.to_le_bytes());
        self.put(&[0; 2]);
        self.put(&snap_bytes.to_le_bytes());
        self.option(INTERFACE_NAME, name.as_bytes());
        // Nanoseconds.
        self.option(INTERFACE_RESOLUTION, &[9]);
        if !filter.is_empty() {
            // The first byte says that it is an expression of libpcap's.
            self.option(INTERFACE_FILTER, &[&[0], filter.as_bytes()].concat());
        }
        self.end(out)
    }

    /// A packet.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn packet(&mut self, out: &mut impl Write, entry: &Entry<'_>) -> io::Result<usize> {
        self.begin(PACKET);
        self.put(&entry.interface.to_le_bytes());
        self.time(entry.time_ns);
        self.put(&(entry.bytes.len() as u32).to_le_bytes());
        self.put(&entry.frame_bytes.to_le_bytes());
        self.put(entry.bytes);
        self.pad();
        self.option(COMMENT, entry.comment.as_bytes());
        self.option(PACKET_FLAGS, &(if entry.outbound { 2_u32 } else { 1 }).to_le_bytes());
        if entry.id != 0 {
            self.option(PACKET_ID, &entry.id.to_le_bytes());
        }
        self.end(out)
    }

    /// What an interface came to: packets that are in the file, and packets that were lost on the way into it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn statistics(
        &mut self,
        out: &mut impl Write,
        interface: u32,
        time_ns: u64,
        written: u64,
        lost: u64,
    ) -> io::Result<usize> {
        self.begin(STATISTICS);
        self.put(&interface.to_le_bytes());
        self.time(time_ns);
        let time = [(time_ns >> 32) as u32, time_ns as u32].map(u32::to_le_bytes).concat();
        self.option(STATISTICS_END, &time);
        self.option(STATISTICS_RECEIVED, &(written + lost).to_le_bytes());
        self.option(STATISTICS_DROPPED, &lost.to_le_bytes());
        self.option(STATISTICS_DELIVERED, &written.to_le_bytes());
        self.end(out)
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.put(&kind.to_le_bytes());
        self.put(&[0; 4]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    /// The upper half comes first.
    fn time(&mut self, ns: u64) {
        self.put(&((ns >> 32) as u32).to_le_bytes());
        self.put(&(ns as u32).to_le_bytes());
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, kind: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.put(&kind.to_le_bytes());
        self.put(&(value.len() as u16).to_le_bytes());
        self.put(value);
        self.pad();
    }

    /// Ends the options and the block, and writes it. Returns its bytes.
    fn end(&mut self, out: &mut impl Write) -> io::Result<usize> {
        self.put(&[0; 4]);
        let bytes = self.block.len() + 4;
        let length = (bytes as u32).to_le_bytes();
        self.put(&length);
        self.block[4..8].copy_from_slice(&length);
        out.write_all(&self.block)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_words_with_their_length_at_both_ends() {
        let (mut blocks, mut file) = (Blocks::default(), Vec::new());
        let mut ends = vec![blocks.section(&mut file).unwrap()];
        ends.push(blocks.interface(&mut file, "veth1", 100, "tcp").unwrap());
        for bytes in 0..9 {
            let entry = Entry {
                interface: 0,
                time_ns: 1 << 40,
                frame_bytes: 9,
                outbound: true,
                id: 5,
                comment: "sent",
                bytes: &[7; 9][..bytes],
            };
            ends.push(blocks.packet(&mut file, &entry).unwrap());
        }
        ends.push(blocks.statistics(&mut file, 0, 1, 2, 3).unwrap());
        let mut rest = file.as_slice();
        for bytes in ends {
            let (block, behind) = rest.split_at(bytes);
            assert_eq!((bytes % 4, &block[4..8]), (0, &(bytes as u32).to_le_bytes()[..]));
            assert_eq!(block[4..8], block[bytes - 4..]);
            rest = behind;
        }
        assert!(rest.is_empty());
    }
}
