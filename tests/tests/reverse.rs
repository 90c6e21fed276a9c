//! Connections that arrive: what rules take, where it goes, and who is told what.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    netns::Netns,
    peer::Server,
    sandbox::{CLIENT_V6, OTHER_V4, OTHER_V6, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// A rule whose connections go on to the service that listens there.
fn original(name: &str, listen: &str) -> String {
    rule(name, listen, "original", "")
}

fn rule(name: &str, listen: &str, via: &str, more: &str) -> String {
    format!("[[reverse]]\nname = \"{name}\"\nlisten = {listen}\nvia = \"{via}\"\n{more}\n")
}

fn quoted(address: SocketAddr) -> String {
    format!("\"{address}\"")
}

fn echo(sandbox: &Sandbox, address: impl Into<IpAddr> + Send) -> Server {
    sandbox.within(|| Server::echo((address.into(), 0)))
}

/// Whether a mirror sees the client itself, which connects from an address.
fn is_direct(app: &App, mirror: SocketAddr, source: IpAddr) -> Result<bool, Errno> {
    let socket = app.tcp(mirror);
    socket.bind((source, 0).into()).unwrap();
    socket.connect(mirror)?;
    let seen = String::from_utf8(socket.receive_all()?).unwrap();
    let is_direct = seen == socket.local().unwrap().to_string();
    socket.close();
    Ok(is_direct)
}

/// Connects, exchanges some bytes, and returns the address that the client had.
fn exchange(app: &App, destination: SocketAddr) -> SocketAddr {
    let socket = app.tcp(destination);
    socket.connect(destination).unwrap();
    let client = socket.local().unwrap();
    socket.exchange(1, 100_000).unwrap();
    assert_eq!(socket.peer(), Ok(destination));
    socket.shutdown().unwrap();
    assert_eq!(socket.receive_all(), Ok(Vec::new()));
    socket.close();
    client
}

/// The rule that takes a connection to an address.
fn taken_by(culvert: &Culvert<'_>, app: &App, destination: SocketAddr) -> String {
    let before = culvert.records().len();
    exchange(app, destination);
    let records = culvert.await_records(before + 1);
    assert_eq!(records.len(), before + 1);
    assert_eq!(records[before].orig_dst, Some(destination));
    records[before].rule.clone().unwrap()
}

#[test]
fn a_service_keeps_its_port_while_the_relay_stands_before_it() {
    for address in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let sandbox = Sandbox::new();
        let server = echo(&sandbox, address);
        let culvert = sandbox.culvert(&original("site", &quoted(server.address())));
        let client = exchange(&sandbox.app(), server.address());

        let record = culvert.the_record();
        assert_eq!(record.role, "reverse");
        assert_eq!(record.rule.as_deref(), Some("site"));
        assert_eq!(record.upstream.as_deref(), Some("original"));
        assert_eq!(record.client, client);
        assert_eq!(record.sender, None);
        assert_eq!(record.orig_dst, Some(server.address()));
        assert_eq!(record.peer, Some(server.address()));
        assert_eq!((record.up, record.down), (100_000, 100_000));
        assert_eq!(record.reason, "done");
        assert_eq!((record.pid, record.comm.as_str()), (0, ""));
        assert_eq!(server.clients().len(), 1, "once, and not round and round");
        assert_ne!(server.clients(), [client]);
        assert_eq!(culvert.counter("arrived_relayed"), 1);
        assert_eq!(culvert.counter("arrived_own"), 1);
        eventually("a table without the connection", || {
            culvert.maps().own().is_empty().then_some(())
        });
    }
}

#[test]
fn many_at_once_reach_the_service_whole() {
    let sandbox = Sandbox::new();
    let v4 = echo(&sandbox, SERVER_V4);
    let v6 = echo(&sandbox, SERVER_V6);
    let listen = format!("[\"{}\", \"{}\"]", v4.address(), v6.address());
    let culvert = sandbox.culvert(&original("site", &listen));
    let outcomes = sandbox.app().storm(&Storm {
        addresses: vec![v4.address(), v6.address()],
        threads: 32,
        each: 20,
        length: 50_000,
    });
    assert_eq!(outcomes, [(0, 640)].into());
    for record in culvert.await_records(640) {
        assert_eq!((record.up, record.down), (50_000, 50_000), "{record:?}");
        assert_eq!(record.peer, record.orig_dst);
    }
    assert_eq!(v4.clients().len() + v6.clients().len(), 640);
    assert_eq!(culvert.counter("unregistered"), 0);
}

/// Ten thousand addresses, each with a port of its own, and connections to some of each part of them, and past them.
#[test]
fn among_ten_thousand_bindings_each_is_found() {
    const BINDINGS: u32 = 10_000;
    let sandbox = Sandbox::new();
    // Addresses that no interface has.
    sandbox
        .netns()
        .tool("ip", "route add local 10.0.0.0/8 dev lo");
    let service = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let bound = |number: u32| {
        let [_, a, b, c] = (number * 7).to_be_bytes();
        let port = 1024 + u16::try_from(number % 50_000).unwrap();
        SocketAddr::from((Ipv4Addr::new(10, a, b, c), port))
    };
    let listen: Vec<_> = (0..BINDINGS).map(|number| quoted(bound(number))).collect();
    let via = service.address().to_string();
    let culvert = sandbox.culvert(&rule("many", &format!("[{}]", listen.join(", ")), &via, ""));
    let app = sandbox.app();
    let mut taken = 0;
    for number in (0..BINDINGS).step_by(499).chain([BINDINGS - 1]) {
        let address = bound(number);
        assert_eq!(app.probe(address), Ok(Route::Relayed), "{address}");
        taken += 1;
        // Nobody listens beside it.
        for beside in [
            SocketAddr::new(address.ip(), address.port() + 1),
            SocketAddr::new(bound(number + 1).ip(), address.port()),
        ] {
            assert_eq!(app.probe(beside), Err(Errno::ECONNREFUSED), "{beside}");
        }
    }
    assert_eq!(culvert.counter("arrived_relayed"), taken);
    for record in culvert.await_records(usize::try_from(taken).unwrap()) {
        assert_eq!(record.rule.as_deref(), Some("many"));
        assert_eq!(record.peer, Some(service.address()));
    }
}

/// What the relay opens itself can then not be told from what clients open.
#[test]
fn with_the_table_of_own_connections_full_the_fail_mode_holds() {
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let settings = Settings::daemon("max_connections = 20");
    let rules = format!(
        "{}{}on_relay_failure = \"refuse\"\n",
        original("open", &format!("\"{}\"", open.address())),
        original("closed", &format!("\"{}\"", closed.address())),
    );
    let culvert = sandbox.culvert_with(&settings, &rules);
    let app = sandbox.app();
    assert_eq!(app.probe(open.address()), Ok(Route::Relayed));
    assert_eq!(app.probe(closed.address()), Ok(Route::Relayed));
    culvert.await_records(2);
    culvert.maps().fill_own();
    let before = culvert.counter("arrived_relayed");
    // The relay's own SYN gets to the service past the relay, and so do those that come soon after it.
    for _ in 0..10 {
        assert!(app.probe(open.address()).is_ok());
    }
    assert!(culvert.counter("fail_own") > 0);
    // Here it is refused: whoever asked is reset, or refused itself.
    for _ in 0..10 {
        let refused = app.probe(closed.address()).unwrap_err();
        assert!(
            [Errno::ECONNRESET, Errno::ECONNREFUSED].contains(&refused),
            "{refused}"
        );
    }
    let taken = culvert.counter("arrived_relayed") - before;
    assert!(
        (1..=20).contains(&taken),
        "taken {taken} times: again and again"
    );
    assert_eq!(culvert.counter("unregistered"), taken);
    assert_eq!(closed.clients().len(), 1);
}

/// With SYN cookies the kernel keeps nothing of a SYN, and looks for the listener again when the handshake ends.
#[test]
fn handshakes_by_cookie_are_taken_and_exempt_alike() {
    let sandbox = Sandbox::new();
    sandbox.netns().sysctl("net.ipv4.tcp_syncookies", "2");
    let v4 = echo(&sandbox, SERVER_V4);
    let v6 = echo(&sandbox, SERVER_V6);
    let listen = format!("[\"{}\", \"{}\"]", v4.address(), v6.address());
    let culvert = sandbox.culvert(&original("site", &listen));
    let outcomes = sandbox.app().storm(&Storm {
        addresses: vec![v4.address(), v6.address()],
        threads: 8,
        each: 20,
        length: 10_000,
    });
    assert_eq!(outcomes, [(0, 160)].into());
    assert_eq!(culvert.await_records(160).len(), 160);
    // Twice each: for the SYN, and for the end of the handshake.
    assert_eq!(culvert.counter("arrived_relayed"), 320);
    assert_eq!(culvert.counter("arrived_own"), 320);
    assert_eq!(v4.clients().len() + v6.clients().len(), 160);
}

#[test]
fn the_most_specific_takes_it_and_then_the_first() {
    let sandbox = Sandbox::new();
    let (v4, v6) = (echo(&sandbox, OTHER_V4), echo(&sandbox, OTHER_V6));
    let [to_v4, to_v6] = [&v4, &v6].map(|server| server.address().to_string());
    let rules = [
        ("everything", "*:1-65000", &to_v4),
        ("all-v4", "0.0.0.0:7000-7999", &to_v4),
        ("all-v6", "[::]:7000-7999", &to_v6),
        // Each with something of its own, or one of them could never be reached.
        (
            "net",
            "192.0.2.0/24:7000-7999\", \"192.0.2.0/24:8000",
            &to_v4,
        ),
        (
            "net-again",
            "192.0.2.0/24:7000-7999\", \"192.0.2.0/24:8001",
            &to_v4,
        ),
        ("net-narrow", "192.0.2.0/24:7100-7199", &to_v4),
        ("net-port", "192.0.2.0/24:7150", &to_v4),
        ("host", "192.0.2.1:7000-7999", &to_v4),
        ("exact", "192.0.2.1:7150", &to_v4),
        ("net-v6", "[2001:db8::/64]:7150", &to_v6),
        ("exact-v6", "[2001:db8::1]:7150", &to_v6),
    ]
    .map(|(name, listen, to)| rule(name, &format!("[\"{listen}\"]"), to, ""));
    // Also in the other order: only rules that are equally specific notice.
    for (reversed, twice) in [(false, "net"), (true, "net-again")] {
        let mut rules = rules.to_vec();
        if reversed {
            rules.reverse();
        }
        let culvert = sandbox.culvert(&rules.concat());
        let app = sandbox.app();
        for (destination, expected) in [
            ("192.0.2.1:7150", "exact"),
            ("192.0.2.1:7151", "host"),
            ("192.0.2.1:6000", "everything"),
            ("192.0.2.2:7150", "net-port"),
            ("192.0.2.2:7151", "net-narrow"),
            ("192.0.2.2:7001", twice),
            ("127.0.0.1:7001", "all-v4"),
            ("[2001:db8::1]:7150", "exact-v6"),
            ("[2001:db8::2]:7150", "net-v6"),
            ("[2001:db8::2]:7151", "all-v6"),
            ("[::1]:7999", "all-v6"),
            ("[::1]:8000", "everything"),
        ] {
            let destination = destination.parse().unwrap();
            assert_eq!(
                taken_by(&culvert, &app, destination),
                expected,
                "{destination}"
            );
        }
        // Nobody listens there, and no rule does.
        let closed = SocketAddr::from((SERVER_V4, 65_001));
        assert_eq!(app.tcp(closed).connect(closed), Err(Errno::ECONNREFUSED));
    }
}

/// `ip route add local 198.51.100.0/24 dev lo` makes addresses ours that no interface has.
#[test]
fn addresses_that_only_a_route_makes_local() {
    let sandbox = Sandbox::new();
    sandbox.netns().ip("route add local 198.51.100.0/24 dev lo");
    sandbox
        .netns()
        .ip("-6 route add local 2001:db8:1::/64 dev lo");
    let culvert_rules = |v4: SocketAddr, v6: SocketAddr| {
        [
            rule("v4", "\"198.51.100.0/24:8000-8999\"", &v4.to_string(), ""),
            rule("v6", "\"[2001:db8:1::/64]:8000-8999\"", &v6.to_string(), ""),
        ]
        .concat()
    };
    let (v4, v6) = (echo(&sandbox, SERVER_V4), echo(&sandbox, SERVER_V6));
    let culvert = sandbox.culvert(&culvert_rules(v4.address(), v6.address()));
    let app = sandbox.app();
    for (destination, expected) in [
        ("198.51.100.7:8000", "v4"),
        ("198.51.100.255:8999", "v4"),
        ("[2001:db8:1::77]:8123", "v6"),
    ] {
        let destination = destination.parse().unwrap();
        assert_eq!(taken_by(&culvert, &app, destination), expected);
    }
}

#[test]
fn sources_choose_among_those_who_listen() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let listen = quoted(mirror.address());
    let rules = [
        rule(
            "strangers",
            &listen,
            "refuse",
            "match = { source = \"192.0.2.2\" }",
        ),
        rule(
            "house",
            &listen,
            "direct",
            "match = { source = [\"192.0.2.0/24\", \"!192.0.2.1\"] }",
        ),
        rule("rest", &listen, "original", ""),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    let from = |source: Ipv4Addr| is_direct(&app, mirror.address(), source.into());
    assert_eq!(from(OTHER_V4), Err(Errno::ECONNREFUSED));
    assert_eq!(from(Ipv4Addr::new(192, 0, 2, 101)), Ok(true), "direct");
    assert_eq!(from(SERVER_V4), Ok(false), "relayed");
    assert_eq!(culvert.the_record().rule.as_deref(), Some("rest"));
    assert_eq!(culvert.counter("arrived_refused"), 1);
}

#[test]
fn sources_of_ipv6_choose_as_well() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V6, 0)));
    let listen = quoted(mirror.address());
    let rules = [
        rule(
            "strangers",
            &listen,
            "refuse",
            "match = { source = \"2001:db8::2\" }",
        ),
        // IPv4 as a whole has nothing to do with it.
        rule(
            "v4",
            &listen,
            "refuse",
            "match = { source = \"0.0.0.0/0\" }",
        ),
        rule(
            "house",
            &listen,
            "direct",
            "match = { source = [\"2001:db8::/64\", \"!2001:db8::1/128\", \"!2001:db8::2\"] }",
        ),
        rule("rest", &listen, "original", ""),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    let from = |source: Ipv6Addr| is_direct(&app, mirror.address(), source.into());
    assert_eq!(from(OTHER_V6), Err(Errno::ECONNREFUSED));
    assert_eq!(from(CLIENT_V6), Ok(true), "direct");
    assert_eq!(from(SERVER_V6), Ok(false), "relayed");
    assert_eq!(culvert.the_record().rule.as_deref(), Some("rest"));
    assert_eq!(culvert.counter("arrived_refused"), 1);
}

#[test]
fn interfaces_choose_also_when_they_appear_later() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((Ipv4Addr::UNSPECIFIED, 7000)));
    let rules = rule(
        "outside",
        "\"*:7000\"",
        "original",
        "match = { interface = \"outside\" }",
    );
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    let address = SocketAddr::from((SERVER_V4, mirror.address().port()));
    assert_eq!(app.probe(address), Ok(Route::Direct), "by lo");

    let neighbour = Arc::new(Netns::new());
    sandbox
        .netns()
        .link("outside", "198.51.100.1/24", &neighbour, "198.51.100.2/24");
    let stranger = App::start(
        &mut sandbox.command_elsewhere(&neighbour, culvert_tests::process::app_binary()),
    );
    let outside: SocketAddr = "198.51.100.1:7000".parse().unwrap();
    eventually("a rule that knows the interface", || {
        (stranger.probe(outside) == Ok(Route::Relayed)).then_some(())
    });
    assert_eq!(app.probe(address), Ok(Route::Direct), "by lo");
    let record = culvert.await_records(1).remove(0);
    assert_eq!(record.client.ip(), IpAddr::from([198, 51, 100, 2]));
    // The kernel takes a connection from this host to an address of an interface for one that arrives by it (`orig_oif` in
    // `ip_route_output_key_hash_rcu()` of net/ipv4/route.c), though its packets go through loopback.
    assert_eq!(app.probe(outside), Ok(Route::Relayed));
}

#[test]
fn a_rule_may_go_elsewhere() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&rule(
        "moved",
        "\"192.0.2.2:80\"",
        &server.address().to_string(),
        "",
    ));
    exchange(&sandbox.app(), (OTHER_V4, 80).into());
    let record = culvert.the_record();
    assert_eq!(record.orig_dst, Some((OTHER_V4, 80).into()));
    assert_eq!(record.peer, Some(server.address()));
}

#[test]
fn a_service_that_is_down_is_a_reset() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&original("site", "\"192.0.2.1:80\""));
    let app = sandbox.app();
    let address = SocketAddr::from((SERVER_V4, 80));
    let socket = app.tcp(address);
    socket.connect(address).unwrap();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    assert_eq!(culvert.the_record().reason, "destination_refused");
}

/// Nothing new listens: what is behind the hook cannot be reached but through it.
#[test]
fn the_listeners_are_on_loopback_and_take_nobody_who_comes_to_them() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&original("all", "\"*:1-65535\""));
    let app = sandbox.app();
    for listener in [culvert.listener_v4(), culvert.listener_v6()] {
        let socket = app.tcp(listener);
        socket.connect(listener).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
        socket.close();
        // The port of the listener at another address is any port.
        let elsewhere = SocketAddr::from((SERVER_V4, listener.port()));
        let socket = app.tcp(elsewhere);
        socket.connect(elsewhere).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    }
    let records = culvert.await_records(2);
    assert!(
        records
            .iter()
            .all(|record| record.reason == "destination_refused")
    );
    // And the rule takes what it says.
    exchange(&app, server.address());
}

#[test]
fn both_roles_at_once() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let rules = format!(
        "{}{}",
        culvert_tests::rules::ALL,
        original("site", &quoted(server.address()))
    );
    let culvert = sandbox.culvert(&rules);
    // An app of this host is taken where it opens the connection; the relay's own is not taken where it arrives.
    exchange(&sandbox.app(), server.address());
    let record = culvert.the_record();
    assert_eq!(record.role, "forward");
    // One that is in no cgroup of ours arrives.
    let outsider = App::start(&mut sandbox.outsider(culvert_tests::process::app_binary()));
    exchange(&outsider, server.address());
    let records = culvert.await_records(2);
    assert_eq!(records[1].role, "reverse");
    assert_eq!(server.clients().len(), 2);
}

#[test]
fn what_is_open_and_udp_are_untouched() {
    use culvert_tests::app::protocol::{Family, Kind};
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let app = sandbox.app();
    let before = app.tcp(server.address());
    before.connect(server.address()).unwrap();
    let mut culvert = sandbox.culvert(&original("all", "\"*:1-65535\""));
    before.assert_echo();
    let udp_server = app.open(Family::V4, Kind::Udp);
    udp_server.bind((SERVER_V4, 53).into()).unwrap();
    let udp_client = app.open(Family::V4, Kind::Udp);
    udp_client.connect((SERVER_V4, 53).into()).unwrap();
    udp_server.connect(udp_client.local().unwrap()).unwrap();
    udp_client.send(b"question").unwrap();
    assert_eq!(udp_server.receive(8).unwrap(), b"question");
    assert_eq!(culvert.counter("arrived"), 0);
    assert!(culvert.stop().success());
    before.assert_echo();
    assert_eq!(culvert.records().len(), 0);
}

#[test]
fn reload_changes_what_is_listened_on_and_nothing_open() {
    let sandbox = Sandbox::new();
    let first = echo(&sandbox, SERVER_V4);
    let second = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let culvert = sandbox.culvert("");
    let app = sandbox.app();
    assert_eq!(app.probe(second.address()), Ok(Route::Direct));
    culvert.reload(&original("first", &quoted(first.address())));
    let open = app.tcp(first.address());
    open.connect(first.address()).unwrap();
    open.assert_echo();
    assert_eq!(culvert.counter("arrived_relayed"), 1);
    assert_eq!(app.probe(second.address()), Ok(Route::Direct));

    culvert.reload(&original("second", &quoted(second.address())));
    assert_eq!(app.probe(second.address()), Ok(Route::Relayed));
    exchange(&app, first.address());
    assert_eq!(
        culvert.counter("arrived_relayed"),
        2,
        "the first is direct now"
    );
    open.assert_echo();

    culvert.rewrite("[[reverse]]\nname = \"broken\"\nlisten = \"80\"\nvia = \"original\"\n");
    culvert.signal(nix::sys::signal::Signal::SIGHUP);
    culvert.await_notice("RELOADING=1");
    culvert.await_notice("READY=1");
    assert_eq!(app.probe(second.address()), Ok(Route::Relayed));

    culvert.reload("");
    assert_eq!(app.probe(second.address()), Ok(Route::Direct));
    open.assert_echo();
    open.shutdown().unwrap();
    assert_eq!(open.receive_all(), Ok(Vec::new()));
    open.close();
    let records = culvert.await_records(3);
    assert_eq!(records[2].rule.as_deref(), Some("first"));
    assert_eq!(records[2].reason, "done");
}
