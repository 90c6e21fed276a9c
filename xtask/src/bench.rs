//! Measuring culvert beside its peers, by `culvert-bench` of `culvert-tests`.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    command, packages, progress,
    test::BINARY,
    workspace::Workspace,
};

/// What culvert is compared with, and what that needs: program, Debian packages. Whatever is missing in the end is
/// missing in the report.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("haproxy", &["haproxy"]),
    ("ip", &["iproute2"]),
    ("microsocks", &["microsocks"]),
    ("nft", &["nftables"]),
    // The module is a package of its own, and nobody can see from outside whether a given nginx has it.
    ("nginx", &["nginx-light", "libnginx-mod-stream"]),
    ("redsocks", &["redsocks"]),
];

/// Builds everything and becomes the benchmark, as root.
pub(crate) fn bench(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    provide_programs();
    let culvert = build::build(workspace, Profile::Release)?;
    progress::step("building the benchmark (from scratch usually two minutes)");
    let bench = build::program(
        workspace,
        Profile::Release,
        "culvert-tests",
        "culvert-bench",
    )?;
    let mut bench = packages::as_root(&bench, &[(BINARY, &culvert)])?;
    bench.args(arguments);
    progress::step(&command::line(&bench));
    // Returns only if the program could not be started.
    Err(bench.exec()).with_context(|| command::line(&bench))
}

fn provide_programs() {
    let missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !command::exists(program))
        .flat_map(|(_, packages)| packages)
        .copied()
        .collect();
    if !missing.is_empty()
        && let Err(error) = packages::install(&missing)
    {
        progress::step(&format!("going on without: {error:#}"));
    }
}
