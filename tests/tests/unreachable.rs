//! Destinations that do not answer, and what exactly the app sees of it.
//!
//! The kernel completes the app's connection to the listener before anybody knows whether the destination answers. So
//! a blocking `connect()` succeeds, and the first call after it reports the reset: `ECONNRESET`, never an orderly end
//! and never a byte. Rules that the kernel decides alone (`refuse`) fail the `connect()` itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::{
    App, Sandbox,
    app::protocol::How,
    kernel::refusal,
    peer::{Server, Socks5, reset_on_close},
    rules::{ALL, RELAY, all_via, relayed},
    sandbox::{CLOSED_PORT, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// Destinations with the error of a direct `connect()` to them and the reason in the record of a relayed one.
fn destinations(sandbox: &Sandbox) -> Vec<(SocketAddr, Errno, &'static str)> {
    for route in [
        "unreachable 198.51.100.1/32",
        "prohibit 198.51.100.2/32",
        "unreachable 2001:db8:1::1/128",
    ] {
        let version = if route.contains("::") { "-6 " } else { "" };
        sandbox.netns().ip(&format!("{version}route add {route}"));
    }
    let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    vec![
        (
            (SERVER_V4, CLOSED_PORT).into(),
            Errno::ECONNREFUSED,
            "destination_refused",
        ),
        (
            (SERVER_V6, CLOSED_PORT).into(),
            Errno::ECONNREFUSED,
            "destination_refused",
        ),
        (
            at("198.51.100.1", 80),
            Errno::EHOSTUNREACH,
            "destination_unreachable",
        ),
        (
            at("198.51.100.2", 80),
            Errno::EACCES,
            "destination_unreachable",
        ),
        (
            at("2001:db8:1::1", 80),
            Errno::EHOSTUNREACH,
            "destination_unreachable",
        ),
        // No route at all.
        (
            at("203.0.113.1", 80),
            Errno::ENETUNREACH,
            "destination_unreachable",
        ),
        (
            at("2001:db8:2::1", 80),
            Errno::ENETUNREACH,
            "destination_unreachable",
        ),
    ]
}

/// A blocking connection that is reset. The reset may be there before `connect()` has returned.
fn assert_reset(app: &App, destination: SocketAddr) {
    let socket = app.tcp(destination);
    match socket.connect(destination) {
        Ok(()) => assert_eq!(
            socket.receive_all(),
            Err(Errno::ECONNRESET),
            "{destination}"
        ),
        Err(error) => assert_eq!(error, Errno::ECONNRESET, "{destination}"),
    }
    socket.close();
}

#[test]
fn without_culvert_each_has_its_own_error() {
    let sandbox = Sandbox::new();
    let app = sandbox.app();
    for (destination, error, _) in destinations(&sandbox) {
        let socket = app.tcp(destination);
        assert_eq!(socket.connect(destination), Err(error), "{destination}");
    }
}

#[test]
fn a_relayed_connection_is_reset_at_once() {
    let sandbox = Sandbox::new();
    let destinations = destinations(&sandbox);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for (count, (destination, _, reason)) in destinations.into_iter().enumerate() {
        assert_reset(&app, destination);
        let records = culvert.await_records(count + 1);
        let record = &records[count];
        assert_eq!(record.orig_dst, Some(destination));
        assert_eq!(record.reason, reason, "{destination}");
        assert!(record.error.is_some(), "{record:?}");
        assert_eq!((record.up, record.down), (0, 0));
        assert_eq!(record.peer, None);
    }
    assert_eq!(culvert.maps().records(), []);
}

#[test]
fn a_non_blocking_connect_hears_of_it_by_poll() {
    let sandbox = Sandbox::new();
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for ip in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let destination = SocketAddr::new(ip, CLOSED_PORT);
        let socket = app.tcp(destination);
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(destination), Err(Errno::EINPROGRESS));
        // Writable means connected; whether the reset is there by then is a race that nobody can rely on.
        let finished = socket.finish_connect();
        socket.set_nonblocking(false);
        match finished {
            Ok(()) => assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET)),
            Err(error) => assert_eq!(error, Errno::ECONNRESET),
        }
    }
}

#[test]
fn bytes_sent_early_do_not_hide_it() {
    let sandbox = Sandbox::new();
    sandbox.netns().sysctl("net.ipv4.tcp_fastopen", "1543");
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for ip in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let destination = SocketAddr::new(ip, CLOSED_PORT);
        let socket = app.tcp(destination);
        socket
            .connect_by(destination, How::FastOpen(b"request".to_vec()))
            .unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    }
}

#[test]
fn a_refusal_of_the_proxy_for_the_destination_is_told_apart_from_a_dead_proxy() {
    let sandbox = Sandbox::new();
    let proxy = sandbox.within(|| Socks5::start((SERVER_V6, 0)));
    let culvert = sandbox.culvert(&all_via("socks5", proxy.address()));
    let app = sandbox.app();
    let destination = SocketAddr::from((SERVER_V4, CLOSED_PORT));
    assert_reset(&app, destination);
    let records = culvert.await_records(1);
    assert_eq!(records[0].reason, "destination_refused");
    assert_eq!(proxy.requests(), [destination]);

    drop(proxy);
    assert_reset(&app, destination);
    let records = culvert.await_records(2);
    assert_eq!(records[1].reason, "proxy_unreachable");
}

#[test]
fn a_server_that_resets_at_once() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), |stream| {
            reset_on_close(&stream);
            Ok(())
        })
    });
    let culvert = sandbox.culvert(ALL);
    assert_reset(&sandbox.app(), server.address());
    assert_eq!(culvert.the_record().reason, "upstream_reset");
}

#[test]
fn a_rule_that_refuses_fails_the_connect_itself() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let refused =
        "[[forward]]\nname = \"no\"\nmatch = { dest = \"192.0.2.0/24\" }\nvia = \"refuse\"\n";
    let culvert = sandbox.culvert(&(refused.to_owned() + RELAY + &relayed("rest", "port = 80")));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    assert_eq!(socket.connect(server.address()), Err(refusal()));
    let socket = app.tcp(server.address());
    socket.set_nonblocking(true);
    assert_eq!(socket.connect(server.address()), Err(refusal()));
    let socket = app.tcp(server.address());
    assert_eq!(
        socket.connect_by(server.address(), How::IoUring),
        Err(refusal())
    );
    assert_eq!(server.clients(), []);
    assert_eq!(culvert.counter("refused"), 3);
}
