//! Which interfaces should be ports, and why others are not.

use std::collections::BTreeMap;

use podlane_dataplane::limits;
use podlane_dataplane::table::PortKind;

use crate::mirror::World;
use crate::mirror::world::{Link, LinkKind};

/// What the configuration asks for.
#[derive(Clone, Debug, Default)]
pub struct PortWish<'a> {
    /// The pod bridge's name.
    pub bridge: &'a str,
    /// The uplinks' names.
    pub uplinks: &'a [String],
    /// Names of interfaces that are to be left to the kernel.
    pub skip: &'a [String],
    /// Indices of the host port's two ends, so that they are not taken for a pod's.
    pub host_port: &'a [u32],
}

/// An interface that should get sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedPort {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Pod or uplink.
    pub kind: PortKind,
    /// Receive queues in use, at least 1; more than [`limits::MAX_QUEUES`] cannot be served.
    pub queues: u32,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Id of the XDP program that is attached to it, as far as the kernel told; it may be Podlane's own.
    pub xdp_program: Option<u32>,
}

/// An interface that gets none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Its name.
    pub name: String,
    /// One sentence: why, and what would help.
    pub why: String,
    /// Whether it could never be a port. Otherwise it is one as soon as somebody changes something about it.
    pub for_good: bool,
}

/// The outcome.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// The bridge's index.
    pub bridge: Option<u32>,
    /// What is wrong with the bridge; empty if nothing is.
    pub bridge_problem: String,
    /// Interfaces to serve: uplinks in the order of the configuration, then pods by index.
    pub ports: Vec<WantedPort>,
    /// Interfaces that are left to the kernel.
    pub refused: Vec<Refusal>,
}

/// Decides which interfaces should be ports. `queues` tells how many receive queues an interface uses now
/// ([`crate::kernel::Kernel::rx_queues`]).
///
/// A member of the bridge is a pod's if it is a veth; another member (a physical interface, a VXLAN tunnel) leads to
/// stations of which the kernel knows more than Podlane, so its traffic stays with the kernel.
pub fn wanted_ports(world: &World, wish: &PortWish<'_>, mut queues: impl FnMut(&Link) -> u32) -> Wanted {
    let mut wanted = Wanted::default();
    match world.link_named(wish.bridge) {
        None => wanted.bridge_problem = format!("there is no interface {}", wish.bridge),
        Some(link) if link.kind != LinkKind::Bridge => {
            wanted.bridge_problem = format!("{} is not a bridge (its kind is {})", link.name, link.kind.name());
        }
        Some(link) => {
            wanted.bridge = Some(link.ifindex);
            if !link.up {
                let name = &link.name;
                wanted.bridge_problem = format!("{name} is down; `ip link set {name} up` brings it up");
            }
        }
    }
    let mut candidates: Vec<(&Link, PortKind)> = Vec::new();
    for name in wish.uplinks {
        match uplink(world, name, wish) {
            Ok(link) if candidates.iter().any(|(other, _)| other.ifindex == link.ifindex) => {}
            Ok(_) if candidates.len() == limits::MAX_UPLINKS => wanted
                .refuse(name, format!("{name} is one uplink too many: at most {} are supported", limits::MAX_UPLINKS)),
            // `fq` is many nodes' default. It paces what the node's own sockets send and forwards the rest as it comes.
            Ok(link) => match limited(world, link, &["fq"]) {
                Ok(()) => candidates.push((link, PortKind::Uplink)),
                Err(why) => wanted.refused.push(Refusal { name: name.clone(), why, for_good: false }),
            },
            Err(why) => wanted.refuse(name, why),
        }
    }
    let bridge = wanted.bridge;
    for link in world.links.values().filter(|link| bridge.is_some() && link.master == bridge) {
        if wish.host_port.contains(&link.ifindex) || wish.uplinks.contains(&link.name) {
            continue;
        }
        match pod(world, link, wish) {
            Ok(()) => candidates.push((link, PortKind::Pod)),
            Err(why) => wanted.refuse(&link.name, why),
        }
    }
    for (link, kind) in candidates {
        // One number is the host port's.
        if wanted.ports.len() >= limits::MAX_PORTS - 1 {
            wanted.refuse(
                &link.name,
                format!("{} is one port too many: at most {} are supported", link.name, limits::MAX_PORTS - 1),
            );
            continue;
        }
        wanted.ports.push(WantedPort {
            ifindex: link.ifindex,
            name: link.name.clone(),
            kind,
            queues: queues(link).max(1),
            mtu: link.mtu,
            xdp_program: link.xdp_program,
        });
    }
    wanted
}

impl Wanted {
    /// Leaves ports to the kernel that are to be ports otherwise; each comes with a sentence that says why.
    pub fn leave(&mut self, ports: &BTreeMap<String, String>) {
        let (left, kept) = std::mem::take(&mut self.ports).into_iter().partition(|port| ports.contains_key(&port.name));
        self.ports = kept;
        let left: Vec<WantedPort> = left;
        for port in left {
            self.refuse(&port.name, format!("{} is left to the kernel: {}", port.name, ports[&port.name]));
        }
    }

    fn refuse(&mut self, name: &str, why: String) {
        self.refused.push(Refusal { name: name.to_owned(), why, for_good: true });
    }
}

fn skipped(name: &str, wish: &PortWish<'_>) -> Result<(), String> {
    if wish.skip.iter().any(|skip| skip == name) {
        return Err(format!("{name} is left to the kernel because `skip` names it"));
    }
    Ok(())
}

fn uplink<'a>(world: &'a World, name: &str, wish: &PortWish<'_>) -> Result<&'a Link, String> {
    skipped(name, wish)?;
    let link = world.link_named(name).ok_or_else(|| format!("there is no interface {name}"))?;
    if link.name == wish.bridge {
        return Err(format!("{name} is the pod bridge and cannot be an uplink as well"));
    }
    if let Some(master) = link.master {
        let master = world.links.get(&master).map_or("another interface", |link| &link.name);
        return Err(format!(
            "{name} is a member of {master}, so routes lead through {master}: name that as the uplink if it is an \
             Ethernet interface"
        ));
    }
    if link.loopback || !link.mac.is_station() {
        return Err(format!("{name} is not an Ethernet interface"));
    }
    Ok(link)
}

fn pod(world: &World, link: &Link, wish: &PortWish<'_>) -> Result<(), String> {
    let name = &link.name;
    skipped(name, wish)?;
    if link.kind != LinkKind::Veth {
        return Err(format!(
            "{name} is a member of the bridge but not a veth (its kind is {}), so it is not a pod's: its traffic stays with \
             the kernel",
            link.kind.name()
        ));
    }
    limited(world, link, &[])
}

/// What a worker sends goes past the queueing disciplines of an interface, and what either path takes from it past those for
/// what comes in. `harmless`: kinds that nobody misses here.
fn limited(world: &World, link: &Link, harmless: &[&str]) -> Result<(), String> {
    let mut kinds = world.qdiscs.get(&link.ifindex).into_iter().flatten();
    let Some(kind) = kinds.find(|kind| !harmless.contains(&kind.as_str())) else { return Ok(()) };
    let (name, place) = (&link.name, if kind == "ingress" { "ingress" } else { "root" });
    Err(format!(
        "{name} has the queueing discipline {kind} (a limit of bandwidth?), which Podlane's packets would go past: its traffic \
         stays with the kernel, until `tc qdisc del dev {name} {place}`"
    ))
}

/// The MTU that the host port should have: the largest among the bridge's other members, so that it never makes the bridge's
/// own MTU, which follows the smallest member (`br_mtu_auto_adjust`, `net/bridge/br_if.c`), smaller; the bridge's if it
/// has none. `None`: there is no such bridge. Ask again when links change, and write it with
/// [`crate::kernel::Kernel::set_mtu`] to both ends.
pub fn host_port_mtu(world: &World, bridge: u32, host_port: &[u32]) -> Option<u32> {
    let own = world.links.get(&bridge)?.mtu;
    let members = world.links.values();
    Some(
        members
            .filter(|link| link.master == Some(bridge) && !host_port.contains(&link.ifindex))
            .map(|link| link.mtu)
            .max()
            .unwrap_or(own),
    )
}
