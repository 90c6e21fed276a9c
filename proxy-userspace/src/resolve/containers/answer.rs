//! What runtimes say of a name, put together.

use std::{collections::BTreeMap, fmt};

use super::{cri::Listed, runtimes::Silence};

/// As many of several containers are told.
const MOST_TOLD: usize = 4;

/// What the runtimes say of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The container of this id is called so.
    Id(String),
    /// More than one is: which, and what to do.
    Several(String),
    /// None is, as far as they can be asked.
    Unknown(String),
}

/// A container that is called so.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    id: String,
    /// How no other one is called, as `namespace/pod/container`.
    whole: Option<String>,
}

impl Candidate {
    /// One whose name no other one of the same runtime has.
    pub(super) fn of_docker(id: String) -> Self {
        Self { id, whole: None }
    }

    /// One of a pod.
    pub(super) fn of_pod(listed: &Listed) -> Self {
        Self {
            id: listed.id.clone(),
            whole: listed.whole(),
        }
    }
}

/// What one runtime says of each name.
pub(super) struct Said {
    pub(super) runtime: &'static str,
    pub(super) socket: &'static str,
    pub(super) of: BTreeMap<String, Result<Vec<Candidate>, Silence>>,
}

/// A candidate, and of which runtime it is.
struct Known<'a>(&'a Candidate, &'static str);

impl fmt::Display for Known<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Candidate { id, whole }, runtime) = self;
        match whole {
            Some(whole) => write!(formatter, "{whole} ({id} of {runtime})"),
            None => write!(formatter, "{id} of {runtime}"),
        }
    }
}

impl Answer {
    /// What they say together.
    pub(super) fn of(said: &[Said], name: &str) -> Self {
        let (mut known, mut silent) = (Vec::new(), Silent::default());
        for one in said {
            match one.of.get(name) {
                Some(Ok(candidates)) => {
                    known.extend(candidates.iter().map(|it| Known(it, one.runtime)));
                }
                Some(Err(silence)) => silent.add(one.socket, silence),
                None => {}
            }
        }
        match &known[..] {
            [] if silent.count == said.len() => Self::Unknown(format!(
                "no runtime can be asked for its id ({silent}); name it by id"
            )),
            [] if silent.mute.is_empty() => Self::Unknown("no runtime knows it (yet)".to_owned()),
            [] => Self::Unknown(format!(
                "no runtime that answers knows it (yet; {})",
                silent.mute.join("; ")
            )),
            [Known(candidate, _)] => Self::Id(candidate.id.clone()),
            several => Self::Several(told(several)),
        }
    }
}

/// Who said nothing, and why.
#[derive(Default)]
struct Silent {
    count: usize,
    absent: Vec<&'static str>,
    away: Vec<String>,
    mute: Vec<String>,
}

impl Silent {
    fn add(&mut self, socket: &'static str, silence: &Silence) {
        self.count += 1;
        match silence {
            Silence::Absent => self.absent.push(socket),
            Silence::Away(error) => self.away.push(format!("{socket}: {error}")),
            Silence::Mute => self.mute.push(format!("{socket}: no answer")),
        }
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absent = match &self.absent[..] {
            [] => None,
            absent => Some(format!("there is no {}", absent.join(", "))),
        };
        let reasons = self.away.iter().chain(&self.mute).chain(&absent);
        let reasons: Vec<_> = reasons.map(String::as_str).collect();
        formatter.write_str(&reasons.join("; "))
    }
}

/// Which containers a name may stand for, and how to say which.
fn told(several: &[Known<'_>]) -> String {
    let mut candidates: Vec<_> = several.iter().map(ToString::to_string).collect();
    candidates.sort();
    let more = candidates.len().saturating_sub(MOST_TOLD);
    candidates.truncate(MOST_TOLD);
    if more > 0 {
        candidates.push(format!("{more} more"));
    }
    let are_of_pods = several.iter().all(|Known(it, _)| it.whole.is_some());
    let way = if are_of_pods {
        "name it by namespace/pod/container, or by id"
    } else {
        "name it by id"
    };
    format!("it may be {}; {way}", candidates.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(runtime: &'static str, of: Result<Vec<Candidate>, Silence>) -> Said {
        Said {
            runtime,
            socket: runtime,
            of: BTreeMap::from([("web".to_owned(), of)]),
        }
    }

    fn candidate(id: &str, whole: Option<&str>) -> Candidate {
        Candidate {
            id: id.to_owned(),
            whole: whole.map(str::to_owned),
        }
    }

    #[test]
    fn one_is_one_and_several_are_told() {
        let docker = || said("docker", Ok(vec![candidate("1", None)]));
        let pods = |names: &[&'static str]| {
            let candidates = names.iter().zip(["2", "3", "4", "5", "6"]);
            let candidates = candidates.map(|(name, id)| candidate(id, Some(name)));
            said("containerd", Ok(candidates.collect()))
        };
        let several = |text: &str| Answer::Several(text.to_owned());
        for (said, expected) in [
            (vec![docker()], Answer::Id("1".to_owned())),
            (
                vec![said("podman", Ok(vec![])), pods(&["a/b/web"])],
                Answer::Id("2".to_owned()),
            ),
            (
                vec![docker(), pods(&["a/b/web"])],
                several("it may be 1 of docker or a/b/web (2 of containerd); name it by id"),
            ),
            (
                vec![pods(&["a/c/web", "a/b/web"])],
                several(
                    "it may be a/b/web (3 of containerd) or a/c/web (2 of containerd); name it by namespace/pod/container, or by id",
                ),
            ),
        ] {
            assert_eq!(Answer::of(&said, "web"), expected);
        }
        let many = Answer::of(&[pods(&["a", "b", "c", "d", "e"])], "web");
        let Answer::Several(many) = many else {
            panic!("{many:?}");
        };
        assert!(many.contains("d (5 of containerd) or 1 more;"), "{many}");
    }

    #[test]
    fn why_nobody_knows_it_is_told() {
        let absent = |runtime| said(runtime, Err(Silence::Absent));
        let mute = || said("crio", Err(Silence::Mute));
        let away = || said("podman", Err(Silence::Away("refused".to_owned())));
        for (said, expected) in [
            (
                vec![absent("docker"), away(), mute(), absent("containerd")],
                "no runtime can be asked for its id (podman: refused; crio: no answer; there is no docker, containerd); name it by id",
            ),
            (
                vec![absent("docker"), said("podman", Ok(vec![])), away()],
                "no runtime knows it (yet)",
            ),
            (
                vec![said("podman", Ok(vec![])), mute()],
                "no runtime that answers knows it (yet; crio: no answer)",
            ),
        ] {
            assert_eq!(
                Answer::of(&said, "web"),
                Answer::Unknown(expected.to_owned())
            );
        }
    }
}
