//! The XDP and tc programs: loading them, attaching them to ports, and keeping their maps equal to the engine's tables.
//!
//! [`Steering`] owns the loaded programs, their maps and every attachment. Loaded without [`pins`], all of it lives in file
//! descriptors of this process: however the process ends, the kernel detaches the programs and the node's traffic goes the
//! kernel's way. With pins, attachments and maps outlive the process, and the next one adopts them. The programs themselves
//! are in `bpf/`.

mod attach;
mod beside;
mod capture;
mod error;
pub(crate) mod filter;
mod generation;
mod layout;
mod load;
pub mod pins;
mod quiet;
mod repeat;
mod sync;
mod sys;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use podlane_dataplane::afxdp::SharedWords;
use podlane_dataplane::table::{Guard, Path, Tables};
use podlane_dataplane::{PortId, limits};

pub use attach::XdpMode;
pub use beside::Beside;
pub use capture::{Place, ProgramRecord, RECORD_BYTES, Records};
pub use error::{AttachError, BpfError};
pub use layout::{HEARTBEAT_BYTES, HEARTBEAT_STRIDE, PortCounters};
pub use load::can_look_up;
pub use repeat::TcKind;
pub use sync::Writes;
pub use sys::{EventRings, LinkKind, LinkState, TestRun, libbpf_version};

use pins::{Hook, Layout, Pins};

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
    can_look_up: bool,
    mirrored: sync::Mirrored,
    plain: load::PlainMaps,
    /// Attachments by interface index.
    links: HashMap<u32, (XdpMode, OwnedFd)>,
    /// The same of the tc program.
    tc_links: HashMap<u32, repeat::TcLink>,
    /// Interfaces that were entered into the map of devices, where the kernel removes those that go.
    entered: HashSet<u32>,
    used: SharedWords,
    capture: capture::Capture,
    /// What the counters of a port number showed when it was handed out.
    baselines: Vec<PortCounters>,
    /// Port numbers whose counters go on from where they are when the number is handed out.
    resumed: Vec<usize>,
    /// Where maps and links outlive this process.
    pins: Option<Pins>,
    /// The maps are an earlier daemon's.
    reuses_maps: bool,
    /// Links of an earlier daemon that no port has asked for yet.
    adopted: HashMap<(Hook, u32), OwnedFd>,
    /// The same of clsact filters.
    adopted_filters: Vec<u32>,
    /// Interfaces whose generic receive offload an earlier daemon switched on.
    adopted_gro: Vec<u32>,
    /// Pins that nobody needs when all links have been updated.
    outdated: Vec<String>,
}

/// What an earlier daemon has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Its maps are used; otherwise there were none, or of another layout.
    pub maps: bool,
    /// Links and filters that it has left on interfaces that are still there.
    pub links: usize,
    /// The ports of its last snapshot: interface and number.
    pub ports: Vec<(u32, PortId)>,
    /// The source guards of its last snapshot, by interface.
    pub guards: Vec<(u32, Guard)>,
    /// When it last vouched for its tables, `CLOCK_MONOTONIC_COARSE`, nanoseconds; 0 if that is not known.
    pub last_beat_ns: u64,
}

impl Steering {
    /// Loads the programs for native mode. They steer nothing until they are attached and have tables, sockets and heartbeats.
    ///
    /// # Errors
    /// [`BpfError::Permission`] and [`BpfError::Load`].
    pub fn load() -> Result<Self, BpfError> {
        Self::load_over(|_| None)
    }

    /// Loads the programs over the maps that are pinned, or, if there are none of this version's layout, pins new ones. What
    /// is attached stays as it is, and nothing is written to the maps, so another daemon may still be using them; call
    /// [`Steering::adopt`] when it has ended.
    ///
    /// # Errors
    /// As [`Steering::load`], and [`BpfError::Pin`], [`BpfError::Pinned`].
    pub fn open(pins: Pins) -> Result<Self, BpfError> {
        pins.create()?;
        let layout = Layout::own();
        let reuses_maps = pins::plan(layout, &pins.found()?).adopts_maps;
        let pinned = |name: &str| {
            (reuses_maps && pins::MAPS.contains(&name)).then(|| pins.map(layout, name).map_err(BpfError::from))
        };
        let mut steering = Self::load_over(pinned)?;
        if !reuses_maps {
            pins.pin_maps(layout, steering.maps())?;
        }
        (steering.pins, steering.reuses_maps) = (Some(pins), reuses_maps);
        Ok(steering)
    }

    /// Whether the programs can ask the kernel's conntrack.
    pub fn can_look_up(&self) -> bool {
        self.can_look_up
    }

    fn load_over(pinned: impl Fn(&str) -> Option<Result<MapHandle, BpfError>>) -> Result<Self, BpfError> {
        let (native, mirrored, plain) = load::native(pinned)?;
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
            can_look_up: can_look_up(),
            mirrored,
            plain,
            links: HashMap::new(),
            tc_links: HashMap::new(),
            entered: HashSet::new(),
            used,
            capture: capture::Capture::default(),
            baselines: vec![PortCounters::default(); limits::MAX_PORTS + 1],
            resumed: Vec::new(),
            pins: None,
            reuses_maps: false,
            adopted: HashMap::new(),
            adopted_filters: Vec::new(),
            adopted_gro: Vec::new(),
            outdated: Vec::new(),
        })
    }

    /// The maps that are pinned, by name.
    fn maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let (mirrored, plain) = (&self.mirrored.maps, &self.plain);
        let maps = [
            mirrored.generations.as_fd(),
            mirrored.near_interfaces.as_fd(),
            mirrored.interfaces.as_fd(),
            mirrored.ports.as_fd(),
            mirrored.guards.as_fd(),
            mirrored.near_stations.as_fd(),
            mirrored.fdb.as_fd(),
            mirrored.hosts4.as_fd(),
            mirrored.hosts6.as_fd(),
            mirrored.adjacencies.as_fd(),
            mirrored.next_hops.as_fd(),
            mirrored.fib4.as_fd(),
            mirrored.fib6.as_fd(),
            mirrored.nodes.as_fd(),
            plain.sockets.as_fd(),
            plain.owners.as_fd(),
            plain.heartbeats.as_fd(),
            plain.counters.as_fd(),
            plain.used.as_fd(),
            plain.devices.as_fd(),
        ];
        pins::MAPS.into_iter().zip(maps)
    }

    /// Takes over what an earlier daemon, which must have ended, has left: what is in its maps, and its links, which go on
    /// running its programs until a port asks for them ([`Steering::attach`]). What is attached to nothing is cleared.
    ///
    /// # Errors
    /// [`BpfError::Pin`] and [`BpfError::Map`].
    pub fn adopt(&mut self) -> Result<Adopted, BpfError> {
        let Some(pins) = &self.pins else { return Ok(Adopted::default()) };
        let plan = pins::plan(Layout::own(), &pins.found()?);
        plan.rubbish.iter().try_for_each(|name| pins.clear_named(name))?;
        for (hook, ifindex) in plan.links {
            self.adopted.insert((hook, ifindex), pins.link(&pins::Entry::Link(hook, ifindex).name())?);
        }
        (self.adopted_filters, self.adopted_gro, self.outdated) = (plan.filters, plan.gro, plan.outdated);
        let mut adopted = Adopted {
            maps: self.reuses_maps,
            links: self.adopted.len() + self.adopted_filters.len(),
            ..Adopted::default()
        };
        if self.reuses_maps {
            adopted.last_beat_ns = self.mirrored.generations.last_beat();
            self.mirrored.adopt()?;
            adopted.ports = self.mirrored.ports_in_force();
            adopted.guards = self.mirrored.guards_in_force();
            // By other numbers than ours.
            (0..self.used.len()).for_each(|index| self.used.store(index, 0));
        }
        Ok(adopted)
    }

    /// Takes back what [`Steering::open`] has made, if another daemon does not let go.
    pub fn withdraw(&mut self) {
        if let Some(pins) = self.pins.as_ref().filter(|_| !self.reuses_maps)
            && let Err(error) = pins.clear(pins::Entry::Maps(Layout::own()))
        {
            tracing::warn!(%error, "removing what is pinned");
        }
    }

    /// When all ports have asked for their links: detaches those that nobody wants any more, and removes the maps of another
    /// layout, which no program uses now.
    pub fn settle(&mut self) {
        let adopted = std::mem::take(&mut self.adopted);
        self.release(adopted.into_iter().map(|((hook, ifindex), link)| (hook, ifindex, link)).collect());
        for ifindex in std::mem::take(&mut self.adopted_filters) {
            self.release_filter(ifindex);
        }
        self.resumed.clear();
        let Some(pins) = &self.pins else { return };
        for name in std::mem::take(&mut self.outdated) {
            if let Err(error) = pins.clear_named(&name) {
                tracing::warn!(%error, "removing the maps of another version");
            }
        }
        let keys: Vec<Vec<u8>> = self.plain.devices.keys().collect();
        for key in keys {
            self.leave_device(key.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)));
        }
    }

    /// Whether an earlier daemon has left the program of the other path on this interface.
    pub fn has_left(&self, ifindex: u32, path: Path) -> bool {
        let is_other = |hook: &Hook| matches!(hook, Hook::Tcx) == (path == Path::AfXdp);
        let link = self.adopted.keys().any(|(hook, index)| *index == ifindex && is_other(hook));
        link || path == Path::AfXdp && self.adopted_filters.contains(&ifindex)
    }

    /// Whether an earlier daemon switched this interface's generic receive offload on. Asked once.
    pub fn take_gro(&mut self, ifindex: u32) -> bool {
        let found = self.adopted_gro.iter().position(|adopted| *adopted == ifindex);
        found.map(|at| self.adopted_gro.swap_remove(at)).is_some()
    }

    /// Notes, for whoever comes after this process, that generic receive offload of this interface is on because of us, or is
    /// not any more. To be called before it is switched on, and after it is switched off.
    pub fn note_gro(&self, ifindex: u32, on: bool) {
        let Some(pins) = &self.pins else { return };
        let entry = pins::Entry::Gro(ifindex);
        let noted = if on { pins.mark(entry) } else { pins.clear(entry) };
        if let Err(error) = noted {
            tracing::warn!(%error, "noting an offload that was changed");
        }
    }

    /// Whether programs and maps outlive this process. Somebody may have unmounted the file system of the pins.
    pub fn is_pinned(&self) -> bool {
        self.pins.as_ref().is_some_and(|pins| pins.directory().exists())
    }

    /// Where they are pinned.
    pub fn pins(&self) -> Option<&Pins> {
        self.pins.as_ref()
    }

    /// Detaches links for good.
    fn release(&self, links: Vec<(Hook, u32, OwnedFd)>) {
        quiet::detach(links.iter().map(|(hook, _, link)| (*hook, link.as_fd())));
        for (hook, ifindex, _) in links {
            if let Some(pins) = &self.pins
                && let Err(error) = pins.clear(pins::Entry::Link(hook, ifindex))
            {
                tracing::warn!(%error, "removing a pin");
            }
        }
    }

    /// A link that an earlier daemon left, with `program` in it, or a new one that `create` makes. A new one is pinned; one
    /// that cannot be goes with this process, and traffic then passes to the kernel.
    fn adopt_link(
        &mut self,
        hook: Hook,
        ifindex: u32,
        program: BorrowedFd<'_>,
        create: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> std::io::Result<OwnedFd> {
        if let Some(link) = self.adopted.remove(&(hook, ifindex)) {
            match sys::update_link(link.as_fd(), program) {
                Ok(()) => return Ok(link),
                Err(error) => {
                    tracing::debug!(%error, ifindex, "updating a link; it is made anew");
                    self.release(vec![(hook, ifindex, link)]);
                }
            }
        }
        let link = create()?;
        if let Some(pins) = &self.pins
            && let Err(error) = pins.pin_link(hook, ifindex, link.as_fd())
        {
            tracing::warn!(%error, "a program will go with this daemon: its link cannot be pinned");
        }
        Ok(link)
    }

    /// Tells the tc program that packets may go out of this interface while nobody keeps its tables.
    fn enter_device(&mut self, ifindex: u32) {
        let key = ifindex.to_ne_bytes();
        match self.plain.devices.update(&key, &key, MapFlags::ANY) {
            Ok(()) => drop(self.entered.insert(ifindex)),
            // It is gone, or will be missed only by a daemon that has ended.
            Err(error) => tracing::debug!(%error, ifindex, "entering an interface"),
        }
    }

    fn leave_device(&mut self, ifindex: u32) {
        if !self.links.contains_key(&ifindex) && !self.tc_links.contains_key(&ifindex) {
            self.entered.remove(&ifindex);
            // The kernel has removed the entry of one that is gone.
            let _ = self.plain.devices.delete(&ifindex.to_ne_bytes());
        }
    }

    /// Whether what was attached to interface `ifindex` is not there any more, although there is an interface of this index:
    /// it is another one than before, was away in another namespace meanwhile, or somebody has taken the program off. Sockets
    /// that were bound to it are dead, too, or get nothing.
    pub fn has_lost(&self, ifindex: u32) -> bool {
        let key = ifindex.to_ne_bytes();
        let is_entered = || matches!(self.plain.devices.lookup(&key, MapFlags::ANY), Ok(Some(_)));
        if self.entered.contains(&ifindex) && !is_entered() {
            return true;
        }
        let is_off = |link: &OwnedFd| sys::link_state(link.as_fd()).is_ok_and(|state| state.ifindex != ifindex);
        self.links.get(&ifindex).is_some_and(|(_, link)| is_off(link))
            || matches!(self.tc_links.get(&ifindex), Some(repeat::TcLink::Tcx(link)) if is_off(link))
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

    /// Has the counters of `port` begin at zero, exactly, whether or not frames arrive.
    ///
    /// # Errors
    /// [`BpfError::Beyond`] and [`BpfError::Map`].
    pub fn reset_counters(&mut self, port: PortId) -> Result<(), BpfError> {
        below("port", port.index(), limits::MAX_PORTS)?;
        match self.resumed.iter().position(|resumed| *resumed == port.index()) {
            Some(at) => drop(self.resumed.swap_remove(at)),
            // The programs may be counting, so their counters are left alone.
            None => self.baselines[port.index()] = self.read_raw_counters(port.index())?,
        }
        Ok(())
    }

    /// What the programs have counted for `port` since its counters showed `earlier`, to an earlier daemon. What they count
    /// from now on is this daemon's, from when the number is handed out to the same port.
    ///
    /// # Errors
    /// [`BpfError::Beyond`] and [`BpfError::Map`].
    pub fn resume_counters(&mut self, port: PortId, earlier: &PortCounters) -> Result<PortCounters, BpfError> {
        below("port", port.index(), limits::MAX_PORTS)?;
        let now = self.read_raw_counters(port.index())?;
        self.baselines[port.index()] = now;
        self.resumed.push(port.index());
        Ok(now.since(earlier))
    }

    /// What the counters of `port` show, whoever had its number: for a later [`Steering::resume_counters`].
    ///
    /// # Errors
    /// [`BpfError::Beyond`] and [`BpfError::Map`].
    pub fn raw_counters(&self, port: PortId) -> Result<PortCounters, BpfError> {
        below("port", port.index(), limits::MAX_PORTS)?;
        self.read_raw_counters(port.index())
    }

    fn read_counters(&self, index: usize) -> Result<PortCounters, BpfError> {
        Ok(self.read_raw_counters(index)?.since(&self.baselines[index]))
    }

    fn read_raw_counters(&self, index: usize) -> Result<PortCounters, BpfError> {
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
