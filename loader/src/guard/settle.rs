//! Whose an address is, when several say it is theirs.
//!
//! Pure: claims, what the node itself has, and what was settled before. Three rounds, each by interface index: what a CNI result
//! gives, which root wrote; what a pod held before and still has; what is left. An earlier round decides against a later one,
//! so an address that another pod holds can neither be taken by a pod that gives it to itself nor be lost to one. Who asks in
//! the same round gets it as well: nothing tells whose it is (after a start, without CNI results), and to guess would cut
//! somebody off. Nobody gets the node's own addresses, or one that a static FDB entry or a permanent neighbour entry says is
//! elsewhere; and only a CNI result gives a pod what is not on the bridge's networks, as far as its guard asks for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podlane_dataplane::table::Guard;
use podlane_dataplane::{MacAddr, limits};

use super::ends::{End, MOST};
use crate::compile::bridge_networks;
use crate::config::GuardChoice;
use crate::mirror::World;
use crate::mirror::world::{AddressKey, FdbKind};
use crate::status::GuardStatus;

/// Addresses of which is told why a pod may not have them: it chooses how many there are.
const MOST_TOLD: usize = 8;
/// Why a pod has no guard unless it is asked for.
const NOT_OURS: &str = "`source_guard` is `auto`, and another network plugin connected the pod";

/// What is said of one port.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its interface.
    pub ifindex: u32,
    /// The interface's name.
    pub name: String,
    /// What is asked for: not [`GuardChoice::Auto`], which is decided before.
    pub choice: GuardChoice,
    /// Whether `choice` follows from [`GuardChoice::Auto`].
    pub is_auto: bool,
    /// What the CNI result gives the pod, if there is one.
    pub cni: Option<(Vec<MacAddr>, Vec<IpAddr>)>,
    /// The pod's own end.
    pub end: End,
}

/// What is settled for one port.
#[derive(Clone, PartialEq, Debug)]
pub struct Settled {
    /// What was asked for.
    pub choice: GuardChoice,
    /// MAC addresses that are the pod's, guarded or not.
    pub macs: BTreeSet<MacAddr>,
    /// IP addresses, likewise.
    pub addresses: BTreeSet<IpAddr>,
    /// What it may not have, each with the reason.
    pub refused: Vec<String>,
    /// The guard; or why there is none, as a clause.
    pub guard: Result<Guard, String>,
    /// Whence the addresses are known, as a clause.
    pub source: &'static str,
}

impl Settled {
    /// What an earlier daemon settled, as far as its guard tells.
    pub fn adopted(guard: Guard) -> Self {
        Settled {
            choice: if guard.strict { GuardChoice::Strict } else { GuardChoice::Cluster },
            macs: guard.macs().collect(),
            addresses: guard.ipv4().map(IpAddr::from).chain(guard.ipv6().map(IpAddr::from)).collect(),
            refused: Vec::new(),
            guard: Ok(guard),
            source: "by an earlier daemon",
        }
    }

    /// For `podlane status`.
    pub fn status(&self) -> GuardStatus {
        let active = self.guard.is_ok();
        let texts = |texts: Vec<String>| if active { texts } else { Vec::new() };
        GuardStatus {
            wanted: self.choice.word().to_owned(),
            active,
            why: self.guard.as_ref().err().cloned().unwrap_or_else(|| self.source.to_owned()),
            macs: texts(self.macs.iter().map(ToString::to_string).collect()),
            addresses: texts(self.addresses.iter().map(ToString::to_string).collect()),
            refused: texts(self.refused.clone()),
        }
    }
}

/// What no pod may have.
#[derive(Clone, Debug, Default)]
pub struct Node<'a> {
    world: Option<&'a World>,
    bridge: u32,
    /// The bridge's own networks.
    networks: Vec<IpNet>,
    /// The cluster's.
    cluster: Vec<IpNet>,
    macs: BTreeSet<MacAddr>,
    addresses: BTreeSet<IpAddr>,
    /// Where static FDB entries say that a MAC address is.
    stations: BTreeMap<MacAddr, u32>,
    /// The MAC addresses of permanent neighbour entries.
    neighbours: BTreeMap<IpAddr, MacAddr>,
}

impl<'a> Node<'a> {
    /// Of the node's own network namespace, in a cluster of these networks; `None` for the bridge's own.
    pub fn of(world: &'a World, bridge: u32, cluster: Option<&[IpNet]>) -> Self {
        // Every interface has a link-local address; only the bridge's own can be taken from it there.
        let is_seen = |key: &&AddressKey| key.ifindex == bridge || !is_link_local(&key.local);
        let networks = bridge_networks(world, bridge);
        let mut node = Node {
            world: Some(world),
            bridge,
            cluster: cluster.map_or_else(|| networks.clone(), <[_]>::to_vec),
            networks,
            addresses: world.addresses.keys().filter(is_seen).map(|key| key.local).collect(),
            macs: world.links.get(&bridge).map(|link| link.mac).into_iter().collect(),
            ..Node::default()
        };
        for (key, entry) in world.fdb.iter().filter(|(key, _)| key.bridge == bridge) {
            match entry.kind {
                FdbKind::Local => drop(node.macs.insert(key.mac)),
                FdbKind::Static => drop(node.stations.insert(key.mac, entry.port)),
                FdbKind::ExternLearned | FdbKind::Dynamic => {}
            }
        }
        let on_bridge = world.neighbours.iter().filter(|(key, _)| key.ifindex == bridge);
        node.neighbours = on_bridge
            .filter(|(_, neighbour)| neighbour.state.is_configured())
            .map(|(key, neighbour)| (key.address, neighbour.mac))
            .collect();
        node
    }

    fn refuses_mac(&self, mac: MacAddr, ifindex: u32) -> Option<&'static str> {
        if self.macs.contains(&mac) {
            return Some("it is the node's own");
        }
        let elsewhere = self.stations.get(&mac).is_some_and(|port| *port != ifindex);
        elsewhere.then_some("a static FDB entry says that it is elsewhere")
    }

    fn refuses(&self, address: IpAddr, macs: &BTreeSet<MacAddr>) -> Option<&'static str> {
        if self.addresses.contains(&address) {
            return Some("it is the node's own");
        }
        let elsewhere = self.neighbours.get(&address).is_some_and(|mac| !macs.contains(mac));
        elsewhere.then_some("a permanent neighbour entry says that it is elsewhere")
    }

    /// The same for what a pod gives itself: other nodes' pods and networks are not to be had here. With a guard that lets
    /// what is outside of the cluster through, that does not matter; and a bridge without networks tells nothing.
    fn refuses_wish(&self, address: IpAddr, claim: &Claim) -> Option<&'static str> {
        let strict = claim.choice == GuardChoice::Strict;
        if is_link_local(&address) {
            return None;
        }
        if strict && has_real(&cni_addresses(claim)) && !cni_addresses(claim).contains(&address) {
            return Some("the CNI result does not tell of it");
        }
        let mut own = self.networks.iter().filter(|network| network.addr().is_ipv4() == address.is_ipv4()).peekable();
        if own.peek().is_none() || own.any(|network| network.contains(&address)) {
            return None;
        }
        let matters = strict || self.cluster.iter().any(|network| network.contains(&address));
        (matters && !self.leads_to_bridge(address)).then_some("it is not on the bridge's networks")
    }

    /// Whether a route says so that is not for everything else.
    fn leads_to_bridge(&self, address: IpAddr) -> bool {
        let found = self.world.and_then(|world| world.route_to(address));
        found.is_some_and(|(network, routes)| {
            network.prefix_len() > 0 && routes.iter().any(|route| route.uses(self.bridge))
        })
    }
}

pub(super) fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// What is asked for: the round, the port's interface, and what.
type Wishes<T> = Vec<(Round, u32, T)>;

/// Why a port asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    Given,
    Kept,
    Left,
}

/// Settles all claims. `before` is what was settled last.
pub fn settle(claims: &[Claim], node: &Node<'_>, before: &BTreeMap<u32, Settled>) -> BTreeMap<u32, Settled> {
    let bound = bound(claims, before);
    let ports: BTreeMap<u32, &Claim> = claims.iter().map(|claim| (claim.ifindex, claim)).collect();
    let mut refused: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let held_macs = |settled: &Settled| settled.macs.clone();
    let refuses_mac = |_, mac: MacAddr, ifindex| node.refuses_mac(mac, ifindex);
    // Of no pod more is kept than is looked at: one that is not guarded, and keeps what it had, may change it all the time.
    let most = |ifindex: u32, guarded: usize| if bound.contains(&ifindex) { guarded } else { MOST };
    let mac_fits = |ifindex, own: &BTreeSet<MacAddr>, _: MacAddr| own.len() < most(ifindex, limits::MAX_GUARD_MACS);
    let address_fits = |ifindex, own: &BTreeSet<IpAddr>, wish: IpAddr| {
        let of_family = own.iter().filter(|address| address.is_ipv4() == wish.is_ipv4());
        of_family.count() < most(ifindex, limits::MAX_GUARD_ADDRESSES)
    };
    let rounds = rounds(claims, before, own_macs, cni_macs, held_macs);
    let macs = distribute(rounds, &ports, (refuses_mac, mac_fits), &mut refused);
    let none = BTreeSet::new();
    let held_addresses = |settled: &Settled| settled.addresses.clone();
    let refuses = |round: Round, address: IpAddr, ifindex: u32| {
        let refused = node.refuses(address, macs.get(&ifindex).unwrap_or(&none));
        let claim = ports.get(&ifindex).filter(|claim| match round {
            Round::Given => false,
            // A CNI result may have given it, which is read some time after a start.
            Round::Kept => claim.cni.is_some() || before.get(&ifindex).is_none_or(|old| old.choice != claim.choice),
            Round::Left => true,
        });
        refused.or_else(|| node.refuses_wish(address, claim?))
    };
    let rounds = self::rounds(claims, before, own_addresses, cni_addresses, held_addresses);
    let addresses = distribute(rounds, &ports, (refuses, address_fits), &mut refused);
    let conclude = |claim: &Claim| {
        let (macs, addresses) = (macs.get(&claim.ifindex), addresses.get(&claim.ifindex));
        let refused = told(refused.remove(&claim.ifindex).unwrap_or_default(), &claim.end);
        let settled = conclude(
            claim,
            macs.cloned().unwrap_or_default(),
            addresses.cloned().unwrap_or_default(),
            refused,
            guard_before(claim, before),
        );
        (claim.ifindex, settled)
    };
    claims.iter().map(conclude).collect()
}

fn guard_before<'a>(claim: &Claim, before: &'a BTreeMap<u32, Settled>) -> Option<&'a Guard> {
    before.get(&claim.ifindex)?.guard.as_ref().ok()
}

/// The ports of which it is known what they have: more than a guard holds is not theirs, and no way out of it.
fn bound(claims: &[Claim], before: &BTreeMap<u32, Settled>) -> BTreeSet<u32> {
    let bound = claims.iter().filter(|claim| claim.cni.is_some() || guard_before(claim, before).is_some());
    bound.map(|claim| claim.ifindex).collect()
}

fn cni_macs(claim: &Claim) -> Vec<MacAddr> {
    claim.cni.as_ref().map(|(macs, _)| macs.clone()).unwrap_or_default()
}

/// With those that the kernel makes of the MAC addresses: no CNI result tells of them, and they are easily foretold.
fn cni_addresses(claim: &Claim) -> Vec<IpAddr> {
    let Some((macs, addresses)) = &claim.cni else { return Vec::new() };
    let macs = macs.iter().filter(|mac| mac.is_station()).take(limits::MAX_GUARD_MACS);
    addresses.iter().copied().chain(macs.map(|mac| link_local_of(*mac))).collect()
}

/// The link-local address with the modified EUI-64 of a MAC address (RFC 4291, appendix A).
fn link_local_of(mac: MacAddr) -> IpAddr {
    let [a, b, c, d, e, f] = mac.octets();
    let [high, low] = [[a ^ 2, b, c, 0xff], [0xfe, d, e, f]].map(u32::from_be_bytes);
    IpAddr::from((0xfe80_u128 << 112 | u128::from(high) << 32 | u128::from(low)).to_be_bytes())
}

fn own_macs(claim: &Claim) -> Vec<MacAddr> {
    match &claim.end {
        End::Own { macs, .. } => macs.iter().copied().collect(),
        End::Unknown(_) => Vec::new(),
    }
}

fn own_addresses(claim: &Claim) -> Vec<IpAddr> {
    match &claim.end {
        End::Own { addresses, .. } => addresses.iter().copied().collect(),
        End::Unknown(_) => Vec::new(),
    }
}

/// Who asks for what, in the order in which it is decided.
fn rounds<T: Copy + Ord>(
    claims: &[Claim],
    before: &BTreeMap<u32, Settled>,
    own: impl Fn(&Claim) -> Vec<T>,
    cni: impl Fn(&Claim) -> Vec<T>,
    held: impl Fn(&Settled) -> BTreeSet<T>,
) -> Wishes<T> {
    let held = |claim: &Claim| before.get(&claim.ifindex).map(&held).unwrap_or_default();
    let asks = |round, claim: &Claim| {
        let ifindex = claim.ifindex;
        move |wish| (round, ifindex, wish)
    };
    let given = claims.iter().flat_map(|claim| cni(claim).into_iter().map(asks(Round::Given, claim)));
    // A pod whose end cannot be read any more, that has put something between itself and its end, or that has taken all
    // addresses off it, keeps what it had: such a pod says nothing of what is behind.
    let kept = claims.iter().flat_map(|claim| {
        let (held, own) = (held(claim), own(claim));
        let all = claim.end.keeps();
        held.into_iter().filter(move |wish| all || own.contains(wish)).map(asks(Round::Kept, claim))
    });
    let left = claims.iter().flat_map(|claim| own(claim).into_iter().map(asks(Round::Left, claim)));
    given.chain(kept).chain(left).collect()
}

/// Gives each thing to those who ask for it in the first round in which anybody does; the others are told so.
fn distribute<T: Copy + Ord + ToString>(
    wishes: Wishes<T>,
    ports: &BTreeMap<u32, &Claim>,
    (refuses, fits): (impl Fn(Round, T, u32) -> Option<&'static str>, impl Fn(u32, &BTreeSet<T>, T) -> bool),
    refused: &mut BTreeMap<u32, BTreeSet<String>>,
) -> BTreeMap<u32, BTreeSet<T>> {
    let mut owners: BTreeMap<T, (Round, u32)> = BTreeMap::new();
    let mut given: BTreeMap<u32, BTreeSet<T>> = BTreeMap::new();
    for (round, ifindex, wish) in wishes {
        let mut refuse = |why: &str| {
            refused.entry(ifindex).or_default().insert(format!("{}: {why}", wish.to_string()));
        };
        let own = given.entry(ifindex).or_default();
        if own.contains(&wish) {
            continue;
        }
        if let Some(why) = refuses(round, wish, ifindex) {
            refuse(why);
            continue;
        }
        if !fits(ifindex, own, wish) {
            refuse("it has as many as can be guarded");
            continue;
        }
        let (decided, owner) = *owners.entry(wish).or_insert((round, ifindex));
        if decided == round {
            own.insert(wish);
        } else {
            refuse(&format!("{} has it", ports.get(&owner).map_or("another port", |claim| &claim.name)));
        }
    }
    given
}

/// The guard of a port to which this was given.
fn conclude(
    claim: &Claim,
    macs: BTreeSet<MacAddr>,
    addresses: BTreeSet<IpAddr>,
    refused: Vec<String>,
    before: Option<&Guard>,
) -> Settled {
    let (by_cni, by_end) = (claim.cni.is_some(), matches!(claim.end, End::Own { .. }));
    let was_guarded = before.is_some();
    // Those that were known are kept.
    let knows_link_local = by_end || before.is_some_and(|guard| guard.link_local);
    let source = match (by_cni, by_end) {
        (true, true) => "by the CNI result and the pod's own interface",
        (true, false) => "by the CNI result",
        (false, false) if was_guarded => "by what was known before",
        (false, _) => "by the pod's own interface",
    };
    let guard = match &claim.end {
        _ if claim.choice == GuardChoice::Off => Err(if claim.is_auto { NOT_OURS } else { "as configured" }.to_owned()),
        End::Own { behind: Some(behind), .. } if !was_guarded => {
            Err(format!("its addresses are not surely known: {behind}"))
        }
        // What it asks for counts as known, even if it does not get it: a pod that gives itself nothing but others'
        // addresses may send from none.
        _ if own_macs(claim).is_empty() && cni_macs(claim).is_empty() && !was_guarded => {
            Err(format!("its MAC address is not known: {}", claim.end.unknown()))
        }
        _ if !has_real(&own_addresses(claim)) && !has_real(&cni_addresses(claim)) && !was_guarded => {
            Err("its IP address is not known: the pod has none yet, and no CNI result tells of one".to_owned())
        }
        _ => Guard::new(macs.iter().copied(), addresses.iter().copied())
            .map(|guard| guard.with(claim.choice == GuardChoice::Strict, knows_link_local))
            .map_err(|error| error.to_string()),
    };
    Settled { choice: claim.choice, macs, addresses, refused, guard, source }
}

/// What is told of addresses that a pod has and may not have.
fn told(refused: BTreeSet<String>, end: &End) -> Vec<String> {
    let beyond = refused.len().saturating_sub(MOST_TOLD);
    let mut told: Vec<String> = refused.into_iter().take(MOST_TOLD).collect();
    if beyond > 0 {
        told.push(format!("{beyond} more"));
    }
    if matches!(end, End::Own { more: true, .. }) {
        told.push(format!(
            "others still: it has more than {MOST} addresses of a family, of which no more are looked at"
        ));
    }
    told
}

/// Whether there is an address among them that others would send to.
fn has_real(addresses: &[IpAddr]) -> bool {
    addresses.iter().any(|address| !is_link_local(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::world::{Address, RouteKey, TABLE_MAIN};

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 1, last])
    }

    fn own(macs: &[u8], addresses: &[u8]) -> End {
        End::Own {
            macs: macs.iter().copied().map(mac).collect(),
            addresses: addresses.iter().copied().map(ip).collect(),
            more: false,
            behind: None,
        }
    }

    fn own_end(addresses: &[IpAddr]) -> End {
        End::Own { macs: [mac(1)].into(), addresses: addresses.iter().copied().collect(), more: false, behind: None }
    }

    fn claim(ifindex: u32, end: End) -> Claim {
        Claim { ifindex, name: format!("veth{ifindex}"), choice: GuardChoice::Cluster, is_auto: false, cni: None, end }
    }

    fn addresses(settled: &BTreeMap<u32, Settled>, ifindex: u32) -> Vec<IpAddr> {
        settled[&ifindex].addresses.iter().copied().collect()
    }

    fn first(claims: &[Claim]) -> BTreeMap<u32, Settled> {
        settle(claims, &Node::default(), &BTreeMap::new())
    }

    #[test]
    fn a_pod_is_guarded_with_what_its_own_end_has() {
        let settled = first(&[claim(7, own(&[1], &[2, 3]))]);
        let guard = settled[&7].guard.as_ref().unwrap();
        assert_eq!(guard.macs().collect::<Vec<_>>(), [mac(1)]);
        assert!(guard.has4([10, 244, 1, 3].into()) && !guard.has4([10, 244, 1, 4].into()));
        assert!(guard.link_local && !guard.strict);
    }

    #[test]
    fn what_is_not_known_is_not_guarded() {
        let unknown = first(&[claim(7, End::Unknown("nobody knows"))]);
        assert!(unknown[&7].guard.as_ref().is_err_and(|why| why.contains("nobody knows")));
        let no_address = first(&[claim(7, own(&[1], &[]))]);
        assert!(no_address[&7].guard.is_err());
        let many: Vec<u8> = (2..20).collect();
        assert!(first(&[claim(7, own(&[1], &many))])[&7].guard.as_ref().is_err_and(|why| why.contains("18")));
        let off = Claim { choice: GuardChoice::Off, ..claim(7, own(&[1], &[2])) };
        assert_eq!(first(&[off])[&7].guard, Err("as configured".to_owned()));
    }

    #[test]
    fn a_pod_that_takes_anothers_address_does_not_get_it() {
        let before = first(&[claim(8, own(&[2], &[3]))]);
        let claims = [claim(7, own(&[1], &[2, 3])), claim(8, own(&[2], &[3]))];
        let settled = settle(&claims, &Node::default(), &before);
        assert_eq!((addresses(&settled, 7), addresses(&settled, 8)), (vec![ip(2)], vec![ip(3)]));
        assert_eq!(settled[&7].refused, ["10.244.1.3: veth8 has it"]);
        // When the other gives it up, it is free.
        let claims = [claim(7, own(&[1], &[2, 3])), claim(8, own(&[2], &[4]))];
        assert_eq!(addresses(&settle(&claims, &Node::default(), &settled), 7), [ip(2), ip(3)]);
    }

    #[test]
    fn a_guard_is_not_shaken_off_by_more_addresses_than_it_holds() {
        let many: Vec<u8> = (2..40).collect();
        let before = first(&[claim(7, own(&[1], &[33]))]);
        let settled = settle(&[claim(7, own(&[1], &many))], &Node::default(), &before);
        let guard = settled[&7].guard.as_ref().unwrap();
        assert!(guard.has4([10, 244, 1, 33].into()), "what it had before comes first");
        assert_eq!((guard.ipv4().count(), settled[&7].refused.len()), (limits::MAX_GUARD_ADDRESSES, MOST_TOLD + 1));
        assert_eq!(settled[&7].refused[MOST_TOLD], "22 more");
        let told = Claim { cni: Some((vec![mac(1)], vec![ip(39)])), ..claim(7, own(&[1], &many)) };
        let settled = first(&[told]);
        assert!(settled[&7].guard.as_ref().unwrap().has4([10, 244, 1, 39].into()), "and what root gave it");
    }

    /// As after a start without CNI results: nothing tells who is right, and nobody is cut off.
    #[test]
    fn who_asks_at_the_same_time_gets_the_same() {
        let claims = [claim(7, own(&[1], &[2, 3])), claim(8, own(&[2], &[3]))];
        let settled = first(&claims);
        assert_eq!((addresses(&settled, 7), addresses(&settled, 8)), (vec![ip(2), ip(3)], vec![ip(3)]));
        let again = settle(&claims, &Node::default(), &settled);
        assert_eq!(again, settled, "and keeps it");
        let told = Claim { cni: Some((vec![mac(2)], vec![ip(3)])), ..claims[1].clone() };
        let settled = settle(&[claims[0].clone(), told], &Node::default(), &settled);
        assert_eq!(addresses(&settled, 7), [ip(2)], "until it is told");
        assert!(addresses(&settled, 8).contains(&ip(3)));
    }

    #[test]
    fn pods_of_another_plugin_are_guarded_only_when_asked_for() {
        let off = Claim { choice: GuardChoice::Off, is_auto: true, ..claim(7, own(&[1], &[2])) };
        assert!(first(&[off])[&7].guard.as_ref().is_err_and(|why| why.contains("another network plugin")));
    }

    #[test]
    fn a_pod_that_has_only_others_addresses_may_send_from_none() {
        let victim = Claim { cni: Some((vec![mac(2)], vec![ip(3)])), ..claim(8, own(&[2], &[3])) };
        let settled = first(&[claim(7, own(&[2], &[3])), victim]);
        let guard = settled[&7].guard.as_ref().unwrap();
        assert_eq!((guard.macs().count(), guard.ipv4().count()), (0, 0));
        assert!(addresses(&settled, 8).contains(&ip(3)));
    }

    #[test]
    fn a_cni_result_wins_over_what_somebody_held_before() {
        let before = first(&[claim(7, own(&[1], &[2, 3]))]);
        let victim = Claim { cni: Some((vec![mac(2)], vec![ip(3)])), ..claim(8, End::Unknown("")) };
        let settled = settle(&[claim(7, own(&[1], &[2, 3])), victim], &Node::default(), &before);
        assert_eq!((addresses(&settled, 7), addresses(&settled, 8)), (vec![ip(2)], vec![ip(3), link_local_of(mac(2))]));
        assert!(!settled[&8].guard.as_ref().unwrap().link_local, "it may have others, which nobody tells of");
    }

    #[test]
    fn nobody_gets_what_is_the_nodes_or_fixed_elsewhere() {
        let node = Node {
            macs: [mac(9)].into(),
            addresses: [ip(1)].into(),
            stations: [(mac(8), 99), (mac(1), 7)].into(),
            neighbours: [(ip(5), mac(77)), (ip(6), mac(1))].into(),
            ..Node::default()
        };
        let settled = settle(&[claim(7, own(&[1, 8, 9], &[1, 2, 5, 6]))], &node, &BTreeMap::new());
        assert_eq!(settled[&7].macs.iter().copied().collect::<Vec<_>>(), [mac(1)]);
        assert_eq!(addresses(&settled, 7), [ip(2), ip(6)]);
        assert_eq!(settled[&7].refused.len(), 4);
    }

    #[test]
    fn the_bridges_link_local_address_is_the_nodes_and_other_interfaces_are_not() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut world = World::default();
        for (ifindex, text) in [(1, "fe80::1"), (2, "fe80::2"), (2, "192.0.2.1")] {
            let local = address(text);
            world.addresses.insert(AddressKey { ifindex, local, network: local.into() }, Address { scope: 0 });
        }
        let asked = ["10.244.1.2", "fe80::1", "fe80::2", "192.0.2.1"].map(address);
        let settled = settle(&[claim(7, own_end(&asked))], &Node::of(&world, 1, None), &BTreeMap::new());
        assert_eq!(addresses(&settled, 7), [asked[0], asked[2]]);
    }

    /// A node whose bridge 1 has 10.244.1.0/24 and is told of 10.244.8.0/24, among others of 10.244.0.0/16.
    fn cluster_world() -> World {
        let mut world = World::default();
        let key = AddressKey { ifindex: 1, local: ip(1), network: "10.244.1.0/24".parse().unwrap() };
        world.addresses.insert(key, Address { scope: 0 });
        for (network, oif) in [("0.0.0.0/0", 2), ("10.244.2.0/24", 2), ("10.244.1.0/24", 1), ("10.244.8.0/24", 1)] {
            let (destination, source) = (network.parse().unwrap(), "0.0.0.0/0".parse().unwrap());
            let key = RouteKey { table: TABLE_MAIN, destination, tos: 0, priority: 0, source };
            world.routes4.insert(key, vec![crate::mirror::world::tests::route(oif)]);
        }
        world
    }

    #[test]
    fn a_pod_with_more_addresses_than_are_looked_at_keeps_what_it_had() {
        let before = first(&[claim(7, own(&[1], &[2]))]);
        let many: Vec<u8> = (10..74).collect();
        let End::Own { macs, addresses: some, .. } = own(&[1], &many) else { unreachable!() };
        let end = End::Own { macs, addresses: some, more: true, behind: None };
        let settled = settle(&[claim(7, end)], &Node::default(), &before);
        assert!(addresses(&settled, 7).contains(&ip(2)), "which may be among those that were not seen");
        assert!(settled[&7].refused.last().is_some_and(|told| told.contains("more than 64 addresses")));
        assert!(settled[&7].refused.len() <= MOST_TOLD + 2);
    }

    /// One with something in front of its interface keeps what it had, and may have others each time that it is looked at.
    #[test]
    fn a_pod_that_is_not_guarded_does_not_gather_addresses_without_end() {
        let mut settled = BTreeMap::new();
        for turn in 0..10_u8 {
            let addresses = (0..MOST as u8).map(|last| IpAddr::from([10, 244, turn, last])).collect();
            let (macs, behind) = ([mac(turn)].into(), Some("a bridge".to_owned()));
            let end = End::Own { macs, addresses, more: false, behind };
            settled = settle(&[claim(7, end)], &Node::default(), &settled);
        }
        assert!(settled[&7].guard.is_err());
        assert_eq!(settled[&7].addresses.len(), MOST);
        let status = settled[&7].status();
        assert!(!settled[&7].refused.is_empty() && status.refused.is_empty(), "it may send from all");
        for last in 0..100 {
            let end =
                End::Own { macs: [mac(last)].into(), addresses: [].into(), more: false, behind: Some(String::new()) };
            settled = settle(&[claim(7, end)], &Node::default(), &settled);
        }
        assert_eq!(settled[&7].macs.len(), MOST);
    }

    #[test]
    fn a_pod_that_takes_its_addresses_off_its_interface_keeps_them() {
        let link_local = link_local_of(mac(1));
        let before = first(&[claim(7, own_end(&[ip(2), link_local]))]);
        for left in [&[][..], &[link_local]] {
            let taken_off = [claim(7, own_end(left))];
            let settled = settle(&taken_off, &Node::default(), &before);
            assert_eq!(addresses(&settled, 7), [ip(2), link_local]);
            assert!(settled[&7].guard.as_ref().unwrap().has4([10, 244, 1, 2].into()));
            let again = settle(&[claim(7, own_end(&[ip(3)]))], &Node::default(), &settled);
            assert_eq!(addresses(&again, 7), [ip(3)], "until it has others there");
        }
    }

    #[test]
    fn the_link_local_address_of_a_mac_address_comes_with_the_cni_result() {
        let made = link_local_of("0a:58:0a:f4:01:05".parse().unwrap());
        assert_eq!(made, "fe80::858:aff:fef4:105".parse::<IpAddr>().unwrap());
        let squatted = link_local_of(mac(2));
        let squatter = claim(7, own_end(&[ip(2), squatted]));
        let before = first(std::slice::from_ref(&squatter));
        assert!(before[&7].addresses.contains(&squatted), "nobody has it yet");
        let new = Claim { cni: Some((vec![mac(2)], vec![ip(3)])), ..claim(8, own(&[2], &[3])) };
        let settled = settle(&[squatter, new], &Node::default(), &before);
        assert_eq!((addresses(&settled, 7), addresses(&settled, 8)), (vec![ip(2)], vec![ip(3), squatted]));
    }

    #[test]
    fn a_pod_cannot_give_itself_what_is_on_another_node() {
        let (world, cluster) = (cluster_world(), ["10.244.0.0/16".parse().unwrap()]);
        let node = Node::of(&world, 1, Some(&cluster));
        let asked = ["10.244.1.2", "10.244.2.2", "10.244.3.2", "10.244.8.2", "8.8.8.8"].map(|ip| ip.parse().unwrap());
        let wish = |choice, cni: Option<&[IpAddr]>| {
            let end = own_end(&asked);
            let cni = cni.map(|addresses| (vec![mac(1)], addresses.to_vec()));
            settle(&[Claim { choice, cni, ..claim(7, end) }], &node, &BTreeMap::new())
        };
        let [own, other, unrouted, routed, outside] = asked;
        let addresses = |settled: &BTreeMap<u32, Settled>, ifindex| -> Vec<IpAddr> {
            super::tests::addresses(settled, ifindex).into_iter().filter(IpAddr::is_ipv4).collect()
        };
        let given = wish(GuardChoice::Cluster, None);
        assert_eq!(addresses(&given, 7), [outside, own, routed]);
        assert_eq!(given[&7].refused[0], format!("{other}: it is not on the bridge's networks"));
        assert_eq!(addresses(&wish(GuardChoice::Strict, None), 7), [own, routed]);
        assert_eq!(addresses(&wish(GuardChoice::Cluster, Some(&[unrouted])), 7), [outside, own, unrouted, routed]);
        assert_eq!(addresses(&wish(GuardChoice::Strict, Some(&[own, other])), 7), [own, other]);
        let before = wish(GuardChoice::Cluster, Some(&[other]));
        let kept = settle(&[claim(7, own_end(&asked))], &node, &before);
        assert!(addresses(&kept, 7).contains(&other), "the CNI result may not be read yet");
        let strict = Claim { choice: GuardChoice::Strict, ..claim(7, own_end(&asked)) };
        assert_eq!(addresses(&settle(&[strict], &node, &before), 7), [own, routed]);
        let bare = Node::of(&world, 5, Some(&cluster));
        let given = settle(&[claim(7, own_end(&asked))], &bare, &BTreeMap::new());
        assert!(given[&7].refused.is_empty(), "a bridge without networks tells nothing");
    }

    /// A bridge or a macvlan in a pod hides who is behind: from the start that is not guarded, but it is no way out of a guard.
    #[test]
    fn a_guard_is_not_shaken_off_by_putting_something_in_front() {
        let behind = |macs: &[u8], addresses: &[u8]| match own(macs, addresses) {
            End::Own { macs, addresses, more, .. } => {
                End::Own { macs, addresses, more, behind: Some("its interface is a member of br0 in there".to_owned()) }
            }
            end => end,
        };
        assert!(first(&[claim(7, behind(&[1], &[2]))])[&7].guard.as_ref().is_err_and(|why| why.contains("br0")));
        let before = first(&[claim(7, own(&[1], &[2]))]);
        let settled = settle(&[claim(7, behind(&[4], &[]))], &Node::default(), &before);
        let guard = settled[&7].guard.as_ref().unwrap();
        assert!(guard.has_mac(mac(1)) && guard.has_mac(mac(4)) && guard.has4([10, 244, 1, 2].into()));
        let gone = settle(&[claim(7, End::Unknown("gone"))], &Node::default(), &before);
        assert_eq!(addresses(&gone, 7), [ip(2)], "a pod that cannot be looked at keeps what it had");
        assert_eq!(gone[&7].guard, before[&7].guard, "link-local addresses included");
        let adopted = BTreeMap::from([(7, Settled::adopted(*before[&7].guard.as_ref().unwrap()))]);
        let next = settle(&[claim(7, behind(&[1], &[2]))], &Node::default(), &adopted);
        assert_eq!(next[&7].guard, before[&7].guard, "the next daemon goes on");
    }
}
