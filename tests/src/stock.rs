//! The stock plugins `bridge` and `host-local` of Debian's containernetworking-plugins: a node's network and pods that somebody
//! else made, which Podlane finds there.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cni;
use crate::command;
use crate::testbed::{Family, Testbed, repository};

/// Packages are some 36 MB, from whatever mirror this machine has.
const FETCH: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(10);

/// The bridge that the plugin makes.
pub const BRIDGE: &str = "cni0";

/// Where `scripts/runtime.sh` has unpacked containerd and the plugins; asked once.
///
/// # Errors
/// Why they are not to be had on this machine.
pub fn unpacked() -> Result<&'static Path> {
    static PLACE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let mut script = Command::new("bash");
        script.arg(repository().join("scripts/runtime.sh"));
        let said = command::run(&mut script, FETCH).map_err(|error| format!("{error:#}"))?;
        Ok(PathBuf::from(said.trim()))
    });
    match place {
        Ok(place) => Ok(place),
        Err(why) => bail!("{why}"),
    }
}

/// The directory of the stock plugins.
///
/// # Errors
/// As [`unpacked`].
pub fn plugins() -> Result<PathBuf> {
    Ok(unpacked()?.join("usr/lib/cni"))
}

/// A pod that the plugin has connected.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, which is that of a place in the testbed.
    pub name: String,
    /// The node that it is on.
    pub node: usize,
    /// Its interface on the node.
    pub port: String,
    /// What the plugin said.
    pub result: Value,
    addresses: BTreeMap<bool, IpAddr>,
}

impl Pod {
    /// Its address of a family.
    ///
    /// # Errors
    /// If it has none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let address = self.addresses.get(&(family == Family::V6)).copied();
        address.with_context(|| format!("{} has no address of {}", self.name, family.name()))
    }

    /// Whether a line of iproute2's JSON is about one of its addresses.
    pub fn is_in(&self, line: &str) -> bool {
        self.addresses.values().any(|address| line.contains(&format!("\"dst\":\"{address}\"")))
    }
}

/// The plugin in one node, with its pods. What it made goes with the testbed; its files go with this.
pub struct Stock {
    testbed: String,
    node: usize,
    data: PathBuf,
    config: Value,
}

impl Stock {
    /// In a node, with changes to a configuration that is as simple as one finds it: a gateway, default routes, one network of
    /// each family.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn new(testbed: &Testbed, node: usize, changes: &Value) -> Result<Stock> {
        let data = std::env::temp_dir().join(format!("podlane-stock-{}-{node}", testbed.name));
        fs::create_dir(&data).with_context(|| format!("making {}", data.display()))?;
        let range = |family: Family| json!([{ "subnet": testbed.pod_cidr(node, family) }]);
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "stock",
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "isDefaultGateway": true,
            "ipam": { "type": "host-local", "dataDir": data, "ranges": [range(Family::V4), range(Family::V6)] },
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        Ok(Stock { testbed: testbed.name.clone(), node, data, config })
    }

    fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.testbed)
    }

    /// Makes a pod's namespace and connects it.
    ///
    /// # Errors
    /// If the kernel or the plugin refuses.
    pub fn add(&self, name: &str) -> Result<Pod> {
        command::run(Command::new("ip").args(["netns", "add", &self.namespace(name)]), SHORT)?;
        // As a runtime does it, or its own plugin `loopback`.
        command::run(Command::new("ip").args(["-n", &self.namespace(name), "link", "set", "lo", "up"]), SHORT)?;
        let result = self.call("ADD", name)?;
        let ips = result["ips"].as_array().context("a result has ips")?;
        let read = |ip: &Value| -> Result<(bool, IpAddr)> {
            let text = ip["address"].as_str().context("an address")?;
            let address: IpAddr = text.split('/').next().unwrap_or_default().parse()?;
            Ok((address.is_ipv6(), address))
        };
        let addresses = ips.iter().map(read).collect::<Result<_>>()?;
        let interfaces = result["interfaces"].as_array().context("a result has interfaces")?;
        let is_port = |link: &&Value| link["sandbox"].is_null() && link["name"].as_str() != Some(BRIDGE);
        // With a VLAN the plugin makes an interface for the gateway besides, which it does not list.
        let port = interfaces.iter().find(is_port).context("the node's interface")?;
        let port = port["name"].as_str().context("a name")?.to_owned();
        Ok(Pod { name: name.to_owned(), node: self.node, port, result, addresses })
    }

    /// Disconnects a pod and removes its namespace.
    ///
    /// # Errors
    /// If the plugin or the kernel refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.call("DEL", name)?;
        command::run(Command::new("ip").args(["netns", "del", &self.namespace(name)]), SHORT).map(drop)
    }

    /// Removes a pod's namespace without a word to the plugin, as a crashed runtime does; [`Stock::forget`] comes later.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&self, name: &str) -> Result<()> {
        command::run(Command::new("ip").args(["netns", "del", &self.namespace(name)]), SHORT).map(drop)
    }

    /// Disconnects a pod whose namespace is gone.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn forget(&self, name: &str) -> Result<()> {
        self.call("DEL", name).map(drop)
    }

    fn call(&self, cni_command: &str, pod: &str) -> Result<Value> {
        let plugins = plugins()?;
        let netns = Path::new("/run/netns").join(self.namespace(pod));
        let mut plugin = Command::new("nsenter");
        plugin
            .arg(format!("--net=/run/netns/{}", self.namespace(&format!("node{}", self.node))))
            .arg("--")
            .arg(plugins.join("bridge"))
            .env("CNI_COMMAND", cni_command)
            .env("CNI_CONTAINERID", self.namespace(pod))
            .env("CNI_NETNS", if netns.exists() { netns.as_os_str() } else { "".as_ref() })
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &plugins);
        cni::finish(plugin, &self.config)?.ok().with_context(|| format!("{cni_command} {pod}"))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.data);
    }
}
