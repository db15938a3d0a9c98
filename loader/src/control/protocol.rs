//! What is said over the control socket.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use crate::capture;
use crate::status::Status;
use crate::tables::Table;
use crate::trace::{Question, Trace};

/// A question: `{"request":"status"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// How are you?
    Status,
    /// Change the path of ports: `{"request":"path","path":"kernel","ports":["veth0"]}`.
    Path {
        /// `af_xdp`, `kernel` or `auto`.
        path: String,
        /// Interfaces; none means all.
        ports: Vec<String>,
    },
    /// What becomes of a packet: `{"request":"trace","from":"10.244.1.2","to":"10.244.1.3"}` and the other members of
    /// [`Question`].
    Trace(Question),
    /// A page of a table: `{"request":"tables","table":"fib4","offset":0}`; see [`crate::tables::page`].
    Tables {
        /// Which.
        table: Table,
        /// Entries before the first that is wanted.
        offset: usize,
    },
    /// The last lines of the log.
    Log,
    /// Stop, and leave everything in place for a daemon that takes over: `{"request":"let_go","until_ns":1}`.
    LetGo {
        /// When whoever asks stops waiting, nanoseconds of the monotonic clock: a daemon that was stopped or stuck must not let
        /// go when nobody is there to take over any more. Without it, any time.
        until_ns: u64,
    },
    /// The configuration in force.
    Config,
    /// Read the configuration again: `{"request":"reload"}`, and with `"only_check":true` only say what would change.
    Reload {
        /// Change nothing.
        only_check: bool,
    },
    /// Tell packets as they come: `{"request":"capture"}` and the members of [`capture::Question`]. The answer is a line, and
    /// then [`capture::wire`], until the client closes its side.
    Capture(capture::Question),
}

/// The path that a port takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPath {
    /// The interface.
    pub name: String,
    /// `af_xdp` or `kernel`.
    pub path: String,
    /// Why.
    pub why: String,
}

/// A line that asks nothing that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not JSON, or without `request`.
    #[error("this is not a request; send one line such as {{\"request\":\"status\"}}")]
    Malformed,
    /// A request of another version.
    #[error("there is no request {0:?} in this version; there are {names}", names = Request::NAMES)]
    Unknown(String),
    /// Longer than a request may be.
    #[error("a request has at most {} bytes", super::MAX_REQUEST)]
    TooLong,
}

impl Request {
    /// All names, for messages.
    const NAMES: &'static str = "\"ping\", \"status\", \"path\", \"trace\", \"tables\", \"log\", \"config\", \"reload\", \"let_go\" and \"capture\"";

    /// The name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Request::Ping => "ping",
            Request::Status => "status",
            Request::Path { .. } => "path",
            Request::Trace(_) => "trace",
            Request::Tables { .. } => "tables",
            Request::Log => "log",
            Request::LetGo { .. } => "let_go",
            Request::Config => "config",
            Request::Reload { .. } => "reload",
            Request::Capture(_) => "capture",
        }
    }

    /// Reads one line. Members other than `request` are for later versions and ignored.
    pub fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let value: Value = serde_json::from_slice(line).map_err(|_| BadRequest::Malformed)?;
        match value.get("request").and_then(Value::as_str) {
            Some("ping") => Ok(Request::Ping),
            Some("status") => Ok(Request::Status),
            Some("path") => Self::parse_path(&value),
            Some("trace") => serde_json::from_value(value).map(Request::Trace).map_err(|_| BadRequest::Malformed),
            Some("tables") => Self::parse_tables(&value),
            Some("log") => Ok(Request::Log),
            Some("let_go") => {
                Ok(Request::LetGo { until_ns: value.get("until_ns").and_then(Value::as_u64).unwrap_or(u64::MAX) })
            }
            Some("config") => Ok(Request::Config),
            Some("reload") => match value.get("only_check").unwrap_or(&Value::Bool(false)) {
                Value::Bool(only_check) => Ok(Request::Reload { only_check: *only_check }),
                _ => Err(BadRequest::Malformed),
            },
            Some("capture") => serde_json::from_value(value).map(Request::Capture).map_err(|_| BadRequest::Malformed),
            Some(other) => Err(BadRequest::Unknown(other.to_owned())),
            None => Err(BadRequest::Malformed),
        }
    }

    fn parse_path(value: &Value) -> Result<Self, BadRequest> {
        let path = value.get("path").and_then(Value::as_str).ok_or(BadRequest::Malformed)?.to_owned();
        let ports = match value.get("ports") {
            None => Vec::new(),
            Some(ports) => serde_json::from_value(ports.clone()).map_err(|_| BadRequest::Malformed)?,
        };
        Ok(Request::Path { path, ports })
    }

    fn parse_tables(value: &Value) -> Result<Self, BadRequest> {
        let table = value.get("table").and_then(Value::as_str).and_then(Table::of).ok_or(BadRequest::Malformed)?;
        let offset = value.get("offset").map_or(Some(0), Value::as_u64).ok_or(BadRequest::Malformed)?;
        Ok(Request::Tables { table, offset: usize::try_from(offset).map_err(|_| BadRequest::Malformed)? })
    }

    fn with_name(&self, mut line: Value) -> Value {
        line["request"] = json!(self.name());
        line
    }

    /// The line that asks, with its end.
    pub fn line(&self) -> String {
        let line = match self {
            Request::Path { path, ports } => json!({ "request": self.name(), "path": path, "ports": ports }),
            Request::Trace(question) => self.with_name(json!(question)),
            Request::Capture(question) => self.with_name(json!(question)),
            Request::Tables { table, offset } => {
                json!({ "request": self.name(), "table": table.word(), "offset": offset })
            }
            Request::LetGo { until_ns } => json!({ "request": self.name(), "until_ns": until_ns }),
            Request::Reload { only_check } => json!({ "request": self.name(), "only_check": only_check }),
            _ => json!({ "request": self.name() }),
        };
        format!("{line}\n")
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// To [`Request::Ping`]: `{"pid":1}`.
    Pong {
        /// The daemon's process.
        pid: u32,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Path`]: `{"ports":[…]}`, the ports that were named or all, as they are now.
    Paths(Vec<PortPath>),
    /// To [`Request::Trace`].
    Trace(Box<Trace>),
    /// To [`Request::Trace`]: `{"resolving":true}`. The kernel was told to find out who has an address; ask again in a moment.
    Resolving,
    /// To [`Request::Tables`], [`Request::Config`], [`Request::Reload`] ([`crate::reload::Outcome`]), [`Request::Log`]
    /// (`{"lines":[…],"forgotten":0}`), and [`Request::LetGo`] (`{"pid":1}`, the process that is about to end; its control
    /// socket is the last thing that it gives up).
    Value(Value),
    /// A sentence: `{"error":"…"}`.
    Error(String),
}

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Response::Pong { pid } => json!({ "pid": pid }).serialize(serializer),
            Response::Status(status) => status.serialize(serializer),
            Response::Paths(ports) => json!({ "ports": ports }).serialize(serializer),
            Response::Trace(trace) => trace.serialize(serializer),
            Response::Resolving => json!({ "resolving": true }).serialize(serializer),
            Response::Value(value) => value.serialize(serializer),
            Response::Error(sentence) => json!({ "error": sentence }).serialize(serializer),
        }
    }
}

impl Response {
    /// The line that answers, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_else(|error| {
            json!({ "error": format!("the answer cannot be written: {error}") }).to_string().into_bytes()
        });
        line.push(b'\n');
        line
    }
}
