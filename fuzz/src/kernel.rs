//! The decision against both BPF programs, which run in the kernel (`BPF_PROG_TEST_RUN`): one of 256 random tables, and any frame.
//! Needs root; without it nothing is asked, and standard error says so.
//!
//! Input: the number of the tables (8 bits), the port that the frame comes in through (8 bits), bytes of each segment of a
//! super-frame (16 bits, little-endian; 0 for any other frame), and the frame.

use std::cell::RefCell;
use std::sync::Once;

use nix::sched::{CloneFlags, unshare};
use podlane_dataplane::table::Path;

use crate::Seeds;
use crate::differential::{Random, random_frame, random_tables};
use crate::net::{self, ifindex};
use crate::world::{INGRESS, INTERFACES, Repeated, World};

/// Bytes of the shortest frame that the kernel takes for a test run: an Ethernet header.
const LEAST: usize = 14;

/// The programs in a network namespace of this thread, with the tables of one number.
struct Node {
    world: World,
    number: Option<u8>,
}

impl Node {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        Node { world: World::new(), number: None }
    }

    fn change_to(&mut self, number: u8) {
        if self.number.replace(number) != Some(number) {
            let tables = random_tables(&mut Random(number.into()), INTERFACES.map(ifindex));
            self.world.change(|current| *current = tables);
            self.world.stay_alive();
        }
    }
}

thread_local!(static NODE: RefCell<Option<Node>> = const { RefCell::new(None) });

/// Has the engine and the program of the port's path decide.
///
/// # Panics
/// If they differ: in verdict, reason, or a byte of what leaves.
pub fn run(bytes: &[u8]) {
    static SAID: Once = Once::new();
    if !nix::unistd::geteuid().is_root() {
        return SAID.call_once(|| net::skipped("target kernel", "loading BPF programs needs root"));
    }
    let [number, port, low, high, frame @ ..] = bytes else { return };
    if frame.len() < LEAST {
        return;
    }
    NODE.with_borrow_mut(|node| {
        let node = node.get_or_insert_with(Node::new);
        node.change_to(*number);
        let (world, ingress) = (&mut node.world, INGRESS[usize::from(*port) % INGRESS.len()]);
        match world.tables.ports.get(ingress).expect("every port is there").path {
            Path::AfXdp => assert_eq!(world.program(ingress, frame), world.engine(ingress, frame)),
            Path::Kernel => compare_repeated(world, ingress, frame, u16::from_le_bytes([*low, *high])),
        }
        world.other_program_keeps_out(ingress, frame);
    });
}

fn compare_repeated(world: &mut World, ingress: podlane_dataplane::PortId, frame: &[u8], gso_size: u16) {
    let engine: Repeated = world.engine_repeats(ingress, frame, gso_size);
    if let Some(program) = world.repeats(ingress, frame, gso_size) {
        assert_eq!(program, engine, "segments of {gso_size}");
    }
}

/// Frames as the differential test makes them.
pub fn seeds() -> Seeds {
    let mut random = Random(7);
    let mut seed = |number: u8| {
        let mut frame = random_frame(&mut random);
        frame.truncate(200);
        let gso_size = if number.is_multiple_of(4) { 20 + random.below(1600) as u16 } else { 0 };
        let input = [&[number, number / 4], &gso_size.to_le_bytes()[..], &frame].concat();
        (format!("frame-{number:02}"), input)
    };
    (0..40).map(&mut seed).collect()
}
