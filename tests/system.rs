//! The system suite: the same cases over both topologies and both address families, without Podlane (`without`: shows that
//! the cases and the testbed are right) and with it on either path (`af_xdp`, `kernel`) and on both at once (`mixed`).
//!
//! `cargo test -p podlane-tests --test system -- [FILTER]` as root; the names are
//! `PATH::TOPOLOGY::SHAPE::CASE[::FAMILY]`. `PODLANE_TEST_PATH=kernel`, say, runs one path only; `without` runs without
//! Podlane on every shape, and not only on the plain one. `PODLANE_TEST_ONLY` has several filters, of which one must match;
//! `PODLANE_TEST_SLOW=4` gives everything four times its time, for a machine that is emulated. Cases of the same
//! path, topology and shape share a testbed; a case that fails takes it with it, so that the next one starts afresh.

mod cases;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::testbed::{Family, Topology};
use podlane_tests::{leftovers, stock};

use cases::{Case, Run};

/// Which testbed a case needs.
type Key = (DataPath, Topology, &'static str);

/// The testbed that is up, and those that could not be built.
#[derive(Default)]
struct Current {
    bed: Option<(Key, Bed)>,
    broken: BTreeSet<String>,
    /// How long each case took.
    times: Vec<(Duration, String)>,
}

impl Current {
    /// The slowest cases: where the suite's time goes.
    fn print_times(&mut self) {
        self.times.sort();
        let total: Duration = self.times.iter().map(|(time, _)| time).sum();
        println!("\nslowest of {:.0} s:", total.as_secs_f64());
        for (time, name) in self
            .times
            .iter()
            .rev()
            .take(std::env::var("PODLANE_TEST_TIMES").ok().and_then(|count| count.parse().ok()).unwrap_or(8))
        {
            println!("{:6.1} s  {name}", time.as_secs_f64());
        }
    }
}

type Shared = Arc<Mutex<Current>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases take turns on one testbed, and measure on two cores: never side by side.
    arguments.test_threads = Some(1);
    if !arguments.list && !nix::unistd::geteuid().is_root() {
        return skip(&arguments);
    }
    if !arguments.list {
        leftovers::remove_of_the_dead();
        if let Err(error) = leftovers::remove_own_at_signals() {
            eprintln!("cannot handle signals: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    let current = Shared::default();
    let mut trials = trials(&current);
    if !arguments.list {
        trials = without_what_is_missing(trials, &arguments);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
    drop(current.bed.take());
    if !arguments.list {
        current.print_times();
    }
    conclusion.exit_code()
}

/// Without root nothing can be shown, and a run that shows nothing must not look like one that passed.
fn skip(arguments: &Arguments) -> ExitCode {
    for trial in trials(&Shared::default()).iter().filter(|trial| !arguments.is_filtered_out(trial)) {
        println!("test {} ... skipped (network namespaces need root)", trial.name());
    }
    if std::env::var_os("PODLANE_ALLOW_SKIP").is_some_and(|value| value == "1") {
        return ExitCode::SUCCESS;
    }
    eprintln!("every system test was skipped: run them as root, or set PODLANE_ALLOW_SKIP=1 to let that pass");
    ExitCode::FAILURE
}

/// Cases that need the stock plugins, where those cannot be fetched: they are named, and count as ignored.
fn without_what_is_missing(trials: Vec<Trial>, arguments: &Arguments) -> Vec<Trial> {
    let names = |trial: &Trial| trial.name().split("::").any(|part| cases::NEED_STOCK.contains(&part));
    let needs = |trial: &Trial| names(trial) && !arguments.is_filtered_out(trial);
    if !trials.iter().any(needs) {
        return trials;
    }
    let Err(why) = stock::plugins() else { return trials };
    let ignore = |trial: Trial| {
        if !needs(&trial) {
            return trial;
        }
        println!("test {} ... skipped (the stock CNI plugins are not to be had here: {why:#})", trial.name());
        trial.with_ignored_flag(true)
    };
    trials.into_iter().map(ignore).collect()
}

fn trials(current: &Shared) -> Vec<Trial> {
    let wanted = std::env::var("PODLANE_TEST_PATH").unwrap_or_default();
    let only = std::env::var("PODLANE_TEST_ONLY").unwrap_or_default();
    let is_one = |name: &str| only.trim().is_empty() || only.split_ascii_whitespace().any(|part| name.contains(part));
    let paths = [DataPath::Without, DataPath::AfXdp, DataPath::Kernel, DataPath::Mixed];
    let mut trials = Vec::new();
    for path in paths.into_iter().filter(|path| wanted.is_empty() || wanted == "all" || wanted == path.name()) {
        for topology in [Topology::Direct, Topology::Cloud] {
            for group in cases::groups() {
                if !group.topologies.contains(&topology) || !group.paths.contains(&path) {
                    continue;
                }
                // That the cases and the testbed are right is seen on the plain one; the others on demand.
                if path == DataPath::Without && group.shape.name != "plain" && wanted != path.name() {
                    continue;
                }
                let prefix = format!("{}::{}::{}", path.name(), topology.name(), group.shape.name);
                let key = (path, topology, group.shape.name);
                let first = trials.len();
                for case in group.cases.iter().filter(|case| case.paths.contains(&path)) {
                    let families: &[Option<Family>] = match case.run {
                        Run::Once(_) => &[None],
                        Run::Families(_) => &[Some(Family::V4), Some(Family::V6)],
                    };
                    for &family in families {
                        let suffix = family.map(|family| format!("::{}", family.name())).unwrap_or_default();
                        let (case, shape, current) = (*case, group.shape, current.clone());
                        let name = format!("{prefix}::{}{suffix}", case.name);
                        if !is_one(&name) {
                            continue;
                        }
                        trials.push(Trial::test(name.clone(), move || {
                            let start = Instant::now();
                            let outcome = run(&current, key, shape, &case, family);
                            let times = &mut current.lock().unwrap_or_else(PoisonError::into_inner).times;
                            times.push((start.elapsed(), name));
                            outcome.map_err(|error| Failed::from(format!("{error:#}")))
                        }));
                    }
                }
                if trials.len() == first {
                    continue;
                }
                let current = current.clone();
                trials.push(Trial::test(format!("{prefix}::taking_down"), move || {
                    take_down(&current, key).map_err(|error| Failed::from(format!("{error:#}")))
                }));
            }
        }
    }
    trials
}

fn run(
    current: &Shared,
    key: Key,
    shape: podlane_tests::testbed::Shape,
    case: &Case,
    family: Option<Family>,
) -> Result<()> {
    // A panic in a case leaves the lock poisoned, but what it guards is replaced below.
    let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bed = match current.bed.take() {
        Some((up, bed)) if up == key => bed,
        other => {
            drop(other);
            let name = format!("{key:?}");
            if current.broken.contains(&name) {
                bail!("the testbed {name} could not be built for an earlier case");
            }
            match Bed::up(key.0, key.1, shape) {
                Ok(bed) => bed,
                Err(error) => {
                    current.broken.insert(name.clone());
                    return Err(error.context(format!("building the testbed {name}")));
                }
            }
        }
    };
    let outcome = match (case.run, family) {
        (Run::Once(run), _) => run(&mut bed),
        (Run::Families(run), Some(family)) => run(&mut bed, family),
        (Run::Families(_), None) => bail!("{} needs a family", case.name),
    };
    let outcome = outcome.and_then(|()| bed.audit().context("the audit after the case"));
    match outcome {
        Ok(()) => {
            current.bed = Some((key, bed));
            Ok(())
        }
        // The testbed is dropped: whatever the case left in it does no harm to the next.
        // What was wrong comes last: it stays when a log keeps no more than its end.
        Err(error) => Err(anyhow::anyhow!("{}\n{error:#}", bed.describe())),
    }
}

/// The last case of a group: daemons end as an operator ends them, and nothing is left.
fn take_down(current: &Shared, key: Key) -> Result<()> {
    let up = current.lock().unwrap_or_else(PoisonError::into_inner).bed.take();
    match up {
        Some((up, bed)) if up == key => bed.take_down(),
        other => {
            current.lock().unwrap_or_else(PoisonError::into_inner).bed = other;
            Ok(())
        }
    }
}
