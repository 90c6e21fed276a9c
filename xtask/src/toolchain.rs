//! The eBPF tool chain: a compiler with the library source of exactly its version, and `bpf-linker` built
//! against that compiler's own LLVM.
//!
//! Finds or installs both and writes what it chose as a Cargo configuration file, which is all that
//! `proxy-userspace/build.rs` needs to know. Does nothing, quickly, when everything is there.

mod compiler;
mod install;
mod linker;

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::compiler::Compiler;
use crate::{progress, workspace::Workspace};

/// The tool chain's folder below Cargo's build folder; `proxy-userspace/build.rs` looks for it there.
const FOLDER: &str = "ebpf-toolchain";
/// Chooses where the compiler may come from; see [`Origin`].
const ORIGIN: &str = "CULVERT_EBPF_TOOLCHAIN";

/// Where the compiler may come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// What is installed, else rustup's `rust-src`, else Debian's packages.
    Any,
    /// A rustup toolchain with the component `rust-src`.
    RustSrc,
    /// Debian's packages `rustc-web` and `rust-web-src`.
    Debian,
}

impl Origin {
    fn from_environment() -> Result<Self> {
        let Some(name) = env::var_os(ORIGIN) else {
            return Ok(Self::Any);
        };
        match name.to_str() {
            Some("auto") => Ok(Self::Any),
            Some("rust-src") => Ok(Self::RustSrc),
            Some("debian") => Ok(Self::Debian),
            _ => bail!(
                "{ORIGIN} is {}: use auto, rust-src or debian",
                name.display()
            ),
        }
    }
}

/// A complete tool chain.
pub(crate) struct Toolchain {
    /// The compiler for the eBPF crate; Cargo and the compiler of all else stay the active ones.
    pub(crate) compiler: Compiler,
    /// `bpf-linker`.
    pub(crate) linker: PathBuf,
    /// The Cargo configuration that names the two.
    pub(crate) config: PathBuf,
}

impl Toolchain {
    /// Where Cargo builds the eBPF crate, also when `build.rs` starts it.
    pub(crate) fn build_folder(&self) -> PathBuf {
        self.config.with_file_name("build")
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            compiler,
            linker,
            config,
        } = self;
        writeln!(formatter, "compiler   {}", compiler.version)?;
        writeln!(formatter, "           {}", compiler.rustc.display())?;
        writeln!(formatter, "linker     {}", linker.display())?;
        write!(formatter, "written to {}", config.display())
    }
}

/// Finds the tool chain; installs or builds what is missing.
pub(crate) fn set_up(workspace: &Workspace) -> Result<Toolchain> {
    let origin = Origin::from_environment()?;
    let folder = workspace.build.join(FOLDER);
    let compiler =
        compiler::find(origin).or_else(|unfit| install::install(workspace, origin, &unfit))?;
    let linker = linker::provide(&folder, &compiler)?;
    let config = folder.join("config.toml");
    let text = configuration(&compiler, &linker);
    // An unchanged file keeps its time stamp, which `build.rs` watches.
    if fs::read_to_string(&config).ok().as_ref() != Some(&text) {
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        progress::step(&format!("wrote {}", config.display()));
    }
    Ok(Toolchain {
        compiler,
        linker,
        config,
    })
}

/// The configuration's text. It names the compiler's version too, so that an update of the compiler changes
/// the file and with it rebuilds the programs.
fn configuration(compiler: &Compiler, linker: &Path) -> String {
    let for_target = |target: &str| {
        format!(
            "[target.{target}]\n\
             linker = '{}'\n\
             rustflags = [\"-Cdebuginfo=2\", \"-Clink-arg=--btf\"]\n",
            linker.display(),
        )
    };
    format!(
        "# How the eBPF programs are built; written by `cargo xtask setup`.\n\
         # {version}, {llvm}\n\
         [build]\n\
         rustc = '{rustc}'\n\
         [unstable]\n\
         build-std = [\"core\"]\n\
         {little}{big}",
        version = compiler.version,
        llvm = compiler.llvm.display(),
        rustc = compiler.rustc.display(),
        little = for_target("bpfel-unknown-none"),
        big = for_target("bpfeb-unknown-none"),
    )
}
