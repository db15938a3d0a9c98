//! The decision against its specification (`dataplane/tests/spec`): one of 65,536 random worlds, and any frame.
//!
//! Input: the number of the world (16 bits, little-endian), the port that it comes in through (8 bits), and the frame.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use podlane_dataplane::PortId;
use podlane_dataplane::table::Tables;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::Seeds;
use crate::shared::spec::{engine, specified};
use crate::shared::world::{World, recipe, world};

/// Worlds that are kept: making one takes longer than a hundred decisions.
const KEPT: usize = 256;
/// Ports that frames claim to come from: one more than worlds have.
const PORTS: u16 = 9;

thread_local! {
    static WORLDS: RefCell<BTreeMap<u16, Rc<(World, Tables)>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A generator that gives the same for the same number.
fn runner(number: u16) -> TestRunner {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

fn numbered(number: u16) -> Rc<(World, Tables)> {
    WORLDS.with_borrow_mut(|worlds| {
        if worlds.len() >= KEPT && !worlds.contains_key(&number) {
            worlds.clear();
        }
        let made = worlds.entry(number).or_insert_with(|| {
            let world = world().new_tree(&mut runner(number)).expect("no world is refused").current();
            let tables = world.tables();
            Rc::new((world, tables))
        });
        Rc::clone(made)
    })
}

/// Decides, rewrites and finishes a frame.
///
/// # Panics
/// If engine and specification differ: in verdict, reason, port, or a byte.
pub fn run(bytes: &[u8]) {
    let [low, high, port, frame @ ..] = bytes else { return };
    let made = numbered(u16::from_le_bytes([*low, *high]));
    let (world, tables) = &*made;
    let ingress = PortId(u16::from(*port) % PORTS);
    assert_eq!(engine(tables, ingress, frame.to_vec()), specified(world, ingress, frame), "from {ingress}");
}

/// Frames as the property tests make them: good, or with a few defects.
pub(crate) fn frames(count: u16) -> Seeds {
    let frame = |number| {
        let mut frame = recipe().new_tree(&mut runner(number)).expect("no recipe is refused").current().build();
        // Payloads teach nothing, and a corpus is read often.
        frame.truncate(160);
        (format!("frame-{number:02}"), frame)
    };
    (0..count).map(frame).collect()
}

/// Good and odd frames in different worlds.
pub fn seeds() -> Seeds {
    let placed = |(number, (name, frame)): (usize, (String, Vec<u8>))| {
        let number = number as u16;
        (name, [&number.to_le_bytes()[..], &[(number % PORTS) as u8], &frame].concat())
    };
    frames(48).into_iter().enumerate().map(placed).collect()
}
