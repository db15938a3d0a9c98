//! Everything that can be read of a network namespace's set-up, so that two times can be compared: what a daemon leaves behind,
//! or takes away, shows as a difference with a name.
//!
//! What changes by itself is left out by name ([`VOLATILE`], [`VOLATILE_SYSCTLS`]), and nothing else is: counters, timers,
//! and how sure the kernel is of a neighbour at this moment.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;
use crate::testbed::Testbed;

/// Hundreds of small programs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Differences that a failure lists.
const LISTED: usize = 40;

/// Fields of iproute2's JSON that change by themselves.
const VOLATILE: [&str; 10] = [
    "stats64",
    "stats",
    // Of a bridge and of its members.
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    // Of a route that a router's advertisement or a Packet Too Big made.
    "expires",
];
/// Fields of a neighbour that say what the kernel has heard of it lately: REACHABLE, STALE and so on, and whether it said that it
/// is a router.
const HEARD: [&str; 2] = ["state", "router"];

/// Sysctls that count.
const VOLATILE_SYSCTLS: [&str; 1] = ["net/netfilter/nf_conntrack_count"];

/// Each section is what a command prints. Those that a machine or an interface has no answer for are empty.
const LOOK: &str = r#"
look() { echo "@@ $1"; shift; "$@" 2>/dev/null; echo; }
look link ip -d -j link
look address ip -d -j addr
look group ip -j maddr
look route4 ip -d -j -4 route show table all
look route6 ip -d -j -6 route show table all
look rule4 ip -d -j -4 rule
look rule6 ip -d -j -6 rule
look neighbour ip -d -j neigh
look proxy ip -d -j neigh show proxy
look nexthop ip -d -j nexthop
look fdb bridge -d -j fdb
look vlan bridge -j vlan
look port bridge -d -j link
look mdb bridge -d -j mdb
look qdisc tc -j qdisc
look policy ip xfrm policy
look nft nft -s -a list ruleset
if command -v iptables-save >/dev/null; then
    for tables in iptables-save ip6tables-save; do
        look $tables sh -c "$tables 2>/dev/null | sed '/^#/d; s/ \[[0-9]*:[0-9]*\]\$//'"
    done
fi
for path in /sys/class/net/*; do
    name=${path##*/}
    look "offload $name" ethtool -k "$name"
    look "channels $name" ethtool -l "$name"
    look "coalescing $name" ethtool -c "$name"
    look "rings $name" ethtool -g "$name"
    look "filter-in $name" tc -j filter show dev "$name" ingress
    look "filter-out $name" tc -j filter show dev "$name" egress
done
look sysfs grep -srH '' /sys/class/net/*/flags /sys/class/net/*/ifalias /sys/class/net/*/tx_queue_len \
    /sys/class/net/*/gro_flush_timeout /sys/class/net/*/napi_defer_hard_irqs /sys/class/net/*/threaded \
    /sys/class/net/*/queues
look sysctl sh -c 'cd /proc/sys; find net -type f -perm -444 -exec grep -asH "" {} +'
"#;

/// What a namespace is like: values by what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    place: String,
    values: BTreeMap<String, String>,
}

impl NodeState {
    /// Reads a place of the testbed.
    ///
    /// # Errors
    /// If that fails.
    pub fn read(testbed: &Testbed, place: &str) -> Result<NodeState> {
        // This one shows the namespace's own /sys.
        let mut look = Command::new("ip");
        look.args(["netns", "exec", &testbed.namespace(place), "sh", "-c", LOOK]);
        let text = command::run(&mut look, DEADLINE)?;
        let mut values = BTreeMap::new();
        for section in text.split("@@ ").skip(1) {
            let (name, body) = section.split_once('\n').context("a section has a name")?;
            read_section(name, body.trim(), &mut values).with_context(|| format!("{place}: {name}"))?;
        }
        Ok(NodeState { place: place.to_owned(), values })
    }

    /// What is not the same later; one line each. Empty: nothing.
    pub fn differences(&self, later: &NodeState) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.values.keys().chain(later.values.keys().filter(|name| !self.values.contains_key(*name))) {
            let (before, after) = (self.values.get(name), later.values.get(name));
            if before != after && found.len() < LISTED {
                let word = |value: Option<&String>| value.map_or("nothing", |value| value.as_str()).to_owned();
                found.push(format!("{}: {name}: {} → {}", self.place, word(before), word(after)));
            }
        }
        found
    }

    /// A value, for example of `offload eth0: tcp-segmentation-offload`.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// How many values were read: a comparison of nothing is none.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

fn read_section(name: &str, body: &str, values: &mut BTreeMap<String, String>) -> Result<()> {
    if body.starts_with('[') && !name.starts_with("rings") && !name.starts_with("channels") {
        let document: Value = serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?;
        flatten(name, &without_volatile(document), values);
        return Ok(());
    }
    for (number, line) in body.lines().enumerate() {
        // "PATH:VALUE" and "name: value" have names; the rest is known by its place.
        let (key, value) = match line.split_once(':').filter(|_| !name.starts_with("nft") && !name.contains("tables")) {
            Some((key, value)) if name == "sysctl" || name == "sysfs" => (key.to_owned(), value),
            Some((key, value)) => (format!("{number} {}", key.trim()), value.trim()),
            None => (number.to_string(), line),
        };
        if VOLATILE_SYSCTLS.contains(&key.as_str()) {
            continue;
        }
        // Some have several lines.
        let all = values.entry(format!("{name}: {key}")).or_default();
        all.push_str(value);
        all.push(' ');
    }
    Ok(())
}

/// Lists are sorted, because the kernel promises no order.
fn without_volatile(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            // The bridge's stations and ports have a state as well, which is a word and stays.
            let is_neighbour = fields.get("state").is_some_and(Value::is_array);
            let goes = |name: &str| VOLATILE.contains(&name) || is_neighbour && HEARD.contains(&name);
            let fields = fields.into_iter().filter(|(name, _)| !goes(name));
            Value::Object(fields.map(|(name, value)| (name, without_volatile(value))).collect())
        }
        Value::Array(items) => {
            let items = items.into_iter().filter(|item| !is_hearsay(item)).map(without_volatile);
            // iproute2 lists what it was not asked for as nothing.
            let mut items: Vec<Value> = items.filter(|item| *item != json!({})).collect();
            items.sort_by_cached_key(Value::to_string);
            Value::Array(items)
        }
        other => other,
    }
}

/// A neighbour that never answered, or one by a link-local address: the kernel's own probes, whenever it sends them, leave those
/// at both ends.
fn is_hearsay(item: &Value) -> bool {
    let Some(states) = item["state"].as_array() else { return false };
    let unanswered = states.iter().any(|state| state == "FAILED" || state == "INCOMPLETE");
    unanswered || item["dst"].as_str().is_some_and(|address| address.starts_with("fe80:"))
}

/// Lists of things are flattened by what they are, so that one that is missing is one line.
fn flatten(name: &str, value: &Value, values: &mut BTreeMap<String, String>) {
    match value {
        Value::Array(items) => {
            for item in items {
                match item["ifname"].as_str().filter(|_| name == "link" || name == "address") {
                    Some(interface) => flatten(&format!("{name}: {interface}"), item, values),
                    None => {
                        let count = values.entry(format!("{name}: {item}")).or_default();
                        count.push('|');
                    }
                }
            }
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| flatten(&format!("{name}: {field}"), value, values));
        }
        other => {
            values.insert(name.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sections: &[(&str, &str)]) -> NodeState {
        let mut values = BTreeMap::new();
        for (name, body) in sections {
            read_section(name, body, &mut values).unwrap();
        }
        NodeState { place: "node1".to_owned(), values }
    }

    #[test]
    fn what_changes_by_itself_is_no_difference() {
        let neighbours =
            |state: &str| format!(r#"[{{"dst":"10.0.0.1","lladdr":"02:00:00:00:00:01","state":["{state}"]}}]"#);
        let before = state(&[("neighbour", &neighbours("STALE")), ("sysctl", "net/netfilter/nf_conntrack_count:7")]);
        let after = state(&[("neighbour", &neighbours("REACHABLE")), ("sysctl", "net/netfilter/nf_conntrack_count:9")]);
        assert!(before.differences(&after).is_empty(), "{:?}", before.differences(&after));
        let unanswered = state(&[("neighbour", &neighbours("FAILED"))]);
        assert!(state(&[("neighbour", "[]")]).differences(&unanswered).is_empty());
    }

    #[test]
    fn what_is_set_up_is_compared_by_name() {
        let link =
            |mtu: u32| format!(r#"[{{"ifname":"eth0","mtu":{mtu},"linkinfo":{{"info_data":{{"gc_timer":{mtu}}}}}}}]"#);
        let offload = |word: &str| format!("Features for eth0:\ntcp-segmentation-offload: {word}");
        let read = |mtu, word: &str, sysctl: &str| {
            state(&[("link", &link(mtu)), ("offload eth0", &offload(word)), ("sysctl", sysctl)])
        };
        let before = read(1500, "on", "net/ipv4/ip_forward:1");
        let found = before.differences(&read(9000, "off", "net/ipv4/ip_forward:0")).join("\n");
        assert_eq!(found.lines().count(), 3, "{found}");
        assert!(found.contains("link: eth0: mtu: 1500 → 9000"), "{found}");
        assert!(found.contains("tcp-segmentation-offload: on  → off"), "{found}");
        assert_eq!(before.differences(&before), Vec::<String>::new());
    }

    #[test]
    fn something_more_or_less_is_one_line() {
        let two = r#"[{"dst":"10.0.0.0/8","dev":"eth0"},{"dst":"default","dev":"eth0"}]"#;
        let one = r#"[{"dst":"default","dev":"eth0"}]"#;
        let found = state(&[("route4", two)]).differences(&state(&[("route4", one)]));
        assert!(found.len() == 1 && found[0].contains("10.0.0.0/8") && found[0].ends_with("→ nothing"), "{found:?}");
        let nft = |rule: &str| state(&[("nft", &format!("table ip x {{ # handle 1\n{rule}\n}}"))]);
        assert_eq!(nft("counter").differences(&nft("accept")).len(), 1);
    }
}
