//! A table of numbers that fits where it is shown: columns give way in the order of their rank, rows are sorted and filtered.
//! The terminal and the plain text of `--batch` are made from the same sheets.

use std::cmp::Ordering;

use super::rates::Rate;
use crate::printable;

/// Columns between two columns.
const GAP: usize = 1;
/// Columns of this rank and above are nice to have: they give way to names.
const NICE: u8 = 4;
/// By how much the first column may grow at their cost.
const NAME: usize = 20;
/// Columns from the left that say what a row is about.
const NAMING: usize = 3;

/// How much a cell matters at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As usual.
    #[default]
    Plain,
    /// Nothing happens.
    Dim,
    /// Worth a look.
    Warn,
    /// Somebody loses packets.
    Bad,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A number, shown with three digits and a unit's prefix.
    Number(Rate),
    /// A whole number, shown as it is.
    Count(u64),
    /// A share of one.
    Share(Rate),
}

impl Cell {
    /// As it is shown.
    pub fn show(&self) -> String {
        match self {
            Cell::Text(text) => printable::line(text).into_owned(),
            Cell::Number(None) | Cell::Share(None) => "-".to_owned(),
            Cell::Number(Some(number)) => human(*number),
            Cell::Count(count) => count.to_string(),
            Cell::Share(Some(share)) => format!("{:.0} %", share * 100.0),
        }
    }

    /// Words by the alphabet; numbers by size, those that are not known below all others.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Cell::Text(one), Cell::Text(other)) => one.cmp(other),
            _ => self.number().total_cmp(&other.number()),
        }
    }

    fn number(&self) -> f64 {
        match self {
            Cell::Text(_) => 0.0,
            Cell::Number(number) | Cell::Share(number) => number.unwrap_or(f64::NEG_INFINITY),
            Cell::Count(count) => *count as f64,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Cell::Text(_))
    }
}

/// A number in at most five columns: `0`, `0.3`, `12`, `999`, `1.23k`, `45.6M`.
pub fn human(number: f64) -> String {
    const PREFIXES: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if !number.is_finite() || number < 0.0 {
        return "-".to_owned();
    }
    if number < 0.05 {
        return "0".to_owned();
    }
    if number < 9.95 {
        return format!("{number:.1}");
    }
    if number < 999.5 {
        return format!("{number:.0}");
    }
    let mut rest = number;
    for prefix in PREFIXES {
        rest /= 1000.0;
        match rest {
            rest if rest < 9.995 => return format!("{rest:.2}{prefix}"),
            rest if rest < 99.95 => return format!("{rest:.1}{prefix}"),
            rest if rest < 999.5 => return format!("{rest:.0}{prefix}"),
            _ => {}
        }
    }
    "many".to_owned()
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Its width; the first column has at least this, and grows with its content.
    pub width: usize,
    /// Columns of a higher rank give way first; 0 never does.
    pub rank: u8,
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// As many cells as the sheet has columns.
    pub cells: Vec<Cell>,
    /// How much each matters; shorter than the cells where the rest is plain.
    pub tones: Vec<Tone>,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// The columns.
    pub columns: &'static [Column],
    /// The rows.
    pub rows: Vec<Row>,
}

/// A piece of a line.
pub type Piece = (String, Tone);

impl Sheet {
    /// Keeps the rows in which one of the first words ([`NAMING`]) holds `filter`, upper and lower case alike; rows without words
    /// stay.
    pub fn filter(&mut self, filter: &str) {
        let filter = filter.to_lowercase();
        let words = |row: &Row| -> Vec<String> {
            let naming = row.cells.iter().take(NAMING).filter(|cell| cell.is_text());
            naming.map(|cell| cell.show().to_lowercase()).collect()
        };
        self.rows.retain(|row| {
            let words = words(row);
            filter.is_empty() || words.is_empty() || words.iter().any(|word| word.contains(&filter))
        });
    }

    /// Sorts by a column: numbers from the largest, words from the first; `reversed` the other way round. Rows that are equal
    /// there keep their order.
    pub fn sort(&mut self, column: usize, reversed: bool) {
        let compare = |one: &Row, other: &Row| {
            let (Some(a), Some(b)) = (one.cells.get(column), other.cells.get(column)) else { return Ordering::Equal };
            let order = if a.is_text() { a.compare(b) } else { b.compare(a) };
            if reversed { order.reverse() } else { order }
        };
        self.rows.sort_by(compare);
    }

    /// The columns that fit into `width`, each with the width that it gets.
    pub fn fit(&self, width: usize) -> Vec<(usize, usize)> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let needed = |shown: &[usize]| shown.iter().map(|index| self.columns[*index].width + GAP).sum::<usize>();
        let lengths = self.rows.iter().filter_map(|row| row.cells.first()).map(|cell| cell.show().chars().count());
        let wish = lengths.max().unwrap_or(0).saturating_sub(self.columns.first().map_or(0, |first| first.width));
        // First what is nice to have makes room for names of a usual length, then the rest for those of the least.
        for (spare, extra) in [(NICE, wish.min(NAME)), (1, 0)] {
            while needed(&shown) + extra > width.saturating_add(GAP) {
                let may_go = shown.iter().enumerate().filter(|(_, index)| self.columns[**index].rank >= spare);
                let Some((place, _)) = may_go.max_by_key(|(place, index)| (self.columns[**index].rank, *place)) else {
                    break;
                };
                shown.remove(place);
            }
        }
        let grown = wish.min(width.saturating_add(GAP).saturating_sub(needed(&shown)));
        let fitted = |index: usize| self.columns[index].width + if index == 0 { grown } else { 0 };
        shown.into_iter().map(|index| (index, fitted(index))).collect()
    }

    /// The titles; that of the column by which is sorted has a mark.
    pub fn header(&self, fit: &[(usize, usize)], sorted: Option<(usize, bool)>) -> String {
        let mut line = String::new();
        for (place, (index, width)) in fit.iter().enumerate() {
            let column = &self.columns[*index];
            let mark = match sorted {
                Some((by, reversed)) if by == *index => {
                    if reversed {
                        "^"
                    } else {
                        "v"
                    }
                }
                _ => "",
            };
            let title = cut(&format!("{}{mark}", column.title), *width);
            let gap = if place > 0 { " " } else { "" };
            let is_text = self.rows.first().and_then(|row| row.cells.get(*index)).is_none_or(Cell::is_text);
            if is_text {
                line.push_str(&format!("{gap}{title:<width$}"));
            } else {
                line.push_str(&format!("{gap}{title:>width$}"));
            }
        }
        line
    }

    /// A row in pieces; blanks belong to the piece after them.
    pub fn line(&self, row: &Row, fit: &[(usize, usize)]) -> Vec<Piece> {
        let piece = |(place, (index, width)): (usize, &(usize, usize))| {
            let cell = row.cells.get(*index)?;
            let text = if *index == 0 { cut(&cell.show(), *width) } else { cell.show().chars().take(*width).collect() };
            let gap = if place > 0 { " " } else { "" };
            let text = if cell.is_text() { format!("{gap}{text:<width$}") } else { format!("{gap}{text:>width$}") };
            Some((text, row.tones.get(*index).copied().unwrap_or_default()))
        };
        fit.iter().enumerate().filter_map(piece).collect()
    }
}

/// Text of at most `width` columns. Of what is longer, beginning and end are kept: names of pods differ at their end.
pub fn cut(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (front, back) = (kept / 3, kept - kept / 3);
    let front: String = text.chars().take(front).collect();
    let back: String = text.chars().skip(length - back).collect();
    if width == 0 { String::new() } else { format!("{front}…{back}") }
}
