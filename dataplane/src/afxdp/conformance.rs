//! What every implementation of [`QueueIo`] must do, as tests that each of them runs: the one in memory (below), ours over
//! AF_XDP and the one over xsk-rs (both in `benches/xsk-rs`, between the two ends of a veth pair).

use super::{Frame, FrameMemory, Piece, QueueIo};
use crate::limits;

/// A queue and what is around it: somebody who sends to it and receives from it, and the frames that it does not have.
pub trait Rig {
    /// The queue under test.
    type Queue: QueueIo;

    /// The queue.
    fn queue(&mut self) -> &mut Self::Queue;

    /// The frames' bytes.
    fn memory(&self) -> FrameMemory;

    /// All frames, the first time that it is called.
    fn frames(&mut self) -> Vec<Frame>;

    /// A packet comes from outside. Whether it is received depends on the fill ring.
    fn arrive(&mut self, packet: &[u8]);

    /// The packets that have left, oldest first, once there are `count`; fewer if no more come.
    fn departed(&mut self, count: usize) -> Vec<Vec<u8>>;

    /// Whether packets of more than one frame are carried.
    fn carries_large(&self) -> bool;

    /// Closes the queue. Returns the frames that it still had.
    fn close(self) -> Vec<Frame>;
}

/// A test by its name.
pub type Case<R> = (&'static str, fn(R));

/// All of them.
pub fn cases<R: Rig>() -> [Case<R>; 8] {
    [
        ("what_arrives_is_received_in_order_and_unaltered", received_as_sent),
        ("a_call_takes_no_more_packets_than_asked_for", takes_no_more),
        ("a_received_frame_leaves_as_it_was_rewritten", leaves_as_rewritten),
        ("nothing_leaves_before_the_kick", waits_for_the_kick),
        ("a_full_ring_refuses_a_packet_and_leaves_it_whole", full_ring_refuses),
        ("without_filled_frames_nothing_is_received", needs_filling),
        ("a_packet_of_several_frames_stays_whole", large_packets),
        ("a_closed_queue_gives_back_what_it_had", closes),
    ]
}

/// Bytes of packet `number`: of a length of its own, with an Ethernet type for experiments that nobody else uses.
fn packet(number: u8, bytes: usize) -> Vec<u8> {
    let header = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    let body = (header.len()..bytes).map(|at| (at as u8).wrapping_mul(31) ^ number);
    header.into_iter().chain(body).collect()
}

/// Receives until `packets` whole packets are there; a kernel may need a moment.
fn receive<R: Rig>(rig: &mut R, packets: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut got = 0;
    for _ in 0..2000 {
        got += rig.queue().receive(packets - got, &mut pieces);
        if got == packets {
            return pieces;
        }
        rig.queue().wake_fill();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{got} of {packets} packets were received");
}

/// Takes transmitted frames back until `count` are there.
fn complete<R: Rig>(rig: &mut R, count: usize, out: &mut Vec<Frame>) {
    let before = out.len();
    for _ in 0..2000 {
        rig.queue().complete(out);
        if out.len() - before >= count {
            break;
        }
        rig.queue().kick();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(out.len() - before, count, "transmitted frames come back, and no others");
}

/// What is filled counts as outstanding, and what does not fit stays.
fn fill<R: Rig>(rig: &mut R, frames: &mut Vec<Frame>, count: usize) {
    let before = (frames.len(), rig.queue().fill_outstanding());
    assert!(rig.queue().fill_space() >= count);
    rig.queue().fill(frames, count);
    assert_eq!((frames.len(), rig.queue().fill_outstanding()), (before.0 - count, before.1 + count));
}

/// Every frame is in one place: with us, or with the queue.
fn nothing_is_lost<R: Rig>(rig: R, all: usize, held: usize) {
    let mut rig = rig;
    let count = rig.queue().frames();
    assert_eq!(held + (count.fill + count.rx + count.tx) as usize, all, "{count:?}");
    let returned = rig.close();
    assert_eq!(held + returned.len(), all, "frames that the closed queue gave back, and ours");
    let mut indices: Vec<u32> = returned.iter().map(Frame::index).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), returned.len(), "no frame comes back twice");
}

fn received_as_sent<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let all = free.len();
    fill(&mut rig, &mut free, 64);
    assert!(!rig.queue().ready());
    let sent: Vec<_> = (0..32).map(|number| packet(number, 60 + usize::from(number) * 45)).collect();
    sent.iter().for_each(|packet| rig.arrive(packet));
    let pieces = receive(&mut rig, sent.len());
    assert!(!rig.queue().ready());
    let memory = rig.memory();
    for (piece, sent) in pieces.iter().zip(&sent) {
        assert_eq!(memory.bytes(piece), sent);
        assert!(!piece.more && !piece.metadata && usize::from(piece.offset) >= limits::RX_HEADROOM);
    }
    assert_eq!((pieces.len(), rig.queue().fill_outstanding()), (32, 32));
    free.extend(pieces.into_iter().map(|piece| piece.frame));
    nothing_is_lost(rig, all, free.len());
}

fn takes_no_more<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    fill(&mut rig, &mut free, 16);
    (0..10).for_each(|number| rig.arrive(&packet(number, 100)));
    let first = receive(&mut rig, 3);
    assert_eq!(first.len(), 3);
    let mut rest = receive(&mut rig, 7);
    let memory = rig.memory();
    for (number, piece) in first.iter().chain(&rest).enumerate() {
        assert_eq!(memory.bytes(piece), packet(number as u8, 100));
    }
    assert_eq!(rig.queue().receive(64, &mut rest), 0, "there were ten");
    rig.close();
}

fn leaves_as_rewritten<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let all = free.len();
    fill(&mut rig, &mut free, 64);
    for round in 0..50_u8 {
        (0..20).for_each(|number| rig.arrive(&packet(round ^ number, 60 + usize::from(number) * 70)));
        let mut held = Vec::new();
        for mut piece in receive(&mut rig, 20) {
            rig.memory().bytes_mut(&mut piece)[20] = round;
            held.push(piece);
            assert!(rig.queue().transmit(&mut held) && held.is_empty());
        }
        assert_eq!(rig.queue().tx_outstanding(), 20);
        rig.queue().kick();
        let departed = rig.departed(20);
        assert_eq!(departed.len(), 20);
        for (number, got) in departed.iter().enumerate() {
            let mut wanted = packet(round ^ number as u8, 60 + number * 70);
            wanted[20] = round;
            assert_eq!(*got, wanted, "round {round}, packet {number}");
        }
        complete(&mut rig, 20, &mut free);
        assert_eq!((rig.queue().tx_outstanding(), rig.queue().tx_unsent()), (0, 0));
        fill(&mut rig, &mut free, 20);
    }
    nothing_is_lost(rig, all, free.len());
}

/// A packet of our own making in a frame that no ring has seen yet.
fn fresh<R: Rig>(rig: &R, frame: Frame, bytes: &[u8]) -> Piece {
    let offset = limits::RX_HEADROOM as u16;
    let mut piece = Piece { frame, offset, bytes: bytes.len() as u16, more: false, metadata: false };
    rig.memory().bytes_mut(&mut piece).copy_from_slice(bytes);
    piece
}

fn waits_for_the_kick<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let mut pieces = vec![fresh(&rig, free.pop().expect("a frame"), &packet(1, 100))];
    assert!(rig.queue().transmit(&mut pieces));
    assert_eq!((rig.queue().tx_unsent(), rig.queue().tx_outstanding()), (1, 1));
    assert_eq!(rig.departed(1), Vec::<Vec<u8>>::new());
    assert!(rig.queue().kick() >= 1);
    assert_eq!(rig.departed(1), [packet(1, 100)]);
    rig.close();
}

fn full_ring_refuses<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let all = free.len();
    let mut pieces = Vec::new();
    let mut queued = 0;
    while let Some(frame) = free.pop() {
        pieces.push(fresh(&rig, frame, &packet(queued as u8, 60)));
        if !rig.queue().transmit(&mut pieces) {
            break;
        }
        queued += 1;
    }
    assert_eq!(pieces.len(), 1, "the ring took {queued} packets and never refused one");
    assert_eq!((rig.queue().tx_unsent(), rig.queue().tx_outstanding()), (queued, queued));
    complete(&mut rig, queued, &mut free);
    assert!(rig.queue().transmit(&mut pieces) && pieces.is_empty(), "now there is room");
    rig.queue().kick();
    complete(&mut rig, 1, &mut free);
    nothing_is_lost(rig, all, free.len());
}

fn needs_filling<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let all = free.len();
    (0..5).for_each(|number| rig.arrive(&packet(number, 100)));
    let mut pieces = Vec::new();
    assert_eq!(rig.queue().receive(64, &mut pieces), 0);
    fill(&mut rig, &mut free, 8);
    rig.arrive(&packet(9, 100));
    // What came before there were frames may be lost, never kept in part.
    let got = receive(&mut rig, 1);
    assert_eq!(rig.memory().bytes(&got[0]).len(), 100);
    free.extend(got.into_iter().map(|piece| piece.frame));
    nothing_is_lost(rig, all, free.len());
}

fn large_packets<R: Rig>(mut rig: R) {
    if !rig.carries_large() {
        rig.close();
        return;
    }
    let mut free = rig.frames();
    let all = free.len();
    fill(&mut rig, &mut free, 64);
    for (number, bytes) in [(1, 8000), (2, 60), (3, 8900), (4, 3000)] {
        rig.arrive(&packet(number, bytes));
        let mut pieces = receive(&mut rig, 1);
        let count = pieces.len();
        assert!((bytes <= 3000) == (count == 1), "{bytes} bytes in {count} pieces");
        assert!(pieces.iter().enumerate().all(|(index, piece)| piece.more == (index + 1 < count)));
        let memory = rig.memory();
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| memory.bytes(piece)).copied().collect();
        assert_eq!(joined, packet(number, bytes));
        assert!(rig.queue().transmit(&mut pieces) && pieces.is_empty());
        rig.queue().kick();
        assert_eq!(rig.departed(1), [packet(number, bytes)]);
        complete(&mut rig, count, &mut free);
        fill(&mut rig, &mut free, count);
    }
    nothing_is_lost(rig, all, free.len());
}

fn closes<R: Rig>(mut rig: R) {
    let mut free = rig.frames();
    let all = free.len();
    fill(&mut rig, &mut free, 40);
    (0..6).for_each(|number| rig.arrive(&packet(number, 100)));
    // Two in our hands, the others still in the rings; and one that was queued and never sent.
    let held = receive(&mut rig, 2);
    let mut unsent = vec![fresh(&rig, free.pop().expect("a frame"), &packet(7, 60))];
    assert!(rig.queue().transmit(&mut unsent));
    nothing_is_lost(rig, all, free.len() + held.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afxdp::{MemoryQueue, Umem};

    struct InMemory {
        umem: Umem,
        queue: MemoryQueue,
        taken: usize,
    }

    impl Rig for InMemory {
        type Queue = MemoryQueue;

        fn queue(&mut self) -> &mut MemoryQueue {
            &mut self.queue
        }

        fn memory(&self) -> FrameMemory {
            self.umem.memory()
        }

        fn frames(&mut self) -> Vec<Frame> {
            self.umem.take_frames()
        }

        fn arrive(&mut self, packet: &[u8]) {
            // As in the kernel, a packet that finds no frames is lost.
            let _ = self.queue.arrive(packet, 3840);
        }

        fn departed(&mut self, count: usize) -> Vec<Vec<u8>> {
            let new = &self.queue.sent[self.taken..];
            self.taken += new.len().min(count);
            new.iter().take(count).map(|(packet, _)| packet.clone()).collect()
        }

        fn carries_large(&self) -> bool {
            true
        }

        fn close(self) -> Vec<Frame> {
            let mut frames = Vec::new();
            self.umem.reclaim(self.queue.close(), &mut frames);
            frames
        }
    }

    // Thousands of frames: too many for miri, which sees the same calls in the worker's tests.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn the_queue_in_memory_conforms() {
        for (name, case) in cases() {
            println!("{name}");
            let umem = Umem::new(4096).unwrap();
            case(InMemory { queue: MemoryQueue::new(&umem, 3, false), umem, taken: 0 });
        }
    }
}
