//! The daemon's log: lines for people, for programs or for the journal, each recurring complaint held back, the last ones
//! remembered.
//!
//! The rest of the loader says what it has to say with `tracing`'s macros; here is the one subscriber. An event becomes a
//! [`Record`] of clean text (names of interfaces and errors of others cannot break a line), the [`Limiter`] decides whether
//! this complaint is said or counted, the [`Ring`] remembers it for `podlane bugreport`, and the [`Sink`] writes it without
//! ever waiting long. Packets are never logged: the engine's crate has no logging at all.

mod filter;
mod limit;
mod record;
mod ring;
mod sink;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

pub use filter::{BadFilter, LEVELS, LogFilter};
pub use limit::{Limiter, MAX_KEYS, PERIOD, Verdict};
pub use record::{MAX_FIELD, MAX_FIELDS, MAX_MESSAGE, Record, clean};
pub use ring::{MAX_BYTES, MAX_LINES, Recent, Ring};
pub use sink::{Format, Sink};

/// The environment variable that says what is logged if the command line does not.
pub const LEVEL_VARIABLE: &str = "PODLANE_LOG";
/// libbpf speaks only while programs are loaded, and what it says of a refused one has many lines: it is not held back.
const UNLIMITED: &str = "libbpf";
/// Fields that say whom a complaint is about; others, such as `error`, may differ from one to the next.
const SUBJECTS: [&str; 8] = ["port", "interface", "worker", "pod", "reason", "address", "mac", "path"];

/// The log of this process.
static LOG: OnceLock<Log> = OnceLock::new();

/// What an event passes through.
#[derive(Debug)]
struct Log {
    hasher: RandomState,
    parts: Mutex<Parts>,
    /// What changes the filter; set once the subscriber is.
    filter: OnceLock<reload::Handle<Targets, Registry>>,
    coloured: bool,
}

#[derive(Debug)]
struct Parts {
    limiter: Limiter,
    ring: Ring,
    sink: Sink,
}

/// Starts logging to stderr, for the whole process. Only the first call has an effect.
pub fn start(filter: &LogFilter, format: Option<Format>, coloured: bool) {
    if LOG.set(Log::new(Sink::stderr(format, coloured), coloured)).is_err() {
        return;
    }
    let (filter, handle) = reload::Layer::new(filter.targets());
    let layer = LOG.get().map(|log| ToLog(log).with_filter(filter));
    // A second subscriber is refused; that only happens where tests bring their own.
    if tracing_subscriber::registry().with(layer).try_init().is_ok()
        && let Some(log) = LOG.get()
    {
        let _ = log.filter.set(handle);
    }
}

/// Has what is logged from now on, and how it looks, be different.
pub fn change(filter: &LogFilter, format: Option<Format>) {
    let Some(log) = LOG.get() else { return };
    log.parts().sink = Sink::stderr(format, log.coloured);
    // Without a handle the subscriber is somebody else's.
    if let Some(Err(error)) = log.filter.get().map(|handle| handle.reload(filter.targets())) {
        tracing::warn!(%error, "changing what is logged");
    }
}

/// Says what has been held back for long enough; to be called about once a second.
pub fn tick() {
    if let Some(log) = LOG.get() {
        log.parts().say_due(Instant::now());
    }
}

/// Says everything that is held back: the process is about to end.
pub fn finish() {
    if let Some(log) = LOG.get() {
        let mut parts = log.parts();
        let rest = parts.limiter.finish();
        rest.iter().for_each(|record| parts.say(record));
    }
}

/// The time, in UTC, as lines of the log have it: `2026-11-23T01:02:03.000004Z`.
pub fn now() -> String {
    record::now()
}

/// Whether the log of this process is for people, who then read plain sentences beside it.
pub fn is_for_people() -> bool {
    LOG.get().is_none_or(|log| log.parts().sink.format() == Format::Text)
}

/// The last lines.
pub fn recent() -> Recent {
    LOG.get().map(|log| log.parts().ring.recent()).unwrap_or_default()
}

impl Log {
    fn new(sink: Sink, coloured: bool) -> Self {
        let parts = Parts { limiter: Limiter::default(), ring: Ring::default(), sink };
        Log { hasher: RandomState::new(), parts: Mutex::new(parts), filter: OnceLock::new(), coloured }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // A panic while a line was written leaves nothing half done that the next line would stumble over.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: &Event<'_>, now: Instant) {
        let record = Record::of(event);
        let mut parts = self.parts();
        if *event.metadata().level() > Level::WARN || record.target == UNLIMITED {
            return parts.say(&record);
        }
        let site = self.hasher.hash_one(event.metadata().callsite());
        let what = self.hasher.hash_one(record.subject(&SUBJECTS));
        parts.say_due(now);
        if let Verdict::Say(record) = parts.limiter.judge((site, what), record, now) {
            parts.say(&record);
        }
    }
}

impl Parts {
    fn say(&mut self, record: &Record) {
        self.ring.push(record.text());
        self.sink.write(record);
    }

    fn say_due(&mut self, now: Instant) {
        let due = self.limiter.due(now);
        due.iter().for_each(|record| self.say(record));
    }
}

/// Brings events to the log.
struct ToLog(&'static Log);

impl<S: Subscriber> Layer<S> for ToLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.hear(event, Instant::now());
    }
}

#[cfg(test)]
mod tests;
