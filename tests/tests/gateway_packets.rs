//! Packets of every form that pass through: with tags, options and extension headers, in fragments, and in floods.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use culvert_tests::{
    Sandbox,
    app::Route,
    daemon::Settings,
    datagrams::Datagrams,
    eventually, flood,
    hosts::{self, Hosts, LAN},
    netns::Netns,
    peer::Server,
    process::run,
    rules::passing,
    usage::resident,
};

/// Also where no VLAN has an interface. A tag with number 0 is none: it has a priority only.
#[test]
fn frames_with_tags_are_none_of_the_interface_below() {
    const TAG: u16 = 0x8100;
    const OUTER_TAG: u16 = 0x88a8;
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&passing(&LAN[..1], ""));
    let ([from, _], [to, _]) = (hosts::client(0), hosts::server(0));
    let lan = (LAN[0], sandbox.netns().hardware(LAN[0]));
    let mut port = 5000;
    let mut relayed = |tags: &[(u16, u16)]| {
        let before = culvert.counter("transit_relayed");
        let mut send = |tags| {
            port += 1;
            hosts.client(0).within(|| {
                flood::tagged_syn(
                    lan,
                    tags,
                    SocketAddr::new(from, port),
                    SocketAddr::new(to, 1001),
                );
            });
        };
        send(tags);
        // What comes behind it says that it has come.
        send(&[]);
        eventually("the second SYN", || {
            let grown = culvert.counter("transit_relayed") - before;
            (grown > 0).then_some(grown - 1)
        })
    };
    assert_eq!(relayed(&[]), 1);
    assert_eq!(relayed(&[(TAG, 0)]), 1);
    for tags in [
        &[(TAG, 5)][..],
        &[(OUTER_TAG, 6), (TAG, 7)],
        &[(TAG, 6), (TAG, 7)],
    ] {
        assert_eq!(relayed(tags), 0, "{tags:x?}");
    }
}

/// An option of a socket: its level, its name and its value.
type Setting<'a> = (i32, i32, &'a [u8]);

#[test]
fn connections_with_options_and_extension_headers_are_relayed() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&passing(&LAN[..1], ""));
    let app = hosts.app(&sandbox, 0);
    // Nothing, as often as there is room for; and padding in a header of 8 bytes.
    let (nothing, padding) = ([1; 40], [0, 0, 1, 4, 0, 0, 0, 0]);
    let [v4, v6] = hosts::server(0);
    let forms: [(IpAddr, &[Setting<'_>]); 5] = [
        (v4, &[(libc::IPPROTO_IP, libc::IP_OPTIONS, &nothing[..4])]),
        (v4, &[(libc::IPPROTO_IP, libc::IP_OPTIONS, &nothing)]),
        (v6, &[(libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &padding)]),
        (v6, &[(libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &padding)]),
        (
            v6,
            &[
                (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &padding),
                (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &padding),
            ],
        ),
    ];
    for (address, options) in forms {
        let mirror = hosts.server(0).within(|| Server::mirror((address, 0)));
        let echo = hosts.server(0).within(|| Server::echo((address, 0)));
        let connected = |server: &Server| {
            let socket = app.tcp(server.address());
            for (level, name, value) in options {
                socket.set_option_bytes(*level, *name, value).unwrap();
            }
            socket.connect(server.address()).unwrap();
            socket
        };
        let asking = connected(&mirror);
        let seen = String::from_utf8(asking.receive_all().unwrap()).unwrap();
        assert_ne!(seen.parse(), Ok(asking.local().unwrap()), "{options:?}");
        connected(&echo).exchange(9, 300_000).unwrap();
    }
    assert_eq!(culvert.counter("transit_relayed"), 10);
}

/// A rule for all that comes in is none for what has no ports.
#[test]
fn fragments_pass_as_if_nobody_were_there() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&passing(&LAN, "on_relay_failure = \"refuse\""));
    for datagrams in Datagrams::both(&hosts) {
        for length in [10, 4000, 60_000] {
            datagrams.assert_arrives(length);
        }
    }
    assert_eq!(culvert.counter("transit"), 0);
}

/// Options of TCP are between the two ends of a leg.
#[test]
fn each_leg_agrees_on_options_of_its_own() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let (client, router, server) = (hosts.client(0), sandbox.netns(), hosts.server(0));
    client.sysctl("net.ipv4.tcp_ecn", "1");
    router.sysctl("net.ipv4.tcp_ecn", "2");
    server.sysctl("net.ipv4.tcp_ecn", "2");
    server.sysctl("net.ipv4.tcp_timestamps", "0");
    let _culvert = sandbox.culvert(&passing(&LAN[..1], ""));
    let app = hosts.app(&sandbox, 0);
    for address in hosts::server(0) {
        let agreed = |netns: &Netns, filter: &str| {
            let shown = netns.within(|| run("ss", &["-tionH", "state", "established", filter]));
            let words = shown.split_ascii_whitespace();
            let mut words: Vec<_> = words
                .filter(|word| matches!(*word, "ts" | "sack" | "ecn"))
                .map(ToOwned::to_owned)
                .collect();
            words.sort_unstable();
            (words, shown.contains("wscale:"))
        };
        let legs = || {
            let echo = server.within(|| Server::echo((address, 0)));
            let port = echo.address().port();
            let socket = app.tcp(echo.address());
            socket.connect(echo.address()).unwrap();
            socket.exchange(3, 100_000).unwrap();
            [
                agreed(client, &format!("dport = :{port}")),
                agreed(server, &format!("sport = :{port}")),
            ]
        };
        let both = |options: &[&str]| {
            (
                options.iter().map(ToString::to_string).collect::<Vec<_>>(),
                true,
            )
        };
        assert_eq!(legs(), [both(&["ecn", "sack", "ts"]), both(&["sack"])]);
        router.sysctl("net.ipv4.tcp_ecn", "1");
        assert_eq!(legs()[1], both(&["ecn", "sack"]));
        router.sysctl("net.ipv4.tcp_ecn", "2");
    }
}

#[test]
fn a_flood_of_syns_is_bounded_and_harms_nobody() {
    for family in [0, 1] {
        assert_bounded(family, "1");
    }
}

/// The kernel remembers no handshake at all, and only the listener can tell whose answers are right.
#[test]
fn a_flood_is_bounded_where_every_handshake_is_by_cookie() {
    for family in [0, 1] {
        assert_bounded(family, "2");
    }
}

/// Nobody waits for those who never answer: neither the clients that do, nor the memory of the kernel and the daemon.
fn assert_bounded(family: usize, cookies: &str) {
    const BACKLOG: usize = 256;
    const GROWN: u64 = 4 << 20;
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    router.sysctl("net.core.somaxconn", &BACKLOG.to_string());
    router.sysctl("net.ipv4.tcp_syncookies", cookies);
    let server = hosts::server(0)[family];
    let [flooded, free] =
        [1001, 1002].map(|port| hosts.server(0).within(|| Server::mirror((server, port))));
    let echo = hosts.server(0).within(|| Server::echo((server, 1001 + 2)));
    let culvert = sandbox.culvert_with(
        &Settings::daemon("workers = 1"),
        &passing(
            &LAN,
            "match = { port = [1001, 1003] }\non_relay_failure = \"refuse\"",
        ),
    );
    // What is answered goes back to where it came from, and ends there.
    let made_up = ["10.66.0.0/16", "fd66::/96"][family];
    router.ip(&format!(
        "route add {made_up} via {}",
        hosts::client(0)[family]
    ));
    let apps = [0, 1].map(|number| hosts.app(&sandbox, number));
    let open = apps[1].tcp(echo.address());
    open.connect(echo.address()).unwrap();
    let before = resident(culvert.pid());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            hosts.client(0).within(|| {
                for _ in 0..40 {
                    flood::syns(flooded.address(), 2_000);
                    if is_over.load(Relaxed) {
                        break;
                    }
                }
            });
        });
        for _ in 0..10 {
            for app in &apps {
                assert_eq!(app.probe(flooded.address()), Ok(Route::Relayed));
                assert_eq!(app.probe(free.address()), Ok(Route::Direct));
            }
            open.exchange(3, 100_000).unwrap();
        }
        is_over.store(true, Relaxed);
        flooding.join().unwrap();
    });
    assert!(culvert.counter("transit_relayed") > 2_000);
    let begun = router.within(|| run("ss", &["-tnH", "state", "syn-recv"]));
    let begun = begun.lines().count();
    assert!(begun <= 2 * (BACKLOG + 1), "{begun} handshakes");
    let grown = resident(culvert.pid()).saturating_sub(before);
    assert!(grown < GROWN, "{grown} bytes");
    assert_eq!(culvert.counter("failed_refused"), 0);
    for app in &apps {
        assert_eq!(app.probe(flooded.address()), Ok(Route::Relayed));
    }
}
