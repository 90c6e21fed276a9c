//! What networks do to connections that pass through: interfaces that come and go, lost packets, small packets, floods.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    io::{Write as _, copy, sink},
    net::{IpAddr, Shutdown},
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_tests::{
    App, Payload, Sandbox,
    app::{Route, protocol::Storm},
    eventually,
    hosts::{self, Hosts, LAN, WAN},
    kernel::ingress_programs,
    netns::Netns,
    peer::Server,
    process::{app_binary, run},
};

fn through(interface: &str) -> String {
    format!(
        "[[gateway]]\nname = \"{interface}\"\ninterface = \"{interface}\"\nvia = \"original\"\n"
    )
}

/// Sends what is asked of it by nobody, as servers that are downloaded from.
fn source(address: IpAddr, length: u64) -> Server {
    Server::start((address, 0), move |mut stream| {
        Payload { seed: 11 }.write(&mut stream, length)?;
        stream.flush()?;
        stream.shutdown(Shutdown::Write)?;
        copy(&mut stream, &mut sink()).map(drop)
    })
}

fn assert_downloads(app: &App, server: &Server, length: usize) {
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    let received = socket.receive_all().unwrap();
    assert_eq!(received.len(), length);
    assert_eq!(Payload { seed: 11 }.first_difference(0, &received), None);
}

#[test]
fn interfaces_may_appear_be_renamed_and_vanish() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let culvert = sandbox.culvert(&(through("late") + &through(LAN[0])));
    let router = sandbox.netns();
    let first = hosts.app(&sandbox, 0);
    assert_eq!(first.probe(mirror.address()), Ok(Route::Relayed));

    let host = Arc::new(Netns::new());
    router.link("late", "10.9.0.1/24", &host, "10.9.0.2/24");
    host.ip("route add default via 10.9.0.1");
    let late = App::start(&mut sandbox.command_elsewhere(&host, app_binary()));
    let becomes = |app: &App, route| {
        eventually(&format!("a connection that is {route:?}"), || {
            (app.probe(mirror.address()) == Ok(route)).then_some(())
        });
    };
    becomes(&late, Route::Relayed);

    router.ip("link set late name other");
    becomes(&late, Route::Direct);
    router.ip("link set other name late");
    becomes(&late, Route::Relayed);

    router.ip("link del late");
    router.link("late", "10.9.0.1/24", &host, "10.9.0.2/24");
    host.ip("route add default via 10.9.0.1");
    becomes(&late, Route::Relayed);
    assert_eq!(first.probe(mirror.address()), Ok(Route::Relayed));
    assert!(culvert.is_running());
}

/// Names of interfaces in the routing rules of the sandbox.
fn in_rules(router: &Netns) -> Vec<String> {
    let shown = router.within(|| run("ip", &["rule", "list", "protocol", "67"]));
    let names = shown.lines().filter_map(|line| {
        let (_, rest) = line.split_once(" iif ")?;
        rest.split(' ').next().map(str::to_owned)
    });
    names.collect()
}

/// Its packets come in by the same interface, whatever that is called.
#[test]
fn an_open_connection_outlives_the_name_of_its_interface() {
    for more in ["", "keep_source = true\n"] {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let culvert = sandbox.culvert(&(through(LAN[0]) + more));
        let router = sandbox.netns();
        let app = hosts.app(&sandbox, 0);
        let echoes =
            hosts::server(0).map(|address| hosts.server(0).within(|| Server::echo((address, 0))));
        let open = echoes.each_ref().map(|echo| {
            let socket = app.tcp(echo.address());
            socket.connect(echo.address()).unwrap();
            socket.assert_echo();
            socket
        });
        let lives = || {
            for (seed, socket) in (1..).zip(&open) {
                socket.exchange(seed, 100_000).unwrap();
            }
        };
        let becomes = |from: &str, to: &str, is_relayed: bool| {
            router.ip(&format!("link set {from} name {to}"));
            lives();
            // With its source a relayed connection looks like any other.
            eventually(&format!("a connection by {to}"), || {
                let before = culvert.counter("transit_relayed");
                let socket = app.tcp(echoes[0].address());
                socket.connect(echoes[0].address()).unwrap();
                socket.assert_echo();
                let relayed = culvert.counter("transit_relayed") - before;
                (relayed == u64::from(is_relayed)).then_some(())
            });
            lives();
            assert!(in_rules(router).contains(&to.to_owned()));
        };
        becomes(LAN[0], "other", false);
        becomes("other", "third", false);
        // Also when no rule names anything any more.
        culvert.reload("");
        becomes("third", "other", false);
        culvert.reload(&(through(LAN[0]) + more));
        becomes("other", LAN[0], true);
    }
}

#[test]
fn routing_rules_go_with_the_names_that_nobody_needs() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let everywhere = through(LAN[0]) + "keep_source = true\n";
    let culvert = sandbox.culvert(&everywhere);
    for round in 0..3 {
        let name = format!("late{round}");
        let host = Netns::new();
        router.link(&name, "10.9.0.1/24", &host, "10.9.0.2/24");
        eventually("a rule for it", || {
            in_rules(router).contains(&name).then_some(())
        });
        router.ip(&format!("link del {name}"));
        eventually("no rule for it", || {
            (!in_rules(router).contains(&name)).then_some(())
        });
    }
    // A name that a rule has is waited for.
    culvert.reload(&(through("never") + &everywhere));
    assert!(in_rules(router).contains(&"never".to_owned()));
    culvert.reload(&everywhere);
    assert!(!in_rules(router).contains(&"never".to_owned()));
    drop(hosts);
}

/// Nobody waits for the next time that somebody looks.
#[test]
fn a_new_interface_is_guarded_within_a_moment() {
    const MOMENT: Duration = Duration::from_millis(500);
    let sandbox = Sandbox::new();
    let router = sandbox.netns();
    let _culvert = sandbox.culvert(&(through("late") + "on_relay_failure = \"refuse\"\n"));
    let host = Netns::new();
    // The looks that nobody causes are a second apart, and so would these rounds be.
    let waited = (0..5).map(|_| {
        router.link("late", "10.9.0.1/24", &host, "10.9.0.2/24");
        let begun = Instant::now();
        eventually("the program and its guard", || {
            let programs = router.within(|| ingress_programs("late"));
            ["gateway", "gateway_guard"]
                .iter()
                .all(|name| programs.iter().any(|program| program == name))
                .then_some(())
        });
        let waited = begun.elapsed();
        router.ip("link del late");
        waited
    });
    let waited: Vec<_> = waited.collect();
    assert!(waited.iter().any(|waited| *waited < MOMENT), "{waited:?}");
}

#[test]
fn nothing_is_lost_where_packets_are() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let echoes =
        hosts::server(0).map(|address| hosts.server(0).within(|| Server::echo((address, 0))));
    let culvert = sandbox.culvert(&through(LAN[0]));
    for netns in [sandbox.netns(), hosts.client(0), hosts.server(0)] {
        netns.lose_one_packet_in(100);
    }
    let app = hosts.app(&sandbox, 0);
    let storm = Storm {
        addresses: echoes.each_ref().map(Server::address).into(),
        threads: 8,
        each: 3,
        length: 200_000,
    };
    assert_eq!(app.storm(&storm), BTreeMap::from([(0, 24)]));
    for record in culvert.await_records(24) {
        assert_eq!((record.up, record.down), (200_000, 200_000), "{record:?}");
        assert_eq!(record.reason, "done", "{record:?}");
    }
}

/// Bytes of the largest segment that a host sends on a connection.
fn segment(netns: &Netns, filter: &str) -> u32 {
    let arguments = format!("-tinH state established {filter}");
    let arguments: Vec<_> = arguments.split(' ').collect();
    let shown = netns.within(|| run("ss", &arguments));
    let mut words = shown.split_ascii_whitespace();
    let size = words.find_map(|word| word.strip_prefix("mss:"));
    size.expect("a size").parse().unwrap()
}

/// Each leg has segments of its own size.
#[test]
fn both_legs_keep_to_their_own_mtu() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    for (netns, mtu) in [(sandbox.netns(), 9000), (&**hosts.client(0), 9000)] {
        netns.ip(&format!("link set {} mtu {mtu}", LAN[0]));
    }
    for netns in [sandbox.netns(), &**hosts.server(0)] {
        netns.ip(&format!("link set {} mtu 1280", WAN[0]));
    }
    let _culvert = sandbox.culvert(&through(LAN[0]));
    let app = hosts.app(&sandbox, 0);
    for address in hosts::server(0) {
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        socket.exchange(7, 1 << 20).unwrap();
        let port = echo.address().port();
        let near = segment(hosts.client(0), &format!("dport = :{port}"));
        let far = segment(hosts.server(0), &format!("sport = :{port}"));
        // Without the headers of IP and TCP, and its options.
        assert!((8900..9000).contains(&near), "{near}");
        assert!((1200..1280).contains(&far), "{far}");
        let length = 300_000;
        let server = hosts.server(0).within(|| source(address, length as u64));
        assert_downloads(&app, &server, length);
    }
}

/// A host behind another one, which routes between it and the sandbox, by a link that large packets do not fit through.
fn host_behind(router: &Netns, between: &Netns, near: [IpAddr; 2], own: [IpAddr; 2]) -> Arc<Netns> {
    let far = Arc::new(Netns::new());
    between.link("far", "10.9.0.1/24", &far, "10.9.0.2/24");
    for (netns, address) in [(between, "fd09::1/64"), (&far, "fd09::2/64")] {
        netns.ip(&format!("addr add {address} dev far nodad"));
    }
    far.ip("route add default via 10.9.0.1");
    far.ip("-6 route add default via fd09::1");
    between.sysctl("net.ipv4.ip_forward", "1");
    between.sysctl("net.ipv6.conf.all.forwarding", "1");
    let [via_v4, via_v6] = near;
    router.ip(&format!("route add 10.9.0.0/24 via {via_v4}"));
    router.ip(&format!("-6 route add fd09::/64 via {via_v6}"));
    // Forwarding has made it forget what it learned by itself; the far host still sends large packets.
    let [v4, v6] = own;
    between.ip(&format!("route replace default via {v4}"));
    between.ip(&format!("-6 route replace default via {v6}"));
    between.ip("link set far mtu 1280");
    far
}

/// That errors about packets that are too big were delivered to a host, not routed on to whom they are addressed to.
fn assert_heard_of_errors(router: &Netns) {
    let statistics = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        router.within(|| std::fs::read_to_string(path)).unwrap()
    };
    let v6 = statistics("snmp6");
    let too_big = v6
        .lines()
        .find(|line| line.starts_with("Icmp6InPktTooBigs"))
        .unwrap();
    assert!(
        !too_big.ends_with(" 0") && !too_big.ends_with("\t0"),
        "{too_big}"
    );
    let v4 = statistics("snmp");
    let kinds = v4
        .lines()
        .find(|line| line.starts_with("IcmpMsg:"))
        .unwrap();
    assert!(kinds.contains("InType3"), "{kinds}");
}

/// A router between the client and us has a link that our segments are too big for, and says so to the server's address.
#[test]
fn an_icmp_error_about_a_relayed_connection_reaches_its_socket() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let (near, own) = (hosts::client(0), hosts::toward_client(0));
    let far = host_behind(router, hosts.client(0), near, own);
    let culvert = sandbox.culvert(&through(LAN[0]));
    let app = App::start(&mut sandbox.command_elsewhere(&far, app_binary()));
    let length = 200_000;
    for address in hosts::server(0) {
        let server = hosts.server(0).within(|| source(address, length as u64));
        assert_downloads(&app, &server, length);
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
    assert_heard_of_errors(router);
}

/// One between us and the server says so to the address of the client, which the relay has connected from.
#[test]
fn an_icmp_error_to_the_address_of_a_client_reaches_the_relay() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let (near, own) = (hosts::server(0), hosts::toward_server(0));
    let far = host_behind(router, hosts.server(0), near, own);
    let culvert = sandbox.culvert(&(through(LAN[0]) + "keep_source = true\n"));
    let app = hosts.app(&sandbox, 0);
    for address in ["10.9.0.2", "fd09::2"] {
        let address: IpAddr = address.parse().unwrap();
        let echo = far.within(|| Server::echo((address, 0)));
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        socket.exchange(5, 200_000).unwrap();
        assert_eq!(echo.clients(), [socket.local().unwrap()]);
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
    assert_heard_of_errors(router);
}
