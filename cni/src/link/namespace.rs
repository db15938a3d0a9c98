//! Going to a pod's network namespace, and coming back.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::protocol::failure::{Failure, code};

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that a path leads to.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

/// The calling thread is in another namespace while this lives, and back in its own then.
#[derive(Debug)]
pub struct Inside {
    own: File,
}

impl Namespace {
    /// Opens `CNI_NETNS`.
    ///
    /// # Errors
    /// Code 3: there is no such file; 4: it is none that can be opened, or this thread's own namespace.
    pub fn open(path: &str) -> Result<Self, Failure> {
        let wrong = |code: u32, what: String| Failure::new(code, format!("CNI_NETNS: {what}"));
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => wrong(code::UNKNOWN_CONTAINER, format!("there is no {path}")),
            _ => wrong(code::ENVIRONMENT, format!("cannot open {path}: {error}")),
        })?;
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let is_own = File::open(OWN).and_then(|own| Ok(identity(&own)? == identity(&file)?));
        match is_own {
            Ok(false) => Ok(Namespace { file }),
            Ok(true) => Err(wrong(code::ENVIRONMENT, format!("{path} is the node's own network namespace"))),
            Err(error) => Err(wrong(code::ENVIRONMENT, format!("cannot look at {path}: {error}"))),
        }
    }

    /// Its file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Goes there.
    ///
    /// # Errors
    /// Code 4: the path leads to no network namespace; 100: going there is not allowed.
    pub fn enter(&self) -> Result<Inside, Failure> {
        let own = File::open(OWN).map_err(|error| Failure::new(code::KERNEL, format!("cannot open {OWN}: {error}")))?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| match error {
            Errno::EINVAL => Failure::new(code::ENVIRONMENT, "CNI_NETNS leads to no network namespace"),
            error => Failure::new(code::KERNEL, format!("cannot enter the pod's network namespace: {error}")),
        })?;
        Ok(Inside { own })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = setns(self.own.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Whatever would follow was meant for the node, and would be done to the pod.
            eprintln!("podlane-cni: cannot leave the pod's network namespace: {error}");
            std::process::abort();
        }
    }
}
