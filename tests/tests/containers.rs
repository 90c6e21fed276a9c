//! Containers with networks of their own, made by hand as a runtime makes them, whose connections a daemon on the host captures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    App, Culvert, Load, Sandbox,
    app::Route,
    container::{Container, app_of_other_users, engine, id, inside, network},
    daemon::Settings,
    eventually,
    kernel::refusal,
    load::assert_flawless,
    peer::Server,
    rules::RELAY,
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// A rule for containers.
fn rule(containers: &[&str], more: &str) -> String {
    format!(
        "[[forward]]\nname = \"boxes\"\nmatch = {{ container = {containers:?} }}\nvia = \"relay\"\n{more}\n"
    )
}

fn relayed(containers: &[&str], more: &str) -> String {
    format!("{RELAY}{}", rule(containers, more))
}

/// A container that runs, in a network of its own, and the app in it.
fn running<'a>(sandbox: &'a Sandbox, id: &str) -> (Container<'a>, App) {
    let container = Container::alone(sandbox, id, &network(sandbox, 1));
    let app = container.start_app();
    container.pid();
    (container, app)
}

/// Waits until the daemon has listeners in the namespace of an app.
fn await_capture(app: &App, mirror: SocketAddr) {
    eventually("connections of a container that are relayed", || {
        (app.probe(mirror) == Ok(Route::Relayed)).then_some(())
    });
}

fn log_has(culvert: &Culvert<'_>, part: &str) {
    eventually(&format!("{part:?} in the log"), || {
        culvert.log().contains(part).then_some(())
    });
}

#[test]
fn a_container_that_runs_is_captured_from_the_start() {
    let one = id();
    let sandbox = Sandbox::new();
    let [server, server_v6] = [IpAddr::from(SERVER_V4), SERVER_V6.into()]
        .map(|address| sandbox.within(|| Server::echo((address, 0))));
    let (_container, app) = running(&sandbox, &one);
    let culvert = sandbox.culvert(&relayed(&[&one[..12]], "on_relay_failure = \"refuse\""));
    for (server, path_length) in [(&server, 1), (&server_v6, 100_000), (&server, 3_000_000)] {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        assert_eq!(
            socket.peer().unwrap(),
            server.address(),
            "the app sees the truth"
        );
        socket.exchange(path_length, path_length).unwrap();
        socket.close();
    }
    assert_eq!(culvert.counter("fail_netns"), 0);
    assert_eq!(culvert.counter("relayed"), 3);
    let records = eventually("records", || {
        let records = culvert.records();
        (records.len() == 3).then_some(records)
    });
    assert!(records.iter().all(|record| record.reason == "done"));
    // From the host unless a rule says otherwise.
    assert!(server.clients().iter().all(|it| it.ip() != inside(1)));
}

#[test]
fn a_container_that_starts_later_is_captured_on_demand() {
    let [one, other_id] = [id(), id()];
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let culvert = sandbox.culvert(&relayed(&[&one], ""));
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    await_capture(&app, mirror.address());
    log_has(
        &culvert,
        "listening in the network namespace of a container",
    );
    // And no other one.
    let elsewhere = network(&sandbox, 2);
    let other = Container::alone(&sandbox, &other_id, &elsewhere);
    assert_eq!(other.start_app().probe(mirror.address()), Ok(Route::Direct));
}

/// Which cgroup a container has is known when it is there: what it opens until then its rule does not select, whatever the fail mode. A
/// rule for the cgroup that it is made in does.
#[test]
fn until_its_cgroup_is_found_a_container_goes_by_the_rules_behind() {
    let one = id();
    for (is_below, expected) in [(false, Ok(Route::Direct)), (true, Err(refusal()))] {
        let sandbox = Sandbox::new();
        let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
        let rules = relayed(&[&one], "on_relay_failure = \"refuse\"");
        let others = format!(
            "[[forward]]\nname = \"others\"\nmatch = {{ cgroup = {:?} }}\nvia = \"refuse\"\n",
            sandbox.cgroup().name()
        );
        let culvert = sandbox.culvert(&if is_below { rules + &others } else { rules });
        // It cannot look.
        culvert.freeze();
        let netns = network(&sandbox, 1);
        let container = Container::alone(&sandbox, &one, &netns);
        let app = container.start_app();
        assert_eq!(app.probe(mirror.address()), expected);
        culvert.thaw();
        await_capture(&app, mirror.address());
    }
}

#[test]
fn every_path_leads_from_one_namespace_to_another() {
    let one = id();
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let (_container, app) = running(&sandbox, &one);
    let rules =
        |path: &str, from: &str| relayed(&[&one], &format!("path = \"{path}\"\nfrom = \"{from}\""));
    let culvert = sandbox.culvert(&rules("copy", "host"));
    let mut count = 0;
    for path in ["splice", "sockmap", "shortcut-without-fionread"] {
        for from in ["host", "container"] {
            culvert.reload(&rules(path, from));
            let socket = app.tcp(server.address());
            if path.starts_with("shortcut") {
                socket.set_nonblocking(true);
            }
            match socket.connect(server.address()) {
                Ok(()) => {}
                Err(Errno::EINPROGRESS) => socket.finish_connect().unwrap(),
                Err(error) => panic!("{path} from {from}: {error}"),
            }
            socket.converse(3, 200, 700).unwrap();
            socket.close();
            count += 1;
            let records = culvert.await_records(count);
            let record = &records[count - 1];
            assert_eq!(
                (record.up, record.down, record.reason.as_str()),
                (140_000, 140_000, "done"),
                "{path} from {from}: {record:?}"
            );
            let moved = record.path.as_deref().unwrap();
            assert!(path.starts_with(moved), "{path} from {from}: {record:?}");
        }
    }
}

#[test]
fn it_is_up_to_the_rule_where_connections_leave_from() {
    let one = id();
    for (from, is_inside) in [("host", false), ("container", true)] {
        let sandbox = Sandbox::new();
        let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
        let (_container, app) = running(&sandbox, &one);
        let culvert = sandbox.culvert(&relayed(&[&one], &format!("from = \"{from}\"")));
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(7, 500_000).unwrap();
        let local = socket.local().unwrap();
        socket.close();
        assert_eq!(culvert.counter("relayed"), 1);
        let [client] = server.clients()[..] else {
            panic!("{:?}", server.clients());
        };
        assert_eq!(client.ip() == inside(1), is_inside, "{from}: {client}");
        assert_ne!(client, local, "{from}: a connection of its own");
    }
}

#[test]
fn a_container_keeps_its_own_loopback() {
    let one = id();
    let sandbox = Sandbox::new();
    let netns = network(&sandbox, 1);
    let outside = sandbox.within(|| Server::greeter((Ipv4Addr::LOCALHOST, 0), b"host"));
    let inside = netns.within(|| Server::greeter(outside.address(), b"container"));
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    container.pid();
    let rules = format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = \"{one}\", dest = \"127.0.0.0/8\" }}\n\
         via = \"relay\"\n"
    );
    let culvert = sandbox.culvert(&rules);
    let socket = app.tcp(inside.address());
    socket.connect(inside.address()).unwrap();
    assert_eq!(socket.receive_all().unwrap(), b"container");
    assert_eq!(culvert.counter("relayed"), 1);
    assert_eq!(outside.clients(), []);
}

#[test]
fn equal_tuples_of_two_containers_go_to_their_own_destinations() {
    let [one, other] = [id(), id()];
    let sandbox = Sandbox::new();
    let servers: [_; 2] = [(SERVER_V4, b"one".as_slice()), (OTHER_V4, b"two")]
        .map(|(address, greeting)| sandbox.within(|| Server::greeter((address, 7001), greeting)));
    let networks = [network(&sandbox, 1), network(&sandbox, 2)];
    let containers: Vec<_> = [&one, &other]
        .iter()
        .zip(&networks)
        .map(|(id, netns)| Container::alone(&sandbox, id, netns))
        .collect();
    let apps: Vec<_> = containers.iter().map(Container::start_app).collect();
    for container in &containers {
        container.pid();
    }
    // Both have the same ports, so that the relay has to tell tuples apart that do not differ in anything.
    for netns in &networks {
        netns.sysctl("net.ipv4.ip_local_port_range", "40000 40000");
    }
    let culvert = sandbox.culvert(&relayed(&[&one, &other], ""));
    let source = SocketAddr::from((Ipv4Addr::LOCALHOST, 5555));
    let sockets: Vec<_> = apps
        .iter()
        .zip(&servers)
        .map(|(app, server)| {
            let socket = app.tcp(server.address());
            socket.bind(source).unwrap();
            socket.connect(server.address()).unwrap();
            socket
        })
        .collect();
    for (socket, greeting) in sockets.iter().zip([b"one", b"two"]) {
        assert_eq!(socket.local().unwrap(), source);
        assert_eq!(socket.receive_all().unwrap(), greeting);
    }
    assert_eq!(culvert.counter("relayed"), 2);
}

#[test]
fn nothing_holds_a_namespace_that_nobody_is_left_in() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    // It never ends by itself.
    let silent = sandbox.within(|| {
        Server::start((SERVER_V4, 0), |stream| {
            let mut end = [0];
            while (&stream).read(&mut end)? > 0 {}
            loop {
                thread::park();
            }
        })
    });
    let _culvert = sandbox.culvert(&relayed(&[&one], "from = \"container\""));
    for _ in 0..3 {
        let netns = network(&sandbox, 1);
        let container = Container::alone(&sandbox, &one, &netns);
        let app = container.start_app();
        drop(netns);
        await_capture(&app, mirror.address());
        let socket = app.tcp(silent.address());
        socket.connect(silent.address()).unwrap();
        drop(container);
        drop(app);
        // Its end of the pair goes with the namespace.
        eventually("the end of a network namespace", || {
            let shown =
                sandbox.within(|| Command::new("ip").args(["link", "show", "box1"]).output());
            (!shown.unwrap().status.success()).then_some(())
        });
    }
}

#[test]
fn a_container_that_is_restarted_under_load_loses_nothing_and_is_captured_again() {
    const LENGTH: u64 = 20_000;
    const COUNT: u32 = 40;
    const RESTARTS: u64 = 4;
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let received = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&received);
    let sink = sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |mut stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            counted.fetch_add(u64::try_from(bytes.len()).unwrap(), SeqCst);
            Ok(())
        })
    });
    let culvert = sandbox.culvert(&relayed(
        &[&one],
        "on_relay_failure = \"refuse\"\nfrom = \"container\"",
    ));
    for _ in 0..RESTARTS {
        let netns = network(&sandbox, 1);
        let container = Container::alone(&sandbox, &one, &netns);
        let app = container.start_app();
        drop(netns);
        await_capture(&app, mirror.address());
        // Nobody waits for the bytes of connections that were closed; the container ends while they are under way.
        app.deliver(sink.address(), COUNT, LENGTH).unwrap();
        drop(app);
        drop(container);
        eventually("the end of a network namespace", || {
            let shown =
                sandbox.within(|| Command::new("ip").args(["link", "show", "box1"]).output());
            (!shown.unwrap().status.success()).then_some(())
        });
    }
    let sent = RESTARTS * u64::from(COUNT) * LENGTH;
    eventually("every byte", || {
        (received.load(SeqCst) == sent).then_some(())
    });
    assert_eq!(culvert.counter("unpublished"), 0);
}

#[test]
fn a_daemon_that_takes_over_opens_listeners_of_its_own() {
    let one = id();
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let (container, app) = running(&sandbox, &one);
    let rules = format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = \"{one}\", dest = [\"0.0.0.0/0\", \"127.0.0.0/8\"] }}\n\
         via = \"relay\"\non_relay_failure = \"refuse\"\n"
    );
    let settings = Settings::daemon("drain_timeout = \"20s\"");
    let mut first = sandbox.culvert_with(&settings, &rules);
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.exchange(1, 1000).unwrap();
    let load = Load::under_way(container.start_app(), &[server.address()]);
    let second = sandbox.culvert_with(
        &Settings {
            takeover: true,
            ..settings
        },
        &rules,
    );
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    socket.exchange(2, 1000).unwrap();
    socket.close();
    assert!(first.wait().success(), "{}", first.log());
    assert_flawless(&load.finish());
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    for counter in ["fail_netns", "failed_refused", "guard_refused", "loop"] {
        assert_eq!(second.counter(counter), 0, "{counter}");
    }
}

#[test]
fn a_published_port_still_leads_into_the_container() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    let _culvert = sandbox.culvert(&relayed(&[&one], ""));
    await_capture(&app, mirror.address());
    let server = app.serve((inside(1), 8080).into());
    let mut stream = sandbox.within(|| TcpStream::connect(server)).unwrap();
    stream.write_all(b"in").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // It says its port first.
    assert!(answer.starts_with(&8080u16.to_be_bytes()), "{answer:?}");
}

#[test]
fn a_network_of_other_users_is_left_alone_and_said_so() {
    let one = id();
    for (mode, expected) in [("direct", Ok(Route::Direct)), ("refuse", Err(refusal()))] {
        let sandbox = Sandbox::new();
        let (_cgroup, app) = app_of_other_users(&sandbox, &one);
        let mirror = app.serve((SERVER_V4, 7003).into());
        let culvert = sandbox.culvert(&relayed(&[&one], &format!("on_relay_failure = \"{mode}\"")));
        log_has(&culvert, "belongs to a user namespace");
        let connected = app.tcp(mirror).connect(mirror);
        assert_eq!(connected.is_ok(), expected.is_ok(), "{mode}: {connected:?}");
        assert_eq!(
            culvert.log().matches("belongs to a user namespace").count(),
            1,
            "{mode}"
        );
    }
}

#[test]
fn after_a_kill_the_fail_mode_decides_in_a_container_too() {
    let one = id();
    for (mode, expected) in [("direct", Ok(Route::Direct)), ("refuse", Err(refusal()))] {
        let sandbox = Sandbox::new();
        let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
        let (_container, app) = running(&sandbox, &one);
        let mut culvert =
            sandbox.culvert(&relayed(&[&one], &format!("on_relay_failure = \"{mode}\"")));
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
        culvert.kill();
        eventually("the end of the hooks", || {
            (app.probe(mirror.address()) == expected).then_some(())
        });
        let detached = sandbox.detach();
        assert_eq!(app.probe(mirror.address()), Ok(Route::Direct), "{detached}");
    }
}

#[test]
fn a_container_is_found_by_the_name_that_its_runtime_knows() {
    let [one, unknown] = [id(), id()];
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    engine::knows(&sandbox, engine::DOCKER, &[("web", &one), ("db", &unknown)]);
    let culvert = sandbox.culvert(&relayed(&["web", "nobody"], ""));
    assert!(
        culvert.log().contains("\"web\": it does not run"),
        "{}",
        culvert.log()
    );
    assert!(
        culvert.log().contains("\"nobody\": no runtime knows it"),
        "{}",
        culvert.log()
    );
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    await_capture(&app, mirror.address());
    let status = culvert.status();
    let [known] = &status["containers"].as_array().unwrap()[..] else {
        panic!("{status}");
    };
    assert_eq!(known["container"], "web");
    assert_eq!(known["id"], one);
    assert!(
        known["listener_v4"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert!(known["problem"].is_null(), "{known}");
    // Made anew it has another id, and the same name.
    let other = id();
    engine::knows(&sandbox, engine::DOCKER, &[("web", &other)]);
    drop((app, container, netns));
    let netns = network(&sandbox, 2);
    let container = Container::alone(&sandbox, &other, &netns);
    await_capture(&container.start_app(), mirror.address());
}

#[test]
fn what_may_be_several_containers_is_none_and_said_so() {
    let [one, other] = [id(), id()];
    let sandbox = Sandbox::new();
    engine::knows(&sandbox, engine::DOCKER, &[("web", &one)]);
    engine::knows(&sandbox, engine::PODMAN, &[("web", &other)]);
    let alike = [one.replace("5a5a", "a5a5"), one.clone()];
    let cgroups = alike
        .iter()
        .map(|id| sandbox.cgroup().child(&format!("docker-{id}.scope")))
        .collect::<Vec<_>>();
    let culvert = sandbox.culvert(&relayed(&["web", &one[..12]], ""));
    for part in [
        format!("{one} of docker or {other} of podman; name it by id"),
        format!(
            "it may be any of {}, {}; write more digits",
            alike[1], alike[0]
        ),
    ] {
        assert!(culvert.log().contains(&part), "{part}: {}", culvert.log());
    }
    drop(cgroups);
}

#[test]
fn a_runtime_that_hangs_keeps_nobody_waiting() {
    let one = id();
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    engine::hangs(&sandbox, engine::DOCKER);
    engine::knows(&sandbox, engine::PODMAN, &[("web", &one)]);
    let netns = network(&sandbox, 1);
    let container = Container::alone(&sandbox, &one, &netns);
    let app = container.start_app();
    container.pid();
    // The other name has the runtimes asked again and again.
    let culvert = sandbox.culvert(&relayed(
        &["web", "nobody"],
        "on_relay_failure = \"refuse\"",
    ));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let said = "that answers knows it (yet; /run/docker.sock: no answer)";
    assert!(culvert.log().contains(said), "{}", culvert.log());
    // A question takes 500 ms, of each second; who asks for the status waits for none.
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let asked = Instant::now();
        culvert.status();
        slowest = slowest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
}
