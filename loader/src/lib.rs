//! The loader.

pub mod bpf;
pub mod config;
pub mod kernel;
pub mod mirror;
