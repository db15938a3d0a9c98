//! Errors as the CNI specification has them: a number that a runtime understands, a short and a long sentence.

use std::fmt;

use serde_json::{Value, json};

/// What a plugin answers when it cannot do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// 1 to 99 are the specification's, from 100 on they are this plugin's.
    pub code: u32,
    /// What is wrong, and what helps.
    pub message: String,
    /// More, for those who look closer; may be empty.
    pub details: String,
}

/// The numbers. 100 and above are listed in docs/cni.md.
pub mod code {
    /// The version of the specification is not spoken here, or has no such command.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration that is not known, or whose value is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// There is no such container: nothing has to be cleaned up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// Something is not the JSON that it should be.
    pub const DECODING: u32 = 6;
    /// The configuration cannot be right.
    pub const CONFIGURATION: u32 = 7;
    /// It may work in a moment.
    pub const TRY_AGAIN: u32 = 11;
    /// Of STATUS: pods cannot be added.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Of STATUS: the same, and those that are there may be cut off.
    pub const LIMITED: u32 = 51;
    /// The kernel refused.
    pub const KERNEL: u32 = 100;
    /// Of CHECK: something is not as ADD left it.
    pub const NOT_AS_ADDED: u32 = 101;
    /// Every address is taken, or the one that was asked for.
    pub const NO_ADDRESS: u32 = 102;
    /// Something with that name is there already.
    pub const EXISTS: u32 = 103;
    /// An IPAM plugin could not be run, or answered nonsense.
    pub const DELEGATE: u32 = 104;
    /// GC could not remove everything.
    pub const LEFT_OVER: u32 = 105;
}

impl Failure {
    /// With a message alone.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), details: String::new() }
    }

    /// Adds details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As JSON, in the version of the call.
    pub fn json(&self, version: &str) -> Value {
        let mut value = json!({ "cniVersion": version, "code": self.code, "msg": self.message });
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(out, ": {}", self.details) }
    }
}

impl std::error::Error for Failure {}

impl From<podlane_netlink::NetlinkError> for Failure {
    fn from(error: podlane_netlink::NetlinkError) -> Self {
        Failure::new(code::KERNEL, error.to_string())
    }
}
