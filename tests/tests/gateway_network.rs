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
    net::Shutdown,
    sync::Arc,
};

use culvert_tests::{
    App, Payload, Sandbox,
    app::{Route, protocol::Storm},
    eventually,
    hosts::{self, Hosts, LAN, WAN},
    netns::Netns,
    peer::Server,
    process::app_binary,
};

fn through(interface: &str) -> String {
    format!(
        "[[gateway]]\nname = \"{interface}\"\ninterface = \"{interface}\"\nvia = \"original\"\n"
    )
}

/// Sends what is asked of it by nobody, as servers that are downloaded from.
fn source(address: std::net::IpAddr, length: u64) -> Server {
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
        let length = 300_000;
        let server = hosts.server(0).within(|| source(address, length as u64));
        assert_downloads(&app, &server, length);
    }
}

/// A router between the client and us has a link that our segments are too big for, and says so to the server's address.
#[test]
fn an_icmp_error_about_a_relayed_connection_reaches_its_socket() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let between = hosts.client(0);
    let far = Arc::new(Netns::new());
    between.link("far", "10.9.0.1/24", &far, "10.9.0.2/24");
    for (netns, address) in [(&**between, "fd09::1/64"), (&*far, "fd09::2/64")] {
        netns.ip(&format!("addr add {address} dev far nodad"));
    }
    far.ip("route add default via 10.9.0.1");
    far.ip("-6 route add default via fd09::1");
    between.sysctl("net.ipv4.ip_forward", "1");
    between.sysctl("net.ipv6.conf.all.forwarding", "1");
    let [via_v4, via_v6] = hosts::client(0);
    let router = sandbox.netns();
    router.ip(&format!("route add 10.9.0.0/24 via {via_v4}"));
    router.ip(&format!("-6 route add fd09::/64 via {via_v6}"));
    // Forwarding has made it forget what it learned by itself; the far host still sends large packets.
    let [v4, v6] = hosts::toward_client(0);
    between.ip(&format!("route replace default via {v4}"));
    between.ip(&format!("-6 route replace default via {v6}"));
    between.ip("link set far mtu 1280");
    let culvert = sandbox.culvert(&through(LAN[0]));
    let app = App::start(&mut sandbox.command_elsewhere(&far, app_binary()));
    let length = 200_000;
    for address in hosts::server(0) {
        let server = hosts.server(0).within(|| source(address, length as u64));
        assert_downloads(&app, &server, length);
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
    // They were delivered here, not routed on to the server that they are addressed to.
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
