//! What threads need not be able to do, they give up.
//!
//! Attaching programs, making sockets and writing to the kernel's tables is the work of the daemon's loop alone. A worker reads
//! and writes rings that were made for it, and `sendto`, `poll` and `epoll` on a socket that is open ask for no capability; the
//! threads that answer HTTP, read files of the container runtime or tell captured packets ask for none either. So each of
//! them [`renounce`]s all capabilities before it looks at its first byte from outside. The one that reads netfilter's rules keeps
//! what the kernel asks for that ([`keep_for_rules`]).
//!
//! There is no system call filter for each thread: all of them share one memory, so whoever can make a worker run code of
//! his own can write into the loop's memory, and needs no system call for that. The filter around the whole process is the
//! service's (`packaging/podlane.service`).

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// Nobody who is made by this process can ever have more privileges than it: no program with the set-user-id bit or with
/// file capabilities gives any. For the calling thread and those that it starts.
pub fn no_new() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::debug!(%error, "giving up that programs started from here get new privileges");
    }
}

/// Takes every capability from the calling thread, for good. A thread that cannot goes on and says so: it works as well.
pub fn renounce() {
    say(take_all());
}

/// Leaves the calling thread only what reading netfilter's rules takes: NET_ADMIN for those of nftables, and NET_RAW as well for
/// the socket of `iptables-legacy-save`. As [`renounce`].
pub fn keep_for_rules() {
    let wanted = CapsHashSet::from([Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]);
    let keep = || {
        let kept = caps::read(None, CapSet::Permitted)?.intersection(&wanted).copied().collect();
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    say(keep());
}

fn say(outcome: Result<(), CapsError>) {
    if let Err(error) = outcome {
        let thread = std::thread::current().name().unwrap_or("a thread").to_owned();
        tracing::warn!(%error, thread, "a thread keeps capabilities that it does not need");
    }
}

fn take_all() -> Result<(), CapsError> {
    // The ambient set first: what is in it must be in the others. The permitted set last: the others must be within it.
    [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
        .into_iter()
        .try_for_each(|set| caps::clear(None, set))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_renounced_has_nothing_and_the_others_keep_what_they_had() {
        let held = |set| caps::read(None, set).unwrap();
        let before = held(CapSet::Permitted);
        let left = std::thread::spawn(move || {
            renounce();
            [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted].map(held)
        });
        assert!(left.join().unwrap().iter().all(|set| set.is_empty()));
        assert_eq!(held(CapSet::Permitted), before);
    }

    #[test]
    fn a_thread_that_reads_rules_has_what_that_takes_and_no_more() {
        let held = |set| caps::read(None, set).unwrap();
        let before = held(CapSet::Permitted);
        let left = std::thread::spawn(move || {
            keep_for_rules();
            [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted].map(held)
        });
        let [ambient, inheritable, effective, permitted] = left.join().unwrap();
        assert!(ambient.is_empty() && inheritable.is_empty());
        assert_eq!(effective, permitted);
        let wanted = CapsHashSet::from([Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]);
        assert_eq!(permitted, before.intersection(&wanted).copied().collect());
        assert_eq!(held(CapSet::Permitted), before);
    }
}
