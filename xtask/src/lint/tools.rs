//! The checks that Cargo's own tools make.

use std::{env::consts, path::Path};

use anyhow::Result;

use crate::{command, packages, progress, toolchain::Toolchain};

/// The eBPF crate is for another target, so all that is for the host leaves it out.
const HOST: [&str; 3] = ["--workspace", "--exclude", "proxy-ebpf"];
/// The byte order matters to no lint; one of the two targets will do.
const BPF: &str = "bpfel-unknown-none";
/// Debian's clippy for the compiler of `rustc-web`.
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// `cargo fmt --check` for every crate.
pub(super) fn formatting(root: &Path) -> Result<()> {
    command::run(command::cargo(root).args(["fmt", "--all", "--check"]))
}

/// `cargo clippy` for all that is for the host, tests and benchmarks included.
pub(super) fn clippy(root: &Path) -> Result<()> {
    command::run(command::cargo(root).arg("clippy").args(HOST).args([
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// `cargo doc`, private items included, for all that is for the host.
pub(super) fn documentation(root: &Path) -> Result<()> {
    command::run(
        command::cargo(root)
            .env("RUSTDOCFLAGS", "--deny warnings")
            .arg("doc")
            .args(HOST)
            .args(["--no-deps", "--document-private-items"]),
    )
}

/// clippy of the very compiler that builds the eBPF crate; without one, that compiler's own warnings.
pub(super) fn clippy_bpf(root: &Path, toolchain: &Toolchain) -> Result<()> {
    // clippy uses the driver beside itself, so it must be the one beside the compiler.
    let clippy = toolchain.compiler.rustc.with_file_name("cargo-clippy");
    if !clippy.exists()
        && toolchain.compiler.is_debian()
        && let Err(error) = packages::install(&[DEBIAN_CLIPPY])
    {
        progress::step(&format!("{error:#}"));
    }
    let mut check = if clippy.exists() {
        let mut check = command::program(&clippy, root);
        check.arg("clippy");
        check
    } else {
        progress::step("that compiler has no clippy here: checking for its own warnings only");
        let mut check = command::cargo(root);
        check.args(["check", "-Zwarnings", "--config", "build.warnings='deny'"]);
        check
    };
    check
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["--package", "proxy-ebpf", "--release", "--target", BPF])
        .arg("--target-dir")
        .arg(toolchain.build_folder())
        .arg("--config")
        .arg(&toolchain.config)
        .arg("--config")
        .arg(format!(
            "target.{BPF}.rustflags=['--cfg=bpf_target_arch=\"{}\"']",
            consts::ARCH
        ));
    if clippy.exists() {
        check.args(["--", "--deny", "warnings"]);
    }
    command::run(&mut check)
}
