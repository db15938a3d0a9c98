//! Rewriting of frames in place: what routing changes, and the completion of partial L4 checksums.
//!
//! A frame that a pod sends through its veth normally carries a **partial** TCP or UDP checksum: Linux leaves the sum of
//! the pseudo-header in the field, not complemented, and expects a device to add the rest (`CHECKSUM_PARTIAL`,
//! `linux/skbuff.h`). An AF_XDP descriptor does not say so; the field itself does ([`partial_checksum`]). One in 65,536
//! complete checksums looks the same by chance. Completing such a one again gives the value that it already has, if the
//! frame is intact; if it is not, the damage would be hidden. So the test is only for ports whose frames never crossed a
//! wire ([`crate::table::Port::partial_checksums`]).

use super::{Headers, Network, checksum, ethernet, l4};
use crate::addr::MacAddr;

/// Where the two MAC addresses end.
const MAC_BYTES: usize = 12;
/// Offset of the TTL in a frame; the protocol follows it, and both make one word of the header checksum.
const IPV4_TTL: usize = ethernet::HEADER_BYTES + 8;
/// Offset of the IPv4 header checksum in a frame.
const IPV4_CHECKSUM: usize = ethernet::HEADER_BYTES + 10;
/// Offset of the hop limit in a frame.
const IPV6_HOP_LIMIT: usize = ethernet::HEADER_BYTES + 7;
/// Offset of the checksum in a TCP header (RFC 9293, 3.1).
const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum in a UDP header (RFC 768).
const UDP_CHECKSUM: u16 = 6;

/// Makes of a received frame, whose first piece is `bytes` and whose headers are `headers`, the one that leaves: new MAC
/// addresses, TTL or hop limit less one, the IPv4 header checksum updated with it (so a wrong one stays wrong).
///
/// [`super::parse`] of these bytes gave `headers`, so the TTL is at least 2; bytes too short for a header stay as they are.
#[inline]
pub fn route(bytes: &mut [u8], headers: &Headers, destination: MacAddr, source: MacAddr) {
    match headers.network {
        Network::V4 { .. } => {
            let Some(header) = bytes.first_chunk_mut::<{ IPV4_CHECKSUM + 2 }>() else { return };
            set_addresses(header, destination, source);
            let before = u16::from_be_bytes([header[IPV4_TTL], header[IPV4_TTL + 1]]);
            header[IPV4_TTL] = header[IPV4_TTL].saturating_sub(1);
            let after = u16::from_be_bytes([header[IPV4_TTL], header[IPV4_TTL + 1]]);
            let sum = u16::from_be_bytes([header[IPV4_CHECKSUM], header[IPV4_CHECKSUM + 1]]);
            let sum = checksum::update(sum, before, after).to_be_bytes();
            header[IPV4_CHECKSUM..].copy_from_slice(&sum);
        }
        Network::V6 { .. } => {
            let Some(header) = bytes.first_chunk_mut::<{ IPV6_HOP_LIMIT + 1 }>() else { return };
            set_addresses(header, destination, source);
            header[IPV6_HOP_LIMIT] = header[IPV6_HOP_LIMIT].saturating_sub(1);
        }
    }
}

#[inline]
fn set_addresses(header: &mut [u8], destination: MacAddr, source: MacAddr) {
    header[..MAC_BYTES / 2].copy_from_slice(&destination.octets());
    header[MAC_BYTES / 2..MAC_BYTES].copy_from_slice(&source.octets());
}

/// A partial L4 checksum, in the terms of `struct xsk_tx_metadata` and of `struct virtio_net_hdr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// Where summing starts, bytes from the start of the frame: the L4 header (`csum_start`).
    pub start: u16,
    /// Where the result goes, bytes from `start` (`csum_offset`).
    pub offset: u16,
}

impl PartialChecksum {
    /// Where the result goes, bytes from the start of the frame.
    #[inline]
    fn field(self) -> usize {
        usize::from(self.start) + usize::from(self.offset)
    }
}

/// Where the L4 checksum is, for the protocols whose checksum Linux leaves to the device: TCP and UDP. ICMP and ICMPv6
/// checksums are always complete.
#[inline]
pub fn l4_checksum_location(headers: &Headers) -> Option<PartialChecksum> {
    let offset = match headers.protocol {
        l4::TCP => TCP_CHECKSUM,
        l4::UDP => UDP_CHECKSUM,
        _ => return None,
    };
    Some(PartialChecksum { start: headers.l4_offset, offset })
}

/// Whether, and where, the frame whose first piece is `bytes` carries a partial L4 checksum. To be asked only of frames
/// from ports with [`partial_checksums`](crate::table::Port::partial_checksums) (see the head of this module).
#[inline(always)]
pub fn partial_checksum(bytes: &[u8], headers: &Headers) -> Option<PartialChecksum> {
    let location = l4_checksum_location(headers)?;
    let field = u16::from_be_bytes(*bytes.get(location.field()..)?.first_chunk()?);
    let l4_bytes = (headers.l3_bytes + ethernet::HEADER_BYTES as u32).checked_sub(u32::from(headers.l4_offset))?;
    let pseudo = match headers.network {
        Network::V4 { source, destination } => {
            checksum::pseudo_header_ipv4(source.octets(), destination.octets(), headers.protocol, l4_bytes)
        }
        Network::V6 { source, destination } => {
            checksum::pseudo_header_ipv6(source.octets(), destination.octets(), headers.protocol, l4_bytes)
        }
    };
    (field == pseudo).then_some(location)
}

/// The value that completes the partial checksum at `location` of the frame whose pieces, in order, are `pieces`; to be
/// stored with [`set_checksum`]. Ethernet padding behind the IP packet does not count.
///
/// A sum of 0 becomes `0xffff`, which is the same number: for UDP it must (RFC 768), for TCP Linux does it too
/// (`skb_checksum_help`).
pub fn completed_checksum<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    headers: &Headers,
    location: PartialChecksum,
) -> u16 {
    completed_up_to(pieces, location, headers.l3_bytes as usize + ethernet::HEADER_BYTES)
}

/// The same for a frame of which `end` bytes count.
pub fn completed_up_to<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, location: PartialChecksum, end: usize) -> u16 {
    let mut sum = checksum::Sum::new();
    let mut skip = usize::from(location.start);
    let mut left = end.saturating_sub(skip);
    for piece in pieces {
        let bytes = &piece[skip.min(piece.len())..];
        skip -= piece.len() - bytes.len();
        let bytes = &bytes[..left.min(bytes.len())];
        left -= bytes.len();
        sum.add(bytes);
    }
    match sum.checksum() {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Stores an L4 checksum in the frame whose first piece is `bytes`. Nothing happens if the field lies beyond it, which
/// [`partial_checksum`] has excluded.
#[inline]
pub fn set_checksum(bytes: &mut [u8], location: PartialChecksum, checksum: u16) {
    if let Some(field) = bytes.get_mut(location.field()..).and_then(|rest| rest.first_chunk_mut()) {
        *field = checksum.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::parse;

    const DESTINATION: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);
    const SOURCE: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 8]);

    /// A frame with right checksums: TCP or UDP, IPv4 or IPv6.
    fn frame(is_ipv4: bool, is_tcp: bool, addresses: [u8; 32], ttl: u8, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (source, destination) = addresses.split_at(16);
        let ip = if is_ipv4 {
            ethernet.ipv4(*source.first_chunk().unwrap(), *destination.first_chunk().unwrap(), ttl)
        } else {
            ethernet.ipv6(*source.first_chunk().unwrap(), *destination.first_chunk().unwrap(), ttl)
        };
        let mut frame = Vec::new();
        if is_tcp {
            ip.tcp(1000, 2000, 3, 4).write(&mut frame, payload).unwrap();
        } else {
            ip.udp(1000, 2000).write(&mut frame, payload).unwrap();
        }
        frame
    }

    fn parsed(frame: &[u8]) -> Headers {
        parse(frame, frame.len() as u32).unwrap()
    }

    /// What Linux leaves in the field for a device to complete, worked out from the pseudo-header's bytes.
    fn make_partial(frame: &mut [u8], headers: &Headers) {
        let l4_bytes = headers.l3_bytes + 14 - u32::from(headers.l4_offset);
        let mut sum = checksum::Sum::new();
        match headers.network {
            Network::V4 { source, destination } => {
                sum.add(&source.octets());
                sum.add(&destination.octets());
            }
            Network::V6 { source, destination } => {
                sum.add(&source.octets());
                sum.add(&destination.octets());
            }
        }
        sum.add(&[0, headers.protocol]);
        sum.add(&l4_bytes.to_be_bytes());
        let field = l4_checksum_location(headers).unwrap().field();
        frame[field..field + 2].copy_from_slice(&sum.fold().to_be_bytes());
    }

    #[test]
    fn only_tcp_and_udp_have_a_checksum_to_complete() {
        let mut headers = parsed(&frame(true, true, [10; 32], 64, b"x"));
        assert_eq!(l4_checksum_location(&headers), Some(PartialChecksum { start: 34, offset: 16 }));
        headers.protocol = l4::ICMP;
        assert_eq!(l4_checksum_location(&headers), None);
        headers.protocol = l4::ICMPV6;
        assert_eq!(l4_checksum_location(&headers), None);
        let headers = parsed(&frame(false, false, [0xfd; 32], 64, b"x"));
        assert_eq!(l4_checksum_location(&headers), Some(PartialChecksum { start: 54, offset: 6 }));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_written_as_ones() {
        // The payload is chosen so that everything sums to 0xffff.
        let mut bytes = frame(true, false, [10; 32], 64, &[0, 0]);
        let headers = parsed(&bytes);
        let complement = u16::from_be_bytes([bytes[40], bytes[41]]);
        bytes[42..44].copy_from_slice(&complement.to_be_bytes());
        make_partial(&mut bytes, &headers);
        let location = partial_checksum(&bytes, &headers).unwrap();
        assert_eq!(completed_checksum([&bytes[..]], &headers, location), 0xffff);
    }

    #[test]
    fn headers_that_do_not_belong_to_the_bytes_do_no_harm() {
        let headers = parsed(&frame(true, true, [10; 32], 64, b"x"));
        for bytes in 0..60 {
            let mut short = vec![0; bytes];
            route(&mut short, &headers, DESTINATION, SOURCE);
            let partial = partial_checksum(&short, &headers);
            set_checksum(&mut short, PartialChecksum { start: 34, offset: 16 }, 1);
            assert!(partial.is_none());
        }
    }

    proptest! {
        #[test]
        fn routing_changes_addresses_ttl_and_checksum_only(
            is_ipv4: bool, is_tcp: bool, addresses: [u8; 32], ttl in 2..=255_u8, payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let before = frame(is_ipv4, is_tcp, addresses, ttl, &payload);
            let mut after = before.clone();
            route(&mut after, &parsed(&before), DESTINATION, SOURCE);
            let mut wanted = frame(is_ipv4, is_tcp, addresses, ttl - 1, &payload);
            wanted[..6].copy_from_slice(&DESTINATION.octets());
            wanted[6..12].copy_from_slice(&SOURCE.octets());
            prop_assert_eq!(after, wanted);
        }

        #[test]
        fn a_wrong_header_checksum_stays_wrong(addresses: [u8; 32], ttl in 3..=255_u8, wrong in 1..0xffff_u16) {
            let mut bytes = frame(true, true, addresses, ttl, b"");
            let sum = u16::from_be_bytes([bytes[24], bytes[25]]);
            bytes[24..26].copy_from_slice(&(sum ^ wrong).to_be_bytes());
            let headers = parsed(&bytes);
            prop_assume!(!headers.header_checksum_ok);
            route(&mut bytes, &headers, DESTINATION, SOURCE);
            prop_assert!(!parsed(&bytes).header_checksum_ok);
        }

        #[test]
        fn a_partial_checksum_is_recognised_and_completed_over_any_pieces(
            is_ipv4: bool, is_tcp: bool, addresses: [u8; 32], payload in prop::collection::vec(any::<u8>(), 0..500),
            cuts in prop::collection::vec(80..600_usize, 0..17), padding in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let whole = frame(is_ipv4, is_tcp, addresses, 64, &payload);
            let mut bytes = whole.clone();
            bytes.extend(&padding);
            let headers = parsed(&bytes);
            make_partial(&mut bytes, &headers);
            let location = partial_checksum(&bytes, &headers).expect("it is partial");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]);
            let checksum = completed_checksum(pieces, &headers, location);
            set_checksum(&mut bytes, location, checksum);
            // Linux and we write 0xffff where etherparse, for TCP, writes 0: the same number.
            let field = location.field();
            if whole[field..field + 2] == [0, 0] {
                prop_assert_eq!(checksum, 0xffff);
                bytes[field..field + 2].fill(0);
            }
            prop_assert_eq!(&bytes[..whole.len()], &whole[..]);
        }

        #[test]
        fn a_complete_checksum_that_looks_partial_is_completed_to_itself(is_ipv4: bool, is_tcp: bool, addresses: [u8; 32]) {
            // The last word of the payload makes the L4 bytes sum to "the complement of twice the pseudo-header".
            let mut bytes = frame(is_ipv4, is_tcp, addresses, 64, &[0, 0]);
            let headers = parsed(&bytes);
            let field = l4_checksum_location(&headers).unwrap().field();
            let complete = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
            make_partial(&mut bytes, &headers);
            let pseudo = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
            prop_assume!(pseudo != 0xffff);
            // complete = ~(rest); with the word w: ~(rest + w) = pseudo, so w = complete - pseudo.
            let word = {
                let difference = u32::from(complete) + u32::from(!pseudo);
                ((difference & 0xffff) + (difference >> 16)) as u16
            };
            let end = bytes.len();
            bytes[end - 2..].copy_from_slice(&word.to_be_bytes());
            let location = partial_checksum(&bytes, &headers).expect("it looks partial");
            prop_assert_eq!(completed_checksum([&bytes[..]], &headers, location), pseudo);
        }
    }
}
