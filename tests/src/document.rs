//! Documents that are carried out: a walk for a reader whose commands the tests type, and whose output they compare.
//!
//! Comments in the document make a fault (`<!-- fault PLACE: LINE -->`), run something beside it (`meanwhile`) and take back what a
//! reader would do elsewhere (`cure`). Blocks of `sh` are what the reader types, blocks of `text` what that prints among other
//! things.

use anyhow::{Context, Result, bail};

/// What the document has the reader, or the testbed, do.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A section begins.
    Section(&'a str),
    /// Something happens to a place.
    Fault {
        /// Where.
        place: &'a str,
        /// A line of shell.
        line: &'a str,
    },
    /// Something runs until the section ends.
    Meanwhile {
        /// Where.
        place: &'a str,
        /// A program and its arguments.
        line: &'a str,
    },
    /// The reader types these lines.
    Type(Vec<&'a str>),
    /// They print this, among other things.
    Read(Vec<&'a str>),
}

/// The items of a document, in order.
///
/// # Errors
/// If it has a comment or a block of another kind.
pub fn items(document: &str) -> Result<Vec<Item<'_>>> {
    let mut items = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            items.push(Item::Section(title));
        } else if let Some(comment) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            let (head, line) = comment.split_once(": ").context("a comment without a line")?;
            let (word, place) = head.split_once(' ').context("a comment without a place")?;
            items.push(match word {
                "fault" | "cure" => Item::Fault { place, line },
                "meanwhile" => Item::Meanwhile { place, line },
                _ => bail!("the document has a comment {word:?}"),
            });
        } else if let Some(kind) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            items.push(match kind {
                "sh" => Item::Type(block),
                "text" => Item::Read(block),
                _ => bail!("the document has a block of {kind:?}"),
            });
        }
    }
    Ok(items)
}

/// In one line, whatever the width at which it was printed.
pub fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The lines of the document that are not among what was printed. `…` stands for anything.
pub fn missing<'a>(printed: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let is_there = |line: &str| {
        let mut rest = printed;
        flat(line).split('…').all(|part| match rest.split_once(part.trim()) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        })
    };
    wanted.iter().copied().filter(|line| !is_there(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_can_be_read() {
        let text = "# a\n\n## b\n<!-- fault node1: ip x -->\n```sh\npodlane a\nip b\n```\n\n```text\nc … d\n```\n";
        let expected = [
            Item::Section("b"),
            Item::Fault { place: "node1", line: "ip x" },
            Item::Type(vec!["podlane a", "ip b"]),
            Item::Read(vec!["c … d"]),
        ];
        assert_eq!(items(text).unwrap(), expected);
        assert_eq!(missing("x c 1 2 d y", &["c … d", "d … c", "c 1"]), ["d … c"]);
    }
}
