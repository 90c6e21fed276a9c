//! `keep_source`: a server sees the address of the client, and its answers find their way back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    netns::Netns,
    peer::{Server, read_all},
    process::{attempt, output},
    sandbox::{CLOSED_PORT, OTHER_V4, OTHER_V6, SERVER_V4, SERVER_V6},
};
use socket2::{Domain, Socket, Type};

/// A client on another host, by whose address its connections are known.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x71, 0, 0, 0, 0, 5);
const LOCALHOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// One that the kernel may choose by itself, and one that it does not.
const PORTS: [u16; 2] = [40_123, 1_234];

/// A host whose way to all others leads to the sandbox.
fn client(sandbox: &Sandbox) -> Netns {
    let client = Netns::new();
    let other = sandbox.netns();
    client.link("eth0", "203.0.113.5/24", other, "203.0.113.1/24");
    client.ip("addr add 203.0.113.6/24 dev eth0");
    client.ip("addr add 2001:db8:71::5/64 dev eth0 nodad");
    other.ip("addr add 2001:db8:71::1/64 dev eth0 nodad");
    client.ip("route add default via 203.0.113.1");
    client.ip("-6 route add default via 2001:db8:71::1");
    client
}

/// A connection from an address and port; port 0 is any.
fn open(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(20))?;
    Ok(socket.into())
}

/// What a mirror says of the address of who connects.
fn seen(from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
    let text = read_all(open(from, to)?)?;
    let text = String::from_utf8_lossy(&text);
    text.parse()
        .map_err(|_| io::Error::other(text.into_owned()))
}

/// Has bytes echoed, and returns the address that they were sent from.
fn exchange(from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
    let bytes = vec![7; 300_000];
    let mut stream = open(from, to)?;
    let (mut writing, local) = (stream.try_clone()?, stream.local_addr()?);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&sent)?;
        writing.shutdown(Shutdown::Write)
    });
    let received = read_all(&mut stream)?;
    writer.join().unwrap()?;
    assert!(received == bytes, "{} bytes", received.len());
    Ok(local)
}

fn rule(listen: &[SocketAddr], via: &str, more: &str) -> String {
    let listen: Vec<_> = listen.iter().map(ToString::to_string).collect();
    let name = via.replace(['[', ']', ':', '.'], "-");
    format!("[[reverse]]\nname = \"r{name}\"\nlisten = {listen:?}\nvia = \"{via}\"\n{more}\n")
}

fn kept(listen: &[SocketAddr], via: &str) -> String {
    rule(listen, via, "keep_source = true")
}

/// Rules and routes of culvert's in the sandbox.
fn routing(sandbox: &Sandbox) -> String {
    let commands = [
        "-4 rule",
        "-6 rule",
        "-4 route show table all proto 67",
        "-6 route show table all proto 67",
    ];
    let of = |arguments: &str| {
        let mut command = sandbox.command("ip");
        output(command.args(arguments.split(' ')))
    };
    commands.map(of).concat()
}

/// The addresses of both families where clients connect, the services behind them, and the client.
struct Family {
    site: SocketAddr,
    client: IpAddr,
    local: IpAddr,
}

fn families() -> [Family; 2] {
    [
        Family {
            site: (SERVER_V4, 80).into(),
            client: CLIENT_V4.into(),
            local: LOCALHOST_V4,
        },
        Family {
            site: (SERVER_V6, 80).into(),
            client: CLIENT_V6.into(),
            local: LOCALHOST_V6,
        },
    ]
}

#[test]
fn a_service_on_loopback_sees_address_and_port() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let client = client(&sandbox);
    for family in families() {
        let mirror = sandbox.within(|| Server::mirror((family.local, 0)));
        let mut culvert = sandbox.culvert(&kept(&[family.site], &mirror.address().to_string()));
        for port in PORTS {
            let from = SocketAddr::new(family.client, port);
            let seen = client.within(|| seen(from, family.site)).unwrap();
            assert_eq!(seen, from);
        }
        // The service is there for others as ever.
        let direct = SocketAddr::new(family.local, 0);
        let from = sandbox.within(|| seen(direct, mirror.address())).unwrap();
        assert_eq!(from.ip(), family.local);
        let mut clients = Vec::new();
        for record in culvert.await_records(2) {
            assert_eq!(record.peer, Some(mirror.address()));
            clients.push(record.client);
        }
        // In the order in which they were closed.
        clients.sort();
        let mut expected = PORTS.map(|port| SocketAddr::new(family.client, port));
        expected.sort();
        assert_eq!(clients, expected);
        assert_ne!(routing(&sandbox), before);
        assert!(culvert.stop().success());
        assert_eq!(routing(&sandbox), before);
    }
}

#[test]
fn many_clients_with_the_same_ports_at_once() {
    let sandbox = Sandbox::new();
    let client = client(&sandbox);
    let echo = sandbox.within(|| Server::echo((LOCALHOST_V4, 0)));
    let site = SocketAddr::from((SERVER_V4, 80));
    let culvert = sandbox.culvert(&kept(&[site], &echo.address().to_string()));
    let addresses = [CLIENT_V4, Ipv4Addr::new(203, 0, 113, 6)];
    let ports = (40_000..40_020).chain(2_000..2_020);
    let expected: BTreeSet<_> = ports
        .flat_map(|port| addresses.map(|address| SocketAddr::from((address, port))))
        .collect();
    client.within(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = expected
                .iter()
                .map(|from| scope.spawn(move || exchange(*from, site)))
                .collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    });
    let clients: BTreeSet<_> = echo.clients().into_iter().collect();
    assert_eq!(clients, expected);
    for record in culvert.await_records(expected.len()) {
        assert_eq!((record.up, record.down), (300_000, 300_000), "{record:?}");
        assert_eq!(record.reason, "done");
    }
}

/// A service on another address of this host answers clients directly, unless its socket inherits the mark of the SYN.
fn inherit_marks(sandbox: &Sandbox) {
    sandbox.netns().sysctl("net.ipv4.tcp_fwmark_accept", "1");
}

#[test]
fn a_service_on_another_address_of_this_host_sees_address_and_port() {
    let sandbox = Sandbox::new();
    inherit_marks(&sandbox);
    let before = routing(&sandbox);
    let client = client(&sandbox);
    let others = [IpAddr::from(OTHER_V4), OTHER_V6.into()];
    for (family, other) in families().into_iter().zip(others) {
        let mirror = sandbox.within(|| Server::mirror((other, 0)));
        let echo = sandbox.within(|| Server::echo((other, 0)));
        let site = SocketAddr::new(family.site.ip(), 81);
        let rules = [
            kept(&[family.site], &mirror.address().to_string()),
            kept(&[site], &echo.address().to_string()),
        ];
        let mut culvert = sandbox.culvert(&rules.concat());
        for port in PORTS {
            let from = SocketAddr::new(family.client, port);
            assert_eq!(client.within(|| seen(from, family.site)).unwrap(), from);
            client.within(|| exchange(from, site)).unwrap();
            // Who goes to the service itself gets there and back, now and afterwards.
            let direct = SocketAddr::new(family.client, port + 1);
            let seen = client.within(|| seen(direct, mirror.address())).unwrap();
            assert_eq!(seen, direct);
        }
        assert!(culvert.stop().success());
        let direct = SocketAddr::new(family.client, PORTS[0] + 2);
        let seen = client.within(|| seen(direct, mirror.address())).unwrap();
        assert_eq!(seen, direct);
        assert_eq!(routing(&sandbox), before);
    }
}

#[test]
fn services_whose_answers_would_go_past_us_are_refused_at_the_start() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let via = SocketAddr::from((OTHER_V4, 8080)).to_string();
    let rules = kept(&[(SERVER_V4, 80).into()], &via);
    let mut culvert = sandbox.launch(&Settings::default(), &rules);
    assert!(!culvert.wait().success());
    let log = culvert.log();
    assert!(
        log.contains("sysctl -w net.ipv4.tcp_fwmark_accept=1"),
        "{log}"
    );
    assert_eq!(routing(&sandbox), before);
}

/// A server on a third host, whose way to all others leads to the sandbox, too.
fn server(sandbox: &Sandbox) -> Netns {
    let server = Netns::new();
    let other = sandbox.netns();
    server.link("eth1", "198.51.100.2/24", other, "198.51.100.1/24");
    server.ip("addr add 2001:db8:72::2/64 dev eth1 nodad");
    other.ip("addr add 2001:db8:72::1/64 dev eth1 nodad");
    server.ip("route add default via 198.51.100.1");
    server.ip("-6 route add default via 2001:db8:72::1");
    server
}

const REMOTES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x72, 0, 0, 0, 0, 2)),
];

/// Also with the check of sources that drops what has a foreign address of ours, where `src_valid_mark` is set as wg-quick does.
#[test]
fn a_server_on_another_host_sees_address_and_port() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let (client, server) = (client(&sandbox), server(&sandbox));
    for (name, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.all.src_valid_mark", "1"),
    ] {
        sandbox.netns().sysctl(name, value);
    }
    for (family, remote) in families().into_iter().zip(REMOTES) {
        let mirror = server.within(|| Server::mirror((remote, 0)));
        let echo = server.within(|| Server::echo((remote, 0)));
        let bulk = SocketAddr::new(family.site.ip(), 81);
        let rules = [
            kept(&[family.site], &mirror.address().to_string()),
            kept(&[bulk], &echo.address().to_string()),
        ];
        let mut culvert = sandbox.culvert(&rules.concat());
        for port in PORTS {
            let from = SocketAddr::new(family.client, port);
            assert_eq!(client.within(|| seen(from, family.site)).unwrap(), from);
            client.within(|| exchange(from, bulk)).unwrap();
            // Connections of the same client that pass through are none of ours.
            let through = SocketAddr::new(family.client, port + 1);
            let seen = client.within(|| seen(through, mirror.address())).unwrap();
            assert_eq!(seen, through);
        }
        for record in culvert.await_records(4) {
            assert_eq!(record.reason, "done", "{record:?}");
        }
        culvert.kill();
        let through = SocketAddr::new(family.client, PORTS[0] + 2);
        let seen = client.within(|| seen(through, mirror.address())).unwrap();
        assert_eq!(seen, through);
        sandbox.detach();
        assert_eq!(routing(&sandbox), before);
    }
}

/// Names stand for other endpoints in time, and routes to them come and go.
#[test]
fn a_server_that_no_route_leads_to_is_waited_for() {
    let sandbox = Sandbox::new();
    let client = client(&sandbox);
    let site = SocketAddr::from((SERVER_V4, 80));
    let remote = SocketAddr::from((REMOTES[0], 8080));
    let culvert = sandbox.culvert(&kept(&[site], &remote.to_string()));
    let from = SocketAddr::from((CLIENT_V4, 40_000));
    client.within(|| seen(from, site)).unwrap_err();
    let server = server(&sandbox);
    let _mirror = server.within(|| Server::mirror(remote));
    let seen = eventually("a server that sees the client", || {
        client.within(|| seen(from, site)).ok()
    });
    assert_eq!(seen, from, "{}", culvert.log());
}

fn group(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    format!("[upstream.web]\nendpoints = {endpoints:?}\nkeep_source = true\n{more}\n")
}

/// An endpoint that refuses, one of the other family, which no client can be shown to and which is not to blame for that.
#[test]
fn a_group_goes_on_to_an_endpoint_that_can_be_shown_the_client() {
    let sandbox = Sandbox::new();
    let client = client(&sandbox);
    let [v4, v6] = families();
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, CLOSED_PORT));
    let mirrors = [v4.local, v6.local].map(|ip| sandbox.within(|| Server::mirror((ip, 0))));
    let [of_v4, of_v6] = mirrors.each_ref().map(Server::address);
    let group = group(&[closed, of_v6, of_v4], "balance = \"round-robin\"");
    let rules = group + &rule(&[v4.site, v6.site], "web", "");
    let culvert = sandbox.culvert(&rules);
    for port in 40_000..40_012 {
        for family in [&v4, &v6] {
            let from = SocketAddr::new(family.client, port);
            assert_eq!(client.within(|| seen(from, family.site)).unwrap(), from);
        }
    }
    let records = culvert.await_records(24);
    assert!(records.iter().any(|record| record.attempts > 1));
    let log = culvert.log();
    assert!(!log.contains(&format!("{of_v6} ejected")), "{log}");
    assert!(!log.contains("other family"), "{log}");
}

/// A trusted sender names the client, whose address is then shown; the header goes on, too.
#[test]
fn the_client_of_a_proxy_header_is_shown_with_or_without_another_header() {
    let sandbox = Sandbox::new();
    let client = client(&sandbox);
    let site = SocketAddr::from((SERVER_V4, 80));
    let said = SocketAddr::from(([198, 51, 100, 7], 41_000));
    for header in [false, true] {
        let heard = sandbox.within(|| {
            Server::start((LOCALHOST_V4, 0), |mut stream| {
                let peer = stream.peer_addr()?;
                let text = read_all(&stream)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                write!(stream, "{peer} {text}")
            })
        });
        let more = "keep_source = true\naccept_proxy = \"203.0.113.0/24\"\n";
        let sent = if header { "send_proxy = \"v1\"" } else { "" };
        let via = heard.address().to_string();
        let _culvert = sandbox.culvert(&rule(&[site], &via, &format!("{more}{sent}")));
        let answer = client.within(|| {
            let mut stream = open((CLIENT_V4, 0).into(), site).unwrap();
            write!(
                stream,
                "PROXY TCP4 {} 192.0.2.1 41000 80\r\nhello",
                said.ip()
            )
            .unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            String::from_utf8(read_all(stream).unwrap()).unwrap()
        });
        let line = if header {
            "PROXY TCP4 198.51.100.7 192.0.2.1 41000 80\r\n"
        } else {
            ""
        };
        assert_eq!(answer, format!("{said} {line}hello"));
    }
}

/// Our own address is what a client on loopback has elsewhere.
#[test]
fn a_client_on_loopback_is_this_host() {
    let sandbox = Sandbox::new();
    inherit_marks(&sandbox);
    let mirror = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let site = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let _culvert = sandbox.culvert(&kept(&[site], &mirror.address().to_string()));
    let from = SocketAddr::new(LOCALHOST_V4, 40_000);
    let seen = sandbox.within(|| seen(from, site)).unwrap();
    assert_eq!(seen.ip(), IpAddr::from(OTHER_V4));
}

/// A client of this host itself has its port, so that another is seen.
#[test]
fn a_port_that_is_taken_is_another() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let site = SocketAddr::from((SERVER_V4, 80));
    let _culvert = sandbox.culvert(&kept(&[site], &mirror.address().to_string()));
    for port in PORTS {
        // The listener has the port on every address.
        let _taken = sandbox.within(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let client = client(&sandbox);
        let from = SocketAddr::from((CLIENT_V4, port));
        let seen = client.within(|| seen(from, site)).unwrap();
        assert_eq!(seen.ip(), IpAddr::from(CLIENT_V4));
        assert_ne!(seen.port(), port);
        sandbox.netns().ip("link del eth0");
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_beyond_the_next_or_detach() {
    let sandbox = Sandbox::new();
    inherit_marks(&sandbox);
    let before = routing(&sandbox);
    let client = client(&sandbox);
    let near = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let far = sandbox.within(|| Server::mirror((OTHER_V4, 0)));
    let sites = [80, 81].map(|port| SocketAddr::from((SERVER_V4, port)));
    let rules = kept(&sites[..1], &near.address().to_string())
        + &kept(&sites[1..], &far.address().to_string());
    let from = |port| SocketAddr::from((CLIENT_V4, port));
    let shown = |culvert: &Culvert<'_>, port| {
        for site in sites {
            let seen = client.within(|| seen(from(port), site)).unwrap();
            assert_eq!(seen, from(port), "{}", culvert.log());
        }
    };
    let mut culvert = sandbox.culvert(&rules);
    shown(&culvert, 40_000);
    let during = routing(&sandbox);
    culvert.kill();
    assert_eq!(routing(&sandbox), during, "rules outlive who made them");
    let direct = || client.within(|| seen(from(0), far.address())).unwrap();
    assert_eq!(direct().ip(), IpAddr::from(CLIENT_V4));
    // The next one removes them, and makes its own.
    let mut next = sandbox.culvert(&rules);
    shown(&next, 40_001);
    assert_eq!(routing(&sandbox).lines().count(), during.lines().count());
    next.kill();
    assert_eq!(
        sandbox.detach(),
        "removed what a killed daemon had left in force\n"
    );
    assert_eq!(routing(&sandbox), before);
    assert_eq!(direct().ip(), IpAddr::from(CLIENT_V4));
}

#[test]
fn a_reload_shows_other_services_and_leaves_connections_alone() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let client = client(&sandbox);
    let echo = sandbox.within(|| Server::echo((LOCALHOST_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let site = SocketAddr::from((SERVER_V4, 80));
    let mut culvert = sandbox.culvert(&kept(&[site], &echo.address().to_string()));
    let mut open = client
        .within(|| open((CLIENT_V4, 40_000).into(), site))
        .unwrap();
    open.write_all(b"before ").unwrap();
    eventually("the connection", || {
        (!echo.clients().is_empty()).then_some(())
    });
    culvert.reload(&kept(&[site], &mirror.address().to_string()));
    let from = SocketAddr::from((CLIENT_V4, 40_001));
    assert_eq!(client.within(|| seen(from, site)).unwrap(), from);
    // Nobody is to see anything any more, and what is open goes on.
    culvert.reload(&rule(&[site], &mirror.address().to_string(), ""));
    let seen = client.within(|| seen(from, site)).unwrap();
    assert_eq!(seen.ip(), LOCALHOST_V4);
    open.write_all(b"after").unwrap();
    open.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&open).unwrap(), b"before after");
    assert!(culvert.stop().success());
    assert_eq!(routing(&sandbox), before);
}

/// What is open finishes by the old one, and what the routes of both are is nobody's concern.
#[test]
fn a_successor_goes_on_with_it() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let client = client(&sandbox);
    let echo = sandbox.within(|| Server::echo((LOCALHOST_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let (site, other) = (
        SocketAddr::from((SERVER_V4, 80)),
        SocketAddr::from((SERVER_V4, 81)),
    );
    let rules = [
        kept(&[site], &echo.address().to_string()),
        kept(&[other], &mirror.address().to_string()),
    ]
    .concat();
    let mut old = sandbox.culvert(&rules);
    let mut begun = client
        .within(|| open((CLIENT_V4, 40_000).into(), site))
        .unwrap();
    begun.write_all(b"before ").unwrap();
    eventually("the connection", || {
        (!echo.clients().is_empty()).then_some(())
    });
    let successor = Settings {
        takeover: true,
        ..Settings::default()
    };
    let mut new = sandbox.culvert_with(&successor, &rules);
    for port in PORTS {
        let from = SocketAddr::from((CLIENT_V4, port));
        assert_eq!(client.within(|| seen(from, other)).unwrap(), from);
    }
    assert!(old.is_running(), "{}", old.log());
    begun.write_all(b"after").unwrap();
    begun.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&begun).unwrap(), b"before after");
    assert!(old.wait().success(), "{}", old.log());
    for port in PORTS {
        let from = SocketAddr::from((CLIENT_V4, port));
        assert_eq!(client.within(|| seen(from, other)).unwrap(), from);
    }
    client
        .within(|| exchange((CLIENT_V4, 40_001).into(), site))
        .unwrap();
    assert!(new.stop().success());
    assert_eq!(routing(&sandbox), before);
}

/// From a service on loopback to another host, and back.
#[test]
fn a_name_that_stands_for_other_servers_is_followed() {
    let sandbox = Sandbox::new();
    let before = routing(&sandbox);
    let (client, server) = (client(&sandbox), server(&sandbox));
    sandbox.netns().sysctl("net.ipv4.ip_forward", "1");
    let names = sandbox.name_server();
    let here = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let port = here.address().port();
    let there = server.within(|| Server::mirror((REMOTES[0], port)));
    names.set("web.test", &[LOCALHOST_V4]);
    let site = SocketAddr::from((SERVER_V4, 80));
    let mut culvert = sandbox.culvert(&format!(
        "[upstream.web]\nendpoints = \"dns:web.test:{port}\"\n{}",
        kept(&[site], "web")
    ));
    let from = SocketAddr::from((CLIENT_V4, 40_000));
    for (address, server) in [(REMOTES[0], &there), (LOCALHOST_V4, &here)] {
        assert_eq!(client.within(|| seen(from, site)).unwrap(), from);
        names.set("web.test", &[address]);
        let before_it = server.clients().len();
        eventually("a connection to where the name has moved", || {
            // Until the routes are there, too, it may fail.
            let seen = client.within(|| seen(from, site));
            (seen.is_ok_and(|seen| seen == from) && server.clients().len() > before_it)
                .then_some(())
        });
    }
    assert!(culvert.stop().success());
    assert_eq!(routing(&sandbox), before);
}

/// Threads that gave the privilege up cannot take it back.
#[test]
fn a_reload_cannot_begin_with_it() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((LOCALHOST_V4, 0)));
    let (site, via) = (
        SocketAddr::from((SERVER_V4, 80)),
        mirror.address().to_string(),
    );
    let culvert = sandbox.culvert(&rule(&[site], &via, ""));
    culvert.reload(&kept(&[site], &via));
    let log = culvert.log();
    assert!(
        log.contains("not reloaded") && log.contains("--takeover"),
        "{log}"
    );
    let seen = sandbox
        .within(|| seen((SERVER_V4, 0).into(), site))
        .unwrap();
    assert_eq!(seen.ip(), LOCALHOST_V4, "the rules of before are in force");
}

#[test]
fn a_plan_says_what_is_done_and_what_is_missing() {
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("plan.toml");
    let site = SocketAddr::from((SERVER_V4, 80));
    let plan = |rules: &str| {
        std::fs::write(&file, rules).unwrap();
        let mut command = sandbox.culvert_command();
        let output = attempt(command.args(["plan", "--config"]).arg(&file));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Long lines are broken.
        text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    let text = plan(&kept(&[site], "127.0.0.1:8080"));
    for line in [
        "ip rule add from 127.0.0.1/32 ipproto 6 sport 8080 lookup 1668639744 protocol 67 priority 1",
        "ip route add local default dev lo table 1668639744 protocol 67",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let text = plan(&kept(&[site], "192.0.2.2:8080"));
    assert!(text.contains("fwmark 0x63756c00"), "{text}");
    assert!(text.contains("net.ipv4.tcp_fwmark_accept=1"), "{text}");
    let _server = server(&sandbox);
    let text = plan(&kept(&[site], "198.51.100.2:8080"));
    for part in [
        "on another host: returns on eth1",
        "ip rule add from all iif eth1 fwmark 0x63756c00",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
