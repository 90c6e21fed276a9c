//! Rules of others that would not get along with ours.

use std::collections::BTreeSet;

use super::{
    Conflict, DeliveryError, PRIORITY, Want,
    entry::{Family, Rule},
    kernel::Kernel,
};

/// All of them, where ours would be for this table.
pub(super) fn find(
    kernel: &mut Kernel,
    table: u32,
    wants: &BTreeSet<Want>,
) -> Result<Vec<Conflict>, DeliveryError> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let wanted: Vec<_> = wants
            .iter()
            .filter(|want| want.families().contains(&family))
            .collect();
        for rule in kernel.rules(family)? {
            found.extend(conflict(&rule, table, &wanted).map(|why| Conflict {
                rule: rule.to_string(),
                why,
            }));
        }
    }
    Ok(found)
}

/// Why a rule is in the way of ours.
fn conflict(rule: &Rule, table: u32, wanted: &[&Want]) -> Option<&'static str> {
    // Other daemons have marks and tables of their own, and packets of the same service they deliver as we do.
    if rule.own_table().is_some() || wanted.is_empty() {
        return None;
    }
    if rule.table() == Some(table) {
        return Some("uses culvert's routing table");
    }
    if rule.mark() == Some((table, u32::MAX)) && !rule.is_inverted() {
        return Some("is about culvert's mark");
    }
    // Those of the same priority that are there already are asked before ours.
    let is_asked_before = rule.priority() <= PRIORITY && !rule.is_of_local_addresses();
    let may_match = wanted.iter().any(|want| {
        let mark = match want {
            Want::Marked { .. } => table,
            Want::Replies { .. } => 0,
        };
        rule.mark()
            .is_none_or(|(value, mask)| (mark & mask == value) != rule.is_inverted())
    });
    (is_asked_before && may_match)
        .then_some("is asked before culvert's, and may take their packets")
}
