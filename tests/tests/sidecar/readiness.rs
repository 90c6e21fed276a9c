//! What probes are told, and what is said where there can be no sidecar.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
};

use culvert_tests::{
    Sandbox,
    app::Route,
    container::{Container, Pod, View, capability},
    eventually,
    kernel::take_off,
    process::{attempt, culvert_binary},
};
use nix::sys::signal::{Signal, kill};

use super::{mirror, rules};

const HEALTH: &str = "health = \"9466\"";

/// What is answered at the port for probes: status and text.
fn probe(sandbox: &Sandbox, path: &str) -> Option<(u16, String)> {
    sandbox.within(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9466)).ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: pod\r\n\r\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    })
}

fn await_ready(sandbox: &Sandbox) {
    eventually("readiness", || {
        (probe(sandbox, "/readyz")?.0 == 200).then_some(())
    });
}

#[test]
fn ready_is_what_the_kernel_has_attached() {
    let sandbox = Sandbox::new();
    let pod = Pod::new(&sandbox);
    let container = pod.sidecar("sidecar", &rules(HEALTH, "direct"));
    let sidecar = container.start();
    sidecar.await_ready();
    let ready = "ready: connections are captured\n".to_owned();
    assert_eq!(sidecar.asks_ready(), (true, ready.clone()));
    assert_eq!(probe(&sandbox, "/readyz"), Some((200, ready)));
    assert_eq!(probe(&sandbox, "/healthz"), Some((200, "ok\n".to_owned())));
    assert_eq!(probe(&sandbox, "/metrics").unwrap().0, 404);
    assert_eq!(probe(&sandbox, "/v1/status").unwrap().0, 404);

    take_off(sidecar.pid(), "connect4");
    let (is_ready, why) = sidecar.asks_ready();
    assert!(
        !is_ready && why.contains("not ready: the program connect4"),
        "{why}"
    );
    let (status, why) = probe(&sandbox, "/readyz").unwrap();
    assert!(status == 503 && why.contains("connect4"), "{status} {why}");
    assert_eq!(probe(&sandbox, "/healthz").unwrap().0, 200);
}

#[test]
fn a_sidecar_that_hangs_is_not_ready() {
    let sandbox = Sandbox::new();
    let pod = Pod::new(&sandbox);
    let container = pod.sidecar("sidecar", &rules(HEALTH, "direct"));
    let sidecar = container.start();
    sidecar.await_ready();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(sidecar.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut ask = sandbox.outsider(culvert_binary());
    let asked = attempt(ask.args(["ready", "--health", "127.0.0.1:9466"]));
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(1), "{said}");
    assert!(said.contains("has not answered"), "{said}");
    kill(pid, Signal::SIGCONT).unwrap();
    let mut ask = sandbox.outsider(culvert_binary());
    ask.args(["ready", "--wait", "20s", "--health", "127.0.0.1:9466"]);
    assert!(attempt(&mut ask).status.success());
}

#[test]
fn nowhere_to_write_is_no_hindrance() {
    let sandbox = Sandbox::new();
    let mirror = mirror(&sandbox);
    let pod = Pod::new(&sandbox);
    let mut container = pod.sidecar("sidecar", &rules(HEALTH, "refuse"));
    container.spec.writable = None;
    container.spec.capabilities.push(capability::SYS_ADMIN);
    let sidecar = container.start();
    await_ready(&sandbox);
    let app = pod.app("app");
    assert_eq!(app.start_app().probe(mirror.address()), Ok(Route::Relayed));
    assert!(
        sidecar.log().contains("no `culvert status`"),
        "{}",
        sidecar.log()
    );
}

#[test]
fn nobody_answers_where_there_is_none() {
    let sandbox = Sandbox::new();
    for arguments in [
        ["--health", "127.0.0.1:9466"],
        ["--admin", "/nonexistent/admin.sock"],
    ] {
        let mut ask: Command = sandbox.outsider(culvert_binary());
        let asked = attempt(ask.arg("ready").args(arguments));
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(said.contains(arguments[1]), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// What a sidecar says that cannot be one.
fn refusal_of(rules: &str, change: impl FnOnce(&mut Container<'_>)) -> (Option<i32>, String) {
    let sandbox = Sandbox::new();
    let pod = Pod::new(&sandbox);
    let mut container = pod.sidecar("sidecar", rules);
    change(&mut container);
    let (code, said) = container.run();
    assert_eq!(said.lines().count(), 1, "{said}");
    (code, said)
}

#[test]
fn what_is_missing_is_said() {
    let plain = rules("", "direct");
    let (code, said) = refusal_of(&plain, |it| it.spec.user_namespace = true);
    assert!(code == Some(3) && said.contains("user namespace"), "{said}");
    let (code, said) = refusal_of(&plain, |it| it.spec.view = View::Own);
    let wanted = said.contains("mount the host's") && said.contains("--pid 1");
    assert!(code == Some(2) && wanted, "{said}");
    let (code, said) = refusal_of(&plain, |it| it.spec.capabilities.retain(|it| *it != 39));
    assert!(code == Some(3) && said.contains("CAP_BPF"), "{said}");
    let (code, said) = refusal_of(&rules("", "refuse"), |_| {});
    assert!(code == Some(3) && said.contains("CAP_SYS_ADMIN"), "{said}");
    let (code, said) = refusal_of(&plain, |it| {
        it.spec.command.extend(["--pid".into(), "1".into()]);
    });
    assert!(code == Some(2) && said.contains("own cgroup"), "{said}");
    let arrivals = "[[reverse]]\nname = \"in\"\nlisten = \"*:80\"\nvia = \"original\"\non_relay_failure = \"refuse\"\n";
    let (code, said) = refusal_of(arrivals, |_| {});
    assert!(code == Some(2) && said.contains("[[reverse]]"), "{said}");
    let transits = "[[gateway]]\nname = \"through\"\ninterface = \"eth0\"\nvia = \"original\"\n";
    let (code, said) = refusal_of(transits, |_| {});
    assert!(code == Some(2) && said.contains("[[gateway]]"), "{said}");
}
