//! `podlane top`: who sends how much, which way it goes and what is lost, seen while it happens.
//!
//! It asks the daemon over the control socket for the same status that `podlane status` prints, every few seconds, and makes
//! rates of two answers ([`rates`]); nothing is counted for it. A thread asks and waits, so that keys are obeyed while a
//! daemon does not answer. [`app`] is what it knows and how it reacts, [`views`] and [`sheet`] are what it shows, [`view`] how
//! that is drawn; [`terminal`] is the only part that touches one. Where there is no terminal to draw on, the same sheets are
//! printed as text.

pub mod app;
pub mod rates;
pub mod sheet;
mod terminal;
pub mod view;
pub mod views;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use crate::control::{self, AskError};
use crate::status::Status;
use app::{App, Link};

pub use terminal::run;

/// What a person asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The daemon to ask.
    pub instance: String,
    /// Seconds between two samples.
    pub interval: f64,
    /// Only rows with these letters.
    pub filter: String,
    /// Whether colours may be used.
    pub is_coloured: bool,
    /// Columns of the text; `None`: as many as it needs, for programs that read it.
    pub width: Option<usize>,
}

/// `top` cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The daemon did not answer when it was asked first.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The terminal, or where the text goes.
    #[error("cannot draw: {0}; `podlane top --batch` prints text instead")]
    Terminal(io::Error),
    /// The text cannot be written.
    #[error("writing the answer: {0}")]
    Write(io::Error),
}

/// Prints `blocks` samples as text, 0 for no end. The first comes when there are two answers to compare. A daemon that goes
/// away later is waited for.
///
/// # Errors
/// If the daemon does not answer at first, or the text cannot be written. A reader that leaves is none.
pub fn print(options: &Options, blocks: u64, out: &mut impl Write) -> Result<(), TopError> {
    let mut app = App::new(&options.instance, options.interval, &options.filter);
    let (_, first) = control::ask_status(&options.instance, control::PATIENCE)?;
    app.sample(Ok(Box::new(first)));
    let interval = Duration::from_secs_f64(app.interval);
    let mut due = Instant::now() + interval;
    let mut printed = 0;
    while blocks == 0 || printed < blocks {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due = Instant::now() + interval;
        app.sample(ask(&options.instance));
        // The first answer of a daemon that has come back has nothing to be compared with.
        if app.link == Link::Up && app.rates.seconds.is_none() {
            continue;
        }
        let separator = if printed > 0 { "\n" } else { "" };
        let text = format!("{separator}{}", view::text(&app, options.width.unwrap_or(usize::MAX)));
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(TopError::Write)?,
        }
        printed += 1;
    }
    Ok(())
}

fn ask(instance: &str) -> Result<Box<Status>, String> {
    let answer = control::ask_status(instance, control::PATIENCE);
    answer.map(|(_, status)| Box::new(status)).map_err(|error| error.to_string())
}

/// A thread that asks the daemon; it ends when this is dropped, after the answer that it waits for.
struct Sampler {
    answers: Receiver<Result<Box<Status>, String>>,
    intervals: Sender<Duration>,
}

impl Sampler {
    fn start(instance: &str, interval: Duration) -> io::Result<Self> {
        // Whoever does not read is not asked for: one answer waits at most.
        let (told, answers) = channel::bounded(1);
        let (intervals, changes) = channel::unbounded();
        let instance = instance.to_owned();
        let sample = move || sample(&instance, interval, &told, &changes);
        std::thread::Builder::new().name("podlane-ask".to_owned()).spawn(sample)?;
        Ok(Sampler { answers, intervals })
    }
}

fn sample(
    instance: &str,
    mut interval: Duration,
    told: &Sender<Result<Box<Status>, String>>,
    changes: &Receiver<Duration>,
) {
    loop {
        let due = Instant::now() + interval;
        if told.send(ask(instance)).is_err() {
            return;
        }
        match changes.recv_deadline(due) {
            Ok(changed) => interval = changes.try_iter().last().unwrap_or(changed),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests;
