//! Debian packages: installed when this runs as root, named when not.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{command, progress};

/// Installs packages from Debian's archive, or says why that is impossible.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let typed = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if !command::exists("apt-get") {
        bail!("there is no apt-get on this system for `{typed}`");
    }
    if !is_root() {
        bail!("only root can `{typed}`");
    }
    progress::long_step(&typed, "one minute", || {
        command::run(apt_get().arg("update"))?;
        command::run(
            apt_get()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
