//! The two calls of libbpf that `libbpf-rs` has no fitting wrapper for: creating an XDP link with a mode, and running a
//! program by its file descriptor. The loader's only `unsafe` code.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

use super::XdpMode;

/// Attaches the XDP program `program` to interface `ifindex` of the calling thread's network namespace, in exactly the
/// mode `mode`: without a mode the kernel would take generic XDP wherever the driver has no native one.
///
/// The kernel detaches when the last copy of the returned descriptor is closed, however the process ends.
///
/// # Errors
/// The kernel's (`net/core/dev.c`, `dev_xdp_attach`).
pub(super) fn create_link(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(nix::libc::EINVAL))?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags: match mode {
            XdpMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        },
        ..Default::default()
    };
    // SAFETY: `program` is open during the call, and `options` is a valid structure of the size that it names.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, libbpf_sys::BPF_XDP, &options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a test run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// The program's verdict: 2 (`XDP_PASS`) or 4 (`XDP_REDIRECT`).
    pub verdict: u32,
    /// Average time of one run, nanoseconds.
    pub ns: u32,
}

/// Runs an XDP program `repeat` times on `frame`, the context being `context` (`struct xdp_md`).
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8; 24], repeat: u32) -> io::Result<TestRun> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: context.len() as u32,
        repeat: i32::try_from(repeat).unwrap_or(i32::MAX),
        ..Default::default()
    };
    // SAFETY: `program` is open during the call; the pointers and lengths are those of live slices, which the kernel only
    // reads, since no output buffer is given.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(TestRun { verdict: options.retval, ns: options.duration })
}
