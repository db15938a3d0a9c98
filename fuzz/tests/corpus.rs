//! The targets on the committed corpus, which holds seeds, inputs that a search found worth keeping (`found-…`), and every input
//! that once showed a fault (`fault-…`); and on inputs bent from them, the same ones on every run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use podlane_fuzz::random::Random;
use podlane_fuzz::{TARGETS, Target};

/// Files of the corpus in all, and their bytes, at most.
const MOST_FILES: usize = 600;
const MOST_BYTES: usize = 500_000;
/// Bent inputs for each target; the environment's `PODLANE_BENT` makes a longer run of it, and `PODLANE_SEED` another one.
const BENT: u64 = 2000;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let listed = fs::read_dir(directory().join(target.name)).expect("every target has a corpus");
    let file = |entry: fs::DirEntry| {
        (entry.file_name().into_string().expect("a name"), fs::read(entry.path()).expect("a file that can be read"))
    };
    listed.map(|entry| file(entry.expect("an entry"))).collect()
}

/// Runs a target, saying on which input if it panics.
fn run(target: &Target, name: &str, bytes: &[u8]) {
    let outcome = std::panic::catch_unwind(|| (target.run)(bytes));
    if outcome.is_err() {
        let kept = std::env::temp_dir().join(format!("podlane-fuzz-{}-{}", target.name, std::process::id()));
        fs::write(&kept, bytes).expect("the input can be kept");
        panic!("target {} fails on {name}; the input is in {}", target.name, kept.display());
    }
}

fn each_in_a_thread(work: impl Fn(&Target) + Sync) {
    thread::scope(|scope| {
        let started: Vec<_> = TARGETS.iter().map(|target| (target, scope.spawn(|| work(target)))).collect();
        let failed: Vec<_> =
            started.into_iter().filter_map(|(target, thread)| thread.join().err().map(|_| target.name)).collect();
        assert!(failed.is_empty(), "these targets fail: {failed:?}");
    });
}

#[test]
fn nothing_is_wrong_with_the_corpus() {
    each_in_a_thread(|target| {
        let files = files(target);
        assert!(files.len() > 3, "the corpus of {} is empty", target.name);
        files.iter().for_each(|(name, bytes)| run(target, name, bytes));
        // As they are made today: of today's configuration file, schema and strategies.
        (target.seeds)().iter().for_each(|(name, bytes)| run(target, name, bytes));
    });
}

#[test]
fn nothing_is_wrong_with_inputs_bent_from_it() {
    each_in_a_thread(|target| {
        let inputs: Vec<_> = files(target).into_values().collect();
        let mut random = Random(from_environment("PODLANE_SEED", 1));
        for number in 0..from_environment("PODLANE_BENT", BENT) {
            let mut bytes = inputs[random.below(inputs.len())].clone();
            let other = &inputs[random.below(inputs.len())];
            random.bend(&mut bytes, other);
            bytes.truncate(target.most_bytes);
            run(target, &format!("bent input {number}"), &bytes);
        }
    });
}

#[test]
fn every_seed_is_in_the_corpus() {
    for target in TARGETS {
        let files = files(&target);
        let missing: Vec<_> = (target.seeds)().into_iter().map(|(name, _)| format!("seed-{name}")).collect();
        let missing: Vec<_> = missing.iter().filter(|name| !files.contains_key(*name)).collect();
        assert!(
            missing.is_empty(),
            "run `cargo run -p podlane-fuzz --bin fuzz-seeds`: {} lacks {missing:?}",
            target.name
        );
    }
}

#[test]
fn the_corpus_is_small_and_has_libfuzzer_programs() {
    let (mut count, mut bytes) = (0, 0);
    for target in TARGETS {
        let files = files(&target);
        count += files.len();
        bytes += files.values().map(Vec::len).sum::<usize>();
        let largest = files.values().map(Vec::len).max();
        assert!(largest <= Some(target.most_bytes), "{}: {largest:?} bytes", target.name);
        let program = directory().join(format!("../libfuzzer/targets/{}.rs", target.name));
        let text = fs::read_to_string(&program).expect("every target has a libFuzzer program");
        assert!(text.contains(&format!("run(\"{}\"", target.name)), "{}", program.display());
    }
    assert!(count <= MOST_FILES && bytes <= MOST_BYTES, "{count} files of {bytes} bytes");
    assert_eq!(fs::read_dir(directory()).expect("the corpus").count(), TARGETS.len());
}
