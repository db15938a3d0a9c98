//! The daemon's side of a capture: a thread that reads what workers and programs record and tells it to the client.
//!
//! The daemon's loop starts it, and ends the capture when the thread has ended: because the client has gone, however it went,
//! or takes nothing any more. The thread waits only for its client; while it does, records find no room and are counted as
//! lost, and packets go their way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podlane_dataplane::afxdp::clock;
use podlane_dataplane::table::Publisher;
use podlane_dataplane::tap::{Direction, Record, Tap};
use podlane_dataplane::{PortId, limits};
use serde_json::json;

use super::wire::{Message, Packet, Seer};
use crate::bpf::{EventRings, Place, ProgramRecord, RECORD_BYTES, Records};
use crate::privileges;

/// How often the rings are looked into. They hold what comes in several times as long, even at full rate.
const PERIOD: Duration = Duration::from_millis(5);
/// So many records in one look are a flood, and the next look follows at once. For fewer, one that follows at once would find
/// a handful, and the next one: the thread would take a CPU away from those who forward.
const FLOOD: usize = RECORDS / 4;
/// How often lost records are told, and the clocks compared.
const UPKEEP: Duration = Duration::from_secs(1);
/// How long a client may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the thread may take to come up: the daemon's loop stands still meanwhile, and tables that nobody vouches for are
/// not trusted after a second.
const COMING_UP: Duration = Duration::from_millis(400);
/// How long ending may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Memory for the records of the programs, all CPUs together, bytes; and of one CPU at least and at most.
const EVENTS_BYTES: usize = 32 << 20;
const CPU_BYTES: std::ops::RangeInclusive<usize> = 256 << 10..=4 << 20;
/// Records of one look into the rings at most, so that a flood does not fill the memory.
const RECORDS: usize = 16_384;
/// Bytes of them.
const RECORD_MEMORY: usize = 16 << 20;
/// Names of interfaces that are remembered.
const MAX_NAMES: usize = 4096;

/// A capture that runs.
#[derive(Debug)]
pub struct Session {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread needs.
#[derive(Debug)]
pub struct Parts {
    /// The client.
    pub stream: UnixStream,
    /// What the workers record.
    pub tap: Arc<Tap>,
    /// What the programs record.
    pub records: Records,
    /// The tables, for the interfaces of ports.
    pub publisher: Publisher,
}

/// The daemon's word whether everything is switched on.
pub type Go = Result<(), String>;

impl Session {
    /// Starts the thread and waits until it is ready to read. Send it the word to go on.
    ///
    /// # Errors
    /// A sentence.
    pub fn start(parts: Parts) -> Result<(Self, Sender<Go>), String> {
        let stop = Arc::new(AtomicBool::new(false));
        let (go, start) = mpsc::channel();
        let (report, ready) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("podlane-capture".to_owned())
            .spawn(move || run(parts, &stopped, &report, &start))
            .map_err(|error| format!("cannot start a thread for the capture: {error}"))?;
        let session = Session { stop, thread: Some(thread) };
        match ready.recv_timeout(COMING_UP) {
            Ok(Ok(())) => Ok((session, go)),
            Ok(Err(sentence)) => Err(sentence),
            Err(_) => Err("the capture's thread does not come up".to_owned()),
        }
    }

    /// Whether the client has gone.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells the client that it is over, and waits for the thread.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It looks for the word several times a second, and its last words have a limit.
            let _ = thread.join();
        }
    }
}

/// Answers a client that is not served.
pub fn refuse(stream: UnixStream, sentence: &str) {
    let mut stream = stream;
    // A client that has gone, or takes nothing, needs no answer.
    let _ = stream.write_all(format!("{}\n", json!({ "error": sentence })).as_bytes());
}

fn run(parts: Parts, stop: &AtomicBool, report: &Sender<Go>, start: &Receiver<Go>) {
    let gathered = RefCell::new(Gathered::default());
    let records = parts.records.clone();
    let mut rings = match open_rings(&records, &gathered, parts.tap.wish().snap_bytes) {
        Ok(rings) => rings,
        Err(sentence) => {
            refuse(parts.stream, &sentence);
            let _ = report.send(Err(sentence));
            return;
        }
    };
    let _ = report.send(Ok(()));
    match start.recv() {
        Ok(Ok(())) => {}
        Ok(Err(sentence)) => return refuse(parts.stream, &sentence),
        Err(_) => return,
    }
    // From here on it reads what is open, and writes to the client.
    privileges::renounce();
    let mut teller = Teller {
        client: Client { stream: parts.stream, stop },
        tap: parts.tap,
        records: parts.records,
        publisher: parts.publisher,
        names: BTreeMap::new(),
        lost: BTreeMap::new(),
        to_unix_ns: to_unix_ns(),
        out: Vec::new(),
    };
    if let Err(error) = teller.serve(&mut rings, &gathered) {
        tracing::debug!(%error, "the client of a capture has gone");
    }
}

/// The ring of each CPU for the programs' records.
fn open_rings<'a>(
    records: &Records,
    gathered: &'a RefCell<Gathered>,
    snap_bytes: u32,
) -> Result<EventRings<'a>, String> {
    let cpus = libbpf_rs::num_possible_cpus().unwrap_or(1).max(1);
    let bytes = (EVENTS_BYTES / cpus).clamp(*CPU_BYTES.start(), *CPU_BYTES.end());
    // A power of two, as the kernel wants it.
    let pages = (bytes / 4096 + 1).next_power_of_two() / 2;
    let reader = move |bytes: &[u8]| gathered.borrow_mut().add_program_record(bytes, snap_bytes);
    let rings = EventRings::open(records.events.as_fd(), pages, reader);
    rings.map_err(|error| format!("cannot open the kernel's ring for records: {error}"))
}

/// Nanoseconds from the start of `CLOCK_MONOTONIC` to 1970.
fn to_unix_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    unix.saturating_sub(clock::precise_ns())
}

/// A record in memory, on its way to the client.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// By which it is sorted.
    time_ns: u64,
    record: Record,
    seer: Seer,
    gso_size: u32,
    start: usize,
    end: usize,
}

/// What one look into all rings has brought.
#[derive(Debug, Default)]
struct Gathered {
    records: Vec<Kept>,
    bytes: Vec<u8>,
    /// Records for which there was no memory.
    dropped: u64,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.records.len() >= RECORDS || self.bytes.len() >= RECORD_MEMORY
    }

    fn keep(&mut self, record: Record, seer: Seer, gso_size: u32, start: usize) {
        let time_ns = match record.direction {
            Direction::Rx => record.first_ns,
            Direction::Tx => record.second_ns,
        };
        self.records.push(Kept { time_ns, record, seer, gso_size, start, end: self.bytes.len() });
    }

    fn add_worker_records(&mut self, tap: &Tap) {
        for ring in tap.rings() {
            while !self.is_full() {
                let start = self.bytes.len();
                let Some(record) = ring.take(&mut self.bytes) else { break };
                self.keep(record, Seer::Worker, 0, start);
            }
        }
    }

    fn add_program_record(&mut self, bytes: &[u8], snap_bytes: u32) {
        /// Destination and source address, behind which a VLAN tag stands.
        const ADDRESSES: usize = 12;
        let (Some(mut of), Some(frame)) = (ProgramRecord::read(bytes), bytes.get(RECORD_BYTES..)) else { return };
        if self.bytes.len() >= 2 * RECORD_MEMORY || self.records.len() >= 8 * RECORDS {
            self.dropped += 1;
            return;
        }
        // The kernel pads what it hands over.
        let frame = &frame[..frame.len().min(of.record.frame_bytes.min(snap_bytes) as usize)];
        let start = self.bytes.len();
        match of.vlan {
            Some((kind, tag)) if frame.len() >= ADDRESSES => {
                self.bytes.extend_from_slice(&frame[..ADDRESSES]);
                self.bytes.extend_from_slice(&kind.to_be_bytes());
                self.bytes.extend_from_slice(&tag.to_be_bytes());
                self.bytes.extend_from_slice(&frame[ADDRESSES..]);
                of.record.frame_bytes += 4;
            }
            _ => self.bytes.extend_from_slice(frame),
        }
        let seer = match of.place {
            Place::Xdp => Seer::Xdp,
            Place::Tc => Seer::Tc,
        };
        self.keep(of.record, seer, of.gso_size, start);
    }

    /// Keeps only what is later than `until_ns`, which may be in front of something that is still to come.
    fn forget(&mut self, until_ns: u64) {
        let later: Vec<Kept> = self.records.iter().copied().filter(|kept| kept.time_ns > until_ns).collect();
        let mut bytes = Vec::new();
        self.records.clear();
        for kept in later {
            let start = bytes.len();
            bytes.extend_from_slice(&self.bytes[kept.start..kept.end]);
            self.records.push(Kept { start, end: bytes.len(), ..kept });
        }
        self.bytes.clear();
        self.bytes.append(&mut bytes);
    }
}

/// The client's end. Writing waits until it takes something.
struct Client<'a> {
    stream: UnixStream,
    stop: &'a AtomicBool,
}

impl Client<'_> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        let mut deadline = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    rest = &rest[count..];
                    deadline = Instant::now() + PATIENCE;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.load(Ordering::Relaxed) {
                        deadline = deadline.min(Instant::now() + LAST_WORDS);
                    }
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait(&[(self.stream.as_fd(), PollFlags::POLLOUT)], Duration::from_millis(100));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it has said that it is enough, or is gone.
    fn has_enough(&mut self) -> bool {
        let mut byte = [0; 64];
        match self.stream.read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], timeout: Duration) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO));
}

struct Teller<'a> {
    client: Client<'a>,
    tap: Arc<Tap>,
    records: Records,
    publisher: Publisher,
    names: BTreeMap<u32, String>,
    lost: BTreeMap<u32, u64>,
    to_unix_ns: u64,
    out: Vec<u8>,
}

impl Teller<'_> {
    fn serve(&mut self, rings: &mut EventRings<'_>, gathered: &RefCell<Gathered>) -> io::Result<()> {
        self.client.stream.set_nonblocking(true)?;
        self.client.send(format!("{}\n", json!({ "capturing": true })).as_bytes())?;
        let mut last_upkeep = Instant::now();
        loop {
            let enough = self.client.has_enough();
            let stopped = self.client.stop.load(Ordering::Relaxed);
            let now_ns = clock::precise_ns();
            let told = self.tell(rings, gathered, if enough || stopped { u64::MAX } else { now_ns })?;
            if enough || stopped {
                return self.end(gathered, if enough { "asked to end" } else { "the daemon stops" });
            }
            if last_upkeep.elapsed() >= UPKEEP {
                last_upkeep = Instant::now();
                self.to_unix_ns = to_unix_ns();
                self.tell_lost(gathered)?;
            }
            if told < FLOOD {
                wait(&[(self.client.stream.as_fd(), PollFlags::POLLIN)], PERIOD);
            }
        }
    }

    /// Looks into all rings and tells what was recorded until `until_ns`, in the order of time. Returns how much that was.
    fn tell(&mut self, rings: &mut EventRings<'_>, gathered: &RefCell<Gathered>, until_ns: u64) -> io::Result<usize> {
        gathered.borrow_mut().add_worker_records(&self.tap);
        rings.read()?;
        let mut gathered = gathered.borrow_mut();
        gathered.records.sort_by_key(|kept| kept.time_ns);
        let now = gathered.records.partition_point(|kept| kept.time_ns <= until_ns);
        for kept in &gathered.records[..now] {
            self.put(kept, &gathered.bytes);
            if self.out.len() >= 1 << 18 {
                self.flush()?;
            }
        }
        gathered.forget(until_ns);
        self.flush()?;
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        let sent = self.client.send(&out);
        out.clear();
        self.out = out;
        sent
    }

    fn put(&mut self, kept: &Kept, bytes: &[u8]) {
        use podlane_dataplane::tap::Outcome;
        let Record { ifindex, outcome, .. } = kept.record;
        self.introduce(ifindex);
        match outcome {
            Outcome::Forwarded { to: other, .. } | Outcome::Sent { from: other } => self.introduce(other),
            _ => {}
        }
        let unix = |ns: u64| ns.saturating_add(self.to_unix_ns);
        Message::Packet(Packet {
            times_ns: [unix(kept.record.first_ns), unix(kept.record.second_ns)],
            id: kept.record.packet,
            ifindex,
            frame_bytes: kept.record.frame_bytes,
            gso_size: kept.gso_size,
            direction: kept.record.direction,
            outcome,
            seer: kept.seer,
            bytes: &bytes[kept.start..kept.end],
        })
        .write(&mut self.out);
    }

    /// Tells an interface's name before the first packet that mentions it.
    fn introduce(&mut self, ifindex: u32) {
        if ifindex == 0 || self.names.contains_key(&ifindex) || self.names.len() >= MAX_NAMES {
            return;
        }
        let name = nix::net::if_::if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("interface {ifindex}"));
        Message::Interface { ifindex, name: &name }.write(&mut self.out);
        self.names.insert(ifindex, name);
    }

    /// Tells which interfaces have lost more records than was told last.
    fn tell_lost(&mut self, gathered: &RefCell<Gathered>) -> io::Result<()> {
        let by_programs = self.records.lost().unwrap_or_default();
        let tables = self.publisher.current();
        let mut lost: BTreeMap<u32, u64> = BTreeMap::new();
        for (port, by_program) in by_programs.iter().enumerate() {
            let id = PortId(port as u16);
            let by_workers = if port < limits::MAX_PORTS { self.tap.lost(id) } else { 0 };
            let ifindex = tables.ports.get(id).map_or(0, |port| port.ifindex);
            *lost.entry(ifindex).or_default() += by_program + by_workers;
        }
        *lost.entry(0).or_default() += gathered.borrow().dropped;
        for (ifindex, records) in lost {
            if records > self.lost.get(&ifindex).copied().unwrap_or(0) {
                self.introduce(ifindex);
                Message::Lost { ifindex, records }.write(&mut self.out);
                self.lost.insert(ifindex, records);
            }
        }
        self.flush()
    }

    fn end(&mut self, gathered: &RefCell<Gathered>, why: &str) -> io::Result<()> {
        self.tell_lost(gathered)?;
        Message::End(why).write(&mut self.out);
        self.flush()
    }
}
