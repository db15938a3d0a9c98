//! Longest-prefix match.

/// An address as an integer in host order: `u32` for IPv4, `u128` for IPv6.
pub trait FibKey: Copy + Ord + std::fmt::Debug {
    /// Bits of an address.
    const BITS: u8;
}

impl FibKey for u32 {
    const BITS: u8 = 32;
}

impl FibKey for u128 {
    const BITS: u8 = 128;
}

/// Routes of one family.
#[derive(Clone, Debug, Default)]
pub struct Fib<K> {
    routes: Vec<(K, u8, u32)>,
}

impl<K: FibKey> Fib<K> {
    /// Compiles (prefix, length, value) triples.
    pub fn new(routes: impl IntoIterator<Item = (K, u8, u32)>) -> Self {
        Fib { routes: routes.into_iter().collect() }
    }
    /// The value of the longest prefix that covers `address`.
    pub fn lookup(&self, _address: K) -> Option<u32> {
        None
    }
    /// All routes.
    pub fn iter(&self) -> impl Iterator<Item = (K, u8, u32)> + '_ {
        self.routes.iter().copied()
    }
    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}
