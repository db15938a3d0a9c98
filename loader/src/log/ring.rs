//! The last lines of the log, for a node whose log nobody keeps.

use std::collections::VecDeque;

/// Lines that are remembered.
pub const MAX_LINES: usize = 1000;
/// Bytes that they may have together.
pub const MAX_BYTES: usize = 256 << 10;

/// Lines, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    lines: VecDeque<String>,
    bytes: usize,
    forgotten: u64,
}

/// What a ring holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// Lines, the oldest first.
    pub lines: Vec<String>,
    /// How many there were before.
    pub forgotten: u64,
}

impl Ring {
    /// Remembers a line, and forgets the oldest where that is too much.
    pub fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
            self.forgotten += 1;
        }
    }

    /// What it holds.
    pub fn recent(&self) -> Recent {
        Recent { lines: self.lines.iter().cloned().collect(), forgotten: self.forgotten }
    }
}
