//! Compiles rules into the tables that the kernel decides by.
//!
//! Pure: rules and resolved names in, map entries out. Every dimension of a rule becomes, per table entry, one bit
//! in a [`RuleSet`]; `proxy_common::decide` intersects the sets. What a prefix or range inherits from the ones
//! around it is worked out here, so that the kernel needs one look-up per dimension.

mod listen;
mod member;
pub mod memory;
mod prefix;
mod range;
pub mod reason;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf};

use ipnet::IpNet;
use proxy_common::{
    Action, Addr, Areas, Cell, Dimensions, MAX_CANDIDATES, MAX_DEPTH, MAX_RULES, MemberKind,
    Membership, Policy, PrefixKind, RuleSet, fail_mode, verb,
};
use thiserror::Error;

use crate::rule::{FailMode, Gateway, Reverse, ReverseVia, Roles, Rule, Selector, Via};

pub use listen::CellPrefix;

/// An entry of the prefix table without its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// A [`PrefixKind`].
    pub kind: u32,
    /// Leading bits that count, of 128.
    pub len: u32,
    /// The bits; those beyond `len` are 0.
    pub bits: Addr,
}

/// A key of the membership table without its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// A [`MemberKind`].
    pub kind: u32,
    /// Cgroup id, inode number or process id.
    pub id: u64,
    /// Device of the inode as the kernel's internal `dev_t`; otherwise 0.
    pub device: u64,
}

/// A cgroup that a rule names, found in the hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupRef {
    /// Its id, as `bpf_get_current_ancestor_cgroup_id` returns it.
    pub id: u64,
    /// Its depth below the root of the hierarchy, which is 0.
    pub level: u32,
}

/// An executable that a rule names, found in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExeRef {
    /// Inode number.
    pub inode: u64,
    /// Device as the kernel's internal `dev_t`.
    pub device: u64,
}

/// What the names in rules stand for at the moment. A name without an entry, or with an empty one, stands for
/// nothing yet: no task is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Cgroups by the reference in the rule; a unit name can be found more than once.
    pub cgroups: BTreeMap<String, Vec<CgroupRef>>,
    /// Executables by path. An upgraded binary keeps its old files while old processes may run.
    pub exes: BTreeMap<PathBuf, Vec<ExeRef>>,
    /// Numbers of interfaces by name.
    pub interfaces: BTreeMap<String, Option<u32>>,
    /// Containers by what rules call them. Their cgroups are among the others.
    pub containers: BTreeMap<String, Containers>,
}

/// What the name of a container, or the first digits of its id, stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    /// Its whole id, if it runs, or what is known of it.
    pub id: Option<String>,
    /// The directories of its cgroups.
    pub directories: Vec<PathBuf>,
    /// Why it is not known.
    pub problem: Option<String>,
}

/// A compiled policy, ready to be written to the maps under some generation.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The header; its generation is set when it is written.
    pub policy: Policy,
    /// The prefix table.
    pub prefixes: Vec<(Prefix, RuleSet)>,
    /// The membership table.
    pub members: Vec<(Member, Membership)>,
    /// What each rule does, in file order.
    pub actions: Vec<Action>,
    /// Processes named by rules, whose children are to be followed.
    pub pids: Vec<u32>,
    /// Single addresses that rules for what arrives listen on.
    pub hosts: Vec<(Addr, Areas)>,
    /// Other prefixes that they listen on.
    pub areas: Vec<(Prefix, Areas)>,
    /// Single ports of all those.
    pub ports: Vec<(CellPrefix, Cell)>,
    /// Other ports of them.
    pub cells: Vec<(CellPrefix, Cell)>,
    /// What each rule for what arrives does, in file order.
    pub arrival_actions: Vec<Action>,
    /// What each rule for what passes through does, in file order.
    pub transit_actions: Vec<Action>,
}

/// Why rules do not fit the tables.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompileError {
    /// More rules than a rule set has bits.
    #[error(
        "{0} rules, but the kernel tables hold {MAX_RULES}; merge rules that differ in one list only"
    )]
    TooManyRules(usize),
    /// A cgroup too deep for the level mask.
    #[error(
        "cgroup {reference:?} is {level} levels deep, rules can name 31 at most; name a parent instead"
    )]
    TooDeep {
        /// The reference in the rule.
        reference: String,
        /// How deep it is.
        level: u32,
    },
    /// More prefixes in each other than an address may be in.
    #[error(
        "{net} lies in {MAX_DEPTH} other prefixes that rules listen on; the kernel tables hold {MAX_DEPTH} in each other"
    )]
    TooManyPrefixes {
        /// The innermost.
        net: IpNet,
    },
    /// More rules than a cell holds.
    #[error(
        "rule {rule:?} is one too many to listen on port {port} of {net}, where {MAX_CANDIDATES} may; let rules with the \
         same `via` be one"
    )]
    TooManyListeners {
        /// Of which addresses.
        net: IpNet,
        /// Which port.
        port: u32,
        /// The rule that has no place.
        rule: String,
    },
}

/// Compiles the rules of all roles.
///
/// # Errors
/// When they do not fit the kernel's tables.
pub fn compile(roles: Roles<'_>, names: &Names) -> Result<Compiled, CompileError> {
    let Roles {
        forward,
        reverse,
        gateway,
    } = roles;
    let most = forward.len().max(reverse.len()).max(gateway.len());
    if most > MAX_RULES {
        return Err(CompileError::TooManyRules(most));
    }
    let mut compiled = Compiled {
        actions: forward.iter().map(action).collect(),
        prefixes: prefix::destinations(forward),
        ..Compiled::default()
    };
    let policy = &mut compiled.policy;

    for (dimension, table) in numbers(roles).into_iter().chain(addresses(roles)) {
        if !table.is_empty() {
            policy.dimensions |= dimension;
            compiled.prefixes.extend(table);
        }
    }
    if !gateway.is_empty() {
        policy.dimensions |= Dimensions::TRANSIT;
        compiled.transit_actions = gateway.iter().map(transit_action).collect();
    }
    if !reverse.is_empty() {
        policy.dimensions |= Dimensions::LISTEN;
        let tables = listen::tables(reverse)?;
        if !tables.hosts.is_empty() {
            policy.dimensions |= Dimensions::HOST;
        }
        compiled.hosts = tables.hosts;
        compiled.areas = tables.areas;
        compiled.ports = tables.ports;
        compiled.cells = tables.cells;
        compiled.arrival_actions = reverse.iter().map(arrival_action).collect();
    }

    let cgroups = member::cgroups(forward, names)?;
    let exes = member::exes(forward, names);
    let pids = member::pids(forward);
    policy.cgroup_levels = cgroups.levels;
    policy.any_cgroup = cgroups.any;
    policy.any_exe = exes.any;
    policy.any_pid = pids.any;
    let interfaces = member::interfaces(reverse, names);
    policy.any_interface = interfaces.any;
    for (dimension, table) in [
        (Dimensions::CGROUP, cgroups),
        (Dimensions::EXE, exes),
        (Dimensions::PID, pids),
        (Dimensions::INTERFACE, interfaces),
        (
            Dimensions::TRANSIT,
            member::transit_interfaces(gateway, names),
        ),
    ] {
        if table.needed {
            policy.dimensions |= dimension;
        }
        compiled.members.extend(table.entries);
    }
    compiled.pids = compiled
        .members
        .iter()
        .filter(|(member, _)| member.kind == MemberKind::PID)
        .filter_map(|(member, _)| u32::try_from(member.id).ok())
        .collect();
    Ok(compiled)
}

/// A table of the prefix map, with the bit that says that it is needed.
type Prefixes = (u32, Vec<(Prefix, RuleSet)>);

/// The tables of ports and ids.
fn numbers(roles: Roles<'_>) -> [Prefixes; 4] {
    let Roles {
        forward, gateway, ..
    } = roles;
    [
        (
            Dimensions::PORT,
            range::table(PrefixKind::PORT, forward, |rule| widen(&rule.matches.port)),
        ),
        (
            Dimensions::UID,
            range::table(PrefixKind::UID, forward, |rule| rule.matches.uid.clone()),
        ),
        (
            Dimensions::GID,
            range::table(PrefixKind::GID, forward, |rule| rule.matches.gid.clone()),
        ),
        (
            Dimensions::TRANSIT_PORT,
            range::table(PrefixKind::TRANSIT_PORT, gateway, |rule| widen(&rule.port)),
        ),
    ]
}

/// The tables of addresses, those of destinations of what apps open apart, which is always needed.
fn addresses(roles: Roles<'_>) -> [Prefixes; 3] {
    let Roles {
        reverse, gateway, ..
    } = roles;
    [
        (
            Dimensions::SOURCE,
            prefix::table(PrefixKind::SOURCE, reverse, |rule| &rule.source),
        ),
        (
            Dimensions::TRANSIT_SOURCE,
            prefix::table(PrefixKind::TRANSIT_SOURCE, gateway, |rule| &rule.source),
        ),
        (
            Dimensions::TRANSIT_DEST,
            prefix::table(PrefixKind::TRANSIT_DEST, gateway, |rule| &rule.dest),
        ),
    ]
}

fn action(rule: &Rule) -> Action {
    Action {
        verb: match rule.via {
            Via::Direct => verb::DIRECT,
            Via::Refuse => verb::REFUSE,
            Via::Upstream(_) => verb::RELAY,
        },
        on_relay_failure: on_relay_failure(rule.on_relay_failure),
        shortcut: u32::from(rule.path.is_shortcut()),
        // Known once its endpoints are where the hook finds them.
        group: 0,
        spaces: u32::from(rule.enters_namespaces()),
    }
}

fn arrival_action(rule: &Reverse) -> Action {
    Action {
        verb: match rule.via {
            _ if rule.steered_to().is_some() => verb::STEER,
            _ if rule.is_relayed() => verb::RELAY,
            ReverseVia::Refuse => verb::REFUSE,
            _ => verb::DIRECT,
        },
        on_relay_failure: on_relay_failure(rule.on_relay_failure),
        shortcut: 0,
        group: 0,
        spaces: 0,
    }
}

fn transit_action(rule: &Gateway) -> Action {
    Action {
        verb: match rule.via {
            _ if rule.is_relayed() => verb::RELAY,
            ReverseVia::Refuse => verb::REFUSE,
            _ => verb::DIRECT,
        },
        on_relay_failure: on_relay_failure(rule.on_relay_failure),
        shortcut: 0,
        group: 0,
        spaces: 0,
    }
}

const fn on_relay_failure(mode: FailMode) -> u32 {
    match mode {
        FailMode::Direct => fail_mode::DIRECT,
        FailMode::Refuse => fail_mode::REFUSE,
    }
}

fn widen(
    selector: &Selector<std::ops::RangeInclusive<u16>>,
) -> Selector<std::ops::RangeInclusive<u32>> {
    let widen = |ranges: &[std::ops::RangeInclusive<u16>]| {
        ranges
            .iter()
            .map(|range| u32::from(*range.start())..=u32::from(*range.end()))
            .collect()
    };
    Selector {
        include: widen(&selector.include),
        exclude: widen(&selector.exclude),
    }
}

/// The rules for which something holds.
fn rules_where<R>(rules: &[R], holds: impl Fn(&R) -> bool) -> RuleSet {
    let mut set = RuleSet::EMPTY;
    for (index, rule) in rules.iter().enumerate() {
        if holds(rule) {
            set.insert(index);
        }
    }
    set
}
