//! What is loaded and attached on this machine, by whomever. Looks only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::programs::{loaded_links, loaded_programs};
use aya_obj::generated::bpf_attach_type;
use proxy_common::names;

use super::{
    arrivals::OWN_NAMESPACE,
    syscall::{self, query_effective, query_programs},
};

/// A hook of cgroups that we attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Our program there, after which the hook is called here.
    pub program: &'static str,
    attach_type: bpf_attach_type,
}

impl Hook {
    /// The kernel's number for it.
    pub(super) const fn attach_type(self) -> u32 {
        self.attach_type as u32
    }

    /// Whether the hook says where a connection goes.
    pub(super) fn decides(self) -> bool {
        [names::CONNECT4, names::CONNECT6].contains(&self.program)
    }
}

/// Every hook of cgroups that we attach to.
pub const HOOKS: [Hook; 6] = {
    use bpf_attach_type as at;
    const fn hook(program: &'static str, attach_type: at) -> Hook {
        Hook {
            program,
            attach_type,
        }
    }
    [
        hook(names::CONNECT4, at::BPF_CGROUP_INET4_CONNECT),
        hook(names::CONNECT6, at::BPF_CGROUP_INET6_CONNECT),
        hook(names::GETPEERNAME4, at::BPF_CGROUP_INET4_GETPEERNAME),
        hook(names::GETPEERNAME6, at::BPF_CGROUP_INET6_GETPEERNAME),
        hook(names::GETSOCKOPT, at::BPF_CGROUP_GETSOCKOPT),
        hook(names::TCP_EVENTS, at::BPF_CGROUP_SOCK_OPS),
    ]
};

/// Hooks of cgroups that a connection of IPv4, or of IPv6, passes, from its socket's making on; those that are not ours have the names that
/// `bpftool` has for them.
#[must_use]
pub const fn passed(is_v4: bool) -> [Hook; 8] {
    use bpf_attach_type as at;
    const fn others(program: &'static str, attach_type: at) -> Hook {
        Hook {
            program,
            attach_type,
        }
    }
    let [connect4, connect6, peer4, peer6, getsockopt, events] = HOOKS;
    [
        others("sock_create", at::BPF_CGROUP_INET_SOCK_CREATE),
        others("setsockopt", at::BPF_CGROUP_SETSOCKOPT),
        if is_v4 { connect4 } else { connect6 },
        events,
        others("egress", at::BPF_CGROUP_INET_EGRESS),
        others("ingress", at::BPF_CGROUP_INET_INGRESS),
        if is_v4 { peer4 } else { peer6 },
        getsockopt,
    ]
}

/// The ids of the programs attached to a cgroup itself, in the order they run in.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or when the kernel does not know the hook.
pub fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    query_programs(cgroup, hook.attach_type as u32)
}

/// The ids of the programs that run for processes of a cgroup, in the order they run in, wherever they are attached.
///
/// # Errors
/// As [`attached`].
pub fn in_force(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    query_effective(cgroup, hook.attach_type as u32)
}

/// The ids of the programs that links hold on the ingress of an interface, in the order they run in.
///
/// # Errors
/// As [`attached`], and when there is no such interface.
pub fn on_ingress(interface: u32) -> io::Result<Vec<u32>> {
    syscall::on_ingress(interface)
}

/// The names of all loaded programs by id. Empty without `CAP_SYS_ADMIN`.
#[must_use]
pub fn program_names() -> BTreeMap<u32, String> {
    loaded_programs()
        .filter_map(Result::ok)
        .map(|program| (program.id(), program.name_as_str().unwrap_or("").to_owned()))
        .collect()
}

/// The process that intercepts the connections of a cgroup by programs called like ours. `None` also without
/// `CAP_SYS_ADMIN`, which it takes to look.
#[must_use]
pub fn served_by(cgroup: BorrowedFd<'_>) -> Option<u32> {
    let program = *programs_like_ours(cgroup)?.first()?;
    holders().get(&program)?.first().map(|holder| holder.pid)
}

/// Whether there are programs on all of [`HOOKS`] of a cgroup, of whomever.
#[must_use]
pub fn has_every_hook(cgroup: BorrowedFd<'_>) -> bool {
    let is_taken = |hook: &Hook| attached(cgroup, *hook).is_ok_and(|ids| !ids.is_empty());
    HOOKS.iter().all(is_taken)
}

/// The first program called like ours on each of [`HOOKS`], of a cgroup that has them all: one name is nobody's, all of them at
/// once are ours. `None` also without `CAP_SYS_ADMIN`.
pub(super) fn programs_like_ours(cgroup: BorrowedFd<'_>) -> Option<Vec<u32>> {
    let names = program_names();
    let ours = |hook: &Hook| {
        let ids = attached(cgroup, *hook).unwrap_or_default();
        ids.into_iter()
            .find(|id| names.get(id).is_some_and(|name| name == hook.program))
    };
    HOOKS.iter().map(ours).collect()
}

/// The ids of the programs that see what arrives in our network namespace, in the order they run in.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or when the kernel does not know the hook (before 5.9).
pub fn attached_to_namespace() -> io::Result<Vec<u32>> {
    let namespace = File::open(OWN_NAMESPACE)?;
    query_programs(namespace.as_fd(), bpf_attach_type::BPF_SK_LOOKUP as u32)
}

/// Another process that takes what arrives in our network namespace by a program called like ours. `None` also without
/// `CAP_SYS_ADMIN`, which it takes to look.
#[must_use]
pub fn arrivals_taken_by() -> Option<u32> {
    let other = |(_, holder): &(u32, Holder)| holder.pid != std::process::id();
    arrivals_taken()
        .into_iter()
        .find(other)
        .map(|(_, holder)| holder.pid)
}

/// The programs called like ours that take what arrives in our network namespace, each with the culverts that hold it.
pub(super) fn arrivals_taken() -> Vec<(u32, Holder)> {
    let ids = attached_to_namespace().unwrap_or_default();
    if ids.is_empty() {
        return Vec::new();
    }
    let (called, holders) = (program_names(), holders());
    let ours = ids
        .into_iter()
        .filter(|id| called.get(id).is_some_and(|name| name == names::REVERSE));
    ours.filter_map(|id| Some((id, holders.get(&id)?)))
        .flat_map(|(id, holders)| holders.iter().map(move |holder| (id, holder.clone())))
        .filter(|(_, holder)| holder.is_culvert())
        .collect()
}

/// A process that holds a program or its link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its `comm`.
    pub comm: String,
}

impl Holder {
    /// Whether it is a culvert, as far as a name tells.
    #[must_use]
    pub fn is_culvert(&self) -> bool {
        self.comm.starts_with("culvert")
    }
}

/// Who holds programs, by program id. A program without a holder is pinned, or was attached the way that stays.
#[must_use]
pub fn holders() -> BTreeMap<u32, BTreeSet<Holder>> {
    let mut found = BTreeMap::<u32, BTreeSet<Holder>>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let held = Objects::held_by(&entry.path());
        if held.programs.is_empty() {
            continue;
        }
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let holder = Holder {
            pid,
            comm: comm.trim_end().to_owned(),
        };
        for id in held.programs {
            found.entry(id).or_default().insert(holder.clone());
        }
    }
    found
}

/// Programs and links, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Links: what keeps a program attached.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What this process holds.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::held_by(Path::new("/proc/self"))
    }

    /// Those of them that are still loaded. Empty without `CAP_SYS_ADMIN`, which held them.
    #[must_use]
    pub fn still_loaded(&self) -> Self {
        let programs = loaded_programs().filter_map(Result::ok).map(|it| it.id());
        let links = loaded_links().filter_map(Result::ok).map(|it| it.id());
        Self {
            programs: programs.filter(|id| self.programs.contains(id)).collect(),
            links: links.filter(|id| self.links.contains(id)).collect(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty()
    }

    fn held_by(process: &Path) -> Self {
        let mut held = Self::default();
        for file in fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            // Reading `fdinfo` of every socket of every process would take long.
            let is_bpf = fs::read_link(file.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("anon_inode:bpf"));
            if is_bpf {
                let path = process.join("fdinfo").join(file.file_name());
                held.add(&fs::read_to_string(path).unwrap_or_default());
            }
        }
        held
    }

    /// `prog_id:` is shown of programs and of links, `link_id:` of links (`bpf_prog_show_fdinfo()` and
    /// `bpf_link_show_fdinfo()` in kernel/bpf/syscall.c).
    fn add(&mut self, fdinfo: &str) {
        for line in fdinfo.lines() {
            match line
                .split_once(':')
                .map(|(key, value)| (key, value.trim().parse()))
            {
                Some(("prog_id", Ok(id))) => _ = self.programs.insert(id),
                Some(("link_id", Ok(id))) => _ = self.links.insert(id),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_links_are_read_from_what_the_kernel_shows_of_a_file() {
        let mut held = Objects::default();
        held.add("pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1\nlink_type:\tcgroup\nlink_id:\t7\nprog_tag:\tabc\nprog_id:\t41\ncgroup_id:\t1\n");
        held.add("prog_type:\t18\nprog_id:\t42\n");
        held.add("map_type:\t1\nmap_id:\t43\n");
        assert_eq!(held.programs, BTreeSet::from([41, 42]));
        assert_eq!(held.links, BTreeSet::from([7]));
    }
}
