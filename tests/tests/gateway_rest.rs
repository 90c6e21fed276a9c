//! What is left to the kernel beside what a gateway takes, and what is not, whatever its packets look like.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use culvert_tests::{
    App, Sandbox,
    app::{Route, Socket},
    hosts::{self, Hosts, LAN},
    netns::Netns,
    peer::Server,
    process::app_binary,
    tun::Tun,
};
use nix::errno::Errno;

fn through(interface: &str, matches: &str) -> String {
    format!(
        "[[gateway]]\nname = \"{interface}\"\ninterface = \"{interface}\"\nmatch = {{ {matches} }}\nvia = \"original\"\n"
    )
}

fn connected(app: &App, address: SocketAddr) -> Socket<'_> {
    let socket = app.tcp(address);
    socket.connect(address).unwrap();
    socket.assert_echo();
    socket
}

/// Of the same client, to the same service: only its ports tell the packets of one connection from those of the other.
#[test]
fn a_port_that_a_reload_adds_is_for_new_connections_only() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&through(LAN[0], "port = 1"));
    let app = hosts.app(&sandbox, 0);
    for (index, address) in hosts::server(0).into_iter().enumerate() {
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let port = echo.address().port();
        culvert.reload(&through(LAN[0], "port = 1"));
        let old = connected(&app, echo.address());
        culvert.reload(&through(LAN[0], &format!("port = {port}")));
        old.assert_echo();
        let new = connected(&app, echo.address());
        for _ in 0..3 {
            old.assert_echo();
            new.assert_echo();
        }
        let client = hosts::client(0)[index];
        let seen: Vec<_> = echo.clients().iter().map(SocketAddr::ip).collect();
        assert_eq!(seen, [client, hosts::toward_server(0)[index]]);
        // Nor does the end of one mean anything to the other.
        new.close();
        old.assert_echo();
        let new = connected(&app, echo.address());
        old.close();
        new.assert_echo();
        // What is taken stays so when its port is nobody's any more.
        culvert.reload(&through(LAN[0], "port = 1"));
        new.assert_echo();
        let later = connected(&app, echo.address());
        new.assert_echo();
        later.assert_echo();
        assert_eq!(echo.clients().last().unwrap().ip(), client);
    }
    assert_eq!(culvert.counter("transit_relayed"), 4);
}

#[test]
fn rules_name_ports_one_by_one_by_ranges_by_exception_or_not_at_all() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let app = hosts.app(&sandbox, 0);
    for mode in ["direct", "refuse"] {
        let culvert = sandbox.culvert(&through(LAN[0], "port = 1"));
        for address in hosts::server(0) {
            let mirrors = [63, 64, 127, 128, 1024, 65_535]
                .map(|port| hosts.server(0).within(|| Server::mirror((address, port))));
            let relayed = |matches: &str| {
                let rule = through(LAN[0], matches);
                culvert.reload(&format!("{rule}on_relay_failure = \"{mode}\"\n"));
                let taken = mirrors.iter().map(Server::address).filter(|mirror| {
                    let route = app.probe(*mirror);
                    assert!(route.is_ok(), "{mirror}: {route:?}");
                    route == Ok(Route::Relayed)
                });
                taken.map(|mirror| mirror.port()).collect::<Vec<_>>()
            };
            assert_eq!(relayed("port = 64"), [64]);
            assert_eq!(relayed("port = \"64-127\""), [64, 127]);
            assert_eq!(relayed("port = [\"!64-127\"]"), [63, 128, 1024, 65_535]);
            assert_eq!(
                relayed("port = [\"64-65535\", \"!128\"]"),
                [64, 127, 1024, 65_535]
            );
            assert_eq!(relayed(""), [63, 64, 127, 128, 1024, 65_535]);
            assert!(relayed("port = 2").is_empty());
        }
    }
}

/// Also of one that refuses, while the daemon lives and after.
#[test]
fn a_rule_that_lets_nothing_pass_is_about_new_connections() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let mut culvert = sandbox.culvert(&through(LAN[0], "port = 1"));
    let app = hosts.app(&sandbox, 0);
    let echoes =
        hosts::server(0).map(|address| hosts.server(0).within(|| Server::echo((address, 0))));
    let old = echoes
        .each_ref()
        .map(|echo| connected(&app, echo.address()));
    let refuse = "on_relay_failure = \"refuse\"\n";
    culvert.reload(&(through(LAN[0], "").replace("\"original\"", "\"refuse\"") + refuse));
    let lives = || {
        for socket in &old {
            socket.exchange(3, 50_000).unwrap();
        }
    };
    lives();
    culvert.reload(&(through(LAN[0], "") + refuse));
    lives();
    for echo in &echoes {
        connected(&app, echo.address());
    }
    culvert.kill();
    lives();
    for echo in &echoes {
        let socket = app.tcp(echo.address());
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(echo.address()), Err(Errno::EINPROGRESS));
    }
    lives();
    assert!(echoes.iter().all(|echo| echo.clients().len() == 2));
    sandbox.detach();
}

/// What leads nowhere can be reached by a proxy, but a packet without a route looks like one for this host.
#[test]
fn what_has_a_route_is_taken_also_if_that_leads_nowhere() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let app = hosts.app(&sandbox, 0);
    let router = sandbox.netns();
    for (index, nowhere) in ["203.0.113.7", "2001:db8:7::7"].into_iter().enumerate() {
        let server = hosts::server(0)[index];
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let rule = through(LAN[0], "").replace("original", &echo.address().to_string());
        let culvert = sandbox.culvert(&rule);
        let nowhere = SocketAddr::new(nowhere.parse().unwrap(), 443);
        let none = app.tcp(nowhere);
        assert_eq!(none.connect(nowhere), Err(Errno::ENETUNREACH));
        for kind in ["blackhole", "unreachable", "prohibit"] {
            let route = format!("{kind} {}", nowhere.ip());
            router.ip(&format!("route add {route}"));
            connected(&app, nowhere);
            router.ip(&format!("route del {route}"));
        }
        assert_eq!(culvert.counter("transit"), 3);
    }
}

/// Options and extension headers put TCP elsewhere in the packet.
#[test]
fn packets_with_options_are_relayed_like_others() {
    const IP_OPTIONS: i32 = 4;
    const IPV6_DSTOPTS: i32 = 59;
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&through(LAN[0], ""));
    let app = hosts.app(&sandbox, 0);
    let options: [(i32, i32, &[u8]); 2] = [
        // No operation, three times, and the end.
        (libc::IPPROTO_IP, IP_OPTIONS, &[1, 1, 1, 0]),
        // Eight bytes, of which six are padding.
        (libc::IPPROTO_IPV6, IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]),
    ];
    for ((index, address), (level, name, bytes)) in
        hosts::server(0).into_iter().enumerate().zip(options)
    {
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let socket = app.tcp(echo.address());
        socket.set_option_bytes(level, name, bytes).unwrap();
        socket.connect(echo.address()).unwrap();
        socket.exchange(7, 100_000).unwrap();
        assert_eq!(echo.clients()[0].ip(), hosts::toward_server(0)[index]);
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
}

#[test]
fn other_protocols_and_fragments_are_routed() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let rule = through(LAN[0], "");
    let culvert = sandbox.culvert(&format!("{rule}on_relay_failure = \"refuse\"\n"));
    for (client, server) in hosts::client(0).into_iter().zip(hosts::server(0)) {
        let receiver = hosts
            .server(0)
            .within(|| UdpSocket::bind((server, 0)).unwrap());
        let patience = Some(Duration::from_secs(30));
        receiver.set_read_timeout(patience).unwrap();
        let sender = hosts
            .client(0)
            .within(|| UdpSocket::bind((client, 0)).unwrap());
        for length in [0_usize, 1, 100, 1400, 5000] {
            let sent = vec![length.to_le_bytes()[0]; length];
            sender
                .send_to(&sent, receiver.local_addr().unwrap())
                .unwrap();
            let mut buffer = vec![0; 10_000];
            let (count, from) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..count], from.ip()), (&sent[..], client));
        }
    }
    assert_eq!(culvert.counter("transit"), 0);
}

#[test]
fn interfaces_without_link_headers_are_served() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let host = Arc::new(Netns::new());
    let ends = [(sandbox.netns(), "10.8.0.1/24"), (&*host, "10.8.0.2/24")];
    let _tun = Tun::between("vpn", ends);
    host.ip("route add default dev vpn");
    let app = App::start(&mut sandbox.command_elsewhere(&host, app_binary()));
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let culvert = sandbox.culvert(&through("vpn", "port = 1"));
    let old = connected(&app, echo.address());
    culvert.reload(&through("vpn", ""));
    let new = connected(&app, echo.address());
    new.exchange(3, 50_000).unwrap();
    old.assert_echo();
    let seen: Vec<_> = echo.clients().iter().map(SocketAddr::ip).collect();
    assert_eq!(
        seen,
        [IpAddr::from([10, 8, 0, 2]), hosts::toward_server(0)[0]]
    );
    assert_eq!(culvert.counter("transit_relayed"), 1);
}
