//! Whatever comes in: no bytes make the engine panic, and whatever it admits has the properties that later steps rely on.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test garbage` makes a long run of it.

mod digest;
mod world;

use digest::digest;
use podlane_dataplane::PortId;
use podlane_dataplane::forward::{Rewrite, Verdict, decide};
use podlane_dataplane::packet::parse;
use podlane_dataplane::table::Path;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use world::{recipe, world};

/// Bytes that every admitted frame's first piece can be expected to have: Ethernet, IPv6 and TCP headers.
const HEADERS: usize = 74;

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200), more in 0..70_000_u32) {
        digest(&bytes, bytes.len() as u32 + more)?;
    }

    /// Random bytes behind an Ethernet header and a first IP byte that get them past the first questions.
    #[test]
    fn random_headers_do_no_harm(mut bytes in vec(any::<u8>(), 15..120), is_ipv4: bool, protocol in prop::sample::select(vec![1_u8, 6, 17, 58])) {
        bytes[0] &= 0xfe;
        bytes[6] = bytes[6] & 0xfe | 2;
        let (ether_type, first, protocol_at) = if is_ipv4 { ([8, 0], 0x45, 23) } else { ([0x86, 0xdd], 0x60, 20) };
        bytes[12..14].copy_from_slice(&ether_type);
        bytes[14] = first;
        if let Some(byte) = bytes.get_mut(protocol_at) {
            *byte = protocol;
        }
        digest(&bytes, bytes.len() as u32)?;
        digest(&bytes, 65_014)?;
    }

    #[test]
    fn mutated_frames_do_no_harm(
        recipe in recipe(),
        mutations in vec((any::<Index>(), any::<u8>()), 0..8),
        cut in any::<Index>(),
    ) {
        let mut frame = recipe.build();
        for (at, byte) in mutations {
            // Most of a frame is payload; headers are what matters.
            let headers = frame.len().min(HEADERS + 6);
            frame[at.index(headers)] = byte;
        }
        let frame_bytes = frame.len() as u32;
        let whole = digest(&frame, frame_bytes)?;
        let piece = &frame[..cut.index(frame.len()) + 1];
        let first = digest(piece, frame_bytes)?;
        // A first piece with all headers in it tells as much as the whole frame, a shorter one never more.
        prop_assert!(whole || !first);
        if piece.len() >= HEADERS {
            prop_assert_eq!(parse(piece, frame_bytes), parse(&frame, frame_bytes));
        }
    }

    /// Dangling indices, unknown ports and made-up headers: a decision names only what exists.
    #[test]
    fn decisions_name_only_what_exists(world in world(), recipes in vec(recipe(), 20), ingress in any::<u16>()) {
        let tables = world.tables();
        for recipe in recipes {
            let frame = recipe.build();
            let Ok(headers) = parse(&frame, frame.len() as u32) else { continue };
            prop_assert!(matches!(decide(&headers, PortId(ingress | 0x100), &tables), Verdict::Kernel(_)));
            if let Verdict::Forward { port, rewrite, used } = decide(&headers, recipe.ingress, &tables) {
                let to = tables.ports.get(port).expect("the port exists");
                prop_assert!(to.forwarding && port != recipe.ingress && used < 100);
                let through_sockets = tables.ports.get(recipe.ingress).is_some_and(|from| from.path == Path::AfXdp);
                prop_assert!(headers.l3_bytes <= to.mtu);
                prop_assert!(!through_sockets || headers.frame_bytes <= to.max_frame);
                if let Rewrite::Route { destination, source } = rewrite {
                    prop_assert!(headers.header_checksum_ok && destination.is_station() && source.is_station());
                }
            }
        }
    }
}
