//! What a running daemon shows of its connections, rules and upstreams.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::{Output, Stdio},
};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    hosts::{self, Hosts, LAN},
    peer::Server,
    rules::ALL,
    sandbox::{OTHER_V4, SERVER_V4},
};
use nix::errno::Errno;
use serde_json::Value;

fn ask(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Output {
    let mut command = sandbox.culvert_command();
    command.args(words).arg("--admin").arg(culvert.admin());
    command.output().unwrap()
}

fn text(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> String {
    let output = ask(sandbox, culvert, words);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Value {
    let words: Vec<_> = words.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&text(sandbox, culvert, &words)).unwrap()
}

#[test]
fn a_connection_is_listed_by_what_it_is_and_can_be_ended() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let [kept, ended] = [(); 2].map(|()| {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(1, 1000).unwrap();
        socket
    });
    let list = json(&sandbox, &culvert, &["conns", "--sort", "id"]);
    assert_eq!(list["matching"], 2);
    let one = &list["connections"][0];
    assert_eq!(one["role"], "forward");
    assert_eq!(one["rule"], "all");
    assert_eq!(one["to"], server.address().to_string());
    assert_eq!(one["peer"], server.address().to_string());
    assert_eq!(one["pid"], app.pid());
    assert_eq!((&one["up"], &one["down"]), (&1000.into(), &1000.into()));
    assert_eq!(one["path"], "copy");
    assert_eq!(one["path_reason"], "short", "{one}");
    for rtt in ["downstream_rtt_us", "upstream_rtt_us"] {
        assert!(one[rtt].as_u64().unwrap() > 0, "{one}");
    }
    assert_eq!(
        (&one["up_backlog"], &one["down_backlog"]),
        (&0.into(), &0.into())
    );

    let comm = one["comm"].as_str().unwrap();
    let to = format!("to={}", server.address());
    let process = format!("process={comm}");
    let pid = format!("process={}", app.pid());
    for (filter, matching) in [
        ("rule=all", 2),
        ("rule=other", 0),
        ("role=reverse", 0),
        (to.as_str(), 2),
        ("to=192.0.2.0/24", 2),
        ("to=198.51.100.0/24", 0),
        (process.as_str(), 2),
        (pid.as_str(), 2),
        ("path=copy", 2),
        ("path=splice", 0),
        ("any=aLl", 2),
        ("any=elsewhere", 0),
    ] {
        let list = json(&sandbox, &culvert, &["conns", "--filter", filter]);
        assert_eq!(list["matching"], matching, "{filter}: {list:#}");
    }
    let limited = json(&sandbox, &culvert, &["conns", "--limit", "1"]);
    assert_eq!(limited["matching"], 2);
    assert_eq!(limited["connections"].as_array().unwrap().len(), 1);
    for sort in ["rate", "bytes", "age", "rtt"] {
        let list = json(&sandbox, &culvert, &["conns", "--sort", sort]);
        assert_eq!(list["connections"].as_array().unwrap().len(), 2, "{sort}");
    }
    let shown = text(&sandbox, &culvert, &["conns", "--sort", "rate"]);
    assert!(shown.contains(&format!("{comm}[{}]", app.pid())), "{shown}");
    assert!(shown.ends_with("2 connections\n"), "{shown}");
    let wrong = ask(&sandbox, &culvert, &["conns", "--filter", "colour=red"]);
    assert_eq!(wrong.status.code(), Some(1));
    let wrong = String::from_utf8(wrong.stderr).unwrap();
    assert!(
        wrong.contains("nothing that connections can be chosen by"),
        "{wrong}"
    );

    let id = list["connections"][1]["id"].to_string();
    assert_eq!(
        text(&sandbox, &culvert, &["end", &id]),
        format!("{id}: reset\n")
    );
    assert_eq!(culvert.the_record().reason, "ended");
    assert_eq!(ended.receive_all(), Err(Errno::ECONNRESET));
    kept.exchange(1, 1000).unwrap();
    let gone = ask(&sandbox, &culvert, &["end", &id]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    kept.close();
}

/// Exchanges 4096 bytes for each line that it is told, on a socket that does not block.
const EXCHANGES: &str = r"
import select, socket, sys
s = socket.socket()
s.setblocking(False)
s.connect_ex((sys.argv[1], int(sys.argv[2])))
select.select([], [s], [])
for _ in sys.stdin:
    s.send(b'x' * 4096)
    left = 4096
    while left:
        select.select([s], [], [])
        left -= len(s.recv(left))
    print('done', flush=True)
";

/// Bytes that the kernel moves while the relay rests are in the list, and are in the end what the close record says.
#[test]
fn what_goes_past_a_relay_that_rests_is_seen() {
    for path in ["sockmap", "shortcut-both-ways"] {
        let sandbox = Sandbox::new();
        let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
        let culvert = sandbox.culvert(&format!("{ALL}path = \"{path}\"\n"));
        let mut command = sandbox.command("python3");
        let (ip, port) = (server.address().ip(), server.address().port());
        command.args(["-c", EXCHANGES, &ip.to_string(), &port.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut app = command.spawn().unwrap();
        let mut say = app.stdin.take().unwrap();
        let mut done = BufReader::new(app.stdout.take().unwrap()).lines();
        let mut sent = 0;
        for _ in 0..24 {
            writeln!(say).unwrap();
            assert_eq!(done.next().unwrap().unwrap(), "done");
            sent += 4096;
            // What the relay itself moves it counts a moment after the app has it.
            eventually("what was moved", || {
                let list = json(&sandbox, &culvert, &["conns"]);
                let one = &list["connections"][0];
                let seen = |way: &str| one[way].as_u64().unwrap();
                assert!(seen("up").max(seen("down")) <= sent, "{path}: {one:#}");
                (seen("up") == sent && seen("down") == sent).then_some(())
            });
        }
        let list = json(&sandbox, &culvert, &["conns"]);
        assert_eq!(list["connections"][0]["path"], path, "{list:#}");
        drop(say);
        assert!(app.wait().unwrap().success());
        let record = culvert.the_record();
        assert_eq!((record.up, record.down), (sent, sent));
        assert!(
            record.bytes.sockmap + record.bytes.replies + record.bytes.shortcut > 0,
            "{record:?}"
        );
    }
}

/// Sends until nothing more is taken, says how much that was, and waits.
const FILL: &str = r"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.settimeout(0.5)
sent = 0
try:
    while True:
        sent += s.send(b'x' * 65536)
except TimeoutError:
    print(sent, flush=True)
sys.stdin.read()
";

#[test]
fn what_waits_for_a_server_that_does_not_read_is_seen() {
    for path in ["copy", "splice"] {
        let sandbox = Sandbox::new();
        let server = sandbox.within(|| TcpListener::bind((SERVER_V4, 0)).unwrap());
        let address = server.local_addr().unwrap();
        let culvert = sandbox.culvert(&format!("{ALL}path = \"{path}\"\n"));
        let mut command = sandbox.command("python3");
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["-c", FILL, &ip, &port]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut app = command.spawn().unwrap();
        let mut said = BufReader::new(app.stdout.take().unwrap()).lines();
        let sent: u64 = said.next().unwrap().unwrap().parse().unwrap();
        let list = json(&sandbox, &culvert, &["conns"]);
        let one = &list["connections"][0];
        let backlog = one["up_backlog"].as_u64().unwrap();
        // The rest is in the queues of the app and the server, and in the relay's own buffers.
        assert!(backlog > 65_536 && backlog < sent, "{path}: {sent} {one:#}");
        assert_eq!(one["down_backlog"], 0, "{one:#}");
        drop(app.stdin.take());
        assert!(app.wait().unwrap().success());
    }
}

const RULES: &str = r#"
[upstream.relay]
url = "direct://"
[[forward]]
name = "refused"
match = { dest = "192.0.2.0/24", port = 1 }
via = "refuse"
[[forward]]
name = "direct"
match = { dest = "192.0.2.2" }
via = "direct"
[[forward]]
name = "relayed"
match = { dest = "192.0.2.1" }
via = "relay"
"#;

fn hits(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Vec<(String, u64, u64)> {
    let rules = json(sandbox, culvert, &["rules"]);
    let rules = rules["rules"].as_array().unwrap();
    rules
        .iter()
        .map(|rule| {
            let name = rule["name"].as_str().unwrap().to_owned();
            let count = |key: &str| rule[key].as_u64().unwrap();
            (name, count("hits"), count("live"))
        })
        .collect()
}

#[test]
fn rules_are_counted_in_the_kernel_through_reloads() {
    let sandbox = Sandbox::new();
    let [server, other] = [SERVER_V4, OTHER_V4].map(|ip| sandbox.within(|| Server::echo((ip, 0))));
    let culvert = sandbox.culvert(RULES);
    let app = sandbox.app();
    let hit = |times: usize| {
        for _ in 0..times {
            for address in [server.address(), other.address()] {
                let socket = app.tcp(address);
                socket.connect(address).unwrap();
                socket.exchange(1, 10).unwrap();
                socket.close();
            }
        }
        let refused = (SERVER_V4, 1).into();
        let socket = app.tcp(refused);
        socket.connect(refused).unwrap_err();
        socket.close();
    };
    let expected = |refused, others| {
        [
            ("refused", refused),
            ("direct", others),
            ("relayed", others),
        ]
        .map(|(name, hits)| (name.to_owned(), hits, 0))
    };
    hit(3);
    culvert.await_records(3);
    assert_eq!(hits(&sandbox, &culvert), expected(1, 3));
    for round in 2..6_u64 {
        // Other places in the tables each time, and the names stay.
        let more = "[[forward]]\nname = \"more\"\nmatch = { port = 2 }\nvia = \"direct\"\n";
        let before = if round % 2 == 0 { more } else { "" };
        culvert.reload(&RULES.replacen("[[forward]]", &format!("{before}[[forward]]"), 1));
        hit(1);
        culvert.await_records(usize::try_from(round + 2).unwrap());
        let mut found = hits(&sandbox, &culvert);
        found.retain(|(name, ..)| name != "more");
        assert_eq!(found, expected(round, round + 2), "round {round}");
    }
    let shown = text(&sandbox, &culvert, &["rules"]);
    assert!(shown.contains("dest 192.0.2.0/24; port 1"), "{shown}");
}

#[test]
fn what_passes_through_is_told_of_as_the_rest_is() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let gateway = |name: &str, interface: &str, port: u16, via: &str| {
        format!(
            "[[gateway]]\nname = \"{name}\"\ninterface = \"{interface}\"\nmatch = {{ port = {port} }}\nvia = \"{via}\"\n"
        )
    };
    let rules =
        gateway("relayed", LAN[0], 1001, "original") + &gateway("routed", LAN[0], 1002, "direct");
    let culvert = sandbox.culvert(&rules);
    let app = hosts.app(&sandbox, 0);
    let servers = hosts::server(0).map(|address| {
        [1001, 1002].map(|port| hosts.server(0).within(|| Server::echo((address, port))))
    });
    let open = servers.each_ref().map(|[relayed, routed]| {
        [relayed, routed, routed].map(|server| {
            let socket = app.tcp(server.address());
            socket.connect(server.address()).unwrap();
            socket.exchange(1, 1000).unwrap();
            socket
        })
    });
    // What is for the router itself does not pass through.
    let own = sandbox.within(|| Server::echo((hosts::toward_client(0)[0], 1002)));
    let socket = app.tcp(own.address());
    socket.connect(own.address()).unwrap();
    socket.exchange(1, 1000).unwrap();

    let expected = [("relayed", 2, 2), ("routed", 4, 0)];
    let expected = expected.map(|(name, hits, live)| (name.to_owned(), hits, live));
    assert_eq!(hits(&sandbox, &culvert), expected);
    let list = json(&sandbox, &culvert, &["conns", "--filter", "role=gateway"]);
    assert_eq!(list["matching"], 2, "{list:#}");
    let client = format!("client={}", hosts::client(0)[1]);
    let list = json(&sandbox, &culvert, &["conns", "--filter", &client]);
    let one = &list["connections"][0];
    assert_eq!(
        (&list["matching"], &one["rule"]),
        (&1.into(), &"relayed".into())
    );
    assert_eq!(one["to"], servers[1][0].address().to_string());
    assert_eq!((&one["up"], &one["down"]), (&1000.into(), &1000.into()));
    let numbers = text(&sandbox, &culvert, &["metrics"]);
    let line = "culvert_rule_hits_total{role=\"gateway\",rule=\"routed\"} 4";
    assert!(numbers.lines().any(|found| found == line), "{numbers}");
    let id = one["id"].to_string();
    text(&sandbox, &culvert, &["end", &id]);
    assert_eq!(open[1][0].receive_all(), Err(Errno::ECONNRESET));
}

#[test]
fn upstreams_and_numbers_are_told() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let group = format!(
        "[upstream.web]\nendpoints = [\"{}\"]\n[[forward]]\nname = \"all\"\nmatch = {{ dest = \"198.51.100.9\" }}\nvia = \"web\"\n",
        server.address()
    );
    let settings = Settings::daemon("metrics = \"9464\"");
    let culvert = sandbox.culvert_with(&settings, &group);
    let app = sandbox.app();
    let service = "198.51.100.9:80".parse().unwrap();
    let socket = app.tcp(service);
    socket.connect(service).unwrap();
    socket.exchange(1, 1000).unwrap();

    let upstreams = json(&sandbox, &culvert, &["upstreams"]);
    let web = upstreams["upstreams"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "web")
        .unwrap();
    assert_eq!(web["live"], 1);
    let endpoint = &web["group"]["endpoints"][0];
    assert_eq!(endpoint["state"], "up");
    assert_eq!(endpoint["live"], 1);
    assert!(endpoint["latency_us"].as_u64().unwrap() > 0, "{endpoint}");
    let shown = text(&sandbox, &culvert, &["upstreams"]);
    assert!(shown.contains(&server.address().to_string()), "{shown}");
    let via = format!("via={}", server.address());
    for filter in [via.as_str(), "via=web"] {
        let list = json(&sandbox, &culvert, &["conns", "--filter", filter]);
        assert_eq!(list["matching"], 1, "{filter}");
    }

    let numbers = text(&sandbox, &culvert, &["metrics"]);
    for line in [
        "culvert_connections_open 1",
        "culvert_moved_bytes_total{path=\"copy\"} 2000",
        "culvert_relayed_bytes_total{direction=\"up\"} 1000",
        "culvert_relayed_bytes_total{direction=\"down\"} 1000",
        "culvert_rule_hits_total{role=\"forward\",rule=\"all\"} 1",
        &format!(
            "culvert_endpoint_up{{group=\"web\",endpoint=\"{}\"}} 1",
            server.address()
        ),
    ] {
        assert!(
            numbers.lines().any(|found| found == line),
            "{line} in\n{numbers}"
        );
    }
    let scraped = sandbox.within(|| {
        let scrape = |path: &str| {
            let mut stream = TcpStream::connect("127.0.0.1:9464").unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: culvert\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        [scrape("/metrics"), scrape("/v1/status"), scrape("/v1/end")]
    });
    assert!(scraped[0].starts_with("HTTP/1.1 200 "), "{}", scraped[0]);
    assert!(scraped[0].contains("content-type: text/plain; version=0.0.4"));
    assert!(scraped[0].contains("culvert_connections_open 1\n"));
    for refused in &scraped[1..] {
        assert!(refused.starts_with("HTTP/1.1 404 "), "{refused}");
    }
    socket.close();
}

#[test]
fn a_watch_goes_on_until_nobody_reads() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let mut command = sandbox.culvert_command();
    command.args(["conns", "--watch", "--json", "--admin"]);
    command
        .arg(culvert.admin())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut watching = command.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let list: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(list["matching"], 0);
    }
    drop(lines);
    let status = eventually("the end of a watch", || watching.try_wait().unwrap());
    assert!(!status.success());
    // And it is HTTP, for whoever has no culvert.
    let mut stream = UnixStream::connect(culvert.admin()).unwrap();
    stream
        .write_all(b"GET /v1/connections?limit=5 HTTP/1.1\r\nhost: culvert\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.ends_with("{\"matching\":0,\"connections\":[]}"),
        "{answer}"
    );
}
