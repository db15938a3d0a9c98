//! The loader.

pub mod bpf;
pub mod check;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod kernel;
pub mod mirror;
pub mod ports;
mod report;
pub mod status;
