//! CHECK: is everything as ADD left it?

use std::net::IpAddr;

use crate::delegate;
use crate::ipam::Store;
use crate::link::namespace::Namespace;
use crate::link::{Link, Links};
use crate::protocol::{Call, Command, Config, Failure, Interface, Ip, Outcome, code};

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(code::NOT_AS_ADDED, message)
}

/// Compares what is there with `prevResult`.
///
/// # Errors
/// Code 101: something is missing or different, and what; 7: there is no `prevResult`.
pub fn check(call: &Call, config: &Config) -> Result<(), Failure> {
    config.judge()?;
    let previous = config.previous.as_ref();
    let previous = previous.ok_or_else(|| Failure::new(code::CONFIGURATION, "CHECK needs \"prevResult\""))?;
    let expected = Outcome::read(previous, "prevResult")?;
    let attachment = super::attachment_of(call, config);
    let host_name = super::host_interface(&attachment);
    let Some(host) = expected.interfaces.iter().find(|interface| interface.name == host_name) else {
        // Made by a plugin before this one in a chain, whose CHECK it is.
        return Ok(());
    };
    let entry = Store::open(&config.data)?.find(&attachment)?;
    let entry = entry.ok_or_else(|| wrong("the reservation of the container's addresses is gone"))?;
    let index = expected
        .interfaces
        .iter()
        .position(|interface| interface.name == call.interface && !interface.sandbox.is_empty());
    let index = index.ok_or_else(|| wrong(format!("prevResult has no {} of the container", call.interface)))?;
    let ips: Vec<&Ip> = expected.ips.iter().filter(|ip| ip.interface == Some(index)).collect();
    if config.delegate.is_none()
        && let Some(ip) = ips.iter().find(|ip| !entry.addresses.contains(&ip.address.addr()))
    {
        return Err(wrong(format!("{} is not reserved for the container", ip.address)));
    }
    let mut links = Links::open()?;
    let peer = check_host(&mut links, config, host, &ips)?;
    check_pod(call, &expected, &expected.interfaces[index], &ips, peer)?;
    match &config.delegate {
        Some(plugin) => delegate::run(plugin, Command::Check, call, config).map(drop),
        None => Ok(()),
    }
}

/// What has to be on the node. Returns the index of the pod's end.
fn check_host(links: &mut Links, config: &Config, host: &Interface, ips: &[&Ip]) -> Result<Option<u32>, Failure> {
    let bridge = links.find(&config.bridge)?.filter(|link| link.kind == "bridge");
    let bridge = bridge.ok_or_else(|| wrong(format!("the bridge {} is gone", config.bridge)))?;
    if !bridge.is_up {
        return Err(wrong(format!("the bridge {} is down", config.bridge)));
    }
    let link = links.find(&host.name)?.ok_or_else(|| wrong(format!("{} on the node is gone", host.name)))?;
    compare(&link, host)?;
    if link.bridge != Some(bridge.index) {
        return Err(wrong(format!("{} is no member of the bridge {}", host.name, config.bridge)));
    }
    if config.is_gateway {
        let present: Vec<IpAddr> =
            links.addresses(Some(bridge.index))?.iter().map(|(_, address)| address.addr()).collect();
        if let Some(gateway) = ips.iter().filter_map(|ip| ip.gateway).find(|gateway| !present.contains(gateway)) {
            return Err(wrong(format!("the bridge {} has not the gateway's address {gateway}", config.bridge)));
        }
    }
    Ok(link.peer)
}

/// What has to be in the pod. Plugins later in a chain may add to it.
fn check_pod(
    call: &Call,
    expected: &Outcome,
    interface: &Interface,
    ips: &[&Ip],
    peer: Option<u32>,
) -> Result<(), Failure> {
    let netns = Namespace::open(&call.netns)?;
    let mut links = {
        let _inside = netns.enter()?;
        Links::open()?
    };
    let link = links.find(&call.interface)?;
    let link = link.ok_or_else(|| wrong(format!("{} of the container is gone", call.interface)))?;
    compare(&link, interface)?;
    if peer != Some(link.index) {
        return Err(wrong(format!("{} of the container is not the other end of the node's interface", call.interface)));
    }
    let present = links.addresses(Some(link.index))?;
    if let Some(ip) = ips.iter().find(|ip| !present.iter().any(|(_, address)| *address == ip.address)) {
        return Err(wrong(format!("{} of the container has lost the address {}", call.interface, ip.address)));
    }
    let present = links.routes()?;
    // Those of other tables are not looked at.
    for route in expected.routes.iter().filter(|route| route.table.is_none()) {
        let is_there = present
            .iter()
            .any(|found| found.destination == route.dst && (route.gw.is_none() || found.gateway == route.gw));
        if !is_there {
            return Err(wrong(format!("the container has lost the route to {}", route.dst)));
        }
    }
    Ok(())
}

fn compare(link: &Link, expected: &Interface) -> Result<(), Failure> {
    if link.kind != "veth" {
        return Err(wrong(format!("{} is no veth", expected.name)));
    }
    if !link.is_up {
        return Err(wrong(format!("{} is down", expected.name)));
    }
    if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&link.mac.to_string()) {
        return Err(wrong(format!("{} has the MAC address {}, not {}", expected.name, link.mac, expected.mac)));
    }
    Ok(())
}
