//! What changes while clients are shown: rules, names, the daemon.

use std::{
    io::{ErrorKind, Write as _},
    net::{IpAddr, Shutdown, SocketAddr},
};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    peer::{Server, read_all},
    sandbox::{OTHER_V4, SERVER_V4},
};

use super::{
    CLIENT_V4, LOCALHOST_V4, PORTS, REMOTES, client, exchange, inherit_marks, kept, open, routing,
    rule, seen, server,
};

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
        let first = eventually(
            "the port of the connection before to be free",
            || match client.within(|| seen(from, site)) {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
                seen => Some(seen),
            },
        );
        assert_eq!(first.unwrap(), from);
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
