//! Recurring complaints: the first is said at once, the next ones are counted, and once in a [`PERIOD`] the last of them is
//! said with their number. Time is an argument everywhere, so that a test needs no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Record;

/// A complaint is said at most once in this time.
pub const PERIOD: Duration = Duration::from_secs(60);
/// Different complaints that are told apart at one time. Beyond it, all new ones of one place in the program count as one;
/// the number of those places is fixed.
pub const MAX_KEYS: usize = 256;

/// A place in the program, and whom the complaint is about; hashes of both.
pub type Key = (u64, u64);
/// Stands for everybody whom a complaint of a place may be about.
const EVERYBODY: u64 = 0;

/// What becomes of a complaint.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// It is said, in these words.
    Say(Record),
    /// It is counted.
    Hold,
}

#[derive(Clone, Debug)]
struct Entry {
    said: Instant,
    held: u64,
    /// The last that was held.
    last: Option<Record>,
}

/// Which complaints were said, and when.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    entries: HashMap<Key, Entry>,
}

impl Limiter {
    /// Decides on a complaint.
    pub fn judge(&mut self, key: Key, record: Record, now: Instant) -> Verdict {
        let key = self.place(key, now);
        let Some(entry) = self.entries.get_mut(&key) else {
            self.entries.insert(key, Entry { said: now, held: 0, last: None });
            return Verdict::Say(record);
        };
        let age = now.saturating_duration_since(entry.said);
        if age < PERIOD {
            entry.held += 1;
            entry.last = Some(record);
            return Verdict::Hold;
        }
        let more = entry.held;
        *entry = Entry { said: now, held: 0, last: None };
        Verdict::Say(record.with_more(more, age))
    }

    /// What has been held for a whole period: to be said now.
    pub fn due(&mut self, now: Instant) -> Vec<Record> {
        let mut due = Vec::new();
        self.entries.retain(|_, entry| {
            let age = now.saturating_duration_since(entry.said);
            if age < PERIOD {
                return true;
            }
            let last = entry.release(age);
            entry.said = now;
            let keep = last.is_some();
            due.extend(last);
            keep
        });
        due
    }

    /// Everything that is held, however short: to be said now.
    pub fn finish(&mut self) -> Vec<Record> {
        let now = Instant::now();
        let ages = self.entries.values_mut().map(|entry| (now.saturating_duration_since(entry.said), entry));
        ages.filter_map(|(age, entry)| entry.release(age)).collect()
    }

    /// Complaints that are told apart now.
    pub fn keys(&self) -> usize {
        self.entries.len()
    }

    /// The key itself while there is room for it, and its place's otherwise.
    fn place(&mut self, key: Key, now: Instant) -> Key {
        if self.entries.contains_key(&key) || self.entries.len() < MAX_KEYS {
            return key;
        }
        let is_needed = |entry: &Entry| entry.held > 0 || now.saturating_duration_since(entry.said) < PERIOD;
        self.entries.retain(|_, entry| is_needed(entry));
        if self.entries.len() < MAX_KEYS { key } else { (key.0, EVERYBODY) }
    }
}

impl Entry {
    /// The last that was held, with the number of the others.
    fn release(&mut self, age: Duration) -> Option<Record> {
        let others = std::mem::take(&mut self.held).saturating_sub(1);
        let again = |record: Record| if others > 0 { record.with_more(others, age) } else { record.again(age) };
        self.last.take().map(again)
    }
}
