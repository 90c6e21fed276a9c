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
/// How long each of them may take for all names together.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the runtimes say of names: the id, or why there is none.
pub(crate) type Answers = BTreeMap<String, Result<String, String>>;

/// Looks every container up that rules name, with what the runtimes say of names. What one said before holds while none answers.
pub(super) fn resolve(
    rules: &[Rule],
    cgroups: &Cgroup2,
    before: &BTreeMap<String, Containers>,
    answers: &Answers,
) -> BTreeMap<String, Containers> {
    let known = |name: &String| {
        let before = before.get(name);
        let said_before = before.and_then(|known| known.id.as_deref());
        match (answers.get(name), said_before) {
            _ if is_id(name) => by_id(cgroups, name),
            (Some(Ok(id)), _) => by_id(cgroups, id),
            (_, Some(id)) => by_id(cgroups, id),
            (Some(Err(problem)), None) => unknown(problem.clone()),
            // Nobody was asked yet.
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
        Some(Ok(id)) => by_id(cgroups, &id),
        Some(Err(problem)) => unknown(problem),
        None => unknown("no runtime can be asked for its id".to_owned()),
    }
}

fn unknown(problem: String) -> Containers {
    Containers {
        problem: Some(problem),
        ..Containers::default()
    }
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

/// Asks the runtimes. It takes its time, and must not be called on a thread that has something else to do.
pub(super) fn ask(names: &BTreeSet<String>) -> Answers {
    if names.is_empty() {
        return Answers::new();
    }
    let runtime = Builder::new_current_thread().enable_all().build();
    let said = match runtime {
        Ok(runtime) => runtime.block_on(asked(names)),
        Err(error) => Vec::from([Said::silent(names, &error.to_string())]),
    };
    let of = |name: &String| (name.clone(), merged(&said, name));
    names.iter().map(of).collect()
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

/// What one runtime says of each name.
struct Said {
    runtime: &'static str,
    socket: &'static str,
    of: BTreeMap<String, Result<Option<String>, Silence>>,
}

/// Why a runtime says nothing.
#[derive(Clone)]
enum Silence {
    /// It is not there, or talks of something else.
    Away(String),
    /// It does not answer.
    Mute,
}

impl Said {
    fn silent(names: &BTreeSet<String>, why: &str) -> Self {
        let away = |name: &String| (name.clone(), Err(Silence::Away(why.to_owned())));
        Self {
            runtime: "",
            socket: "",
            of: names.iter().map(away).collect(),
        }
    }
}

/// All runtimes at once: one that hangs must not keep another one from answering.
async fn asked(names: &BTreeSet<String>) -> Vec<Said> {
    let [docker, podman] = SOCKETS.map(|(runtime, socket)| async move {
        let until = Instant::now() + PATIENCE;
        let mut of = BTreeMap::new();
        for name in names {
            let said = match timeout_at(until, of_one(Path::new(socket), name)).await {
                Ok(said) => said.map_err(Silence::Away),
                Err(_) => Err(Silence::Mute),
            };
            of.insert(name.clone(), said);
        }
        Said {
            runtime,
            socket,
            of,
        }
    });
    let (docker, podman) = tokio::join!(docker, podman);
    vec![docker, podman]
}

/// What they say together.
fn merged(said: &[Said], name: &str) -> Result<String, String> {
    let (mut known, mut away, mut mute) = (Vec::new(), Vec::new(), Vec::new());
    for Said {
        runtime,
        socket,
        of,
    } in said
    {
        match of.get(name) {
            Some(Ok(Some(id))) => known.push((runtime, id)),
            Some(Ok(None)) | None => {}
            Some(Err(Silence::Away(error))) => away.push(format!("{socket}: {error}")),
            Some(Err(Silence::Mute)) => mute.push(format!("{socket}: no answer")),
        }
    }
    match &known[..] {
        [] if away.len() + mute.len() == said.len() => {
            away.append(&mut mute);
            Err(format!(
                "no runtime can be asked for its id ({}); name it by id",
                away.join("; ")
            ))
        }
        [] if mute.is_empty() => Err("no runtime knows it (yet)".to_owned()),
        [] => Err(format!(
            "no runtime that answers knows it (yet; {})",
            mute.join("; ")
        )),
        [(_, id)] => Ok((*id).clone()),
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
