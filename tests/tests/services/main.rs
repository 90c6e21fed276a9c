//! Services that nobody here wrote, with their own clients and load tools, by every way that there is to a service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod failures;
mod postgres;
mod redis;
mod ssh;
mod web;
mod wrk;

use std::{process::Command, thread};

use culvert_tests::{
    eventually,
    process::attempt,
    ways::{Way, ways},
};

/// Does something by every way to a service, all at once.
fn by_every_way<T: Send>(service: u16, work: impl Fn(Way) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = ways(service)
            .into_iter()
            .map(|way| scope.spawn(move || work(way)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Waits until a command of a client's succeeds.
fn await_service(what: &str, mut command: impl FnMut() -> Command) {
    eventually(what, || {
        attempt(&mut command()).status.success().then_some(())
    });
}
