//! Scheduling priority of a worker thread.

/// The nice value of workers: above everything ordinary, below real-time threads, which could lock the node out.
const NICE: libc::c_int = -19;

/// Lets the calling thread run before ordinary ones when the CPU is contended: a worker that waits for its turn is a pod that
/// waits for its packets, and its heartbeat goes stale. Returns whether the kernel agreed (it takes `CAP_SYS_NICE`); a
/// worker without works as well, only later.
pub fn raise_priority() -> bool {
    // SAFETY: no pointers. For `PRIO_PROCESS`, 0 is the calling thread alone (`setpriority(2)`, NOTES).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0 }
}
