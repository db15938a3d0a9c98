//! From routes to the words of a [`Fib`]: sort, flatten into ranges, lay out.

use super::{Fib, FibKey, LOW_HALF, NO_ROUTE, NODE, SLOTS_SHIFT};

/// From `from` up to the next boundary, addresses have `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boundary<K> {
    pub from: K,
    pub value: u32,
}

/// Slots that a node may have however few boundaries it holds: with its header, one cache line.
const SMALL_SLOTS: usize = 13;

/// Sorts routes by (prefix, length), masks host bits off, cuts lengths, and keeps the last of equal ones.
pub(super) fn normalise<K: FibKey>(routes: impl IntoIterator<Item = (K, u8, u32)>) -> Vec<(K, u8, u32)> {
    let mut routes: Vec<_> = routes
        .into_iter()
        .map(|(prefix, length, value)| {
            let length = length.min(K::BITS);
            (prefix & !host_mask::<K>(length), length, value)
        })
        .collect();
    // Stable, so that equal ones stay in the order in which they came; and linear if they came sorted.
    routes.sort_by_key(|&(prefix, length, _)| (prefix, length));
    routes.dedup_by(|later, earlier| {
        let same = (later.0, later.1) == (earlier.0, earlier.1);
        if same {
            earlier.2 = later.2;
        }
        same
    });
    routes
}

/// Compiles normalised routes.
pub(super) fn compile<K: FibKey>(routes: Vec<(K, u8, u32)>) -> Fib<K> {
    let (first, boundaries) = flatten(&routes);
    let mut layout = Layout { words: Vec::new(), depth: 0, allowance: Allowance::for_table(boundaries.len()) };
    let root = layout.entry(&boundaries, K::ZERO, u32::from(K::BITS), first, 0);
    layout.words.shrink_to_fit();
    Fib { routes, words: layout.words, root, depth: layout.depth }
}

/// How many slots a node may have for each boundary in it. More slots mean fewer levels and more memory; large tables get
/// fewer, so that they do not outgrow the caches. The numbers are measured (`benches/benches/tables.rs`).
#[derive(Clone, Copy)]
struct Allowance {
    /// For any node.
    usual: usize,
    /// For a node that has only values in its slots if it gets that many: each level less is a mispredicted branch less.
    last_level: usize,
    /// Slots of one node at most, a power of two: a larger root saves a level. Their count has 24 bits in the layout.
    most: usize,
}

impl Allowance {
    fn for_table(boundaries: usize) -> Self {
        match boundaries {
            0..=65_536 => Allowance { usual: 8, last_level: 32, most: 1 << 16 },
            _ => Allowance { usual: 4, last_level: 4, most: 1 << 18 },
        }
    }
}

/// A mask over the bits of an address behind a prefix of `length` bits.
fn host_mask<K: FibKey>(length: u8) -> K {
    low_mask(u32::from(K::BITS - length))
}

/// A mask over the lowest `bits` bits.
fn low_mask<K: FibKey>(bits: u32) -> K {
    if bits >= u32::from(K::BITS) { !K::ZERO } else { (K::ONE << bits) - K::ONE }
}

/// The value of address 0, and the boundaries after it in ascending order; neighbouring ranges have different values.
pub(super) fn flatten<K: FibKey>(routes: &[(K, u8, u32)]) -> (u32, Vec<Boundary<K>>) {
    let mut ranges = Ranges { first: NO_ROUTE, boundaries: Vec::with_capacity(routes.len() * 2) };
    // Prefixes that cover the current position, shortest first: (last address, value).
    let mut open: Vec<(K, u32)> = Vec::with_capacity(usize::from(K::BITS) + 1);
    let close = |ranges: &mut Ranges<K>, open: &mut Vec<(K, u32)>, last: K| {
        open.pop();
        if last != !K::ZERO {
            ranges.start(last + K::ONE, open.last().map_or(NO_ROUTE, |&(_, value)| value));
        }
    };
    for &(prefix, length, value) in routes {
        while let Some(&(last, _)) = open.last().filter(|(last, _)| *last < prefix) {
            close(&mut ranges, &mut open, last);
        }
        let value = if value & NODE == 0 { value } else { NO_ROUTE };
        ranges.start(prefix, value);
        open.push((prefix | host_mask(length), value));
    }
    while let Some(&(last, _)) = open.last() {
        close(&mut ranges, &mut open, last);
    }
    (ranges.first, ranges.boundaries)
}

struct Ranges<K> {
    first: u32,
    boundaries: Vec<Boundary<K>>,
}

impl<K: FibKey> Ranges<K> {
    /// From `from` on, which is not below any earlier one, addresses have `value`.
    fn start(&mut self, from: K, value: u32) {
        if from == K::ZERO {
            self.first = value;
            return;
        }
        if self.boundaries.last().is_some_and(|last| last.from == from) {
            self.boundaries.pop();
        }
        if self.boundaries.last().map_or(self.first, |last| last.value) != value {
            self.boundaries.push(Boundary { from, value });
        }
    }
}

struct Layout {
    words: Vec<u32>,
    depth: u8,
    allowance: Allowance,
}

/// The slots of one node.
struct Shape<K> {
    /// The first slot and the last: addresses shifted right by `shift`.
    first: K,
    last: K,
    shift: u32,
    /// The value of the addresses of the node's block that no slot covers.
    outside: u32,
}

impl Layout {
    /// The entry for the block of 2^`bits` addresses from `start`, which has the value `value` up to the first of
    /// `boundaries`; these lie inside of the block and not at its start. `level` nodes lead here.
    fn entry<K: FibKey>(&mut self, boundaries: &[Boundary<K>], start: K, bits: u32, value: u32, level: u8) -> u32 {
        if boundaries.is_empty() {
            return value;
        }
        let shape = self.shape(boundaries, start, bits, value);
        let node = self.words.len();
        let slots = (shape.last - shape.first).low_u64() as usize + 1;
        self.header(&shape, slots);
        self.depth = self.depth.max(level + 1);
        let first_slot = self.words.len();
        self.words.resize(first_slot + slots + 1, shape.outside);

        let (mut value, mut rest, mut next) = (value, boundaries, first_slot);
        while let Some(boundary) = rest.first() {
            // Slots up to the next boundary's have one value; that boundary's own may need a node.
            let number = boundary.from >> shape.shift;
            let slot = first_slot + (number - shape.first).low_u64() as usize;
            if slot >= first_slot + slots {
                break;
            }
            self.words[next..slot].fill(value);
            let slot_start = number << shape.shift;
            let slot_last = slot_start | low_mask(shape.shift);
            if boundary.from == slot_start {
                (value, rest) = (boundary.value, &rest[1..]);
            }
            let inside = rest.iter().take_while(|boundary| boundary.from <= slot_last).count();
            let (inside, behind) = rest.split_at(inside);
            self.words[slot] = self.entry(inside, slot_start, shape.shift, value, level + 1);
            (value, rest, next) = (inside.last().map_or(value, |boundary| boundary.value), behind, slot + 1);
        }
        self.words[next..first_slot + slots].fill(value);
        node as u32 | NODE
    }

    /// Where a node's slots begin and end and how large they are. Every slot is smaller than the block.
    fn shape<K: FibKey>(&self, boundaries: &[Boundary<K>], start: K, bits: u32, value: u32) -> Shape<K> {
        let (first, last) = (boundaries[0], boundaries[boundaries.len() - 1]);
        let block_last = start | low_mask(bits);
        // What lies before the first boundary has one value, what lies behind the last has one too. If they are the same,
        // as in a block inside one shorter prefix, slots need cover neither; otherwise one of them.
        let before_last = last.from - K::ONE;
        let (from, to, outside) = if value == last.value {
            (first.from, before_last, value)
        } else if first.from - start >= block_last - before_last {
            (first.from, block_last, value)
        } else {
            (start, before_last, last.value)
        };
        // The finest slots are those that no boundary divides.
        let finest = boundaries.iter().map(|boundary| boundary.from.trailing_zeros()).min().unwrap_or(0);
        let fits = |shift: u32, slots_per_boundary: usize| {
            let allowed = (boundaries.len() * slots_per_boundary).clamp(SMALL_SLOTS, self.allowance.most);
            (to >> shift) - (from >> shift) < K::from(allowed as u32)
        };
        let mut shift = finest;
        if !fits(finest, self.allowance.last_level) {
            let span_bits = u32::from(K::BITS) - (to - from).leading_zeros();
            shift = finest.max(span_bits.saturating_sub(self.allowance.most.ilog2() + 1));
            while !fits(shift, self.allowance.usual) {
                shift += 1;
            }
        }
        // A node looks at one half of an IPv6 address, and at the low one only where the high one is fully known.
        if bits > 64 && shift < 64 {
            shift = 64;
        }
        Shape { first: from >> shift, last: to >> shift, shift, outside }
    }

    fn header<K: FibKey>(&mut self, shape: &Shape<K>, slots: usize) {
        let slots = (slots as u32) << SLOTS_SHIFT;
        if K::BITS <= 64 {
            self.words.extend([shape.first.low_u64() as u32, slots | shape.shift]);
            return;
        }
        let (shift, low_half, base) = if shape.shift < 64 {
            (shape.shift, LOW_HALF, (shape.first << shape.shift).low_u64() >> shape.shift)
        } else {
            (shape.shift - 64, 0, shape.first.low_u64())
        };
        self.words.extend([base as u32, (base >> 32) as u32, slots | low_half | shift]);
    }
}
