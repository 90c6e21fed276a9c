//! What is attached where a connection passes, by whomever.

use std::{fs::File, io, os::fd::AsFd as _, path::Path};

use proxy_common::names;

use crate::{
    cgroup::Cgroup2,
    intercept::survey::{self, Holder},
    socket,
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
    } else {
        let mut found = on_interface(connection);
        if !connection.passes {
            let ids = survey::attached_to_namespace()?;
            found.extend(found_at(names::REVERSE, "network namespace", ids));
        }
        found
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

/// Those of a child run before those of its parent (`compute_effective_progs()` in kernel/bpf/cgroup.c), but for those that are attached
/// with `BPF_F_PREORDER` (kernel 6.15), as those of `culvert watch` are: the kernel is asked for the order.
fn on_cgroups(
    cgroups: &Cgroup2,
    directory: &Path,
    connection: &Request,
) -> io::Result<Vec<HookProgram>> {
    let mut found = Vec::new();
    for hook in survey::passed(connection.to.ip().to_canonical().is_ipv4()) {
        let mut attached = Vec::new();
        for directory in cgroups.upwards(directory) {
            let Some(cgroup) = cgroups.at(directory) else {
                continue;
            };
            let ids = survey::attached(File::open(directory)?.as_fd(), hook)?;
            let place = cgroup.path.display().to_string();
            attached.extend(found_at(hook.program, &place, ids));
        }
        let order = survey::in_force(File::open(directory)?.as_fd(), hook)?;
        found.extend(ordered(attached, &order));
    }
    Ok(found)
}

/// Puts programs in an order. One that is attached in two places keeps the order of these.
fn ordered(mut attached: Vec<HookProgram>, order: &[u32]) -> Vec<HookProgram> {
    let mut found = Vec::new();
    for id in order {
        let place = attached.iter().position(|program| program.id == *id);
        found.extend(place.map(|place| attached.remove(place)));
    }
    found
}

/// Those that links hold on the ingress of the interface, if one is named (kernel 6.6). Filters are listed by `tc filter show`.
fn on_interface(connection: &Request) -> Vec<HookProgram> {
    let name = connection.interface.as_deref().unwrap_or_default();
    let number = socket::interface_number(name);
    let ids = number.and_then(|number| survey::on_ingress(number).ok());
    found_at("tcx ingress", name, ids.unwrap_or_default())
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
