//! The two small identifiers that every other module speaks in: a MAC address and a port number.

use std::fmt;
use std::str::FromStr;

/// An IEEE 802 MAC address: the low 48 bits of an integer, first byte of the wire highest, so that it is compared, hashed
/// and copied in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(u64);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr::new([0xff; 6]);
    /// `00:00:00:00:00:00`, which no station may have.
    pub const ZERO: MacAddr = MacAddr(0);
    /// The group bit of the first byte (IEEE 802-2014, 8.2.2).
    const GROUP: u64 = 1 << 40;

    /// From the bytes in the order of the wire.
    #[inline]
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        MacAddr(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The bytes in the order of the wire.
    #[inline]
    pub const fn octets(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// True for multicast and broadcast addresses.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0 & Self::GROUP != 0
    }

    /// True for an address that a single station can send from: not a group address and not all zeros.
    #[inline]
    pub const fn is_station(self) -> bool {
        !self.is_group() && self.0 != 0
    }

    /// The address as the low 48 bits of an integer, first byte highest.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`MacAddr::to_u64`]; the highest 16 bits are ignored.
    #[inline]
    pub const fn from_u64(value: u64) -> Self {
        MacAddr(value & 0xffff_ffff_ffff)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.octets();
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The text is not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address; write it as six hexadecimal pairs, for example 02:00:0a:f4:01:02")]
pub struct BadMacAddr(pub String);

impl FromStr for MacAddr {
    type Err = BadMacAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadMacAddr(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            if part.starts_with('+') {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr::new(bytes)) }
    }
}

/// A port of the dataplane: an index into the port table, below [`crate::limits::MAX_PORTS`].
///
/// The loader hands a number out again only after every socket of its former owner is closed and its frames are back,
/// so inside one snapshot and one worker a number never means two interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// The number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_and_integer_round_trip() {
        let mac: MacAddr = "02:00:0a:f4:01:02".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:f4:01:02");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        assert!(mac.is_station() && !mac.is_group());
        assert!(MacAddr::BROADCAST.is_group() && !MacAddr::ZERO.is_station());
    }

    #[test]
    fn bad_mac_text_is_named() {
        for text in ["", "02:00", "02:00:0a:f4:01:02:03", "2:0:a:f4:1:2", "zz:00:0a:f4:01:02", "+2:00:0a:f4:01:02"] {
            assert_eq!(text.parse::<MacAddr>(), Err(BadMacAddr(text.to_owned())));
        }
    }
}
