//! The Podlane engine.
//!
//! A frame flows through this crate from top to bottom of its module list: [`packet`] looks at the bytes once and gives
//! checked headers; [`table`] holds what the node knows (ports, bridge FDB, neighbours, routes), published as immutable
//! snapshots; [`forward`] decides, as a pure function of headers and a snapshot, where the frame goes; [`afxdp`] moves
//! frames between the kernel's rings and one UMEM; [`worker`] is the loop that ties the four together.
//!
//! Everything except [`afxdp`] is free of I/O, of `unsafe` and of clocks (time is an argument), so it builds and is tested
//! without root. Nothing on the packet path allocates, locks, logs or makes a system call per packet.

pub mod addr;
pub mod afxdp;
pub mod forward;
pub mod limits;
pub mod packet;
mod sync;
pub mod table;
pub mod tap;
pub mod worker;

pub use addr::{MacAddr, PortId};
