//! A connection belongs to its socket, whoever holds it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    app::{App, Route},
    peer::Server,
    process::app_binary,
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};

fn servers(sandbox: &Sandbox) -> [Server; 2] {
    [
        sandbox.within(|| Server::echo((SERVER_V4, 0))),
        sandbox.within(|| Server::echo((SERVER_V6, 0))),
    ]
}

#[test]
fn a_child_uses_the_connection_of_its_parent() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        let inherited = socket.in_child();
        assert_eq!(inherited.peer(), Ok(server.address()));
        inherited.assert_echo();
        // The child has ended, and with it its descriptor, but not the connection.
        socket.assert_echo();
        socket.close();
    }
    for record in culvert.await_records(2) {
        assert_eq!(record.pid, app.pid());
        assert_eq!((record.up, record.down), (24, 24));
    }
}

#[test]
fn a_parent_uses_the_connection_of_its_child() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        let socket = app.tcp(server.address());
        socket.in_child().connect(server.address()).unwrap();
        assert_eq!(socket.peer(), Ok(server.address()));
        socket.assert_echo();
        socket.close();
    }
    for record in culvert.await_records(2) {
        assert_ne!(record.pid, app.pid(), "the child connected");
        assert_eq!(record.reason, "done");
    }
}

#[test]
fn a_duplicate_is_the_same_connection() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in servers(&sandbox) {
        let socket = app.tcp(server.address());
        let before = socket.duplicate();
        socket.connect(server.address()).unwrap();
        let after = socket.duplicate();
        socket.close();
        for duplicate in [before, after] {
            assert_eq!(duplicate.peer(), Ok(server.address()));
            duplicate.assert_echo();
            duplicate.close();
        }
    }
    assert_eq!(culvert.await_records(2).len(), 2);
}

#[test]
fn a_passed_socket_keeps_its_connection() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    // The taker is a program that nothing selects.
    let taker = App::start(&mut sandbox.outsider(app_binary()));
    for (number, server) in servers(&sandbox).iter().enumerate() {
        let giver = sandbox.app();
        let socket = giver.tcp(server.address());
        socket.connect(server.address()).unwrap();
        let path = sandbox.directory().join(format!("passing-{number}"));
        let passed = socket.pass(&taker, &path);
        drop(giver);
        assert_eq!(passed.peer(), Ok(server.address()));
        passed.assert_echo();
        passed.close();
    }
    for record in culvert.await_records(2) {
        assert_ne!(record.pid, taker.pid());
        assert_eq!(record.reason, "done");
    }
}

#[test]
fn a_socket_is_intercepted_where_it_was_made() {
    // The cgroup of a socket is that of the process that made it: this is where hooks are attached. Who connects is
    // what rules look at.
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let inside = sandbox.app();
    let outside = App::start(&mut sandbox.outsider(app_binary()));

    let made_inside = inside.tcp(server.address());
    let path = sandbox.directory().join("made-inside");
    let taken = made_inside.pass(&outside, &path);
    taken.connect(server.address()).unwrap();
    taken.assert_echo();
    made_inside.close();
    taken.close();
    assert_eq!(culvert.the_record().pid, outside.pid());

    let made_outside = outside.tcp(server.address());
    let path = sandbox.directory().join("made-outside");
    let taken = made_outside.pass(&inside, &path);
    taken.connect(server.address()).unwrap();
    taken.assert_echo();
    assert_eq!(server.clients().last(), taken.local().as_ref().ok());
    assert_eq!(culvert.counter("seen"), 1 + 1, "the app's and the relay's");
}

#[test]
fn outside_of_the_cgroup_nothing_is_seen() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let outside = App::start(&mut sandbox.outsider(app_binary()));
    assert_eq!(outside.probe(mirror.address()), Ok(Route::Direct));
    assert_eq!(culvert.counter("seen"), 0);
    assert_eq!(sandbox.app().probe(mirror.address()), Ok(Route::Relayed));
}
