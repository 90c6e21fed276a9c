//! A daemon that has no more files: it keeps what it has, the others wait, and nobody else is blamed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{Ipv4Addr, SocketAddr};

use culvert_tests::{
    App, Culvert, Sandbox,
    daemon::Settings,
    eventually,
    peer::Crowd,
    process::run,
    sandbox::{OTHER_V4, SERVER_V4},
    usage::{assert_rests, open_files},
};
use serde_json::Value;

/// Where clients connect.
const SERVICE: (Ipv4Addr, u16) = (OTHER_V4, 80);
/// Files that a daemon sets aside for everything but connections.
const OTHER_FILES: usize = 256;
/// Connections that its limit leaves it.
const LIMIT: usize = 20;

fn settings() -> Settings {
    Settings {
        daemon: "workers = 1\ndrain_timeout = \"20s\"".to_owned(),
        open_files: Some((OTHER_FILES + 2 * LIMIT) as u64),
        ..Settings::default()
    }
}

fn rules(servers: &[Crowd]) -> String {
    let endpoints: Vec<_> = servers
        .iter()
        .map(|one| one.address().to_string())
        .collect();
    format!(
        "[upstream.farm]\nendpoints = {endpoints:?}\nbalance = \"round-robin\"\n\
         health = {{ tcp = true, interval = \"100ms\", timeout = \"10s\", fall = 1, rise = 1 }}\n\
         [[reverse]]\nname = \"farm\"\nlisten = \"{OTHER_V4}:80\"\nvia = \"farm\"\n"
    )
}

fn crowd(sandbox: &Sandbox, address: impl Into<SocketAddr>) -> Crowd {
    let address = address.into();
    sandbox.within(|| Crowd::start(address))
}

fn endpoint(culvert: &Culvert<'_>, server: SocketAddr) -> Value {
    let status = culvert.status();
    let mut all = status["groups"][0]["endpoints"].as_array().unwrap().iter();
    let named = |one: &&Value| one["address"] == server.to_string();
    all.find(named).unwrap().clone()
}

fn await_state(culvert: &Culvert<'_>, server: SocketAddr, state: &str) {
    eventually(&format!("{server} to be {state}"), || {
        (endpoint(culvert, server)["state"] == state).then_some(())
    });
}

fn await_live(culvert: &Culvert<'_>, count: usize) {
    eventually(&format!("{count} connections"), || {
        (culvert.status()["connections"]["live"] == count).then_some(())
    });
}

/// A daemon at its limit, by clients that keep their connections.
fn fill(sandbox: &Sandbox, culvert: &Culvert<'_>) -> App {
    let holding = sandbox.app();
    holding
        .hold(SERVICE.into(), u32::try_from(LIMIT).unwrap())
        .unwrap();
    await_live(culvert, LIMIT);
    holding
}

#[test]
fn at_its_limit_a_group_is_looked_after_and_the_others_wait() {
    let sandbox = Sandbox::new();
    let mut servers = vec![
        crowd(&sandbox, (SERVER_V4, 0)),
        crowd(&sandbox, (SERVER_V4, 0)),
    ];
    let addresses = [servers[0].address(), servers[1].address()];
    let culvert = sandbox.culvert_with(&settings(), &rules(&servers));
    let holding = fill(&sandbox, &culvert);
    let waiting = sandbox.app();
    let socket = waiting.tcp(SERVICE.into());
    // The kernel takes it in our stead.
    socket.connect(SERVICE.into()).unwrap();
    socket.send(b"patience").unwrap();
    assert_rests(culvert.pid());
    await_live(&culvert, LIMIT);
    assert_eq!(holding.exchange_held(1000), Ok(()));

    // Checks have files of their own: who dies is noticed, and who comes back.
    let lost = servers.pop().unwrap();
    drop(lost);
    await_state(&culvert, addresses[1], "down");
    servers.push(crowd(&sandbox, addresses[1]));
    await_state(&culvert, addresses[1], "up");

    drop(holding);
    assert_eq!(socket.receive(8).unwrap(), b"patience");
    assert_eq!(endpoint(&culvert, addresses[0])["failures"], 0);
}

/// Somebody lowers the limit while the daemon runs, so that the files that it had set aside are gone, too.
#[test]
fn no_endpoint_is_blamed_for_files_that_the_daemon_lacks() {
    let sandbox = Sandbox::new();
    let servers = [
        crowd(&sandbox, (SERVER_V4, 0)),
        crowd(&sandbox, (SERVER_V4, 0)),
    ];
    let culvert = sandbox.culvert_with(&settings(), &rules(&servers));
    let limit = |files: usize| {
        let limit = format!("--nofile={files}:");
        run("prlimit", &["--pid", &culvert.pid().to_string(), &limit]);
    };
    let checked = |server: &Crowd| server.accepted();
    eventually("checks", || (checked(&servers[0]) > 2).then_some(()));
    let holding = sandbox.app();
    holding.hold(SERVICE.into(), 4).unwrap();
    await_live(&culvert, 4);
    // It has far more open than that.
    limit(3);
    let app = sandbox.app();
    let socket = app.tcp(SERVICE.into());
    socket.connect(SERVICE.into()).unwrap();
    socket.send(b"patience").unwrap();
    eventually("a word about the limit", || {
        culvert.log().contains("open files").then_some(())
    });
    assert_rests(culvert.pid());
    assert_eq!(holding.exchange_held(1000), Ok(()));
    limit(OTHER_FILES + 2 * LIMIT);
    assert_eq!(socket.receive(8).unwrap(), b"patience");
    for server in &servers {
        let endpoint = endpoint(&culvert, server.address());
        assert_eq!(endpoint["failed_checks"], 0, "{endpoint}");
        assert_eq!(
            (&endpoint["failures"], &endpoint["changes"]),
            (&0.into(), &0.into())
        );
    }
    assert!(!culvert.log().contains("endpoint"), "{}", culvert.log());
}

#[test]
fn a_daemon_at_its_limit_is_succeeded() {
    let sandbox = Sandbox::new();
    let servers = [crowd(&sandbox, (SERVER_V4, 0))];
    let mut old = sandbox.culvert_with(&settings(), &rules(&servers));
    let holding = fill(&sandbox, &old);
    let app = sandbox.app();
    let waiting = app.tcp(SERVICE.into());
    waiting.connect(SERVICE.into()).unwrap();
    waiting.send(b"patience").unwrap();
    let successor = Settings {
        takeover: true,
        ..settings()
    };
    let new = sandbox.culvert_with(&successor, &rules(&servers));
    let next = app.tcp(SERVICE.into());
    next.connect(SERVICE.into()).unwrap();
    next.send(b"at once!").unwrap();
    assert_eq!(next.receive(8).unwrap(), b"at once!");
    // What it has, the old one keeps, and it takes who had come to it when there is room.
    assert_eq!(holding.exchange_held(1000), Ok(()));
    drop(holding);
    assert_eq!(waiting.receive(8).unwrap(), b"patience");
    waiting.close();
    assert!(old.wait().success());
    next.close();
    await_live(&new, 0);
    let files = open_files(new.pid());
    assert!(files < OTHER_FILES, "{files}");
}
