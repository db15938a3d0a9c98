//! The loader: everything around the engine that talks to the outside.
//!
//! [`cli`] and [`config`] say what is wanted, [`check`] whether this node can. [`mirror`] follows the kernel's network
//! state, [`compile`] makes the engine's tables of it, [`kernel`] writes back the little that the kernel must know.
//! [`bpf`] loads the XDP program and keeps its maps equal to the tables, [`engine`] runs the workers, [`ports`] opens and
//! closes sockets, [`large`] gives pods larger frames for each other, [`carry`] has counters outlive a restart and [`survival`]
//! everything else ([`takeover`] and [`detach`] end that), [`daemon`] is the one loop that ties them together, and [`control`] and [`status`] answer questions. [`capture`] tells what passes,
//! [`log`] what the daemon says, [`tables`] what it believes, [`bugreport`] collects all of it, and [`generate`] makes the manual
//! from the commands. [`reload`] says what a changed configuration changes, [`service`] tells the service manager,
//! [`privileges`] has threads give up what they do not need.

pub mod bpf;
pub mod bugreport;
pub mod capture;
pub mod carry;
pub mod check;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod detach;
pub mod engine;
pub mod explain;
pub mod generate;
pub mod guard;
pub mod kernel;
pub mod large;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod names;
pub mod netfilter;
#[doc(hidden)]
pub mod outside;
pub mod ports;
pub mod printable;
pub mod privileges;
pub mod reload;
mod report;
pub mod service;
pub mod status;
pub mod survival;
pub mod tables;
pub mod takeover;
pub mod top;
pub mod trace;
pub mod watch;
