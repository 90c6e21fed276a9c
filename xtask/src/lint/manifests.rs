//! Every crate takes the workspace's lints; one that forgets is not checked at all, silently.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// Reads the manifest of every crate in the workspace's folder.
pub(super) fn check(root: &Path) -> Result<()> {
    let mut forgetful = Vec::new();
    for entry in fs::read_dir(root).with_context(|| root.display().to_string())? {
        let manifest = entry?.path().join("Cargo.toml");
        if !manifest.exists() {
            continue;
        }
        let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
        if !inherits_lints(&text) {
            forgetful.push(format!(
                "{}: add `[lints]` with `workspace = true`",
                manifest.display()
            ));
        }
    }
    if !forgetful.is_empty() {
        bail!("{}", forgetful.join("\n"));
    }
    Ok(())
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim);
    lines.by_ref().any(|line| line == "[lints]") && lines.next() == Some("workspace = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_inherited_lints() {
        assert!(inherits_lints("[package]\n\n[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nworkspace = true\n"));
        assert!(!inherits_lints("[lints]\n[lints.rust]\nworkspace = true\n"));
    }
}
