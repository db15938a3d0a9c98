//! The loader.

pub mod bpf;
pub mod compile;
pub mod config;
pub mod kernel;
pub mod mirror;
pub mod status;
