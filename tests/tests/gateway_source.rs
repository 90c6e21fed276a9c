//! `keep_source` of gateways: servers see who connects, and their answers come back through the relay, whichever way they take.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    daemon::Settings,
    eventually,
    hosts::{self, Hosts, LAN, Witness, drop_resets},
    kernel::ingress_programs,
    peer::Server,
};
use nix::errno::Errno;

fn kept(interfaces: &str, more: &str) -> String {
    format!(
        "[[gateway]]\nname = \"lan\"\ninterface = {interfaces}\nvia = \"original\"\nkeep_source = true\n{more}\n"
    )
}

fn lan() -> String {
    kept("\"lan0\"", "")
}

/// A slow machine is no reason to route a connection past the relay.
fn patient() -> Settings {
    Settings::daemon("drain_timeout = \"20s\"\nheartbeat_timeout = \"1m\"")
}

fn storm(to: &[&Server]) -> Storm {
    Storm {
        addresses: to.iter().map(|server| server.address()).collect(),
        threads: 4,
        each: 6,
        length: 200_000,
    }
}

fn addresses(of: &Server) -> BTreeSet<IpAddr> {
    of.clients().iter().map(SocketAddr::ip).collect()
}

#[test]
fn a_server_sees_the_address_and_port_of_the_client() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert_with(&patient(), &lan());
    let app = hosts.app(&sandbox, 0);
    for (index, server) in hosts::server(0).into_iter().enumerate() {
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        let local = socket.local().unwrap();
        socket.exchange(7, 1 << 20).unwrap();
        assert_eq!(echo.clients(), [local]);
        assert_eq!(app.storm(&storm(&[&echo])), BTreeMap::from([(0, 24)]));
        assert_eq!(addresses(&echo), BTreeSet::from([hosts::client(0)[index]]));
        socket.close();
    }
    let records = culvert.await_records(50);
    for record in &records {
        assert_eq!(record.role, "gateway");
        assert_eq!(record.peer, record.orig_dst);
        assert_eq!(record.up, record.down, "{record:?}");
    }
}

/// Both at once, to the same server, from the same port.
#[test]
fn two_clients_and_connections_that_are_not_relayed_do_not_disturb_each_other() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let [echo, free] = [0, 1].map(|_| hosts.server(0).within(|| Server::echo((server, 0))));
    let rules = kept(
        "[\"lan0\", \"lan1\"]",
        &format!("match = {{ port = {} }}", echo.address().port()),
    );
    let culvert = sandbox.culvert(&rules);
    let apps = [0, 1].map(|number| hosts.app(&sandbox, number));
    let sockets: Vec<_> = apps
        .iter()
        .enumerate()
        .flat_map(|(number, app)| {
            let source = SocketAddr::new(hosts::client(number)[0], 40_000);
            [&echo, &free].map(|server| {
                let socket = app.tcp(server.address());
                socket
                    .set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
                    .unwrap();
                socket.bind(source).unwrap();
                socket.connect(server.address()).unwrap();
                socket
            })
        })
        .collect();
    for (seed, socket) in (0..).zip(&sockets) {
        socket.exchange(seed, 100_000).unwrap();
    }
    for server in [&echo, &free] {
        let seen: BTreeSet<_> = server.clients().into_iter().collect();
        let wanted = [0, 1].map(|number| SocketAddr::new(hosts::client(number)[0], 40_000));
        assert_eq!(seen, BTreeSet::from(wanted));
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
}

/// The server's way to clients is another one than ours to it, and has appeared while we were running.
#[test]
fn answers_may_come_back_another_way() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert_with(&patient(), &lan());
    for name in ["all", "wan0"] {
        router.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0");
        hosts
            .server(0)
            .sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0");
    }
    router.link("back", "10.8.0.1/24", hosts.server(0), "10.8.0.2/24");
    router.sysctl("net.ipv4.conf.back.rp_filter", "0");
    let [client, _] = hosts::client(0);
    hosts
        .server(0)
        .ip(&format!("route add {client}/32 via 10.8.0.1"));
    eventually("a program on the new interface", || {
        let programs = router.within(|| ingress_programs("back"));
        programs.contains(&"gateway".to_owned()).then_some(())
    });
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let app = hosts.app(&sandbox, 0);
    assert_eq!(app.storm(&storm(&[&echo])), BTreeMap::from([(0, 24)]));
    assert_eq!(addresses(&echo), BTreeSet::from([client]));
    assert_eq!(culvert.counter("transit_relayed"), 24);
}

/// As if the relay had never been there, which it has: neither side gets a packet of the other leg.
#[test]
fn after_a_kill_no_packet_of_the_server_reaches_the_client() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let talker = hosts.server(0).within(|| {
        Server::start((server, 0), |mut stream| {
            loop {
                stream.write_all(&[7; 100])?;
                thread::sleep(Duration::from_millis(5));
            }
        })
    });
    let mut culvert = sandbox.culvert(&lan());
    let app = hosts.app(&sandbox, 0);
    let socket = app.tcp(talker.address());
    socket.connect(talker.address()).unwrap();
    socket.receive(1000).unwrap();
    let local = socket.local().unwrap();
    // Neither hears that the connection has been reset.
    drop_resets(hosts.client(0));
    drop_resets(hosts.server(0));
    culvert.kill();
    thread::sleep(Duration::from_millis(100));
    let witness = Witness::of(hosts.client(0), talker.address(), local.port());
    thread::sleep(Duration::from_millis(700));
    assert_eq!(witness.packets(), 0);
    sandbox.detach();
    eventually("packets of the server at the client", || {
        (witness.packets() > 0).then_some(())
    });
}

#[test]
fn an_endpoint_sees_clients_and_so_does_a_service_of_this_host() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [first, _] = hosts::server(0);
    let [second, _] = hosts::server(1);
    let remote = hosts.server(1).within(|| Server::echo((second, 0)));
    let own = sandbox.within(|| Server::echo(([127, 0, 0, 1], 0)));
    let rules = format!(
        "[upstream.group]\nendpoints = [\"{}\"]\nkeep_source = true\n\n\
         [[gateway]]\nname = \"remote\"\ninterface = \"{LAN}\"\nmatch = {{ port = 81 }}\nvia = \"group\"\n\n\
         [[gateway]]\nname = \"own\"\ninterface = \"{LAN}\"\nmatch = {{ port = 82 }}\nvia = \"{}\"\nkeep_source = true\n",
        remote.address(),
        own.address(),
        LAN = LAN[0],
    );
    let _culvert = sandbox.culvert(&rules);
    let app = hosts.app(&sandbox, 0);
    let [client, _] = hosts::client(0);
    for (port, server) in [(81, &remote), (82, &own)] {
        let socket = app.tcp((first, port).into());
        socket.connect((first, port).into()).unwrap();
        socket.exchange(1, 300_000).unwrap();
        assert_eq!(addresses(server), BTreeSet::from([client]));
    }
}

#[test]
fn a_refused_or_unreachable_server_resets_the_client_only() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert_with(&patient(), &lan());
    let app = hosts.app(&sandbox, 0);
    for server in hosts::server(0) {
        let closed = SocketAddr::new(server, culvert_tests::sandbox::CLOSED_PORT);
        let socket = app.tcp(closed);
        socket.connect(closed).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    }
    let records = culvert.await_records(2);
    assert!(
        records
            .iter()
            .all(|record| record.reason == "destination_refused"),
        "{records:?}"
    );
    assert!(culvert.is_running());
}

#[test]
fn a_takeover_keeps_what_is_open() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let settings = patient();
    let mut old = sandbox.culvert_with(&settings, &lan());
    let app = hosts.app(&sandbox, 0);
    let held = app.tcp(echo.address());
    held.connect(echo.address()).unwrap();
    held.assert_echo();
    let new = sandbox.culvert_with(
        &Settings {
            takeover: true,
            ..settings
        },
        &lan(),
    );
    held.exchange(3, 1 << 20).unwrap();
    assert_eq!(app.storm(&storm(&[&echo])), BTreeMap::from([(0, 24)]));
    held.exchange(4, 1 << 20).unwrap();
    held.close();
    assert!(old.wait().success());
    assert_eq!(app.storm(&storm(&[&echo])), BTreeMap::from([(0, 24)]));
    assert_eq!(addresses(&echo), BTreeSet::from([hosts::client(0)[0]]));
    assert!(new.is_running());
}
