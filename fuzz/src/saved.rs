//! Files that a daemon leaves to the next one: counters and `large.json`.
//!
//! Input: which file (8 bits): 0: counters as they are, 1: counters whose first line is made here, checksum and all, so that a
//! search gets behind it, 2: `large.json`; and the text.

use podlane::outside;

use crate::Seeds;

/// Reads a file and gives what would be written next.
type ReadAgain = fn(&[u8]) -> Option<Vec<u8>>;

/// Reads the file, and adds it up as the next daemon does.
///
/// # Panics
/// If what was read cannot be written and read again.
pub fn run(bytes: &[u8]) {
    let Some((which, text)) = bytes.split_first() else { return };
    let (read, text): (ReadAgain, _) = match which {
        0 => (outside::counters, text.to_vec()),
        1 => (outside::counters, [&first_line(text), text].concat()),
        _ => (outside::large, text.to_vec()),
    };
    if let Some(written) = read(&text) {
        assert!(read(&written).is_some(), "{}", String::from_utf8_lossy(&written));
    }
}

fn first_line(json: &[u8]) -> Vec<u8> {
    format!("podlane-counters 1 {:08x}\n", crc32fast::hash(json)).into_bytes()
}

/// Both files as daemons write them, and with the largest numbers.
pub fn seeds() -> Seeds {
    let counters = |count: u64| {
        format!(
            r#"{{"place":{{"boot":"0f8d","network":4026531840}},"ended":true,
"counters":{{"since_s":1700000000.5,"takeovers":1,"takeovers_after_kill":0,"save_failures":0}},
"node":{{"mirror":{{"messages":{count}}},"tables":{{"publications":7}},"learning":{{"reports":1}}}},
"workers":[[0,{{"rx":{count},"busy_ns":5}}],[1,{{}}]],
"ports":[[{{"name":"veth0","ifindex":4,"mac":"02:00:00:00:00:01"}},{{"rx_packets":{count},"steered":{count},"worker_rx":3,
"passed":{{"total":{count},"by_reason":{{"too_big":{count},"ttl":1}}}},
"socket_drops":{{"rx_ring_full":1,"fill_ring_empty":0,"other":0}}}}],
[{{"name":"podlane0","ifindex":0,"mac":""}},{{}}]]}}"#
        )
    };
    let large = r#"{"sizes":{"4":{"pod":{"ifindex":4,"name":"veth0","netns":1,"peer":2},"found":[{"gso":65536,"gro":65536},
{"gso":65536,"gro":65536}],"put":[{"gso":262144,"gro":262144},{"gso":262144,"gro":262144}]}},
"mtus":{"4":[{"pod":{"ifindex":4,"name":"veth0","netns":1,"peer":2},"found":[1500,1500],"put":[65000,65000]},
{"mtu":1500,"ours":[[2,0,0,0]]}]}}"#;
    let whole = |json: String| [first_line(json.as_bytes()), json.into_bytes()].concat();
    let inputs = [
        ("counters-file", 0, whole(counters(5))),
        ("counters-foreign", 0, b"podlane-counters 9 00000000\n{}".to_vec()),
        ("counters", 1, counters(12).into_bytes()),
        ("counters-largest", 1, counters(u64::MAX).into_bytes()),
        ("large", 2, large.as_bytes().to_vec()),
        ("large-empty", 2, br#"{"sizes":{},"mtus":{}}"#.to_vec()),
    ];
    inputs.map(|(name, which, text)| (name.to_owned(), [&[which][..], &text].concat())).into()
}
