//! Running the release binary in place of this program.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    command, packages, progress,
    workspace::Workspace,
};

/// Builds culvert and becomes it, as root: signals, terminal and exit status are then culvert's own.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let binary = build::build(workspace, Profile::Release)?;
    let mut culvert = packages::as_root(&binary, &[])?;
    culvert.args(arguments);
    progress::step(&command::line(&culvert));
    // Returns only if the program could not be started.
    Err(culvert.exec()).with_context(|| command::line(&culvert))
}
