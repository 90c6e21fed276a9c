//! Rules that name cgroups, by path or as systemd units.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{fs, path::PathBuf, sync::Arc};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::{Result, Route},
    cgroup::Cgroup,
    daemon::Settings,
    eventually,
    peer::Server,
    process::app_binary,
    rules::{RELAY, relayed},
    sandbox::SERVER_V4,
};

const RELAYED: Result<Route> = Ok(Route::Relayed);
const DIRECT: Result<Route> = Ok(Route::Direct);

/// A rule that names cgroups.
fn rule(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    RELAY.to_owned() + &relayed("cgroup", &format!("cgroup = [{}]", names.join(", ")))
}

/// Which way the connections of a new process in a cgroup go.
fn probe_in(sandbox: &Sandbox, cgroup: &Arc<Cgroup>, mirror: &Server) -> Result<Route> {
    let app = App::start(&mut sandbox.command_in(cgroup, app_binary()));
    app.probe(mirror.address())
}

fn mirror(sandbox: &Sandbox) -> Server {
    sandbox.within(|| Server::mirror((SERVER_V4, 80)))
}

fn child(of: &Cgroup, name: &str) -> Arc<Cgroup> {
    Arc::new(of.child(name))
}

#[test]
fn a_subtree_by_its_path() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let named = child(sandbox.cgroup(), "named");
    let below = child(&named, "below");
    let deep = child(&below, "deep");
    let beside = child(sandbox.cgroup(), "named-too");
    let culvert = sandbox.culvert(&rule(&[named.name()]));
    for inside in [&named, &below, &deep] {
        assert_eq!(probe_in(&sandbox, inside, &mirror), RELAYED);
    }
    assert_eq!(probe_in(&sandbox, &beside, &mirror), DIRECT);
    let mut cgroups: Vec<_> = culvert
        .await_records(3)
        .into_iter()
        .map(|record| record.cgroup)
        .collect();
    // Each worker writes its own records, in no order between them.
    cgroups.sort();
    let path = |cgroup: &Cgroup| Some(format!("/{}", cgroup.name()));
    assert_eq!(cgroups, [path(&named), path(&below), path(&deep)]);
}

#[test]
fn an_exclusion_below_what_is_named() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let named = child(sandbox.cgroup(), "named");
    let excluded = child(&named, "excluded");
    let below = child(&excluded, "below");
    let exclusion = format!("!{}", excluded.name());
    let _culvert = sandbox.culvert(&rule(&[named.name(), &exclusion]));
    assert_eq!(probe_in(&sandbox, &named, &mirror), RELAYED);
    assert_eq!(probe_in(&sandbox, &excluded, &mirror), DIRECT);
    assert_eq!(probe_in(&sandbox, &below, &mirror), DIRECT);
}

#[test]
fn two_rules_for_a_parent_and_its_child() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let parent = child(sandbox.cgroup(), "parent");
    let inner = child(&parent, "inner");
    let rules = [
        RELAY.to_owned(),
        relayed("inner", &format!("cgroup = {:?}", inner.name())),
        relayed("parent", &format!("cgroup = {:?}", parent.name())),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    for (number, (cgroup, name)) in [(&inner, "inner"), (&parent, "parent")]
        .into_iter()
        .enumerate()
    {
        assert_eq!(probe_in(&sandbox, cgroup, &mirror), RELAYED);
        let records = culvert.await_records(number + 1);
        assert_eq!(records[number].rule.as_deref(), Some(name));
    }
}

/// The name of a unit that no other test, and no system, has.
fn unit(name: &str) -> String {
    format!("culvert-tests-{}-{name}.service", std::process::id())
}

#[test]
fn a_unit_wherever_it_is() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let unit = unit("anywhere");
    let slice = child(sandbox.cgroup(), "some.slice");
    let service = child(&slice, &unit);
    let worker = child(&service, "worker");
    let user_slice = child(sandbox.cgroup(), "user.slice");
    let same_unit_of_a_user = child(&user_slice, &unit);
    let _culvert = sandbox.culvert(&rule(&[&unit]));
    for inside in [&service, &worker, &same_unit_of_a_user] {
        assert_eq!(probe_in(&sandbox, inside, &mirror), RELAYED);
    }
    for outside in [&slice, &user_slice] {
        assert_eq!(probe_in(&sandbox, outside, &mirror), DIRECT);
    }
}

/// Waits until the daemon has noticed a cgroup.
fn assert_noticed(sandbox: &Sandbox, cgroup: &Arc<Cgroup>, mirror: &Server) {
    eventually("the cgroup to be noticed", || {
        (probe_in(sandbox, cgroup, mirror) == RELAYED).then_some(())
    });
}

fn assert_announced(culvert: &Culvert<'_>, name: &str) {
    let expected = format!("there is no cgroup {name:?} yet");
    assert!(culvert.log().contains(&expected), "{}", culvert.log());
}

#[test]
fn a_path_that_appears_later_and_again() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let name = format!("{}/outer/named", sandbox.cgroup().name());
    let culvert = sandbox.culvert(&rule(&[&name]));
    assert_announced(&culvert, &name);
    let outer = child(sandbox.cgroup(), "outer");
    assert_eq!(probe_in(&sandbox, &outer, &mirror), DIRECT);
    for _ in 0..2 {
        // A cgroup of the same path has another id each time.
        let named = child(&outer, "named");
        assert_noticed(&sandbox, &named, &mirror);
    }
    assert_eq!(probe_in(&sandbox, &outer, &mirror), DIRECT);
}

#[test]
fn a_unit_that_appears_later_and_again() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let unit = unit("later");
    let culvert = sandbox.culvert(&rule(&[&unit]));
    assert_announced(&culvert, &unit);
    let slice = child(sandbox.cgroup(), "later.slice");
    for _ in 0..2 {
        let service = child(&slice, &unit);
        assert_noticed(&sandbox, &service, &mirror);
    }
}

#[test]
fn a_process_that_moves() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let (named, other) = (
        child(sandbox.cgroup(), "named"),
        child(sandbox.cgroup(), "other"),
    );
    let _culvert = sandbox.culvert(&rule(&[named.name()]));
    let app = App::start(&mut sandbox.command_in(&other, app_binary()));
    assert_eq!(app.probe(mirror.address()), DIRECT);
    named.take(app.pid());
    assert_eq!(app.probe(mirror.address()), RELAYED);
    other.take(app.pid());
    assert_eq!(app.probe(mirror.address()), DIRECT);
}

#[test]
fn only_below_the_cgroup_of_the_daemon() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let (attached, beside) = (
        child(sandbox.cgroup(), "attached"),
        child(sandbox.cgroup(), "beside"),
    );
    let settings = Settings {
        cgroup: Some(attached.name().to_owned()),
        ..Settings::default()
    };
    let everything = RELAY.to_owned() + &relayed("all", "port = \"1-65535\"");
    let culvert = sandbox.culvert_with(&settings, &everything);
    assert_eq!(probe_in(&sandbox, &attached, &mirror), RELAYED);
    assert_eq!(probe_in(&sandbox, &beside, &mirror), DIRECT);
    assert_eq!(culvert.counter("seen"), 1);
}

#[test]
fn an_attach_point_that_does_not_exist() {
    let sandbox = Sandbox::new();
    let config: PathBuf = sandbox.directory().join("config.toml");
    let text = format!(
        "[daemon]\ncgroup = \"{}/missing\"\n",
        sandbox.cgroup().name()
    );
    fs::write(&config, text).unwrap();
    let output = sandbox
        .culvert_command()
        .arg("run")
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/missing"), "{said}");
}
