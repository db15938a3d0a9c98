//! `podlane check` for people.

use std::fmt::Write;

use super::{Level, Report};
use crate::status::wrap;

impl Report {
    /// The lines as text, in colours if `coloured`, with a verdict at the end.
    pub fn render(&self, coloured: bool) -> String {
        let subject = self.checks.iter().map(|line| line.subject.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for line in &self.checks {
            let word = match line.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            let mut lines = wrap(&format!("{word:<5} {:<subject$}  ", line.subject), &line.found);
            if let Some(cure) = &line.cure {
                lines.extend(wrap(&format!("{:width$}-> ", "", width = subject + 8), cure));
            }
            if coloured && let Some(first) = lines.first_mut() {
                *first = format!("{}{word}\x1b[0m{}", colour(line.level), &first[word.len()..]);
            }
            for line in lines {
                let _ = writeln!(out, "{line}");
            }
        }
        let _ = writeln!(out, "\n{}", self.verdict());
        out
    }

    fn verdict(&self) -> String {
        let count = |level| self.checks.iter().filter(|line| line.level == level).count();
        let things = |count, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        match (count(Level::Fail), count(Level::Warn)) {
            (0, 0) => "Podlane can run here.".to_owned(),
            (0, warnings) => format!("Podlane can run here; {} above.", things(warnings, "warning")),
            (failures, warnings) => format!(
                "Podlane cannot run here yet: {} and {}.",
                things(failures, "failure"),
                things(warnings, "warning")
            ),
        }
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::Ok => "\x1b[32m",
        Level::Warn => "\x1b[33m",
        Level::Fail => "\x1b[31m",
    }
}
