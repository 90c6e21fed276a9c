//! Who connects where, and what may become of a connection.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use culvert_tests::{
    App,
    app::protocol::{Storm, Visit},
    sandbox::OTHER_V4,
};
use fastrand::Rng;

use super::farm::Death;

/// Where connections of a kind arrive: the path or the role, and the port.
pub(super) type Front = (&'static str, u16);

/// Those that apps of this host connect to.
pub(super) const OF_APPS: [Front; 6] = [
    ("copy", 8001),
    ("splice", 8002),
    ("sockmap", 8003),
    ("auto", 8004),
    ("group", 8005),
    REWRITE,
];
const REWRITE: Front = ("rewrite", 8006);
/// That of a host which is routed by us.
pub(super) const GATEWAY: Front = ("gateway", 8007);
/// That of a container.
pub(super) const CONTAINER: Front = ("container", 8008);

/// All of them.
pub(super) fn fronts() -> Vec<Front> {
    [&OF_APPS[..], &[GATEWAY, CONTAINER]].concat()
}

/// Where nobody is: a host that is routed by us connects there.
pub(super) const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// Bytes of connections, in turn.
pub(super) const LENGTHS: [u64; 3] = [200, 30_000, 400_000];
/// Clients wait no longer for anything.
const PATIENCE_MS: u64 = 60_000;

/// Where a front is.
fn address(front: Front) -> SocketAddr {
    let host = if front == GATEWAY { NOWHERE } else { OTHER_V4 };
    (host, front.1).into()
}

/// Those of all fronts and some that nobody asks for, in an order that changes.
pub(super) fn rules(rng: &mut Rng) -> String {
    let mut text = String::new();
    let mut fronts = fronts();
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
        let forward = |path| {
            let section = format!("forward]]\nmatch = {{ dest = \"{OTHER_V4}\", port = {port} }}");
            (section, path)
        };
        let (section, path) = match front {
            ("group", _) | CONTAINER => forward("copy"),
            REWRITE => forward(name),
            GATEWAY => ("gateway]]\ninterface = \"lan0\"".to_owned(), "auto"),
            (path, _) => (format!("reverse]]\nlisten = \"{OTHER_V4}:{port}\""), path),
        };
        write!(
            text,
            "[[{section}\nname = \"front-{port}\"\nvia = \"farm\"\npath = \"{path}\"\n"
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

/// The same, by an app that is another one each time, and ends with connections open.
pub(super) fn start_again(start: impl Fn() -> App, front: Front, stop: &AtomicBool) -> Vec<Visit> {
    let mut visits = Vec::new();
    for length in LENGTHS.into_iter().cycle() {
        if stop.load(SeqCst) {
            break;
        }
        let app = start();
        visits.append(&mut app.visit(&storm(&[front], length)));
        // What becomes of these is nobody's business but the daemon's; the endpoint may be one that is being killed.
        _ = app.hold(address(front), 3);
    }
    visits
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
pub(super) fn is_explained(visit: &Visit, deaths: &[Death]) -> bool {
    // The clocks are one, but are read before and after.
    const SLACK: u64 = 50;
    // Who is lost with an endpoint hears of it.
    if visit.ended_ms - visit.begun_ms >= PATIENCE_MS {
        return false;
    }
    let rewritten = visit.address == address(REWRITE);
    deaths.iter().any(|death| {
        let was_there = visit.endpoint.is_none_or(|port| port == death.port);
        let end = if rewritten && visit.endpoint.is_none() {
            death.back
        } else {
            death.killed.1
        };
        let from = visit.begun_ms.saturating_sub(SLACK);
        was_there && from <= end && death.killed.0 <= visit.ended_ms + SLACK
    })
}
