//! What the engine promises of any bytes: no panic, and of what it admits the properties that later steps rely on. The property
//! tests and the fuzz target `packet` ask for it.

use podlane_dataplane::MacAddr;
use podlane_dataplane::packet::{ETHERNET_BYTES, Headers, Network, parse, rewrite};
use proptest::prelude::*;

use super::world::internet_checksum;

/// What `parse` promises.
fn check_postconditions(bytes: &[u8], headers: &Headers) -> Result<(), TestCaseError> {
    let l3_bytes = headers.l3_bytes as usize;
    let l4_offset = usize::from(headers.l4_offset);
    prop_assert!(ETHERNET_BYTES + l3_bytes <= headers.frame_bytes as usize);
    prop_assert!(headers.source_mac.is_station() && !headers.destination_mac.is_group());
    prop_assert_eq!(&bytes[..6], &headers.destination_mac.octets());
    prop_assert_eq!(&bytes[6..12], &headers.source_mac.octets());
    let l4_bytes = ETHERNET_BYTES + l3_bytes - l4_offset;
    let least = match headers.protocol {
        6 => 20,
        17 | 1 | 58 => 8,
        other => return Err(TestCaseError::fail(format!("protocol {other} was admitted"))),
    };
    prop_assert!(l4_bytes >= least && bytes.len() >= l4_offset + least);
    match headers.network {
        Network::V4 { source, destination } => {
            prop_assert_eq!((bytes[12], bytes[13], bytes[14], l4_offset), (0x08, 0x00, 0x45, 34));
            prop_assert_eq!((&bytes[26..30], &bytes[30..34]), (&source.octets()[..], &destination.octets()[..]));
            prop_assert!(bytes[22] > 1 && bytes[23] == headers.protocol && headers.protocol != 58);
            prop_assert_eq!(headers.header_checksum_ok, internet_checksum(&[&bytes[14..34]]) == 0);
        }
        Network::V6 { source, destination } => {
            prop_assert_eq!((bytes[12], bytes[13], bytes[14] >> 4, l4_offset), (0x86, 0xdd, 6, 54));
            prop_assert_eq!((&bytes[22..38], &bytes[38..54]), (&source.octets()[..], &destination.octets()[..]));
            prop_assert!(bytes[21] > 1 && bytes[20] == headers.protocol && headers.protocol != 1);
            prop_assert!(headers.header_checksum_ok);
        }
    }
    Ok(())
}

/// Parses `bytes` as the first piece of a frame; whatever is admitted is rewritten and completed too.
pub fn digest(bytes: &[u8], frame_bytes: u32) -> Result<bool, TestCaseError> {
    let Ok(headers) = parse(bytes, frame_bytes) else { return Ok(false) };
    check_postconditions(bytes, &headers)?;
    let mut routed = bytes.to_vec();
    rewrite::route(&mut routed, &headers, MacAddr::new([2, 0, 0, 0, 0, 1]), MacAddr::new([2, 0, 0, 0, 0, 2]));
    let ttl = if headers.l4_offset == 34 { 22 } else { 21 };
    prop_assert_eq!(routed[ttl], bytes[ttl] - 1);
    // Behind the IP header nothing changes, and inside of it only the TTL and IPv4's checksum.
    let changed = (12..bytes.len()).filter(|&at| routed[at] != bytes[at]).collect::<Vec<_>>();
    prop_assert!(
        changed.iter().all(|&at| at == ttl || headers.l4_offset == 34 && (24..26).contains(&at)),
        "{changed:?}"
    );
    if let Some(location) = rewrite::partial_checksum(bytes, &headers) {
        let checksum = rewrite::completed_checksum([bytes], &headers, location);
        prop_assert_ne!(checksum, 0);
        rewrite::set_checksum(&mut routed, location, checksum);
        let field = usize::from(location.start + location.offset);
        prop_assert_eq!(&routed[field..field + 2], &checksum.to_be_bytes());
    }
    Ok(true)
}
