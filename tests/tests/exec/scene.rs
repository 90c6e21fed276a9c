//! What the tests of `exec` have in common: a web server, a proxy, and a command line.

use std::{
    fs,
    process::{Command, Output},
};

use culvert_tests::{
    Sandbox, eventually,
    peer::{Server, Socks5},
    process::{attempt, without_invoker},
    sandbox::SERVER_V4,
};
use nix::unistd::Pid;

/// A sandbox with a web server and a proxy.
pub(crate) struct Scene {
    pub(crate) web: Server,
    pub(crate) proxy: Socks5,
    pub(crate) sandbox: Sandbox,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new();
        Self {
            web: sandbox.within(|| Server::web((SERVER_V4, 0))),
            proxy: sandbox.within(|| Socks5::start(([127, 0, 0, 1], 0))),
            sandbox,
        }
    }

    /// Where the page is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.web.address())
    }

    /// `culvert exec` through the proxy, with the command still to be named.
    pub(crate) fn exec(&self) -> Command {
        self.exec_with(&[])
    }

    pub(crate) fn exec_with(&self, options: &[&str]) -> Command {
        let via = format!("socks5://{}", self.proxy.address());
        exec(&self.sandbox, &[&["--via", &via], options].concat())
    }

    /// Runs a line of shell behind the proxy.
    pub(crate) fn shell(&self, line: &str) -> Output {
        attempt(self.exec().args(["sh", "-c", line]))
    }

    /// Waits until no cgroup and no process is left.
    pub(crate) fn await_nothing_left(&self) {
        let cgroup = self.sandbox.daemon_cgroup();
        eventually("nothing of culvert", || {
            (cgroup.children().is_empty() && cgroup.processes().is_empty()).then_some(())
        });
    }
}

/// `culvert exec` as root without sudo, and with these options.
pub(crate) fn exec(sandbox: &Sandbox, options: &[&str]) -> Command {
    let mut command = sandbox.culvert_command();
    without_invoker(&mut command);
    command.arg("exec").args(options).arg("--");
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that succeeded and had nothing to complain about.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

/// Whether a process is there, and not only its memory in its parent.
pub(crate) fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// A process id as system calls want it.
pub(crate) fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap())
}
