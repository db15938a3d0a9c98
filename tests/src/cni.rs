//! The CNI plugin, called as a container runtime calls it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::daemon;
use crate::testbed::{Family, Testbed};

/// The first address that the plugin may give: the testbed's own pods have smaller ones.
const FIRST_HOST: usize = 100;

/// The plugin in one node, with pods of its own. What it made is removed with it.
pub struct Plugin<'a> {
    testbed: &'a Testbed,
    node: usize,
    /// Where it keeps its reservations.
    pub data: PathBuf,
    pods: Vec<String>,
}

/// How a call ended.
#[derive(Debug)]
pub struct Answer {
    /// Whether it succeeded.
    pub success: bool,
    /// What it said on its standard output; null for nothing.
    pub said: Value,
    /// What it said on its standard error.
    pub stderr: String,
}

impl Answer {
    /// What a call that must succeed said.
    ///
    /// # Errors
    /// If it failed.
    pub fn ok(self) -> Result<Value> {
        ensure!(self.success, "the plugin failed: {} {}", self.said, self.stderr);
        Ok(self.said)
    }

    /// What a call that must fail with this code said.
    ///
    /// # Errors
    /// If it succeeded, or failed otherwise.
    pub fn refused(self, code: u64) -> Result<String> {
        ensure!(!self.success && self.said["code"] == code, "not refused with {code}: {self:?}");
        Ok(format!("{}: {}", self.said["msg"].as_str().unwrap_or_default(), self.said["details"]))
    }
}

impl<'a> Plugin<'a> {
    /// In a node; `name` keeps it from others at the same time.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn new(testbed: &'a Testbed, node: usize, name: &str) -> Result<Self> {
        let data = std::env::temp_dir().join(format!("podlane-cni-{}-{name}", testbed.name));
        fs::create_dir(&data).with_context(|| format!("making {}", data.display()))?;
        Ok(Plugin { testbed, node, data, pods: Vec::new() })
    }

    /// Makes a namespace for a pod, without anything in it. The testbed removes it if nobody else does.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new_pod(&mut self, name: &str) -> Result<()> {
        crate::command::run(
            Command::new("ip").args(["netns", "add", &self.testbed.namespace(name)]),
            std::time::Duration::from_secs(10),
        )?;
        self.pods.push(name.to_owned());
        Ok(())
    }

    /// Removes a pod's namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.pods.retain(|pod| pod != name);
        crate::command::run(
            Command::new("ip").args(["netns", "del", &self.testbed.namespace(name)]),
            std::time::Duration::from_secs(10),
        )
        .map(drop)
    }

    /// The configuration: the testbed's bridge and networks, and a corner of them for the plugin.
    pub fn config(&self, changes: &Value) -> Value {
        let range = |family: Family| {
            let subnet = self.testbed.pod_cidr(self.node, family);
            let network = subnet.split('/').next().unwrap_or_default();
            let start = format!("{}{FIRST_HOST}", family.pick(network.trim_end_matches('0'), network));
            json!([{ "subnet": subnet, "rangeStart": start }])
        };
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "podlane",
            "type": "podlane-cni",
            "bridge": "cbr0",
            "dataDir": self.data,
            "ipam": { "ranges": [range(Family::V4), range(Family::V6)] },
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// The path of a pod's namespace, as runtimes say it.
    pub fn netns(&self, pod: &str) -> String {
        format!("/run/netns/{}", self.testbed.namespace(pod))
    }

    /// Calls the plugin for a pod, with changes to the configuration.
    ///
    /// # Errors
    /// If it cannot be run, or says something that is no JSON.
    pub fn call(&self, command: &str, pod: &str, changes: &Value) -> Result<Answer> {
        self.call_with(command, pod, changes, &[])
    }

    /// The same with other environment variables.
    ///
    /// # Errors
    /// Likewise.
    pub fn call_with(&self, command: &str, pod: &str, changes: &Value, variables: &[(&str, &str)]) -> Result<Answer> {
        finish(self.program(command, pod, variables)?, &self.config(changes))
    }

    /// The plugin's program with the environment of a call.
    ///
    /// # Errors
    /// If there is none.
    pub fn program(&self, command: &str, pod: &str, variables: &[(&str, &str)]) -> Result<Command> {
        Ok(self.program_of(&binary()?, command, pod, variables))
    }

    /// Another plugin's program with the same environment.
    pub fn program_of(&self, plugin: &Path, command: &str, pod: &str, variables: &[(&str, &str)]) -> Command {
        let mut plugin = self.testbed.command(&format!("node{}", self.node), plugin);
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("container-{pod}"))
            .env("CNI_NETNS", self.netns(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"))
            .env("CNI_PATH", &self.data);
        for (name, value) in variables {
            plugin.env(name, value);
        }
        plugin
    }
}

/// Runs a plugin with a configuration on its standard input.
///
/// # Errors
/// If it cannot be run, or says something that is no JSON.
pub fn finish(mut plugin: Command, config: &Value) -> Result<Answer> {
    let mut child = plugin
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {plugin:?}"))?;
    // One that is done before it has read everything closes its end.
    let _ = child.stdin.take().context("piped")?.write_all(config.to_string().as_bytes());
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(matches!(output.status.code(), Some(0 | 1)), "the plugin ended with {}: {stderr}", output.status);
    let said = if output.stdout.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the plugin said {:?}", String::from_utf8_lossy(&output.stdout)))?
    };
    Ok(Answer { success: output.status.success(), said, stderr })
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        for pod in std::mem::take(&mut self.pods) {
            let _ = Command::new("ip").args(["netns", "del", &self.testbed.namespace(&pod)]).status();
        }
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// The plugin's program: `PODLANE_CNI_BIN`, or the one beside `podlane`.
///
/// # Errors
/// If there is none, with how to build it.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("PODLANE_CNI_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside(&daemon::binary()?)?,
    };
    if path.is_file() {
        return Ok(path);
    }
    bail!("there is no {}: build it (cargo build --bin podlane-cni) or set PODLANE_CNI_BIN", path.display())
}

fn beside(podlane: &Path) -> Result<PathBuf> {
    Ok(podlane.parent().context("the binary lies in a directory")?.join("podlane-cni"))
}
