//! `culvert exec`: one command, captured in a cgroup of its own.
//!
//! The parts know nothing of interception: [`job`] is the whole life of a command, composed of [`child`] (started
//! as [`identity`] says), [`signals`], `terminal` and [`reaper`]; [`ending`] is how it ended.

pub mod account;
pub mod child;
pub mod ending;
pub mod identity;
pub mod job;
pub mod reaper;
pub mod signals;
mod terminal;
