//! What the loader asks of a worker. Commands come through a channel and are carried out between batches.

use crossbeam::channel::Sender;

use super::audit::FrameCount;
use super::run::IdlePolicy;
use crate::addr::PortId;
use crate::afxdp::ClosedSocket;

/// A request to one worker.
#[derive(Debug)]
pub enum Command<Q> {
    /// Serve this queue of `port` from now on.
    AddQueue {
        /// The port.
        port: PortId,
        /// Its queue.
        queue: Q,
        /// Whether the port can also send through it: a device may receive on more queues than it sends on.
        transmits: bool,
    },
    /// Packets for `port` go this way.
    SetEgress {
        /// The port.
        port: PortId,
        /// Who transmits.
        egress: Egress,
    },
    /// The port through which packets go to the kernel.
    SetHostPort(PortId),
    /// Do this without work from now on; the run loop's own affair.
    SetIdle(IdlePolicy),
    /// Stop serving `port`; its queues come back through `reply`, to be closed.
    RemovePort {
        /// The port.
        port: PortId,
        /// Where its queues go.
        reply: Sender<Vec<Q>>,
    },
    /// Sockets that this worker served were closed: take their frames back. The answer says how many there were. All workers
    /// have obeyed [`Command::RemovePort`] before; what they have handed over for the port is dropped.
    Reclaim {
        /// Proof that they are closed.
        closed: Vec<ClosedSocket>,
        /// Where the number goes.
        reply: Sender<usize>,
    },
    /// Count the frames.
    Audit {
        /// Where the count goes.
        reply: Sender<FrameCount>,
    },
    /// Leave the run loop; all queues come back through `reply`.
    Stop {
        /// Where the queues go.
        reply: Sender<Vec<Q>>,
    },
}

/// Who puts a port's packets into its TX ring, as seen by one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Egress {
    /// Nobody: the port is not served.
    #[default]
    None,
    /// This worker, which owns a queue of the port.
    Own,
    /// Another worker, to which packets are handed.
    Worker(u8),
}
