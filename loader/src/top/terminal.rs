//! The terminal: taken over at the start and given back however this ends, by a key, a signal, an error or a panic.
//!
//! A terminal that is gone is noticed here, before crossterm reads from it: it would read for ever. And a signal ends this within
//! [`PATIENCE`] even while the terminal takes no output (Ctrl-S), by a thread that waits for nothing else.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, TryRecvError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::disable_raw_mode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::app::{App, Reaction};
use super::view::{Theme, draw};
use super::{Options, Sampler, TopError};

/// How long a key is waited for before answers and signals are looked after.
const TICK: Duration = Duration::from_millis(100);
/// How long a signal waits for the orderly end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows the view until somebody ends it.
///
/// # Errors
/// If the terminal cannot be used.
pub fn run(options: &Options) -> Result<(), TopError> {
    show(options).map_err(TopError::Terminal)
}

fn show(options: &Options) -> io::Result<()> {
    let (ended, finished) = end_on_signals()?;
    let keyboard = keyboard()?;
    let mut app = App::new(&options.instance, options.interval, &options.filter);
    let sampler = Sampler::start(&options.instance, Duration::from_secs_f64(app.interval))?;
    // From here on a panic, in whichever thread, restores the terminal before it is told.
    let mut terminal = ratatui::try_init()?;
    let theme = Theme { is_coloured: options.is_coloured };
    let result = follow(&mut terminal, &mut app, &sampler, theme, || match ended.load(Ordering::Relaxed) {
        true => Ok(false),
        false => wait(&keyboard),
    });
    let restored = ratatui::try_restore();
    if restored.is_err() {
        // It is gone. Dropped, this would try to show the cursor, complain that it cannot, and panic for want of a stderr.
        std::mem::forget(terminal);
    }
    drop(finished);
    result.and(restored)
}

/// Whether a signal came; and what is dropped when this has ended in order, for which a signal waits.
fn end_on_signals() -> io::Result<(Arc<AtomicBool>, channel::Sender<()>)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])?;
    let ended = Arc::new(AtomicBool::new(false));
    let (finished, end) = channel::bounded::<()>(0);
    let told = Arc::clone(&ended);
    let wait = move || {
        if signals.forever().next().is_some() {
            told.store(true, Ordering::Relaxed);
            if end.recv_timeout(PATIENCE) == Err(channel::RecvTimeoutError::Timeout) {
                // The screen cannot be written to, but how keys are read can be set right.
                let _ = disable_raw_mode();
                std::process::exit(0);
            }
        }
    };
    std::thread::Builder::new().name("podlane-signals".to_owned()).spawn(wait)?;
    Ok((ended, finished))
}

/// Where keys come from: the terminal, even if something else is fed to this program.
fn keyboard() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if stdin.is_terminal() { stdin.as_fd().try_clone_to_owned() } else { Ok(File::open("/dev/tty")?.into()) }
}

/// Waits for a key or for [`TICK`]. Whether the terminal is still there.
fn wait(keyboard: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(keyboard.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)) {
        // A signal, perhaps because the size has changed.
        Err(nix::Error::EINTR) => return Ok(true),
        polled => polled?,
    };
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(!fds[0].revents().is_some_and(|events| events.intersects(gone)))
}

fn follow(
    terminal: &mut DefaultTerminal,
    app: &mut App,
    sampler: &Sampler,
    theme: Theme,
    mut wait: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    terminal.draw(|frame| draw(frame, app, theme))?;
    while wait()? {
        let mut is_stale = false;
        while event::poll(Duration::ZERO)? {
            match react(app, &event::read()?) {
                Reaction::Quit => return Ok(()),
                // The thread is there as long as this is.
                Reaction::Interval(interval) => {
                    let _ = sampler.intervals.send(interval);
                }
                // Something else wrote onto the screen.
                Reaction::Repaint => terminal.clear()?,
                Reaction::Redraw => {}
                Reaction::Nothing => continue,
            }
            is_stale = true;
        }
        match sampler.answers.try_recv() {
            Ok(answer) => {
                app.sample(answer);
                is_stale = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("the thread that asks the daemon has ended"));
            }
        }
        if is_stale {
            terminal.draw(|frame| draw(frame, app, theme))?;
        }
    }
    Ok(())
}

fn react(app: &mut App, event: &Event) -> Reaction {
    match event {
        Event::Key(key) => app.key(*key),
        Event::Resize(..) => Reaction::Redraw,
        _ => Reaction::Nothing,
    }
}
