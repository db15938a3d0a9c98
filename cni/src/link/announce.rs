//! Telling the neighbours of a new pod: gratuitous ARP, and its like of IPv6.
//!
//! The bridge learns by it where the pod is before anybody has to ask, and whoever remembers another MAC address for one
//! of its addresses is put right. One frame for each address, sent once the bridge forwards.

#![allow(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};

use super::Mac;
use crate::protocol::failure::{Failure, code};

/// A packet socket of the namespace in which it was opened.
#[derive(Debug)]
pub struct Announcer(OwnedFd);

impl Announcer {
    /// Opens one, which receives nothing.
    ///
    /// # Errors
    /// Code 100: the kernel refuses.
    pub fn open() -> Result<Self, Failure> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        socket
            .map(Announcer)
            .map_err(|error| Failure::new(code::KERNEL, format!("cannot open a packet socket: {error}")))
    }

    /// Tells that `mac`, behind interface `index`, has `address`.
    ///
    /// # Errors
    /// Code 100: the kernel refuses.
    pub fn tell(&self, index: u32, mac: Mac, address: IpAddr) -> Result<(), Failure> {
        let frame = match address {
            IpAddr::V4(address) => arp(mac, address),
            IpAddr::V6(address) => neighbour_advertisement(mac, address),
        };
        let sent = sendto(self.0.as_raw_fd(), &frame, &link_address(index), MsgFlags::empty());
        sent.map(drop).map_err(|error| Failure::new(code::KERNEL, format!("cannot announce {address}: {error}")))
    }
}

/// For a raw packet socket the interface is all that counts; the rest is in the frame.
fn link_address(index: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole `sockaddr_ll` of that length, which lives until the call has copied it.
    let read = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    read.expect("family and length are those of a link address")
}

/// A request for the own address: what `arp_notify` has the kernel send.
fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// To all nodes, unsolicited, overriding (RFC 4861, 7.2.6).
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    let sum = checksum(address, all_nodes, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(address.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum of an ICMPv6 message and its pseudo-header.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words =
        |bytes: &[u8]| -> u32 { bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum() };
    let mut sum = words(&from.octets()) + words(&to.octets()) + words(message) + message.len() as u32 + 58;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_has_a_good_checksum_and_says_who_has_the_address() {
        let address: Ipv6Addr = "fd00:10:244:1::2".parse().unwrap();
        let frame = neighbour_advertisement(Mac([0x0a, 0x58, 1, 2, 3, 4]), address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Over a message that contains its own checksum, the sum is zero.
        assert_eq!(checksum(address, "ff02::1".parse().unwrap(), &frame[54..]), 0);
        assert_eq!(frame[54 + 8..54 + 24], address.octets());
        assert_eq!(frame[frame.len() - 6..], [0x0a, 0x58, 1, 2, 3, 4]);
    }

    #[test]
    fn gratuitous_arp_asks_for_the_own_address() {
        let frame = arp(Mac([0x0a, 0x58, 10, 244, 1, 2]), Ipv4Addr::new(10, 244, 1, 2));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], [10, 244, 1, 2]);
        assert_eq!(frame[38..42], [10, 244, 1, 2]);
    }
}
