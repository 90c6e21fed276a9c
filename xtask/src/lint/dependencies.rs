//! cargo-deny: licences, bans and sources of the dependencies.

use std::path::Path;

use anyhow::Result;

use crate::{command, progress};

/// Runs cargo-deny where it is installed.
pub(super) fn check(root: &Path) -> Result<()> {
    if !command::exists("cargo-deny") {
        progress::step("skipped: cargo-deny is not installed (`cargo install cargo-deny`)");
        return Ok(());
    }
    // Advisories change without a commit and need the network; they are no property of the source.
    command::run(
        command::cargo(root)
            .args(["deny", "--config", "xtask/deny.toml", "check"])
            .args(["--hide-inclusion-graph", "bans", "licenses", "sources"]),
    )
}
