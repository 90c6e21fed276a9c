//! As many connections at a time as one daemon may have, over many endpoints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::time::Instant;

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    peer::Crowd,
    sandbox::{OTHER_V4, SERVER_V4},
    usage::{affordable, open_files, resident},
};

const ENDPOINTS: usize = 16;
/// Files of a daemon beside those of connections, which it sets aside itself.
const OTHER_FILES: u64 = 256;
/// Bytes that each connection sends and gets back.
const LENGTH: u64 = 4096;

#[test]
fn ten_thousand_over_sixteen_endpoints_and_every_byte_of_each() {
    const GROWN: u64 = 8 * 1024 * 1024;
    let count = affordable(10_000, OTHER_FILES);
    let sandbox = Sandbox::new();
    let servers: Vec<_> = (0..ENDPOINTS)
        .map(|_| sandbox.within(|| Crowd::start((SERVER_V4, 0))))
        .collect();
    let endpoints: Vec<_> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    // Each worker has its part of the limit, but not exactly its part of the connections.
    let settings = Settings::daemon("workers = 1");
    let rules = format!(
        "[upstream.farm]\nendpoints = {endpoints:?}\nbalance = \"round-robin\"\n\
         [[reverse]]\nname = \"farm\"\nlisten = \"{OTHER_V4}:80\"\nvia = \"farm\"\n"
    );
    let culvert = sandbox.culvert_with(&settings, &rules);
    let files = open_files(culvert.pid());
    let start = resident(culvert.pid());
    let first = wave(&sandbox, &culvert, &servers, count, 1);
    let second = wave(&sandbox, &culvert, &servers, count, 2);
    eventually("as few files as before", || {
        (open_files(culvert.pid()) <= files).then_some(())
    });
    println!(
        "resident: {start} bytes, {first} after {count} connections, {second} after as many more"
    );
    // What is free again is kept for those who come next.
    assert!(second.saturating_sub(first) < GROWN);
    assert_eq!(culvert.maps().own(), []);
    assert_eq!(culvert.maps().records(), []);
    assert_eq!(culvert.status()["groups"][0]["live"], 0);
    assert!(!culvert.log().contains("WARN"), "{}", culvert.log());
}

/// All connections at a time, for the `number`-th time: what is resident when they are over.
fn wave(
    sandbox: &Sandbox,
    culvert: &Culvert<'_>,
    servers: &[Crowd],
    count: u32,
    number: usize,
) -> u64 {
    let begun = Instant::now();
    let client = sandbox.app();
    client.hold((OTHER_V4, 80).into(), count).unwrap();
    eventually("all connections to be there", || {
        let live = &culvert.status()["connections"]["live"];
        (live == count).then_some(())
    });
    println!("{count} connections after {:?}", begun.elapsed());
    assert_eq!(client.exchange_held(LENGTH), Ok(()));
    println!("every byte of each after {:?}", begun.elapsed());

    // Turns come round exactly.
    let count = count as usize;
    let fair = count / ENDPOINTS;
    for server in servers {
        let all = count * number / ENDPOINTS;
        let accepted = server.accepted();
        assert!((all..=all + 1).contains(&accepted), "{accepted}");
    }
    let status = culvert.status();
    for endpoint in status["groups"][0]["endpoints"].as_array().unwrap() {
        let live = usize::try_from(endpoint["live"].as_u64().unwrap()).unwrap();
        assert!((fair..=fair + 1).contains(&live), "{live}");
        assert_eq!(endpoint["failures"], 0, "{endpoint}");
    }
    drop(client);
    for record in culvert.await_records(count * number) {
        assert_eq!((record.up, record.down), (LENGTH, LENGTH), "{record:?}");
        assert_eq!((&*record.reason, record.attempts), ("done", 1));
    }
    resident(culvert.pid())
}
