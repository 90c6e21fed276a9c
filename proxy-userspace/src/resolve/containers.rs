//! Which containers names and ids in rules stand for.
//!
//! Ids are in the names of cgroups. Names only the runtimes know, which are asked at their sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
};

use tokio::runtime::Builder;

use self::runtimes::asked;
use crate::{
    cgroup::{Cgroup2, runtime::is_id},
    policy::Containers,
    rule::{Rule, container_in},
};

mod answer;
mod cri;
mod docker;
mod runtimes;

pub(crate) use self::answer::Answer;

/// What the runtimes say of names.
pub(crate) type Answers = BTreeMap<String, Answer>;

/// Looks every container up that rules name, with what the runtimes say of names. What one said before holds while none knows better.
pub(super) fn resolve(
    rules: &[Rule],
    cgroups: &Cgroup2,
    before: &BTreeMap<String, Containers>,
    answers: &Answers,
) -> BTreeMap<String, Containers> {
    let known = |name: &String| {
        if is_id(name) {
            return by_id(cgroups, name);
        }
        let before = before.get(name);
        let said_before = before.and_then(|known| known.id.as_deref());
        match (answers.get(name), said_before) {
            (Some(Answer::Id(id)), _) => by_id(cgroups, id),
            (Some(Answer::Unknown(problem)), Some(id)) => held(cgroups, id, Some(problem)),
            (Some(Answer::Several(problem) | Answer::Unknown(problem)), _) => {
                unknown(problem.clone())
            }
            // Nobody was asked yet.
            (None, Some(id)) => held(cgroups, id, before.and_then(|it| it.problem.as_ref())),
            (None, None) => before.cloned().unwrap_or_default(),
        }
    };
    let names = named(rules).into_iter();
    names.map(|name| (name.clone(), known(&name))).collect()
}

/// The container of a name or an id, asked for at once.
pub(super) fn one(cgroups: &Cgroup2, name: &str) -> Containers {
    if is_id(name) {
        return by_id(cgroups, name);
    }
    let mut answers = ask_and_wait(BTreeSet::from([name.to_owned()]));
    match answers.remove(name) {
        Some(Answer::Id(id)) => by_id(cgroups, &id),
        Some(Answer::Several(problem) | Answer::Unknown(problem)) => unknown(problem),
        None => unknown("no runtime can be asked for its id".to_owned()),
    }
}

fn unknown(problem: String) -> Containers {
    Containers {
        problem: Some(problem),
        ..Containers::default()
    }
}

/// What was known before, and why nobody knows it now; that is no problem as long as it runs.
fn held(cgroups: &Cgroup2, id: &str, problem: Option<&String>) -> Containers {
    let mut known = by_id(cgroups, id);
    if known.directories.is_empty() {
        known.problem = known.problem.or(problem.cloned());
    }
    known
}

/// Those that rules name by what only runtimes know.
pub(super) fn called(rules: &[Rule]) -> BTreeSet<String> {
    named(rules).into_iter().filter(|it| !is_id(it)).collect()
}

/// The containers that rules name.
fn named(rules: &[Rule]) -> BTreeSet<String> {
    super::cgroups_of(rules)
        .iter()
        .filter_map(|reference| container_in(reference).map(str::to_owned))
        .collect()
}

fn by_id(cgroups: &Cgroup2, id: &str) -> Containers {
    let found = cgroups.containers(id);
    let ids: BTreeSet<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    if ids.len() > 1 {
        let ids: Vec<_> = ids.into_iter().collect();
        return unknown(format!(
            "it may be any of {}; write more digits",
            ids.join(", ")
        ));
    }
    let whole = ids.first().map_or(id, |whole| whole).to_owned();
    let directories = found
        .iter()
        .filter_map(|(_, it)| cgroups.dir(&it.path).ok());
    Containers {
        id: Some(whole),
        directories: directories.collect(),
        problem: None,
    }
}

/// Asks the runtimes. It takes its time, and must not be called on a thread that has something else to do.
pub(super) fn ask(names: &BTreeSet<String>) -> Answers {
    if names.is_empty() {
        return Answers::new();
    }
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(asked(names)),
        Err(error) => {
            let problem = format!("no runtime can be asked for its id: {error}");
            let of = |name: &String| (name.clone(), Answer::Unknown(problem.clone()));
            names.iter().map(of).collect()
        }
    }
}

/// As [`ask()`], on a thread of its own: this one may be in a runtime, in which nothing may be waited for.
pub(super) fn ask_and_wait(names: BTreeSet<String>) -> Answers {
    if names.is_empty() {
        return Answers::new();
    }
    thread::spawn(move || ask(&names))
        .join()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
