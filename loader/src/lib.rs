//! The loader.

pub mod bpf;
pub mod check;
pub mod compile;
pub mod config;
pub mod control;
pub mod kernel;
pub mod mirror;
pub mod status;
