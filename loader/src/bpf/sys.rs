//! The calls of libbpf and of the kernel that no library here has a fitting wrapper for: links with a mode or at tcx,
//! running a program by its file descriptor, waiting for programs, rings that wake nobody. The loader's only `unsafe` code.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::XdpMode;
use super::filter::{Hook, Instruction};

/// The version of libbpf, major and minor.
pub fn libbpf_version() -> (u32, u32) {
    // SAFETY: both functions return constants.
    unsafe { (libbpf_sys::libbpf_major_version(), libbpf_sys::libbpf_minor_version()) }
}

/// Attaches the XDP program `program` to interface `ifindex` of the calling thread's network namespace, in exactly the
/// mode `mode`: without a mode the kernel would take generic XDP wherever the driver has no native one.
///
/// The kernel detaches when the last copy of the returned descriptor is closed, however the process ends.
///
/// # Errors
/// The kernel's (`net/core/dev.c`, `dev_xdp_attach`).
pub(super) fn create_link(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let flags = match mode {
        XdpMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
    };
    create(program, ifindex, libbpf_sys::BPF_XDP, flags)
}

/// Attaches the tc program `program` to tcx ingress of interface `ifindex` of the calling thread's network namespace, behind
/// the programs that are there already. Linux 6.6.
///
/// The kernel detaches when the last copy of the returned descriptor is closed, however the process ends.
///
/// # Errors
/// The kernel's (`kernel/bpf/tcx.c`, `tcx_link_attach`).
pub(super) fn create_tcx_link(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    create(program, ifindex, libbpf_sys::BPF_TCX_INGRESS, 0)
}

/// As libbpf wants an interface's index.
fn signed(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(nix::libc::EINVAL))
}

fn create(program: BorrowedFd<'_>, ifindex: u32, kind: libbpf_sys::bpf_attach_type, flags: u32) -> io::Result<OwnedFd> {
    let ifindex = signed(ifindex)?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: `program` is open during the call, and `options` is a valid structure of the size that it names.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, kind, &options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a link now, even where a process that is being started still has a copy of the descriptor for a moment. An
/// interface that is gone has none any more; that is no error.
pub(super) fn detach_link(link: BorrowedFd<'_>) {
    // SAFETY: no pointers; the descriptor is open during the call.
    let result = unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) };
    if result < 0 {
        tracing::debug!(error = %io::Error::from_raw_os_error(-result), "detaching a program");
    }
}

/// Has a link run another program of the same type from now on. No packet meets neither of them.
///
/// # Errors
/// The kernel's: `ENOLINK` if the interface is gone, `EINVAL` for a program of another type.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers but the absent options; both descriptors are open during the call.
    succeeded(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })
}

/// Loads an XDP program that passes every frame and looks at nothing.
///
/// # Errors
/// The kernel's.
pub(super) fn load_passing() -> io::Result<OwnedFd> {
    // r0 = XDP_PASS; exit (RFC 9669, 4.1 and 4.3).
    let instruction =
        |code: u32, immediate: i32| libbpf_sys::bpf_insn { code: code as u8, imm: immediate, ..Default::default() };
    let instructions = [
        instruction(libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K, libbpf_sys::XDP_PASS as i32),
        instruction(libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT, 0),
    ];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_XDP,
        // An interface whose frames are longer than a page takes no other.
        prog_flags: libbpf_sys::BPF_F_XDP_HAS_FRAGS,
        ..Default::default()
    };
    // SAFETY: the strings, the instructions and the options live through the call, with their lengths beside them.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            c"podlane_pass".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &raw mut options,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a link of ours can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// XDP.
    Xdp,
    /// tcx.
    Tcx,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkState {
    /// Where it hangs.
    pub kind: LinkKind,
    /// The interface; 0 if that is gone.
    pub ifindex: u32,
    /// The number of the program that it runs.
    pub program: u32,
}

/// Asks the kernel what a link is.
///
/// # Errors
/// The kernel's, and `EINVAL` for what is neither XDP nor tcx.
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut bytes = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: `info` is valid for writes of the size that is named, and the descriptor is open during the call.
    succeeded(unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut bytes) })?;
    let of = &info.__bindgen_anon_1;
    let (kind, ifindex) = match info.type_ {
        // SAFETY: the kernel fills the member that belongs to the type, and every member is plain integers.
        libbpf_sys::BPF_LINK_TYPE_XDP => (LinkKind::Xdp, unsafe { of.xdp.ifindex }),
        // SAFETY: as above.
        libbpf_sys::BPF_LINK_TYPE_TCX => (LinkKind::Tcx, unsafe { of.tcx.ifindex }),
        _ => return Err(io::Error::from_raw_os_error(nix::libc::EINVAL)),
    };
    Ok(LinkState { kind, ifindex, program: info.prog_id })
}

/// The numbers of the tcx programs at one side of interface `ifindex`, in the order in which they run.
///
/// # Errors
/// The kernel's; `EINVAL` of one without tcx.
pub(super) fn tcx_programs(ifindex: u32, is_egress: bool) -> io::Result<Vec<u32>> {
    /// `BPF_MPROG_MAX` (`kernel/bpf/mprog.c`).
    const MOST: usize = 64;
    let mut ids = [0; MOST];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    options.__bindgen_anon_1.count = MOST as u32;
    let side = if is_egress { libbpf_sys::BPF_TCX_EGRESS } else { libbpf_sys::BPF_TCX_INGRESS };
    // SAFETY: `options` is a valid structure of the size that it names, and `ids` has room for as many as it says.
    succeeded(unsafe { libbpf_sys::bpf_prog_query_opts(signed(ifindex)?, side, &mut options) })?;
    // SAFETY: both members are the same number.
    let count = unsafe { options.__bindgen_anon_1.count } as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// Pins a map or a link at `path`, which must not exist yet and must lie on bpffs.
///
/// # Errors
/// The kernel's.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string ends with a zero and the descriptor is open during the call.
    succeeded(unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) })
}

/// Opens what is pinned at `path`.
///
/// # Errors
/// The kernel's.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string ends with a zero.
    let fd = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    succeeded(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads all elements of a map that nobody writes meanwhile, in one call: keys and values, each one behind the other. `key`,
/// `value`: their bytes; `most`: how many there can be.
///
/// # Errors
/// The kernel's; not all types of maps can be read so on all kernels.
pub(super) fn read_map(map: BorrowedFd<'_>, key: usize, value: usize, most: usize) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut keys, mut values) = (vec![0; key * most], vec![0; value * most]);
    // Where the next call would go on: a key, or a number of four bytes.
    let mut token = vec![0_u8; key.max(4)];
    let mut count = u32::try_from(most).unwrap_or(u32::MAX);
    let options =
        libbpf_sys::bpf_map_batch_opts { sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _, ..Default::default() };
    // SAFETY: the buffers have room for `count` keys and values of the sizes that the map has (the caller has compared them),
    // `token` for one key, and `options` is a valid structure of the size that it names.
    let result = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_raw_fd(),
            std::ptr::null_mut(),
            token.as_mut_ptr().cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &mut count,
            &options,
        )
    };
    // The end was reached before the buffers were full.
    if result != -nix::libc::ENOENT {
        succeeded(result)?;
    }
    keys.truncate(key * count as usize);
    values.truncate(value * count as usize);
    Ok((keys, values))
}

/// libbpf's answers: negative error numbers.
fn succeeded(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
}

/// Loads a program that was made at run time.
///
/// # Errors
/// The kernel's, with the verifier's last words.
pub(super) fn load_program(hook: Hook, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let (kind, attach, flags) = match hook {
        Hook::Xdp => (libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_XDP, libbpf_sys::BPF_F_XDP_HAS_FRAGS),
        Hook::Tc => (libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, 0, 0),
    };
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
        expected_attach_type: attach,
        prog_flags: flags,
        ..Default::default()
    };
    // SAFETY: the strings end with a zero, `instructions` are as many `struct bpf_insn` as is said, and `options` is a valid
    // structure of the size that it names.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            c"podlane_filter".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as _,
            &mut options,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a clsact qdisc on interface `ifindex`. Says whether it is new.
///
/// # Errors
/// The kernel's.
pub(super) fn create_clsact(ifindex: u32) -> io::Result<bool> {
    let ifindex = signed(ifindex)?;
    let mut hook = libbpf_sys::bpf_tc_hook {
        sz: size_of::<libbpf_sys::bpf_tc_hook>() as _,
        ifindex,
        attach_point: libbpf_sys::BPF_TC_INGRESS,
        ..Default::default()
    };
    // SAFETY: `hook` is a valid structure of the size that it names.
    match unsafe { libbpf_sys::bpf_tc_hook_create(&mut hook) } {
        0 => Ok(true),
        error if error == -nix::libc::EEXIST => Ok(false),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The rings of all CPUs behind a perf event array. Whoever reads them looks by himself from time to time: a program that
/// puts something in wakes nobody. Waking takes an interrupt for each record, several microseconds of the time of whoever
/// sent the frame.
#[derive(Debug)]
pub struct EventRings<'a> {
    rings: NonNull<libbpf_sys::perf_buffer>,
    /// What the callback is given, of which this is the owner.
    reader: NonNull<Reader<'a>>,
    owns: PhantomData<Reader<'a>>,
}

/// Is called with each record.
type Reader<'a> = Box<dyn FnMut(&[u8]) + 'a>;

impl<'a> EventRings<'a> {
    /// Opens a ring of `pages` pages, a power of two, for each CPU. `reader` gets every record that [`EventRings::read`] finds.
    ///
    /// # Errors
    /// The kernel's (`perf_event_open`, `mmap`).
    pub fn open(events: BorrowedFd<'_>, pages: usize, reader: impl FnMut(&[u8]) + 'a) -> io::Result<Self> {
        let reader: Reader<'a> = Box::new(reader);
        let reader = NonNull::from(Box::leak(Box::new(reader)));
        let options = libbpf_sys::perf_buffer_opts {
            sz: size_of::<libbpf_sys::perf_buffer_opts>() as _,
            // So many records until somebody is woken: more than a ring has room for.
            sample_period: i32::MAX as u32,
            ..Default::default()
        };
        // SAFETY: `events` is open during the call; `options` is a valid structure of the size that it names; `reader` is what
        // `call_reader` expects, and lives until the rings are freed.
        let rings = unsafe {
            libbpf_sys::perf_buffer__new(
                events.as_raw_fd(),
                pages as _,
                Some(call_reader),
                None,
                reader.as_ptr().cast(),
                &options,
            )
        };
        // libbpf leaves the reason in errno.
        let error = io::Error::last_os_error();
        let rings = NonNull::new(rings).ok_or_else(|| {
            // SAFETY: made from a box above, and nobody has it.
            drop(unsafe { Box::from_raw(reader.as_ptr()) });
            error
        })?;
        Ok(EventRings { rings, reader, owns: PhantomData })
    }

    /// Hands everything that is in the rings to the reader.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&mut self) -> io::Result<()> {
        // SAFETY: the rings are open as long as `self` is, and `&mut` keeps the reader from being called twice at a time.
        match unsafe { libbpf_sys::perf_buffer__consume(self.rings.as_ptr()) } {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(()),
        }
    }
}

impl Drop for EventRings<'_> {
    fn drop(&mut self) {
        // SAFETY: both were made by `open`, and are freed only here; the rings, which know the reader, first.
        unsafe {
            libbpf_sys::perf_buffer__free(self.rings.as_ptr());
            drop(Box::from_raw(self.reader.as_ptr()));
        }
    }
}

/// What libbpf calls with a record of `bytes` bytes at `data`.
extern "C" fn call_reader(reader: *mut c_void, _cpu: i32, data: *mut c_void, bytes: u32) {
    // SAFETY: `reader` is that of `EventRings::open`, and only `EventRings::read` gets here, one call at a time; the record is
    // libbpf's until this returns. A panic ends the process instead of unwinding into C.
    let (reader, record) = unsafe {
        (&mut *reader.cast::<Reader<'_>>(), std::slice::from_raw_parts(data.cast::<u8>().cast_const(), bytes as usize))
    };
    reader(record);
}

/// Waits until every BPF program that ran when this was called has ended, on machines that may reorder loads; elsewhere the
/// programs notice by themselves ([`super::generation`]).
pub(super) fn wait_for_programs() {
    #[cfg(not(target_arch = "x86_64"))]
    wait_for_all_programs();
}

/// Waits until every BPF program that ran when this was called has ended: some ten milliseconds.
pub(super) fn wait_for_all_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` (`linux/membarrier.h`): an RCU grace period.
    const GLOBAL: nix::libc::c_int = 1;
    // SAFETY: no pointers.
    if unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, GLOBAL, 0, 0) } != 0
        && let Err(error) = wait_by_a_map()
    {
        tracing::warn!(%error, "waiting for programs that run to end");
    }
}

/// The same where the kernel refuses it: with CPUs that have no tick (`nohz_full`). Whoever writes to a map of maps is not
/// answered before a grace period is over (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`).
fn wait_by_a_map() -> libbpf_rs::Result<()> {
    let mut options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let inner = MapHandle::create(MapType::Array, Some("podlane_inner"), 4, 4, 1, &options)?;
    options.inner_map_fd = inner.as_fd().as_raw_fd() as u32;
    let outer = MapHandle::create(MapType::ArrayOfMaps, Some("podlane_wait"), 4, 4, 1, &options)?;
    outer.update(&[0; 4], &inner.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
}

/// What a test run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// The program's verdict: 2 (`XDP_PASS`) or 4 (`XDP_REDIRECT`).
    pub verdict: u32,
    /// Average time of one run, nanoseconds.
    pub ns: u32,
}

/// Runs a program `repeat` times on `frame`, the context being `context` (`struct xdp_md` or `struct __sk_buff`). The frame
/// as it is afterwards goes to `out`, which must have room for it, unless it has none at all.
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: &[u8],
    repeat: u32,
    out: &mut Vec<u8>,
) -> io::Result<TestRun> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: context.len() as u32,
        data_out: if out.is_empty() { std::ptr::null_mut() } else { out.as_mut_ptr().cast() },
        data_size_out: u32::try_from(out.len()).unwrap_or(u32::MAX),
        repeat: i32::try_from(repeat).unwrap_or(i32::MAX),
        ..Default::default()
    };
    // SAFETY: `program` is open during the call; the pointers and lengths are those of live slices, of which the kernel
    // writes only to `out`, no more than its length.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    out.truncate(options.data_size_out as usize);
    Ok(TestRun { verdict: options.retval, ns: options.duration })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_that_passes_everything_is_loaded() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_program_that_passes_everything_is_loaded (needs root)");
            return;
        }
        super::load_passing().unwrap();
    }

    #[test]
    fn a_map_of_maps_can_be_waited_for() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_map_of_maps_can_be_waited_for (needs root)");
            return;
        }
        super::wait_by_a_map().unwrap();
    }
}
