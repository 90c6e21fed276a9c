//! `culvert drain` and `culvert restore`: endpoints and bindings that get no new connections for a while.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, SocketAddr},
    process::Output,
    thread,
};

use culvert_tests::{
    App, Culvert, Load, Sandbox,
    app::protocol::Storm,
    daemon::Settings,
    eventually,
    load::assert_flawless,
    peer::Server,
    sandbox::{OTHER_V4, SERVER_V4},
};
use nix::errno::Errno;
use serde_json::Value;

/// Where apps connect; nobody listens there.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(OTHER_V4), 80);

/// A group of endpoints for all connections to the service, with more lines for its rule.
fn group(endpoints: &[String], rule: &str) -> String {
    format!(
        r#"
        [upstream.web]
        endpoints = {endpoints:?}
        balance = "round-robin"
        [[forward]]
        name = "service"
        match = {{ dest = "{OTHER_V4}", port = 80 }}
        via = "web"
        {rule}
        "#
    )
}

fn names<const N: usize>(servers: &[Server; N]) -> [String; N] {
    servers
        .each_ref()
        .map(|server| server.address().to_string())
}

fn echo(sandbox: &Sandbox) -> Server {
    sandbox.within(|| Server::echo((SERVER_V4, 0)))
}

fn clients<const N: usize>(servers: &[Server; N]) -> [usize; N] {
    servers.each_ref().map(|server| server.clients().len())
}

fn storm(app: &App, count: u32) {
    let outcomes = app.storm(&Storm {
        addresses: vec![SERVICE],
        threads: 2,
        each: count / 2,
        length: 100,
    });
    assert_eq!(outcomes, [(0, u64::from(count))].into());
}

/// A command to the daemon.
fn tell(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Output {
    let mut command = sandbox.culvert_command();
    command.args(words).arg("--admin").arg(culvert.admin());
    command.output().unwrap()
}

/// What a command says that succeeds.
fn told(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> String {
    let output = tell(sandbox, culvert, words);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What one says that does not.
fn refused(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> String {
    let output = tell(sandbox, culvert, words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn status(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Value {
    serde_json::from_str(&told(sandbox, culvert, &["status", "--json"])).unwrap()
}

#[test]
fn an_endpoint_gets_no_new_connections_and_those_it_has_may_finish() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox)];
    let [first, _] = &names(&servers);
    let culvert = sandbox.culvert(&group(&names(&servers), ""));
    let app = sandbox.app();
    let held = [(); 2].map(|()| {
        let socket = app.tcp(SERVICE);
        socket.connect(SERVICE).unwrap();
        socket.assert_echo();
        socket
    });
    assert_eq!(clients(&servers), [1, 1]);

    let said = told(&sandbox, &culvert, &["drain", first, "--timeout", "1h"]);
    assert_eq!(
        said,
        format!("web/{first}: draining, 1 connections left, reset in 1h\n")
    );
    storm(&app, 20);
    assert_eq!(clients(&servers), [1, 21]);
    let shown = status(&sandbox, &culvert);
    let drain = &shown["drains"][0];
    assert_eq!(drain["target"], format!("web/{first}"));
    assert_eq!((&drain["live"], &drain["done"]), (&1.into(), &false.into()));
    assert_eq!(shown["groups"][0]["endpoints"].as_array().unwrap().len(), 2);

    for socket in held {
        socket.exchange(1, 100_000).unwrap();
        socket.shutdown().unwrap();
        assert_eq!(socket.receive_all(), Ok(Vec::new()));
        socket.close();
    }
    let said = told(&sandbox, &culvert, &["drain", first, "--wait"]);
    assert!(said.ends_with(&format!("web/{first}: drained\n")), "{said}");
    assert!(
        culvert
            .records()
            .iter()
            .all(|record| record.reason == "done")
    );

    assert_eq!(
        told(&sandbox, &culvert, &["restore", &format!("web/{first}")]),
        format!("web/{first}: restored\n")
    );
    storm(&app, 20);
    assert!(clients(&servers)[0] >= 10, "{:?}", clients(&servers));
    let said = refused(&sandbox, &culvert, &["restore", first]);
    assert!(said.contains("is not drained"), "{said}");
    assert_eq!(
        status(&sandbox, &culvert)["drains"],
        Value::Array(Vec::new())
    );
}

#[test]
fn what_does_not_finish_in_time_is_reset() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox)];
    let [first, _] = &names(&servers);
    // The daemon's own time, if nothing else is said.
    let settings = Settings::daemon("drain_timeout = \"300ms\"");
    let culvert = sandbox.culvert_with(&settings, &group(&names(&servers), ""));
    let app = sandbox.app();
    let held = [(); 2].map(|()| {
        let socket = app.tcp(SERVICE);
        socket.connect(SERVICE).unwrap();
        socket.assert_echo();
        socket
    });
    let drained = servers[0].clients().len();
    assert_eq!(drained, 1);
    let said = told(&sandbox, &culvert, &["drain", first, "--wait"]);
    assert!(said.ends_with(": drained\n"), "{said}");
    let record = culvert.the_record();
    assert_eq!(record.reason, "drained");
    assert_eq!(record.endpoint.as_ref(), Some(first));
    let reset: Vec<_> = held
        .iter()
        .filter(|socket| {
            // Only the one whose endpoint was drained.
            socket.exchange(1, 1000).is_err()
        })
        .map(culvert_tests::Socket::receive_all)
        .collect();
    assert_eq!(reset.len(), 1, "{reset:?}");
}

#[test]
fn connections_wait_while_everything_is_drained() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox)];
    let all = names(&servers);
    for path in ["auto", "rewrite"] {
        let rule = format!("path = \"{path}\"");
        let culvert = sandbox.culvert(&group(&all, &rule));
        let app = sandbox.app();
        storm(&app, 4);
        for name in &all {
            told(&sandbox, &culvert, &["drain", name]);
        }
        let before = clients(&servers);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| storm(&app, 2));
            eventually("somebody in the queue", || {
                let waiting = status(&sandbox, &culvert)["groups"][0]["waiting"].clone();
                (waiting.as_u64()? > 0).then_some(())
            });
            assert_eq!(clients(&servers), before);
            told(&sandbox, &culvert, &["restore", &all[1]]);
            waiting.join().unwrap();
        });
        assert_eq!(clients(&servers), [before[0], before[1] + 2], "{path}");
    }
}

#[test]
fn the_hook_does_not_choose_who_is_drained_or_stands_by() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox), echo(&sandbox)];
    let mut all = names(&servers);
    all[2].push_str(" weight=0");
    let culvert = sandbox.culvert(&group(&all, "path = \"rewrite\""));
    let app = sandbox.app();
    let held = app.tcp(SERVICE);
    held.connect(SERVICE).unwrap();
    held.assert_echo();
    storm(&app, 40);
    let before = clients(&servers);
    assert!(
        before[0] > 0 && before[1] > 0 && before[2] == 0,
        "{before:?}"
    );
    told(&sandbox, &culvert, &["drain", &all[0]]);
    storm(&app, 40);
    assert_eq!(clients(&servers), [before[0], before[1] + 40, 0]);
    told(&sandbox, &culvert, &["drain", &all[1]]);
    storm(&app, 40);
    assert_eq!(clients(&servers), [before[0], before[1] + 40, 40]);
    assert_eq!(culvert.counter("rewritten"), 121);
    // Nobody is between it and its endpoint.
    held.assert_echo();
    told(&sandbox, &culvert, &["restore", &all[0]]);
    storm(&app, 40);
    assert_eq!(clients(&servers), [before[0] + 40, before[1] + 40, 40]);
}

#[test]
fn a_reload_keeps_what_is_listed_and_forgets_the_rest() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox)];
    let all = names(&servers);
    let culvert = sandbox.culvert(&group(&all, ""));
    let app = sandbox.app();
    told(&sandbox, &culvert, &["drain", &all[0]]);
    culvert.reload(&group(&all, "path = \"copy\""));
    storm(&app, 10);
    assert_eq!(clients(&servers), [0, 10]);
    culvert.reload(&group(&all[1..], ""));
    assert_eq!(
        status(&sandbox, &culvert)["drains"],
        Value::Array(Vec::new())
    );
    culvert.reload(&group(&all, ""));
    storm(&app, 10);
    assert_eq!(clients(&servers), [5, 15]);
}

#[test]
fn nobody_notices_endpoints_that_come_and_go() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox), echo(&sandbox)];
    let all = names(&servers);
    for path in ["auto", "rewrite"] {
        let rule = format!("path = \"{path}\"");
        let culvert = sandbox.culvert(&group(&all, &rule));
        let load = Load::start(sandbox.app(), Storm::short(&[SERVICE]));
        for round in 0..6 {
            let name = &all[round % 2];
            load.await_rounds(round + 1);
            told(&sandbox, &culvert, &["drain", name, "--timeout", "1m"]);
            let before = servers[round % 2].clients().len();
            load.await_rounds(round + 2);
            // One that was being made may not have been seen yet.
            let late = servers[round % 2].clients().len() - before;
            assert!(late <= 8, "{late}");
            told(&sandbox, &culvert, &["restore", name]);
        }
        assert_flawless(&load.finish());
    }
}

/// A rule of some addresses of which each goes to a server.
fn site(name: &str, listen: &str, via: &str, more: &str) -> String {
    format!("[[reverse]]\nname = \"{name}\"\nlisten = {listen}\nvia = \"{via}\"\n{more}\n")
}

fn exchange(app: &App, address: SocketAddr) -> Result<(), Errno> {
    let socket = app.tcp(address);
    socket.connect(address)?;
    socket.exchange(1, 10_000)
}

#[test]
fn while_a_binding_is_drained_the_service_answers_itself() {
    let sandbox = Sandbox::new();
    let service = echo(&sandbox);
    let other = sandbox.within(|| Server::echo((OTHER_V4, service.address().port())));
    let (address, beside) = (service.address(), other.address());
    // A wider rule gets nothing of it.
    let listen = format!("[\"{address}\", \"{beside}\"]");
    let rules = [
        site("site", &listen, "original", "on_relay_failure = \"refuse\""),
        site("wide", "\"*:1024-65535\"", "refuse", ""),
    ]
    .concat();
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    let held = app.tcp(address);
    held.connect(address).unwrap();
    held.assert_echo();
    let text = address.to_string();

    told(&sandbox, &culvert, &["drain", &text, "--timeout", "1h"]);
    assert_eq!(exchange(&app, address), Ok(()));
    assert_eq!(culvert.counter("arrived_relayed"), 1, "only the first");
    assert_eq!(exchange(&app, beside), Ok(()));
    assert_eq!(culvert.counter("arrived_relayed"), 2);
    held.exchange(1, 100_000).unwrap();
    let shown = status(&sandbox, &culvert);
    assert_eq!(shown["drains"][0]["target"], format!("site/{text}"));
    assert_eq!(shown["drains"][0]["live"], 1);
    // A reload that still lists it.
    culvert.reload(&rules);
    assert_eq!(exchange(&app, address), Ok(()));
    assert_eq!(culvert.counter("arrived_relayed"), 2);
    held.shutdown().unwrap();
    assert_eq!(held.receive_all(), Ok(Vec::new()));
    told(
        &sandbox,
        &culvert,
        &["drain", &format!("site/{text}"), "--wait"],
    );

    told(&sandbox, &culvert, &["restore", &text]);
    assert_eq!(exchange(&app, address), Ok(()));
    assert_eq!(culvert.counter("arrived_relayed"), 3);
    assert!(
        culvert
            .records()
            .iter()
            .all(|record| record.reason == "done")
    );
}

#[test]
fn a_rule_is_drained_with_all_that_it_listens_on() {
    let sandbox = Sandbox::new();
    let service = echo(&sandbox);
    let address = SocketAddr::from((OTHER_V4, 8000));
    let via = service.address().to_string();
    for more in ["", "path = \"steer\""] {
        let rules = site("site", "\"*:8000-8001\"", &via, more);
        let culvert = sandbox.culvert(&rules);
        let app = sandbox.app();
        assert_eq!(exchange(&app, address), Ok(()));
        let held = app.tcp(address);
        held.connect(address).unwrap();
        held.assert_echo();
        let said = told(
            &sandbox,
            &culvert,
            &["drain", "site", "--timeout", "0s", "--wait"],
        );
        assert!(said.ends_with("site: drained\n"), "{said}");
        // Nobody listens there.
        assert_eq!(exchange(&app, address), Err(Errno::ECONNREFUSED));
        if more.is_empty() {
            assert_eq!(held.receive_all(), Err(Errno::ECONNRESET));
            let records = culvert.await_records(2);
            assert_eq!(records[1].reason, "drained", "{records:?}");
        } else {
            // Whose connection it is nobody but the service knows.
            held.assert_echo();
        }
        told(&sandbox, &culvert, &["restore", "site"]);
        assert_eq!(exchange(&app, address), Ok(()));
    }
}

#[test]
fn what_cannot_be_drained_is_said() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let name = server.address().to_string();
    let twice = group(std::slice::from_ref(&name), "")
        + &site("site", &format!("\"{name}\""), "original", "");
    let culvert = sandbox.culvert(&twice);
    let said = refused(&sandbox, &culvert, &["drain", "10.0.0.1:80"]);
    assert!(
        said.contains("there is no \"10.0.0.1:80\" to drain"),
        "{said}"
    );
    let said = refused(&sandbox, &culvert, &["drain", &name]);
    let both = format!("can be web/{name} or site/{name}; say which");
    assert!(said.contains(&both), "{said}");
    let said = refused(&sandbox, &culvert, &["restore", "site"]);
    assert!(said.contains("site is not drained"), "{said}");
    for words in [
        ["drain", &name, "--timeout", "soon"],
        ["drain", &name, "--timeout", "-1s"],
    ] {
        let output = tell(&sandbox, &culvert, &words);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    assert_eq!(exchange(&sandbox.app(), SERVICE), Ok(()));
}
