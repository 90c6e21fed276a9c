//! What a gateway does beside relaying to where connections go: groups and names, reloads, ends and starts in the middle of it, and
//! ten thousand connections at a time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use culvert_tests::{
    Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    hello::hello,
    hosts::{self, Hosts, LAN, WAN},
    peer::{Crowd, Server},
    usage::{affordable, resident},
};
use nix::errno::Errno;

fn through(more: &str) -> String {
    format!("[[gateway]]\nname = \"lan\"\ninterface = [\"lan0\", \"lan1\"]\n{more}\n")
}

/// Nobody is at the address that clients connect to.
#[test]
fn connections_are_balanced_over_a_group_wherever_they_go() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    for family in [0, 1] {
        let servers: Vec<_> = [0, 1]
            .map(|number| {
                let address = hosts::server(number)[family];
                hosts.server(number).within(|| Server::echo((address, 0)))
            })
            .into();
        let endpoints: Vec<_> = servers
            .iter()
            .map(|server| server.address().to_string())
            .collect();
        let group =
            format!("[upstream.farm]\nendpoints = {endpoints:?}\nbalance = \"round-robin\"\n");
        let culvert = sandbox.culvert(&(group + &through("via = \"farm\"")));
        let nowhere: IpAddr = if family == 0 {
            "203.0.113.7".parse().unwrap()
        } else {
            "2001:db8:7::7".parse().unwrap()
        };
        // A way that leads nowhere is one, too.
        sandbox
            .netns()
            .ip(&format!("route add {nowhere} dev {}", WAN[0]));
        for number in [0, 1] {
            let storm = Storm {
                addresses: vec![SocketAddr::new(nowhere, 443)],
                threads: 2,
                each: 3,
                length: 20_000,
            };
            let app = hosts.app(&sandbox, number);
            assert_eq!(app.storm(&storm), BTreeMap::from([(0, 6)]));
        }
        for server in &servers {
            assert_eq!(server.clients().len(), 6);
        }
        let records = culvert.await_records(12);
        assert!(records.iter().all(|record| {
            record.upstream.as_deref() == Some("farm") && record.reason == "done"
        }));
    }
}

#[test]
fn names_lead_elsewhere_and_the_rest_where_it_goes() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    for family in [0, 1] {
        let echo = |number: usize| {
            let address = hosts::server(number)[family];
            hosts.server(number).within(|| Server::echo((address, 0)))
        };
        let (original, other) = (echo(0), echo(1));
        let culvert = sandbox.culvert(&through(&format!(
            "via = \"original\"\nnames = [\n  {{ sni = \"*.example\", via = \"{0}\" }},\n  \
             {{ host = \"web.example\", via = \"{0}\" }},\n  {{ sni = \"refused.test\", via = \"refuse\" }},\n]",
            other.address()
        )));
        let app = hosts.app(&sandbox, 0);
        let says = |bytes: &[u8]| {
            let socket = app.tcp(original.address());
            socket.connect(original.address()).unwrap();
            socket.send(bytes).unwrap();
            let heard = socket.receive(bytes.len());
            socket.close();
            heard.map(|heard| assert_eq!(heard, bytes))
        };
        let counts = || (original.clients().len(), other.clients().len());
        says(&hello("a.example")).unwrap();
        says(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").unwrap();
        assert_eq!(counts(), (0, 2));
        says(&hello("a.test")).unwrap();
        says(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n").unwrap();
        assert_eq!(counts(), (2, 2));
        assert_eq!(says(&hello("refused.test")), Err(Errno::ECONNRESET));
        assert_eq!(counts(), (2, 2));
        let records = culvert.await_records(5);
        assert!(records.iter().all(|record| record.role == "gateway"));
    }
}

/// What is open stays as it is.
#[test]
fn a_reload_is_for_new_connections() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let [first, second] = [0, 1].map(|number| hosts.app(&sandbox, number));
    let all = through("via = \"original\"");
    let culvert = sandbox.culvert(&all);
    let open: Vec<_> = [&first, &second]
        .map(|app| {
            let socket = app.tcp(echo.address());
            socket.connect(echo.address()).unwrap();
            socket.assert_echo();
            socket
        })
        .into();
    let becomes = |routes: [Result<Route, Errno>; 2]| {
        eventually(&format!("{routes:?}"), || {
            let found = [&first, &second].map(|app| app.probe(mirror.address()));
            (found == routes).then_some(())
        });
        for socket in &open {
            socket.exchange(5, 200_000).unwrap();
        }
    };
    becomes([Ok(Route::Relayed), Ok(Route::Relayed)]);
    let one = format!(
        "[[gateway]]\nname = \"one\"\ninterface = \"lan1\"\nmatch = {{ source = \"{}\" }}\nvia = \"original\"\n",
        hosts::client(1)[0]
    );
    culvert.reload(&one);
    becomes([Ok(Route::Direct), Ok(Route::Relayed)]);
    culvert.reload("");
    becomes([Ok(Route::Direct), Ok(Route::Direct)]);
    culvert.reload(&all);
    becomes([Ok(Route::Relayed), Ok(Route::Relayed)]);
    culvert.rewrite("[[gateway]]\nname = \"wrong\"\n");
    culvert.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("a reload that is refused", || {
        culvert.log().contains("not reloaded").then_some(())
    });
    becomes([Ok(Route::Relayed), Ok(Route::Relayed)]);
}

/// Killed and started again under load, several times: connections end whole or by an error, and in the end all are relayed.
#[test]
fn a_gateway_may_be_killed_and_started_again_under_load() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let apps = [0, 1].map(|number| hosts.app(&sandbox, number));
    let storm = Storm {
        addresses: vec![echo.address()],
        threads: 4,
        each: 60,
        length: 50_000,
    };
    let rules = through("via = \"original\"");
    thread::scope(|scope| {
        let storms: Vec<_> = apps
            .iter()
            .map(|app| scope.spawn(|| app.storm(&storm)))
            .collect();
        for _ in 0..3 {
            let mut culvert = sandbox.culvert(&rules);
            eventually("connections that are relayed", || {
                let is_over = storms.iter().all(thread::ScopedJoinHandle::is_finished);
                (is_over || culvert.counter("transit_relayed") > 5).then_some(())
            });
            culvert.kill();
            thread::sleep(Duration::from_millis(50));
        }
        let ends = [0, Errno::ECONNRESET as i32, Errno::EPIPE as i32];
        for storm in storms {
            let outcomes = storm.join().unwrap();
            assert!(
                outcomes.keys().all(|end| ends.contains(end)),
                "{outcomes:?}"
            );
            assert!(outcomes[&0] > 100, "{outcomes:?}");
        }
    });
    let culvert = sandbox.culvert(&rules);
    for app in &apps {
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    }
    assert!(culvert.is_running());
}

/// Routers that know each other by addresses of the link only.
#[test]
fn next_hops_may_have_addresses_of_the_link_only() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let far: IpAddr = "fd77::1".parse().unwrap();
    let near: IpAddr = "fd66::1".parse().unwrap();
    for (netns, device, own) in [
        (router, LAN[0], 1),
        (&**hosts.client(0), LAN[0], 2),
        (router, WAN[0], 1),
        (&**hosts.server(0), WAN[0], 2),
    ] {
        netns.ip(&format!("addr add fe80::{own}/64 dev {device} nodad"));
    }
    for (host, device, address) in [
        (hosts.client(0), LAN[0], near),
        (hosts.server(0), WAN[0], far),
    ] {
        host.add_address(address);
        host.ip(&format!(
            "-6 route replace default via fe80::1 dev {device}"
        ));
        router.ip(&format!("-6 route add {address} via fe80::2 dev {device}"));
    }
    let taken = hosts.server(0).within(|| Server::mirror((far, 1001)));
    let free = hosts.server(0).within(|| Server::mirror((far, 1002)));
    let echo = hosts.server(0).within(|| Server::echo((far, 1003)));
    let app = hosts.app(&sandbox, 0);
    let culvert = sandbox.culvert(&format!(
        "[router]\nfast_path = [\"lan0\", \"wan0\"]\n{}",
        through("match = { port = [1001, 1003] }\nvia = \"original\"\nkeep_source = true")
    ));
    for _ in 0..3 {
        assert_eq!(app.probe(free.address()), Ok(Route::Direct));
        // It sees the client's address, but another socket.
        let socket = app.tcp(taken.address());
        socket.bind(SocketAddr::new(near, 0)).unwrap();
        socket.connect(taken.address()).unwrap();
        socket.receive_all().unwrap();
        let socket = app.tcp(echo.address());
        socket.connect(echo.address()).unwrap();
        socket.exchange(7, 300_000).unwrap();
    }
    assert!(taken.clients().iter().all(|client| client.ip() == near));
    assert_eq!(culvert.counter("transit_relayed"), 6);
    assert!(culvert.counter("fast") >= 3 * 8);
}

/// Each has a listener of its own, by a hash of the addresses.
#[test]
fn workers_share_the_connections() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let culvert = sandbox.culvert_with(
        &Settings::daemon("workers = 4"),
        &through("via = \"original\""),
    );
    let app = hosts.app(&sandbox, 0);
    let switches = || threads(culvert.pid(), "relay-");
    let before = switches();
    assert_eq!(before.len(), 4);
    let storm = Storm {
        addresses: vec![echo.address()],
        threads: 4,
        each: 50,
        length: 1000,
    };
    assert_eq!(app.storm(&storm), BTreeMap::from([(0, 200)]));
    culvert.await_records(200);
    // Each connection takes some; without any a worker looks at the clock now and then.
    for (name, count) in switches() {
        assert!(count - before[&name] > 50, "{name}: {count} of {before:?}");
    }
}

/// Of a process, by their names: how often each thread that is called so has waited for something.
fn threads(pid: u32, called: &str) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")));
    let of = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    tasks
        .map(|status| status.unwrap())
        .map(|status| {
            let waits = of(&status, "voluntary_ctxt_switches:");
            (of(&status, "Name:"), waits.parse().unwrap())
        })
        .filter(|(name, _)| name.starts_with(called))
        .collect()
}

/// As on a machine with more cores than the hook has room for listeners.
#[test]
fn there_may_be_more_workers_than_places_for_them() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let culvert = sandbox.culvert_with(
        &Settings::daemon("workers = 260"),
        &through("via = \"original\""),
    );
    let app = hosts.app(&sandbox, 0);
    for _ in 0..20 {
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    }
    assert_eq!(culvert.counter("transit_relayed"), 20);
}

const ALL: u32 = 10_000;
/// Bytes that each connection sends and gets back.
const LENGTH: u64 = 4096;

#[test]
fn ten_thousand_connections_pass_through_and_every_byte_of_each() {
    // Files of the daemon beside those of connections, of which each relayed one takes two. What these do not allow is routed.
    let count = affordable(ALL, 256);
    // A connection that waits takes no buffers.
    let most = u64::from(count) * 8192 + (32 << 20);
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let crowd = hosts.server(0).within(|| Crowd::start((server, 0)));
    let others = hosts.server(0).within(|| Crowd::start((server, 0)));
    let port = crowd.address().port();
    let culvert = sandbox.culvert_with(
        &Settings::daemon("workers = 1"),
        &through(&format!(
            "match = {{ port = {port} }}\nvia = \"original\"\non_relay_failure = \"refuse\""
        )),
    );
    let before = resident(culvert.pid());
    let app = hosts.app(&sandbox, 0);
    app.hold(crowd.address(), count).unwrap();
    app.hold(others.address(), ALL - count).unwrap();
    eventually("all connections to be there", || {
        (culvert.status()["connections"]["live"] == count).then_some(())
    });
    assert_eq!(app.exchange_held(LENGTH), Ok(()));
    let grown = resident(culvert.pid()).saturating_sub(before);
    assert!(grown < most, "{grown} bytes for {count} connections");
    assert_eq!(crowd.accepted(), count as usize);
    assert_eq!(others.accepted(), (ALL - count) as usize);
    // A SYN that finds no room comes again.
    assert!(culvert.counter("transit_relayed") >= u64::from(count));
    drop(app);
    for record in culvert.await_records(count as usize) {
        assert_eq!((record.up, record.down), (LENGTH, LENGTH), "{record:?}");
        assert_eq!(&*record.reason, "done");
    }
}
