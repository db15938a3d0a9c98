//! The source guard's knowledge: which addresses are a pod's, and so what its port may send from.
//!
//! The check itself is `bpf/guard.h` and [`podlane_dataplane::forward::guard`]. Here stands whence it is known whose an address
//! is. Two tell: the container runtime's CNI result, which root wrote when the pod was made, and the pod's own end of its veth
//! ([`ends`]). A pod without CAP_NET_ADMIN cannot change the latter. One that has it may take an address that is free; it
//! never gets one that somebody else holds ([`settle`]). A port of which no MAC or no IP address is known is not guarded, and
//! says so: a guard that guesses would cut pods off.
//!
//! Everything here happens on the daemon's thread, a few ports at a time.

pub mod ends;
pub mod learn;
pub mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podlane_dataplane::table::{Guard, GuardTable};
use podlane_dataplane::{MacAddr, PortId};

use crate::config::GuardChoice;
use crate::mirror::NetlinkError;
use crate::mirror::World;
use crate::mirror::world::Link;
use crate::names::cni::CniNames;
use crate::status::GuardStatus;
use ends::{End, Ends};
use settle::{Claim, Node, Settled};

/// Ports whose pods are looked at in one go, which takes some milliseconds, beyond those that were not looked at yet.
const SWEEP: usize = 64;
/// How long one go looks at pods that it has seen before: those with as much as is looked at take longer.
const TURN: Duration = Duration::from_millis(20);
/// The least pause between two goes.
const PAUSE: Duration = Duration::from_millis(20);
/// A pause is so many times as long as the go before it, so that a pod that changes its addresses all the time keeps nobody
/// busy: the kernel tells of an interface's index only, which many pods have.
const PAUSES: u32 = 9;
/// How long a pod counts as new. Whoever connects it gives it one address after the other, and what it sends in between (a
/// solicitation for its router, from the address that it got last) is nothing foreign. Its containers start later, and a CNI
/// result, which is written when the pod is whole, ends this time at once.
const NEW: Duration = Duration::from_secs(2);
/// How often every pod is looked at, should a message have been lost.
const LOOK: Duration = Duration::from_secs(10);
/// The same where changes are not heard of.
const LOOK_DEAF: Duration = Duration::from_millis(250);

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct GuardPolicy {
    /// Of all ports that `ports` does not name.
    pub all: GuardChoice,
    /// Of single ports, by interface.
    pub ports: BTreeMap<String, GuardChoice>,
    /// The cluster's networks; empty for the bridge's own.
    pub cluster: Vec<IpNet>,
}

/// A pod's open port.
#[derive(Clone, Copy, Debug)]
pub struct PodPort<'a> {
    /// Its number.
    pub id: PortId,
    /// The interface.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
}

/// The guards of all ports.
#[derive(Debug)]
pub struct Guards {
    policy: GuardPolicy,
    ends: Ends,
    /// What was last seen of each pod's own end, by port's interface.
    seen: BTreeMap<u32, End>,
    /// When the node's interfaces appeared; `None` of those that were there before the guards.
    born: BTreeMap<u32, Option<Instant>>,
    /// Ports whose guards are settled, but not yet in force, because the pods are new. (A pod that uses this time to put
    /// something in front of its interface keeps the guard that it was about to have.)
    new: BTreeSet<u32>,
    /// Interfaces whose pods are to be looked at.
    due: BTreeSet<u32>,
    looked: Instant,
    pause: Duration,
    looked_at_all: Instant,
    /// By port's interface, for as long as that is there: a port that is closed and opened again, and a daemon that takes
    /// another's place, are no way out of a guard.
    settled: BTreeMap<u32, Settled>,
    /// What was said last of addresses that are refused, by port's interface.
    told: BTreeMap<u32, Vec<String>>,
    /// The interfaces of the open ports.
    open: BTreeSet<u32>,
    table: Arc<GuardTable>,
    /// The CNI results that `settled` goes by.
    cni: Option<Arc<CniNames>>,
}

impl Guards {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open(policy: GuardPolicy) -> Result<Self, NetlinkError> {
        let now = Instant::now();
        Ok(Guards {
            policy,
            ends: Ends::open()?,
            seen: BTreeMap::new(),
            born: BTreeMap::new(),
            new: BTreeSet::new(),
            due: BTreeSet::new(),
            looked: now,
            pause: PAUSE,
            looked_at_all: now,
            settled: BTreeMap::new(),
            told: BTreeMap::new(),
            open: BTreeSet::new(),
            table: Arc::default(),
            cni: None,
        })
    }

    /// Begins with the guards that an earlier daemon has left, by interface.
    pub fn adopt(&mut self, left: &[(u32, Guard)]) {
        self.settled.extend(left.iter().map(|(ifindex, guard)| (*ifindex, Settled::adopted(*guard))));
    }

    /// Goes by another policy from the next [`Guards::follow`] on.
    pub fn wish_for(&mut self, policy: GuardPolicy) {
        self.policy = policy;
    }

    /// Readable when something changed in a pod.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ends.fd()
    }

    /// What may be sent from which port; the same `Arc` until it changes.
    pub fn table(&self) -> Arc<GuardTable> {
        Arc::clone(&self.table)
    }

    /// Whether [`Guards::follow`] has something to do, though nothing changed in the node's own namespace.
    pub fn is_due(&mut self, world: &World, cni: Option<&Arc<CniNames>>) -> bool {
        let heard = self.ends.heard();
        let concerned = |ifindex: &&u32| {
            let peer = world.links.get(ifindex).and_then(|link| link.peer);
            peer.is_some_and(|peer| heard.contains(&peer))
        };
        self.due.extend(self.seen.keys().filter(concerned));
        if self.looked_at_all.elapsed() >= if self.ends.hears() { LOOK } else { LOOK_DEAF } {
            self.looked_at_all = Instant::now();
            self.due.extend(self.seen.keys());
        }
        let told = match (&self.cni, cni) {
            (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
            (one, other) => one.is_some() != other.is_some(),
        };
        let grown = self.new.iter().any(|ifindex| !self.is_new(*ifindex));
        told || grown || (!self.due.is_empty() && self.looked.elapsed() >= self.pause)
    }

    /// Brings the guards in step with the open ports of pods. Whether [`Guards::table`] is another one now.
    pub fn follow(&mut self, world: &World, bridge: u32, ports: &[PodPort<'_>], cni: Option<Arc<CniNames>>) -> bool {
        self.note_births(world);
        self.open = ports.iter().map(|port| port.ifindex).collect();
        self.seen.retain(|ifindex, _| self.open.contains(ifindex));
        self.settled.retain(|ifindex, _| world.links.contains_key(ifindex));
        self.told.retain(|ifindex, _| world.links.contains_key(ifindex));
        self.due.retain(|ifindex| self.open.contains(ifindex));
        // Where no guard is wanted, pods are left alone.
        if ports.iter().any(|port| self.choice(port.ifindex, port.name, world).0 != GuardChoice::Off) {
            self.due.extend(self.open.iter().filter(|ifindex| !self.seen.contains_key(ifindex)));
            self.look(world);
        } else {
            self.seen.clear();
            self.due.clear();
        }
        let claim = |ifindex, name| self.claim(ifindex, name, world, cni.as_deref());
        let claims: Vec<Claim> = ports.iter().map(|port| claim(port.ifindex, port.name)).collect();
        let closed = self.closed(world, cni.as_deref()).map(|link| claim(link.ifindex, &link.name));
        let all: Vec<Claim> = claims.iter().cloned().chain(closed).collect();
        let cluster = Some(&self.policy.cluster[..]).filter(|cluster| !cluster.is_empty());
        let mut settled = settle::settle(&all, &Node::of(world, bridge, cluster), &self.settled);
        settled.retain(|ifindex, _| self.open.contains(ifindex));
        self.cni = cni;
        for (claim, new) in claims.iter().filter_map(|claim| Some((claim, settled.get(&claim.ifindex)?))) {
            tell(claim, new, self.settled.get(&claim.ifindex));
        }
        self.settled.extend(settled);
        let untold = claims.iter().filter(|claim| claim.cni.is_none()).map(|claim| claim.ifindex);
        self.new = untold.filter(|ifindex| self.is_new(*ifindex)).collect();
        for claim in &claims {
            // One event for the pod, whose text is no part of what the log tells one complaint from another by: a pod chooses it.
            if let Some(addresses) = self.news_of_refused(claim.ifindex) {
                tracing::warn!(interface = claim.name, addresses, "a pod has addresses that it may not send from");
            }
        }
        let guard =
            |port: &PodPort<'_>| Some((port.id, self.settled.get(&port.ifindex)?.guard.as_ref().ok().copied()?));
        let grown = ports.iter().filter(|port| !self.new.contains(&port.ifindex));
        let table = GuardTable::new(grown.filter_map(guard));
        let changed = *self.table != table;
        if changed {
            self.table = Arc::new(table);
        }
        changed
    }

    /// Interfaces of pods that are there without an open port (it is opened again, or never was, for a queueing discipline): what
    /// such a pod has is no other's to take. That is settled when it has a port: what is in front of its interface is not seen
    /// before. (The results of some plugins name the bridge as well, which has no other end.)
    fn closed<'a>(&self, world: &'a World, cni: Option<&CniNames>) -> impl Iterator<Item = &'a Link> {
        let is_told = move |link: &Link| link.peer.is_some() && cni.is_some_and(|cni| cni.get(&link.name).is_some());
        let closed = world.links.values().filter(|link| !self.open.contains(&link.ifindex));
        closed.filter(move |link| self.settled.contains_key(&link.ifindex) || is_told(link))
    }

    /// Refused addresses of a port that were not told of yet. Of a new pod nothing is told: a pod is looked at later than what
    /// is known of the node was heard, so that it may have an address of a network that the bridge is about to get.
    fn news_of_refused(&mut self, ifindex: u32) -> Option<String> {
        let settled =
            self.settled.get(&ifindex).filter(|settled| settled.guard.is_ok() && !self.new.contains(&ifindex));
        let refused = &settled?.refused;
        let told = self.told.entry(ifindex).or_default();
        if told == refused {
            return None;
        }
        told.clone_from(refused);
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// An interface that is closed and opened again (its bridge was re-made) is no new one.
    fn note_births(&mut self, world: &World) {
        // The first time, when not even the loopback device is known, all were there before.
        let born = (!self.born.is_empty()).then(Instant::now);
        self.born.retain(|ifindex, _| world.links.contains_key(ifindex));
        for ifindex in world.links.keys() {
            self.born.entry(*ifindex).or_insert(born);
        }
    }

    fn is_new(&self, ifindex: u32) -> bool {
        self.born.get(&ifindex).copied().flatten().is_some_and(|born| born.elapsed() < NEW)
    }

    /// Looks into some of the pods that are due, and into all that were not looked at yet; during a pause, into these only. A pod
    /// that vanishes meanwhile is unknown, as one that cannot be reached.
    fn look(&mut self, world: &World) {
        let begin = Instant::now();
        let pauses = begin.duration_since(self.looked) < self.pause;
        let (known, unknown): (Vec<u32>, Vec<u32>) =
            self.due.iter().partition(|ifindex| self.seen.contains_key(ifindex));
        // Of all of these together: those that are looked at before the others would be taken to have held what they have.
        let some: Vec<u32> = unknown.into_iter().chain(known.into_iter().filter(|_| !pauses).take(SWEEP)).collect();
        for ifindex in &some {
            // Those that are known can wait.
            if begin.elapsed() > TURN && self.seen.contains_key(ifindex) {
                continue;
            }
            self.due.remove(ifindex);
            let end = world.links.get(ifindex).map_or(End::Unknown("the interface is gone"), |link| self.ends.of(link));
            self.seen.insert(*ifindex, end);
        }
        if !some.is_empty() {
            self.looked = Instant::now();
            self.pause = PAUSE.max(begin.elapsed() * PAUSES);
        }
    }

    /// What is asked for of a port, and whether that follows from [`GuardChoice::Auto`].
    fn choice(&self, ifindex: u32, name: &str, world: &World) -> (GuardChoice, bool) {
        let is_ours = || world.links.get(&ifindex).is_some_and(|link| is_by_plugin(&link.name, link.mac));
        match self.policy.ports.get(name).copied().unwrap_or(self.policy.all) {
            GuardChoice::Auto if is_ours() => (GuardChoice::Cluster, true),
            GuardChoice::Auto => (GuardChoice::Off, true),
            choice => (choice, false),
        }
    }

    fn claim(&self, ifindex: u32, name: &str, world: &World, cni: Option<&CniNames>) -> Claim {
        let (choice, is_auto) = self.choice(ifindex, name, world);
        Claim {
            ifindex,
            name: name.to_owned(),
            choice,
            is_auto,
            cni: cni.and_then(|cni| cni.get(name)).map(|pod| (pod.macs.clone(), pod.addresses.clone())),
            end: self.seen.get(&ifindex).cloned().unwrap_or(End::Unknown("it is not looked at yet")),
        }
    }

    /// The interfaces of the pods that MAC addresses are known to be of, as far as they are guarded.
    pub fn owners(&self) -> BTreeMap<MacAddr, u32> {
        let is_guarded = |(ifindex, settled): &(&u32, &Settled)| self.open.contains(ifindex) && settled.guard.is_ok();
        let guarded = self.settled.iter().filter(is_guarded);
        guarded.flat_map(|(ifindex, settled)| settled.macs.iter().map(|mac| (*mac, *ifindex))).collect()
    }

    /// A sentence for `podlane status`, if pods may do what nobody may have thought of.
    pub fn note(&self) -> Option<&'static str> {
        let is_narrow = |ifindex| {
            let settled = self.settled.get(ifindex);
            settled.is_some_and(|settled| settled.choice == GuardChoice::Cluster && settled.guard.is_ok())
        };
        (self.policy.cluster.is_empty() && self.open.iter().any(is_narrow)).then_some(
            "`cluster_cidrs` is not set, so the source guard takes the node's own pod subnets for the cluster: a pod that is \
             guarded with `cluster` may send from the addresses of pods on other nodes.",
        )
    }

    /// For `podlane status`; `None` of a port that is no pod's.
    pub fn status(&self, ifindex: u32) -> Option<GuardStatus> {
        let status = self.settled.get(&ifindex).filter(|_| self.open.contains(&ifindex)).map(Settled::status)?;
        if !status.active || !self.new.contains(&ifindex) {
            return Some(status);
        }
        let why = "the pod is new, and may be given its addresses just now".to_owned();
        Some(GuardStatus { active: false, why, ..status })
    }
}

/// Whether Podlane's network plugin made this end of a veth: it takes its name (`host_interface` in `cni/src/command`) and its
/// MAC address (`Mac::of_host`) from the same number, of which the address has 32 bits.
fn is_by_plugin(name: &str, mac: MacAddr) -> bool {
    let [0xfe, 0x58, number @ ..] = mac.octets() else { return false };
    let digits: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
    name.strip_prefix("veth").is_some_and(|rest| rest.len() == 11 && rest.starts_with(&digits))
}

/// Logs what changed for one port.
fn tell(claim: &Claim, new: &Settled, old: Option<&Settled>) {
    let reason = |settled: &Settled| settled.guard.as_ref().err().cloned();
    match (old.map(reason), reason(new)) {
        (Some(old), new) if old == new => {}
        (_, None) => tracing::debug!(interface = claim.name, "guarded"),
        (_, Some(why)) if claim.choice != GuardChoice::Off => {
            tracing::debug!(interface = claim.name, reason = why, "not guarded");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ifindex: u32, name: &str) -> (PodPort<'_>, Link) {
        let port = PodPort { id: PortId(3), ifindex, name };
        (port, Link { ifindex, name: name.to_owned(), ..Link::default() })
    }

    fn open(all: GuardChoice) -> Guards {
        Guards::open(GuardPolicy { all, ..GuardPolicy::default() }).unwrap()
    }

    #[test]
    fn a_guard_outlives_its_daemon_and_its_port_and_goes_with_the_interface() {
        let own = Guard::new([MacAddr::new([2, 0, 0, 0, 0, 1])], [[10, 244, 1, 2].into()]).unwrap().with(false, true);
        let (port, link) = pod(7, "veth7");
        let mut world = World::default();
        world.links.insert(7, link.clone());
        let mut guards = open(GuardChoice::Cluster);
        guards.adopt(&[(7, own)]);
        assert!(guards.follow(&world, 1, &[port], None));
        assert_eq!(guards.table().get(port.id), Some(&own), "though its own end cannot be looked at");
        guards.follow(&world, 1, &[], None);
        assert!(guards.table().get(port.id).is_none() && guards.status(7).is_none() && guards.owners().is_empty());
        guards.follow(&world, 1, &[port], None);
        assert_eq!(guards.table().get(port.id), Some(&own));
        world.links.clear();
        guards.follow(&world, 1, &[], None);
        world.links.insert(7, link);
        guards.follow(&world, 1, &[port], None);
        assert_eq!(guards.table().get(port.id), None, "another interface");
    }

    fn end(last: u8, addresses: &[u8]) -> End {
        let addresses = addresses.iter().map(|last| [10, 244, 1, *last].into()).collect();
        End::Own { macs: [MacAddr::new([2, 0, 0, 0, 0, last])].into(), addresses, more: false, behind: None }
    }

    #[test]
    fn what_a_pod_has_is_not_free_while_its_port_is_closed() {
        let own = Guard::new([MacAddr::new([2, 0, 0, 0, 0, 1])], [[10, 244, 1, 2].into()]).unwrap();
        let ((victim, victims), (other, others)) = (pod(7, "veth7"), pod(8, "veth8"));
        let other = PodPort { id: PortId(4), ..other };
        let mut world = World::default();
        world.links.extend([(7, victims), (8, others)]);
        let mut guards = open(GuardChoice::Cluster);
        guards.adopt(&[(7, own)]);
        guards.seen.insert(8, end(2, &[2, 3]));
        let has = |guards: &Guards, port: PodPort<'_>| {
            let table = guards.table();
            table.get(port.id).map(|guard| [2, 3].map(|last| guard.has4([10, 244, 1, last].into())))
        };
        guards.follow(&world, 1, &[other], None);
        assert_eq!((has(&guards, victim), has(&guards, other)), (None, Some([false, true])));
        guards.follow(&world, 1, &[victim, other], None);
        assert_eq!((has(&guards, victim), has(&guards, other)), (Some([true, false]), Some([false, true])));
        world.links.remove(&7);
        guards.follow(&world, 1, &[other], None);
        assert_eq!(has(&guards, other), Some([true, true]), "with the interface it is free");
        let (_, link) = pod(9, "veth9");
        let told = Arc::new(CniNames::of("veth9", [[10, 244, 1, 2].into()]));
        world.links.insert(9, Link { peer: Some(2), ..link });
        guards.follow(&world, 1, &[other], Some(Arc::clone(&told)));
        assert_eq!(has(&guards, other), Some([false, true]), "of a pod whose port was never open");
        assert!(!guards.settled.contains_key(&9), "which may have something in front of its interface");
    }

    /// Or those that are looked at first would hold what the others have as well.
    #[test]
    fn all_pods_that_were_not_seen_yet_are_looked_at_in_one_go() {
        let links: Vec<(u32, String)> =
            (10..10 + 3 * SWEEP as u32).map(|index| (index, format!("veth{index}"))).collect();
        let mut world = World::default();
        world.links.extend(links.iter().map(|(index, name)| (*index, pod(*index, name).1)));
        let ports: Vec<_> = links.iter().map(|(index, name)| pod(*index, name).0).collect();
        let mut guards = open(GuardChoice::Cluster);
        guards.follow(&world, 1, &ports, None);
        assert_eq!(guards.seen.len(), ports.len());
    }

    #[test]
    fn what_a_new_pod_may_not_have_is_told_when_it_is_no_longer_new() {
        let mut guards = open(GuardChoice::Cluster);
        let refused = vec!["10.1.2.3: no".to_owned(), "10.1.2.4: no".to_owned()];
        let own = Guard::new([MacAddr::new([2, 0, 0, 0, 0, 1])], [[10, 244, 1, 2].into()]).unwrap();
        guards.settled.insert(7, Settled { refused, ..Settled::adopted(own) });
        guards.new.insert(7);
        assert_eq!(guards.news_of_refused(7), None);
        guards.new.clear();
        assert_eq!(guards.news_of_refused(7).as_deref(), Some("10.1.2.3: no; 10.1.2.4: no"));
        assert_eq!(guards.news_of_refused(7), None, "it was told");
        guards.settled.get_mut(&7).unwrap().refused.clear();
        assert_eq!(guards.news_of_refused(7), None, "there is nothing to complain of");
        guards.settled.get_mut(&7).unwrap().refused.push("10.1.2.3: no".to_owned());
        assert!(guards.news_of_refused(7).is_some(), "again");
        let unguarded = Settled {
            guard: Err("no".to_owned()),
            refused: vec!["10.1.2.5: no".to_owned()],
            ..guards.settled[&7].clone()
        };
        guards.settled.insert(7, unguarded);
        assert_eq!(guards.news_of_refused(7), None, "it may send from all");
        assert_eq!(guards.news_of_refused(8), None);
    }

    #[test]
    fn a_guard_of_a_cluster_that_nobody_named_is_noted() {
        let own = Guard::new([MacAddr::new([2, 0, 0, 0, 0, 1])], [[10, 244, 1, 2].into()]).unwrap();
        let (port, link) = pod(7, "veth7");
        let mut world = World::default();
        world.links.insert(7, link);
        let mut guards = open(GuardChoice::Cluster);
        guards.adopt(&[(7, own)]);
        assert!(guards.note().is_none(), "no port is open");
        guards.follow(&world, 1, &[port], None);
        assert!(guards.note().is_some_and(|note| note.contains("pods on other nodes")));
        let named = vec!["10.244.0.0/16".parse().unwrap()];
        guards.wish_for(GuardPolicy { all: GuardChoice::Cluster, cluster: named, ..GuardPolicy::default() });
        assert!(guards.note().is_none());
        guards.wish_for(GuardPolicy { all: GuardChoice::Strict, ..GuardPolicy::default() });
        guards.follow(&world, 1, &[port], None);
        assert!(guards.note().is_none(), "a strict guard asks for no cluster");
    }

    #[test]
    fn pods_of_podlanes_plugin_are_known_by_name_and_address_together() {
        let is = |name: &str, mac: [u8; 6]| is_by_plugin(name, MacAddr::new(mac));
        assert!(is("veth0123abcd456", [0xfe, 0x58, 0x01, 0x23, 0xab, 0xcd]));
        for name in ["veth0123abce456", "veth0123abcd45", "veth0123abcd4567", "cali0123abcd456", "veth"] {
            assert!(!is(name, [0xfe, 0x58, 0x01, 0x23, 0xab, 0xcd]), "{name}");
        }
        assert!(!is("veth0123abcd456", [0x0a, 0x58, 0x01, 0x23, 0xab, 0xcd]));
    }
}
