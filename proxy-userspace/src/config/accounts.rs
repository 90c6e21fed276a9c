//! Names of users and groups, from the text of `/etc/passwd` and `/etc/group`.
//!
//! Not by `getpwnam`: the name service needs shared libraries, and the binary is static.

use std::{cell::OnceCell, path::Path};

use super::{environment::Environment, mask::quoted, raw::closest, report::Finding};

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Users.
    User,
    /// Groups.
    Group,
}

impl Kind {
    pub(super) fn id_name(self) -> &'static str {
        match self {
            Self::User => "user id",
            Self::Group => "group id",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::User => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

/// The accounts of the machine, read at their first use.
pub(super) struct Accounts<'e> {
    environment: &'e dyn Environment,
    users: OnceCell<Result<Names, String>>,
    groups: OnceCell<Result<Names, String>>,
}

type Names = Vec<(String, u32)>;

impl<'e> Accounts<'e> {
    pub(super) fn new(environment: &'e dyn Environment) -> Self {
        Self {
            environment,
            users: OnceCell::new(),
            groups: OnceCell::new(),
        }
    }

    /// The id of a name.
    pub(super) fn id(&self, kind: Kind, name: &str) -> Result<u32, Finding> {
        let cell = match kind {
            Kind::User => &self.users,
            Kind::Group => &self.groups,
        };
        let file = kind.file();
        let names = cell
            .get_or_init(|| self.read(file))
            .as_ref()
            .map_err(|source| {
                Finding::error(format!("cannot look {} up: {source}", quoted(name)))
                    .label(format!("give the {} as a number", kind.id_name()))
            })?;
        if let Some((_, id)) = names.iter().find(|(known, _)| known == name) {
            return Ok(*id);
        }
        let finding = Finding::error(format!("{} is not in {file}", quoted(name)));
        let known = names.iter().map(|(known, _)| known.as_str());
        Err(match closest(name, known) {
            Some(known) => finding.label(format!("did you mean `{known}`?")),
            None => finding.label(format!(
                "expected a name from {file}, a {} or a range such as `1000-1999`",
                kind.id_name()
            )),
        })
    }

    fn read(&self, file: &str) -> Result<Names, String> {
        let content = self.environment.read(Path::new(file));
        let content = content.map_err(|source| format!("cannot read {file}: {source}"))?;
        let text = String::from_utf8_lossy(&content.bytes);
        Ok(text.lines().filter_map(entry).collect())
    }
}

/// The name and the id of a line of either file: both have them in their first and third column.
fn entry(line: &str) -> Option<(String, u32)> {
    let mut columns = line.split(':');
    let name = columns.next().filter(|name| !name.is_empty())?;
    let id = columns.nth(1)?.parse().ok()?;
    Some((name.to_owned(), id))
}
