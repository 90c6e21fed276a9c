//! The runtimes that know names, each asked at its socket, all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{
    Answers,
    answer::{Answer, Candidate, Said},
    cri, docker,
};

/// How long each of them may take for all names together.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a runtime speaks at its socket.
#[derive(Clone, Copy)]
enum Protocol {
    Docker,
    Cri,
}

/// What is told of it, where it is asked, and how.
type Runtime = (&'static str, &'static str, Protocol);

const RUNTIMES: [Runtime; 4] = [
    ("docker", "/run/docker.sock", Protocol::Docker),
    ("podman", "/run/podman/podman.sock", Protocol::Docker),
    (
        "containerd",
        "/run/containerd/containerd.sock",
        Protocol::Cri,
    ),
    ("cri-o", "/run/crio/crio.sock", Protocol::Cri),
];

/// Why a runtime says nothing.
#[derive(Clone, Debug)]
pub(super) enum Silence {
    /// It has no socket.
    Absent,
    /// It cannot be asked, or talks of something else.
    Away(String),
    /// It does not answer.
    Mute,
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            _ => Self::Away(error.to_string()),
        }
    }
}

/// All runtimes at once: one that hangs must not keep another one from answering.
pub(super) async fn asked(names: &BTreeSet<String>) -> Answers {
    let [docker, podman, containerd, crio] = RUNTIMES.map(|runtime| one(runtime, names));
    let (docker, podman, containerd, crio) = tokio::join!(docker, podman, containerd, crio);
    let said = [docker, podman, containerd, crio];
    let of = |name: &String| (name.clone(), Answer::of(&said, name));
    names.iter().map(of).collect()
}

async fn one((runtime, socket, protocol): Runtime, names: &BTreeSet<String>) -> Said {
    let until = Instant::now() + PATIENCE;
    let of = match protocol {
        Protocol::Docker => by_docker(Path::new(socket), names, until).await,
        Protocol::Cri => by_cri(Path::new(socket), names, until).await,
    };
    Said {
        runtime,
        socket,
        of,
    }
}

type OfNames = BTreeMap<String, Result<Vec<Candidate>, Silence>>;

/// Docker and Podman are asked for each name.
async fn by_docker(socket: &Path, names: &BTreeSet<String>, until: Instant) -> OfNames {
    let mut of = OfNames::new();
    for name in names {
        let said = timeout_at(until, docker::id_of(socket, name)).await;
        let said = said.unwrap_or(Err(Silence::Mute));
        let candidates = said.map(|id| id.into_iter().map(Candidate::of_docker).collect());
        of.insert(name.clone(), candidates);
    }
    of
}

/// By the CRI all containers are told at once.
async fn by_cri(socket: &Path, names: &BTreeSet<String>, until: Instant) -> OfNames {
    let listed = timeout_at(until, cri::containers(socket)).await;
    let listed = listed.unwrap_or(Err(Silence::Mute));
    let of = |name: &String| {
        let candidates = listed.as_ref().map(|listed| {
            let called = listed.iter().filter(|it| it.is_called(name));
            called.map(Candidate::of_pod).collect()
        });
        (name.clone(), candidates.map_err(Clone::clone))
    };
    names.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn one_that_hangs_is_mute() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("socket");
        // It takes connections, and nobody answers them.
        let _listener = UnixListener::bind(&socket).unwrap();
        let names = BTreeSet::from(["web".to_owned()]);
        let until = Instant::now() + Duration::from_millis(50);
        for of in [
            by_docker(&socket, &names, until).await,
            by_cri(&socket, &names, until).await,
        ] {
            assert!(matches!(of["web"], Err(Silence::Mute)), "{of:?}");
        }
    }
}
