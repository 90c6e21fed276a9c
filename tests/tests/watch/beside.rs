//! Others that look on or capture at the same time.

use std::net::SocketAddr;

use culvert_tests::{
    Sandbox,
    app::Route,
    daemon::Settings,
    eventually,
    kernel::version,
    peer::Server,
    process::{attempt, output},
    rules::{ALL, RELAY, relayed},
    sandbox::{OTHER_V4, SERVER_V4},
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

/// What its rules do, also after a reload, and while nobody relays. Those that are direct are listed so, and counted by it.
#[test]
fn the_rules_of_a_daemon() {
    let sandbox = Sandbox::new();
    let [mirror, other] =
        [SERVER_V4, OTHER_V4].map(|ip| sandbox.within(|| Server::mirror((ip, 0))));
    let rules = |direct: SocketAddr| {
        let direct = format!(
            "[[forward]]\nname = \"direct\"\nmatch = {{ dest = \"{}\" }}\nvia = \"direct\"\n",
            direct.ip()
        );
        let refused = "[[forward]]\nname = \"no\"\nmatch = { port = 9 }\nvia = \"refuse\"\n";
        [refused, &direct, RELAY, &relayed("rest", "")].concat()
    };
    let culvert = sandbox.culvert(&rules(other.address()));
    let told = Told::new(&sandbox);
    let admin = culvert.admin().to_str().unwrap();
    let cgroup = in_hierarchy(&sandbox);
    let options = ["--cgroup", &cgroup, "--in-force", "--admin", admin];
    let watch = told.start(&sandbox, &options);
    let app = sandbox.app();
    let of_app = |to: SocketAddr, count: usize| {
        let to = to.to_string();
        eventually("what is told of the app", || {
            let mut told = told.of("connection");
            told.retain(|it| it["pid"] == app.pid() && it["destination"] == to);
            (told.len() == count).then_some(told.pop()?)
        })
    };
    let said =
        |seen: &Value| [&seen["rule"], &seen["verdict"]].map(|it| it.as_str().unwrap().to_owned());

    assert_eq!(app.probe(other.address()), Ok(Route::Direct));
    assert_eq!(said(&of_app(other.address(), 1)), ["direct", "direct"]);
    let refused: SocketAddr = (SERVER_V4, 9).into();
    let socket = app.tcp(refused);
    socket.connect(refused).unwrap_err();
    socket.close();
    assert_eq!(said(&of_app(refused, 1)), ["no", "refuse"]);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    // Where the hook cannot run before the daemon's it is told of another destination.
    if version() >= (6, 15) {
        let seen = of_app(mirror.address(), 1);
        assert_eq!(said(&seen), ["rest", "relay"]);
        assert!(seen["redirected_to"].is_string(), "{seen}");
        // The relay's own connection is none of the rules' business.
        let own = told.connections(mirror.address(), 2);
        let own = own.iter().find(|it| it["pid"] == culvert.pid()).unwrap();
        assert_eq!(
            (&own["verdict"], &own["rule"]),
            (&"direct".into(), &Value::Null)
        );
    }
    let rules_in_force = || {
        let mut asks = sandbox.culvert_command();
        let said = output(asks.args(["rules", "--json", "--admin", admin]));
        serde_json::from_str::<Value>(&said).unwrap()["rules"].take()
    };
    let hits = |name: &str| {
        let rules = rules_in_force();
        let mut rules = rules.as_array().unwrap().iter();
        rules.find(|rule| rule["name"] == name).unwrap()["hits"].clone()
    };
    assert_eq!(["direct", "no", "rest"].map(hits), [1, 1, 1]);

    culvert.reload(&rules(mirror.address()));
    eventually("the rules after the reload", || {
        app.probe(mirror.address()).unwrap();
        let told = told.of("connection");
        let last = told.iter().rev().find(|it| it["pid"] == app.pid());
        last.is_some_and(|last| last["rule"] == "direct")
            .then_some(())
    });
    watch.signal(Signal::SIGINT);
    let summary = told.summary();
    let listed = |rule: &str, verdict: &str| {
        let mut listed = summary["destinations"].as_array().unwrap().iter();
        listed.any(|it| it["rule"] == rule && it["verdict"] == verdict)
    };
    assert!(
        listed("direct", "direct") && listed("no", "refuse"),
        "{summary:#}"
    );
}

#[test]
fn without_a_daemon_there_are_no_rules_in_force() {
    let sandbox = Sandbox::new();
    let mut watch = sandbox.culvert_command();
    let ended = attempt(watch.args(["watch", "--in-force", "--admin", "/nowhere", "--", "true"]));
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("no culvert answers at /nowhere"), "{said}");
}
