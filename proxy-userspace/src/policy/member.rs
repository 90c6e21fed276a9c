//! Cgroups, executables, processes and interfaces that rules name.

use std::collections::BTreeMap;

use proxy_common::{MemberKind, Membership, RuleSet};

use super::{CompileError, Member, Names, rules_where};
use crate::rule::{Gateway, Reverse, Rule, Selector};

/// The entries of one kind of member.
#[derive(Default)]
pub(super) struct Table {
    /// Whether any rule selects by this kind.
    pub(super) needed: bool,
    /// Rules without an alternative of this kind.
    pub(super) any: RuleSet,
    /// Depths at which cgroups are named.
    pub(super) levels: u32,
    /// Which rules name which member.
    pub(super) entries: BTreeMap<Member, Membership>,
}

/// Deepest level of the level mask.
const MAX_LEVEL: u32 = 31;

/// Cgroup subtrees.
pub(super) fn cgroups(rules: &[Rule], names: &Names) -> Result<Table, CompileError> {
    let mut table = empty(rules, |rule| &rule.matches.cgroup);
    each(
        rules,
        |rule| &rule.matches.cgroup,
        |index, reference, field| {
            for cgroup in names.cgroups.get(reference).into_iter().flatten() {
                if cgroup.level > MAX_LEVEL {
                    return Err(CompileError::TooDeep {
                        reference: reference.clone(),
                        level: cgroup.level,
                    });
                }
                table.levels |= 1 << cgroup.level;
                let member = Member {
                    kind: MemberKind::CGROUP,
                    id: cgroup.id,
                    device: 0,
                };
                field(table.entries.entry(member).or_default()).insert(index);
            }
            Ok(())
        },
    )?;
    Ok(table)
}

/// Executables.
pub(super) fn exes(rules: &[Rule], names: &Names) -> Table {
    let mut table = empty(rules, |rule| &rule.matches.exe);
    let Ok(()) = each(
        rules,
        |rule| &rule.matches.exe,
        |index, path, field| {
            for exe in names.exes.get(path).into_iter().flatten() {
                let member = Member {
                    kind: MemberKind::EXE,
                    id: exe.inode,
                    device: exe.device,
                };
                field(table.entries.entry(member).or_default()).insert(index);
            }
            Ok::<(), std::convert::Infallible>(())
        },
    );
    table
}

/// Processes.
pub(super) fn pids(rules: &[Rule]) -> Table {
    let mut table = empty(rules, |rule| &rule.matches.pid);
    let Ok(()) = each(
        rules,
        |rule| &rule.matches.pid,
        |index, pid, field| {
            let member = Member {
                kind: MemberKind::PID,
                id: u64::from(*pid),
                device: 0,
            };
            field(table.entries.entry(member).or_default()).insert(index);
            Ok::<(), std::convert::Infallible>(())
        },
    );
    table
}

/// Interfaces that connections arrive by.
pub(super) fn interfaces(rules: &[Reverse], names: &Names) -> Table {
    let mut table = empty(rules, |rule| &rule.interface);
    let Ok(()) = each(
        rules,
        |rule| &rule.interface,
        |index, name, field| {
            if let Some(Some(number)) = names.interfaces.get(name) {
                let member = Member {
                    kind: MemberKind::INTERFACE,
                    id: u64::from(*number),
                    device: 0,
                };
                field(table.entries.entry(member).or_default()).insert(index);
            }
            Ok::<(), std::convert::Infallible>(())
        },
    );
    table
}

/// Interfaces that connections pass through by. Every rule names some.
pub(super) fn transit_interfaces(rules: &[Gateway], names: &Names) -> Table {
    let mut table = Table {
        needed: !rules.is_empty(),
        ..Table::default()
    };
    for (index, rule) in rules.iter().enumerate() {
        for name in &rule.interface {
            if let Some(Some(number)) = names.interfaces.get(name) {
                let member = Member {
                    kind: MemberKind::TRANSIT_INTERFACE,
                    id: u64::from(*number),
                    device: 0,
                };
                let membership: &mut Membership = table.entries.entry(member).or_default();
                membership.include.insert(index);
            }
        }
    }
    table
}

fn empty<R, T>(rules: &[R], selector: impl Fn(&R) -> &Selector<T>) -> Table {
    Table {
        needed: rules.iter().any(|rule| !selector(rule).is_any()),
        any: rules_where(rules, |rule| selector(rule).include.is_empty()),
        ..Table::default()
    }
}

/// Calls back for every value that a rule lists, with the set that it belongs to.
fn each<R, T, E>(
    rules: &[R],
    selector: impl Fn(&R) -> &Selector<T>,
    mut listed: impl FnMut(usize, &T, fn(&mut Membership) -> &mut RuleSet) -> Result<(), E>,
) -> Result<(), E> {
    for (index, rule) in rules.iter().enumerate() {
        let selector = selector(rule);
        for value in &selector.include {
            listed(index, value, |membership| &mut membership.include)?;
        }
        for value in &selector.exclude {
            listed(index, value, |membership| &mut membership.exclude)?;
        }
    }
    Ok(())
}
