//! The chaos suite: streams of datagrams, TCP connections and pings run through two nodes while the daemon of one of them is
//! ended, killed, stopped and started again, while pods and routes come and go by the hundred, and while a neighbour floods. What
//! each event may cost is written down in `events.rs`; more fails.
//!
//! `cargo test -p podlane-tests --test chaos -- [--long] [--results FILE] [FILTER]` as root; the names are `PATH::EVENT`. The
//! short form is a part of every run of the tests, the long one has the full numbers of pods, seconds and restarts. It ends
//! with a table for people; `--results` writes the same as JSON. See docs/chaos.md.

mod events;
mod leaks;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use libtest_mimic::{Failed, Trial};
use podlane_tests::bed::{Bed, DataPath};
use podlane_tests::leftovers;
use podlane_tests::testbed::{Shape, Topology};

use report::Report;

/// The command line: that of every test, and two words more.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    tests: libtest_mimic::Arguments,
    /// The full numbers: 10 s of SIGSTOP, 100 pods, 1,000 cycles of a pod, 100 restarts (23 minutes).
    #[arg(long)]
    long: bool,
    /// Write what was measured as JSON.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

/// Two nodes, and in node1 a third pod for the one that floods.
const SHAPE: Shape = Shape { name: "chaos", ..Shape::PLAIN };

/// What the trials share.
#[derive(Default)]
struct Shared {
    bed: Option<Bed>,
    report: Report,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    // Every event has the machine for itself.
    options.tests.test_threads = Some(1);
    let shared = Arc::new(Mutex::new(Shared::default()));
    let trials = trials(&shared, options.long);
    if options.tests.list {
        return libtest_mimic::run(&options.tests, trials).exit_code();
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(&options.tests, &trials);
    }
    leftovers::remove_of_the_dead();
    if let Err(error) = leftovers::remove_own_at_signals() {
        eprintln!("cannot handle signals: {error:#}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let conclusion = libtest_mimic::run(&options.tests, trials);
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    drop(shared.bed.take());
    shared.report.print(start.elapsed());
    if let Some(file) = &options.results
        && let Err(error) = shared.report.write(file, options.long)
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Without root nothing can be shown, and a run that shows nothing must not look like one that passed.
fn skip(arguments: &libtest_mimic::Arguments, trials: &[Trial]) -> ExitCode {
    for trial in trials.iter().filter(|trial| !arguments.is_filtered_out(trial)) {
        println!("test {} ... skipped (network namespaces need root)", trial.name());
    }
    if std::env::var_os("PODLANE_ALLOW_SKIP").is_some_and(|value| value == "1") {
        return ExitCode::SUCCESS;
    }
    eprintln!("every chaos test was skipped: run them as root, or set PODLANE_ALLOW_SKIP=1 to let that pass");
    ExitCode::FAILURE
}

fn trials(shared: &Arc<Mutex<Shared>>, long: bool) -> Vec<Trial> {
    let mut paths = vec![DataPath::AfXdp, DataPath::Kernel];
    if long {
        paths.insert(0, DataPath::Without);
        paths.push(DataPath::Mixed);
    }
    let mut trials = Vec::new();
    for path in paths {
        for event in events::ALL.iter().filter(|event| path != DataPath::Without || !event.needs_podlane) {
            trials.push(trial(shared, path, event.name, move |bed, report| events::run(bed, event, long, report)));
        }
        if path != DataPath::Without {
            trials.push(trial(shared, path, "leaks", move |bed, report| leaks::run(bed, long, report)));
        }
        trials.push(taking_down(shared, path));
    }
    trials
}

fn trial(
    shared: &Arc<Mutex<Shared>>,
    path: DataPath,
    name: &str,
    run: impl FnOnce(&mut Bed, &mut Report) -> Result<()> + Send + 'static,
) -> Trial {
    let shared = shared.clone();
    let name = format!("{}::{name}", path.name());
    Trial::test(name.clone(), move || {
        // A panic in a case leaves the lock poisoned, but what it guards is replaced below.
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bed = match shared.bed.take().filter(|bed| bed.path == path) {
            Some(bed) => bed,
            None => Bed::up(path, Topology::Direct, SHAPE).map_err(|error| Failed::from(format!("{error:#}")))?,
        };
        match run(&mut bed, &mut shared.report).and_then(|()| bed.audit()) {
            Ok(()) => {
                shared.bed = Some(bed);
                Ok(())
            }
            // The testbed is dropped: whatever the event left in it does no harm to the next. What was wrong comes last, where
            // it is read first, and stays when a log keeps no more than its end.
            Err(error) => Err(Failed::from(format!("{}\n{name}: {error:#}", bed.describe()))),
        }
    })
}

/// The last trial of a path: daemons end as an operator ends them, and nothing is left.
fn taking_down(shared: &Arc<Mutex<Shared>>, path: DataPath) -> Trial {
    let shared = shared.clone();
    Trial::test(format!("{}::taking_down", path.name()), move || {
        let bed = shared.lock().unwrap_or_else(PoisonError::into_inner).bed.take();
        match bed {
            Some(bed) if bed.path == path => bed.take_down().map_err(|error| Failed::from(format!("{error:#}"))),
            _ => Ok(()),
        }
    })
}
