//! What a daemon shows to browsers and to Grafana.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod grafana;
mod looks;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use culvert_tests::{
    App, Culvert, Sandbox, app::Socket, browser::Browser, daemon::Settings, eventually,
    peer::Server, process::Running, sandbox::SERVER_V4,
};

/// Where the rules have a group, and nobody is.
const SERVICE: &str = "198.51.100.9:80";

/// A daemon with a group of one server, both listeners, and a connection that has moved a thousand bytes each way.
fn with_connection(work: impl FnOnce(&Sandbox, &Culvert<'_>, &App)) {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let rules = format!(
        "[upstream.web]\nendpoints = [\"{}\"]\n[[forward]]\nname = \"all\"\nmatch = {{ dest = \"198.51.100.9\" }}\nvia = \"web\"\n",
        server.address()
    );
    let settings = Settings::daemon("metrics = \"9464\"\ndashboard = \"9465\"");
    let culvert = sandbox.culvert_with(&settings, &rules);
    let app = sandbox.app();
    let socket = connect(&app);
    work(&sandbox, &culvert, &app);
    socket.close();
}

fn connect(app: &App) -> Socket<'_> {
    let service: SocketAddr = SERVICE.parse().unwrap();
    let socket = app.tcp(service);
    socket.connect(service).unwrap();
    socket.exchange(1, 1000).unwrap();
    socket
}

/// What is answered to a request, whole.
fn ask(sandbox: &Sandbox, port: u16, request: &str, host: &str) -> String {
    sandbox.within(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn status(answer: &str) -> u16 {
    let code = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn the_page_and_what_it_asks_are_served_and_nothing_else() {
    with_connection(|sandbox, _, _| {
        let ask = |request: &str| ask(sandbox, 9465, request, "127.0.0.1:9465");
        for (path, kind, has) in [
            ("/", "text/html", "<title>culvert</title>"),
            ("/page.js", "text/javascript", "use strict"),
            ("/page.css", "text/css", "prefers-color-scheme: dark"),
            ("/v1/status", "application/json", "\"accepted\":1"),
            (
                "/v1/connections?any=web&limit=7",
                "application/json",
                "\"matching\":1",
            ),
            ("/v1/rules", "application/json", "\"name\":\"all\""),
            ("/v1/upstreams", "application/json", "\"state\":\"up\""),
        ] {
            let answer = ask(&format!("GET {path}"));
            assert_eq!(status(&answer), 200, "{path}: {answer}");
            assert!(
                answer.contains(&format!("content-type: {kind}")),
                "{answer}"
            );
            assert!(answer.contains(has), "{path}: {answer}");
            for header in [
                "content-security-policy: default-src 'none'; script-src 'self';",
                "frame-ancestors 'none'",
                "cross-origin-resource-policy: same-origin",
                "x-content-type-options: nosniff",
            ] {
                assert!(answer.contains(header), "{path} without {header}: {answer}");
            }
            assert!(
                !answer.to_lowercase().contains("access-control-allow"),
                "{answer}"
            );
        }
        for (request, code) in [
            ("GET /v1/connections?no=1", 400),
            ("POST /", 405),
            ("POST /v1/status", 405),
            ("POST /v1/end", 404),
            ("POST /v1/drain", 404),
            ("GET /metrics", 404),
            ("GET /../etc/passwd", 404),
        ] {
            assert_eq!(status(&ask(request)), code, "{request}");
        }
    });
}

#[test]
fn a_page_whose_name_was_made_to_mean_this_host_gets_no_answer() {
    with_connection(|sandbox, _, _| {
        for host in [
            "attacker.example:9465",
            "attacker.example",
            "127.0.0.1.attacker.example",
        ] {
            for path in ["/", "/v1/connections", "/v1/status"] {
                let answer = ask(sandbox, 9465, &format!("GET {path}"), host);
                assert_eq!(status(&answer), 421, "{answer}");
                assert!(!answer.contains("accepted"), "{answer}");
            }
        }
        for host in ["localhost:9465", "[::1]:9465"] {
            assert_eq!(status(&ask(sandbox, 9465, "GET /", host)), 200, "{host}");
        }
    });
}

#[test]
fn a_port_alone_is_one_of_loopback() {
    with_connection(|sandbox, _, _| {
        sandbox.within(|| {
            let error = TcpStream::connect((SERVER_V4, 9465)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn a_real_browser_shows_what_there_is() {
    with_connection(|sandbox, culvert, _| {
        // Names of programs are anybody's to choose.
        let program = sandbox.directory().join("<b>bash");
        fs::copy("/bin/bash", &program).unwrap();
        let mut connects = sandbox.command(&program);
        connects.args(["-c", "exec 3<>/dev/tcp/198.51.100.9/80 && read <&3"]);
        let _connects = Running::start(&mut connects);
        eventually("its connection", || {
            (culvert.status()["connections"]["live"] == 2).then_some(())
        });
        let mut browser = Browser::start(sandbox);
        browser.open("http://127.0.0.1:9465/");
        browser.await_true("document.querySelector('#open').textContent === '2'");
        let page = browser.evaluate("document.documentElement.outerHTML");
        let page = page.as_str().unwrap();
        // Made by the script, from the answers.
        for shown in [
            SERVICE,
            "&lt;b&gt;bash",
            "<td class=\"good\" data-label=\"Health\">up<",
            "<p id=\"state\" role=\"status\" class=\"good\">live</p>",
            "<b id=\"open\">2</b>",
        ] {
            assert!(page.contains(shown), "{shown} is not in\n{page}");
        }
        assert!(!page.contains("<b>bash"), "names are text: {page}");
    });
}
