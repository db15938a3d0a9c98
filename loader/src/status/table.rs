//! Plain text tables: aligned columns, numbers with thousands separators, nothing wider than a terminal.

use std::fmt::Write;

/// Columns of a terminal that every line fits into.
pub const WIDTH: usize = 100;

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// One field of a row.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Set to the left.
    Text(String),
    /// Set to the right.
    Number(u64),
    /// Set to the right, between numbers.
    Sign(&'static str),
}

impl Cell {
    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Cell::Text(text.into())
    }

    fn show(&self, separated: bool) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Number(number) if separated => thousands(*number),
            Cell::Number(number) => number.to_string(),
            Cell::Sign(sign) => (*sign).to_owned(),
        }
    }
}

enum Row {
    Cells(Vec<Cell>),
    Lines(Vec<String>),
}

/// A table: a title row, then rows of cells, each perhaps followed by lines of text.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
}

/// Columns by which a table is indented.
const INDENT: usize = 2;
/// Columns between two columns, and on either side of a [`Cell::Sign`].
const GAP: usize = 2;
const SIGN_GAP: usize = 1;

impl Table {
    /// An empty one.
    pub fn new(header: impl Into<Vec<&'static str>>) -> Self {
        Table { header: header.into(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the header.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(Row::Cells(cells.into()));
    }

    /// Adds lines below the last row.
    pub fn lines(&mut self, lines: impl IntoIterator<Item = String>) {
        self.rows.push(Row::Lines(lines.into_iter().collect()));
    }

    /// Writes the table. Separators are given up where it would be too wide with them.
    pub fn render(&self, out: &mut String) {
        let mut separated = true;
        let mut columns = self.columns(separated);
        if columns.iter().map(|column| column.gap + column.width).sum::<usize>() > WIDTH {
            separated = false;
            columns = self.columns(separated);
        }
        let header: Vec<_> = self.header.iter().map(|&title| title.to_owned()).collect();
        write_row(out, &header, &columns);
        for row in &self.rows {
            match row {
                Row::Cells(cells) => {
                    let shown: Vec<_> = cells.iter().map(|cell| cell.show(separated)).collect();
                    write_row(out, &shown, &columns);
                }
                Row::Lines(lines) => lines.iter().for_each(|line| {
                    let _ = writeln!(out, "{line}");
                }),
            }
        }
    }

    fn cells(&self, column: usize) -> impl Iterator<Item = &Cell> {
        self.rows.iter().filter_map(move |row| match row {
            Row::Cells(cells) => cells.get(column),
            Row::Lines(_) => None,
        })
    }

    fn columns(&self, separated: bool) -> Vec<Column> {
        let is_sign = |index: usize| matches!(self.cells(index).next(), Some(Cell::Sign(_)));
        let column = |(index, title): (usize, &&str)| {
            let widest = self.cells(index).map(|cell| cell.show(separated).chars().count()).max().unwrap_or(0);
            let gap = match index {
                0 => INDENT,
                _ if is_sign(index) || is_sign(index - 1) => SIGN_GAP,
                _ => GAP,
            };
            let right = self.cells(index).next().is_some_and(|cell| !matches!(cell, Cell::Text(_)));
            Column { gap, width: widest.max(title.chars().count()), right }
        };
        self.header.iter().enumerate().map(column).collect()
    }
}

/// How a column is set.
struct Column {
    /// Blanks before it.
    gap: usize,
    width: usize,
    right: bool,
}

fn write_row(out: &mut String, cells: &[String], columns: &[Column]) {
    let mut line = String::new();
    for (cell, &Column { gap, width, right }) in cells.iter().zip(columns) {
        line.push_str(&" ".repeat(gap));
        let _ = if right { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

/// Text in lines of at most [`WIDTH`] columns: the first after `first`, the others below its end. Words that are longer
/// than a line are cut.
pub fn wrap(first: &str, text: &str) -> Vec<String> {
    wrap_to(first, text, WIDTH)
}

/// The same in lines of at most `width` columns, but never less than 20.
pub fn wrap_to(first: &str, text: &str, width: usize) -> Vec<String> {
    let indent = first.chars().count();
    let room = width.saturating_sub(indent).max(20);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word;
        let used = line.chars().count();
        if used > 0 && used + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        while word.chars().count() > room {
            let cut = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
            lines.push(word[..cut].to_owned());
            word = &word[cut..];
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    let mut prefix = first.to_owned();
    for line in &mut lines {
        *line = format!("{prefix}{line}").trim_end().to_owned();
        prefix = " ".repeat(indent);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (123_456, "123,456"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn columns_are_aligned_and_separators_given_up_when_too_wide() {
        let render = |number: u64| {
            let mut table = Table::new(["NAME", "RX", "", "A", "", "B", "", "C"]);
            let row = |n| vec![Cell::text("x"), Cell::Number(n), Cell::Sign("="), Cell::Number(n)];
            table.row(
                [
                    row(number),
                    vec![Cell::Sign("+"), Cell::Number(number / 1000), Cell::Sign("+"), Cell::Number(number)],
                ]
                .concat(),
            );
            let mut out = String::new();
            table.render(&mut out);
            out
        };
        assert_eq!(render(1000), "  NAME     RX       A   B       C\n  x     1,000 = 1,000 + 1 + 1,000\n");
        assert!(render(u64::MAX).contains(&u64::MAX.to_string()));
    }

    #[test]
    fn text_is_wrapped_below_its_first_line() {
        let lines = wrap("  - ", &"word ".repeat(30));
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("  - word") && lines[1].starts_with("    word"));
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(wrap("  ", ""), [""]);
        assert_eq!(wrap("", &"x".repeat(250)).len(), 3);
    }
}
