//! How a command ends, and what is left then.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    process::Stdio,
};

use culvert_tests::{eventually, process::attempt};
use nix::sys::signal::{Signal, kill};

use super::scene::{Scene, is_alive, pid, stdout, text};

#[test]
fn the_exit_status_is_that_of_the_command() {
    let scene = Scene::new();
    for code in [0, 1, 7, 125, 255] {
        let ended = scene.shell(&format!("exit {code}"));
        assert_eq!(ended.status.code(), Some(code));
        assert_eq!(text(&ended.stderr), "");
    }
    for signal in [
        Signal::SIGTERM,
        Signal::SIGKILL,
        Signal::SIGHUP,
        Signal::SIGINT,
    ] {
        let ended = scene.shell(&format!("kill -{} $$", signal as i32));
        assert_eq!(ended.status.signal(), Some(signal as i32), "{signal}");
    }
}

#[test]
fn a_command_that_cannot_be_run_ends_as_in_a_shell() {
    let scene = Scene::new();
    let missing = attempt(scene.exec().arg("no-such-command"));
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(
        text(&missing.stderr),
        "culvert: no-such-command: command not found\n"
    );
    let file = scene.sandbox.directory().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let unfit = attempt(scene.exec().arg(&file));
    assert_eq!(unfit.status.code(), Some(126));
    assert_eq!(text(&unfit.stderr).lines().count(), 1, "{unfit:?}");
}

#[test]
fn signals_are_passed_on() {
    let scene = Scene::new();
    let line = "trap 'echo USR1; exit 5' USR1; trap 'echo TERM' TERM; trap 'echo HUP' HUP; echo ready; while :; do sleep 0.01; done";
    let mut command = scene.exec();
    let mut child = command
        .args(["sh", "-c", line])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    for (signal, word) in [
        (None, "ready"),
        (Some(Signal::SIGTERM), "TERM"),
        (Some(Signal::SIGHUP), "HUP"),
        (Some(Signal::SIGUSR1), "USR1"),
    ] {
        if let Some(signal) = signal {
            kill(pid(child.id()), signal).unwrap();
        }
        assert_eq!(said.next().unwrap().unwrap(), word);
    }
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn what_the_command_leaves_behind_is_ended() {
    let scene = Scene::new();
    let ended = scene.shell("sleep 1000 >/dev/null 2>&1 & echo $!");
    let left = stdout(&ended);
    assert!(!is_alive(left.trim()), "{left}");
    // Also what ignores the first request.
    let ended = scene.shell("(trap '' TERM; exec setsid sleep 1000 >/dev/null 2>&1) & echo $!");
    let left = stdout(&ended);
    assert!(!is_alive(left.trim()), "{left}");
    scene.await_nothing_left();
}

#[test]
fn or_waited_for() {
    let scene = Scene::new();
    let line = format!("(sleep 0.3; curl -sS {}) & exit 3", scene.url());
    let ended = attempt(scene.exec_with(&["--wait"]).args(["sh", "-c", &line]));
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert_eq!(text(&ended.stdout), "page\n");
    assert_eq!(scene.proxy.requests(), [scene.web.address()]);
}

#[test]
fn a_kill_takes_the_command_along() {
    let scene = Scene::new();
    let mut command = scene.exec();
    command.args([
        "sh",
        "-c",
        "trap '' TERM HUP; setsid sleep 1000 & echo $! $$; wait",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut pids = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut pids)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    for pid in pids.split_ascii_whitespace() {
        eventually("the end of the command", || (!is_alive(pid)).then_some(()));
    }
    scene.await_nothing_left();
}

/// The command of a killed exec gets no connection past the proxy in the moment before it ends.
#[test]
fn a_kill_lets_nothing_past_the_proxy() {
    let scene = Scene::new();
    for _ in 0..10 {
        let mut command = scene.exec();
        command.args(["sh", "-c", "while :; do curl -s $0; done", &scene.url()]);
        let before = scene.proxy.requests().len();
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        eventually("requests", || {
            (scene.proxy.requests().len() > before + 3).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        scene.await_nothing_left();
    }
    let (seen, requests) = (scene.web.clients().len(), scene.proxy.requests().len());
    assert!(
        seen <= requests,
        "{seen} connections, {requests} through the proxy"
    );
}
