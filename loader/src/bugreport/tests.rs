use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;

/// The files of an archive.
fn opened(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mode().unwrap(), 0o600);
        let path = entry.path().unwrap().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(path.strip_prefix("top").unwrap().display().to_string(), content);
    }
    files
}

fn archive() -> Archive<Vec<u8>> {
    Archive::new(Vec::new(), "top", 1_700_000_000)
}

#[test]
fn what_is_added_is_there_and_listed() {
    let mut archive = archive();
    archive.add("a/b.txt", "somewhere", Ok(Content::from("hello"))).unwrap();
    let half = Content { bytes: b"half".to_vec(), wrong: Some("the rest\nis missing".to_owned()) };
    archive.add("half.txt", "elsewhere", Ok(half)).unwrap();
    archive.add("none.txt", "nowhere", Err("there is none".to_owned())).unwrap();
    let (bytes, entries) = archive.finish("Head.").unwrap();
    let files = opened(&bytes);
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), [LIST_NAME, "a/b.txt", "half.txt"]);
    assert_eq!(files["a/b.txt"], b"hello");
    assert_eq!(entries.len(), 3);
    let list = String::from_utf8(files[LIST_NAME].clone()).unwrap();
    let expected = "Head.\n\
                    FILE         BYTES  STATE    SOURCE     WHY\n\
                    a/b.txt          5  ok       somewhere\n\
                    half.txt         4  partial  elsewhere  the rest; is missing\n\
                    none.txt         0  failed   nowhere    there is none\n";
    assert_eq!(list, expected);
}

#[test]
fn parts_and_the_whole_are_bounded() {
    let mut archive = archive();
    for number in 0..20 {
        archive.add(&format!("{number}"), "s", Ok(Content::from(vec![b'x'; MAX_PART + 1]))).unwrap();
    }
    let cut = Outcome::Partial("cut off after 4 MiB".to_owned());
    let left_out = Outcome::Failed("left out: the whole archive has at most 32 MiB".to_owned());
    let outcomes: Vec<_> = archive.entries().iter().map(|entry| entry.outcome.clone()).collect();
    assert!(
        outcomes[..7].iter().all(|outcome| *outcome == cut) && outcomes[7..].iter().all(|outcome| *outcome == left_out)
    );
    let many = (0..10_000).map(|number| format!("file {number} {}", "y".repeat(200)));
    many.for_each(|name| archive.add(&name, "s", Err("é".repeat(100))).unwrap());
    let (bytes, _) = archive.finish("Head.").unwrap();
    let files = opened(&bytes);
    assert_eq!(files.len(), 8);
    assert!(files.values().map(Vec::len).sum::<usize>() <= MAX_WHOLE);
}

#[test]
fn programs_are_bounded_in_time_and_bytes() {
    let run = |script: &str| source::program(&["sh", "-c", script], Duration::from_millis(300));
    assert_eq!(run("echo yes"), Ok(Content::from("yes\n")));
    let partial = run("echo half; echo 'and\nwhy' >&2; exit 3").unwrap();
    assert_eq!(partial, Content { bytes: b"half\n".to_vec(), wrong: Some("and; why".to_owned()) });
    assert_eq!(run("echo alas >&2; exit 3"), Err("alas".to_owned()));
    assert!(run("exit 3").unwrap_err().contains("exit status: 3"));
    assert_eq!(
        source::program(&["no-such-program-here"], source::PATIENCE),
        Err("`no-such-program-here` is not installed".to_owned())
    );
    let start = Instant::now();
    let late = run("echo early; sleep 100 & sleep 100").unwrap();
    assert_eq!(late.wrong.as_deref(), Some("`sh` was not done within 0.3 s"));
    assert!(start.elapsed() < Duration::from_secs(5));
    let long = source::program(&["yes"], Duration::from_secs(60)).unwrap();
    assert_eq!((long.bytes.len(), long.wrong), (MAX_PART + 1, None));
    let late = source::Programs::new(Duration::ZERO).run(&["true"]);
    assert_eq!(late, Err("left out: the programs before it took too long".to_owned()));
    assert!(run("echo ${SECRET-none}; cat").unwrap().bytes.starts_with(b"none\n"), "no environment, no input");
}

#[test]
fn only_known_keys_of_the_configuration_are_copied() {
    let text = "# the password is hunter2\nbridge = \"cbr0\" # hunter2\napi_token = \"hunter2\"\nskip = [\n\"a\", # hunter2\n]\n\
                [server]\nkey = \"hunter2\"\n";
    let (known, left_out) = settings::known_keys(text).unwrap();
    assert_eq!(known, "bridge = \"cbr0\"\nskip = [\"a\"]\n");
    assert_eq!(left_out, ["api_token", "server"]);
    let error = settings::known_keys("password = hunter2\n").unwrap_err();
    assert!(error.starts_with("not TOML: ") && !error.contains("hunter2"), "{error}");
}

#[test]
fn rules_are_counted_and_not_told() {
    let nft = br#"{"nftables":[{"metainfo":{}},{"table":{"family":"ip","name":"nat"}},
        {"chain":{"family":"ip","table":"nat","name":"post","type":"nat","hook":"postrouting","prio":100,"policy":"accept"}},
        {"chain":{"family":"ip","table":"nat","name":"other"}},
        {"rule":{"family":"ip","table":"nat","chain":"post","comment":"hunter2"}},
        {"rule":{"family":"ip6","table":"nat","chain":"post"}},
        {"rule":{"family":"ip","table":"nat","chain":"post"}}]}"#;
    let expected = "ip nat post at postrouting priority 100, policy accept: 2 rules\nip nat other: 0 rules\n";
    assert_eq!(node::count_nft(nft).as_deref(), Ok(expected));
    assert_eq!(node::count_nft(b"{\"nftables\":[]}").as_deref(), Ok("no chains\n"));
    assert!(node::count_nft(b"oops").is_err());
    let saved = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE - [0:0]\n-A PREROUTING -j KUBE\n-A KUBE -m comment --comment hunter2\n\
                 -A KUBE -j ACCEPT\nCOMMIT\n*filter\n:FORWARD DROP [1:2]\nCOMMIT\n";
    let expected =
        "nat PREROUTING policy ACCEPT: 1 rules\nnat KUBE policy -: 2 rules\nfilter FORWARD policy DROP: 0 rules\n";
    assert_eq!(node::count_iptables(saved), expected);
    assert_eq!(node::count_iptables(""), "no chains\n");
}

#[test]
fn without_a_daemon_there_is_an_archive_that_says_so_and_it_is_nobody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("top.tar.gz");
    let config = directory.path().join("podlane.toml");
    std::fs::write(&config, "bridge = \"nothere0\"\nuplinks = []\ntoken = \"hunter2\"\n").unwrap();
    let instance = "nobody-of-this-name".to_owned();
    let wish = Wish { instance, output: Some(path.clone()), config: Some(config), firewall: false };
    let host = crate::config::Host::read().unwrap();
    let load = |words: &[String], file: Option<&Path>| {
        assert!(words.is_empty());
        Ok(Config::load(crate::config::Settings::default(), file, &host))
    };
    let report = write(&wish, &load).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());
    let text = report.render();
    assert!(text.contains("No daemon was asked: no podlane instance \"nobody-of-this-name\" answers at"), "{text}");
    assert!(text.lines().all(|line| !line.contains("hunter2")), "{text}");
    let state = |name: &str| report.entries.iter().find(|entry| entry.name == name).map(|entry| entry.outcome.word());
    assert_eq!(state("versions.txt"), Some("ok"));
    assert_eq!(state("config/podlane.toml"), Some("partial"));
    assert_eq!((state("daemon/status.json"), state("log/daemon.txt")), (Some("failed"), Some("failed")));
    assert_eq!(state("kernel/switches.txt"), Some("ok"));
    let error = write(&wish, &load).unwrap_err().to_string();
    assert!(error.ends_with("exists already and is not overwritten; name another file with -o"), "{error}");
    let nowhere = Wish { output: Some(directory.path().join("no/such/directory")), ..wish };
    assert!(write(&nowhere, &load).unwrap_err().to_string().contains("No such file or directory"));
}
