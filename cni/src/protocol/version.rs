//! Versions of the CNI specification.

use std::fmt;

use super::failure::{Failure, code};

/// A version that is spoken here. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.4.0: CHECK, `version` in each address.
    V0_4_0,
    /// 1.0.0: addresses without `version`.
    V1_0_0,
    /// 1.1.0: GC and STATUS, MTUs of interfaces, more of routes.
    V1_1_0,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Version; 3] = [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    /// The newest.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As it is written.
    pub const fn text(self) -> &'static str {
        match self {
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is not spoken here.
    pub fn read(text: &str) -> Result<Self, Failure> {
        Version::ALL.into_iter().find(|version| version.text() == text).ok_or_else(|| {
            let known = Version::ALL.map(Version::text).join(", ");
            Failure::new(code::INCOMPATIBLE_VERSION, format!("incompatible CNI version {text:?}"))
                .with_details(format!("this plugin speaks {known}; set \"cniVersion\" to one of them"))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.text())
    }
}
