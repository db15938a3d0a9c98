//! Manual pages and shell completions, made from the definitions of the commands themselves, so that they cannot say anything
//! else than the program does. `scripts/install.sh` calls this through the hidden command `podlane generate`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Commands of a system administrator.
const SECTION: &str = "8";
const MANUAL: &str = "Podlane";

/// A heading, and what stands below it: terms with their explanations.
type Terms = (&'static str, &'static [(&'static str, &'static str)]);

const EXIT_STATUS: Terms = (
    "EXIT STATUS",
    &[
        ("0", "Done."),
        ("1", "Something went wrong at run time; a sentence on standard error says what, and the cure."),
        ("2", "The command line or the configuration is wrong."),
    ],
);
const FILES: Terms = (
    "FILES",
    &[
        (
            "/etc/podlane/podlane.toml",
            "Configuration, if --config names no other. The example that comes with Podlane explains every key.",
        ),
        ("/run/podlane/INSTANCE.sock", "Control socket of a running daemon, for root alone."),
        (
            "/run/podlane/INSTANCE.large.json",
            "What was found at pods' interfaces before their sizes were changed (local_mtu, big_tcp); the next daemon undoes it.",
        ),
    ],
);
const ENVIRONMENT: Terms = (
    "ENVIRONMENT",
    &[
        (
            "PODLANE_LOG",
            "What the daemon logs, if --log does not say: a level, and other levels for single parts, such as \
             info,podlane::mirror=debug.",
        ),
        ("PODLANE_RUN_DIR", "Directory of the control sockets instead of /run/podlane."),
        ("NO_COLOR", "If not empty, nothing is written in colours."),
        (
            "JOURNAL_STREAM",
            "Set by systemd(1); where it names standard error, the log goes to the journal with its fields.",
        ),
    ],
);
const SIGNALS: Terms = (
    "SIGNALS",
    &[(
        "SIGTERM, SIGINT",
        "Takes everything back and ends; the kernel forwards again. A daemon that is killed leaves the node with its network, too.",
    )],
);

/// What is shown at work, by the name of the page.
pub const EXAMPLES: [(&str, &[(&str, &str)]); 7] = [
    (
        "podlane-run",
        &[
            (
                "podlane run --bridge cni0 --uplink eth0 --cluster-cidr 10.244.0.0/16",
                "Serve the pods on cni0, and those of other nodes behind eth0.",
            ),
            (
                "podlane run --config /etc/podlane/podlane.toml --log debug",
                "Take everything from the file, and say more.",
            ),
        ],
    ),
    (
        "podlane-status",
        &[
            ("podlane status", "Ports, workers, tables."),
            ("podlane status --json", "The same for programs; docs/status.md describes it."),
        ],
    ),
    (
        "podlane-path",
        &[
            ("podlane path kernel", "All ports take the kernel path from now on."),
            ("podlane path af_xdp eth0", "One port takes the other one."),
        ],
    ),
    (
        "podlane-trace",
        &[
            (
                "podlane trace 10.244.1.2 10.244.2.2 --protocol tcp --port 443",
                "What becomes of a TCP segment between two pods.",
            ),
            (
                "podlane trace veth12ab 10.244.2.2 --size 9000",
                "Of a large packet; FROM is the interface of a pod's veth.",
            ),
        ],
    ),
    (
        "podlane-explain",
        &[("podlane explain too_big", "What a reason in status means, what usually causes it, what to do.")],
    ),
    (
        "podlane-check",
        &[(
            "podlane check --bridge cni0 --uplink eth0",
            "What this node has and lacks; ends with 1 if podlane run would not work.",
        )],
    ),
    (
        "podlane-bugreport",
        &[
            ("podlane bugreport", "Write an archive into the current directory."),
            ("podlane bugreport -o /tmp/report.tar.gz --include-firewall", "With the rules of the firewall in it."),
        ],
    ),
];

/// The manual pages of a command and of everything below it that is not hidden, as file name and text.
pub fn pages(command: &Command) -> Vec<(String, Vec<u8>)> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    pages
}

fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    if page(command, &mut text).is_ok() {
        pages.push((format!("{}.{SECTION}", name_of(command)), tidy(&text)));
    }
    command.get_subcommands().filter(|below| !below.is_hide_set()).for_each(|below| collect(below, pages));
}

fn name_of(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// With blank lines as requests, and without the line breaks beside them, which mean nothing.
fn tidy(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(|line| if line.is_empty() { ".sp" } else { line }).collect();
    let is_blank = |index: usize| lines.get(index) == Some(&".sp");
    let is_idle = |index: usize| lines[index] == ".br" && (is_blank(index + 1) || (index > 0 && is_blank(index - 1)));
    let kept = (0..lines.len()).filter(|&index| !is_idle(index)).flat_map(|index| [lines[index], "\n"]);
    kept.collect::<String>().into_bytes()
}

fn page(command: &Command, out: &mut dyn Write) -> io::Result<()> {
    let name = name_of(command);
    // No date: the same commands make the same page at any time.
    let title = name.to_uppercase();
    writeln!(out, ".TH {title} {SECTION} \"\" \"podlane {}\" \"{MANUAL}\"", env!("CARGO_PKG_VERSION"))?;
    let man = Man::new(command.clone());
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    let has_below = command.get_subcommands().any(|below| !below.is_hide_set());
    if has_below {
        commands(command).to_writer(out)?;
    }
    let examples = EXAMPLES.iter().find(|(page, _)| *page == name).map(|(_, examples)| *examples);
    let daemon: &[Terms] = if has_below || name.ends_with("-run") { &[SIGNALS] } else { &[] };
    let all = daemon.iter().chain(&[EXIT_STATUS, ENVIRONMENT, FILES]);
    all.map(|(heading, terms)| list(heading, terms)).try_for_each(|roff| roff.to_writer(out))?;
    if has_below {
        let every: Vec<_> = EXAMPLES.iter().flat_map(|(_, examples)| examples.iter().take(1).copied()).collect();
        shown(&every).to_writer(out)?;
    }
    if let Some(examples) = examples {
        shown(examples).to_writer(out)?;
    }
    see_also(command, &name).to_writer(out)
}

/// The commands below, each with the name of its page.
fn commands(command: &Command) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["COMMANDS"]);
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        roff.control("TP", []);
        roff.text([bold(name_of(below)), roman(format!("({SECTION})"))]);
        roff.text([roman(below.get_about().map(ToString::to_string).unwrap_or_default())]);
    }
    roff
}

fn list(heading: &str, terms: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", [heading]);
    for (term, explanation) in terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*explanation)]);
    }
    roff
}

fn shown(examples: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["EXAMPLES"]);
    for (index, (line, what)) in examples.iter().enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*what)]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        roff.text([bold(*line)]);
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff
}

fn see_also(command: &Command, name: &str) -> Roff {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set()).map(name_of);
    let mut pages: Vec<String> = if name.contains('-') { vec!["podlane".to_owned()] } else { below.collect() };
    pages.sort();
    let mut line = Vec::new();
    for page in &pages {
        line.extend([bold(page), roman(format!("({SECTION}), "))]);
    }
    line.extend([bold("ip"), roman("(8), "), bold("bridge"), roman("(8)")]);
    let mut roff = Roff::default();
    roff.control("SH", ["SEE ALSO"]);
    roff.text(line);
    roff
}

/// Writes the manual pages into a directory, which is made if there is none. Gives their paths.
///
/// # Errors
/// If one cannot be written.
pub fn write_pages(command: &Command, directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let write = |(name, text): (String, Vec<u8>)| {
        let path = directory.join(name);
        fs::write(&path, text).map(|()| path)
    };
    pages(command).into_iter().map(write).collect()
}

/// The completions of a command for a shell; what is hidden is not completed.
pub fn completions(command: &Command, shell: Shell) -> String {
    let mut shown = Command::new("podlane").disable_help_subcommand(true);
    shown = command.get_arguments().fold(shown, |shown, argument| shown.arg(argument));
    shown = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .fold(shown, |shown, below| shown.subcommand(below));
    shown = shown.version(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown, "podlane", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::{Command as Process, Stdio};

    use clap::{CommandFactory, ValueEnum};

    use super::*;
    use crate::cli::CommandLine;

    fn command() -> Command {
        CommandLine::command()
    }

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let pages = pages(&command());
        let names: BTreeSet<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        let mut expected = BTreeSet::from(["podlane.8".to_owned()]);
        for below in command().get_subcommands().filter(|below| !below.is_hide_set()) {
            expected.insert(format!("podlane-{}.8", below.get_name()));
            let page = pages.iter().find(|(name, _)| *name == format!("podlane-{}.8", below.get_name()));
            let text = String::from_utf8(page.unwrap_or_else(|| panic!("{below}")).1.clone()).unwrap();
            for option in below.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(
                    text.contains(&format!("\\-\\-{}", option.replace('-', "\\-"))),
                    "{}: {option}",
                    below.get_name()
                );
            }
        }
        assert_eq!(names, expected.iter().map(String::as_str).collect());
        assert!(names.len() >= 8 && !names.contains("podlane-generate.8"));
    }

    #[test]
    fn the_main_page_has_the_usual_sections() {
        let pages = pages(&command());
        let text = String::from_utf8(pages[0].1.clone()).unwrap();
        let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        let expected = [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "COMMANDS",
            "SIGNALS",
            "\"EXIT STATUS\"",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "\"SEE ALSO\"",
        ];
        assert_eq!(headings, expected);
        assert!(!text.contains("generate"), "what is hidden stays hidden");
    }

    #[test]
    fn examples_are_right() {
        use clap::Parser;
        for (page, examples) in EXAMPLES {
            assert!(pages(&command()).iter().any(|(name, _)| *name == format!("{page}.8")), "{page}");
            for (line, _) in examples {
                assert!(line.starts_with(&page.replace('-', " ")), "{line}");
                CommandLine::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }

    /// Runs a program over each page; nothing where it is not installed.
    fn judged(program: &str, arguments: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let mut complaints = Vec::new();
        for path in write_pages(&command(), directory.path()).unwrap() {
            let output = Process::new(program).args(arguments).arg(&path).env("MANROFFSEQ", "").output();
            let Ok(output) = output else {
                eprintln!("{program} is not installed");
                return Vec::new();
            };
            assert!(output.status.code().is_some());
            complaints.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
            if program == "mandoc" {
                complaints.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
            } else {
                assert!(output.stdout.len() > 500, "{}: {output:?}", path.display());
            }
        }
        complaints
    }

    #[test]
    fn man_and_mandoc_have_nothing_to_complain_of() {
        assert_eq!(judged("man", &["--warnings", "-E", "UTF-8", "-l"]), Vec::<String>::new());
        let mut complaints = judged("mandoc", &["-T", "lint", "-W", "warning"]);
        // A page without a date is the same whenever it is made.
        complaints.retain(|line| !line.contains("missing date"));
        assert_eq!(complaints, Vec::<String>::new());
    }

    #[test]
    fn shells_load_their_completions() {
        let below: Vec<_> = command()
            .get_subcommands()
            .filter(|below| !below.is_hide_set())
            .map(|below| below.get_name().to_owned())
            .collect();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(&command(), shell);
            assert!(below.iter().all(|name| text.contains(name.as_str())), "{shell}");
            assert!(!text.contains("generate"), "{shell}: what is hidden is completed");
            let check =
                Process::new(shell.to_string()).args(["-n"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let Ok(mut check) = check else {
                eprintln!("{shell} is not installed");
                continue;
            };
            check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = check.wait_with_output().unwrap();
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(Shell::value_variants().len() >= 3);
    }

    #[test]
    fn bash_completes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("podlane");
        fs::write(&file, completions(&command(), Shell::Bash)).unwrap();
        let script = format!(
            "source {}; COMP_WORDS=(podlane run --pa); COMP_CWORD=2; _podlane podlane --pa run; echo \"${{COMPREPLY[@]}}\"; \
             COMP_WORDS=(podlane exp); COMP_CWORD=1; _podlane podlane exp podlane; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let output = Process::new("bash").args(["--norc", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "--path\nexplain\n", "{output:?}");
    }
}
