//! `podlane explain`: what a reason in `podlane status` means, what usually causes it, and what to do about it.
//!
//! Names and meanings are the dataplane's own ([`PassReason`], [`DropReason`]); here stands what a person who is woken at night
//! needs besides. The match over them has no wildcard, so a reason that is added without advice does not compile.

use podlane_dataplane::forward::{DropReason, PassReason};
use serde::Serialize;

use crate::config::nearest;
use crate::status::wrap;

/// What became of the frames that are counted under a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The kernel handled them as it would without Podlane; nothing is lost.
    Passed,
    /// They are lost.
    Dropped,
}

/// Everything about one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Explanation {
    /// Its name in `podlane status`.
    pub reason: &'static str,
    /// What became of the frames.
    pub outcome: Outcome,
    /// What happened.
    pub meaning: &'static str,
    /// What usually causes it.
    pub causes: &'static str,
    /// What to do about it.
    pub cure: &'static str,
}

/// There is no such reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no reason {name:?}{}; `podlane explain` lists them all", meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default())]
pub struct NoSuchReason {
    name: String,
    meant: Option<&'static str>,
}

/// Every reason, those of the kernel's frames first.
pub fn all() -> Vec<Explanation> {
    let passed = PassReason::ALL.iter().map(|reason| of_pass(*reason));
    passed.chain(DropReason::ALL.iter().map(|reason| of_drop(*reason))).collect()
}

/// The reason of this name; dashes count as underscores.
///
/// # Errors
/// [`NoSuchReason`], with the nearest one.
pub fn named(name: &str) -> Result<Explanation, NoSuchReason> {
    let wanted = name.to_lowercase().replace('-', "_");
    let all = all();
    let names: Vec<_> = all.iter().map(|one| one.reason).collect();
    let meant = nearest(&wanted, &names);
    all.into_iter().find(|one| one.reason == wanted).ok_or(NoSuchReason { name: name.to_owned(), meant })
}

/// The explanation of a frame that is the kernel's.
pub fn of_pass(reason: PassReason) -> Explanation {
    let (causes, cure) = pass_advice(reason);
    Explanation { reason: reason.name(), outcome: Outcome::Passed, meaning: reason.sentence(), causes, cure }
}

/// The explanation of a frame that was dropped.
pub fn of_drop(reason: DropReason) -> Explanation {
    let (causes, cure) = drop_advice(reason);
    Explanation { reason: reason.name(), outcome: Outcome::Dropped, meaning: reason.sentence(), causes, cure }
}

const NOTHING: &str = "Nothing: this is as it should be.";
const GUARD: &str = "`podlane status` lists what the port may send from, and whence that is known; `podlane capture` shows \
                     the frames. If they are legitimate, write `port_guards = [\"IFACE=off\"]`; docs/source-guard.md.";

/// What usually causes it, and what to do.
const fn pass_advice(reason: PassReason) -> (&'static str, &'static str) {
    match reason {
        PassReason::NotIp => ("ARP, a few times a minute from every pod.", NOTHING),
        PassReason::Vlan => (
            "A pod or a switch that tags its frames.",
            "Nothing if that is wanted. Tagged traffic is never accelerated.",
        ),
        PassReason::Group => ("ARP requests, IPv6 neighbour discovery, multicast DNS.", NOTHING),
        PassReason::Malformed => (
            "A pod with a raw socket, a broken driver, or a network function that lies about lengths.",
            "`tcpdump -vv -i IFACE` at the port that counts it shows the frames; the kernel drops them in its turn.",
        ),
        PassReason::Options => (
            "IPsec (ESP, AH), IPv6 hop-by-hop or segment routing headers, record-route pings.",
            "Nothing; such traffic is never accelerated.",
        ),
        PassReason::Fragment => (
            "A pod sends UDP datagrams that are larger than its MTU.",
            "Have the application send smaller datagrams; every fragment costs the kernel's way.",
        ),
        PassReason::Ttl => (
            "traceroute, or a routing loop.",
            "If the count grows by itself, look for two nodes that route the same prefix to each other.",
        ),
        PassReason::Protocol => ("SCTP, GRE, IGMP, VRRP.", "Nothing; such traffic is never accelerated."),
        PassReason::NeighbourDiscovery => ("IPv6 on every link.", NOTHING),
        PassReason::OutsideCluster => (
            "Pods that talk to the outside, to a ClusterIP or to the node's network.",
            "If both ends are pods, their network is missing from `cluster_cidrs`.",
        ),
        PassReason::ForNode => ("Pods that talk to their own node: DNS on the host, kubelet probes' answers.", NOTHING),
        PassReason::UnknownMac => (
            "A pod that has said nothing yet, or whose entry aged out of the bridge.",
            "If it goes on: `bridge fdb show br BRIDGE` must have the address behind the pod's port. A static ARP entry to a pod that is gone does this too.",
        ),
        PassReason::NoRoute => (
            "The destination's node has no route here.",
            "`ip route get ADDRESS` on the node; whoever manages routes (cloud controller, routing daemon) has not set one.",
        ),
        PassReason::RouteKind => (
            "A multipath, blackhole, unreachable or encapsulating route.",
            "Nothing if that is wanted: the kernel does what the route says. `ip route get ADDRESS` shows it.",
        ),
        PassReason::PolicyRules => (
            "Somebody added an `ip rule` (a VPN, a multi-homed node, another network plugin), or the node encrypts by IPsec.",
            "Routed traffic is not accelerated meanwhile: `ip rule` and `ip xfrm policy` show it; remove what is not needed.",
        ),
        PassReason::Unresolved => (
            "The first packets to a neighbour, or one that does not answer ARP or neighbour discovery.",
            "If it goes on, the next hop is dead: `ip neigh show` has it as INCOMPLETE or FAILED.",
        ),
        PassReason::TooBig => (
            "A sender that does not know the path MTU yet; the kernel tells it.",
            "If it goes on, the sender does not get or not heed the answer: an ICMP filter between pod and node, or an application that ignores EMSGSIZE.",
        ),
        PassReason::Hairpin => (
            "A pod that talks to itself by way of the bridge, or to a host behind the same port.",
            "Nothing; the bridge forwards it only with hairpin mode on.",
        ),
        PassReason::PortState => (
            "A pod that is being created or removed; spanning tree; isolated bridge ports; a port on the other path's refused list.",
            "`podlane status` names the state of both ports and what was refused.",
        ),
        PassReason::ForwardingOff => (
            "`net.ipv4.ip_forward` or `net.ipv6.conf.all.forwarding` is 0.",
            "Switch it on, or pods cannot reach other nodes with or without Podlane.",
        ),
        PassReason::NoSocket => (
            "A pod's interface got more queues, or its port is just being opened or closed.",
            "If it goes on, see `podlane status` for why the port has no socket.",
        ),
        PassReason::WorkerStalled => (
            "The worker's CPU is taken by something of a higher priority, or the process was stopped.",
            "Look at the worker's `heartbeat` in `podlane status`; give the workers CPUs of their own with `cpus`.",
        ),
        PassReason::SuperFrame => (
            "Generic XDP with bulk TCP, or a segmentation type that cannot be measured.",
            "Use native XDP or `path = \"kernel\"`, which carry them.",
        ),
        PassReason::FrameSize => (
            "Jumbo frames on a kernel or driver without multi-buffer XDP.",
            "Use Linux 6.6 or newer, a smaller MTU, or `path = \"kernel\"` for that port.",
        ),
        PassReason::HiddenChecksum => (
            "A VXLAN, Geneve or other UDP tunnel inside of a pod.",
            "Nothing is lost. `path = \"kernel\"` for that pod's port carries it, or `ethtool -K eth0 tx off` in the pod.",
        ),
        PassReason::BridgeFeature => (
            "`vlan_filtering` or a locked port on the bridge.",
            "Switch it off if pods do not need it; Podlane does not mirror it.",
        ),
        PassReason::UnknownSource => (
            "The first frame of a pod on the kernel path, or of one whose entry aged out.",
            "If it goes on, the bridge does not learn on that port: `bridge -d link show dev IFACE`, or the sender forges addresses.",
        ),
        PassReason::TablesChanged => (
            "Two changes of routes, neighbours or pods within some microseconds.",
            "Nothing at some a second. A steady stream means that routes or neighbours flap: `ip monitor`.",
        ),
        PassReason::TablesStale => (
            "The daemon was stopped, is stuck, or has ended while its program was still attached.",
            "`systemctl status podlane`; its log says what it waits for.",
        ),
        PassReason::Translated => (
            "Answers of a service's backends, on a node with kube-proxy or other translating rules; connections that were open \
             before Podlane came.",
            "Nothing: the kernel must see them. `conntrack -L` shows the connections; docs/services.md says which stay so, and \
             how the others can be had back.",
        ),
        PassReason::Netfilter => (
            "Rules of a network policy or a firewall in a forward, prerouting or postrouting chain, or a service whose address is \
             one of the cluster's; `podlane status` names them.",
            "Nothing, if those rules shall apply to pods. `bypass_netfilter = true` if they need not; keep service addresses out \
             of `cluster_cidrs` (docs/services.md).",
        ),
    }
}

const fn drop_advice(reason: DropReason) -> (&'static str, &'static str) {
    match reason {
        DropReason::TxRingFull => (
            "The egress interface takes frames slower than they come: a slow receiver, or an uplink at its limit.",
            "Compare the port's rates with its speed. Bulk TCP between pods belongs on `path = \"kernel\"`.",
        ),
        DropReason::HandoffFull => (
            "One worker owns the only queue of a busy port and cannot keep up.",
            "Give the uplink as many queues as there are workers, or use fewer workers.",
        ),
        DropReason::EgressGone => ("A pod was deleted while traffic to it was on its way.", NOTHING),
        DropReason::HostPortGone => (
            "Somebody deleted or took down podlane0 or podlane1, or they cannot take more.",
            "`ip link show podlane0`; restart the daemon to make them anew.",
        ),
        DropReason::TooManyPieces => (
            "A driver that cuts packets into more pieces than an skb could have.",
            "Report it with the driver's name; `path = \"kernel\"` for that port avoids it.",
        ),
        DropReason::DaemonEnded => (
            "Podlane was restarted under traffic, was killed, or a port was closed. After a kill it is the most there can have \
             been: counts of the last moment are lost.",
            "Nothing, unless it comes with every restart in thousands: then workers do not keep up.",
        ),
        DropReason::PortBlocked => {
            ("A port was isolated, blocked or moved while frames were on their way.", "Nothing, unless it goes on.")
        }
        DropReason::ForeignMac => (
            "A program in the pod makes frames by itself (CAP_NET_RAW) under another MAC address, or a virtual machine or \
             bridge in the pod has one of its own.",
            GUARD,
        ),
        DropReason::ForeignAddress => (
            "A program in the pod makes packets under another pod's address; or the pod is a gateway that forwards for \
             others, or has an address that Podlane has not seen (an address that was added a moment ago is one for \
             some milliseconds).",
            GUARD,
        ),
        DropReason::FalseNeighbour => (
            "Somebody in the pod tries to take over the traffic to another pod or to the gateway (ARP or neighbour \
             spoofing, a router advertisement); or the pod took over a shared address, or sends router advertisements on \
             purpose.",
            GUARD,
        ),
        DropReason::HiddenSource => (
            "A program in the pod makes frames by itself with VLAN tags, cut short, or with neighbour discovery behind \
             extension headers, which nothing does in earnest.",
            GUARD,
        ),
    }
}

impl Explanation {
    /// For people: a few lines.
    pub fn render(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Passed => "left to the kernel: nothing is lost",
            Outcome::Dropped => "dropped",
        };
        let mut text = format!("{} ({outcome})\n", self.reason);
        for (title, words) in [("Meaning", self.meaning), ("Usually", self.causes), ("To do", self.cure)] {
            text.push_str(&wrap(&format!("  {title:<9}"), words).join("\n"));
            text.push('\n');
        }
        text
    }
}

/// For people: every reason with its meaning.
pub fn render_all() -> String {
    let mut text = String::new();
    for (outcome, title) in
        [(Outcome::Passed, "Left to the kernel; nothing is lost:"), (Outcome::Dropped, "Dropped by a worker:")]
    {
        text.push_str(title);
        text.push('\n');
        for one in all().iter().filter(|one| one.outcome == outcome) {
            text.push_str(&wrap(&format!("  {:<17}", one.reason), one.meaning).join("\n"));
            text.push('\n');
        }
    }
    text.push_str("`podlane explain REASON` tells what usually causes one, and what to do.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::WIDTH;

    #[test]
    fn every_reason_is_explained_in_whole_sentences_that_fit() {
        for one in all() {
            assert_eq!(named(one.reason), Ok(one.clone()));
            assert!(one.causes.ends_with('.') && one.cure.ends_with('.'), "{one:?}");
            assert!(one.render().lines().all(|line| line.chars().count() <= WIDTH), "{}", one.render());
        }
        assert!(render_all().lines().all(|line| line.chars().count() <= WIDTH), "{}", render_all());
        assert_eq!(all().len(), PassReason::COUNT + DropReason::COUNT);
    }

    #[test]
    fn a_misspelt_reason_is_answered_with_the_one_that_was_meant() {
        assert_eq!(named("Tx-Ring-Full").map(|one| one.reason), Ok("tx_ring_full"));
        let error = named("to_big").unwrap_err().to_string();
        assert!(error.contains("did you mean `too_big`?"), "{error}");
        assert!(!named("quux").unwrap_err().to_string().contains("mean"));
    }
}
