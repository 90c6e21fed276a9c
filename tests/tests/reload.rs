//! Changing a daemon's rules while it works, and ending it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread,
};

use culvert_tests::{
    App, Culvert, Load, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    load::assert_flawless,
    peer::{Server, Socks5},
    sandbox::SERVER_V4,
};
use nix::{
    errno::Errno,
    sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM},
};

/// Everything that is not on this host goes `via` this upstream.
fn all(via: &str, url: &str, mode: &str) -> String {
    format!(
        "[upstream.{via}]\nurl = \"{url}\"\n\
         [[forward]]\nname = \"by-{via}\"\nmatch = {{ port = \"1-65535\" }}\nvia = \"{via}\"\non_relay_failure = \"{mode}\"\n"
    )
}

fn relayed() -> String {
    all("relay", "direct://", "direct")
}

/// Exchanges block after block on one connection until told to end. Returns the number of blocks.
fn keep_exchanging(app: &App, address: SocketAddr, blocks: &AtomicU64, stop: &AtomicBool) {
    let socket = app.tcp(address);
    socket.connect(address).unwrap();
    while !stop.load(Acquire) {
        let seed = blocks.load(Relaxed);
        socket.exchange(seed, 64 * 1024).unwrap();
        blocks.fetch_add(1, Relaxed);
    }
    socket.close();
}

#[test]
fn reloads_disturb_no_connection() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let proxy = sandbox.within(|| Socks5::start(([127, 0, 0, 1], 0)));
    let culvert = sandbox.culvert(&relayed());
    let by_proxy = all("proxy", &format!("socks5://{}", proxy.address()), "refuse");
    let (blocks, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let storm = Storm::short(&[server.address()]);
    let (app, load) = (sandbox.app(), Load::start(sandbox.app(), storm));
    thread::scope(|scope| {
        let live = scope.spawn(|| {
            let app = app;
            keep_exchanging(&app, server.address(), &blocks, &stop);
        });
        for turn in 0..20 {
            let seen = blocks.load(Relaxed);
            eventually("bytes on the connection that lives on", || {
                let stopped = live.is_finished();
                (stopped || blocks.load(Relaxed) > seen).then_some(())
            });
            load.await_rounds(1);
            culvert.reload(&if turn % 2 == 0 {
                by_proxy.clone()
            } else {
                relayed()
            });
        }
        stop.store(true, Release);
    });
    assert_flawless(&load.finish());
    let by_rule = culvert.records().into_iter().fold(
        BTreeMap::new(),
        |mut by_rule: BTreeMap<_, u64>, record| {
            *by_rule.entry(record.rule).or_default() += 1;
            by_rule
        },
    );
    // Each connection was served by the rule that selected it, and the proxy saw those of its rule.
    let proxied = by_rule[&Some("by-proxy".to_owned())];
    assert!(by_rule[&Some("by-relay".to_owned())] >= 20);
    assert!(proxied >= 20);
    assert_eq!(proxy.requests().len() as u64, proxied);
}

/// Has the daemon read a file that is wrong, and returns what it logged.
fn reload_wrong(culvert: &Culvert<'_>, rules: &str) -> String {
    let before = culvert.log().len();
    culvert.rewrite(rules);
    culvert.signal(SIGHUP);
    culvert.await_notice("RELOADING=1");
    culvert.await_notice("READY=1");
    culvert.log()[before..].to_owned()
}

#[test]
fn the_log_counts_rules_of_every_role() {
    let sandbox = Sandbox::new();
    let more = "[[reverse]]\nname = \"more\"\nlisten = \"192.0.2.1:1\"\nvia = \"direct\"\n";
    let culvert = sandbox.culvert(&(relayed() + more));
    culvert.reload(more);
    let log = culvert.log();
    assert!(log.contains(" running rules=2"), "{log}");
    assert!(log.contains(" reloaded rules=1"), "{log}");
}

#[test]
fn a_wrong_file_changes_nothing() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let culvert = sandbox.culvert(&relayed());
    let app = sandbox.app();

    let no_toml = reload_wrong(&culvert, "this is no TOML");
    let no_upstream = reload_wrong(
        &culvert,
        "[[forward]]\nname = \"x\"\nmatch = { port = 80 }\nvia = \"nowhere\"",
    );
    for log in [&no_toml, &no_upstream] {
        assert!(log.contains("not reloaded"), "{log}");
        assert!(!log.contains(" reloaded rules="), "{log}");
    }
    for log in [&no_toml, &no_upstream] {
        assert!(log.contains(".toml:"), "the place is missing: {log}");
    }
    assert!(no_toml.contains("this is no TOML"), "{no_toml}");
    assert!(no_upstream.contains("nowhere"), "{no_upstream}");
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));

    culvert.reload("");
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
}

#[test]
fn a_file_that_is_gone_changes_nothing() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let culvert = sandbox.culvert(&relayed());
    let app = sandbox.app();
    culvert.remove_config();
    culvert.signal(SIGHUP);
    culvert.await_notice("RELOADING=1");
    culvert.await_notice("READY=1");
    assert!(culvert.log().contains("not reloaded"), "{}", culvert.log());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
}

fn is_pinned(sandbox: &Sandbox) -> bool {
    let pins = Path::new("/run/culvert/bpf/culvert");
    sandbox.mounts().within(|| pins.exists())
}

#[test]
fn the_first_rule_that_refuses_pins_and_the_last_one_unpins() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&relayed());
    assert!(!is_pinned(&sandbox));
    for _ in 0..3 {
        culvert.reload(&all("relay", "direct://", "refuse"));
        assert!(is_pinned(&sandbox));
        culvert.reload(&relayed());
        assert!(!is_pinned(&sandbox));
        // The directory and the file system of the pins are gone with them.
        let exists = || Path::new("/run/culvert").exists();
        assert!(!sandbox.mounts().within(exists));
    }
    let app = sandbox.app();
    culvert.reload(&all("relay", "direct://", "refuse"));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    culvert.reload(&relayed());
    culvert.kill();
    // The kernel takes its time to free what was unpinned.
    eventually("connections that go direct", || {
        (app.probe(mirror.address()) == Ok(Route::Direct)).then_some(())
    });
}

#[test]
fn what_a_reload_pinned_holds_after_a_kill() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&relayed());
    let app = sandbox.app();
    culvert.reload(&all("relay", "direct://", "refuse"));
    culvert.kill();
    assert_eq!(app.probe(mirror.address()), Err(Errno::ECONNREFUSED));
    let mut next = sandbox.culvert(&relayed());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert!(next.stop().success());
    eventually("connections that go direct", || {
        (app.probe(mirror.address()) == Ok(Route::Direct)).then_some(())
    });
}

#[test]
fn a_daemon_that_is_told_to_end_lets_connections_finish() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let mut culvert = sandbox.culvert(&all("relay", "direct://", "refuse"));
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    culvert.signal(SIGTERM);
    culvert.await_notice("STOPPING=1");
    eventually("a daemon that has detached", || {
        (app.probe(mirror.address()) == Ok(Route::Direct)).then_some(())
    });
    assert!(!is_pinned(&sandbox));
    socket.exchange(1, 1 << 20).unwrap();
    socket.close();
    let status = culvert.wait();
    assert!(status.success(), "{status}");
    assert_eq!(culvert.records().last().unwrap().reason, "done");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for signal in [SIGTERM, SIGINT] {
        let sandbox = Sandbox::new();
        let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
        let settings = Settings::daemon("drain_timeout = \"1h\"");
        let mut culvert = sandbox.culvert_with(&settings, &relayed());
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.assert_echo();
        culvert.signal(signal);
        culvert.await_notice("STOPPING=1");
        culvert.signal(signal);
        let status = culvert.wait();
        assert!(status.success(), "{status}");
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    }
}

#[test]
fn the_end_of_the_drain_timeout_resets_what_is_left() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let settings = Settings::daemon("drain_timeout = \"200ms\"");
    let mut culvert = sandbox.culvert_with(&settings, &relayed());
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    let status = culvert.stop();
    assert!(status.success(), "{status}");
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    let record = culvert.the_record();
    assert_eq!(record.reason, "shutdown");
    assert_eq!((record.up, record.down), (12, 12));
}
