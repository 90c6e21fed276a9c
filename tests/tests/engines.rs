//! Containers of real engines, captured by their names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::Route,
    container::{Containerd, Docker, Podman},
    eventually,
    netns::Netns,
    peer::Server,
    process::output,
    rules::RELAY,
    sandbox::SERVER_V4,
};
use serde_json::Value;

fn rule(name: &str, from: &str) -> String {
    format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = \"{name}\" }}\nvia = \"relay\"\nfrom = \"{from}\"\n"
    )
}

/// Has an app in a container exchange bytes through culvert, once that captures it, and returns the address that the server sees of it.
fn captured(sandbox: &Sandbox, app: &App) -> SocketAddr {
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    eventually("connections of a container that are relayed", || {
        (app.probe(mirror.address()) == Ok(Route::Relayed)).then_some(())
    });
    let echo = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let socket = app.tcp(echo.address());
    socket.connect(echo.address()).unwrap();
    assert_eq!(
        socket.peer().unwrap(),
        echo.address(),
        "the app sees the truth"
    );
    socket.exchange(1, 300_000).unwrap();
    socket.close();
    echo.clients()[0]
}

/// Whether the one container that the daemon knows is of this name and this id.
fn assert_known(culvert: &Culvert<'_>, name: &str, id: &str) {
    eventually("a container in the status", || {
        let status = culvert.status();
        let known = status["containers"].as_array()?;
        let is_it = |it: &Value| it["container"] == name && it["id"] == id;
        (known.len() == 1 && known.iter().all(is_it)).then_some(())
    });
}

/// What a client from outside sends to a published port comes back, by the app that serves there in the container.
fn assert_published(outside: &Netns, published: SocketAddr, served: u16) {
    const SENT: &[u8] = &[7; 20_000];
    let answer = outside.within(|| {
        let mut stream = TcpStream::connect(published).unwrap();
        stream.write_all(SENT).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    // For the first byte it says its port.
    let expected = [&served.to_be_bytes(), &SENT[1..]].concat();
    assert!(answer == expected, "{} bytes", answer.len());
}

#[test]
fn a_container_of_docker_is_captured_by_its_name_and_its_published_port_goes_on_working() {
    let sandbox = Sandbox::new();
    let outside = Netns::new();
    sandbox
        .netns()
        .link("outside", "10.9.200.1/24", &outside, "10.9.200.2/24");
    let docker = Docker::start(&sandbox);
    let id = docker.run("web", &["--publish", "8080:80"]);
    let culvert = sandbox.culvert(&rule("web", "container"));
    let app = docker.app("web");
    assert_eq!(captured(&sandbox, &app).ip(), docker.address("web"));
    assert_known(&culvert, "web", &id);

    // The engine's own rules lead there.
    app.serve(([0, 0, 0, 0], 80).into());
    assert_published(&outside, ([10, 9, 200, 1], 8080).into(), 80);

    culvert.reload(&rule("web", "host"));
    assert_eq!(captured(&sandbox, &app).ip(), SERVER_V4);
    drop(app);

    // The same container, in another network.
    docker.restart("web");
    assert_eq!(captured(&sandbox, &docker.app("web")).ip(), SERVER_V4);
    assert_known(&culvert, "web", &id);

    // Another one of the same name.
    docker.remove("web");
    let other = docker.run("web", &[]);
    assert_eq!(captured(&sandbox, &docker.app("web")).ip(), SERVER_V4);
    assert_known(&culvert, "web", &other);
    docker.remove("web");
}

#[test]
fn a_container_of_podman_is_captured_by_its_name() {
    let sandbox = Sandbox::new();
    let podman = Podman::start(&sandbox);
    let id = podman.run("web");
    let culvert = sandbox.culvert(&rule("web", "container"));
    captured(&sandbox, &podman.app("web"));
    podman.restart("web");
    let seen = captured(&sandbox, &podman.app("web")).ip();
    assert_ne!(seen, SERVER_V4);
    assert_known(&culvert, "web", &id);
    podman.remove("web");
}

#[test]
fn a_container_of_a_pod_is_captured_by_the_names_that_kubernetes_gives() {
    let sandbox = Sandbox::new();
    let containerd = Containerd::start(&sandbox);
    let pod = containerd.pod("shop", "web-0");
    let first = pod.run("app", 0);
    let culvert = sandbox.culvert(&rule("app", "container"));
    let seen = captured(&sandbox, &pod.app(&first)).ip();
    assert_ne!(seen, SERVER_V4);
    assert_known(&culvert, "app", &first);

    // Made anew, as a kubelet does, it has another id.
    pod.stop(&first);
    let second = pod.run("app", 1);
    captured(&sandbox, &pod.app(&second));
    assert_known(&culvert, "app", &second);

    // With another pod it may be one of two.
    let other = containerd.pod("shop", "web-1");
    let third = other.run("app", 0);
    let several = [
        "shop/web-0/app",
        "shop/web-1/app",
        "name it by namespace/pod/container",
    ];
    eventually("both in the log", || {
        let log = culvert.log();
        several.iter().all(|part| log.contains(part)).then_some(())
    });
    for name in ["web-1/app", "shop/web-1/app"] {
        culvert.reload(&rule(name, "host"));
        assert_eq!(captured(&sandbox, &other.app(&third)).ip(), SERVER_V4);
        assert_known(&culvert, name, &third);
    }
    let mut explain = sandbox.culvert_command();
    explain.args(["explain", "--json", "--admin"]);
    explain.arg(culvert.admin());
    explain.args(["--container", "shop/web-1/app", "192.0.2.1:80"]);
    let explained: Value = serde_json::from_str(&output(&mut explain)).unwrap();
    assert_eq!(explained["rule"], "boxes", "{explained:#}");
    let file = sandbox.directory().join("plan.toml");
    std::fs::write(&file, rule("web-0/app", "host")).unwrap();
    let plan = output(
        sandbox
            .culvert_command()
            .args(["plan", "--config"])
            .arg(file),
    );
    assert!(plan.contains(&format!("id {second}")), "{plan}");
}
