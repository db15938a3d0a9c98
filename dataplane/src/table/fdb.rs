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
#[derive(Clone, Debug, Default)]
pub struct Fdb {
    entries: HashMap<u64, FdbEntry, MacHasher>,
}

impl Fdb {
    /// A table of the given entries; beyond [`limits::MAX_FDB`] the rest is left out and counted.
    pub fn new(entries: impl IntoIterator<Item = (MacAddr, FdbEntry)>) -> (Self, usize) {
        let mut table = Fdb::default();
        let mut left_out = 0;
        for (mac, entry) in entries {
            if table.entries.len() < limits::MAX_FDB || table.entries.contains_key(&mac.to_u64()) {
                table.entries.insert(mac.to_u64(), entry);
            } else {
                left_out += 1;
            }
        }
        (table, left_out)
    }

    /// The entry of an address.
    #[inline]
    pub fn get(&self, mac: MacAddr) -> Option<FdbEntry> {
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
