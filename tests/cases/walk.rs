//! The walk through five faults: `docs/troubleshooting.md`, carried out as it stands there.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podlane_tests::bed::{Bed, FOLLOW};
use podlane_tests::command::{self, wait_for};
use podlane_tests::document::{Item, flat, items, missing};
use podlane_tests::testbed::Family;

const DOCUMENT: &str = include_str!("../../docs/troubleshooting.md");
/// A command of the reader's is done by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs one of the reader's lines; gives all that it prints.
fn type_line(bed: &Bed, line: &str) -> Result<String> {
    let Some(words) = line.strip_prefix("podlane ") else { return bed.sh("node1", line) };
    let mut words = words.split_whitespace();
    let subcommand = words.next().context("podlane alone")?;
    let mut podlane = bed.podlane(1)?;
    podlane.arg(subcommand);
    if subcommand != "explain" {
        podlane.args(["--instance", &bed.instance(1)]);
    }
    podlane.args(words);
    command::run(&mut podlane, PATIENCE)
}

/// Types a block until it prints what the document says: what Podlane is asked, again and again; what changes the node, once.
fn reads(bed: &Bed, typed: &[&str], wanted: &[&str]) -> Result<()> {
    let is_question = |line: &str| line.starts_with("podlane ");
    let mut printed: Vec<String> = Vec::new();
    for line in typed {
        printed.push(if is_question(line) { String::new() } else { type_line(bed, line)? });
    }
    let mut last = String::new();
    let found = wait_for(&format!("{typed:?} to print {wanted:?}"), FOLLOW * 2, || {
        for (line, text) in typed.iter().zip(&mut printed).filter(|(line, _)| is_question(line)) {
            *text = type_line(bed, line)?;
        }
        last = printed.join("\n");
        Ok(missing(&flat(&last), wanted).is_empty().then_some(()))
    });
    found.with_context(|| format!("missing: {:?} in:\n{last}", missing(&flat(&last), wanted)))
}

struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every fault is found as the document says, and is gone at the end of its section.
pub fn troubleshooting(bed: &mut Bed) -> Result<()> {
    // One of the faults is a pod that takes another one's address.
    bed.expect_complaint("a pod has addresses that it may not send from");
    for to in ["pod2", "pod4"] {
        bed.warm_up(&bed.way("pod1", to, Family::V4)?)?;
    }
    let items = items(DOCUMENT)?;
    let sections = items.iter().filter(|item| matches!(item, Item::Section(_))).count();
    ensure!(sections == 5, "the document has {sections} sections, not five");
    let mut beside = Vec::new();
    let mut section = "";
    let mut following = items.iter().peekable();
    while let Some(item) = following.next() {
        let done = match item {
            Item::Section(title) => {
                beside.clear();
                section = title;
                Ok(())
            }
            Item::Fault { place, line } => bed.sh(place, line).map(drop),
            Item::Meanwhile { place, line } => {
                let mut words = line.split_whitespace();
                let mut command = bed.command(place, words.next().context("nothing beside")?);
                let child = command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                child.map(|child| beside.push(Beside(child))).context("something beside")
            }
            Item::Type(lines) => match following.next_if(|item| matches!(item, Item::Read(_))) {
                Some(Item::Read(wanted)) => reads(bed, lines, wanted),
                _ => lines.iter().try_for_each(|line| type_line(bed, line).map(drop)),
            },
            Item::Read(wanted) => bail!("{section}: nothing prints {wanted:?}"),
        };
        done.with_context(|| format!("in the section \"{section}\""))?;
    }
    drop(beside);
    bed.warm_up(&bed.way("pod1", "pod4", Family::V4)?)
}
