//! The one decision about a connection that passes through this host, from one other host to another.

use crate::{
    Action, Addr, BePort, Decision, Dimensions, MemberKey, MemberKind, PrefixKey, PrefixKind,
    RuleRef, RuleSet, Tables,
    decide::{named, within},
};

/// The compiled rules for what passes through, beside the tables that all roles use.
pub trait Crossings: Tables {
    /// What a rule does with what passes through.
    fn transit_action(&self, rule: RuleRef) -> Option<&Action>;
}

/// Who connects to whom, through us.
pub trait Transit {
    /// Where it goes.
    fn dest(&self) -> Addr;
    /// The port there.
    fn port(&self) -> BePort;
    /// Where it comes from.
    fn source(&self) -> Addr;
    /// Number of the interface it came in by.
    fn interface(&self) -> u32;
}

/// Finds the first rule that selects a connection.
///
/// The interface is looked at first: every rule names some, and what comes in by others is nobody's business.
#[inline(always)]
pub fn transit(tables: &impl Crossings, passing: &impl Transit) -> Decision {
    let Some(policy) = tables.policy() else {
        return Decision::Unselected;
    };
    let needs = policy.dimensions;
    if needs & Dimensions::TRANSIT == 0 {
        return Decision::Unselected;
    }
    let generation = policy.generation;
    let key = MemberKey {
        generation,
        kind: MemberKind::TRANSIT_INTERFACE,
        id: u64::from(passing.interface()),
        device: 0,
    };
    let mut rules = named(tables.member(&key), RuleSet::ALL, &RuleSet::EMPTY);
    if needs & Dimensions::TRANSIT_DEST != 0 && !rules.is_empty() {
        let kind = PrefixKind::TRANSIT_DEST;
        rules = around(tables, rules, generation, kind, passing.dest());
    }
    if needs & Dimensions::TRANSIT_PORT != 0 && !rules.is_empty() {
        let port = u32::from(passing.port().get());
        rules = within(tables, rules, generation, PrefixKind::TRANSIT_PORT, port);
    }
    if needs & Dimensions::TRANSIT_SOURCE != 0 && !rules.is_empty() {
        let kind = PrefixKind::TRANSIT_SOURCE;
        rules = around(tables, rules, generation, kind, passing.source());
    }
    let Some(index) = rules.first() else {
        return Decision::Unselected;
    };
    let rule = RuleRef { generation, index };
    match tables.transit_action(rule) {
        Some(action) => Decision::Selected(rule, *action),
        None => Decision::Unselected,
    }
}

/// Keeps the rules whose prefixes an address is in.
#[inline(always)]
fn around(tables: &impl Tables, rules: RuleSet, generation: u32, kind: u32, bits: Addr) -> RuleSet {
    let key = PrefixKey {
        generation,
        kind,
        bits,
    };
    tables
        .prefix(&key)
        .map_or(RuleSet::EMPTY, |allowed| rules.and(allowed))
}
