//! First bytes that come late, in pieces, with too much or with nothing in them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use culvert_tests::{
    Sandbox,
    hello::hello,
    peer::Server,
    sandbox::{OTHER_V4, SERVER_V4},
};
use nix::errno::Errno;

use super::{connected, counted, host, rule, sni};

/// What the server is told of a client whose name led to it.
#[test]
fn a_proxy_header_says_the_name_that_tls_has() {
    let sandbox = Sandbox::new();
    let alone = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let of_group = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let names = [
        sni("alone.example", "", &alone.address().to_string()),
        sni("group.example", "", "web"),
        host("alone.example", &alone.address().to_string()),
    ];
    let group = format!(
        "[upstream.web]\nendpoints = [\"{}\"]\nsend_proxy = \"v2\"\n",
        of_group.address()
    );
    let rule = rule(443, "refuse", &names, "send_proxy = \"v2\"");
    let culvert = sandbox.culvert(&(group + &rule));
    let app = sandbox.app();
    let name_in_header = |bytes: &[u8]| {
        let socket = connected(&app, 443);
        for piece in bytes.chunks(10) {
            socket.send(piece).unwrap();
        }
        let head = socket.receive(16).unwrap();
        assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
        let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
        let rest = socket.receive(length).unwrap();
        assert_eq!(socket.receive(bytes.len()).unwrap(), bytes);
        socket.close();
        // Behind the addresses: each with its type and its length.
        let mut values = &rest[12..];
        while let [kind, high, low, behind @ ..] = values {
            let (value, more) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            if *kind == 2 {
                return Some(String::from_utf8(value.to_vec()).unwrap());
            }
            values = more;
        }
        None
    };
    for name in ["alone.example", "group.example"] {
        assert_eq!(name_in_header(&hello(name)).as_deref(), Some(name));
    }
    let request = b"GET / HTTP/1.1\r\nHost: alone.example\r\n\r\n";
    assert_eq!(name_in_header(request), None, "it is the name in TLS alone");
    let records = culvert.await_records(3);
    assert_eq!(records[1].upstream.as_deref(), Some("web"));
    assert_eq!(records[1].peer, Some(of_group.address()));
}

#[test]
fn first_bytes_may_come_in_pieces_and_none_is_lost() {
    let sandbox = Sandbox::new();
    let one = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let two = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let names = [host("two.example", &two.address().to_string())];
    let culvert = sandbox.culvert(&rule(
        80,
        &one.address().to_string(),
        &names,
        "peek_timeout = \"60s\"",
    ));
    let app = sandbox.app();
    let request = b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: two.example\r\n\r\n";
    for length in [1, 7, 30] {
        let socket = connected(&app, 80);
        for piece in request.chunks(length) {
            socket.send(piece).unwrap();
        }
        assert_eq!(socket.receive(request.len()).unwrap(), request);
        socket.exchange(3, 300_000).unwrap();
        socket.shutdown().unwrap();
        assert_eq!(socket.receive_all(), Ok(Vec::new()));
        socket.close();
    }
    for record in culvert.await_records(3) {
        assert_eq!(record.peer, Some(two.address()));
        assert_eq!(record.up, 300_000 + request.len() as u64);
        assert_eq!(record.up, record.down);
    }
}

/// Where the receive buffer is too small for what is to be looked at, looking makes it larger.
#[test]
fn a_small_receive_buffer_is_no_obstacle() {
    let sandbox = Sandbox::new();
    sandbox
        .netns()
        .sysctl("net.ipv4.tcp_rmem", "4096 8192 6291456");
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let names = [host("a.example", &echo.address().to_string())];
    let more = "peek_timeout = \"60s\"\npeek_bytes = \"48KiB\"";
    let culvert = sandbox.culvert(&rule(80, "refuse", &names, more));
    let app = sandbox.app();
    let cookie = "x".repeat(40_000);
    let head = format!("GET / HTTP/1.1\r\nCookie: {cookie}\r\nHost: a.example\r\n\r\n");
    let socket = connected(&app, 80);
    socket.send(head.as_bytes()).unwrap();
    assert_eq!(socket.receive(head.len()).unwrap(), head.as_bytes());
    socket.exchange(1, 1_000_000).unwrap();
    socket.close();
    let record = culvert.the_record();
    assert_eq!(record.name.as_deref(), Some("a.example"));
    assert_eq!(record.peer, Some(echo.address()));
}

#[test]
fn who_says_nothing_in_time_is_unnamed() {
    const GREETING: &[u8] = b"220 ready\r\n";
    let sandbox = Sandbox::new();
    let greeter = sandbox.within(|| Server::greeter((SERVER_V4, 0), GREETING));
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let names = [host("a.example", "refuse")];
    let rules = [
        rule(
            25,
            &greeter.address().to_string(),
            &names,
            "peek_timeout = \"300ms\"",
        ),
        rule(
            80,
            "refuse",
            &names,
            &format!("unnamed = \"{}\"\npeek_timeout = \"300ms\"", echo.address()),
        )
        .replace("\"site\"", "\"slow\""),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    // A server that speaks first is heard after the stated time.
    let begun = Instant::now();
    let socket = connected(&app, 25);
    assert_eq!(socket.receive_all().unwrap(), GREETING);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    socket.close();
    // What a slow client has said by then is not lost, and it can go on.
    let begun = Instant::now();
    let socket = connected(&app, 80);
    socket.send(b"GET / HT").unwrap();
    assert_eq!(socket.receive(8).unwrap(), b"GET / HT");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    socket.exchange(5, 200_000).unwrap();
    socket.close();
    let records = culvert.await_records(2);
    assert!(records.iter().all(|record| record.name.is_none()));
    assert_eq!(counted(&sandbox, &culvert)["timed_out"], 2);
}

/// Nobody waits for a name that no rule asks for.
#[test]
fn a_rule_without_names_never_waits() {
    const GREETING: &[u8] = b"220 ready\r\n";
    let sandbox = Sandbox::new();
    let greeter = sandbox.within(|| Server::greeter((SERVER_V4, 0), GREETING));
    let to = greeter.address().to_string();
    let names = [host("a.example", "refuse")];
    let rules = [
        // Longer than any test waits.
        rule(25, &to, &names, "peek_timeout = \"60s\""),
        format!("[[reverse]]\nname = \"other\"\nlisten = \"{OTHER_V4}:26\"\nvia = \"{to}\"\n"),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    let waiting = connected(&app, 25);
    let begun = Instant::now();
    let socket = connected(&app, 26);
    assert_eq!(socket.receive_all().unwrap(), GREETING);
    assert!(begun.elapsed() < Duration::from_secs(50));
    socket.close();
    let record = culvert.the_record();
    assert_eq!(record.rule.as_deref(), Some("other"));
    assert_eq!(greeter.clients().len(), 1, "the other one waits");
    assert_eq!(counted(&sandbox, &culvert), serde_json::json!({}));
    waiting.close();
}

#[test]
fn what_is_malformed_or_too_long_goes_as_the_rule_says() {
    let sandbox = Sandbox::new();
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let to = echo.address().to_string();
    let names = [host("a.example", &to), sni("a.example", "", &to)];
    let rules = [
        rule(80, &to, &names, "peek_bytes = \"512B\""),
        rule(
            81,
            "refuse",
            &names,
            &format!("malformed = \"{to}\"\npeek_bytes = \"512B\""),
        )
        .replace("\"site\"", "\"lenient\""),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    let long = format!(
        "GET / HTTP/1.1\r\nCookie: {}\r\nHost: a.example\r\n\r\n",
        "x".repeat(600)
    );
    let wrong = [
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00".as_slice(),
        b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        long.as_bytes(),
    ];
    for (count, bytes) in wrong.iter().enumerate() {
        let socket = connected(&app, 80);
        socket.send(bytes).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
        socket.close();
        let socket = connected(&app, 81);
        socket.send(bytes).unwrap();
        assert_eq!(socket.receive(bytes.len()).unwrap(), *bytes);
        socket.exchange(1, 10_000).unwrap();
        socket.close();
        let records = culvert.await_records(2 * count + 2);
        let of = |rule: &str| {
            records
                .iter()
                .rfind(|record| record.rule.as_deref() == Some(rule))
                .unwrap()
        };
        assert_eq!(of("site").reason, "name_refused");
        assert!(of("site").error.as_ref().unwrap().contains("malformed"));
        assert_eq!(of("lenient").peer, Some(echo.address()));
    }
    assert_eq!(counted(&sandbox, &culvert)["malformed"], 6);
    // Others are not concerned.
    let socket = connected(&app, 80);
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    socket.send(request).unwrap();
    assert_eq!(socket.receive(request.len()).unwrap(), request);
}

/// The header of a trusted sender comes first, and what the client says behind it.
#[test]
fn a_proxy_header_is_taken_off_before_names_are_looked_for() {
    let sandbox = Sandbox::new();
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let names = [host("a.example", &echo.address().to_string())];
    let culvert = sandbox.culvert(&rule(
        80,
        "refuse",
        &names,
        "accept_proxy = \"192.0.2.0/24\"",
    ));
    let app = sandbox.app();
    let address = SocketAddr::from((OTHER_V4, 80));
    let socket = app.tcp(address);
    socket.bind((SERVER_V4, 0).into()).unwrap();
    socket.connect(address).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    socket
        .send(
            &[
                b"PROXY TCP4 198.51.100.7 192.0.2.2 40000 80\r\n".as_slice(),
                request,
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(socket.receive(request.len()).unwrap(), request);
    socket.close();
    let record = culvert.the_record();
    assert_eq!(record.name.as_deref(), Some("a.example"));
    assert_eq!(record.client, "198.51.100.7:40000".parse().unwrap());
}

/// After a reload new connections go by the new names, and those that live stay.
#[test]
fn a_reload_changes_names() {
    let sandbox = Sandbox::new();
    let one = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let two = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = |to: &Server| {
        rule(
            80,
            "refuse",
            &[host("a.example", &to.address().to_string())],
            "",
        )
    };
    let culvert = sandbox.culvert(&rules(&one));
    let app = sandbox.app();
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let ask = || {
        let socket = connected(&app, 80);
        socket.send(request).unwrap();
        assert_eq!(socket.receive(request.len()).unwrap(), request);
        socket
    };
    let living = ask();
    culvert.reload(&rules(&two));
    let newer = ask();
    assert_eq!((one.clients().len(), two.clients().len()), (1, 1));
    living.exchange(1, 1000).unwrap();
    newer.exchange(2, 1000).unwrap();
}
