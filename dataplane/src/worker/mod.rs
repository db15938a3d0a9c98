//! A worker: the loop that takes packets from its queues, decides, and puts them into other queues.
//!
//! Worker *w* owns queue *w* of every port that has so many queues, for receiving and for sending; it shares no queue with
//! anybody and takes no lock. A port with fewer queues than there are workers is owned by some of them, and the others
//! hand their packets for it over ([`Handoff`]).
//!
//! One [`Worker::turn`] is one pass: commands, then a batch from every queue, then what others handed over, then one kick
//! per touched TX ring, then frames come back and fill rings are topped up. The steps of one packet are in
//! `packet_path.rs`: parse, decide, rewrite, finish or request the checksum, transmit.

mod audit;
mod command;
mod counter;
mod counters;
mod frames;
mod handoff;
mod pace;
mod packet_path;
mod residence;
mod run;
#[cfg(test)]
mod tests;
mod watch;

use std::ops::ControlFlow;
use std::sync::Arc;

use crossbeam::channel::Receiver;
use crossbeam::queue::ArrayQueue;

pub use audit::FrameCount;
pub use command::{Command, Egress};
pub use counter::Counter;
pub use counters::{PortCounters, WorkerCounters};
pub use frames::{FramePool, Homes, capacity};
pub use handoff::Handoff;
use packet_path::Batch;
use residence::Stays;
pub use residence::{RESIDENCE_BOUNDS_NS, RESIDENCE_BUCKETS, Residence};
pub use run::{IdlePolicy, run};

use crate::addr::PortId;
use crate::afxdp::{Frame, FrameMemory, Piece, QueueIo, Umem, Waiter};
use crate::limits;
use crate::table::learn::{LearnLimiter, LearnReport};
use crate::table::{Activity, Tables};

/// Learn reports that may wait for the loader; further ones are dropped and made again by later packets.
pub const LEARN_QUEUE: usize = 1024;

/// One queue of one port, served by this worker.
#[derive(Debug)]
struct Slot<Q> {
    port: PortId,
    queue: Q,
    transmits: bool,
    /// Packets were queued since the last kick, or an earlier kick could not send all.
    dirty: bool,
    /// Packets put into its TX ring that are not counted yet.
    sent: Tally,
    /// Packets received since the worker last slept.
    awake_rx: usize,
    /// What it receives.
    rate: Rate,
    /// Frames for receiving that it held when the pool was last told.
    held: usize,
    /// Whether a packet that arrives wakes the worker.
    watched: bool,
    /// Whether its fill ring wants frames that it could not get. One that is full and receives nothing needs no look: with
    /// hundreds of pods most are like that.
    hungry: bool,
}

/// Packets and their bytes, collected for a moment: counters that others read are written once for each batch.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    packets: u64,
    bytes: u64,
}

impl Tally {
    #[inline]
    fn add(&mut self, bytes: u32) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }
}

/// Packets that a queue received in the present second and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    second: u32,
    now: usize,
    before: usize,
}

impl Rate {
    #[inline]
    fn note(&mut self, packets: usize, now_s: u32) {
        if now_s != self.second {
            self.before = if now_s == self.second.wrapping_add(1) { self.now } else { 0 };
            (self.second, self.now) = (now_s, 0);
        }
        self.now += packets;
    }

    /// As of `now_s`: 0 only if there never was a packet, and 1 if there was none lately.
    #[inline]
    fn per_second(&self, now_s: u32) -> usize {
        let rate = self.now.max(self.before);
        if now_s.wrapping_sub(self.second) > 1 { rate.min(1) } else { rate }
    }
}

/// What a worker is made of.
#[derive(Debug)]
pub struct WorkerParts<Q> {
    /// Its number, below [`limits::MAX_WORKERS`].
    pub id: usize,
    /// The shared memory.
    pub umem: Umem,
    /// Its share of the frames.
    pub pool: FramePool,
    /// Where it counts.
    pub counters: Arc<WorkerCounters>,
    /// Where it notes used entries.
    pub activity: Arc<Activity>,
    /// Where it reports sightings.
    pub learn: Arc<ArrayQueue<LearnReport>>,
    /// The rings to and from the others.
    pub handoff: Handoff,
    /// What the loader asks.
    pub commands: Receiver<Command<Q>>,
}

/// A worker without its thread.
#[derive(Debug)]
pub struct Worker<Q> {
    id: usize,
    umem: Umem,
    memory: FrameMemory,
    pool: FramePool,
    counters: Arc<WorkerCounters>,
    activity: Arc<Activity>,
    learn: Arc<ArrayQueue<LearnReport>>,
    limiter: LearnLimiter,
    handoff: Handoff,
    commands: Receiver<Command<Q>>,
    slots: Vec<Slot<Q>>,
    egress: Box<[Egress]>,
    /// Index into `slots` of the queue that transmits for a port, where [`Egress::Own`].
    own_slot: Box<[u16]>,
    host_port: Option<PortId>,
    /// Frames of removed queues that are still to be reclaimed.
    limbo: u64,
    /// Workers that were handed something in this turn, to be woken.
    woken: Box<[bool]>,
    /// How full the ring to each other worker may get in the present batch; 0: not asked yet.
    handoff_limits: Box<[usize]>,
    received: Vec<Piece>,
    packet: Vec<Piece>,
    /// Packets of the present batch that were forwarded.
    forwarded: Tally,
    returned: Vec<Frame>,
    stays: Stays,
}

impl<Q: QueueIo> Worker<Q> {
    /// A worker that serves nothing yet.
    pub fn new(parts: WorkerParts<Q>) -> Self {
        let workers = parts.handoff.workers();
        Worker {
            id: parts.id,
            memory: parts.umem.memory(),
            umem: parts.umem,
            pool: parts.pool,
            counters: parts.counters,
            activity: parts.activity,
            learn: parts.learn,
            limiter: LearnLimiter::default(),
            handoff: parts.handoff,
            commands: parts.commands,
            slots: Vec::new(),
            egress: vec![Egress::None; limits::MAX_PORTS].into(),
            own_slot: vec![0; limits::MAX_PORTS].into(),
            host_port: None,
            limbo: 0,
            woken: vec![false; workers].into(),
            handoff_limits: vec![0; workers].into(),
            // A packet's pieces all come in one receive call, so this is the most that a batch can be.
            received: Vec::with_capacity(limits::BATCH * limits::MAX_PIECES),
            packet: Vec::with_capacity(limits::MAX_PIECES),
            forwarded: Tally::default(),
            returned: Vec::with_capacity(4096),
            stays: Stays::default(),
        }
    }

    /// The next command, if one waits.
    pub fn next_command(&self) -> Option<Command<Q>> {
        self.commands.try_recv().ok()
    }

    /// Carries out a command, between two turns, by the tables in force. Breaks after [`Command::Stop`]: the loop must end.
    pub fn obey(&mut self, command: Command<Q>, tables: &Tables) -> ControlFlow<()> {
        // A loader that no longer waits for an answer has given up on it; nothing is owed then.
        match command {
            Command::AddQueue { port, queue, transmits } => self.add_queue(port, queue, transmits),
            Command::SetEgress { port, egress } => self.egress[port.index()] = egress,
            Command::SetHostPort(port) => self.host_port = Some(port),
            // The run loop keeps it to itself.
            Command::SetIdle(_) => {}
            Command::RemovePort { port, reply } => {
                let _ = reply.send(self.remove_port(port));
            }
            Command::Reclaim { closed, reply } => {
                self.empty_handoff(tables);
                let _ = reply.send(self.reclaim(closed));
            }
            Command::Audit { reply } => {
                let _ = reply.send(self.audit());
            }
            Command::Stop { reply } => {
                let ports: Vec<PortId> = self.slots.iter().map(|slot| slot.port).collect();
                let _ = reply.send(ports.into_iter().flat_map(|port| self.remove_port(port)).collect());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// One pass over everything, by one snapshot of the tables. `now_s` is the monotonic time in seconds. Returns how many
    /// packets were received or taken over.
    pub fn turn(&mut self, tables: &Tables, now_s: u32) -> usize {
        let mut packets = 0;
        self.pool.collect_returned();
        if self.handoff.workers() > 1 {
            self.pool.compare();
        }
        for slot in 0..self.slots.len() {
            packets += self.serve(slot, tables, now_s);
        }
        if self.handoff.workers() > 1 {
            packets += self.take_over(tables);
            self.wake_others();
        }
        self.flush();
        packets
    }

    /// Whether anything waits to be done.
    pub fn work_waits(&mut self) -> bool {
        !self.commands.is_empty()
            || (self.handoff.workers() > 1 && self.handoff.waiting(self.id))
            || self.slots.iter_mut().any(|slot| slot.queue.ready())
    }

    /// Pieces in TX rings that the kernel has not taken. Nothing wakes a sleeper when it could.
    fn unsent(&mut self) -> usize {
        self.slots.iter_mut().filter(|slot| slot.dirty).map(|slot| slot.queue.tx_unsent()).sum()
    }

    /// No longer lets `waiter` watch the queues that are busy: the kernel runs a watcher for every packet, asleep or not, on
    /// the sender's time and behind a lock that both sides pull to and fro. For a queue that is looked at all the time anyway,
    /// that is for nothing.
    fn unwatch_busy(&mut self, waiter: &Waiter) {
        for slot in self.slots.iter_mut().filter(|slot| slot.watched && slot.awake_rx >= limits::UNWATCH_PACKETS) {
            waiter.remove(&slot.queue);
            slot.watched = false;
        }
    }

    /// Has `waiter` watch all queues again, before a sleep. A packet that is already there wakes at once.
    fn watch_all(&mut self, waiter: &Waiter) {
        for slot in &mut self.slots {
            slot.awake_rx = 0;
            // A driver with zero-copy that found its fill ring empty may have asked to be woken just after it was topped up.
            self.counters.tx_syscalls.add(u64::from(slot.queue.wake_fill()));
            if !slot.watched {
                slot.watched = waiter.add(&slot.queue).is_ok();
            }
        }
    }

    /// The queues of a port that it serves.
    pub fn queues(&self, port: PortId) -> impl Iterator<Item = &Q> {
        self.slots.iter().filter(move |slot| slot.port == port).map(|slot| &slot.queue)
    }

    /// The same, to be changed: for tests and benchmarks that put packets into queues in memory.
    pub fn queues_mut(&mut self, port: PortId) -> impl Iterator<Item = &mut Q> {
        self.slots.iter_mut().filter(move |slot| slot.port == port).map(|slot| &mut slot.queue)
    }

    /// Its counters.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Takes one batch from one queue through the packet path, and tops its fill ring up.
    fn serve(&mut self, slot: usize, tables: &Tables, now_s: u32) -> usize {
        let mut received = std::mem::take(&mut self.received);
        let packets = self.slots[slot].queue.receive(limits::BATCH, &mut received);
        if packets != 0 {
            self.stays.receive();
            self.counters.batches.add(1);
            let port = self.slots[slot].port;
            self.counters.port(port).rx.add(packets as u64);
            self.slots[slot].awake_rx += packets;
            self.slots[slot].rate.note(packets, now_s);
            let batch = Batch { ingress: port, from: tables.ports.get(port), tables, now_s };
            self.forward_batch(batch, &mut received);
            self.stays.transmit(packets as u64);
        }
        self.received = received;
        if packets != 0 || self.slots[slot].hungry {
            let rate = self.slots[slot].rate.per_second(now_s);
            self.top_up(slot, rate);
        }
        packets
    }

    /// Gives a queue that receives `rate` packets per second the frames that it should have and has not.
    fn top_up(&mut self, slot: usize, rate: usize) {
        let outstanding = self.note_held(slot);
        let grant = self.pool.grant(outstanding, rate);
        if grant >= limits::BATCH / 2 || (grant != 0 && outstanding < frames::MIN_FILL) {
            let queue = &mut self.slots[slot].queue;
            queue.fill(self.pool.list(), grant);
            self.counters.tx_syscalls.add(u64::from(queue.wake_fill()));
        } else if grant == 0 && outstanding == 0 {
            self.counters.fill_starved.add(1);
        }
        let outstanding = self.note_held(slot);
        self.slots[slot].hungry = self.pool.lacks(outstanding, rate);
    }

    /// Tells the pool how many frames a queue holds for receiving.
    #[inline]
    fn note_held(&mut self, slot: usize) -> usize {
        let slot = &mut self.slots[slot];
        let now = slot.queue.fill_outstanding();
        self.pool.note_held(std::mem::replace(&mut slot.held, now), now);
        now
    }

    /// Divides the frames among the queues that there are now.
    fn divide_frames(&mut self) {
        self.pool.divide(self.slots.iter().map(|slot| slot.held));
    }

    /// Takes a batch from every other worker's hand-off ring.
    fn take_over(&mut self, tables: &Tables) -> usize {
        let mut packets = 0;
        for from in 0..self.handoff.workers() {
            packets += (0..limits::BATCH).map_while(|_| self.take_from(from, tables)).count();
        }
        packets
    }

    /// Takes over all that has been handed over by now. A port whose sockets are closed has left every worker, so nothing is
    /// on its way to it after that, and its number can be another port's: what still lay in a ring would be sent to that one.
    fn empty_handoff(&mut self, tables: &Tables) {
        for from in 0..self.handoff.workers() {
            let mut pieces = self.handoff.between(from, self.id);
            while pieces != 0
                && let Some(taken) = self.take_from(from, tables)
            {
                pieces = pieces.saturating_sub(taken);
            }
        }
    }

    /// Takes the next packet that `from` has handed over; how many pieces it had.
    fn take_from(&mut self, from: usize, tables: &Tables) -> Option<usize> {
        let (port, since_ns) = self.handoff.take(from, self.id, &mut self.packet)?;
        let pieces = self.packet.len();
        self.counters.handoff_in.add(1);
        if self.transmit_handed(port, tables) {
            self.stays.transmit_handed(since_ns);
        }
        Some(pieces)
    }

    fn wake_others(&mut self) {
        for (worker, woken) in self.woken.iter_mut().enumerate() {
            if std::mem::take(woken) {
                self.handoff.wake(worker);
            }
        }
    }

    /// Kicks the TX rings that were touched and takes transmitted frames back.
    fn flush(&mut self) {
        for slot in &mut self.slots {
            if slot.sent.packets != 0 {
                let sent = std::mem::take(&mut slot.sent);
                let counters = self.counters.port(slot.port);
                counters.tx.add(sent.packets);
                counters.tx_bytes.add(sent.bytes);
            }
            if slot.dirty {
                self.counters.tx_syscalls.add(u64::from(slot.queue.kick()));
                slot.dirty = slot.queue.tx_unsent() != 0;
            }
            if slot.queue.tx_outstanding() != 0 {
                slot.queue.complete(&mut self.returned);
            }
        }
        self.pool.put(&mut self.returned);
        self.stays.kicked(&self.counters.residence);
    }

    fn add_queue(&mut self, port: PortId, queue: Q, transmits: bool) {
        self.stays.reserve(self.slots.len() + 1, self.handoff.workers() * limits::BATCH);
        self.slots.push(Slot {
            port,
            queue,
            transmits,
            dirty: false,
            sent: Tally::default(),
            awake_rx: 0,
            rate: Rate::default(),
            held: 0,
            watched: true,
            hungry: true,
        });
        self.index_slots();
        self.divide_frames();
        self.top_up(self.slots.len() - 1, 0);
    }

    fn remove_port(&mut self, port: PortId) -> Vec<Q> {
        self.egress[port.index()] = Egress::None;
        let (gone, kept): (Vec<_>, Vec<_>) = self.slots.drain(..).partition(|slot| slot.port == port);
        self.slots = kept;
        // Each one's share has grown.
        self.slots.iter_mut().for_each(|slot| slot.hungry = true);
        self.index_slots();
        self.divide_frames();
        gone.into_iter()
            .map(|mut slot| {
                slot.queue.complete(&mut self.returned);
                self.pool.put(&mut self.returned);
                let frames = slot.queue.frames();
                self.limbo += frames.fill + frames.rx + frames.tx;
                slot.queue
            })
            .collect()
    }

    /// The last queue of a port in `slots` that can transmits for it.
    fn index_slots(&mut self) {
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.transmits) {
            self.own_slot[slot.port.index()] = index as u16;
        }
    }

    fn reclaim(&mut self, closed: Vec<crate::afxdp::ClosedSocket>) -> usize {
        let mut frames = Vec::new();
        for socket in closed {
            self.umem.reclaim(socket, &mut frames);
        }
        let count = frames.len();
        // Not clamped by intention: a difference between what was owed and what came shows in the audit.
        self.limbo = self.limbo.wrapping_sub(count as u64);
        self.pool.put(&mut frames);
        count
    }

    fn audit(&mut self) -> FrameCount {
        let mut count = FrameCount {
            free: self.pool.free() as u64,
            fill: self.limbo,
            worker: (self.received.len() + self.packet.len() + self.returned.len()) as u64,
            handoff: self.handoff.frames(self.id),
            ..FrameCount::default()
        };
        for slot in &mut self.slots {
            let frames = slot.queue.frames();
            count.fill += frames.fill;
            count.rx += frames.rx;
            count.tx += frames.tx;
        }
        count
    }
}
