//! Text of others before it is printed: names of interfaces, aliases and files may hold what a terminal obeys.

use std::borrow::Cow;

/// What stands in place of a character that is not printed.
const INSTEAD: char = '\u{fffd}';

/// Whether a character changes the terminal or the order of the text instead of being shown: control characters, and those that
/// turn the direction of writing or are invisible.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// One line of text, with a mark in place of what must not be printed.
pub fn line(text: &str) -> Cow<'_, str> {
    replace(text, is_unprintable)
}

/// Text of several lines, likewise.
pub fn lines(text: &str) -> Cow<'_, str> {
    replace(text, |character| character != '\n' && is_unprintable(character))
}

fn replace(text: &str, bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&bad) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|character| if bad(character) { INSTEAD } else { character }).collect())
}

/// JSON as it is, with escapes in place of what must not be printed; such characters only occur in its strings, and an escape
/// there means the same.
pub fn json(text: &str) -> Cow<'_, str> {
    let bad = |character: char| !matches!(character, '\n' | '\t' | '\r') && is_unprintable(character);
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let escaped = |character: char| {
        if bad(character) { format!("\\u{:04x}", character as u32) } else { character.to_string() }
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_replaced() {
        assert_eq!(line("veth\u{1b}[2J\n\u{9b}x\u{202e}"), "veth\u{fffd}[2J\u{fffd}\u{fffd}x\u{fffd}");
        assert_eq!(lines("a\r\nb\n"), "a\u{fffd}\nb\n");
        assert!(matches!(line("µs … größer 網"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_means_the_same() {
        let text = serde_json::to_string("a\u{7f}\u{9b}2J\u{202e}\u{feff}\u{1b}é\n").unwrap();
        let printed = json(&text);
        assert!(!printed.contains(is_unprintable), "{printed}");
        assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), "a\u{7f}\u{9b}2J\u{202e}\u{feff}\u{1b}é\n");
    }
}
