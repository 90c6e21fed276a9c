//! Redis, keeping what a test gives it in memory only.

use std::{path::Path, process::Command};

use crate::process::Running;

/// Runs a Redis that listens on a port of every address, by a command that gets its arguments.
pub fn redis(directory: &Path, port: u16, command: &mut Command) -> Running {
    let place = directory.display().to_string();
    let port = port.to_string();
    let log = format!("{place}/redis-{port}.log");
    let settings = [
        ("port", &*port),
        ("dir", &place),
        ("logfile", &log),
        ("bind", "0.0.0.0"),
        ("protected-mode", "no"),
        ("save", ""),
        // A replica is not to wait for others to come.
        ("repl-diskless-sync-delay", "0"),
        // DEBUG DIGEST tells whether two have the same data.
        ("enable-debug-command", "yes"),
    ];
    for (name, value) in settings {
        command.arg(format!("--{name}")).arg(value);
    }
    Running::start(command)
}
