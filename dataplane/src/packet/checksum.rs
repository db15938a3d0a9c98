//! Internet checksums (RFC 1071): whole, incremental (RFC 1624) and partial.
//!
//! The sum is taken over 16-bit words in ones' complement, which does not care for byte order (RFC 1071, 2.B) or for how
//! many words are added at once, so the loops add eight bytes at a time in the order in which the machine likes them and
//! swap the result. All values that cross this module's border are in host order: `0x1234` is stored as `12 34`.

/// A ones' complement sum over bytes that may come in several pieces, of any length, as if they stood in one row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of 16-bit words, not yet folded. Every [`Sum::add`] adds less than 2^17, so it does not overflow.
    total: u64,
    /// The bytes so far end in the middle of a word.
    is_odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Sum { total: 0, is_odd: false }
    }

    /// Adds the next bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = sum_of(bytes);
        // Bytes that start in the middle of a word count for the other half of it each.
        self.total += u64::from(if self.is_odd { sum.swap_bytes() } else { sum });
        self.is_odd ^= bytes.len() % 2 == 1;
    }

    /// The folded sum, not complemented. 0 only if nothing but zeros was added.
    #[inline]
    pub fn fold(self) -> u16 {
        fold(self.total)
    }

    /// What belongs into a checksum field that was 0 or held a partial sum: the complement.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Folds the carries in.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The folded sum of `bytes`, an odd last one padded with a zero behind.
#[inline]
fn sum_of(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0_u64;
    for word in words {
        let word = u64::from_le_bytes(*word);
        // Halves cannot overflow the 64 bits before 16 GiB; whole words would need their carries caught.
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let last = u64::from_le_bytes(last);
    fold(sum + (last & 0xffff_ffff) + (last >> 32)).swap_bytes()
}

/// Whether the checksum of an IPv4 header without options is right.
#[inline]
pub fn ipv4_header_is_right(header: &[u8; 20]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    // All ones are all ones in either byte order.
    fold(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()) == 0xffff
}

/// The folded sum of the pseudo-header (RFC 9293, 3.1; RFC 768) of `l4_bytes` of `protocol` over IPv4: exactly what Linux
/// leaves in the checksum field of a packet whose checksum is still to be computed.
#[inline]
pub fn pseudo_header_ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, l4_bytes: u32) -> u16 {
    pseudo_header(u32::from_be_bytes(source), u32::from_be_bytes(destination), protocol, l4_bytes)
}

/// The same for IPv6 (RFC 8200, 8.1).
#[inline]
pub fn pseudo_header_ipv6(source: [u8; 16], destination: [u8; 16], protocol: u8, l4_bytes: u32) -> u16 {
    pseudo_header(sum_of(&source).into(), sum_of(&destination).into(), protocol, l4_bytes)
}

/// `source` and `destination`: sums of their 16-bit words, folded or not; an integer of two words is one, since carries come
/// back in at the other end.
#[inline]
fn pseudo_header(source: u32, destination: u32, protocol: u8, l4_bytes: u32) -> u16 {
    fold(u64::from(source) + u64::from(destination) + u64::from(protocol) + u64::from(l4_bytes))
}

/// The checksum after one 16-bit word under it changed from `before` to `after` (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, before: u16, after: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!before) + u64::from(after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, 1, word by word.
    fn plain_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: the case that equation 2 of RFC 1141 got wrong.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn nothing_sums_to_zero_and_anything_else_never_does() {
        assert_eq!(Sum::new().fold(), 0);
        let mut sum = Sum::new();
        sum.add(&[0xff; 64]);
        assert_eq!(sum.fold(), 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    #[test]
    fn a_large_packet_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        let mut sum = Sum::new();
        sum.add(&bytes);
        assert_eq!(sum.fold(), plain_sum(&bytes));
    }

    #[test]
    fn pseudo_headers_are_the_sum_of_their_fields() {
        let (source, destination) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        let row = [10, 244, 1, 2, 10, 244, 2, 3, 0, 6, 0x12, 0x34];
        assert_eq!(pseudo_header_ipv4(source, destination, 6, 0x1234), plain_sum(&row));
        let (source, destination) = ([0xfd; 16], [0x13; 16]);
        let row = [&source[..], &destination[..], &[0, 1, 0x12, 0x34, 0, 0, 0, 58]].concat();
        assert_eq!(pseudo_header_ipv6(source, destination, 58, 0x0001_1234), plain_sum(&row));
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_sum_like_one_row(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(0..300_usize, 0..20),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Sum::new();
            for ends in cuts.windows(2) {
                sum.add(&bytes[ends[0]..ends[1]]);
            }
            prop_assert_eq!(sum.fold(), plain_sum(&bytes));
        }

        #[test]
        fn an_update_equals_a_recomputation(mut bytes in prop::array::uniform20(any::<u8>()), word in 0..9_usize, after in any::<u16>()) {
            // The checksum stands in the last word; some other byte is not 0, as in any IP header.
            bytes[0] |= 0x40;
            bytes[18..].fill(0);
            let before = plain_sum(&bytes);
            let old = u16::from_be_bytes([bytes[2 * word], bytes[2 * word + 1]]);
            bytes[2 * word..2 * word + 2].copy_from_slice(&after.to_be_bytes());
            prop_assume!(plain_sum(&bytes) != 0);
            prop_assert_eq!(update(!before, old, after), !plain_sum(&bytes));
        }

        #[test]
        fn a_header_is_right_exactly_if_its_words_sum_to_ones(mut header in prop::array::uniform20(any::<u8>()), broken in any::<bool>()) {
            header[10..12].fill(0);
            let checksum = !plain_sum(&header) ^ u16::from(broken) << 3;
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            prop_assert_eq!(ipv4_header_is_right(&header), plain_sum(&header) == 0xffff);
            prop_assert!(!(broken && ipv4_header_is_right(&header)));
        }
    }
}
