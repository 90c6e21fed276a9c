//! The latency of an endpoint: up at once, down slowly, and forgotten when nothing is heard of it.

use std::time::Duration;

/// In this time what was seen loses two thirds of its weight.
const MEMORY: Duration = Duration::from_secs(10);

/// A peak-sensitive moving average. A slow answer counts at once, quick ones have to come for a while before it is
/// forgiven; and because an endpoint that is avoided gives no answers, it is also forgiven by time alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    seconds: f64,
    heard: Duration,
}

impl Latency {
    pub(super) fn observe(&mut self, now: Duration, took: Duration) {
        let (seen, known) = (took.as_secs_f64(), self.at(now).as_secs_f64());
        let kept = kept(now.saturating_sub(self.heard));
        // Forgetting is in `at`; what is seen fills up what was forgotten.
        self.seconds = if seen > known {
            seen
        } else {
            known + seen * (1.0 - kept)
        };
        self.heard = now;
    }

    pub(super) fn at(&self, now: Duration) -> Duration {
        let silence = now.saturating_sub(self.heard);
        Duration::from_secs_f64(self.seconds * kept(silence))
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
}
