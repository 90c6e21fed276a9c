//! What a user writes for a cgroup: a path below the root of the hierarchy, or the name of a systemd unit.
//!
//! A reference may mean no cgroup (the unit is not started yet) or several (one unit name in several users'
//! managers); callers resolve again when `watch` says that something changed.

use std::{
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

use super::{Cgroup, Cgroup2, walk};
use crate::rule::{container_in, is_unit_name, of_container};

/// A cgroup as rules name it. Written out and read back it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A path in the hierarchy; a leading `/` may be left out.
    Path(PathBuf),
    /// A systemd unit, wherever it is in the tree.
    Unit(String),
    /// A container by its id or the first digits of that, wherever its runtime has put it. Of a name only the runtime knows the id.
    Container(String),
}

/// Why a text names no cgroup.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// There is nothing to look for.
    #[error("a cgroup must not be empty; \"/\" is the root, which holds every process")]
    Empty,
    /// The path leaves the hierarchy.
    #[error("the cgroup \"{0}\" must not contain \"..\"")]
    Climbs(String),
    /// The path starts with the place where the hierarchy is mounted.
    #[error("the cgroup \"{0}\" is a path of the file system; leave \"/sys/fs/cgroup\" out")]
    FileSystem(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some(name) = container_in(text) {
            return Ok(Self::Container(name.to_owned()));
        }
        if is_unit_name(text) {
            return Ok(Self::Unit(text.to_owned()));
        }
        let path = Path::new(text);
        if path
            .components()
            .any(|part| matches!(part, Component::ParentDir))
        {
            return Err(ReferenceError::Climbs(text.to_owned()));
        }
        if path.starts_with("/sys/fs/cgroup") {
            return Err(ReferenceError::FileSystem(text.to_owned()));
        }
        Ok(Self::Path(
            Path::new("/")
                .join(path)
                .components()
                .filter(|part| !matches!(part, Component::CurDir))
                .collect(),
        ))
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(formatter),
            Self::Unit(name) => formatter.write_str(name),
            Self::Container(name) => formatter.write_str(&of_container(name)),
        }
    }
}

impl Reference {
    /// Whether a directory of this name is the cgroup of the unit.
    ///
    /// systemd puts `_` before unit names that look like a kernel file (`memory.service`), see
    /// "Control Groups" in systemd.resource-control(5).
    pub(crate) fn is_unit_dir(unit: &str, dir: &Path) -> bool {
        dir.file_name().is_some_and(|name| {
            name == unit || name.to_str().and_then(|name| name.strip_prefix('_')) == Some(unit)
        })
    }
}

impl Cgroup2 {
    /// The cgroups a reference means now, sorted; empty when there is none (yet).
    #[must_use]
    pub fn resolve(&self, reference: &Reference) -> Vec<Cgroup> {
        let mut found: Vec<Cgroup> = match reference {
            Reference::Path(path) => {
                let dir = self.dir(path).ok();
                dir.and_then(|dir| self.at(&dir)).into_iter().collect()
            }
            Reference::Unit(unit) => {
                let mut dirs = Vec::new();
                walk(self.mount(), &mut |dir| {
                    if Reference::is_unit_dir(unit, dir) {
                        dirs.extend(self.at(dir));
                    }
                    true
                });
                dirs
            }
            Reference::Container(id) => {
                let found = self.containers(id);
                found.into_iter().map(|(_, cgroup)| cgroup).collect()
            }
        };
        found.sort();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_units_and_paths_are_told_apart() {
        assert_eq!(
            parse("nginx.service"),
            Reference::Unit("nginx.service".into())
        );
        assert_eq!(
            parse("system.slice/nginx.service"),
            Reference::Path("/system.slice/nginx.service".into())
        );
        assert_eq!(parse("builders"), Reference::Path("/builders".into()));
        assert_eq!(parse("/a//b/"), Reference::Path("/a/b".into()));
        assert_eq!(parse("/"), Reference::Path("/".into()));
    }

    #[test]
    fn what_cannot_be_a_cgroup_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "empty"),
            ("a/../b", ".."),
            ("/sys/fs/cgroup/a", "leave"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_unit_is_found_everywhere_in_the_tree_and_a_path_only_there() {
        let tree = tempfile::tempdir().unwrap();
        for dir in [
            "system.slice/db.service",
            "user.slice/u.slice/db.service/child",
            "system.slice/_memory.service",
        ] {
            fs::create_dir_all(tree.path().join(dir)).unwrap();
        }
        let cgroups = Cgroup2::pretended(tree.path());
        let paths = |text: &str| -> Vec<_> {
            let found = cgroups.resolve(&parse(text));
            found.into_iter().map(|it| (it.path, it.level)).collect()
        };
        assert_eq!(
            paths("db.service"),
            [
                ("/system.slice/db.service".into(), 2),
                ("/user.slice/u.slice/db.service".into(), 3)
            ]
        );
        assert_eq!(
            paths("memory.service"),
            [("/system.slice/_memory.service".into(), 2)]
        );
        assert_eq!(
            paths("user.slice/u.slice"),
            [("/user.slice/u.slice".into(), 2)]
        );
        assert_eq!(paths("later.service"), []);
        assert_eq!(paths("system.slice/later"), []);
    }
}
