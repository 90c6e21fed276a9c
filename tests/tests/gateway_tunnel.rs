//! A gateway as a tunnel: connections of other hosts go on through proxies, to where they were going.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{collections::BTreeMap, net::SocketAddr};

use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    hosts::{self, Hosts, LAN},
    peer::{HttpProxy, Server, Socks5},
    rules::passing,
};
use nix::errno::Errno;

/// The proxies are on another host than the servers, which this one has no way to but through them.
#[test]
fn connections_go_on_through_proxies_and_chains() {
    for family in [0, 1] {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let (address, proxies) = (hosts::server(0)[family], hosts::server(1)[family]);
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let socks = hosts.server(1).within(|| Socks5::start((proxies, 0)));
        let http = hosts.server(1).within(|| HttpProxy::start((proxies, 0)));
        // A network between the two hosts, which the gateway is no part of.
        let (near, far) = if family == 0 {
            ("10.7.0.1/24", "10.7.0.2/24")
        } else {
            ("fd07::1/64", "fd07::2/64")
        };
        hosts.server(1).link("past", near, hosts.server(0), far);
        let bare = |address: &str| address.split('/').next().unwrap().to_owned();
        hosts
            .server(1)
            .ip(&format!("route add {address} via {} dev past", bare(far)));
        sandbox
            .netns()
            .ip(&format!("route add blackhole {address}"));
        let (socks_url, http_url) = (
            format!("socks5://{}", socks.address()),
            format!("http://{}", http.address()),
        );
        let echo_at = echo.address();
        let app = hosts.app(&sandbox, 0);
        for (url, asked) in [
            (format!("{socks_url:?}"), [Some(echo_at), None]),
            (format!("{http_url:?}"), [None, Some(echo_at)]),
            (
                format!("[{socks_url:?}, {http_url:?}]"),
                [Some(http.address()), Some(echo_at)],
            ),
            (
                format!("[{http_url:?}, {socks_url:?}]"),
                [Some(echo_at), Some(socks.address())],
            ),
        ] {
            let upstream = format!("[upstream.tunnel]\nurl = {url}\n");
            let rule = passing(&LAN[..1], "").replace("\"original\"", "\"tunnel\"");
            let culvert = sandbox.culvert(&(upstream + &rule));
            let before = (socks.requests().len(), http.requests().len());
            let storm = Storm {
                addresses: vec![echo_at],
                threads: 2,
                each: 3,
                length: 300_000,
            };
            assert_eq!(app.storm(&storm), BTreeMap::from([(0, 6)]), "{url}");
            let new = |requests: Vec<SocketAddr>, from: usize| requests[from..].to_vec();
            let seen = [
                new(socks.requests(), before.0),
                new(http.requests(), before.1),
            ];
            let expected = asked.map(|asked| asked.map_or(Vec::new(), |to| vec![to; 6]));
            assert_eq!(seen, expected, "{url}");
            for record in culvert.await_records(6) {
                assert_eq!(record.role, "gateway");
                assert_eq!(record.upstream.as_deref(), Some("tunnel"));
                assert_eq!(record.client.ip(), hosts::client(0)[family]);
                assert_eq!(record.orig_dst, Some(echo_at));
                assert_eq!((record.up, record.down), (300_000, 300_000));
            }
        }
        let seen = echo.clients();
        assert!(
            seen.iter()
                .all(|client| client.ip().to_string() == bare(near)),
            "{seen:?}"
        );
    }
}

/// Nothing goes past it.
#[test]
fn a_proxy_that_is_gone_resets_the_client() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    for (address, proxy) in hosts::server(0).into_iter().zip(hosts::server(1)) {
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let gone = SocketAddr::new(proxy, culvert_tests::sandbox::CLOSED_PORT);
        let upstream = format!("[upstream.tunnel]\nurl = \"socks5://{gone}\"\n");
        let rule = passing(&LAN[..1], "").replace("\"original\"", "\"tunnel\"");
        let culvert = sandbox.culvert(&(upstream + &rule));
        let app = hosts.app(&sandbox, 0);
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
        assert_eq!(culvert.await_records(1)[0].reason, "proxy_unreachable");
        assert!(echo.clients().is_empty());
    }
}

/// All interfaces that its packets come in by have to be named, as by a rule that has nothing taken there.
#[test]
fn a_client_may_change_between_interfaces_that_rules_name() {
    let side = |index: usize| {
        let prefix = if index == 0 { "10.8.0" } else { "fd08::" };
        let dot = if index == 0 { "." } else { "" };
        [1, 2].map(|host| format!("{prefix}{dot}{host}"))
    };
    let named = "[[gateway]]\nname = \"side\"\ninterface = \"side\"\nvia = \"direct\"\n";
    for rules in [
        passing(&LAN[..1], "") + named,
        passing(&LAN[..1], "keep_source = true"),
    ] {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let (router, client) = (sandbox.netns(), hosts.client(0));
        let [near, far] = side(0);
        router.link("side", &format!("{near}/24"), client, &format!("{far}/24"));
        let [near, far] = side(1);
        router.ip(&format!("addr add {near}/64 dev side nodad"));
        client.ip(&format!("addr add {far}/64 dev side nodad"));
        for (netns, name) in [
            (router, "all"),
            (router, "side"),
            (&**client, "all"),
            (&**client, "side"),
        ] {
            netns.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0");
        }
        let culvert = sandbox.culvert(&rules);
        let app = hosts.app(&sandbox, 0);
        for (index, address) in hosts::server(0).into_iter().enumerate() {
            let echo = hosts.server(0).within(|| Server::echo((address, 0)));
            let socket = app.tcp(echo.address());
            socket.connect(echo.address()).unwrap();
            socket.assert_echo();
            let [near, _] = side(index);
            let own = hosts::toward_client(0)[index];
            for (via, by) in [(near, "side"), (own.to_string(), LAN[0])] {
                client.ip(&format!("route replace {address} via {via} dev {by}"));
                let before = received(router, "side");
                socket.exchange(3, 300_000).unwrap();
                assert_eq!(received(router, "side") - before > 10, by == "side");
            }
            assert_eq!(echo.clients().len(), 1);
        }
        assert_eq!(culvert.counter("transit_relayed"), 2);
    }
}

/// Packets that came in by an interface.
fn received(netns: &culvert_tests::netns::Netns, interface: &str) -> u64 {
    let shown = netns.within(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let shown = shown.unwrap();
    let mut lines = shown.lines().filter_map(|line| line.trim().split_once(':'));
    let (_, fields) = lines.find(|(name, _)| *name == interface).unwrap();
    let packets = fields.split_ascii_whitespace().nth(1);
    packets.unwrap().parse().unwrap()
}
