//! `podlane capture` on the command line.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use podlane_dataplane::tap::MAX_SNAP_BYTES;

use super::client::{Capture, CaptureError, Names, Sink, Totals, interruption, name_of};
use super::files::{Files, RingOfFiles};
use super::wire::Packet;
use super::{Question, libpcap, print};

/// What to capture, and where to.
#[derive(Debug, Args)]
pub struct CaptureOptions {
    /// Write pcapng to this file, or to standard output for "-" [default: print a line for each packet]
    #[arg(short = 'w', long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only packets received or sent by this port; may be repeated [default: all ports]
    #[arg(long, value_name = "IFACE", value_delimiter = ',')]
    port: Vec<String>,
    /// Only packets that came in, or that went out
    #[arg(long, value_name = "WHICH", default_value = "both", value_parser = ["rx", "tx", "both"])]
    direction: String,
    /// Keep so many bytes of each packet
    #[arg(short = 's', long, value_name = "BYTES", default_value_t = MAX_SNAP_BYTES, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SNAP_BYTES)))]
    snaplen: u32,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many bytes of packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    bytes: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Write a ring of so many files, FILE_00001 and so on, and remove the oldest
    #[arg(long, value_name = "N", requires = "write", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    ring_files: Option<u32>,
    /// Begin the next file of the ring after so many bytes
    #[arg(long, value_name = "BYTES", requires = "ring_files", default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(4096..))]
    ring_size: u64,
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub instance: String,
    /// Only packets that match this expression (man pcap-filter), such as: tcp port 80 and host 10.244.1.2
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

/// A number of seconds, with a fraction if need be.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("choose more than 0 seconds".to_owned()),
    }
}

/// A command line that asks for what cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MisuseError {
    /// Binary data on a terminal.
    #[error(
        "packets are not written to a terminal: send them to a program (podlane capture -w - | tshark -i -) or to a file"
    )]
    Terminal,
    /// A ring needs files.
    #[error("a ring of files cannot be written to standard output: name a file")]
    Ring,
    /// The filter.
    #[error(transparent)]
    Filter(#[from] libpcap::CompileError),
}

/// Captures, until a limit is reached or somebody ends it. Totals go to `err`.
///
/// # Errors
/// [`CaptureError`].
pub fn capture(options: &CaptureOptions, out: &mut impl Write, err: &mut impl Write) -> Result<(), CaptureError> {
    let to_stdout = options.write.as_deref() == Some(Path::new("-"));
    if to_stdout && options.ring_files.is_some() {
        return Err(MisuseError::Ring.into());
    }
    if to_stdout && io::stdout().is_terminal() {
        return Err(MisuseError::Terminal.into());
    }
    let filter = libpcap::compile(&options.filter.join(" ")).map_err(MisuseError::from)?;
    let question = Question {
        ports: options.port.clone(),
        snap_bytes: options.snaplen,
        rx: options.direction != "tx",
        tx: options.direction != "rx",
        ..Question::new(&filter)
    };
    run(options, &question, out, err)
}

fn run(
    options: &CaptureOptions,
    question: &Question,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<(), CaptureError> {
    let interrupted = interruption()?;
    let capture = Capture::begin(&options.instance, question)?;
    let target = match &options.write {
        None => Target::Lines(out),
        Some(path) => {
            let ring = options.ring_files.map(|files| RingOfFiles { files, bytes: options.ring_size });
            let path = Some(path.as_path()).filter(|path| *path != Path::new("-"));
            let files = Files::begin(path, ring, options.snaplen, &options.filter.join(" "));
            Target::Files(Box::new(files.map_err(CaptureError::Write)?))
        }
    };
    // People who see nothing want to know that it runs.
    let _ = writeln!(err, "capturing; Ctrl-C ends it{}", if options.write.is_none() { "; times are UTC" } else { "" });
    let mut writer = Writer {
        target,
        packets: 0,
        bytes: 0,
        most_packets: options.count.unwrap_or(u64::MAX),
        most_bytes: options.bytes.unwrap_or(u64::MAX),
        end: options.duration.map(|duration| Instant::now() + duration),
    };
    let totals = match capture.run(&mut writer, &interrupted) {
        // Whoever reads our output (`podlane capture | head`) has had enough.
        Err(CaptureError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        totals => totals?,
    };
    let (packets, bytes) = (writer.packets, writer.bytes);
    if let Target::Files(files) = writer.target {
        files.end().map_err(CaptureError::Write)?;
    }
    tell_totals(packets, bytes, &totals, err);
    Ok(())
}

fn tell_totals(packets: u64, bytes: u64, totals: &Totals, err: &mut impl Write) {
    let lost: u64 = totals.lost.values().sum();
    let mut text = format!("{packets} packets captured, {bytes} bytes; {lost} lost on the way here");
    for (ifindex, records) in totals.lost.iter().filter(|_| lost > 0) {
        text.push_str(&format!("\n  {}: {records}", name_of(&totals.names, *ifindex)));
    }
    if totals.ended_by_daemon {
        text.push_str("\nthe daemon has ended the capture: it stops");
    }
    // Nobody is left to be told if this fails.
    let _ = writeln!(err, "{text}");
}

enum Target<'a, W> {
    Lines(&'a mut W),
    Files(Box<Files>),
}

/// Writes until a limit is reached.
struct Writer<'a, W> {
    target: Target<'a, W>,
    packets: u64,
    bytes: u64,
    most_packets: u64,
    most_bytes: u64,
    end: Option<Instant>,
}

impl<W> Writer<'_, W> {
    fn is_full(&self) -> bool {
        self.packets >= self.most_packets || self.bytes >= self.most_bytes
    }

    fn flow(&self) -> ControlFlow<()> {
        let late = self.end.is_some_and(|end| Instant::now() >= end);
        if self.is_full() || late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl<W: Write> Sink for Writer<'_, W> {
    fn packet(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<ControlFlow<()>> {
        if self.is_full() {
            return Ok(ControlFlow::Break(()));
        }
        match &mut self.target {
            Target::Lines(out) => writeln!(out, "{}", print::line(packet, names))?,
            Target::Files(files) => files.packet(packet, names)?,
        }
        self.packets += 1;
        self.bytes += u64::from(packet.frame_bytes);
        Ok(if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn lost(&mut self, ifindex: u32, records: u64, names: &Names) -> io::Result<()> {
        match &mut self.target {
            Target::Lines(_) => Ok(()),
            Target::Files(files) => files.lost(ifindex, records, names),
        }
    }

    fn pause(&mut self, _: &Names) -> io::Result<ControlFlow<()>> {
        match &mut self.target {
            Target::Lines(out) => out.flush()?,
            Target::Files(files) => files.flush()?,
        }
        Ok(self.flow())
    }
}
