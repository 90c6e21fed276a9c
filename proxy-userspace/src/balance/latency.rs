//! The latency of an endpoint: up at once, down slowly, and forgotten when nothing is heard of it.

use std::time::Duration;

/// In this time what was seen loses two thirds of its weight.
const MEMORY: Duration = Duration::from_secs(10);

/// Latencies below are all the same: what tells such endpoints apart is noise.
pub(super) const LEAST_LATENCY: Duration = Duration::from_micros(100);
/// Latencies that differ by a smaller factor are alike.
const ALIKE: f64 = 1.25;
/// A failed attempt counts as if it had taken at least so long: a port that refuses at once is no quick endpoint.
const LEAST_PENALTY: Duration = Duration::from_secs(1);
/// In this time a failure is forgiven altogether. By the memory alone an idle endpoint, which others of a tenth of a millisecond compare
/// with, would get no connection for a minute and a half after a single one.
const FORGIVEN: Duration = Duration::from_secs(10);

/// A peak-sensitive moving average. A slow answer counts at once, quick ones have to come for a while before it is
/// forgiven; and because an endpoint that is avoided gives no answers, it is also forgiven by time alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    seconds: f64,
    heard: Duration,
    /// What the last failure counted as, and when it was.
    failure: Option<(Duration, Duration)>,
}

impl Latency {
    pub(super) fn observe(&mut self, now: Duration, took: Duration) {
        let (seen, known) = (took.as_secs_f64(), self.average(now));
        let kept = kept(now.saturating_sub(self.heard));
        // Forgetting is in `at`; what is seen fills up what was forgotten.
        self.seconds = if seen > known {
            seen
        } else {
            known + seen * (1.0 - kept)
        };
        self.heard = now;
    }

    /// An attempt has failed after so long.
    pub(super) fn fail(&mut self, now: Duration, took: Duration) {
        self.failure = Some((took.max(LEAST_PENALTY), now));
    }

    pub(super) fn at(&self, now: Duration) -> Duration {
        Duration::from_secs_f64(self.average(now).max(self.penalty(now)))
    }

    /// Whether it is about that of another one: as it was last heard of, whoever was asked less since, and without a failure.
    pub(super) fn is_like(&self, other: &Self, now: Duration) -> bool {
        if self.penalty(now) > 0.0 || other.penalty(now) > 0.0 {
            return false;
        }
        let [one, other] = [self, other].map(|it| it.seconds.max(LEAST_LATENCY.as_secs_f64()));
        one < other * ALIKE && other < one * ALIKE
    }

    fn average(&self, now: Duration) -> f64 {
        self.seconds * kept(now.saturating_sub(self.heard))
    }

    /// From what it counted as down to what no longer makes a difference, by the same factor in the same time.
    fn penalty(&self, now: Duration) -> f64 {
        let Some((counted, at)) = self.failure else {
            return 0.0;
        };
        let passed = now.saturating_sub(at).as_secs_f64() / FORGIVEN.as_secs_f64();
        if passed >= 1.0 {
            return 0.0;
        }
        let counted = counted.as_secs_f64();
        counted * (LEAST_LATENCY.as_secs_f64() / counted).powf(passed)
    }
}

/// What is left after a time.
fn kept(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn peaks_count_at_once_and_fade() {
        let mut latency = Latency::default();
        let mut now = Duration::from_secs(100);
        latency.observe(now, MS);
        assert_eq!(latency.at(now), MS);
        latency.observe(now, 100 * MS);
        assert_eq!(latency.at(now), 100 * MS);
        // Quick answers, a hundred a second, bring it down in the time of the memory and not before.
        for _ in 0..100 {
            now += 10 * MS;
            latency.observe(now, MS);
        }
        assert!(latency.at(now) > 80 * MS, "{:?}", latency.at(now));
        for _ in 0..6000 {
            now += 10 * MS;
            latency.observe(now, MS);
        }
        let settled = latency.at(now);
        assert!(settled >= MS / 2 && settled < 2 * MS, "{settled:?}");
    }

    #[test]
    fn who_is_not_heard_of_is_forgiven() {
        let mut latency = Latency::default();
        latency.observe(Duration::ZERO, Duration::from_secs(10));
        assert!(latency.at(2 * MEMORY) < Duration::from_secs(2));
        assert!(latency.at(20 * MEMORY) < MS);
    }

    #[test]
    fn a_failure_is_no_quick_answer_and_is_forgiven_in_time() {
        let mut latency = Latency::default();
        let now = Duration::from_secs(100);
        latency.observe(now, MS);
        latency.fail(now, MS / 10);
        assert_eq!(latency.at(now), LEAST_PENALTY);
        let half = latency.at(now + FORGIVEN / 2);
        assert!((9 * MS..11 * MS).contains(&half), "{half:?}");
        assert!(latency.at(now + FORGIVEN) < MS);
        latency.fail(now, 20 * LEAST_PENALTY);
        assert_eq!(latency.at(now), 20 * LEAST_PENALTY);
        assert!(latency.at(now + FORGIVEN) < MS);
        // What an answer says is another thing, and fades as ever.
        latency.observe(now, MS);
        assert_eq!(latency.at(now), 20 * LEAST_PENALTY);
    }
}
