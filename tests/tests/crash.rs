//! What becomes of connections when the daemon is killed, or hangs, whatever it is doing at that moment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    App, Load, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    eventually::PATIENCE,
    kernel::refusal,
    load::{assert_flawless, assert_flawless_before, begun_after},
    peer::{Server, read_all},
    process::output,
    sandbox::{OTHER_V4, SERVER_V4},
};
use nix::{
    errno::Errno,
    sys::signal::Signal::{SIGHUP, SIGTERM},
};

/// A rule for one destination, or for all that are not on this host.
fn rule(name: &str, dest: &str, mode: &str) -> String {
    format!(
        "[[forward]]\nname = \"{name}\"\nmatch = {{ dest = \"{dest}\" }}\nvia = \"relay\"\non_relay_failure = \"{mode}\"\n"
    )
}

fn rules(of: &[(&str, &str)]) -> String {
    let rules = of
        .iter()
        .enumerate()
        .map(|(number, (dest, mode))| rule(&format!("rule-{number}"), dest, mode));
    let upstream = "[upstream.relay]\nurl = \"direct://\"\n".to_owned();
    std::iter::once(upstream).chain(rules).collect()
}

fn all(mode: &str) -> String {
    rules(&[("0.0.0.0/0", mode)])
}

/// How many daemons have pins where this sandbox's daemons put them.
fn pinned(sandbox: &Sandbox, directory: &str) -> Vec<String> {
    sandbox.mounts().within(|| {
        let entries = std::fs::read_dir(Path::new(directory));
        let entries = entries.into_iter().flatten().filter_map(Result::ok);
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    })
}

const OWN_PINS: &str = "/run/culvert/bpf/culvert";

/// What was unpinned stays in force until the kernel comes to free it.
fn await_route(app: &App, mirror: SocketAddr, route: Route) {
    eventually(&format!("{route:?} connections"), || {
        (app.probe(mirror) == Ok(route)).then_some(())
    });
}

#[test]
fn after_a_kill_every_new_connection_goes_direct() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&all("direct"));
    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let load = Load::under_way(sandbox.app(), &[server.address()]);

    let before = Instant::now();
    culvert.kill();
    let dead = Instant::now();

    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    load.await_rounds(3);
    let rounds = load.finish();
    assert_flawless_before(&rounds, before);
    assert_flawless(begun_after(&rounds, dead));
}

#[test]
fn a_kill_resets_what_is_relayed() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&all("direct"));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    culvert.kill();
    // An orderly end would look as if the server had said all it had to say.
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
}

#[test]
fn after_a_kill_rules_that_refuse_refuse_until_detached() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let other = sandbox.within(|| Server::echo((OTHER_V4, 0)));
    let mut culvert = sandbox.culvert(&rules(&[(&SERVER_V4.to_string(), "refuse")]));
    let load = Load::under_way(sandbox.app(), &[server.address()]);

    culvert.kill();
    let dead = Instant::now();

    load.await_rounds(3);
    let rounds = load.finish();
    let refused = BTreeMap::from([(refusal() as i32, 20)]);
    for round in begun_after(&rounds, dead) {
        assert_eq!(round.outcomes, refused);
    }

    // What no rule selects, and who is in another cgroup, is not concerned.
    let app = sandbox.app();
    let flawless = BTreeMap::from([(0, 20)]);
    assert_eq!(app.storm(&Storm::short(&[other.address()])), flawless);
    let outsider = App::start(&mut sandbox.outsider(culvert_tests::process::app_binary()));
    assert_eq!(outsider.storm(&Storm::short(&[server.address()])), flawless);

    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    eventually("connections that go direct", || {
        (app.storm(&Storm::short(&[server.address()])) == flawless).then_some(())
    });
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}

#[test]
fn the_next_daemon_takes_over_from_a_killed_one() {
    for bpffs in [false, true] {
        let sandbox = Sandbox::new();
        if bpffs {
            sandbox.mounts().mount_bpffs();
        }
        let pins = if bpffs {
            "/sys/fs/bpf/culvert"
        } else {
            OWN_PINS
        };
        let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
        let app = sandbox.app();
        let mut killed = sandbox.culvert(&all("refuse"));
        assert_eq!(pinned(&sandbox, pins), [killed.pid().to_string()]);
        killed.kill();
        assert_eq!(app.probe(mirror.address()), Err(refusal()));

        let mut next = sandbox.culvert(&all("refuse"));
        assert_eq!(pinned(&sandbox, pins), [next.pid().to_string()]);
        await_route(&app, mirror.address(), Route::Relayed);
        assert!(next.stop().success());
        assert_eq!(pinned(&sandbox, pins), [""; 0]);
        await_route(&app, mirror.address(), Route::Direct);
    }
}

#[test]
fn each_rule_of_a_file_fails_in_its_own_way() {
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let mut culvert = sandbox.culvert(&rules(&[
        (&SERVER_V4.to_string(), "direct"),
        (&OTHER_V4.to_string(), "refuse"),
    ]));
    let app = sandbox.app();
    assert_eq!(app.probe(open.address()), Ok(Route::Relayed));
    assert_eq!(app.probe(closed.address()), Ok(Route::Relayed));
    culvert.kill();
    assert_eq!(app.probe(open.address()), Ok(Route::Direct));
    assert_eq!(app.probe(closed.address()), Err(refusal()));
    sandbox.detach();
    await_route(&app, closed.address(), Route::Direct);
}

/// A hung relay is one that a signal has stopped: its sockets are all there, and nobody answers.
#[test]
fn a_hung_relay_counts_as_failed_until_it_goes_on() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let settings = Settings::daemon("heartbeat_timeout = \"500ms\"");
    let culvert = sandbox.culvert_with(
        &settings,
        &rules(&[
            (&SERVER_V4.to_string(), "direct"),
            (&OTHER_V4.to_string(), "refuse"),
        ]),
    );
    let app = sandbox.app();
    assert_eq!(app.probe(open.address()), Ok(Route::Relayed));

    culvert.freeze();
    eventually("a heartbeat that is too old", || {
        (culvert.maps().heartbeat_age() > TIMEOUT).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(app.probe(open.address()), Ok(Route::Direct));
        assert_eq!(app.probe(closed.address()), Err(refusal()));
    }
    assert_eq!(culvert.counter("fail_heartbeat"), 40);
    assert_eq!(culvert.counter("failed_direct"), 20);
    assert_eq!(culvert.counter("failed_refused"), 20);

    culvert.thaw();
    for address in [open.address(), closed.address()] {
        await_route(&app, address, Route::Relayed);
    }
}

/// What was sent to the relay just before it hung is answered when it goes on.
#[test]
fn connections_wait_while_the_relay_hangs() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let settings = Settings::daemon("heartbeat_timeout = \"60s\"");
    let culvert = sandbox.culvert_with(&settings, &all("refuse"));
    let app = sandbox.app();
    let relayed = app.tcp(server.address());
    relayed.connect(server.address()).unwrap();
    relayed.assert_echo();
    culvert.freeze();
    let waiting = app.tcp(server.address());
    waiting.connect(server.address()).unwrap();
    assert_eq!(culvert.maps().records().len(), 1);
    culvert.thaw();
    waiting.assert_echo();
    relayed.assert_echo();
    assert!(culvert.maps().records().is_empty());
}

/// It reaches servers before it has given a sign of life again. What it opens is selected by the rule, as all in its cgroup is.
#[test]
fn who_waited_while_the_relay_was_taken_for_hung_is_served() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let timeout = Duration::from_millis(500);
    let settings = Settings::daemon("heartbeat_timeout = \"500ms\"\nworkers = 1");
    let culvert = sandbox.culvert_with(&settings, &all("refuse"));
    let app = sandbox.app();
    let relayed = app.tcp(server.address());
    relayed.connect(server.address()).unwrap();
    relayed.assert_echo();
    culvert.freeze();
    let waiting: Vec<_> = (0..8).map(|_| app.tcp(server.address())).collect();
    for socket in &waiting {
        socket.connect(server.address()).unwrap();
    }
    thread::sleep(timeout * 2);
    culvert.thaw();
    for socket in &waiting {
        socket.assert_echo();
    }
    assert_eq!(culvert.counter("own"), 9);
}

/// Loggers and health checks do not wait for an answer: the connection is over before the relay accepts it.
#[test]
fn what_was_sent_to_a_late_relay_arrives() {
    let sandbox = Sandbox::new();
    let (heard, hearing) = mpsc::channel();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |stream| {
            heard.send(read_all(stream).ok()).map_err(io::Error::other)
        })
    });
    let settings = Settings::daemon("heartbeat_timeout = \"1m\"");
    let culvert = sandbox.culvert_with(&settings, &all("direct"));
    culvert.freeze();
    let tell = |what: &str| {
        let place = format!("/dev/tcp/{SERVER_V4}/{}", server.address().port());
        let line = format!("printf '{what}' > {place}");
        output(sandbox.command("bash").args(["-c", &line]));
    };
    // Now and then one only looks whether somebody listens.
    let told: Vec<_> = (0..20)
        .map(|turn| if turn % 4 == 0 { "" } else { "good bye" })
        .collect();
    for what in &told {
        tell(what);
    }
    culvert.thaw();
    let mut arrived: Vec<_> = told
        .iter()
        .map(|_| hearing.recv_timeout(PATIENCE).unwrap().unwrap())
        .collect();
    arrived.sort();
    let mut expected: Vec<_> = told.iter().map(|what| what.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(arrived, expected);
    for record in culvert.await_records(told.len()) {
        assert_eq!(record.reason, "done");
    }
}

/// Freezes a daemon somewhere, so that what it has in the kernel can be noted, and kills it there.
fn kill_somewhere(sandbox: &Sandbox, mode: &str, stage: impl FnOnce(&culvert_tests::Culvert<'_>)) {
    let mut culvert = sandbox.launch(&Settings::default(), &all(mode));
    stage(&culvert);
    culvert.freeze();
    culvert.kill();
}

/// Kills daemons somewhere, and looks that traffic is as it was.
fn assert_nothing_stays(stage: impl Fn(&culvert_tests::Culvert<'_>, Duration)) {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let app = sandbox.app();
    let flawless = BTreeMap::from([(0, 20)]);
    for milliseconds in [0, 1, 3, 5, 10, 20, 50, 100, 200] {
        let delay = Duration::from_millis(milliseconds);
        kill_somewhere(&sandbox, "direct", |culvert| stage(culvert, delay));
        assert_eq!(app.storm(&Storm::short(&[server.address()])), flawless);
        kill_somewhere(&sandbox, "refuse", |culvert| stage(culvert, delay));
        // Whether it came as far as a pin or not.
        sandbox.detach();
        eventually("connections that go direct", || {
            (app.storm(&Storm::short(&[server.address()])) == flawless).then_some(())
        });
    }
}

#[test]
fn a_kill_during_the_start_leaves_nothing() {
    assert_nothing_stays(|_, delay| thread::sleep(delay));
}

#[test]
fn a_kill_during_a_reload_leaves_nothing() {
    assert_nothing_stays(|culvert, delay| {
        culvert.await_notice("READY=1");
        for _ in 0..5 {
            culvert.signal(SIGHUP);
        }
        thread::sleep(delay);
    });
}

#[test]
fn a_kill_during_the_drain_leaves_nothing() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&all("refuse"));
    let app = sandbox.app();
    app.hold(server.address(), 20).unwrap();
    culvert.signal(SIGTERM);
    culvert.await_notice("STOPPING=1");
    // Detaching comes first, so it is over soon; connections keep the daemon from ending.
    let fresh = sandbox.app();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    await_route(&fresh, mirror.address(), Route::Direct);
    culvert.kill();
    assert_eq!(fresh.probe(mirror.address()), Ok(Route::Direct));
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
}

#[test]
fn a_second_daemon_is_refused() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let first = sandbox.culvert(&all("refuse"));
    let mut second = sandbox.launch(&Settings::default(), &all("direct"));
    let status = second.wait();
    assert_eq!(status.code(), Some(1), "{}", second.log());
    assert_eq!(second.log().lines().count(), 1, "{}", second.log());
    assert!(
        second.log().contains(&first.pid().to_string()),
        "{}",
        second.log()
    );
    // The first one is none the worse for it.
    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert_eq!(pinned(&sandbox, OWN_PINS), [first.pid().to_string()]);
}

/// Whoever calls for one service among the connections of all is served by both.
#[test]
fn a_daemon_for_a_part_of_anothers_cgroup_chains() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let whole = sandbox.culvert(&all("direct"));
    let settings = Settings {
        cgroup: Some(sandbox.app_cgroup().name().to_owned()),
        ..Settings::default()
    };
    let part = sandbox.culvert_with(&settings, &all("direct"));
    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert_eq!(part.the_record().orig_dst, Some(mirror.address()));
    assert_eq!(whole.the_record().orig_dst, Some(mirror.address()));
    assert_eq!(whole.the_record().pid, part.pid());
}
