//! One thing that is said: clean, bounded text, and the ways to write it.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Characters of the longest message.
pub const MAX_MESSAGE: usize = 2048;
/// Characters of the longest value of a field.
pub const MAX_FIELD: usize = 512;
/// Fields of one record.
pub const MAX_FIELDS: usize = 16;

/// A line to be.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// When, in UTC, as RFC 3339 has it.
    pub time: String,
    /// How bad.
    pub level: Level,
    /// Which part says it.
    pub target: String,
    /// What, without line breaks or other control characters.
    pub message: String,
    /// The fields, in the order in which they were given; text among them is as clean as the message.
    pub fields: Vec<(&'static str, Value)>,
    /// Where in the program.
    pub place: Option<(&'static str, u32)>,
}

impl Record {
    /// Of an event, now.
    pub fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut record = Record {
            time: now(),
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message: String::new(),
            fields: Vec::new(),
            place: metadata.file().zip(metadata.line()),
        };
        event.record(&mut record);
        record
    }

    /// What tells it from others of the same place in the program: the message, and the fields of these names.
    pub fn subject(&self, names: &[&str]) -> String {
        let mut subject = self.message.clone();
        for (name, value) in self.fields.iter().filter(|(name, _)| names.contains(name)) {
            let _ = write!(subject, "\n{name}={value}");
        }
        subject
    }

    /// With the number of others like it that were not said in the time before it, if there were any.
    pub fn with_more(mut self, more: u64, time: Duration) -> Self {
        if more > 0 {
            let _ = write!(self.message, " (… {more} more like this in the last {} s)", time.as_secs().max(1));
            self.fields.push(("more", json!(more)));
        }
        self
    }

    /// Said once more, a while after it happened.
    pub fn again(mut self, time: Duration) -> Self {
        let _ = write!(self.message, " (again in the last {} s)", time.as_secs().max(1));
        self
    }

    /// The level's word.
    pub fn level_word(&self) -> &'static str {
        match self.level {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        }
    }

    /// syslog's number for the level.
    pub fn priority(&self) -> u8 {
        match self.level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        }
    }

    /// The message and the fields as `key=value`.
    pub fn sentence(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "more") {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = match value {
                Value::String(value) => write!(text, "{gap}{name}={}", quoted(value)),
                value => write!(text, "{gap}{name}={value}"),
            };
        }
        text
    }

    /// A line for people, without its end.
    pub fn text(&self) -> String {
        format!("{} {:>5} {}: {}", self.time, self.level_word(), self.target, self.sentence())
    }

    /// [`Record::text`] in colours.
    pub fn coloured(&self) -> String {
        let colour = match self.level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        let (time, level, target) = (&self.time, self.level_word(), &self.target);
        format!("\x1b[2m{time}\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m \x1b[2m{target}:\x1b[0m {}", self.sentence())
    }

    /// A line for programs, without its end.
    pub fn json(&self) -> String {
        let fields: Map<String, Value> =
            self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut line = json!({
            "time": self.time, "level": self.level_word().to_lowercase(), "target": self.target, "message": self.message,
        });
        if !fields.is_empty() {
            line["fields"] = Value::Object(fields);
        }
        line.to_string()
    }

    /// A line for a service manager, without its end: it brings its own time, and takes the level from the front
    /// (sd-daemon(3)).
    pub fn prefixed(&self) -> String {
        format!("<{}>{}: {}", self.priority(), self.target, self.sentence())
    }

    /// A datagram for the journal's own socket: `KEY=value` lines. No value has a line break.
    pub fn journal(&self) -> String {
        let mut text = format!(
            "MESSAGE={}\nPRIORITY={}\nSYSLOG_IDENTIFIER=podlane\nPODLANE_TARGET={}\n",
            self.sentence(),
            self.priority(),
            self.target
        );
        if let Some((file, line)) = self.place {
            let _ = write!(text, "CODE_FILE={file}\nCODE_LINE={line}\n");
        }
        for (name, value) in &self.fields {
            let name: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
            let _ = match value {
                Value::String(value) => writeln!(text, "PODLANE_{name}={value}"),
                value => writeln!(text, "PODLANE_{name}={value}"),
            };
        }
        text
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) if self.fields.len() < MAX_FIELDS => self.fields.push((name, value)),
            _ => {}
        }
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        let most = if field.name() == "message" { MAX_MESSAGE } else { MAX_FIELD };
        self.put(field, Value::String(clean(text, most)));
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }
}

/// Now, in UTC.
pub fn now() -> String {
    let mut time = String::new();
    // Writing to memory does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

/// Text without anything that breaks a line, moves a cursor or turns the direction of writing, of at most `most` characters.
/// A kernel allows nearly every byte in an interface's name.
pub fn clean(text: &str, most: usize) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut cleaned = String::with_capacity(text.len().min(most));
    for (index, c) in text.trim_end().chars().enumerate() {
        if index == most {
            cleaned.push('…');
            break;
        }
        if is_harmful(c) { cleaned.extend(c.escape_default()) } else { cleaned.push(c) }
    }
    cleaned
}

/// A value that ends where it seems to end.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
