//! Programs that nobody here wrote, through the relay: curl, nginx, microsocks and Python's asyncio; and one that is
//! linked statically.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
};

use culvert_tests::{
    App, Payload, Sandbox,
    app::Route,
    eventually,
    peer::{self, Server},
    process::{Running, app_binary, attempt, output},
    rules::{ALL, all_via},
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};

/// A file that takes a while.
const FILE: Payload = Payload { seed: 20 };
const FILE_LENGTH: usize = 20 * 1024 * 1024;

/// Waits until somebody listens.
fn await_listener(sandbox: &Sandbox, address: impl Into<SocketAddr>) {
    let address = address.into();
    eventually(&format!("a listener on {address}"), || {
        sandbox.within(|| TcpStream::connect(address)).ok()
    });
}

/// An nginx with the file and the lines of one server, run by a command that gets its arguments.
fn nginx(sandbox: &Sandbox, name: &str, server: &str, command: &mut Command) -> Running {
    let directory = sandbox.directory().join(name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), FILE.prefix(FILE_LENGTH)).unwrap();
    let server = format!("server {{ root {}; {server} }}", directory.display());
    peer::nginx(&directory, &server, command)
}

/// An nginx that nothing intercepts, with the file.
fn web_server(sandbox: &Sandbox) -> Running {
    let server = format!("listen {SERVER_V4}:80; listen [{SERVER_V6}]:80;");
    let running = nginx(sandbox, "origin", &server, &mut sandbox.outsider("nginx"));
    for address in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        await_listener(sandbox, (address, 80));
    }
    running
}

/// A microsocks that nothing intercepts, and where it writes its log.
fn microsocks(sandbox: &Sandbox, arguments: &[&str]) -> (Running, PathBuf) {
    run_microsocks(sandbox, sandbox.outsider("microsocks"), arguments)
}

/// A microsocks run by a command that gets its arguments, and where it writes its log.
fn run_microsocks(
    sandbox: &Sandbox,
    mut command: Command,
    arguments: &[&str],
) -> (Running, PathBuf) {
    let log = sandbox.directory().join("microsocks");
    command
        .args(["-i", &OTHER_V4.to_string(), "-p", "1080"])
        .args(arguments)
        .stderr(fs::File::create(&log).unwrap())
        .stdout(Stdio::null());
    let running = Running::start(&mut command);
    await_listener(sandbox, (OTHER_V4, 1080));
    (running, log)
}

/// curl as an app.
fn curl(sandbox: &Sandbox) -> Command {
    let mut command = sandbox.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]);
    command
}

/// The whole file, and nothing else.
fn assert_file(downloaded: &[u8]) {
    assert_eq!(downloaded.len(), FILE_LENGTH);
    assert_eq!(FILE.first_difference(0, downloaded), None);
}

#[test]
fn curl_downloads_from_nginx_through_microsocks() {
    let sandbox = Sandbox::new();
    let _server = web_server(&sandbox);
    let (_proxy, log) = microsocks(&sandbox, &[]);
    let proxy = SocketAddr::from((OTHER_V4, 1080));
    let culvert = sandbox.culvert(&all_via("socks5", proxy));
    let hosts = [format!("{SERVER_V4}"), format!("[{SERVER_V6}]")];
    for host in &hosts {
        assert_file(&attempt(curl(&sandbox).arg(format!("http://{host}/file"))).stdout);
    }
    for record in culvert.await_records(hosts.len()) {
        assert_eq!(record.peer, Some(proxy));
        assert_eq!(record.reason, "done");
        assert!(record.down > FILE_LENGTH as u64);
        assert!(record.handshake_us > 0);
        assert!(record.exe.is_some_and(|exe| exe.ends_with("/curl")));
    }
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("connected to").count(), hosts.len(), "{log}");
}

#[test]
fn a_proxy_on_this_host_that_the_rule_selects_too_is_not_sent_to_itself() {
    let sandbox = Sandbox::new();
    let _server = web_server(&sandbox);
    let (_proxy, log) = run_microsocks(&sandbox, sandbox.command("microsocks"), &[]);
    let proxy = SocketAddr::from((OTHER_V4, 1080));
    let culvert = sandbox.culvert(&all_via("socks5", proxy));
    for _ in 0..2 {
        let url = format!("http://{SERVER_V4}/file");
        assert_file(&attempt(curl(&sandbox).arg(url)).stdout);
    }
    let records = culvert.await_records(4);
    let of = |comm: &'static str| records.iter().filter(move |record| record.comm == comm);
    assert_eq!(of("curl").count(), 2);
    assert!(of("curl").all(|record| record.peer == Some(proxy)));
    assert_eq!(of("microsocks").count(), 2);
    assert!(of("microsocks").all(|record| record.peer == Some((SERVER_V4, 80).into())));
    assert!(records.iter().all(|record| record.reason == "done"));
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("connected to").count(), 2, "{log}");
    let warning = "a rule selects the connections of its own proxy";
    assert!(culvert.log().contains(warning), "{}", culvert.log());
}

#[test]
fn microsocks_wants_credentials() {
    // The reset comes after the connection was established, and curl may or may not have seen that before.
    const CURL_CONNECT_ERROR: i32 = 7;
    const CURL_RECEIVE_ERROR: i32 = 56;
    let sandbox = Sandbox::new();
    let _server = web_server(&sandbox);
    let (_proxy, _log) = microsocks(&sandbox, &["-u", "user", "-P", "secret"]);
    let rules = |credentials: &str| {
        let (rules, scheme) = (all_via("socks5", (OTHER_V4, 1080).into()), "socks5://");
        rules.replace(scheme, &format!("{scheme}{credentials}@"))
    };
    let url = format!("http://{SERVER_V4}/file");
    let culvert = sandbox.culvert(&rules("user:wrong"));
    let refused = attempt(curl(&sandbox).arg(&url));
    assert!(
        matches!(
            refused.status.code(),
            Some(CURL_CONNECT_ERROR | CURL_RECEIVE_ERROR)
        ),
        "{refused:?}"
    );
    assert_eq!(culvert.the_record().reason, "proxy_refused");

    culvert.reload(&rules("user:secret"));
    assert_file(&attempt(curl(&sandbox).arg(&url)).stdout);
    assert_eq!(culvert.await_records(2)[1].reason, "done");
    assert!(!culvert.log().contains("secret"), "{}", culvert.log());
}

#[test]
fn curl_makes_many_requests_at_once() {
    const COUNT: usize = 50;
    let sandbox = Sandbox::new();
    let _server = web_server(&sandbox);
    let culvert = sandbox.culvert(ALL);
    let mut command = curl(&sandbox);
    command.args([
        "--parallel",
        "--parallel-immediate",
        "--range",
        "8000-99999",
    ]);
    // A request and a file for each number.
    command
        .arg("--output")
        .arg(sandbox.directory().join("part-#1"));
    command.arg(format!("http://{SERVER_V4}/file?[1-{COUNT}]"));
    output(&mut command);
    for number in 1..=COUNT {
        let part = fs::read(sandbox.directory().join(format!("part-{number}"))).unwrap();
        assert_eq!(part.len(), 92_000);
        assert_eq!(FILE.first_difference(8000, &part), None, "part {number}");
    }
    // curl uses a connection again when it is done with it.
    let relayed = usize::try_from(culvert.counter("relayed")).unwrap();
    assert!(relayed > 1, "{relayed} connections");
    let records = culvert.await_records(relayed);
    assert!(records.iter().all(|record| record.reason == "done"));
}

#[test]
fn nginx_as_the_app() {
    let sandbox = Sandbox::new();
    let _server = web_server(&sandbox);
    let culvert = sandbox.culvert(ALL);
    let front =
        format!("listen {OTHER_V4}:8080; location / {{ proxy_pass http://{SERVER_V4}:80; }}");
    let _front = nginx(&sandbox, "front", &front, &mut sandbox.command("nginx"));
    await_listener(&sandbox, (OTHER_V4, 8080));
    // Only nginx' own connections are intercepted, not those to it.
    let mut client = sandbox.outsider("curl");
    let url = format!("http://{OTHER_V4}:8080/file");
    assert_file(&attempt(client.args(["--silent", "--max-time", "60", &url])).stdout);
    let record = culvert.the_record();
    assert_eq!(record.orig_dst, Some((SERVER_V4, 80).into()));
    assert_eq!(record.comm, "nginx");
}

/// Two hundred connections at once, each with bytes of its own that must come back.
const ASYNCIO: &str = r#"
import asyncio, os, sys

host, port = sys.argv[1], int(sys.argv[2])

async def one():
    reader, writer = await asyncio.open_connection(host, port)
    peer = writer.get_extra_info("peername")[:2]
    assert peer == (host, port), peer
    payload = os.urandom(50_000)
    writer.write(payload)
    writer.write_eof()
    await writer.drain()
    assert await reader.read() == payload
    writer.close()
    await writer.wait_closed()

async def main():
    await asyncio.gather(*(one() for _ in range(200)))

asyncio.run(main())
print("done")
"#;

#[test]
fn asyncio_with_many_connections() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V6, 0)));
    let culvert = sandbox.culvert(ALL);
    let address = server.address();
    let mut python = sandbox.command("python3");
    python.args(["-c", ASYNCIO]);
    python.args([address.ip().to_string(), address.port().to_string()]);
    assert_eq!(output(&mut python), "done\n");
    for record in culvert.await_records(200) {
        assert_eq!((record.up, record.down), (50_000, 50_000));
        assert_eq!(record.reason, "done");
    }
}

#[test]
fn a_static_binary() {
    // What intercepts by preloaded libraries does not see these.
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let _culvert = sandbox.culvert(ALL);
    let app = App::start(&mut sandbox.command(app_binary()));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let maps = fs::read_to_string(format!("/proc/{}/maps", app.pid())).unwrap();
    assert!(!maps.contains(".so"), "it has shared libraries: {maps}");
}
