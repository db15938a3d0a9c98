//! The archive: a compressed tar file that is written part by part, with a limit for each part and for the whole, and a list
//! of everything that was tried.

use std::fmt::Write as _;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use crate::log;

/// Bytes of one part; the rest is cut off, and the list says so.
pub const MAX_PART: usize = 4 << 20;
/// Bytes of all parts together, before compression; what comes later is left out, and the list says so.
pub const MAX_WHOLE: usize = 32 << 20;
/// Bytes that the list itself may have; kept free for it.
const LIST: usize = 1 << 20;
/// The name of the list.
pub const LIST_NAME: &str = "MANIFEST";

/// What came of a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is there as a whole.
    Whole,
    /// Something is there, and something is wrong with it.
    Partial(String),
    /// Nothing is there.
    Failed(String),
}

impl Outcome {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Whole => "ok",
            Outcome::Partial(_) => "partial",
            Outcome::Failed(_) => "failed",
        }
    }

    /// What is wrong.
    pub fn why(&self) -> &str {
        match self {
            Outcome::Whole => "",
            Outcome::Partial(why) | Outcome::Failed(why) => why,
        }
    }
}

/// A line of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The file in the archive.
    pub name: String,
    /// Where it comes from: a file, a command, a question to the daemon.
    pub source: String,
    /// Bytes in the archive.
    pub bytes: usize,
    /// What came of it.
    pub outcome: Outcome,
}

/// An archive in the making.
pub struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
    directory: String,
    time: u64,
    left: usize,
    entries: Vec<Entry>,
}

impl<W: Write> Archive<W> {
    /// Begins one whose files lie in `directory` and are of the time `time` (seconds since 1970).
    pub fn new(out: W, directory: &str, time: u64) -> Self {
        let tar = Builder::new(GzEncoder::new(out, Compression::default()));
        Archive { tar, directory: directory.to_owned(), time, left: MAX_WHOLE - LIST, entries: Vec::new() }
    }

    /// What was tried so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds a part, or that there is none.
    ///
    /// # Errors
    /// If the archive cannot be written.
    pub fn add(&mut self, name: &str, source: &str, content: Result<Content, String>) -> io::Result<()> {
        let mut outcome = match &content {
            Ok(Content { wrong: None, .. }) => Outcome::Whole,
            Ok(Content { wrong: Some(why), .. }) => Outcome::Partial(why.clone()),
            Err(why) => Outcome::Failed(why.clone()),
        };
        let mut bytes = content.map(|content| content.bytes).unwrap_or_default();
        if bytes.len() > self.left {
            bytes.clear();
            outcome = Outcome::Failed(format!("left out: the whole archive has at most {} MiB", MAX_WHOLE >> 20));
        } else if bytes.len() > MAX_PART {
            bytes.truncate(MAX_PART);
            outcome = Outcome::Partial(format!("cut off after {} MiB", MAX_PART >> 20));
        }
        if !matches!(outcome, Outcome::Failed(_)) {
            self.put(name, &bytes)?;
            self.left -= bytes.len();
        }
        let (name, source) = (name.to_owned(), source.to_owned());
        self.entries.push(Entry { name, source, bytes: bytes.len(), outcome });
        Ok(())
    }

    /// Adds the list, with `head` above it, and ends the archive.
    ///
    /// # Errors
    /// If the archive cannot be written.
    pub fn finish(mut self, head: &str) -> io::Result<(W, Vec<Entry>)> {
        let mut list = format!("{head}\n{}", list(&self.entries));
        if list.len() > LIST {
            let end = (0..=LIST).rev().find(|&end| list.is_char_boundary(end)).unwrap_or(0);
            list.truncate(end);
        }
        self.put(LIST_NAME, list.as_bytes())?;
        let out = self.tar.into_inner()?.finish()?;
        Ok((out, self.entries))
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.tar.append_data(&mut header, format!("{}/{name}", self.directory), bytes)
    }
}

/// Something that was collected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// It.
    pub bytes: Vec<u8>,
    /// What is wrong with it, if anything.
    pub wrong: Option<String>,
}

impl<T: Into<Vec<u8>>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Content { bytes: bytes.into(), wrong: None }
    }
}

/// The list as text: one line for each part.
fn list(entries: &[Entry]) -> String {
    let width = |of: fn(&Entry) -> usize| entries.iter().map(of).max().unwrap_or(0).max(6);
    let (names, sources) = (width(|entry| entry.name.len()), width(|entry| entry.source.len()).min(60));
    let mut text = format!("{:<names$}  {:>8}  {:<7}  {:<sources$}  WHY\n", "FILE", "BYTES", "STATE", "SOURCE");
    for Entry { name, source, bytes, outcome } in entries {
        let line = format!(
            "{name:<names$}  {bytes:>8}  {:<7}  {source:<sources$}  {}",
            outcome.word(),
            log::clean(&outcome.why().replace('\n', "; "), log::MAX_FIELD)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
