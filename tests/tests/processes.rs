//! Rules that name a process: it, its threads and its future children.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    App, Sandbox,
    app::{Result, Route, protocol::Call},
    peer::Server,
    process::app_binary,
    rules::{RELAY, relayed},
    sandbox::SERVER_V4,
};

const RELAYED: Result<Route> = Ok(Route::Relayed);
const DIRECT: Result<Route> = Ok(Route::Direct);

fn rule(matches: &str) -> String {
    RELAY.to_owned() + &relayed("process", matches)
}

#[test]
fn it_and_no_other() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let (named, other) = (sandbox.app(), sandbox.app());
    let _culvert = sandbox.culvert(&rule(&format!("pid = {}", named.pid())));
    assert_eq!(named.probe(mirror.address()), RELAYED);
    assert_eq!(other.probe(mirror.address()), DIRECT);
    assert_eq!(other.probe_in_child(mirror.address()), DIRECT);
}

#[test]
fn its_threads_children_and_grandchildren() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let app = sandbox.app();
    let culvert = sandbox.culvert(&rule(&format!("pid = {}", app.pid())));
    let probe = Call::Probe(mirror.address());
    let ways = [
        probe.clone().in_thread(),
        probe.clone().in_child(),
        probe.clone().in_child().in_child(),
        probe.clone().in_thread().in_child(),
        probe.clone().in_child().in_thread(),
        probe.in_child().in_child().in_child().in_thread(),
    ];
    for call in &ways {
        assert_eq!(app.probe_by(call), RELAYED, "{call:?}");
    }
    for record in culvert.await_records(ways.len()) {
        assert_eq!(record.rule.as_deref(), Some("process"));
    }
}

#[test]
fn what_it_executes() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    // The shell waits for a line, and then becomes an app in a child of a child.
    let script = format!("read -r _; ( ( {} ) ); true", app_binary().display());
    let mut command = sandbox.command("sh");
    let app = App::start(command.arg("-c").arg(script));
    let _culvert = sandbox.culvert(&rule(&format!("pid = {}", app.pid())));
    app.say_nothing();
    assert_eq!(app.probe(mirror.address()), RELAYED);
}

#[test]
fn a_child_that_outlives_it() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    // The shell is gone by the time its child connects; the child is adopted by somebody else.
    let script = format!(
        "exec 3<&0; read -r _; {} <&3 & exit",
        app_binary().display()
    );
    let mut command = sandbox.command("sh");
    let mut app = App::start(command.arg("-c").arg(script));
    let _culvert = sandbox.culvert(&rule(&format!("pid = {}", app.pid())));
    app.say_nothing();
    app.wait();
    assert_eq!(app.probe(mirror.address()), RELAYED);
}

#[test]
fn a_process_that_is_named_by_a_reload() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let (first, second) = (sandbox.app(), sandbox.app());
    let culvert = sandbox.culvert(&rule("port = 1"));
    assert_eq!(first.probe(mirror.address()), DIRECT);
    for (named, other) in [(&first, &second), (&second, &first)] {
        culvert.reload(&rule(&format!("pid = {}", named.pid())));
        assert_eq!(named.probe_in_child(mirror.address()), RELAYED);
        assert_eq!(named.probe(mirror.address()), RELAYED);
        assert_eq!(other.probe_in_child(mirror.address()), DIRECT);
        assert_eq!(other.probe(mirror.address()), DIRECT);
    }
    culvert.reload(&rule("port = 1"));
    assert_eq!(second.probe(mirror.address()), DIRECT);
}

#[test]
fn an_exclusion() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let (excluded, other) = (sandbox.app(), sandbox.app());
    let _culvert = sandbox.culvert(&rule(&format!("pid = \"!{}\"", excluded.pid())));
    assert_eq!(excluded.probe(mirror.address()), DIRECT);
    assert_eq!(excluded.probe_in_child(mirror.address()), DIRECT);
    assert_eq!(other.probe(mirror.address()), RELAYED);
}

#[test]
fn thousands_of_children_leave_no_trace() {
    let sandbox = Sandbox::new();
    let app = sandbox.app();
    let culvert = sandbox.culvert(&rule(&format!("pid = {}", app.pid())));
    assert_eq!(culvert.maps().descendants(), [app.pid()]);
    let script = "read -r _; for i in $(seq 2000); do (:); done; exec \"$0\"";
    let mut command = sandbox.command("sh");
    let shell = App::start(command.args(["-c", script]).arg(app_binary()));
    culvert.reload(&rule(&format!("pid = {}", shell.pid())));
    shell.say_nothing();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    assert_eq!(shell.probe(mirror.address()), RELAYED);
    assert_eq!(culvert.maps().descendants(), [shell.pid()]);
}
