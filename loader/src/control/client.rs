//! The asking side: one request, one answer, and a sentence for everything that can be in the way.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::Value;

use super::protocol::{PortPath, Request};
use super::socket::{open_stream, peer};
use crate::reload::Outcome;
use crate::status::{SCHEMA, Status};
use crate::trace::{Question, Trace};

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a neighbour may take to say its MAC address.
pub const RESOLVE_TIME: Duration = Duration::from_millis(1000);
/// How long until it is asked for again.
const RESOLVE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of the longest answer that is read. The status of the most ports has about 2 MiB.
const MAX_ANSWER: u64 = 64 << 20;

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no podlane instance \"{instance}\" answers at {path}: is the service running? (systemctl status podlane){others}", path = .path.display())]
    NotRunning {
        /// The instance asked for.
        instance: String,
        /// Its socket.
        path: PathBuf,
        /// Instances that there are, as an addition to the sentence; or nothing.
        others: String,
    },
    /// The socket belongs to root.
    #[error("may not use {path}, which belongs to root: run this as root", path = .path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens and says nothing.
    #[error("podlane instance \"{instance}\"{process} has not answered within {seconds} s: it may be stopped or stuck", seconds = .patience.as_secs_f32())]
    Silent {
        /// The instance asked for.
        instance: String,
        /// Its process, as an addition to the sentence; or nothing.
        process: String,
        /// How long it had.
        patience: Duration,
    },
    /// It refused.
    #[error("podlane instance \"{instance}\" says: {sentence}")]
    Refused {
        /// The instance asked for.
        instance: String,
        /// Its sentence.
        sentence: String,
    },
    /// It said something that this version does not understand.
    #[error(
        "podlane instance \"{instance}\" gave an answer that this version cannot read ({what}); use the podlane of its version"
    )]
    Garbled {
        /// The instance asked for.
        instance: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// Anything else.
    #[error("cannot ask at {path}: {error}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Asks an instance for its status. Returns the answer as it was and as it was understood.
///
/// # Errors
/// [`AskError`], also if the answer is of another schema.
pub fn ask_status(instance: &str, patience: Duration) -> Result<(String, Status), AskError> {
    let answer = ask(instance, &super::socket_path(instance), Request::Status, patience)?;
    let status = understand(instance, &answer)?;
    Ok((answer, status))
}

/// Has an instance change the path of ports. Returns the answer as it was and as it was understood.
///
/// # Errors
/// [`AskError`], also if the daemon refuses.
pub fn ask_path(
    instance: &str,
    path: &str,
    ports: &[String],
    patience: Duration,
) -> Result<(String, Vec<PortPath>), AskError> {
    let request = Request::Path { path: path.to_owned(), ports: ports.to_vec() };
    let answer = ask(instance, &super::socket_path(instance), request, patience)?;
    let garbled =
        |error: serde_json::Error| AskError::Garbled { instance: instance.to_owned(), what: error.to_string() };
    let value: Value = serde_json::from_str(&answer).map_err(garbled)?;
    let ports = serde_json::from_value(value.get("ports").cloned().unwrap_or_default()).map_err(garbled)?;
    Ok((answer, ports))
}

/// Has an instance read its configuration again, or only say what would become of that. Returns the answer as it was and as
/// it was understood.
///
/// # Errors
/// [`AskError`]. A configuration that is refused is none: the outcome says so.
pub fn ask_reload(instance: &str, only_check: bool, patience: Duration) -> Result<(String, Outcome), AskError> {
    let answer = ask(instance, &super::socket_path(instance), Request::Reload { only_check }, patience)?;
    let garbled =
        |error: serde_json::Error| AskError::Garbled { instance: instance.to_owned(), what: error.to_string() };
    let outcome = serde_json::from_str(&answer).map_err(garbled)?;
    Ok((answer, outcome))
}

/// Asks an instance what becomes of a packet. Returns the answer as it was and as it was understood. An end that the node has
/// not talked to yet is given [`RESOLVE_TIME`] to answer ARP or neighbour discovery.
///
/// # Errors
/// [`AskError`], also if the daemon does not know an end of the question.
pub fn ask_trace(instance: &str, question: &Question, patience: Duration) -> Result<(String, Trace), AskError> {
    let garbled =
        |error: serde_json::Error| AskError::Garbled { instance: instance.to_owned(), what: error.to_string() };
    let deadline = Instant::now() + RESOLVE_TIME;
    loop {
        let question = Question { may_resolve: Instant::now() < deadline, ..question.clone() };
        let answer = ask(instance, &super::socket_path(instance), Request::Trace(question), patience)?;
        let value: Value = serde_json::from_str(&answer).map_err(garbled)?;
        if value.get("resolving").is_none() {
            return Ok((answer, serde_json::from_value(value).map_err(garbled)?));
        }
        std::thread::sleep(RESOLVE_PAUSE);
    }
}

/// Reads a status of this version's schema.
pub(crate) fn understand(instance: &str, answer: &str) -> Result<Status, AskError> {
    let garbled = |what: String| AskError::Garbled { instance: instance.to_owned(), what };
    let value: Value = serde_json::from_str(answer).map_err(|error| garbled(error.to_string()))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(other) => return Err(garbled(format!("schema {other} instead of {SCHEMA}"))),
        None => return Err(garbled("it has no schema".to_owned())),
    }
    serde_json::from_value(value).map_err(|error| garbled(error.to_string()))
}

/// Asks at a socket and returns the line of the answer.
///
/// # Errors
/// [`AskError`], also if the answer is a refusal.
pub fn ask(instance: &str, path: &Path, request: Request, patience: Duration) -> Result<String, AskError> {
    let deadline = Instant::now() + patience;
    let stream = connect(instance, path, deadline, patience)?;
    let pid = peer(&stream);
    let bytes = exchange(stream, request, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => silent(instance, pid, patience),
        _ => AskError::Broken { path: path.to_owned(), error },
    })?;
    let garbled = |what: &str| AskError::Garbled { instance: instance.to_owned(), what: what.to_owned() };
    let text = String::from_utf8(bytes).map_err(|_| garbled("it is not text"))?;
    let Some(line) = text.strip_suffix('\n') else { return Err(garbled("it ends too early")) };
    let refusal = serde_json::from_str::<Value>(line).ok();
    match refusal.as_ref().and_then(|value| value.get("error")).and_then(Value::as_str) {
        Some(sentence) => Err(AskError::Refused { instance: instance.to_owned(), sentence: sentence.to_owned() }),
        None => Ok(line.to_owned()),
    }
}

fn silent(instance: &str, pid: Option<i32>, patience: Duration) -> AskError {
    let process = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    AskError::Silent { instance: instance.to_owned(), process, patience }
}

/// Connects to an instance, for what is more than a question and its answer. The stream is non-blocking.
///
/// # Errors
/// [`AskError`].
pub fn open(instance: &str, path: &Path, patience: Duration) -> Result<UnixStream, AskError> {
    connect(instance, path, Instant::now() + patience, patience)
}

/// Connects, waiting while the listener's queue is full.
fn connect(instance: &str, path: &Path, deadline: Instant, patience: Duration) -> Result<UnixStream, AskError> {
    loop {
        let error = match open_stream(path) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        return Err(match error {
            Errno::EAGAIN if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Errno::EAGAIN => silent(instance, None, patience),
            Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR => {
                AskError::NotRunning { instance: instance.to_owned(), path: path.to_owned(), others: others(instance) }
            }
            Errno::EACCES | Errno::EPERM => AskError::Denied { path: path.to_owned() },
            error => AskError::Broken { path: path.to_owned(), error: error.into() },
        });
    }
}

/// Names of the instances that have a socket, so that a person who forgot `--instance` sees them.
fn others(instance: &str) -> String {
    let files = std::fs::read_dir(super::run_directory()).into_iter().flatten().flatten();
    let mut names: Vec<_> = files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .filter(|name| name != instance)
        .collect();
    names.sort();
    if names.is_empty() { String::new() } else { format!("; there are sockets of: {}", names.join(", ")) }
}

/// Sends the request and reads to the end of the stream.
fn exchange(mut stream: UnixStream, request: Request, deadline: Instant) -> io::Result<Vec<u8>> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or_else(timed_out);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(request.line().as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1 << 16];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is longer than 64 MiB"));
        }
    }
}
