//! What becomes of apps while a sidecar is not there: with `refuse`, nothing of theirs goes past it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use culvert_tests::{
    App, Load, Sandbox,
    app::{
        Route,
        protocol::{Storm, Visit},
    },
    container::{Container, Pod, capabilities, capability},
    eventually,
    kernel::refusal,
    load::{assert_flawless, begun_after},
    peer::Server,
    process::output,
    sandbox::SERVER_V4,
};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

use super::{mirror, rules};

/// A sidecar that refuses what it cannot relay.
fn refusing<'a>(pod: &Pod<'a>) -> Container<'a> {
    let mut sidecar = pod.sidecar("sidecar", &rules("", "refuse"));
    sidecar.spec.capabilities.push(capability::SYS_ADMIN);
    sidecar
}

#[test]
fn between_two_sidecars_everything_is_refused() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let pod = Pod::new(&sandbox);
    let container = refusing(&pod);
    let mut sidecar = container.start();
    sidecar.await_ready();
    // What it took to find the guard of one before it is given up.
    assert_eq!(capabilities(sidecar.pid()), capability::SIDECAR);
    let app = pod.app("app");
    let load = Load::under_way(app.start_app(), &[server.address()]);
    let seen = port_sayer(&sandbox);
    let other = pod.app("other");
    let witness = Witness::start(other.start_app(), seen.address());
    let refused = BTreeMap::from([(refusal() as i32, 20)]);
    for signal in [SIGKILL, SIGTERM, SIGKILL] {
        sidecar.end_by(signal);
        let ended = Instant::now();
        load.await_rounds(3);
        let before_next = Instant::now();
        sidecar = container.start();
        sidecar.await_ready();
        let ready = Instant::now();
        load.await_rounds(3);
        assert!(
            sidecar.log().contains("the sidecar before this one"),
            "{}",
            sidecar.log()
        );
        let rounds = load.rounds();
        let between = begun_after(&rounds, ended);
        for round in between.iter().filter(|round| round.ended < before_next) {
            assert_eq!(round.outcomes, refused);
        }
        assert_flawless(begun_after(&rounds, ready));
    }
    // Of all that were made, also in the very moments: none was the app's own that the server saw.
    let visits = witness.finish();
    let clients: BTreeSet<_> = seen.clients().into_iter().collect();
    let past = |visit: &&Visit| visit.local.is_some_and(|local| clients.contains(&local));
    let past: Vec<_> = visits.iter().filter(past).collect();
    assert!(past.is_empty(), "{past:?}");
    let relayed = visits.iter().filter(|visit| visit.error.is_none()).count();
    let refused = visits.iter().filter(|visit| visit.local.is_none()).count();
    assert!(relayed > 0 && refused > 0, "{relayed} {refused}");
    assert!(clients.len() >= relayed, "{} {relayed}", clients.len());
}

/// Says its port, and sends back what it receives.
fn port_sayer(sandbox: &Sandbox) -> Server {
    sandbox.within(|| {
        Server::start((SERVER_V4, 0), |mut stream| {
            stream.read_exact(&mut [0])?;
            let port = stream.local_addr()?.port();
            stream.write_all(&port.to_be_bytes())?;
            let mut reading = stream.try_clone()?;
            io::copy(&mut reading, &mut stream)?;
            Ok(())
        })
    })
}

/// An app that makes connections all the time, and knows where each came from.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Visit>>,
}

impl Witness {
    fn start(app: App, address: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut visits = Vec::new();
            while !told.load(SeqCst) {
                visits.append(&mut app.visit(&Storm::short(&[address])));
            }
            visits
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<Visit> {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_reload_that_wants_no_guard_any_more_takes_it_off() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let app = pod.app("app");
    let app = app.start_app();
    let container = refusing(&pod);
    for (mode, after) in [
        ("direct", Ok(Route::Direct)),
        ("refuse", Err(refusal())),
        ("direct", Ok(Route::Direct)),
    ] {
        container.write_rules(&rules("", "refuse"));
        let sidecar = container.start();
        sidecar.await_ready();
        container.write_rules(&rules("", mode));
        sidecar.reload();
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
        sidecar.end_by(SIGKILL);
        assert_eq!(app.probe(mirror.address()), after, "{mode}");
    }
}

#[test]
fn an_app_that_is_started_again_is_captured_from_its_first_connection() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let container = refusing(&pod);
    let sidecar = container.start();
    sidecar.await_ready();
    let other = pod.app("other");
    let load = Load::under_way(other.start_app(), &[server.address()]);
    for round in 0..10 {
        // Another cgroup each time.
        let container = pod.app("app");
        let app = container.start_app();
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed), "{round}");
    }
    assert_flawless(&load.finish());
}

#[test]
fn the_guard_of_a_sidecar_that_never_comes_back_goes_with_the_pod_or_is_detached() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let app = pod.app("app");
    let app = app.start_app();
    {
        let container = refusing(&pod);
        let sidecar = container.start();
        sidecar.await_ready();
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
        sidecar.end_by(SIGKILL);
    }
    assert_eq!(app.probe(mirror.address()), Err(refusal()));
    // Without a word of the cgroup it is left alone: the sidecar may be about to be started again.
    assert_eq!(sandbox.detach(), "nothing was left in force\n");
    assert_eq!(app.probe(mirror.address()), Err(refusal()));
    let mut detach = sandbox.culvert_command();
    detach.args(["detach", "--cgroup", sandbox.cgroup().name()]);
    assert_eq!(
        output(&mut detach),
        "removed what a killed daemon had left in force\n"
    );
    assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
    // And once more, for the pod to take with it: the sandbox looks for what is left.
    let container = refusing(&pod);
    let sidecar = container.start();
    sidecar.await_ready();
    sidecar.end_by(SIGKILL);
    eventually("a refusal", || {
        (app.probe(mirror.address()) == Err(refusal())).then_some(())
    });
}
