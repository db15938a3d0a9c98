//! Longest-prefix match: which route covers a destination.
//!
//! A table is compiled once from all routes and never changed. Compilation first turns the nested prefixes into what they
//! mean: a sorted list of disjoint address ranges, each with one value, neighbours with the same value merged
//! (`compile.rs`). A search tree over these ranges is then laid out in **one flat array of `u32` words**. Every node
//! covers a run of equally large slots of the address space:
//!
//! ```text
//! node:   base   (u32 for IPv4; two words, low one first, for IPv6)
//!         meta   bits 0-5 shift, bit 6 "looks at the low half", bits 8-31 number of slots
//!         slot 0 … slot n-1, outside        (n + 1 entries)
//! entry:  bit 31 clear: the value.  bit 31 set: the offset of a child node in the array; all ones: no route
//! walk:   index = (address >> shift) - base;  entry = slots[min(index, n)]
//! ```
//!
//! So a level of the tree is a shift, a subtraction and a minimum; the only branch that depends on the address is
//! "was that a value?". Neither a population count (which x86-64 has no instruction for unless one asks for a newer CPU than
//! the baseline) nor a comparison of skipped bits is needed: bits in front of the slots were either checked by an ancestor
//! or are checked by the subtraction, which gives an index beyond the run for any other address. The number and size
//! of a node's slots follow the routes below it: a node spans exactly the addresses in which something changes, in slots
//! as fine as the longest prefix needs or as its share of memory allows, whichever is coarser. One node CIDR carved into
//! /24s is a single node of that many slots, wherever in the address space it lies, and a lone host route costs 16 bytes.
//!
//! An IPv6 address is looked at in two halves of 64 bits: nodes are laid so that none straddles the middle.
//!
//! The array holds offsets, never pointers, and the walk is bounded by [`Fib::depth`]: a BPF program can walk a copy of the
//! same words in one array map.

mod compile;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::ops::{Add, BitAnd, BitOr, Not, Shl, Shr, Sub};

use crate::limits;

/// An entry with this bit is the offset of a node; one without it is a value.
const NODE: u32 = 1 << 31;
/// "No route". As an offset it lies beyond any array (whose length fits in 31 bits), where the walk ends with `None`.
const NO_ROUTE: u32 = u32::MAX;
/// Bit of a node's second header word: the node looks at the low 64 bits of an IPv6 address.
const LOW_HALF: u32 = 1 << 6;
/// The shift in a node's meta word.
const SHIFT_MASK: u32 = 0x3f;
/// The number of slots is above this bit of a node's meta word.
const SLOTS_SHIFT: u32 = 8;

/// An address as an integer in host order: `u32` for IPv4, `u128` for IPv6.
pub trait FibKey:
    Copy
    + Ord
    + Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
    + From<u32>
{
    /// Bits of an address.
    const BITS: u8;
    /// Words of a node in front of its slots.
    const HEADER_WORDS: usize;
    /// The lowest address.
    const ZERO: Self;
    /// The address after the lowest.
    const ONE: Self;

    /// Zero bits at the low end; [`FibKey::BITS`] for [`FibKey::ZERO`].
    fn trailing_zeros(self) -> u32;
    /// Zero bits at the high end; [`FibKey::BITS`] for [`FibKey::ZERO`].
    fn leading_zeros(self) -> u32;
    /// The low 64 bits.
    fn low_u64(self) -> u64;
    /// Which of a node's entries, counted from the first slot, this address selects; `header` is the node's.
    ///
    /// # Panics
    /// If `header` has not [`FibKey::HEADER_WORDS`] words.
    fn select(self, header: &[u32]) -> usize;
}

impl FibKey for u32 {
    const BITS: u8 = 32;
    const HEADER_WORDS: usize = 2;
    const ZERO: u32 = 0;
    const ONE: u32 = 1;

    #[inline]
    fn trailing_zeros(self) -> u32 {
        self.trailing_zeros()
    }

    #[inline]
    fn leading_zeros(self) -> u32 {
        self.leading_zeros()
    }

    #[inline]
    fn low_u64(self) -> u64 {
        u64::from(self)
    }

    #[inline]
    fn select(self, header: &[u32]) -> usize {
        let index = (self >> (header[1] & SHIFT_MASK & 31)).wrapping_sub(header[0]);
        index.min(header[1] >> SLOTS_SHIFT) as usize
    }
}

impl FibKey for u128 {
    const BITS: u8 = 128;
    const HEADER_WORDS: usize = 3;
    const ZERO: u128 = 0;
    const ONE: u128 = 1;

    #[inline]
    fn trailing_zeros(self) -> u32 {
        self.trailing_zeros()
    }

    #[inline]
    fn leading_zeros(self) -> u32 {
        self.leading_zeros()
    }

    #[inline]
    fn low_u64(self) -> u64 {
        self as u64
    }

    #[inline]
    fn select(self, header: &[u32]) -> usize {
        let (high, low) = ((self >> 64) as u64, self as u64);
        let half = if header[2] & LOW_HALF == 0 { high } else { low };
        let base = u64::from(header[0]) | u64::from(header[1]) << 32;
        let index = (half >> (header[2] & SHIFT_MASK)).wrapping_sub(base);
        index.min(u64::from(header[2] >> SLOTS_SHIFT)) as usize
    }
}

/// More routes of one family than [`limits::MAX_ROUTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} routes of one family; at most {max} are supported: aggregate them", max = limits::MAX_ROUTES)]
pub struct TooManyRoutes(pub usize);

/// Routes of one family. `Default` is the empty table, which owns no memory.
#[derive(Clone, Debug)]
pub struct Fib<K> {
    /// Sorted by prefix, then length; no (prefix, length) twice.
    routes: Vec<(K, u8, u32)>,
    words: Vec<u32>,
    /// The entry to start from.
    root: u32,
    depth: u8,
}

impl<K> Default for Fib<K> {
    fn default() -> Self {
        Fib { routes: Vec::new(), words: Vec::new(), root: NO_ROUTE, depth: 0 }
    }
}

impl<K: FibKey> Fib<K> {
    /// The largest value that a route can have.
    pub const MAX_VALUE: u32 = NODE - 1;

    /// Compiles (prefix, length, value) triples.
    ///
    /// Host bits of a prefix are ignored and a length beyond the family's is cut to it. Of several routes with the same
    /// prefix and length the last wins. A value above [`Fib::MAX_VALUE`] means "no route": addresses whose longest prefix
    /// has it are not found. Too many routes are [refused](TooManyRoutes), before anything is compiled: leaving some out would
    /// send packets by a shorter prefix to the wrong place.
    pub fn try_new(routes: impl IntoIterator<Item = (K, u8, u32)>) -> Result<Self, TooManyRoutes> {
        let routes = compile::normalise(routes);
        if routes.len() > limits::MAX_ROUTES { Err(TooManyRoutes(routes.len())) } else { Ok(compile::compile(routes)) }
    }

    /// [`Fib::try_new`], with the empty table in place of an error: nothing is found, so everything is the kernel's.
    pub fn new(routes: impl IntoIterator<Item = (K, u8, u32)>) -> Self {
        Self::try_new(routes).unwrap_or_default()
    }

    /// The value of the longest prefix that covers `address`.
    #[inline]
    pub fn lookup(&self, address: K) -> Option<u32> {
        let mut entry = self.root;
        while entry & NODE != 0 {
            let node = (entry & !NODE) as usize;
            let slots = node + K::HEADER_WORDS;
            // Out of bounds for "no route" and for nothing else.
            let header = self.words.get(node..slots)?;
            entry = *self.words.get(slots + address.select(header))?;
        }
        Some(entry)
    }

    /// All routes, sorted by prefix and length.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (K, u8, u32)> + '_ {
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

    /// Nodes on the longest way from the root to a value; a look-up reads two cache lines per node at most.
    pub fn depth(&self) -> usize {
        usize::from(self.depth)
    }

    /// Bytes that look-ups walk over.
    pub fn lookup_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u32>()
    }

    /// Bytes of memory in all: those that look-ups walk over, and the list of routes behind [`Fib::iter`].
    pub fn bytes(&self) -> usize {
        self.lookup_bytes() + self.routes.capacity() * size_of::<(K, u8, u32)>()
    }
}
