//! What is given to others: a tarball and a Debian package, each with the binary, its manual, and the licences of all that is in it.
//!
//! Made from what Cargo has fetched already, without the network, and the same again from the same commit.

mod bom;
mod changelog;
mod contents;
mod debian;
mod pages;
#[cfg(test)]
mod tests;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use self::{
    bom::Bom,
    changelog::Release,
    contents::{Contents, Item},
};
use crate::{
    build::{self, Profile},
    command, progress,
    workspace::Workspace,
};

/// What is packed.
pub(crate) struct Wanted<'a> {
    /// How it is built. What is built for debugging is packed quickly, too.
    pub(crate) profile: Profile,
    /// A binary that is there already.
    pub(crate) binary: Option<&'a Path>,
    /// Where the packages go.
    pub(crate) folder: Option<&'a Path>,
}

/// How hard gzip and xz try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    Least,
    Most,
}

impl Effort {
    fn level(self) -> &'static str {
        match self {
            Self::Least => "-1",
            Self::Most => "-9",
        }
    }
}

/// What a package says of itself.
struct Edition {
    release: Release,
    /// The architecture as Rust calls it.
    machine: &'static str,
    /// Seconds since 1970 that all files in it have.
    epoch: u64,
}

/// Makes the packages and returns their paths.
pub(crate) fn dist(workspace: &Workspace, wanted: &Wanted<'_>) -> Result<Vec<PathBuf>> {
    let release = Release::newest(&workspace.root)?;
    let edition = Edition {
        epoch: epoch(&workspace.root)?,
        machine: env::consts::ARCH,
        release,
    };
    let binary = match wanted.binary {
        Some(binary) => fs::canonicalize(binary).with_context(|| binary.display().to_string())?,
        None => build::build(workspace, wanted.profile)?,
    };
    let effort = match wanted.profile {
        Profile::Release => Effort::Most,
        Profile::Dev => Effort::Least,
    };
    let folder = match wanted.folder {
        Some(folder) => folder.to_owned(),
        None => workspace.build.join("dist"),
    };
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    progress::step("collecting the manual and the licences");
    let bom = Bom::of(&workspace.root)?;
    let contents = Contents::collect(&workspace.root, &binary, &edition, &bom)?;
    progress::step("packing");
    let packages = vec![
        tarball(&folder, &contents, &edition, effort)?,
        debian::package(&folder, &contents, &edition, &workspace.root, effort)?,
    ];
    write_sums(&folder, &packages)?;
    Ok(packages)
}

/// When the commit was made that is packed, or what `SOURCE_DATE_EPOCH` says.
fn epoch(root: &Path) -> Result<u64> {
    const SAYS: &str = "SOURCE_DATE_EPOCH";
    let seconds =
        match env::var(SAYS) {
            Ok(seconds) => seconds,
            Err(_) => command::read(Command::new("git").current_dir(root).args([
                "log",
                "-1",
                "--format=%ct",
            ]))
            .with_context(|| format!("no commit tells the date; set {SAYS}"))?,
        };
    let seconds = seconds.trim();
    seconds
        .parse()
        .with_context(|| format!("{SAYS}: {seconds:?} is no number of seconds"))
}

fn tarball(
    folder: &Path,
    contents: &Contents,
    edition: &Edition,
    effort: Effort,
) -> Result<PathBuf> {
    let name = format!(
        "culvert-{}-{}-linux",
        edition.release.version, edition.machine
    );
    let stage = Stage::new(folder, "stage-tarball")?;
    contents.lay_out(&stage.path.join(&name), Item::in_tarball)?;
    let archive = folder.join(format!("{name}.tar.gz"));
    command::run(
        Command::new("tar")
            .current_dir(&stage.path)
            .args(["--create", "--sort=name", "--owner=0", "--group=0"])
            .args(["--numeric-owner", &format!("--mtime=@{}", edition.epoch)])
            .arg(format!("--use-compress-program=gzip -n {}", effort.level()))
            .arg("--file")
            .arg(&archive)
            .arg(&name),
    )?;
    Ok(archive)
}

/// A folder that is gone afterwards.
struct Stage {
    path: PathBuf,
}

impl Stage {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        // What a killed run has left.
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            progress::step(&format!("remove {} by hand: {error}", self.path.display()));
        }
    }
}

fn write_sums(folder: &Path, packages: &[PathBuf]) -> Result<()> {
    let names = packages.iter().filter_map(|package| package.file_name());
    let sums = command::read(Command::new("sha256sum").current_dir(folder).args(names))?;
    let file = folder.join("SHA256SUMS");
    fs::write(&file, sums).with_context(|| file.display().to_string())
}

/// Debian's name of this architecture.
fn debian_machine(machine: &str) -> Result<&'static str> {
    Ok(match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("culvert is not packed for {other}"),
    })
}
