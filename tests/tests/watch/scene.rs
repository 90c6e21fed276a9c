//! What the tests of `watch` have in common: a command line, and what it tells.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use culvert_tests::{
    App, Sandbox, eventually,
    process::{Running, app_binary, without_invoker},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What one `culvert watch` writes.
pub(crate) struct Told {
    file: PathBuf,
}

impl Told {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = sandbox.directory().join(format!("told-{number}"));
        Self { file }
    }

    /// `culvert watch`, which writes here.
    pub(crate) fn command(&self, sandbox: &Sandbox, options: &[&str]) -> Command {
        let mut command = sandbox.culvert_command();
        let file = self.file.to_str().unwrap();
        without_invoker(&mut command)
            .args(["watch", "--json", "--output", file])
            .args(options);
        command
    }

    /// An app as the command that is watched.
    pub(crate) fn app(&self, sandbox: &Sandbox, options: &[&str]) -> App {
        App::start(self.command(sandbox, options).arg("--").arg(app_binary()))
    }

    /// A watch that is there when this returns.
    pub(crate) fn start(&self, sandbox: &Sandbox, options: &[&str]) -> Running {
        let running = Running::start(&mut self.command(sandbox, options));
        eventually("a watch", || self.of("watching").pop());
        running.ended_by(Signal::SIGINT)
    }

    /// All that it has told of one kind.
    pub(crate) fn of(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        // The last line may not be whole yet.
        let lines = text.split_inclusive('\n');
        lines
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|told: &Value| told["event"] == event)
            .collect()
    }

    /// The connections to a destination, once there are so many.
    pub(crate) fn connections(&self, to: SocketAddr, count: usize) -> Vec<Value> {
        let to = to.to_string();
        eventually(&format!("{count} connections to {to}"), || {
            let mut told = self.of("connection");
            told.retain(|told| told["destination"] == to);
            (told.len() >= count).then_some(told)
        })
    }

    /// The one connection to a destination.
    pub(crate) fn connection(&self, to: SocketAddr) -> Value {
        let mut told = self.connections(to, 1);
        assert_eq!(told.len(), 1, "{told:#?}");
        told.remove(0)
    }

    /// The summary, with which it ends.
    pub(crate) fn summary(&self) -> Value {
        eventually("a summary", || self.of("summary").pop())
    }
}

/// `/path` of a cgroup of the sandbox's in the hierarchy.
pub(crate) fn in_hierarchy(sandbox: &Sandbox) -> String {
    format!("/{}", sandbox.cgroup().name())
}
