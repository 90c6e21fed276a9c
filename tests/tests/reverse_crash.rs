//! What becomes of connections that arrive when the daemon is killed, hangs or ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant, SystemTime},
};

use culvert_tests::{
    App, Load, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    load::{assert_flawless, assert_flawless_before, begun_after},
    peer::Server,
    process::app_binary,
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

fn site(of: &[(SocketAddr, &str)]) -> String {
    let rule = |(address, mode): &(SocketAddr, &str)| {
        format!(
            "[[reverse]]\nname = \"site-{mode}-{}\"\nlisten = \"{address}\"\nvia = \"original\"\non_relay_failure = \"{mode}\"\n",
            address.port()
        )
    };
    of.iter().map(rule).collect()
}

#[test]
fn after_a_kill_the_service_answers_every_new_connection_itself() {
    let sandbox = Sandbox::new();
    let v4 = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let v6 = sandbox.within(|| Server::echo((SERVER_V6, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let addresses = [v4.address(), v6.address()];
    let all = [v4.address(), v6.address(), mirror.address()].map(|address| (address, "direct"));
    let mut culvert = sandbox.culvert(&site(&all));
    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let load = Load::under_way(sandbox.app(), &addresses);

    let before = Instant::now();
    culvert.kill();
    let dead = Instant::now();

    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    load.await_rounds(5);
    let rounds = load.finish();
    assert_flawless_before(&rounds, before);
    assert_flawless(begun_after(&rounds, dead));
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}

/// Each connection by itself: those that begin after the kill are whole, also where others of their round began before it.
#[test]
fn no_connection_that_begins_after_a_kill_fails() {
    let sandbox = Sandbox::new();
    let server = App::start(&mut sandbox.outsider(app_binary()));
    let address = server.serve((SERVER_V4, 7000).into());
    let mut culvert = sandbox.culvert(&site(&[(address, "direct")]));
    let app = sandbox.app();
    let stop = AtomicBool::new(false);
    let now = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since.unwrap().as_millis()).unwrap()
    };
    let (visits, dead) = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut visits = Vec::new();
            while !stop.load(SeqCst) {
                visits.append(&mut app.visit(&Storm {
                    each: 50,
                    ..Storm::short(&[address])
                }));
            }
            visits
        });
        eventually("connections that are relayed", || {
            (culvert.records().len() > 100).then_some(())
        });
        culvert.kill();
        let dead = now();
        thread::sleep(Duration::from_millis(500));
        stop.store(true, SeqCst);
        (load.join().unwrap(), dead)
    });
    let after = visits.iter().filter(|visit| visit.begun_ms > dead);
    assert!(after.clone().count() > 20, "the load was not under way");
    for visit in after {
        assert_eq!(visit.error, None, "{visit:?}, killed at {dead}");
    }
}

#[test]
fn after_a_kill_rules_that_refuse_refuse_until_detached() {
    let sandbox = Sandbox::new();
    let closed = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let open = sandbox.within(|| Server::echo((OTHER_V4, 0)));
    let free = sandbox.within(|| Server::echo((OTHER_V4, 0)));
    let mut culvert = sandbox.culvert(&site(&[
        (closed.address(), "refuse"),
        (open.address(), "direct"),
    ]));
    let load = Load::under_way(sandbox.app(), &[closed.address()]);

    culvert.kill();
    let dead = Instant::now();

    load.await_rounds(3);
    let rounds = load.finish();
    let refused = BTreeMap::from([(Errno::ECONNREFUSED as i32, 20)]);
    for round in begun_after(&rounds, dead) {
        assert_eq!(round.outcomes, refused);
    }
    let app = sandbox.app();
    let flawless = BTreeMap::from([(0, 20)]);
    assert_eq!(
        app.storm(&Storm::short(&[open.address(), free.address()])),
        flawless
    );

    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    eventually("connections that go direct", || {
        (app.storm(&Storm::short(&[closed.address()])) == flawless).then_some(())
    });
}

#[test]
fn the_next_daemon_takes_over_from_a_killed_one() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let rules = site(&[(mirror.address(), "refuse")]);
    let app = sandbox.app();
    let mut killed = sandbox.culvert(&rules);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    killed.kill();
    assert_eq!(app.probe(mirror.address()), Err(Errno::ECONNREFUSED));
    let mut next = sandbox.culvert(&rules);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    // What no rule needs any more is not kept.
    next.reload(&site(&[(mirror.address(), "direct")]));
    next.kill();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}

/// A hung relay is one that a signal has stopped: its sockets are all there, and nobody answers.
#[test]
fn a_hung_relay_counts_as_failed_until_it_goes_on() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let shut = sandbox.within(|| Server::echo((OTHER_V4, 0)));
    let settings = Settings::daemon("heartbeat_timeout = \"500ms\"");
    let culvert = sandbox.culvert_with(
        &settings,
        &site(&[
            (open.address(), "direct"),
            (echo.address(), "direct"),
            (closed.address(), "refuse"),
            (shut.address(), "refuse"),
        ]),
    );
    let app = sandbox.app();
    assert_eq!(app.probe(open.address()), Ok(Route::Relayed));
    assert_eq!(app.probe(closed.address()), Ok(Route::Relayed));
    let load = Load::under_way(sandbox.app(), &[echo.address()]);

    culvert.freeze();
    eventually("a heartbeat that is too old", || {
        (culvert.maps().heartbeat_age() > TIMEOUT).then_some(())
    });
    let hung = Instant::now();
    for _ in 0..20 {
        assert_eq!(app.probe(open.address()), Ok(Route::Direct));
        assert_eq!(app.probe(closed.address()), Err(Errno::ECONNREFUSED));
    }
    let busy = sandbox.app();
    let flawless = BTreeMap::from([(0, 20)]);
    let refused = BTreeMap::from([(Errno::ECONNREFUSED as i32, 20)]);
    let served = shut.clients().len();
    for _ in 0..5 {
        assert_eq!(busy.storm(&Storm::short(&[echo.address()])), flawless);
        assert_eq!(busy.storm(&Storm::short(&[shut.address()])), refused);
    }
    assert_eq!(shut.clients().len(), served, "nothing gets past the relay");

    // What was given to the relay just before it hung is answered when it goes on.
    culvert.thaw();
    for address in [open.address(), closed.address()] {
        eventually("relayed connections", || {
            (app.probe(address) == Ok(Route::Relayed)).then_some(())
        });
    }
    load.await_rounds(2);
    let rounds = load.finish();
    assert_flawless(&rounds);
    begun_after(&rounds, hung);
}

#[test]
fn an_orderly_end_fails_no_connection() {
    let sandbox = Sandbox::new();
    let v4 = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let v6 = sandbox.within(|| Server::echo((SERVER_V6, 0)));
    let settings = Settings::daemon("drain_timeout = \"20s\"");
    let rules = site(&[(v4.address(), "refuse"), (v6.address(), "direct")]);
    let load = Load::start(sandbox.app(), Storm::short(&[v4.address(), v6.address()]));
    for _ in 0..5 {
        let mut culvert = sandbox.culvert_with(&settings, &rules);
        load.await_rounds(3);
        assert!(culvert.stop().success());
        load.await_rounds(1);
    }
    assert_flawless(&load.finish());
}

#[test]
fn a_kill_resets_what_is_relayed() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&site(&[(server.address(), "direct")]));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    culvert.kill();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
}

/// What a hung relay has not accepted is lost with it: the handshake is done, so the service cannot have it.
#[test]
fn a_kill_resets_what_waits_to_be_accepted() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let settings = Settings::daemon("heartbeat_timeout = \"60s\"");
    let mut culvert = sandbox.culvert_with(&settings, &site(&[(server.address(), "direct")]));
    culvert.freeze();
    let app = sandbox.app();
    let waiting = app.tcp(server.address());
    waiting.connect(server.address()).unwrap();
    culvert.kill();
    assert_eq!(waiting.receive_all(), Err(Errno::ECONNRESET));
    let next = app.tcp(server.address());
    next.connect(server.address()).unwrap();
    next.assert_echo();
}

#[test]
fn a_second_daemon_on_the_same_network_is_refused() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let rules = site(&[(mirror.address(), "direct")]);
    let first = sandbox.culvert(&rules);
    // Not for its cgroup, which is another.
    let settings = Settings {
        cgroup: Some(sandbox.app_cgroup().name().to_owned()),
        ..Settings::default()
    };
    let mut second = sandbox.launch(&settings, &rules);
    let status = second.wait();
    assert_eq!(status.code(), Some(1), "{}", second.log());
    assert!(
        second.log().contains(&first.pid().to_string()),
        "{}",
        second.log()
    );
    assert_eq!(sandbox.app().probe(mirror.address()), Ok(Route::Relayed));
}
