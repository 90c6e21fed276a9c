//! Running the program under test and looking at what became of it.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_userspace::cgroup::Cgroup2;

use crate::driver;

/// Enough on a busy machine for anything that does happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test with options and a command.
pub(crate) fn culvert(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(driver::SUBCOMMAND).args(args);
    for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
        command.env_remove(variable);
    }
    command
}

/// The program under test with a shell script for a command.
pub(crate) fn culvert_sh(script: &str) -> Command {
    culvert(&["sh", "-c", script])
}

/// What it wrote to standard output.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote to standard error.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running program under test, in a process group of its own, whose output is read line by line.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line of the command; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next line, which is the id of a process.
    pub(crate) fn pid(&mut self) -> i32 {
        let line = self.line();
        line.parse().unwrap_or_else(|_| panic!("no pid: {line:?}"))
    }

    /// Signals culvert alone.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).unwrap();
    }

    pub(crate) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The cgroup of its command.
    pub(crate) fn cgroup(&self) -> PathBuf {
        cgroup_of(self.child.id())
    }

    /// Its reaper.
    pub(crate) fn reaper(&self) -> i32 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.id()));
        let is_reaper = |pid: &i32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim_end() == "culvert-reaper")
        };
        let mut found = None;
        eventually("the reaper has its name", || {
            let children = children.as_ref().unwrap().split_ascii_whitespace();
            found = children.map(|pid| pid.parse().unwrap()).find(is_reaper);
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test leaves nothing behind: the reaper sees to it.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The cgroup a culvert with this process id makes.
pub(crate) fn cgroup_of(pid: u32) -> PathBuf {
    let own = Cgroup2::find().unwrap().own_dir().unwrap();
    own.join(format!("culvert-exec-{pid}"))
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter in `/proc/PID/stat`; `X` when the process is gone. A zombie is as good as gone.
pub(crate) fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("X", |(_, rest)| rest);
    match after_name.chars().next() {
        None | Some('Z') => 'X',
        Some(letter) => letter,
    }
}

pub(crate) fn gone(pid: i32) -> bool {
    state(pid) == 'X'
}

/// One line of `/proc/PID/status`, without its name.
pub(crate) fn status_line(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}
