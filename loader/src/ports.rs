//! Ports over their life: from a link that should be one, through sockets and program, to the last frame given back.
//!
//! Opening is: the program of the port's path on the interface and sockets on every queue (of an uplink that may get
//! zero-copy ones, the other way around); then tables with the port are
//! published; then the sockets are put into their map, and from then on frames are taken. (The program may be there before,
//! from an earlier daemon, and may go by that one's tables until then.) A port that takes the kernel path has sockets as well: workers
//! send to it through them. A change of path is in two halves with a publication in between, in which the programs of both
//! paths are there and the tables say which one acts: so every frame meets one of them. Closing is in two halves with a publication in between: first the program comes
//! off and the port leaves the tables, then, when no worker can send to it any more, its sockets are closed and their
//! frames return. A port number is handed out again only after that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::libc;
use podlane_dataplane::afxdp::{SocketHandle, XskMode};
use podlane_dataplane::table::{Path, PortKind};
use podlane_dataplane::{PortId, limits};

use crate::bpf::{AttachError, Steering, XdpMode};
use crate::config::PathChoice;
use crate::engine::{Engine, EngineError, OpenQueue, Opened, ZeroCopy};
use crate::kernel::Kernel;
use crate::status::SocketDrops;

/// How long a port that could not be opened waits before the next attempt; doubled each time up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
const RETRY_MOST: Duration = Duration::from_secs(10);
/// How long one round may open ports, beyond the first. Attaching a program waits for all CPUs (some 12 ms on a quiet machine, ten
/// times that on a busy one), and while hundreds of pods come at once the tables of the others must be vouched for, or their
/// frames pass to the kernel ([`limits::TABLES_STALE_MS`]).
const OPENING: Duration = Duration::from_millis(100);

/// A link that should be a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The interface.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// What hangs on it.
    pub kind: PortKind,
    /// Receive queues in use.
    pub queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
}

/// An open port.
#[derive(Debug)]
pub struct OpenPort {
    /// Its number.
    pub id: PortId,
    /// The link.
    pub link: Candidate,
    /// Its sockets.
    pub queues: Vec<OpenQueue>,
    /// How these are bound.
    pub sockets: XskMode,
    /// How the XDP program is attached; `None` without: the host port, and ports that take the kernel path.
    pub xdp_mode: Option<XdpMode>,
    /// The path that its frames take.
    pub path: Path,
    /// Why that one, as a clause.
    pub why_path: String,
    /// Times that it changed its path.
    pub switches: u64,
    /// It changed its path, and the other path's program is still there.
    switching: bool,
    /// We switched generic receive offload on.
    own_gro: bool,
    /// Frames are steered to its sockets, as soon as tables with the port are published.
    steered: bool,
}

impl OpenPort {
    /// Steered packets that its sockets could not take so far.
    pub fn socket_drops(&self) -> SocketDrops {
        let mut drops = SocketDrops::default();
        for queue in &self.queues {
            let statistics = queue.handle.statistics();
            drops.rx_ring_full += statistics.rx_ring_full;
            drops.fill_ring_empty += statistics.rx_dropped;
        }
        drops
    }
}

/// A port that was closed. The counters of its number are still what they were.
#[derive(Debug)]
pub struct Closed {
    /// Its number.
    pub id: PortId,
    /// The link.
    pub link: Candidate,
    /// Times that it changed its path.
    pub switches: u64,
    /// Steered packets that its sockets could not take.
    pub socket_drops: SocketDrops,
}

/// Which path each port should take.
#[derive(Clone, Debug, Default)]
pub struct PathPolicy {
    /// Of ports that are not named.
    pub all: PathChoice,
    /// Of single ports, by interface.
    pub ports: BTreeMap<String, PathChoice>,
    /// Whether these words were said to the running daemon, rather than in its configuration.
    pub said: bool,
    /// Whether uplinks should have zero-copy sockets.
    pub zero_copy: ZeroCopy,
}

impl PathPolicy {
    fn choice(&self, name: &str) -> PathChoice {
        self.ports.get(name).copied().unwrap_or(self.all)
    }

    /// How a port's sockets should be bound. Zero-copy is for cards: a veth has none. Where the kernel path was chosen, the
    /// card's packets are better off in the kernel's own memory.
    fn sockets(&self, link: &Candidate, mode: XdpMode) -> ZeroCopy {
        let wanted =
            link.kind == PortKind::Uplink && mode == XdpMode::Native && self.choice(&link.name) != PathChoice::Kernel;
        if wanted { self.zero_copy } else { ZeroCopy::Off }
    }

    /// The path of a port whose sockets are zero-copy or not, and why.
    fn path(&self, link: &Candidate, zero_copy: bool) -> (Path, String) {
        let place = if self.said { "as asked for" } else { "as configured" };
        match self.choice(&link.name) {
            PathChoice::AfXdp => (Path::AfXdp, place.to_owned()),
            PathChoice::Kernel => (Path::Kernel, place.to_owned()),
            PathChoice::Auto if zero_copy => (Path::AfXdp, "auto: its AF_XDP sockets are zero-copy".to_owned()),
            PathChoice::Auto => (Path::Kernel, "auto: AF_XDP would copy every frame here".to_owned()),
        }
    }
}

/// A link that should be a port and is left to the kernel.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The link's name.
    pub name: String,
    /// Why, as a sentence with its cure.
    pub why: String,
    attempts: u32,
    retry_at: Instant,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Maps(#[from] crate::bpf::BpfError),
    #[error(
        "{name} has {queues} receive queues; at most {max} are supported: reduce them with `ethtool -L {name}`",
        max = limits::MAX_QUEUES
    )]
    Queues { name: String, queues: u32 },
    #[error("{name}: all {max} ports are in use; it stays with the kernel", max = limits::MAX_PORTS)]
    Full { name: String },
}

/// A port with its sockets and its path's program.
type WithProgram = (Opened, (Path, String), Option<XdpMode>);

/// All ports.
#[derive(Debug)]
pub struct Ports {
    mode: XdpMode,
    open: BTreeMap<u32, OpenPort>,
    closing: Vec<OpenPort>,
    refused: BTreeMap<u32, Refusal>,
    taken: Vec<bool>,
    /// A round has left ports to the next one.
    more: bool,
    /// The numbers that an earlier daemon's tables, which are in force until the first of ours, have for interfaces.
    remembered: BTreeMap<u32, PortId>,
}

impl Ports {
    /// With the host port, which the engine has opened already, as number 0. `remembered`: interfaces and numbers of the
    /// tables that are in force already.
    pub fn new(
        mode: XdpMode,
        host: Candidate,
        sockets: XskMode,
        remembered: impl IntoIterator<Item = (u32, PortId)>,
    ) -> Self {
        let mut taken = vec![false; limits::MAX_PORTS];
        taken[0] = true;
        let port = OpenPort {
            id: Self::HOST,
            queues: Vec::new(),
            sockets,
            xdp_mode: None,
            link: host,
            path: Path::AfXdp,
            why_path: "workers send through it only".to_owned(),
            switches: 0,
            switching: false,
            own_gro: false,
            steered: true,
        };
        Ports {
            mode,
            open: BTreeMap::from([(port.link.ifindex, port)]),
            closing: Vec::new(),
            refused: BTreeMap::new(),
            taken,
            more: false,
            remembered: remembered.into_iter().collect(),
        }
    }

    /// The host port's number.
    pub const HOST: PortId = PortId(0);

    /// Open ports, by interface.
    pub fn open(&self) -> impl Iterator<Item = &OpenPort> {
        self.open.values()
    }

    /// Open ports, and those that are being closed.
    pub fn counted(&self) -> impl Iterator<Item = &OpenPort> {
        self.open.values().chain(&self.closing)
    }

    /// The open port with this number.
    pub fn get(&self, id: PortId) -> Option<&OpenPort> {
        self.open.values().find(|port| port.id == id)
    }

    /// Links that are left to the kernel although they should be ports.
    pub fn refused(&self) -> impl Iterator<Item = &Refusal> {
        self.refused.values()
    }

    /// When the next refused link should be tried again, or the next round should open what the last one has left.
    pub fn next_retry(&self) -> Option<Instant> {
        if self.more {
            return Some(Instant::now());
        }
        self.refused.values().map(|refusal| refusal.retry_at).min()
    }

    /// Interfaces of the pods whose frames take the kernel path now.
    pub fn on_kernel_path(&self) -> impl Iterator<Item = u32> {
        let pods = self.open.values().filter(|port| port.link.kind == PortKind::Pod && !port.switching);
        pods.filter(|port| port.path == Path::Kernel).map(|port| port.link.ifindex)
    }

    /// Of these, the ones that [`Ports::reconcile`] would give the other path.
    pub fn leaving_kernel_path(&self, policy: &PathPolicy) -> Vec<u32> {
        let stays = |port: &OpenPort| policy.path(&port.link, port.sockets.zero_copy).0 == Path::Kernel;
        let leaves = |ifindex: &u32| self.open.get(ifindex).is_some_and(|port| !stays(port));
        self.on_kernel_path().filter(leaves).collect()
    }

    /// Brings the ports in step with the links that should be ports: opens new ones and takes gone ones out of the
    /// programs' reach, and the paths in step with the policy. Returns whether anything changed; if so publish tables, then
    /// call [`Ports::finish`]. In a `hurry` new ports beyond what takes 100 ms are left to a next round, at once
    /// ([`Ports::next_retry`]); otherwise all are opened, as the first tables must have them.
    pub fn reconcile(
        &mut self,
        wanted: &[Candidate],
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
        hurry: bool,
    ) -> bool {
        let wanted: BTreeMap<u32, &Candidate> = wanted.iter().map(|link| (link.ifindex, link)).collect();
        let mut changed = self.rename(&wanted) | self.switch_paths(policy, steering);
        let gone: Vec<u32> = self
            .open
            .values()
            .filter(|port| port.link.kind != PortKind::Host)
            .filter(|port| is_another(port, wanted.get(&port.link.ifindex).copied(), steering))
            .map(|port| port.link.ifindex)
            .collect();
        changed |= !gone.is_empty();
        self.begin_closing(&gone, steering);
        self.refused.retain(|ifindex, _| wanted.contains_key(ifindex));
        self.more = false;
        let mut begun: Option<Instant> = None;
        for (ifindex, link) in wanted {
            let due = self.refused.get(&ifindex).is_none_or(|refusal| refusal.retry_at <= Instant::now());
            // One that is closing under the same index (its queues changed) is opened again in the next round.
            let closing = self.closing.iter().any(|port| port.link.ifindex == ifindex);
            if !self.open.contains_key(&ifindex) && due && !closing {
                if hurry && begun.is_some_and(|begun| begun.elapsed() >= OPENING) {
                    self.more = true;
                    break;
                }
                begun.get_or_insert_with(Instant::now);
                changed |= self.try_open(link, policy, engine, steering);
            }
        }
        changed
    }

    /// A renamed interface stays the same port.
    fn rename(&mut self, wanted: &BTreeMap<u32, &Candidate>) -> bool {
        let mut changed = false;
        for (ifindex, port) in &mut self.open {
            if let Some(link) = wanted.get(ifindex).filter(|link| link.name != port.link.name) {
                tracing::info!(port = %port.id, from = port.link.name, to = link.name, "a port was renamed");
                port.link.name.clone_from(&link.name);
                changed = true;
            }
        }
        changed
    }

    /// Gives open ports the program of the path that they should take. Where it cannot be attached the port stays on its path
    /// and says so.
    fn switch_paths(&mut self, policy: &PathPolicy, steering: &mut Steering) -> bool {
        let mut changed = false;
        for port in self.open.values_mut().filter(|port| port.link.kind != PortKind::Host && !port.switching) {
            let (path, why) = policy.path(&port.link, port.sockets.zero_copy);
            if path == port.path {
                port.why_path = why;
                continue;
            }
            match attach(&port.link, path, self.mode, steering) {
                Ok(mode) => {
                    tracing::info!(interface = port.link.name, path = path_name(path), reason = why, "path changed");
                    (port.path, port.xdp_mode, port.why_path, port.switching) = (path, mode, why, true);
                    port.switches += 1;
                    changed = true;
                }
                Err(error) => {
                    let why = format!("{} is wanted, but {error}", path_name(path));
                    if port.why_path != why {
                        tracing::warn!(interface = port.link.name, reason = why, "path not changed");
                        port.why_path = why;
                    }
                }
            }
        }
        changed
    }

    fn try_open(
        &mut self,
        link: &Candidate,
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> bool {
        match self.open_one(link, policy, engine, steering) {
            Ok(port) => {
                let (path, zero_copy) = (path_name(port.path), port.sockets.zero_copy);
                tracing::info!(
                    port = %port.id, interface = link.name, queues = link.queues, path, zero_copy, "port opened"
                );
                self.refused.remove(&link.ifindex);
                self.open.insert(link.ifindex, port);
                true
            }
            // It went away while we were at it; the mirror will say so.
            Err(OpenError::Attach(AttachError::Gone { .. })) => false,
            Err(OpenError::Engine(EngineError::Bind(error))) if error.source.raw_os_error() == Some(libc::ENODEV) => {
                false
            }
            Err(error) => {
                self.refuse(link, error.to_string());
                false
            }
        }
    }

    fn open_one(
        &mut self,
        link: &Candidate,
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> Result<OpenPort, OpenError> {
        if link.queues as usize > limits::MAX_QUEUES {
            return Err(OpenError::Queues { name: link.name.clone(), queues: link.queues });
        }
        let id = self.free_number(link.ifindex).ok_or_else(|| OpenError::Full { name: link.name.clone() })?;
        let opened = if policy.sockets(link, self.mode) == ZeroCopy::Off {
            self.open_copying(id, link, policy, engine, steering)
        } else {
            self.open_zero_copy(id, link, policy, engine, steering)
        };
        let (Opened { queues, mode: sockets, .. }, (path, why_path), xdp_mode) = opened?;
        self.taken[id.index()] = true;
        // An earlier daemon may have had it on the other path.
        let switching = steering.has_left(link.ifindex, path);
        let own_gro = steering.take_gro(link.ifindex);
        let link = link.clone();
        Ok(OpenPort {
            id,
            link,
            queues,
            sockets,
            xdp_mode,
            path,
            why_path,
            switches: 0,
            switching,
            own_gro,
            steered: false,
        })
    }

    /// The program first: where it cannot be attached, no socket is made at all. It passes every frame until the port is in
    /// the tables.
    fn open_copying(
        &self,
        id: PortId,
        link: &Candidate,
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> Result<WithProgram, OpenError> {
        let (path, xdp_mode) = self.attach_wanted(link, policy, false, steering)?;
        match Self::open_sockets(id, link, ZeroCopy::Off, engine, steering) {
            Ok(opened) => Ok((opened, path, xdp_mode)),
            Err(error) => {
                detach(link, path.0, steering);
                Err(error)
            }
        }
    }

    /// The sockets first: what they become decides the path, and each program that comes or goes may stop a card for seconds.
    fn open_zero_copy(
        &self,
        id: PortId,
        link: &Candidate,
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> Result<WithProgram, OpenError> {
        let opened = Self::open_sockets(id, link, policy.sockets(link, self.mode), engine, steering)?;
        if let Some(why) = &opened.why_copy {
            tracing::info!(interface = link.name, reason = why, "no zero-copy");
        }
        match self.attach_wanted(link, policy, opened.mode.zero_copy, steering) {
            Ok((path, xdp_mode)) => Ok((opened, path, xdp_mode)),
            Err(error) => {
                engine.close_port(id, link.kind, opened.queues)?;
                Err(error.into())
            }
        }
    }

    /// Attaches the program of the path that the policy wants, or with `auto` of the one that can be had; gives both, and how
    /// an XDP program is attached.
    fn attach_wanted(
        &self,
        link: &Candidate,
        policy: &PathPolicy,
        zero_copy: bool,
        steering: &mut Steering,
    ) -> Result<((Path, String), Option<XdpMode>), AttachError> {
        let (path, why) = policy.path(link, zero_copy);
        match attach(link, path, self.mode, steering) {
            Err(error) if policy.choice(&link.name) == PathChoice::Auto && path == Path::Kernel => {
                let xdp_mode = attach(link, Path::AfXdp, self.mode, steering)?;
                Ok(((Path::AfXdp, format!("auto: {error}")), xdp_mode))
            }
            attached => Ok(((path, why), attached?)),
        }
    }

    /// A number for a port. Tables of an earlier daemon may be in force, by which frames are steered: there a number must not
    /// mean another interface.
    fn free_number(&self, ifindex: u32) -> Option<PortId> {
        let is_free = |id: PortId| self.taken.get(id.index()).is_some_and(|taken| !taken);
        let remembered = self.remembered.get(&ifindex).copied().filter(|id| is_free(*id));
        let others = (0..self.taken.len()).map(|index| PortId(index as u16)).filter(|id| is_free(*id));
        let mut free = others.filter(|id| !self.remembered.values().any(|other| other == id));
        remembered.or_else(|| free.next())
    }

    fn open_sockets(
        id: PortId,
        link: &Candidate,
        zero_copy: ZeroCopy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> Result<Opened, OpenError> {
        steering.reset_counters(id)?;
        Ok(engine.open_port(id, link.kind, link.ifindex, link.queues, link.tx_queues, zero_copy)?)
    }

    fn refuse(&mut self, link: &Candidate, why: String) {
        let attempts = self.refused.get(&link.ifindex).map_or(0, |refusal| refusal.attempts) + 1;
        let known = self.refused.get(&link.ifindex).is_some_and(|refusal| refusal.why == why);
        if !known {
            tracing::warn!(interface = link.name, reason = why, "left to the kernel");
        }
        let wait = RETRY_FIRST.saturating_mul(1 << attempts.min(8)).min(RETRY_MOST);
        let refusal = Refusal { name: link.name.clone(), why, attempts, retry_at: Instant::now() + wait };
        self.refused.insert(link.ifindex, refusal);
    }

    fn begin_closing(&mut self, interfaces: &[u32], steering: &mut Steering) {
        steering.detach(interfaces);
        for port in interfaces.iter().filter_map(|ifindex| self.open.remove(ifindex)) {
            steering.detach_repeat(port.link.ifindex);
            for queue in &port.queues {
                if let Err(error) = steering.clear_socket(port.id, queue.queue) {
                    // Without program nothing is steered there any more; the entry goes with the socket.
                    tracing::debug!(%error, port = %port.id, "clearing a socket");
                }
            }
            self.closing.push(port);
        }
    }

    /// The second half of closing and of changing a path, after tables were published that say so. Returns what was closed.
    pub fn finish(&mut self, engine: &mut Engine, steering: &mut Steering, kernel: &mut Kernel) -> Vec<Closed> {
        // The tables in force are ours now.
        self.remembered.clear();
        for port in self.open.values_mut().filter(|port| !port.steered) {
            steer(port, steering);
        }
        let mut unsteered = Vec::new();
        for port in self.open.values_mut().filter(|port| port.switching) {
            port.switching = false;
            keep_polling(port, steering, kernel);
            match port.path {
                Path::AfXdp => steering.retire_repeat(port.link.ifindex),
                Path::Kernel => unsteered.push(port.link.ifindex),
            }
        }
        steering.detach(&unsteered);
        let mut closed = Vec::new();
        for mut port in std::mem::take(&mut self.closing) {
            stop_polling(&mut port, steering, kernel);
            // Nothing is steered to the sockets any more, and their counts go with them.
            let socket_drops = port.socket_drops();
            match engine.close_port(port.id, port.link.kind, port.queues) {
                Ok(()) => {
                    self.taken[port.id.index()] = false;
                    tracing::info!(port = %port.id, interface = port.link.name, "port closed");
                    closed.push(Closed { id: port.id, link: port.link, switches: port.switches, socket_drops });
                }
                // Its number stays taken: a stuck worker may still hold its frames.
                Err(error) => tracing::error!(%error, interface = port.link.name, "closing a port"),
            }
        }
        closed
    }

    /// Has nothing come to the sockets any more, while the programs stay: their frames pass to the kernel.
    pub fn leave_all(&mut self, steering: &mut Steering) {
        for port in self.open.values() {
            for queue in &port.queues {
                if let Err(error) = steering.clear_socket(port.id, queue.queue) {
                    // The entry goes with the socket.
                    tracing::debug!(%error, port = %port.id, "clearing a socket");
                }
            }
        }
    }

    /// The sockets of every port, to be closed when the workers have given theirs up.
    pub fn take_sockets(&mut self) -> Vec<SocketHandle> {
        let ports = self.open.values_mut().chain(&mut self.closing);
        ports.flat_map(|port| std::mem::take(&mut port.queues)).map(|queue| queue.handle).collect()
    }

    /// Takes the programs off every port, for good.
    pub fn detach_all(&mut self, steering: &mut Steering, kernel: &mut Kernel) {
        self.open.values_mut().for_each(|port| stop_polling(port, steering, kernel));
        let ports = self.open.values().filter(|port| port.link.kind != PortKind::Host);
        let all: Vec<u32> = ports.map(|port| port.link.ifindex).collect();
        self.begin_closing(&all, steering);
    }
}

/// Whether an open port is not the link that is wanted now: it is gone, has other queues, or has kept nothing but its index.
fn is_another(port: &OpenPort, wanted: Option<&Candidate>, steering: &Steering) -> bool {
    if wanted != Some(&port.link) {
        return true;
    }
    let lost = steering.has_lost(port.link.ifindex);
    if lost {
        let interface = &port.link.name;
        tracing::debug!(interface, "its program is off: the interface goes or is another one, or somebody took it off");
    }
    lost
}

/// Has frames come to the sockets of a port.
fn steer(port: &mut OpenPort, steering: &mut Steering) {
    use std::os::fd::AsFd;
    port.steered = true;
    for queue in &port.queues {
        if let Err(error) = steering.set_socket(port.id, queue.queue, queue.handle.as_fd(), queue.worker) {
            // What comes in there passes to the kernel.
            tracing::error!(%error, interface = port.link.name, queue = queue.queue, "a queue is left to the kernel");
        }
    }
}

/// The word for a path.
pub fn path_name(path: Path) -> &'static str {
    match path {
        Path::AfXdp => PathChoice::AfXdp.word(),
        Path::Kernel => PathChoice::Kernel.word(),
    }
}

/// Attaches the program of a path; how, if it is the XDP program.
fn attach(
    link: &Candidate,
    path: Path,
    mode: XdpMode,
    steering: &mut Steering,
) -> Result<Option<XdpMode>, AttachError> {
    match path {
        Path::AfXdp => steering.attach(link.ifindex, &link.name, mode).map(Some),
        Path::Kernel => steering.attach_repeat(link.ifindex, &link.name).map(|()| None),
    }
}

/// Has a veth keep polling its end (NAPI) when the XDP program goes: what is in the queue to it at that moment would be
/// lost otherwise (`drivers/net/veth.c`, `veth_disable_xdp`). With generic receive offload on, it polls without a program.
fn keep_polling(port: &mut OpenPort, steering: &Steering, kernel: &mut Kernel) {
    let ifindex = port.link.ifindex;
    match port.path {
        Path::Kernel if port.own_gro => {}
        Path::Kernel => {
            steering.note_gro(ifindex, true);
            let changed = kernel.set_gro(ifindex, true);
            port.own_gro = *changed.as_ref().unwrap_or(&false);
            if !port.own_gro {
                steering.note_gro(ifindex, false);
            }
            if let Err(error) = changed {
                tracing::debug!(%error, interface = port.link.name, "switching GRO on");
            }
        }
        Path::AfXdp => stop_polling(port, steering, kernel),
    }
}

/// Switches off what [`keep_polling`] switched on.
fn stop_polling(port: &mut OpenPort, steering: &Steering, kernel: &mut Kernel) {
    if !std::mem::take(&mut port.own_gro) {
        return;
    }
    // An interface that is gone has no features either.
    if let Err(error) = kernel.set_gro(port.link.ifindex, false) {
        tracing::debug!(%error, interface = port.link.name, "switching GRO off again");
    }
    steering.note_gro(port.link.ifindex, false);
}

fn detach(link: &Candidate, path: Path, steering: &mut Steering) {
    match path {
        Path::AfXdp => steering.detach(&[link.ifindex]),
        Path::Kernel => steering.detach_repeat(link.ifindex),
    }
}
