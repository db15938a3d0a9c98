//! Pods by name: from the runtime's CNI results and from aliases, in status, trace, top and metrics.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlane_tests::bed::{Bed, FOLLOW};
use podlane_tests::command::{self, wait_for};
use podlane_tests::testbed::{Family, repository};
use serde_json::{Value, json};

/// How long `podlane` may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A directory that goes with the case, however that ends.
struct Results(PathBuf);

impl Results {
    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Results(path))
    }

    /// What a runtime writes when a plugin has connected a pod.
    fn write(&self, file: &str, name: [&str; 2], interface: &str, address: IpAddr) -> Result<()> {
        let [namespace, pod] = name;
        let result = json!({
            "kind": "cniCacheV1",
            "ifName": "eth0",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", pod]],
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": "cbr0" },
                    { "name": interface },
                    { "name": "eth0", "sandbox": "/run/netns/cni-1" },
                ],
                "ips": [{ "address": format!("{address}/24"), "interface": 2 }],
            },
        });
        Ok(fs::write(self.0.join(file), result.to_string())?)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn podlane(bed: &Bed, words: &[&str]) -> Result<command::Output> {
    let mut podlane = bed.podlane(1)?;
    podlane.args(words).args(["--instance", &bed.instance(1)]);
    command::output(&mut podlane, ANSWER)
}

fn answer(bed: &Bed, words: &[&str]) -> Result<String> {
    let output = podlane(bed, words)?;
    ensure!(output.status.success(), "podlane {words:?}: {}{}", output.stdout, output.stderr);
    Ok(output.stdout)
}

/// Waits until the status tells these names of the pods' interfaces, each as namespace and pod.
fn are_told(bed: &Bed, expected: &[(&str, Option<[&str; 2]>)]) -> Result<()> {
    let told = |status: &Value, interface: &str| -> Option<[String; 2]> {
        let port = status["ports"].as_array()?.iter().find(|port| port["name"] == interface)?;
        Some([port["namespace"].as_str()?.to_owned(), port["pod"].as_str()?.to_owned()])
    };
    let what = format!("the status to tell {expected:?}");
    wait_for(&what, FOLLOW, || {
        let status: Value = serde_json::from_str(&answer(bed, &["status", "--json"])?)?;
        let right = |(interface, name): &(&str, Option<[&str; 2]>)| {
            told(&status, interface) == name.map(|words| words.map(str::to_owned))
        };
        Ok(expected.iter().all(right).then_some(()))
    })
}

fn set_alias(bed: &Bed, alias: &str) -> Result<()> {
    bed.exec("node1", &["ip", "link", "set", "veth-pod1", "alias", alias]).map(drop)
}

/// Names come, change, win over each other and go; every command knows them.
pub fn pods_by_name(bed: &mut Bed) -> Result<()> {
    let [one, two, three] = ["pod1", "pod2", "pod3"].map(|pod| bed.address(pod, Family::V4));
    let results = Results::make(bed.cni_cache(1))?;
    results.write("cbr0-1-eth0", ["shop", "cart-0"], "veth-pod1", one?)?;
    results.write("cbr0-2-eth0", ["kube-system", "coredns-5d78c9869d-x7k2p"], "veth-pod2", two?)?;
    // One that wants to be obeyed by a terminal, and one that nobody should wait for.
    results.write("cbr0-3-eth0", ["shop", "\u{1b}[2Jcart"], "veth-pod3", three?)?;
    bed.exec("node1", &["mkfifo", path(&results.0.join("pipe"))?])?;
    let dns = ["kube-system", "coredns-5d78c9869d-x7k2p"];
    are_told(bed, &[("veth-pod1", Some(["shop", "cart-0"])), ("veth-pod2", Some(dns)), ("veth-pod3", None)])?;
    set_alias(bed, "shop/web-0")?;
    are_told(bed, &[("veth-pod1", Some(["shop", "web-0"])), ("veth-pod2", Some(dns))])?;
    commands_know_them(bed)?;

    set_alias(bed, "kube-system/coredns-5d78c9869d-x7k2p")?;
    are_told(bed, &[("veth-pod1", Some(dns)), ("veth-pod2", Some(dns))])?;
    let two = podlane(bed, &["trace", "veth-pod1", dns[1]])?;
    ensure!(
        !two.status.success() && two.stderr.contains("veth-pod1, veth-pod2"),
        "a name of two pods: {}{}",
        two.stdout,
        two.stderr
    );
    set_alias(bed, "the first pod of all")?;
    are_told(bed, &[("veth-pod1", Some(["shop", "cart-0"]))])?;
    set_alias(bed, "")?;
    drop(results);
    are_told(bed, &[("veth-pod1", None), ("veth-pod2", None)])
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}

/// pod1 is `shop/web-0`, pod2 the DNS server.
fn commands_know_them(bed: &Bed) -> Result<()> {
    let table = answer(bed, &["status"])?;
    ensure!(table.contains("pod shop/web-0 (the interface's alias)") && !table.contains('\u{1b}'), "{table}");
    for (from, to) in [("web-0", "kube-system/coredns-5d78c9869d-x7k2p"), ("shop/web-0", "coredns-5d78c9869d-x7k2p")] {
        let told: Value = serde_json::from_str(&answer(bed, &["trace", from, to, "--json"])?)?;
        ensure!(
            told["handled_by"] == "podlane" && told["ingress"] == "veth-pod1" && told["egress"] == "veth-pod2",
            "{from} to {to}: {told}"
        );
    }
    let nobody = podlane(bed, &["trace", "shop/cart-0", "web-0"])?;
    ensure!(!nobody.status.success() && nobody.stderr.contains("\"shop/cart-0\" is neither"), "{}", nobody.stderr);
    let top = answer(bed, &["top", "--once", "--interval", "0.2"])?;
    ensure!(top.lines().any(|line| line.starts_with("shop/web-0 ")) && top.contains("WORKER"), "{top}");
    let get = "exec 3<>/dev/tcp/127.0.0.1/9477 && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let metrics = bed.exec("node1", &["bash", "-c", get])?;
    ensure!(metrics.contains("namespace=\"shop\",pod=\"web-0\""), "{metrics}");
    Ok(())
}

/// What a real daemon says follows the documented schema.
pub fn status_schema(bed: &mut Bed) -> Result<()> {
    let way = bed.way("pod1", "pod2", Family::V4)?;
    bed.warm_up(&way)?;
    let documented = fs::read_to_string(repository().join("docs/status.schema.json"))?;
    let validator = jsonschema::validator_for(&serde_json::from_str(&documented)?)?;
    let status: Value = serde_json::from_str(&answer(bed, &["status", "--json"])?)?;
    let complaints: Vec<_> = validator.iter_errors(&status).map(|error| error.to_string()).collect();
    ensure!(complaints.is_empty(), "{complaints:?} in {status}");
    let mut printed = bed.podlane(1)?;
    let printed = command::run(printed.args(["status", "--schema"]), ANSWER)?;
    ensure!(printed == documented, "`podlane status --schema` prints something else than docs/status.schema.json");
    let blocks = "timeout -s INT 3 \"$0\" status --watch 0.5 --json --instance \"$1\" | head -3 | wc -l";
    let binary = podlane_tests::daemon::binary()?;
    let lines = bed.exec("node1", &["bash", "-c", blocks, path(&binary)?, &bed.instance(1)])?;
    ensure!(lines.trim() == "3", "{lines} answers instead of 3");
    Ok(())
}
