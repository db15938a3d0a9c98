//! The built-in IPAM: which pod has which address.
//!
//! [`range`] says which address comes next, [`store`] keeps what was given in files. Every attachment of this plugin has
//! an entry, also where another plugin gives the addresses: it is written before the first interface is made and removed
//! after the last one is gone, so that whatever a killed call left behind is found again.

pub mod range;
pub mod store;

pub use range::{Lease, Plan};
pub use store::{Attachment, Entry, Reserved, Store};

#[cfg(test)]
mod tests;
