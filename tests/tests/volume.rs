//! Many connections at the same time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    eventually,
    peer::{Holder, Server},
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
    usage::{affordable, resident},
};

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
    const GROWN: u64 = 48 * 1024 * 1024;
    let count = affordable(10_000, 1000);
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
    let grown = after.saturating_sub(before);
    assert!(grown < GROWN, "{} MiB", mib(grown));
    assert_eq!(culvert.maps().records(), []);
    drop((app, server));
    culvert.await_records(count as usize);
}
