//! Results: what a plugin has done, in the form that each version of the specification gives it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::failure::{Failure, code};
use super::version::Version;

/// Interfaces, addresses and routes of one result that are looked at.
const MOST: usize = 256;

/// An interface that was made or used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(default)]
    pub mac: String,
    /// Its MTU, bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The namespace that it is in; empty for the node's.
    #[serde(default)]
    pub sandbox: String,
}

/// An address that was given.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ip {
    /// With the length of its network.
    pub address: IpNet,
    /// The gateway of that network.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Which of the result's interfaces has it.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Through whom; if nobody, the gateway of the address of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along it, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest segment that is announced to TCP peers, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Its priority: the lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The table that it is in; none: the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Its scope, as the kernel numbers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// Through a gateway, or whoever is one.
    pub fn to(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name servers and their like, passed on as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that names are looked up in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// The result of an ADD: this plugin's, one before it in a chain, or an IPAM plugin's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    /// Interfaces.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
}

impl Outcome {
    /// Reads one. The forms of the versions that are spoken here differ in what may be left out.
    ///
    /// # Errors
    /// Code 6: it is none, or has more than 256 of a kind.
    pub fn read(value: &Value, whose: &str) -> Result<Self, Failure> {
        let no_result = |why: String| Failure::new(code::DECODING, format!("{whose} is no CNI result: {why}"));
        let members = value.as_object().ok_or_else(|| no_result("it is no object".to_owned()))?;
        // Plugins written in Go say `null` for a list without members.
        let said: Map<String, Value> = members
            .iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(key, member)| (key.clone(), member.clone()))
            .collect();
        let outcome: Outcome =
            serde_json::from_value(Value::Object(said)).map_err(|error| no_result(error.to_string()))?;
        if outcome.interfaces.len().max(outcome.ips.len()).max(outcome.routes.len()) > MOST {
            return Err(no_result(format!("it has more than {MOST} interfaces, addresses or routes")));
        }
        Ok(outcome)
    }

    /// In the form of a version.
    pub fn json(&self, version: Version) -> Value {
        let interfaces: Vec<Value> =
            self.interfaces.iter().map(|interface| interface_json(interface, version)).collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip_json(ip, version)).collect();
        let routes: Vec<Value> = self.routes.iter().map(|route| route_json(route, version)).collect();
        json!({
            "cniVersion": version.text(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        })
    }
}

fn interface_json(interface: &Interface, version: Version) -> Value {
    let mut value = json!({ "name": interface.name });
    if !interface.mac.is_empty() {
        value["mac"] = json!(interface.mac);
    }
    if let (Some(mtu), true) = (interface.mtu, version >= Version::V1_1_0) {
        value["mtu"] = json!(mtu);
    }
    if !interface.sandbox.is_empty() {
        value["sandbox"] = json!(interface.sandbox);
    }
    value
}

fn ip_json(ip: &Ip, version: Version) -> Value {
    let mut value = json!({ "address": ip.address });
    if version < Version::V1_0_0 {
        value["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
    }
    if let Some(gateway) = ip.gateway {
        value["gateway"] = json!(gateway);
    }
    if let Some(interface) = ip.interface {
        value["interface"] = json!(interface);
    }
    value
}

fn route_json(route: &Route, version: Version) -> Value {
    if version >= Version::V1_1_0 { json!(route) } else { json!(Route::to(route.dst, route.gw)) }
}

/// Appends what this plugin has done to the result of those before it in a chain, which is kept as it is, with members that
/// nobody here knows.
///
/// # Errors
/// Code 6: `previous` is no result.
pub fn append(previous: &Value, ours: &Outcome, version: Version) -> Result<Value, Failure> {
    let before = Outcome::read(previous, "prevResult")?;
    let mut shifted = ours.clone();
    for ip in &mut shifted.ips {
        ip.interface = ip.interface.map(|index| index + before.interfaces.len());
    }
    let mut joined = previous.clone();
    let added = shifted.json(version);
    for list in ["interfaces", "ips", "routes"] {
        let mut all = joined[list].as_array().cloned().unwrap_or_default();
        all.extend(added[list].as_array().cloned().unwrap_or_default());
        joined[list] = json!(all);
    }
    if !ours.dns.is_empty() {
        joined["dns"] = json!(ours.dns);
    }
    joined["cniVersion"] = json!(version.text());
    Ok(joined)
}
