//! On-link hosts: which adjacency leads to an address that a connected route covers.
//!
//! The entries mirror the kernel's neighbours (ARP and ND caches) that have a valid link-layer address; for the bridge,
//! only those whose MAC address the FDB places behind a pod port.

use std::net::{Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

use super::LinkId;
use super::fdb::MacHasher;

/// (link, address) to an index into [`super::Tables::adjacencies`].
#[derive(Clone, Debug, Default)]
pub struct HostTable {
    ipv4: HashMap<u64, u32, MacHasher>,
    ipv6: HashMap<Key6, u32, MacHasher>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key6 {
    address: u128,
    link: LinkId,
}

impl std::hash::Hash for Key6 {
    #[inline]
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.address);
        state.write_u64(u64::from(self.link.0));
    }
}

#[inline]
fn key4(link: LinkId, address: Ipv4Addr) -> u64 {
    u64::from(link.0) << 32 | u64::from(address.to_bits())
}

impl HostTable {
    /// Adds or replaces an IPv4 host.
    pub fn insert4(&mut self, link: LinkId, address: Ipv4Addr, adjacency: u32) {
        self.ipv4.insert(key4(link, address), adjacency);
    }

    /// Adds or replaces an IPv6 host.
    pub fn insert6(&mut self, link: LinkId, address: Ipv6Addr, adjacency: u32) {
        self.ipv6.insert(Key6 { address: address.to_bits(), link }, adjacency);
    }

    /// The adjacency of an IPv4 host on a link.
    #[inline]
    pub fn get4(&self, link: LinkId, address: Ipv4Addr) -> Option<u32> {
        self.ipv4.get(&key4(link, address)).copied()
    }

    /// The adjacency of an IPv6 host on a link.
    #[inline]
    pub fn get6(&self, link: LinkId, address: Ipv6Addr) -> Option<u32> {
        self.ipv6.get(&Key6 { address: address.to_bits(), link }).copied()
    }

    /// All IPv4 hosts.
    pub fn iter4(&self) -> impl Iterator<Item = (LinkId, Ipv4Addr, u32)> {
        self.ipv4
            .iter()
            .map(|(key, adjacency)| (LinkId((key >> 32) as u16), Ipv4Addr::from_bits(*key as u32), *adjacency))
    }

    /// All IPv6 hosts.
    pub fn iter6(&self) -> impl Iterator<Item = (LinkId, Ipv6Addr, u32)> {
        self.ipv6.iter().map(|(key, adjacency)| (key.link, Ipv6Addr::from_bits(key.address), *adjacency))
    }

    /// How many hosts there are, both families together.
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
