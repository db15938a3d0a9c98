//! The engine's threads: the shared memory, the workers, and the sockets that they are given and give back.
//!
//! The loader makes and closes sockets, because both take privileges and time; a worker only uses them. Each socket has one
//! owner, by the rule of [`Ownership`]; a port's queues go to their workers by command and come back by command.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use crossbeam::queue::ArrayQueue;
use podlane_dataplane::afxdp::{
    BindError, BindOptions, ClosedSocket, Heartbeats, Socket, SocketHandle, Umem, UmemError, Waiter, Waker, XskMode,
    clock, raise_priority,
};
use podlane_dataplane::table::learn::LearnReport;
use podlane_dataplane::table::{Activity, PortKind, Publisher};
use podlane_dataplane::worker::{
    Command, Counter, Egress, FrameCount, FramePool, Handoff, Homes, IdlePolicy, LEARN_QUEUE, PortCounters, Worker,
    WorkerCounters, WorkerParts, capacity, run,
};
use podlane_dataplane::{PortId, limits};

use crate::privileges;

/// How long a worker may take to answer before it is given up. It answers between two batches, but a machine that is short
/// of CPU may keep it from running for a while, and what it owes is lost when it is given up.
const ANSWER: Duration = Duration::from_secs(5);
/// How long an audit waits for a worker: somebody waits for the answer, and the daemon meanwhile does nothing else.
const AUDIT_ANSWER: Duration = Duration::from_millis(200);
/// How often a queue is tried that another socket still holds; the pauses add up to half a second.
const BIND_ATTEMPTS: u32 = 10;
/// Threads that close sockets at the end: with one for each, all of them are closed in the time of one.
const CLOSING: usize = 128;

/// The engine cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The shared memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A worker's thread or what it sleeps on.
    #[error("cannot start worker {worker}: {source}")]
    Thread {
        /// Its number.
        worker: usize,
        /// Why not.
        source: io::Error,
    },
    /// The heartbeats' map.
    #[error("cannot map the heartbeats: {0}")]
    Heartbeats(io::Error),
    /// A worker did not answer in time.
    #[error("worker {0} does not answer; its frames pass to the kernel; restart podlane")]
    Stuck(usize),
    /// Every frame of a worker is promised.
    #[error(
        "worker {worker} receives from {queues} queues already, and its {frames} UMEM frames are enough for no more; \
         raise `frames`"
    )]
    Frames {
        /// The worker.
        worker: usize,
        /// Its queues.
        queues: usize,
        /// Its frames.
        frames: u32,
    },
    /// The driver has no zero-copy and the configuration insists on it.
    #[error(
        "zero-copy is required and the driver refuses it: {0}; choose the kernel path for this port (`path`), or set \
         zero_copy = \"auto\""
    )]
    NoZeroCopy(BindError),
    /// Every socket number is in use.
    #[error("all {} AF_XDP socket numbers are in use; the port stays with the kernel", u16::MAX)]
    SocketNumbers,
}

/// Which worker owns which queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ownership {
    workers: usize,
}

impl Ownership {
    /// The rule for this many workers.
    pub fn new(workers: usize) -> Self {
        Ownership { workers }
    }

    /// The worker that owns queue `queue` of a port with `queues` queues: worker *w* owns queue *w* (and further ones in
    /// turn). Ports with fewer queues than there are workers are spread by their number, so that not all pods, which
    /// mostly have one queue, end up with worker 0.
    pub fn owner(self, port: PortId, queue: u32, queues: u32) -> usize {
        let shift = if queues as usize >= self.workers { 0 } else { port.index() };
        (queue as usize + shift) % self.workers
    }

    /// How worker `worker` sends to that port.
    /// The first `tx_queues` of its `queues` queues can send.
    pub fn egress(self, worker: usize, port: PortId, queues: u32, tx_queues: u32) -> Egress {
        let senders = tx_queues.clamp(1, queues);
        if (0..senders).any(|queue| self.owner(port, queue, queues) == worker) {
            return Egress::Own;
        }
        // Spread over the owners, so that not all others send through queue 0.
        let owner = self.owner(port, worker as u32 % senders, queues);
        Egress::Worker(owner as u8)
    }
}

/// A socket of an open port, as the loader keeps it.
#[derive(Debug)]
pub struct OpenQueue {
    /// The queue's number.
    pub queue: u32,
    /// The worker that drains it.
    pub worker: usize,
    /// To put it into the XSKMAP and to read its statistics.
    pub handle: SocketHandle,
}

/// Whether a port's sockets should be such that the driver reads and writes frames itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ZeroCopy {
    /// No: the kernel copies.
    #[default]
    Off,
    /// Where the driver can.
    Auto,
    /// Or the port is not opened.
    Require,
}

/// What became of [`Engine::open_port`].
#[derive(Debug)]
pub struct Opened {
    /// The sockets, for the control side.
    pub queues: Vec<OpenQueue>,
    /// How they are bound, all in the same way.
    pub mode: XskMode,
    /// Why they copy although they need not have, as far as we were concerned.
    pub why_copy: Option<String>,
}

/// What the engine is started with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The CPU of each worker.
    pub cpus: Vec<usize>,
    /// Microseconds of looking before a worker sleeps.
    pub idle_spin_us: u32,
    /// Use TX metadata for checksums where the kernel has it.
    pub checksum_metadata: bool,
    /// The same for network cards in copy mode. Before Linux 6.18 it is not looked at in a packet for a driver that takes
    /// packets in pieces (`IFF_TX_SKB_NO_LINEAR`, virtio-net; `xsk_build_skb_zerocopy` in `net/xdp/xsk.c`), and the packet
    /// leaves with half a checksum.
    pub card_checksum_metadata: bool,
}

#[derive(Debug)]
struct WorkerHandle {
    cpu: usize,
    commands: Sender<Command<Socket>>,
    waker: Waker,
    counters: Arc<WorkerCounters>,
    activity: Arc<Activity>,
    /// What it counted for ports whose number was handed out again.
    retired: WorkerTotals,
    thread: JoinHandle<()>,
}

/// What a worker counted for all ports together, those that are gone included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Packets received.
    pub rx: u64,
    /// Of these, forwarded.
    pub forwarded: u64,
    /// Of these, handed to the kernel.
    pub kernel: u64,
    /// Of these, dropped.
    pub dropped: u64,
}

impl WorkerTotals {
    fn add(&mut self, port: &PortCounters) {
        let sum = |counters: &[Counter]| counters.iter().map(Counter::get).sum::<u64>();
        self.rx += port.rx.get();
        self.forwarded += port.forwarded.get();
        self.kernel += sum(&port.kernel);
        self.dropped += sum(&port.dropped);
    }
}

/// The running engine.
#[derive(Debug)]
pub struct Engine {
    umem: Umem,
    anchor: SocketHandle,
    mode: XskMode,
    card_checksum_metadata: bool,
    ownership: Ownership,
    heartbeats: Heartbeats,
    learn: Arc<ArrayQueue<LearnReport>>,
    workers: Vec<WorkerHandle>,
    numbers: Numbers,
    /// Queues of open ports: how many each has.
    queues: HashMap<PortId, u32>,
}

impl Engine {
    /// Registers `umem` through a socket on the host port, starts the workers, and opens the host port for them.
    ///
    /// # Errors
    /// Any of [`EngineError`]; nothing runs then.
    pub fn start(
        umem: Umem,
        options: &EngineOptions,
        publisher: &Publisher,
        heartbeats: Heartbeats,
        host_port: PortId,
        host_ifindex: u32,
    ) -> Result<Self, EngineError> {
        let mut numbers = Numbers::default();
        let number = numbers.take().ok_or(EngineError::SocketNumbers)?;
        let bind = BindOptions { checksum_metadata: options.checksum_metadata };
        let anchor = retry_busy(|| Socket::bind_anchor(&umem, host_ifindex, 0, number, bind))?;
        let (handle, mode) = (anchor.handle(), anchor.mode());
        let mut engine = Engine {
            umem,
            anchor: handle,
            mode,
            card_checksum_metadata: options.card_checksum_metadata,
            ownership: Ownership::new(options.cpus.len()),
            heartbeats,
            learn: Arc::new(ArrayQueue::new(LEARN_QUEUE)),
            workers: Vec::new(),
            numbers,
            queues: Default::default(),
        };
        engine.spawn(options, publisher)?;
        engine.tell_all(|_| Command::SetHostPort(host_port));
        engine.give(host_port, 1, 1, vec![(0, anchor)]);
        Ok(engine)
    }

    fn spawn(&mut self, options: &EngineOptions, publisher: &Publisher) -> Result<(), EngineError> {
        let count = options.cpus.len();
        let homes = Homes::new(count, self.umem.frames());
        let mut waiters = Vec::new();
        let mut wakers = Vec::new();
        for worker in 0..count {
            let (waiter, waker) = Waiter::new().map_err(|source| EngineError::Thread { worker, source })?;
            waiters.push(waiter);
            wakers.push(waker);
        }
        let handoff = Handoff::new(wakers.clone());
        let shares = homes.split(self.umem.take_frames());
        let idle = IdlePolicy { spin_us: options.idle_spin_us };
        for (id, ((waiter, waker), share)) in waiters.into_iter().zip(wakers).zip(shares).enumerate() {
            let (commands, receiver) = channel::unbounded();
            let counters = Arc::new(WorkerCounters::default());
            let activity = Arc::new(Activity::new());
            let worker = Worker::new(WorkerParts {
                id,
                umem: self.umem.clone(),
                pool: FramePool::new(id, homes.clone(), share),
                counters: Arc::clone(&counters),
                activity: Arc::clone(&activity),
                learn: Arc::clone(&self.learn),
                handoff: handoff.clone(),
                commands: receiver,
            });
            let (reader, heartbeat, cpu) = (publisher.reader(), self.heartbeats.worker(id), options.cpus[id]);
            // Alive from the start: the first frames may be steered before the thread has come around once.
            heartbeat.beat(clock::coarse_ns());
            let thread = std::thread::Builder::new()
                .name(format!("podlane-w{id}"))
                .spawn(move || {
                    // It takes a capability, the last thing that does.
                    raise_priority();
                    privileges::renounce();
                    run(worker, reader, heartbeat, waiter, idle, Some(cpu));
                })
                .map_err(|source| EngineError::Thread { worker: id, source })?;
            self.workers.push(WorkerHandle {
                cpu,
                commands,
                waker,
                counters,
                activity,
                retired: WorkerTotals::default(),
                thread,
            });
        }
        Ok(())
    }

    /// Binds a socket to every queue of an interface and gives them to their workers. The XDP program may steer to them
    /// from then on. On failure nothing is left open.
    ///
    /// # Errors
    /// [`EngineError::Bind`], [`EngineError::NoZeroCopy`], [`EngineError::Frames`], [`EngineError::SocketNumbers`].
    pub fn open_port(
        &mut self,
        port: PortId,
        kind: PortKind,
        ifindex: u32,
        queues: u32,
        tx_queues: u32,
        zero_copy: ZeroCopy,
    ) -> Result<Opened, EngineError> {
        self.check_frames(port, queues)?;
        let checksum_metadata =
            self.mode.checksum_metadata && (kind != PortKind::Uplink || self.card_checksum_metadata);
        let copied = XskMode { checksum_metadata, ..self.mode };
        let (sockets, why_copy) = self.bind_queues(ifindex, queues, zero_copy, copied)?;
        for worker in &mut self.workers {
            worker.retired.add(worker.counters.port(port));
            worker.counters.port(port).reset();
        }
        let mode = sockets.first().map_or(self.mode, Socket::mode);
        let open = sockets
            .iter()
            .zip(0..)
            .map(|(socket, queue)| OpenQueue {
                queue,
                worker: self.ownership.owner(port, queue, queues),
                handle: socket.handle(),
            })
            .collect();
        self.give(port, queues, tx_queues, (0..).zip(sockets).collect());
        Ok(Opened { queues: open, mode, why_copy })
    }

    /// A socket for every queue, all of them in the same mode: zero-copy if that is wanted and the driver can, else `copied`,
    /// and why.
    fn bind_queues(
        &mut self,
        ifindex: u32,
        queues: u32,
        zero_copy: ZeroCopy,
        copied: XskMode,
    ) -> Result<(Vec<Socket>, Option<String>), EngineError> {
        if zero_copy == ZeroCopy::Off {
            return Ok((self.bind_each(ifindex, queues, Some(copied))?, None));
        }
        match self.bind_each(ifindex, queues, None) {
            Ok(sockets) => Ok((sockets, None)),
            Err(EngineError::Bind(error)) if error.is_the_drivers() && zero_copy == ZeroCopy::Require => {
                Err(EngineError::NoZeroCopy(error))
            }
            Err(EngineError::Bind(error)) if error.is_the_drivers() => {
                Ok((self.bind_each(ifindex, queues, Some(copied))?, Some(error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// In a mode that copies, or zero-copy.
    fn bind_each(&mut self, ifindex: u32, queues: u32, copied: Option<XskMode>) -> Result<Vec<Socket>, EngineError> {
        let mut sockets: Vec<Socket> = Vec::new();
        for queue in 0..queues {
            let first = sockets.first().map(|first| (first.handle(), first.mode()));
            match self.bind(ifindex, queue, copied, first) {
                Ok(socket) => sockets.push(socket),
                Err(error) => {
                    self.close_sockets(sockets);
                    return Err(error);
                }
            }
        }
        Ok(sockets)
    }

    /// A queue without frames would drop what is steered to it, so it must not be opened.
    fn check_frames(&self, port: PortId, queues: u32) -> Result<(), EngineError> {
        let frames = self.umem.frames() / self.workers.len() as u32;
        for worker in 0..self.workers.len() {
            let own = self.queues_of(worker);
            let new = (0..queues).filter(|queue| self.ownership.owner(port, *queue, queues) == worker).count();
            if own + new > capacity(frames as usize) {
                return Err(EngineError::Frames { worker, queues: own, frames });
            }
        }
        Ok(())
    }

    /// Binds one queue; with zero-copy, `first` is the interface's first socket if this is not it.
    fn bind(
        &mut self,
        ifindex: u32,
        queue: u32,
        copied: Option<XskMode>,
        first: Option<(SocketHandle, XskMode)>,
    ) -> Result<Socket, EngineError> {
        let number = self.numbers.take().ok_or(EngineError::SocketNumbers)?;
        let bound = retry_busy(|| {
            if let Some(mode) = copied {
                Socket::bind_shared(&self.umem, &self.anchor, mode, ifindex, queue, number)
            } else {
                let share = first.as_ref().map(|(first, mode)| (first, *mode));
                Socket::bind_zero_copy(&self.umem, share, ifindex, queue, number)
            }
        });
        bound.map_err(|error| {
            self.numbers.give_back(number);
            error.into()
        })
    }

    fn give(&mut self, port: PortId, queues: u32, tx_queues: u32, sockets: Vec<(u32, Socket)>) {
        for (queue, socket) in sockets {
            let owner = self.ownership.owner(port, queue, queues);
            let transmits = queue < tx_queues.max(1);
            self.tell(owner, Command::AddQueue { port, queue: socket, transmits });
        }
        let ownership = self.ownership;
        self.tell_all(|worker| Command::SetEgress { port, egress: ownership.egress(worker, port, queues, tx_queues) });
        self.queues.insert(port, queues);
    }

    /// Takes a port's sockets from the workers, closes them, and has the workers take their frames back. `handles` are those
    /// that [`Engine::open_port`] returned; a socket is only closed when nobody holds it open. Publish tables without the
    /// port and detach the XDP program first.
    ///
    /// # Errors
    /// [`EngineError::Stuck`]; the port's number must not be used again then. What the other workers had is closed and reclaimed.
    pub fn close_port(&mut self, port: PortId, kind: PortKind, handles: Vec<OpenQueue>) -> Result<(), EngineError> {
        drop(handles);
        self.queues.remove(&port);
        // All are asked before the first is waited for, so that a slow one does not leave the port with the others.
        let asked = (0..self.workers.len())
            .map(|worker| self.ask(worker, |reply| Command::RemovePort { port, reply }))
            .collect();
        let (removed, all_removed) = answers(asked, ANSWER);
        let mut reclaims = Vec::new();
        for (worker, sockets) in removed.into_iter().filter(|(_, sockets)| !sockets.is_empty()) {
            // Only an uplink is perhaps no veth.
            let (closed, numbers) = close_all(sockets, kind != PortKind::Uplink);
            reclaims.push((self.ask(worker, |reply| Command::Reclaim { closed, reply }), numbers));
        }
        let all_reclaimed = self.numbers.give_back_after(reclaims, ANSWER);
        all_removed.and(all_reclaimed)
    }

    /// Closes sockets that no worker has seen: they hold no frames.
    fn close_sockets(&mut self, sockets: Vec<Socket>) {
        // They have sent nothing.
        let (closed, numbers) = close_all(sockets, true);
        closed.into_iter().for_each(|socket| self.umem.reclaim(socket, &mut Vec::new()));
        numbers.into_iter().for_each(|number| self.numbers.give_back(number));
    }

    /// Counts the frames by place, over all workers.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn audit(&self) -> Result<FrameCount, EngineError> {
        Ok(sum(&self.audit_each()?))
    }

    /// Counts the frames by place, of each worker.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn audit_each(&self) -> Result<Vec<FrameCount>, EngineError> {
        self.audit_within(AUDIT_ANSWER)
    }

    /// Waits until every worker has come around once.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn wait_for_workers(&self) -> Result<(), EngineError> {
        self.audit_within(ANSWER).map(drop)
    }

    fn audit_within(&self, timeout: Duration) -> Result<Vec<FrameCount>, EngineError> {
        let audit = |index| self.ask(index, |reply| Command::Audit { reply }).receive(timeout);
        (0..self.workers.len()).map(audit).collect()
    }

    /// Stops the workers and closes all sockets.
    pub fn stop(mut self) {
        for (index, worker) in std::mem::take(&mut self.workers).into_iter().enumerate() {
            let (reply, answer) = channel::bounded(1);
            let _ = worker.commands.send(Command::Stop { reply });
            worker.waker.wake();
            match answer.recv_timeout(ANSWER) {
                Ok(sockets) => {
                    drop(sockets);
                    let _ = worker.thread.join();
                }
                Err(_) => tracing::error!(worker = index, "a worker does not answer; leaving it behind"),
            }
        }
    }

    /// Reads a learn report that a worker made.
    pub fn learn_report(&self) -> Option<LearnReport> {
        self.learn.pop()
    }

    /// When any worker last used entry `index`, seconds of the monotonic clock; 0 for never.
    pub fn last_used_s(&self, index: u32) -> u32 {
        self.workers.iter().map(|worker| worker.activity.last_used_s(index)).max().unwrap_or(0)
    }

    /// How old each worker's heartbeat is.
    pub fn heartbeat_ages(&self) -> impl Iterator<Item = Duration> {
        (0..self.workers.len()).map(|worker| Duration::from_nanos(self.worker(worker).2))
    }

    /// Has the workers keep looking for so long before they sleep, microseconds.
    pub fn set_idle_spin(&self, spin_us: u32) {
        self.tell_all(|_| Command::SetIdle(IdlePolicy { spin_us }));
    }

    /// How the sockets are bound.
    pub fn mode(&self) -> XskMode {
        self.mode
    }

    /// UMEM frames.
    pub fn frames(&self) -> u32 {
        self.umem.frames()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// A worker's CPU, counters and age of its heartbeat in nanoseconds.
    pub fn worker(&self, index: usize) -> (usize, &WorkerCounters, u64) {
        let worker = &self.workers[index];
        let age_ns = clock::coarse_ns().saturating_sub(self.heartbeats.worker(index).last_ns());
        (worker.cpu, &worker.counters, age_ns)
    }

    /// What a worker counted, over all ports.
    pub fn totals(&self, index: usize) -> WorkerTotals {
        let worker = &self.workers[index];
        let mut totals = worker.retired;
        (0..limits::MAX_PORTS).for_each(|port| totals.add(worker.counters.port(PortId(port as u16))));
        totals
    }

    /// Queues that a worker owns.
    pub fn queues_of(&self, worker: usize) -> usize {
        let owned = |(port, queues): (&PortId, &u32)| {
            (0..*queues).filter(|queue| self.ownership.owner(*port, *queue, *queues) == worker).count()
        };
        self.queues.iter().map(owned).sum()
    }

    /// The number of a worker whose thread has ended by itself, if there is one: a bug.
    pub fn dead_worker(&self) -> Option<usize> {
        self.workers.iter().position(|worker| worker.thread.is_finished())
    }

    /// Tells a worker something that it answers.
    fn ask<T>(&self, worker: usize, command: impl FnOnce(Sender<T>) -> Command<Socket>) -> Asked<T> {
        let (reply, answer) = channel::bounded(1);
        self.tell(worker, command(reply));
        Asked { worker, answer }
    }

    fn tell(&self, worker: usize, command: Command<Socket>) {
        // A worker that has ended no longer listens; `dead_worker` tells of it.
        let _ = self.workers[worker].commands.send(command);
        self.workers[worker].waker.wake();
    }

    fn tell_all(&self, command: impl Fn(usize) -> Command<Socket>) {
        (0..self.workers.len()).for_each(|worker| self.tell(worker, command(worker)));
    }
}

/// Closes sockets that nobody uses any more. For each the kernel waits until no processor can be using it, which takes longer than
/// everything else about it (`xsk_unbind_dev`, `net/xdp/xsk.c`), but those that are closed at one time wait together.
pub fn close_together(mut handles: Vec<SocketHandle>) {
    let share = handles.len().div_ceil(CLOSING);
    std::thread::scope(|scope| {
        while !handles.is_empty() {
            let part = handles.split_off(handles.len().saturating_sub(share));
            // Where no thread can be had, dropping the closure closes them.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(part));
        }
    });
}

/// Binds, again after a pause while another socket still holds the queue: closing is asynchronous in the kernel.
fn retry_busy(mut bind: impl FnMut() -> Result<Socket, BindError>) -> Result<Socket, BindError> {
    let mut pause = Duration::from_millis(1);
    for _ in 1..BIND_ATTEMPTS {
        match bind() {
            Err(error) if error.is_busy() => std::thread::sleep(pause),
            bound => return bound,
        }
        pause *= 2;
    }
    bind()
}

/// The frames of all workers.
pub fn sum(counts: &[FrameCount]) -> FrameCount {
    counts.iter().fold(FrameCount::default(), |mut sum, count| {
        sum += *count;
        sum
    })
}

/// A question to a worker.
struct Asked<T> {
    worker: usize,
    answer: Receiver<T>,
}

impl<T> Asked<T> {
    fn receive(&self, timeout: Duration) -> Result<T, EngineError> {
        self.answer.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected => EngineError::Stuck(self.worker),
        })
    }
}

/// What the workers answer, all of them together within `timeout`, each with its number; and which one did not, if one did
/// not. What the others have answered must be seen to in any case.
fn answers<T>(asked: Vec<Asked<T>>, timeout: Duration) -> (Vec<(usize, T)>, Result<(), EngineError>) {
    let deadline = Instant::now() + timeout;
    let (mut all, mut result) = (Vec::new(), Ok(()));
    for asked in asked {
        match asked.receive(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => all.push((asked.worker, answer)),
            Err(error) => result = result.and(Err(error)),
        }
    }
    (all, result)
}

/// Closes sockets. Returns the proofs, and the numbers that nobody holds once their frames are reclaimed.
fn close_all(sockets: Vec<Socket>, are_veths: bool) -> (Vec<ClosedSocket>, Vec<u16>) {
    let (mut closed, mut numbers) = (Vec::new(), Vec::new());
    for socket in sockets {
        let number = podlane_dataplane::afxdp::QueueIo::number(&socket);
        match socket.close(are_veths) {
            Ok(proof) => {
                closed.push(proof);
                numbers.push(number);
            }
            // Its number stays taken, so that its frames cannot be mistaken for another's.
            Err(why) => tracing::error!(number, %why, "a socket's frames are lost until the next start"),
        }
    }
    (closed, numbers)
}

/// Hands out socket numbers.
#[derive(Debug, Default)]
struct Numbers {
    next: u16,
    free: Vec<u16>,
}

impl Numbers {
    fn take(&mut self) -> Option<u16> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        // The highest value is not a socket's, since a place is a number plus one.
        if self.next >= u16::MAX - 1 {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn give_back(&mut self, number: u16) {
        self.free.push(number);
    }

    /// Gives numbers back when their frames have been reclaimed, for which each worker has until `timeout`. Those of one that
    /// does not answer stay taken: it reclaims all frames at that place when it comes to it, also those of a socket that got
    /// the number meanwhile, into which the kernel receives.
    fn give_back_after(
        &mut self,
        reclaims: Vec<(Asked<usize>, Vec<u16>)>,
        timeout: Duration,
    ) -> Result<(), EngineError> {
        let (asked, numbers): (Vec<_>, Vec<_>) = reclaims.into_iter().unzip();
        let mut numbers: HashMap<usize, Vec<u16>> =
            asked.iter().map(|asked: &Asked<usize>| asked.worker).zip(numbers).collect();
        let (reclaimed, all_reclaimed) = answers(asked, timeout);
        for (worker, _) in reclaimed {
            self.free.extend(numbers.remove(&worker).unwrap_or_default());
        }
        all_reclaimed
    }
}

const _: () = assert!(limits::MAX_WORKERS <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_w_owns_queue_w_where_a_port_has_enough_queues() {
        let rule = Ownership::new(4);
        for port in [PortId(0), PortId(7)] {
            for queue in 0..8 {
                assert_eq!(rule.owner(port, queue, 8), queue as usize % 4);
            }
            assert!((0..4).all(|worker| rule.egress(worker, port, 8, 8) == Egress::Own));
        }
    }

    #[test]
    fn ports_with_one_queue_are_spread_and_the_others_hand_over_to_the_owner() {
        let rule = Ownership::new(4);
        let owners: std::collections::HashSet<_> = (0..4).map(|port| rule.owner(PortId(port), 0, 1)).collect();
        assert_eq!(owners.len(), 4);
        let owner = rule.owner(PortId(6), 0, 1);
        for worker in 0..4 {
            let expected = if worker == owner { Egress::Own } else { Egress::Worker(owner as u8) };
            assert_eq!(rule.egress(worker, PortId(6), 1, 1), expected);
        }
    }

    #[test]
    fn only_queues_that_can_send_do() {
        let rule = Ownership::new(2);
        assert_eq!(rule.egress(0, PortId(3), 4, 1), Egress::Own);
        assert_eq!(rule.egress(1, PortId(3), 4, 1), Egress::Worker(0), "its queues 1 and 3 only receive");
    }

    /// A question to a worker, and the end at which it is answered.
    fn asked<T>(worker: usize) -> (Asked<T>, Sender<T>) {
        let (reply, answer) = channel::bounded(1);
        (Asked { worker, answer }, reply)
    }

    #[test]
    fn a_worker_that_does_not_answer_does_not_hide_what_the_others_have_answered() {
        let (questions, replies): (Vec<_>, Vec<_>) = (0..4).map(asked).unzip();
        for worker in [1, 3] {
            replies[worker].send("sockets").unwrap();
        }
        let begun = Instant::now();
        let (answered, all) = answers(questions, Duration::from_millis(20));
        assert_eq!(answered, [(1, "sockets"), (3, "sockets")]);
        assert!(matches!(all, Err(EngineError::Stuck(0))), "{all:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "they share the time");
        assert!(answers::<()>(Vec::new(), ANSWER).1.is_ok());
    }

    #[test]
    fn a_socket_number_is_free_only_when_its_frames_have_been_reclaimed() {
        let mut numbers = Numbers::default();
        let taken: Vec<u16> = (0..4).filter_map(|_| numbers.take()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        let ((late, _late_reply), (prompt, reply)) = (asked(0), asked(1));
        reply.send(64).unwrap();
        let result = numbers.give_back_after(vec![(late, vec![2, 3]), (prompt, vec![1])], Duration::from_millis(20));
        assert!(matches!(result, Err(EngineError::Stuck(0))), "{result:?}");
        let next: Vec<_> = (0..3).filter_map(|_| numbers.take()).collect();
        assert_eq!(next, [1, 4, 5], "what the first worker has not reclaimed is nobody else's");
    }
}
