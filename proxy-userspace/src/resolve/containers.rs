//! Which containers names and ids in rules stand for.
//!
//! Ids are in the names of cgroups. Names only the runtimes know, which are asked at their sockets: Docker and Podman speak the same
//! HTTP; containerd and CRI-O know containers of Kubernetes by ids alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    runtime::Builder,
    time::{Instant, timeout_at},
};

use crate::{
    admin::get,
    cgroup::{Cgroup2, runtime::is_id},
    policy::Containers,
    rule::{Rule, container_in},
};

/// The sockets of runtimes that know names.
const SOCKETS: [(&str, &str); 2] = [
    ("docker", "/run/docker.sock"),
    ("podman", "/run/podman/podman.sock"),
];
/// How long they may take for all names together: the daemon does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks every container up that rules name. What a runtime said before holds while it does not answer.
pub(super) fn resolve(
    rules: &[Rule],
    cgroups: &Cgroup2,
    before: &BTreeMap<String, Containers>,
) -> BTreeMap<String, Containers> {
    let names = named(rules);
    let (ids, names): (BTreeSet<_>, BTreeSet<_>) = names.into_iter().partition(|it| is_id(it));
    let mut found: BTreeMap<_, _> = ids
        .into_iter()
        .map(|id| (id.clone(), by_id(cgroups, &id)))
        .collect();
    for (name, answer) in asked(names) {
        let known = match answer {
            Ok(id) => by_id(cgroups, &id),
            Err(problem) => {
                let known = before.get(&name).and_then(|known| known.id.as_deref());
                match known {
                    Some(id) => by_id(cgroups, id),
                    None => Containers {
                        problem: Some(problem),
                        ..Containers::default()
                    },
                }
            }
        };
        found.insert(name, known);
    }
    found
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
        return Containers {
            problem: Some(format!(
                "it may be any of {}; write more digits",
                ids.join(", ")
            )),
            ..Containers::default()
        };
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

/// What the runtimes say: the id, or why there is none.
fn asked(names: BTreeSet<String>) -> Vec<(String, Result<String, String>)> {
    if names.is_empty() {
        return Vec::new();
    }
    // This thread may be in a runtime, in which nothing may be waited for.
    let asking = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string());
        let until = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        for name in names {
            let answer = match &runtime {
                Ok(runtime) => runtime.block_on(of_all(&name, until)),
                Err(error) => Err(error.clone()),
            };
            answers.push((name, answer));
        }
        answers
    });
    asking.join().unwrap_or_default()
}

async fn of_all(name: &str, until: Instant) -> Result<String, String> {
    let mut known = Vec::new();
    let mut silent = Vec::new();
    for (runtime, socket) in SOCKETS {
        match timeout_at(until, of_one(Path::new(socket), name)).await {
            Ok(Ok(Some(id))) => known.push((runtime, id)),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => silent.push(format!("{socket}: {error}")),
            Err(_) => silent.push(format!("{socket}: no answer")),
        }
    }
    match &known[..] {
        [] if silent.len() < SOCKETS.len() => Err("no runtime knows it (yet)".to_owned()),
        [] => Err(format!(
            "no runtime can be asked for its id ({}); name it by id",
            silent.join("; ")
        )),
        [(_, id)] => Ok(id.clone()),
        several => {
            let several: Vec<_> = several
                .iter()
                .map(|(runtime, id)| format!("{id} of {runtime}"))
                .collect();
            Err(format!("it may be {}; name it by id", several.join(" or ")))
        }
    }
}

/// The id of a container of just this name.
async fn of_one(socket: &Path, name: &str) -> Result<Option<String>, String> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| error.to_string())?;
    let path = format!("/containers/{name}/json");
    let (status, body) = get(stream, &path)
        .await
        .map_err(|error| error.to_string())?;
    if status == 404 {
        return Ok(None);
    }
    let answer: serde_json::Value = serde_json::from_slice(&body)
        .map_err(|error| format!("status {status}, and not what runtimes answer: {error}"))?;
    let text = |key: &str| answer.get(key).and_then(serde_json::Value::as_str);
    // It may also be found by the first digits of an id, which are no name.
    let is_called = text("Name").is_some_and(|it| it.trim_start_matches('/') == name);
    match text("Id").filter(|id| is_id(id)) {
        Some(id) if is_called => Ok(Some(id.to_owned())),
        Some(_) => Ok(None),
        None => Err(format!("status {status}, without an id")),
    }
}
