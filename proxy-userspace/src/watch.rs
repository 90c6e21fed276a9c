//! What rules name can appear, change and go: a systemd unit is restarted, an executable is upgraded.
//!
//! The kernel compares ids and inodes, which are new each time, so the daemon must look the names up again.
//! [`Watcher`] says when: any sign of life in the directories a name leads through makes it compare what the
//! names mean now with what they meant before. Who looks up and what follows is not its business.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{
    cgroup::{self, Cgroup, Cgroup2, Reference},
    process::exe::{ExeId, exe_identity},
};

mod notices;

use notices::Notices;

/// Shortest time between two looks: a unit's start makes several directories.
const SETTLE: Duration = Duration::from_millis(50);

/// A look takes at most this share of the time, however often cgroups come and go.
const IDLE_SHARE: u32 = 10;

/// As many symbolic links as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// A name whose meaning can change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    /// The cgroups a rule names.
    Cgroup(Reference),
    /// All containers: what is called by a name that a rule has only their runtimes know.
    Containers,
    /// The executable a rule names, by absolute path.
    Exe(PathBuf),
}

/// What a name stands for at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Cgroups(Vec<Cgroup>),
    Exe(Option<ExeId>),
}

/// Says which names mean something else than before: look them up again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// These and no others.
    pub names: Vec<Watched>,
}

/// Watches a fixed list of names.
#[derive(Debug)]
pub struct Watcher {
    cgroups: Cgroup2,
    names: Vec<(Watched, Meaning)>,
    notices: Notices,
    /// No look before this time.
    rest_until: Instant,
}

impl Watcher {
    /// Starts watching. To be called inside a tokio runtime and **before** the names are looked up for use:
    /// every change after this call is told.
    #[must_use]
    pub fn new(cgroups: Cgroup2, names: Vec<Watched>) -> Self {
        let mut watcher = Self {
            names: names
                .into_iter()
                .map(|name| (name, Meaning::Exe(None)))
                .collect(),
            cgroups,
            notices: Notices::new(),
            rest_until: Instant::now(),
        };
        watcher.look();
        watcher
    }

    /// The next change. Never returns when there is nothing to watch. May be dropped and called again.
    pub async fn next(&mut self) -> Change {
        if self.names.is_empty() {
            return std::future::pending().await;
        }
        loop {
            self.notices.wait().await;
            sleep_until(self.rest_until).await;
            self.notices.clear();
            let names = self.look();
            if !names.is_empty() {
                return Change { names };
            }
        }
    }

    /// Looks every name up again and returns those that changed.
    fn look(&mut self) -> Vec<Watched> {
        let started = Instant::now();
        // Directories first: what changes after a directory was armed wakes us again.
        let mut arming = self.notices.arm();
        for (name, _) in &self.names {
            name.pass_directories(&self.cgroups, &mut |dir| arming.add(dir));
        }
        arming.finish();
        let mut changed = Vec::new();
        for (name, known) in &mut self.names {
            let meaning = name.meaning(&self.cgroups);
            if *known != meaning {
                *known = meaning;
                changed.push(name.clone());
            }
        }
        self.rest_until = Instant::now() + SETTLE.max(started.elapsed() * IDLE_SHARE);
        changed
    }
}

impl Watched {
    fn meaning(&self, cgroups: &Cgroup2) -> Meaning {
        match self {
            Self::Cgroup(reference) => Meaning::Cgroups(cgroups.resolve(reference)),
            Self::Containers => {
                let found = cgroups.all_containers("").into_iter();
                Meaning::Cgroups(found.map(|(_, cgroup)| cgroup).collect())
            }
            Self::Exe(path) => Meaning::Exe(exe_identity(path).ok()),
        }
    }

    /// Names each directory in which something that appears or goes can change the meaning, each **before** it
    /// is read.
    fn pass_directories(&self, cgroups: &Cgroup2, pass: &mut dyn FnMut(&Path)) {
        match self {
            // A unit can be anywhere: a user's manager has a tree of its own. And so can a container.
            Self::Cgroup(Reference::Unit(_) | Reference::Container(_)) | Self::Containers => {
                cgroup::walk(cgroups.mount(), &mut |dir| {
                    pass(dir);
                    true
                });
            }
            Self::Cgroup(Reference::Path(path)) => {
                if let Ok(dir) = cgroups.dir(path) {
                    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
                    above.retain(|dir| dir.starts_with(cgroups.mount()));
                    above.into_iter().rev().for_each(pass);
                }
            }
            Self::Exe(path) => pass_lookup(path, pass),
        }
    }
}

/// Passes the directories the kernel reads to resolve a path, through all symbolic links, as far as it exists:
/// `/opt/app/current` may be such a link, and `/usr/bin/python3`.
fn pass_lookup(path: &Path, pass: &mut dyn FnMut(&Path)) {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components()
            .map(|part| part.as_os_str().to_owned())
            .collect()
    };
    let mut at = PathBuf::from("/");
    let mut ahead = VecDeque::from(parts(path));
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                at.pop();
            }
            Some(Component::Normal(name)) => {
                pass(&at);
                let entry = at.join(name);
                if let Ok(target) = fs::read_link(&entry) {
                    links += 1;
                    if links > MAX_LINKS {
                        return;
                    }
                    for part in parts(&target).into_iter().rev() {
                        ahead.push_front(part);
                    }
                } else if entry.is_dir() {
                    at = entry;
                } else {
                    return;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
