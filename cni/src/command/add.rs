//! ADD: connects a container.
//!
//! The steps are in the order in which a failure can be undone: the reservation first, so that it names whatever comes
//! after it, then the interfaces, then what is in them. Undoing removes what this call has made, and only that. While the
//! reservation is on its way to the disk, which takes longer than everything else, the kernel is at work.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;
use serde_json::Value;

use crate::delegate;
use crate::ipam::{Attachment, Lease, Reserved, Store};
use crate::link::namespace::Namespace;
use crate::link::{Link, Links, Mac, Pair, set_sysctl};
use crate::protocol::result::{self, Interface, Ip, Outcome, Route};
use crate::protocol::{Call, Command, Config, Failure, code};

/// MTU of a bridge that is made, unless the configuration has one; bytes.
const MTU: u32 = 1500;

/// A step of ADD, named for tests that have it fail there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The bridge is there and up.
    Bridge,
    /// The reservation is made.
    Reserve,
    /// The veth pair is made.
    Pair,
    /// The node's end is dressed.
    Host,
    /// The pod's end is up.
    Pod,
    /// The IPAM plugin has given addresses.
    Delegate,
    /// The bridge has the gateways' addresses.
    Gateway,
    /// The pod has its addresses.
    Addresses,
    /// The bridge forwards to it.
    Ready,
    /// The neighbours know.
    Announce,
    /// The pod has its routes.
    Routes,
    /// The reservation is on the disk.
    Persist,
    /// The runtime has the result.
    Print,
}

impl Step {
    /// All, in order.
    pub const ALL: [Step; 13] = [
        Step::Bridge,
        Step::Reserve,
        Step::Pair,
        Step::Host,
        Step::Pod,
        Step::Delegate,
        Step::Gateway,
        Step::Addresses,
        Step::Ready,
        Step::Announce,
        Step::Routes,
        Step::Persist,
        Step::Print,
    ];
}

/// Is asked after each step whether it is to be taken for failed.
pub type Fault<'a> = &'a (dyn Fn(Step) -> Result<(), Failure> + Sync);
/// Is handed the result.
pub type Print<'a> = &'a mut dyn FnMut(&Value) -> Result<(), Failure>;

/// What has been made so far.
#[derive(Debug, Default)]
struct Made {
    entry: bool,
    pair: bool,
    delegated: bool,
}

/// An ADD under way.
struct Attempt<'a> {
    call: &'a Call,
    config: &'a Config,
    fault: Fault<'a>,
    attachment: Attachment,
    host_name: String,
    store: Store,
    netns: Namespace,
    host: Links,
    pod: Links,
    made: Made,
}

/// Connects the container, and prints the result.
///
/// # Errors
/// With the specification's codes; nothing is left behind then, but for the bridge.
pub fn add(call: &Call, config: &Config, fault: Fault<'_>, print: Print<'_>) -> Result<(), Failure> {
    config.judge()?;
    if let Some(previous) = &config.previous
        && is_connected(previous, call)?
    {
        name_interfaces(previous, call)?;
        return print(previous);
    }
    let plan = if config.delegate.is_none() { Some(config.plan()?) } else { None };
    let mut attempt = Attempt::begin(call, config, fault)?;
    let done = attempt.connect(plan.as_ref(), print);
    done.map_err(|failure| attempt.undo(failure))
}

/// Whether a plugin before this one has made the interface.
fn is_connected(previous: &Value, call: &Call) -> Result<bool, Failure> {
    let before = Outcome::read(previous, "prevResult")?;
    Ok(before.interfaces.iter().any(|interface| interface.name == call.interface && !interface.sandbox.is_empty()))
}

/// All that is left to do for an interface that somebody else has made: its name, for Podlane to show.
fn name_interfaces(previous: &Value, call: &Call) -> Result<(), Failure> {
    let Some(name) = call.pod() else { return Ok(()) };
    let mut links = Links::open()?;
    for interface in Outcome::read(previous, "prevResult")?.interfaces {
        if interface.sandbox.is_empty()
            && let Some(link) = links.find(&interface.name)?.filter(|link| link.kind == "veth")
        {
            links.set_alias(link.index, &name)?;
        }
    }
    Ok(())
}

impl<'a> Attempt<'a> {
    /// Looks whether the way is free; nothing is made yet.
    fn begin(call: &'a Call, config: &'a Config, fault: Fault<'a>) -> Result<Self, Failure> {
        let netns = Namespace::open(&call.netns)?;
        let host = Links::open()?;
        let store = Store::open(&config.data)?;
        let mut pod = {
            let _inside = netns.enter()?;
            Links::open()?
        };
        if pod.find(&call.interface)?.is_some() {
            let message = format!("the container has an interface {} already", call.interface);
            return Err(Failure::new(code::EXISTS, message).with_details("DEL the attachment before adding it again"));
        }
        let attachment = super::attachment_of(call, config);
        let host_name = super::host_interface(&attachment);
        let made = Made::default();
        Ok(Attempt { call, config, fault, attachment, host_name, store, netns, host, pod, made })
    }

    fn connect(&mut self, plan: Option<&crate::ipam::Plan>, print: Print<'_>) -> Result<(), Failure> {
        let wanted = if plan.is_some() { self.config.wanted(self.call)? } else { Vec::new() };
        let mac = self.config.wanted_mac(self.call)?;
        let gateways = plan.map(|plan| plan.sets().iter().map(|set| set.ranges()[0].gateway).collect::<Vec<_>>());
        let bridge = self.bridge(&gateways.unwrap_or_default())?;
        (self.fault)(Step::Bridge)?;
        let reserved = self.store.reserve(&self.attachment, &self.config.bridge, plan, &wanted)?;
        self.made.entry = reserved.fresh;
        (self.fault)(Step::Reserve)?;
        let outcome = std::thread::scope(|scope| {
            let persisted = scope.spawn(|| reserved.persist());
            let outcome = self.wire(&bridge, &reserved, mac);
            // Its end is awaited in any case: what is removed must not be on its way to the disk.
            let persisted = persisted.join();
            let outcome = outcome?;
            persisted
                .unwrap_or_else(|_| Err(Failure::new(code::IO, "writing the reservation to the disk panicked")))?;
            Ok::<Outcome, Failure>(outcome)
        })?;
        (self.fault)(Step::Persist)?;
        let result = match &self.config.previous {
            Some(previous) => result::append(previous, &outcome, self.config.version)?,
            None => outcome.json(self.config.version),
        };
        print(&result)?;
        (self.fault)(Step::Print)
    }

    /// The bridge, made if it is missing.
    fn bridge(&mut self, gateways: &[IpAddr]) -> Result<Link, Failure> {
        let name = &self.config.bridge;
        if self.host.find(name)?.is_none() {
            // As its gateway's, so that a bridge which is made again does not surprise pods that remember it.
            let mac = gateways.first().map_or(Mac([0x0a, 0x58, 0, 0, 0, 1]), |gateway| Mac::of(*gateway));
            match self.host.create_bridge(name, mac, self.config.mtu.unwrap_or(MTU)) {
                // Another ADD was faster.
                Err(error) if error.errno() == Some(libc::EEXIST) => {}
                answer => answer?,
            }
            for (key, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
                set_sysctl(&format!("ipv6/conf/{name}/{key}"), value)?;
            }
        }
        let gone = || Failure::new(code::TRY_AGAIN, format!("the bridge {name} was removed by somebody else"));
        let bridge = self.host.find(name)?.ok_or_else(gone)?;
        if bridge.kind != "bridge" {
            let message = format!("\"bridge\": {name} exists and is no bridge; name another, or remove it");
            return Err(Failure::new(code::CONFIGURATION, message));
        }
        if !bridge.is_up {
            self.host.set_up(bridge.index, name)?;
        }
        Ok(bridge)
    }

    /// Makes the interfaces, and all that is in them.
    fn wire(&mut self, bridge: &Link, reserved: &Reserved, mac: Option<Mac>) -> Result<Outcome, Failure> {
        let (config, call) = (self.config, self.call);
        let pod_index = self.make_pair(bridge, reserved, mac)?;
        let mut outcome = match &config.delegate {
            None => of_leases(&reserved.leases),
            Some(plugin) => {
                // From now on it may have reserved something, whatever it answers.
                self.made.delegated = true;
                delegate::run(plugin, Command::Add, call, config)?.unwrap_or_default()
            }
        };
        (self.fault)(Step::Delegate)?;
        complete(&mut outcome, config);
        if config.is_gateway {
            self.gateways(bridge, &outcome)?;
        }
        (self.fault)(Step::Gateway)?;
        for ip in &outcome.ips {
            self.pod.add_address_alone(pod_index, ip.address)?;
        }
        (self.fault)(Step::Addresses)?;
        let host = self.host.wait_until_ready(&self.host_name)?;
        let pod = self.pod.wait_until_ready(&call.interface)?;
        let bridge = self.host.find(&config.bridge)?.unwrap_or_else(|| bridge.clone());
        self.pod.wait_until_heard(pod_index)?;
        (self.fault)(Step::Ready)?;
        self.pod.announce(&pod)?;
        (self.fault)(Step::Announce)?;
        // From here on the pod can send, and the bridge forwards: whoever waits there for a route loses nothing.
        for ip in &outcome.ips {
            self.pod.add_network(pod_index, ip.address)?;
        }
        for route in &outcome.routes {
            self.pod.add_route(pod_index, route, gateway_of(route, &outcome.ips))?;
        }
        (self.fault)(Step::Routes)?;
        let interface = |link: &Link, sandbox: &str| Interface {
            name: link.name.clone(),
            mac: link.mac.to_string(),
            mtu: Some(link.mtu),
            sandbox: sandbox.to_owned(),
        };
        outcome.interfaces = vec![interface(&bridge, ""), interface(&host, ""), interface(&pod, &call.netns)];
        for ip in &mut outcome.ips {
            ip.interface = Some(2);
        }
        Ok(outcome)
    }

    /// Makes the veth pair and brings it up. Returns the index of the pod's end.
    fn make_pair(&mut self, bridge: &Link, reserved: &Reserved, mac: Option<Mac>) -> Result<u32, Failure> {
        let (config, call) = (self.config, self.call);
        let addresses = || reserved.leases.iter().map(|lease| lease.address.addr());
        let first = addresses().find(IpAddr::is_ipv4).or_else(|| addresses().next());
        let pair = Pair {
            host: &self.host_name,
            host_mac: Mac::of_host(self.attachment.hash()),
            bridge: bridge.index,
            pod: &call.interface,
            netns: self.netns.file(),
            mac: mac.or_else(|| first.map(Mac::of)),
            mtu: config.mtu.unwrap_or(bridge.mtu),
        };
        match self.host.create_pair(&pair) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let message = format!("an interface {} of this attachment is there already", self.host_name);
                return Err(
                    Failure::new(code::EXISTS, message).with_details("DEL the attachment before adding it again")
                );
            }
            answer => answer?,
        }
        self.made.pair = true;
        (self.fault)(Step::Pair)?;
        let gone = |name: &str| Failure::new(code::KERNEL, format!("{name} was removed by somebody else"));
        let host = self.host.find(&self.host_name)?.ok_or_else(|| gone(&self.host_name))?;
        self.host.without_own_address(host.index)?;
        if config.hairpin {
            self.host.set_hairpin(host.index)?;
        }
        if let Some(name) = call.pod() {
            self.host.set_alias(host.index, &name)?;
        }
        (self.fault)(Step::Host)?;
        let pod = self.pod.find(&call.interface)?.ok_or_else(|| gone(&call.interface))?;
        self.pod_sysctls()?;
        self.pod.set_up(pod.index, &call.interface)?;
        (self.fault)(Step::Pod)?;
        Ok(pod.index)
    }

    /// No waiting for duplicates of addresses that the IPAM guards, no routes from whoever on the bridge claims to be a
    /// router, and neighbours are told ([`Links::announce`]). A runtime may have switched IPv6 off for new interfaces.
    fn pod_sysctls(&self) -> Result<(), Failure> {
        let _inside = self.netns.enter()?;
        let six = [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("ndisc_notify", "1")];
        let four = [("arp_notify", "1")];
        let all = six.map(|setting| ("ipv6", setting)).into_iter().chain(four.map(|setting| ("ipv4", setting)));
        for (family, (key, value)) in all {
            set_sysctl(&format!("{family}/conf/{}/{key}", self.call.interface), value)?;
        }
        Ok(())
    }

    /// Gives the bridge the gateways' addresses, and has the node forward.
    fn gateways(&mut self, bridge: &Link, outcome: &Outcome) -> Result<(), Failure> {
        let present: Vec<IpNet> =
            self.host.addresses(Some(bridge.index))?.into_iter().map(|(_, address)| address).collect();
        for ip in &outcome.ips {
            let Some(gateway) = ip.gateway else { continue };
            let sysctl = if gateway.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
            set_sysctl(sysctl, "1")?;
            if present.iter().any(|address| address.addr() == gateway) {
                continue;
            }
            let address = IpNet::new(gateway, ip.address.prefix_len()).map_err(|_| {
                Failure::new(code::CONFIGURATION, format!("the gateway {gateway} is of another family"))
            })?;
            self.nobody_else_has(address, bridge.index)?;
            self.host.add_address(bridge.index, address)?;
        }
        Ok(())
    }

    /// Refuses a pods' network in which the node has another address than the gateway's: a pod would be given it, or lie
    /// behind it. The gateway's may have come this moment, by another ADD.
    fn nobody_else_has(&mut self, gateway: IpNet, bridge: u32) -> Result<(), Failure> {
        let network = gateway.trunc();
        let is_ours = |index: u32, address: &IpNet| index == bridge && address.addr() == gateway.addr();
        let all = self.host.addresses(None)?.into_iter();
        let mut others = all.filter(|(index, address)| !is_ours(*index, address));
        let Some((_, address)) = others.find(|(_, address)| network.contains(&address.addr())) else { return Ok(()) };
        let message = format!("the pods' network {network} overlaps with the node's own address {address}");
        let details = "give the pods a network of their own, or name the bridge's address as \"gateway\"";
        Err(Failure::new(code::CONFIGURATION, message).with_details(details))
    }

    /// Removes what was made, the latest first. What cannot be removed is said in the failure's details.
    fn undo(&mut self, mut failure: Failure) -> Failure {
        let mut complaints = Vec::new();
        if self.made.delegated
            && let Some(plugin) = &self.config.delegate
        {
            complaints.extend(delegate::run(plugin, Command::Del, self.call, self.config).err());
        }
        let made = std::mem::take(&mut self.made);
        if made.pair {
            complaints.extend(self.host.delete(&self.host_name).map_err(Failure::from).err());
        }
        if made.entry {
            complaints.extend(super::remove_entry(&mut self.host, &self.store, &self.attachment).err());
        }
        for complaint in complaints {
            failure.details = format!("{}; and it could not be undone: {complaint}", failure.details);
        }
        failure
    }
}

fn of_leases(leases: &[Lease]) -> Outcome {
    let ip = |lease: &Lease| Ip { address: lease.address, gateway: Some(lease.gateway), interface: None };
    Outcome { ips: leases.iter().map(ip).collect(), ..Outcome::default() }
}

/// Adds what the configuration says and an IPAM plugin has left open: gateways, routes, name servers.
fn complete(outcome: &mut Outcome, config: &Config) {
    if config.is_gateway {
        for ip in &mut outcome.ips {
            ip.gateway = ip.gateway.or_else(|| ip.address.hosts().next());
        }
    }
    if config.delegate.is_none() {
        outcome.routes.extend(config.routes().iter().cloned());
    }
    let defaults = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    for default in defaults.into_iter().filter(|_| config.is_default_gateway) {
        let of_family = |address: IpAddr| address.is_ipv4() == default.addr().is_ipv4();
        let gateway = outcome.ips.iter().filter(|ip| of_family(ip.address.addr())).find_map(|ip| ip.gateway);
        let is_there = outcome.routes.iter().any(|route| route.dst == default);
        if let (Some(gateway), false) = (gateway, is_there) {
            outcome.routes.push(Route::to(default, Some(gateway)));
        }
    }
    if !config.dns.is_empty() {
        outcome.dns = config.dns.clone();
    }
}

/// Through whom a route goes: its own gateway, or that of the address of its family.
fn gateway_of(route: &Route, ips: &[Ip]) -> Option<IpAddr> {
    let of_family = ips.iter().filter(|ip| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4());
    let is_on_link = route.scope == Some(libc::RT_SCOPE_LINK);
    route.gw.or_else(|| of_family.filter_map(|ip| ip.gateway).next().filter(|_| !is_on_link))
}
