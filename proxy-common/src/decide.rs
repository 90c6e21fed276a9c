//! The one decision about a connection.

use crate::{
    Action, Addr, BePort, Dimensions, MemberKey, MemberKind, Membership, Policy, PrefixKey,
    PrefixKind, RuleRef, RuleSet, verb,
};

/// The compiled policy: BPF maps in the kernel, the same tables in memory in user space.
pub trait Tables {
    /// The header, `None` before there is a policy.
    fn policy(&self) -> Option<&Policy>;
    /// Rules that the longest prefix holding an address or a number allows.
    fn prefix(&self, key: &PrefixKey) -> Option<&RuleSet>;
    /// Rules that name a cgroup, executable or process.
    fn member(&self, key: &MemberKey) -> Option<&Membership>;
    /// What a rule does.
    fn action(&self, rule: RuleRef) -> Option<&Action>;
}

/// Who connects where. The costly answers are asked for only when some rule needs them.
pub trait Subject {
    /// Destination address.
    fn dest(&self) -> Addr;
    /// Destination port.
    fn port(&self) -> BePort;
    /// Real user id (`bpf_get_current_uid_gid` tells the real ones).
    fn uid(&self) -> u32;
    /// Real group id.
    fn gid(&self) -> u32;
    /// Id of the ancestor at a depth of the cgroup hierarchy, 0 when the task is not that deep.
    fn cgroup(&self, level: u32) -> u64;
    /// Inode and device of the executable; `None` when it cannot be told (kernel threads).
    fn exe(&self) -> Option<(u64, u64)>;
    /// The process id of a rule that the task descends from.
    fn descends_from(&self) -> Option<u32>;
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No rule selects it.
    Unselected,
    /// The first rule that selects it, and what that rule does.
    Selected(RuleRef, Action),
}

impl Decision {
    /// The [`verb`], `DIRECT` when no rule selects the connection.
    #[inline(always)]
    #[must_use]
    pub const fn verb(&self) -> u32 {
        match self {
            Self::Unselected => verb::DIRECT,
            Self::Selected(_, action) => action.verb,
        }
    }
}

/// Levels of the cgroup hierarchy that rules can name, the root included.
pub(crate) const MAX_CGROUP_LEVELS: u32 = 32;

/// Finds the first rule that selects a connection.
///
/// The destination is looked at first: it is what tells most connections apart, and a set that is empty after
/// any step ends the search.
#[inline(always)]
pub fn decide(tables: &impl Tables, subject: &impl Subject) -> Decision {
    let Some(policy) = tables.policy() else {
        return Decision::Unselected;
    };
    let generation = policy.generation;
    let Some(rules) = tables.prefix(&PrefixKey::dest(generation, subject.dest())) else {
        return Decision::Unselected;
    };
    let mut rules = *rules;
    let needs = policy.dimensions;
    if needs & Dimensions::PORT != 0 {
        let port = u32::from(subject.port().get());
        rules = within(tables, rules, generation, PrefixKind::PORT, port);
    }
    if needs & Dimensions::UID != 0 && !rules.is_empty() {
        rules = within(tables, rules, generation, PrefixKind::UID, subject.uid());
    }
    if needs & Dimensions::GID != 0 && !rules.is_empty() {
        rules = within(tables, rules, generation, PrefixKind::GID, subject.gid());
    }
    if needs & Dimensions::CGROUP != 0 && !rules.is_empty() {
        rules = in_cgroup(tables, rules, policy, subject);
    }
    if needs & Dimensions::EXE != 0 && !rules.is_empty() {
        rules = match subject.exe() {
            Some((id, device)) => {
                let key = MemberKey {
                    generation,
                    kind: MemberKind::EXE,
                    id,
                    device,
                };
                named(tables.member(&key), rules, &policy.any_exe)
            }
            None => rules.and(&policy.any_exe),
        };
    }
    if needs & Dimensions::PID != 0 && !rules.is_empty() {
        rules = match subject.descends_from() {
            Some(pid) => {
                let key = MemberKey {
                    generation,
                    kind: MemberKind::PID,
                    id: u64::from(pid),
                    device: 0,
                };
                named(tables.member(&key), rules, &policy.any_pid)
            }
            None => rules.and(&policy.any_pid),
        };
    }
    let Some(index) = rules.first() else {
        return Decision::Unselected;
    };
    let rule = RuleRef { generation, index };
    match tables.action(rule) {
        Some(action) => Decision::Selected(rule, *action),
        None => Decision::Unselected,
    }
}

/// Keeps the rules whose range holds a number.
#[inline(always)]
pub(crate) fn within(
    tables: &impl Tables,
    rules: RuleSet,
    generation: u32,
    kind: u32,
    value: u32,
) -> RuleSet {
    let key = PrefixKey::number(generation, kind, value);
    tables
        .prefix(&key)
        .map_or(RuleSet::EMPTY, |allowed| rules.and(allowed))
}

/// Keeps the rules that hold in one of the task's cgroups and exclude none of them.
#[inline(always)]
fn in_cgroup(
    tables: &impl Tables,
    rules: RuleSet,
    policy: &Policy,
    subject: &impl Subject,
) -> RuleSet {
    let mut include = policy.any_cgroup;
    let mut exclude = RuleSet::EMPTY;
    let mut level = 0;
    while level < MAX_CGROUP_LEVELS {
        if policy.cgroup_levels & (1 << level) != 0 {
            let key = MemberKey {
                generation: policy.generation,
                kind: MemberKind::CGROUP,
                id: subject.cgroup(level),
                device: 0,
            };
            if let Some(membership) = tables.member(&key) {
                include = include.or(&membership.include);
                exclude = exclude.or(&membership.exclude);
            }
        }
        level += 1;
    }
    rules.and(&include).and_not(&exclude)
}

/// Keeps the rules that name something, or have no alternative there, and do not exclude it.
#[inline(always)]
pub(crate) fn named(membership: Option<&Membership>, rules: RuleSet, any: &RuleSet) -> RuleSet {
    match membership {
        Some(membership) => rules
            .and(&any.or(&membership.include))
            .and_not(&membership.exclude),
        None => rules.and(any),
    }
}
