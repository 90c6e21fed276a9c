//! The Debian package: a tree, what dpkg wants to know of it, and `dpkg-deb`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Edition, Effort, Stage,
    contents::{Contents, Item},
    debian_machine,
};
use crate::command;

/// The configuration, which is the administrator's once it is installed.
pub(super) const CONFIGURATION: &str = "etc/culvert/culvert.toml";
/// What dpkg runs when a package comes and goes.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// What is compressed, since it is read by programs that know how to.
const COMPRESSED: [&str; 2] = ["usr/share/man", "usr/share/doc/culvert/changelog"];

/// Makes the package in a folder and returns its path.
pub(super) fn package(
    folder: &Path,
    contents: &Contents,
    edition: &Edition,
    root: &Path,
    effort: Effort,
) -> Result<PathBuf> {
    if !command::exists("dpkg-deb") {
        bail!("there is no dpkg-deb for the Debian package: it is in the package dpkg");
    }
    let machine = debian_machine(edition.machine)?;
    let stage = Stage::new(folder, "stage-debian")?;
    let tree = &*stage.path;
    contents.lay_out(tree, Item::in_debian)?;
    // Who else may read secrets there is for the administrator to say.
    let secrets = tree.join(CONFIGURATION);
    let secrets = secrets.parent().unwrap_or(tree);
    fs::set_permissions(secrets, Permissions::from_mode(0o750))
        .with_context(|| secrets.display().to_string())?;
    compress(tree)?;

    let about = tree.join("DEBIAN");
    fs::create_dir(&about).with_context(|| about.display().to_string())?;
    let write = |name: &str, text: &str| {
        let file = about.join(name);
        fs::write(&file, text).with_context(|| file.display().to_string())
    };
    write("md5sums", &sums(tree)?)?;
    write("conffiles", &format!("/{CONFIGURATION}\n"))?;
    write("control", &control(edition, machine, size(tree)?))?;
    for script in SCRIPTS {
        let (from, to) = (
            root.join("xtask/packaging").join(script),
            about.join(script),
        );
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        fs::set_permissions(&to, Permissions::from_mode(0o755))
            .with_context(|| to.display().to_string())?;
    }
    let file = folder.join(format!("culvert_{}_{machine}.deb", edition.release.version));
    let compression = match effort {
        Effort::Least => "-Zgzip",
        Effort::Most => "-Zxz",
    };
    command::read(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", edition.epoch.to_string())
            .args(["--root-owner-group", compression])
            .arg(format!("-z{}", effort.level().trim_start_matches('-')))
            .arg("--build")
            .arg(tree)
            .arg(&file),
    )?;
    Ok(file)
}

fn control(edition: &Edition, machine: &str, kibibytes: u64) -> String {
    format!(
        "Package: culvert\n\
         Version: {}\n\
         Architecture: {machine}\n\
         Maintainer: The authors of culvert <culvert@localhost>\n\
         Installed-Size: {kibibytes}\n\
         Section: net\n\
         Priority: optional\n\
         Description: transparent proxy that is accelerated by eBPF\n \
         Chosen TCP connections are relayed, directly, through SOCKS5 and HTTP proxies,\n \
         or balanced over a group of servers. No client is configured and no firewall\n \
         rule is written; connections that no rule selects never leave the kernel.\n \
         .\n \
         Linux 5.10 and cgroup v2 are needed. The service is not enabled when it is\n \
         installed: /etc/culvert/culvert.toml has no rule yet.\n",
        edition.release.version
    )
}

/// Has gzip compress files below a tree, without a name and a date in them.
fn compress(tree: &Path) -> Result<()> {
    let files = command::read(
        Command::new("find")
            .current_dir(tree)
            .args(COMPRESSED)
            .args(["-type", "f"]),
    )?;
    command::run(
        Command::new("gzip")
            .current_dir(tree)
            .args(["-9", "--no-name"])
            .args(files.lines()),
    )
}

/// The sums of all files but the configuration, which is expected to change.
fn sums(tree: &Path) -> Result<String> {
    let files = command::read(
        Command::new("find")
            .current_dir(tree)
            .args(["usr", "-type", "f"]),
    )?;
    let mut files: Vec<_> = files.lines().collect();
    files.sort_unstable();
    command::read(Command::new("md5sum").current_dir(tree).args(files))
}

/// How much room it takes, in KiB.
fn size(tree: &Path) -> Result<u64> {
    let said = command::read(Command::new("du").current_dir(tree).args([
        "--summarize",
        "--apparent-size",
        "--block-size=1024",
        ".",
    ]))?;
    let number = said.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("output of du: {said:?}"))
}
