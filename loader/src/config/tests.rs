use proptest::prelude::*;

use super::*;

const FILE: &str = "/etc/podlane/podlane.toml";

fn host() -> Host {
    Host { allowed_cpus: vec![0, 1, 2], online_cpus: vec![0, 1, 2, 3] }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let config = Config::from_text(Settings::default(), text, Path::new(FILE), &host());
    // What it was made of differs where the result does not.
    config.map(|config| Config { said: Said::default(), ..config })
}

/// The sentences about a file that is right but for these lines.
fn complaints(lines: &str) -> Vec<String> {
    load(&format!("bridge = \"cbr0\"\nuplinks = [\"eth0\"]\n{lines}")).expect_err(lines).sentences()
}

fn complaint(lines: &str) -> String {
    let mut all = complaints(lines);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn option<T>(value: T, name: &'static str) -> Given<T> {
    Given { value, origin: Origin::Option(name) }
}

fn defaults() -> Config {
    Config {
        file: Some(FILE.into()),
        instance: InstanceName::default(),
        path: PathChoice::AfXdp,
        port_paths: BTreeMap::new(),
        source_guard: GuardChoice::Auto,
        port_guards: BTreeMap::new(),
        bypass_netfilter: false,
        bridge: "cbr0".parse().unwrap(),
        uplinks: vec!["eth0".parse().unwrap()],
        cluster_cidrs: Vec::new(),
        cpus: vec![0, 1, 2],
        frames: 16_384,
        xdp_mode: XdpMode::Native,
        zero_copy: ZeroCopy::Auto,
        checksum_metadata: ChecksumMetadata::Auto,
        idle_spin: Duration::from_micros(50),
        large: Wish::default(),
        metrics_address: "127.0.0.1:9477".parse().ok(),
        cni_cache: Some("/var/lib/cni/results".into()),
        bpffs: Root::Found,
        skip: Vec::new(),
        log: LogFilter::default(),
        log_format: None,
        notes: Vec::new(),
        said: Said::default(),
    }
}

const SAMPLE: &str = include_str!("../../../packaging/podlane.toml");

#[test]
fn the_sample_file_is_the_defaults() {
    assert_eq!(load(SAMPLE).unwrap(), defaults());
}

#[test]
fn the_sample_file_shows_every_key_and_each_can_be_uncommented() {
    let is_key = |line: &&str| KEYS.iter().any(|key| line.trim_start_matches('#').starts_with(&format!("{key} = ")));
    let shown: Vec<_> = SAMPLE.lines().filter(is_key).map(|line| line.trim_start_matches('#')).collect();
    let keys: Vec<_> = shown.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(keys, KEYS, "each key once, in the documented order");
    let config = load(&shown.join("\n")).unwrap();
    assert_eq!(config.workers(), 2);
    assert_eq!(config.cluster_cidrs.len(), 2);
}

#[test]
fn least_file_gives_the_defaults() {
    let config = load("bridge = \"cbr0\"\nuplinks = [\"eth0\"]\n").unwrap();
    assert_eq!(config, defaults());
    assert_eq!(config.umem_bytes(), 64 << 20);
}

#[test]
fn command_line_wins_and_lists_are_replaced() {
    let text = "bridge = \"cbr0\"\nuplinks = [\"eth0\", \"eth1\"]\nframes = 4096\nworkers = 3\n";
    let command_line = Settings {
        uplinks: Some(vec![option("eth9".to_owned(), "--uplink")]),
        workers: Some(option(1, "--workers")),
        ..Settings::default()
    };
    let config = Config::from_text(command_line, text, Path::new(FILE), &host()).unwrap();
    assert_eq!(config.uplinks, ["eth9".parse().unwrap()]);
    assert_eq!((config.frames, config.workers()), (4096, 1));
}

#[test]
fn a_mistake_on_the_command_line_names_the_option() {
    let command_line = Settings { frames: Some(option(7, "--frames")), ..Settings::default() };
    let text = "bridge = \"cbr0\"\nuplinks = [\"eth0\"]\n";
    let error = Config::from_text(command_line, text, Path::new(FILE), &host()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--frames: 7 is out of range; allowed are powers of two from 2048 (8 MiB) to 262144 (1024 MiB) of locked memory"
    );
}

#[test]
fn missing_interfaces_are_asked_for() {
    let error = load("").unwrap_err().to_string();
    assert!(error.starts_with("the configuration has 2 mistakes:"), "{error}");
    assert!(error.contains("no bridge is named; say --bridge NAME"), "{error}");
    assert!(error.contains("no uplink is named; say --uplink NAME"), "{error}");
    assert!(load("").unwrap_err().is_unconfigured());
    assert!(!load("log = 1").unwrap_err().is_unconfigured());
    assert!(!load("bridge = \"cbr0\"").unwrap_err().is_unconfigured());
    let alone = load("bridge = \"cbr0\"\nuplinks = []").unwrap();
    assert!(alone.uplinks.is_empty());
}

#[test]
fn a_misspelt_bridge_is_not_also_missing() {
    let error = load("brigde = \"cbr0\"\nuplinks = [\"eth0\"]\n").unwrap_err();
    assert_eq!(error.to_string(), format!("{FILE}:1: there is no key \"brigde\"; did you mean `bridge`?"));
}

#[test]
fn each_rule_has_its_sentence() {
    for (lines, expected) in [
        ("instance = \"A\"", "instance: \"A\" is not an instance name: use 1 to 32 of the characters a-z, 0-9 and -"),
        ("path = \"dpdk\"", "path: \"dpdk\" is not one of af_xdp, kernel, auto"),
        ("path = \"kernal\"", "path: \"kernal\" is not one of af_xdp, kernel, auto; did you mean \"kernel\"?"),
        ("port_paths = [\"veth1\"]", "port_paths: \"veth1\" is not IFACE=PATH, such as veth0=kernel"),
        ("port_paths = [\"veth1=fast\"]", "port_paths: \"fast\" is not one of af_xdp, kernel, auto"),
        ("port_guards = [\"veth1\"]", "port_guards: \"veth1\" is not IFACE=GUARD, such as veth0=off"),
        ("bypass_netfilter = \"on\"", "bypass_netfilter: true or false, without quotes, is wanted here, not text"),
        ("source_guard = \"on\"", "source_guard: \"on\" is not one of auto, off, cluster, strict"),
        ("port_paths = [\"v=auto\", \"v=kernel\"]", "port_paths: v is given twice; leave one out"),
        ("workers = 0", "workers: 0 is out of range; allowed are 1 to 16 workers"),
        ("workers = 17", "workers: 17 is out of range; allowed are 1 to 16 workers"),
        ("workers = -1", "workers: -1 is out of range; allowed are 1 to 16 workers"),
        ("cpus = \"9\"", "cpus: CPU 9 does not exist on this machine; allowed: 0-2"),
        (
            "cpus = [3]",
            "cpus: CPU 3 is not allowed for this process; allowed: 0-2 (taskset, CPUAffinity= or a cpuset narrows them)",
        ),
        ("cpus = [-1]", "cpus: \"-1\" is not a list of CPUs; write numbers and ranges, for example \"0,2-3\""),
        (
            "cpus = \"0\"\nworkers = 2",
            "cpus: 2 workers need 2 CPUs and cpus = \"0\" names 1; name more, or leave `workers` out",
        ),
        (
            "frames = 5000",
            "frames: 5000 is not a power of two; 4096 (16 MiB) and 8192 (32 MiB) of locked memory are the nearest",
        ),
        ("xdp_mode = \"natve\"", "xdp_mode: \"natve\" is not one of native, generic; did you mean \"native\"?"),
        ("zero_copy = \"on\"", "zero_copy: \"on\" is not one of auto, require, off"),
        ("checksum_metadata = \"on\"", "checksum_metadata: \"on\" is not one of auto, off"),
        ("idle_spin_us = 1000001", "idle_spin_us: 1000001 is out of range; allowed are 0 to 1000000 microseconds"),
        (
            "metrics_address = \"9477\"",
            "metrics_address: \"9477\" is not an address to listen at; write an IP address and a port, such as \
             \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"",
        ),
        (
            "cni_cache = \"results\"",
            "cni_cache: \"results\" does not begin with /; write a directory with its whole path, such as \
             \"/var/lib/cni/results\", or \"off\"",
        ),
        (
            "bpffs = \"bpf\"",
            "bpffs: \"bpf\" does not begin with /; write a directory on bpffs with its whole path, such as \"/sys/fs/bpf\", or \
             \"auto\" or \"off\"",
        ),
        ("big_tcp = 65536", "big_tcp: 65536 is out of range; allowed are 65537 to 524280 bytes, and 0 for off"),
        ("big_tcp = 524281", "big_tcp: 524281 is out of range; allowed are 65537 to 524280 bytes, and 0 for off"),
        ("local_mtu = 1279", "local_mtu: 1279 is out of range; allowed are 1280 to 65000 bytes, and 0 for off"),
        ("local_mtu = 65001", "local_mtu: 65001 is out of range; allowed are 1280 to 65000 bytes, and 0 for off"),
        (
            "skip = [\"a/b\"]",
            "skip: \"a/b\" is not an interface name: it may not hold spaces, \"/\" or \":\", nor be \".\" or \"..\"",
        ),
        ("skip = [\"a\", \"a\"]", "skip: a is given twice; leave one out"),
        ("skip = [\"eth0\"]", "skip: eth0 is an uplink; name it in one of the two only"),
        ("log = \"loud\"", "log: \"loud\" is not one of error, warn, info, debug, trace"),
        (
            "cluster_cidrs = [\"10.1.2.3/16\"]",
            "cluster_cidrs: 10.1.2.3/16 is not a network: it has bits set behind the prefix; the network is 10.1.0.0/16",
        ),
        (
            "cluster_cidrs = [\"10.1.0.0/16\", \"10.1.2.0/24\"]",
            "cluster_cidrs: 10.1.2.0/24 and 10.1.0.0/16 overlap: 10.1.2.0/24 lies inside 10.1.0.0/16; leave 10.1.2.0/24 out",
        ),
    ] {
        assert_eq!(complaint(lines), format!("{FILE}:3: {expected}"), "{lines}");
    }
}

#[test]
fn uplinks_are_checked_against_the_bridge_and_the_limit() {
    let sentence = |uplinks: &str| load(&format!("bridge = \"cbr0\"\nuplinks = {uplinks}")).unwrap_err().to_string();
    assert!(
        sentence("[\"cbr0\"]")
            .ends_with("uplinks: \"cbr0\" is the bridge; an uplink is an interface of its own towards other nodes")
    );
    let nine: Vec<_> = (0..9).map(|n| format!("eth{n}")).collect();
    assert!(sentence(&format!("{nine:?}")).ends_with("uplinks: 9 uplinks are given and at most 8 are supported"));
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_lines() {
    let all = complaints("workers = 99\nframes = 1\ncolour = 1\nlog = 5\ncluster_cidrs = [\n \"x\",\n \"10.0.0.0\"]");
    let places: Vec<_> = all.iter().map(|text| text.split(": ").next().unwrap().rsplit(':').next().unwrap()).collect();
    assert_eq!(places, ["3", "4", "5", "6", "8", "9"]);
}

#[test]
fn workers_are_spread_over_the_allowed_cpus() {
    let config = |lines: &str| load(&format!("bridge = \"b\"\nuplinks = [\"u\"]\n{lines}")).unwrap();
    assert_eq!(config("cpus = \"2,0\"").cpus, [2, 0]);
    assert_eq!(config("cpus = \"2,0\"\nworkers = 1").cpus, [2]);
    assert_eq!(config("workers = 2").cpus, [0, 1]);
    let shared = config("workers = 4");
    assert_eq!(shared.cpus, [0, 1, 2, 0]);
    assert_eq!(shared.notes, ["4 workers share 3 CPUs (0-2), which costs speed; name fewer workers"]);
}

#[test]
fn large_frames_are_off_unless_asked_for() {
    let large = |lines: &str| load(&format!("bridge = \"b\"\nuplinks = [\"u\"]\n{lines}")).unwrap().large;
    assert_eq!(large(""), Wish::default());
    assert_eq!(large("big_tcp = 0\nlocal_mtu = 0"), Wish::default());
    assert_eq!(large("big_tcp = 65537\nlocal_mtu = 1280"), Wish { big_tcp: Some(65_537), local_mtu: Some(1280) });
    assert_eq!(large("big_tcp = 524280\nlocal_mtu = 65000"), Wish { big_tcp: Some(524_280), local_mtu: Some(65_000) });
    let frame = crate::large::MAX_LOCAL_MTU as usize + 14;
    assert_eq!(frame, podlane_dataplane::limits::MAX_FRAME, "the largest frame that the sockets carry");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("podlane.toml");
    let sentence = || Config::load(Settings::default(), Some(&path), &host()).unwrap_err().to_string();
    assert!(sentence().starts_with(&format!("cannot read {}: No such file", path.display())));
    std::fs::write(&path, b"bridge = \"a\"\nlog = \"\xff\"\n").unwrap();
    assert_eq!(sentence(), format!("{}:2: this is not text in UTF-8", path.display()));
    std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(sentence().ends_with("is no configuration: it is larger than 1 MiB"));
}

/// Lines that look like the file: real keys and values of every type, right and wrong.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![4 => proptest::sample::select(KEYS.to_vec()).prop_map(str::to_owned), 1 => "[a-z_]{1,12}"];
    let atom = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        (0..40_000u32).prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        proptest::collection::vec(any::<char>(), 0..8).prop_map(|text| format!("{:?}", String::from_iter(text))),
        "[0-9a-f.:/,-]{0,12}".prop_map(|text| format!("{text:?}")),
        (any::<u32>(), 0..40u8).prop_map(|(ip, length)| format!("\"{}/{length}\"", std::net::Ipv4Addr::from_bits(ip))),
    ];
    let value = prop_oneof![
        2 => atom.clone(),
        2 => proptest::collection::vec(atom, 0..20).prop_map(|items| format!("[{}]", items.join(","))),
        1 => Just("{ a = 1 }".to_owned()),
        1 => Just("1979-05-27".to_owned()),
    ];
    (key, value).prop_map(|(key, value)| format!("{key} = {value}"))
}

proptest! {
    #[test]
    fn any_text_is_answered(text in proptest::collection::vec(any::<char>(), 0..200)) {
        let text = String::from_iter(text);
        if let Err(error) = load(&text) {
            prop_assert!(!error.to_string().is_empty() && !error.sentences().is_empty());
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, bytes).unwrap();
        let _ = Config::load(Settings::default(), Some(&path), &host());
    }

    /// What is accepted keeps every promise of [`Config`]'s documentation.
    #[test]
    fn what_is_accepted_is_valid(lines in proptest::collection::vec(line(), 0..6)) {
        let base = Settings {
            bridge: Some(option("cbr0".to_owned(), "--bridge")),
            uplinks: Some(vec![option("eth0".to_owned(), "--uplink")]),
            ..Settings::default()
        };
        match Config::from_text(base, &lines.join("\n"), Path::new(FILE), &host()) {
            Ok(config) => {
                prop_assert!((1..=16).contains(&config.workers()));
                prop_assert!(config.cpus.iter().all(|cpu| host().allowed_cpus.contains(cpu)));
                prop_assert!(config.frames.is_power_of_two() && (MIN_FRAMES..=MAX_FRAMES).contains(&config.frames));
                for (index, one) in config.cluster_cidrs.iter().enumerate() {
                    prop_assert_eq!(*one, one.trunc());
                    for other in &config.cluster_cidrs[index + 1..] {
                        prop_assert!(!one.contains(other) && !other.contains(one));
                    }
                }
            }
            Err(error) => prop_assert!(error.sentences().iter().all(|sentence| !sentence.contains('\n'))),
        }
    }
}

#[test]
fn every_path_has_its_own_word() {
    assert!(PathChoice::WORDS.iter().all(|(word, choice)| choice.word() == *word));
}

#[test]
fn what_is_in_force_can_be_written_down_and_read_again() {
    let text = "bridge = \"b\"\nuplinks = [\"u\"]\nport_paths = [\"v=kernel\"]\ncluster_cidrs = [\"10.0.0.0/8\"]\n\
                cpus = \"2,0\"\nlocal_mtu = 9000\nmetrics_address = \"off\"\nskip = [\"s\"]\nport_guards = [\"v=strict\"]\nbypass_netfilter = true\nlog = \"warn,libbpf=debug\"\n\
                log_format = \"json\"";
    let config = load(text).unwrap();
    let effective = config.effective();
    let mut table: toml::Table = serde_json::from_value(effective).unwrap();
    table.remove("file");
    let keys: std::collections::BTreeSet<_> = table.keys().map(String::as_str).collect();
    assert_eq!(keys, KEYS.into());
    assert_eq!(load(&table.to_string()).unwrap(), config);
}
