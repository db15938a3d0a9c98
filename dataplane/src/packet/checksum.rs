//! Internet checksums (RFC 1071), whole, incremental (RFC 1624) and partial.

/// Whether the checksum of an IPv4 header without options is right.
#[inline]
pub fn ipv4_header_is_right(header: &[u8; 20]) -> bool {
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}
