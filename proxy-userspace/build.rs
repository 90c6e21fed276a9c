//! Compiles the eBPF programs and leaves the object as `OUT_DIR/culvert-ebpf`.
//!
//! Cargo cannot depend on a binary of another target, so this script calls Cargo a second time. Everything
//! that depends on the machine (compiler, linker, library source) is in a Cargo configuration file that
//! `cargo xtask setup` writes; this script only finds that file and knows nothing of how it came about.

use std::{
    env,
    error::Error,
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

/// The configuration's place below the target folder; `xtask/src/toolchain.rs` writes it there.
const TOOLCHAIN: &str = "ebpf-toolchain/config.toml";
/// The file name of the object, here and below Cargo's target folder.
const OBJECT: &str = "culvert-ebpf";

fn main() -> ExitCode {
    build_object().unwrap_or_else(|error| {
        // Cargo fails because of this line, and prints it alone if the script itself does not fail.
        println!("cargo::error={error}");
        ExitCode::SUCCESS
    })
}

fn build_object() -> Result<ExitCode, Box<dyn Error>> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package
        .parent()
        .ok_or("this crate is not inside its workspace")?;
    // Relative to this crate: a target folder that is copied along with the sources stays right.
    for source in ["Cargo.toml", "Cargo.lock", "proxy-common", "proxy-ebpf"] {
        println!("cargo::rerun-if-changed=../{source}");
    }
    println!("cargo::rerun-if-changed=build.rs");

    let toolchain = out
        .ancestors()
        .map(|folder| folder.join(TOOLCHAIN))
        .find(|file| file.exists())
        .ok_or("the eBPF tool chain is not set up: run `cargo xtask setup`")?;
    println!("cargo::rerun-if-changed={}", toolchain.display());

    // The programs read the kernel's structures in memory, so they share the host's byte order; aya's
    // register access needs the host's architecture.
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    // Beside the configuration and not in OUT_DIR: dev and release builds then share one compiled `core`.
    let artifacts = toolchain.with_file_name("build");

    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_build) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        // `-Z build-std` and the BPF targets' `core` are unstable; this lets a stable compiler have them.
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "build",
            "--release",
            "--package",
            "proxy-ebpf",
            "--target",
            target,
        ])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&artifacts)
        .arg("--config")
        .arg(&toolchain)
        .arg("--config")
        .arg(format!(
            r#"target.{target}.rustflags=['--cfg=bpf_target_arch="{arch}"']"#
        ))
        .status()?;
    if !status.success() {
        println!(
            "cargo::error=the eBPF programs do not build (below is why); if the compiler was updated, \
             run `cargo xtask setup`"
        );
        // A script that fails is shown with all it wrote, the compiler's words included.
        return Ok(ExitCode::FAILURE);
    }
    fs::copy(
        artifacts.join(target).join("release").join(OBJECT),
        out.join(OBJECT),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a variable describes the build that runs this script, and would mislead the one it starts:
/// another compiler, the host's flags, a clippy wrapper, this package's features.
fn belongs_to_outer_build(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_TERM_",
    ];
    let described = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "DEP_"];
    described.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
