//! Installing a compiler that can build the eBPF programs when none is there.

use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Compiler, ORIGIN, Origin, compiler};
use crate::{command, packages, progress, workspace::Workspace};

/// Debian's compiler with the source of the same version.
const DEBIAN_PAIR: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Seconds after which rustup counts as cut off from its server; a firewall that drops packets would
/// otherwise keep it for many minutes.
const RUSTUP_PATIENCE: &str = "180";

/// Tries each way that `origin` allows. `unfit` says why no installed compiler will do.
pub(super) fn install(workspace: &Workspace, origin: Origin, unfit: &[String]) -> Result<Compiler> {
    progress::step("no installed compiler can build the eBPF programs:");
    for reason in unfit {
        progress::step(&format!("  {reason}"));
    }
    let mut failed = Vec::new();
    if origin != Origin::Debian {
        match add_rust_src(workspace).and_then(|()| found(Origin::RustSrc)) {
            Ok(compiler) => return Ok(compiler),
            Err(error) => failed.push(error),
        }
    }
    if origin != Origin::RustSrc {
        match packages::install(&DEBIAN_PAIR).and_then(|()| found(Origin::Debian)) {
            Ok(compiler) => return Ok(compiler),
            Err(error) => failed.push(error),
        }
    }
    let tried: Vec<_> = failed.iter().map(|error| format!("  {error:#}")).collect();
    bail!(
        "no compiler for the eBPF programs. Tried:\n{}\n\
         Type one of these, then `cargo xtask setup` again:\n  \
         rustup component add rust-src\n  \
         sudo apt-get update && sudo apt-get install --no-install-recommends {}\n\
         ({ORIGIN}=rust-src or =debian keeps to one of the two.)",
        tried.join("\n"),
        DEBIAN_PAIR.join(" "),
    );
}

fn add_rust_src(workspace: &Workspace) -> Result<()> {
    if !command::exists("rustup") {
        bail!("there is no rustup");
    }
    let mut add = Command::new("timeout");
    add.args([RUSTUP_PATIENCE, "rustup", "component", "add", "rust-src"])
        .current_dir(&workspace.root)
        .env_remove("RUST_BACKTRACE");
    progress::long_step("rustup component add rust-src", "seconds", || {
        command::run(&mut add)
    })
}

fn found(origin: Origin) -> Result<Compiler> {
    compiler::find(origin)
        .map_err(|unfit| anyhow!(unfit.join("; ")))
        .context("installed, but still no use")
}
