//! What flows carry: bytes that follow from the flow's number and their place, so that the receiver knows them as well.

/// The eight bytes at `index` (counted in eights) of flow `flow`: SplitMix64 of the two.
fn word(flow: u64, index: u64) -> [u8; 8] {
    let mut z = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Writes the bytes of `flow` from `offset` on into `out`.
pub fn fill(flow: u64, offset: u64, out: &mut [u8]) {
    let mut index = offset / 8;
    let mut skip = (offset % 8) as usize;
    let mut rest = out;
    while !rest.is_empty() {
        let bytes = &word(flow, index)[skip..];
        let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
        now.copy_from_slice(&bytes[..now.len()]);
        rest = later;
        skip = 0;
        index += 1;
    }
}

/// Where `bytes`, which claim to be those of `flow` from `offset` on, differ first; `None` if they do not.
pub fn first_difference(flow: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = [0; 4096];
    let mut at = 0;
    for chunk in bytes.chunks(expected.len()) {
        let expected = &mut expected[..chunk.len()];
        fill(flow, offset + at, expected);
        if let Some(place) = chunk.iter().zip(expected.iter()).position(|(a, b)| a != b) {
            return Some(offset + at + place as u64);
        }
        at += chunk.len() as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_is_the_same_as_in_the_whole() {
        let mut whole = vec![0; 10_000];
        fill(7, 0, &mut whole);
        for (from, to) in [(0, 1), (1, 17), (8, 16), (4095, 4097), (3, 9999)] {
            let mut piece = vec![0; to - from];
            fill(7, from as u64, &mut piece);
            assert_eq!(piece, whole[from..to]);
            assert_eq!(first_difference(7, from as u64, &piece), None);
        }
    }

    #[test]
    fn one_changed_byte_and_another_flow_are_noticed() {
        let mut bytes = vec![0; 9000];
        fill(1, 100, &mut bytes);
        bytes[5000] ^= 1;
        assert_eq!(first_difference(1, 100, &bytes), Some(5100));
        fill(2, 100, &mut bytes);
        assert!(first_difference(1, 100, &bytes).is_some());
    }
}
