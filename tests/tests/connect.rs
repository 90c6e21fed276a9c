//! Every way to connect, and to connect again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::{
    App, Culvert, Sandbox, Socket,
    app::protocol::{Family, How, Kind},
    peer::Server,
    rules::{ALL, RELAY, relayed},
    sandbox::{CLOSED_PORT, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// `net.ipv4.tcp_fastopen`: as client and server, data in the SYN without a cookie, for every listener. IPv6 obeys it as
/// well.
const FAST_OPEN_ALWAYS: &str = "1543";

/// An echo server of each family.
fn servers(sandbox: &Sandbox) -> [Server; 2] {
    let addresses = [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)];
    addresses.map(|address| sandbox.within(|| Server::echo((address, 0))))
}

/// The connection shows its destination, works, and goes through the relay.
fn assert_relayed(socket: Socket<'_>, destination: SocketAddr, culvert: &Culvert<'_>) {
    let before = culvert.records().len();
    assert_eq!(socket.peer(), Ok(destination));
    let local = socket.local().unwrap();
    socket.assert_echo();
    socket.close();
    let records = culvert.await_records(before + 1);
    let record = &records[before];
    assert_eq!(record.client, local);
    assert_eq!(record.orig_dst, Some(destination));
    assert_eq!(record.reason, "done");
    assert_eq!(culvert.maps().records(), []);
}

/// A daemon, both servers, and a connection to each of them, made in some way.
fn assert_works(connect: impl for<'a> Fn(&'a App, SocketAddr) -> Socket<'a>) {
    let sandbox = Sandbox::new();
    sandbox
        .netns()
        .sysctl("net.ipv4.tcp_fastopen", FAST_OPEN_ALWAYS);
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        let socket = connect(&app, server.address());
        assert_relayed(socket, server.address(), &culvert);
        assert_eq!(server.clients().len(), 1, "one connection for one");
    }
}

#[test]
fn blocking() {
    assert_works(|app, destination| {
        let socket = app.tcp(destination);
        socket.connect(destination).unwrap();
        socket
    });
}

#[test]
fn non_blocking() {
    assert_works(|app, destination| {
        let socket = app.tcp(destination);
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(destination), Err(Errno::EINPROGRESS));
        socket.finish_connect().unwrap();
        socket.set_nonblocking(false);
        socket
    });
}

#[test]
fn io_uring() {
    assert_works(|app, destination| {
        let socket = app.tcp(destination);
        socket.connect_by(destination, How::IoUring).unwrap();
        socket
    });
}

#[test]
fn fast_open_with_data_in_the_syn() {
    // The relay may accept such a connection at its SYN: the record must be there by then.
    assert_works(|app, destination| {
        let socket = app.tcp(destination);
        let first = b"in the first segment";
        let how = How::FastOpen(first.to_vec());
        socket.connect_by(destination, how).unwrap();
        assert_eq!(socket.receive(first.len()).unwrap(), first);
        socket
    });
}

#[test]
fn fast_open_that_waits_for_the_first_write() {
    assert_works(|app, destination| {
        let socket = app.tcp(destination);
        socket
            .set_option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
            .unwrap();
        socket.connect(destination).unwrap();
        // Nothing was sent yet, and the kernel says so with and without a relay.
        assert_eq!(socket.peer(), Err(Errno::ENOTCONN));
        socket.assert_echo();
        socket
    });
}

#[test]
fn mptcp_falls_back_to_tcp() {
    assert_works(|app, destination| {
        let socket = app.open(Family::of(destination), Kind::Mptcp);
        socket.connect(destination).unwrap();
        socket
    });
}

#[test]
fn connecting_twice_is_the_error_it_always_was() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let [server, _other] = servers(&sandbox);
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    assert_eq!(socket.connect(server.address()), Err(Errno::EISCONN));
    let elsewhere = (SERVER_V4, CLOSED_PORT).into();
    assert_eq!(socket.connect(elsewhere), Err(Errno::EISCONN));
    // The second attempts did not come to the hook, or did no harm there.
    assert_relayed(socket, server.address(), &culvert);
}

#[test]
fn connecting_again_after_a_failure() {
    let sandbox = Sandbox::new();
    let refused = format!(
        "[[forward]]\nname = \"no\"\nmatch = {{ port = {CLOSED_PORT} }}\nvia = \"refuse\"\n{ALL}"
    );
    let culvert = sandbox.culvert(&refused);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        let socket = app.tcp(server.address());
        let closed = SocketAddr::new(server.address().ip(), CLOSED_PORT);
        assert_eq!(socket.connect(closed), Err(Errno::ECONNREFUSED));
        socket.connect(server.address()).unwrap();
        assert_relayed(socket, server.address(), &culvert);
    }
}

#[test]
fn connecting_directly_after_a_relayed_connection_was_dissolved() {
    let sandbox = Sandbox::new();
    let [server, _] = servers(&sandbox);
    let [direct, _] = servers(&sandbox);
    let rules = RELAY.to_owned() + &relayed("one", &format!("port = {}", server.address().port()));
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    socket.disconnect().unwrap();
    assert_eq!(socket.peer(), Err(Errno::ENOTCONN));

    socket.connect(direct.address()).unwrap();
    assert_eq!(socket.peer(), Ok(direct.address()));
    let original_dst = 80;
    assert_eq!(
        socket.option(libc::SOL_IP, original_dst, 16),
        Err(Errno::ENOENT),
        "what the relayed connection answered is forgotten"
    );
    socket.assert_echo();
    assert_eq!(direct.clients(), [socket.local().unwrap()]);

    socket.disconnect().unwrap();
    socket.connect(server.address()).unwrap();
    assert_eq!(culvert.await_records(1).len(), 1, "of the first connection");
    let local = socket.local().unwrap();
    assert_eq!(socket.peer(), Ok(server.address()));
    socket.assert_echo();
    socket.close();
    let records = culvert.await_records(2);
    assert_eq!(records[1].client, local);
    assert_eq!(records[1].reason, "done");
}

#[test]
fn a_non_blocking_connect_that_is_given_up() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        for _ in 0..50 {
            let socket = app.tcp(server.address());
            socket.set_nonblocking(true);
            assert_eq!(socket.connect(server.address()), Err(Errno::EINPROGRESS));
            socket.reset();
        }
    }
    culvert_tests::eventually("all records to be gone", || {
        culvert.maps().records().is_empty().then_some(())
    });
    let socket = app.tcp((SERVER_V4, 1).into());
    assert_eq!(socket.peer(), Err(Errno::ENOTCONN));
}
