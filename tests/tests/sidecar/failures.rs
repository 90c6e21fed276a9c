//! What becomes of apps while a sidecar is not there: with `refuse`, nothing of theirs goes past it.

use std::{collections::BTreeMap, time::Instant};

use culvert_tests::{
    Load, Sandbox,
    app::Route,
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
