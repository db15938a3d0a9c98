//! What the node itself tells: its kernel, its interfaces and routes, its processors and limits, and the programs and maps
//! that the kernel holds.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo, MapInfoIter, ProgInfoIter};
use serde_json::{Value, json};

use super::archive::Content;
use super::source::{self, Programs, short};

/// Programs, maps or links of the kernel that are listed.
const MAX_OBJECTS: usize = 2000;
/// Threads of the daemon that are listed.
const MAX_THREADS: usize = 64;

/// Programs to ask, and the files for their answers.
pub const PROGRAMS: [(&str, &[&str]); 17] = [
    ("kernel/links.json", &["ip", "-s", "-d", "-j", "link"]),
    ("kernel/addresses.json", &["ip", "-j", "address"]),
    ("kernel/rules-ipv4.txt", &["ip", "-4", "rule"]),
    ("kernel/rules-ipv6.txt", &["ip", "-6", "rule"]),
    ("kernel/routes-ipv4.txt", &["ip", "-4", "-d", "route", "show", "table", "all"]),
    ("kernel/routes-ipv6.txt", &["ip", "-6", "-d", "route", "show", "table", "all"]),
    ("kernel/neighbours.txt", &["ip", "-s", "neigh"]),
    ("kernel/nexthops.txt", &["ip", "-d", "nexthop"]),
    ("kernel/netns.txt", &["ip", "netns", "list-id"]),
    ("kernel/bridge-links.txt", &["bridge", "-d", "link"]),
    ("kernel/bridge-fdb.txt", &["bridge", "-d", "fdb"]),
    ("kernel/bridge-vlans.txt", &["bridge", "vlan"]),
    ("kernel/qdiscs.txt", &["tc", "-s", "-d", "qdisc"]),
    ("kernel/xdp-sockets.txt", &["ss", "-f", "xdp", "-a", "-e", "-n"]),
    ("machine/cpus.txt", &["lscpu"]),
    ("machine/pressure.txt", &["tail", "-n", "+1", "/proc/pressure/cpu", "/proc/pressure/memory"]),
    ("machine/services.txt", &["systemctl", "--no-pager", "show", "podlane", "-p", SERVICE]),
];

/// What systemd knows of the service; nothing of its environment.
const SERVICE: &str = "LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStartTimestamp,ExecMainExitTimestamp,\
                       ExecMainCode,ExecMainStatus,MainPID,FragmentPath,LimitMEMLOCK,MemoryMax,MemoryCurrent,CPUQuotaPerSecUSec";

/// Files to copy, and their names.
pub const FILES: [(&str, &str); 8] = [
    ("machine/os-release.txt", "/etc/os-release"),
    ("machine/interrupts.txt", "/proc/interrupts"),
    ("machine/softirqs.txt", "/proc/softirqs"),
    ("machine/softnet.txt", "/proc/net/softnet_stat"),
    ("machine/memory.txt", "/proc/meminfo"),
    ("machine/load.txt", "/proc/loadavg"),
    ("kernel/snmp.txt", "/proc/net/snmp"),
    ("kernel/netstat.txt", "/proc/net/netstat"),
];

/// Switches of the kernel that decide what becomes of packets and programs, below /proc/sys.
const SWITCHES: [&str; 32] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/proxy_arp",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/neigh/default/gc_thresh1",
    "net/ipv4/neigh/default/gc_thresh2",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv4/neigh/default/base_reachable_time_ms",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/netdev_budget",
    "net/core/netdev_budget_usecs",
    "net/core/netdev_max_backlog",
    "net/core/dev_weight",
    "net/core/busy_poll",
    "net/core/optmem_max",
    "kernel/unprivileged_bpf_disabled",
    "kernel/bpf_stats_enabled",
    "kernel/sched_autogroup_enabled",
    "kernel/sched_rt_runtime_us",
];

/// What is told of an interface besides.
const INTERFACE_SWITCHES: [&str; 4] = [
    "net/ipv4/conf/IFACE/rp_filter",
    "net/ipv4/conf/IFACE/forwarding",
    "net/ipv6/conf/IFACE/forwarding",
    "net/ipv6/conf/IFACE/disable_ipv6",
];

/// Versions of everything that is involved.
pub fn versions(programs: Programs) -> Content {
    let kernel = nix::sys::utsname::uname();
    let word =
        |word: Option<&std::ffi::OsStr>| word.map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let (release, version, machine) = match &kernel {
        Ok(told) => (word(Some(told.release())), word(Some(told.version())), word(Some(told.machine()))),
        Err(error) => (error.desc().to_owned(), String::new(), String::new()),
    };
    let (major, minor) = crate::bpf::libbpf_version();
    let mut text = format!(
        "podlane {}\nstatus schema {}\nkernel {release} {version} {machine}\nlibbpf {major}.{minor}\n",
        env!("CARGO_PKG_VERSION"),
        crate::status::SCHEMA,
    );
    if let Ok(program) = std::env::current_exe() {
        let _ = writeln!(text, "program {}", program.display());
    }
    for words in [["ip", "-V"], ["ethtool", "--version"], ["nft", "--version"], ["systemctl", "--version"]] {
        let told = programs.run(&words).map(|content| content.bytes);
        let told = told.map(|bytes| String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned());
        let _ = writeln!(text, "{}", told.unwrap_or_else(|why| why));
    }
    Content::from(text)
}

/// The switches, in the manner of sysctl(8); those of the named interfaces as well.
pub fn switches(interfaces: &[String]) -> Content {
    let mut text = String::new();
    let of_interfaces = interfaces
        .iter()
        .flat_map(|interface| INTERFACE_SWITCHES.iter().map(move |switch| switch.replace("IFACE", interface)));
    for switch in SWITCHES.iter().map(|switch| (*switch).to_owned()).chain(of_interfaces) {
        let value = match source::file(&Path::new("/proc/sys").join(&switch)) {
            Ok(content) => String::from_utf8_lossy(&content.bytes).trim().replace('\t', " "),
            Err(why) => format!("({why})"),
        };
        let _ = writeln!(text, "{switch} = {value}");
    }
    Content::from(text)
}

/// Which processors there are for whom.
pub fn processors() -> Content {
    let mut text = String::new();
    for name in ["online", "possible", "isolated", "nohz_full", "smt/active"] {
        if let Some(value) = short(Path::new("/sys/devices/system/cpu").join(name)) {
            let _ = writeln!(text, "cpu {name}: {value}");
        }
    }
    for name in ["current_clocksource", "available_clocksource"] {
        if let Some(value) = short(Path::new("/sys/devices/system/clocksource/clocksource0").join(name)) {
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    if let Some(value) = short("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        let _ = writeln!(text, "governor of cpu 0: {value}");
    }
    Content::from(text)
}

/// The limits of a process: resource limits, and those of its control group.
pub fn limits(pid: Option<i32>) -> Result<Content, String> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let mut content = source::file(&Path::new("/proc").join(&process).join("limits"))?;
    let mut text = String::from("\n");
    let groups = short(Path::new("/proc").join(&process).join("cgroup")).unwrap_or_default();
    for group in groups.lines() {
        let _ = writeln!(text, "cgroup {group}");
        let Some(path) = group.strip_prefix("0::/") else { continue };
        for file in ["memory.max", "memory.high", "memory.current", "cpu.max", "cpuset.cpus.effective", "pids.max"] {
            if let Some(value) = short(Path::new("/sys/fs/cgroup").join(path).join(file)) {
                let _ = writeln!(text, "  {file} {value}");
            }
        }
    }
    content.bytes.extend_from_slice(text.as_bytes());
    Ok(content)
}

/// What the daemon's threads are at. A daemon that hangs does not answer, but this is told by the kernel.
pub fn threads(pid: i32) -> Result<Content, String> {
    let process = Path::new("/proc").join(pid.to_string());
    let tasks = std::fs::read_dir(process.join("task")).map_err(|_| "the process is gone".to_owned())?;
    let mut text = String::new();
    for task in tasks.flatten().take(MAX_THREADS) {
        let tell = |name: &str| short(task.path().join(name)).unwrap_or_else(|| "?".to_owned());
        let _ = writeln!(text, "thread {} {}", task.file_name().to_string_lossy(), tell("comm"));
        let status = tell("status");
        let wanted = ["State:", "Cpus_allowed_list:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        for line in status.lines().filter(|line| wanted.iter().any(|word| line.starts_with(word))) {
            let _ = writeln!(text, "  {}", line.replace('\t', " "));
        }
        let _ = writeln!(text, "  waits in: {}\n  schedstat: {}", tell("wchan"), tell("schedstat"));
        for line in tell("stack").lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    Ok(Content::from(text))
}

/// What the kernel says of the daemon's process; not its environment.
pub fn process(pid: i32) -> Result<Content, String> {
    let process = Path::new("/proc").join(pid.to_string());
    let mut content = source::file(&process.join("status")).map_err(|_| "the process is gone".to_owned())?;
    let mut text = String::from("\n");
    let words = source::file(&process.join("cmdline")).map(|content| content.bytes).unwrap_or_default();
    let words: Vec<_> = words.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    let _ = writeln!(text, "command line: {}", words.join(" ").trim());
    for name in ["net", "mnt"] {
        let (its, ours) = namespaces(pid, name);
        let same = if its == ours { "the same as" } else { "ANOTHER than" };
        let _ = writeln!(text, "{name} namespace: {}, {same} that of this report", its.display());
    }
    let descriptors = std::fs::read_dir(process.join("fd")).map(Iterator::count);
    let _ =
        writeln!(text, "open descriptors: {}", descriptors.map_or_else(|_| "?".to_owned(), |count| count.to_string()));
    content.bytes.extend_from_slice(text.as_bytes());
    Ok(content)
}

/// The namespaces of this kind of a process and of this one.
fn namespaces(pid: i32, kind: &str) -> (PathBuf, PathBuf) {
    let of = |process: &str| Path::new("/proc").join(process).join("ns").join(kind).read_link().unwrap_or_default();
    (of(&pid.to_string()), of("self"))
}

/// Whether a process is in another network namespace, as far as that can be seen.
pub fn is_elsewhere(pid: i32) -> bool {
    let (its, ours) = namespaces(pid, "net");
    its != ours && !its.as_os_str().is_empty()
}

/// Numbers of the programs, maps and links that a process holds open.
#[derive(Debug, Default)]
struct Held {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Held {
    fn by(pid: Option<i32>) -> Held {
        let mut held = Held::default();
        let Some(pid) = pid else { return held };
        let directory = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        for file in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            for line in text.lines() {
                let Some((name, number)) = line.split_once(':') else { continue };
                let Ok(number) = number.trim().parse() else { continue };
                match name {
                    "prog_id" => held.programs.insert(number),
                    "map_id" => held.maps.insert(number),
                    "link_id" => held.links.insert(number),
                    _ => false,
                };
            }
        }
        held
    }
}

/// Programs, maps and links that the kernel holds, and which of them are the daemon's. Their content is not read.
pub fn bpf(pid: Option<i32>) -> Result<Content, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("the kernel tells only root; run this as root".to_owned());
    }
    let held = Held::by(pid);
    let programs: Vec<Value> = ProgInfoIter::default()
        .take(MAX_OBJECTS)
        .map(|program| {
            json!({
                "id": program.id, "daemon": held.programs.contains(&program.id),
                "name": program.name.to_string_lossy(), "type": format!("{:?}", program.ty),
                "tag": program.tag.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                "loaded_s_after_boot": program.load_time.as_secs(), "maps": program.map_ids,
                "verified_instructions": program.verified_insns, "runs": program.run_cnt, "run_ns": program.run_time_ns,
            })
        })
        .collect();
    let maps: Vec<Value> = MapInfoIter::default()
        .take(MAX_OBJECTS)
        .map(|map| {
            json!({
                "id": map.id, "daemon": held.maps.contains(&map.id), "name": map.name.to_string_lossy(),
                "type": format!("{:?}", map.ty), "key_bytes": map.key_size, "value_bytes": map.value_size,
                "entries_at_most": map.max_entries, "flags": map.map_flags,
            })
        })
        .collect();
    let links: Vec<Value> = LinkInfoIter::default()
        .take(MAX_OBJECTS)
        .map(|link| {
            let (kind, ifindex) = match &link.info {
                LinkTypeInfo::Xdp(link) => ("xdp", Some(link.ifindex)),
                LinkTypeInfo::Tcx(link) => ("tcx", Some(link.ifindex)),
                LinkTypeInfo::Netkit(link) => ("netkit", Some(link.ifindex)),
                _ => ("other", None),
            };
            json!({
                "id": link.id, "daemon": held.links.contains(&link.id), "program": link.prog_id, "kind": kind,
                "ifindex": ifindex,
            })
        })
        .collect();
    let all = json!({ "programs": programs, "maps": maps, "links": links });
    serde_json::to_vec_pretty(&all).map(Content::from).map_err(|error| error.to_string())
}

/// Driver and features of an interface.
pub fn interface(programs: Programs, name: &str) -> Result<Content, String> {
    let mut whole = Content::default();
    for option in ["-i", "-k", "-l", "-g", "-S"] {
        let title = format!("== ethtool {option} {name}\n");
        match programs.run(&["ethtool", option, name]) {
            Ok(mut content) => {
                whole.bytes.extend_from_slice(title.as_bytes());
                whole.bytes.append(&mut content.bytes);
            }
            // Most virtual interfaces have no rings, channels or statistics; that they have no driver is wrong.
            Err(why) if option == "-i" => return Err(why),
            Err(why) => whole.bytes.extend_from_slice(format!("{title}({why})\n").as_bytes()),
        }
    }
    Ok(whole)
}

/// How many rules each chain of nft has. What they say is the owner's business.
pub fn nft_counts(programs: Programs) -> Result<Content, String> {
    let listed = programs.run(&["nft", "-j", "list", "ruleset"])?;
    count_nft(&listed.bytes).map(Content::from)
}

/// The rules of each chain in nft's JSON.
pub(super) fn count_nft(listed: &[u8]) -> Result<String, String> {
    let listed: Value =
        serde_json::from_slice(listed).map_err(|error| format!("nft's answer cannot be read: {error}"))?;
    let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
    let word = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let rules = |chain: &Value| {
        let is_in = |rule: &Value| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule["chain"] == chain["name"]
        };
        objects.iter().filter(|object| object.get("rule").is_some_and(is_in)).count()
    };
    let mut text = String::new();
    for chain in objects.iter().filter_map(|object| object.get("chain")) {
        let (family, table, name) = (word(chain, "family"), word(chain, "table"), word(chain, "name"));
        let hook = chain["hook"].as_str().map_or_else(String::new, |hook| {
            format!(" at {hook} priority {}, policy {}", chain["prio"], word(chain, "policy"))
        });
        let _ = writeln!(text, "{family} {table} {name}{hook}: {} rules", rules(chain));
    }
    Ok(if text.is_empty() { "no chains\n".to_owned() } else { text })
}

/// How many rules each chain of iptables has; `program` is `iptables-save` or `ip6tables-save`.
pub fn iptables_counts(programs: Programs, program: &str) -> Result<Content, String> {
    let saved = programs.run(&[program])?;
    Ok(Content::from(count_iptables(&String::from_utf8_lossy(&saved.bytes))))
}

/// The rules of each chain in what iptables-save prints.
pub(super) fn count_iptables(saved: &str) -> String {
    let mut text = String::new();
    for table in saved.split("\n*").map(|table| table.trim_start_matches('*')) {
        let name = table.lines().next().unwrap_or_default();
        for chain in table.lines().filter_map(|line| line.strip_prefix(':')) {
            let mut words = chain.split(' ');
            let (chain, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rules = table.lines().filter(|line| line.split(' ').take(2).eq(["-A", chain])).count();
            let _ = writeln!(text, "{name} {chain} policy {policy}: {rules} rules");
        }
    }
    if text.is_empty() { "no chains\n".to_owned() } else { text }
}
