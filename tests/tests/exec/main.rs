//! `culvert exec`: one command behind a proxy, which is otherwise as if it had been started without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod ending;
mod privileges;
mod scene;
mod terminal;

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    process::Stdio,
    sync::mpsc,
    thread,
    time::Duration,
};

use culvert_tests::{
    App, Payload,
    app::Route,
    eventually,
    peer::{Server, Socks5},
    process::{app_binary, attempt, culvert_binary, write_private},
    record::CloseRecord,
    sandbox::{CLOSED_PORT, SERVER_V4},
};
use nix::sys::signal::{Signal, kill};

use scene::{Scene, exec, pid, stdout, text};

#[test]
fn a_command_goes_through_the_proxy() {
    let scene = Scene::new();
    let answer = attempt(scene.exec().args(["curl", "-sS", &scene.url()]));
    assert_eq!(stdout(&answer), "page\n");
    assert_eq!(scene.proxy.requests(), [scene.web.address()]);
}

#[test]
fn so_does_everything_that_it_starts() {
    let scene = Scene::new();
    let curl = format!("curl -sS {}", scene.url());
    let line = format!("{curl} & sh -c 'setsid {curl}; {curl} & wait'; ( ( {curl} ) ) & wait");
    assert_eq!(stdout(&scene.shell(&line)), "page\n".repeat(4));
    assert_eq!(scene.proxy.requests(), [scene.web.address(); 4]);
}

/// A program that no preloaded library would reach.
#[test]
fn so_does_a_static_program() {
    let scene = Scene::new();
    let mirror = scene.sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let app = App::start(scene.exec().arg(app_binary()));
    assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    let socket = app.tcp(mirror.address());
    socket.connect(mirror.address()).unwrap();
    assert_eq!(socket.peer(), Ok(mirror.address()));
    eventually("both connections at the proxy", || {
        (scene.proxy.requests() == [mirror.address(); 2]).then_some(())
    });
    // To be told to end, and not killed with its cgroup left to the reaper.
    kill(pid(app.pid()), Signal::SIGTERM).unwrap();
    scene.await_nothing_left();
}

#[test]
fn loopback_is_direct() {
    let scene = Scene::new();
    let web = scene.sandbox.within(|| Server::web(([127, 0, 0, 1], 0)));
    let url = format!("http://{}/", web.address());
    assert_eq!(
        stdout(&attempt(scene.exec().args(["curl", "-sS", &url]))),
        "page\n"
    );
    assert_eq!(scene.proxy.requests(), []);
}

#[test]
fn standard_input_and_output_are_the_commands_own() {
    let scene = Scene::new();
    let bytes = Payload { seed: 5 }.prefix(1 << 20);
    let mut command = scene.exec();
    let mut child = command
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let returned = thread::scope(|scope| {
        let sent = bytes.clone();
        scope.spawn(move || input.write_all(&sent).unwrap());
        let mut returned = Vec::new();
        output.read_to_end(&mut returned).unwrap();
        returned
    });
    assert!(returned == bytes, "{} bytes came back", returned.len());
    assert!(child.wait().unwrap().success());
}

#[test]
fn each_connection_can_be_recorded() {
    let scene = Scene::new();
    let log = scene.sandbox.directory().join("access.log");
    let mut command = scene.exec_with(&["--access-log", log.to_str().unwrap()]);
    assert_eq!(
        stdout(&attempt(command.args(["curl", "-sS", &scene.url()]))),
        "page\n"
    );
    let records: Vec<CloseRecord> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(records[0].orig_dst, Some(scene.web.address()));
    assert_eq!(records[0].peer, Some(scene.proxy.address()));
    assert_eq!(records[0].comm, "curl");

    let mut command = scene.exec_with(&["--access-log", "-"]);
    let ended = attempt(command.args(["curl", "-sS", &scene.url()]));
    assert_eq!(text(&ended.stdout), "page\n");
    let lines = text(&ended.stderr);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains(&scene.web.address().to_string()), "{lines}");
}

#[test]
fn rules_of_a_file_hold_for_the_command() {
    let scene = Scene::new();
    let other = scene.sandbox.within(|| Server::web((SERVER_V4, 0)));
    let file = scene.sandbox.directory().join("rules.toml");
    write_private(
        &file,
        &format!(
            "[upstream.proxy]\nurl = \"socks5://{}\"\n\
             [[forward]]\nname = \"no\"\nmatch = {{ port = {} }}\nvia = \"refuse\"\n\
             [[forward]]\nname = \"yes\"\nmatch = {{ port = \"1-65535\" }}\nvia = \"proxy\"\n",
            scene.proxy.address(),
            other.address().port(),
        ),
    );
    let curl = |address: SocketAddr| {
        let mut command = exec(&scene.sandbox, &["--config", file.to_str().unwrap()]);
        attempt(command.args(["curl", "-sS", &format!("http://{address}/")]))
    };
    assert_eq!(stdout(&curl(scene.web.address())), "page\n");
    // curl's number for a connection that was refused.
    assert_eq!(curl(other.address()).status.code(), Some(7));
    assert_eq!(scene.proxy.requests(), [scene.web.address()]);
}

#[test]
fn commands_at_the_same_time_do_not_see_each_other() {
    let scenes = Scene::new();
    let other = scenes.sandbox.within(|| Socks5::start(([127, 0, 0, 1], 0)));
    let via = format!("socks5://{}", other.address());
    let line = format!("for i in 1 2 3 4 5 6; do curl -sS {}; done", scenes.url());
    let mut commands = [
        scenes.exec(),
        exec(&scenes.sandbox, &["--via", &via]),
        exec(&scenes.sandbox, &["--via", &via]),
    ];
    thread::scope(|scope| {
        for command in &mut commands {
            let line = &line;
            scope.spawn(move || {
                let said = stdout(&attempt(command.args(["sh", "-c", line])));
                assert_eq!(said, "page\n".repeat(6));
            });
        }
    });
    assert_eq!(scenes.proxy.requests().len(), 6);
    assert_eq!(other.requests().len(), 12);
}

#[test]
fn one_exec_inside_another_is_a_chain() {
    let scene = Scene::new();
    let inner_proxy = scene.sandbox.within(|| Socks5::start((SERVER_V4, 0)));
    let via = format!("socks5://{}", inner_proxy.address());
    let mut command = scene.exec();
    command
        .arg(culvert_binary())
        .args(["exec", "--via", &via, "--", "curl", "-sS", &scene.url()]);
    assert_eq!(stdout(&attempt(&mut command)), "page\n");
    assert_eq!(inner_proxy.requests(), [scene.web.address()]);
    assert_eq!(scene.proxy.requests(), [inner_proxy.address()]);
}

#[test]
fn without_its_proxy_nothing_gets_out() {
    let scene = Scene::new();
    let via = format!("socks5://127.0.0.1:{CLOSED_PORT}");
    let mut command = exec(&scene.sandbox, &["--via", &via]);
    let ended = attempt(command.args(["curl", "-sS", &scene.url()]));
    // curl's numbers for a reset while it connected (it looks only afterwards) and for one later.
    let codes = [Some(7), Some(56)];
    assert!(codes.contains(&ended.status.code()), "{ended:?}");
    let said = text(&ended.stderr);
    assert!(said.contains(&format!("127.0.0.1:{CLOSED_PORT}")), "{said}");
    assert!(scene.web.clients().is_empty());
}

/// As a direct connection does: the kernel sends what a closed socket has left.
#[test]
fn what_was_sent_before_the_end_arrives() {
    const LENGTH: u64 = 1 << 20;
    let scene = Scene::new();
    let (verified, outcome) = mpsc::channel();
    let server = scene.sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |mut stream| {
            // The command is long gone by then.
            thread::sleep(Duration::from_millis(300));
            let received = Payload { seed: 4 }.verify(&mut stream, LENGTH);
            verified
                .send(received.map_err(|error| error.to_string()))
                .ok();
            Ok(())
        })
    });
    let file = scene.sandbox.directory().join("upload");
    fs::write(&file, Payload { seed: 4 }.prefix(1 << 20)).unwrap();
    let line = format!(
        "cat {} > /dev/tcp/{SERVER_V4}/{}",
        file.display(),
        server.address().port()
    );
    let ended = attempt(scene.exec().args(["bash", "-c", &line]));
    assert_eq!(stdout(&ended), "");
    assert_eq!(outcome.recv().unwrap(), Ok(()));
}
