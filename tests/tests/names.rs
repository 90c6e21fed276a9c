//! Connections that go where the name leads that their clients ask for: in TLS that is ended by the servers alone, in HTTP/1
//! and HTTP/2. Clients and servers are curl, OpenSSL and nginx.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use culvert_tests::{
    App, Culvert, Sandbox, Socket, eventually,
    peer::Server,
    process::{Running, attempt, output},
    sandbox::{OTHER_V4, SERVER_V4},
};
use nix::errno::Errno;
use serde_json::Value;

/// Ports of nginx on [`SERVER_V4`]: TLS twice, HTTP twice.
const TLS: [u16; 2] = [8441, 8442];
const HTTP: [u16; 2] = [8081, 8082];
/// HTTP/2 without TLS, and nothing else.
const H2: u16 = 8083;

/// nginx that answers by the name of the server that was reached, and has a page of some length.
fn nginx(sandbox: &Sandbox, page: &str) -> Running {
    let place = sandbox.directory().display().to_string();
    fs::create_dir(format!("{place}/www")).unwrap();
    fs::write(format!("{place}/www/page"), page).unwrap();
    for server in ["one", "two"] {
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-subj", &format!("/CN={server}")])
            .args(["-keyout", &format!("{place}/{server}.key"), "-out"])
            .arg(format!("{place}/{server}.pem"));
        output(&mut openssl);
    }
    let server = |listen: &str, name: &str, more: &str| {
        format!(
            "server {{ listen {SERVER_V4}:{listen}; root {place}/www; {more} \
             location = /who {{ return 200 \"{name} $http_host$ssl_server_name\"; }} }}\n"
        )
    };
    let tls = |name: &str| {
        format!("ssl_certificate {place}/{name}.pem; ssl_certificate_key {place}/{name}.key;")
    };
    let servers = [
        server(&format!("{} ssl http2", TLS[0]), "one", &tls("one")),
        server(&format!("{} ssl http2", TLS[1]), "two", &tls("two")),
        server(&HTTP[0].to_string(), "one", ""),
        server(&HTTP[1].to_string(), "two", ""),
        server(&format!("{H2} http2"), "h2", ""),
    ];
    let text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {place}/nginx.pid;\nerror_log {place}/error.log;\nevents {{}}\n\
         http {{\n access_log off;\n client_body_temp_path {place}/a;\n proxy_temp_path {place}/b;\n \
         fastcgi_temp_path {place}/c;\n uwsgi_temp_path {place}/d;\n scgi_temp_path {place}/e;\n{}}}\n",
        servers.concat()
    );
    let file = sandbox.directory().join("nginx.conf");
    fs::write(&file, text).unwrap();
    let mut command = sandbox.outsider("nginx");
    let nginx = Running::start(command.arg("-c").arg(&file).stderr(Stdio::null()));
    let url = format!("http://{SERVER_V4}:{}/who", HTTP[0]);
    eventually("nginx", || {
        let mut curl = sandbox.command("curl");
        attempt(curl.args(["-sS", "--max-time", "5", &url]))
            .status
            .success()
            .then_some(())
    });
    nginx
}

fn page() -> String {
    let lines: Vec<_> = (0..40_000).map(|line| format!("line {line}")).collect();
    lines.join("\n")
}

fn at(port: u16) -> String {
    format!("{SERVER_V4}:{port}")
}

/// A rule on [`OTHER_V4`], with entries of `names`, one a line, and other lines.
fn rule(port: u16, via: &str, names: &[String], more: &str) -> String {
    format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{OTHER_V4}:{port}\"\nvia = \"{via}\"\nnames = [\n{}]\n{more}\n",
        names.concat()
    )
}

fn sni(name: &str, more: &str, via: &str) -> String {
    format!("  {{ sni = \"{name}\"{more}, via = \"{via}\" }},\n")
}

fn host(name: &str, via: &str) -> String {
    format!("  {{ host = \"{name}\", via = \"{via}\" }},\n")
}

/// curl to a name, whose address is [`OTHER_V4`].
fn curl(sandbox: &Sandbox, url: &str, arguments: &[&str]) -> Command {
    let mut command = sandbox.command("curl");
    command
        .args(["-sSk", "--max-time", "20", "--noproxy", "*"])
        .args(["--connect-to", &format!("::{OTHER_V4}:")])
        .args(arguments)
        .arg(url);
    command
}

fn counted(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Value {
    let mut command = sandbox.culvert_command();
    command
        .args(["status", "--json", "--admin"])
        .arg(culvert.admin());
    let told: Value = serde_json::from_str(&output(&mut command)).unwrap();
    told["connections"]["names"].clone()
}

fn connected(app: &App, port: u16) -> Socket<'_> {
    let address = SocketAddr::from((OTHER_V4, port));
    let socket = app.tcp(address);
    socket.connect(address).unwrap();
    socket
}

#[test]
fn tls_goes_where_its_server_name_leads() {
    let sandbox = Sandbox::new();
    let page = page();
    let _nginx = nginx(&sandbox, &page);
    let names = [
        sni("www.example.com", "", &at(TLS[0])),
        sni("*.example.com", "", &at(TLS[1])),
        sni("*.deep.example.com", ", alpn = \"h2\"", &at(TLS[0])),
        sni("b\u{fc}cher.example", "", &at(TLS[1])),
        sni("refused.example", "", "refuse"),
    ];
    let culvert = sandbox.culvert(&rule(443, &at(TLS[0]), &names, ""));
    let mut count = 0;
    for (name, arguments, server, alpn) in [
        ("www.example.com", ["--http1.1"], "one", "http/1.1"),
        ("other.example.com", ["--http2"], "two", "h2,http/1.1"),
        ("a.deep.example.com", ["--http2"], "one", "h2,http/1.1"),
        ("a.deep.example.com", ["--http1.1"], "two", "http/1.1"),
        ("example.com", ["--http1.1"], "one", "http/1.1"),
        ("xn--bcher-kva.example", ["--http1.1"], "two", "http/1.1"),
    ] {
        let who = output(&mut curl(
            &sandbox,
            &format!("https://{name}/who"),
            &arguments,
        ));
        assert_eq!(who.split(' ').next(), Some(server), "{name}: {who}");
        assert!(who.ends_with(name), "the server sees the name: {who}");
        count += 1;
        let record = culvert.await_records(count).remove(count - 1);
        assert_eq!(record.name.as_deref(), Some(name));
        assert_eq!(record.alpn.as_deref(), Some(alpn));
        assert_eq!(record.reason, "done");
    }
    let fetched = output(&mut curl(&sandbox, "https://www.example.com/page", &[]));
    assert!(fetched == page, "{} bytes", fetched.len());
    let refused = attempt(&mut curl(&sandbox, "https://refused.example/who", &[]));
    assert!(!refused.status.success());
    let record = culvert.await_records(count + 2).remove(count + 1);
    assert_eq!(record.reason, "name_refused");
    assert_eq!((record.peer, record.up), (None, 0));
    assert_eq!(counted(&sandbox, &culvert)["named"], 8);
}

/// The certificate is the server's own: nothing stands between it and the client.
#[test]
fn openssl_sees_the_certificate_of_the_server() {
    let sandbox = Sandbox::new();
    let _nginx = nginx(&sandbox, "");
    let names = [sni("two.example", "", &at(TLS[1]))];
    let culvert = sandbox.culvert(&rule(443, &at(TLS[0]), &names, ""));
    for (arguments, subject) in [
        (["-servername", "two.example"].as_slice(), "CN = two"),
        (&["-servername", "TWO.example", "-tls1_2"], "CN = two"),
        (&["-servername", "else.example"], "CN = one"),
        (&["-noservername"], "CN = one"),
    ] {
        let mut command = sandbox.command("openssl");
        command
            .args(["s_client", "-connect", &format!("{OTHER_V4}:443")])
            .args(arguments);
        let shown = output(&mut command);
        assert!(shown.contains(&format!("subject={subject}\n")), "{shown}");
    }
    let records = culvert.await_records(4);
    let names: Vec<_> = records
        .iter()
        .map(|record| record.name.as_deref())
        .collect();
    assert_eq!(
        names,
        [
            Some("two.example"),
            Some("two.example"),
            Some("else.example"),
            None
        ]
    );
    let counted = counted(&sandbox, &culvert);
    assert_eq!(
        (&counted["named"], &counted["unnamed"]),
        (&3.into(), &1.into())
    );
}

#[test]
fn http_goes_where_its_host_leads() {
    let sandbox = Sandbox::new();
    let page = page();
    let _nginx = nginx(&sandbox, &page);
    let names = [
        host("one.example", &at(HTTP[0])),
        host("*.two.example", &at(HTTP[1])),
        host(&OTHER_V4.to_string(), &at(HTTP[1])),
        host("h2.example", &at(H2)),
    ];
    let culvert = sandbox.culvert(&rule(80, "refuse", &names, ""));
    for (url, arguments, answer) in [
        ("http://one.example/who", [].as_slice(), "one one.example"),
        ("http://a.b.two.example/who", &[], "two a.b.two.example"),
        ("http://192.0.2.2/who", &[], "two 192.0.2.2"),
        (
            "http://x/who",
            &["-H", "Host: ONE.example:80"],
            "one ONE.example:80",
        ),
        (
            "http://h2.example/who",
            &["--http2-prior-knowledge"],
            "h2 h2.example",
        ),
    ] {
        let mut command = curl(&sandbox, url, arguments);
        assert_eq!(output(&mut command), answer, "{url}");
    }
    for name in ["one.example", "h2.example"] {
        let how: &[&str] = if name == "h2.example" {
            &["--http2-prior-knowledge"]
        } else {
            &[]
        };
        let fetched = output(&mut curl(&sandbox, &format!("http://{name}/page"), how));
        assert!(fetched == page, "{} bytes from {name}", fetched.len());
    }
    for record in culvert.await_records(7) {
        assert!(record.name.is_some() && record.alpn.is_none(), "{record:?}");
        assert_eq!(record.reason, "done");
    }
    // No entry takes these, and the rule refuses what no entry takes.
    for arguments in [["-H", "Host: else.example"], ["-H", "Host:"]] {
        assert!(
            !attempt(&mut curl(&sandbox, "http://x/who", &arguments))
                .status
                .success()
        );
    }
    for record in culvert.await_records(9).drain(7..) {
        assert_eq!(record.reason, "name_refused");
    }
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
