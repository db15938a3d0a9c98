//! Scheduling priority of a worker thread.

/// How far a worker's nice value is below that of the process: about three times the share of an ordinary thread on the
/// same CPU. Measured on a CPU that the worker shares with the receiver of its packets: nine steps and more cost a quarter of
/// the TCP throughput and two thirds more time per request, because the worker then takes the CPU away for every packet, and
/// keeps it while it spins; up to five cost nothing.
pub const PRIORITY_STEPS: i32 = 5;
/// The lowest nice value that there is (`setpriority(2)`).
const LOWEST_NICE: libc::c_int = -20;

/// Lets the calling thread run before the ordinary ones of its process's own nice value when the CPU is contended: a worker
/// that waits for its turn is a pod that waits for its packets, and its heartbeat goes stale. Returns whether the kernel agreed
/// (it takes `CAP_SYS_NICE`); a worker without works as well, only later.
pub fn raise_priority() -> bool {
    // For `PRIO_PROCESS`, 0 is the calling thread alone (`setpriority(2)`, NOTES), which has the process's value by inheritance.
    // An error would read as nice -1: no worse a start than any.
    // SAFETY: no pointers in either call.
    unsafe {
        let inherited = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_NICE.max(inherited - PRIORITY_STEPS)) == 0
    }
}
