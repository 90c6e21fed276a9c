//! What takes root: Debian packages, installed when this runs as root and named when not, and programs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};

use crate::{command, progress};

/// Installs packages from Debian's archive, or says why that is impossible.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    install_with(&[], packages)
}

/// As [`install`], with options for apt.
pub(crate) fn install_with(options: &[&str], packages: &[&str]) -> Result<()> {
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
        command::run(apt_get().args(options).arg("update"))?;
        let _no_services = NoServices::begin()?;
        command::run(
            apt_get()
                .args(options)
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        // No progress bar: it becomes many lines in a log.
        .args(["--quiet", "--option", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While this lives, installing a server does not start it: the tests want nginx's program, and nobody asked
/// for one on port 80. An administrator's own policy is left alone.
struct NoServices(Option<&'static Path>);

impl NoServices {
    /// What Debian's packages ask before they start a service; 101 forbids it.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let policy = Path::new(Self::POLICY);
        if policy.exists() {
            return Ok(Self(None));
        }
        // Left behind by a kill, it allows everything again and goes with its first use.
        let script = format!(
            "#!/bin/sh\nkill -0 {} 2>/dev/null && exit 101\nrm -f -- \"$0\"\n",
            process::id()
        );
        fs::write(policy, script).context(Self::POLICY)?;
        let guard = Self(Some(policy));
        fs::set_permissions(policy, Permissions::from_mode(0o755)).context(Self::POLICY)?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.0
            && let Err(error) = fs::remove_file(policy)
        {
            progress::step(&format!("remove {} by hand: {error}", policy.display()));
        }
    }
}

/// A program that will run as root, with these variables: by itself if this one does, else through sudo.
pub(crate) fn as_root(program: &Path, variables: &[(&str, &Path)]) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    if !command::exists("sudo") {
        bail!(
            "culvert attaches to the kernel and needs root, and there is no sudo: as root, run {}",
            program.display()
        );
    }
    let mut sudo = Command::new("sudo");
    // sudo drops the environment.
    sudo.arg("env");
    for (name, value) in variables {
        sudo.arg(format!("{name}={}", value.display()));
    }
    sudo.arg(program);
    Ok(sudo)
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
