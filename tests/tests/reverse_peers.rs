//! Programs that nobody here wrote, as services behind the relay and before it, and what they say by PROXY protocol.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::Stdio,
};

use culvert_tests::{
    App, Sandbox, eventually,
    peer::{Server, nginx},
    process::{Running, attempt, output},
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// A rule that believes whoever connects from [`SERVER_V4`] or [`SERVER_V6`].
fn believing(address: SocketAddr) -> String {
    format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{address}\"\nvia = \"original\"\n\
         accept_proxy = [\"{SERVER_V4}\", \"{SERVER_V6}\"]\n"
    )
}

fn echo(sandbox: &Sandbox) -> Server {
    sandbox.within(|| Server::echo((SERVER_V4, 0)))
}

/// A version 2 header: command and family as they are on the wire, then what its length counts.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

fn v4_addresses() -> Vec<u8> {
    let mut bytes = vec![198, 51, 100, 7, 192, 0, 2, 1];
    bytes.extend(40_000u16.to_be_bytes());
    bytes.extend(443u16.to_be_bytes());
    bytes
}

fn v6_addresses() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 7).octets());
    bytes.extend(SERVER_V6.octets());
    bytes.extend(40_001u16.to_be_bytes());
    bytes.extend(443u16.to_be_bytes());
    bytes
}

/// A sender that connects from an address, says something in pieces, and then is a client.
fn say<'a>(
    app: &'a App,
    source: impl Into<IpAddr>,
    to: SocketAddr,
    pieces: &[&[u8]],
) -> culvert_tests::Socket<'a> {
    let socket = app.tcp(to);
    socket.bind((source.into(), 0).into()).unwrap();
    socket.connect(to).unwrap();
    for piece in pieces {
        socket.send(piece).unwrap();
    }
    socket
}

#[test]
fn a_trusted_sender_says_who_the_client_is() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let culvert = sandbox.culvert(&believing(server.address()));
    let app = sandbox.app();
    let tlvs = [v4_addresses(), vec![0x05, 0, 4, 1, 2, 3, 4]].concat();
    let unix = vec![0u8; 216];
    let headers: [(Vec<u8>, Option<&str>); 9] = [
        (
            b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 443\r\n".to_vec(),
            Some("198.51.100.7:40000"),
        ),
        (
            b"PROXY TCP6 2001:db8:9::7 2001:db8::1 40001 443\r\n".to_vec(),
            Some("[2001:db8:9::7]:40001"),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN some thing else\r\n".to_vec(), None),
        (binary(1, 0x11, &v4_addresses()), Some("198.51.100.7:40000")),
        (
            binary(1, 0x21, &v6_addresses()),
            Some("[2001:db8:9::7]:40001"),
        ),
        (binary(1, 0x11, &tlvs), Some("198.51.100.7:40000")),
        (binary(0, 0x00, &[]), None),
        (binary(1, 0x31, &unix), None),
    ];
    for (count, (header, client)) in headers.iter().enumerate() {
        let (begin, end) = header.split_at(header.len() / 2);
        // In one piece with what the client says, or in several.
        let with_bytes = [end, b"the client's first bytes"].concat();
        let socket = if count % 2 == 0 {
            say(&app, SERVER_V4, server.address(), &[begin, &with_bytes])
        } else {
            say(
                &app,
                SERVER_V4,
                server.address(),
                &[&[begin, &with_bytes].concat()],
            )
        };
        let sender = socket.local().unwrap();
        assert_eq!(socket.receive(24).unwrap(), b"the client's first bytes");
        socket.exchange(9, 50_000).unwrap();
        socket.shutdown().unwrap();
        assert_eq!(socket.receive_all(), Ok(Vec::new()));
        socket.close();
        let record = culvert.await_records(count + 1).remove(count);
        assert_eq!(record.sender, Some(sender));
        let client = client.map_or(sender, |client| client.parse().unwrap());
        assert_eq!(record.client, client, "{header:?}");
        assert_eq!(record.orig_dst, Some(server.address()), "never by hearsay");
        assert_eq!(record.up, 50_024, "the header is no payload");
    }
}

#[test]
fn a_trusted_sender_without_a_proper_header_is_reset() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let culvert = sandbox.culvert(&believing(server.address()));
    let app = sandbox.app();
    let line = |rest: &str| format!("PROXY {rest}\r\n").into_bytes();
    let mut wrong_version = binary(1, 0x11, &v4_addresses());
    wrong_version[12] = 0x11;
    let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
    let headers = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        line("TCP4 198.51.100.7 192.0.2.1 40000"),
        line("TCP4 198.51.100.7 192.0.2.1 70000 443"),
        line("TCP4 2001:db8::7 192.0.2.1 40000 443"),
        line("UDP4 198.51.100.7 192.0.2.1 40000 443"),
        long,
        wrong_version,
        binary(1, 0x11, &v4_addresses()[..4]),
        binary(1, 0x11, &[v4_addresses(), vec![0x05, 0, 9, 1]].concat()),
        binary(1, 0x11, &vec![0; 5000]),
    ];
    for header in &headers {
        let socket = say(&app, SERVER_V4, server.address(), &[header]);
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET), "{header:?}");
    }
    // Ended in the middle, or silent for too long.
    let socket = say(&app, SERVER_V4, server.address(), &[b"PROXY TC"]);
    socket.shutdown().unwrap();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    let socket = say(&app, SERVER_V4, server.address(), &[b"PROXY TC"]);
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    assert_eq!(server.clients(), [], "the service sees none of this");
    assert_eq!(culvert.records().len(), 0);
    assert!(culvert.log().contains("PROXY header"), "{}", culvert.log());
}

#[test]
fn from_others_a_header_is_refused() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let culvert = sandbox.culvert(&believing(server.address()));
    let app = sandbox.app();
    let text = b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 443\r\n".to_vec();
    let headers = [text, binary(1, 0x11, &v4_addresses()), binary(0, 0x00, &[])];
    let mut count = 0;
    for header in &headers {
        let (begin, end) = header.split_at(4);
        for pieces in [vec![&header[..]], vec![begin, end]] {
            let socket = say(&app, OTHER_V4, server.address(), &pieces);
            assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET), "{pieces:?}");
            socket.close();
            count += 1;
            let record = culvert.await_records(count).remove(count - 1);
            assert_eq!((&*record.reason, record.sender), ("untrusted_header", None));
            assert_eq!((record.up, record.down), (0, 0));
        }
    }
    // What only begins like one is payload, whole, and by any path from there on.
    let payloads: [&[&[u8]]; 4] = [
        &[b"PRO", b"XIMITY to what is no header"],
        &[b"\r\n\r", b"\nGET / HTTP/1.1\r\n"],
        &[b"P"],
        &[b"\r\n\r\n\0\r\nQUI"],
    ];
    for pieces in payloads {
        let socket = say(&app, OTHER_V4, server.address(), pieces);
        socket.shutdown().unwrap();
        assert_eq!(socket.receive_all(), Ok(pieces.concat()));
        socket.close();
        count += 1;
        assert_eq!(
            culvert.await_records(count).remove(count - 1).reason,
            "done"
        );
    }
}

/// Nobody waits for a client that waits for the service.
#[test]
fn a_service_that_speaks_first_is_heard_at_once_by_clients_that_nobody_trusts() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::greeter((SERVER_V4, 0), b"220 welcome\r\n"));
    let culvert = sandbox.culvert(&believing(server.address()));
    let app = sandbox.app();
    let socket = say(&app, OTHER_V4, server.address(), &[]);
    assert_eq!(socket.receive_all().unwrap(), b"220 welcome\r\n");
    socket.close();
    assert_eq!(culvert.the_record().reason, "done");
}

#[test]
fn where_nobody_is_trusted_a_header_is_what_the_client_says() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let rules = believing(server.address());
    let rules = rules
        .lines()
        .filter(|line| !line.starts_with("accept_proxy"));
    let culvert = sandbox.culvert(&rules.collect::<Vec<_>>().join("\n"));
    let app = sandbox.app();
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 443\r\n";
    let socket = say(&app, OTHER_V4, server.address(), &[header]);
    let client = socket.local().unwrap();
    assert_eq!(socket.receive(header.len()).unwrap(), header);
    socket.close();
    let record = culvert.the_record();
    assert_eq!((record.client, record.sender), (client, None));
}

#[test]
fn haproxy_before_the_relay_tells_the_client() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    let culvert = sandbox.culvert(&believing(server.address()));
    for (count, word) in ["send-proxy", "send-proxy-v2"].into_iter().enumerate() {
        let port = 7000 + u16::try_from(count).unwrap();
        let file = sandbox.directory().join(format!("haproxy-{count}.cfg"));
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             listen front\n  bind {OTHER_V4}:{port}\n  source {SERVER_V4}\n  server one {} {word}\n",
            server.address()
        );
        fs::write(&file, text).unwrap();
        let _haproxy = Running::start(
            sandbox
                .outsider("haproxy")
                .args(["-db", "-f"])
                .arg(&file)
                .stderr(Stdio::null()),
        );
        let front = SocketAddr::from((OTHER_V4, port));
        let app = sandbox.app();
        let socket = eventually("HAProxy", || {
            let socket = app.tcp(front);
            socket.connect(front).ok().map(|()| socket)
        });
        let client = socket.local().unwrap();
        socket.exchange(4, 200_000).unwrap();
        socket.close();
        let record = culvert.await_records(count + 1).remove(count);
        assert_eq!(record.client, client, "{word}");
        assert_eq!(
            record.sender.map(|sender| sender.ip()),
            Some(SERVER_V4.into())
        );
    }
}

/// A service that wants a header sees the client, also one that only a sender before us knows of.
#[test]
fn the_service_is_told_who_the_client_is() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox);
    for version in ["v1", "v2"] {
        let rules = format!(
            "{}send_proxy = \"{version}\"\n",
            believing(server.address())
        );
        let culvert = sandbox.culvert(&rules);
        let app = sandbox.app();
        let socket = say(&app, OTHER_V4, server.address(), &[b"hello"]);
        let client = socket.local().unwrap();
        let addresses = |client: &[u8], port: u16| {
            let mut bytes = client.to_vec();
            bytes.extend(SERVER_V4.octets());
            bytes.extend(port.to_be_bytes());
            bytes.extend(server.address().port().to_be_bytes());
            bytes
        };
        let expected = match version {
            "v1" => format!(
                "PROXY TCP4 {OTHER_V4} {SERVER_V4} {} {}\r\nhello",
                client.port(),
                server.address().port()
            )
            .into_bytes(),
            _ => [
                binary(1, 0x11, &addresses(&OTHER_V4.octets(), client.port())),
                b"hello".to_vec(),
            ]
            .concat(),
        };
        // The service is an echo: what it was told comes back.
        assert_eq!(
            socket.receive(expected.len()).unwrap(),
            expected,
            "{version}"
        );
        socket.close();
        assert_eq!(culvert.the_record().up, 5, "the header is no payload");

        // A client of the other family, by hearsay: both addresses are IPv6 then.
        let line = b"PROXY TCP6 2001:db8:9::7 2001:db8::1 40001 443\r\nhello";
        let socket = say(&app, SERVER_V4, server.address(), &[line]);
        let expected = if version == "v1" {
            let port = server.address().port();
            format!("PROXY TCP6 2001:db8:9::7 ::ffff:192.0.2.1 40001 {port}\r\nhello").into_bytes()
        } else {
            let mut bytes = v6_addresses()[..16].to_vec();
            bytes.extend(SERVER_V4.to_ipv6_mapped().octets());
            bytes.extend(40_001u16.to_be_bytes());
            bytes.extend(server.address().port().to_be_bytes());
            [binary(1, 0x21, &bytes), b"hello".to_vec()].concat()
        };
        let told = socket.receive(expected.len()).unwrap();
        assert_eq!(told, expected, "{}", String::from_utf8_lossy(&told));
        socket.close();
    }
}

#[test]
fn nginx_behind_the_relay_is_told_the_client() {
    let sandbox = Sandbox::new();
    let server = "server { listen 127.0.0.1:8081 proxy_protocol; \
                  location / { return 200 \"$proxy_protocol_addr to $proxy_protocol_server_addr\"; } }";
    let _nginx = nginx(sandbox.directory(), server, &mut sandbox.outsider("nginx"));
    for version in ["v1", "v2"] {
        let _culvert = sandbox.culvert(&format!(
            "[[reverse]]\nname = \"site\"\nlisten = \"192.0.2.1:80\"\nvia = \"127.0.0.1:8081\"\nsend_proxy = \"{version}\"\n"
        ));
        let told = eventually("nginx", || {
            let mut curl = sandbox.command("curl");
            curl.args([
                "-sS",
                "--max-time",
                "20",
                "--interface",
                "192.0.2.2",
                "http://192.0.2.1/",
            ]);
            let output = attempt(&mut curl);
            output
                .status
                .success()
                .then(|| String::from_utf8(output.stdout).unwrap())
        });
        assert_eq!(told, "192.0.2.2 to 192.0.2.1", "{version}");
    }
}

#[test]
fn nginx_stays_on_its_port_and_the_relay_before_it() {
    let sandbox = Sandbox::new();
    let directory = sandbox.directory();
    let lines: Vec<_> = (0..20_000).map(|line| format!("line {line}")).collect();
    let page = lines.join("\n");
    fs::create_dir(directory.join("www")).unwrap();
    fs::write(directory.join("www/page"), &page).unwrap();
    let server = format!(
        "server {{ listen 0.0.0.0:80; listen [::]:80 ipv6only=on; root {}/www; \
         location = /who {{ return 200 $remote_addr:$remote_port; }} }}",
        directory.display()
    );
    let _nginx = nginx(directory, &server, &mut sandbox.outsider("nginx"));
    let curl = |url: &str| {
        let mut command = sandbox.command("curl");
        command.args(["-sS", "--max-time", "20", url]);
        command
    };
    eventually("nginx", || {
        attempt(&mut curl("http://192.0.2.1/who"))
            .status
            .success()
            .then_some(())
    });
    let mut culvert =
        sandbox.culvert("[[reverse]]\nname = \"site\"\nlisten = \"*:80\"\nvia = \"original\"\n");
    for host in ["192.0.2.1", "127.0.0.1", "[2001:db8::1]", "[::1]"] {
        let url = format!("http://{host}/page");
        let twice = output(curl(&url).arg(&url));
        assert!(twice == page.repeat(2), "{} bytes from {host}", twice.len());
    }
    let records = culvert.await_records(4);
    for record in &records {
        assert_eq!(record.peer, record.orig_dst, "{record:?}");
        assert_eq!(record.reason, "done");
        assert!(record.down > 2 * page.len() as u64);
    }
    // Both go on as they are, with the other and without.
    culvert.kill();
    assert!(output(&mut curl("http://192.0.2.1/page")) == page);
    let culvert =
        sandbox.culvert("[[reverse]]\nname = \"site\"\nlisten = \"*:80\"\nvia = \"original\"\n");
    assert!(output(&mut curl("http://192.0.2.1/page")) == page);
    assert_eq!(culvert.the_record().rule.as_deref(), Some("site"));
}
