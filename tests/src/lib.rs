//! What the system tests are made of.
//!
//! [`probe`] is the traffic tool that runs inside of a pod (the binary `podlane-probe`). The rest is the other side of it:
//! [`command`] runs programs with deadlines, [`testbed`] raises and removes the namespaces of `scripts/netns-testbed.sh`,
//! [`daemon`] starts `podlane run` in a node, [`status`] reads what it says of itself, and [`bed`] puts the four together
//! into what a test case is handed: a testbed, with or without Podlane, that can send traffic and audit what became of it.
//! [`load`] keeps many flows running through whatever happens to the nodes, and [`evidence`] reads what the kernel and Podlane count
//! as lost. [`document`] reads documents whose commands are tested, [`cni`] calls the CNI plugin, [`stock`] somebody else's, and
//! [`node_state`] compares what a node is like at two times.
//!
//! Nothing here sleeps for luck: everything waits for a condition until a deadline, and a deadline that passes is an error
//! that names what was waited for.

pub mod bed;
pub mod cni;
pub mod command;
pub mod daemon;
pub mod document;
pub mod evidence;
pub mod frames;
pub mod leftovers;
pub mod load;
pub mod node_state;
pub mod probe;
pub mod status;
pub mod stock;
pub mod testbed;
pub mod traffic;
