//! User accounts and their groups, without the name service library.
//!
//! The binary is static and the name service needs shared libraries, so the text files are read. What is not in
//! them (LDAP, systemd-homed) is asked of `getent`, which is a dynamic program.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A line of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell; empty means `/bin/sh`.
    pub shell: PathBuf,
}

/// Where accounts are looked up.
#[derive(Clone, Debug)]
pub struct Accounts {
    passwd: PathBuf,
    group: PathBuf,
    getent: PathBuf,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            passwd: "/etc/passwd".into(),
            group: "/etc/group".into(),
            getent: "getent".into(),
        }
    }
}

impl Accounts {
    /// The account with a name, or else with a number.
    ///
    /// # Errors
    /// When the user database exists and cannot be read.
    pub fn find(&self, name_or_uid: &str) -> io::Result<Option<Account>> {
        let uid = name_or_uid.parse().ok();
        let text = read(&self.passwd)?;
        let known: Vec<Account> = text.lines().filter_map(account).collect();
        let named = known.iter().find(|account| account.name == name_or_uid);
        let found = named.or_else(|| known.iter().find(|account| Some(account.uid) == uid));
        if let Some(found) = found {
            return Ok(Some(found.clone()));
        }
        let answer = self.ask("passwd", name_or_uid);
        Ok(answer.and_then(|line| account(line.trim_end())))
    }

    /// The groups an account is in: its primary one and those that list it, in ascending order.
    ///
    /// # Errors
    /// When the group database exists and cannot be read.
    pub fn groups(&self, account: &Account) -> io::Result<Vec<u32>> {
        let text = read(&self.group)?;
        let listed = text
            .lines()
            .filter_map(|line| member_group(line, &account.name));
        let mut groups: BTreeSet<u32> = listed.collect();
        groups.insert(account.gid);
        // "name gid gid …", from all databases: a local account can be in groups of the directory service.
        if let Some(answer) = self.ask("initgroups", &account.name) {
            let gids = answer.split_ascii_whitespace().skip(1);
            groups.extend(gids.filter_map(|gid| gid.parse::<u32>().ok()));
        }
        Ok(groups.into_iter().collect())
    }

    /// An answer of `getent`; `None` when it knows none, or when there is no `getent`.
    fn ask(&self, database: &str, key: &str) -> Option<String> {
        if key.starts_with('-') {
            return None;
        }
        let output = Command::new(&self.getent)
            .args([database, key])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let answered = output.status.success();
        answered.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A file that is missing (an image that holds nothing else) lists nobody.
fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        bytes => Ok(String::from_utf8_lossy(&bytes?).into_owned()),
    }
}

/// `name:password:uid:gid:comment:home:shell`, passwd(5).
fn account(line: &str) -> Option<Account> {
    let mut columns = line.split(':');
    let name = columns.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = columns.nth(1)?.parse().ok()?;
    let gid = columns.next()?.parse().ok()?;
    let home = columns.nth(1)?.into();
    let shell = columns.next().unwrap_or_default().into();
    Some(Account {
        name,
        uid,
        gid,
        home,
        shell,
    })
}

/// The id in `name:password:gid:member,member`, group(5), if `user` is a member.
fn member_group(line: &str, user: &str) -> Option<u32> {
    let mut columns = line.split(':').skip(2);
    let gid = columns.next()?.parse().ok()?;
    let mut members = columns.next()?.split(',');
    members.any(|member| member == user).then_some(gid)
}

#[cfg(test)]
impl Accounts {
    /// A machine with these files, whose `getent` is a shell script.
    pub(super) fn pretended(dir: &Path, passwd: &str, group: &str, getent: &str) -> Self {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let script = file("getent", &format!("#!/bin/sh\n{getent}\n"));
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, executable).unwrap();
        Self {
            passwd: file("passwd", passwd),
            group: file("group", group),
            getent: script,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n\
        ann:x:1000:1000:Ann,,,:/home/ann:/bin/zsh\n\
        1000:x:2000:2000::/home/odd:\n\
        broken:x:y:0::/:\n";
    const GROUP: &str =
        "root:x:0:\nann:x:1000:\nsudo:x:27:bob,ann\nanna:x:28:anna\ndocker:x:998:ann\n";

    #[test]
    fn accounts_are_found_by_name_before_number() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = Accounts::pretended(dir.path(), PASSWD, GROUP, "exit 2");
        let ann = accounts.find("ann").unwrap().unwrap();
        assert_eq!((ann.uid, ann.gid), (1000, 1000));
        assert_eq!(ann.home, Path::new("/home/ann"));
        assert_eq!(ann.shell, Path::new("/bin/zsh"));
        assert_eq!(accounts.find("1000").unwrap().unwrap().uid, 2000);
        assert_eq!(accounts.find("2000").unwrap().unwrap().name, "1000");
        assert_eq!(accounts.find("broken").unwrap(), None);
        assert_eq!(accounts.find("nobody-here").unwrap(), None);
    }

    #[test]
    fn groups_are_the_primary_one_and_all_that_list_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = Accounts::pretended(dir.path(), PASSWD, GROUP, "exit 2");
        let ann = accounts.find("ann").unwrap().unwrap();
        assert_eq!(accounts.groups(&ann).unwrap(), [27, 998, 1000]);
    }

    #[test]
    fn what_the_files_do_not_know_is_asked_of_getent() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"case "$*" in
            "passwd 5000") echo "eve:*:5000:6000:Eve:/net/eve:/bin/sh" ;;
            "initgroups eve") echo "eve   6001 6002" ;;
            *) exit 2 ;;
            esac"#;
        let accounts = Accounts::pretended(dir.path(), PASSWD, GROUP, script);
        let eve = accounts.find("5000").unwrap().unwrap();
        assert_eq!((eve.name.as_str(), eve.gid), ("eve", 6000));
        assert_eq!(accounts.groups(&eve).unwrap(), [6000, 6001, 6002]);
    }

    #[test]
    fn a_machine_without_files_and_getent_knows_nobody() {
        let missing = Accounts {
            passwd: "/nonexistent/passwd".into(),
            group: "/nonexistent/group".into(),
            getent: "/nonexistent/getent".into(),
        };
        assert_eq!(missing.find("root").unwrap(), None);
    }
}
