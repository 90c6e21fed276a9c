//! culvert on a real kernel: what the root tests stand on.
//!
//! A test makes a [`Sandbox`]: a network namespace, a mount namespace and a cgroup of its own, so that tests run beside
//! each other and beside the rest of the machine. In it run the daemon ([`Culvert`]), programs that connect ([`App`],
//! or any command) and what they connect to ([`peer`]). When the sandbox goes, it looks for what was left behind
//! ([`leak`]) and fails the test if there is anything.
//!
//! Everything here panics with what it was doing: a test has no other way to fail. Nothing here knows the daemon's
//! source; it is driven as users drive it, by its file, its signals and its logs, and looked at through the kernel.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a harness for tests: a panic with its context is how a test fails"
)]

pub mod agent;
pub mod app;
pub mod browser;
pub mod bytecode;
pub mod cgroup;
pub mod container;
pub mod daemon;
pub mod datagrams;
pub mod doctor;
pub mod eventually;
pub mod fionread;
pub mod flood;
pub mod frames;
pub mod hello;
pub mod hosts;
pub mod kernel;
pub mod leak;
pub mod load;
pub mod mounts;
pub mod netns;
pub mod payload;
pub mod peer;
pub mod process;
pub mod record;
pub mod rules;
pub mod sandbox;
pub mod screen;
pub mod stranger;
pub mod stress;
pub mod terminal;
pub mod tun;
pub mod usage;
mod watchdog;
pub mod ways;

pub use app::{App, Socket};
pub use daemon::Culvert;
pub use eventually::eventually;
pub use load::Load;
pub use payload::Payload;
pub use sandbox::Sandbox;
