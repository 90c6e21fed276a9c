//! Sockets that are bound before they connect: to an address, a port or a device.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_tests::{
    Culvert, Sandbox, Socket,
    netns::Netns,
    peer::Server,
    process::output,
    rules::ALL,
    sandbox::{CLIENT_V4, CLIENT_V6, OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// The connection works and goes through the relay, and its record has the source the app bound to.
fn assert_relayed(
    socket: Socket<'_>,
    source: IpAddr,
    destination: SocketAddr,
    culvert: &Culvert<'_>,
) {
    let before = culvert.records().len();
    socket.connect(destination).unwrap();
    assert_eq!(socket.peer(), Ok(destination));
    let local = socket.local().unwrap();
    assert_eq!(local.ip(), source);
    socket.assert_echo();
    socket.close();
    let records = culvert.await_records(before + 1);
    assert_eq!(records[before].client, local);
    assert_eq!(records[before].orig_dst, Some(destination));
    assert_eq!(records[before].reason, "done");
    assert_eq!(culvert.maps().records(), []);
}

#[test]
fn to_an_address() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let pairs: [(IpAddr, IpAddr); 4] = [
        (CLIENT_V4.into(), SERVER_V4.into()),
        (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        (CLIENT_V6.into(), SERVER_V6.into()),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
    ];
    for (source, address) in pairs {
        let server = sandbox.within(|| Server::echo((address, 0)));
        let socket = app.tcp(server.address());
        socket.bind((source, 0).into()).unwrap();
        assert_relayed(socket, source, server.address(), &culvert);
    }
}

#[test]
fn to_an_address_and_a_port() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let pairs: [(IpAddr, IpAddr); 2] = [
        (CLIENT_V4.into(), SERVER_V4.into()),
        (CLIENT_V6.into(), SERVER_V6.into()),
    ];
    for (source, address) in pairs {
        let server = sandbox.within(|| Server::echo((address, 0)));
        let socket = app.tcp(server.address());
        socket.bind((source, 4000).into()).unwrap();
        socket.connect(server.address()).unwrap();
        assert_eq!(socket.local(), Ok((source, 4000).into()));
        socket.assert_echo();
        assert_eq!(socket.peer(), Ok(server.address()));
    }
    drop(app);
    for record in culvert.await_records(2) {
        assert_eq!(record.client.port(), 4000);
    }
}

#[test]
fn of_two_with_one_address_and_port_the_second_finds_it_taken() {
    // A limit: directly they would differ in their destinations, but to the relay they are the same.
    let sandbox = Sandbox::new();
    let servers =
        [(SERVER_V4, 80), (OTHER_V4, 80)].map(|address| sandbox.within(|| Server::echo(address)));
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let bound = || {
        let socket = app.tcp(servers[0].address());
        socket
            .set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
            .unwrap();
        socket.bind((CLIENT_V4, 4000).into()).unwrap();
        socket
    };
    let (first, second) = (bound(), bound());
    first.connect(servers[0].address()).unwrap();
    let refused = second.connect(servers[1].address());
    assert_eq!(refused, Err(Errno::EADDRNOTAVAIL));
    first.assert_echo();
    assert_eq!(first.peer(), Ok(servers[0].address()));
    // It is no more than taken: once it is free, it can be had.
    first.reset();
    second.connect(servers[1].address()).unwrap();
    assert_eq!(second.peer(), Ok(servers[1].address()));
    second.assert_echo();
}

#[test]
fn to_a_mapped_address() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mapped = |address: Ipv4Addr| IpAddr::from(address.to_ipv6_mapped());
    let destination = SocketAddr::new(mapped(SERVER_V4), server.address().port());
    let socket = app.tcp(destination);
    socket.bind((mapped(CLIENT_V4), 0).into()).unwrap();
    socket.connect(destination).unwrap();
    assert_eq!(socket.peer(), Ok(destination));
    socket.assert_echo();
    socket.close();
    let record = culvert.the_record();
    assert_eq!(record.orig_dst, Some(server.address()));
    assert_eq!(record.client.ip(), IpAddr::from(CLIENT_V4));
}

/// Two hosts, joined by Ethernet, with the server on the other one.
fn with_neighbour(test: impl Fn(&Sandbox, SocketAddr)) {
    for (own, other) in [("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")] {
        let sandbox = Sandbox::new();
        let neighbour = Netns::new();
        let length = if own.contains(':') { 64 } else { 24 };
        let (own, other_with_length) = (format!("{own}/{length}"), format!("{other}/{length}"));
        sandbox
            .netns()
            .link("eth0", &own, &neighbour, &other_with_length);
        let address: IpAddr = other.parse().unwrap();
        let server = neighbour.within(|| Server::echo((address, 80)));
        test(&sandbox, server.address());
    }
}

#[test]
fn to_the_address_of_a_network_device() {
    with_neighbour(|sandbox, server| {
        let culvert = sandbox.culvert(ALL);
        let app = sandbox.app();
        let source: IpAddr = match server {
            SocketAddr::V4(_) => [10, 1, 0, 1].into(),
            SocketAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
        };
        let socket = app.tcp(server);
        socket.bind((source, 0).into()).unwrap();
        assert_relayed(socket, source, server, &culvert);
    });
}

#[test]
fn to_a_network_device() {
    with_neighbour(|sandbox, server| {
        let culvert = sandbox.culvert(ALL);
        let app = sandbox.app();
        let socket = app.tcp(server);
        socket.bind_device("eth0").unwrap();
        let loopback: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        assert_relayed(socket, loopback, server, &culvert);
    });
}

#[test]
fn to_loopback_as_a_device() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let socket = app.tcp(server.address());
    socket.bind_device("lo").unwrap();
    assert_relayed(
        socket,
        Ipv4Addr::LOCALHOST.into(),
        server.address(),
        &culvert,
    );
}

#[test]
fn curl_with_an_interface() {
    let sandbox = Sandbox::new();
    let neighbour = Netns::new();
    sandbox
        .netns()
        .link("eth0", "10.1.0.1/24", &neighbour, "10.1.0.2/24");
    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let server = neighbour.within(|| Server::greeter(([10, 1, 0, 2], 80), reply));
    let culvert = sandbox.culvert(ALL);
    let url = format!("http://{}/", server.address());
    // By the device or its address, as curl sees fit; by the device; by the address.
    let ways = ["eth0", "if!eth0", "host!10.1.0.1"];
    for interface in ways {
        let mut curl = sandbox.command("curl");
        curl.args(["-sS", "--max-time", "20", "--interface", interface, &url]);
        assert_eq!(output(&mut curl), "ok", "{interface}");
    }
    assert_eq!(culvert.await_records(ways.len()).len(), ways.len());
    assert_eq!(culvert.counter("relayed"), 3);
}
