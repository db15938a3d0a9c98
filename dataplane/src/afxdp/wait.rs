//! Sleeping until a frame, a command or a hand-off arrives.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::QueueIo;
use super::sleeping::Sleeping;
use super::sys;

/// Wakes one worker from another thread. Cheap while the worker is awake: no system call.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
    sleeping: Arc<Sleeping>,
}

impl Waker {
    /// Wakes the worker if it sleeps. Call it after the work was made visible.
    #[inline]
    pub fn wake(&self) {
        if self.sleeping.must_be_woken() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight readable bytes. A full counter (EAGAIN) means that a wake-up is already on its way.
            unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

/// What a worker sleeps on: all its sockets and its waker.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
    event: Arc<OwnedFd>,
    sleeping: Arc<Sleeping>,
}

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slept {
    /// There was work left, so it did not begin.
    NotAtAll,
    /// Something became ready.
    UntilWoken,
    /// Nothing did in time.
    UntilTimeout,
}

/// The epoll token of the waker; sockets use their number.
const WAKER: u64 = u64::MAX;

impl Waiter {
    /// A waiter and its waker.
    pub fn new() -> io::Result<(Self, Waker)> {
        // SAFETY: no pointers; results are checked.
        let epoll = sys::owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let event = sys::owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let event = Arc::new(event);
        let sleeping = Arc::new(Sleeping::default());
        let waiter = Waiter { epoll, event: Arc::clone(&event), sleeping: Arc::clone(&sleeping) };
        waiter.control(libc::EPOLL_CTL_ADD, event.as_raw_fd(), WAKER)?;
        Ok((waiter, Waker { event, sleeping }))
    }

    /// Sleeps on this queue as well.
    pub fn add(&self, queue: &impl QueueIo) -> io::Result<()> {
        match queue.poll_fd() {
            Some(fd) => self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), u64::from(queue.number())),
            None => Ok(()),
        }
    }

    /// No longer sleeps on it.
    pub fn remove(&self, queue: &impl QueueIo) {
        if let Some(fd) = queue.poll_fd() {
            // Cannot fail for a descriptor that was added, and nothing could be done about it.
            let _ = self.control(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0);
        }
    }

    /// Sleeps until something is ready or `timeout_ms` have passed. `work_left` is asked once more after others can see that
    /// we are about to sleep, so that no wake-up is lost.
    pub fn sleep(&self, timeout_ms: u64, work_left: impl FnOnce() -> bool) -> Slept {
        self.sleeping.begin();
        if work_left() {
            self.sleeping.end();
            return Slept::NotAtAll;
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: room for as many events as the call is told.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                timeout_ms.min(i32::MAX as u64) as libc::c_int,
            )
        };
        self.sleeping.end();
        for event in &events[..usize::try_from(count).unwrap_or(0)] {
            if event.u64 == WAKER {
                let mut counter = [0; 8];
                // SAFETY: room for eight bytes; only resets the counter.
                unsafe { libc::read(self.event.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len()) };
            }
        }
        if count > 0 { Slept::UntilWoken } else { Slept::UntilTimeout }
    }

    fn control(&self, operation: libc::c_int, fd: libc::c_int, token: u64) -> io::Result<()> {
        // Edge-triggered: a socket whose device is gone reports an error for ever, which must not keep us awake. Every
        // ring is looked at on every wake-up, and before every sleep, so no edge can be missed.
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token };
        // SAFETY: `event` is valid for the call.
        sys::check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }
}
