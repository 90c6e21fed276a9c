//! What is attached where a connection passes, by whomever.

use std::{fs::File, io, os::fd::AsFd as _, path::Path};

use proxy_common::names;

use crate::{
    cgroup::Cgroup2,
    intercept::survey::{self, HOOKS, Holder},
    status::explanation::{HookProgram, Request},
};

/// The programs that see a connection begin, in the order they run in.
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub(crate) fn on_the_way(cgroups: &Cgroup2, connection: &Request) -> io::Result<Vec<HookProgram>> {
    let mut found = if let Some(process) = &connection.process {
        let directory = cgroups.dir(Path::new(&process.cgroup));
        on_cgroups(cgroups, &directory.map_err(io::Error::other)?, connection)?
    } else if connection.passes {
        // Programs on interfaces are listed by `bpftool net`.
        return Ok(Vec::new());
    } else {
        let ids = survey::attached_to_namespace()?;
        found_at(names::REVERSE, "network namespace", ids)
    };
    if found.is_empty() {
        return Ok(found);
    }
    let (called, holders) = (survey::program_names(), survey::holders());
    for program in &mut found {
        program.name = called.get(&program.id).cloned();
        let Some(held_by) = holders.get(&program.id) else {
            continue;
        };
        program.ours = held_by.iter().any(Holder::is_culvert);
        let shown = |holder: &Holder| format!("{}[{}]", holder.comm, holder.pid);
        program.held_by = held_by.iter().map(shown).collect();
    }
    Ok(found)
}

/// Those of a child run before those of its parent (`compute_effective_progs()` in kernel/bpf/cgroup.c).
fn on_cgroups(
    cgroups: &Cgroup2,
    directory: &Path,
    connection: &Request,
) -> io::Result<Vec<HookProgram>> {
    let wanted = if connection.to.is_ipv4() {
        names::CONNECT4
    } else {
        names::CONNECT6
    };
    let mut found = Vec::new();
    for hook in HOOKS.into_iter().filter(|hook| hook.program == wanted) {
        for directory in cgroups.upwards(directory) {
            let Some(cgroup) = cgroups.at(directory) else {
                continue;
            };
            let ids = survey::attached(File::open(directory)?.as_fd(), hook)?;
            let place = cgroup.path.display().to_string();
            found.extend(found_at(hook.program, &place, ids));
        }
    }
    Ok(found)
}

fn found_at(hook: &str, place: &str, ids: Vec<u32>) -> Vec<HookProgram> {
    let program = |id| HookProgram {
        hook: hook.to_owned(),
        cgroup: place.to_owned(),
        id,
        name: None,
        ours: false,
        held_by: Vec::new(),
    };
    ids.into_iter().map(program).collect()
}
