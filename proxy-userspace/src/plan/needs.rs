//! What a configuration needs, and which of it is not there.

use std::{fs::File, net::Ipv4Addr, os::fd::AsFd as _, path::Path};

use proxy_common::names;

use super::{gateway, router};
use crate::{
    cgroup::Cgroup2,
    config::{Config, LogTarget},
    intercept::{
        Features, MapShape, MissingFeature,
        guard::Bpffs,
        survey::{self, HOOKS},
        trial::try_programs,
    },
    paint::one_line,
    policy::Compiled,
    privileges::{self, Privilege},
    proxy::GuardNeeds,
    rule::Rule,
    socket,
};

/// What a configuration needs of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Programs on hooks of the cgroup.
    pub(super) hooks: Vec<&'static str>,
    /// Programs on the network namespace.
    pub(super) namespace: Vec<&'static str>,
    /// Programs on interfaces.
    pub(super) interfaces: Vec<&'static str>,
    /// Programs on tracepoints.
    pub(super) tracepoints: Vec<&'static str>,
    /// Programs that are pinned.
    pub(super) guard: Vec<&'static str>,
    /// Capabilities.
    pub(super) privileges: Vec<Privilege>,
}

impl Needs {
    /// Of a configuration with its compiled rules.
    pub(super) fn of(config: &Config, compiled: &Compiled, bpffs: &Bpffs) -> Self {
        let mut needs = Self {
            hooks: HOOKS.map(|hook| hook.program).into(),
            namespace: Vec::new(),
            interfaces: Vec::new(),
            tracepoints: Vec::new(),
            guard: Vec::new(),
            privileges: privileges::NEEDED.into(),
        };
        if !compiled.pids.is_empty() {
            needs.tracepoints = vec![names::TASK_FORK, names::TASK_EXIT];
        }
        if !config.reverse.is_empty() {
            needs.namespace = vec![names::REVERSE, names::OWN_EVENTS];
        }
        if !config.gateway.is_empty() {
            needs.interfaces = vec![names::GATEWAY];
            needs.namespace.push(names::GATEWAY_AGAIN);
        }
        if config.router.is_on() {
            needs.interfaces.push(names::ROUTER);
        }
        let guard = GuardNeeds::of(config.roles());
        if guard.forward {
            needs.guard.extend([names::GUARD4, names::GUARD6]);
        }
        if guard.reverse {
            needs.guard.push(names::REVERSE_GUARD);
        }
        if guard.gateway {
            needs.guard.push(names::GATEWAY_GUARD);
        }
        if guard.any() && matches!(bpffs, Bpffs::Absent(_)) {
            needs.privileges.push(privileges::MOUNT);
        }
        if config.forward.iter().any(Rule::enters_namespaces) {
            needs
                .privileges
                .extend([privileges::ENTER, privileges::SEE_NAMESPACES]);
        }
        needs
    }

    /// Which of it is not there. Programs are loaded for a moment where that is allowed, nothing is attached.
    pub(super) fn lacking(&self, compiled: &Compiled) -> Vec<String> {
        let mut lacking: Vec<_> = self
            .privileges
            .iter()
            .filter(|(capability, _)| !privileges::has(*capability))
            .map(|(capability, purpose)| format!("{capability} to {purpose}"))
            .collect();
        if privileges::require().is_err() {
            lacking.push(
                "whether the kernel takes the programs cannot be tried without these".to_owned(),
            );
            return lacking;
        }
        let features = Features::probe();
        if let Err(missing) = features.allow(compiled) {
            lacking.push(missing.to_string());
        }
        match try_programs(&features, None) {
            Err(error) => lacking.push(one_line(&error)),
            Ok(trials) => lacking.extend(
                trials
                    .into_iter()
                    .filter(|trial| self.programs().any(|needed| needed == trial.program))
                    .filter_map(|trial| trial.outcome.err())
                    .map(|error| one_line(&error)),
            ),
        }
        lacking
    }

    fn programs(&self) -> impl Iterator<Item = &'static str> {
        [
            &self.hooks,
            &self.namespace,
            &self.interfaces,
            &self.tracepoints,
            &self.guard,
        ]
        .into_iter()
        .flatten()
        .copied()
    }
}

/// What else `run` would fail for on this machine.
pub(super) fn lacking_around(
    config: &Config,
    cgroups: Option<&Cgroup2>,
    tables: &[(MapShape, usize)],
) -> Vec<String> {
    let mut lacking = Vec::new();
    if config.forward.iter().any(Rule::enters_namespaces) && !socket::tells_namespace() {
        lacking.push(MissingFeature::Namespaces.to_string());
    }
    match cgroups {
        None => lacking.push(
            "a cgroup v2 hierarchy; as root: mkdir -p /mnt/cgroup2 && mount -t cgroup2 cgroup2 /mnt/cgroup2".to_owned(),
        ),
        Some(cgroups) => lacking.extend(attach_point(cgroups, &config.daemon.cgroup)),
    }
    let listener = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 1);
    if let Err(error) = listener {
        lacking.push(format!("a loopback to listen on: {error}"));
    }
    if !config.reverse.is_empty()
        && let Some(pid) = survey::arrivals_taken_by()
    {
        lacking.push(format!(
            "a network namespace of its own: process {pid} is a culvert that takes what arrives in this one already"
        ));
    }
    lacking.extend(gateway::lacking(config));
    lacking.extend(router::lacking(config));
    if let Some(log) = &config.daemon.access_log
        && let LogTarget::File(path) = &log.target
        && !path.parent().is_some_and(Path::is_dir)
    {
        lacking.push(format!(
            "the directory of the access log {}",
            path.display()
        ));
    }
    for (table, entries) in tables {
        if *entries > table.entries as usize {
            lacking.push(format!(
                "room in the table {}: {entries} entries, it holds {}; write fewer or wider rules",
                table.name, table.entries
            ));
        }
    }
    lacking
}

/// What is wrong with the cgroup that the hooks are to be attached to.
fn attach_point(cgroups: &Cgroup2, path: &str) -> Option<String> {
    let Ok(cgroup) = File::open(cgroups.mount().join(path)) else {
        return Some(format!(
            "the cgroup /{path}, where the hooks are attached (`cgroup` in [daemon])"
        ));
    };
    survey::served_by(cgroup.as_fd())
        .map(|pid| format!("a cgroup of its own: process {pid} serves /{path} already"))
}
