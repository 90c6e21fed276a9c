//! `culvert top`, by somebody in front of a terminal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod order;
mod remote;

use std::{process::Stdio, time::Instant};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    peer::{Crowd, Server},
    process::culvert_binary,
    rules::ALL,
    sandbox::{OTHER_V4, SERVER_V4},
    screen::Screen,
    usage::affordable,
};
use nix::{errno::Errno, sys::signal::Signal};

/// Moves, as terminals send them.
const DOWN: &str = "\x1b[B";
const END: &str = "\x1b[F";
const HOME: &str = "\x1b[H";

fn top(sandbox: &Sandbox, culvert: &Culvert<'_>, arguments: &[&str]) -> Screen {
    let mut command = sandbox.culvert_command();
    command.arg("top").args(arguments);
    command.arg("--admin").arg(culvert.admin());
    let mut screen = Screen::start(&mut command, 80, 24);
    screen.await_text("Connections ");
    screen
}

fn quit(mut screen: Screen) {
    screen.type_in("q");
    let (status, is_restored) = screen.end();
    assert!(status.success(), "{status}");
    assert!(is_restored, "the terminal is left as it was drawn on");
}

#[test]
fn connections_are_found_looked_at_and_reset() {
    let sandbox = Sandbox::new();
    let servers = [SERVER_V4, OTHER_V4].map(|ip| sandbox.within(|| Server::echo((ip, 0))));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let [kept, ended] = servers.each_ref().map(|server| {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(1, 100_000).unwrap();
        socket
    });
    let [one, other] = servers
        .each_ref()
        .map(|server| server.address().to_string());
    let mut screen = top(&sandbox, &culvert, &[]);
    screen.await_text("Connections 2, by rate");
    screen.await_seen("rates and totals", |text| {
        let mut lines = text.lines().skip(1);
        let is_shown = |line: &str, name| line.starts_with(name) && line.ends_with("195K in all");
        let bytes =
            ["up", "down"].map(|name| lines.next().is_some_and(|line| is_shown(line, name)));
        (bytes == [true; 2]).then_some(())
    });
    let line = screen.await_seen("a connection", |text| {
        let line = text.lines().find(|line| line.contains(&other))?;
        Some(line.to_owned())
    });
    for part in ["culvert-tes", " copy ", " all "] {
        assert!(line.contains(part), "{part:?} in {line:?}");
    }
    // Bars of what comes while somebody looks.
    kept.exchange(1, 5_000_000).unwrap();
    screen.await_text("█");

    screen.type_in("b");
    screen.await_text("by bytes");
    screen.await_seen("the largest first", |text| {
        let at = |what: &str| text.find(what);
        (at(&one)? < at(&other)?).then_some(())
    });
    screen.type_in("/colour=red\r");
    screen.await_text("nothing that connections can be chosen by");
    screen.type_in("\x1b");
    screen.await_no_text("colour");
    screen.type_in(&format!("/{other}\r"));
    screen.await_text(&format!("Connections 1, by bytes, only {other}"));
    screen.await_no_text(&one);
    screen.type_in("\r");
    for fact in [
        format!("Connection {}", 2),
        format!("[{}], user 0", app.pid()),
        "copy; no better one: short".to_owned(),
        "97K up, 97K down".to_owned(),
        "to the client".to_owned(),
        "backlog".to_owned(),
    ] {
        screen.await_text(&fact);
    }
    screen.type_in("x");
    screen.await_text("Reset connection 2 to");
    screen.type_in("n");
    screen.await_no_text("Reset");
    ended.exchange(1, 10).unwrap();
    screen.type_in("xy");
    screen.await_text("connection 2 was reset");
    screen.await_text("Connections 0");
    assert_eq!(ended.receive_all(), Err(Errno::ECONNRESET));
    assert_eq!(culvert.the_record().reason, "ended");
    kept.exchange(1, 10).unwrap();
    screen.type_in("\x1b");
    screen.await_text("Connections 1, by bytes");
    screen.type_in("?");
    screen.await_text("reset a connection");
    screen.type_in("\x1b");
    screen.await_no_text("reset a connection");
    quit(screen);
    kept.close();
}

#[test]
fn endpoints_are_drained_and_restored() {
    let sandbox = Sandbox::new();
    let servers = [(); 3].map(|()| sandbox.within(|| Server::echo((SERVER_V4, 0))));
    let endpoints = servers
        .each_ref()
        .map(|server| server.address().to_string());
    let rules = format!(
        "[upstream.web]\nendpoints = {endpoints:?}\nbalance = \"round-robin\"\n[[forward]]\nname = \"web\"\n\
         match = {{ dest = \"198.51.100.9\" }}\nvia = \"web\"\n"
    );
    let culvert = sandbox.culvert(&rules);
    let mut screen = top(&sandbox, &culvert, &[]);
    screen.await_text("Endpoints 3, 3 up");
    screen.type_in(&format!("d\t{DOWN}"));
    screen.type_in("d");
    screen.await_text("no new connections?");
    let line = screen.highlighted().unwrap();
    let drained = line.split_whitespace().nth(1).unwrap().to_owned();
    assert!(endpoints.contains(&drained), "{line}");
    screen.await_text(&format!("Give web/{drained} no new connections?"));
    screen.type_in("y");
    screen.await_text("gets no new connections");
    screen.await_text("up, drained");
    let line = screen.highlighted().unwrap();
    assert!(
        line.contains(&drained) && line.contains("up, drained"),
        "{line}"
    );
    let app = sandbox.app();
    let service = "198.51.100.9:80".parse().unwrap();
    for _ in 0..4 {
        let socket = app.tcp(service);
        socket.connect(service).unwrap();
        socket.exchange(1, 10).unwrap();
        socket.close();
    }
    let records = culvert.await_records(4);
    assert!(
        records
            .iter()
            .all(|record| record.endpoint.as_deref() != Some(&*drained)),
        "{records:?}"
    );
    screen.type_in("d");
    screen.await_text(&format!("Give web/{drained} connections again?"));
    screen.type_in("y");
    screen.await_no_text("drained");
    quit(screen);
}

#[test]
fn it_bears_other_sizes_other_daemons_and_signals() {
    let sandbox = Sandbox::new();
    let mut culvert = sandbox.culvert(ALL);
    let mut screen = top(&sandbox, &culvert, &["--sort", "age"]);
    screen.await_text("by age");
    for (columns, lines) in [(20, 6), (200, 60), (1, 1), (80, 24)] {
        screen.resize(columns, lines);
    }
    screen.await_text("Connections 0");
    screen.await_text("? help");
    screen.resize(160, 30);
    screen.await_text("via");
    screen.resize(80, 24);

    culvert.kill();
    screen.await_text("no culvert answers");
    screen.await_text(&format!("process {}", culvert.pid()));
    let settings = Settings::daemon(&format!("admin = \"{}\"", culvert.admin().display()));
    let next = sandbox.culvert_with(&settings, ALL);
    screen.await_text(&format!("process {}", next.pid()));
    screen.await_no_text("no culvert answers");

    screen.type_in("p");
    screen.await_text("paused");
    screen.signal(Signal::SIGTERM);
    let (status, is_restored) = screen.end();
    assert!(status.success() && is_restored, "{status}");

    let mut command = sandbox.culvert_command();
    command.args(["top", "--admin"]).arg(culvert.admin());
    let mut screen = Screen::start(&mut command, 80, 24);
    screen.await_text("Connections 0");
    screen.type_in("\x03");
    let (status, is_restored) = screen.end();
    assert!(status.success() && is_restored, "{status}");
}

#[test]
fn the_shell_gets_the_terminal_and_gives_it_back() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let mut shell = sandbox.command_beside_daemons("bash");
    shell.args(["--norc", "--noprofile", "-i"]);
    shell.env("PS1", "PROMPT> ").env("HISTFILE", "/dev/null");
    let mut screen = Screen::start(&mut shell, 80, 24);
    screen.await_text("PROMPT> ");
    let line = format!(
        "{} top --admin {}\r",
        culvert_binary().display(),
        culvert.admin().display()
    );
    screen.type_in(&line);
    screen.await_text("Connections 0");
    screen.type_in("\x1a");
    screen.await_text("Stopped");
    screen.await_no_text("Connections 0");
    screen.type_in("fg\r");
    screen.await_text("Connections 0");
    screen.await_text("? help");
    screen.type_in("q");
    screen.await_no_text("Connections 0");
    screen.type_in("echo $((40 + 2)); exit\r");
    screen.await_text("42");
    screen.end();
}

#[test]
fn without_a_terminal_or_a_daemon_it_says_so() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.culvert_command();
    command.args(["top", "--admin", "/nowhere"]);
    let mut screen = Screen::start(&mut command, 80, 24);
    screen.await_text("no culvert answers at /nowhere");
    let (status, is_restored) = screen.end();
    assert_eq!((status.code(), is_restored), (Some(1), true));
    let mut command = sandbox.culvert_command();
    let output = command.arg("top").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("needs a terminal"), "{said}");
}

#[test]
fn ten_thousand_connections_can_be_gone_through() {
    let count = affordable(10_000, 256);
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Crowd::start((SERVER_V4, 0)));
    let settings = Settings::daemon("workers = 1");
    let rules = format!(
        "[upstream.farm]\nendpoints = [\"{}\"]\n\
         [[reverse]]\nname = \"farm\"\nlisten = \"{OTHER_V4}:80\"\nvia = \"farm\"\n",
        server.address()
    );
    let culvert = sandbox.culvert_with(&settings, &rules);
    let client = sandbox.app();
    client.hold((OTHER_V4, 80).into(), count).unwrap();
    eventually("all connections to be there", || {
        (culvert.status()["connections"]["live"] == count).then_some(())
    });
    let begun = Instant::now();
    let mut screen = top(&sandbox, &culvert, &["--sort", "id"]);
    screen.await_text(&format!("Connections {count}, by id, 1 to "));
    println!(
        "{count} connections on the screen after {:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    screen.type_in(END);
    let last = format!(" {count}");
    screen.await_seen("the last connection", |text| {
        let mut lines = text.lines().skip(6);
        lines
            .any(|line| line.trim_end().ends_with(&last))
            .then_some(())
    });
    screen.type_in("\r");
    screen.await_text(&format!("Connection {count} "));
    println!("the last of them after {:?}", begun.elapsed());
    screen.type_in("x\x1b");
    for sort in ["t", "a", "b", "r"] {
        screen.type_in(sort);
    }
    screen.await_text("by rate, 1 to ");
    screen.type_in(HOME);
    screen.type_in("/id=777\r");
    screen.await_text("Connections 1, by rate, only id=777");
    screen.type_in("xy");
    screen.await_text("connection 777 was reset");
    screen.type_in("\x1b");
    screen.await_text(&format!("Connections {}, ", count - 1));
    quit(screen);
    assert!(!culvert.log().contains("WARN"), "{}", culvert.log());
}
