//! The cluster's CIDRs: both ends of a packet must lie in one of them for Podlane to take it.
//!
//! That keeps both directions of a flow on the same way, so that the node's connection tracking never sees half of one.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::limits;

/// A short list of CIDRs of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    ipv4: Vec<Cidr<u32>>,
    ipv6: Vec<Cidr<u128>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr<K> {
    address: K,
    mask: K,
}

/// A list of CIDRs is longer than [`limits::MAX_CLUSTER_CIDRS`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} cluster CIDRs of one family; at most {max} are supported: merge adjacent ones", max = limits::MAX_CLUSTER_CIDRS)]
pub struct TooManyCidrs(pub usize);

impl Cluster {
    /// From (address, prefix length) pairs; host bits are ignored, lengths are cut at the family's.
    pub fn new(
        ipv4: impl IntoIterator<Item = (Ipv4Addr, u8)>,
        ipv6: impl IntoIterator<Item = (Ipv6Addr, u8)>,
    ) -> Result<Self, TooManyCidrs> {
        let ipv4: Vec<_> = ipv4
            .into_iter()
            .map(|(address, length)| {
                let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
                Cidr { address: address.to_bits() & mask, mask }
            })
            .collect();
        let ipv6: Vec<_> = ipv6
            .into_iter()
            .map(|(address, length)| {
                let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
                Cidr { address: address.to_bits() & mask, mask }
            })
            .collect();
        let longest = ipv4.len().max(ipv6.len());
        if longest > limits::MAX_CLUSTER_CIDRS { Err(TooManyCidrs(longest)) } else { Ok(Cluster { ipv4, ipv6 }) }
    }

    /// Whether an IPv4 address lies in the cluster.
    #[inline]
    pub fn contains4(&self, address: Ipv4Addr) -> bool {
        self.ipv4.iter().any(|cidr| address.to_bits() & cidr.mask == cidr.address)
    }

    /// Whether an IPv6 address lies in the cluster.
    #[inline]
    pub fn contains6(&self, address: Ipv6Addr) -> bool {
        self.ipv6.iter().any(|cidr| address.to_bits() & cidr.mask == cidr.address)
    }

    /// The IPv4 CIDRs as (address, prefix length).
    pub fn ipv4(&self) -> impl ExactSizeIterator<Item = (Ipv4Addr, u8)> {
        self.ipv4.iter().map(|cidr| (Ipv4Addr::from_bits(cidr.address), cidr.mask.count_ones() as u8))
    }

    /// The IPv6 CIDRs as (address, prefix length).
    pub fn ipv6(&self) -> impl ExactSizeIterator<Item = (Ipv6Addr, u8)> {
        self.ipv6.iter().map(|cidr| (Ipv6Addr::from_bits(cidr.address), cidr.mask.count_ones() as u8))
    }
}
