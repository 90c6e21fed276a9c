//! Which installed compiler can build the eBPF programs, and why the others cannot.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Origin, linker};
use crate::command;

/// Where Debian's packages put their compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that has the library source of its version and an LLVM that `bpf-linker` can be linked to.
pub(crate) struct Compiler {
    /// The program itself, not rustup's stand-in for it.
    pub(crate) rustc: PathBuf,
    /// What it says of itself: `rustc 1.95.0 (59807616e 2026-04-14)`.
    pub(crate) version: String,
    /// Its LLVM as a shared library.
    pub(crate) llvm: PathBuf,
    /// The major version of that LLVM.
    pub(crate) llvm_major: u32,
}

/// The first fit compiler, or one line for each that is not.
pub(super) fn find(origin: Origin) -> Result<Compiler, Vec<String>> {
    let mut unfit = Vec::new();
    let mut seen = BTreeSet::new();
    for rustc in candidates(origin) {
        match Compiler::inspect(&rustc, &mut seen) {
            Ok(Some(compiler)) => return Ok(compiler),
            Ok(None) => {}
            Err(reason) => unfit.push(format!("{reason:#}")),
        }
    }
    Err(unfit)
}

/// Compilers to look at, the most natural first.
fn candidates(origin: Origin) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if origin != Origin::Debian {
        candidates.push(PathBuf::from("rustc"));
        candidates.extend(
            rustup_toolchains()
                .into_iter()
                .map(|folder| folder.join("bin/rustc")),
        );
    }
    if origin != Origin::RustSrc && Path::new(DEBIAN_RUSTC).exists() {
        candidates.push(PathBuf::from(DEBIAN_RUSTC));
    }
    candidates
}

/// The folders of rustup's toolchains; none when there is no rustup.
fn rustup_toolchains() -> Vec<PathBuf> {
    let list = command::read(Command::new("rustup").args(["toolchain", "list", "--verbose"]));
    // A line is `stable-x86_64-unknown-linux-gnu (active, default) /folder`.
    list.unwrap_or_default()
        .lines()
        .filter_map(|line| line.find('/').and_then(|start| line.get(start..)))
        .map(PathBuf::from)
        .collect()
}

impl Compiler {
    /// Whether it came from Debian's packages.
    pub(crate) fn is_debian(&self) -> bool {
        self.rustc == Path::new(DEBIAN_RUSTC)
    }

    /// `None` if the compiler was seen before under another name.
    fn inspect(rustc: &Path, seen: &mut BTreeSet<PathBuf>) -> Result<Option<Self>> {
        let sysroot = command::read(Command::new(rustc).args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim());
        let rustc = sysroot.join("bin/rustc");
        if !seen.insert(rustc.clone()) {
            return Ok(None);
        }
        Self::of_sysroot(&sysroot, &rustc)
            .with_context(|| rustc.display().to_string())
            .map(Some)
    }

    fn of_sysroot(sysroot: &Path, rustc: &Path) -> Result<Self> {
        let about = command::read(Command::new(rustc).arg("-vV"))?;
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .with_context(|| format!("`rustc -vV` has no {name:?}"))
        };
        let release = field("release:")?;
        let llvm_version = field("LLVM version:")?;
        check_release(release)?;
        check_source(sysroot, release)?;
        let llvm_major = llvm_version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .with_context(|| format!("no LLVM version: {llvm_version}"))?;
        if !linker::LLVM_VERSIONS.contains(&llvm_major) {
            bail!(
                "bpf-linker {} cannot use its LLVM {llvm_version}",
                linker::VERSION
            );
        }
        Ok(Self {
            rustc: rustc.to_owned(),
            version: about.lines().next().unwrap_or(release).to_owned(),
            llvm: shared_llvm(rustc)?,
            llvm_major,
        })
    }
}

/// The workspace's minimum holds for the eBPF crate too.
fn check_release(release: &str) -> Result<()> {
    let minimum = env!("CARGO_PKG_RUST_VERSION");
    let (Some(have), Some(need)) = (minor(release), minor(minimum)) else {
        bail!("cannot compare version {release} with {minimum}");
    };
    if have < need {
        bail!("version {release} is older than {minimum}");
    }
    Ok(())
}

fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// `core` is compiled from source for the BPF targets and compiles with its own compiler only.
fn check_source(sysroot: &Path, release: &str) -> Result<()> {
    let source = sysroot.join("lib/rustlib/src/rust");
    if !source.join("library/core/src/lib.rs").exists() {
        bail!("no library source (`rust-src`)");
    }
    // rustup keeps source and compiler together and ships no such file; two Debian packages can drift apart.
    if let Ok(version) = fs::read_to_string(source.join("src/version"))
        && version.trim() != release
    {
        bail!(
            "library source of version {}, compiler of {release}",
            version.trim()
        );
    }
    Ok(())
}

/// The LLVM that the dynamic linker gives the compiler.
fn shared_llvm(rustc: &Path) -> Result<PathBuf> {
    let libraries = command::read(Command::new("ldd").arg(rustc))?;
    libraries
        .lines()
        // A line is `libLLVM.so.22.1 => /folder/libLLVM.so.22.1 (0x7f…)`.
        .filter(|line| line.trim_start().starts_with("libLLVM"))
        .find_map(|line| line.split_once(" => ")?.1.split(" (").next())
        .ok_or_else(|| anyhow!("its LLVM is not a shared library"))
        .and_then(|path| fs::canonicalize(path).with_context(|| path.to_owned()))
}
