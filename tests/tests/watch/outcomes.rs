//! What became of a connection.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use culvert_tests::{
    App, Sandbox,
    app::protocol::{Family, How, Kind},
    kernel::{has_ipv6, version},
    peer::Server,
    sandbox::{CLOSED_PORT, OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::{errno::Errno, sys::signal::Signal};
use serde_json::Value;

use super::scene::Told;

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

#[track_caller]
fn assert_told(told: &Value, outcome: &str, error: Option<Errno>) {
    assert_eq!(told["outcome"], outcome, "{told}");
    let error = error.map(|error| format!("{error:?}"));
    assert_eq!(told["error"].as_str(), error.as_deref(), "{told}");
    let was_sent = outcome != "unsent";
    assert_eq!(told["source"].is_string(), was_sent, "{told}");
    assert_eq!(told["latency_us"].is_u64(), was_sent, "{told}");
}

#[track_caller]
fn assert_guessed(told: &Value, error: Errno) {
    // Before, sockets do not tell their network namespace.
    if version() >= (5, 14) {
        assert_eq!(told["likely_error"], format!("{error:?}"), "{told}");
    }
}

/// Both families, and IPv4 by an IPv6 socket.
#[test]
fn made_or_refused() {
    let sandbox = Sandbox::new();
    let told = Told::new(&sandbox);
    let app = told.app(&sandbox, &[]);
    let mapped = SERVER_V4.to_ipv6_mapped();
    let mut made = vec![IpAddr::from(SERVER_V4), [127, 0, 0, 1].into()];
    let mut refused = vec![IpAddr::from(OTHER_V4)];
    if has_ipv6() {
        made.extend([SERVER_V6, mapped].map(IpAddr::from));
        refused.push(SERVER_V6.into());
    }
    for ip in made {
        let server = sandbox.within(|| Server::echo((ip.to_canonical(), 0)));
        let to = at(ip, server.address().port());
        let socket = app.tcp(to);
        socket.connect(to).unwrap();
        // Nothing of it is changed.
        assert_eq!(socket.peer(), Ok(to));
        socket.exchange(7, 100_000).unwrap();
        let seen = told.connection(server.address());
        assert_told(&seen, "established", None);
        let local = socket.local().unwrap();
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        assert_eq!(seen["source"], local.to_string());
        // Its end is no other connection.
        socket.close();
    }
    for ip in refused {
        let to = at(ip, CLOSED_PORT);
        let socket = app.tcp(to);
        assert_eq!(socket.connect(to), Err(Errno::ECONNREFUSED));
        assert_told(&told.connection(to), "refused", Some(Errno::ECONNREFUSED));
        // The same socket again.
        assert_eq!(socket.connect(to), Err(Errno::ECONNREFUSED));
        assert_eq!(told.connections(to, 2).len(), 2);
    }
}

/// Also where `connect()` does not wait for it, or is called in some other way.
#[test]
fn however_it_is_called() {
    let sandbox = Sandbox::new();
    sandbox.netns().sysctl("net.ipv4.tcp_fastopen", "3");
    let told = Told::new(&sandbox);
    let app = told.app(&sandbox, &[]);
    let server = || sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let (later, child, thread) = (server(), server(), server());
    let (fast, ring, several) = (server(), server(), server());

    let socket = app.tcp(later.address());
    socket.set_nonblocking(true);
    assert_eq!(socket.connect(later.address()), Err(Errno::EINPROGRESS));
    socket.finish_connect().unwrap();
    assert_told(&told.connection(later.address()), "established", None);
    let to = at(OTHER_V4, CLOSED_PORT);
    let socket = app.tcp(to);
    socket.set_nonblocking(true);
    assert_eq!(socket.connect(to), Err(Errno::EINPROGRESS));
    assert_eq!(socket.finish_connect(), Err(Errno::ECONNREFUSED));
    assert_told(&told.connection(to), "refused", Some(Errno::ECONNREFUSED));

    let socket = app.tcp(child.address()).in_child();
    socket.connect(child.address()).unwrap();
    let by_child = told.connection(child.address());
    assert_told(&by_child, "established", None);
    let own = told.connection(later.address());
    assert_ne!(by_child["pid"], own["pid"]);

    let socket = app.tcp(fast.address());
    let how = How::FastOpen(b"first".to_vec());
    socket.connect_by(fast.address(), how).unwrap();
    assert_told(&told.connection(fast.address()), "established", None);

    let socket = app.tcp(ring.address());
    // Where there is no io_uring this fails.
    if socket.connect_by(ring.address(), How::IoUring).is_ok() {
        assert_told(&told.connection(ring.address()), "established", None);
    }

    if Path::new("/proc/sys/net/mptcp").exists() {
        let socket = app.open(Family::V4, Kind::Mptcp);
        socket.connect(several.address()).unwrap();
        assert_told(&told.connection(several.address()), "established", None);
    }

    let call = culvert_tests::app::protocol::Call::Probe(thread.address());
    let _ = app.call(&call.in_thread());
    assert_told(&told.connection(thread.address()), "established", None);
}

/// Nobody answers, or somebody on the way says that nobody will.
#[test]
fn not_answered() {
    let sandbox = Sandbox::new();
    let netns = sandbox.netns();
    // Two SYNs, three seconds.
    netns.sysctl("net.ipv4.tcp_syn_retries", "1");
    let nft = |command: &str| netns.tool("nft", command);
    nft("add table inet silence");
    nft("add chain inet silence in { type filter hook input priority 0 ; }");
    nft("add rule inet silence in tcp dport 81 drop");
    nft("add rule inet silence in tcp dport 82 reject with icmp type host-unreachable");
    nft("add rule inet silence in tcp dport 83 reject with icmp type net-unreachable");
    let told = Told::new(&sandbox);
    let app = told.app(&sandbox, &[]);
    let silent = at(SERVER_V4, 81);
    assert_eq!(app.tcp(silent).connect(silent), Err(Errno::ETIMEDOUT));
    let seen = told.connection(silent);
    assert_told(&seen, "timed-out", Some(Errno::ETIMEDOUT));
    assert!(seen["latency_us"].as_u64().unwrap() > 1_000_000, "{seen}");

    for (port, error) in [(82, Errno::EHOSTUNREACH), (83, Errno::ENETUNREACH)] {
        let to = at(SERVER_V4, port);
        assert_eq!(app.tcp(to).connect(to), Err(error));
        assert_told(&told.connection(to), "unreachable", Some(error));
    }

    // An app that does not wait so long.
    let silent = at(OTHER_V4, 81);
    let socket = app.tcp(silent);
    socket.set_nonblocking(true);
    assert_eq!(socket.connect(silent), Err(Errno::EINPROGRESS));
    socket.close();
    assert_told(&told.connection(silent), "abandoned", None);
}

/// `connect()` has failed before there was a packet.
#[test]
fn not_sent() {
    let sandbox = Sandbox::new();
    sandbox.netns().ip("route add unreachable 198.51.100.1/32");
    let told = Told::new(&sandbox);
    let app = told.app(&sandbox, &[]);
    let to = at([198, 51, 100, 1], 80);
    let socket = app.tcp(to);
    assert_eq!(socket.connect(to), Err(Errno::EHOSTUNREACH));
    // It is told once the socket is used for something else.
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    socket.connect(server.address()).unwrap();
    let seen = told.connection(to);
    assert_told(&seen, "unsent", None);
    assert_guessed(&seen, Errno::EHOSTUNREACH);
    assert_told(&told.connection(server.address()), "established", None);
    // Or is closed.
    let nowhere = at([203, 0, 113, 1], 80);
    let socket = app.tcp(nowhere);
    assert_eq!(socket.connect(nowhere), Err(Errno::ENETUNREACH));
    socket.close();
    let seen = told.connection(nowhere);
    assert_told(&seen, "unsent", None);
    assert_guessed(&seen, Errno::ENETUNREACH);
    end(&app);
    assert_eq!(told.summary()["failed"], 2);
}

#[test]
fn datagrams_where_that_is_asked_for() {
    let sandbox = Sandbox::new();
    let to = at(SERVER_V4, 53);
    for (options, count) in [(&[][..], 0), (&["--udp"][..], 1)] {
        let told = Told::new(&sandbox);
        let app = told.app(&sandbox, options);
        let socket = app.open(Family::V4, Kind::Udp);
        socket.connect(to).unwrap();
        // After it in the order of what is told.
        let closed = at(SERVER_V4, CLOSED_PORT);
        app.tcp(closed).connect(closed).unwrap_err();
        told.connection(closed);
        let mut seen = told.of("connection");
        seen.retain(|it| it["protocol"] == "udp");
        assert_eq!(seen.len(), count, "{seen:?}");
        for seen in seen {
            assert_eq!(seen["outcome"], "addressed");
            assert_eq!(seen["destination"], to.to_string());
        }
        // Not by killing the watch, which would leave that to the app.
        end(&app);
        told.summary();
    }
}

/// Ends the app, and by that its watch.
fn end(app: &App) {
    let app = nix::unistd::Pid::from_raw(app.pid().try_into().unwrap());
    nix::sys::signal::kill(app, Signal::SIGTERM).unwrap();
}
