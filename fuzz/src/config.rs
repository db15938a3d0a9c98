//! The configuration: any text as its file.

use std::path::Path;

use podlane::config::{Config, Host, MAX_FRAMES, MIN_FRAMES, Settings};
use podlane_dataplane::limits;

use crate::Seeds;

/// Reads it and judges it as a whole, on a machine with four CPUs of which three are allowed.
///
/// # Panics
/// If a configuration that is taken breaks a limit, or one that is refused has no sentence.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let host = Host { allowed_cpus: vec![0, 1, 3], online_cpus: vec![0, 1, 2, 3] };
    match Config::from_text(Settings::default(), text, Path::new("podlane.toml"), &host) {
        Ok(config) => check(&config),
        Err(error) => {
            assert!(!error.sentences().is_empty());
            assert!(error.sentences().iter().all(|sentence| !sentence.is_empty()));
        }
    }
}

fn check(config: &Config) {
    assert!(config.frames.is_power_of_two() && (MIN_FRAMES..=MAX_FRAMES).contains(&config.frames));
    assert!((1..=limits::MAX_WORKERS).contains(&config.workers()));
    let mut cpus = config.cpus.clone();
    cpus.sort_unstable();
    cpus.dedup();
    assert!(cpus.len() == config.cpus.len() && cpus.iter().all(|cpu| [0, 1, 3].contains(cpu)));
    for (index, one) in config.cluster_cidrs.iter().enumerate() {
        assert_eq!(one.trunc(), *one);
        assert!(one.prefix_len() > 0);
        let others = &config.cluster_cidrs[..index];
        assert!(others.iter().all(|other| !other.contains(&one.network()) && !one.contains(&other.network())));
    }
    let of_family = |ipv4: bool| config.cluster_cidrs.iter().filter(|one| one.addr().is_ipv4() == ipv4).count();
    assert!(of_family(true).max(of_family(false)) <= limits::MAX_CLUSTER_CIDRS);
    assert!(!config.uplinks.contains(&config.bridge));
    assert!(config.effective().is_object());
}

/// The file with every setting, and one for each kind of mistake.
pub fn seeds() -> Seeds {
    let default = include_str!("../../packaging/podlane.toml");
    // The same with every setting in force: in the file they are comments.
    let set: String = default.lines().filter_map(setting).map(|line| format!("{line}\n")).collect();
    let cidrs = r#"bridge = "a"
uplinks = ["b"]
cluster_cidrs = ["10.0.0.0/8", "fd00::/16", "10.1.0.0/16", "1.2.3.4", "0.0.0.0/0"]
"#;
    let everything = r#"bridge = "a"
uplinks = ["b"]
cluster_cidrs = ["10.0.0.0/8", "fd00::/16"]
big_tcp = 262144
local_mtu = 65000
port_paths = ["v1=kernel", "v2=auto"]
log = "info,podlane::mirror=debug"
log_format = "json"
metrics_address = "[::1]:9477"
cni_cache = "/var/lib/cni/results"
skip = ["veth0"]
xdp_mode = "generic"
checksum_metadata = "off"
"#;
    let mistakes = r#"bridge = 1
uplink = ["x y"]
instance = "A"
path = "fast"
frames = -1
idle_spin_us = 9999999
"#;
    let texts = [
        ("packaged", default),
        ("set", &set),
        ("least", "bridge = \"cbr0\"\nuplinks = []\n"),
        ("cidrs", cidrs),
        ("cpus", "bridge = \"a\"\nuplinks = [\"b\"]\nworkers = 2\ncpus = \"0-1,3\"\nframes = 4096\n"),
        ("everything", everything),
        ("mistakes", mistakes),
        ("no-toml", "bridge = \"a\nuplinks = [\n[section]\n"),
    ];
    texts.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into()
}

/// The setting that a line shows in a comment.
fn setting(line: &str) -> Option<&str> {
    let shown = line.strip_prefix('#').unwrap_or(line).trim();
    let (key, _) = shown.split_once(" = ")?;
    (!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')).then_some(shown)
}
