//! As whom a command runs: the user who called, not the root whom culvert needs to be.
//!
//! Whoever types `sudo culvert exec -- curl …` wants curl to be their own. sudo, doas, run0 and pkexec leave the
//! caller's identity in the environment; [`Identity`] makes of it ids, groups and the variables a login sets.
//! `PATH` stays as it is: sudo replaced it by its `secure_path`, and what it was before is not told.

use std::{ffi::OsString, io};

use nix::unistd::geteuid;
use thiserror::Error;

use super::account::{Account, Accounts};

/// Who shall run the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RunAs {
    /// Whoever called sudo, doas, run0 or pkexec; without one of them, this process's own user.
    #[default]
    Invoker,
    /// A user by name or number.
    User(String),
    /// Root, also below sudo.
    Root,
}

/// Another user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id: real, effective and saved.
    pub uid: u32,
    /// Group id: real, effective and saved.
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Variables to set (or to remove, where `None`) in the environment of the command.
    pub variables: Vec<(&'static str, Option<OsString>)>,
}

/// Why nobody can be told to run the command.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No such user.
    #[error("there is no user \"{0}\" in /etc/passwd, and getent knows none")]
    Unknown(String),
    /// The user or group database could not be read.
    #[error("cannot look up the user \"{name}\"")]
    Lookup {
        /// Who was looked up.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A variable of sudo or pkexec does not hold an id.
    #[error(
        "the environment variable {variable} is \"{value}\", which is no id; say --user NAME or --root"
    )]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Only root can become somebody else.
    #[error("running the command as {0} needs root; start culvert through sudo")]
    NotRoot(String),
}

/// What sudo and the like told about who called them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Invoker {
    name_or_uid: String,
    /// Their name and real ids, where told: enough to go on without an account.
    told: Option<(String, u32, u32)>,
}

impl RunAs {
    /// Whom to become; `None` means that the command runs as this process does.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn resolve(&self) -> Result<Option<Identity>, IdentityError> {
        let environment = |name: &str| std::env::var(name).ok();
        self.resolve_from(&Accounts::default(), geteuid().as_raw(), environment)
    }

    fn resolve_from(
        &self,
        accounts: &Accounts,
        euid: u32,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Identity>, IdentityError> {
        let is_root = euid == 0;
        match self {
            Self::Root if is_root => Ok(None),
            Self::Root => Err(IdentityError::NotRoot("root".to_owned())),
            Self::User(name) => {
                let identity = Identity::of_account(accounts, name)?
                    .ok_or_else(|| IdentityError::Unknown(name.clone()))?;
                if is_root {
                    Ok(Some(identity))
                } else if identity.uid == euid {
                    Ok(None)
                } else {
                    Err(IdentityError::NotRoot(name.clone()))
                }
            }
            // Variables that somebody else than root's sudo may have set are not looked at.
            Self::Invoker if !is_root => Ok(None),
            Self::Invoker => {
                let Some(invoker) = invoker(environment)? else {
                    return Ok(None);
                };
                let mut identity = Identity::of_account(accounts, &invoker.name_or_uid)?;
                if let Some((name, uid, gid)) = invoker.told {
                    match &mut identity {
                        // Whoever changed their group by newgrp stays in it.
                        Some(identity) => identity.gid = gid,
                        None => identity = Some(Identity::without_account(name, uid, gid)),
                    }
                }
                let identity = identity.ok_or(IdentityError::Unknown(invoker.name_or_uid))?;
                Ok((identity.uid != 0).then_some(identity))
            }
        }
    }
}

/// Who called, if somebody did who is not root already.
fn invoker(environment: impl Fn(&str) -> Option<String>) -> Result<Option<Invoker>, IdentityError> {
    let id = |variable: &'static str| -> Result<Option<u32>, IdentityError> {
        let Some(value) = environment(variable) else {
            return Ok(None);
        };
        let id = value.parse();
        id.map(Some)
            .map_err(|_| IdentityError::Variable { variable, value })
    };
    // run0 sets the variables of sudo as well.
    if let Some(uid) = id("SUDO_UID")? {
        let name = environment("SUDO_USER").unwrap_or_else(|| uid.to_string());
        return Ok((uid != 0).then_some(Invoker {
            name_or_uid: uid.to_string(),
            told: id("SUDO_GID")?.map(|gid| (name, uid, gid)),
        }));
    }
    let uid = id("PKEXEC_UID")?.map(|uid| uid.to_string());
    let name_or_uid = uid.or_else(|| environment("DOAS_USER"));
    Ok(name_or_uid.map(|name_or_uid| Invoker {
        name_or_uid,
        told: None,
    }))
}

impl Identity {
    fn of_account(accounts: &Accounts, name_or_uid: &str) -> Result<Option<Self>, IdentityError> {
        let lookup_error = |source| IdentityError::Lookup {
            name: name_or_uid.to_owned(),
            source,
        };
        let Some(account) = accounts.find(name_or_uid).map_err(lookup_error)? else {
            return Ok(None);
        };
        let groups = accounts.groups(&account).map_err(lookup_error)?;
        Ok(Some(Self {
            uid: account.uid,
            gid: account.gid,
            groups,
            variables: login(account),
        }))
    }

    /// For a caller whom no database knows, as in an image without `/etc/passwd`.
    fn without_account(name: String, uid: u32, gid: u32) -> Self {
        let mut variables = login(Account {
            name,
            uid,
            gid,
            home: "/".into(),
            shell: "/bin/sh".into(),
        });
        // Root's would be wrong, and theirs is not known.
        variables.retain(|(variable, _)| !matches!(*variable, "HOME" | "SHELL"));
        variables.extend([("HOME", None), ("SHELL", None)]);
        Self {
            uid,
            gid,
            groups: vec![gid],
            variables,
        }
    }
}

/// What a login sets, and away with what sudo and the like say of a user that the command no longer is.
fn login(account: Account) -> Vec<(&'static str, Option<OsString>)> {
    let shell = if account.shell.as_os_str().is_empty() {
        "/bin/sh".into()
    } else {
        account.shell
    };
    vec![
        ("HOME", Some(account.home.into())),
        ("SHELL", Some(shell.into())),
        ("USER", Some(account.name.clone().into())),
        ("LOGNAME", Some(account.name.into())),
        ("MAIL", None),
        ("SUDO_COMMAND", None),
        ("SUDO_USER", None),
        ("SUDO_UID", None),
        ("SUDO_GID", None),
        ("SUDO_HOME", None),
        ("DOAS_USER", None),
        ("PKEXEC_UID", None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/bash\nann:x:1000:1000::/home/ann:\n";
    const GROUP: &str = "ann:x:1000:\nsudo:x:27:ann\n";

    fn resolve(
        run_as: &RunAs,
        euid: u32,
        environment: &[(&str, &str)],
    ) -> Result<Option<Identity>, IdentityError> {
        let dir = tempfile::tempdir().unwrap();
        let accounts = Accounts::pretended(dir.path(), PASSWD, GROUP, "exit 2");
        run_as.resolve_from(&accounts, euid, |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn variable<'i>(identity: &'i Identity, name: &str) -> Option<&'i OsString> {
        let found = identity.variables.iter().find(|(known, _)| *known == name);
        found.unwrap().1.as_ref()
    }

    #[test]
    fn below_sudo_the_command_is_the_callers() {
        let sudo = [
            ("SUDO_UID", "1000"),
            ("SUDO_GID", "27"),
            ("SUDO_USER", "ann"),
        ];
        let ann = resolve(&RunAs::Invoker, 0, &sudo).unwrap().unwrap();
        assert_eq!((ann.uid, ann.gid), (1000, 27));
        assert_eq!(ann.groups, [27, 1000]);
        assert_eq!(variable(&ann, "HOME").unwrap(), "/home/ann");
        assert_eq!(variable(&ann, "SHELL").unwrap(), "/bin/sh");
        assert_eq!(variable(&ann, "LOGNAME").unwrap(), "ann");
        assert_eq!(variable(&ann, "SUDO_UID"), None);
    }

    #[test]
    fn doas_and_pkexec_tell_it_otherwise() {
        for told in [("DOAS_USER", "ann"), ("PKEXEC_UID", "1000")] {
            let ann = resolve(&RunAs::Invoker, 0, &[told]).unwrap().unwrap();
            assert_eq!((ann.uid, ann.gid), (1000, 1000), "{told:?}");
        }
    }

    #[test]
    fn nobody_else_called_a_root_shell() {
        assert_eq!(resolve(&RunAs::Invoker, 0, &[]).unwrap(), None);
        let root = [("SUDO_UID", "0"), ("SUDO_GID", "0")];
        assert_eq!(resolve(&RunAs::Invoker, 0, &root).unwrap(), None);
        let root = [("DOAS_USER", "root")];
        assert_eq!(resolve(&RunAs::Invoker, 0, &root).unwrap(), None);
    }

    #[test]
    fn without_root_the_environment_makes_nobody_else() {
        let forged = [("SUDO_UID", "1000"), ("SUDO_GID", "1000")];
        assert_eq!(resolve(&RunAs::Invoker, 1001, &forged).unwrap(), None);
    }

    #[test]
    fn a_caller_without_account_keeps_their_ids() {
        let sudo = [("SUDO_UID", "7"), ("SUDO_GID", "8"), ("SUDO_USER", "ldap")];
        let identity = resolve(&RunAs::Invoker, 0, &sudo).unwrap().unwrap();
        assert_eq!((identity.uid, identity.gid), (7, 8));
        assert_eq!(identity.groups, [8]);
        assert_eq!(variable(&identity, "USER").unwrap(), "ldap");
        assert_eq!(variable(&identity, "HOME"), None);
    }

    #[test]
    fn a_named_user_wins_over_sudo() {
        let sudo = [("SUDO_UID", "1000"), ("SUDO_GID", "1000")];
        assert_eq!(resolve(&RunAs::Root, 0, &sudo).unwrap(), None);
        let user = |name: &str| RunAs::User(name.to_owned());
        let root = resolve(&user("root"), 0, &sudo).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        let ann = resolve(&user("1000"), 0, &[]).unwrap().unwrap();
        assert_eq!(variable(&ann, "USER").unwrap(), "ann");
        assert_eq!(resolve(&user("ann"), 1000, &[]).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_said() {
        let fails = |run_as: RunAs, euid, environment: &[(&str, &str)], part| {
            let error = resolve(&run_as, euid, environment).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        fails(RunAs::User("eve".into()), 0, &[], "no user \"eve\"");
        fails(RunAs::User("root".into()), 1000, &[], "needs root");
        fails(RunAs::Root, 1000, &[], "needs root");
        let garbage = [("SUDO_UID", "ann")];
        fails(RunAs::Invoker, 0, &garbage, "SUDO_UID is \"ann\"");
    }
}
