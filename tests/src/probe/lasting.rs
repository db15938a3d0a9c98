//! A TCP connection that lasts: bytes at a steady rate until told, each one checked, and how long the stream ever stood still.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{LastingConnect, LastingServe, content, print, standard_input_closed};

/// No byte for so long means that the connection has not survived. Longer than any event, shorter than TCP's own patience.
const STUCK: Duration = Duration::from_secs(20);
/// Bytes of one write, at most.
const PIECE: usize = 64 * 1024;

/// Accepts one connection and checks what comes until its end, then says how much that was.
pub fn serve(options: &LastingServe) -> Result<Value> {
    let listener = TcpListener::bind(options.bind).with_context(|| format!("listening on {}", options.bind))?;
    print(&json!({ "event": "ready", "port": listener.local_addr()?.port() }));
    let (mut stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(STUCK))?;
    let mut buffer = vec![0; 4 * PIECE];
    let (mut received, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
    loop {
        let now = stream.read(&mut buffer).with_context(|| format!("receiving after {received} bytes"))?;
        if now == 0 {
            break;
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if let Some(place) = content::first_difference(options.flow, received, &buffer[..now]) {
            bail!("the content is wrong at byte {place}");
        }
        received += now as u64;
    }
    stream.write_all(&received.to_be_bytes()).context("answering")?;
    Ok(json!({ "received": received, "longest_pause_ms": longest.as_secs_f64() * 1e3 }))
}

/// Connects and sends until the standard input is closed; the other end must have received every byte.
pub fn connect(options: &LastingConnect) -> Result<Value> {
    let enough = standard_input_closed();
    let mut stream =
        TcpStream::connect_timeout(&options.to, STUCK).with_context(|| format!("connecting to {}", options.to))?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_read_timeout(Some(STUCK))?;
    let bytes_per_second = options.rate_mbit as f64 * 125_000.0;
    let start = Instant::now();
    let (mut sent, mut longest) = (0, Duration::ZERO);
    let mut buffer = vec![0; PIECE];
    while !enough.load(Ordering::Acquire) {
        content::fill(options.flow, sent, &mut buffer);
        let before = Instant::now();
        stream.write_all(&buffer).with_context(|| format!("sending after {sent} bytes"))?;
        longest = longest.max(before.elapsed());
        sent += buffer.len() as u64;
        if options.rate_mbit > 0 {
            std::thread::sleep(Duration::from_secs_f64(sent as f64 / bytes_per_second).saturating_sub(start.elapsed()));
        }
    }
    stream.shutdown(Shutdown::Write).context("closing the sending side")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow::anyhow!("the other end does not answer after {sent} bytes")
        }
        _ => error.into(),
    })?;
    let received = u64::from_be_bytes(answer);
    ensure!(received == sent, "{sent} bytes were sent and {received} received");
    Ok(json!({
        "sent": sent, "seconds": start.elapsed().as_secs_f64(), "longest_write_ms": longest.as_secs_f64() * 1e3,
    }))
}
