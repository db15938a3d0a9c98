//! UDP: numbered datagrams whose size and content follow from their number, acknowledged by the receiver.
//!
//! A datagram begins with 24 bytes: "PLUD", what it is (4 bytes), the flow (8), a number (8), all big-endian; the rest is
//! the flow's content. The sender ends with FIN (its number is the count of datagrams sent), repeated until the receiver
//! has answered, so that both know the count even where datagrams get lost.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use super::{UdpReceive, UdpSend, content, print, standard_input_closed};

const HEADER: usize = 24;
const MAGIC: &[u8; 4] = b"PLUD";
const DATA: u32 = 0;
const ACK: u32 = 1;
const FIN: u32 = 2;
const FIN_ACK: u32 = 3;
/// Datagrams for one acknowledgement.
const ACK_EVERY: u64 = 8;
/// A window that does not move for so long has lost datagrams.
const STALL: Duration = Duration::from_millis(300);
/// How long after the sender has ended the receiver waits for datagrams that are still on their way.
const LATE: Duration = Duration::from_millis(400);
const FIN_EVERY: Duration = Duration::from_millis(20);
const FIN_GIVE_UP: Duration = Duration::from_secs(5);
const BUFFER: usize = 4 << 20;

#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    flow: u64,
    number: u64,
}

impl Header {
    fn write(self, out: &mut [u8]) {
        out[..4].copy_from_slice(MAGIC);
        out[4..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.flow.to_be_bytes());
        out[16..24].copy_from_slice(&self.number.to_be_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        (&header[..4] == MAGIC).then(|| Header {
            kind: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            flow: u64::from_be_bytes(std::array::from_fn(|i| header[8 + i])),
            number: u64::from_be_bytes(std::array::from_fn(|i| header[16 + i])),
        })
    }
}

/// Where in the flow's content datagram `number` starts: far enough apart that no two overlap.
fn place(number: u64) -> u64 {
    number << 16
}

fn check_sizes(sizes: &[usize]) -> Result<()> {
    ensure!(sizes.iter().all(|size| (HEADER..=65_507).contains(size)), "--sizes must be {HEADER} to 65507 bytes");
    Ok(())
}

fn socket(bind: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(bind).with_context(|| format!("binding {bind}"))?;
    // As root the limit of net.core.rmem_max does not count; the probe must not be what loses datagrams.
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("enlarging the receive buffer (root?)")?;
    Ok(socket)
}

#[derive(Default)]
struct Tally {
    seen: Vec<bool>,
    distinct: u64,
    duplicates: u64,
    reordered: u64,
    wrong_size: u64,
    corrupt: u64,
    strangers: u64,
    first_fault: Option<String>,
    last: Option<(Instant, u64)>,
    max_gap: Duration,
}

impl Tally {
    fn fault(&mut self, what: String) {
        self.first_fault.get_or_insert(what);
    }

    fn data(&mut self, header: Header, bytes: &[u8], sizes: &[usize]) {
        let now = Instant::now();
        if let Some((before, number)) = self.last {
            self.max_gap = self.max_gap.max(now - before);
            self.reordered += u64::from(header.number < number);
        }
        self.last = Some((now, self.last.map_or(header.number, |(_, number)| number.max(header.number))));
        let expected = sizes[(header.number % sizes.len() as u64) as usize];
        if bytes.len() != expected {
            self.wrong_size += 1;
            self.fault(format!("datagram {} has {} bytes in place of {expected}", header.number, bytes.len()));
            return;
        }
        let start = place(header.number);
        if let Some(at) = content::first_difference(header.flow, start, &bytes[HEADER..]) {
            self.corrupt += 1;
            self.fault(format!("datagram {} is wrong at byte {}", header.number, at - start + HEADER as u64));
            return;
        }
        let index = header.number as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.duplicates += 1;
        } else {
            self.distinct += 1;
        }
    }

    fn result(&self, sent: u64) -> Value {
        let missing: Vec<u64> =
            (0..sent).filter(|&number| !self.seen.get(number as usize).copied().unwrap_or(false)).take(8).collect();
        json!({
            "sent": sent, "received": self.distinct, "lost": sent.saturating_sub(self.distinct), "first_missing": missing,
            "duplicates": self.duplicates, "reordered": self.reordered, "wrong_size": self.wrong_size,
            "corrupt": self.corrupt, "strangers": self.strangers, "first_fault": self.first_fault,
            "max_gap_ms": self.max_gap.as_secs_f64() * 1e3,
        })
    }
}

pub fn receive(options: &UdpReceive) -> Result<Value> {
    check_sizes(&options.sizes)?;
    let socket = socket(options.bind)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    print(&json!({ "event": "ready", "port": socket.local_addr()?.port() }));
    let mut tally = Tally::default();
    let mut fin: Option<(u64, Instant, SocketAddr)> = None;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((bytes, from)) => match Header::read(&buffer[..bytes]) {
                Some(header) if header.flow == options.flow && header.kind == DATA => {
                    tally.data(header, &buffer[..bytes], &options.sizes);
                    if tally.distinct % ACK_EVERY == 0 {
                        answer(&socket, from, ACK, options.flow, tally.distinct);
                    }
                }
                Some(header) if header.flow == options.flow && header.kind == FIN => {
                    fin.get_or_insert((header.number, Instant::now(), from));
                }
                _ => tally.strangers += 1,
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error for an acknowledgement that nobody wanted any more.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receiving"),
        }
        if let Some((sent, at, from)) = fin
            && (tally.distinct >= sent || at.elapsed() > LATE)
        {
            for _ in 0..3 {
                answer(&socket, from, FIN_ACK, options.flow, tally.distinct);
            }
            return Ok(tally.result(sent));
        }
    }
}

/// Answers are sent once: what a lost one means is the sender's to find out.
fn answer(socket: &UdpSocket, to: SocketAddr, kind: u32, flow: u64, number: u64) {
    let mut bytes = [0; HEADER];
    Header { kind, flow, number }.write(&mut bytes);
    let _ = socket.send_to(&bytes, to);
}

/// Until the deadline ends the whole probe. Without sleeping: what comes into being is to be used at once.
fn wait_for_route(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    print(&json!({ "event": "ready" }));
    loop {
        match socket.connect(to) {
            Ok(()) => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {}
            // No address yet to send from.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
        }
        std::thread::yield_now();
    }
}

struct Sender<'a> {
    options: &'a UdpSend,
    socket: UdpSocket,
    next: u64,
    acknowledged: u64,
    finishing: bool,
    fin_acknowledged: bool,
    stalls: u64,
    errors: BTreeMap<String, u64>,
}

pub fn send(options: &UdpSend) -> Result<Value> {
    check_sizes(&options.sizes)?;
    let any = if options.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = socket(any.parse()?)?;
    if options.from_birth {
        wait_for_route(&socket, options.to)?;
    }
    socket.connect(options.to).with_context(|| format!("connecting to {}", options.to))?;
    if let Some(bytes) = options.gso {
        setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(bytes)).context("setting UDP_SEGMENT")?;
    }
    let mut sender = Sender {
        options,
        socket,
        next: 0,
        acknowledged: 0,
        finishing: false,
        fin_acknowledged: false,
        stalls: 0,
        errors: BTreeMap::new(),
    };
    let start = Instant::now();
    sender.send_all()?;
    let seconds = start.elapsed().as_secs_f64();
    sender.finish()?;
    Ok(json!({
        "sent": sender.next, "stalls": sender.stalls, "errors": sender.errors, "seconds": seconds,
        "fin_acknowledged": sender.fin_acknowledged,
    }))
}

impl Sender<'_> {
    fn send_all(&mut self) -> Result<()> {
        let enough = self.options.count.is_none().then(standard_input_closed);
        let start = Instant::now();
        let pace = Duration::from_micros(self.options.pace_us);
        let mut turns = 0;
        loop {
            let done = match (self.options.count, &enough) {
                (Some(count), _) => self.next >= count,
                (None, Some(enough)) => enough.load(Ordering::Acquire),
                (None, None) => true,
            };
            if done {
                return Ok(());
            }
            self.wait_for_window()?;
            self.send_one_turn();
            turns += 1;
            if !pace.is_zero() {
                std::thread::sleep((pace * turns).saturating_sub(start.elapsed()));
            }
        }
    }

    /// One datagram, or with GSO one turn of sizes.
    fn send_one_turn(&mut self) {
        let sizes = &self.options.sizes;
        let datagrams = if self.options.gso.is_some() { sizes.len() as u64 } else { 1 };
        let mut buffer = Vec::new();
        for number in self.next..self.next + datagrams {
            let start = buffer.len();
            buffer.resize(start + sizes[(number % sizes.len() as u64) as usize], 0);
            let datagram = &mut buffer[start..];
            Header { kind: DATA, flow: self.options.flow, number }.write(datagram);
            content::fill(self.options.flow, place(number), &mut datagram[HEADER..]);
        }
        if let Err(error) = self.socket.send(&buffer) {
            *self.errors.entry(error.to_string()).or_default() += 1;
        }
        self.next += datagrams;
    }

    fn wait_for_window(&mut self) -> Result<()> {
        if self.options.window == 0 {
            return Ok(());
        }
        let since = Instant::now();
        while self.next - self.acknowledged >= self.options.window {
            self.read_answer(STALL)?;
            if since.elapsed() >= STALL {
                self.stalls += 1;
                self.acknowledged = self.next;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.finishing = true;
        let since = Instant::now();
        // A FIN is one datagram: with UDP_SEGMENT it is shorter than a segment, and goes out as it is.
        let mut fin = [0; HEADER];
        Header { kind: FIN, flow: self.options.flow, number: self.next }.write(&mut fin);
        while !self.fin_acknowledged && since.elapsed() < FIN_GIVE_UP {
            let _ = self.socket.send(&fin);
            let again = Instant::now() + FIN_EVERY;
            while !self.fin_acknowledged && Instant::now() < again {
                self.read_answer(FIN_EVERY)?;
            }
        }
        Ok(())
    }

    fn read_answer(&mut self, patience: Duration) -> Result<()> {
        let mut bytes = [0; 2048];
        self.socket.set_read_timeout(Some(patience))?;
        match self.socket.recv(&mut bytes) {
            Ok(length) => match Header::read(&bytes[..length]) {
                Some(header) if header.flow == self.options.flow && header.kind == ACK => {
                    self.acknowledged = self.acknowledged.max(header.number.min(self.next));
                }
                Some(header) if header.flow == self.options.flow && header.kind == FIN_ACK => {
                    self.fin_acknowledged = true
                }
                _ => {}
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // A FIN that was sent again has found a receiver that had answered and gone.
            Err(error) if self.finishing && error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => *self.errors.entry(error.to_string()).or_default() += 1,
        }
        Ok(())
    }
}
