//! The configuration seen from outside: files in, types or reports out.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic"
)]

mod fuzz;
mod limits;
mod reports;
mod valid;
mod world;
