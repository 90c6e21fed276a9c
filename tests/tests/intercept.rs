//! What a selected connection is to the app: as if nobody stood between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::{
        Route,
        protocol::{Family, Kind, Storm},
    },
    peer::{Server, Socks5},
    process,
    rules::{self, ALL},
    sandbox::{SERVER_V4, SERVER_V6},
};

/// A server, which sees who connects to it.
fn echo(sandbox: &Sandbox, address: impl Into<IpAddr> + Send) -> Server {
    sandbox.within(|| Server::echo((address.into(), 0)))
}

/// Connects, exchanges some bytes, and checks both views of the connection.
fn assert_relayed(app: &App, culvert: &Culvert<'_>, server: &Server, destination: SocketAddr) {
    let socket = app.tcp(destination);
    socket.connect(destination).unwrap();
    socket.exchange(1, 300_000).unwrap();
    assert_eq!(socket.peer(), Ok(destination), "what the app sees");
    assert!(
        socket.local().unwrap().ip().to_canonical().is_loopback(),
        "to the listener on loopback"
    );
    socket.shutdown().unwrap();
    assert_eq!(socket.receive_all(), Ok(Vec::new()));
    socket.close();

    let record = culvert.the_record();
    assert_eq!(server.clients().len(), 1);
    assert_eq!(
        server.clients().first().map(SocketAddr::ip),
        Some(server.address().ip()),
        "the relay connects from the address it goes to"
    );
    assert_eq!(record.orig_dst, Some(server.address()));
    assert_eq!(record.peer, Some(server.address()));
    assert_eq!((record.up, record.down), (300_000, 300_000));
    assert_eq!(record.reason, "done");
    assert_eq!(record.pid, app.pid());
    assert_eq!(record.rule.as_deref(), Some("all"));
    assert_eq!(record.upstream.as_deref(), Some("relay"));
    assert_eq!(culvert.maps().records(), []);
}

#[test]
fn ipv4() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(ALL);
    assert_relayed(&sandbox.app(), &culvert, &server, server.address());
}

#[test]
fn ipv6() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V6);
    let culvert = sandbox.culvert(ALL);
    assert_relayed(&sandbox.app(), &culvert, &server, server.address());
}

#[test]
fn ipv4_mapped_destination_of_an_ipv6_socket() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(ALL);
    let mapped = SocketAddr::new(SERVER_V4.to_ipv6_mapped().into(), server.address().port());
    assert_relayed(&sandbox.app(), &culvert, &server, mapped);
}

#[test]
fn loopback_destinations_that_a_rule_names() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (count, address) in addresses.into_iter().enumerate() {
        let server = echo(&sandbox, address);
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.assert_echo();
        assert_eq!(socket.peer(), Ok(server.address()));
        let local = socket.local().unwrap();
        socket.close();
        let records = culvert.await_records(count + 1);
        assert_eq!(records[count].orig_dst, Some(server.address()));
        assert_eq!(records[count].client, local);
        assert_ne!(server.clients(), [local]);
    }
}

#[test]
fn the_daemon_does_not_intercept_itself() {
    // Its own cgroup is below the one that is intercepted, and the rules select everything.
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let proxy = sandbox.within(|| Socks5::start((SERVER_V6, 0)));
    let culvert = sandbox.culvert(&rules::all_via("socks5", proxy.address()));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    socket.close();
    let record = culvert.the_record();
    assert_eq!(proxy.requests(), [server.address()]);
    assert_eq!(record.peer, Some(proxy.address()));
    assert_eq!(record.reason, "done");
    assert_eq!(culvert.counter("own"), 1);
    assert_eq!(culvert.counter("relayed"), 1);
}

#[test]
fn the_record_tells_who_connected() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    app.become_user(4321, 5432);
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    let local = socket.local().unwrap();
    socket.assert_echo();
    socket.close();
    let record = culvert.the_record();
    assert_eq!((record.uid, record.gid), (4321, 5432));
    assert_eq!(record.client, local);
    // The kernel keeps 15 bytes of a name.
    assert_eq!(record.comm, "culvert-test-ap");
    assert_eq!(
        record.exe,
        process::app_binary().to_str().map(str::to_owned)
    );
    let cgroup = format!("/{}", sandbox.app_cgroup().name());
    assert_eq!(record.cgroup, Some(cgroup));
    assert!(record.total_us >= record.intercept_us + record.connect_us);
    assert_eq!(record.handshake_us, 0);
}

#[test]
fn one_destination_from_many_threads_at_once() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let outcomes = app.storm(&Storm {
        addresses: vec![server.address()],
        threads: 64,
        each: 20,
        length: 5_000,
    });
    assert_eq!(outcomes, [(0, 64 * 20)].into());
    let records = culvert.await_records(64 * 20);
    for record in &records {
        assert_eq!(record.orig_dst, Some(server.address()));
        assert_eq!((record.up, record.down), (5_000, 5_000), "{record:?}");
    }
    assert_eq!(culvert.maps().records(), []);
}

#[test]
fn udp_is_untouched() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for (family, address) in [
        (Family::V4, IpAddr::from(SERVER_V4)),
        (Family::V6, IpAddr::from(SERVER_V6)),
    ] {
        let server = app.open(family, Kind::Udp);
        server.bind((address, 53).into()).unwrap();
        let client = app.open(family, Kind::Udp);
        client.connect((address, 53).into()).unwrap();
        assert_eq!(client.peer(), Ok((address, 53).into()));
        assert_eq!(client.local().unwrap().ip(), address);
        server.connect(client.local().unwrap()).unwrap();
        client.send(b"question").unwrap();
        assert_eq!(server.receive(8).unwrap(), b"question");
    }
    assert_eq!(culvert.counter("seen"), 0);
}

#[test]
fn unix_sockets_are_untouched() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let (giver, taker) = (sandbox.app(), sandbox.app());
    // To pass a socket one of them connects to a Unix socket of the other.
    let socket = giver.open(Family::V4, Kind::Udp);
    let passed = socket.pass(&taker, &sandbox.directory().join("passing"));
    assert_eq!(passed.local(), socket.local());
    assert_eq!(culvert.counter("seen"), 0);
}

#[test]
fn connections_from_before_are_untouched() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let app = sandbox.app();
    let before = app.tcp(server.address());
    before.connect(server.address()).unwrap();
    let mut culvert = sandbox.culvert(ALL);
    before.assert_echo();
    assert_eq!(before.peer(), Ok(server.address()));
    assert_eq!(server.clients(), [before.local().unwrap()]);
    assert!(culvert.stop().success());
    before.assert_echo();
    assert_eq!(culvert.records().len(), 0);
}

#[test]
fn the_moment_it_ends_everything_is_direct() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    assert_eq!(app.probe(server.address()), Ok(Route::Relayed));
    assert!(culvert.stop().success());
    assert_eq!(app.probe(server.address()), Ok(Route::Direct));
    culvert = sandbox.culvert(ALL);
    assert_eq!(app.probe(server.address()), Ok(Route::Relayed));
    culvert.kill();
    assert_eq!(app.probe(server.address()), Ok(Route::Direct));
}
