//! Connections of other hosts that pass through: which the relay takes, how they arrive, and what is left alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
};

use culvert_tests::{
    Sandbox,
    app::{Route, protocol::Storm},
    hosts::{self, Hosts, LAN},
    peer::Server,
};

/// More than fits into one packet, or one read of the relay.
const LENGTH: u64 = 100_000;

/// Takes everything that comes in by an interface.
fn through(name: &str, interface: &str, more: &str) -> String {
    format!(
        "[[gateway]]\nname = \"{name}\"\ninterface = \"{interface}\"\nvia = \"original\"\n{more}\n"
    )
}

#[test]
fn connections_of_hosts_that_know_nothing_are_relayed_to_where_they_go() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&through("lan", LAN[0], ""));
    let app = hosts.app(&sandbox, 0);
    let servers = hosts::server_here(0);
    for (index, server) in servers.iter().enumerate() {
        let echo = hosts.server(0).within(|| Server::echo((*server, 0)));
        let storm = Storm {
            addresses: vec![echo.address()],
            threads: 4,
            each: 3,
            length: LENGTH,
        };
        assert_eq!(app.storm(&storm), BTreeMap::from([(0, 12)]));
        let records = culvert.await_records(12 * (index + 1));
        for record in records.iter().skip(12 * index) {
            assert_eq!(record.role, "gateway");
            assert_eq!(record.rule.as_deref(), Some("lan"));
            assert_eq!(record.client.ip(), hosts::client(0)[index]);
            assert_eq!(record.orig_dst, Some(echo.address()));
            assert_eq!(record.peer, Some(echo.address()));
            assert_eq!((record.up, record.down), (LENGTH, LENGTH));
            assert_eq!(record.reason, "done", "{record:?}");
        }
        let seen = echo.clients();
        assert!(
            seen.iter()
                .all(|client| client.ip() == hosts::toward_server(0)[index]),
            "{seen:?}"
        );
    }
    let relayed = 12 * servers.len() as u64;
    assert_eq!(culvert.counter("transit_relayed"), relayed);
}

#[test]
fn what_no_rule_selects_is_routed_as_if_nobody_were_there() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [v4, v6] = hosts::server(0);
    let rules = format!(
        "{}{}",
        through(
            "some",
            LAN[0],
            &format!(
                "match = {{ port = 1001, source = [\"{}\", \"{}\"], dest = [\"{v4}\", \"{v6}\"] }}",
                hosts::client(0)[0],
                hosts::client(0)[1]
            )
        ),
        "[[gateway]]\nname = \"rest\"\ninterface = [\"lan0\", \"lan1\"]\nvia = \"direct\"\n",
    );
    let culvert = sandbox.culvert(&rules);
    let [first, second] = [0, 1].map(|number| hosts.app(&sandbox, number));
    for address in [v4, v6] {
        let taken = hosts.server(0).within(|| Server::mirror((address, 1001)));
        let free = hosts.server(0).within(|| Server::mirror((address, 1002)));
        assert_eq!(first.probe(taken.address()), Ok(Route::Relayed));
        assert_eq!(first.probe(free.address()), Ok(Route::Direct));
        assert_eq!(second.probe(taken.address()), Ok(Route::Direct));
    }
    for address in hosts::server(1) {
        let other = hosts.server(1).within(|| Server::mirror((address, 1001)));
        assert_eq!(first.probe(other.address()), Ok(Route::Direct));
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
}

#[test]
fn a_connection_to_the_router_itself_is_the_routers() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&through("lan", LAN[0], ""));
    let app = hosts.app(&sandbox, 0);
    for address in hosts::toward_client(0)
        .into_iter()
        .chain(hosts::toward_server(0))
    {
        let mirror = sandbox.within(|| Server::mirror((address, 0)));
        assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    }
    assert_eq!(culvert.counter("transit"), 0);
}

/// Both clients use one source port, to one server.
#[test]
fn clients_may_use_the_same_source_port() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&format!(
        "{}{}",
        through("first", LAN[0], ""),
        through("second", LAN[1], "")
    ));
    for (index, server) in hosts::server(0).into_iter().enumerate() {
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let apps = [0, 1].map(|number| hosts.app(&sandbox, number));
        let sockets: Vec<_> = apps
            .iter()
            .enumerate()
            .map(|(number, app)| {
                let socket = app.tcp(echo.address());
                let source = SocketAddr::new(hosts::client(number)[index], 40_000);
                socket.bind(source).unwrap();
                socket.connect(echo.address()).unwrap();
                socket
            })
            .collect();
        for (socket, byte) in sockets.iter().zip([b"one", b"two"]) {
            socket.send(byte).unwrap();
            assert_eq!(socket.receive(3).unwrap(), byte);
        }
    }
    assert_eq!(culvert.counter("transit_relayed"), 4);
}

/// The relay has ended the last connection first, as its server did, and so keeps what is left of it (`TIME_WAIT`) for a minute.
#[test]
fn a_client_may_use_its_port_again_at_once() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&through("lan", LAN[0], ""));
    let app = hosts.app(&sandbox, 0);
    let servers = hosts::server_here(0);
    for (index, server) in servers.iter().enumerate() {
        let brief = hosts.server(0).within(|| {
            Server::start((*server, 0), |mut stream| {
                stream.write_all(b"bye")?;
                stream.shutdown(Shutdown::Write)?;
                stream.read_to_end(&mut Vec::new()).map(drop)
            })
        });
        let source = SocketAddr::new(hosts::client(0)[index], 40_000);
        for times in 1..4 {
            let socket = app.tcp(brief.address());
            socket.bind(source).unwrap();
            socket.connect(brief.address()).unwrap();
            assert_eq!(socket.receive_all().unwrap(), b"bye");
            socket.close();
            culvert.await_records(3 * index + times);
        }
    }
    let relayed = 3 * servers.len() as u64;
    assert_eq!(culvert.counter("transit_relayed"), relayed);
}
