//! Number ranges: ports, user ids, group ids.
//!
//! The bounds of all ranges cut the numbers into intervals in which every rule either holds or does not. Each
//! interval is stored as the few prefixes that cover it, in the same trie as the addresses.

use std::{collections::BTreeSet, ops::RangeInclusive};

use proxy_common::{PrefixKey, RuleSet};

use super::Prefix;
use crate::rule::Selector;

/// The table of one kind of number; empty when no rule selects by it.
pub(super) fn table<R>(
    kind: u32,
    rules: &[R],
    selector: impl Fn(&R) -> Selector<RangeInclusive<u32>>,
) -> Vec<(Prefix, RuleSet)> {
    let selectors: Vec<_> = rules.iter().map(selector).collect();
    if selectors.iter().all(Selector::is_any) {
        return Vec::new();
    }
    let mut starts = BTreeSet::from([0]);
    for range in selectors
        .iter()
        .flat_map(|selector| selector.include.iter().chain(&selector.exclude))
    {
        starts.insert(*range.start());
        starts.extend(range.end().checked_add(1));
    }

    let mut table = Vec::new();
    let mut ends = starts
        .iter()
        .skip(1)
        .map(|next| next - 1)
        .collect::<Vec<_>>();
    ends.push(u32::MAX);
    let mut pending: Option<(u32, u32, RuleSet)> = None;
    for (start, end) in starts.into_iter().zip(ends) {
        let mut allowed = RuleSet::EMPTY;
        for (index, selector) in selectors.iter().enumerate() {
            if selector.selects(|range| range.contains(&start)) {
                allowed.insert(index);
            }
        }
        pending = match pending {
            Some((first, _, set)) if set == allowed => Some((first, end, set)),
            previous => {
                if let Some((first, last, set)) = previous {
                    cover(kind, first, last, set, &mut table);
                }
                Some((start, end, allowed))
            }
        };
    }
    if let Some((first, last, set)) = pending {
        cover(kind, first, last, set, &mut table);
    }
    table
}

/// Covers an interval of the numbers with the largest aligned blocks that fit.
fn cover(kind: u32, first: u32, last: u32, set: RuleSet, table: &mut Vec<(Prefix, RuleSet)>) {
    blocks(32, first, last, |value, len| {
        let bits = PrefixKey::number(0, kind, value).bits;
        table.push((Prefix { kind, len, bits }, set));
    });
}

/// The largest aligned blocks that cover an interval of the numbers of so many bits: first number and leading bits of each.
pub(super) fn blocks(width: u32, first: u32, last: u32, mut take: impl FnMut(u32, u32)) {
    let (mut at, last) = (u64::from(first), u64::from(last));
    while at <= last {
        let alignment = if at == 0 {
            width
        } else {
            at.trailing_zeros().min(width)
        };
        let fits = (last - at + 1).ilog2();
        let size = alignment.min(fits);
        // Cannot fail: `at` is at most `last`, which was a u32.
        let Ok(value) = u32::try_from(at) else { break };
        take(value, width - size);
        at += 1 << size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_exactly() {
        for (first, last) in [
            (0, u32::MAX),
            (0, 0),
            (u32::MAX, u32::MAX),
            (1000, 1999),
            (1, u32::MAX - 1),
        ] {
            let mut table = Vec::new();
            cover(2, first, last, RuleSet::ALL, &mut table);
            let mut next = u64::from(first);
            for (prefix, _) in &table {
                let value = u32::from_be(prefix.bits.words()[0]);
                assert_eq!(u64::from(value), next, "{first}..={last}");
                next += 1 << (32 - prefix.len);
            }
            assert_eq!(next, u64::from(last) + 1, "{first}..={last}");
            assert!(table.len() <= 62);
        }
    }
}
