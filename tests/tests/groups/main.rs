//! Groups: connections spread over several servers, some of which are dead, hung or full.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod arrivals;
mod health;
mod proxy_header;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use culvert_tests::{
    App, Culvert, Load, Sandbox,
    app::protocol::Storm,
    eventually,
    peer::Server,
    sandbox::{CLIENT_V4, CLOSED_PORT, OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;
use serde_json::Value;

/// Where apps connect; nobody listens there.
const SERVICE: (Ipv4Addr, u16) = (OTHER_V4, 80);

/// A group of endpoints, with more lines for its section.
fn group_section(endpoints: &[String], more: &str) -> String {
    format!("[upstream.web]\nendpoints = {endpoints:?}\n{more}\n")
}

/// A group of endpoints for all connections to [`SERVICE`].
fn group(endpoints: &[String], more: &str) -> String {
    let section = group_section(endpoints, more);
    format!(
        r#"
        {section}
        [[forward]]
        name = "service"
        match = {{ dest = "{}", port = {} }}
        via = "web"
        "#,
        SERVICE.0, SERVICE.1
    )
}

/// Makes connections one after the other, each of which has its bytes echoed.
fn storm(app: &App, threads: u32, each: u32) -> BTreeMap<i32, u64> {
    app.storm(&Storm {
        addresses: vec![SERVICE.into()],
        threads,
        each,
        length: 100,
    })
}

#[test]
fn connections_are_spread_by_weight() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> = [
        SocketAddr::from((SERVER_V4, 0)),
        (SERVER_V6, 0).into(),
        (OTHER_V4, 0).into(),
    ]
    .into_iter()
    .map(|address| sandbox.within(|| Server::echo(address)))
    .collect();
    let endpoints: Vec<_> = servers
        .iter()
        .zip([1, 2, 5])
        .map(|(server, weight)| format!("{} weight={weight}", server.address()))
        .collect();
    let culvert = sandbox.culvert(&group(&endpoints, "balance = \"round-robin\""));
    assert_eq!(storm(&sandbox.app(), 4, 100), [(0, 400)].into());
    for (server, expected) in servers.iter().zip([50, 100, 250]) {
        let count = server.clients().len();
        assert!(count.abs_diff(expected) <= 1, "{count} of {expected}");
    }
    for record in culvert.await_records(400) {
        assert_eq!(record.upstream.as_deref(), Some("web"));
        assert_eq!(record.orig_dst, Some(SERVICE.into()));
        assert_eq!(record.endpoint, record.peer.map(|peer| peer.to_string()));
        assert_eq!((record.attempts, &*record.reason), (1, "done"));
    }
}

#[test]
fn nobody_hears_of_an_endpoint_that_refuses() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let dead = SocketAddr::from((SERVER_V4, CLOSED_PORT));
    let endpoints = [dead.to_string(), server.address().to_string()];
    let culvert = sandbox.culvert(&group(&endpoints, "balance = \"round-robin\""));
    assert_eq!(storm(&sandbox.app(), 2, 20), [(0, 40)].into());
    assert_eq!(server.clients().len(), 40);
    let records = culvert.await_records(40);
    let twice = records.iter().filter(|record| record.attempts == 2).count();
    // As often as it takes to eject it; both workers' connections may be on their way there by then.
    assert!((5..=10).contains(&twice), "{twice}");
}

/// The group `web` as `culvert status` tells it.
fn status(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Value {
    let mut command = sandbox.culvert_command();
    command
        .args(["status", "--json", "--admin"])
        .arg(culvert.admin());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["groups"][0].clone()
}

/// States of the group's endpoints by address.
fn states(sandbox: &Sandbox, culvert: &Culvert<'_>) -> BTreeMap<String, String> {
    let status = status(sandbox, culvert);
    let endpoints = status["endpoints"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    endpoints
        .iter()
        .map(|one| (text(&one["address"]), text(&one["state"])))
        .collect()
}

fn await_state(sandbox: &Sandbox, culvert: &Culvert<'_>, address: &str, state: &str) {
    eventually(&format!("{address} {state}"), || {
        (states(sandbox, culvert).get(address)? == state).then_some(())
    });
}

#[test]
fn checks_take_an_endpoint_out_and_bring_it_back() {
    let sandbox = Sandbox::new();
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    // Health on a port of its own kind: the same server answers checks and echoes what is no request.
    let sick = sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |stream| {
            serve_checked(stream, told.load(SeqCst))
        })
    });
    let healthy =
        sandbox.within(|| Server::start((SERVER_V4, 0), |stream| serve_checked(stream, true)));
    let endpoints = [sick.address().to_string(), healthy.address().to_string()];
    let health =
        r#"health = { http = "/healthz", status = 200, interval = "50ms", rise = 2, fall = 2 }"#;
    let culvert = sandbox.culvert(&group(&endpoints, health));
    let app = sandbox.app();

    well.store(false, SeqCst);
    await_state(&sandbox, &culvert, &endpoints[0], "down");
    assert_eq!(storm(&app, 2, 20), [(0, 40)].into());
    for record in culvert.await_records(40) {
        assert_eq!(record.endpoint.as_ref(), Some(&endpoints[1]));
        assert_eq!(record.attempts, 1);
    }
    well.store(true, SeqCst);
    await_state(&sandbox, &culvert, &endpoints[0], "up");
    assert_eq!(storm(&app, 2, 50), [(0, 100)].into());
    let records = culvert.await_records(140);
    let again = records
        .iter()
        .filter(|record| record.endpoint.as_ref() == Some(&endpoints[0]));
    assert!(again.count() > 10, "it takes its part again");
    let log = culvert.log();
    assert!(
        log.contains("check failed: it answered with status 503"),
        "{log}"
    );
}

/// Answers a check, and echoes everything else.
fn serve_checked(mut stream: TcpStream, well: bool) -> io::Result<()> {
    let mut first = [0; 4];
    let count = stream.peek(&mut first)?;
    if !first[..count].starts_with(b"GET ") {
        let mut reading = stream.try_clone()?;
        io::copy(&mut reading, &mut stream)?;
        return stream.shutdown(Shutdown::Write);
    }
    let mut request = [0; 1024];
    let length = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..length]);
    assert!(
        request.starts_with("GET /healthz HTTP/1.1\r\n"),
        "{request}"
    );
    let status = if well { "200 OK" } else { "503 Sick" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
}

#[test]
fn an_endpoint_that_swallows_connections_delays_and_loses_none() {
    let sandbox = Sandbox::new();
    let (hung, _held) = sandbox.within(swallowing);
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let endpoints = [hung.to_string(), server.address().to_string()];
    let more = "balance = \"round-robin\"\nconnect_timeout = \"1s\"\n\
                health = { passive = { failures = 3, eject = \"1h\" } }";
    let culvert = sandbox.culvert(&group(&endpoints, more));
    assert_eq!(storm(&sandbox.app(), 2, 10), [(0, 20)].into());
    let records = culvert.await_records(20);
    let late = records.iter().filter(|record| record.attempts == 2).count();
    assert!((3..=6).contains(&late), "{late}");
    assert_eq!(states(&sandbox, &culvert)[&endpoints[0]], "ejected");
    let status = status(&sandbox, &culvert);
    assert_eq!(status["retries"], late);
    let endpoint = &status["endpoints"].as_array().unwrap();
    let hung = endpoint
        .iter()
        .find(|one| one["address"] == endpoints[0])
        .unwrap();
    assert_eq!(
        (&hung["failures"], &hung["connections"]),
        (&late.into(), &0.into())
    );
}

/// A listener whose queue is full, so that the kernel drops further connections without a word.
fn swallowing() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from((SERVER_V4, 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    for _ in 0..4 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&address);
        held.push(client);
    }
    (address.as_socket().unwrap(), held)
}

#[test]
fn servers_come_and_go_under_load() {
    let sandbox = Sandbox::new();
    let start = |address: SocketAddr| sandbox.within(|| Server::echo(address));
    let mut servers: Vec<_> = (0..3).map(|_| start((SERVER_V4, 0).into())).collect();
    let endpoints: Vec<_> = servers
        .iter()
        .map(|one| one.address().to_string())
        .collect();
    let health = r#"health = { tcp = true, interval = "100ms", fall = 1, rise = 1, passive = { failures = 2, eject = "200ms" } }"#;
    let culvert = sandbox.culvert(&group(&endpoints, health));
    let app = sandbox.app();
    let load = Load::start(
        app,
        Storm {
            addresses: vec![SERVICE.into()],
            threads: 4,
            each: 10,
            length: 1000,
        },
    );
    for turn in 0..9 {
        load.await_rounds(1);
        let gone = servers.remove(0);
        let address = gone.address();
        drop(gone);
        load.await_rounds(1);
        if turn % 3 == 0 {
            await_state(&sandbox, &culvert, &address.to_string(), "down");
        }
        servers.push(start(address));
    }
    let rounds = load.finish();
    let total: u64 = rounds
        .iter()
        .flat_map(|round| round.outcomes.values())
        .sum();
    let good: u64 = rounds
        .iter()
        .filter_map(|round| round.outcomes.get(&0))
        .sum();
    let records = culvert.await_records(usize::try_from(total).unwrap());
    let lost: Vec<_> = records
        .iter()
        .filter(|record| record.reason != "done")
        .collect();
    println!("{total} connections, {} lost with their server", lost.len());
    assert_eq!(total - good, lost.len() as u64, "{lost:#?}");
    // Only what the kernel had accepted for a server that went without taking it.
    for record in &lost {
        assert_eq!(record.reason, "upstream_reset", "{record:#?}");
        assert!(record.peer.is_some());
    }
    assert!(
        records.iter().any(|record| record.attempts > 1),
        "none was tried twice"
    );
    for endpoint in &endpoints {
        await_state(&sandbox, &culvert, endpoint, "up");
    }
}

#[test]
fn a_full_group_lets_connections_wait_and_sends_the_rest_away() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let limits = r#"limits = { endpoint = 2, queue = 1, queue_timeout = "30s" }"#;
    let culvert = sandbox.culvert(&group(&[server.address().to_string()], limits));
    let app = sandbox.app();
    let connect = || {
        let socket = app.tcp(SERVICE.into());
        socket.connect(SERVICE.into()).unwrap();
        socket
    };
    let await_waiting = |count: u32| {
        eventually("connections in the queue", || {
            (status(&sandbox, &culvert)["waiting"] == count).then_some(())
        });
    };
    let (first, second) = (connect(), connect());
    first.assert_echo();
    second.assert_echo();
    let third = connect();
    await_waiting(1);
    let fourth = connect();
    assert_eq!(
        fourth.receive(1),
        Err(Errno::ECONNRESET),
        "the queue is full"
    );
    assert_eq!(server.clients().len(), 2);
    first.close();
    third.assert_echo();
    await_waiting(0);

    culvert.reload(&group(
        &[server.address().to_string()],
        r#"limits = { total = 2, queue_timeout = "100ms" }"#,
    ));
    let fifth = connect();
    assert_eq!(
        fifth.receive(1),
        Err(Errno::ECONNRESET),
        "it waited too long"
    );
    second.assert_echo();
    third.close();
    second.close();
    let mut reasons: Vec<_> = culvert
        .await_records(5)
        .into_iter()
        .map(|r| r.reason)
        .collect();
    reasons.sort();
    assert_eq!(
        reasons,
        ["done", "done", "done", "queue_full", "queue_timeout"]
    );
    let status = status(&sandbox, &culvert);
    assert_eq!(
        [
            &status["queued"],
            &status["queue_full"],
            &status["queue_timeouts"],
            &status["live"]
        ],
        [2, 1, 1, 0]
    );
}

#[test]
fn a_source_has_no_more_than_its_limit() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(&group(
        &[server.address().to_string()],
        "limits = { source = 1 }",
    ));
    let app = sandbox.app();
    let from = |client: Ipv4Addr| {
        let socket = app.tcp(SERVICE.into());
        socket.bind((client, 0).into()).unwrap();
        socket.connect(SERVICE.into()).unwrap();
        socket
    };
    let first = from(CLIENT_V4);
    first.assert_echo();
    let second = from(CLIENT_V4);
    assert_eq!(second.receive(1), Err(Errno::ECONNRESET));
    let stranger = from(OTHER_V4);
    stranger.assert_echo();
    first.close();
    culvert.await_records(2);
    let third = from(CLIENT_V4);
    third.assert_echo();
    let refused = culvert
        .records()
        .into_iter()
        .filter(|r| r.reason == "source_limit");
    assert_eq!(refused.count(), 1);
    assert_eq!(status(&sandbox, &culvert)["source_limit"], 1);
}

#[test]
fn endpoints_may_be_unix_sockets_and_where_the_app_was_going() {
    let sandbox = Sandbox::new();
    let original = sandbox.within(|| Server::echo(SERVICE));
    let path = sandbox.directory().join("web.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let unix = thread::spawn(move || {
        for _ in 0..5 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reading = stream.try_clone().unwrap();
            io::copy(&mut reading, &mut stream).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let endpoints = [format!("unix:{}", path.display()), "original".to_owned()];
    let culvert = sandbox.culvert(&group(&endpoints, "balance = \"round-robin\""));
    assert_eq!(storm(&sandbox.app(), 1, 10), [(0, 10)].into());
    unix.join().unwrap();
    assert_eq!(original.clients().len(), 5);
    for record in culvert.await_records(10) {
        let endpoint = record.endpoint.unwrap();
        assert_eq!(record.peer.is_none(), endpoint == endpoints[0]);
        assert!(endpoints.contains(&endpoint));
        assert_eq!(
            (&*record.reason, record.path.as_deref()),
            ("done", Some("copy"))
        );
        assert_eq!((record.up, record.down), (100, 100));
    }
}

#[test]
fn names_are_resolved_and_followed() {
    let sandbox = Sandbox::new();
    let names = sandbox.name_server();
    let one = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let port = one.address().port();
    let other = sandbox.within(|| Server::echo((OTHER_V4, port)));
    let six = sandbox.within(|| Server::echo((SERVER_V6, port)));
    names.set("web.test", &[SERVER_V4.into(), SERVER_V6.into()]);
    names.set("other.test", &[OTHER_V4.into()]);
    names.set_service(
        "_http._tcp.test",
        &[
            (1, 10, port, "other.test."),
            (9, 10, CLOSED_PORT, "web.test."),
        ],
    );

    let by_name = [format!("dns:web.test:{port}")];
    let culvert = sandbox.culvert(&group(&by_name, "balance = \"round-robin\""));
    let app = sandbox.app();
    // The first may come before the answer of the name server: it waits.
    assert_eq!(storm(&app, 2, 10), [(0, 20)].into());
    assert_eq!((one.clients().len(), six.clients().len()), (10, 10));
    names.set("web.test", &[OTHER_V4.into()]);
    let moved = other.address().to_string();
    await_state(&sandbox, &culvert, &moved, "up");
    assert_eq!(states(&sandbox, &culvert).len(), 1);
    assert_eq!(storm(&app, 1, 10), [(0, 10)].into());
    assert_eq!(other.clients().len(), 10);

    culvert.reload(&group(&["srv:_http._tcp.test".to_owned()], ""));
    await_state(&sandbox, &culvert, &moved, "up");
    assert_eq!(storm(&app, 1, 10), [(0, 10)].into());
    assert_eq!(other.clients().len(), 20, "only the best priority");

    // A name server that is gone changes nothing.
    drop(names);
    eventually("a look-up that fails", || {
        (status(&sandbox, &culvert)["unresolved"].as_u64() > Some(0)).then_some(())
    });
    assert_eq!(storm(&app, 1, 10), [(0, 10)].into());
    assert_eq!(other.clients().len(), 30);
}

#[test]
fn a_reload_moves_no_connection_and_forgets_no_health() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> = (0..2)
        .map(|_| sandbox.within(|| Server::echo((SERVER_V4, 0))))
        .collect();
    let dead = SocketAddr::from((SERVER_V4, CLOSED_PORT)).to_string();
    let [first, second] = [0, 1].map(|at: usize| servers[at].address().to_string());
    let health = r#"health = { tcp = true, interval = "50ms", rise = 2, fall = 2 }"#;
    let culvert = sandbox.culvert(&group(&[first.clone(), dead.clone()], health));
    await_state(&sandbox, &culvert, &dead, "down");
    let app = sandbox.app();
    let socket = app.tcp(SERVICE.into());
    socket.connect(SERVICE.into()).unwrap();
    socket.exchange(1, 1000).unwrap();

    // The dead one stays down without a check: these come in an hour.
    let health = r#"health = { tcp = true, interval = "1h", rise = 2, fall = 2 }"#;
    culvert.reload(&group(
        &[second.clone(), format!("{dead} weight=3")],
        health,
    ));
    let expected = [
        (first.clone(), "leaving"),
        (second.clone(), "up"),
        (dead, "down"),
    ];
    let expected = expected.map(|(address, state)| (address, state.to_owned()));
    assert_eq!(states(&sandbox, &culvert), expected.into());
    assert_eq!(storm(&app, 2, 10), [(0, 20)].into());
    let records = culvert.await_records(20);
    assert!(
        records
            .iter()
            .all(|record| record.endpoint == Some(second.clone()))
    );
    socket.exchange(2, 1000).unwrap();
    socket.close();
    culvert.await_records(21);
    eventually("the endpoint that left to be gone", || {
        (!states(&sandbox, &culvert).contains_key(&first)).then_some(())
    });
}
