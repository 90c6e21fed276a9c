//! Somebody else's agent has the relay's sockets in a map of its own: those connections are copied, and say why.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    agent::{Agent, Sees},
    daemon::{Culvert, Settings},
    peer::Server,
    record::CloseRecord,
    rules::ALL,
    sandbox::SERVER_V4,
};

/// Bytes of a question and of its answer, and how many there are.
const LENGTH: u64 = 20_000;
const ROUNDS: u64 = 30;

/// A daemon with a path, which has tested that before anybody interferes.
fn daemon<'a>(sandbox: &'a Sandbox, path: &str) -> Culvert<'a> {
    let settings = Settings::daemon("promote = { bytes = \"1KiB\", reads = 2 }");
    sandbox.culvert_with(&settings, &format!("{ALL}path = \"{path}\"\n"))
}

/// Questions and answers on a connection, and its record.
fn converse(sandbox: &Sandbox, culvert: &Culvert<'_>) -> CloseRecord {
    let before = culvert.records().len();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    for seed in 0..ROUNDS {
        socket.exchange(seed, LENGTH).unwrap();
    }
    socket.close();
    let record = culvert.await_records(before + 1).remove(before);
    let length = LENGTH * ROUNDS;
    assert_eq!((record.up, record.down), (length, length), "{record:?}");
    assert_eq!(record.reason, "done", "{record:?}");
    record
}

#[test]
fn of_whom_it_has_both_sockets_is_copied_until_it_goes() {
    let sandbox = Sandbox::new();
    let culvert = daemon(&sandbox, "sockmap");
    let record = converse(&sandbox, &culvert);
    assert!(record.bytes.sockmap > 0, "{record:?}");

    let agent = Agent::on(sandbox.daemon_cgroup(), Sees::Received);
    let record = converse(&sandbox, &culvert);
    assert_eq!(record.bytes.sockmap, 0, "{record:?}");
    let told = (record.path.as_deref(), record.path_reason.as_deref());
    assert_eq!(told, (Some("copy"), Some("foreign_sockmap")));

    drop(agent);
    let record = converse(&sandbox, &culvert);
    assert!(record.bytes.sockmap > 0, "{record:?}");
}

/// There is nothing to be spliced from a socket in a map: what it received waits elsewhere.
#[test]
fn splicing_gives_way_to_copying() {
    let sandbox = Sandbox::new();
    let culvert = daemon(&sandbox, "splice");
    let _agent = Agent::on(sandbox.daemon_cgroup(), Sees::Received);
    let record = converse(&sandbox, &culvert);
    assert_eq!(record.bytes.copy, 2 * LENGTH * ROUNDS, "{record:?}");
}

/// It sees what the kernel redirects, like what the relay writes.
#[test]
fn who_only_sees_what_is_sent_is_in_nobodys_way() {
    let sandbox = Sandbox::new();
    let culvert = daemon(&sandbox, "sockmap");
    let _agent = Agent::on(sandbox.daemon_cgroup(), Sees::Sent);
    let record = converse(&sandbox, &culvert);
    assert!(record.bytes.sockmap > 0, "{record:?}");
}
