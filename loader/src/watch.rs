//! `--watch`: the same answer again and again. On a terminal each one takes the place of the one before; in a pipe they follow
//! each other, text with an empty line in between and JSON one answer a line.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::crossterm::terminal;

use crate::printable;

/// Cursor home and the rest of the screen cleared, which flickers less than clearing all of it first.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";
/// How long it sleeps at once, so that it ends soon when told to.
const NAP: Duration = Duration::from_millis(50);

/// Where the answers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether stdout is a terminal to draw on.
    pub screen: bool,
    /// Whether they are JSON, of which each is a line.
    pub json: bool,
}

/// Shows `first` and then what `ask` says every `pause`, until SIGINT or SIGTERM, or until the reader leaves. A daemon that goes
/// away is told of and waited for.
///
/// # Errors
/// If it cannot be written.
pub fn watch<E: Display>(
    first: String,
    pause: Duration,
    style: Style,
    out: &mut impl Write,
    mut ask: impl FnMut() -> Result<String, E>,
) -> io::Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let mut text = first;
    let mut is_first = true;
    loop {
        let due = Instant::now() + pause;
        match show(&text, style, is_first, out) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown?,
        }
        is_first = false;
        while Instant::now() < due {
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(NAP.min(due.saturating_duration_since(Instant::now())));
        }
        text = ask().unwrap_or_else(|error| sentence(&error.to_string(), style));
    }
}

/// Why there is no answer, in the words of the answers.
fn sentence(error: &str, style: Style) -> String {
    if style.json {
        return format!("{}\n", serde_json::json!({ "error": error }));
    }
    format!("podlane: {}\n", printable::lines(error))
}

/// What fits onto a screen of so many columns and lines; a text that does not says so in the last line.
fn fitted(text: &str, width: usize, height: usize) -> Vec<String> {
    let cut = |line: &str| line.chars().take(width).collect::<String>();
    let (lines, room) = (text.lines().count(), height.saturating_sub(1));
    if lines <= room {
        return text.lines().map(cut).collect();
    }
    let shown = room.saturating_sub(1);
    let more = format!("… and {} lines more: a larger window shows them, `podlane top` the rates", lines - shown);
    text.lines().take(shown).map(cut).chain([cut(&more)]).collect()
}

fn show(text: &str, style: Style, is_first: bool, out: &mut impl Write) -> io::Result<()> {
    if style.screen {
        // Asked each time: a person may change it.
        let (width, height) = terminal::size().unwrap_or((80, 24));
        let lines = fitted(text, width.into(), height.into());
        let lines: String = lines.iter().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
        out.write_all(format!("{HOME}{lines}{CLEAR_REST}").as_bytes())?;
    } else {
        let separator = if is_first || style.json { "" } else { "\n" };
        out.write_all(format!("{separator}{text}").as_bytes())?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written of some answers, by a reader that leaves after them.
    fn written(style: Style, answers: &[Result<&str, &str>]) -> String {
        struct Reader(String, usize);
        impl Write for Reader {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.1 == 0 {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.1 -= 1;
                self.0.push_str(std::str::from_utf8(bytes).expect("text"));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Reader(String::new(), answers.len());
        let mut rest = answers[1..].iter().cycle();
        let ask = || rest.next().expect("no end").map(str::to_owned);
        let first = answers[0].expect("the first is an answer").to_owned();
        watch(first, Duration::from_millis(1), style, &mut out, ask).expect("a reader that leaves is no error");
        out.0
    }

    #[test]
    fn a_pipe_gets_blocks() {
        let style = Style { screen: false, json: false };
        let text = written(style, &[Ok("one\n"), Err("gone\u{1b}[2J"), Ok("two\n")]);
        assert_eq!(text, "one\n\npodlane: gone\u{fffd}[2J\n\ntwo\n");
    }

    #[test]
    fn json_is_one_answer_a_line() {
        let style = Style { screen: false, json: true };
        let text = written(style, &[Ok("{\"a\":1}\n"), Err("it is \"gone\""), Ok("{\"a\":2}\n")]);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["error"], "it is \"gone\"");
    }

    #[test]
    fn a_screen_is_written_over() {
        let style = Style { screen: true, json: false };
        let text = written(style, &[Ok("one\ntwo\n"), Ok("three\n")]);
        assert_eq!(fitted("one\ntwo\nthree\nfour\n", 3, 4), ["one", "two", "… a"]);
        assert_eq!(fitted("one\ntwo\nthree\n", 4, 4), ["one", "two", "thre"]);
        assert_eq!(text, "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J\x1b[Hthree\x1b[K\n\x1b[J");
    }
}
