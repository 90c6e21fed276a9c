//! Start, signals and end of the command itself.

use std::{fs, os::unix::process::ExitStatusExt};

use nix::sys::signal::Signal;

use crate::harness::{
    Running, cgroup_of, culvert, culvert_sh, eventually, gone, state, stderr, stdout,
};

tests![
    the_exit_status_is_the_commands,
    a_signal_that_kills_the_command_kills_culvert,
    a_command_that_does_not_exist_is_127,
    a_command_that_cannot_run_is_126,
    the_first_instruction_runs_in_the_cgroup,
    signals_for_culvert_alone_reach_the_command,
    a_signal_for_the_whole_group_comes_once,
    real_time_signals_end_it_too,
    a_paused_command_does_not_pause_culvert,
    culvert_stops_with_its_command_and_continues_it,
    a_caller_that_ignores_its_children_gets_the_status,
];

fn the_exit_status_is_the_commands() {
    for status in [0, 1, 42, 255] {
        let output = culvert_sh(&format!("exit {status}")).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        assert_eq!(stderr(&output), "");
    }
}

fn a_signal_that_kills_the_command_kills_culvert() {
    for signal in [
        libc::SIGTERM,
        libc::SIGKILL,
        libc::SIGINT,
        libc::SIGSEGV,
        libc::SIGPIPE,
    ] {
        let output = culvert_sh(&format!("kill -{signal} $$")).output().unwrap();
        assert_eq!(output.status.signal(), Some(signal));
        assert!(!output.status.core_dumped());
    }
}

fn real_time_signals_end_it_too() {
    let signal = libc::SIGRTMIN() + 3;
    let output = culvert_sh(&format!("kill -{signal} $$")).output().unwrap();
    assert_eq!(output.status.signal(), Some(signal));
}

fn a_command_that_does_not_exist_is_127() {
    for program in [
        "no-such-program",
        "/nonexistent/program",
        "/etc/passwd/program",
    ] {
        let output = culvert(&[program]).output().unwrap();
        assert_eq!(output.status.code(), Some(127));
        assert_eq!(
            stderr(&output),
            format!("culvert: {program}: command not found\n")
        );
    }
}

fn a_command_that_cannot_run_is_126() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    let script = script.to_str().unwrap();
    let refuse = |program: &str, reason: &str| {
        let output = culvert(&[program]).output().unwrap();
        assert_eq!(output.status.code(), Some(126), "{program}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    };
    refuse("/etc/passwd", "Permission denied");
    refuse("/", "Permission denied");
    refuse(script, "Permission denied");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(script, executable).unwrap();
    refuse(script, "its interpreter does not exist");
}

fn the_first_instruction_runs_in_the_cgroup() {
    let output = culvert(&["cat", "/proc/self/cgroup"]).output().unwrap();
    let table = stdout(&output);
    let line = table.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(line.contains("/culvert-exec-"), "{line}");
    let name = line.rsplit('/').next().unwrap();
    let pid = name.trim_start_matches("culvert-exec-").parse().unwrap();
    assert!(!cgroup_of(pid).exists(), "{name} stays");
}

fn signals_for_culvert_alone_reach_the_command() {
    let mut running = Running::start(culvert_sh(
        "for s in INT QUIT TERM HUP USR1 USR2 ALRM; do trap \"echo $s\" $s; done; echo ready; \
         while :; do sleep 0.01; done",
    ));
    assert_eq!(running.line(), "ready");
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGALRM, "ALRM"),
    ] {
        running.signal(signal);
        assert_eq!(running.line(), name);
    }
}

fn a_signal_for_the_whole_group_comes_once() {
    // The command signals its own process group, of which culvert is; then somebody signals culvert alone.
    let mut running = Running::start(culvert_sh(
        "trap 'echo group' USR1; trap 'echo end; exit' USR2; kill -USR1 0; echo sent; \
         while :; do sleep 0.01; done",
    ));
    let first = [running.line(), running.line()];
    assert!(first.contains(&"group".to_owned()), "{first:?}");
    assert!(first.contains(&"sent".to_owned()), "{first:?}");
    running.signal(Signal::SIGUSR2);
    assert_eq!(running.line(), "end");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

fn a_paused_command_does_not_pause_culvert() {
    let mut running = Running::start(culvert_sh("echo $$; while :; do sleep 0.01; done"));
    let command = running.pid();
    signal(command, Signal::SIGSTOP);
    eventually("the command is stopped", || state(command) == 'T');
    // A signal in between proves that culvert has seen the stop and still works.
    running.signal(Signal::SIGTERM);
    assert_ne!(state(running.id()), 'T');
    signal(command, Signal::SIGCONT);
    assert_eq!(running.child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

fn culvert_stops_with_its_command_and_continues_it() {
    let mut running = Running::start(culvert_sh("echo $$; while :; do sleep 0.01; done"));
    let command = running.pid();
    running.signal(Signal::SIGTSTP);
    eventually("both are stopped", || {
        state(command) == 'T' && state(running.id()) == 'T'
    });
    running.signal(Signal::SIGCONT);
    eventually("both run again", || {
        state(command) != 'T' && state(running.id()) != 'T'
    });
    // And once more, so that the handlers are known to be back.
    running.signal(Signal::SIGTSTP);
    eventually("both are stopped again", || {
        state(command) == 'T' && state(running.id()) == 'T'
    });
    running.signal(Signal::SIGCONT);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.child.wait().unwrap().signal(), Some(libc::SIGTERM));
    assert!(gone(command));
}

fn a_caller_that_ignores_its_children_gets_the_status() {
    // An ignored SIGCHLD is inherited and would let the kernel swallow the end of the command.
    let exe = std::env::current_exe().unwrap();
    let script = "trap '' CHLD; exec \"$0\" exec sh -c 'exit 7'";
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(exe)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}
