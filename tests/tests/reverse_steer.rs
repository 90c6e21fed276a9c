//! `path = "steer"`: connections that arrive are given to the service's own listener.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
    thread,
};

use culvert_tests::{
    App, Sandbox,
    app::{Route, protocol::Storm},
    eventually,
    peer::Server,
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

fn steered(listen: SocketAddr, via: SocketAddr, more: &str) -> String {
    format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{listen}\"\nvia = \"{via}\"\npath = \"steer\"\n{more}\n"
    )
}

/// The client's own address is what the service sees: nobody is between them.
fn await_steered(app: &App, address: SocketAddr) {
    eventually("a connection that is steered", || {
        (app.probe(address) == Ok(Route::Direct)).then_some(())
    });
}

#[test]
fn the_service_sees_the_client_itself() {
    let sandbox = Sandbox::new();
    let places: [(IpAddr, IpAddr); 4] = [
        (Ipv4Addr::LOCALHOST.into(), SERVER_V4.into()),
        (Ipv6Addr::LOCALHOST.into(), SERVER_V6.into()),
        (Ipv4Addr::UNSPECIFIED.into(), OTHER_V4.into()),
        // A socket that listens for both families.
        (Ipv6Addr::UNSPECIFIED.into(), OTHER_V4.into()),
    ];
    for (at, listen) in places {
        let mirror = sandbox.within(|| Server::mirror((at, 0)));
        let port = mirror.address().port();
        let via = SocketAddr::new(
            if at.is_unspecified() {
                SERVER_V4.into()
            } else {
                at
            },
            port,
        );
        let listen = SocketAddr::new(listen, 443);
        let culvert = sandbox.culvert(&steered(listen, via, ""));
        let app = sandbox.app();
        for _ in 0..5 {
            assert_eq!(app.probe(listen), Ok(Route::Direct), "{at}");
        }
        assert_eq!(culvert.counter("arrived_steered"), 5);
        assert_eq!(culvert.counter("arrived_relayed"), 0);
        assert_eq!(culvert.records().len(), 0);
    }
}

#[test]
fn payload_is_whole_and_a_hung_relay_is_no_matter() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((Ipv4Addr::LOCALHOST, 0)));
    let listen = SocketAddr::from((SERVER_V4, 443));
    let culvert = sandbox.culvert(&steered(listen, server.address(), ""));
    let storm = Storm {
        addresses: vec![listen],
        threads: 8,
        each: 10,
        length: 100_000,
    };
    let app = sandbox.app();
    assert_eq!(app.storm(&storm), [(0, 80)].into());
    culvert.freeze();
    assert_eq!(app.storm(&storm), [(0, 80)].into());
    culvert.thaw();
    assert_eq!(culvert.counter("arrived_steered"), 160);
}

#[test]
fn a_service_that_is_restarted_is_found_again() {
    let sandbox = Sandbox::new();
    let listen = SocketAddr::from((SERVER_V4, 443));
    let mirror = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 7443)));
    let culvert = sandbox.culvert(&steered(listen, mirror.address(), ""));
    let app = sandbox.app();
    assert_eq!(app.probe(listen), Ok(Route::Direct));
    drop(mirror);
    // The relay says what there is to say.
    let refused = app.tcp(listen);
    refused.connect(listen).unwrap();
    assert_eq!(refused.receive_all(), Err(Errno::ECONNRESET));
    refused.close();
    assert_eq!(culvert.the_record().reason, "destination_refused");

    let mirror = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 7443)));
    // At once by the relay, and soon by itself.
    assert!(app.probe(listen).is_ok());
    await_steered(&app, listen);
    // Nothing of ours keeps its socket open.
    drop(mirror);
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 7443));
    assert_eq!(app.tcp(closed).connect(closed), Err(Errno::ECONNREFUSED));
}

#[test]
fn reload_steers_elsewhere_and_back_to_the_relay() {
    let sandbox = Sandbox::new();
    let listen = SocketAddr::from((SERVER_V4, 443));
    let first = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 0)));
    let second = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 0)));
    let culvert = sandbox.culvert(&steered(listen, first.address(), ""));
    let app = sandbox.app();
    assert_eq!(app.probe(listen), Ok(Route::Direct));
    for _ in 0..3 {
        culvert.reload(&steered(listen, second.address(), ""));
        await_steered(&app, listen);
        let before = first.clients().len();
        assert_eq!(app.probe(listen), Ok(Route::Direct));
        assert_eq!(first.clients().len(), before);
        culvert.reload(&steered(listen, first.address(), "").replace("steer", "auto"));
        assert_eq!(app.probe(listen), Ok(Route::Relayed));
        assert_eq!(first.clients().len(), before + 1);
    }
}

#[test]
fn where_it_is_allowed_it_is_done_if_it_can_be() {
    let sandbox = Sandbox::new();
    let (free, bound) = (
        SocketAddr::from((SERVER_V4, 443)),
        SocketAddr::from((OTHER_V4, 443)),
    );
    let mirror = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 0)));
    let allowed = |listen, more| {
        let rule = steered(listen, mirror.address(), more);
        rule.replace("path = \"steer\"", "allow_steer = true")
    };
    let rules = allowed(
        bound,
        "connect_timeout = \"5s\"\naccept_proxy = \"198.51.100.7\"",
    );
    let rules = rules.replace("site", "bound");
    let culvert = sandbox.culvert(&format!("{}{rules}", allowed(free, "")));
    let app = sandbox.app();
    assert_eq!(app.probe(free), Ok(Route::Direct));
    assert_eq!(app.probe(bound), Ok(Route::Relayed));
    assert!(
        culvert.log().contains("`allow_steer` has no effect"),
        "{}",
        culvert.log()
    );
}

#[test]
fn the_fail_mode_holds() {
    let sandbox = Sandbox::new();
    let listen = SocketAddr::from((SERVER_V4, 443));
    // Behind the rule another service is on the very port.
    let other = sandbox.within(|| Server::mirror((SERVER_V4, 443)));
    let mirror = sandbox.within(|| Server::mirror((Ipv4Addr::LOCALHOST, 0)));
    let app = sandbox.app();
    for (mode, after) in [
        ("direct", Ok(Route::Direct)),
        ("refuse", Err(Errno::ECONNREFUSED)),
    ] {
        let more = format!("on_relay_failure = \"{mode}\"");
        let mut culvert = sandbox.culvert(&steered(listen, mirror.address(), &more));
        let (steered, direct) = (mirror.clients().len(), other.clients().len());
        assert_eq!(app.probe(listen), Ok(Route::Direct));
        assert_eq!(mirror.clients().len(), steered + 1);
        culvert.kill();
        assert_eq!(app.probe(listen), after, "{mode}");
        assert_eq!(mirror.clients().len(), steered + 1);
        assert_eq!(
            other.clients().len(),
            direct + usize::from(mode == "direct")
        );
    }
    sandbox.detach();
    eventually("the other service", || {
        (app.probe(listen) == Ok(Route::Direct)).then_some(())
    });
}

#[test]
fn reload_under_load_relays_nothing() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((Ipv4Addr::LOCALHOST, 0)));
    let listen = SocketAddr::from((SERVER_V4, 443));
    let rules = steered(listen, server.address(), "");
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    let stop = AtomicBool::new(false);
    let made = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut made = 0;
            while !stop.load(Acquire) {
                let outcomes = app.storm(&Storm::short(&[listen]));
                assert_eq!(outcomes, [(0, 20)].into());
                made += 20;
            }
            made
        });
        for round in 0..30 {
            // Sometimes with another rule before it: its place among the rules is another one then.
            let before = steered(SocketAddr::from((OTHER_V4, 443)), server.address(), "");
            let before = before.replace("site", "before");
            culvert.reload(&if round % 2 == 0 {
                format!("{before}{rules}")
            } else {
                rules.clone()
            });
        }
        stop.store(true, Release);
        load.join().unwrap()
    });
    assert_eq!(culvert.counter("arrived_relayed"), 0);
    assert_eq!(culvert.counter("arrived_steered"), made);
}

#[test]
fn listeners_that_share_a_port_each_get_a_share() {
    let sandbox = Sandbox::new();
    let listen = SocketAddr::from((SERVER_V4, 443));
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 7443));
    let mut mirrors: Vec<_> = (0..3)
        .map(|_| sandbox.within(|| Server::sharing_mirror(at)))
        .collect();
    let culvert = sandbox.culvert(&steered(listen, at, ""));
    let app = sandbox.app();
    let visit = |mirrors: &[Server]| {
        let before: Vec<_> = mirrors.iter().map(|it| it.clients().len()).collect();
        // Fewer than 4 of 60, with three of them, happen once in a million times.
        for _ in 0..60 {
            assert_eq!(app.probe(listen), Ok(Route::Direct));
        }
        for (mirror, before) in mirrors.iter().zip(before) {
            let share = mirror.clients().len() - before;
            assert!(share >= 4, "{share} of 60 for one of {}", mirrors.len());
        }
    };
    visit(&mirrors);
    assert_eq!(culvert.counter("arrived_relayed"), 0);
    // Whichever of them we hold: one after the other closes, and the others go on.
    for _ in 0..2 {
        drop(mirrors.remove(0));
        await_steered(&app, listen);
        visit(&mirrors);
        mirrors.rotate_left(1);
    }
    drop(mirrors);
    assert_eq!(app.tcp(at).connect(at), Err(Errno::ECONNREFUSED));
}

#[test]
fn a_listener_that_is_more_specific_takes_over() {
    let sandbox = Sandbox::new();
    let listen = SocketAddr::from((SERVER_V4, 443));
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 7443));
    let wide = sandbox.within(|| Server::sharing_mirror((Ipv4Addr::UNSPECIFIED, 7443)));
    let _culvert = sandbox.culvert(&steered(listen, at, ""));
    let app = sandbox.app();
    let visits = |mirror: &Server| {
        let before = mirror.clients().len();
        assert_eq!(app.probe(listen), Ok(Route::Direct));
        mirror.clients().len() > before
    };
    assert!(visits(&wide));
    let narrow = sandbox.within(|| Server::sharing_mirror(at));
    eventually("a connection for the more specific one", || {
        visits(&narrow).then_some(())
    });
    drop(narrow);
    eventually("a connection for the other one again", || {
        let before = wide.clients().len();
        (app.probe(listen) == Ok(Route::Direct) && wide.clients().len() > before).then_some(())
    });
}
