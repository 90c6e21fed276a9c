//! Starting other programs: every failure names the whole command line, so that it can be typed again.
//!
//! Sits below all other modules and knows none of them.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Variables that `cargo run` sets for the program it starts. Handed on, they would make Cargo believe that
/// build scripts which watch them are out of date.
const LEAKED: [&str; 3] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_"];

/// The Cargo that runs this program, or the one in `PATH`, working in `folder`.
pub(crate) fn cargo(folder: &Path) -> Command {
    program(
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        folder,
    )
}

/// What another user's Cargo needs to be this one, with what it has fetched: `NAME=VALUE` each.
pub(crate) fn cargo_variables() -> Vec<String> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let cargo = env::var_os("CARGO").map(PathBuf::from);
    let rustc = cargo.as_ref().map(|cargo| cargo.with_file_name("rustc"));
    [("CARGO_HOME", home), ("CARGO", cargo), ("RUSTC", rustc)]
        .into_iter()
        .filter_map(|(name, path)| Some(format!("{name}={}", path?.display())))
        .collect()
}

/// A program that is Cargo or starts it, working in `folder`.
pub(crate) fn program(name: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(folder);
    for (name, _) in env::vars_os() {
        let leaked = |name: &str| LEAKED.iter().any(|prefix| name.starts_with(prefix));
        if name.to_str().is_some_and(leaked) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command whose output the user sees as it comes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| not_started(command))?;
    if !status.success() {
        bail!("{} ({status})", line(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; its standard error becomes part of the error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| not_started(command))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        bail!("{} ({status}): {}", line(command), said.trim());
    }
    String::from_utf8(stdout).with_context(|| format!("output of {}", line(command)))
}

/// Whether there is such a program.
pub(crate) fn exists(name: &str) -> bool {
    find(name).is_some()
}

/// The program called `name` in `PATH`, or among the administrator's, which a user's `PATH` leaves out; or, with a whole path, a
/// file.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

fn not_started(command: &Command) -> String {
    format!("cannot start {}", line(command))
}
