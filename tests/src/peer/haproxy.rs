//! `HAProxy`, doing what a test says.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::process::{Running, write_private};

/// Runs a `HAProxy` of one process, by a command that gets its arguments; `sections` follow one with defaults.
pub fn haproxy(file: &Path, sections: &str, command: &mut Command) -> Running {
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n{sections}"
    );
    write_private(file, &text);
    Running::start(command.args(["-db", "-f"]).arg(file).stderr(Stdio::null()))
}
