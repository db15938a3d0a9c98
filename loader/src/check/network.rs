//! The node's network: bridge, uplinks, pods, XDP programs that are there already, and the kernel's switches.
//!
//! What becomes a port and what does not is asked of the daemon's own code ([`wanted_ports`]), so that check and daemon
//! never disagree.

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use podlane_dataplane::limits::MAX_QUEUES;
use podlane_dataplane::table::{PortKind, Translation};

use super::Line;
use crate::compile::{PortWish, Wanted, WantedPort, wanted_ports};
use crate::config::Config;
use crate::kernel::{HostPortNames, Kernel, Switches, read_switches};
use crate::mirror::world::{Link, LinkKind};
use crate::mirror::{Changes, Mirror, NetlinkError, World};
use crate::netfilter::Effects;
use crate::netfilter::watch::Watch;

/// Interfaces that are listed in a sentence; more would hide it.
const LISTED: usize = 10;
/// Bytes of the queue for notifications, which are not waited for.
const QUEUE_BYTES: usize = 1 << 16;
/// How the names of our XDP programs begin.
const OWN_PREFIX: &str = "podlane_";

/// Reads interfaces and addresses.
pub fn read_world() -> Result<World, NetlinkError> {
    let mut mirror = Mirror::open_with_queue(QUEUE_BYTES)?;
    mirror.refresh(Changes::LINKS | Changes::ADDRESSES)?;
    Ok(mirror.world().clone())
}

/// What the daemon would do with these interfaces.
pub fn wanted(world: &World, config: &Config, queues: impl FnMut(&Link) -> u32) -> Wanted {
    let names = HostPortNames::default();
    let host_port: Vec<_> =
        [names.near, names.member].iter().filter_map(|name| Some(world.link_named(name)?.ifindex)).collect();
    let strings = |names: &[crate::config::InterfaceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (uplinks, skip) = (strings(&config.uplinks), strings(&config.skip));
    let wish = PortWish { bridge: config.bridge.as_str(), uplinks: &uplinks, skip: &skip, host_port: &host_port };
    wanted_ports(world, &wish, queues)
}

/// An XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number.
    pub id: u32,
    /// Its name, if this process may know it.
    pub name: Option<String>,
}

impl Program {
    /// The program of this number.
    pub fn find(id: u32) -> Self {
        let mut programs = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default());
        let name = programs.find(|program| program.id == id).map(|program| program.name.to_string_lossy().into_owned());
        Program { id, name }
    }

    /// Whether it is one of Podlane's.
    pub fn is_ours(&self) -> bool {
        self.name.as_deref().is_some_and(|name| name.starts_with(OWN_PREFIX))
    }

    /// `id 12 (xdp_filter)`.
    pub fn describe(&self) -> String {
        format!("id {} ({})", self.id, self.name.as_deref().unwrap_or("name unknown"))
    }
}

/// Looks at the network.
pub fn lines(config: &Config) -> Vec<Line> {
    let world = match read_world() {
        Ok(world) => world,
        Err(error) => return vec![Line::fail("interfaces", error.to_string(), "report this")],
    };
    let mut kernel = Kernel::open().ok();
    let queues = |link: &Link| {
        let counted = kernel.as_mut().and_then(|kernel| kernel.rx_queues(link.ifindex).ok());
        counted.unwrap_or(link.rx_queues)
    };
    let wanted = wanted(&world, config, queues);
    let interfaces = config.uplinks.iter().chain([&config.bridge]).map(|name| name.as_str());
    let mut lines = vec![bridge(&world, config, &wanted)];
    lines.extend(config.uplinks.iter().map(|name| uplink(&world, name.as_str(), &wanted, Program::find)));
    lines.extend(pods(config, &wanted, Program::find));
    lines.extend(cluster(&world, config, &wanted));
    lines.extend(forwarding(&read_switches(interfaces)));
    lines.extend(match Watch::start() {
        Ok(watch) => netfilter(&watch.rules().effects_here(&world, config, &wanted, crate::bpf::can_look_up())),
        Err(error) => vec![Line::warn("netfilter", error.to_string(), "run this as root")],
    });
    lines
}

pub(super) fn bridge(world: &World, config: &Config, wanted: &Wanted) -> Line {
    let subject = format!("bridge {}", config.bridge);
    let Some(link) = wanted.bridge.and_then(|index| world.links.get(&index)) else {
        let cure = format!("name the pods' bridge: {}", candidates(world, true));
        return Line::fail(&subject, &wanted.bridge_problem, cure);
    };
    let members = wanted.ports.iter().filter(|port| port.kind == PortKind::Pod).count();
    let noun = if members == 1 { "pod" } else { "pods" };
    let found = format!("{members} {noun}, MTU {}", link.mtu);
    if link.bridge.as_ref().is_some_and(|bridge| bridge.vlan_filtering) {
        let cure = format!("ip link set {} type bridge vlan_filtering 0", link.name);
        return Line::warn(
            &subject,
            format!("{found}; it filters VLANs, so the kernel does all of its bridging"),
            cure,
        );
    }
    if !link.up {
        return Line::warn(&subject, format!("{found}; it is down"), format!("ip link set {} up", link.name));
    }
    Line::ok(&subject, found)
}

pub(super) fn uplink(world: &World, name: &str, wanted: &Wanted, find: impl Fn(u32) -> Program) -> Line {
    let subject = format!("uplink {name}");
    let Some((port, link)) = port_named(world, wanted, name) else {
        let why = wanted.refused.iter().find(|refusal| refusal.name == name).map(|refusal| refusal.why.clone());
        let cure = format!("name an interface towards the other nodes: {}", candidates(world, false));
        return Line::fail(&subject, why.unwrap_or_else(|| "it cannot be a port".to_owned()), cure);
    };
    let noun = if port.queues == 1 { "queue" } else { "queues" };
    let found = format!("{}, MTU {}, {} receive {noun}", link.kind.name(), link.mtu, port.queues);
    match port.xdp_program.map(find) {
        Some(program) if program.is_ours() => {
            return Line::ok(&subject, format!("{found}; Podlane's XDP program is on it, {}", program.describe()));
        }
        Some(program) => {
            let found = format!("{found}; another XDP program is on it, {}", program.describe());
            return Line::fail(&subject, found, foreign_cure(name));
        }
        None => {}
    }
    if !link.is_operational() {
        let (state, cure) = match link.up {
            true => ("it has no carrier", "connect it".to_owned()),
            false => ("it is down", format!("ip link set {name} up")),
        };
        return Line::warn(&subject, format!("{found}; {state}"), cure);
    }
    if link.rx_queues as usize > MAX_QUEUES && port.queues as usize == MAX_QUEUES {
        let cure = format!("ethtool -L {name} combined {MAX_QUEUES}, if it has more");
        return Line::warn(&subject, format!("{found}; queues beyond that stay with the kernel"), cure);
    }
    Line::ok(&subject, found)
}

/// How to get rid of another XDP program, as the end of a sentence.
pub(super) fn foreign_cure(name: &str) -> String {
    format!("stop the program that attached it, or detach it if nobody needs it: ip link set dev {name} xdp off")
}

fn port_named<'w>(world: &'w World, wanted: &'w Wanted, name: &str) -> Option<(&'w WantedPort, &'w Link)> {
    let port = wanted.ports.iter().find(|port| port.name == name)?;
    Some((port, world.links.get(&port.ifindex)?))
}

/// Names of interfaces that might have been meant.
pub(crate) fn candidates(world: &World, bridges: bool) -> String {
    let fits = |link: &&Link| match bridges {
        true => link.kind == LinkKind::Bridge,
        false => link.master.is_none() && !link.loopback && link.kind != LinkKind::Bridge && link.mac.is_station(),
    };
    let names: Vec<_> = world.links.values().filter(fits).map(|link| link.name.as_str()).collect();
    match (names.len(), bridges) {
        (0, true) => "there is no bridge here".to_owned(),
        (0, false) => "there is none here".to_owned(),
        (count, _) if count > LISTED => format!("`ip link` lists all {count}"),
        _ => format!("here are {}", names.join(", ")),
    }
}

/// Members of the bridge that are, or will be, left to the kernel.
fn pods(config: &Config, wanted: &Wanted, find: impl Fn(u32) -> Program) -> Vec<Line> {
    let subject = |name: &str| format!("port {name}");
    let is_uplink = |name: &str| config.uplinks.iter().any(|uplink| uplink.as_str() == name);
    let refused = wanted.refused.iter().filter(|refusal| !is_uplink(&refusal.name));
    let mut lines: Vec<_> = refused.map(|refusal| Line::ok(&subject(&refusal.name), &refusal.why)).collect();
    for port in wanted.ports.iter().filter(|port| port.kind == PortKind::Pod) {
        let Some(program) = port.xdp_program.map(&find).filter(|program| !program.is_ours()) else { continue };
        let found = format!("XDP program {} is on it, so it stays with the kernel", program.describe());
        lines.push(Line::warn(&subject(&port.name), found, foreign_cure(&port.name)));
    }
    lines
}

/// Without configured CIDRs the bridge's addresses must tell the pods' subnets.
fn cluster(world: &World, config: &Config, wanted: &Wanted) -> Option<Line> {
    let subject = "cluster CIDRs";
    if !config.cluster_cidrs.is_empty() {
        let all: Vec<_> = config.cluster_cidrs.iter().map(ToString::to_string).collect();
        return Some(Line::ok(subject, all.join(", ")));
    }
    let bridge = wanted.bridge?;
    let networks = world.addresses.iter().filter(|(key, address)| key.ifindex == bridge && address.scope == 0);
    let networks: std::collections::BTreeSet<_> = networks.map(|(key, _)| key.network.trunc().to_string()).collect();
    let cure = "set `cluster_cidrs` to the networks of all nodes' pods";
    Some(if networks.is_empty() {
        let found = format!("none are configured and {} has no address, so nothing is forwarded", config.bridge);
        Line::warn(subject, found, cure)
    } else {
        let all: Vec<_> = networks.into_iter().collect();
        let found = format!("none are configured: only pods of this node are served ({})", all.join(", "));
        Line::warn(subject, found, cure)
    })
}

pub(super) fn forwarding(switches: &Switches) -> Vec<Line> {
    let line = |family: &str, off: &[String]| {
        let subject = format!("{family} forwarding");
        if off.is_empty() {
            return Line::ok(&subject, "on");
        }
        let settings: Vec<_> = off.iter().filter(|name| !name.contains(' ')).map(|name| format!("{name}=1")).collect();
        let found =
            format!("off ({}), so routed {family} packets stay with the kernel, which drops them", off.join(", "));
        match settings.is_empty() {
            true => Line::warn(&subject, found, format!("nothing, if pods have no {family} addresses")),
            false => Line::warn(&subject, found, format!("sysctl -w {}", settings.join(" "))),
        }
    };
    vec![line("IPv4", &switches.ipv4_off), line("IPv6", &switches.ipv6_off)]
}

/// What the node's netfilter rules mean for the ports.
pub(super) fn netfilter(effects: &Effects) -> Vec<Line> {
    let subject = "netfilter";
    let cure = "nothing, if the rules shall apply to traffic between pods; docs/services.md says what else can be done";
    let mut lines: Vec<Line> = effects.notes.iter().map(|note| Line::warn(subject, note.as_str(), cure)).collect();
    lines.push(match effects.translation {
        Translation::None => Line::ok(subject, "nothing translates addresses: conntrack is not asked"),
        Translation::Strict | Translation::Liberal => Line::ok(
            subject,
            "conntrack is asked about each frame before it is taken: what it translates is the kernel's",
        ),
    });
    lines
}
