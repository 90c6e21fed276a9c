//! `culvert status` and the admin socket of a real daemon.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Output};

use culvert_tests::{
    Culvert, Sandbox,
    app::Route,
    daemon::Settings,
    eventually,
    hosts::{self, Hosts, LAN, WAN},
    kernel::has_tcx,
    peer::Server,
    rules::{ALL, relayed},
};
use serde_json::Value;

/// `culvert status`, asked of a socket.
fn status(sandbox: &Sandbox, admin: &Path, arguments: &[&str]) -> Output {
    let mut command = sandbox.culvert_command();
    command
        .arg("status")
        .args(arguments)
        .arg("--admin")
        .arg(admin);
    command.output().unwrap()
}

fn status_json(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Value {
    let output = status(sandbox, culvert.admin(), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_daemon_tells_how_it_is() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&format!("{ALL}path = \"sockmap\"\n"));
    sandbox.exchange();
    culvert.await_records(1);

    let told = status_json(&sandbox, &culvert);
    assert_eq!(told["pid"], culvert.pid());
    assert_eq!(told["rules"], 1);
    assert_eq!(told["connections"]["accepted"], 1);
    assert_eq!(told["connections"]["live"], 0);
    assert_eq!(told["connections"]["closed"]["done"], 1);
    assert_eq!(told["hooks"]["relayed"], 1);
    let path = |name: &str| {
        let paths = told["paths"].as_array().unwrap();
        paths
            .iter()
            .find(|path| path["path"] == name)
            .cloned()
            .unwrap()
    };
    assert_eq!(path("copy")["bytes"], 2000);
    assert_eq!(path("sockmap")["usable"], true, "{told:#}");
    assert_eq!(
        path("shortcut")["usable"],
        Value::Null,
        "no rule asks for it"
    );

    let text = status(&sandbox, culvert.admin(), &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["0 open, 1 accepted", "closed: done 1", "sockmap   on"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn a_reload_and_a_measurement_show() {
    let sandbox = Sandbox::new();
    let settings = Settings::daemon("calibrate = \"start\"");
    let culvert = sandbox.culvert_with(&settings, ALL);
    let auto = eventually("a measurement", || {
        let told = status_json(&sandbox, &culvert);
        let auto = told["auto"].as_array().unwrap().clone();
        (!auto.is_empty()).then_some(auto)
    });
    assert!(
        auto.iter().all(|kind| kind["relative"]["copy"] == 1.0),
        "{auto:?}"
    );
    let more = relayed("more", "port = 80");
    culvert.reload(&format!("{more}{ALL}"));
    assert_eq!(status_json(&sandbox, &culvert)["rules"], 2);
}

#[test]
fn only_its_owner_may_ask_and_a_kill_keeps_nobody_from_asking_the_next() {
    let sandbox = Sandbox::new();
    let mut culvert = sandbox.culvert(ALL);
    let place = culvert.admin().to_owned();
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o600);
    culvert.stop();
    assert!(!place.exists());
    let asked = status(&sandbox, &place, &[]);
    assert_eq!(asked.status.code(), Some(1));
    let error = String::from_utf8(asked.stderr).unwrap();
    assert!(error.contains("no culvert answers at"), "{error}");

    let shared = sandbox.directory().join("shared.admin");
    let settings = Settings::daemon(&format!("admin = \"{}\"", shared.display()));
    let mut first = sandbox.culvert_with(&settings, ALL);
    first.kill();
    assert!(shared.exists(), "nobody could remove it");
    let second = sandbox.culvert_with(&settings, ALL);
    let output = status(&sandbox, &shared, &["--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["pid"], second.pid());
}

#[test]
fn an_admin_socket_that_is_taken_does_not_keep_a_daemon_from_its_work() {
    let sandbox = Sandbox::new();
    let place = sandbox.directory().join("taken.admin");
    fs::write(&place, "not a socket").unwrap();
    let settings = Settings::daemon(&format!("admin = \"{}\"", place.display()));
    let culvert = sandbox.culvert_with(&settings, ALL);
    sandbox.exchange();
    assert_eq!(culvert.the_record().reason, "done");
    assert!(culvert.log().contains("is no socket"), "{}", culvert.log());
    assert_eq!(fs::read_to_string(&place).unwrap(), "not a socket");
}

#[test]
fn interfaces_say_which_programs_are_there_and_how() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let rules = format!(
        "[[gateway]]\nname = \"web\"\ninterface = \"{0}\"\nmatch = {{ port = 1 }}\nvia = \"original\"\n\
         [router]\nfast_path = [\"{0}\", \"{1}\"]\n",
        LAN[0], WAN[0]
    );
    let app = hosts.app(&sandbox, 0);
    let mirrors = [0, 1].map(|number| {
        let server = hosts.server(number);
        server.within(|| Server::mirror((hosts::server(number)[0], 0)))
    });
    for (setting, kind) in [
        (
            "ingress = \"auto\"",
            if has_tcx() { "tcx" } else { "clsact" },
        ),
        ("ingress = \"clsact\"", "clsact"),
    ] {
        let culvert = sandbox.culvert_with(&Settings::daemon(setting), &rules);
        for mirror in &mirrors {
            assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
        }
        let told = status_json(&sandbox, &culvert);
        let interfaces = told["interfaces"].as_array().unwrap();
        let programs = |name: &str| {
            let found = interfaces.iter().find(|it| it["name"] == name);
            let found = found.unwrap_or_else(|| panic!("{name}: {told:#}"));
            assert_eq!(found["attached"], kind, "{name}");
            let programs = found["programs"].as_array().unwrap();
            programs.contains(&"gateway".into()) && programs.contains(&"router".into())
        };
        assert!(programs(LAN[0]) && !programs(WAN[0]), "{told:#}");
        assert_eq!(interfaces.len(), 2, "{told:#}");
        for outcome in ["fast", "slow_elsewhere"] {
            assert!(told["hooks"][outcome].as_u64().unwrap() > 0, "{told:#}");
        }
        let text = status(&sandbox, culvert.admin(), &[]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("Interfaces\n  lan0 "), "{text}");
    }
}
