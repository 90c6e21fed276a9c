//! `culvert watch`: what it tells of real connections, which are as if nobody watched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod beside;
mod outcomes;
mod scene;

use std::{fs, io::Read, net::SocketAddr, process::Stdio};

use culvert_tests::{
    Sandbox, eventually,
    peer::Server,
    process::{attempt, write_private},
    rules::relayed,
    sandbox::{CLOSED_PORT, SERVER_V4},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use scene::{Told, in_hierarchy};

/// Its output is its own, and so is its status; what was seen is told beside it.
#[test]
fn a_command_is_watched_and_otherwise_as_ever() {
    let sandbox = Sandbox::new();
    let web = sandbox.within(|| Server::web((SERVER_V4, 0)));
    let told = Told::new(&sandbox);
    let line = format!("curl -sS http://{}/; exit 5", web.address());
    let ended = attempt(told.command(&sandbox, &[]).args(["--", "sh", "-c", &line]));
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    assert_eq!(ended.stdout, b"page\n", "{ended:?}");
    assert_eq!(ended.stderr, b"", "{ended:?}");

    let seen = told.connection(web.address());
    assert_eq!(seen["outcome"], "established");
    assert_eq!(seen["protocol"], "tcp");
    assert_eq!(seen["comm"], "curl");
    assert_eq!(seen["uid"], 0);
    assert_eq!(seen["error"], serde_json::Value::Null);
    assert_eq!(seen["redirected_to"], serde_json::Value::Null);
    let source: SocketAddr = seen["source"].as_str().unwrap().parse().unwrap();
    assert_eq!(web.clients(), [source]);
    assert!(seen["latency_us"].is_u64(), "{seen}");
    assert!(seen.get("verdict").is_none(), "{seen}");

    let summary = told.summary();
    assert_eq!(summary["connections"], 1);
    assert_eq!(summary["failed"], 0);
    assert_eq!(summary["lost"], 0);
    let destinations = summary["destinations"].as_array().unwrap();
    assert_eq!(destinations.len(), 1, "{summary}");
    assert_eq!(destinations[0]["connections"], 1);
}

#[test]
fn people_read_it_on_standard_error() {
    let sandbox = Sandbox::new();
    let web = sandbox.within(|| Server::web((SERVER_V4, 0)));
    let url = format!("http://{}/", web.address());
    let mut command = sandbox.culvert_command();
    let ended = attempt(command.args(["watch", "--root", "--", "curl", "-sS", &url]));
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, b"page\n");
    let said = String::from_utf8(ended.stderr).unwrap();
    let line = said.lines().next().unwrap();
    assert!(line.contains(" established "), "{said}");
    assert!(line.contains(&format!("-> {}", web.address())), "{said}");
    assert!(
        said.ends_with("connections 1, failed 0, lost 0\n"),
        "{said}"
    );
}

#[test]
fn a_command_that_cannot_be_run_ends_as_in_a_shell() {
    let sandbox = Sandbox::new();
    let told = Told::new(&sandbox);
    let missing = attempt(told.command(&sandbox, &[]).args(["--", "no-such-command"]));
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    let nobody = attempt(told.command(&sandbox, &[]).args(["--pid", "4194305"]));
    assert_eq!(nobody.status.code(), Some(2), "{nobody:?}");
    let nowhere = attempt(told.command(&sandbox, &[]).args(["--cgroup", "/no/such"]));
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");
}

/// A kill leaves nothing: no link, no process, no cgroup.
#[test]
fn a_kill_takes_everything_along() {
    let sandbox = Sandbox::new();
    let told = Told::new(&sandbox);
    let mut command = told.command(&sandbox, &[]);
    command.args(["--", "sh", "-c", "echo started; exec sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut started = [0; 8];
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut started).unwrap();
    let objects = culvert_tests::kernel::Objects::of(child.id());
    assert_eq!(objects.links.len(), 4, "{objects:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    // The last writer of the pipe is gone.
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    eventually("nothing of the watch", || {
        let cgroup = sandbox.daemon_cgroup();
        let nobody = cgroup.children().is_empty() && cgroup.processes().is_empty();
        (nobody && objects.remaining().is_empty()).then_some(())
    });
}

/// Others are not told of.
#[test]
fn a_cgroup_or_a_process_is_watched() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let (app, other) = (sandbox.app(), sandbox.app());
    let (of_cgroup, of_process, of_all) = (
        Told::new(&sandbox),
        Told::new(&sandbox),
        Told::new(&sandbox),
    );
    let cgroup = in_hierarchy(&sandbox);
    let pid = app.pid().to_string();
    let watches = [
        of_cgroup.start(&sandbox, &["--cgroup", &cgroup]),
        of_process.start(&sandbox, &["--pid", &pid]),
        of_all.start(&sandbox, &[]),
    ];
    for app in [&app, &other] {
        app.tcp(server.address()).connect(server.address()).unwrap();
        let by_child = app.tcp(server.address());
        by_child.in_child().connect(server.address()).unwrap();
    }
    let mut outsider = sandbox.outsider("curl");
    let url = format!("http://{}/", server.address());
    attempt(outsider.args(["-s", "-m", "1", "-o", "/dev/null", &url]));
    of_all.connections(server.address(), 5);
    for watch in &watches {
        watch.signal(Signal::SIGINT);
    }
    assert_eq!(of_cgroup.summary()["connections"], 4);
    assert_eq!(of_process.summary()["connections"], 2);
    let told = of_process.connections(server.address(), 2);
    assert_eq!(told[0]["pid"], app.pid());
    assert_ne!(told[1]["pid"], app.pid());
    let cgroup = told[0]["cgroup"].as_str().unwrap();
    assert_eq!(cgroup, format!("/{}", sandbox.app_cgroup().name()));
}

#[test]
fn the_watch_of_a_process_ends_with_it() {
    let sandbox = Sandbox::new();
    let app = sandbox.app();
    let told = Told::new(&sandbox);
    let pid = app.pid().to_string();
    let _watch = told.start(&sandbox, &["--pid", &pid]);
    drop(app);
    assert_eq!(told.summary()["connections"], 0);
}

/// What a configuration would do, which nobody puts in force.
#[test]
fn a_configuration_is_tried_out() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let copy = sandbox.directory().join("copy");
    fs::copy(culvert_tests::process::app_binary(), &copy).unwrap();
    let file = sandbox.directory().join("rules.toml");
    let port = server.address().port();
    let rules = [
        culvert_tests::rules::RELAY.to_owned(),
        relayed("copy", &format!("exe = {copy:?}")),
        format!(
            "[[forward]]\nname = \"no\"\nmatch = {{ port = {CLOSED_PORT} }}\nvia = \"refuse\"\n"
        ),
        format!("[[forward]]\nname = \"own\"\nmatch = {{ port = {port} }}\nvia = \"direct\"\n"),
    ]
    .concat();
    write_private(&file, &rules);
    let told = Told::new(&sandbox);
    let cgroup = in_hierarchy(&sandbox);
    let options = ["--cgroup", &cgroup, "--config", file.to_str().unwrap()];
    let watch = told.start(&sandbox, &options);
    let closed = (SERVER_V4, CLOSED_PORT).into();
    let app = sandbox.app();
    app.tcp(server.address()).connect(server.address()).unwrap();
    app.tcp(closed).connect(closed).unwrap_err();
    let seen = told.connection(server.address());
    assert_eq!(seen["rule"], "own");
    assert_eq!(seen["verdict"], "direct");
    let seen = told.connection(closed);
    assert_eq!(seen["rule"], "no");
    assert_eq!(seen["verdict"], "refuse");
    assert_eq!(seen["outcome"], "refused");

    let of_copy = culvert_tests::App::start(&mut sandbox.command(&copy));
    of_copy
        .tcp(server.address())
        .connect(server.address())
        .unwrap();
    let seen = told.connections(server.address(), 2);
    assert_eq!(seen[1]["rule"], "copy");
    assert_eq!(seen[1]["verdict"], "relay");
    assert!(seen[1]["via"].as_str().unwrap().starts_with("relay"));
    watch.signal(Signal::SIGINT);
    let summary = told.summary();
    let of_rules: Vec<_> = summary["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["rule"].as_str().unwrap(), it["failed"].as_u64().unwrap()))
        .collect();
    for expected in [("own", 0), ("copy", 0), ("no", 1)] {
        assert!(of_rules.contains(&expected), "{summary}");
    }
}

/// A reader that has seen enough is no reason to fail, nor to end the command.
#[test]
fn nobody_has_to_read_it() {
    let sandbox = Sandbox::new();
    let web = sandbox.within(|| Server::web((SERVER_V4, 0)));
    let url = format!("http://{}/", web.address());
    let line = format!("curl -sS {url}; curl -sS {url}; exit 3");
    let mut command = sandbox.culvert_command();
    command.args(["watch", "--root", "--", "sh", "-c", &line]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert_eq!(ended.stdout, b"page\npage\n");
}

/// More than there is room for is counted.
#[test]
fn what_is_lost_is_counted() {
    const ROUNDS: u32 = 12_000;
    let sandbox = Sandbox::new();
    let told = Told::new(&sandbox);
    let cgroup = in_hierarchy(&sandbox);
    let watch = told.start(&sandbox, &["--cgroup", &cgroup]);
    let pid = Pid::from_raw(watch.pid().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let closed: SocketAddr = (SERVER_V4, CLOSED_PORT).into();
    let app = sandbox.app();
    for _ in 0..ROUNDS {
        let socket = app.tcp(closed);
        socket.connect(closed).unwrap_err();
        socket.close();
    }
    kill(pid, Signal::SIGCONT).unwrap();
    watch.signal(Signal::SIGINT);
    let summary = told.summary();
    let (seen, lost) = (&summary["connections"], &summary["lost"]);
    let (seen, lost) = (seen.as_u64().unwrap(), lost.as_u64().unwrap());
    assert_eq!(seen + lost, u64::from(ROUNDS), "{summary}");
    assert!(seen > 5000 && lost > 0, "{summary}");
    let told: u64 = told
        .of("lost")
        .iter()
        .map(|it| it["connections"].as_u64().unwrap())
        .sum();
    assert_eq!(told, lost);
}
