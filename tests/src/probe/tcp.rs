//! TCP: one connection, both directions at the same time, every byte checked.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Streams, TcpConnect, TcpServe, content, print};

/// No byte for so long means that the connection is stuck.
const STUCK: Duration = Duration::from_secs(15);

/// Which end of the connection this is; each end's stream has its own content.
#[derive(Clone, Copy)]
enum End {
    Client,
    Server,
}

pub fn serve(options: &TcpServe) -> Result<Value> {
    let listener = TcpListener::bind(options.bind).with_context(|| format!("listening on {}", options.bind))?;
    print(&json!({ "event": "ready", "port": listener.local_addr()?.port() }));
    let (stream, peer) = listener.accept().context("accepting")?;
    let mut result = exchange(stream, &options.streams, End::Server)?;
    result["peer"] = json!(peer.ip().to_string());
    Ok(result)
}

pub fn connect(options: &TcpConnect) -> Result<Value> {
    let stream =
        TcpStream::connect_timeout(&options.to, STUCK).with_context(|| format!("connecting to {}", options.to))?;
    exchange(stream, &options.streams, End::Client)
}

fn exchange(stream: TcpStream, streams: &Streams, end: End) -> Result<Value> {
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    let (mine, theirs) = match end {
        End::Client => (streams.flow * 2, streams.flow * 2 + 1),
        End::Server => (streams.flow * 2 + 1, streams.flow * 2),
    };
    let start = Instant::now();
    let writer = stream.try_clone()?;
    let bytes = streams.send;
    let sending = std::thread::spawn(move || send(writer, mine, bytes));
    receive(&stream, theirs, streams.receive)?;
    sending.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
    Ok(json!({ "sent": streams.send, "received": streams.receive, "seconds": start.elapsed().as_secs_f64() }))
}

fn send(mut stream: TcpStream, flow: u64, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    let mut sent = 0;
    while sent < bytes {
        let now = (bytes - sent).min(buffer.len() as u64) as usize;
        content::fill(flow, sent, &mut buffer[..now]);
        stream.write_all(&buffer[..now]).with_context(|| format!("sending after {sent} of {bytes} bytes"))?;
        sent += now as u64;
    }
    stream.shutdown(Shutdown::Write).context("closing the sending side")
}

/// Reads to the end of the stream, which must be `bytes` of `flow`.
fn receive(mut stream: &TcpStream, flow: u64, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut received = 0;
    loop {
        let now = stream.read(&mut buffer).with_context(|| format!("receiving after {received} of {bytes} bytes"))?;
        if now == 0 {
            break;
        }
        if let Some(place) = content::first_difference(flow, received, &buffer[..now]) {
            bail!("the content is wrong at byte {place}");
        }
        received += now as u64;
    }
    ensure!(received == bytes, "the stream ended after {received} of {bytes} bytes");
    Ok(())
}
