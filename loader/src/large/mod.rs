//! Large frames inside of the node: larger segmentation sizes (`big_tcp`) and a larger MTU (`local_mtu`) for the pods.
//!
//! Both are off unless the configuration asks for them, and both change the pods' veths at both ends; the pod's end from
//! inside of its network namespace ([`netns`]). What was found is remembered for each veth ([`Held`]) and given back when
//! it does not apply any more: only what still has the value that was put there, so that nobody else's change is lost.
//! What is held is also written to a file, so that a daemon that follows a killed one knows what it found.
//!
//! `local_mtu` is for the whole bridge or not at all. A bridge drops a frame that is larger than the MTU of the port it
//! should leave through, and tells nobody; so as soon as one member has a smaller MTU that cannot be changed, every pod
//! gets its own back. A pod that comes later is given [`GRACE`] to become changeable (its interface may still be on its
//! way into it). Traffic that leaves the node does not change: routes with a gateway get the metric `mtu` ([`routes`]).
//!
//! The bridge's own MTU is left to the kernel. It is the smallest of its members' unless somebody has set it
//! (`br_mtu_auto_adjust`, `net/bridge/br_if.c`), the host port takes the largest ([`crate::compile::host_port_mtu`]), so it
//! is `local_mtu` when every pod has it, and what the node sends to pods always fits all of them. It does not limit frames
//! between members, which are held against the MTU of the member they leave through (`br_dev_queue_push_xmit` and
//! `is_skb_forwardable`), nor what pods send to the node, which is not held against it at all (`br_pass_frame_up`).

pub mod link;
pub(crate) mod memory;
pub mod netns;
pub mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::mirror::world::LinkKind;
use crate::mirror::{NetlinkError, RequestSocket, World};
use link::{Sizes, State};
use netns::Namespaces;
use routes::{Metric, RouteId};

/// Least `big_tcp`, bytes: more than what every kernel does anyway.
pub const MIN_BIG_TCP: u32 = 65_537;
/// Most `big_tcp`, bytes: what a veth can (`GSO_MAX_SIZE`, `include/linux/netdevice.h`).
pub const MAX_BIG_TCP: u32 = 524_280;
/// Least `local_mtu`, bytes: that of IPv6.
pub const MIN_LOCAL_MTU: u32 = 1280;
/// Most `local_mtu`, bytes: with its Ethernet header the largest frame that the AF_XDP sockets carry
/// ([`podlane_dataplane::limits::MAX_FRAME`]).
pub const MAX_LOCAL_MTU: u32 = 65_000;
/// Bytes of the header that IPv6 puts into packets beyond 65,535 bytes (RFC 2675), inside of the kernel.
const JUMBO_HEADER: u32 = 8;
/// How long a pod may be unchangeable before all others get their MTU back.
const GRACE: Duration = Duration::from_secs(2);
/// How soon one is tried again, within the grace and after it.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];
/// When a pod's routes are looked at again after its MTU was changed, for those that its network plugin adds later; each
/// time twice as late.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// The longest pause between two looks.
const LAST_LOOK: Duration = Duration::from_secs(30);

/// What went wrong at one pod.
#[derive(Debug, thiserror::Error)]
pub enum LargeError {
    /// There is no way to its namespace.
    #[error(
        "{name}: the pod's network namespace is not in /run/netns, /run/docker/netns or among the processes in /proc; run \
         Podlane where it sees the node's (a container needs hostPID or /run/netns)"
    )]
    NoNamespace {
        /// The host end.
        name: String,
    },
    /// The way is closed.
    #[error(
        "{name}: entering the pod's network namespace failed: {source}; it takes CAP_SYS_ADMIN (for the service: \
             podlane-large-frames.conf)"
    )]
    Enter {
        /// The host end.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// A route of the pod cannot be changed without changing more than its metric.
    #[error("{name}: the pod's route {route} {why}, and cannot be given a metric as it is; make it a plain route")]
    Route {
        /// The host end.
        name: String,
        /// The route.
        route: String,
        /// What is special about it.
        why: &'static str,
    },
    /// The other end is no pod's, or not yet.
    #[error("{name}: its other end is not in a pod but in this network namespace; take {name} off the bridge")]
    NoPod {
        /// The host end.
        name: String,
    },
    /// The kernel does not have the sizes.
    #[error("{name}: this kernel has no segmentation sizes for IPv4; they came with Linux 6.3")]
    TooOld {
        /// The host end.
        name: String,
    },
    /// IPv6 needs more than that.
    #[error("an MTU of {mtu} bytes towards other nodes leaves no room for the jumbo header of IPv6, which needs 1288")]
    NoRoom {
        /// Of what leaves, bytes.
        mtu: u32,
    },
    /// An interface went away while it was changed.
    #[error("{name} is gone")]
    Gone {
        /// The host end.
        name: String,
    },
    /// The kernel refused.
    #[error("{name}: {source}")]
    Netlink {
        /// The host end.
        name: String,
        /// Its answer.
        source: NetlinkError,
    },
}

impl LargeError {
    /// Whether the kernel does not know the value, whatever the port.
    fn is_refusal(&self) -> bool {
        match self {
            LargeError::Netlink { source, .. } => {
                matches!(source.errno(), Some(libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP))
            }
            other => matches!(other, LargeError::TooOld { .. }),
        }
    }
}

/// What the configuration asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// Segmentation sizes, [`MIN_BIG_TCP`] to [`MAX_BIG_TCP`] bytes.
    pub big_tcp: Option<u32>,
    /// MTU of the pods, [`MIN_LOCAL_MTU`] to [`MAX_LOCAL_MTU`] bytes.
    pub local_mtu: Option<u32>,
}

/// The veth of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// The host end.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// This namespace's number for the pod's.
    pub netns: i32,
    /// The pod's end, in its namespace.
    pub peer: u32,
}

impl Pod {
    fn failed(&self, source: NetlinkError) -> LargeError {
        LargeError::Netlink { name: self.name.clone(), source }
    }

    fn gone(&self) -> LargeError {
        LargeError::Gone { name: self.name.clone() }
    }
}

/// What was found at a veth, host end and pod's end, and what was put there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held<T> {
    pod: Pod,
    /// Found at the host end and at the pod's.
    found: [T; 2],
    /// Put at both.
    put: [T; 2],
}

/// The routes of a pod whose MTU was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Marked {
    /// The metric that was put on them.
    metric: Metric,
    /// Those that had none.
    ours: BTreeSet<RouteId>,
}

/// When to look at a pod's routes again.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    pause: Duration,
}

impl Look {
    fn now() -> Look {
        Look { at: Instant::now(), pause: FIRST_LOOK }
    }

    fn soon() -> Look {
        Look { at: Instant::now() + FIRST_LOOK, ..Look::now() }
    }

    fn later(self) -> Look {
        let pause = (self.pause * 2).min(LAST_LOOK);
        Look { at: Instant::now() + pause, pause }
    }
}

/// The pod that cannot be changed now.
#[derive(Debug)]
struct Failure {
    ifindex: u32,
    since: Instant,
    retry_at: Instant,
}

/// The node, as far as it matters here.
#[derive(Debug)]
pub struct Node<'a> {
    /// The kernel's state.
    pub world: &'a World,
    /// The pods' bridge.
    pub bridge: Option<u32>,
    /// Both ends of the host port.
    pub host_port: [u32; 2],
    /// Host ends of the pods that are to be served.
    pub pods: BTreeSet<u32>,
    /// Of these, those whose frames take the kernel path.
    pub kernel_path: BTreeSet<u32>,
    /// Names of the uplinks.
    pub uplinks: Vec<&'a str>,
    /// The largest IP packet that AF_XDP sockets carry, bytes.
    pub most_by_sockets: u32,
}

impl Node<'_> {
    /// The veth of a pod.
    fn pod(&self, ifindex: u32) -> Result<Pod, LargeError> {
        let link = self.world.links.get(&ifindex).ok_or_else(|| LargeError::Gone { name: format!("#{ifindex}") })?;
        let name = link.name.clone();
        match (&link.kind, link.peer, link.peer_netns) {
            (LinkKind::Veth, Some(peer), Some(netns)) => Ok(Pod { ifindex, name, netns, peer }),
            _ => Err(LargeError::NoPod { name }),
        }
    }

    /// The smallest MTU of the uplinks.
    fn uplink_mtu(&self) -> Option<u32> {
        self.uplinks.iter().filter_map(|name| self.world.link_named(name)).map(|link| link.mtu).min()
    }

    /// A member of the bridge, other than pods and the host port, whose MTU is smaller.
    fn narrow_member(&self, mtu: u32) -> Option<&str> {
        let bridge = self.bridge?;
        let members = self.world.links.values().filter(|link| link.master == Some(bridge));
        let mut others =
            members.filter(|link| !self.host_port.contains(&link.ifindex) && !self.pods.contains(&link.ifindex));
        others.find(|link| link.mtu < mtu).map(|link| link.name.as_str())
    }
}

/// Keeps the pods' veths in step with what is wished for.
#[derive(Debug)]
pub struct Large {
    wish: Wish,
    requests: RequestSocket,
    namespaces: Namespaces,
    memory: memory::Memory,
    held: memory::Left,
    /// What is held differs from what is written down.
    unwritten: bool,
    looks: BTreeMap<u32, Look>,
    /// The same for those that leave room for a jumbo header.
    jumbo_looks: BTreeMap<u32, Look>,
    /// The kernel has refused larger sizes: there is no sense in asking again.
    refused: bool,
    failure: Option<Failure>,
    /// Ports without larger sizes, and why; each is told once.
    unreached: BTreeMap<u32, String>,
    /// Ports with larger sizes for IPv4 only, and why; each is told once.
    only_ipv4: BTreeMap<u32, String>,
    /// Why `big_tcp` or `local_mtu` is not in force, if so.
    notes: [Option<String>; 2],
}

const BIG_TCP: usize = 0;
const LOCAL_MTU: usize = 1;

impl Large {
    /// Begins with what an earlier daemon of this `instance`, which was killed, has left.
    ///
    /// # Errors
    /// If there is no socket to the kernel.
    pub fn open(wish: Wish, instance: &str) -> Result<Self, NetlinkError> {
        let memory = memory::Memory::of(instance);
        let held = memory.load();
        let look = Look::now();
        Ok(Large {
            wish,
            requests: RequestSocket::open(NETLINK_ROUTE)?,
            namespaces: Namespaces::default(),
            looks: held.mtus.keys().map(|ifindex| (*ifindex, look)).collect(),
            jumbo_looks: held.jumbo.keys().map(|ifindex| (*ifindex, look)).collect(),
            memory,
            held,
            unwritten: false,
            refused: false,
            failure: None,
            unreached: BTreeMap::new(),
            only_ipv4: BTreeMap::new(),
            notes: [None, None],
        })
    }

    /// Something else is asked for; [`Large::follow`] brings it into force. What was refused may be possible now.
    pub fn wish_for(&mut self, wish: Wish) {
        (self.wish, self.refused, self.failure, self.notes) = (wish, false, None, [None, None]);
        self.unreached.clear();
    }

    /// How many veths have other sizes than they had, and how many another MTU.
    pub fn held(&self) -> (usize, usize) {
        (self.held.sizes.len(), self.held.mtus.len())
    }

    /// Sentences about what is asked for and not in force.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.notes.iter().flatten().chain(self.unreached.values()).chain(self.only_ipv4.values()).map(String::as_str)
    }

    /// The segmentation size that a port was given, bytes.
    pub fn big_tcp(&self, ifindex: u32) -> Option<u32> {
        self.held.sizes.get(&ifindex).map(|held| held.put[0].gso)
    }

    /// The MTU that a port was given, bytes.
    pub fn local_mtu(&self, ifindex: u32) -> Option<u32> {
        self.held.mtus.get(&ifindex).map(|(held, _)| held.put[0])
    }

    /// Whether [`Large::follow`] has something to do although no link has changed.
    pub fn is_due(&self) -> bool {
        let now = Instant::now();
        let retry = self.failure.as_ref().is_some_and(|failure| failure.retry_at <= now);
        retry || self.looks.values().chain(self.jumbo_looks.values()).any(|look| look.at <= now)
    }

    /// Gives these ports their sizes back, because they are about to take the other path.
    pub fn leave(&mut self, ports: &[u32]) {
        let leaving: Vec<u32> = ports.iter().copied().filter(|ifindex| self.held.sizes.contains_key(ifindex)).collect();
        for ifindex in &leaving {
            self.give_sizes_back(*ifindex);
        }
        self.write_down();
    }

    /// Changes what is to be changed and gives back what is not.
    pub fn follow(&mut self, node: &Node<'_>) {
        self.forget_gone(node);
        self.follow_sizes(node);
        self.look_for_room(node);
        self.follow_mtu(node);
        self.write_down();
    }

    /// Gives everything back.
    pub fn end(&mut self) {
        for ifindex in self.held.sizes.keys().copied().collect::<Vec<_>>() {
            self.give_sizes_back(ifindex);
        }
        self.lower_all();
        self.memory.forget();
    }

    fn write_down(&mut self) {
        if std::mem::take(&mut self.unwritten)
            && let Err(error) = self.memory.save(&self.held)
        {
            tracing::warn!(%error, "what was found at the pods' veths is not written down: after a kill it would be lost");
        }
    }

    /// What is gone, or has become another interface under the same number, has nothing to be given back.
    fn forget_gone(&mut self, node: &Node<'_>) {
        let same = |pod: &Pod| node.pod(pod.ifindex).is_ok_and(|now| now.netns == pod.netns && now.peer == pod.peer);
        self.held.sizes.retain(|_, held| same(&held.pod));
        self.held.mtus.retain(|_, (held, _)| same(&held.pod));
        self.held.jumbo.retain(|ifindex, _| self.held.sizes.contains_key(ifindex));
        self.looks.retain(|ifindex, _| self.held.mtus.contains_key(ifindex));
        self.jumbo_looks.retain(|ifindex, _| self.held.jumbo.contains_key(ifindex));
        self.only_ipv4.retain(|ifindex, _| self.held.sizes.contains_key(ifindex));
        self.unreached.retain(|ifindex, _| node.pods.contains(ifindex));
        self.failure.take_if(|failure| !node.pods.contains(&failure.ifindex));
    }

    /// Says a sentence once, or takes it back.
    fn note(&mut self, which: usize, sentence: Option<String>) {
        if let Some(sentence) = sentence.as_ref().filter(|sentence| self.notes[which].as_ref() != Some(sentence)) {
            tracing::warn!("{sentence}");
        }
        self.notes[which] = sentence;
    }
}

/// Segmentation sizes.
impl Large {
    fn follow_sizes(&mut self, node: &Node<'_>) {
        let wanted = self.wish.big_tcp.filter(|_| !self.refused);
        let is_wanted = |ifindex: &u32| wanted.is_some() && node.kernel_path.contains(ifindex);
        let unwanted = |held: &Held<Sizes>| Some(held.put[0].gso) != wanted || !is_wanted(&held.pod.ifindex);
        let back: Vec<u32> =
            self.held.sizes.values().filter(|held| unwanted(held)).map(|held| held.pod.ifindex).collect();
        back.into_iter().for_each(|ifindex| self.give_sizes_back(ifindex));
        let Some(bytes) = wanted else { return };
        for ifindex in &node.kernel_path {
            if self.held.sizes.contains_key(ifindex) || self.unreached.contains_key(ifindex) {
                continue;
            }
            // A veth without a pod behind it has nothing to gain.
            let Ok(pod) = node.pod(*ifindex) else { continue };
            match self.give_sizes(&pod, bytes, self.outward(node, &pod)) {
                Ok(held) => {
                    self.held.sizes.insert(*ifindex, held);
                    self.unwritten = true;
                }
                Err(LargeError::Gone { .. }) => {}
                Err(error) if error.is_refusal() => {
                    self.refused = true;
                    let why = format!(
                        "big_tcp = {bytes} is not in force: this kernel refuses it ({error}); it needs Linux 5.19"
                    );
                    return self.note(BIG_TCP, Some(why));
                }
                Err(error) => {
                    let why = format!("big_tcp is not in force on one port: {error}");
                    tracing::warn!("{why}");
                    self.unreached.insert(*ifindex, why);
                }
            }
        }
    }

    /// The pod's end first: it is the one that may not be reached. `mtu`: of the largest packet that leaves the node.
    fn give_sizes(&mut self, pod: &Pod, bytes: u32, mtu: u32) -> Result<Held<Sizes>, LargeError> {
        let too_old = || LargeError::TooOld { name: pod.name.clone() };
        let host = read(&mut self.requests, pod, pod.ifindex)?.sizes.ok_or_else(too_old)?;
        let room = leaves_room(mtu);
        let (inner, put, jumbo) = self.visit(pod, |inside| {
            let state = read_inner(inside, pod)?;
            let found = state.sizes.ok_or_else(too_old)?;
            // The routes first: without them the kernel refuses what leaves.
            let mut ours = BTreeSet::new();
            let jumbo = room.and_then(|metric| make_room(inside, pod, metric, state.mtu, &mut ours));
            let put = if jumbo.is_ok() { Sizes::both(bytes) } else { Sizes::ipv4(bytes) };
            if let Err(error) = link::set_sizes(inside, pod.peer, put) {
                if let Ok(metric) = jumbo {
                    // The first error is the one to report.
                    let _ = routes::unmark(inside, pod, metric, &ours);
                }
                return Err(pod.failed(error));
            }
            Ok((found, put, jumbo.map(|metric| Marked { metric, ours })))
        })?;
        let held = Held { pod: pod.clone(), found: [host.as_far_as(&put), inner.as_far_as(&put)], put: [put; 2] };
        let given = link::set_sizes(&mut self.requests, pod.ifindex, held.put[0]);
        match jumbo {
            Ok(marked) => {
                self.held.jumbo.insert(pod.ifindex, marked);
                self.jumbo_looks.insert(pod.ifindex, Look::soon());
                self.only_ipv4.remove(&pod.ifindex);
            }
            Err(why) => self.note_only_ipv4(pod, &why.to_string()),
        }
        if let Err(error) = given {
            self.restore_sizes(&held);
            return Err(pod.failed(error));
        }
        Ok(held)
    }

    fn note_only_ipv4(&mut self, pod: &Pod, why: &str) {
        let sentence = format!("big_tcp is in force for IPv4 only on one port: {why}");
        if self.only_ipv4.get(&pod.ifindex) != Some(&sentence) {
            tracing::warn!("{sentence}");
            self.only_ipv4.insert(pod.ifindex, sentence);
        }
    }

    /// The largest packet of a pod that leaves the node.
    fn outward(&self, node: &Node<'_>, pod: &Pod) -> u32 {
        let found = self.held.mtus.get(&pod.ifindex).map(|(held, _)| held.found[1]);
        let mtu = found.or_else(|| node.world.links.get(&pod.ifindex).map(|link| link.mtu));
        outward(mtu.unwrap_or(u32::MAX), node.uplink_mtu())
    }

    /// Routes that came later, or lost their metric, get it too. A pod with one that cannot is left with IPv4.
    fn look_for_room(&mut self, node: &Node<'_>) {
        let now = Instant::now();
        for ifindex in self.held.jumbo.keys().copied().collect::<Vec<_>>() {
            let (Some(held), Some(marked)) = (self.held.sizes.get(&ifindex), self.held.jumbo.get(&ifindex)) else {
                continue;
            };
            let (pod, mut ours) = (held.pod.clone(), marked.ours.clone());
            let room = leaves_room(self.outward(node, &pod));
            let look = self.jumbo_looks.get(&ifindex).copied().unwrap_or_else(Look::soon);
            if look.at > now && room.as_ref().is_ok_and(|metric| *metric == marked.metric) {
                continue;
            }
            let seen = self.visit(&pod, |inside| {
                let mtu = read_inner(inside, &pod)?.mtu;
                room.and_then(|metric| make_room(inside, &pod, metric, mtu, &mut ours))
            });
            self.jumbo_looks.insert(ifindex, look.later());
            match seen {
                Ok(metric) => {
                    let marked = Marked { metric, ours };
                    self.unwritten |= self.held.jumbo.get(&ifindex) != Some(&marked);
                    self.held.jumbo.insert(ifindex, marked);
                }
                Err(LargeError::Gone { .. }) => {}
                Err(error) => self.leave_ipv6(&pod, &error),
            }
        }
    }

    /// Gives the sizes of IPv6 back.
    fn leave_ipv6(&mut self, pod: &Pod, why: &LargeError) {
        let Some(held) = self.held.sizes.remove(&pod.ifindex) else { return };
        self.unwritten = true;
        self.restore_sizes(&held);
        self.note_only_ipv4(pod, &why.to_string());
        // What is left of it is put back at once: both ends go on with IPv4.
        let put = Sizes::ipv4(held.put[0].gso);
        let inner = self.visit(pod, |inside| {
            read_inner(inside, pod)?;
            link::set_sizes(inside, pod.peer, put).map_err(|error| pod.failed(error))
        });
        let host = link::set_sizes(&mut self.requests, pod.ifindex, put).map_err(|error| pod.failed(error));
        match inner.and(host) {
            Ok(()) => {
                let found = held.found.map(|found| found.as_far_as(&put));
                self.held.sizes.insert(pod.ifindex, Held { pod: pod.clone(), found, put: [put; 2] });
            }
            Err(error) => tracing::debug!(%error, "giving a veth the sizes of IPv4 only"),
        }
    }

    fn give_sizes_back(&mut self, ifindex: u32) {
        if let Some(held) = self.held.sizes.remove(&ifindex) {
            self.unwritten = true;
            self.restore_sizes(&held);
        }
    }

    fn restore_sizes(&mut self, held: &Held<Sizes>) {
        let pod = &held.pod;
        let host = back(&mut self.requests, pod, pod.ifindex, held.found[0], held.put[0]);
        let jumbo = self.held.jumbo.remove(&pod.ifindex);
        self.jumbo_looks.remove(&pod.ifindex);
        let inner = self.visit(pod, |inside| {
            read_inner(inside, pod)?;
            back(inside, pod, pod.peer, held.found[1], held.put[1])?;
            let Some(marked) = &jumbo else { return Ok(()) };
            routes::unmark(inside, pod, marked.metric, &marked.ours)
        });
        // If `local_mtu` has routes here as well, it marks them anew.
        if let Some(look) = self.looks.get_mut(&pod.ifindex) {
            *look = Look::now();
        }
        for error in [host, inner].into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "giving a veth its segmentation sizes back");
        }
    }
}

/// The MTU.
impl Large {
    fn follow_mtu(&mut self, node: &Node<'_>) {
        let Some(mtu) = self.wish.local_mtu else { return self.lower_all() };
        let why = self.obstacle(node, mtu);
        if why.is_some() {
            self.lower_all();
            self.failure = None;
            return self.note(LOCAL_MTU, why);
        }
        let changed = |held: &Held<u32>| held.put[0] != mtu || !node.pods.contains(&held.pod.ifindex);
        let back: Vec<u32> =
            self.held.mtus.values().filter(|(held, _)| changed(held)).map(|(held, _)| held.pod.ifindex).collect();
        back.into_iter().for_each(|ifindex| self.lower(ifindex));
        self.look_at_routes(node);
        self.raise_all(node, mtu);
    }

    /// Why no pod may have this MTU.
    fn obstacle(&self, node: &Node<'_>, mtu: u32) -> Option<String> {
        if let Some(uplink) = node.uplink_mtu().filter(|uplink| *uplink >= mtu) {
            return Some(format!(
                "local_mtu = {mtu} is not in force: the uplinks' MTU is {uplink} already; set it above that or leave it out"
            ));
        }
        let most = node.most_by_sockets;
        if mtu > most && !node.pods.is_subset(&node.kernel_path) {
            return Some(format!(
                "local_mtu = {mtu} is not in force: this kernel's AF_XDP sockets carry packets of at most {most} bytes (longer \
                 ones are in several pieces, which is for Linux 6.6 and newer); set it to that, or have all pods take the kernel path"
            ));
        }
        let name = node.narrow_member(mtu)?;
        Some(format!(
            "local_mtu = {mtu} is not in force: {name} is a member of the bridge with a smaller MTU and none of Podlane's \
             pods, and would lose larger frames in silence; give it that MTU at both ends, or take it off the bridge"
        ))
    }

    /// The pod that failed last is tried first: before the others are changed it is clear whether they may be.
    fn raise_all(&mut self, node: &Node<'_>, mtu: u32) {
        let failed = self.failure.as_ref();
        if failed.is_some_and(|failure| failure.retry_at > Instant::now()) {
            return;
        }
        let first = failed.map(|failure| failure.ifindex);
        let rest = node.pods.iter().copied().filter(|ifindex| Some(*ifindex) != first);
        let missing: Vec<u32> = first.into_iter().chain(rest).filter(|pod| !self.held.mtus.contains_key(pod)).collect();
        let any = !missing.is_empty();
        for ifindex in missing {
            match node.pod(ifindex).and_then(|pod| self.raise(&pod, mtu, node.uplink_mtu())) {
                Ok(raised) => {
                    self.held.mtus.insert(ifindex, raised);
                    self.unwritten = true;
                    self.looks.insert(ifindex, Look::soon());
                    self.failure.take_if(|failure| failure.ifindex == ifindex);
                }
                Err(LargeError::Gone { .. }) => {}
                Err(error) => return self.fail(ifindex, &error, mtu),
            }
        }
        if any {
            tracing::info!(mtu, pods = self.held.mtus.len(), "the pods have a larger MTU for each other");
        }
        self.note(LOCAL_MTU, None);
    }

    /// Within the grace the others keep their MTU; after it they get their own back.
    fn fail(&mut self, ifindex: u32, error: &LargeError, mtu: u32) {
        let now = Instant::now();
        let known = self.failure.take_if(|failure| failure.ifindex == ifindex);
        let since = known.map_or(now, |failure| failure.since);
        let over = now.duration_since(since) >= GRACE;
        self.failure = Some(Failure { ifindex, since, retry_at: now + RETRY[usize::from(over)] });
        if over {
            self.lower_all();
            self.note(LOCAL_MTU, Some(format!("local_mtu = {mtu} is not in force, for no pod: {error}")));
        }
    }

    /// The host end first: what the pod sends then is accepted.
    fn raise(&mut self, pod: &Pod, mtu: u32, uplink: Option<u32>) -> Result<(Held<u32>, Marked), LargeError> {
        let host = read(&mut self.requests, pod, pod.ifindex)?.mtu;
        let file = self.namespaces.find(&mut self.requests, pod)?;
        change_mtu(&mut self.requests, pod, pod.ifindex, [host, mtu])?;
        let metric = |found| self.metric(outward(found, uplink));
        match netns::visit(&file, pod, |inside| raise_inner(inside, pod, mtu, metric)) {
            Ok((inner, marked)) => Ok((Held { pod: pod.clone(), found: [host, inner], put: [mtu, mtu] }, marked)),
            Err(error) => {
                change_mtu(&mut self.requests, pod, pod.ifindex, [mtu, host])?;
                Err(error)
            }
        }
    }

    /// Routes that came later get the metric too, and all of them another one if the uplinks' MTU changes.
    fn look_at_routes(&mut self, node: &Node<'_>) {
        let now = Instant::now();
        for ifindex in self.held.mtus.keys().copied().collect::<Vec<_>>() {
            let Some((held, marked)) = self.held.mtus.get(&ifindex) else { continue };
            let metric = self.metric(outward(held.found[1], node.uplink_mtu()));
            let look = self.looks.get(&ifindex).copied().unwrap_or_else(Look::soon);
            if look.at > now && metric == marked.metric {
                continue;
            }
            let (pod, mut ours) = (held.pod.clone(), marked.ours.clone());
            let seen = self.visit(&pod, |inside| {
                read_inner(inside, &pod)?;
                routes::mark(inside, &pod, metric, &BTreeMap::new(), &mut ours).map(|()| ours)
            });
            self.looks.insert(ifindex, look.later());
            match (seen, self.held.mtus.get_mut(&ifindex), self.wish.local_mtu) {
                (Ok(ours), Some((_, marked)), _) => {
                    let now = Marked { metric, ours };
                    self.unwritten |= *marked != now;
                    *marked = now;
                }
                (Err(error), _, Some(local)) if !matches!(error, LargeError::Gone { .. }) => {
                    self.lower(ifindex);
                    return self.fail(ifindex, &error, local);
                }
                _ => {}
            }
        }
    }

    /// What routes that leave get, if packets of `mtu` bytes can leave. Room for the jumbo header is left whether or not this
    /// pod's packets have one now: they may later.
    fn metric(&self, mtu: u32) -> Metric {
        let room =
            if self.wish.big_tcp.is_some() { leaves_room(mtu).ok().and_then(|metric| metric.ipv6) } else { None };
        Metric { ipv4: Some(mtu), ipv6: Some(room.unwrap_or(mtu)) }
    }

    fn lower_all(&mut self) {
        for ifindex in self.held.mtus.keys().copied().collect::<Vec<_>>() {
            self.lower(ifindex);
        }
    }

    /// The pod's end first: what it sends then fits.
    fn lower(&mut self, ifindex: u32) {
        self.looks.remove(&ifindex);
        let Some((held, marked)) = self.held.mtus.remove(&ifindex) else { return };
        self.unwritten = true;
        let pod = &held.pod;
        let inner = self.visit(pod, |inside| {
            read_inner(inside, pod)?;
            change_mtu(inside, pod, pod.peer, [held.put[1], held.found[1]])?;
            routes::unmark(inside, pod, marked.metric, &marked.ours)
        });
        if let Some(look) = self.jumbo_looks.get_mut(&ifindex) {
            *look = Look::now();
        }
        let host = change_mtu(&mut self.requests, pod, pod.ifindex, [held.put[0], held.found[0]]);
        for error in [inner, host].into_iter().filter_map(Result::err) {
            // A pod on its way out has lost its namespace before its veth.
            tracing::debug!(%error, "giving a veth its MTU back");
        }
    }

    fn visit<T: Send>(
        &mut self,
        pod: &Pod,
        work: impl FnOnce(&mut RequestSocket) -> Result<T, LargeError> + Send,
    ) -> Result<T, LargeError> {
        let file = self.namespaces.find(&mut self.requests, pod)?;
        netns::visit(&file, pod, work)
    }
}

/// The largest packet that leaves the node: as large as it was, and as the uplinks allow.
fn outward(found: u32, uplink: Option<u32>) -> u32 {
    found.min(uplink.unwrap_or(u32::MAX))
}

/// The metric that leaves room for the jumbo header, if packets of `mtu` bytes can leave.
///
/// A packet of IPv6 beyond 65,535 bytes carries it while it is inside of the kernel, and routing counts its bytes into the
/// segments that the packet will become (`ip6_pkt_too_big`, `skb_gso_network_seglen`; seen on Linux 6.18). So the kernel's
/// own routing refuses every such packet whose segments fill the MTU, and TCP that leaves a pod through it falls from gigabits
/// to some megabits per second. With segments that are so much smaller nothing is refused.
fn leaves_room(mtu: u32) -> Result<Metric, LargeError> {
    match mtu.checked_sub(JUMBO_HEADER).filter(|rest| *rest >= MIN_LOCAL_MTU) {
        Some(rest) => Ok(Metric { ipv4: None, ipv6: Some(rest) }),
        None => Err(LargeError::NoRoom { mtu }),
    }
}

/// Leaves room on every route of IPv6 that leaves; the pod's own MTU is `mtu`. All of it or nothing.
fn make_room(
    inside: &mut RequestSocket,
    pod: &Pod,
    metric: Metric,
    mtu: u32,
    ours: &mut BTreeSet<RouteId>,
) -> Result<Metric, LargeError> {
    let made = routes::mark(inside, pod, metric, &BTreeMap::new(), ours)
        .and_then(|()| routes::keep_within(inside, pod, metric, mtu));
    if made.is_err() {
        // The first error is the one to report.
        let _ = routes::unmark(inside, pod, metric, ours);
    }
    made.map(|()| metric)
}

fn read(requests: &mut RequestSocket, pod: &Pod, ifindex: u32) -> Result<State, LargeError> {
    link::read(requests, ifindex).map_err(|error| pod.failed(error))?.ok_or_else(|| pod.gone())
}

/// The pod's end, if it is still the other end of this veth.
fn read_inner(inside: &mut RequestSocket, pod: &Pod) -> Result<State, LargeError> {
    let state = read(inside, pod, pod.peer)?;
    if state.peer == Some(pod.ifindex) { Ok(state) } else { Err(pod.gone()) }
}

/// Gives sizes back unless somebody has changed them meanwhile.
fn back(requests: &mut RequestSocket, pod: &Pod, ifindex: u32, found: Sizes, put: Sizes) -> Result<(), LargeError> {
    if found == put || !read(requests, pod, ifindex)?.sizes.is_some_and(|now| now.are(&put)) {
        return Ok(());
    }
    link::set_sizes(requests, ifindex, found).map_err(|error| pod.failed(error))
}

/// Sets an MTU unless somebody has set another than the expected one meanwhile.
fn change_mtu(
    requests: &mut RequestSocket,
    pod: &Pod,
    ifindex: u32,
    [expected, wanted]: [u32; 2],
) -> Result<(), LargeError> {
    if expected == wanted || read(requests, pod, ifindex)?.mtu != expected {
        return Ok(());
    }
    link::set_mtu(requests, ifindex, wanted).map_err(|error| pod.failed(error))
}

/// Inside of a pod: the MTU, and then the routes, because the kernel changes metrics of IPv6 with it. All of it or nothing.
fn raise_inner(
    inside: &mut RequestSocket,
    pod: &Pod,
    mtu: u32,
    metric: impl Fn(u32) -> Metric,
) -> Result<(u32, Marked), LargeError> {
    let found = read_inner(inside, pod)?.mtu;
    let metric = metric(found);
    let kept = |route: routes::Route| route.mtu().map(|metric| (route.id(), metric));
    let keep: BTreeMap<RouteId, u32> = routes::leaving(inside, pod, metric)?.into_iter().filter_map(kept).collect();
    let mut marked = Marked { metric, ours: BTreeSet::new() };
    change_mtu(inside, pod, pod.peer, [found, mtu])?;
    match routes::mark(inside, pod, metric, &keep, &mut marked.ours) {
        Ok(()) => Ok((found, marked)),
        Err(error) => {
            // The first error is the one to report.
            let _ = change_mtu(inside, pod, pod.peer, [mtu, found]);
            let _ = routes::unmark(inside, pod, metric, &marked.ours);
            Err(error)
        }
    }
}
