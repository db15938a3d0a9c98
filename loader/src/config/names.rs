//! The two names that a configuration holds: of a network interface, and of a Podlane instance.

use std::fmt;
use std::str::FromStr;

/// Bytes of the longest interface name (`IFNAMSIZ` - 1, `linux/if.h`).
pub const MAX_INTERFACE_NAME: usize = 15;
/// Characters of the longest instance name.
pub const MAX_INSTANCE_NAME: usize = 32;

/// A name that the kernel would accept for a network interface. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// The name of one Podlane daemon of a node: 1 to 32 of `a`-`z`, `0`-`9` and `-`. It names the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(String);

/// Why a text is no interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInterfaceName {
    /// Nothing is written.
    #[error("an interface name is empty; `ip link` lists the names")]
    Empty,
    /// Longer than the kernel allows.
    #[error("\"{0}\" is not an interface name: it has {length} bytes, and at most {MAX_INTERFACE_NAME} are \
     possible", length = .0.len())]
    TooLong(String),
    /// A byte that the kernel refuses (`dev_valid_name`, `net/core/dev.c`).
    #[error("{0:?} is not an interface name: it may not hold spaces, \"/\" or \":\", nor be \".\" or \"..\"")]
    Forbidden(String),
}

/// A text is no instance name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an instance name: use 1 to {MAX_INSTANCE_NAME} of the characters a-z, 0-9 and -")]
pub struct BadInstanceName(pub String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = BadInterfaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(BadInterfaceName::Empty);
        }
        let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace() || c.is_control();
        if text == "." || text == ".." || text.contains(forbidden) {
            return Err(BadInterfaceName::Forbidden(text.to_owned()));
        }
        if text.len() > MAX_INTERFACE_NAME {
            return Err(BadInterfaceName::TooLong(text.to_owned()));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl InstanceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    /// `default`.
    fn default() -> Self {
        InstanceName("default".to_owned())
    }
}

impl FromStr for InstanceName {
    type Err = BadInstanceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=MAX_INSTANCE_NAME).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(InstanceName(text.to_owned()))
        } else {
            Err(BadInstanceName(text.to_owned()))
        }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl AsRef<str> for InstanceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernels_rule() {
        for good in ["eth0", "veth-pod1", "a", "exactly15bytes_", "eth0.100", "…"] {
            assert_eq!(good.parse::<InterfaceName>().map(|name| name.to_string()).as_deref(), Ok(good));
        }
        assert_eq!("".parse::<InterfaceName>(), Err(BadInterfaceName::Empty));
        for bad in [".", "..", "a/b", "a b", "a:b", "a\tb", "a\nb", "a\0b"] {
            assert_eq!(bad.parse::<InterfaceName>(), Err(BadInterfaceName::Forbidden(bad.to_owned())));
        }
        let long = "sixteen-bytes-16".to_owned();
        assert_eq!(long.parse::<InterfaceName>(), Err(BadInterfaceName::TooLong(long)));
    }

    #[test]
    fn instance_names_cannot_leave_the_run_directory() {
        for good in ["default", "node-1", "0", &"x".repeat(32)] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "a_b", "a b", "ä", &"x".repeat(33)] {
            assert_eq!(bad.parse::<InstanceName>(), Err(BadInstanceName(bad.to_owned())));
        }
    }
}
