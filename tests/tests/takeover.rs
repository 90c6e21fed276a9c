//! A daemon takes the place of another, and nobody notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use culvert_tests::{
    App, Culvert, Load, Sandbox,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    load::{Round, assert_flawless},
    peer::Server,
    process::attempt,
    sandbox::{OTHER_V4, OTHER_V6, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

fn forward(of: &[(SocketAddr, &str)]) -> String {
    let rule = |(address, mode): &(SocketAddr, &str)| {
        format!(
            "[[forward]]\nname = \"{mode}-{}\"\nmatch = {{ dest = \"{}\", port = {} }}\nvia = \"relay\"\n\
             on_relay_failure = \"{mode}\"\n",
            address.port(),
            address.ip(),
            address.port()
        )
    };
    let rules = of.iter().map(rule);
    std::iter::once("[upstream.relay]\nurl = \"direct://\"\n".to_owned())
        .chain(rules)
        .collect()
}

fn reverse(of: &[(SocketAddr, &str)]) -> String {
    let rule = |(address, mode): &(SocketAddr, &str)| {
        format!(
            "[[reverse]]\nname = \"site-{mode}-{}\"\nlisten = \"{address}\"\nvia = \"original\"\n\
             on_relay_failure = \"{mode}\"\n",
            address.port()
        )
    };
    of.iter().map(rule).collect()
}

/// Everything that is not on loopback is selected, the daemon's own connections included.
fn everything(mode: &str) -> String {
    format!(
        "[upstream.relay]\nurl = \"direct://\"\n[[forward]]\nname = \"all\"\nvia = \"relay\"\n\
         on_relay_failure = \"{mode}\"\n"
    )
}

fn settings() -> Settings {
    Settings::daemon("drain_timeout = \"20s\"")
}

fn successor() -> Settings {
    Settings {
        takeover: true,
        ..settings()
    }
}

fn connections(rounds: &[Round]) -> usize {
    assert_flawless(rounds);
    let made = rounds.iter().flat_map(|round| round.outcomes.values());
    usize::try_from(made.sum::<u64>()).unwrap()
}

/// To be asked once its predecessor has ended, whose maps it held until then.
fn assert_faultless(culvert: &Culvert<'_>) {
    for counter in [
        "loop",
        "fail_listener",
        "failed_direct",
        "failed_refused",
        "guard_refused",
        "unpublished",
        "unregistered",
    ] {
        assert_eq!(culvert.counter(counter), 0, "{counter}");
    }
}

/// One daemon after the other under load. Each connection is relayed, once, by one of them.
fn take_over_again_and_again(sandbox: &Sandbox, servers: &[Server], rules: &str) {
    const TAKEOVERS: usize = 3;
    let addresses: Vec<_> = servers.iter().map(Server::address).collect();
    let mut daemons = vec![sandbox.culvert_with(&settings(), rules)];
    let loads = [(); 2].map(|()| Load::start(sandbox.app(), Storm::short(&addresses)));
    for _ in 0..TAKEOVERS {
        loads[0].await_rounds(3);
        let next = sandbox.culvert_with(&successor(), rules);
        let mut last = daemons.pop().unwrap();
        assert!(last.wait().success(), "{}", last.log());
        assert!(!last.has_said("STOPPING=1"));
        daemons.insert(0, last);
        daemons.push(next);
        loads[0].await_rounds(3);
        assert_faultless(daemons.last().unwrap());
    }
    let rounds: Vec<_> = loads.into_iter().flat_map(Load::finish).collect();
    let made = connections(&rounds);
    eventually("a record of each connection", || {
        let recorded = daemons
            .iter()
            .map(|daemon| daemon.records().len())
            .sum::<usize>();
        assert!(recorded <= made, "{recorded} records of {made} connections");
        (recorded == made).then_some(())
    });
    let arrived: usize = servers.iter().map(|server| server.clients().len()).sum();
    assert_eq!(arrived, made);
    for daemon in &daemons {
        assert!(!daemon.records().is_empty(), "it has served nobody");
        for record in daemon.records() {
            assert_eq!((record.up, record.down), (4096, 4096), "{record:?}");
            assert_eq!(record.reason, "done");
        }
    }
}

/// Servers of both families, two of whose rules refuse while the relay fails.
fn servers_of_both_modes(sandbox: &Sandbox) -> ([Server; 4], [(SocketAddr, &'static str); 4]) {
    let of: [(IpAddr, _); 4] = [
        (SERVER_V4.into(), "direct"),
        (SERVER_V6.into(), "direct"),
        (OTHER_V4.into(), "refuse"),
        (OTHER_V6.into(), "refuse"),
    ];
    let servers = sandbox.within(|| of.map(|(ip, _)| Server::echo((ip, 0))));
    let modes = of.map(|(_, mode)| mode);
    let of = std::array::from_fn(|at| (servers[at].address(), modes[at]));
    (servers, of)
}

#[test]
fn what_apps_open_is_always_relayed_by_one_of_them() {
    let sandbox = Sandbox::new();
    let (servers, of) = servers_of_both_modes(&sandbox);
    take_over_again_and_again(&sandbox, &servers, &forward(&of));
}

/// The daemons' own connections are selected, too.
#[test]
fn so_it_is_where_a_rule_selects_everything() {
    for mode in ["direct", "refuse"] {
        let sandbox = Sandbox::new();
        let servers = [sandbox.within(|| Server::echo((SERVER_V4, 0)))];
        take_over_again_and_again(&sandbox, &servers, &everything(mode));
    }
}

#[test]
fn what_arrives_is_always_relayed_by_one_of_them() {
    let sandbox = Sandbox::new();
    let (servers, of) = servers_of_both_modes(&sandbox);
    take_over_again_and_again(&sandbox, &servers, &reverse(&of));
}

/// Whether a process that stands still has been told to end.
fn is_told(pid: u32) -> bool {
    const SIGTERM: u64 = 1 << (15 - 1);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    u64::from_str_radix(pending.unwrap().trim(), 16).unwrap() & SIGTERM != 0
}

/// While both are attached. The old one stands still, so that this lasts, and dials when the new one has been in force for long.
#[test]
fn what_the_old_one_takes_the_new_one_leaves_alone() {
    let sandbox = Sandbox::new();
    let v4 = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let v6 = sandbox.within(|| Server::echo((SERVER_V6, 0)));
    let ports = format!("[{}, \"1024-65535\"]", v4.address().port());
    // Everything, the listeners of the old one included, to be refused if it is not relayed, in both served.
    let rules = format!(
        "[upstream.relay]\nurl = \"direct://\"\n\
         [[forward]]\nname = \"all\"\nvia = \"relay\"\non_relay_failure = \"refuse\"\n\
         match = {{ dest = [\"0.0.0.0/0\", \"::/0\", \"127.0.0.0/8\", \"::1\"], port = {ports} }}\n\
         [[reverse]]\nname = \"site\"\nlisten = \"*:1024-65535\"\nvia = \"original\"\non_relay_failure = \"refuse\"\n"
    );
    let slow = Settings {
        daemon: "drain_timeout = \"20s\"\nheartbeat_timeout = \"1m\"".to_owned(),
        ..Settings::default()
    };
    for among_apps in [false, true] {
        let mut old = sandbox.culvert_with(&slow, &rules);
        let app = sandbox.app();
        let outsider = App::start(&mut sandbox.outsider(culvert_tests::process::app_binary()));
        old.freeze();
        let new = Settings {
            takeover: true,
            among_apps,
            ..slow.clone()
        };
        let new = sandbox.launch(&new, &rules);
        eventually("word to the old one", || is_told(old.pid()).then_some(()));
        let sockets: Vec<_> = [&app, &outsider]
            .into_iter()
            .flat_map(|from| [&v4, &v6].map(|server| (from, server.address())))
            .map(|(from, address)| {
                let socket = from.tcp(address);
                socket.connect(address).unwrap();
                assert_eq!(socket.peer(), Ok(address));
                socket
            })
            .collect();
        assert_faultless(&new);
        old.thaw();
        new.await_notice("READY=1");
        for socket in sockets {
            socket.exchange(1, 10_000).unwrap();
            socket.shutdown().unwrap();
            assert_eq!(socket.receive_all(), Ok(Vec::new()));
        }
        assert!(old.wait().success());
        let served: Vec<_> = old
            .records()
            .into_iter()
            .map(|record| record.role)
            .collect();
        for role in ["forward", "reverse"] {
            assert_eq!(
                served.iter().filter(|found| *found == role).count(),
                2,
                "{served:?}"
            );
        }
        assert_faultless(&new);
        for counter in ["relayed", "arrived_relayed"] {
            assert_eq!(new.counter(counter), 0, "{counter}");
        }
        assert!(new.records().is_empty());
    }
}

/// While both are attached, as above: what the old one sends to an endpoint the new one's rules select, too.
#[test]
fn what_the_old_one_balances_the_new_one_leaves_alone() {
    let sandbox = Sandbox::new();
    let endpoint = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let service = SocketAddr::from((OTHER_V4, 80));
    let rewritten = format!(
        "[upstream.web]\nendpoints = \"{}\"\n[[forward]]\nname = \"service\"\nvia = \"web\"\npath = \"rewrite\"\n\
         match = {{ dest = \"{OTHER_V4}\" }}\non_relay_failure = \"refuse\"\n",
        endpoint.address()
    );
    let slow = Settings {
        daemon: "drain_timeout = \"20s\"\nheartbeat_timeout = \"1m\"".to_owned(),
        ..Settings::default()
    };
    for rules in [everything("refuse"), everything("direct")] {
        let mut old = sandbox.culvert_with(&slow, &rewritten);
        let app = sandbox.app();
        let socket = app.tcp(service);
        old.freeze();
        let new = Settings {
            takeover: true,
            ..slow.clone()
        };
        let new = sandbox.launch(&new, &rules);
        eventually("word to the old one", || is_told(old.pid()).then_some(()));
        socket.connect(service).unwrap();
        socket.assert_echo();
        assert_eq!(socket.peer(), Ok(service));
        assert_eq!(old.counter("rewritten"), 1);
        // As one to the endpoint itself, which it is not.
        assert_eq!(new.counter("relayed"), 0);
        let direct = app.tcp(endpoint.address());
        direct.connect(endpoint.address()).unwrap();
        assert_eq!(new.counter("relayed"), 1);
        assert_eq!(new.counter("guard_refused"), 0);
        old.thaw();
        new.await_notice("READY=1");
        direct.assert_echo();
        assert!(old.wait().success());
        // The same socket, once it is nobody's any more.
        eventually("the new one alone", || {
            new.log()
                .contains("taken over from has ended")
                .then_some(())
        });
        socket.disconnect().unwrap();
        socket.connect(endpoint.address()).unwrap();
        socket.assert_echo();
        assert_eq!(new.counter("relayed"), 2);
        direct.close();
        socket.close();
    }
}

#[test]
fn open_connections_finish_where_they_began() {
    for bpffs in [false, true] {
        finish_where_they_began(bpffs);
    }
}

/// With a bpffs of the system the daemon gives up `CAP_SYS_ADMIN`.
fn finish_where_they_began(bpffs: bool) {
    let sandbox = Sandbox::new();
    if bpffs {
        sandbox.mounts().mount_bpffs();
    }
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let rules = everything("refuse");
    let mut old = sandbox.culvert_with(&settings(), &rules);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();

    let new = sandbox.culvert_with(&successor(), &rules);
    assert!(old.is_running());
    assert_eq!(socket.peer(), Ok(server.address()));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    new.await_records(1);
    assert!(old.is_running());
    socket.exchange(1, 1_000_000).unwrap();
    socket.shutdown().unwrap();
    assert_eq!(socket.receive_all(), Ok(Vec::new()));
    socket.close();

    assert!(old.wait().success());
    assert_eq!(old.the_record().orig_dst, Some(server.address()));
    assert_eq!(new.records().len(), 1);
    eventually("the end of the old one in the log of the new one", || {
        new.log()
            .contains("taken over from has ended")
            .then_some(())
    });
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
}

#[test]
fn what_does_not_finish_is_reset_when_the_drain_timeout_of_the_old_one_is_over() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = everything("direct");
    let mut old = sandbox.culvert_with(&Settings::daemon("drain_timeout = \"1s\""), &rules);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    let _new = sandbox.culvert_with(&successor(), &rules);
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    assert!(old.wait().success());
}

#[test]
fn the_fail_modes_hold_when_the_new_one_is_killed() {
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let open_site = sandbox.within(|| Server::mirror((SERVER_V6, 0)));
    let closed_site = sandbox.within(|| Server::mirror((OTHER_V6, 0)));
    let rules = [
        forward(&[(open.address(), "direct"), (closed.address(), "refuse")]),
        reverse(&[
            (open_site.address(), "direct"),
            (closed_site.address(), "refuse"),
        ]),
    ]
    .concat();
    let held = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = rules + &reverse(&[(held.address(), "direct")]);
    let mut old = sandbox.culvert_with(&settings(), &rules);
    let app = sandbox.app();
    // The old one is still there when the new one is killed.
    let socket = app.tcp(held.address());
    socket.connect(held.address()).unwrap();
    socket.assert_echo();
    let mut new = sandbox.culvert_with(&successor(), &rules);
    for server in [&open, &closed, &open_site, &closed_site] {
        assert_eq!(app.probe(server.address()), Ok(Route::Relayed));
    }
    new.kill();
    assert!(old.is_running());
    for server in [&open, &open_site] {
        assert_eq!(app.probe(server.address()), Ok(Route::Direct));
    }
    for server in [&closed, &closed_site] {
        assert_eq!(app.probe(server.address()), Err(Errno::ECONNREFUSED));
    }
    socket.assert_echo();
    socket.close();
    assert!(old.wait().success());
    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
}

#[test]
fn one_that_cannot_start_changes_nothing() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = everything("refuse");
    let old = sandbox.culvert_with(&settings(), &rules);
    let load = Load::start(sandbox.app(), Storm::short(&[server.address()]));
    load.await_rounds(2);
    // It comes from nowhere to the middle of its start, and not to the end.
    for open_files in [12, 30, 45, 60] {
        let settings = Settings {
            open_files: Some(open_files),
            ..successor()
        };
        let mut failing = sandbox.launch(&settings, &rules);
        assert!(!failing.wait().success(), "{}", failing.log());
        load.await_rounds(1);
    }
    let mut wrong = sandbox.launch(&successor(), "[[forward]]\nname = 1\n");
    assert_eq!(wrong.wait().code(), Some(2));
    let mut second = sandbox.launch(&settings(), &rules);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("--takeover"), "{}", second.log());
    load.await_rounds(2);
    let made = connections(&load.finish());
    assert_eq!(old.await_records(made).len(), made);
    assert!(!old.log().contains("taken over"), "{}", old.log());
}

/// Wherever it is killed: the old one still serves, or what the new one leaves is as the fail mode says.
#[test]
fn one_that_is_killed_while_it_starts_breaks_no_connection() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = everything("direct");
    for milliseconds in [5, 20, 50, 100, 150, 200, 300] {
        let mut old = sandbox.culvert_with(&settings(), &rules);
        let app = sandbox.app();
        let flawless = BTreeMap::from([(0, 20)]);
        let mut new = sandbox.launch(&successor(), &rules);
        std::thread::sleep(Duration::from_millis(milliseconds));
        new.freeze();
        new.kill();
        let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
        let route = app.probe(mirror.address());
        assert!(route.is_ok(), "{route:?}");
        assert_eq!(app.storm(&Storm::short(&[server.address()])), flawless);
        if old.is_running() {
            old.stop();
        } else {
            old.wait();
        }
        sandbox.detach();
    }
}

#[test]
fn two_at_once_take_turns() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = everything("refuse");
    let mut old = sandbox.culvert_with(&settings(), &rules);
    let load = Load::start(sandbox.app(), Storm::short(&[server.address()]));
    let mut new = [(); 2].map(|()| sandbox.launch(&successor(), &rules));
    assert!(old.wait().success());
    let first = eventually("the end of one of them", || {
        new.iter().position(|culvert| !culvert.is_running())
    });
    assert!(new[first].wait().success(), "{}", new[first].log());
    assert!(new[first].log().contains("another culvert has taken over"));
    load.await_rounds(2);
    connections(&load.finish());
    assert!(new[1 - first].is_running());
}

fn status(sandbox: &Sandbox, admin: &Path) -> Option<serde_json::Value> {
    let mut command = sandbox.culvert_command();
    let asked = attempt(command.args(["status", "--json", "--admin"]).arg(admin));
    asked
        .status
        .success()
        .then(|| serde_json::from_slice(&asked.stdout).expect("JSON"))
}

#[test]
fn the_new_one_answers_where_the_old_one_did() {
    let sandbox = Sandbox::new();
    let admin = sandbox.directory().join("admin");
    let line = format!("admin = \"{}\"\ndrain_timeout = \"20s\"", admin.display());
    let first = Settings::daemon(&line);
    let next = Settings {
        takeover: true,
        ..first.clone()
    };
    let rules = everything("direct");
    let mut old = sandbox.culvert_with(&first, &rules);
    assert_eq!(status(&sandbox, &admin).unwrap()["pid"], old.pid());
    let new = sandbox.launch(&next, &rules);
    new.await_notice(&format!("MAINPID={}", new.pid()));
    assert!(old.wait().success());
    let answer = eventually("an answer", || status(&sandbox, &admin));
    assert_eq!(answer["pid"], new.pid());
}

#[test]
fn without_a_predecessor_it_starts() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let culvert: Culvert<'_> = sandbox.culvert_with(&successor(), &everything("direct"));
    let app: App = sandbox.app();
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    assert!(
        culvert.log().contains("nothing to take over"),
        "{}",
        culvert.log()
    );
    assert!(!culvert.has_said(&format!("MAINPID={}", culvert.pid())));
}
