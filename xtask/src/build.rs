//! Building the one binary, eBPF programs included.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{command, progress, toolchain, workspace::Workspace};

/// How the compiler optimises.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What users run.
    Release,
    /// Quick to build.
    Dev,
}

impl Profile {
    pub(crate) fn of(debug: bool) -> Self {
        if debug { Self::Dev } else { Self::Release }
    }
}

/// Builds `culvert` and returns its path; sets the tool chain up first if that is missing.
pub(crate) fn build(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    toolchain::set_up(workspace)?;
    progress::step("building culvert (from scratch usually three to five minutes)");
    program(workspace, profile, "proxy-userspace", "culvert")
}

/// Builds one program of a package and returns its path.
pub(crate) fn program(
    workspace: &Workspace,
    profile: Profile,
    package: &str,
    name: &str,
) -> Result<PathBuf> {
    let mut cargo = command::cargo(&workspace.root);
    cargo
        .args(["build", "--package", package, "--bin", name])
        // Compiler messages stay on the terminal; only what Cargo made comes as JSON.
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let mut child = cargo.spawn().with_context(|| command::line(&cargo))?;
    let messages = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut binary = None;
    for message in BufReader::new(messages).lines() {
        binary = executable(&message.context("output of cargo build")?, name).or(binary);
    }
    let status = child.wait().with_context(|| command::line(&cargo))?;
    if !status.success() {
        bail!("{} ({status})", command::line(&cargo));
    }
    binary.context("cargo build reports no program")
}

/// The program that one of Cargo's JSON messages reports, if it is the one that is wanted.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = Path::new(message.get("executable")?.as_str()?);
    path.ends_with(name).then(|| path.to_owned())
}
