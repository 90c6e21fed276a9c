//! Sets of numbers as ranges: ports, ids and addresses alike.

use std::ops::RangeInclusive;

/// A set of numbers: sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals(Vec<(u128, u128)>);

impl Intervals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every number of `other` is in this set.
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(first, last)| {
            // No two ranges touch, so only one can hold all of them.
            let at = self.0.partition_point(|(start, _)| start <= first);
            let holder = at.checked_sub(1).and_then(|at| self.0.get(at));
            holder.is_some_and(|(_, end)| last <= end)
        })
    }

    /// The numbers of both sets.
    pub(super) fn union(&self, other: &Self) -> Self {
        self.0
            .iter()
            .chain(&other.0)
            .map(|(first, last)| *first..=*last)
            .collect()
    }

    /// The numbers of this set that are not in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(first, last) in &self.0 {
            let mut rest = Some(first);
            let from = other.0.partition_point(|(_, end)| *end < first);
            let holes = other.0.iter().skip(from);
            for &(start, end) in holes.take_while(|(start, _)| *start <= last) {
                left.extend(
                    rest.filter(|rest| *rest < start)
                        .map(|rest| (rest, start - 1)),
                );
                rest = (end < last).then(|| end + 1);
            }
            left.extend(rest.map(|rest| (rest, last)));
        }
        Self(left)
    }
}

impl FromIterator<RangeInclusive<u128>> for Intervals {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u128>>>(ranges: I) -> Self {
        let mut ranges: Vec<(u128, u128)> =
            ranges.into_iter().map(RangeInclusive::into_inner).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Near both ends of the numbers and dense enough to touch and overlap.
    fn number() -> impl Strategy<Value = u128> {
        prop_oneof![0..40_u128, (0..40_u128).prop_map(|below| u128::MAX - below)]
    }

    fn set() -> impl Strategy<Value = Vec<RangeInclusive<u128>>> {
        let range = (number(), number()).prop_map(|(a, b)| a.min(b)..=a.max(b));
        prop::collection::vec(range, 0..6)
    }

    fn holds(ranges: &[RangeInclusive<u128>], number: u128) -> bool {
        ranges.iter().any(|range| range.contains(&number))
    }

    fn everywhere() -> impl Iterator<Item = u128> {
        (0..41).chain((0..41).map(|below| u128::MAX - below))
    }

    proptest! {
        #[test]
        fn sets_agree_with_their_ranges(a in set(), b in set()) {
            let set = |ranges: &[RangeInclusive<u128>]| ranges.iter().cloned().collect::<Intervals>();
            let (left, right) = (set(&a), set(&b));
            let minus = left.minus(&right);
            let union = left.union(&right);
            for number in everywhere() {
                let one = Intervals(vec![(number, number)]);
                prop_assert_eq!(left.covers(&one), holds(&a, number));
                prop_assert_eq!(minus.covers(&one), holds(&a, number) && !holds(&b, number));
                prop_assert_eq!(union.covers(&one), holds(&a, number) || holds(&b, number));
            }
            prop_assert_eq!(right.covers(&left), minus.is_empty());
        }
    }
}
