//! What is left after `kill -9`: nothing.

use std::{fs, process::Command};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::harness::{Running, cgroup_of, culvert, culvert_sh, eventually, gone};

tests![
    kill_9_leaves_nothing,
    it_holds_nothing_but_its_socket,
    signals_do_not_end_it,
    it_empties_only_cgroups_of_ours,
    an_empty_cgroup_of_the_dead_is_swept,
];

fn kill_9_leaves_nothing() {
    let mut running = Running::start(culvert_sh(
        "trap '' TERM INT HUP; setsid sleep 1000 & echo $!; echo $$; while :; do sleep 0.01; done",
    ));
    let (daemon, command) = (running.pid(), running.pid());
    let (reaper, cgroup) = (running.reaper(), running.cgroup());
    assert!(cgroup.exists());
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("command, daemon, reaper and cgroup are gone", || {
        gone(command) && gone(daemon) && gone(reaper) && !cgroup.exists()
    });
}

fn it_holds_nothing_but_its_socket() {
    // A file that was inherited from the caller is no business of the reaper either.
    let exe = std::env::current_exe().unwrap();
    let mut shell = Command::new("bash");
    let script = "exec 9</dev/zero \"$0\" exec sh -c 'echo ready; exec sleep 1000'";
    shell.args(["-c", script]).arg(exe);
    let mut running = Running::start(shell);
    assert_eq!(running.line(), "ready");
    let reaper = running.reaper();
    let files = || -> Vec<(String, String)> {
        let fds = fs::read_dir(format!("/proc/{reaper}/fd")).unwrap();
        let mut files: Vec<_> = fds
            .flatten()
            .map(|fd| {
                let target = fs::read_link(fd.path()).unwrap_or_default();
                let name = fd.file_name().to_string_lossy().into_owned();
                (name, target.to_string_lossy().into_owned())
            })
            .collect();
        files.sort();
        files
    };
    eventually("the inherited file is closed", || files().len() == 3);
    let files = files();
    assert!(files[0].1.starts_with("socket:"), "{files:?}");
    assert_eq!(files[1].1, "/dev/null");
    assert_eq!(files[2].1, "/dev/null");
    let environment = fs::read(format!("/proc/{reaper}/environ")).unwrap();
    assert_eq!(environment, b"");
    let session = |pid: i32| nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap();
    assert_eq!(session(reaper).as_raw(), reaper);
    let cgroup = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(
        cgroup(&reaper.to_string()),
        cgroup(&running.id().to_string())
    );
}

fn signals_do_not_end_it() {
    let mut running = Running::start(culvert_sh("trap '' INT; echo ready; exec sleep 1000"));
    assert_eq!(running.line(), "ready");
    let (reaper, cgroup) = (running.reaper(), running.cgroup());
    killpg(Pid::from_raw(running.id()), Signal::SIGINT).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(Pid::from_raw(reaper), signal).unwrap();
    }
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("the reaper did its work all the same", || {
        gone(reaper) && !cgroup.exists()
    });
}

fn it_empties_only_cgroups_of_ours() {
    let exe = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(exe)
        .arg("__reap")
        .arg(dir.path())
        .stdin(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(dir.path().exists());
}

fn an_empty_cgroup_of_the_dead_is_swept() {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let stale = cgroup_of(dead.id());
    // Process 1 is alive: its directory is somebody else's, even if it is empty.
    let alive = cgroup_of(1);
    fs::create_dir(&stale).unwrap();
    fs::create_dir(&alive).unwrap();
    let status = culvert(&["true"]).status().unwrap();
    let kept = alive.exists();
    fs::remove_dir(&alive).unwrap();
    assert!(status.success());
    assert!(!stale.exists());
    assert!(kept);
}
