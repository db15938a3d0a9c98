//! The XDP and tc programs: loading them, attaching them to ports, and keeping their maps equal to the engine's tables.
//!
//! [`Steering`] owns the loaded programs, their maps and every attachment. All of it lives in file descriptors of this
//! process and nothing is pinned: however the process ends, the kernel detaches the programs and the node's traffic goes
//! the kernel's way. The programs themselves are in `bpf/`.

mod attach;
mod capture;
mod error;
pub(crate) mod filter;
mod generation;
mod layout;
mod load;
mod repeat;
mod sync;
mod sys;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags};
use podlane_dataplane::afxdp::SharedWords;
use podlane_dataplane::table::Tables;
use podlane_dataplane::{PortId, limits};

pub use attach::XdpMode;
pub use capture::{Place, ProgramRecord, RECORD_BYTES, Records};
pub use error::{AttachError, BpfError};
pub use layout::{HEARTBEAT_BYTES, HEARTBEAT_STRIDE, PortCounters};
pub use repeat::TcKind;
pub use sync::Writes;
pub use sys::{TestRun, libbpf_version};

/// The loaded XDP programs.
#[derive(Debug)]
pub struct Steering {
    native: load::Program,
    /// For native mode on a veth; `None` where the kernel is too old for it and the plain one must do.
    veth: Option<load::Program>,
    /// Loaded when the first port asks for generic mode; an older kernel refuses it.
    generic: Option<load::Program>,
    /// The tc program, loaded when the first port takes the kernel path.
    repeat: Option<load::Program>,
    tc_kind: TcKind,
    mirrored: sync::Mirrored,
    plain: load::PlainMaps,
    /// Attachments by interface index.
    links: HashMap<u32, (XdpMode, OwnedFd)>,
    /// The same of the tc program.
    tc_links: HashMap<u32, repeat::TcLink>,
    used: SharedWords,
    capture: capture::Capture,
}

impl Steering {
    /// Loads the programs for native mode. They steer nothing until they are attached and have tables, sockets and heartbeats.
    ///
    /// # Errors
    /// [`BpfError::Permission`] and [`BpfError::Load`].
    pub fn load() -> Result<Self, BpfError> {
        let (native, mirrored, plain) = load::native()?;
        let mirrored = sync::Mirrored::new(mirrored)?;
        let veth = load::veth(&mirrored, &plain);
        let used = SharedWords::map(plain.used.as_fd(), limits::MAX_NEIGHBOURS + limits::MAX_FDB);
        let used = used.map_err(|error| BpfError::Map { table: "entries in use", source: error.into() })?;
        Ok(Steering {
            native,
            veth,
            generic: None,
            repeat: None,
            tc_kind: repeat::best_kind(),
            mirrored,
            plain,
            links: HashMap::new(),
            tc_links: HashMap::new(),
            used,
            capture: capture::Capture::default(),
        })
    }

    /// Shows the tc program that the tables are being kept up to date, at `now_ns` of `CLOCK_MONOTONIC_COARSE`. It trusts
    /// them for [`limits::TABLES_STALE_MS`] from then.
    pub fn vouch(&self, now_ns: u64) {
        self.mirrored.generations.beat(now_ns);
    }

    /// When the tc program last used entry `index`, seconds of the monotonic clock, at most 1.1 s early; 0 for never.
    pub fn last_used_s(&self, index: u32) -> u32 {
        // The program counts in units of 2^30 ns.
        ((self.used.load(index as usize) << 30) / 1_000_000_000) as u32
    }

    /// The snapshot that the programs read; counts up with every change.
    pub fn generation(&self) -> u64 {
        self.mirrored.generations.current()
    }

    /// Writes a snapshot into the maps, as the difference to what the copy that is not in force holds, and puts it in force.
    /// Parts that are the same (`Arc`) as when that copy was last written cost nothing. Programs see the old snapshot until
    /// the new one is complete.
    ///
    /// # Errors
    /// [`BpfError::Full`] before anything is written; [`BpfError::Map`] with the old snapshot still in force, and the next
    /// call going on from there.
    pub fn sync(&mut self, tables: &Tables) -> Result<Writes, BpfError> {
        self.mirrored.sync(tables)
    }

    /// Has frames from queue `queue` of `port` go to the AF_XDP socket `socket`, which worker `worker` drains. The socket
    /// must be bound to that queue of that port's interface; the kernel drops what is redirected to any other. Closing the
    /// socket takes the entry away.
    ///
    /// # Errors
    /// [`BpfError::Beyond`] for a number beyond the limits, [`BpfError::Map`] if `socket` is no AF_XDP socket.
    pub fn set_socket(
        &mut self,
        port: PortId,
        queue: u32,
        socket: BorrowedFd<'_>,
        worker: usize,
    ) -> Result<(), BpfError> {
        let key = socket_key(port, queue)?;
        below("worker", worker, limits::MAX_WORKERS)?;
        // The owner first: a socket without one would be judged by another worker's heartbeat.
        let owner = self.plain.owners.update(&key, &(worker as u32).to_ne_bytes(), MapFlags::ANY);
        owner.map_err(|source| BpfError::Map { table: "socket owners", source })?;
        let entry = self.plain.sockets.update(&key, &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY);
        entry.map_err(|source| BpfError::Map { table: "AF_XDP sockets", source })
    }

    /// Has frames from queue `queue` of `port` pass to the kernel again. A queue without a socket is no error.
    ///
    /// # Errors
    /// As [`Steering::set_socket`].
    pub fn clear_socket(&mut self, port: PortId, queue: u32) -> Result<(), BpfError> {
        match self.plain.sockets.delete(&socket_key(port, queue)?) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(BpfError::Map { table: "AF_XDP sockets", source })
            }
            _ => Ok(()),
        }
    }

    /// The map of heartbeats, to be mapped shared and writable: [`HEARTBEAT_BYTES`], worker `w`'s heartbeat being the
    /// `u64` at `w * HEARTBEAT_STRIDE`. A worker stores `CLOCK_MONOTONIC_COARSE` there, in nanoseconds; when that is older
    /// than [`limits::HEARTBEAT_STALE_MS`] its frames pass to the kernel. 0: no worker.
    pub fn heartbeats(&self) -> BorrowedFd<'_> {
        self.plain.heartbeats.as_fd()
    }

    /// Writes one heartbeat with a system call, for whoever has not mapped the heartbeats.
    ///
    /// # Errors
    /// As [`Steering::set_socket`].
    pub fn beat(&self, worker: usize, ns: u64) -> Result<(), BpfError> {
        below("worker", worker, limits::MAX_WORKERS)?;
        let mut value = [0; HEARTBEAT_STRIDE];
        value[..8].copy_from_slice(&ns.to_ne_bytes());
        let written = self.plain.heartbeats.update(&(worker as u32).to_ne_bytes(), &value, MapFlags::ANY);
        written.map_err(|source| BpfError::Map { table: "heartbeats", source })
    }

    /// What the program did with the frames of `port` since its counters were reset.
    ///
    /// # Errors
    /// [`BpfError::Beyond`] and [`BpfError::Map`].
    pub fn counters(&self, port: PortId) -> Result<PortCounters, BpfError> {
        below("port", port.index(), limits::MAX_PORTS)?;
        self.read_counters(port.index())
    }

    /// Frames of interfaces that the program is attached to but that are no port in the last snapshot; they all pass.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn stray_counters(&self) -> Result<PortCounters, BpfError> {
        self.read_counters(limits::MAX_PORTS)
    }

    /// Sets the counters of `port` to zero. Only exact while no frame arrives there: use it before a port number is handed
    /// out again.
    ///
    /// # Errors
    /// [`BpfError::Beyond`] and [`BpfError::Map`].
    pub fn reset_counters(&mut self, port: PortId) -> Result<(), BpfError> {
        below("port", port.index(), limits::MAX_PORTS)?;
        let failed = |source| BpfError::Map { table: "counters", source };
        let zeros = vec![vec![0; layout::COUNTERS_BYTES]; libbpf_rs::num_possible_cpus().map_err(failed)?];
        let key = u32::from(port.0).to_ne_bytes();
        self.plain.counters.update_percpu(&key, &zeros, MapFlags::ANY).map_err(failed)
    }

    fn read_counters(&self, index: usize) -> Result<PortCounters, BpfError> {
        let found = self.plain.counters.lookup_percpu(&(index as u32).to_ne_bytes(), MapFlags::ANY);
        let cpus = found.map_err(|source| BpfError::Map { table: "counters", source })?.unwrap_or_default();
        let mut counters = PortCounters::default();
        cpus.iter().for_each(|cpu| counters.add(cpu));
        Ok(counters)
    }

    /// Runs the native program `repeat` times on a made-up frame, as if it had come in through queue `queue` of interface
    /// `ifindex` of the calling thread's network namespace, its first `linear` bytes in one piece. The frame counts; it is
    /// not delivered anywhere.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for a frame or piece of less than 14 bytes, for an unknown queue, and before Linux 6.18 for a
    /// `linear` other than the frame's length; `ENODEV` for an unknown interface.
    pub fn test_run(
        &self,
        frame: &[u8],
        linear: usize,
        ifindex: u32,
        queue: u32,
        repeat: u32,
    ) -> std::io::Result<TestRun> {
        let end = u32::try_from(linear).unwrap_or(u32::MAX);
        let mut context = [0; 24];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        for (field, value) in context.chunks_exact_mut(4).zip([0, end, 0, ifindex, queue, 0]) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        sys::test_run(self.native.as_fd(), frame, &context, repeat, &mut Vec::new())
    }

    /// Runs the tc program `repeat` times on a made-up frame, as if it had come in through interface `ifindex` of the calling
    /// thread's network namespace; with `gso_size` other than 0 as a super-frame whose segments carry so many bytes. Returns
    /// the frame as it is afterwards. The frame counts; it is not delivered anywhere.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for a frame of less than 14 bytes or more than a page holds, `ENODEV` for an unknown interface.
    pub fn test_repeat(
        &mut self,
        frame: &[u8],
        ifindex: u32,
        gso_size: u32,
        repeat: u32,
    ) -> std::io::Result<(TestRun, Vec<u8>)> {
        let mut context = [0; SK_BUFF_BYTES];
        context[SK_BUFF_IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
        context[SK_BUFF_GSO_SIZE..][..4].copy_from_slice(&gso_size.to_ne_bytes());
        let program = self.repeat_program("a test run").map_err(std::io::Error::other)?.as_fd();
        let mut out = vec![0; frame.len()];
        let run = sys::test_run(program, frame, &context, repeat, &mut out)?;
        Ok((run, out))
    }
}

/// Offsets in `struct __sk_buff`, and its size up to the last field that we set.
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF_GSO_SIZE: usize = 176;
const SK_BUFF_BYTES: usize = 184;

fn below(what: &'static str, number: usize, limit: usize) -> Result<(), BpfError> {
    if number < limit { Ok(()) } else { Err(BpfError::Beyond { what, number, limit }) }
}

fn socket_key(port: PortId, queue: u32) -> Result<[u8; 4], BpfError> {
    below("port", port.index(), limits::MAX_PORTS)?;
    below("queue", queue as usize, limits::MAX_QUEUES)?;
    Ok((port.index() as u32 * limits::MAX_QUEUES as u32 + queue).to_ne_bytes())
}
