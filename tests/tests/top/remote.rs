//! From afar, by SSH: whatever the terminal is there.

use std::{fs, process::Command};

use culvert_tests::{
    Culvert, Sandbox, eventually,
    peer::{Server, ssh_options, sshd},
    process::{Running, attempt, culvert_binary},
    rules::ALL,
    sandbox::SERVER_V4,
    screen::{Screen, TERM},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::DOWN;

const PORT: u16 = 22;

/// A server beside the daemon.
fn start(sandbox: &Sandbox) -> Running {
    let mut shell = sandbox.command_beside_daemons("unshare");
    let server = sshd(sandbox.directory(), PORT, &mut shell);
    eventually("the SSH server", || {
        let said = attempt(ssh(sandbox).arg("true"));
        said.status.success().then_some(())
    });
    server
}

fn ssh(sandbox: &Sandbox) -> Command {
    let mut ssh = sandbox.outsider("ssh");
    ssh.args(ssh_options(sandbox.directory()));
    ssh.args(["-tt", "root@127.0.0.1"]);
    ssh
}

fn line(culvert: &Culvert<'_>) -> String {
    let admin = culvert.admin().display();
    format!("{} top --admin {admin}", culvert_binary().display())
}

/// Processes that run it.
fn running(sandbox: &Sandbox) -> Vec<u32> {
    let mut pids = sandbox.daemon_cgroup().processes();
    pids.retain(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        program.ends_with(b"culvert") && words.next() == Some(b"top")
    });
    pids
}

#[test]
fn it_is_as_at_home_on_every_terminal() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let sockets = [(); 2].map(|()| {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(1, 1000).unwrap();
        socket
    });
    let _sshd = start(&sandbox);
    for terminal in ["xterm-256color", "linux", "vt100"] {
        let mut shell = ssh(&sandbox);
        let mut screen = Screen::start(shell.env(TERM, terminal), 80, 24);
        screen.await_text("# ");
        screen.type_in(&format!("{}\r", line(&culvert)));
        screen.await_text("Connections 2, by rate");
        screen.type_in(&format!("b{DOWN}"));
        screen.await_text("by bytes");
        let second = culvert.status()["connections"]["accepted"].to_string();
        eventually("the second line", || {
            screen.await_text("by bytes");
            let line = screen.highlighted()?;
            line.contains("copy").then_some(())
        });
        screen.type_in("\r");
        screen.await_text(&format!("Connection {second} "));
        screen.type_in("\x1b");
        screen.await_no_text("backlog");
        sockets[0].exchange(1, 1_000_000).unwrap();
        let is_plain = terminal != "xterm-256color";
        screen.await_text(if is_plain { "#" } else { "█" });
        screen.resize(100, 30);
        screen.await_seen("a screen of thirty lines", |text| {
            let last = text.lines().nth(29)?;
            last.contains("? help").then_some(())
        });
        let shown = screen.await_seen("the screen", |text| Some(text.to_owned()));
        assert_eq!(shown.is_ascii(), is_plain, "{terminal}: {shown}");
        screen.type_in("q");
        screen.await_no_text("Connections");
        // What is typed is shown, and whole lines are read: as before.
        screen.type_in("stty -a; echo $TERM $((40 + 2))\r");
        screen.await_text(&format!("{terminal} 42"));
        let shown = screen.await_seen("its state", |text| Some(text.to_owned()));
        for mode in ["icanon", "echo", "isig", "opost", "icrnl"] {
            let mut words = shown.split_ascii_whitespace();
            assert!(
                words.any(|word| word == mode),
                "{terminal}: {mode} in {shown}"
            );
        }
        screen.type_in("exit\r");
        let (_, is_restored) = screen.end();
        assert!(is_restored, "{terminal}");
    }
    for socket in sockets {
        socket.close();
    }
}

/// Nobody is left who asks the daemon every second.
#[test]
fn it_ends_with_the_connection() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let _sshd = start(&sandbox);
    for is_here in [true, false] {
        let mut shell = ssh(&sandbox);
        let mut screen = Screen::start(shell.arg(format!("exec {}", line(&culvert))), 80, 24);
        screen.await_text("Connections 0");
        let pids = running(&sandbox);
        assert_eq!(pids.len(), 1, "{pids:?}");
        if is_here {
            screen.signal(Signal::SIGKILL);
        } else {
            kill(Pid::from_raw(session(pids[0])), Signal::SIGKILL).unwrap();
        }
        screen.end();
        eventually("its end", || running(&sandbox).is_empty().then_some(()));
    }
    assert!(!culvert.log().contains("WARN"), "{}", culvert.log());
}

/// The server's process of the session that a process runs in.
fn session(pid: u32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent: i32 = parent.unwrap().trim().parse().unwrap();
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    assert_eq!(name, "sshd\n");
    parent
}
