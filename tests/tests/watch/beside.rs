//! Others that look on or capture at the same time.

use std::net::SocketAddr;

use culvert_tests::{
    Sandbox, app::Route, daemon::Settings, kernel::version, peer::Server, process::output,
    rules::ALL, sandbox::SERVER_V4,
};
use nix::{errno::Errno, sys::signal::Signal};
use serde_json::Value;

use super::scene::{Told, in_hierarchy};

/// The daemon relays, and both see it.
#[test]
fn a_daemon_of_the_same_cgroup() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let told = Told::new(&sandbox);
    let watch = told.start(&sandbox, &["--cgroup", &in_hierarchy(&sandbox)]);

    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    assert_eq!(socket.peer(), Ok(server.address()));
    socket.exchange(3, 1 << 20).unwrap();
    let local = socket.local().unwrap();
    socket.close();
    let records = culvert.await_records(2);
    let record = records
        .iter()
        .find(|it| it.orig_dst == Some(server.address()));
    assert_eq!(record.unwrap().client, local);

    let listener = culvert.listener_v4();
    let of_app = |told: &Told| {
        let told = told.of("connection");
        let mut of_app = told.into_iter().filter(|it| it["pid"] == app.pid());
        of_app.find(|it| it["source"] == local.to_string()).unwrap()
    };
    let seen = of_app(&told);
    assert_eq!(seen["outcome"], "established");
    // Where the hook cannot run before the daemon's it sees only what that has made of the call.
    let runs_first = version() >= (6, 15);
    if runs_first {
        assert_eq!(seen["destination"], server.address().to_string());
        assert_eq!(seen["redirected_to"], listener.to_string());
    } else {
        assert_eq!(seen["destination"], listener.to_string());
    }
    // The relay's own connection is one, too.
    let relays = told.connections(server.address(), 1 + usize::from(runs_first));
    let of_relay = |it: &Value| it["pid"] == culvert.pid();
    assert!(relays.iter().any(of_relay), "{relays:?}");
    // Both are told of in the order in which they run.
    let mut explain = sandbox.culvert_command();
    explain
        .args(["explain", "--json", "--admin"])
        .arg(culvert.admin());
    let pid = app.pid().to_string();
    let said = output(explain.args(["--pid", &pid, &server.address().to_string()]));
    let said: Value = serde_json::from_str(&said).unwrap();
    let connects = said["hooks"].as_array().unwrap().iter();
    let connects = connects.filter(|hook| hook["hook"] == "connect4" && hook["ours"] == true);
    let of_daemon = format!("culvert[{}]", culvert.pid());
    let of_daemon: Vec<_> = connects
        .map(|hook| hook["held_by"][0] == of_daemon)
        .collect();
    assert_eq!(of_daemon, [!runs_first, runs_first], "{said:#}");
    watch.signal(Signal::SIGINT);
    assert_eq!(told.summary()["failed"], 0);
    // And it captures as before.
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
}

/// It starts, is replaced, and ends as if nobody watched.
#[test]
fn a_daemon_that_comes_later() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let told = Told::new(&sandbox);
    let _watch = told.start(&sandbox, &["--cgroup", &in_hierarchy(&sandbox)]);
    let mut culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let seen = told.connections(mirror.address(), 2);
    let of_app = seen.iter().find(|it| it["pid"] == app.pid()).unwrap();
    assert_eq!(of_app["redirected_to"], culvert.listener_v4().to_string());
    let mut next = sandbox.launch(
        &Settings {
            takeover: true,
            ..Settings::default()
        },
        ALL,
    );
    next.await_notice("READY=1");
    assert!(culvert.wait().success());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert!(next.stop().success());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    assert_eq!(told.connections(mirror.address(), 5).len(), 5);
}

/// A call that the daemon refuses sends no packet.
#[test]
fn a_daemon_that_refuses() {
    let sandbox = Sandbox::new();
    let rules = "[[forward]]\nname = \"no\"\nmatch = { port = 80 }\nvia = \"refuse\"\n";
    let _culvert = sandbox.culvert(rules);
    let told = Told::new(&sandbox);
    let _watch = told.start(&sandbox, &["--cgroup", &in_hierarchy(&sandbox)]);
    let app = sandbox.app();
    let to: SocketAddr = (SERVER_V4, 80).into();
    let socket = app.tcp(to);
    let refusal = socket.connect(to).unwrap_err();
    assert!([Errno::ECONNREFUSED, Errno::EPERM].contains(&refusal));
    socket.close();
    assert_eq!(told.connection(to)["outcome"], "unsent");
}

#[test]
fn another_watch() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let (first, second) = (Told::new(&sandbox), Told::new(&sandbox));
    let cgroup = in_hierarchy(&sandbox);
    let options = ["--cgroup", cgroup.as_str()];
    let watches = [
        first.start(&sandbox, &options),
        second.start(&sandbox, &options),
    ];
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    let mut seen = [&first, &second].map(|told| told.connection(server.address()));
    for it in &mut seen {
        assert_eq!(it["outcome"], "established");
        // Each has looked at its own clock.
        for key in ["latency_us", "at_ms"] {
            it[key] = 0.into();
        }
    }
    assert_eq!(seen[0], seen[1]);
    // The one goes on when the other has ended.
    watches[0].signal(Signal::SIGINT);
    first.summary();
    let next = app.tcp(server.address());
    next.connect(server.address()).unwrap();
    assert_eq!(second.connections(server.address(), 2).len(), 2);
    assert_eq!(first.of("connection").len(), 1);
}
