//! Cluster CIDRs: from the text that a person writes to networks that cannot contradict one another.

use std::net::IpAddr;

use ipnet::IpNet;
use podlane_dataplane::limits::MAX_CLUSTER_CIDRS;

/// Why a text cannot be one of the cluster's CIDRs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCidr {
    /// Not an address and a prefix length.
    #[error(
        "{0:?} is not a CIDR; write a network address and a prefix length, for example 10.244.0.0/16 or \
         fd00:10:244::/48"
    )]
    Malformed(String),
    /// An address without a prefix length.
    #[error("\"{0}\" has no prefix length; write for example {0}/{full} for this one address", full = if .0.is_ipv4() { 32 } else { 128 })]
    NoLength(IpAddr),
    /// Bits are set behind the prefix.
    #[error("{given} is not a network: it has bits set behind the prefix; the network is {network}")]
    HostBits {
        /// As it was written.
        given: IpNet,
        /// What was probably meant.
        network: IpNet,
    },
    /// `0.0.0.0/0` or `::/0`.
    #[error(
        "{0} is every address there is; name the cluster's own networks, so that traffic from and to the rest \
         stays with the kernel"
    )]
    Everything(IpNet),
    /// No pod can have an address there.
    #[error("{network} lies in the {kind} range, where no pod has its address; leave it out")]
    Special {
        /// As it was written.
        network: IpNet,
        /// `loopback`, `multicast` or `link-local`.
        kind: &'static str,
    },
}

/// Reads one CIDR.
pub fn parse(text: &str) -> Result<IpNet, BadCidr> {
    let Ok(given) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => BadCidr::NoLength(address),
            Err(_) => BadCidr::Malformed(text.to_owned()),
        });
    };
    let network = given.trunc();
    if given != network {
        return Err(BadCidr::HostBits { given, network });
    }
    if network.prefix_len() == 0 {
        return Err(BadCidr::Everything(network));
    }
    match special(network.network()) {
        Some(kind) => Err(BadCidr::Special { network, kind }),
        None => Ok(network),
    }
}

fn special(address: IpAddr) -> Option<&'static str> {
    let (loopback, multicast, link_local) = match address {
        IpAddr::V4(ip) => (ip.is_loopback(), ip.is_multicast(), ip.is_link_local()),
        IpAddr::V6(ip) => (ip.is_loopback(), ip.is_multicast(), ip.is_unicast_link_local()),
    };
    if loopback {
        Some("loopback")
    } else if multicast {
        Some("multicast")
    } else {
        link_local.then_some("link-local")
    }
}

/// What two CIDRs of one list have to do with each other: a sentence if they overlap.
pub fn overlap(first: IpNet, second: IpNet) -> Option<String> {
    if first == second {
        Some(format!("{second} is given twice; leave one out"))
    } else if first.contains(&second) {
        Some(format!("{second} and {first} overlap: {second} lies inside {first}; leave {second} out"))
    } else if second.contains(&first) {
        Some(format!("{second} and {first} overlap: {first} lies inside {second}; leave {first} out"))
    } else {
        None
    }
}

/// A sentence if the list holds more networks of one family than the dataplane's tables.
pub fn too_many(networks: &[IpNet]) -> Option<String> {
    let ipv4 = networks.iter().filter(|network| matches!(network, IpNet::V4(_))).count();
    let (family, count) = if ipv4 > MAX_CLUSTER_CIDRS { ("IPv4", ipv4) } else { ("IPv6", networks.len() - ipv4) };
    (count > MAX_CLUSTER_CIDRS).then(|| {
        format!(
            "more than {MAX_CLUSTER_CIDRS} {family} CIDRs are given, which is the most of a family; merge adjacent ones"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn good_networks_are_read() {
        for text in ["10.244.0.0/16", "fd00:10:244::/48", "10.0.0.1/32", "fd00::1/128", "128.0.0.0/1"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        assert!(sentence("10.244.1.0/16").ends_with("the network is 10.244.0.0/16"));
        assert!(sentence("fd00:10:244:1::/48").ends_with("the network is fd00:10:244::/48"));
        assert!(sentence("10.244.0.0").contains("write for example 10.244.0.0/32"));
        assert!(sentence("fd00::1").contains("write for example fd00::1/128"));
        assert!(sentence("0.0.0.0/0").contains("every address"));
        assert!(sentence("::/0").contains("every address"));
        assert!(sentence("127.0.0.0/8").contains("loopback"));
        assert!(sentence("224.0.0.0/4").contains("multicast"));
        assert!(sentence("ff00::/8").contains("multicast"));
        assert!(sentence("169.254.0.0/16").contains("link-local"));
        assert!(sentence("fe80::/64").contains("link-local"));
        for text in ["", "10.244.0.0/33", "fd00::/129", "10.244/16", "pods", "10.244.0.0/", "10.244.0.0/-1"] {
            assert_eq!(parse(text), Err(BadCidr::Malformed(text.to_owned())));
        }
    }

    #[test]
    fn overlaps_name_both_networks() {
        let (wide, narrow) = (parse("10.244.0.0/16").unwrap(), parse("10.244.1.0/24").unwrap());
        for sentence in [overlap(wide, narrow).unwrap(), overlap(narrow, wide).unwrap()] {
            assert!(
                sentence.contains("10.244.1.0/24 lies inside 10.244.0.0/16; leave 10.244.1.0/24 out"),
                "{sentence}"
            );
        }
        assert!(overlap(wide, wide).unwrap().contains("twice"));
        assert_eq!(overlap(wide, parse("10.245.0.0/16").unwrap()), None);
        assert_eq!(overlap(wide, parse("fd00::/16").unwrap()), None);
    }

    #[test]
    fn the_limit_is_per_family() {
        let ipv4 = (0..16).map(|n| parse(&format!("10.{n}.0.0/16")).unwrap());
        let ipv6 = (0..17).map(|n| parse(&format!("fd00:{n}::/32")).unwrap());
        let mut both: Vec<_> = ipv4.chain(ipv6).collect();
        assert!(too_many(&both).unwrap().starts_with("more than 16 IPv6 CIDRs"));
        both.pop();
        assert_eq!(too_many(&both), None);
        both.push(parse("10.99.0.0/16").unwrap());
        assert!(too_many(&both).unwrap().starts_with("more than 16 IPv4 CIDRs"));
    }
}
