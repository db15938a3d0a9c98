//! What the service manager is told: that the daemon is ready, what it does, and that it still does it.
//!
//! The words are systemd's (`sd_notify(3)`), sent to the socket that `NOTIFY_SOCKET` names; without one nothing is sent. With
//! a watchdog (`WatchdogSec=` in the unit) the sign of life is sent by the daemon's loop as it comes around, and only while
//! every worker has come around lately too. So whichever of the threads hangs, the signs end, and the service manager kills and
//! starts the service after the time that the unit states. The node's traffic does not wait for that: the XDP program passes a
//! stuck worker's frames to the kernel after 90 ms ([`podlane_dataplane::limits`]).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// A worker whose last heartbeat is older is taken to hang. Workers beat twenty times a second and more; a machine that keeps
/// one from running for so long is no reason to end all of them.
pub const FRESH: Duration = Duration::from_secs(2);
/// Signs of life in each period of the watchdog.
const SIGNS: u32 = 4;
/// How long what is told stays the same at least.
const TELL: Duration = Duration::from_secs(1);

/// The service manager, or nobody.
#[derive(Debug)]
pub struct Service {
    /// Pause between two signs of life, if they are wanted.
    pause: Option<Duration>,
    last_sign: Option<Instant>,
    told: String,
    told_at: Option<Instant>,
    hangs: bool,
    last_turn: Option<Instant>,
    /// Since when the loop itself has come around without a pause.
    steady_since: Option<Instant>,
}

impl Service {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let pause = sd_notify::watchdog_enabled().map(|period| period / SIGNS);
        Service {
            pause,
            last_sign: None,
            told: String::new(),
            told_at: None,
            hangs: false,
            last_turn: None,
            steady_since: None,
        }
    }

    /// The daemon works.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The daemon reads its configuration again; [`Service::ready`] says that it has.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "reading the clock"),
        }
    }

    /// The daemon is about to end.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// To be called whenever the loop comes around: a sign of life if one is due and every worker has beaten lately, by the
    /// ages of their heartbeats; and a sentence, if it has changed.
    pub fn turn(&mut self, heartbeat_ages: impl Iterator<Item = Duration>, sentence: impl FnOnce() -> String) {
        let now = Instant::now();
        // A process that was stopped as a whole finds old heartbeats when it goes on: the workers get time to beat first.
        if self.last_turn.replace(now).is_none_or(|last| now.duration_since(last) >= FRESH / 2) {
            self.steady_since = Some(now);
        }
        let is_steady = self.steady_since.is_some_and(|since| now.duration_since(since) >= FRESH);
        let is_due = |last: Option<Instant>, pause| last.is_none_or(|last| now.duration_since(last) >= pause);
        let (sign_due, tell_due) =
            (self.pause.is_some_and(|pause| is_due(self.last_sign, pause)), is_due(self.told_at, TELL));
        if !sign_due && !tell_due {
            return;
        }
        let hanging = hanging(heartbeat_ages).filter(|_| is_steady);
        if sign_due && hanging.is_none() {
            self.last_sign = Some(now);
            send(&[NotifyState::Watchdog]);
        }
        self.complain(hanging);
        if tell_due {
            self.told_at = Some(now);
            self.tell(hanging.map_or_else(sentence, |(worker, age)| {
                format!(
                    "worker {worker} has not come around for {:.1} s; its frames pass to the kernel",
                    age.as_secs_f64()
                )
            }));
        }
    }

    /// Once for each time that it happens.
    fn complain(&mut self, hanging: Option<(usize, Duration)>) {
        if let Some((worker, _)) = hanging
            && !self.hangs
        {
            let then = match self.pause {
                Some(pause) => format!("unless it does, the service manager ends podlane within {:?}", pause * SIGNS),
                None => "restart podlane if it stays so".to_owned(),
            };
            let seconds = FRESH.as_secs();
            tracing::error!(
                "worker {worker} has not come around for {seconds} s; its frames pass to the kernel; {then}"
            );
        }
        self.hangs = hanging.is_some();
    }

    fn tell(&mut self, sentence: String) {
        if self.told != sentence {
            send(&[NotifyState::Status(&sentence)]);
            self.told = sentence;
        }
    }
}

/// The first worker that has not beaten lately, and for how long.
fn hanging(mut ages: impl Iterator<Item = Duration>) -> Option<(usize, Duration)> {
    let mut worker = 0;
    ages.find_map(|age| {
        worker += 1;
        (age > FRESH).then_some((worker - 1, age))
    })
}

fn send(state: &[NotifyState<'_>]) {
    // Whoever names a socket listens there; a daemon that is not heard works all the same.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "telling the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_hangs_when_its_heartbeat_is_old_and_the_first_is_named() {
        let ms = |ages: &[u64]| hanging(ages.iter().map(|age| Duration::from_millis(*age)));
        assert_eq!(ms(&[]), None);
        assert_eq!(ms(&[0, 90, 2000]), None);
        assert_eq!(ms(&[0, 2001, 5000]), Some((1, Duration::from_millis(2001))));
    }

    #[test]
    fn signs_of_life_are_sent_so_often_that_three_may_be_lost() {
        let service = |pause| Service {
            pause,
            last_turn: Some(Instant::now()),
            steady_since: Instant::now().checked_sub(FRESH),
            ..Service::from_environment()
        };
        let mut watched = service(Some(Duration::from_secs(1000)));
        watched.turn(std::iter::once(Duration::ZERO), String::new);
        let first = watched.last_sign.expect("the first is due at once");
        watched.turn(std::iter::once(Duration::ZERO), String::new);
        assert_eq!(watched.last_sign, Some(first), "the second is not");
        let mut hanging = service(Some(Duration::from_secs(1000)));
        hanging.turn([Duration::ZERO, FRESH * 2].into_iter(), || unreachable!("the worker is told of"));
        assert_eq!(hanging.last_sign, None);
        assert!(
            hanging.hangs && hanging.told.starts_with("worker 1 has not come around for 4.0 s"),
            "{}",
            hanging.told
        );
        let mut resumed = Service { last_turn: None, ..service(None) };
        resumed.turn(std::iter::once(FRESH * 2), || "serving".to_owned());
        assert!(!resumed.hangs, "the loop itself has only just come around");
        let mut unwatched = service(None);
        unwatched.turn(std::iter::once(Duration::ZERO), || "serving".to_owned());
        assert_eq!((unwatched.last_sign, unwatched.told.as_str()), (None, "serving"));
    }
}
