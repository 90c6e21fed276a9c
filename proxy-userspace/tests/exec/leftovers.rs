//! Processes that outlive the command.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Running, culvert, culvert_sh, eventually, gone, state};

tests![
    they_may_end_by_themselves,
    who_ignores_sigterm_is_killed,
    a_daemon_and_a_stopped_process_are_no_exception,
    they_are_waited_for_on_demand,
    waiting_ends_on_a_signal,
];

/// A shell loop that ends only by a signal and closes nothing.
const LOOP: &str = "while :; do sleep 0.01; done";

fn they_may_end_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!(
        "(trap 'echo term; exit' TERM; : > $0; {LOOP}) & while [ ! -e $0 ]; do sleep 0.01; done; exit 5"
    );
    let started = Instant::now();
    let arguments = ["sh", "-c", &script, ready.to_str().unwrap()];
    let mut running = Running::start(culvert(&arguments));
    assert_eq!(running.line(), "term");
    assert_eq!(running.child.wait().unwrap().code(), Some(5));
    assert!(started.elapsed() < DEADLINE);
    assert!(!running.cgroup().exists());
}

fn who_ignores_sigterm_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!(
        "(trap '' TERM; : > $0; {LOOP}) & echo $!; while [ ! -e $0 ]; do sleep 0.01; done; exit 3"
    );
    let arguments = ["sh", "-c", &script, ready.to_str().unwrap()];
    let mut running = Running::start(culvert(&arguments));
    let leftover = running.pid();
    let started = Instant::now();
    assert_eq!(running.child.wait().unwrap().code(), Some(3));
    assert!(gone(leftover));
    assert!(
        started.elapsed() > Duration::from_secs(1),
        "it had its grace"
    );
    assert!(!running.cgroup().exists());
}

fn a_daemon_and_a_stopped_process_are_no_exception() {
    let mut running = Running::start(culvert_sh(
        "setsid sleep 1000 & daemon=$!; sleep 1000 & kill -STOP $!; echo $daemon; echo $!",
    ));
    let (daemon, stopped) = (running.pid(), running.pid());
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(gone(daemon));
    assert!(gone(stopped));
    assert!(!running.cgroup().exists());
}

fn they_are_waited_for_on_demand() {
    let script = "(while [ ! -e \"$0\" ]; do sleep 0.01; done; echo late) & exit 9";
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let arguments = ["--wait", "sh", "-c", script, go.to_str().unwrap()];
    let mut running = Running::start(culvert(&arguments));
    let cgroup = running.cgroup();
    eventually("the shell has ended", || {
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        // Only the loop, and the sleep it runs, have no parent in culvert any more.
        !procs.is_empty()
            && procs.lines().all(|pid| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
                status.is_ok_and(|status| !status.contains(&format!("PPid:\t{}\n", running.id())))
            })
    });
    assert_ne!(state(running.id()), 'X');
    std::fs::write(&go, "").unwrap();
    assert_eq!(running.line(), "late");
    assert_eq!(running.child.wait().unwrap().code(), Some(9));
    assert!(!cgroup.exists());
}

fn waiting_ends_on_a_signal() {
    let script = "sleep 1000 & echo $!; exit 4";
    let mut running = Running::start(culvert(&["--wait", "sh", "-c", script]));
    let leftover = running.pid();
    running.signal(Signal::SIGTERM);
    // Where the shell had not exited yet, the signal was passed on to it instead.
    eventually("culvert has ended", || {
        running.signal(Signal::SIGTERM);
        running.child.try_wait().unwrap().is_some()
    });
    assert!(gone(leftover));
    assert!(!running.cgroup().exists());
}
