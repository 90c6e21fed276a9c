//! Many connections at the same time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::fs;

use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    eventually,
    peer::{Holder, Server},
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn a_thousand_at_once_and_every_byte_of_each() {
    const COUNT: u32 = 1000;
    const LENGTH: u64 = 48 * 1024;
    let sandbox = Sandbox::new();
    let servers = [
        sandbox.within(|| Server::echo((SERVER_V4, 0))),
        sandbox.within(|| Server::echo((SERVER_V6, 0))),
    ];
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let outcomes = app.storm(&Storm {
        addresses: servers.iter().map(Server::address).collect(),
        threads: COUNT,
        each: 1,
        length: LENGTH,
    });
    assert_eq!(
        outcomes,
        [(0, u64::from(COUNT))].into(),
        "the error numbers"
    );
    for record in culvert.await_records(COUNT as usize) {
        assert_eq!((record.up, record.down), (LENGTH, LENGTH), "{record:?}");
        assert_eq!(record.reason, "done");
    }
    assert_eq!(culvert.maps().records(), []);
}

#[test]
fn ten_thousand_idle_ones_take_little_memory() {
    const MOST: u64 = 64 * 1024 * 1024;
    let count = affordable(10_000);
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Holder::start((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let before = resident(culvert.pid());
    let app = sandbox.app();
    app.hold(server.address(), count).unwrap();
    eventually("all connections to be there", || {
        (server.held() == count as usize).then_some(())
    });
    let after = resident(culvert.pid());
    let mib = |bytes| bytes / (1024 * 1024);
    println!(
        "resident: {} MiB before, {} MiB with {count} connections",
        mib(before),
        mib(after)
    );
    assert!(after < MOST, "{} MiB", mib(after));
    assert_eq!(culvert.maps().records(), []);
    drop((app, server));
    culvert.await_records(count as usize);
}

/// As many connections as are wanted, or as this machine allows, if fewer. The relay has two files for each.
fn affordable(wanted: u32) -> u32 {
    const OTHER_FILES: u64 = 1000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    let enough = hard.max(u64::from(2 * wanted) + OTHER_FILES);
    // To raise the hard limit takes a privilege that a container may lack.
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, enough, enough).is_ok() {
        enough
    } else {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit of open files");
        hard
    };
    let count = (limit - OTHER_FILES) / 2;
    let count = u32::try_from(count).unwrap_or(wanted).min(wanted);
    if count < wanted {
        println!("the limit of {limit} open files allows {count} connections and not {wanted}");
    }
    count
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("VmRSS").trim().trim_end_matches(" kB");
    1024 * kib.parse::<u64>().expect("a number")
}
