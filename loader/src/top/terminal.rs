//! The terminal: taken over at the start and given back however this ends, by a key, a signal, an error or a panic.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::TryRecvError;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::app::{App, Reaction};
use super::view::{Theme, draw};
use super::{Options, Sampler, TopError};

/// How long a key is waited for before answers and signals are looked after.
const TICK: Duration = Duration::from_millis(100);

/// Shows the view until somebody ends it.
///
/// # Errors
/// If the terminal cannot be used.
pub fn run(options: &Options) -> Result<(), TopError> {
    let ended = catch_signals().map_err(TopError::Terminal)?;
    let mut app = App::new(&options.instance, options.interval, &options.filter);
    let interval = Duration::from_secs_f64(app.interval);
    let sampler = Sampler::start(&options.instance, interval).map_err(TopError::Terminal)?;
    // From here on a panic, in whichever thread, restores the terminal before it is told.
    let mut terminal = ratatui::try_init().map_err(TopError::Terminal)?;
    let result = follow(&mut terminal, &mut app, &sampler, &ended, Theme { is_coloured: options.is_coloured });
    let restored = ratatui::try_restore();
    result.and(restored).map_err(TopError::Terminal)
}

fn catch_signals() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    Ok(ended)
}

fn follow(
    terminal: &mut DefaultTerminal,
    app: &mut App,
    sampler: &Sampler,
    ended: &AtomicBool,
    theme: Theme,
) -> io::Result<()> {
    let mut is_stale = true;
    while !ended.load(Ordering::Relaxed) {
        if is_stale {
            terminal.draw(|frame| draw(frame, app, theme))?;
        }
        is_stale = false;
        if has_event(TICK)? {
            match react(app, &event::read()?) {
                Reaction::Quit => return Ok(()),
                Reaction::Interval(interval) => {
                    // The thread is there as long as this is.
                    let _ = sampler.intervals.send(interval);
                    is_stale = true;
                }
                Reaction::Redraw => {
                    // What something else wrote onto the screen goes away, too.
                    is_stale = true;
                }
                Reaction::Nothing => {}
            }
        }
        match sampler.answers.try_recv() {
            Ok(answer) => {
                app.sample(answer);
                is_stale = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(io::Error::other("the thread that asks the daemon has ended")),
        }
    }
    Ok(())
}

/// Whether a key was pressed or the size changed; a signal ends the wait early.
fn has_event(within: Duration) -> io::Result<bool> {
    match event::poll(within) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        polled => polled,
    }
}

fn react(app: &mut App, event: &Event) -> Reaction {
    match event {
        Event::Key(key) => app.key(*key),
        Event::Resize(..) => Reaction::Redraw,
        _ => Reaction::Nothing,
    }
}
