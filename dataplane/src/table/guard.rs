//! What a guarded port may send from.
//!
//! The loader finds out which addresses are a pod's (`loader/src/guard`) and publishes them here; the check itself is
//! [`crate::forward::guard`]. A port that is not in the table is not guarded. The lists are short and of fixed length, so that
//! an entry is a few cache lines, of which the first answers for a pod with one address of each kind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::{MacAddr, PortId};
use crate::limits::{MAX_GUARD_ADDRESSES, MAX_GUARD_MACS, MAX_PORTS};

/// A port's own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard {
    /// Any other source address is foreign. Otherwise only those in the cluster's CIDRs are, and link-local ones where the
    /// pod's are known.
    pub strict: bool,
    /// Whether the pod's own link-local IPv6 addresses are among `ipv6`; if not, any of them is let through.
    pub link_local: bool,
    /// Filled up with zeros, as the other lists; the zero address of each kind is answered for apart.
    macs: [MacAddr; MAX_GUARD_MACS],
    ipv4: [u32; MAX_GUARD_ADDRESSES],
    ipv6: [u128; MAX_GUARD_ADDRESSES],
}

/// A port has more addresses than a guard holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it has {count} {what}; at most {limit} can be guarded")]
pub struct TooManyAddresses {
    /// How many.
    pub count: usize,
    /// Of what.
    pub what: &'static str,
    /// How many there may be.
    pub limit: usize,
}

impl Guard {
    /// Of these addresses.
    ///
    /// # Errors
    /// If there are more than [`MAX_GUARD_MACS`] or, of one family, [`MAX_GUARD_ADDRESSES`].
    pub fn new(
        macs: impl IntoIterator<Item = MacAddr>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, TooManyAddresses> {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => ipv4.push(address.to_bits()),
                IpAddr::V6(address) => ipv6.push(address.to_bits()),
            }
        }
        Ok(Guard {
            strict: false,
            link_local: false,
            macs: filled(macs.into_iter().collect(), "MAC addresses")?,
            ipv4: filled(ipv4, "IPv4 addresses")?,
            ipv6: filled(ipv6, "IPv6 addresses")?,
        })
    }

    /// The same guard with these two switches.
    pub fn with(self, strict: bool, link_local: bool) -> Self {
        Guard { strict, link_local, ..self }
    }

    /// Whether a frame may have this source.
    #[inline]
    pub fn has_mac(&self, mac: MacAddr) -> bool {
        mac != MacAddr::ZERO && self.macs.contains(&mac)
    }

    /// Whether the address is the pod's own; 0.0.0.0, which says that one has none yet, is everybody's.
    #[inline]
    pub fn has4(&self, address: Ipv4Addr) -> bool {
        self.ipv4.contains(&address.to_bits()) || address.is_unspecified()
    }

    /// The same for IPv6 and `::`.
    #[inline]
    pub fn has6(&self, address: Ipv6Addr) -> bool {
        self.ipv6.contains(&address.to_bits()) || address.is_unspecified()
    }

    /// The MAC addresses.
    pub fn macs(&self) -> impl Iterator<Item = MacAddr> {
        self.macs.into_iter().filter(|mac| *mac != MacAddr::ZERO)
    }

    /// The IPv4 addresses.
    pub fn ipv4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ipv4.into_iter().filter(|bits| *bits != 0).map(Ipv4Addr::from_bits)
    }

    /// The IPv6 addresses.
    pub fn ipv6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.ipv6.into_iter().filter(|bits| *bits != 0).map(Ipv6Addr::from_bits)
    }
}

fn filled<T: Copy + Default, const N: usize>(list: Vec<T>, what: &'static str) -> Result<[T; N], TooManyAddresses> {
    let mut array = [T::default(); N];
    let too_many = TooManyAddresses { count: list.len(), what, limit: N };
    array.get_mut(..list.len()).ok_or(too_many)?.copy_from_slice(&list);
    Ok(array)
}

/// Guards by [`PortId`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardTable {
    slots: Vec<Option<Box<Guard>>>,
}

impl GuardTable {
    /// Of the given ports.
    ///
    /// # Panics
    /// If a number is not below [`MAX_PORTS`]: the loader hands the numbers out.
    pub fn new(guards: impl IntoIterator<Item = (PortId, Guard)>) -> Self {
        let mut slots = Vec::new();
        for (id, guard) in guards {
            assert!(id.index() < MAX_PORTS, "port number {id} is beyond the limit");
            if slots.len() <= id.index() {
                slots.resize(id.index() + 1, None);
            }
            slots[id.index()] = Some(Box::new(guard));
        }
        GuardTable { slots }
    }

    /// The guard of a port; `None` if it is not guarded.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&Guard> {
        self.slots.get(id.index())?.as_deref()
    }

    /// All guarded ports, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &Guard)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((PortId(index as u16), slot.as_deref()?)))
    }
}
