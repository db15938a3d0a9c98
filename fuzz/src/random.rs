//! Numbers that are the same on every run.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// Changes an input as a fuzzer would: bits, bytes, pieces doubled, cut out, cut off, or taken from `other`.
    pub fn bend(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..1 + self.below(4) {
            if bytes.is_empty() {
                bytes.push(self.number() as u8);
            }
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.number() as u8,
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'-'][self.below(8)],
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..(at + 1 + self.below(16)).min(bytes.len()))),
                5 => {
                    let piece = bytes[at..(at + 1 + self.below(32)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                6 if !other.is_empty() => {
                    let from = self.below(other.len());
                    let piece = other[from..(from + 1 + self.below(64)).min(other.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes[at] = bytes[at].wrapping_add([1, 0xff][self.below(2)]),
            }
        }
    }
}
