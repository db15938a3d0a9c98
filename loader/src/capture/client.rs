//! The asking side of a capture: reads what the daemon tells until it is enough.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Question;
use super::command::MisuseError;
use super::wire::{self, Message, Packet};
use crate::control::{self, AskError, PATIENCE, Request};

/// How often is looked whether somebody has asked to end.
const PERIOD: Duration = Duration::from_millis(100);
/// How long the daemon may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Bytes of the daemon's first line at most.
const MAX_LINE: usize = 1 << 16;

/// A capture has failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The daemon does not answer, or refuses.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It went away in the middle.
    #[error("the daemon has ended the connection; the log of podlane may say why")]
    Gone,
    /// Reading from it.
    #[error("reading from the daemon: {0}")]
    Read(io::Error),
    /// It says something else.
    #[error(transparent)]
    Garbled(#[from] wire::Garbled),
    /// The file.
    #[error("writing the capture: {0}")]
    Write(io::Error),
    /// It asks for what cannot be.
    #[error(transparent)]
    Misuse(#[from] MisuseError),
    /// Catching signals.
    #[error("catching signals: {0}")]
    Signals(io::Error),
}

/// Interfaces by number.
pub type Names = BTreeMap<u32, String>;

/// The name of an interface.
pub fn name_of(names: &Names, ifindex: u32) -> String {
    names.get(&ifindex).cloned().unwrap_or_else(|| "an interface that is gone".to_owned())
}

/// Where packets go.
pub trait Sink {
    /// A packet. Breaks when it is enough; what comes then is not wanted any more.
    ///
    /// # Errors
    /// Writing it fails.
    fn packet(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<ControlFlow<()>>;

    /// So many records of an interface are lost since the start.
    ///
    /// # Errors
    /// Writing fails.
    fn lost(&mut self, ifindex: u32, records: u64, names: &Names) -> io::Result<()>;

    /// Called when everything that has come is handed over, and several times a second. Breaks when it is enough.
    ///
    /// # Errors
    /// Writing fails.
    fn pause(&mut self, names: &Names) -> io::Result<ControlFlow<()>>;
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Totals {
    /// Interfaces by number.
    pub names: Names,
    /// Records lost, by interface; 0 stands for those that are no port any more.
    pub lost: BTreeMap<u32, u64>,
    /// The daemon ended it.
    pub ended_by_daemon: bool,
}

/// Says when SIGINT or SIGTERM has come. A second one ends the process at once.
///
/// # Errors
/// The kernel's.
pub fn interruption() -> Result<Arc<AtomicBool>, CaptureError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let again = Arc::clone(&interrupted);
        signal_hook::flag::register_conditional_shutdown(signal, 1, again).map_err(CaptureError::Signals)?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(CaptureError::Signals)?;
    }
    Ok(interrupted)
}

/// A capture that has begun.
#[derive(Debug)]
pub struct Capture {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Capture {
    /// Asks an instance for a capture and waits until it has begun.
    ///
    /// # Errors
    /// [`CaptureError::Ask`].
    pub fn begin(instance: &str, question: &Question) -> Result<Self, CaptureError> {
        let path = control::socket_path(instance);
        let mut stream = control::open(instance, &path, PATIENCE)?;
        let broken = |error| AskError::Broken { path: path.clone(), error };
        stream.set_nonblocking(false).map_err(broken)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
        stream.write_all(Request::Capture(question.clone()).line().as_bytes()).map_err(broken)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        let mut buffer = Vec::new();
        let line = loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                break buffer.drain(..=end).collect::<Vec<u8>>();
            }
            let mut read = [0; 4096];
            match stream.read(&mut read) {
                Ok(0) => return Err(CaptureError::Gone),
                Ok(count) => buffer.extend_from_slice(&read[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(AskError::Silent {
                        instance: instance.to_owned(),
                        process: String::new(),
                        patience: PATIENCE,
                    }
                    .into());
                }
                Err(error) => return Err(broken(error).into()),
            }
            if buffer.len() > MAX_LINE {
                return Err(wire::Garbled.into());
            }
        };
        let answer: Value = serde_json::from_slice(&line).map_err(|_| wire::Garbled)?;
        match answer.get("error").and_then(Value::as_str) {
            Some(sentence) => {
                Err(AskError::Refused { instance: instance.to_owned(), sentence: sentence.to_owned() }.into())
            }
            None => Ok(Capture { stream, buffer }),
        }
    }

    /// Hands packets to `sink` until it has enough, `interrupted` is set, or the daemon ends.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn run(mut self, sink: &mut impl Sink, interrupted: &AtomicBool) -> Result<Totals, CaptureError> {
        let mut totals = Totals::default();
        let mut read = vec![0; 1 << 18];
        let mut asked_to_end = None;
        self.stream.set_read_timeout(Some(PERIOD)).map_err(CaptureError::Read)?;
        loop {
            if asked_to_end.is_none() && interrupted.load(Ordering::Relaxed) {
                asked_to_end = Some(self.ask_to_end());
            }
            if asked_to_end.is_some_and(|asked: Instant| asked.elapsed() > LAST_WORDS) {
                return Ok(totals);
            }
            match self.stream.read(&mut read) {
                Ok(0) if asked_to_end.is_some() => return Ok(totals),
                Ok(0) => return Err(CaptureError::Gone),
                Ok(count) => self.buffer.extend_from_slice(&read[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(CaptureError::Read(error)),
            }
            match self.hand_over(sink, &mut totals)? {
                Handed::Ended => {
                    totals.ended_by_daemon = asked_to_end.is_none();
                    return Ok(totals);
                }
                Handed::Enough if asked_to_end.is_none() => asked_to_end = Some(self.ask_to_end()),
                _ => {}
            }
        }
    }

    /// The daemon sends what it still has, and then its last words.
    fn ask_to_end(&self) -> Instant {
        // Should the connection be gone, the next read tells.
        let _ = self.stream.shutdown(Shutdown::Write);
        Instant::now()
    }

    /// Everything in the buffer that is whole.
    fn hand_over(&mut self, sink: &mut impl Sink, totals: &mut Totals) -> Result<Handed, CaptureError> {
        let mut taken = 0;
        let (mut ended, mut enough) = (false, false);
        while let Some((message, bytes)) = wire::read(&self.buffer[taken..])? {
            taken += bytes;
            match message {
                Message::Interface { ifindex, name } => drop(totals.names.insert(ifindex, name.to_owned())),
                Message::Packet(packet) => {
                    let flow = sink.packet(&packet, &totals.names).map_err(CaptureError::Write)?;
                    enough |= flow.is_break();
                }
                Message::Lost { ifindex, records } => {
                    totals.lost.insert(ifindex, records);
                    sink.lost(ifindex, records, &totals.names).map_err(CaptureError::Write)?;
                }
                Message::End(_) => ended = true,
            }
        }
        self.buffer.drain(..taken);
        enough |= sink.pause(&totals.names).map_err(CaptureError::Write)?.is_break();
        Ok(match (ended, enough) {
            (true, _) => Handed::Ended,
            (_, true) => Handed::Enough,
            _ => Handed::All,
        })
    }
}

/// What came out of handing over.
enum Handed {
    All,
    Enough,
    Ended,
}
