//! Where lines go: stderr, or the journal's own socket. Whoever reads there may be slow or stuck; the daemon's thread, which
//! keeps the node's tables, waits for it for a moment and then goes on without the line.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Record;

/// How long a reader may take to make room for a line, milliseconds.
const PATIENCE_MS: u8 = 50;
/// The journal's own socket.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Names the stream that leads to the journal, as DEVICE:INODE (systemd.exec(5)).
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: an object in each line.
    Json,
    /// For systemd's journal: with fields over its own socket where stderr leads there, else with `<N>` in front.
    Journal,
}

impl Format {
    /// The words for them, and none for finding out.
    pub const WORDS: [(&'static str, Option<Format>); 4] = [
        ("auto", None),
        ("text", Some(Format::Text)),
        ("json", Some(Format::Json)),
        ("journal", Some(Format::Journal)),
    ];

    /// The words alone.
    pub fn words() -> [&'static str; 4] {
        Self::WORDS.map(|(word, _)| word)
    }
}

/// The place and the look.
#[derive(Debug)]
pub struct Sink {
    /// `None` where stderr cannot be used: the ring remembers the lines all the same.
    out: Option<File>,
    format: Format,
    coloured: bool,
    journal: Option<UnixDatagram>,
    /// Lines that nobody made room for since the last that was written.
    lost: u64,
}

impl Sink {
    /// Stderr of this process. Without a format, that of the journal where stderr leads there, else text.
    pub fn stderr(format: Option<Format>, coloured: bool) -> Self {
        let out = io::stderr().as_fd().try_clone_to_owned().map(File::from).ok();
        let stream = std::env::var(JOURNAL_STREAM).unwrap_or_default();
        Sink::new(out, format, coloured, &stream, Path::new(JOURNAL))
    }

    /// Like [`Sink::stderr`], of any file; `stream` is the value of `JOURNAL_STREAM`, `journal` the socket's path.
    pub fn new(out: Option<File>, format: Option<Format>, coloured: bool, stream: &str, journal: &Path) -> Self {
        let is_stream = |file: std::fs::Metadata| stream == format!("{}:{}", file.dev(), file.ino());
        let leads_there = out.as_ref().and_then(|out| out.metadata().ok()).is_some_and(is_stream);
        let format = format.unwrap_or(if leads_there { Format::Journal } else { Format::Text });
        let journal = (leads_there && format == Format::Journal).then(|| connect(journal).ok()).flatten();
        Sink { out, format, coloured, journal, lost: 0 }
    }

    /// How lines look.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes a line, unless nobody makes room for it.
    pub fn write(&mut self, record: &Record) {
        if let Some(journal) = &self.journal
            && journal.send(record.journal().as_bytes()).is_ok()
        {
            return;
        }
        let line = match self.format {
            Format::Text if self.coloured => record.coloured(),
            Format::Text => record.text(),
            Format::Json => record.json(),
            Format::Journal => record.prefixed(),
        };
        self.put(&line, record);
    }

    fn put(&mut self, line: &str, record: &Record) {
        if !self.has_room() {
            self.lost += 1;
            return;
        }
        let Some(out) = &mut self.out else { return };
        let lost = std::mem::take(&mut self.lost);
        let mut text = String::new();
        if lost > 0 {
            let note = Record {
                message: format!("{lost} lines of the log are lost: nobody read it"),
                level: tracing::Level::INFO,
                fields: Vec::new(),
                ..record.clone()
            };
            text = match self.format {
                Format::Text => note.text(),
                Format::Json => note.json(),
                Format::Journal => note.prefixed(),
            } + "\n";
        }
        text.push_str(line);
        text.push('\n');
        // A log that cannot be written has nowhere to say so.
        let _ = out.write_all(text.as_bytes());
    }

    /// A pipe is said to have room when a page fits. Once a line was lost, the next ones do not wait again.
    fn has_room(&self) -> bool {
        let patience = if self.lost > 0 { PollTimeout::ZERO } else { PollTimeout::from(PATIENCE_MS) };
        let Some(out) = &self.out else { return true };
        let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        loop {
            match poll(&mut fds, patience) {
                Err(nix::Error::EINTR) => {}
                Ok(0) => return false,
                _ => return true,
            }
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
