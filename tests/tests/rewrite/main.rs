//! `path = "rewrite"`: the hook on `connect()` chooses an endpoint, and the app's own socket goes there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod health;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::{
        Route,
        protocol::{Family, How, Kind, Storm},
    },
    eventually,
    kernel::refusal,
    peer::Server,
    sandbox::{CLIENT_V4, OTHER_V4, OTHER_V6, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;
use serde_json::Value;

/// Where apps connect; nobody listens there.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(OTHER_V4), 80);
const SERVICE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(OTHER_V6), 80);
/// `SO_ORIGINAL_DST` (`linux/netfilter_ipv4.h`).
const ORIGINAL_DST: i32 = 80;

/// A group of endpoints for all connections to the service, with more lines for the group and for the rule.
fn rules(endpoints: &[impl AsRef<str>], group: &str, rule: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(AsRef::as_ref).collect();
    format!(
        r#"
        [upstream.web]
        endpoints = {endpoints:?}
        {group}
        [[forward]]
        name = "service"
        match = {{ dest = ["{OTHER_V4}", "{OTHER_V6}"], port = 80 }}
        via = "web"
        path = "rewrite"
        {rule}
        "#
    )
}

fn names(servers: &[&Server]) -> Vec<String> {
    let name = |server: &&Server| server.address().to_string();
    servers.iter().map(name).collect()
}

/// A server that sees its clients' addresses, on a port of its own.
fn mirror(sandbox: &Sandbox, address: impl Into<IpAddr> + Send) -> Server {
    sandbox.within(|| Server::mirror((address.into(), 0)))
}

fn echo(sandbox: &Sandbox, address: impl Into<IpAddr> + Send) -> Server {
    sandbox.within(|| Server::echo((address.into(), 0)))
}

fn storm(app: &App, threads: u32, each: u32, length: u64) -> BTreeMap<i32, u64> {
    app.storm(&Storm {
        addresses: vec![SERVICE],
        threads,
        each,
        length,
    })
}

/// The endpoints of the group as `culvert status` tells them, by address.
fn status(sandbox: &Sandbox, culvert: &Culvert<'_>) -> BTreeMap<String, Value> {
    let mut command = sandbox.culvert_command();
    command
        .args(["status", "--json", "--admin"])
        .arg(culvert.admin());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let endpoints = status["groups"][0]["endpoints"].as_array().unwrap().clone();
    let address = |one: &Value| one["address"].as_str().unwrap().to_owned();
    endpoints
        .into_iter()
        .map(|one| (address(&one), one))
        .collect()
}

#[test]
fn the_app_s_own_socket_goes_there_and_payload_is_whole() {
    let sandbox = Sandbox::new();
    let servers = [
        echo(&sandbox, SERVER_V4),
        echo(&sandbox, Ipv4Addr::LOCALHOST),
    ];
    let seen = mirror(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&rules(&names(&servers.each_ref()), "", ""));
    let app = sandbox.app();
    assert_eq!(storm(&app, 8, 10, 200_000), [(0, 80)].into());
    let clients: Vec<_> = servers
        .iter()
        .map(|server| server.clients().len())
        .collect();
    assert_eq!(clients.iter().sum::<usize>(), 80);
    assert_eq!(culvert.counter("rewritten"), 80);
    assert_eq!(culvert.counter("relayed"), 0);
    assert_eq!(culvert.records().len(), 0);
    let endpoints = status(&sandbox, &culvert);
    for (server, count) in servers.iter().zip(clients) {
        assert_eq!(endpoints[&server.address().to_string()]["rewritten"], count);
    }
    culvert.reload(&rules(&names(&[&seen]), "", ""));
    assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
}

#[test]
fn where_it_is_allowed_it_is_done_if_it_can_be() {
    let sandbox = Sandbox::new();
    let seen = mirror(&sandbox, SERVER_V4);
    let allowed = |group| {
        let rules = rules(&names(&[&seen]), group, "");
        rules.replace("path = \"rewrite\"", "allow_rewrite = true")
    };
    let culvert = sandbox.culvert(&allowed(""));
    let app = sandbox.app();
    assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
    culvert.reload(&allowed("limits = { total = 10 }"));
    assert_eq!(app.probe(SERVICE), Ok(Route::Relayed));
    assert!(
        culvert.log().contains("`allow_rewrite` has no effect"),
        "{}",
        culvert.log()
    );
    culvert.reload(&allowed(""));
    assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
}

#[test]
fn connections_are_spread_by_weight() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> = (0..3).map(|_| echo(&sandbox, SERVER_V4)).collect();
    let weighed: Vec<_> = servers
        .iter()
        .zip([1, 2, 5])
        .map(|(server, weight)| format!("{} weight={weight}", server.address()))
        .collect();
    for method in ["round-robin", "least-conn", "p2c"] {
        let culvert = sandbox.culvert(&rules(&weighed, &format!("balance = \"{method}\""), ""));
        let before: Vec<_> = servers
            .iter()
            .map(|server| server.clients().len())
            .collect();
        assert_eq!(storm(&sandbox.app(), 4, 200, 100), [(0, 800)].into());
        assert_eq!(culvert.counter("rewritten"), 800);
        for ((server, before), expected) in servers.iter().zip(before).zip([100, 200, 500_usize]) {
            let count = server.clients().len() - before;
            // More than five standard deviations of the largest.
            assert!(
                count.abs_diff(expected) <= 75,
                "{method}: {count} of {expected}"
            );
        }
    }
}

#[test]
fn the_app_is_told_where_it_wanted_to_go() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox, SERVER_V4), echo(&sandbox, SERVER_V6)];
    let culvert = sandbox.culvert(&rules(&names(&servers.each_ref()), "", ""));
    let app = sandbox.app();
    let mapped = SocketAddr::new(OTHER_V4.to_ipv6_mapped().into(), SERVICE.port());
    for (destination, level, length) in [
        (SERVICE, libc::SOL_IP, 16),
        (SERVICE_V6, libc::SOL_IPV6, 28),
        (mapped, libc::SOL_IP, 16),
    ] {
        let socket = app.tcp(destination);
        socket.connect(destination).unwrap();
        socket.assert_echo();
        assert_eq!(socket.peer(), Ok(destination));
        assert_eq!(socket.duplicate().peer(), Ok(destination));
        let original = socket.option(level, ORIGINAL_DST, length).unwrap();
        assert_eq!(original.len(), length, "{destination}");
        assert_eq!(original[2..4], 80_u16.to_be_bytes());
    }
    assert_eq!(culvert.counter("rewritten"), 3);
    assert_eq!(servers.map(|server| server.clients().len()), [2, 1]);
}

#[test]
fn a_socket_without_an_endpoint_for_it_is_relayed() {
    let sandbox = Sandbox::new();
    let v4 = mirror(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&rules(&names(&[&v4]), "", ""));
    let app = sandbox.app();
    // No endpoint of the family.
    assert_eq!(app.probe(SERVICE_V6), Ok(Route::Relayed));
    assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
    // Bound to an address that need not lead there.
    let bound = app.tcp(SERVICE);
    bound.bind((CLIENT_V4, 0).into()).unwrap();
    bound.connect(SERVICE).unwrap();
    assert_eq!(bound.peer(), Ok(SERVICE));
    bound.receive_all().unwrap();
    let client = v4.clients().last().copied();
    assert_ne!(client.map(|client| client.ip()), Some(CLIENT_V4.into()));
    assert_eq!(culvert.counter("rewritten"), 1);
    assert_eq!(culvert.counter("relayed"), 2);
}

#[test]
fn connects_in_the_background_and_other_ways() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&rules(&names(&[&server]), "", ""));
    let app = sandbox.app();
    let socket = app.tcp(SERVICE);
    socket.set_nonblocking(true);
    match socket.connect(SERVICE) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => panic!("{error}"),
    }
    socket.finish_connect().unwrap();
    socket.set_nonblocking(false);
    socket.assert_echo();
    assert_eq!(socket.peer(), Ok(SERVICE));

    let fast = app.tcp(SERVICE);
    fast.connect_by(SERVICE, How::FastOpen(b"early".to_vec()))
        .unwrap();
    assert_eq!(fast.receive(5).unwrap(), b"early");
    assert_eq!(fast.peer(), Ok(SERVICE));

    let multipath = app.open(Family::V4, Kind::Mptcp);
    multipath.connect(SERVICE).unwrap();
    multipath.assert_echo();
    assert_eq!(multipath.peer(), Ok(SERVICE));

    let datagrams = app.open(Family::V4, Kind::Udp);
    datagrams.connect(SERVICE).unwrap();
    assert_eq!(datagrams.peer(), Ok(SERVICE));
    assert_eq!(culvert.counter("rewritten"), 3);
}

#[test]
fn a_socket_that_is_connected_elsewhere_tells_the_truth() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let _culvert = sandbox.culvert(&rules(&names(&[&server]), "", ""));
    let app = sandbox.app();
    let socket = app.tcp(SERVICE);
    socket.connect(SERVICE).unwrap();
    socket.disconnect().unwrap();
    socket.connect(server.address()).unwrap();
    assert_eq!(socket.peer(), Ok(server.address()));
}

#[test]
fn reload_changes_endpoints_and_keeps_connections() {
    let sandbox = Sandbox::new();
    let first = echo(&sandbox, SERVER_V4);
    let second = echo(&sandbox, SERVER_V4);
    let culvert = sandbox.culvert(&rules(&names(&[&first]), "", ""));
    let app = sandbox.app();
    let old = app.tcp(SERVICE);
    old.connect(SERVICE).unwrap();
    for round in 1..=5 {
        culvert.reload(&rules(&names(&[&second]), "", ""));
        assert_eq!(storm(&app, 2, 5, 100), [(0, 10)].into());
        assert_eq!(second.clients().len(), 10 * round);
        culvert.reload(&rules(&names(&[&first]), "", ""));
        assert_eq!(storm(&app, 2, 5, 100), [(0, 10)].into());
        assert_eq!(first.clients().len(), 1 + 10 * round);
    }
    old.assert_echo();
    assert_eq!(old.peer(), Ok(SERVICE));
    // And to the relay, and back.
    let relayed = rules(&names(&[&first]), "", "").replace("\"rewrite\"", "\"auto\"");
    culvert.reload(&relayed);
    assert_eq!(storm(&app, 1, 5, 100), [(0, 5)].into());
    assert_eq!(culvert.counter("relayed"), 5);
    culvert.reload(&rules(&names(&[&second]), "", ""));
    assert_eq!(storm(&app, 1, 5, 100), [(0, 5)].into());
    assert_eq!(second.clients().len(), 55);
    old.assert_echo();
}

#[test]
fn reloads_under_load_lose_nobody() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> = (0..4).map(|_| echo(&sandbox, SERVER_V4)).collect();
    let all: Vec<_> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    let culvert = sandbox.culvert(&rules(&all, "", ""));
    let app = sandbox.app();
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| storm(&app, 4, 500, 1000));
        let mut turn = 0;
        while !storm.is_finished() {
            turn += 1;
            culvert.reload(&rules(&all[turn % 3..], "", ""));
        }
        assert_eq!(storm.join().unwrap(), [(0, 2000)].into());
    });
    assert_eq!(culvert.counter("rewritten"), 2000);
}

#[test]
fn the_fail_mode_holds_while_the_daemon_is_dead_or_hung() {
    let sandbox = Sandbox::new();
    let endpoint = mirror(&sandbox, SERVER_V4);
    // Behind the rule a service is at the destination itself.
    let service = sandbox.within(|| Server::mirror(SERVICE));
    let app = sandbox.app();
    for (mode, after) in [("direct", Ok(Route::Direct)), ("refuse", Err(refusal()))] {
        let rule = format!("on_relay_failure = \"{mode}\"");
        let mut culvert = sandbox.culvert(&rules(&names(&[&endpoint]), "", &rule));
        let (chosen, direct) = (endpoint.clients().len(), service.clients().len());
        assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
        assert_eq!(endpoint.clients().len(), chosen + 1);
        culvert.freeze();
        eventually("the heartbeat to stop", || {
            let before = endpoint.clients().len();
            let result = app.probe(SERVICE);
            (endpoint.clients().len() == before).then(|| assert_eq!(result, after, "{mode}"))
        });
        culvert.thaw();
        eventually("the heartbeat to go on", || {
            let before = endpoint.clients().len();
            let _ = app.probe(SERVICE);
            (endpoint.clients().len() > before).then_some(())
        });
        let held = app.tcp(SERVICE);
        held.connect(SERVICE).unwrap();
        assert_eq!(held.peer(), Ok(SERVICE));
        // It is accepted by then.
        held.receive(1).unwrap();
        let (chosen, other) = (endpoint.clients().len(), service.clients().len());
        culvert.kill();
        assert_eq!(app.probe(SERVICE), after, "{mode}");
        assert_eq!(endpoint.clients().len(), chosen);
        let went = service.clients().len() - other;
        assert_eq!(went, usize::from(mode == "direct"));
        assert!(service.clients().len() > direct || mode == "refuse");
        // What was made is nobody's business any more, and nobody is left to say where it wanted to go.
        assert_eq!(held.peer(), Ok(endpoint.address()));
        assert!(!held.receive_all().unwrap().is_empty());
    }
    sandbox.detach();
}

#[test]
fn an_endpoint_that_a_refusing_rule_selects_can_be_reached() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::mirror((OTHER_V4, 8080)));
    let wide =
        rules(&names(&[&server]), "", "on_relay_failure = \"refuse\"").replace(", port = 80", "");
    let mut culvert = sandbox.culvert(&wide);
    let app = sandbox.app();
    let socket = app.tcp(SERVICE);
    // The guard sees the endpoint, and lets only those pass that were sent there.
    assert_eq!(app.probe(SERVICE), Ok(Route::Direct));
    socket.connect(SERVICE).unwrap();
    socket.disconnect().unwrap();
    culvert.kill();
    assert_eq!(app.probe(server.address()), Err(Errno::ECONNREFUSED));
    assert_eq!(socket.connect(server.address()), Err(Errno::ECONNREFUSED));
    sandbox.detach();
}

#[test]
fn more_endpoints_than_the_kernel_holds_are_relayed() {
    const EACH: u16 = 4096;
    let sandbox = Sandbox::new();
    // All of 127.0.0.0/8 is this host.
    let server = mirror(&sandbox, Ipv4Addr::UNSPECIFIED);
    let port = server.address().port();
    let group = |number: u8| {
        let address = |at: u16| {
            let [high, low] = at.to_be_bytes();
            format!("127.{}.{high}.{low}:{port}", number + 1)
        };
        let endpoints: Vec<_> = (1..=EACH).map(address).collect();
        format!(
            r#"
            [upstream.group-{number}]
            endpoints = {endpoints:?}
            [[forward]]
            name = "rule-{number}"
            match = {{ dest = "{OTHER_V4}", port = {} }}
            via = "group-{number}"
            path = "rewrite"
            "#,
            u16::from(number) + 80
        )
    };
    let culvert = sandbox.culvert(&(0..5).map(group).collect::<String>());
    let app = sandbox.app();
    let probe = |number: u16| app.probe((OTHER_V4, 80 + number).into());
    let ways: Vec<_> = (0..5).map(probe).collect();
    assert_eq!(ways[..4], [Ok(Route::Direct); 4]);
    // The relay says where it connects from, which on loopback is an address of the same kind.
    assert!(ways[4].is_ok(), "{ways:?}");
    assert_eq!(culvert.counter("rewritten"), 4);
    assert_eq!(culvert.counter("relayed"), 1);
    assert!(culvert.log().contains("its connections are relayed"));
    // There is room again for whoever comes when others have gone, and their connections forgotten their rules.
    for _ in 0..10 {
        culvert.reload(&group(4));
    }
    eventually("room", || {
        culvert.reload(&group(4));
        let before = culvert.counter("rewritten");
        assert!(probe(4).is_ok());
        (culvert.counter("rewritten") > before).then_some(())
    });
}
