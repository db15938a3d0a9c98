//! Having a running daemon let go of its node, for one that takes over from it or for `podlane detach`.
//!
//! The running daemon is asked through its control socket. It answers, stops its workers, closes its sockets, saves its
//! counters, leaves everything else in place and ends; its control socket is the last thing that it gives up. Whoever asked
//! waits for that, and owns the instance when this returns.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::control::{self, AskError, Control, ControlError, PATIENCE, Request};

/// How long a daemon that has agreed may take to let go. It gives a stuck worker five seconds.
const LETTING_GO: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// How a daemon begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// Nobody of this instance may run.
    #[default]
    Alone,
    /// One that runs is asked to let go when everything is prepared.
    TakeOver,
}

/// The running daemon did not let go. It goes on undisturbed.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Its version does not know how.
    #[error(
        "podlane instance \"{instance}\" runs a version that cannot be asked to let go ({sentence}); stop it \
         (systemctl stop podlane) and start this one"
    )]
    TooOld {
        /// The instance.
        instance: String,
        /// What it said.
        sentence: String,
    },
    /// It does not answer, or refuses.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It agreed and is still there, or somebody else was faster.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Has the daemon of `instance` let go, if one runs, and takes its place at the control socket. Gives its process as well.
///
/// # Errors
/// [`TakeOverError`].
pub fn relieve(instance: &str) -> Result<(Control, Option<u64>), TakeOverError> {
    let answer = match control::ask(instance, &control::socket_path(instance), Request::LetGo, PATIENCE) {
        Ok(answer) => answer,
        Err(AskError::NotRunning { .. }) => return Ok((Control::open(instance)?, None)),
        Err(AskError::Refused { instance, sentence }) if sentence.contains("there is no request") => {
            return Err(TakeOverError::TooOld { instance, sentence });
        }
        Err(error) => return Err(error.into()),
    };
    let answer: Option<serde_json::Value> = serde_json::from_str(&answer).ok();
    let pid = answer.and_then(|answer| answer["pid"].as_u64());
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match Control::open(instance) {
            Err(ControlError::Occupied { .. }) if Instant::now() < deadline => sleep(LOOK),
            opened => return Ok((opened?, pid)),
        }
    }
}
