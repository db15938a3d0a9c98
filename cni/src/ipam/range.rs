//! Ranges of addresses, and which one of them is given next.
//!
//! Addresses are numbers of 128 bits here, so that both families are one thing. A pod gets one address of each
//! [`RangeSet`]; within a set the search goes on where it was the last time, round and round, so that an address that was
//! given back is the last one to be given again.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::protocol::failure::{Failure, code};

/// Ranges of a configuration in all.
pub const MOST_RANGES: usize = 64;

/// An address as a number. IPv4 and IPv6 have numbers of their own each.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number in the family of `like`.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // Numbers come from within an IPv4 network, so they fit.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// Addresses from `first` to `last` of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet; pods get its prefix length.
    pub subnet: IpNet,
    /// The first address that may be given.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
    /// The gateway, which is never given.
    pub gateway: IpAddr,
}

impl Range {
    /// A range of `subnet`. Unless told otherwise, the gateway is its first host and pods get any of the others.
    ///
    /// # Errors
    /// Code 7: the subnet is too small, or an end or the gateway is not inside of it.
    pub fn of(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, Failure> {
        let wrong = |message: String| Failure::new(code::CONFIGURATION, message);
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(wrong(format!("{subnet} is too small: a gateway and a pod need two hosts at least")));
        }
        if subnet.prefix_len() == 0 {
            return Err(wrong(format!("{subnet} is every address there is; name the node's own network")));
        }
        let network = subnet.network();
        // IPv4's last address is the broadcast address; IPv6 has none.
        let top = number(subnet.broadcast()) - u128::from(network.is_ipv4());
        let hosts = number(network) + 1..=top;
        let inside = |which: &str, given: Option<IpAddr>, default: u128| -> Result<IpAddr, Failure> {
            let Some(given) = given else { return Ok(address(default, network)) };
            if given.is_ipv4() == network.is_ipv4() && hosts.contains(&number(given)) {
                return Ok(given);
            }
            Err(wrong(format!("\"{which}\": {given} is not a host's address in {subnet}")))
        };
        let range = Range {
            subnet,
            first: inside("rangeStart", start, *hosts.start())?,
            last: inside("rangeEnd", end, *hosts.end())?,
            gateway: inside("gateway", gateway, *hosts.start())?,
        };
        if number(range.first) > number(range.last) {
            return Err(wrong(format!("the range from {} to {} ends before it begins", range.first, range.last)));
        }
        if range.first == range.last && range.first == range.gateway {
            return Err(wrong(format!("the only address of the range, {}, is its gateway's", range.first)));
        }
        Ok(range)
    }

    /// Whether it has this address.
    pub fn contains(&self, given: IpAddr) -> bool {
        given.is_ipv4() == self.first.is_ipv4() && (number(self.first)..=number(self.last)).contains(&number(given))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

/// Ranges that stand in for each other: a pod gets one address of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// What a pod is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address with the prefix length of its subnet.
    pub address: IpNet,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

impl RangeSet {
    /// The ranges, at least one.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// What the search is remembered by: the first range's first address.
    pub fn key(&self) -> IpAddr {
        self.0[0].first
    }

    fn lease(&self, given: IpAddr) -> Option<Lease> {
        let range = self.0.iter().find(|range| range.contains(given))?;
        let address = IpNet::new(given, range.subnet.prefix_len()).ok()?;
        Some(Lease { address, gateway: range.gateway })
    }

    fn is_gateway(&self, given: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == given)
    }

    /// The lease of an address that was asked for by name; `None` if it is not here to be given.
    pub fn named(&self, wanted: IpAddr) -> Option<Lease> {
        self.lease(wanted).filter(|_| !self.is_gateway(wanted))
    }

    /// The first address after `last` that is free, round to `last` itself. Looks at no more addresses than are taken, and
    /// a few.
    pub fn next(&self, last: Option<IpAddr>, taken: &HashSet<IpAddr>) -> Option<Lease> {
        let place = last.and_then(|last| self.0.iter().position(|range| range.contains(last)).zip(Some(last)));
        let whole = |range: &Range| (number(range.first), number(range.last));
        // Stretches of numbers in the order in which they are searched.
        let mut stretches: Vec<(u128, u128)> = Vec::new();
        match place {
            None => stretches.extend(self.0.iter().map(whole)),
            Some((index, last)) => {
                let (first, end) = whole(&self.0[index]);
                stretches.extend(number(last).checked_add(1).map(|start| (start, end)));
                stretches.extend(self.0[index + 1..].iter().chain(&self.0[..index]).map(whole));
                stretches.push((first, number(last)));
            }
        }
        let like = self.key();
        let numbers = stretches.into_iter().flat_map(|(start, end)| start..=end);
        let free = |given: &IpAddr| !taken.contains(given) && !self.is_gateway(*given);
        numbers.map(|number| address(number, like)).find(free).and_then(|given| self.lease(given))
    }
}

/// What a configuration says of addresses: a pod gets one of each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan(Vec<RangeSet>);

impl Plan {
    /// Puts ranges together; empty sets count for nothing.
    ///
    /// # Errors
    /// Code 7: none, too many, a set of both families, or ranges that overlap.
    pub fn of(sets: Vec<Vec<Range>>) -> Result<Self, Failure> {
        let wrong = |message: String| Err(Failure::new(code::CONFIGURATION, message));
        let all: Vec<&Range> = sets.iter().flatten().collect();
        if all.is_empty() {
            let cure = "name the node's networks in \"podCIDRs\", or an IPAM plugin as \"type\" of \"ipam\"";
            return wrong(format!("there are no addresses to give: {cure}"));
        }
        if all.len() > MOST_RANGES {
            return wrong(format!("{} ranges of addresses; at most {MOST_RANGES}", all.len()));
        }
        for (index, range) in all.iter().enumerate() {
            if let Some(other) = all[..index].iter().find(|other| other.overlaps(range)) {
                return wrong(format!(
                    "the ranges {}–{} and {}–{} overlap: an address must belong to one of them",
                    other.first, other.last, range.first, range.last
                ));
            }
        }
        let is_mixed = |set: &&Vec<Range>| set.iter().any(|range| range.first.is_ipv4() != set[0].first.is_ipv4());
        if let Some(mixed) = sets.iter().find(is_mixed) {
            let network = mixed[0].subnet;
            return wrong(format!("a set of ranges has both IPv4 and IPv6 ({network} and others); write two sets"));
        }
        Ok(Plan(sets.into_iter().filter(|set| !set.is_empty()).map(RangeSet).collect()))
    }

    /// The sets.
    pub fn sets(&self) -> &[RangeSet] {
        &self.0
    }
}
