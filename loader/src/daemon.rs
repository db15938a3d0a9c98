//! The daemon: one loop that follows the kernel, keeps ports and tables in step with it, and answers questions.
//!
//! The loop sleeps on the mirror, the control socket and a signal pipe, and wakes several times a second for what has no
//! descriptor: learn reports of workers, entries to keep alive in the kernel, ports to try again. Everything that writes
//! tables happens here, on one thread, so there is one writer for the engine's snapshots and for the BPF maps.

mod netfilter;
mod reload;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podlane_dataplane::afxdp::{Heartbeats, PRIORITY_STEPS, Umem, clock};
use podlane_dataplane::packet::ETHERNET_BYTES;
use podlane_dataplane::table::{self, PortKind, Publisher, Tables};
use podlane_dataplane::{PortId, limits};

use crate::bpf::pins::Pins;
use crate::bpf::{BpfError, PortCounters, Steering, XdpMode};
use crate::capture::{self, Captures};
use crate::carry::{self, Carried, Identity, ProgramCounters};
use crate::compile::{Compiler, Input, PortAssignment, PortWish, Wanted, host_port_mtu, wanted_ports};
use crate::config::{ChecksumMetadata, Config, PathChoice};
use crate::control::{Control, ControlError, PortPath, Request, Response};
use crate::engine::{self, Engine, EngineError, EngineOptions};
use crate::guard::learn::Learner;
use crate::guard::{Guards, PodPort};
use crate::kernel::{HostPort, HostPortNames, Kernel, KernelError, Switches, read_switches};
use crate::large::{self, Large};
use crate::log;
use crate::metrics;
use crate::mirror::world::{LinkKind, World};
use crate::mirror::{Changes, Mirror, NetlinkError};
use crate::names::{Interface, Names, PodName};
use crate::netfilter::Effects;
use crate::netfilter::watch::Watch;
use crate::ports::{Candidate, OpenPort, PathPolicy, Ports, path_name};
use crate::privileges;
use crate::reload::Outcome;
use crate::report;
use crate::service::Service;
use crate::survival::{self, Survival};
use crate::takeover::{self, Start, TakeOverError};
use crate::trace::{self, Question};

/// How often the loop looks at what has no descriptor.
const TICK: Duration = Duration::from_millis(50);
/// How often entries in use are told to the kernel, and slow things are checked.
const UPKEEP: Duration = Duration::from_secs(1);
/// A used FDB entry is refreshed in the kernel when its last refresh is this old. The kernel forgets after its ageing time,
/// 300 s unless configured; a tenth of the shortest sensible one is often enough.
const FDB_REFRESH_S: u32 = 3;
/// How long stopping waits for the workers to send what they hold; a device that is down never takes it.
const DRAIN: Duration = Duration::from_millis(50);
/// Entries of the BPF maps from which on a change is written into both copies at once.
const CATCH_UP: usize = 256;
/// How often the host port is made anew at most, if somebody deletes it again and again.
const REMAKE: Duration = Duration::from_secs(1);
/// How often an interface's queues are counted again; the kernel does not tell of a change.
const QUEUE_COUNT: Duration = Duration::from_secs(5);

/// The daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The daemon that runs does not let go.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// Reading the kernel's state.
    #[error("reading the kernel's network state: {0}")]
    Mirror(#[from] NetlinkError),
    /// Writing to the kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The XDP program.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The bridge or an uplink is unusable.
    #[error("{0}")]
    Interface(String),
    /// Waiting for events failed.
    #[error("waiting for events: {0}")]
    Poll(#[from] nix::Error),
    /// Catching signals failed.
    #[error("catching signals: {0}")]
    Signals(#[from] std::io::Error),
    /// The host port was deleted.
    #[error("{0} is gone, without which nothing can be forwarded: somebody deleted it")]
    HostPortGone(&'static str),
    /// A worker's thread has ended.
    #[error("worker {0} has ended unexpectedly; the node's traffic passes to the kernel")]
    DeadWorker(usize),
}

/// Runs until SIGTERM or SIGINT; reads the configuration again on SIGHUP.
///
/// # Errors
/// [`RunError`]. What is pinned is left for the next daemon, on an error as well; without pins everything that was changed on
/// the node is undone before this returns.
pub fn run(config: Config, start: Start) -> Result<(), RunError> {
    let signals = Signals::catch()?;
    privileges::no_new();
    raise_session();
    raise_descriptors();
    let (mut config, mut start) = (config, start);
    loop {
        let begun = Instant::now();
        let mut daemon = Daemon::start(config, start)?;
        let result = daemon.serve(&signals);
        if !matches!(result, Err(RunError::HostPortGone(_))) {
            daemon.service.stopping();
        }
        daemon.end();
        match result {
            // The sockets share their memory through one that is bound to it, so everything begins anew.
            Err(RunError::HostPortGone(name)) => {
                tracing::warn!(
                    "{name} was deleted by somebody; it is made anew, and traffic passes to the kernel meanwhile"
                );
                std::thread::sleep(REMAKE.saturating_sub(begun.elapsed()));
                start = Start::Alone;
            }
            result => return result,
        }
        // As it is in force by now, not as it was at the start.
        config = daemon.config;
    }
}

/// What somebody outside wants, by signal.
struct Signals {
    /// SIGTERM and SIGINT.
    end: UnixStream,
    /// SIGHUP.
    reload: UnixStream,
}

impl Signals {
    fn catch() -> Result<Signals, std::io::Error> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let pipe = |signals: &[i32]| {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
            }
            Ok::<_, std::io::Error>(reader)
        };
        Ok(Signals { end: pipe(&[SIGTERM, SIGINT])?, reload: pipe(&[SIGHUP])? })
    }

    /// Whether one has come; several are as good as one.
    fn has_come(mut pipe: &UnixStream) -> bool {
        matches!(pipe.read(&mut [0; 64]), Ok(count) if count > 0)
    }
}

/// Where the kernel schedules by session (`sched_autogroup_enabled`), the workers' priority counts only within ours, so it is
/// raised as a whole; but only if the session is our own, as a service's is, and not a shell's.
fn raise_session() {
    let own = nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::getpid());
    if own && let Err(error) = std::fs::write("/proc/self/autogroup", format!("-{PRIORITY_STEPS}")) {
        tracing::debug!(%error, "raising the session's priority; the kernel may not have it");
    }
}

/// A node with many pods takes more descriptors than the 1,024 that a process has by custom: a few for each port.
fn raise_descriptors() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "raising the limit of open files");
    }
}

/// By what the counters of an interface of this name and index are known again; `None` if it is gone.
fn identity(world: &World, name: &str, ifindex: u32) -> Option<Identity> {
    if name == host_port_names().near {
        return Some(Identity::own(name));
    }
    let link = world.links.get(&ifindex).filter(|link| link.name == name)?;
    Some(Identity::interface(name, ifindex, link.mac))
}

/// Adds what the programs counted since the last daemon saved, of ports that have the same number in its tables.
fn count_between(
    steering: &mut Steering,
    carried: &mut Carried,
    world: &World,
    in_force: &[(u32, PortId)],
) -> Result<(), BpfError> {
    for ProgramCounters { identity: saved, port, words } in carried.take_programs() {
        let (name, ifindex) = saved.place();
        let port = PortId(port);
        if in_force.contains(&(ifindex, port)) && identity(world, name, ifindex).as_ref() == Some(&saved) {
            let counted = steering.resume_counters(port, &PortCounters::of_words(&words))?;
            carried.add_between(saved, &report::between(&counted));
        }
    }
    Ok(())
}

/// The largest frame, bytes with Ethernet header, of sockets that take frames in pieces or do not.
fn max_frame(in_pieces: bool) -> u32 {
    (if in_pieces { limits::MAX_FRAME } else { limits::CHUNK_SIZE - limits::RX_HEADROOM }) as u32
}

/// The host port's names.
fn host_port_names() -> HostPortNames<'static> {
    HostPortNames::default()
}

/// Pins that no daemon before this one has made. Dropped, they are removed.
struct FirstPins(Option<Pins>);

impl FirstPins {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for FirstPins {
    fn drop(&mut self) {
        forget_pins(self.0.as_ref());
    }
}

/// Removes what would have outlived a daemon.
fn forget_pins(pins: Option<&Pins>) {
    if let Some(Err(error)) = pins.map(Pins::remove) {
        tracing::warn!(%error, "removing what is pinned");
    }
}

/// What names a pod's port; `None` for ports that are no pod's.
fn interface<'a>(world: &'a World, port: &'a OpenPort) -> Option<Interface<'a>> {
    let link = world.links.get(&port.link.ifindex).filter(|_| port.link.kind == PortKind::Pod)?;
    Some(Interface { ifindex: link.ifindex, name: &link.name, alias: &link.alias })
}

/// From reading the kernel's messages to the tables that follow them being in force on both paths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Followed {
    pub(crate) last: Duration,
    pub(crate) slowest: Duration,
}

impl Followed {
    fn note(&mut self, took: Duration) {
        self.last = took;
        self.slowest = self.slowest.max(took);
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) config: Config,
    pub(crate) started: Instant,
    pub(crate) start_time_s: f64,
    pub(crate) mirror: Mirror,
    kernel: Kernel,
    pub(crate) steering: Steering,
    /// `None` only while shutting down.
    pub(crate) engine: Option<Engine>,
    publisher: Publisher,
    compiler: Compiler,
    pub(crate) ports: Ports,
    policy: PathPolicy,
    /// Whether the BPF maps hold the current snapshot.
    in_force: bool,
    /// Whether their other copy lacks much of it.
    copy_is_behind: bool,
    host_port: HostPort,
    pub(crate) wanted: Wanted,
    pub(crate) large: Large,
    pub(crate) guards: Guards,
    switches: Switches,
    rules: Watch,
    pub(crate) effects: Effects,
    pub(crate) notes: Vec<String>,
    /// Receive and transmit queues by interface, and when they were counted.
    queues: BTreeMap<u32, (u32, u32)>,
    queues_counted: Instant,
    /// When FDB entries were last refreshed in the kernel, by activity index.
    refreshed_s: BTreeMap<u32, u32>,
    pub(crate) learned: u64,
    pub(crate) learn_refused: u64,
    pub(crate) names: Names,
    /// How long the last change of the kernel's tables, and the slowest, took to be in force.
    pub(crate) followed: Followed,
    /// What earlier daemons counted.
    pub(crate) carried: Carried,
    /// What it found of them besides.
    pub(crate) survival: Survival,
    control: Option<Control>,
    /// Another process has asked for it.
    letting_go: bool,
    captures: Captures,
    /// Ends with the daemon.
    metrics: Option<metrics::http::Server>,
    /// Why there are none although they are wanted.
    pub(crate) metrics_note: Option<String>,
    service: Service,
    /// What became of the last reading of the configuration.
    pub(crate) reloaded: Outcome,
    last_upkeep: Instant,
}

impl Daemon {
    /// Whatever can be prepared while another daemon runs is done before that one is asked to let go.
    fn start(config: Config, start: Start) -> Result<Self, RunError> {
        let instance = config.instance.as_str();
        // Before the control socket: who waits for a turn must not keep others waiting there.
        let _turn = survival::take_turn(&config.bpffs, instance).map_err(BpfError::Pin)?;
        let alone = (start == Start::Alone).then(|| Control::open(instance)).transpose()?;
        let mut mirror = Mirror::open()?;
        mirror.dump()?;
        let mut kernel = Kernel::open()?;
        let (mut steering, mut survival) = survival::load(&config.bpffs, instance)?;
        // A daemon that never worked leaves nothing.
        let first_pins = FirstPins(steering.pins().filter(|_| survival.is_first).cloned());
        let umem = Umem::new(config.frames).map_err(EngineError::Umem)?;
        let control = match alone {
            Some(control) => control,
            None => takeover::relieve(instance).inspect_err(|_| steering.withdraw())?.0,
        };
        let mut carried = Carried::open(instance);
        let large = Large::open(config.large, instance)?;
        let rules = Watch::start()?;
        let mut guards = Guards::open(reload::guard_policy(&config))?;
        let bridge = mirror.world().link_named(config.bridge.as_str());
        let bridge = bridge.filter(|link| link.kind == LinkKind::Bridge).map(|link| link.ifindex);
        let adopted = steering.adopt()?;
        guards.adopt(&adopted.guards);
        let remembered = adopted.ports.clone();
        count_between(&mut steering, &mut carried, mirror.world(), &remembered)?;
        survival.adopted(adopted);
        let mtu = bridge.and_then(|bridge| host_port_mtu(mirror.world(), bridge, &[])).unwrap_or(1500);
        let host_port = kernel.open_host_port(bridge, host_port_names(), config.instance.as_str(), mtu)?;
        let (publisher, _) = table::channel();
        let options = EngineOptions {
            cpus: config.cpus.clone(),
            idle_spin_us: config.idle_spin.as_micros() as u32,
            checksum_metadata: config.checksum_metadata == ChecksumMetadata::Auto,
            card_checksum_metadata: crate::check::kernel_is_at_least((6, 18)),
        };
        let engine = Heartbeats::map(steering.heartbeats())
            .map_err(EngineError::Heartbeats)
            .and_then(|heartbeats| Engine::start(umem, &options, &publisher, heartbeats, Ports::HOST, host_port.near));
        let engine = match engine {
            Ok(engine) => engine,
            Err(error) => {
                // The first error is the one to report.
                if survival.is_first {
                    let _ = kernel.delete_host_port(host_port_names(), config.instance.as_str());
                }
                return Err(error.into());
            }
        };
        let mode = match config.xdp_mode {
            crate::config::XdpMode::Native => XdpMode::Native,
            crate::config::XdpMode::Generic => XdpMode::Generic,
        };
        let host = Candidate {
            ifindex: host_port.near,
            name: host_port_names().near.to_owned(),
            kind: PortKind::Host,
            queues: 1,
            tx_queues: 1,
        };
        let policy = reload::policy(&config);
        let sockets = engine.mode();
        let now = Instant::now();
        let mut daemon = Daemon {
            started: now,
            start_time_s: carry::unix_s(),
            mirror,
            kernel,
            steering,
            engine: Some(engine),
            publisher,
            compiler: Compiler::new(),
            ports: Ports::new(mode, host, sockets, remembered),
            policy,
            in_force: false,
            copy_is_behind: false,
            host_port,
            wanted: Wanted::default(),
            large,
            guards,
            switches: Switches::default(),
            rules,
            effects: Effects::default(),
            notes: Vec::new(),
            queues: BTreeMap::new(),
            queues_counted: now,
            refreshed_s: BTreeMap::new(),
            learned: 0,
            learn_refused: 0,
            followed: Followed::default(),
            carried,
            survival,
            names: Names::start(config.cni_cache.clone()),
            control: Some(control),
            letting_go: false,
            captures: Captures::default(),
            metrics: None,
            metrics_note: None,
            service: Service::from_environment(),
            reloaded: Outcome::default(),
            last_upkeep: now,
            config,
        };
        let first = daemon.mirror.read().map_err(RunError::from).and_then(|_| daemon.follow(Changes::ALL));
        if let Err(error) = first {
            if daemon.survival.is_first {
                daemon.shut_down()
            } else {
                daemon.end()
            }
            return Err(error);
        }
        first_pins.keep();
        daemon.steering.settle();
        Ok(daemon)
    }

    fn serve(&mut self, signals: &Signals) -> Result<(), RunError> {
        if let Some(engine) = &self.engine {
            engine.wait_for_workers()?;
        }
        let ports = self.ports.open().count() - 1;
        let generation = self.tables().generation;
        self.tell_what_is_missing();
        // A kill from here on is one of a running daemon.
        self.save_counters(false);
        self.start_metrics();
        self.service.ready();
        tracing::info!("podlane is ready: {ports} ports, workers: {}, tables {generation}", self.config.workers());
        loop {
            // An older snapshot that could not be replaced must not be trusted; workers judge by the newer one.
            if self.in_force {
                self.vouch();
            }
            self.wait(signals)?;
            if Signals::has_come(&signals.end) {
                tracing::info!("stopping on a signal");
                return Ok(());
            }
            if Signals::has_come(&signals.reload) {
                self.reload(false);
            }
            let read = Instant::now();
            let mut changes = self.mirror.read()?;
            if self.rules.has_changed() {
                changes |= Changes::LINKS;
            }
            let retry = self.ports.next_retry().is_some_and(|at| at <= Instant::now());
            if !changes.is_empty() {
                self.follow(changes)?;
                self.followed.note(read.elapsed());
            } else if retry {
                self.follow(Changes::LINKS)?;
            } else if self.large.is_due() {
                self.follow_large();
            }
            if self.guards.is_due(self.mirror.world(), self.names.cni().as_ref()) {
                self.publish(Changes::NONE)?;
            }
            self.learn();
            if self.last_upkeep.elapsed() >= UPKEEP {
                self.last_upkeep = Instant::now();
                self.upkeep()?;
            }
            self.answer();
            self.sign_of_life();
            if self.letting_go {
                tracing::info!("letting go: another process takes over, or detaches");
                return Ok(());
            }
            self.captures.end(&mut self.steering, &self.publisher);
        }
    }

    /// Only here, at the end of a turn: a loop that hangs anywhere gives none.
    fn sign_of_life(&mut self) {
        let Some(engine) = &self.engine else { return };
        let ports = self.ports.open().count().saturating_sub(1);
        let workers = engine.workers();
        let refused = self.reloaded.is_refused();
        self.service.turn(engine.heartbeat_ages(), || {
            let end = if refused { "; its configuration was refused, see `podlane status`" } else { "" };
            format!("ports: {ports}, workers: {workers}{end}")
        });
    }

    /// The bridge and the uplinks that are not there yet; the status names them for as long as they are not.
    fn tell_what_is_missing(&self) {
        let names = self.config.uplinks.iter().chain([&self.config.bridge]);
        for name in names.filter(|name| self.mirror.world().link_named(name.as_str()).is_none()) {
            tracing::warn!("there is no interface {name}; waiting for it");
        }
    }

    fn vouch(&mut self) {
        let now_ns = clock::coarse_ns();
        self.steering.vouch(now_ns);
        self.survival.in_force(now_ns);
    }

    fn wait(&self, signals: &Signals) -> Result<(), RunError> {
        let is_due = self.ports.next_retry().is_some_and(|at| at <= Instant::now());
        let pause = if is_due { Duration::ZERO } else { TICK };
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
        let own = [self.mirror.fd(), signals.end.as_fd(), signals.reload.as_fd(), self.guards.fd(), self.rules.fd()];
        let mut fds: Vec<_> = own.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if let Some(control) = &self.control {
            fds.extend(control.poll_fds());
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Brings ports, tables and maps in step with the world, of which `changes` are different.
    fn follow(&mut self, mut changes: Changes) -> Result<(), RunError> {
        // The bridge's networks are the cluster then, by which rules are judged.
        if changes.intersects(Changes::ADDRESSES) && self.config.cluster_cidrs.is_empty() {
            changes |= Changes::LINKS;
        }
        if changes.intersects(Changes::SWITCHES | Changes::LINKS) {
            self.read_switches();
        }
        if changes.intersects(Changes::LINKS) {
            let links = &self.mirror.world().links;
            if !links.contains_key(&self.host_port.near) || !links.contains_key(&self.host_port.member) {
                return Err(RunError::HostPortGone(host_port_names().near));
            }
            self.choose_ports();
        }
        let moved = changes.intersects(Changes::LINKS) && self.reconcile();
        self.publish(changes)?;
        if moved {
            self.finish_ports();
            // A port that was closed only to be opened anew (its queues changed) can be opened now.
            if self.reconcile() {
                self.publish(Changes::NONE)?;
                self.finish_ports();
            }
            self.claim_counters();
            self.names.refresh();
        }
        if changes.intersects(Changes::LINKS) {
            self.follow_bridge();
            self.follow_large();
            self.follow_mtu();
        }
        Ok(())
    }

    /// What was counted for ports that are closed now is kept for the case that they come back.
    fn finish_ports(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        for port in self.ports.finish(engine, &mut self.steering, &mut self.kernel) {
            let own = report::port_counts(engine, &self.steering, port.id, port.switches, port.socket_drops);
            let identity = identity(self.mirror.world(), &port.link.name, port.link.ifindex);
            self.carried.release(port.id, identity, own);
        }
    }

    fn claim_counters(&mut self) {
        for port in self.ports.open() {
            if let Some(identity) = identity(self.mirror.world(), &port.link.name, port.link.ifindex) {
                self.carried.claim(port.id, &identity);
            }
        }
    }

    /// What the programs' counters show, for the daemon after this one.
    fn note_programs(&mut self) {
        let world = self.mirror.world();
        let noted = self.ports.open().filter_map(|port| {
            let identity = identity(world, &port.link.name, port.link.ifindex)?;
            let words = self.steering.raw_counters(port.id).ok()?.words();
            Some(ProgramCounters { identity, port: port.id.0, words })
        });
        self.carried.note_programs(noted.collect());
    }

    /// `ended`: nothing is counted any more.
    fn save_counters(&mut self, ended: bool) {
        let status = report::status(self, false);
        self.note_programs();
        let world = self.mirror.world();
        self.carried.save(&status, |name, ifindex| identity(world, name, ifindex), ended);
    }

    /// After the ports are on their paths: what takes the kernel path now may get larger sizes.
    fn follow_large(&mut self) {
        let in_pieces = self.engine.as_ref().is_none_or(|engine| engine.mode().multi_buffer);
        let pods = self.wanted.ports.iter().filter(|port| port.kind == PortKind::Pod);
        self.large.follow(&large::Node {
            world: self.mirror.world(),
            bridge: self.wanted.bridge,
            host_port: [self.host_port.near, self.host_port.member],
            pods: pods.map(|port| port.ifindex).collect(),
            kernel_path: self.ports.on_kernel_path().collect(),
            uplinks: self.config.uplinks.iter().map(|name| name.as_str()).collect(),
            most_by_sockets: max_frame(in_pieces) - ETHERNET_BYTES as u32,
        });
    }

    /// A bridge that was made anew does not have the host port as a member.
    fn follow_bridge(&mut self) {
        let member = self.host_port.member;
        let master = self.mirror.world().links.get(&member).map(|link| link.master);
        if let (Some(bridge), Some(master)) = (self.wanted.bridge, master)
            && master != Some(bridge)
            && let Err(error) = self.kernel.join_bridge(member, host_port_names().member, bridge)
        {
            // One that is being deleted lets its members go first.
            let now = self.kernel.link(self.config.bridge.as_str());
            if matches!(now, Ok(Some(link)) if link.ifindex == bridge) {
                tracing::warn!(%error, "joining the bridge");
            }
        }
    }

    fn read_switches(&mut self) {
        let uplinks = self.config.uplinks.iter().map(|name| name.as_str());
        self.switches = read_switches(uplinks.chain([self.config.bridge.as_str()]));
        self.switches.ipsec = self.has_ipsec();
    }

    /// A kernel that does not tell is taken to have no policies: it has no IPsec.
    fn has_ipsec(&mut self) -> bool {
        let policies = self.kernel.ipsec_policies();
        policies.map_err(|error| tracing::debug!(%error, "counting IPsec policies")).is_ok_and(|count| count > 0)
    }

    fn choose_ports(&mut self) {
        let names = |list: &[crate::config::InterfaceName]| -> Vec<String> {
            list.iter().map(|name| name.as_str().to_owned()).collect()
        };
        let (uplinks, skip) = (names(&self.config.uplinks), names(&self.config.skip));
        let host_port = [self.host_port.near, self.host_port.member];
        let wish =
            PortWish { bridge: self.config.bridge.as_str(), uplinks: &uplinks, skip: &skip, host_port: &host_port };
        if self.queues_counted.elapsed() >= QUEUE_COUNT {
            self.queues.clear();
            self.queues_counted = Instant::now();
        }
        let (queues, kernel) = (&mut self.queues, &mut self.kernel);
        self.wanted = wanted_ports(self.mirror.world(), &wish, |link| {
            queues.entry(link.ifindex).or_insert_with(|| kernel.queues(link.ifindex).unwrap_or((1, 1))).0
        });
        self.judge_rules();
        self.wanted.leave(&self.effects.left.ports);
        let links = &self.mirror.world().links;
        self.queues.retain(|ifindex, _| links.contains_key(ifindex));
    }

    /// Opens and closes ports. Returns whether any changed.
    fn reconcile(&mut self) -> bool {
        let candidates: Vec<Candidate> = self
            .wanted
            .ports
            .iter()
            .map(|port| Candidate {
                ifindex: port.ifindex,
                name: port.name.clone(),
                kind: port.kind,
                queues: port.queues,
                tx_queues: self.queues.get(&port.ifindex).map_or(1, |(_, tx)| *tx),
            })
            .collect();
        let Some(engine) = &mut self.engine else { return false };
        // An AF_XDP socket could not carry what the larger sizes allow.
        self.large.leave(&self.ports.leaving_kernel_path(&self.policy));
        self.ports.reconcile(&candidates, &self.policy, engine, &mut self.steering, self.in_force)
    }

    /// Compiles what changed and publishes it to the workers and to the program.
    fn publish(&mut self, changes: Changes) -> Result<(), RunError> {
        let guards_changed = self.follow_guards();
        let input = self.input();
        let compiled = self.compiler.compile(self.mirror.world(), &input, changes);
        self.notes = compiled.notes;
        // What could not be written before is tried again.
        if !compiled.changed && !guards_changed && self.in_force {
            return Ok(());
        }
        // The workers first: what the program steers by older maps they judge by newer tables, and a frame that they do
        // not forward any more goes to the kernel.
        self.publisher.publish(Tables { tap: self.captures.tap(), guards: self.guards.table(), ..compiled.tables });
        let synced = self.steering.sync(&self.publisher.current());
        self.in_force = synced.is_ok();
        match synced {
            Ok(writes) => {
                self.copy_is_behind = writes.updated + writes.removed > CATCH_UP;
                self.vouch();
                Ok(())
            }
            Err(BpfError::Full { .. }) => {
                self.notes.push("the BPF maps are full; what does not fit passes to the kernel".to_owned());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What pods may send from; whether that is anything else than before.
    fn follow_guards(&mut self) -> bool {
        let pods = self.ports.open().filter(|port| port.link.kind == PortKind::Pod);
        let pods = pods.map(|port| PodPort { id: port.id, ifindex: port.link.ifindex, name: &port.link.name });
        let pods: Vec<_> = pods.collect();
        self.guards.follow(self.mirror.world(), self.wanted.bridge.unwrap_or(0), &pods, self.names.cni())
    }

    /// Brings the copy of the maps that no program reads up to the current snapshot after a large change, so that the next
    /// small one, which is written there, does not have to.
    fn catch_up(&mut self) {
        if !std::mem::take(&mut self.copy_is_behind) {
            return;
        }
        if let Err(error) = self.steering.sync(&self.publisher.current()) {
            // What is in force stays so; the next change tries again.
            tracing::debug!(%error, "bringing the second copy of the maps up to date");
        }
    }

    fn input(&self) -> Input {
        let assignment = |port: &crate::ports::OpenPort| PortAssignment {
            id: port.id,
            kind: port.link.kind,
            max_frame: max_frame(port.sockets.multi_buffer),
            path: port.path,
        };
        let cluster = &self.config.cluster_cidrs;
        Input {
            bridge: self.wanted.bridge.unwrap_or(0),
            ports: self.ports.open().map(|port| (port.link.ifindex, assignment(port))).collect(),
            cluster: (!cluster.is_empty()).then(|| cluster.clone()),
            switches: self.switches.clone(),
            netfilter: self.effects.clone(),
            owners: self.guards.owners(),
        }
    }

    /// The host port must never be the member with the smallest MTU, which the bridge would follow.
    fn follow_mtu(&mut self) {
        let both = [self.host_port.near, self.host_port.member];
        let world = self.mirror.world();
        let Some(mtu) = self.wanted.bridge.and_then(|bridge| host_port_mtu(world, bridge, &both)) else { return };
        for ifindex in both {
            let current = self.mirror.world().links.get(&ifindex).map(|link| link.mtu);
            if current.is_some_and(|current| current != mtu)
                && let Err(error) = self.kernel.set_mtu(ifindex, mtu)
            {
                tracing::warn!(%error, "following the MTU of the bridge's members");
            }
        }
    }

    /// Tells the kernel's bridge what workers saw, so that it learns as if it had seen the frames itself.
    fn learn(&mut self) {
        let Some(engine) = &self.engine else { return };
        let tables = self.publisher.current();
        let mut learner: Option<Learner> = None;
        while let Some(report) = engine.learn_report() {
            let Some(port) = self.ports.get(report.port).filter(|port| port.link.kind == PortKind::Pod) else {
                continue;
            };
            // Most of the time there is nothing to learn, and nothing to count.
            let learner = learner.get_or_insert_with(|| Learner::new(&tables, self.guards.owners()));
            if !learner.may_learn(report, port.link.ifindex) {
                self.learn_refused += 1;
                continue;
            }
            match self.kernel.learn_fdb(port.link.ifindex, report.mac) {
                Ok(()) => self.learned += 1,
                // The port may have gone in the meantime.
                Err(error) => tracing::debug!(%error, mac = %report.mac, "learning"),
            }
        }
    }

    /// What is due once a second.
    fn upkeep(&mut self) -> Result<(), RunError> {
        log::tick();
        if let Some(worker) = self.engine.as_ref().and_then(Engine::dead_worker) {
            return Err(RunError::DeadWorker(worker));
        }
        if !self.in_force {
            self.publish(Changes::NONE)?;
        }
        if self.queues_counted.elapsed() >= QUEUE_COUNT {
            self.follow(Changes::LINKS)?;
        }
        if self.has_ipsec() != self.switches.ipsec {
            self.follow(Changes::SWITCHES)?;
        }
        // What was just learned is in the mirror before entries are refreshed, or a moved address would be moved back. The
        // kernel queues the notification before it acknowledges the request.
        let changes = self.mirror.read()?;
        if !changes.is_empty() {
            self.follow(changes)?;
        }
        self.start_metrics();
        self.tell_names();
        self.catch_up();
        self.keep_entries_alive();
        if self.carried.is_due() {
            self.save_counters(false);
        }
        Ok(())
    }

    /// Frames that Podlane forwards are not seen by the bridge and the neighbour tables, so the kernel would forget the
    /// entries in use: tells it of the use. Entries that nobody uses age as ever.
    fn keep_entries_alive(&mut self) {
        let Some(engine) = &self.engine else { return };
        let steering = &self.steering;
        let last_used_s = |index| engine.last_used_s(index).max(steering.last_used_s(index));
        let now_s = (clock::coarse_ns() / 1_000_000_000) as u32;
        for (index, mac, ifindex, is_static) in self.compiler.fdb_entries() {
            let used_s = last_used_s(index);
            let refreshed_s = self.refreshed_s.get(&index).copied().unwrap_or(0);
            if is_static || used_s <= refreshed_s || now_s < refreshed_s + FDB_REFRESH_S {
                continue;
            }
            self.refreshed_s.insert(index, now_s);
            if let Err(error) = self.kernel.learn_fdb(ifindex, mac) {
                tracing::debug!(%error, %mac, "refreshing an FDB entry");
            }
        }
        for (index, key) in self.compiler.neighbours() {
            let recently = now_s.saturating_sub(last_used_s(index)) <= 2;
            let stale = self
                .mirror
                .world()
                .neighbours
                .get(&key)
                .is_some_and(|neighbour| neighbour.state.is_stale() && !neighbour.state.is_configured());
            if !(recently && stale) {
                continue;
            }
            if let Err(error) = self.kernel.use_neighbour(key.ifindex, key.address) {
                tracing::debug!(%error, address = %key.address, "keeping a neighbour resolved");
            }
        }
    }

    /// The name of the pod behind a port.
    pub(crate) fn pod_name(&self, port: &OpenPort) -> Option<PodName> {
        self.names.of(interface(self.mirror.world(), port)?)
    }

    fn tell_names(&mut self) {
        let world = self.mirror.world();
        self.names.tell(self.ports.open().filter_map(|port| interface(world, port)));
    }

    fn answer(&mut self) {
        let Some(mut control) = self.control.take() else { return };
        control.serve(|request| match request {
            Request::Path { path, ports } => self.change_paths(&path, &ports),
            Request::Trace(question) => self.trace(&question),
            Request::Reload { only_check } => match serde_json::to_value(self.reload(only_check)) {
                Ok(outcome) => Response::Value(outcome),
                Err(error) => Response::Error(error.to_string()),
            },
            Request::LetGo { until_ns } if until_ns < clock::coarse_ns() => {
                Response::Error("it is too late to let go: whoever asked waits no more".to_owned())
            }
            Request::LetGo { .. } => {
                self.letting_go = true;
                Response::Value(serde_json::json!({ "pid": std::process::id() }))
            }
            other => {
                let answer = report::answer(self, &other);
                if let Response::Status(status) = &answer {
                    // What was told must not be less tomorrow, whatever becomes of this daemon.
                    self.note_programs();
                    let world = self.mirror.world();
                    self.carried.save(status, |name, ifindex| identity(world, name, ifindex), false);
                }
                answer
            }
        });
        while let Some((question, stream)) = control.take_capture() {
            self.start_capture(&question, stream);
        }
        self.control = Some(control);
    }

    fn start_capture(&mut self, question: &capture::Question, stream: UnixStream) {
        let Some(engine) = &self.engine else { return };
        let ports = &self.ports;
        let ifindex_of = |name: &str| ports.open().find(|port| port.link.name == name).map(|port| port.link.ifindex);
        self.captures.start(question, stream, engine.workers(), &mut self.steering, &self.publisher, ifindex_of);
    }

    fn trace(&mut self, question: &Question) -> Response {
        match report::locate(self, question) {
            Ok(question) if question.may_resolve && self.resolve_ends(&question) => Response::Resolving,
            Ok(question) => report::answer(self, &Request::Trace(question)),
            Err(error) => Response::Error(error.to_string()),
        }
    }

    /// Has the kernel find out the MAC addresses of those ends of a question that are pods here and that the node has not
    /// talked to yet. Whether there were any.
    fn resolve_ends(&mut self, question: &Question) -> bool {
        let Some(bridge) = self.mirror.world().link_named(self.config.bridge.as_str()) else { return false };
        let bridge = bridge.ifindex;
        let unknown = trace::unresolved(question, &self.tables());
        for address in &unknown {
            if let Err(error) = self.kernel.resolve_neighbour(bridge, *address) {
                tracing::debug!(%error, %address, "resolving an end of a trace");
            }
        }
        !unknown.is_empty()
    }

    /// What is wanted of ports that nothing special is said of.
    pub(crate) fn path_choice(&self) -> PathChoice {
        self.policy.all
    }

    /// Changes the path of the named ports, or of all.
    fn change_paths(&mut self, path: &str, names: &[String]) -> Response {
        let Some((_, choice)) = PathChoice::WORDS.iter().find(|(word, _)| *word == path) else {
            return Response::Error(format!("{path:?} is not a path; there are af_xdp, kernel and auto"));
        };
        let is_port = |name: &String| self.ports.open().any(|port| port.link.name == *name && port.id != Ports::HOST);
        if let Some(name) = names.iter().find(|name| !is_port(name)) {
            return Response::Error(format!("there is no port {name}; `podlane status` lists them"));
        }
        if names.is_empty() {
            self.policy = PathPolicy { all: *choice, ports: BTreeMap::new(), said: true, ..self.policy };
        } else {
            self.policy.ports.extend(names.iter().map(|name| (name.clone(), *choice)));
            self.policy.said = true;
        }
        if let Err(error) = self.follow(Changes::LINKS) {
            return Response::Error(error.to_string());
        }
        let ports = self.ports.open().filter(|port| port.id != Ports::HOST);
        let ports = ports.filter(|port| names.is_empty() || names.contains(&port.link.name));
        let told = ports.map(|port| PortPath {
            name: port.link.name.clone(),
            path: path_name(port.path).to_owned(),
            why: port.why_path.clone(),
        });
        Response::Paths(told.collect())
    }

    /// The current snapshot.
    pub(crate) fn tables(&self) -> Arc<Tables> {
        self.publisher.current()
    }

    /// A node forwards as well without its metrics being told; it is tried again every second.
    fn start_metrics(&mut self) {
        let Some(address) = self.config.metrics_address.filter(|_| self.metrics.is_none()) else { return };
        match metrics::http::Server::start(address, self.config.instance.as_str()) {
            Ok(server) => (self.metrics, self.metrics_note) = (Some(server), None),
            Err(error) => {
                let sentence = error.to_string();
                if self.metrics_note.as_ref() != Some(&sentence) {
                    tracing::warn!("{sentence}");
                }
                self.metrics_note = Some(sentence);
            }
        }
    }

    /// The end of a daemon: what is pinned stays for the next one.
    fn end(&mut self) {
        if self.steering.is_pinned() { self.leave() } else { self.shut_down() }
    }

    /// Lets go of everything and takes nothing back: programs, tables, host port and the pods' sizes stay. With no socket
    /// left the XDP program passes every frame; the tc program goes on until the tables are stale.
    fn leave(&mut self) {
        self.captures.switch_off(&mut self.steering, &self.publisher);
        self.ports.leave_all(&mut self.steering);
        self.drain();
        self.save_counters(true);
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        // Whoever takes over can bind his own when the control socket is free.
        engine::close_together(self.ports.take_sockets());
        if self.in_force {
            self.vouch();
        }
        (self.metrics, self.control) = (None, None);
        log::finish();
        tracing::info!(
            "podlane has stopped; its programs stay and pass the node's traffic to the kernel until it is started again \
             (`podlane detach` removes them)"
        );
    }

    /// With the programs off nothing is received any more: lets the workers send what they already have.
    fn drain(&self) {
        let Some(engine) = &self.engine else { return };
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline {
            match engine.audit() {
                Ok(count) if count.rx + count.handoff + count.tx == 0 => return,
                Ok(_) => std::thread::yield_now(),
                Err(_) => return,
            }
        }
    }

    /// Takes everything back: programs off, ports out of the tables, workers stopped, host port gone.
    fn shut_down(&mut self) {
        self.ports.detach_all(&mut self.steering, &mut self.kernel);
        self.drain();
        self.save_counters(true);
        self.captures.switch_off(&mut self.steering, &self.publisher);
        self.large.end();
        self.publisher.publish(Tables::default());
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        if let Err(error) = self.kernel.delete_host_port(host_port_names(), self.config.instance.as_str()) {
            tracing::warn!(%error, "removing the host port");
        }
        forget_pins(self.steering.pins());
        (self.metrics, self.control) = (None, None);
        log::finish();
        tracing::info!("podlane has stopped; the node's traffic passes to the kernel");
    }
}
