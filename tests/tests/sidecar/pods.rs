//! Whom a sidecar captures, with what it sees of the cgroup hierarchy.

use std::fs;

use culvert_tests::{
    App, Sandbox,
    app::{Route, protocol::Storm},
    cgroup::mount,
    container::{Pod, View, capabilities, capability},
    eventually,
    process::app_binary,
};

use super::{mirror, rules};

const RELAYED: culvert_tests::app::Result<Route> = Ok(Route::Relayed);
const DIRECT: culvert_tests::app::Result<Route> = Ok(Route::Direct);

#[test]
fn the_whole_pod_whoever_starts_first() {
    for view in [View::Mounted, View::Host] {
        let sandbox = Sandbox::new();
        let mirror = mirror(&sandbox);
        let pod = Pod::new(&sandbox);
        let before = pod.app("before");
        let before = before.start_app();
        assert_eq!(before.probe(mirror.address()), DIRECT, "{view:?}");

        let mut sidecar = pod.sidecar("sidecar", &rules("", "direct"));
        sidecar.spec.view = view;
        let sidecar = sidecar.start();
        sidecar.await_ready();
        assert_eq!(before.probe(mirror.address()), RELAYED, "{view:?}");
        let after = pod.app("after");
        let after = after.start_app();
        assert_eq!(after.probe(mirror.address()), RELAYED, "{view:?}");
        // Who has the same network and is in another cgroup is none of its business.
        let outsider = App::start(&mut sandbox.outsider(app_binary()));
        assert_eq!(outsider.probe(mirror.address()), DIRECT, "{view:?}");
        assert_eq!(capabilities(sidecar.pid()), capability::SIDECAR);
        assert!(sidecar.end_by(nix::sys::signal::Signal::SIGTERM).success());
        assert_eq!(after.probe(mirror.address()), DIRECT, "{view:?}");
    }
}

#[test]
fn one_container_whose_processes_are_shared() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let neighbour = pod.app("neighbour");
    let app = neighbour.start_app();
    let other = pod.app("other");
    let other = other.start_app();
    let mut sidecar = pod.sidecar("sidecar", &rules("", "refuse"));
    // Nothing of the host is mounted.
    sidecar.spec.view = View::Own;
    sidecar.spec.processes_of = Some(neighbour.pid());
    let more = [capability::SYS_PTRACE, capability::SYS_ADMIN];
    sidecar.spec.capabilities.extend(more);
    sidecar.spec.command.extend(["--pid".into(), "1".into()]);
    let sidecar = sidecar.start();
    sidecar.await_ready();
    assert_eq!(app.probe(mirror.address()), RELAYED);
    assert_eq!(other.probe(mirror.address()), DIRECT);
}

#[test]
fn a_cgroup_by_its_path() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let (first, second) = (pod.app("first"), pod.app("second"));
    let (first, second) = (first.start_app(), second.start_app());
    let named = format!("cgroup = \"{}/first\"", pod.cgroup());
    let sidecar = pod.sidecar("sidecar", &rules(&named, "direct"));
    let sidecar = sidecar.start();
    sidecar.await_ready();
    assert_eq!(first.probe(mirror.address()), RELAYED);
    assert_eq!(second.probe(mirror.address()), DIRECT);
}

#[test]
fn one_sidecar_is_enough() {
    let sandbox = Sandbox::new();
    let pod = Pod::new(&sandbox);
    let first = pod.sidecar("first", &rules("", "direct"));
    let running = first.start();
    running.await_ready();
    let second = pod.sidecar("second", &rules("", "direct"));
    let (code, said) = second.run();
    assert!(
        code == Some(1) && said.contains("another sidecar"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(running.asks_ready().0);
    running.end_by(nix::sys::signal::Signal::SIGKILL);
    second.start().await_ready();
}

/// An app that can open the directory of the cgroup can lock it, and take names of the network that they share; it cannot attach.
#[test]
fn no_app_can_keep_a_sidecar_from_starting() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let app = pod.app("app");
    let app = app.start_app();
    let directory = fs::File::open(mount().join(pod.cgroup())).unwrap();
    directory.lock().unwrap();
    let sidecar = pod.sidecar("sidecar", &rules("", "direct"));
    let running = sidecar.start();
    running.await_ready();
    assert_eq!(app.probe(mirror.address()), RELAYED);
    let log = running.log();
    assert!(log.contains("whether another culvert begins here"), "{log}");
}

/// Both sidecars relay the connection: one as the app opens it, one as it arrives.
#[test]
fn two_pods_through_their_sidecars() {
    let (near, far) = (Sandbox::new(), Sandbox::new());
    near.netns()
        .link("eth0", "10.77.0.1/24", far.netns(), "10.77.0.2/24");
    let log = "access_log = { path = \"-\", format = \"json\" }";
    let pods = [Pod::new(&near), Pod::new(&far)];
    let outbound = pods[0].sidecar("sidecar", &rules(log, "direct"));
    let inbound = format!(
        "[daemon]\ncalibrate = \"demand\"\n{log}\n[[reverse]]\nname = \"in\"\nlisten = \"*:8000\"\nvia = \"original\"\n"
    );
    let inbound = pods[1].sidecar("sidecar", &inbound);
    let (outbound, inbound) = (outbound.start(), inbound.start());
    outbound.await_ready();
    inbound.await_ready();
    let (client, service) = (pods[0].app("client"), pods[1].app("service"));
    let (client, service) = (client.start_app(), service.start_app());
    let address = service.serve("10.77.0.2:8000".parse().unwrap());
    let storm = Storm {
        addresses: vec![address],
        threads: 2,
        each: 5,
        length: 4096,
    };
    let visits = client.visit(&storm);
    assert_eq!(visits.len(), 10);
    assert!(visits.iter().all(|visit| visit.endpoint == Some(8000)));
    for (sidecar, role) in [(&outbound, "forward"), (&inbound, "reverse")] {
        let wanted = format!("\"role\":\"{role}\"");
        eventually("ten close records", || {
            (sidecar.log().matches(&wanted).count() == 10).then_some(())
        });
    }
}
