//! Packets that pass through and that no rule selects: which the fast path sends on, which it leaves to the kernel, and when there is
//! none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use culvert_tests::{
    Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    datagrams::{Datagrams, set},
    eventually, frames,
    hosts::{self, Hosts},
    kernel::version,
    netns::Netns,
    peer::Server,
    process::run,
};
use nix::{errno::Errno, net::if_::if_nametoindex};
use socket2::SockRef;

const ROUTER: &str = "[router]\nfast_path = [\"lan0\", \"wan0\"]\n";

#[test]
fn what_passes_between_named_interfaces_is_sent_on() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(ROUTER);
    let app = hosts.app(&sandbox, 0);
    for server in hosts::server(0) {
        let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
        assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let storm = Storm {
            addresses: vec![echo.address()],
            threads: 4,
            each: 3,
            length: 1_000_000,
        };
        let sent_on = culvert.growth("fast", || {
            assert_eq!(app.storm(&storm), BTreeMap::from([(0, 12)]));
        });
        // Segments are large on the way: a packet may be 64 KiB.
        assert!(sent_on >= 12 * 2 * 15, "{sent_on}");
    }
    for datagrams in Datagrams::both(&hosts) {
        let sent_on = culvert.growth("fast", || {
            datagrams.set_lifetime(17);
            assert_eq!(datagrams.lifetime(), 16);
            datagrams.set_lifetime(2);
            assert_eq!(datagrams.lifetime(), 1);
        });
        assert_eq!(sent_on, 2);
    }
    let status = culvert.status();
    assert_eq!(status["hooks"]["fast"], culvert.counter("fast"));
}

#[test]
fn the_kernel_answers_where_lifetimes_end_and_packets_are_too_large() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    sandbox.netns().ip("link set wan0 mtu 1400");
    let culvert = sandbox.culvert(ROUTER);
    for datagrams in Datagrams::both(&hosts) {
        datagrams.assert_arrives(10);
        datagrams.hear_errors();
        datagrams.set_lifetime(1);
        let left = culvert.growth("slow_expiring", || {
            datagrams.send(10);
            assert_eq!(datagrams.error(), Errno::EHOSTUNREACH);
        });
        assert_eq!(left, 1);
        datagrams.set_lifetime(64);
        let (level, option) = if datagrams.is_v4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        set(&datagrams.client, level, option, &2_i32.to_ne_bytes());
        let left = culvert.growth("slow_too_big", || {
            datagrams.send(1450 - 48);
            assert_eq!(datagrams.error(), Errno::EMSGSIZE);
        });
        assert_eq!(left, 1);
        let header = if datagrams.is_v4() { 28 } else { 48 };
        let sent_on = culvert.growth("fast", || datagrams.assert_arrives(1400 - header));
        assert_eq!(sent_on, 1);
    }
    // Segments that are cut on their way out count by what they are cut to.
    let app = hosts.app(&sandbox, 0);
    for server in hosts::server(0) {
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        socket.exchange(3, 1 << 20).unwrap();
        socket.close();
    }
}

/// A route may let less through than its interface.
#[test]
fn the_size_that_a_route_lets_through_counts() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let server = hosts::server(0)[0];
    let router = sandbox.netns();
    router.ip(&format!("route add {server} dev wan0 mtu lock 1000"));
    let culvert = sandbox.culvert(ROUTER);
    let [datagrams, _] = Datagrams::both(&hosts);
    let (level, option) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
    // The router may cut it.
    set(&datagrams.client, level, option, &0_i32.to_ne_bytes());
    datagrams.assert_arrives(10);
    let left = culvert.growth("slow_too_big", || datagrams.assert_arrives(1100));
    assert_eq!(left, 1);
}

#[test]
fn what_is_unusual_is_left_to_the_kernel() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(ROUTER);
    let [v4, v6] = Datagrams::both(&hosts);
    for datagrams in [&v4, &v6] {
        datagrams.assert_arrives(10);
        // More than fits into one packet.
        let left = culvert.growth("slow_options", || datagrams.assert_arrives(4000));
        assert_eq!(left, 3);
    }
    let no_operation = [1_u8; 4];
    set(
        &v4.client,
        libc::IPPROTO_IP,
        libc::IP_OPTIONS,
        &no_operation,
    );
    let left = culvert.growth("slow_options", || v4.assert_arrives(10));
    assert_eq!(left, 1);
    set(&v4.client, libc::IPPROTO_IP, libc::IP_OPTIONS, &[]);
    // Padding, and nothing else, in a header of 8 bytes.
    let options = [0_u8, 0, 1, 4, 0, 0, 0, 0];
    set(&v6.client, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &options);
    let left = culvert.growth("slow_options", || v6.assert_arrives(10));
    assert_eq!(left, 1);
}

#[test]
fn only_what_goes_from_one_named_interface_to_another_is_sent_on() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(ROUTER);
    let [first, second] = [0, 1].map(|number| hosts.app(&sandbox, number));
    let before = culvert.counter("fast");
    for address in hosts::server(1) {
        let mirror = hosts.server(1).within(|| Server::mirror((address, 0)));
        let left = culvert.growth("slow_elsewhere", || {
            assert_eq!(first.probe(mirror.address()), Ok(Route::Direct));
        });
        // Answers come in by an interface that is not named.
        assert!(left >= 3, "{left}");
    }
    for address in hosts::toward_server(0) {
        let mirror = sandbox.within(|| Server::mirror((address, 0)));
        let left = culvert.growth("slow_not_forwarded", || {
            assert_eq!(first.probe(mirror.address()), Ok(Route::Direct));
        });
        assert!(left >= 4, "{left}");
    }
    assert_eq!(culvert.counter("fast"), before);
    // By an interface that is not named; what is answered comes by one that is.
    for address in hosts::server(0) {
        let mirror = hosts.server(0).within(|| Server::mirror((address, 0)));
        assert_eq!(second.probe(mirror.address()), Ok(Route::Direct));
    }
    assert_eq!(culvert.counter("fast"), before);
}

#[test]
fn routes_that_lead_nowhere_and_unknown_neighbours_are_the_kernels() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert(ROUTER);
    for (datagrams, server) in Datagrams::both(&hosts).into_iter().zip(hosts::server(0)) {
        let family = if datagrams.is_v4() { "-4" } else { "-6" };
        // The kernel asks for it with the first packet.
        let left = culvert.growth("slow_neighbour", || {
            router.ip(&format!("{family} neigh flush dev wan0"));
            datagrams.assert_arrives(10);
        });
        assert_eq!(left, 1);
        let sent_on = culvert.growth("fast", || datagrams.assert_arrives(10));
        assert_eq!(sent_on, 1);
        datagrams.hear_errors();
        router.ip(&format!("{family} route add unreachable {server}"));
        let left = culvert.growth("slow_unreachable", || {
            datagrams.send(10);
            let expected = if datagrams.is_v4() {
                Errno::EHOSTUNREACH
            } else {
                Errno::ENETUNREACH
            };
            assert_eq!(datagrams.error(), expected);
        });
        assert_eq!(left, 1);
        router.ip(&format!("{family} route del unreachable {server}"));
    }
}

/// What was looked up for a packet is remembered for others that ask the same, so another route counts a moment later.
#[test]
fn a_route_that_changes_is_taken_in_a_moment() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert(ROUTER);
    for (datagrams, server) in Datagrams::both(&hosts).into_iter().zip(hosts::server(0)) {
        let family = if datagrams.is_v4() { "-4" } else { "-6" };
        datagrams.assert_arrives(10);
        let sent_on = culvert.growth("fast", || {
            (0..100).for_each(|_| datagrams.assert_arrives(10));
        });
        assert_eq!(sent_on, 100);
        router.ip(&format!("{family} route add blackhole {server}"));
        eventually("a packet into the black hole", || {
            let dropped = culvert.growth("slow_unreachable", || datagrams.send(10));
            (dropped == 1).then_some(())
        });
        router.ip(&format!("{family} route del blackhole {server}"));
        let sent_on = culvert.growth("fast", || datagrams.assert_arrives(10));
        assert_eq!(sent_on, 1, "no refusal is remembered");
    }
}

/// The client has an address whose answers would go elsewhere, and one that is the router's.
#[test]
fn what_would_not_be_answered_this_way_is_the_kernels() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let client = hosts.client(0);
    let elsewhere = Ipv4Addr::new(10, 2, 1, 77);
    let [stolen, _] = hosts::toward_server(1);
    client.add_address(elsewhere.into());
    client.add_address(stolen);
    let [server, _] = hosts::server(0);
    let culvert = sandbox.culvert(ROUTER);
    let [ordinary, _] = Datagrams::both(&hosts);
    ordinary.assert_arrives(10);
    let strange = Datagrams::between(&hosts, elsewhere.into(), server);
    let sent_on = culvert.growth("fast", || strange.assert_arrives(10));
    assert_eq!(sent_on, 1);
    let thief = Datagrams::between(&hosts, stolen, server);
    let left = culvert.growth("slow_source", || {
        thief.send(10);
        ordinary.assert_arrives(10);
    });
    assert_eq!(left, 1);

    sandbox.netns().sysctl("net.ipv4.conf.lan0.rp_filter", "1");
    eventually("a packet that is left to the kernel", || {
        let left = culvert.growth("slow_source", || {
            strange.send(10);
            ordinary.assert_arrives(10);
        });
        (left == 1).then_some(())
    });
    let sent_on = culvert.growth("fast", || ordinary.assert_arrives(10));
    assert_eq!(sent_on, 1);

    // Where any way will do, there must be one.
    sandbox.netns().sysctl("net.ipv4.conf.lan0.rp_filter", "2");
    let nowhere = Ipv4Addr::new(172, 30, 0, 1);
    client.add_address(nowhere.into());
    let lost = Datagrams::between(&hosts, nowhere.into(), server);
    eventually("a packet that has a way back", || {
        let sent_on = culvert.growth("fast", || strange.assert_arrives(10));
        (sent_on == 1).then_some(())
    });
    let left = culvert.growth("slow_source", || {
        lost.send(10);
        ordinary.assert_arrives(10);
    });
    assert_eq!(left, 1);
    sandbox.netns().sysctl("net.ipv4.conf.lan0.rp_filter", "0");
    eventually("a packet that nobody asks about", || {
        let sent_on = culvert.growth("fast", || {
            lost.send(10);
            ordinary.assert_arrives(10);
        });
        (sent_on == 2).then_some(())
    });
}

/// Nobody tells the router. It finds out by asking the neighbour now and then, which is up to the kernel.
#[test]
fn a_neighbour_with_another_hardware_address_is_found() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    for family in ["ipv4", "ipv6"] {
        for (name, value) in [
            ("base_reachable_time_ms", "500"),
            ("delay_first_probe_time", "1"),
        ] {
            router.sysctl(&format!("net.{family}.neigh.wan0.{name}"), value);
        }
    }
    let culvert = sandbox.culvert(ROUTER);
    let both = Datagrams::both(&hosts);
    for datagrams in &both {
        datagrams.assert_arrives(10);
        let sent_on = culvert.growth("fast", || datagrams.assert_arrives(10));
        assert_eq!(sent_on, 1);
    }
    let neighbours = || {
        let known = router.within(|| run("ip", &["neigh", "show", "dev", "wan0"]));
        known.matches("02:00:00:00:00:77").count()
    };
    hosts
        .server(0)
        .ip("link set wan0 address 02:00:00:00:00:77");
    for datagrams in &both {
        datagrams
            .server
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        eventually("a packet that arrives", || {
            datagrams.send(10);
            datagrams.server.recv(&mut [0; 16]).ok()
        });
    }
    assert!(neighbours() >= 2);
}

/// Also where the rule for it comes after the fast path.
#[test]
fn what_a_rule_selects_is_relayed_before() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let app = hosts.app(&sandbox, 0);
    let culvert = sandbox.culvert(ROUTER);
    let rule = "[[gateway]]\nname = \"some\"\ninterface = \"lan0\"\nmatch = { port = 1001 }\nvia = \"original\"\n";
    for server in hosts::server(0) {
        let [taken, free] =
            [1001, 1002].map(|port| hosts.server(0).within(|| Server::mirror((server, port))));
        assert_eq!(app.probe(taken.address()), Ok(Route::Direct));
        culvert.reload(&format!("{rule}{ROUTER}"));
        eventually("a connection that is relayed", || {
            (app.probe(taken.address()) == Ok(Route::Relayed)).then_some(())
        });
        let sent_on = culvert.growth("fast", || {
            assert_eq!(app.probe(free.address()), Ok(Route::Direct));
        });
        assert!(sent_on >= 8, "{sent_on}");
        culvert.reload(ROUTER);
        eventually("a connection that is routed", || {
            (app.probe(taken.address()) == Ok(Route::Direct)).then_some(())
        });
    }
}

/// How many packets the kernel itself has forwarded.
fn forwarded(router: &Netns) -> u64 {
    // Of the thread: those of the process are of another network namespace.
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        router.within(|| fs::read_to_string(&path).unwrap())
    };
    let v4 = read("snmp");
    // The names, and below them the numbers.
    let mut lines = v4.lines().filter(|line| line.starts_with("Ip: "));
    let [names, numbers] = [(); 2].map(|()| lines.next().unwrap().split(' '));
    let (_, v4) = names
        .zip(numbers)
        .find(|(name, _)| *name == "ForwDatagrams")
        .unwrap();
    let v6 = read("snmp6");
    let v6 = v6
        .lines()
        .find(|line| line.starts_with("Ip6OutForwDatagrams"));
    let v6 = v6.and_then(|line| line.split_ascii_whitespace().nth(1));
    [v4, v6.unwrap()]
        .map(|number| number.parse::<u64>().unwrap())
        .iter()
        .sum()
}

#[test]
fn after_a_kill_the_kernel_routes() {
    for settings in [
        Settings::default(),
        Settings::daemon("ingress = \"clsact\"\nheartbeat_timeout = \"500ms\""),
    ] {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let by_filters = !settings.daemon.is_empty() || version() < (6, 6);
        let mut culvert = sandbox.culvert_with(&settings, &format!("{ROUTER}force = true\n"));
        let both = Datagrams::both(&hosts);
        for datagrams in &both {
            datagrams.assert_arrives(10);
            let before = forwarded(sandbox.netns());
            let sent_on = culvert.growth("fast", || datagrams.assert_arrives(10));
            assert_eq!((sent_on, forwarded(sandbox.netns()) - before), (1, 0));
        }
        culvert.kill();
        for datagrams in &both {
            eventually("a packet that the kernel routes", || {
                let before = forwarded(sandbox.netns());
                datagrams.assert_arrives(10);
                (forwarded(sandbox.netns()) == before + 1).then_some(())
            });
        }
        let left = if by_filters {
            "removed what a killed daemon had left in force\n"
        } else {
            "nothing was left in force\n"
        };
        assert_eq!(sandbox.detach(), left);
    }
}

#[test]
fn named_interfaces_may_appear_and_vanish() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert("[router]\nfast_path = [\"late\", \"wan0\"]\n");
    let [server, _] = hosts::server(0);
    for _ in 0..2 {
        let host = Netns::new();
        router.link("late", "10.9.0.1/24", &host, "10.9.0.2/24");
        host.ip("route add default via 10.9.0.1");
        let client = host.within(|| UdpSocket::bind("10.9.0.2:0").unwrap());
        let far = hosts
            .server(0)
            .within(|| UdpSocket::bind((server, 0)).unwrap());
        client.connect(far.local_addr().unwrap()).unwrap();
        eventually("a packet that is sent on", || {
            let sent_on = culvert.growth("fast", || {
                client.send(b"here").unwrap();
                let (_, from): (_, SocketAddr) = far.recv_from(&mut [0; 8]).unwrap();
                assert_eq!(from, client.local_addr().unwrap());
            });
            (sent_on == 1).then_some(())
        });
        router.ip("link del late");
    }
    assert!(culvert.is_running());
}

/// Packets to many, by an interface that the program is on: the router gets them itself, and nobody else does.
#[test]
fn what_is_for_many_is_the_kernels() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert(ROUTER);
    let client = hosts.client(0);
    let listening = sandbox.within(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    let listening_v6 = sandbox.within(|| UdpSocket::bind("[::]:4001").unwrap());
    let group: Ipv4Addr = "239.1.2.3".parse().unwrap();
    let group_v6: Ipv6Addr = "ff0e::77".parse().unwrap();
    let IpAddr::V4(own) = hosts::toward_client(0)[0] else {
        panic!("the first address is one of IPv4");
    };
    listening.join_multicast_v4(&group, &own).unwrap();
    let number = |netns: &Netns| netns.within(|| if_nametoindex("lan0").unwrap());
    listening_v6
        .join_multicast_v6(&group_v6, number(router))
        .unwrap();
    for socket in [&listening, &listening_v6] {
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
    }
    let from = client.within(|| UdpSocket::bind((hosts::client(0)[0], 0)).unwrap());
    from.set_broadcast(true).unwrap();
    from.set_multicast_ttl_v4(8).unwrap();
    let from_v6 = client.within(|| UdpSocket::bind((hosts::client(0)[1], 0)).unwrap());
    SockRef::from(&from_v6).set_multicast_hops_v6(8).unwrap();
    SockRef::from(&from_v6)
        .set_multicast_if_v6(number(client))
        .unwrap();
    client.ip("route add 239.0.0.0/8 dev lan0");
    let hears = |from: &UdpSocket, to: SocketAddr, by: &UdpSocket, counter: &str| {
        let before = culvert.counter("fast");
        // Neighbours ask for each other by what is for many, too.
        let left = culvert.growth(counter, || {
            from.send_to(b"all", to).unwrap();
            by.recv(&mut [0; 8]).unwrap();
        });
        assert!(left >= 1, "{to}");
        assert_eq!(culvert.counter("fast"), before, "{to}");
    };
    // Of the link, and of the network of the client, whose addresses those of the frames are.
    for to in [group, Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 1, 0, 255)] {
        hears(&from, (to, 4000).into(), &listening, "slow_other");
    }
    hears(
        &from_v6,
        (group_v6, 4001).into(),
        &listening_v6,
        "slow_other",
    );
    // Of the network of the server, which the client takes for a host.
    let far = Ipv4Addr::new(10, 2, 0, 255);
    let before = culvert.counter("fast");
    let left = culvert.growth("slow_not_forwarded", || {
        from.send_to(b"all", (far, 4000)).unwrap();
        listening.recv(&mut [0; 8]).unwrap();
    });
    assert_eq!((left, culvert.counter("fast") - before), (1, 0));
}

/// What is not IP, or not as long as it says, or of no version that there is.
#[test]
fn what_the_program_cannot_read_is_the_kernels() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let culvert = sandbox.culvert(ROUTER);
    for datagrams in Datagrams::both(&hosts) {
        datagrams.assert_arrives(10);
        let sent_on = culvert.growth("fast", || datagrams.assert_arrives(10));
        assert_eq!(sent_on, 1);
    }
    let hardware = router.hardware("lan0");
    let [from, from_v6] = hosts::client(0).map(|address| SocketAddr::new(address, 5000));
    let [to, to_v6] = hosts::server(0).map(|address| SocketAddr::new(address, 1001));
    let whole = frames::v4(from.ip(), to.ip(), &frames::syn(from, to, 60));
    let mut strange = frames::v6(
        from_v6.ip(),
        to_v6.ip(),
        &[],
        &frames::syn(from_v6, to_v6, 20),
    );
    strange[0] = 0x50;
    let frame = |kind: [u8; 2], packet: &[u8]| [&kind, packet].concat();
    for rest in [
        // For experiments.
        frame([0x88, 0xb5], &[0; 60]),
        frame([8, 0], &whole[..60]),
        frame([0x86, 0xdd], &strange),
    ] {
        let sent_on = culvert.growth("fast", || {
            let before = culvert.counter("slow_other");
            hosts
                .client(0)
                .within(|| frames::send_frame("lan0", hardware, &rest));
            eventually("a packet that is left alone", || {
                (culvert.counter("slow_other") > before).then_some(())
            });
        });
        assert_eq!(sent_on, 0);
    }
    // Whole, it is sent on.
    let sent_on = culvert.growth("fast", || {
        let rest = frame([8, 0], &whole);
        let before = culvert.counter("fast");
        hosts
            .client(0)
            .within(|| frames::send_frame("lan0", hardware, &rest));
        eventually("a packet that is sent on", || {
            (culvert.counter("fast") > before).then_some(())
        });
    });
    // The server answers it by a reset.
    assert!(sent_on >= 1);
}
