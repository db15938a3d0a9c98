use std::path::Path;

use serde_json::json;

use super::*;
use crate::config::{Host, Settings};

fn config(text: &str) -> Config {
    let host = Host { allowed_cpus: vec![0, 1, 2], online_cpus: vec![0, 1, 2] };
    let text = format!("bridge = \"cbr0\"\nuplinks = [\"eth0\"]\n{text}");
    Config::from_text(Settings::default(), &text, Path::new("/p.toml"), &host).unwrap()
}

/// The file's text for another value of each setting.
const OTHERS: [&str; KEYS.len()] = [
    "instance = \"other\"",
    "path = \"kernel\"",
    "port_paths = [\"veth1=kernel\"]",
    "source_guard = \"off\"",
    "port_guards = [\"veth1=off\"]",
    "bypass_netfilter = true",
    "bridge = \"cni0\"",
    "uplinks = [\"eth0\", \"eth1\"]",
    "cluster_cidrs = [\"10.0.0.0/8\"]",
    "workers = 1",
    "cpus = \"2,1,0\"",
    "frames = 32768",
    "xdp_mode = \"generic\"",
    "zero_copy = \"off\"",
    "checksum_metadata = \"off\"",
    "idle_spin_us = 0",
    "big_tcp = 196608",
    "local_mtu = 9000",
    "metrics_address = \"off\"",
    "cni_cache = \"off\"",
    "bpffs = \"off\"",
    "skip = [\"veth2\"]",
    "log = \"debug\"",
    "log_format = \"json\"",
];

/// The configuration with another value of one setting.
fn other(index: usize) -> Config {
    let key = KEYS[index];
    assert!(OTHERS[index].starts_with(&format!("{key} = ")), "OTHERS is in the order of KEYS: {key}");
    let host = Host { allowed_cpus: vec![0, 1, 2], online_cpus: vec![0, 1, 2] };
    let usual = ["bridge = \"cbr0\"", "uplinks = [\"eth0\"]"].into_iter().filter(|line| !line.starts_with(key));
    let text: Vec<&str> = usual.chain([OTHERS[index]]).collect();
    Config::from_text(Settings::default(), &text.join("\n"), Path::new("/p.toml"), &host).unwrap()
}

#[test]
fn every_setting_is_known_and_noticed_and_only_the_fixed_ones_are_kept() {
    let usual = config("");
    assert_eq!(changes(&usual, &usual), (vec![], vec![]));
    for (index, (key, when)) in SETTINGS.into_iter().enumerate() {
        assert_eq!(key, KEYS[index], "SETTINGS is in the order of KEYS");
        let new = other(index);
        let (now, later) = changes(&usual, &new);
        let named = |list: &[Change]| list.iter().map(|change| change.setting.clone()).collect::<Vec<_>>();
        let (mine, others) = if when == When::Now { (now, later) } else { (later, now) };
        // Fewer workers are fewer CPUs as well.
        let expected: &[&str] = if key == "workers" { &["workers", "cpus"] } else { &[key] };
        assert_eq!((named(&mine), named(&others)), (expected.iter().map(|key| (*key).to_owned()).collect(), vec![]));
        let kept = changes(&usual, &keep_fixed(&usual, new));
        assert_eq!(kept.0.len(), usize::from(when == When::Now), "{key}");
        assert_eq!(kept.1, [], "{key}: what waits for a restart has its old value");
    }
}

#[test]
fn the_answer_names_what_changed_what_waits_and_what_is_wrong() {
    let (changed, restart) = changes(
        &config(""),
        &config("frames = 32768\nlog = \"debug\"\nskip = [\"a\", \"b\"]\ncpus = \"1\"\nworkers = 1"),
    );
    let outcome = Outcome { file: Some("/p.toml".into()), changed, restart, ..Outcome::default() };
    let expected = "\
/p.toml was read again; in force since:
  skip (none → a, b)
  log (info → debug)
needs a restart: workers (3 → 1)
needs a restart: cpus (0, 1, 2 → 1)
needs a restart: frames (16384 → 32768)
";
    assert_eq!(outcome.render(), expected);
    assert_eq!(outcome.notes().next().unwrap(), "needs a restart: workers (3 → 1)");
    let value = serde_json::to_value(&outcome).unwrap();
    assert_eq!(value["changed"][0], json!({ "setting": "skip", "from": [], "to": ["a", "b"] }));
    assert_eq!(serde_json::from_value::<Outcome>(value).unwrap(), outcome);
    let nothing = Outcome { file: Some("/p.toml".into()), ..Outcome::default() };
    assert_eq!(nothing.render(), "/p.toml was read again; nothing has changed\n");
    let problems = vec!["/p.toml:7: frames: 5 is out of range".to_owned(), "/p.toml:9: x".to_owned()];
    let refused = Outcome { problems, ..nothing };
    assert!(refused.is_refused());
    let complaint =
        "/p.toml is refused, and nothing has changed:\n  /p.toml:7: frames: 5 is out of range\n  /p.toml:9: x";
    assert_eq!(refused.complaint(), complaint);
    assert_eq!(refused.notes().collect::<Vec<_>>(), [complaint.replace("\n  ", " ")]);
}

#[test]
fn the_file_is_read_again_under_the_same_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let host = Host { allowed_cpus: vec![0], online_cpus: vec![0] };
    write("bridge = \"b\"\nuplinks = []\npath = \"kernel\"\nlog = \"warn\"\n");
    let given = crate::config::Given { value: "debug".to_owned(), origin: crate::config::Origin::Option("--log") };
    let said = Settings { log: Some(given), ..Settings::default() };
    let first = Config::load(said, Some(&file), &host).unwrap();
    assert_eq!(first.again(&host).as_ref(), Ok(&first), "nothing has changed");
    write("bridge = \"b\"\nuplinks = []\npath = \"auto\"\nlog = \"trace\"\n");
    let second = first.again(&host).unwrap();
    assert_eq!(changes(&first, &second).0.len(), 1, "the option wins over the file as before");
    assert_eq!(second.path.word(), "auto");
    write("bridge = 5\n");
    let sentence = second.again(&host).unwrap_err().to_string();
    assert_eq!(sentence, format!("{}:1: bridge: text in quotes is wanted here, not a number", file.display()));
    std::fs::remove_file(&file).unwrap();
    assert!(second.again(&host).unwrap_err().to_string().starts_with("cannot read "), "a file that is gone");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let sentence = second.again(&host).unwrap_err().to_string();
    assert!(sentence.contains("no file that can be read again"), "it would wait for a writer: {sentence}");
}

/// The rows of the table in docs/configuration.md, cell by cell, without the backquotes of names.
fn documented() -> Vec<Vec<String>> {
    let text = include_str!("../../../docs/configuration.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
    rows.map(cells).collect()
}

#[test]
fn the_documentation_lists_what_there_is() {
    let rows = documented();
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), KEYS);
    let defaults = config("").effective();
    let options = crate::cli::options_of_run();
    for (row, (key, when)) in rows.iter().zip(SETTINGS) {
        let [_, option, _, default, force] = row.as_slice() else { panic!("{row:?}") };
        assert!(options.contains(option), "{option} is no option");
        // The option has the key's name, in the singular where it may be repeated.
        let name = option.trim_start_matches("--").replace('-', "_");
        assert!(key == name || key == format!("{name}s"), "{option} is not the option of {key}");
        assert_eq!(force, if when == When::Now { "reload" } else { "restart" }, "{key}");
        let plain = plain(&defaults[key]);
        let said = default.split(':').next().unwrap() == plain || default == &plain;
        assert!(said || ["bridge", "uplinks", "workers", "cpus"].contains(&key), "{key}: {default:?} is not {plain:?}");
    }
}
