//! What is said of each rule against what all of them decide.

use proptest::{collection::vec, prelude::*};
use proxy_common::{Decision, decide, select};

use super::{
    super::{
        Names, compile,
        memory::MemoryTables,
        reason::{Key, not_arrived, not_opened},
    },
    GENERATION, arrivals, caller, naive, names, rule, tables,
};
use crate::rule::{Match, Roles, Rule, Selector};

fn index(decision: Decision) -> Option<usize> {
    match decision {
        Decision::Unselected => None,
        Decision::Selected(rule, _) => usize::try_from(rule.index).ok(),
    }
}

/// The rule with all that fails by one key taken out: what was said must be a reason, and the first.
fn without(rule: &Rule, key: Key) -> Rule {
    let mut rule = rule.clone();
    let Match {
        cgroup,
        exe,
        uid,
        gid,
        pid,
        dest,
        port,
    } = &mut rule.matches;
    match key {
        Key::Cgroup => *cgroup = Selector::default(),
        Key::Exe => *exe = Selector::default(),
        Key::Uid => *uid = Selector::default(),
        Key::Gid => *gid = Selector::default(),
        Key::Pid => *pid = Selector::default(),
        Key::Dest => *dest = Selector::default(),
        Key::Port => *port = Selector::default(),
        Key::Listen | Key::Source | Key::Interface => unreachable!("{key:?} of a forward rule"),
    }
    rule
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_first_rule_without_a_reason_against_it_is_the_one_that_decides(
        rules in vec(rule(), 0..8),
        callers in vec(caller(), 4),
    ) {
        let names = names();
        let tables = tables(&compile(Roles::from(rules.as_slice()), &names).unwrap());
        for caller in callers {
            let mut first = None;
            for (at, rule) in rules.iter().enumerate() {
                let reason = not_opened(rule, &names, &caller).unwrap();
                let alone = naive(std::slice::from_ref(rule), &names, &caller);
                prop_assert_eq!(reason.is_none(), alone.is_some(), "{:?} {:?}", rule, caller);
                match reason {
                    None => first = first.or(Some(at)),
                    // A destination on loopback is a reason also where `dest` says nothing.
                    Some(Key::Dest) if rule.matches.dest.is_any() => {}
                    Some(key) => {
                        let next = not_opened(&without(rule, key), &names, &caller).unwrap();
                        prop_assert!(
                            key == Key::Dest || next != Some(key),
                            "{:?} is no reason: {:?} {:?}", key, rule, caller
                        );
                    }
                }
            }
            prop_assert_eq!(first, index(decide(&tables, &caller)), "{:?}", caller);
        }
    }

    #[test]
    fn what_takes_an_arrival_has_no_reason_against_it(
        rules in vec(arrivals::rule(), 0..6),
        incoming in vec(arrivals::incoming(), 1..8),
    ) {
        let names: Names = arrivals::names();
        let Ok(compiled) = compile(Roles::from(rules.as_slice()), &names) else { return Ok(()) };
        let tables = MemoryTables::for_arrivals(GENERATION, &compiled);
        for incoming in &incoming {
            let mut willing = Vec::new();
            for (at, rule) in rules.iter().enumerate() {
                let reason = not_arrived(rule, &names, incoming).unwrap();
                let alone = arrivals::naive(std::slice::from_ref(rule), &names, incoming);
                prop_assert_eq!(reason.is_none(), alone.is_some(), "{:?} {:?}", rule, incoming);
                willing.extend(reason.is_none().then_some(at));
            }
            let taken = index(select(&tables, incoming));
            prop_assert_eq!(taken.is_none(), willing.is_empty(), "{:?}", incoming);
            prop_assert!(taken.is_none_or(|at| willing.contains(&at)), "{:?}", incoming);
        }
    }
}
