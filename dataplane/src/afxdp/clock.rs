//! The clocks that the run loop reads; everything below it takes time as an argument.

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds: the tick's time (1 to 10 ms apart), cheap to read, and the same clock as the
/// BPF helper `bpf_ktime_get_coarse_ns`, with which the XDP program compares heartbeats.
#[inline]
pub fn coarse_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline]
pub fn precise_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills in; both clocks exist since Linux 2.6.32, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
