//! Where things are: the workspace's folder and the folder that Cargo builds in.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command;

/// The folders every task works in.
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where Cargo keeps intermediate files, build scripts' output included; usually the same as `target`.
    pub(crate) build: PathBuf,
}

impl Workspace {
    /// Asks Cargo, because configuration and environment may have moved the folders.
    pub(crate) fn locate() -> Result<Self> {
        // Cargo says where it found this crate; a target folder that was copied along remembers another place.
        let here = env::var_os("CARGO_MANIFEST_DIR");
        let root = Path::new(
            here.as_deref()
                .unwrap_or(env!("CARGO_MANIFEST_DIR").as_ref()),
        )
        .parent()
        .context("xtask is not inside its workspace")?
        .to_owned();
        let metadata = command::read(command::cargo(&root).args([
            "metadata",
            "--no-deps",
            "--format-version=1",
        ]))?;
        let metadata: Value =
            serde_json::from_str(&metadata).context("output of cargo metadata")?;
        let folder = |key| metadata.get(key).and_then(Value::as_str).map(PathBuf::from);
        let build = folder("build_directory") // since Cargo 1.91
            .or_else(|| folder("target_directory"))
            .context("cargo metadata names no target folder")?;
        Ok(Self { root, build })
    }
}
