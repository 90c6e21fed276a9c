//! Groups: connections spread over several servers, some of which are dead, hung or full.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{collections::BTreeMap, net::SocketAddr};

use culvert_tests::{
    App, Sandbox,
    app::protocol::Storm,
    peer::Server,
    sandbox::{CLOSED_PORT, OTHER_V4, SERVER_V4, SERVER_V6},
};

/// Where apps connect; nobody listens there.
const SERVICE: (std::net::Ipv4Addr, u16) = (OTHER_V4, 80);

/// A group of endpoints for all connections to [`SERVICE`], with more lines for its section.
fn group(endpoints: &[String], more: &str) -> String {
    format!(
        r#"
        [upstream.web]
        endpoints = {endpoints:?}
        {more}
        [[forward]]
        name = "service"
        match = {{ dest = "{}", port = {} }}
        via = "web"
        "#,
        SERVICE.0, SERVICE.1
    )
}

/// Makes connections one after the other, each of which has its bytes echoed.
fn storm(app: &App, threads: u32, each: u32) -> BTreeMap<i32, u64> {
    app.storm(&Storm {
        addresses: vec![SERVICE.into()],
        threads,
        each,
        length: 100,
    })
}

#[test]
fn connections_are_spread_by_weight() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> = [
        SocketAddr::from((SERVER_V4, 0)),
        (SERVER_V6, 0).into(),
        (OTHER_V4, 0).into(),
    ]
    .into_iter()
    .map(|address| sandbox.within(|| Server::echo(address)))
    .collect();
    let endpoints: Vec<_> = servers
        .iter()
        .zip([1, 2, 5])
        .map(|(server, weight)| format!("{} weight={weight}", server.address()))
        .collect();
    let culvert = sandbox.culvert(&group(&endpoints, "balance = \"round-robin\""));
    assert_eq!(storm(&sandbox.app(), 4, 100), [(0, 400)].into());
    for (server, expected) in servers.iter().zip([50, 100, 250]) {
        let count = server.clients().len();
        assert!(count.abs_diff(expected) <= 1, "{count} of {expected}");
    }
    for record in culvert.await_records(400) {
        assert_eq!(record.upstream.as_deref(), Some("web"));
        assert_eq!(record.orig_dst, Some(SERVICE.into()));
        assert_eq!(record.endpoint, record.peer.map(|peer| peer.to_string()));
        assert_eq!((record.attempts, &*record.reason), (1, "done"));
    }
}

#[test]
fn nobody_hears_of_an_endpoint_that_refuses() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let dead = SocketAddr::from((SERVER_V4, CLOSED_PORT));
    let endpoints = [dead.to_string(), server.address().to_string()];
    let culvert = sandbox.culvert(&group(&endpoints, "balance = \"round-robin\""));
    assert_eq!(storm(&sandbox.app(), 2, 20), [(0, 40)].into());
    assert_eq!(server.clients().len(), 40);
    let records = culvert.await_records(40);
    let twice = records.iter().filter(|record| record.attempts == 2).count();
    // As often as it takes to eject it; both workers' connections may be on their way there by then.
    assert!((5..=10).contains(&twice), "{twice}");
}
