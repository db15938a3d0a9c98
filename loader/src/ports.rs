//! Ports over their life: from a link that should be one, through sockets and program, to the last frame given back.
//!
//! Opening is: the program of the port's path on the interface, sockets on every queue, the sockets into their map; frames
//! are taken as soon as tables with the port are published. A port that takes the kernel path has sockets as well: workers
//! send to it through them. A change of path is in two halves with a publication in between, in which the programs of both
//! paths are there and the tables say which one acts: so every frame meets one of them. Closing is in two halves with a publication in between: first the program comes
//! off and the port leaves the tables, then, when no worker can send to it any more, its sockets are closed and their
//! frames return. A port number is handed out again only after that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podlane_dataplane::table::{Path, PortKind};
use podlane_dataplane::{PortId, limits};

use crate::bpf::{AttachError, Steering, XdpMode};
use crate::config::PathChoice;
use crate::engine::{Engine, EngineError, OpenQueue};
use crate::kernel::Kernel;
use crate::status::SocketDrops;

/// How long a port that could not be opened waits before the next attempt; doubled each time up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
const RETRY_MOST: Duration = Duration::from_secs(10);

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
}

impl PathPolicy {
    fn choice(&self, name: &str) -> PathChoice {
        self.ports.get(name).copied().unwrap_or(self.all)
    }

    /// The path of a port whose sockets are, or would be, zero-copy or not, and why.
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

/// All ports.
#[derive(Debug)]
pub struct Ports {
    mode: XdpMode,
    open: BTreeMap<u32, OpenPort>,
    closing: Vec<OpenPort>,
    refused: BTreeMap<u32, Refusal>,
    taken: Vec<bool>,
}

impl Ports {
    /// With the host port, which the engine has opened already, as number 0.
    pub fn new(mode: XdpMode, host: Candidate) -> Self {
        let mut taken = vec![false; limits::MAX_PORTS];
        taken[0] = true;
        let port = OpenPort {
            id: Self::HOST,
            queues: Vec::new(),
            xdp_mode: None,
            link: host,
            path: Path::AfXdp,
            why_path: "workers send through it only".to_owned(),
            switches: 0,
            switching: false,
            own_gro: false,
        };
        Ports {
            mode,
            open: BTreeMap::from([(port.link.ifindex, port)]),
            closing: Vec::new(),
            refused: BTreeMap::new(),
            taken,
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

    /// When the next refused link should be tried again.
    pub fn next_retry(&self) -> Option<Instant> {
        self.refused.values().map(|refusal| refusal.retry_at).min()
    }

    /// Interfaces of the pods whose frames take the kernel path now.
    pub fn on_kernel_path(&self) -> impl Iterator<Item = u32> {
        let pods = self.open.values().filter(|port| port.link.kind == PortKind::Pod && !port.switching);
        pods.filter(|port| port.path == Path::Kernel).map(|port| port.link.ifindex)
    }

    /// Of these, the ones that [`Ports::reconcile`] would give the other path.
    pub fn leaving_kernel_path(&self, policy: &PathPolicy, zero_copy: bool) -> Vec<u32> {
        let leaves = |ifindex: &u32| {
            self.open.get(ifindex).is_some_and(|port| policy.path(&port.link, zero_copy).0 != Path::Kernel)
        };
        self.on_kernel_path().filter(leaves).collect()
    }

    /// Brings the ports in step with the links that should be ports: opens new ones and takes gone ones out of the
    /// programs' reach, and the paths in step with the policy. Returns whether anything changed; if so publish tables, then
    /// call [`Ports::finish`].
    pub fn reconcile(
        &mut self,
        wanted: &[Candidate],
        policy: &PathPolicy,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> bool {
        let wanted: BTreeMap<u32, &Candidate> = wanted.iter().map(|link| (link.ifindex, link)).collect();
        let mut changed = self.rename(&wanted) | self.switch_paths(policy, engine, steering);
        let gone: Vec<u32> = self
            .open
            .values()
            .filter(|port| port.link.kind != PortKind::Host && wanted.get(&port.link.ifindex) != Some(&&port.link))
            .map(|port| port.link.ifindex)
            .collect();
        for ifindex in gone {
            self.begin_closing(ifindex, steering);
            changed = true;
        }
        self.refused.retain(|ifindex, _| wanted.contains_key(ifindex));
        for (ifindex, link) in wanted {
            let due = self.refused.get(&ifindex).is_none_or(|refusal| refusal.retry_at <= Instant::now());
            // One that is closing under the same index (its queues changed) is opened again in the next round.
            let closing = self.closing.iter().any(|port| port.link.ifindex == ifindex);
            if !self.open.contains_key(&ifindex) && due && !closing {
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
    fn switch_paths(&mut self, policy: &PathPolicy, engine: &Engine, steering: &mut Steering) -> bool {
        let mut changed = false;
        for port in self.open.values_mut().filter(|port| port.link.kind != PortKind::Host && !port.switching) {
            let (path, why) = policy.path(&port.link, engine.mode().zero_copy);
            if path == port.path {
                port.why_path = why;
                continue;
            }
            match attach(&port.link, path, self.mode, steering) {
                Ok(mode) => {
                    tracing::info!(interface = port.link.name, path = path_name(path), "{why}");
                    (port.path, port.xdp_mode, port.why_path, port.switching) = (path, mode, why, true);
                    port.switches += 1;
                    changed = true;
                }
                Err(error) => {
                    let why = format!("{} is wanted, but {error}", path_name(path));
                    if port.why_path != why {
                        tracing::warn!(interface = port.link.name, "{why}");
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
                let path = path_name(port.path);
                tracing::info!(port = %port.id, interface = link.name, queues = link.queues, path, "port opened");
                self.refused.remove(&link.ifindex);
                self.open.insert(link.ifindex, port);
                true
            }
            // It went away while we were at it; the mirror will say so.
            Err(OpenError::Attach(AttachError::Gone { .. })) => false,
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
        let free = self.taken.iter().position(|taken| !taken);
        let id = PortId(free.ok_or_else(|| OpenError::Full { name: link.name.clone() })? as u16);
        // The program first: where it cannot be attached, no socket is made at all. It passes every frame until the port
        // is in the tables.
        let (mut path, mut why_path) = policy.path(link, engine.mode().zero_copy);
        let xdp_mode = match attach(link, path, self.mode, steering) {
            Err(error) if policy.choice(&link.name) == PathChoice::Auto && path == Path::Kernel => {
                (path, why_path) = (Path::AfXdp, format!("auto: {error}"));
                attach(link, path, self.mode, steering)?
            }
            attached => attached?,
        };
        let opened = Self::open_sockets(id, link, engine, steering);
        if opened.is_err() {
            detach(link, path, steering);
        }
        let queues = opened?;
        self.taken[id.index()] = true;
        let link = link.clone();
        let (switching, own_gro) = (false, false);
        Ok(OpenPort { id, link, queues, xdp_mode, path, why_path, switches: 0, switching, own_gro })
    }

    fn open_sockets(
        id: PortId,
        link: &Candidate,
        engine: &mut Engine,
        steering: &mut Steering,
    ) -> Result<Vec<OpenQueue>, OpenError> {
        use std::os::fd::AsFd;
        steering.reset_counters(id)?;
        let queues = engine.open_port(id, link.ifindex, link.queues, link.tx_queues)?;
        for queue in &queues {
            if let Err(error) = steering.set_socket(id, queue.queue, queue.handle.as_fd(), queue.worker) {
                for queue in &queues {
                    // Closing the socket takes its entry away as well.
                    let _ = steering.clear_socket(id, queue.queue);
                }
                engine.close_port(id, queues)?;
                return Err(error.into());
            }
        }
        Ok(queues)
    }

    fn refuse(&mut self, link: &Candidate, why: String) {
        let attempts = self.refused.get(&link.ifindex).map_or(0, |refusal| refusal.attempts) + 1;
        let known = self.refused.get(&link.ifindex).is_some_and(|refusal| refusal.why == why);
        if !known {
            tracing::warn!(interface = link.name, "left to the kernel: {why}");
        }
        let wait = RETRY_FIRST.saturating_mul(1 << attempts.min(8)).min(RETRY_MOST);
        let refusal = Refusal { name: link.name.clone(), why, attempts, retry_at: Instant::now() + wait };
        self.refused.insert(link.ifindex, refusal);
    }

    fn begin_closing(&mut self, ifindex: u32, steering: &mut Steering) {
        let Some(port) = self.open.remove(&ifindex) else { return };
        steering.detach(ifindex);
        steering.detach_repeat(ifindex);
        for queue in &port.queues {
            if let Err(error) = steering.clear_socket(port.id, queue.queue) {
                // Without program nothing is steered there any more; the entry goes with the socket.
                tracing::debug!(%error, port = %port.id, "clearing a socket");
            }
        }
        self.closing.push(port);
    }

    /// The second half of closing and of changing a path, after tables were published that say so. Returns what was closed.
    pub fn finish(&mut self, engine: &mut Engine, steering: &mut Steering, kernel: &mut Kernel) -> Vec<Closed> {
        for port in self.open.values_mut().filter(|port| port.switching) {
            port.switching = false;
            keep_polling(port, kernel);
            let other = if port.path == Path::AfXdp { Path::Kernel } else { Path::AfXdp };
            detach(&port.link, other, steering);
        }
        let mut closed = Vec::new();
        for mut port in std::mem::take(&mut self.closing) {
            stop_polling(&mut port, kernel);
            // Nothing is steered to the sockets any more, and their counts go with them.
            let socket_drops = port.socket_drops();
            match engine.close_port(port.id, port.queues) {
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

    /// Takes the programs off every port, for good.
    pub fn detach_all(&mut self, steering: &mut Steering, kernel: &mut Kernel) {
        self.open.values_mut().for_each(|port| stop_polling(port, kernel));
        let ports = self.open.values().filter(|port| port.link.kind != PortKind::Host);
        let all: Vec<u32> = ports.map(|port| port.link.ifindex).collect();
        all.into_iter().for_each(|ifindex| self.begin_closing(ifindex, steering));
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
fn keep_polling(port: &mut OpenPort, kernel: &mut Kernel) {
    match port.path {
        Path::Kernel => match kernel.set_gro(port.link.ifindex, true) {
            Ok(changed) => port.own_gro |= changed,
            Err(error) => tracing::debug!(%error, interface = port.link.name, "switching GRO on"),
        },
        Path::AfXdp => stop_polling(port, kernel),
    }
}

/// Switches off what [`keep_polling`] switched on.
fn stop_polling(port: &mut OpenPort, kernel: &mut Kernel) {
    // An interface that is gone has no features either.
    if std::mem::take(&mut port.own_gro)
        && let Err(error) = kernel.set_gro(port.link.ifindex, false)
    {
        tracing::debug!(%error, interface = port.link.name, "switching GRO off again");
    }
}

fn detach(link: &Candidate, path: Path, steering: &mut Steering) {
    match path {
        Path::AfXdp => steering.detach(link.ifindex),
        Path::Kernel => steering.detach_repeat(link.ifindex),
    }
}
