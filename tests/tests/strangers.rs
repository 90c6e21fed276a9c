//! Programs of other owners on our hooks, before and after ours: each does what it did.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::SocketAddr;

use culvert_tests::{
    App, Sandbox,
    app::Route,
    daemon::Settings,
    datagrams::Datagrams,
    hosts::{self, Hosts, LAN},
    peer::Server,
    rules::ALL,
    sandbox::SERVER_V4,
    stranger::Stranger,
};
use nix::errno::Errno;

fn connect(app: &App, destination: SocketAddr) -> Result<(), Errno> {
    let socket = app.tcp(destination);
    let connected = socket.connect(destination);
    socket.close();
    connected
}

/// The next program of a cgroup sees the address that the one before it has left.
#[test]
fn on_the_hook_of_connect() {
    let sandbox = Sandbox::new();
    let [mirror, refused] = [(); 2].map(|()| sandbox.within(|| Server::mirror((SERVER_V4, 0))));
    let _before = Stranger::refuses_connects(sandbox.app_cgroup(), refused.address().port());
    // Not that of the daemon, whose own connections are none of theirs.
    let settings = Settings {
        cgroup: Some(sandbox.app_cgroup().name().to_owned()),
        ..Settings::default()
    };
    let mut culvert = sandbox.culvert_with(&settings, ALL);
    let app = sandbox.app();
    assert_eq!(connect(&app, refused.address()), Err(Errno::EPERM));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));

    // Where it was bound for is not seen after ours, only that it goes to the relay; who refuses that is obeyed.
    let after = Stranger::refuses_connects(sandbox.app_cgroup(), mirror.address().port());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let relay = Stranger::refuses_connects(sandbox.app_cgroup(), culvert.listener_v4().port());
    assert_eq!(connect(&app, mirror.address()), Err(Errno::EPERM));
    drop(relay);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));

    assert!(culvert.stop().success());
    assert_eq!(connect(&app, refused.address()), Err(Errno::EPERM));
    assert_eq!(connect(&app, mirror.address()), Err(Errno::EPERM));
    drop(after);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
}

/// As one does for the addresses of services of a container network: connections of the daemon's own end where a rule takes what
/// arrives, and must not come back to it.
#[test]
fn on_the_daemons_own_connections() {
    let sandbox = Sandbox::new();
    let service = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let taken = service.address();
    // Nobody listens there.
    let elsewhere = SocketAddr::new(taken.ip(), 1);
    let _detour =
        Stranger::redirects_connects(sandbox.daemon_cgroup(), elsewhere.port(), taken.port());
    let rule =
        format!("[[reverse]]\nname = \"site\"\nlisten = \"{taken}\"\nvia = \"{elsewhere}\"\n");
    let _culvert = sandbox.culvert(&rule);
    assert_eq!(sandbox.app().probe(taken), Ok(Route::Relayed));
}

/// All are asked, and one that has chosen a socket wins over those that drop (`BPF_PROG_SK_LOOKUP_RUN_ARRAY` in
/// `include/linux/filter.h`).
#[test]
fn on_the_hook_of_arrivals() {
    let sandbox = Sandbox::new();
    let services = [(); 4].map(|()| sandbox.within(|| Server::mirror((SERVER_V4, 0))));
    let [taken, dropped_before, dropped_after, other] = services.each_ref().map(Server::address);
    let drop_at = |address| Stranger::drops_arrivals(sandbox.netns(), address);
    let _before = drop_at(dropped_before);
    let rule = format!("[[reverse]]\nname = \"site\"\nlisten = \"{taken}\"\nvia = \"{other}\"\n");
    let mut culvert = sandbox.culvert(&rule);
    let _after = [dropped_after, taken].map(drop_at);
    let app = sandbox.app();
    for refused in [dropped_before, dropped_after] {
        assert_eq!(connect(&app, refused), Err(Errno::ECONNREFUSED));
    }
    assert_eq!(app.probe(taken), Ok(Route::Relayed));
    assert_eq!(app.probe(other), Ok(Route::Direct));

    assert!(culvert.stop().success());
    for refused in [dropped_before, dropped_after, taken] {
        assert_eq!(connect(&app, refused), Err(Errno::ECONNREFUSED));
    }
    assert_eq!(app.probe(other), Ok(Route::Direct));
}

/// Each says for itself that the next one decides, or drops.
#[test]
fn on_the_ingress_of_interfaces() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let [client, server] = [hosts::client(0)[0], hosts::server(0)[0]];
    let datagrams = Datagrams::between(&hosts, client, server);
    // Headers of Ethernet, IPv4 and UDP.
    let drop_those = |payload: u32| Stranger::drops_packets(sandbox.netns(), LAN[0], 42 + payload);
    let _before = drop_those(100);
    let rule = format!(
        "[[gateway]]\nname = \"lan\"\ninterface = \"{}\"\nvia = \"original\"\n",
        LAN[0]
    );
    let mut culvert = sandbox.culvert(&rule);
    let _after = drop_those(101);
    let app = hosts.app(&sandbox, 0);
    let mirror = hosts.server(0).within(|| Server::mirror((server, 0)));
    let assert_both_drop = || {
        datagrams.send(100);
        datagrams.send(101);
        datagrams.assert_arrives(102);
    };
    assert_both_drop();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));

    assert!(culvert.stop().success());
    assert_both_drop();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
}
