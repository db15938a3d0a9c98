//! The engine against a specification of it ([`spec`]): for random worlds and frames both must agree on the verdict, on the
//! reason and on every byte. `PROPTEST_CASES=100000 cargo test --release --test decide_spec` makes a long run of it, and the
//! fuzz target `decide` searches where these strategies do not look.

mod spec;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;

use podlane_dataplane::forward::PassReason;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use spec::{Outcome, engine, specified};
use world::{Recipe, World, recipe, world};

/// What the frames of a run have met, by name.
type Seen = RefCell<BTreeSet<String>>;

fn compare(world: &World, recipes: &[Recipe], seen: &Seen) -> Result<(), TestCaseError> {
    let tables = world.tables();
    for recipe in recipes {
        let frame = recipe.build();
        let wanted = specified(world, recipe.ingress, &frame);
        seen.borrow_mut().insert(kind(&frame, &wanted));
        prop_assert_eq!(engine(&tables, recipe.ingress, frame), wanted, "{:?}", recipe);
    }
    Ok(())
}

fn kind(frame: &[u8], outcome: &Outcome) -> String {
    match outcome {
        Err(reason) => reason.name().to_owned(),
        Ok(forwarded) => {
            let way = if forwarded.frame[..12] == frame[..12] { "bridged" } else { "routed" };
            format!("{way} {}", if frame[14] >> 4 == 4 { "ipv4" } else { "ipv6" })
        }
    }
}

fn cases() -> impl Strategy<Value = (World, Vec<Recipe>)> {
    (world(), prop::collection::vec(recipe(), 40))
}

proptest! {
    #[test]
    fn the_engine_does_what_is_specified((world, recipes) in cases()) {
        compare(&world, &recipes, &Seen::default())?;
    }
}

/// The same frames on every run, so many that each reason must come up: shows that the comparison is not an empty one.
#[test]
fn every_reason_and_every_way_comes_up() {
    let seen = Seen::default();
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let rng = TestRunner::deterministic().new_rng();
    TestRunner::new_with_rng(config, rng).run(&cases(), |(world, recipes)| compare(&world, &recipes, &seen)).unwrap();
    // These are answered before a frame reaches the engine: by the programs in the kernel and by the daemon.
    let elsewhere = [
        PassReason::NoSocket,
        PassReason::WorkerStalled,
        PassReason::SuperFrame,
        PassReason::TablesChanged,
        PassReason::TablesStale,
        PassReason::Translated,
        PassReason::Netfilter,
    ];
    let reasons = PassReason::ALL.iter().filter(|reason| !elsewhere.contains(reason)).map(|reason| reason.name());
    let ways = ["bridged ipv4", "bridged ipv6", "routed ipv4", "routed ipv6"];
    let wanted: BTreeSet<String> = reasons.chain(ways).map(str::to_owned).collect();
    assert_eq!(seen.into_inner(), wanted);
}
