//! What becomes of connections that pass through when the daemon is killed, hangs or ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    Load, Sandbox,
    app::Route,
    daemon::Settings,
    eventually,
    hosts::{self, Hosts, LAN, Witness, drop_resets},
    load::{assert_flawless, assert_flawless_before, begun_after},
    peer::Server,
};
use nix::errno::Errno;

/// Takes what goes to a port, with a fail mode.
fn through(of: &[(SocketAddr, &str)]) -> String {
    let rule = |(index, (address, mode)): (usize, &(SocketAddr, &str))| {
        format!(
            "[[gateway]]\nname = \"rule-{index}\"\ninterface = \"{}\"\nmatch = {{ port = {} }}\nvia = \"original\"\non_relay_failure = \"{mode}\"\n",
            LAN[0],
            address.port()
        )
    };
    of.iter().enumerate().map(rule).collect()
}

#[test]
fn after_a_kill_every_new_connection_is_routed() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let echo = |address: &IpAddr| hosts.server(0).within(|| Server::echo((*address, 0)));
    let echoes: Vec<_> = hosts::server_here(0).iter().map(echo).collect();
    let mirror = hosts
        .server(0)
        .within(|| Server::mirror((hosts::server(0)[0], 0)));
    let addresses: Vec<_> = echoes.iter().map(Server::address).collect();
    let all = addresses.iter().copied().chain([mirror.address()]);
    let all: Vec<_> = all.map(|address| (address, "direct")).collect();
    let mut culvert = sandbox.culvert(&through(&all));
    let app = hosts.app(&sandbox, 0);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let open = app.tcp(addresses[0]);
    open.connect(addresses[0]).unwrap();
    open.assert_echo();
    let load = Load::under_way(hosts.app(&sandbox, 0), &addresses);

    let before = Instant::now();
    culvert.kill();
    let dead = Instant::now();

    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    assert_eq!(open.receive_all(), Err(Errno::ECONNRESET));
    load.await_rounds(5);
    let rounds = load.finish();
    assert_flawless_before(&rounds, before);
    assert_flawless(begun_after(&rounds, dead));
    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
}

/// The client does not hear that its connection was reset, and goes on sending.
#[test]
fn what_was_relayed_is_never_routed_on_after_a_kill() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let address = hosts::server(0)[0];
    let echo = hosts.server(0).within(|| Server::echo((address, 0)));
    let mut culvert = sandbox.culvert(&through(&[(echo.address(), "direct")]));
    let app = hosts.app(&sandbox, 0);
    let socket = app.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    socket.assert_echo();
    let client = socket.local().unwrap();
    let witness = Witness::of(hosts.server(0), client, echo.address().port());
    drop_resets(hosts.client(0));
    culvert.kill();

    socket.send(b"after the end").unwrap();
    // What is sent again comes past, too.
    thread::sleep(Duration::from_millis(700));
    assert_eq!(witness.packets(), 0);
    // Others are none of the guard's business.
    let other = app.tcp(echo.address());
    other.connect(echo.address()).unwrap();
    other.assert_echo();
    // Without the guard the client's packets go on, which is what it is for.
    sandbox.detach();
    eventually("packets of the connection at the server", || {
        (witness.packets() > 0).then_some(())
    });
}

/// What is remembered of a connection ends with the next one of the same addresses.
#[test]
fn after_a_kill_a_source_port_can_be_used_again() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let address = hosts::server(0)[1];
    let echo = hosts.server(0).within(|| Server::echo((address, 0)));
    let mut culvert = sandbox.culvert(&through(&[(echo.address(), "direct")]));
    let app = hosts.app(&sandbox, 0);
    let socket = app.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    socket.assert_echo();
    let client = socket.local().unwrap();
    culvert.kill();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    socket.close();
    let again = app.tcp(echo.address());
    again.bind(client).unwrap();
    again.connect(echo.address()).unwrap();
    again.exchange(5, 1 << 20).unwrap();
    assert_eq!(again.local(), Ok(client));
    sandbox.detach();
}

#[test]
fn after_a_kill_rules_that_refuse_let_nothing_pass_until_detached() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let mirror = |address: &IpAddr| hosts.server(0).within(|| Server::mirror((*address, 0)));
    let servers: Vec<_> = hosts::server_here(0).iter().map(mirror).collect();
    let free = mirror(&hosts::server(0)[0]);
    let refused: Vec<_> = servers
        .iter()
        .map(|server| (server.address(), "refuse"))
        .collect();
    let mut culvert = sandbox.culvert(&through(&refused));
    let app = hosts.app(&sandbox, 0);
    for (address, _) in &refused {
        assert_eq!(app.probe(*address), Ok(Route::Relayed));
    }
    let served = || -> Vec<_> { servers.iter().map(|it| it.clients().len()).collect() };
    let before = served();

    culvert.kill();

    let connect = |(address, _): &(SocketAddr, _)| {
        let socket = app.tcp(*address);
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(*address), Err(Errno::EINPROGRESS));
        (socket, *address)
    };
    let waiting: Vec<_> = refused.iter().map(connect).collect();
    assert_eq!(app.probe(free.address()), Ok(Route::Direct));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(served(), before);
    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    // Their SYNs are sent again, and pass.
    for (socket, address) in &waiting {
        eventually("a connection after detach", || {
            (socket.peer() == Ok(*address)).then_some(())
        });
    }
}

#[test]
fn a_hung_relay_counts_as_failed_and_goes_on_with_what_it_has() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let address = hosts::server(0)[0];
    let [open, closed] = [0, 1].map(|_| hosts.server(0).within(|| Server::mirror((address, 0))));
    let echo = hosts.server(0).within(|| Server::echo((address, 0)));
    let settings = Settings::daemon("heartbeat_timeout = \"500ms\"");
    let culvert = sandbox.culvert_with(
        &settings,
        &through(&[
            (open.address(), "direct"),
            (closed.address(), "refuse"),
            (echo.address(), "direct"),
        ]),
    );
    let app = hosts.app(&sandbox, 0);
    let held = app.tcp(echo.address());
    held.connect(echo.address()).unwrap();
    held.assert_echo();
    let witness = Witness::of(
        hosts.server(0),
        held.local().unwrap(),
        echo.address().port(),
    );

    culvert.freeze();
    eventually("a heartbeat that is too old", || {
        (culvert.maps().heartbeat_age() > TIMEOUT).then_some(())
    });
    assert_eq!(app.probe(open.address()), Ok(Route::Direct));
    let refused = app.tcp(closed.address());
    refused.set_nonblocking(true);
    assert_eq!(refused.connect(closed.address()), Err(Errno::EINPROGRESS));
    held.send(b"while it hangs").unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(closed.clients(), []);
    assert_eq!(witness.packets(), 0);

    culvert.thaw();
    assert_eq!(held.receive(14).unwrap(), b"while it hangs");
    held.assert_echo();
    eventually("the relay again", || {
        (app.probe(open.address()) == Ok(Route::Relayed)).then_some(())
    });
}

#[test]
fn a_daemon_that_ends_lets_what_it_relays_finish_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let address = hosts::server(0)[1];
    let echo = hosts.server(0).within(|| Server::echo((address, 0)));
    let mirror = hosts.server(0).within(|| Server::mirror((address, 0)));
    let rules = through(&[(echo.address(), "direct"), (mirror.address(), "refuse")]);
    let mut culvert = sandbox.culvert_with(&Settings::daemon("drain_timeout = \"20s\""), &rules);
    let app = hosts.app(&sandbox, 0);
    let socket = app.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    socket.assert_echo();
    culvert.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("a route past the daemon that ends", || {
        (app.probe(mirror.address()) == Ok(Route::Direct)).then_some(())
    });
    assert!(culvert.is_running());
    socket.exchange(3, 1 << 20).unwrap();
    socket.close();
    assert!(culvert.wait().success());
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}
