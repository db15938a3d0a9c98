//! Podlane's CNI plugin: connects a container to the node's bridge, by a veth pair with addresses and routes of both
//! families, and disconnects it.
//!
//! What it makes is what any plugin makes and a person could type: nothing of it is Podlane's own, and nothing of it needs
//! Podlane's daemon. The daemon finds the new member of the bridge by itself. The flow of a call is `main` → [`protocol`]
//! (what is asked for) → [`command`] (what is done, in order, and undone) → [`ipam`] or [`delegate`] (which addresses) and
//! [`link`] (what the kernel is asked for).

pub mod command;
pub mod delegate;
pub mod ipam;
pub mod link;
pub mod protocol;
