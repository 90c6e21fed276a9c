//! Source files as the checks see them: what is compiled into the product, without comments and tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// One Rust file.
pub(super) struct Source {
    /// Its path below the folder that was walked.
    pub(super) path: PathBuf,
    /// Its text.
    text: String,
}

impl Source {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            path: PathBuf::from(path),
            text: text.to_owned(),
        }
    }

    /// All Rust files below `folder`, in the order of their paths.
    pub(super) fn below(folder: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        walk(folder, Path::new(""), &mut found)?;
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Whether the file is a module of tests, in a file of its own as soon as they are many.
    pub(super) fn is_tests(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.iter().any(|folder| folder == "tests")
    }

    /// The lines before the tests, numbered from 1. Tests come last in a file.
    pub(super) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = self.text.lines().zip(1..).peekable();
        std::iter::from_fn(move || {
            let (line, number) = lines.next()?;
            let tests_follow = line == "#[cfg(test)]"
                && lines
                    .peek()
                    .is_some_and(|(next, _)| next.starts_with("mod tests"));
            (!tests_follow).then_some((number, line))
        })
    }
}

fn walk(folder: &Path, below: &Path, found: &mut Vec<Source>) -> Result<()> {
    let place = folder.join(below);
    for entry in fs::read_dir(&place).with_context(|| place.display().to_string())? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(folder, &path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(entry.path())
                .with_context(|| entry.path().display().to_string())?;
            found.push(Source { path, text });
        }
    }
    Ok(())
}

/// The line without its `//` comment. A `//` inside a string ends it too: no check looks into strings.
pub(super) fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_at_the_end_are_not_product() {
        let source = Source::new(
            "a.rs",
            "one\n#[cfg(test)]\nuse two;\n#[cfg(test)]\nmod tests {\n}\n",
        );
        let lines: Vec<_> = source.product().collect();
        assert_eq!(lines, [(1, "one"), (2, "#[cfg(test)]"), (3, "use two;")]);
    }

    #[test]
    fn comments_are_not_code() {
        assert_eq!(code("use a; // b"), "use a; ");
        assert_eq!(code("/// c"), "");
    }
}
