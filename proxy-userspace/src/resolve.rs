//! What the names in rules stand for at the moment: cgroups by path or unit, executables by path, interfaces by
//! name.

mod containers;

use std::{collections::BTreeSet, path::PathBuf, thread};

use tokio::sync::oneshot;

pub(crate) use self::containers::Answers;
use crate::{
    cgroup::{Cgroup2, Reference},
    policy::{CgroupRef, Containers, ExeRef, Names},
    process::exe::exe_identity,
    rule::{Roles, Rule, container_in},
    socket,
};

/// Resolves every name in the rules, and waits for the runtimes that know names of containers.
#[must_use]
pub fn resolve(roles: Roles<'_>, cgroups: &Cgroup2, before: &Names) -> Names {
    let answers = containers::ask_and_wait(containers::called(roles.forward));
    resolve_by(roles, cgroups, before, &answers)
}

/// Asks the runtimes for what rules call by names, and does not wait for them; `None` when there is nothing to ask.
pub(crate) fn ask_runtimes(rules: &[Rule]) -> Option<oneshot::Receiver<Answers>> {
    let names = containers::called(rules);
    if names.is_empty() {
        return None;
    }
    let (answer, answered) = oneshot::channel();
    // Who asked may have ended.
    thread::spawn(move || _ = answer.send(containers::ask(&names)));
    Some(answered)
}

/// The container of a name or an id.
pub(crate) fn container(cgroups: &Cgroup2, name: &str) -> Containers {
    containers::one(cgroups, name)
}

/// Resolves every name in the rules, those of containers by what their runtimes have answered. What was known of an executable before
/// stays known: processes that were started before an upgrade go on running the old file.
pub(crate) fn resolve_by(
    roles: Roles<'_>,
    cgroups: &Cgroup2,
    before: &Names,
    answers: &Answers,
) -> Names {
    let mut names = Names {
        containers: containers::resolve(roles.forward, cgroups, &before.containers, answers),
        ..Names::default()
    };
    for reference in cgroups_of(roles.forward) {
        let container = container_in(&reference).and_then(|name| names.containers.get(name));
        let found: Vec<_> = match container {
            Some(container) => {
                let directories = container.directories.iter();
                directories.filter_map(|it| cgroups.at(it)).collect()
            }
            None => reference
                .parse::<Reference>()
                .map(|parsed| cgroups.resolve(&parsed))
                .unwrap_or_default(),
        };
        let found = found.iter().map(|cgroup| CgroupRef {
            id: cgroup.id,
            level: cgroup.level,
        });
        names.cgroups.insert(reference, found.collect());
    }
    for path in exes_of(roles.forward) {
        let mut files = before.exes.get(&path).cloned().unwrap_or_default();
        if let Ok(id) = exe_identity(&path) {
            let current = ExeRef {
                inode: id.ino,
                device: id.dev,
            };
            if !files.contains(&current) {
                files.push(current);
            }
        }
        names.exes.insert(path, files);
    }
    for name in interfaces_of(roles) {
        let number = socket::interface_number(&name);
        names.interfaces.insert(name, number);
    }
    names
}

/// Names that stand for nothing at the moment, as a person would want to hear it.
pub fn unresolved(names: &Names) -> impl Iterator<Item = String> {
    let cgroups = names.cgroups.iter().filter(|(_, found)| found.is_empty());
    let exes = names.exes.iter().filter(|(_, files)| files.is_empty());
    let cgroups = cgroups.map(|(reference, _)| match container_in(reference) {
        None => {
            format!("there is no cgroup {reference:?} yet; its rules apply as soon as it appears")
        }
        Some(name) => {
            let known = names.containers.get(name);
            let problem = known.and_then(|known| known.problem.as_deref());
            let problem = problem.unwrap_or("it does not run; its rules apply as soon as it does");
            format!("container {name:?}: {problem}")
        }
    });
    let exes = exes.map(|(path, _)| {
        format!(
            "there is no executable {} yet; its rules apply as soon as it appears",
            path.display()
        )
    });
    let interfaces = names.interfaces.iter();
    let interfaces = interfaces.filter(|(_, number)| number.is_none());
    let interfaces = interfaces.map(|(name, _)| {
        format!("there is no interface {name:?} yet; its rules apply as soon as it appears")
    });
    cgroups.chain(exes).chain(interfaces)
}

/// Why containers are not known any more that were before.
pub(crate) fn lost_containers(names: &Names, before: &Names) -> impl Iterator<Item = String> {
    names.containers.iter().filter_map(|(name, now)| {
        let problem = now.problem.as_deref()?;
        let was_known = before.containers.get(name)?.problem.is_none();
        was_known.then(|| format!("container {name:?}: {problem}"))
    })
}

/// Every interface that a rule names.
#[must_use]
pub fn interfaces_of(roles: Roles<'_>) -> BTreeSet<String> {
    let selectors = roles.reverse.iter().map(|rule| &rule.interface);
    let selected = selectors.flat_map(|selector| selector.include.iter().chain(&selector.exclude));
    let passed = roles.gateway.iter().flat_map(|rule| &rule.interface);
    selected.chain(passed).cloned().collect()
}

/// Every cgroup that a rule names.
#[must_use]
pub fn cgroups_of(rules: &[Rule]) -> BTreeSet<String> {
    let selectors = rules.iter().map(|rule| &rule.matches.cgroup);
    selectors
        .flat_map(|selector| selector.include.iter().chain(&selector.exclude))
        .cloned()
        .collect()
}

/// Every executable that a rule names.
#[must_use]
pub fn exes_of(rules: &[Rule]) -> BTreeSet<PathBuf> {
    let selectors = rules.iter().map(|rule| &rule.matches.exe);
    selectors
        .flat_map(|selector| selector.include.iter().chain(&selector.exclude))
        .cloned()
        .collect()
}
