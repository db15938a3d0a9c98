//! A paced stream of numbered datagrams, and where exactly some of them are missing.
//!
//! [`super::udp`] asks whether everything arrives; this asks how much does not, when, and who lost it. A datagram begins with 32
//! bytes: "PLST", 4 of nothing, the flow (8), its number (8) and when it was sent (8, nanoseconds of the machine's monotonic
//! clock, which every namespace shares), all big-endian; the rest is the flow's content. The sender keeps to its times: what it
//! could not send in time because it was not running is skipped and counted, never sent in one large burst. The receiver's
//! buffer holds seconds of the stream, and what the kernel drops there is counted apart.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use serde_json::{Value, json};

use super::{StreamReceive, StreamSend, content, print, standard_input_closed};

const HEADER: usize = 32;
const MAGIC: &[u8; 4] = b"PLST";
/// A sender that was kept from running sends so many of what is due at once, and skips the others.
const CATCH_UP: u64 = 32;
/// Seconds of 10,000 datagrams a second; the kernel counts about 1 KiB for a small one.
const BUFFER: usize = 64 << 20;
/// The stream has ended when nothing has come for so long after the sender did.
const QUIET: Duration = Duration::from_millis(200);
/// Gaps that are told one by one.
const GAPS_TOLD: usize = 64;

/// Nanoseconds of the clock that all namespaces of a machine share.
pub fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn sleep_until(when: u64) {
    let when = TimeSpec::new((when / 1_000_000_000) as i64, (when % 1_000_000_000) as i64);
    // A signal ends the sleep early, which only costs a turn of the loop.
    let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &when);
}

fn write_header(out: &mut [u8], flow: u64, number: u64, now: u64) {
    out[..4].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&flow.to_be_bytes());
    out[16..24].copy_from_slice(&number.to_be_bytes());
    out[24..32].copy_from_slice(&now.to_be_bytes());
}

/// Flow, number and time of a datagram of any stream.
fn read_header(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
    (&header[..4] == MAGIC).then(|| (word(8), word(16), word(24)))
}

/// Sends until the standard input is closed.
pub fn send_stream(options: &StreamSend) -> Result<Value> {
    ensure!((HEADER..=65_507).contains(&options.size), "--size must be {HEADER} to 65507 bytes");
    ensure!((1..=1_000_000).contains(&options.rate), "--rate must be 1 to 1000000 datagrams a second");
    let any = if options.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("opening a socket")?;
    socket.connect(options.to).with_context(|| format!("connecting to {}", options.to))?;
    // Sleeps end when they should, not up to 50 µs later.
    nix::sys::prctl::set_timerslack(1).context("setting the timer slack")?;
    let enough = standard_input_closed();
    let mut sender = Sender {
        fd: socket.as_raw_fd(),
        datagram: vec![0; options.size],
        flow: options.flow,
        sent: 0,
        refused: BTreeMap::new(),
    };
    content::fill(options.flow, 0, &mut sender.datagram[HEADER..]);
    let pace = Pace { start: monotonic()?, rate: options.rate };
    let (mut due, mut skipped, mut latest) = (0, 0, 0);
    while !enough.load(Ordering::Acquire) {
        let now = monotonic()?;
        let until = pace.due(now);
        if until > due {
            latest = latest.max(now - pace.time_of(due));
        }
        let late = (until - due).saturating_sub(CATCH_UP);
        skipped += late;
        due += late;
        while due < until {
            sender.send_one(now);
            due += 1;
        }
        sleep_until(pace.time_of(due));
    }
    Ok(json!({
        "sent": sender.sent, "refused": sender.refused, "skipped": skipped, "latest_ms": latest as f64 / 1e6,
        "seconds": (monotonic()? - pace.start) as f64 / 1e9,
    }))
}

/// Which datagram is due when.
struct Pace {
    start: u64,
    rate: u64,
}

impl Pace {
    /// How many are due at `now`.
    fn due(&self, now: u64) -> u64 {
        ((u128::from(now - self.start) * u128::from(self.rate)) / 1_000_000_000) as u64 + 1
    }

    /// When number `index` is due, counted from 0.
    fn time_of(&self, index: u64) -> u64 {
        // Rounded up: at that time it is due.
        self.start + (u128::from(index) * 1_000_000_000).div_ceil(u128::from(self.rate)) as u64
    }
}

struct Sender {
    fd: i32,
    datagram: Vec<u8>,
    flow: u64,
    /// Numbers are given to what the kernel took: a refusal is no gap.
    sent: u64,
    refused: BTreeMap<String, u64>,
}

impl Sender {
    fn send_one(&mut self, now: u64) {
        write_header(&mut self.datagram, self.flow, self.sent, now);
        match send(self.fd, &self.datagram, MsgFlags::empty()) {
            Ok(_) => self.sent += 1,
            Err(error) => *self.refused.entry(error.to_string()).or_default() += 1,
        }
    }
}

/// What has come of a stream: when each datagram was sent, by its number.
#[derive(Default)]
struct Tally {
    /// Microseconds after the first arrival's sending, plus one; 0 for one that has not come.
    stamps: Vec<u64>,
    first: Option<u64>,
    received: u64,
    duplicates: u64,
    reordered: u64,
    corrupt: u64,
    highest: u64,
    slowest: u64,
    pause: Option<(Instant, Duration)>,
}

/// Datagrams that are missing in a row.
#[derive(serde::Serialize)]
struct Gap {
    first: u64,
    count: u64,
    /// When the last one before it was sent, milliseconds of the monotonic clock.
    at_ms: f64,
    /// From then until the next one that arrived was sent, milliseconds.
    ms: f64,
}

impl Tally {
    fn datagram(&mut self, number: u64, sent: u64, intact: bool) -> Result<()> {
        let now = Instant::now();
        let longest = self.pause.map_or(Duration::ZERO, |(before, longest)| longest.max(now - before));
        self.pause = Some((now, longest));
        self.slowest = self.slowest.max(monotonic()?.saturating_sub(sent));
        let first = *self.first.get_or_insert(sent.saturating_sub(1_000_000_000));
        self.corrupt += u64::from(!intact);
        self.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
        let index = usize::try_from(number)?;
        ensure!(index < 1 << 28, "a datagram has the number {number}");
        if self.stamps.len() <= index {
            self.stamps.resize(index + 1, 0);
        }
        let stamp = &mut self.stamps[index];
        if *stamp == 0 {
            *stamp = sent.saturating_sub(first) / 1000 + 1;
            self.received += 1;
        } else {
            self.duplicates += 1;
        }
        Ok(())
    }

    /// Every gap but one at the end, which only the sender knows of.
    fn gaps(&self) -> Vec<Gap> {
        let first = self.first.unwrap_or(0);
        let at = |stamp: u64| (first + stamp.saturating_sub(1) * 1000) as f64 / 1e6;
        let mut gaps = Vec::new();
        // What was lost before the first arrival is a gap from there.
        let mut last = (None, self.stamps.iter().copied().find(|stamp| *stamp > 0).unwrap_or(0));
        for (number, &stamp) in self.stamps.iter().enumerate().filter(|(_, stamp)| **stamp > 0) {
            let missing_from = last.0.map_or(0, |before: usize| before + 1);
            if number > missing_from {
                let (from, to) = (at(last.1), at(stamp));
                gaps.push(Gap {
                    first: missing_from as u64,
                    count: (number - missing_from) as u64,
                    at_ms: from,
                    ms: to - from,
                });
            }
            last = (Some(number), stamp);
        }
        gaps
    }

    fn result(&self, strangers: u64, socket_drops: u64) -> Value {
        let mut gaps = self.gaps();
        let (count, longest) = (gaps.len(), gaps.iter().map(|gap| gap.ms).fold(0.0, f64::max));
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.count));
        gaps.truncate(GAPS_TOLD);
        gaps.sort_by_key(|gap| gap.first);
        json!({
            "received": self.received, "next": if self.received > 0 { self.highest + 1 } else { 0 },
            "duplicates": self.duplicates, "reordered": self.reordered, "corrupt": self.corrupt, "strangers": strangers,
            "socket_drops": socket_drops, "gap_count": count, "longest_gap_ms": longest, "gaps": gaps,
            "slowest_ms": self.slowest as f64 / 1e6,
            "longest_pause_ms": self.pause.map_or(0.0, |(_, longest)| longest.as_secs_f64() * 1e3),
        })
    }
}

/// Receives until the standard input is closed and nothing more comes.
pub fn receive_stream(options: &StreamReceive) -> Result<Value> {
    let socket = UdpSocket::bind(options.bind).with_context(|| format!("binding {}", options.bind))?;
    // As root the limit of net.core.rmem_max does not count; the probe must not be what loses datagrams.
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("enlarging the receive buffer (root?)")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let port = socket.local_addr()?.port();
    let enough = standard_input_closed();
    print(&json!({ "event": "ready", "port": port }));
    let mut tally = Tally::default();
    let (mut strangers, mut last) = (0, Instant::now());
    let (mut buffer, mut expected) = (vec![0; 1 << 16], Vec::new());
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(bytes) => match read_header(&buffer[..bytes]) {
                Some((flow, number, sent)) if flow == options.flow => {
                    last = Instant::now();
                    if expected.len() != bytes - HEADER {
                        expected = vec![0; bytes - HEADER];
                        content::fill(options.flow, 0, &mut expected);
                    }
                    tally.datagram(number, sent, buffer[HEADER..bytes] == expected)?;
                }
                _ => strangers += 1,
            },
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context("receiving"),
        }
        if enough.load(Ordering::Acquire) && last.elapsed() > QUIET {
            return Ok(tally.result(strangers, socket_drops(port, options.bind.is_ipv6())?));
        }
    }
}

/// What the kernel has dropped at the socket that is bound to `port`: the last column of `/proc/net/udp`.
fn socket_drops(port: u16, ipv6: bool) -> Result<u64> {
    let path = if ipv6 { "/proc/net/udp6" } else { "/proc/net/udp" };
    let table = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    drops_in(&table, port).with_context(|| format!("{path} does not list port {port}"))
}

fn drops_in(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let own = words.get(1)?.rsplit_once(':')?.1;
        (u16::from_str_radix(own, 16).ok()? == port).then(|| words.last()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_wherever_they_are() {
        let mut tally = Tally::default();
        for number in [2, 3, 6, 5, 9, 9] {
            tally.datagram(number, 5_000_000_000 + number * 100_000, number != 3).unwrap();
        }
        let gaps: Vec<(u64, u64)> = tally.gaps().iter().map(|gap| (gap.first, gap.count)).collect();
        assert_eq!(gaps, [(0, 2), (4, 1), (7, 2)]);
        assert!((tally.gaps()[2].ms - 0.3).abs() < 1e-6 && (tally.gaps()[2].at_ms - 5000.6).abs() < 1e-6);
        assert_eq!((tally.received, tally.duplicates, tally.reordered, tally.corrupt), (5, 1, 1, 1));
    }

    #[test]
    fn a_sender_is_never_ahead_of_its_times() {
        for rate in [1, 3, 10_000, 999_999] {
            let pace = Pace { start: 77, rate };
            for index in [0, 1, 2, 9_999, 123_456] {
                assert_eq!(pace.due(pace.time_of(index)), index + 1);
                assert_eq!(pace.due(pace.time_of(index + 1) - 1), index + 1);
            }
        }
    }

    #[test]
    fn drops_are_read_from_the_sockets_line() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     \x20 311: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1 2 0000000000000000 0\n\
                     \x20 312: 0202F40A:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 17\n";
        assert_eq!((drops_in(table, 8080), drops_in(table, 53), drops_in(table, 1)), (Some(17), Some(0), None));
    }
}
