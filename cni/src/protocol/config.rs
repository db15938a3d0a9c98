//! The network configuration: what an operator wrote, with what the runtime put into it.
//!
//! Reading it is lenient where DEL and GC need little of it (a pod must be removable after somebody broke the file), and
//! strict where ADD, CHECK and STATUS build on it ([`Config::judge`]): an unknown field is refused, because a misspelt one
//! that is ignored is found at night.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::call::{Call, is_container_id, is_interface_name};
use super::failure::{Failure, code};
use super::result::{Dns, Route};
use super::version::Version;
use crate::ipam::range::{Plan, Range};
use crate::link::Mac;

/// Bytes of the largest configuration that is read.
pub const MOST_BYTES: usize = 1 << 20;
/// Routes of a configuration.
const MOST_ROUTES: usize = 64;
/// Attachments that GC can be told to keep.
const MOST_ATTACHMENTS: usize = 65_536;
/// The bridge if none is named.
const BRIDGE: &str = "cbr0";
/// Where attachments and reservations are kept.
const DATA: &str = "/var/lib/podlane/ipam";
/// Where Podlane's daemon listens.
const SOCKET: &str = "/run/podlane/default.sock";
/// The smallest and the largest MTU, bytes. IPv6 needs 1280.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// Fields that this plugin knows, and those that runtimes and libcni add.
const KNOWN: [&str; 21] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "dns",
    "ipam",
    "bridge",
    "mtu",
    "podCIDRs",
    "isGateway",
    "isDefaultGateway",
    "hairpinMode",
    "controlSocket",
    "requireDaemon",
    "dataDir",
    "disableCheck",
    "disableGC",
];
/// Fields of the stock bridge plugin that may stay in a configuration while they ask for nothing.
const NOTHING: [&str; 7] = ["ipMasq", "promiscMode", "vlan", "macspoofchk", "forceAddress", "enabledad", "vlanTrunk"];

/// A network configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version to speak.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// The bridge.
    pub bridge: String,
    /// The pods' MTU, bytes; `None`: the bridge's.
    pub mtu: Option<u32>,
    /// Whether the bridge gets the gateways' addresses.
    pub is_gateway: bool,
    /// Whether pods get a default route through it.
    pub is_default_gateway: bool,
    /// Whether the bridge may send a frame back to where it came from.
    pub hairpin: bool,
    /// Name servers for the result.
    pub dns: Dns,
    /// The IPAM plugin; `None`: the built-in one.
    pub delegate: Option<String>,
    /// Where attachments and reservations are kept.
    pub data: PathBuf,
    /// Podlane's control socket.
    pub control_socket: PathBuf,
    /// Whether STATUS fails while Podlane's daemon does not run.
    pub require_daemon: bool,
    /// The result of the plugins before this one in a chain, or of ADD.
    pub previous: Option<Value>,
    /// As it came: delegates are given it unchanged.
    pub text: Vec<u8>,
    all: Map<String, Value>,
    ipam: Ipam,
}

/// The member `ipam`, as far as the built-in one looks at it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(default)]
    ranges: Vec<Vec<RawRange>>,
    #[serde(default)]
    subnet: Option<String>,
    #[serde(default)]
    range_start: Option<String>,
    #[serde(default)]
    range_end: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    subnet: String,
    #[serde(default)]
    range_start: Option<String>,
    #[serde(default)]
    range_end: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// What a runtime says of a container that may stay connected.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The container's ID.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(code::CONFIGURATION, message)
}

/// A member, if it is there and not `null`.
fn member<T: DeserializeOwned>(all: &Map<String, Value>, key: &str) -> Result<Option<T>, Failure> {
    match all.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value)
            .map(Some)
            .map_err(|error| Failure::new(code::DECODING, format!("\"{key}\" in the configuration: {error}"))),
    }
}

impl Config {
    /// The version that a configuration asks for, as it is written there, even if nothing else in it can be read.
    pub fn version_of(text: &[u8]) -> Option<String> {
        let value: Value = serde_json::from_slice(text).ok()?;
        Some(value.get("cniVersion")?.as_str()?.to_owned())
    }

    /// Reads what came on standard input.
    ///
    /// # Errors
    /// Code 6: no JSON, or a member of the wrong kind; 1: another version; 7: no network name.
    pub fn read(text: Vec<u8>) -> Result<Self, Failure> {
        let undecodable = |why: String| Failure::new(code::DECODING, format!("the configuration is {why}"));
        let all = match serde_json::from_slice(&text) {
            Ok(Value::Object(all)) => all,
            Ok(_) => return Err(undecodable("no JSON object".to_owned())),
            Err(error) => return Err(undecodable(format!("no JSON: {error}"))),
        };
        // A configuration without one is of version 0.1.0, says the specification.
        let version = Version::read(&member::<String>(&all, "cniVersion")?.unwrap_or_else(|| "0.1.0".to_owned()))?;
        let name: String = member(&all, "name")?.unwrap_or_default();
        if !is_container_id(&name) {
            let rule = "it begins with a letter or digit, followed by such, _ . and -";
            return Err(wrong(format!("the network's \"name\" is {name:?}: {rule}")));
        }
        let mut of_ipam: Map<String, Value> = member(&all, "ipam")?.unwrap_or_default();
        let delegate = member(&of_ipam, "type")?.filter(|kind: &String| !kind.is_empty() && kind != "podlane");
        of_ipam.remove("type");
        // What another plugin finds in there is its own business.
        let ipam: Ipam = match delegate {
            Some(_) => Ipam::default(),
            None => Ipam::deserialize(Value::Object(of_ipam))
                .map_err(|error| Failure::new(code::DECODING, format!("\"ipam\" in the configuration: {error}")))?,
        };
        let is_default_gateway: Option<bool> = member(&all, "isDefaultGateway")?;
        let is_gateway = member(&all, "isGateway")?.unwrap_or(true) || is_default_gateway == Some(true);
        Ok(Config {
            version,
            name,
            bridge: member(&all, "bridge")?.unwrap_or_else(|| BRIDGE.to_owned()),
            mtu: member(&all, "mtu")?.filter(|mtu| *mtu != 0),
            is_gateway,
            is_default_gateway: is_default_gateway.unwrap_or(is_gateway),
            hairpin: member(&all, "hairpinMode")?.unwrap_or(false),
            dns: member(&all, "dns")?.unwrap_or_default(),
            delegate,
            data: member(&all, "dataDir")?.or_else(|| ipam.data_dir.clone()).unwrap_or_else(|| PathBuf::from(DATA)),
            control_socket: member(&all, "controlSocket")?.unwrap_or_else(|| PathBuf::from(SOCKET)),
            require_daemon: member(&all, "requireDaemon")?.unwrap_or(false),
            previous: member(&all, "prevResult")?,
            text,
            all,
            ipam,
        })
    }

    /// Refuses what cannot be right.
    ///
    /// # Errors
    /// Code 2: a field that is not known, or asks for what this plugin does not do; 7: a value that cannot be right.
    pub fn judge(&self) -> Result<(), Failure> {
        self.judge_fields()?;
        if !is_interface_name(&self.bridge) {
            return Err(wrong(format!("\"bridge\" is {:?}, which cannot be an interface's name", self.bridge)));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(wrong(format!("\"mtu\" is {mtu}; it can be {} to {}", MTU.start(), MTU.end())));
        }
        if self.ipam.routes.len() > MOST_ROUTES {
            return Err(wrong(format!("\"routes\" has {} members; at most {MOST_ROUTES}", self.ipam.routes.len())));
        }
        for (key, path) in [("dataDir", &self.data), ("controlSocket", &self.control_socket)] {
            if !path.is_absolute() {
                return Err(wrong(format!("\"{key}\" is {path:?}, and must be an absolute path")));
            }
        }
        match &self.delegate {
            Some(plugin) if plugin.contains('/') || plugin.starts_with('.') => {
                Err(wrong(format!("\"type\" of \"ipam\" is {plugin:?}; it is the name of a program in CNI_PATH")))
            }
            _ => Ok(()),
        }
    }

    fn judge_fields(&self) -> Result<(), Failure> {
        let asks_nothing =
            |value: &Value| matches!(value, Value::Bool(false) | Value::Null) || value.as_u64() == Some(0);
        // A name with a slash has an owner, "cni.dev/valid-attachments" for one.
        let strange = self.all.iter().find(|(key, value)| {
            let known = KNOWN.contains(&key.as_str()) || key.contains('/');
            let silent = NOTHING.contains(&key.as_str()) && asks_nothing(value);
            !(known || silent)
        });
        if let Some((key, value)) = strange {
            let message = format!("unsupported field in the network configuration: \"{key}\": {value}");
            let details = match key.as_str() {
                "ipMasq" => "leave masquerading to the node's own rules (docs/cni.md), and set it to false",
                "vlan" | "vlanTrunk" => "bridges that filter VLANs are not served",
                _ => "is it misspelt? The fields are listed in docs/cni.md",
            };
            return Err(Failure::new(code::UNSUPPORTED_FIELD, message).with_details(details));
        }
        let of_ranges = self.ipam.ranges.iter().flatten().flat_map(|range| &range.unknown);
        match self.ipam.unknown.iter().chain(of_ranges).next() {
            Some((key, value)) => Err(Failure::new(
                code::UNSUPPORTED_FIELD,
                format!("unsupported field in \"ipam\" of the network configuration: \"{key}\": {value}"),
            )),
            None => Ok(()),
        }
    }

    /// The addresses that the built-in IPAM may give, from wherever they are configured: the runtime's `ipRanges`,
    /// `podCIDRs`, `ipam`.
    ///
    /// # Errors
    /// Code 7: none at all, or such as contradict each other.
    pub fn plan(&self) -> Result<Plan, Failure> {
        let runtime: Map<String, Value> = member(&self.all, "runtimeConfig")?.unwrap_or_default();
        let of_runtime: Vec<Vec<RawRange>> = member(&runtime, "ipRanges")?.unwrap_or_default();
        let mut sets = self.ipam.ranges.clone();
        sets.push(self.single_range());
        sets.extend(of_runtime);
        sets.retain(|set| !set.is_empty());
        let read = |set: &Vec<RawRange>| set.iter().map(read_range).collect::<Result<Vec<Range>, _>>();
        let mut read: Vec<Vec<Range>> = sets.iter().map(read).collect::<Result<_, _>>()?;
        let cidrs: Vec<String> = member(&self.all, "podCIDRs")?.unwrap_or_default();
        let networks = cidrs.iter().map(|text| Range::of(read_network(text)?, None, None, None));
        let networks = networks.collect::<Result<Vec<_>, _>>()?;
        // One address of each family: the CIDRs of a family stand in for each other.
        for v4 in [true, false] {
            let is_of_family = |range: &&Range| range.subnet.addr().is_ipv4() == v4;
            read.push(networks.iter().filter(is_of_family).cloned().collect());
        }
        Plan::of(read)
    }

    fn single_range(&self) -> Vec<RawRange> {
        let Some(subnet) = self.ipam.subnet.clone() else { return Vec::new() };
        let Ipam { range_start, range_end, gateway, .. } = self.ipam.clone();
        vec![RawRange { subnet, range_start, range_end, gateway, unknown: Map::new() }]
    }

    /// The routes of the file.
    pub fn routes(&self) -> &[Route] {
        &self.ipam.routes
    }

    /// Addresses that were asked for: by the runtime (`runtimeConfig.ips`), in `args`, or in `CNI_ARGS`.
    ///
    /// # Errors
    /// Code 7: one of them is none.
    pub fn wanted(&self, call: &Call) -> Result<Vec<IpAddr>, Failure> {
        let mut texts: Vec<String> = Vec::new();
        for place in self.per_pod()? {
            if texts.is_empty() {
                texts = member(&place, "ips")?.unwrap_or_default();
            }
        }
        if texts.is_empty() {
            texts.extend(call.argument("IP").into_iter().flat_map(|list| list.split(',')).map(str::to_owned));
        }
        let read = |text: &String| -> Result<IpAddr, Failure> {
            let bare = text.parse().ok();
            let address = bare.or_else(|| text.parse::<IpNet>().ok().map(|network| network.addr()));
            address.ok_or_else(|| wrong(format!("{text:?} was asked for, and is no address")))
        };
        texts.iter().map(read).collect()
    }

    /// The MAC address that was asked for, likewise.
    ///
    /// # Errors
    /// Code 7: it is none that a host can have.
    pub fn wanted_mac(&self, call: &Call) -> Result<Option<Mac>, Failure> {
        let mut texts: Vec<String> = Vec::new();
        for place in self.per_pod()? {
            texts.extend(member::<String>(&place, "mac")?);
        }
        texts.extend(call.argument("MAC").map(str::to_owned));
        let Some(text) = texts.iter().find(|text| !text.is_empty()) else { return Ok(None) };
        let mac = Mac::read(text);
        mac.map(Some).ok_or_else(|| wrong(format!("{text:?} was asked for, and is no MAC address of a host")))
    }

    /// Where a configuration has what is meant for one pod: `runtimeConfig` first, `args.cni` then.
    fn per_pod(&self) -> Result<[Map<String, Value>; 2], Failure> {
        let runtime = member(&self.all, "runtimeConfig")?.unwrap_or_default();
        let arguments: Map<String, Value> = member(&self.all, "args")?.unwrap_or_default();
        Ok([runtime, member(&arguments, "cni")?.unwrap_or_default()])
    }

    /// The containers that GC must leave alone.
    ///
    /// # Errors
    /// Code 7: the list is missing, which must not be taken for an empty one.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Failure> {
        // libcni also writes the second name, which an earlier text of the specification had.
        let mut valid: Option<Vec<ValidAttachment>> = None;
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            valid = match valid {
                None => member(&self.all, key)?,
                found => found,
            };
        }
        let missing = "GC without \"cni.dev/valid-attachments\": nothing is removed without that list";
        let valid = valid.ok_or_else(|| wrong(missing))?;
        if valid.len() > MOST_ATTACHMENTS {
            return Err(wrong(format!("\"cni.dev/valid-attachments\" has more than {MOST_ATTACHMENTS} members")));
        }
        Ok(valid)
    }
}

fn read_network(text: &str) -> Result<IpNet, Failure> {
    let network: IpNet = text
        .parse()
        .map_err(|_| wrong(format!("{text:?} is no network; write one such as 10.244.1.0/24 or fd00:10:244:1::/64")))?;
    if network.addr() == network.network() {
        Ok(network)
    } else {
        Err(wrong(format!("{text} has bits set behind the prefix; the network is {}", network.trunc())))
    }
}

fn read_range(raw: &RawRange) -> Result<Range, Failure> {
    let address = |text: &Option<String>, key: &str| -> Result<Option<IpAddr>, Failure> {
        let read = |text: &String| text.parse().map_err(|_| wrong(format!("\"{key}\": {text:?} is no address")));
        text.as_ref().map(read).transpose()
    };
    let subnet = read_network(&raw.subnet)?;
    let (start, end) = (address(&raw.range_start, "rangeStart")?, address(&raw.range_end, "rangeEnd")?);
    Range::of(subnet, start, end, address(&raw.gateway, "gateway")?)
}
