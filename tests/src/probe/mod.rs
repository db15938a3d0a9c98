//! The traffic tool: what a test case wants sent and received, with its content checked.
//!
//! Every subcommand prints JSON lines. One that serves prints `{"event":"ready",…}` as soon as it can receive; each ends
//! with `{"event":"result",…}`, or with `{"event":"error","error":"…"}` and exit code 1. None outlives its deadline, and
//! none outlives the process that started it.

mod ask;
mod content;
mod dns;
mod flood;
mod lasting;
mod packet_socket;
mod pktgen;
mod raw;
mod sniff;
mod stream;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// The command line.
#[derive(Parser)]
#[command(name = "podlane-probe", about = "Sends and receives the traffic of Podlane's system tests", version)]
struct Cli {
    /// Give up after so many seconds, times PODLANE_TEST_SLOW.
    #[arg(long, global = true, default_value_t = 30)]
    deadline_s: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive numbered datagrams, check each one's size and content, acknowledge them.
    UdpReceive(UdpReceive),
    /// Send numbered datagrams to a `udp-receive`.
    UdpSend(UdpSend),
    /// Accept one connection; send and receive streams whose content is checked, both at the same time.
    TcpServe(TcpServe),
    /// Connect to a `tcp-serve`.
    TcpConnect(TcpConnect),
    /// Send the frames that the standard input lists, a line each: COUNT PACE_US HEX.
    SendFrames(SendFrames),
    /// Count the frames of an interface and check their checksums, until the standard input is closed.
    Sniff(Sniff),
    /// Receive a paced stream of datagrams and tell its gaps, until the standard input is closed.
    StreamReceive(StreamReceive),
    /// Send a paced stream to a `stream-receive`, until the standard input is closed.
    StreamSend(StreamSend),
    /// Accept one connection and check what comes until its end.
    LastingServe(LastingServe),
    /// Send to a `lasting-serve` at a steady rate, until the standard input is closed.
    LastingConnect(LastingConnect),
    /// Answer questions, until the standard input is closed.
    Answer(Answer),
    /// Ask one or several `answer`s.
    Ask(Ask),
    /// Receive what kernel pktgen sends to an interface: each packet once, and as it was sent.
    PktgenReceive(PktgenReceive),
    /// Send garbage as fast as possible, until the standard input is closed.
    Flood(Flood),
    /// Answer questions for the addresses of one name, until the standard input is closed.
    DnsServe(DnsServe),
}

#[derive(Args)]
struct PktgenReceive {
    /// Where they arrive.
    #[arg(long)]
    interface: String,
    /// How many are sent.
    #[arg(long)]
    count: u32,
    /// Bytes of each, Ethernet header included.
    #[arg(long)]
    size: usize,
    /// The end is when so many milliseconds long none has come.
    #[arg(long, default_value_t = 1000)]
    settle_ms: u64,
}

#[derive(Args)]
struct UdpReceive {
    /// Where to listen; port 0 takes a free one, which the ready line names.
    #[arg(long)]
    bind: SocketAddr,
    /// Number of the flow; datagrams of other flows count as strangers.
    #[arg(long)]
    flow: u64,
    /// Payload bytes of datagram 0, 1, 2, … in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    sizes: Vec<usize>,
}

#[derive(Args)]
struct UdpSend {
    /// The receiver.
    #[arg(long)]
    to: SocketAddr,
    /// Number of the flow.
    #[arg(long)]
    flow: u64,
    /// Payload bytes of datagram 0, 1, 2, … in turn; the same as the receiver's.
    #[arg(long, value_delimiter = ',', required = true)]
    sizes: Vec<usize>,
    /// How many datagrams; without it, until the standard input is closed.
    #[arg(long)]
    count: Option<u64>,
    /// Datagrams that may be on the way without having been acknowledged; 0 for no such limit.
    #[arg(long, default_value_t = 0)]
    window: u64,
    /// Pause between two sends, microseconds.
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// Hand the datagrams of one turn of --sizes to the kernel in one send, to be cut after so many bytes (UDP_SEGMENT).
    #[arg(long)]
    gso: Option<u16>,
    /// Wait until there is a route, and send that very moment.
    #[arg(long)]
    from_birth: bool,
}

#[derive(Args)]
struct Streams {
    /// Bytes to send.
    #[arg(long)]
    send: u64,
    /// Bytes to expect.
    #[arg(long)]
    receive: u64,
    /// Number of the connection: both ends derive the content from it.
    #[arg(long)]
    flow: u64,
}

#[derive(Args)]
struct TcpServe {
    /// Where to listen; port 0 takes a free one, which the ready line names.
    #[arg(long)]
    bind: SocketAddr,
    #[command(flatten)]
    streams: Streams,
}

#[derive(Args)]
struct TcpConnect {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    #[command(flatten)]
    streams: Streams,
}

#[derive(Args)]
struct SendFrames {
    /// The interface to send out of.
    #[arg(long, default_value = "eth0")]
    interface: String,
}

#[derive(Args)]
struct Sniff {
    /// The interface to look at.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Count frames that contain these bytes: NAME=HEX.
    #[arg(long = "match", value_parser = sniff::parse_match)]
    matches: Vec<sniff::Match>,
    /// After the standard input is closed, wait until so many frames of this name have come in: NAME=COUNT.
    #[arg(long, value_parser = sniff::parse_expectation)]
    expect: Vec<(String, u64)>,
    /// … but not longer than this, milliseconds.
    #[arg(long, default_value_t = 2000)]
    give_up_ms: u64,
    /// … and then listen for so long to see whether more than that come, milliseconds.
    #[arg(long, default_value_t = 80)]
    settle_ms: u64,
    /// Different frames to keep for each name.
    #[arg(long, default_value_t = 4)]
    keep: usize,
}

#[derive(Args)]
struct StreamReceive {
    /// Where to listen; port 0 takes a free one, which the ready line names.
    #[arg(long)]
    bind: SocketAddr,
    /// Number of the flow; datagrams of other flows count as strangers.
    #[arg(long)]
    flow: u64,
}

#[derive(Args)]
struct StreamSend {
    /// The receiver.
    #[arg(long)]
    to: SocketAddr,
    /// Number of the flow.
    #[arg(long)]
    flow: u64,
    /// Datagrams a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Payload bytes of each.
    #[arg(long, default_value_t = 256)]
    size: usize,
}

#[derive(Args)]
struct LastingServe {
    /// Where to listen; port 0 takes a free one, which the ready line names.
    #[arg(long)]
    bind: SocketAddr,
    /// Number of the flow: both ends derive the content from it.
    #[arg(long)]
    flow: u64,
}

#[derive(Args)]
struct LastingConnect {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Number of the flow: both ends derive the content from it.
    #[arg(long)]
    flow: u64,
    /// Megabits a second; 0 for as fast as it goes.
    #[arg(long)]
    rate_mbit: u64,
}

#[derive(Args)]
struct Answer {
    /// Where to listen; port 0 takes a free one, which the ready line names.
    #[arg(long)]
    bind: SocketAddr,
    /// By which name.
    #[arg(long)]
    name: String,
    /// Datagrams in place of connections.
    #[arg(long)]
    udp: bool,
}

#[derive(Args)]
struct Ask {
    /// The servers, on whose connections is asked in turn.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Datagrams in place of connections.
    #[arg(long)]
    udp: bool,
    /// The source address.
    #[arg(long)]
    own: Option<std::net::IpAddr>,
    /// The source port of all connections; 0 for any.
    #[arg(long, default_value_t = 0)]
    from_port: u16,
    /// How often each is asked.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Bytes of each question.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
}

#[derive(Args)]
struct Flood {
    /// The interface to send out of.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// The station that most of the frames are for: 6 bytes as aa:bb:….
    #[arg(long, value_parser = crate::frames::parse_mac)]
    to: crate::frames::Mac,
    /// Stay on this processor.
    #[arg(long)]
    cpu: Option<usize>,
    /// Where the content of the frames starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct DnsServe {
    /// Where to listen.
    #[arg(long)]
    bind: SocketAddr,
    /// The name that it knows.
    #[arg(long)]
    name: String,
    /// Its addresses.
    #[arg(long, required = true)]
    address: Vec<std::net::IpAddr>,
}

/// Runs the tool with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A probe must not outlive the test that started it, whatever happens to the test.
    if let Err(error) = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL) {
        eprintln!("podlane-probe: cannot tie itself to its parent: {error}");
    }
    end_at_deadline(Duration::from_secs(cli.deadline_s) * crate::command::slowness());
    match run(cli.command) {
        Ok(mut result) => {
            result["event"] = json!("result");
            print(&result);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print(&json!({ "event": "error", "error": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Value> {
    match command {
        Command::UdpReceive(options) => udp::receive(&options),
        Command::UdpSend(options) => udp::send(&options),
        Command::TcpServe(options) => tcp::serve(&options),
        Command::TcpConnect(options) => tcp::connect(&options),
        Command::SendFrames(options) => raw::send_frames(&options),
        Command::Sniff(options) => sniff::sniff(&options),
        Command::StreamReceive(options) => stream::receive_stream(&options),
        Command::StreamSend(options) => stream::send_stream(&options),
        Command::LastingServe(options) => lasting::serve(&options),
        Command::LastingConnect(options) => lasting::connect(&options),
        Command::Answer(options) => ask::answer(&options),
        Command::Ask(options) => ask::ask(&options),
        Command::PktgenReceive(options) => pktgen::receive(&options),
        Command::Flood(options) => flood::flood(&options),
        Command::DnsServe(options) => dns::serve(&options),
    }
}

/// Prints one line at once: the reader waits for it.
fn print(value: &Value) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // A reader that has gone away needs no lines.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn end_at_deadline(after: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        print(&json!({ "event": "error", "error": format!("not done after {} s", after.as_secs()) }));
        std::process::exit(1);
    });
}

/// A flag that turns true when the standard input is closed: how the parent says "enough".
fn standard_input_closed() -> std::sync::Arc<std::sync::atomic::AtomicBool> {
    let closed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = closed.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        flag.store(true, std::sync::atomic::Ordering::Release);
    });
    closed
}
