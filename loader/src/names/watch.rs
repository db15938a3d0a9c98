//! Follows the directory of CNI results on a thread of its own, because a disk may take its time and the daemon's loop has none.
//!
//! The kernel tells of files that were written, moved and removed (inotify); where it cannot (the directory is not there yet,
//! or all watches are taken), the thread looks every [`LOOK`], and whenever a port appears.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::cni::CniNames;
use crate::privileges;

/// The pause between two looks where nobody tells of changes, and where the kernel does: a directory that was moved away and
/// replaced is found by looking.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_WATCHED: Duration = Duration::from_secs(60);
/// The pause between two readings at least; also this many times as long as the last one took ([`SHARE`]), so that a directory
/// that never rests costs at most a tenth of a processor.
const PAUSE: Duration = Duration::from_millis(100);
const SHARE: u32 = 10;

/// The thread, which ends when this is dropped, after the reading that it is at; nobody waits for that.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    known: ArcSwap<CniNames>,
    /// Wakes the thread; `None` if the process has too many files open: then it looks by itself only.
    waker: Option<EventFd>,
    ended: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            // It fails only when it was woken 2^64 times already, and then it is awake.
            let _ = waker.write(1);
        }
    }
}

impl Watcher {
    /// Follows a directory, which need not exist yet.
    pub fn start(directory: PathBuf) -> Self {
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok();
        let shared = Arc::new(Shared { known: ArcSwap::default(), waker, ended: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("podlane-names".to_owned());
        if let Err(error) = thread.spawn(move || {
            privileges::renounce();
            follow(&directory, &theirs);
        }) {
            tracing::warn!(%error, "starting the thread that reads pods' names; only interfaces' aliases name pods");
        }
        Watcher { shared }
    }

    /// What was read last.
    pub fn known(&self) -> Guard<Arc<CniNames>> {
        self.shared.known.load()
    }

    /// Has the directory read anew soon.
    pub fn refresh(&self) {
        self.shared.wake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

fn follow(directory: &Path, shared: &Shared) {
    let mut watch = Watch::default();
    loop {
        // First the watch, then the files: what comes in between is told.
        watch.renew(directory);
        let begun = Instant::now();
        let names = read(directory);
        let took = begun.elapsed();
        if **shared.known.load() != names {
            tracing::debug!(names = names.len(), left_out = names.left_out, "read the CNI results");
            shared.known.store(Arc::new(names));
        }
        watch.wait(shared.waker.as_ref());
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        // What happens in the pause is read after it.
        std::thread::sleep(PAUSE.max(took * SHARE));
    }
}

fn read(directory: &Path) -> CniNames {
    CniNames::read(directory).unwrap_or_else(|error| {
        tracing::debug!(%error, directory = %directory.display(), "reading the CNI results");
        CniNames::default()
    })
}

/// What the kernel tells of a directory.
#[derive(Debug, Default)]
struct Watch {
    inotify: Option<Inotify>,
}

impl Watch {
    /// The directory may be another one by now, or may not have been there before, so each reading has a watch of its own.
    fn renew(&mut self, directory: &Path) {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        self.inotify = inotify.filter(|inotify| inotify.add_watch(directory, events).is_ok());
    }

    /// Until something happens, and at most for [`LOOK`].
    fn wait(&self, waker: Option<&EventFd>) {
        let look = if self.inotify.is_some() { LOOK_WATCHED } else { LOOK };
        let fds = [self.inotify.as_ref().map(AsFd::as_fd), waker.map(AsFd::as_fd)];
        let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An interrupted wait is a look too many, and no more.
        let _ = poll(&mut fds, PollTimeout::try_from(look).unwrap_or(PollTimeout::MAX));
        if let Some(waker) = waker {
            let _ = waker.read();
        }
    }
}
