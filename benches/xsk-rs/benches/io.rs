//! What the frame I/O costs a worker for one frame of 64 bytes, without the kernel's part: receive, transmit, complete, fill,
//! each in batches of 64 between the two ends of a veth pair, ours beside xsk-rs's. Needs root.
//!
//! Prints nanoseconds a frame, the median over the rounds of one run; both implementations take turns.

use std::time::Instant;

use podlane_dataplane::afxdp::conformance::Rig;
use podlane_dataplane::afxdp::{Frame, Piece, Socket};
use podlane_xsk_rs::XskQueue;
use podlane_xsk_rs::veth::{Implementation, Veth};

const BATCH: usize = 64;
const ROUNDS: usize = 2_000;
const RUNS: usize = 5;
const STEPS: [&str; 4] = ["receive", "transmit", "complete", "fill"];

/// Nanoseconds that the work took.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed().as_nanos() as f64, done)
}

/// One batch through the queue and out again; the time of each step in nanoseconds.
fn round<Q: Implementation>(
    rig: &mut Veth<Q>,
    packet: &[u8],
    pieces: &mut Vec<Piece>,
    free: &mut Vec<Frame>,
) -> [f64; 4] {
    (0..BATCH).for_each(|_| rig.send(packet));
    while !rig.queue().ready() {
        std::hint::spin_loop();
    }
    let (receive, got) = timed(|| rig.queue().receive(BATCH, pieces));
    let mut one = Vec::with_capacity(1);
    let received = std::mem::take(pieces);
    let (transmit, ()) = timed(|| {
        for piece in received {
            one.push(piece);
            assert!(rig.queue().transmit(&mut one));
        }
    });
    rig.queue().kick();
    let (complete, ()) = timed(|| rig.queue().complete(free));
    let (fill, ()) = timed(|| rig.queue().fill(free, got));
    [receive, transmit, complete, fill].map(|time| time / got as f64)
}

/// Medians of the steps.
fn measure<Q: Implementation>() -> [f64; 4] {
    let mut rig: Veth<Q> = Veth::new();
    let packet = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5][..], &[0x55; 46]].concat();
    let (mut free, mut pieces) = (rig.frames(), Vec::with_capacity(BATCH));
    rig.queue().fill(&mut free, 1024);
    let rounds: Vec<[f64; 4]> = (0..ROUNDS).map(|_| round(&mut rig, &packet, &mut pieces, &mut free)).collect();
    while rig.taken().is_some() {}
    rig.close();
    std::array::from_fn(|step| median(rounds.iter().map(|times| times[step]).collect()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In a thread of its own, whose namespace ends with it.
fn run<Q: Implementation + 'static>() -> [f64; 4] {
    std::thread::spawn(measure::<Q>).join().expect("it has said why")
}

fn main() {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(run::<Socket>());
        theirs.push(run::<XskQueue>());
    }
    println!("ns a frame, median of {RUNS} runs of {ROUNDS} batches of {BATCH}");
    for (step, name) in STEPS.iter().enumerate() {
        let of = |runs: &[[f64; 4]]| median(runs.iter().map(|times| times[step]).collect());
        println!("{name:10} podlane {:6.2}   xsk-rs {:6.2}", of(&ours), of(&theirs));
    }
}
