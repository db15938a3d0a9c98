//! The forwarding database: which pod port a MAC address is behind.
//!
//! It mirrors the kernel bridge's own FDB (entries on pod ports only); the bridge learns, ages and flushes, we follow. The
//! engine's part in learning is [`super::learn`].

use hashbrown::HashMap;

use crate::addr::{MacAddr, PortId};
use crate::limits;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbEntry {
    /// The port that the address is behind.
    pub port: PortId,
    /// Configured by somebody, not learned: it never moves by learning.
    pub is_static: bool,
    /// Index into the workers' [`super::Activity`] tables.
    pub activity: u32,
}

/// MAC address to port.
///
/// Nearly every address is found by looking at one place, its own in `near`; two that share a place have the hash table. The
/// BPF programs look addresses up in the same way.
#[derive(Clone, Debug)]
pub struct Fdb {
    entries: HashMap<u64, FdbEntry, MacHasher>,
    /// By [`near_place`]; [`NOBODY`] where there is none.
    near: Box<[(u64, FdbEntry); NEAR]>,
}

/// Places in [`Fdb::near`]: four times the pods of a large node, so that few share one.
const NEAR: usize = 1024;
/// No MAC address, which has 48 bits.
const NOBODY: (u64, FdbEntry) = (u64::MAX, FdbEntry { port: PortId(0), is_static: false, activity: 0 });

/// The place of an address: the highest bits of a product, which all bits of the address take part in.
#[inline]
const fn near_place(mac: u64) -> usize {
    (mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - NEAR.ilog2())) as usize
}

impl Default for Fdb {
    fn default() -> Self {
        Fdb { entries: HashMap::default(), near: Box::new([NOBODY; NEAR]) }
    }
}

impl Fdb {
    /// A table of the given entries; beyond [`limits::MAX_FDB`] the rest is left out and counted.
    pub fn new(entries: impl IntoIterator<Item = (MacAddr, FdbEntry)>) -> (Self, usize) {
        let mut table = Fdb::default();
        let mut left_out = 0;
        for (mac, entry) in entries {
            if table.entries.len() < limits::MAX_FDB || table.entries.contains_key(&mac.to_u64()) {
                table.entries.insert(mac.to_u64(), entry);
                table.near[near_place(mac.to_u64())] = (mac.to_u64(), entry);
            } else {
                left_out += 1;
            }
        }
        (table, left_out)
    }

    /// The entry of an address.
    #[inline]
    pub fn get(&self, mac: MacAddr) -> Option<FdbEntry> {
        let (near, entry) = self.near[near_place(mac.to_u64())];
        if near == mac.to_u64() { Some(entry) } else { self.far(mac) }
    }

    #[cold]
    fn far(&self, mac: MacAddr) -> Option<FdbEntry> {
        self.entries.get(&mac.to_u64()).copied()
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (MacAddr, FdbEntry)> {
        self.entries.iter().map(|(mac, entry)| (MacAddr::from_u64(*mac), *entry))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Hashes one integer with a multiplication. Pods choose their own MAC addresses, but the number of entries per port is
/// limited ([`limits::MAX_LEARNED_PER_PORT`]) and the seed is random per process, so collisions cannot be piled up.
#[derive(Clone, Debug)]
pub struct MacHasher {
    seed: u64,
}

impl Default for MacHasher {
    fn default() -> Self {
        use std::hash::BuildHasher;
        use std::sync::OnceLock;
        static SEED: OnceLock<u64> = OnceLock::new();
        MacHasher { seed: *SEED.get_or_init(|| std::hash::RandomState::new().hash_one(0x706f_646c_u64)) }
    }
}

impl std::hash::BuildHasher for MacHasher {
    type Hasher = FoldHasher;

    #[inline]
    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(self.seed)
    }
}

/// A folded 64×64→128-bit multiplication over the integers written into it.
#[derive(Debug)]
pub struct FoldHasher(u64);

impl std::hash::Hasher for FoldHasher {
    #[inline]
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    #[inline]
    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(port: u16) -> FdbEntry {
        FdbEntry { port: PortId(port), is_static: false, activity: u32::from(port) }
    }

    /// Addresses that share one place of the near table.
    fn neighbours(count: usize) -> Vec<MacAddr> {
        let place = near_place(1);
        (1..).filter(|mac| near_place(*mac) == place).take(count).map(MacAddr::from_u64).collect()
    }

    #[test]
    fn addresses_that_share_a_place_are_all_found() {
        let macs = neighbours(20);
        let (fdb, _) = Fdb::new(macs.iter().zip(0..).map(|(mac, port)| (*mac, entry(port))));
        for (mac, port) in macs.iter().zip(0..) {
            assert_eq!(fdb.get(*mac), Some(entry(port)));
        }
        assert_eq!(fdb.get(neighbours(21)[20]), None);
    }

    #[test]
    fn beyond_the_limit_nothing_is_found_that_is_not_counted_in() {
        let all = (1..=limits::MAX_FDB as u64 + 5).map(|mac| (MacAddr::from_u64(mac), entry(1)));
        let (fdb, left_out) = Fdb::new(all);
        assert_eq!((fdb.len(), left_out), (limits::MAX_FDB, 5));
        let found = (1..=limits::MAX_FDB as u64 + 5).filter(|mac| fdb.get(MacAddr::from_u64(*mac)).is_some());
        assert_eq!(found.count(), limits::MAX_FDB);
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_map_finds(
            entries in prop::collection::vec((0_u64..4000, 0_u16..50), 0..3000),
            asked in prop::collection::vec(any::<u64>(), 50),
        ) {
            let (fdb, _) = Fdb::new(entries.iter().map(|(mac, port)| (MacAddr::from_u64(*mac), entry(*port))));
            let model: BTreeMap<u64, u16> = entries.iter().copied().collect();
            prop_assert_eq!(fdb.len(), model.len());
            for mac in (0..4000).chain(asked).map(MacAddr::from_u64) {
                prop_assert_eq!(fdb.get(mac), model.get(&mac.to_u64()).map(|port| entry(*port)));
            }
        }
    }
}
