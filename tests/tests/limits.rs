//! Every bound of the daemon, reached.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::Duration,
};

use culvert_tests::{
    Culvert, Payload, Sandbox, Socket,
    app::{Route, protocol::Storm},
    daemon::Settings,
    eventually,
    peer::{Server, reset_on_close},
    process::{Running, run},
    sandbox::{OTHER_V4, SERVER_V4},
    usage::{assert_rests, cpu_time, resident},
};
use nix::errno::Errno;

/// Two rules with the two fail modes, by destination.
const RULES: &str = r#"
[upstream.relay]
url = "direct://"
[[forward]]
name = "open"
match = { dest = "192.0.2.1" }
via = "relay"
[[forward]]
name = "closed"
match = { dest = "192.0.2.2" }
via = "relay"
on_relay_failure = "refuse"
"#;

fn through(scheme: &str, proxy: SocketAddr) -> String {
    format!(
        "[upstream.proxy]\nurl = \"{scheme}://{proxy}\"\n\
         [[forward]]\nname = \"all\"\nmatch = {{ dest = \"0.0.0.0/0\", port = \"1-65535\" }}\nvia = \"proxy\"\n"
    )
}

/// Holds more connections than a daemon takes, and looks that it rests until there is room.
fn assert_rests_at_its_limit(sandbox: &Sandbox, culvert: &Culvert<'_>, limit: usize) {
    let busy = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let holding = sandbox.app();
    // Connecting succeeds at the limit as well: the kernel takes connections in our stead.
    let beyond = u32::try_from(limit).unwrap() + 20;
    holding.hold(busy.address(), beyond).unwrap();
    eventually("as many connections as may be", || {
        (busy.clients().len() == limit).then_some(())
    });

    let waiting = sandbox.app();
    let socket = waiting.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    socket.send(b"patience").unwrap();
    assert_rests(culvert.pid());
    assert_eq!(busy.clients().len(), limit);

    drop(holding);
    assert_eq!(socket.receive(8).unwrap(), b"patience");
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let sandbox = Sandbox::new();
    let settings = Settings::daemon("max_connections = 4\nworkers = 1");
    let culvert = sandbox.culvert_with(&settings, RULES);
    assert_rests_at_its_limit(&sandbox, &culvert, 4);
}

#[test]
fn the_limit_of_open_files_is_a_limit_of_connections() {
    let sandbox = Sandbox::new();
    // As many files as 20 connections take, and those that are set aside for everything else.
    let files = 256 + 40;
    let settings = Settings {
        daemon: "workers = 1".to_owned(),
        open_files: Some(files),
        ..Settings::default()
    };
    let culvert = sandbox.culvert_with(&settings, RULES);
    assert_rests_at_its_limit(&sandbox, &culvert, 20);
}

/// Somebody lowers the limit while the daemon runs: `accept()` itself fails then.
#[test]
fn a_daemon_out_of_files_rests_and_recovers() {
    let sandbox = Sandbox::new();
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert_with(&Settings::daemon("workers = 1"), RULES);
    let limit = |files: u64| {
        let limit = format!("--nofile={files}:");
        run("prlimit", &["--pid", &culvert.pid().to_string(), &limit]);
    };
    // It has far more open than that.
    limit(3);
    let app = sandbox.app();
    let socket = app.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    socket.send(b"patience").unwrap();
    eventually("a word about the limit", || {
        culvert.log().contains("open files").then_some(())
    });
    assert_rests(culvert.pid());
    limit(20_000);
    assert_eq!(socket.receive(8).unwrap(), b"patience");
}

#[test]
fn beyond_max_pending_the_fail_mode_holds() {
    let sandbox = Sandbox::new();
    let open = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let closed = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let settings = Settings::daemon("max_pending = 4\nheartbeat_timeout = \"10m\"");
    let culvert = sandbox.culvert_with(&settings, RULES);
    culvert.freeze();
    let app = sandbox.app();
    // The address of a socket that went to the relay is that of loopback: nobody needs to answer to tell.
    let is_relayed = |socket: &Socket<'_>| socket.local().unwrap().ip().is_loopback();
    let mut relayed = Vec::new();
    let direct = eventually("a connection that goes direct", || {
        let socket = app.tcp(open.address());
        socket.connect(open.address()).unwrap();
        if !is_relayed(&socket) {
            return Some(socket);
        }
        relayed.push(socket);
        None
    });
    assert!(!direct.receive_all().unwrap().is_empty());
    eventually("a connection that is refused", || {
        let socket = app.tcp(closed.address());
        let connected = socket.connect(closed.address());
        if connected.is_ok() {
            relayed.push(socket);
        }
        (connected == Err(Errno::ECONNREFUSED)).then_some(())
    });
    assert!(culvert.counter("fail_full") >= 2);
    assert!(culvert.maps().records().len() <= 4);

    culvert.thaw();
    // Those with a record are relayed, the others are reset; none hangs.
    let (mut answered, mut reset) = (0, 0);
    for socket in &relayed {
        match socket.receive_all() {
            Ok(bytes) if !bytes.is_empty() => answered += 1,
            Err(Errno::ECONNRESET) => reset += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(answered > 0);
    assert_eq!(answered, culvert.counter("published"));
    assert_eq!(reset, culvert.counter("unpublished"));
    eventually("an empty table", || {
        culvert.maps().records().is_empty().then_some(())
    });
    eventually("a relay that takes connections again", || {
        let both = [open.address(), closed.address()].map(|address| app.probe(address));
        (both == [Ok(Route::Relayed); 2]).then_some(())
    });
}

#[test]
fn a_thousand_connections_at_once() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(RULES);
    let storm = Storm {
        addresses: vec![server.address()],
        threads: 1000,
        each: 1,
        length: 16 * 1024,
    };
    assert_eq!(sandbox.app().storm(&storm), BTreeMap::from([(0, 1000)]));
    let records = culvert.await_records(1000);
    assert_eq!(records.len(), 1000);
    for record in &records {
        assert_eq!(
            (record.up, record.down),
            (16 * 1024, 16 * 1024),
            "{record:?}"
        );
    }
    assert_eq!(culvert.counter("relayed"), 1000);
    assert!(culvert.maps().records().is_empty());
}

#[test]
fn a_server_that_resets_in_the_middle_resets_the_app() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), |mut stream| {
            let mut begun = [0; 4096];
            stream.read_exact(&mut begun)?;
            stream.write_all(&begun)?;
            // What has arrived is not to overtake the reset.
            stream.read_exact(&mut begun[..1])?;
            reset_on_close(&stream);
            Ok(())
        })
    });
    let culvert = sandbox.culvert(RULES);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.exchange(3, 4096).unwrap();
    socket.send(b"!").unwrap();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    let record = culvert.the_record();
    assert_eq!(record.reason, "upstream_reset");
    assert_eq!((record.up, record.down), (4097, 4096));
}

#[test]
fn a_proxy_that_dies_in_the_middle_takes_its_connections_along() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let proxy = SocketAddr::from(([127, 0, 0, 1], 1080));
    let mut microsocks = sandbox.outsider("microsocks");
    let microsocks = Running::start(
        microsocks
            .args(["-i", "127.0.0.1", "-p", "1080"])
            .stderr(Stdio::null()),
    );
    eventually("a listening proxy", || {
        sandbox.within(|| TcpStream::connect(proxy)).ok()
    });
    let culvert = sandbox.culvert(&through("socks5", proxy));
    let app = sandbox.app();
    let exchanged = thread::scope(|scope| {
        let exchanging = scope.spawn(|| {
            let app = app;
            let socket = app.tcp(server.address());
            socket.connect(server.address()).unwrap();
            socket.exchange(3, 64 << 30)
        });
        eventually("a connection through the proxy", || {
            (!server.clients().is_empty()).then_some(())
        });
        drop(microsocks);
        exchanging.join().unwrap()
    });
    // A process that is killed ends some of its connections in order: the number is that of missing bytes.
    let ends = [Errno::ECONNRESET, Errno::EPIPE, Errno::ENODATA].map(Err);
    assert!(ends.contains(&exchanged), "{exchanged:?}");

    let app = sandbox.app();
    let next = app.tcp(server.address());
    next.connect(server.address()).unwrap();
    assert_eq!(next.receive_all(), Err(Errno::ECONNRESET));
    let records = culvert.await_records(2);
    assert_eq!(records[1].reason, "proxy_unreachable", "{records:#?}");
    assert!(
        culvert.log().contains("127.0.0.1:1080"),
        "{}",
        culvert.log()
    );
}

#[test]
fn a_slow_reader_costs_no_memory() {
    const OFFERED: u64 = 100 << 20;
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), |mut stream| {
            Payload { seed: 9 }.write(&mut stream, OFFERED)
        })
    });
    let culvert = sandbox.culvert(RULES);
    let app = sandbox.app();
    let sockets: Vec<_> = (0..4).map(|_| app.tcp(server.address())).collect();
    for socket in &sockets {
        let before = resident(culvert.pid());
        socket.connect(server.address()).unwrap();
        // The first bytes are there, and the relay can move no more when its CPU time stands still.
        assert_eq!(
            Payload { seed: 9 }.first_difference(0, &socket.receive(4096).unwrap()),
            None
        );
        let mut last = cpu_time(culvert.pid());
        eventually("a relay that waits for the reader", || {
            thread::sleep(Duration::from_millis(100));
            let now = cpu_time(culvert.pid());
            let stands = now.saturating_sub(last) < Duration::from_millis(20);
            last = now;
            stands.then_some(())
        });
        let grown = resident(culvert.pid()).saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes more");
    }
    for socket in sockets {
        socket.reset();
    }
}
