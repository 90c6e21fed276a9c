//! The changelog: what is packed has a version, and the newest heading is of that version.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// The changelog's place in the workspace.
pub(super) const FILE: &str = "proxy-userspace/CHANGELOG.md";
/// What a version is called that has no date yet.
const UNRELEASED: &str = "unreleased";

/// A version, and what is new in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// As packages have it: before the release a version that any release follows.
    pub(super) version: String,
    /// What is new, one entry each.
    pub(super) changes: Vec<String>,
}

impl Release {
    /// The newest one, which must be that of the workspace.
    pub(super) fn newest(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::of(&text, env!("CARGO_PKG_VERSION"))
            .with_context(|| format!("{FILE} does not fit the version in Cargo.toml"))
    }

    fn of(changelog: &str, version: &str) -> Result<Self> {
        let (_, newest) = changelog
            .split_once("\n## ")
            .context("there is no heading such as `## 0.1.0 (2026-01-31)`")?;
        let newest = newest.split("\n## ").next().unwrap_or(newest);
        let (heading, entries) = newest.split_once('\n').unwrap_or((newest, ""));
        let (number, date) = heading
            .trim_end()
            .strip_suffix(')')
            .and_then(|heading| heading.split_once(" ("))
            .with_context(|| format!("`## {heading}` is not like `## 0.1.0 (2026-01-31)`"))?;
        if number != version {
            bail!("its newest heading is of {number}, and not of {version}");
        }
        let version = match date {
            UNRELEASED => format!("{number}~{UNRELEASED}"),
            _ if is_date(date) => number.to_owned(),
            _ => bail!("{date:?} is neither a date such as 2026-01-31 nor `{UNRELEASED}`"),
        };
        let changes = entries.split("\n- ").skip(1);
        let changes: Vec<_> = changes.map(|entry| entry.trim().to_owned()).collect();
        if changes.is_empty() {
            bail!("nothing is new in {number}");
        }
        Ok(Self { version, changes })
    }
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut is_number = |length| {
        parts.next().is_some_and(|part| {
            part.len() == length && part.bytes().all(|digit| digit.is_ascii_digit())
        })
    };
    is_number(4) && is_number(2) && is_number(2) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# Changelog\n\nWords.\n\n## 0.2.0 (2026-12-01)\n\n- One\n  thing.\n- Another.\n\n## 0.1.0 (2026-11-01)\n\n- All.\n";

    #[test]
    fn the_newest_release_is_packed() {
        let release = Release::of(TWO, "0.2.0").unwrap();
        assert_eq!(release.version, "0.2.0");
        assert_eq!(release.changes, ["One\n  thing.", "Another."]);
    }

    #[test]
    fn before_its_date_a_version_is_older_than_itself() {
        let text = TWO.replace("2026-12-01", "unreleased");
        assert_eq!(
            Release::of(&text, "0.2.0").unwrap().version,
            "0.2.0~unreleased"
        );
    }

    #[test]
    fn a_changelog_that_was_forgotten_is_told() {
        let said = |text: &str| Release::of(text, "0.2.0").unwrap_err().to_string();
        assert!(said("# Changelog\n").contains("no heading"));
        assert!(said(&TWO.replace("0.2.0", "0.3.0")).contains("of 0.3.0, and not of 0.2.0"));
        assert!(said(&TWO.replace("2026-12-01", "soon")).contains("neither a date"));
        assert!(said(&TWO.replace(" (2026-12-01)", "")).contains("is not like"));
        assert!(said("\n## 0.2.0 (2026-12-01)\n").contains("nothing is new"));
    }

    #[test]
    fn the_changelog_is_of_the_version_that_is_built() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        Release::newest(root).unwrap();
    }
}
