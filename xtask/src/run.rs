//! Running the release binary in place of this program.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    command, packages, progress,
    workspace::Workspace,
};

/// Builds culvert and becomes it, as root: signals, terminal and exit status are then culvert's own.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let binary = build::build(workspace, Profile::Release)?;
    let mut culvert = if packages::is_root() {
        Command::new(&binary)
    } else if command::exists("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.arg(&binary);
        sudo
    } else {
        bail!(
            "culvert attaches to the kernel and needs root, and there is no sudo: as root, run {}",
            binary.display()
        );
    };
    culvert.args(arguments);
    progress::step(&command::line(&culvert));
    // Returns only if the program could not be started.
    Err(culvert.exec()).with_context(|| command::line(&culvert))
}
