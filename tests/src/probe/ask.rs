//! Questions and answers: a client asks servers over TCP or UDP, and learns who answered and whom the server saw. One client may
//! ask several at the same time from one source port.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage};
use nix::sys::socket::{bind, connect, setsockopt, socket, sockopt};
use serde_json::{Value, json};

use super::{Answer, Ask, print, standard_input_closed};

/// No answer for so long means that there is none.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of an answer before it repeats the question: server's name and client's address, as text.
const HEAD: usize = 96;

/// Answers until the standard input is closed.
pub fn answer(options: &Answer) -> Result<Value> {
    let enough = standard_input_closed();
    let name = options.name.clone();
    if options.udp {
        let socket = UdpSocket::bind(options.bind).with_context(|| format!("binding {}", options.bind))?;
        print(&json!({ "event": "ready", "port": socket.local_addr()?.port() }));
        std::thread::spawn(move || answer_datagrams(&socket, &name));
    } else {
        let listener = TcpListener::bind(options.bind).with_context(|| format!("listening on {}", options.bind))?;
        print(&json!({ "event": "ready", "port": listener.local_addr()?.port() }));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let name = name.clone();
                // A client that goes away ends its connection.
                std::thread::spawn(move || answer_stream(stream, &name));
            }
        });
    }
    while !enough.load(std::sync::atomic::Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(json!({}))
}

fn head(name: &str, peer: SocketAddr) -> [u8; HEAD] {
    let mut head = [b' '; HEAD];
    let text = format!("{name} {} {}", peer.ip(), peer.port());
    head[..text.len()].copy_from_slice(text.as_bytes());
    head
}

fn answer_datagrams(socket: &UdpSocket, name: &str) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (bytes, peer) = socket.recv_from(&mut buffer)?;
        let answer = [&head(name, peer), &buffer[..bytes]].concat();
        socket.send_to(&answer, peer)?;
    }
}

/// A question is its length, as four bytes, and its content.
fn answer_stream(mut stream: TcpStream, name: &str) -> Result<()> {
    let peer = stream.peer_addr()?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
        stream.read_exact(&mut question)?;
        stream.write_all(&[&head(name, peer), &question[..]].concat())?;
    }
}

/// A way to one server.
enum Line {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// Asks every server in turn, so often, on connections that are all open at the same time.
pub fn ask(options: &Ask) -> Result<Value> {
    let mut lines = Vec::new();
    for to in &options.to {
        lines.push(open(options, *to).with_context(|| format!("connecting to {to}"))?);
    }
    let mut answers = vec![Value::Null; lines.len()];
    for round in 0..options.rounds {
        for (index, line) in lines.iter_mut().enumerate() {
            let byte = (round as u8).wrapping_add(index as u8);
            let answer = exchange(line, &vec![byte; options.bytes])
                .with_context(|| format!("question {round} to {}", options.to[index]))?;
            answers[index] = answer;
        }
    }
    Ok(json!({ "answers": answers }))
}

fn open(options: &Ask, to: SocketAddr) -> Result<Line> {
    let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let (kind, protocol) = match options.udp {
        true => (SockType::Datagram, SockProtocol::Udp),
        false => (SockType::Stream, SockProtocol::Tcp),
    };
    let own: OwnedFd = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&own, sockopt::ReuseAddr, &true)?;
    setsockopt(&own, sockopt::ReusePort, &true)?;
    let unspecified: IpAddr = if to.is_ipv6() { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
    let from = SocketAddr::new(options.own.unwrap_or(unspecified), options.from_port);
    bind(own.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| format!("binding {from}"))?;
    // The time that a connection may take to be made, too.
    let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&own, sockopt::SendTimeout, &patience)?;
    setsockopt(&own, sockopt::ReceiveTimeout, &patience)?;
    connect(own.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(if options.udp { Line::Udp(own.into()) } else { Line::Tcp(own.into()) })
}

fn exchange(line: &mut Line, question: &[u8]) -> Result<Value> {
    let mut answer = vec![0; HEAD + question.len()];
    match line {
        Line::Tcp(stream) => {
            stream.write_all(&[&(question.len() as u32).to_be_bytes(), question].concat()).context("asking")?;
            stream.read_exact(&mut answer).context("waiting for the answer")?;
        }
        Line::Udp(socket) => {
            socket.send(question).context("asking")?;
            let bytes = socket.recv(&mut answer).context("waiting for the answer")?;
            ensure!(bytes == answer.len(), "an answer of {bytes} bytes");
        }
    }
    ensure!(answer[HEAD..] == *question, "the answer does not repeat the question");
    let head = String::from_utf8_lossy(&answer[..HEAD]).into_owned();
    let words: Vec<&str> = head.split_ascii_whitespace().collect();
    let [name, peer, port] = words[..] else { bail!("an answer that says {head:?}") };
    Ok(json!({ "by": name, "saw": peer, "port": port.parse::<u16>()? }))
}
