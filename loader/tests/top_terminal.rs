//! `podlane top` on a terminal of its own: however it ends, the terminal is as it was, and it does end.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{FlowArg, Termios, tcflow, tcgetattr};
use nix::unistd::Pid;

/// How long anything may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// `podlane top` on a terminal, asking a daemon that is not there.
struct Top {
    child: Child,
    /// The person's side.
    screen: Option<File>,
    /// The program's side.
    terminal: OwnedFd,
    before: Termios,
    shown: String,
    _run_directory: tempfile::TempDir,
}

impl Top {
    /// Started, and shown.
    fn start() -> Top {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal");
        // A terminal is gone when nobody has the person's side open, so no child may inherit it.
        fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag of a descriptor");
        let before = tcgetattr(&slave).expect("its settings");
        let run_directory = tempfile::tempdir().expect("a directory");
        let side = || slave.try_clone().expect("another descriptor");
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_podlane"), "top", "--interval", "0.1"]);
        command.stdin(side()).stdout(side()).stderr(side());
        command.env("PODLANE_RUN_DIR", run_directory.path()).env("TERM", "xterm");
        let child = command.spawn().expect("podlane top");
        let mut top = Top {
            child,
            screen: Some(master.into()),
            terminal: slave,
            before,
            shown: String::new(),
            _run_directory: run_directory,
        };
        top.read_until("DOES NOT ANSWER");
        top
    }

    fn read_until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown.contains(text) {
            assert!(Instant::now() < deadline, "{text} is not in {:?}", self.shown);
            self.read_some();
        }
    }

    fn read_some(&mut self) {
        let Some(screen) = &mut self.screen else { return };
        let mut fds = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u8)).is_ok_and(|count| count > 0) {
            let mut bytes = [0; 4096];
            match screen.read(&mut bytes) {
                Ok(count) => self.shown.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) => assert_ne!(error.kind(), ErrorKind::InvalidInput, "{error}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            self.read_some();
        }
    }

    /// How keys are read, and which screen is shown.
    fn is_restored(&mut self) {
        let after = tcgetattr(&self.terminal).expect("settings");
        assert_eq!(after.local_flags, self.before.local_flags);
        assert_eq!(after.input_flags, self.before.input_flags);
        self.read_until("\x1b[?1049l");
        self.read_until("\x1b[?25h");
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_end_it() {
    for key in ["q", "\x03"] {
        let mut top = Top::start();
        assert_ne!(tcgetattr(&top.terminal).unwrap().local_flags, top.before.local_flags, "keys are read one by one");
        top.screen.as_mut().unwrap().write_all(key.as_bytes()).unwrap();
        assert!(top.end().success());
        top.is_restored();
    }
}

#[test]
fn signals_end_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut top = Top::start();
        top.signal(signal);
        assert!(top.end().success(), "{signal}");
        top.is_restored();
    }
}

/// Ctrl-S holds the output back; a signal ends it all the same, and keys are read as before.
#[test]
fn a_stopped_terminal_does_not_keep_it() {
    let mut top = Top::start();
    tcflow(&top.terminal, FlowArg::TCOOFF).unwrap();
    top.signal(Signal::SIGTERM);
    assert!(top.end().success());
    assert_eq!(tcgetattr(&top.terminal).unwrap().local_flags, top.before.local_flags);
}

/// Whose window was closed, or whose connection broke: it must not stay behind and spin.
#[test]
fn a_terminal_that_goes_ends_it() {
    let mut top = Top::start();
    top.screen = None;
    let status = top.end();
    assert!(status.code().is_some(), "it ended by itself: {status}");
}
