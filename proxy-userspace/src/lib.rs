//! culvert: a transparent proxy for Linux that is accelerated by the kernel.

mod access_log;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod close;
pub mod commands;
pub mod config;
mod connection;
pub mod daemon;
pub mod failure;
pub mod intercept;
mod listener;
pub mod policy;
mod privileges;
pub mod process;
pub mod proxy;
mod pulse;
pub mod record;
pub mod resolve;
pub mod routes;
pub mod rule;
mod run_command;
mod service;
pub mod socket;
pub mod upstream;
pub mod watch;
pub mod worker;
