//! The daemon's side. Everything is non-blocking and bounded: the length of a request, the number of clients, and the time
//! that each may take to ask and to read its answer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::protocol::{BadRequest, Request, Response};
use super::socket;
use crate::capture;

/// Bytes of the longest request, without the end of its line.
pub const MAX_REQUEST: usize = 32_768;
/// Clients at one time; others wait until one has gone.
pub const MAX_CLIENTS: usize = 16;
/// How long a client may take to ask.
pub const REQUEST_TIME: Duration = Duration::from_secs(2);
/// How long a client may take to read its answer.
pub const RESPONSE_TIME: Duration = Duration::from_secs(5);
/// How long no client is accepted after accepting failed (no file descriptor left, for example).
const PAUSE: Duration = Duration::from_secs(1);

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon of this name lives.
    #[error("podlane instance \"{instance}\" runs already{}; stop it first, or give this one another name with --instance", running(*.pid))]
    Occupied {
        /// Its name.
        instance: String,
        /// Its process.
        pid: Option<i32>,
    },
    /// The directory.
    #[error("cannot use {path} for the control socket: {error}; as root it is created, or set PODLANE_RUN_DIR to another directory", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The socket.
    #[error("cannot open the control socket {path}: {reason}", path = .path.display(), reason = .error.desc())]
    Socket {
        /// The socket file.
        path: PathBuf,
        /// Why.
        error: Errno,
    },
}

fn running(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" as process {pid}")).unwrap_or_default()
}

/// The control socket of a running daemon. It is removed when this is dropped.
///
/// Put [`Control::poll_fds`] into a poll loop and call [`Control::serve`] whenever one is ready, and at least once a second
/// besides, because nothing else ends the clients that are too slow.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    inode: u64,
    listener: UnixListener,
    /// Holds the listener and every client, so that a caller has one descriptor to wait for.
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// Whether the epoll set holds the listener; it does not while no further client can be accepted.
    listening: bool,
    paused_until: Option<Instant>,
    /// Clients that asked for a capture, which is not answered here.
    captures: Vec<(capture::Question, UnixStream)>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Asking(Vec<u8>),
    Answering { answer: Vec<u8>, written: usize },
}

/// What is to be done with a client.
enum Next {
    Keep,
    Answer(Result<Request, BadRequest>),
    Close,
}

/// The listener's number in the epoll set; clients have those from 1.
const LISTENER: u64 = 0;

impl Control {
    /// Opens the socket of an instance, creating its directory.
    ///
    /// # Errors
    /// [`ControlError`]; a daemon that is alive keeps its socket.
    pub fn open(instance: &str) -> Result<Self, ControlError> {
        Self::open_at(instance, &super::socket_path(instance))
    }

    /// Like [`Control::open`], at a given path.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn open_at(instance: &str, path: &Path) -> Result<Self, ControlError> {
        let in_socket = |error| ControlError::Socket { path: path.to_owned(), error };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(in_socket)?;
        let (listener, inode) = socket::create(instance, path)?;
        let mut control = Control {
            path: path.to_owned(),
            inode,
            listener,
            epoll,
            clients: BTreeMap::new(),
            next_client: LISTENER + 1,
            listening: false,
            paused_until: None,
            captures: Vec::new(),
        };
        control.listen(true).map_err(in_socket)?;
        Ok(control)
    }

    /// The socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to wait for.
    pub fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        std::iter::once(PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN))
    }

    /// Clients that are being served.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// When [`Control::serve`] must be called though nothing is ready.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.clients.values().map(|client| client.deadline).chain(self.paused_until).min()
    }

    /// Does everything that can be done without waiting: accepts clients, reads requests, has `handler` answer them, writes
    /// answers, and ends clients that were too slow.
    pub fn serve(&mut self, mut handler: impl FnMut(Request) -> Response) {
        let mut events = [EpollEvent::empty(); MAX_CLIENTS + 1];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => {
                tracing::warn!(%error, "waiting for the control socket's clients");
                0
            }
        };
        let mut waiting = false;
        for event in &events[..ready] {
            match event.data() {
                LISTENER => waiting = true,
                client => self.advance(client, &mut handler),
            }
        }
        if waiting {
            self.accept(&mut handler);
        }
        self.end_slow(Instant::now());
    }

    /// Takes a client over that asks for a capture; whoever does answers it.
    pub fn take_capture(&mut self) -> Option<(capture::Question, UnixStream)> {
        self.captures.pop()
    }

    fn accept(&mut self, handler: &mut impl FnMut(Request) -> Response) {
        while self.clients.len() < MAX_CLIENTS {
            match self.accept_one() {
                // Most clients have asked before they are accepted.
                Ok(Some(client)) => self.advance(client, handler),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting a client of the control socket");
                    self.paused_until = Some(Instant::now() + PAUSE);
                    return;
                }
            }
        }
    }

    fn accept_one(&mut self) -> io::Result<Option<u64>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_transient(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let number = self.next_client;
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        self.next_client += 1;
        let deadline = Instant::now() + REQUEST_TIME;
        self.clients.insert(number, Client { stream, state: State::Asking(Vec::new()), deadline });
        Ok(Some(number))
    }

    /// Goes on with one client as far as it goes.
    fn advance(&mut self, number: u64, handler: &mut impl FnMut(Request) -> Response) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let next = match client.go_on() {
            Next::Answer(Ok(Request::Capture(question))) => return self.hand_over(number, question),
            Next::Answer(request) => {
                let response = request.map_or_else(|bad| Response::Error(bad.to_string()), handler);
                client.state = State::Answering { answer: response.line(), written: 0 };
                client.deadline = Instant::now() + RESPONSE_TIME;
                client.go_on()
            }
            next => next,
        };
        let wait_for_room = || EpollEvent::new(EpollFlags::EPOLLOUT, number);
        let close = match (next, &client.state) {
            (Next::Keep, State::Answering { .. }) => self.epoll.modify(&client.stream, &mut wait_for_room()).is_err(),
            (Next::Keep, State::Asking(_)) => false,
            _ => true,
        };
        if close {
            self.clients.remove(&number);
        }
    }

    fn hand_over(&mut self, number: u64, question: capture::Question) {
        let Some(client) = self.clients.remove(&number) else { return };
        // It would stay in the set for as long as the stream is open.
        if self.epoll.delete(&client.stream).is_ok() {
            self.captures.push((question, client.stream));
        }
    }

    /// Ends clients whose time is over, and listens if, and only if, there is room for another.
    pub(super) fn end_slow(&mut self, now: Instant) {
        self.clients.retain(|_, client| client.deadline > now);
        self.paused_until = self.paused_until.filter(|&until| until > now);
        let listen = self.clients.len() < MAX_CLIENTS && self.paused_until.is_none();
        if let Err(error) = self.listen(listen) {
            tracing::warn!(%error, "listening at the control socket");
        }
    }

    /// Puts the listener into the epoll set or takes it out. It would be ready for ever while nobody accepts.
    fn listen(&mut self, listen: bool) -> Result<(), Errno> {
        match (listen, self.listening) {
            (true, false) => self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?,
            (false, true) => self.epoll.delete(&self.listener)?,
            _ => {}
        }
        self.listening = listen;
        Ok(())
    }
}

impl Client {
    fn go_on(&mut self) -> Next {
        match &mut self.state {
            State::Asking(line) => read_request(&mut self.stream, line),
            State::Answering { answer, written } => write_answer(&mut self.stream, answer, written),
        }
    }
}

/// Reads up to the end of the line, or of the stream, which may stand for it.
fn read_request(stream: &mut impl Read, line: &mut Vec<u8>) -> Next {
    let mut buffer = [0; MAX_REQUEST];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) if line.is_empty() => return Next::Close,
            Ok(0) => return Next::Answer(Request::parse(line)),
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Keep,
            Err(_) => return Next::Close,
        };
        let end = read.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&read[..end.unwrap_or(read.len())]);
        if line.len() > MAX_REQUEST {
            return Next::Answer(Err(BadRequest::TooLong));
        }
        if end.is_some() {
            return Next::Answer(Request::parse(line));
        }
    }
}

/// The request of a client whose bytes come out of `stream`; `None` if it goes without one.
pub(crate) fn read_whole_request(stream: &mut impl Read) -> Option<Result<Request, BadRequest>> {
    let mut line = Vec::new();
    loop {
        match read_request(stream, &mut line) {
            Next::Keep => {}
            Next::Answer(request) => return Some(request),
            Next::Close => return None,
        }
    }
}

fn write_answer(stream: &mut UnixStream, answer: &[u8], written: &mut usize) -> Next {
    while *written < answer.len() {
        match stream.write(&answer[*written..]) {
            Ok(0) => return Next::Close,
            Ok(count) => *written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Keep,
            Err(_) => return Next::Close,
        }
    }
    // A stream that is closed with unread bytes resets the connection, and the client might lose its answer.
    let mut buffer = [0; MAX_REQUEST];
    for _ in 0..MAX_CLIENTS {
        if !matches!(stream.read(&mut buffer), Ok(1..)) {
            break;
        }
    }
    Next::Close
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

impl Drop for Control {
    fn drop(&mut self) {
        // Only our own file: somebody may have removed it and started another daemon.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
