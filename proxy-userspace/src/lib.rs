//! culvert: a transparent proxy for Linux that is accelerated by the kernel.

pub mod close;
pub mod config;
pub mod intercept;
pub mod policy;
pub mod rule;
pub mod upstream;
