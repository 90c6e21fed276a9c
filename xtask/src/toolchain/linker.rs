//! `bpf-linker`, built once per LLVM into the target folder.
//!
//! It reads the compiler's bitcode, so it must be linked to the compiler's own LLVM; no distribution's LLVM
//! packages are needed for that, only the shared library that came with the compiler.

use std::{
    env,
    ffi::OsString,
    fs,
    ops::RangeInclusive,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::Compiler;
use crate::{command, progress};

/// The release that is built.
pub(super) const VERSION: &str = "0.13.0";
/// The major versions of LLVM that this release has a feature for.
pub(super) const LLVM_VERSIONS: RangeInclusive<u32> = 21..=23;

/// Returns the linker for this compiler and builds it if there is none that runs.
pub(super) fn provide(folder: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let library = compiler
        .llvm
        .file_name()
        .context("the LLVM library has no file name")?
        .to_string_lossy();
    let root = folder.join(format!("bpf-linker-{VERSION}-{library}"));
    let linker = root.join("bin/bpf-linker");
    // A toolchain that was removed or moved since takes its LLVM along: then the program does not start.
    let runs = linker.exists() && command::read(Command::new(&linker).arg("--version")).is_ok();
    if !runs {
        progress::long_step(
            &format!("building bpf-linker {VERSION} with {library}"),
            "one minute, only this once",
            || build(&root, compiler),
        )?;
    }
    Ok(linker)
}

fn build(root: &Path, compiler: &Compiler) -> Result<()> {
    let prefix = root.join("llvm");
    let libraries = prefix.join("lib");
    fs::create_dir_all(&libraries).with_context(|| libraries.display().to_string())?;
    // The linker's build script looks for this very name.
    let link = libraries.join("libLLVM.so");
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| link.display().to_string())?;
    }
    symlink(&compiler.llvm, &link).with_context(|| link.display().to_string())?;
    let origin = compiler
        .llvm
        .parent()
        .context("the LLVM library has no folder")?;
    // The root folder: below the workspace Cargo would apply the workspace's flags, which ask for a static
    // program.
    let mut install = command::cargo(Path::new("/"));
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
    ] {
        install.env_remove(name);
    }
    install
        // Its own folder in PATH, or Cargo advises the user to put it there.
        .env("PATH", path_with(&root.join("bin"))?)
        .env("LLVM_PREFIX", &prefix)
        .env(
            "RUSTFLAGS",
            format!("-C link-arg=-Wl,-rpath,{}", origin.display()),
        )
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--force",
            "--version",
            VERSION,
        ])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{}", compiler.llvm_major))
        .arg("--root")
        .arg(root);
    command::run(&mut install)
}

fn path_with(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([folder.to_owned()]);
    env::join_paths(folders).context("PATH")
}
