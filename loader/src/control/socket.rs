//! The socket file: made with the right mode from its first moment, found dead or alive, and taken over only when dead.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use super::server::ControlError;

/// Connections that wait while the daemon is busy.
const BACKLOG: i32 = 64;
/// How often, and how long each time, another daemon that starts at this moment is waited for.
const TURNS: u32 = 50;
const TURN: Duration = Duration::from_millis(20);

/// Who answers at a socket file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// A process listens.
    Alive {
        /// Its number, if the kernel tells.
        pid: Option<i32>,
    },
    /// The file is there, and nobody listens: its daemon was killed.
    Dead,
    /// There is no file.
    Nobody,
}

/// Who answers at `path`. A process that is stopped or busy counts as alive.
///
/// # Errors
/// The kernel's, if it does not let us ask, and for a path that is too long.
pub fn occupant(path: &Path) -> Result<Occupant, Errno> {
    match open_stream(path) {
        Ok(stream) => Ok(Occupant::Alive { pid: peer(&stream) }),
        // The queue of connections is full: somebody listens, and does not come round to accepting.
        Err(Errno::EAGAIN) => Ok(Occupant::Alive { pid: None }),
        Err(Errno::ECONNREFUSED) => Ok(Occupant::Dead),
        Err(Errno::ENOENT) => Ok(Occupant::Nobody),
        Err(error) => Err(error),
    }
}

/// A non-blocking connection to `path`. Unlike a blocking one it never waits for a listener whose queue is full.
pub fn open_stream(path: &Path) -> Result<UnixStream, Errno> {
    let address = UnixAddr::new(path)?;
    let stream = new_socket()?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(stream.into())
}

/// The process that listens at the other end (`SO_PEERCRED`).
pub fn peer(stream: &UnixStream) -> Option<i32> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    Some(credentials.pid()).filter(|&pid| pid > 0)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Creates the directory and the socket, replacing that of a dead daemon. Returns the listener and the file's inode.
pub fn create(instance: &str, path: &Path) -> Result<(UnixListener, u64), ControlError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let in_directory = |error| ControlError::Directory { path: directory.to_owned(), error };
    let in_socket = |error: Errno| ControlError::Socket { path: path.to_owned(), error };
    match DirBuilder::new().recursive(true).mode(0o755).create(directory) {
        Err(error) if !directory.is_dir() => return Err(in_directory(error)),
        _ => {}
    }
    // Two daemons that start at one time must not both find a dead socket: the second would remove the first's live one.
    let _turn = take_turn(directory).map_err(in_directory)?;
    match occupant(path).map_err(in_socket)? {
        Occupant::Alive { pid } => return Err(ControlError::Occupied { instance: instance.to_owned(), pid }),
        Occupant::Dead => fs::remove_file(path).map_err(in_directory)?,
        Occupant::Nobody => {}
    }
    let socket = new_socket().map_err(in_socket)?;
    // On Linux the file gets the mode that the socket has when it is bound, so it is never open to others.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(in_socket)?;
    let address = UnixAddr::new(path).map_err(in_socket)?;
    bind(socket.as_raw_fd(), &address).map_err(in_socket)?;
    let inode = fs::symlink_metadata(path).map_err(in_directory)?.ino();
    let backlog = Backlog::new(BACKLOG).map_err(in_socket)?;
    listen(&socket, backlog).map_err(in_socket)?;
    Ok((socket.into(), inode))
}

/// Locks the directory itself, so that no lock file is left behind.
fn take_turn(directory: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(directory)?;
    for _ in 0..TURNS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EAGAIN)) => file = unlocked,
            Err((_, error)) => return Err(error.into()),
        }
        sleep(TURN);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process has locked it for a second"))
}
