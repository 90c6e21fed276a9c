//! Connections that pass through where programs are filters of `tc`, as on kernels without tcx.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{collections::BTreeMap, process::Command, sync::Arc, thread, time::Duration};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    hosts::{self, Hosts, LAN, WAN},
    netns::Netns,
    peer::Server,
    process::{app_binary, output, run},
};
use nix::{errno::Errno, sys::signal::Signal};

fn by_filters() -> Settings {
    Settings::daemon("ingress = \"clsact\"")
}

fn through(interface: &str, more: &str) -> String {
    format!(
        "[[gateway]]\nname = \"{interface}\"\ninterface = \"{interface}\"\nvia = \"original\"\n{more}\n"
    )
}

/// What `tc` says of filters on the ingress of an interface.
fn filters(netns: &Netns, interface: &str) -> String {
    let arguments = format!("-s filter show dev {interface} ingress");
    netns.within(|| output(Command::new("tc").args(arguments.split(' '))))
}

/// Has a filter of another owner drop IPv4 packets to a port, and pass the others on.
fn drop_at(netns: &Netns, priority: u16, port: u16) {
    // Load the half word that is the port, compare, return `TC_ACT_SHOT` or `TC_ACT_UNSPEC`.
    let program = format!("4,40 0 0 36,21 0 1 {port},6 0 0 2,6 0 0 4294967295,");
    let filter = format!(
        "filter add dev {} ingress prio {priority} bpf da bytecode",
        LAN[0]
    );
    let arguments: Vec<_> = filter.split(' ').chain([&*program]).collect();
    netns.within(|| run("tc", &arguments));
}

fn assert_relays(sandbox: &Sandbox, hosts: &Hosts, culvert: &Culvert<'_>) {
    let app = hosts.app(sandbox, 0);
    for (index, server) in hosts::server(0).into_iter().enumerate() {
        let echo = hosts.server(0).within(|| Server::echo((server, 0)));
        let storm = Storm {
            addresses: vec![echo.address()],
            threads: 2,
            each: 3,
            length: 300_000,
        };
        assert_eq!(app.storm(&storm), BTreeMap::from([(0, 6)]));
        for record in culvert
            .await_records(6 * (index + 1))
            .iter()
            .skip(6 * index)
        {
            assert_eq!((record.up, record.down), (300_000, 300_000));
            assert_eq!(record.reason, "done", "{record:?}");
        }
    }
    assert_eq!(culvert.counter("transit_relayed"), 12);
}

#[test]
fn filters_do_what_links_do_and_are_gone_with_the_daemon() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let mut culvert = sandbox.culvert_with(&by_filters(), &through(LAN[0], ""));
    assert_relays(&sandbox, &hosts, &culvert);
    let shown = filters(sandbox.netns(), LAN[0]);
    for name in ["culvert-gateway-", "culvert-gateway_guard-"] {
        assert_eq!(shown.matches(name).count(), 1, "{shown}");
    }
    culvert.signal(Signal::SIGTERM);
    assert!(culvert.wait().success());
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}

/// One before ours and one behind. The queueing discipline that somebody else has made stays when we go.
fn filters_of_others_go_on(settings: &Settings) {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let [server, _] = hosts::server(0);
    let [before, between, after, free] =
        [(); 4].map(|()| hosts.server(0).within(|| Server::mirror((server, 0))));
    let others = [(1, &before), (67, &between), (50_000, &after)];
    router.tool("tc", &format!("qdisc add dev {} clsact", LAN[0]));
    for (priority, server) in &others[..2] {
        drop_at(router, *priority, server.address().port());
    }
    let mut culvert = sandbox.culvert_with(settings, &through(LAN[0], ""));
    drop_at(router, 50_000, after.address().port());
    let app = hosts.app(&sandbox, 0);
    assert_eq!(app.probe(free.address()), Ok(Route::Relayed));
    let waiting = others.map(|(priority, server)| {
        let socket = app.tcp(server.address());
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(server.address()), Err(Errno::EINPROGRESS));
        (priority, server, socket)
    });
    thread::sleep(Duration::from_millis(300));
    for (priority, server, socket) in waiting {
        assert_eq!(socket.peer(), Err(Errno::ENOTCONN), "{priority}");
        router.tool(
            "tc",
            &format!("filter del dev {} ingress prio {priority}", LAN[0]),
        );
        eventually("a connection that nobody drops", || {
            (socket.peer() == Ok(server.address())).then_some(())
        });
    }
    // A SYN that is sent again counts again.
    assert!(culvert.counter("transit_relayed") >= 4);
    culvert.signal(Signal::SIGTERM);
    assert!(culvert.wait().success());
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
    router.tool("tc", &format!("qdisc del dev {} clsact", LAN[0]));
}

#[test]
fn filters_of_others_before_and_after_ours_go_on() {
    filters_of_others_go_on(&by_filters());
}

#[test]
fn filters_of_others_go_on_behind_links() {
    filters_of_others_go_on(&Settings::default());
}

#[test]
fn after_a_kill_fail_modes_hold_until_filters_are_detached() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let [open, closed] = [0, 1].map(|_| hosts.server(0).within(|| Server::mirror((server, 0))));
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let port = |of: &Server| format!("match = {{ port = {} }}", of.address().port());
    let rules = format!(
        "{}{}",
        through(
            LAN[0],
            &format!("{}\non_relay_failure = \"refuse\"", port(&closed))
        ),
        through(LAN[0], "").replacen("lan0", "rest", 1),
    );
    let mut culvert = sandbox.culvert_with(&by_filters(), &rules);
    let app = hosts.app(&sandbox, 0);
    for address in [open.address(), closed.address()] {
        assert_eq!(app.probe(address), Ok(Route::Relayed));
    }
    let held = app.tcp(echo.address());
    held.connect(echo.address()).unwrap();
    held.assert_echo();
    culvert.kill();

    assert_eq!(held.receive_all(), Err(Errno::ECONNRESET));
    assert_eq!(app.probe(open.address()), Ok(Route::Direct));
    let waiting = app.tcp(closed.address());
    waiting.set_nonblocking(true);
    assert_eq!(waiting.connect(closed.address()), Err(Errno::EINPROGRESS));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(closed.clients().len(), 1);

    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    eventually("a connection after detach", || {
        (waiting.peer() == Ok(closed.address())).then_some(())
    });
    assert_eq!(app.probe(open.address()), Ok(Route::Direct));
}

#[test]
fn a_daemon_that_starts_takes_away_what_a_killed_one_has_left() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let rules = through(LAN[0], "on_relay_failure = \"refuse\"");
    let app = hosts.app(&sandbox, 0);
    sandbox.culvert_with(&by_filters(), &rules).kill();
    sandbox.culvert_with(&by_filters(), &rules).kill();
    let mut culvert = sandbox.culvert_with(&by_filters(), &rules);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let shown = filters(sandbox.netns(), LAN[0]);
    assert_eq!(shown.matches("culvert-gateway-").count(), 1, "{shown}");
    culvert.signal(Signal::SIGTERM);
    assert!(culvert.wait().success());
}

#[test]
fn a_takeover_loses_no_connection() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let echo = hosts.server(0).within(|| Server::echo((server, 0)));
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let rules = through(LAN[0], "on_relay_failure = \"refuse\"");
    let settings = Settings::daemon("ingress = \"clsact\"\ndrain_timeout = \"20s\"");
    let mut old = sandbox.culvert_with(&settings, &rules);
    let app = hosts.app(&sandbox, 0);
    let held = app.tcp(echo.address());
    held.connect(echo.address()).unwrap();
    held.assert_echo();
    let new = sandbox.culvert_with(
        &Settings {
            takeover: true,
            ..settings
        },
        &rules,
    );
    for _ in 0..20 {
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    }
    held.exchange(3, 1 << 20).unwrap();
    held.close();
    assert!(old.wait().success());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert!(new.is_running());
    let shown = filters(sandbox.netns(), LAN[0]);
    assert_eq!(shown.matches("culvert-gateway-").count(), 1, "{shown}");
}

#[test]
fn interfaces_may_vanish_and_come_back() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [server, _] = hosts::server(0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let culvert = sandbox.culvert_with(&by_filters(), &through("late", ""));
    let host = Arc::new(Netns::new());
    let late = App::start(&mut sandbox.command_elsewhere(&host, app_binary()));
    for _ in 0..2 {
        sandbox
            .netns()
            .link("late", "10.9.0.1/24", &host, "10.9.0.2/24");
        host.ip("route add default via 10.9.0.1");
        eventually("a connection that is relayed", || {
            (late.probe(mirror.address()) == Ok(Route::Relayed)).then_some(())
        });
        sandbox.netns().ip("link del late");
    }
    assert!(culvert.is_running());
}

/// The program for answers is a filter, too.
#[test]
fn servers_on_other_hosts_see_clients_by_filters() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let server = hosts::server(0)[0];
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let listen = hosts::toward_client(0)[0];
    let rules = format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{listen}:8000\"\nvia = \"{}\"\nkeep_source = true\n",
        mirror.address()
    );
    let culvert = sandbox.culvert_with(&by_filters(), &rules);
    let app = hosts.app(&sandbox, 0);
    let shown = filters(sandbox.netns(), WAN[0]);
    assert!(shown.contains("culvert-returns-"), "{shown}");
    let socket = app.tcp((listen, 8000).into());
    socket.connect((listen, 8000).into()).unwrap();
    eventually("a client at the server", || {
        let clients = mirror.clients();
        (clients.len() == 1).then(|| assert_eq!(clients[0].ip(), hosts::client(0)[0]))
    });
    socket.close();
    drop(culvert);
    assert_eq!(filters(sandbox.netns(), WAN[0]), "");
}
