//! Numbers that stay with a thing for as long as it lives: indices into next hops and into the workers' activity tables.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hash;

use hashbrown::HashMap;

/// Hands out the numbers from 0 up to a limit; a freed number is used again, the lowest first.
#[derive(Debug, Clone)]
pub struct Slots<K> {
    numbers: HashMap<K, u32>,
    free: BinaryHeap<Reverse<u32>>,
    next: u32,
    limit: u32,
}

impl<K: Hash + Eq> Slots<K> {
    /// No number handed out, at most `limit` to come.
    pub fn new(limit: usize) -> Self {
        Slots {
            numbers: HashMap::new(),
            free: BinaryHeap::new(),
            next: 0,
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        }
    }

    /// The number of `key`, if it has one.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    /// The number of `key`, a new one if it has none. `None`: the limit is reached.
    pub fn get_or_insert(&mut self, key: K) -> Option<u32> {
        if let Some(number) = self.get(&key) {
            return Some(number);
        }
        let number = match self.free.pop() {
            Some(Reverse(number)) => number,
            None if self.next < self.limit => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.numbers.insert(key, number);
        Some(number)
    }

    /// Frees the numbers of all keys that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, u32) -> bool) {
        let free = &mut self.free;
        self.numbers.retain(|key, number| {
            let kept = keep(key, *number);
            if !kept {
                free.push(Reverse(*number));
            }
            kept
        });
    }

    /// Frees the number of `key`, if it has one.
    pub fn remove(&mut self, key: &K) {
        if let Some(number) = self.numbers.remove(key) {
            self.free.push(Reverse(number));
        }
    }

    /// All keys with their numbers, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.numbers.iter().map(|(key, number)| (key, *number))
    }

    /// One more than the highest number that was ever handed out.
    pub fn span(&self) -> usize {
        self.next as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_reused_and_limited() {
        let mut slots = Slots::new(3);
        assert_eq!(slots.get_or_insert('a'), Some(0));
        assert_eq!(slots.get_or_insert('b'), Some(1));
        assert_eq!(slots.get_or_insert('c'), Some(2));
        assert_eq!(slots.get_or_insert('d'), None);
        assert_eq!(slots.get_or_insert('a'), Some(0));
        slots.retain(|key, _| *key == 'c');
        assert_eq!(slots.get_or_insert('d'), Some(0));
        assert_eq!(slots.get(&'c'), Some(2));
        assert_eq!(slots.get(&'a'), None);
        slots.remove(&'d');
        slots.remove(&'x');
        assert_eq!(slots.get_or_insert('e'), Some(0));
        assert_eq!(slots.get_or_insert('f'), Some(1));
        assert_eq!(slots.get_or_insert('g'), None);
        assert_eq!(slots.span(), 3);
    }
}
