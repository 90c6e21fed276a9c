//! Every check that needs neither root nor a kernel; all run, then the failed ones are named.

mod dependencies;
mod layers;
mod manifests;
mod sizes;
mod source;
mod tools;

use std::process::ExitCode;

use anyhow::Result;

use crate::{progress, toolchain, workspace::Workspace};

/// A check's name and what it does; the error says what is wrong where.
type Check<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Runs all checks.
pub(crate) fn lint(workspace: &Workspace) -> Result<ExitCode> {
    let toolchain = toolchain::set_up(workspace)?;
    let root = workspace.root.as_path();
    let checks: [Check<'_>; 8] = [
        ("formatting", Box::new(|| tools::formatting(root))),
        ("layers", Box::new(|| layers::check(root))),
        ("file sizes", Box::new(|| sizes::check(root))),
        ("manifests", Box::new(|| manifests::check(root))),
        ("dependencies", Box::new(|| dependencies::check(root))),
        (
            "clippy for the BPF target",
            Box::new(|| tools::clippy_bpf(root, &toolchain)),
        ),
        ("clippy", Box::new(|| tools::clippy(root))),
        ("documentation", Box::new(|| tools::documentation(root))),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        progress::step(name);
        if let Err(error) = check() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("lint: all checks passed");
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
