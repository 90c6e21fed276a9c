//! Connections that the relay must not, or cannot, take.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{net::SocketAddr, sync::Arc};

use culvert_tests::{
    App, Sandbox,
    app::Route,
    kernel::refusal,
    netns::Netns,
    peer::Server,
    process::app_binary,
    rules::{ALL, RELAY},
    sandbox::SERVER_V4,
};
use nix::errno::Errno;

#[test]
fn a_connection_to_the_listener_itself_is_reset_and_counted() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let [v4, v6] = [culvert.listener_v4(), culvert.listener_v6()];
    let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), v4.port());
    let elsewhere = SocketAddr::new("127.1.2.3".parse().unwrap(), v4.port());
    for listener in [v4, v6, mapped] {
        let socket = app.tcp(listener);
        match socket.connect(listener) {
            Ok(()) => assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET)),
            Err(error) => assert_eq!(error, Errno::ECONNRESET),
        }
    }
    // Another loopback address leads to no listener; that it counts as one does no harm.
    assert_eq!(
        app.tcp(elsewhere).connect(elsewhere),
        Err(Errno::ECONNREFUSED)
    );
    assert_eq!(culvert.counter("loop"), 4);
    assert_eq!(culvert.counter("relayed"), 0);
    assert_eq!(
        culvert.records().len(),
        0,
        "they are no connections of a rule"
    );
    assert!(
        culvert.log().contains("not_intercepted"),
        "{}",
        culvert.log()
    );
}

#[test]
fn a_connection_to_the_listener_from_outside_of_the_cgroup_is_reset() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = App::start(&mut sandbox.outsider(app_binary()));
    let socket = app.tcp(culvert.listener_v4());
    match socket.connect(culvert.listener_v4()) {
        Ok(()) => assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET)),
        Err(error) => assert_eq!(error, Errno::ECONNRESET),
    }
    assert_eq!(culvert.counter("seen"), 0);
}

/// One rule for each fail mode, by destination port.
const BOTH_FAIL_MODES: &str = r#"
[[forward]]
name = "open"
match = { port = 1001 }
via = "relay"
on_relay_failure = "direct"
[[forward]]
name = "closed"
match = { port = 1002 }
via = "relay"
on_relay_failure = "refuse"
"#;

#[test]
fn in_another_network_namespace_the_fail_mode_decides() {
    let sandbox = Sandbox::new();
    let elsewhere = Arc::new(Netns::new());
    elsewhere.add_address(SERVER_V4.into());
    let open = elsewhere.within(|| Server::mirror((SERVER_V4, 1001)));
    let closed = elsewhere.within(|| Server::mirror((SERVER_V4, 1002)));
    let unselected = elsewhere.within(|| Server::mirror((SERVER_V4, 1003)));
    let culvert = sandbox.culvert(&format!("{RELAY}{BOTH_FAIL_MODES}"));
    let app = App::start(&mut sandbox.command_elsewhere(&elsewhere, app_binary()));
    assert_eq!(app.probe(open.address()), Ok(Route::Direct));
    assert_eq!(app.probe(closed.address()), Err(refusal()));
    assert_eq!(app.probe(unselected.address()), Ok(Route::Direct));
    assert_eq!(culvert.counter("fail_netns"), 2);
    assert_eq!(culvert.counter("failed_direct"), 1);
    assert_eq!(culvert.counter("failed_refused"), 1);
    assert_eq!(closed.clients(), []);
}

#[test]
fn the_port_of_the_listener_is_no_way_around_a_rule_elsewhere() {
    let refuse_all = r#"
        [[forward]]
        name = "none"
        match = { dest = ["127.0.0.0/8", "::1"] }
        via = "refuse"
    "#;
    let sandbox = Sandbox::new();
    let elsewhere = Arc::new(Netns::new());
    let culvert = sandbox.culvert(refuse_all);
    let app = App::start(&mut sandbox.command_elsewhere(&elsewhere, app_binary()));
    for listener in [culvert.listener_v4(), culvert.listener_v6()] {
        let mirror = elsewhere.within(|| Server::mirror(listener));
        assert_eq!(app.probe(mirror.address()), Err(refusal()));
        assert_eq!(mirror.clients(), []);
    }
}

#[test]
fn without_ipv6_the_fail_mode_decides_for_ipv6() {
    let sandbox = Sandbox::new();
    let mirrors: Vec<_> = [1001, 1002]
        .map(|port| sandbox.within(|| Server::mirror((culvert_tests::sandbox::SERVER_V6, port))))
        .into();
    // The daemon finds no ::1 to listen on, while other IPv6 addresses work.
    sandbox.netns().ip("addr del ::1/128 dev lo");
    let culvert = sandbox.culvert(&format!("{RELAY}{BOTH_FAIL_MODES}"));
    let app = sandbox.app();
    assert_eq!(app.probe(mirrors[0].address()), Ok(Route::Direct));
    assert_eq!(app.probe(mirrors[1].address()), Err(refusal()));
    assert_eq!(culvert.counter("fail_family"), 2);
    let v4 = sandbox.within(|| Server::mirror((SERVER_V4, 1001)));
    assert_eq!(app.probe(v4.address()), Ok(Route::Relayed));
}
