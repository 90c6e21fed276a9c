//! What `culvert explain` says of connections of containers, against what becomes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{net::SocketAddr, process::Output};

use culvert_tests::{
    Culvert, Sandbox,
    app::Route,
    container::{Container, app_of_other_users, engine, id, network},
    eventually,
    kernel::refusal,
    peer::Server,
    rules::RELAY,
    sandbox::SERVER_V4,
};
use serde_json::Value;

fn rules(container: &str, more: &str) -> String {
    format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = {container:?} }}\nvia = \"relay\"\n{more}\n"
    )
}

fn run(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Output {
    let mut command = sandbox.culvert_command();
    command.arg("explain").args(words);
    command.arg("--admin").arg(culvert.admin());
    command.output().unwrap()
}

fn explain(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Value {
    let output = run(sandbox, culvert, &[words, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Where the daemon says that it listens for a container.
fn listeners(culvert: &Culvert<'_>) -> Vec<Value> {
    let status = culvert.status();
    let [space] = &status["containers"].as_array().unwrap()[..] else {
        panic!("{status}");
    };
    vec![space["listener_v4"].clone()]
}

fn why(explanation: &Value) -> &str {
    explanation["why"].as_str().unwrap()
}

#[test]
fn a_container_is_captured_as_it_is_said_whoever_is_named() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    engine::knows(&sandbox, engine::DOCKER, &[("web", &one)]);
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    let pid = container.pid().to_string();
    let culvert = sandbox.culvert(&rules("web", "on_relay_failure = \"refuse\""));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let to = mirror.address().to_string();
    for words in [
        ["--pid", &pid],
        ["--container", "web"],
        ["--container", &one],
        ["--container", &one[..12]],
    ] {
        let said = explain(&sandbox, &culvert, &[&words[..], &[&to]].concat());
        assert_eq!(said["verdict"], "relay", "{said:#}");
        assert_eq!(said["rule"], "boxes");
        assert_eq!(said["listeners"], Value::from(listeners(&culvert)));
        let cgroup = said["connection"]["process"]["cgroup"].as_str().unwrap();
        assert!(cgroup.contains(&one), "{said:#}");
    }
    // Who connects to the listener itself is reset.
    let listener: SocketAddr = listeners(&culvert)[0].as_str().unwrap().parse().unwrap();
    let said = explain(
        &sandbox,
        &culvert,
        &["--container", "web", &listener.to_string()],
    );
    assert!(why(&said).contains("own listener"), "{said:#}");
    assert!(app.probe(listener).is_err());

    let nobody = run(&sandbox, &culvert, &["--container", "nobody", &to]);
    assert_eq!(nobody.status.code(), Some(2), "{nobody:?}");
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(error.contains("\"nobody\": no runtime knows it"), "{error}");
}

#[test]
fn a_container_that_starts_later_is_told_as_soon_as_it_is_captured() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let culvert = sandbox.culvert(&rules(&one, ""));
    let to = mirror.address().to_string();
    let missing = run(&sandbox, &culvert, &["--container", &one, &to]);
    let error = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(error.contains("does not run"), "{error}");
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    container.pid();
    eventually("connections of a container that are relayed", || {
        (app.probe(mirror.address()) == Ok(Route::Relayed)).then_some(())
    });
    let said = explain(&sandbox, &culvert, &["--container", &one, &to]);
    assert_eq!(said["verdict"], "relay", "{said:#}");
}

#[test]
fn why_a_network_of_other_users_has_no_listeners_is_said() {
    let one = id();
    for (mode, connects) in [("direct", true), ("refuse", false)] {
        let sandbox = Sandbox::new();
        let (_cgroup, app) = app_of_other_users(&sandbox, &one);
        let mirror = app.serve((SERVER_V4, 7003).into());
        let culvert = sandbox.culvert(&rules(&one, &format!("on_relay_failure = \"{mode}\"")));
        let said = explain(
            &sandbox,
            &culvert,
            &["--container", &one, &mirror.to_string()],
        );
        assert_eq!(said["verdict"], mode, "{said:#}");
        assert!(why(&said).contains("user namespace"), "{said:#}");
        assert_eq!(said["listeners"], Value::Array(Vec::new()));
        assert_eq!(app.tcp(mirror).connect(mirror).is_ok(), connects);
    }
}

#[test]
fn what_would_be_rewritten_is_relayed_from_a_container() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    container.pid();
    let rules = format!(
        "[upstream.web]\nendpoints = [\"{0}\"]\n[[forward]]\nname = \"boxes\"\nmatch = {{ container = {one:?} }}\n\
         via = \"web\"\npath = \"rewrite\"\n[[forward]]\nname = \"near\"\nmatch = {{ dest = \"{SERVER_V4}\" }}\n\
         via = \"web\"\npath = \"rewrite\"\n",
        mirror.address()
    );
    let culvert = sandbox.culvert(&rules);
    let to = mirror.address().to_string();
    let said = explain(&sandbox, &culvert, &["--container", &one, &to]);
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert_eq!(said["verdict"], "relay", "{said:#}");
    assert_eq!(said["listeners"], Value::from(listeners(&culvert)));
    assert_ne!(said["path"], "rewrite");
    assert_eq!(culvert.counter("rewritten"), 0);
    let near = sandbox.app();
    let said = explain(&sandbox, &culvert, &["--pid", &near.pid().to_string(), &to]);
    assert_eq!(said["verdict"], "rewrite", "{said:#}");
    // A container that no rule names, by a rule that names none.
    let other = id();
    let elsewhere = network(&sandbox, 2);
    let container = Container::alone(&sandbox, &other, &elsewhere);
    let app = container.start_app();
    container.pid();
    let said = explain(&sandbox, &culvert, &["--container", &other, &to]);
    assert_eq!(said["verdict"], "direct", "{said:#}");
    assert!(why(&said).contains("another network namespace"), "{said:#}");
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    culvert.reload(&(rules + "on_relay_failure = \"refuse\"\n"));
    assert_eq!(app.probe(mirror.address()), Err(refusal()));
}
