//! Why a connection is captured, or is not.
//!
//! The verdict is what [`decide()`], [`select()`] and [`transit()`] say over the tables that the rules in force compile to, as in the kernel; what
//! the hooks look at before and after that is applied here. Who asks gathers what is to be known of the process
//! ([`subject`]) and of the hooks ([`hooks`]), since the daemon need not be allowed to look at either.

pub(crate) mod hooks;
mod outcome;
mod passage;
pub(crate) mod subject;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use proxy_common::{Addr, Arrival, BePort, Subject, Transit, decide, select, transit};
use thiserror::Error;

use self::{outcome::Outcome, passage::Passing};
use crate::{
    cgroup::{Cgroup2, CgroupError},
    config::{self, Config},
    group::SettingsByName,
    policy::{
        CompileError, Names, compile,
        memory::MemoryTables,
        reason::{self, Key},
    },
    resolve,
    routes::Upstreams,
    rule::Roles,
    socket,
    status::{
        SpaceStatus,
        explanation::{Explanation, Opener, Request, RuleReason},
    },
};

pub(crate) use self::passage::FastPath;

/// The rules in force, or that would be, and who serves them.
pub(crate) struct InForce<'a> {
    pub(crate) roles: Roles<'a>,
    pub(crate) fast_path: FastPath<'a>,
    pub(crate) names: &'a Names,
    pub(crate) upstreams: &'a Upstreams,
    pub(crate) groups: &'a SettingsByName,
    pub(crate) cgroups: &'a Cgroup2,
    /// The directory of the cgroup that is served.
    pub(crate) attach_point: &'a Path,
    pub(crate) daemon: Option<u32>,
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) network_namespace: Option<u64>,
    /// The other ones where the daemon listens or is to.
    pub(crate) spaces: Vec<SpaceStatus>,
    /// The process that a rule names, and that a process descends from.
    pub(crate) root_of: &'a dyn Fn(u32) -> Option<u32>,
}

/// Why there is no explanation.
#[derive(Debug, Error)]
pub(crate) enum ExplainError {
    /// Neither.
    #[error("a connection has either a process that opens it, or a source that it comes from")]
    Neither,
    /// The cgroup of the process is not to be seen.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The cgroup of the process is gone.
    #[error("there is no cgroup {0}")]
    NoCgroup(String),
    /// It is to come by one.
    #[error("what passes through comes in by an interface: say by which (--interface)")]
    NoComing,
    /// No such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The rules do not fit.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// Says what becomes of a connection, and why.
pub(crate) fn explain(
    policy: &InForce<'_>,
    connection: Request,
) -> Result<Explanation, ExplainError> {
    let (rules, outcome) = match (&connection.process, connection.source) {
        (Some(process), None) => opened(policy, &connection, process)?,
        (None, Some(source)) if connection.passes => passed(policy, &connection, source)?,
        (None, Some(_)) => arrived(policy, &connection)?,
        _ => return Err(ExplainError::Neither),
    };
    Ok(Explanation {
        rules,
        verdict: outcome.verdict.to_owned(),
        why: outcome.why,
        rule: outcome.rule,
        via: outcome.via,
        listeners: outcome.listeners,
        on_relay_failure: outcome.on_relay_failure,
        path: outcome.path,
        daemon: policy.daemon,
        hooks: Vec::new(),
        connection,
    })
}

/// As [`explain()`], by rules of a file as if they were in force.
pub(crate) fn by_file(
    config: &Config,
    fast_path: FastPath<'_>,
    cgroups: &Cgroup2,
    connection: Request,
) -> Result<Explanation, ExplainError> {
    let names = resolve::resolve(config.roles(), cgroups, &Names::default());
    let is_named = |pid: u32| {
        let mut rules = config.forward.iter();
        rules.any(|rule| {
            let pids = &rule.matches.pid;
            pids.include
                .iter()
                .chain(&pids.exclude)
                .any(|it| *it == pid)
        })
    };
    let policy = InForce {
        roles: config.roles(),
        fast_path,
        names: &names,
        upstreams: &config.upstreams,
        groups: &config.groups,
        cgroups,
        attach_point: &cgroups.mount().join(&config.daemon.cgroup),
        daemon: None,
        listeners: Vec::new(),
        network_namespace: None,
        spaces: Vec::new(),
        // Who descends from whom is known only to who was there.
        root_of: &|pid| is_named(pid).then_some(pid),
    };
    explain(&policy, connection)
}

type Explained = (Vec<RuleReason>, Outcome);

fn opened(
    policy: &InForce<'_>,
    connection: &Request,
    process: &Opener,
) -> Result<Explained, ExplainError> {
    let directory = policy.cgroups.dir(Path::new(&process.cgroup))?;
    let calling = Calling {
        to: connection.to,
        process,
        cgroups: ancestors(policy.cgroups, &directory)
            .ok_or_else(|| ExplainError::NoCgroup(process.cgroup.clone()))?,
        root: (policy.root_of)(process.pid),
    };
    let compiled = compile(policy.roles, policy.names)?;
    let decision = decide(&MemoryTables::new(1, &compiled), &calling);
    let mut rules = Vec::new();
    for rule in policy.roles.forward {
        let key = reason::not_opened(rule, policy.names, &calling)?;
        let wanted = |key: Key| {
            let name = match key {
                Key::Cgroup if rule.matches.names_containers() => "container",
                key => key.name(),
            };
            (name, config::wanted(rule, name))
        };
        rules.push(because(&rule.name, key, wanted, |key| calling.seen(key)));
    }
    let outcome = if directory.starts_with(policy.attach_point) {
        outcome::opened(policy, connection, process, decision)
    } else {
        Outcome::direct(format!(
            "the process is not in the cgroup that is served, {}",
            policy.attach_point.display()
        ))
    };
    Ok((rules, outcome))
}

fn arrived(policy: &InForce<'_>, connection: &Request) -> Result<Explained, ExplainError> {
    let interface = match &connection.interface {
        None => 0,
        Some(name) => {
            socket::interface_number(name).ok_or_else(|| ExplainError::NoInterface(name.clone()))?
        }
    };
    let arriving = Arriving {
        connection,
        interface,
    };
    let compiled = compile(policy.roles, policy.names)?;
    let decision = select(&MemoryTables::new(1, &compiled), &arriving);
    let mut rules = Vec::new();
    for rule in policy.roles.reverse {
        let key = reason::not_arrived(rule, policy.names, &arriving)?;
        let wanted = |key: Key| (key.name(), config::wanted_of_arrivals(rule, key.name()));
        rules.push(because(&rule.name, key, wanted, |key| arriving.seen(key)));
    }
    Ok((rules, outcome::arrived(policy, connection, decision)))
}

fn passed(
    policy: &InForce<'_>,
    connection: &Request,
    source: IpAddr,
) -> Result<Explained, ExplainError> {
    let name = connection
        .interface
        .as_deref()
        .ok_or(ExplainError::NoComing)?;
    let by =
        socket::interface_number(name).ok_or_else(|| ExplainError::NoInterface(name.to_owned()))?;
    let passing = Passing {
        from: source,
        to: connection.to,
        by,
    };
    let compiled = compile(policy.roles, policy.names)?;
    let decision = transit(&MemoryTables::new(1, &compiled), &passing);
    let mut rules = Vec::new();
    for rule in policy.roles.gateway {
        let key = reason::not_passed(rule, policy.names, &passing)?;
        let wanted = |key: Key| (key.name(), config::wanted_of_transits(rule, key.name()));
        let seen = |key: Key| match key {
            Key::Interface => name.to_owned(),
            Key::Source => source.to_string(),
            Key::Port => passing.to.port().to_string(),
            _ => passing.to.ip().to_string(),
        };
        rules.push(because(&rule.name, key, wanted, seen));
    }
    Ok((rules, outcome::passed(policy, name, &passing, decision)))
}

fn because(
    name: &str,
    key: Option<Key>,
    wanted: impl Fn(Key) -> (&'static str, String),
    seen: impl Fn(Key) -> String,
) -> RuleReason {
    let (named, wanted) = key.map(wanted).unzip();
    RuleReason {
        name: name.to_owned(),
        selects: key.is_none(),
        key: named.map(str::to_owned),
        wanted,
        seen: key.map(seen),
    }
}

/// The ids of a cgroup and those above it, from the root down.
fn ancestors(cgroups: &Cgroup2, directory: &Path) -> Option<Vec<u64>> {
    let mut ids = cgroups
        .upwards(directory)
        .map(|directory| Some(cgroups.at(directory)?.id))
        .collect::<Option<Vec<_>>>()?;
    ids.reverse();
    Some(ids)
}

/// A process that calls `connect()`.
struct Calling<'a> {
    to: SocketAddr,
    process: &'a Opener,
    cgroups: Vec<u64>,
    root: Option<u32>,
}

impl Calling<'_> {
    fn seen(&self, key: Key) -> String {
        let process = self.process;
        match key {
            Key::Port => self.to.port().to_string(),
            Key::Uid => process.uid.to_string(),
            Key::Gid => process.gid.to_string(),
            Key::Cgroup => process.cgroup.clone(),
            Key::Exe => {
                let exe = process.exe.as_ref();
                exe.map_or_else(|| "none".to_owned(), |exe| exe.path.clone())
            }
            Key::Pid => self.root.map_or_else(
                || {
                    format!(
                        "{}, which descends from none that a rule names",
                        process.pid
                    )
                },
                |root| format!("{}, which descends from {root}", process.pid),
            ),
            Key::Dest | Key::Listen | Key::Source | Key::Interface => {
                self.to.ip().to_canonical().to_string()
            }
        }
    }
}

impl Subject for Calling<'_> {
    fn dest(&self) -> Addr {
        self.to.ip().into()
    }

    fn port(&self) -> BePort {
        BePort::new(self.to.port())
    }

    fn uid(&self) -> u32 {
        self.process.uid
    }

    fn gid(&self) -> u32 {
        self.process.gid
    }

    fn cgroup(&self, level: u32) -> u64 {
        let level = usize::try_from(level).unwrap_or(usize::MAX);
        self.cgroups.get(level).copied().unwrap_or(0)
    }

    fn exe(&self) -> Option<(u64, u64)> {
        let exe = self.process.exe.as_ref()?;
        Some((exe.inode, exe.device))
    }

    fn descends_from(&self) -> Option<u32> {
        self.root
    }
}

/// A SYN that comes in.
struct Arriving<'a> {
    connection: &'a Request,
    interface: u32,
}

impl Arriving<'_> {
    fn seen(&self, key: Key) -> String {
        let connection = self.connection;
        match key {
            Key::Source => connection
                .source
                .map_or_else(String::new, |it| it.to_string()),
            Key::Interface => {
                let interface = connection.interface.clone();
                interface.unwrap_or_else(|| "not said".to_owned())
            }
            _ => connection.to.to_string(),
        }
    }
}

impl Arrival for Arriving<'_> {
    fn local(&self) -> Addr {
        self.connection.to.ip().into()
    }

    fn port(&self) -> BePort {
        BePort::new(self.connection.to.port())
    }

    fn source(&self) -> Addr {
        let source = self.connection.source;
        source.map_or_else(|| self.local(), Addr::from)
    }

    fn interface(&self) -> u32 {
        self.interface
    }
}

impl Transit for Passing {
    fn dest(&self) -> Addr {
        self.to.ip().into()
    }

    fn port(&self) -> BePort {
        BePort::new(self.to.port())
    }

    fn source(&self) -> Addr {
        self.from.into()
    }

    fn interface(&self) -> u32 {
        self.by
    }
}
