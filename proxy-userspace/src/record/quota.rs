//! Which connections have their records written, where there are too many to write all. What is left out is counted.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use crate::close::CloseReason;

/// A sample, and a bound.
#[derive(Debug)]
pub struct Quota {
    /// One of so many connections that ended as they should.
    sample: NonZeroU32,
    /// So many records in each second.
    rate: Option<NonZeroU32>,
    start: Instant,
    /// Connections that ended as they should.
    done: AtomicU64,
    /// The second that it is since the start, and the records in it.
    second: AtomicU64,
    sampled_out: AtomicU64,
    over_rate: AtomicU64,
}

impl Default for Quota {
    /// All of them.
    fn default() -> Self {
        Self::new(NonZeroU32::MIN, None)
    }
}

impl Quota {
    /// One of so many connections that end as they should and all others, and not more than so many in a second.
    #[must_use]
    pub fn new(sample: NonZeroU32, rate: Option<NonZeroU32>) -> Self {
        Self {
            sample,
            rate,
            start: Instant::now(),
            done: AtomicU64::new(0),
            second: AtomicU64::new(0),
            sampled_out: AtomicU64::new(0),
            over_rate: AtomicU64::new(0),
        }
    }

    /// Whether the connection that has ended for this reason has its record written; counts it.
    pub(super) fn admits(&self, reason: CloseReason) -> bool {
        if !self.is_sampled(reason) {
            self.sampled_out.fetch_add(1, Relaxed);
            return false;
        }
        let admitted = self.is_within_rate(self.start.elapsed().as_secs());
        if !admitted {
            self.over_rate.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// Records that were left out by the sample.
    #[must_use]
    pub fn sampled_out(&self) -> u64 {
        self.sampled_out.load(Relaxed)
    }

    /// Records that were left out by the bound.
    #[must_use]
    pub fn over_rate(&self) -> u64 {
        self.over_rate.load(Relaxed)
    }

    /// The first of each so many.
    fn is_sampled(&self, reason: CloseReason) -> bool {
        reason != CloseReason::Done
            || self
                .done
                .fetch_add(1, Relaxed)
                .is_multiple_of(u64::from(self.sample.get()))
    }

    fn is_within_rate(&self, second: u64) -> bool {
        let Some(rate) = self.rate else {
            return true;
        };
        // In one word, so that no second begins twice.
        let begun = second << 32;
        let count = |was: u64| {
            let was = was.max(begun);
            let records = was & u64::from(u32::MAX);
            (records < u64::from(rate.get())).then_some(was + 1)
        };
        self.second.fetch_update(Relaxed, Relaxed, count).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn a_sample_has_all_that_went_wrong() {
        let quota = Quota::new(number(3), None);
        let done: Vec<_> = (0..7).map(|_| quota.admits(CloseReason::Done)).collect();
        assert_eq!(done, [true, false, false, true, false, false, true]);
        assert!((0..7).all(|_| quota.admits(CloseReason::Shutdown)));
        assert_eq!((quota.sampled_out(), quota.over_rate()), (4, 0));
    }

    #[test]
    fn each_second_has_its_records() {
        let quota = Quota::new(number(1), Some(number(2)));
        let within = |second| (0..4).filter(|_| quota.is_within_rate(second)).count();
        assert_eq!([within(0), within(0), within(1), within(70)], [2, 0, 2, 2]);
        // A thread that looked at the clock before another one.
        assert_eq!(within(69), 0);
    }

    #[test]
    fn what_is_over_the_rate_is_counted() {
        let quota = Quota::new(number(1), Some(number(1)));
        let admitted = (0..1000)
            .filter(|_| quota.admits(CloseReason::Done))
            .count();
        assert!(admitted < 1000);
        assert_eq!(quota.over_rate(), 1000 - admitted as u64);
    }

    #[test]
    fn without_a_quota_everything_is_written() {
        let quota = Quota::default();
        assert!((0..1000).all(|_| quota.admits(CloseReason::Done)));
    }
}
