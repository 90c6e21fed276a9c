//! Who connects where, and what may become of a connection.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use culvert_tests::{
    App,
    app::protocol::{Storm, Visit},
    eventually,
    hosts::{self, LAN, WAN},
    record::CloseRecord,
    sandbox::{OTHER_V4, SERVER_V4},
};
use fastrand::Rng;

use super::farm::Death;

/// Where connections of a kind arrive: the path or the role, and the port.
pub(super) type Front = (&'static str, u16);

/// Those that apps of this host connect to.
pub(super) const OF_APPS: [Front; 10] = [
    ("copy", 8001),
    ("splice", 8002),
    ("sockmap", 8003),
    ("auto", 8004),
    ("group", 8005),
    REWRITE,
    ("shortcut-without-fionread", 8009),
    STEER,
    SOCKS,
    HTTP,
];
/// The service itself gets these, which nobody kills.
const STEER: Front = ("steer", 8010);
/// By way of a proxy, to where they go.
const SOCKS: Front = ("socks", 8011);
/// The same, by one that speaks HTTP.
const HTTP: Front = ("http", 8014);
/// Where the client's address is seen, from a host that is routed by us: the same service.
pub(super) const SHOWN: Front = ("keep-source", 8012);
/// That of a container with a network of its own, by a rule that names it.
pub(super) const ALONE: Front = ("alone", 8013);
/// What no rule selects and the fast path sends on, from a host that is routed by us to another one.
pub(super) const ROUTED: Front = ("routed", 8015);
/// The service that is always there.
pub(super) const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 9100);
/// The proxies.
pub(super) const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);
pub(super) const HTTP_PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const REWRITE: Front = ("rewrite", 8006);
/// That of a host which is routed by us.
pub(super) const GATEWAY: Front = ("gateway", 8007);
/// That of a container.
pub(super) const CONTAINER: Front = ("container", 8008);

/// All of them.
pub(super) fn fronts() -> Vec<Front> {
    [&OF_APPS[..], &[GATEWAY, CONTAINER, SHOWN, ALONE, ROUTED]].concat()
}

/// Where nobody is: a host that is routed by us connects there.
pub(super) const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// Bytes of connections, in turn.
pub(super) const LENGTHS: [u64; 3] = [200, 30_000, 400_000];
/// Clients wait no longer for anything.
const PATIENCE_MS: u64 = 60_000;

/// Where those that go by proxies arrive.
pub(super) fn behind_proxies() -> [SocketAddr; 2] {
    [SOCKS, HTTP].map(address)
}

/// Where a front is.
pub(super) fn address(front: Front) -> SocketAddr {
    let host = match front {
        GATEWAY => NOWHERE.into(),
        ROUTED => hosts::server(1)[0],
        _ => OTHER_V4.into(),
    };
    (host, front.1).into()
}

/// Those of all fronts and some that nobody asks for, in an order that changes.
pub(super) fn rules(alone: &str, rng: &mut Rng) -> String {
    let mut text = format!(
        "[router]\nfast_path = [\"{}\", \"{}\"]\n\
         [upstream.socks]\nurl = \"socks5://{PROXY}\"\n\
         [upstream.http]\nurl = \"http://{HTTP_PROXY}\"\n\
         [upstream.shown]\nendpoints = [\"{SERVICE}\"]\nkeep_source = true\n",
        LAN[1], WAN[1]
    );
    let mut fronts = fronts();
    fronts.retain(|front| *front != ROUTED);
    rng.shuffle(&mut fronts);
    for front in fronts {
        let (name, port) = front;
        if rng.bool() {
            let other = 20_000 + port;
            write!(
                text,
                "[[reverse]]\nname = \"other-{name}\"\nlisten = \"{OTHER_V4}:{other}\"\nvia = \"farm\"\n"
            )
            .unwrap();
        }
        let to_it = format!("forward]]\nmatch = {{ dest = \"{OTHER_V4}\", port = {port} }}");
        let (section, path) = match front {
            ("group", _) | CONTAINER | SOCKS | HTTP => (to_it, "copy"),
            REWRITE | ("shortcut-without-fionread", _) => (to_it, name),
            ALONE => {
                let from = ["host", "container"][rng.usize(..2)];
                let section = format!(
                    "forward]]\nmatch = {{ container = \"{alone}\", port = {port} }}\nfrom = \"{from}\""
                );
                (section, "auto")
            }
            GATEWAY => (format!("gateway]]\ninterface = \"{}\"", LAN[0]), "auto"),
            (path, _) => {
                let path = if front == SHOWN { "auto" } else { path };
                (format!("reverse]]\nlisten = \"{OTHER_V4}:{port}\""), path)
            }
        };
        let service = SERVICE.to_string();
        let via = match front {
            STEER => &*service,
            SOCKS => "socks",
            HTTP => "http",
            SHOWN => "shown",
            _ => "farm",
        };
        write!(
            text,
            "[[{section}\nname = \"front-{port}\"\nvia = \"{via}\"\npath = \"{path}\"\n"
        )
        .unwrap();
    }
    text
}

/// Tells others to stop when it goes, however that comes about.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Has an app make connections of one length to fronts until it is told to stop: what became of each.
pub(super) fn keep_up(app: &App, fronts: &[Front], length: u64, stop: &AtomicBool) -> Vec<Visit> {
    let mut visits = Vec::new();
    while !stop.load(SeqCst) {
        visits.append(&mut app.visit(&storm(fronts, length)));
    }
    visits
}

/// The same, by an app that is another one each time, and ends with connections open, with what it needs.
pub(super) fn start_again<T>(
    start: impl Fn() -> (App, T),
    front: Front,
    stop: &AtomicBool,
) -> Vec<Visit> {
    let mut visits = Vec::new();
    for length in LENGTHS.into_iter().cycle() {
        if stop.load(SeqCst) {
            break;
        }
        let (app, _its) = start();
        visits.append(&mut app.visit(&storm(&[front], length)));
        // What becomes of these is nobody's business but the daemon's; the endpoint may be one that is being killed.
        _ = app.hold(address(front), 3);
    }
    visits
}

/// Waits until connections to a front are captured: those before go nowhere.
pub(super) fn await_capture(app: &App, front: Front) {
    let one = Storm {
        threads: 1,
        each: 1,
        ..storm(&[front], LENGTHS[0])
    };
    eventually("a container that is captured", || {
        app.visit(&one)[0].error.is_none().then_some(())
    });
}

/// Connections to fronts in turn.
pub(super) fn storm(fronts: &[Front], length: u64) -> Storm {
    Storm {
        addresses: fronts.iter().copied().map(address).collect(),
        threads: 6,
        each: 4,
        length,
    }
}

/// Whether a connection was lost with an endpoint.
pub(super) fn is_explained(visit: &Visit, deaths: &[Death], records: &[CloseRecord]) -> bool {
    // The clocks are one, but are read before and after.
    const SLACK: u64 = 50;
    // Who is lost with an endpoint hears of it, and hears nothing that is wrong.
    if visit.is_wrong || visit.ended_ms - visit.begun_ms >= PATIENCE_MS {
        return false;
    }
    let from = visit.begun_ms.saturating_sub(SLACK);
    let rewritten = visit.address == address(REWRITE);
    // Where it does not know itself whom it came to, its record does; what is rewritten has none.
    let endpoint = visit.endpoint.or_else(|| {
        let local = visit.local?;
        let mut its = records.iter().filter(|record| {
            record.client == local
                && record.orig_dst == Some(visit.address)
                && record.closed_at_ms >= from
        });
        let endpoint = its.next()?.endpoint.as_ref()?;
        Some(endpoint.parse::<SocketAddr>().ok()?.port())
    });
    deaths.iter().any(|death| {
        let was_there = match endpoint {
            Some(port) => port == death.port,
            None => rewritten,
        };
        let end = if rewritten && visit.endpoint.is_none() {
            death.back
        } else {
            death.killed.1
        };
        was_there && from <= end && death.killed.0 <= visit.ended_ms + SLACK
    })
}
