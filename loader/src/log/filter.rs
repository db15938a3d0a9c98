//! What is logged: a level, and other levels for single parts, as in `info,podlane::mirror=debug`.

use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::config::nearest;

/// The words for levels, from the fewest lines to the most.
pub const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// Who logs: this program's modules, and libbpf.
const ROOTS: [&str; 2] = ["podlane", "libbpf"];
/// Parts that may be named.
const MAX_PARTS: usize = 32;

/// A level, and levels of parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter {
    level: LevelFilter,
    parts: Vec<(String, LevelFilter)>,
}

impl Default for LogFilter {
    fn default() -> Self {
        LogFilter::from(LevelFilter::INFO)
    }
}

impl From<LevelFilter> for LogFilter {
    fn from(level: LevelFilter) -> Self {
        LogFilter { level, parts: Vec::new() }
    }
}

impl LogFilter {
    /// For `tracing`.
    pub fn targets(&self) -> Targets {
        Targets::new().with_default(self.level).with_targets(self.parts.iter().cloned())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.level)?;
        self.parts.iter().try_for_each(|(part, level)| write!(out, ",{part}={level}"))
    }
}

/// A text that is no filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadFilter {
    /// A word that is no level.
    #[error("{word:?} is not one of error, warn, info, debug, trace{meant}")]
    Level {
        /// The word.
        word: String,
        /// What was meant, as an addition to the sentence; or nothing.
        meant: String,
    },
    /// A part that nobody logs as.
    #[error("{0:?} is no part of Podlane; parts are named as in the log, such as podlane::mirror=debug")]
    Part(String),
    /// Several levels for all parts.
    #[error("{0:?} says twice what is logged of all parts; leave one out")]
    Twice(String),
    /// Too many parts.
    #[error("at most {MAX_PARTS} parts can be named")]
    TooMany,
}

fn level(word: &str) -> Result<LevelFilter, BadFilter> {
    if let Some((_, level)) = LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)) {
        return Ok(*level);
    }
    let meant = nearest(word, &LEVELS.map(|(known, _)| known));
    let meant = meant.map(|known| format!("; did you mean {known:?}?")).unwrap_or_default();
    Err(BadFilter::Level { word: word.to_owned(), meant })
}

fn is_part(name: &str) -> bool {
    ROOTS.iter().any(|root| name.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

impl FromStr for LogFilter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        let (mut all, mut parts) = (None, Vec::new());
        for word in text.split(',').map(str::trim) {
            let Some((part, word)) = word.split_once('=') else {
                if all.replace(level(word)?).is_some() {
                    return Err(BadFilter::Twice(text.to_owned()));
                }
                continue;
            };
            if !is_part(part) {
                return Err(BadFilter::Part(part.to_owned()));
            }
            if parts.len() == MAX_PARTS {
                return Err(BadFilter::TooMany);
            }
            parts.push((part.to_owned(), level(word)?));
        }
        Ok(LogFilter { level: all.unwrap_or(LevelFilter::INFO), parts })
    }
}
