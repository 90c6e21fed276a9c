//! culvert: a transparent proxy for Linux that is accelerated by the kernel.

pub mod cgroup;
pub mod close;
pub mod process;
pub mod rule;
pub mod upstream;
pub mod watch;
