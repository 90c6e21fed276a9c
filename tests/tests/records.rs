//! What the kernel remembers of a connection is there when the relay accepts it, and never longer than the connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::{
    Culvert, Sandbox,
    app::protocol::Storm,
    eventually,
    peer::Server,
    rules::ALL,
    sandbox::{CLOSED_PORT, SERVER_V4, SERVER_V6},
};

/// Threads of a storm: more than there are workers, so that connections wait for them.
const THREADS: u32 = 16;

/// Several of both families: each connection leaves a port of the relay in `TIME_WAIT`, and there are 28,000 for each
/// destination.
fn servers(sandbox: &Sandbox) -> Vec<Server> {
    let addresses = [IpAddr::from(SERVER_V4), SERVER_V6.into()];
    let addresses = addresses.into_iter().cycle().take(8);
    addresses
        .map(|address| sandbox.within(|| Server::echo((address, 0))))
        .collect()
}

/// No connection is known to the kernel or waits in it.
fn assert_forgotten(culvert: &Culvert<'_>) {
    eventually("all records to be gone", || {
        culvert.maps().records().is_empty().then_some(())
    });
    assert_eq!(culvert.counter("unpublished"), 0);
    assert_eq!(culvert.counter("failed_direct"), 0);
    assert_eq!(culvert.counter("failed_refused"), 0);
}

#[test]
fn fifty_thousand_short_connections_and_none_is_lost() {
    const EACH: u32 = 3125;
    let sandbox = Sandbox::new();
    let servers = servers(&sandbox);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let outcomes = app.storm(&Storm {
        addresses: servers.iter().map(Server::address).collect(),
        threads: THREADS,
        each: EACH,
        length: 64,
    });
    let all = u64::from(THREADS * EACH);
    assert_eq!(outcomes, [(0, all)].into(), "the error numbers");
    assert_eq!(culvert.counter("relayed"), all);
    assert_eq!(culvert.counter("published"), all);
    assert_forgotten(&culvert);
    let records = culvert.await_records(usize::try_from(all).unwrap());
    assert!(
        records
            .iter()
            .all(|record| record.reason == "done" && record.up == 64 && record.down == 64)
    );
}

#[test]
fn a_hundred_thousand_failures() {
    const EACH: u32 = 6250;
    let sandbox = Sandbox::new();
    sandbox.netns().ip("route add unreachable 198.51.100.0/24");
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let addresses: Vec<SocketAddr> = vec![
        (SERVER_V4, CLOSED_PORT).into(),
        (SERVER_V6, CLOSED_PORT).into(),
        "198.51.100.1:80".parse().unwrap(),
        "203.0.113.1:80".parse().unwrap(),
        "[2001:db8:9::1]:80".parse().unwrap(),
    ];
    let outcomes = app.storm(&Storm {
        addresses,
        threads: THREADS,
        each: EACH,
        length: 64,
    });
    // The reset meets the app when it connects, when it writes or when it reads.
    let errors: Vec<_> = outcomes.keys().copied().collect();
    assert!(
        errors
            .iter()
            .all(|error| [libc::ECONNRESET, libc::EPIPE].contains(error)),
        "{outcomes:?}"
    );
    assert_eq!(culvert.counter("relayed"), u64::from(THREADS * EACH));
    assert_forgotten(&culvert);
}

#[test]
fn fifty_thousand_that_are_closed_at_once() {
    const EACH: u32 = 3125;
    let sandbox = Sandbox::new();
    let servers = servers(&sandbox);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    // With length 0 the app closes before the relay can have accepted: the socket's end and the relay both remove the
    // record.
    let outcomes = app.storm(&Storm {
        addresses: servers.iter().map(Server::address).collect(),
        threads: THREADS,
        each: EACH,
        length: 0,
    });
    let all = u64::from(THREADS * EACH);
    assert_eq!(outcomes, [(0, all)].into());
    assert_eq!(culvert.counter("relayed"), all);
    assert_forgotten(&culvert);
}
