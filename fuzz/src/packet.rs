//! Packet views, rewriting and checksums: any bytes as the first piece of a frame.
//!
//! Input: the frame's length beyond this piece (16 bits, little-endian; bytes), and the piece.

use crate::Seeds;
use crate::decide::frames;
use crate::shared::digest::digest;

/// Parses the piece as a whole frame and as the beginning of a longer one, and rewrites and completes what is admitted.
///
/// # Panics
/// If a promise of `parse`, `rewrite` or `checksum` does not hold.
pub fn run(bytes: &[u8]) {
    let Some((more, piece)) = bytes.split_first_chunk() else { return };
    let more = u32::from(u16::from_le_bytes(*more));
    let bytes = piece.len() as u32;
    let whole = digest(piece, bytes).expect("the promises hold");
    let longer = digest(piece, bytes + more).expect("the promises hold");
    // More bytes behind it are padding to a frame that is whole without them.
    assert!(longer || !whole, "{more} bytes of padding make a difference");
}

/// Frames of all kinds, whole and cut.
pub fn seeds() -> Seeds {
    let cut = |(name, frame): (String, Vec<u8>)| {
        let piece = frame.len().min(80);
        let more = ((frame.len() - piece) as u16).to_le_bytes();
        (name, [&more[..], &frame[..piece]].concat())
    };
    frames(24).into_iter().map(cut).collect()
}
