//! Programs of others on the hooks that we use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd,
    path::Path,
};

use proxy_common::names;
use serde::Serialize;

use super::check::Check;
use crate::{
    cgroup::{self, Cgroup2},
    intercept::survey::{self, HOOKS, Holder},
};

/// A program that is attached to a cgroup. The names of the fields are those of the JSON report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Neighbour {
    /// The hook, by the name of our program there.
    pub(super) hook: &'static str,
    /// The cgroup, below the mount point; `network namespace` for hooks on that.
    pub(super) cgroup: String,
    /// Its place among the programs of that hook and cgroup, from 1, in the order they run in.
    pub(super) position: usize,
    /// Its id.
    pub(super) id: u32,
    /// Its name; unknown without `CAP_SYS_ADMIN`.
    pub(super) name: Option<String>,
    /// The processes that keep it attached; none when it is pinned or stays by itself.
    pub(super) held_by: Vec<Process>,
}

/// A process that keeps a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Process {
    /// Its id.
    pub(super) pid: u32,
    /// Its `comm`.
    pub(super) comm: String,
}

/// Where programs are that no cgroup has.
const NAMESPACE: &str = "network namespace";

/// Every program on our hooks, in the whole hierarchy and on this network namespace.
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub(super) fn find(cgroups: &Cgroup2) -> io::Result<Vec<Neighbour>> {
    let mut found = Vec::new();
    let mut failure = None;
    cgroup::walk(cgroups.mount(), &mut |directory| {
        // A cgroup that vanished meanwhile has no programs.
        if let Ok(file) = File::open(directory)
            && let Err(error) = on_cgroup(&file, &shown(cgroups, directory), &mut found)
        {
            failure = Some(error);
        }
        failure.is_none()
    });
    failure.map_or(Ok(()), Err)?;
    let ids = survey::attached_to_namespace().unwrap_or_default();
    found.extend((1..).zip(ids).map(|(position, id)| Neighbour {
        hook: names::REVERSE,
        cgroup: NAMESPACE.to_owned(),
        position,
        id,
        name: None,
        held_by: Vec::new(),
    }));
    if !found.is_empty() {
        name(&mut found, &survey::program_names(), &survey::holders());
    }
    Ok(found)
}

fn on_cgroup(cgroup: &File, path: &str, found: &mut Vec<Neighbour>) -> io::Result<()> {
    for hook in HOOKS {
        let ids = match survey::attached(cgroup.as_fd(), hook) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // A kernel without the hook, or a cgroup that is just going, has no programs.
            ids => ids.unwrap_or_default(),
        };
        found.extend((1..).zip(ids).map(|(position, id)| Neighbour {
            hook: hook.program,
            cgroup: path.to_owned(),
            position,
            id,
            name: None,
            held_by: Vec::new(),
        }));
    }
    Ok(())
}

fn shown(cgroups: &Cgroup2, directory: &Path) -> String {
    let below = directory.strip_prefix(cgroups.mount()).unwrap_or(directory);
    format!("/{}", below.display())
}

fn name(
    found: &mut [Neighbour],
    names: &BTreeMap<u32, String>,
    holders: &BTreeMap<u32, BTreeSet<Holder>>,
) {
    for neighbour in found {
        neighbour.name = names.get(&neighbour.id).cloned();
        let held_by = holders.get(&neighbour.id).into_iter().flatten();
        neighbour.held_by = held_by
            .map(|holder| Process {
                pid: holder.pid,
                comm: holder.comm.clone(),
            })
            .collect();
    }
}

/// What there is to be said about them.
pub(super) fn check(found: &io::Result<Vec<Neighbour>>) -> Check {
    match found {
        Err(error) => Check::unchecked(
            "other_programs",
            format!("cannot list what is attached: {error}"),
        ),
        Ok(found) if found.is_empty() => Check::ok("other_programs", "none on our hooks"),
        Ok(found) => {
            let places: BTreeSet<_> = found.iter().map(|neighbour| &neighbour.cgroup).collect();
            Check::warning(
                "other_programs",
                format!("{} on our hooks, in {} places (listed below)", found.len(), places.len()),
            )
            .advice(
                "those of child cgroups run before culvert's, those of the same cgroup in the order of attaching; one \
                 that rewrites or refuses a connect() first decides what culvert sees; of those on the network namespace \
                 the last that chooses a listener decides",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;

    fn neighbour(id: u32) -> Neighbour {
        Neighbour {
            hook: "connect4",
            cgroup: "/kubepods".into(),
            position: 1,
            id,
            name: None,
            held_by: Vec::new(),
        }
    }

    #[test]
    fn a_program_gets_the_name_and_the_processes_of_its_id() {
        let mut found = [neighbour(4), neighbour(5)];
        let agent = Holder {
            pid: 99,
            comm: "agent".into(),
        };
        let names = BTreeMap::from([(4, "sock4_connect".to_owned())]);
        name(
            &mut found,
            &names,
            &BTreeMap::from([(4, BTreeSet::from([agent]))]),
        );
        assert_eq!(found[0].name.as_deref(), Some("sock4_connect"));
        assert_eq!(found[0].held_by[0].comm, "agent");
        assert_eq!(found[1], neighbour(5));
    }

    #[test]
    fn nobody_else_is_fine_and_not_being_allowed_to_look_is_said() {
        assert_eq!(check(&Ok(Vec::new())).status, Status::Ok);
        assert_eq!(check(&Ok(vec![neighbour(1)])).status, Status::Warning);
        let refused = Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(check(&refused).status, Status::Unchecked);
    }
}
