//! One at a time: who looks at an instance's pins, makes the first of them and takes them back when it cannot start must be
//! alone with them meanwhile. The control socket is not enough for that, since a daemon that takes over prepares while another
//! has the socket, or is about to get it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{PinError, Pins, at};

/// How long to wait for others, a start each of which takes a second or two with some hundred pods.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);

/// The directory is ours. Dropped, it is removed if nothing is in it.
#[derive(Debug)]
pub struct Turn {
    pins: Pins,
    _lock: Flock<File>,
}

impl Pins {
    /// Waits until nobody else has a turn, and takes it. Makes the directory, which is what is locked.
    ///
    /// # Errors
    /// If the directory cannot be made, or somebody has it for more than fifteen seconds.
    pub fn take_turn(&self) -> Result<Turn, PinError> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.create()?;
            if let Some(lock) = self.try_lock().map_err(at(&self.directory))? {
                return Ok(Turn { pins: self.clone(), _lock: lock });
            }
            if Instant::now() > until {
                let sentence =
                    "another podlane of this instance has been starting or detaching here for 15 s; end it first";
                return Err(at(&self.directory)(io::Error::new(io::ErrorKind::TimedOut, sentence)));
            }
            sleep(LOOK);
        }
    }

    /// `None`: somebody has it, or has removed it since.
    fn try_lock(&self) -> io::Result<Option<Flock<File>>> {
        let file = match File::open(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EAGAIN)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
            Ok(lock) => lock,
        };
        let is_there =
            fs::metadata(&self.directory).is_ok_and(|now| lock.metadata().is_ok_and(|own| own.ino() == now.ino()));
        Ok(is_there.then_some(lock))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pins.remove_directories();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// The turn is a matter of directories, whatever file system they are of.
    fn pins(root: &std::path::Path) -> Pins {
        Pins::of(root, "turn").unwrap()
    }

    #[test]
    fn one_at_a_time_and_nothing_left() {
        let root = tempfile::tempdir().unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let turn = pins(root.path()).take_turn().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        assert!(turn.pins.directory().is_dir());
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_in_the_directory_stays() {
        let root = tempfile::tempdir().unwrap();
        let turn = pins(root.path()).take_turn().unwrap();
        let mark = turn.pins.directory().join("gro-3");
        fs::create_dir(&mark).unwrap();
        drop(turn);
        assert!(mark.is_dir());
    }
}
