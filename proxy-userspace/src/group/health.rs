//! Whether an endpoint is healthy: a state machine that is told what was seen and what time it is.
//!
//! Two judges, either of which keeps an endpoint out. Checks turn it down after [`HealthRules::fall`] failures in a row and up
//! again after [`HealthRules::rise`] successes. Connections eject it after [`Passive::failures`] that could not be made, for
//! a time that doubles as long as it happens again.

use std::time::Duration;

use crate::balance::FULL;

/// When an endpoint is held for healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// Successful checks in a row that turn it up.
    pub rise: u32,
    /// Failed checks in a row that turn it down.
    pub fall: u32,
    /// What connections tell.
    pub passive: Option<Passive>,
    /// Connections eject no endpoint if fewer than so many of a hundred would be left.
    pub panic: u32,
    /// One that is up again, or new, gets its part little by little.
    pub slow_start: Duration,
}

impl Default for HealthRules {
    fn default() -> Self {
        Self {
            rise: 2,
            fall: 3,
            passive: Some(Passive::default()),
            panic: 50,
            slow_start: Duration::ZERO,
        }
    }
}

/// When connections eject an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// So many in a row that could not be made.
    pub failures: u32,
    /// For how long the first time.
    pub eject: Duration,
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            failures: 5,
            eject: Duration::from_secs(10),
        }
    }
}

/// An ejection lasts at most so many doublings longer than the first.
const MOST_DOUBLINGS: u32 = 5;
/// A slow start begins with a tenth.
const FIRST_SHARE: u32 = FULL / 10;
/// It goes on in so many steps.
const STEPS: u32 = 32;

/// What an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes connections.
    Up,
    /// Checks failed.
    Down,
    /// Connections failed.
    Ejected,
    /// It is no part of the group any more and serves what it has.
    Leaving,
}

impl State {
    /// Its name in logs and status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Leaving => "leaving",
        }
    }
}

/// The health of one endpoint.
#[derive(Clone, Debug)]
pub struct Health {
    is_down: bool,
    /// Checks in a row that speak against the state.
    against: u32,
    /// Connections in a row that could not be made.
    failures: u32,
    ejected_until: Option<Duration>,
    /// How long the last ejection was, and when it was over.
    last_ejection: Option<(Duration, Duration)>,
    /// When its slow start began.
    started: Option<Duration>,
}

impl Health {
    /// Of an endpoint of which nothing is known yet: it is up.
    #[must_use]
    pub const fn new(started: Option<Duration>) -> Self {
        Self {
            is_down: false,
            against: 0,
            failures: 0,
            ejected_until: None,
            last_ejection: None,
            started,
        }
    }

    /// What it is.
    #[must_use]
    pub const fn state(&self) -> State {
        if self.is_down {
            State::Down
        } else if self.ejected_until.is_some() {
            State::Ejected
        } else {
            State::Up
        }
    }

    /// A check was made. Whether that changed the state.
    pub fn checked(&mut self, healthy: bool, now: Duration, rules: &HealthRules) -> bool {
        if healthy != self.is_down {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if healthy { rules.rise } else { rules.fall };
        if self.against < enough {
            return false;
        }
        self.against = 0;
        self.is_down = !healthy;
        if healthy {
            self.begin(now);
        }
        true
    }

    /// A connection was made, or could not be. Whether that changed the state; `may_eject` says whether it may.
    pub fn used(
        &mut self,
        reached: bool,
        now: Duration,
        rules: &HealthRules,
        may_eject: bool,
    ) -> bool {
        if reached {
            self.failures = 0;
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let Some(passive) = rules.passive else {
            return false;
        };
        if self.failures < passive.failures || self.ejected_until.is_some() || !may_eject {
            return false;
        }
        let time = self.next_ejection(now, passive.eject);
        self.failures = 0;
        self.ejected_until = Some(now + time);
        self.last_ejection = Some((time, now + time));
        !self.is_down
    }

    /// Twice the last one, unless it has been well for as long since.
    fn next_ejection(&self, now: Duration, first: Duration) -> Duration {
        match self.last_ejection {
            Some((time, end)) if now < end + time => (2 * time).min(first * (1 << MOST_DOUBLINGS)),
            _ => first,
        }
    }

    /// Time has passed. Whether that changed the state.
    pub fn passed(&mut self, now: Duration) -> bool {
        match self.ejected_until {
            Some(end) if now >= end => {
                self.ejected_until = None;
                self.begin(now);
                !self.is_down
            }
            _ => false,
        }
    }

    /// Its share of its part.
    #[must_use]
    pub fn share(&self, now: Duration, slow_start: Duration) -> u32 {
        if self.state() != State::Up {
            return 0;
        }
        let Some(started) = self.started.filter(|_| !slow_start.is_zero()) else {
            return FULL;
        };
        let passed = now.saturating_sub(started).as_micros();
        let steps = passed * u128::from(STEPS) / slow_start.as_micros().max(1);
        let steps = u32::try_from(steps).unwrap_or(STEPS).min(STEPS);
        FIRST_SHARE + (FULL - FIRST_SHARE) * steps / STEPS
    }

    /// When time alone will change its state or share.
    #[must_use]
    pub fn next_change(&self, now: Duration, slow_start: Duration) -> Option<Duration> {
        let starts = (1..FULL).contains(&self.share(now, slow_start));
        let step = starts.then(|| now + slow_start / STEPS);
        [self.ejected_until, step].into_iter().flatten().min()
    }

    /// It is to be taken for new: it is up again, or restored.
    pub(super) fn begin(&mut self, now: Duration) {
        self.failures = 0;
        self.started = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules() -> HealthRules {
        HealthRules {
            rise: 2,
            fall: 3,
            passive: Some(Passive {
                failures: 2,
                eject: 10 * SECOND,
            }),
            panic: 50,
            slow_start: 32 * SECOND,
        }
    }

    fn states(script: &str) -> String {
        let mut health = Health::new(None);
        script
            .chars()
            .map(|seen| {
                let before = health.state();
                let changed = health.checked(seen == '+', SECOND, &rules());
                assert_eq!(changed, health.state() != before);
                if health.state() == State::Up {
                    'u'
                } else {
                    'd'
                }
            })
            .collect()
    }

    #[test]
    fn checks_in_a_row_turn_it_down_and_up() {
        assert_eq!(states("--+---"), "uuuuud");
        assert_eq!(states("---+-++-"), "uudddduu");
    }

    #[test]
    fn connections_eject_it_for_longer_and_longer() {
        let (rules, mut health, mut now) = (rules(), Health::new(None), 100 * SECOND);
        for expected in [10, 20, 40, 80, 160, 320, 320] {
            assert!(!health.used(false, now, &rules, true));
            assert!(health.used(false, now, &rules, true));
            assert_eq!(health.state(), State::Ejected);
            assert_eq!(health.share(now, rules.slow_start), 0);
            let end = now + expected * SECOND;
            now = end.saturating_sub(Duration::from_millis(1));
            assert!(!health.passed(now), "after {expected}");
            now = end;
            assert!(health.passed(now), "after {expected}");
            assert_eq!(health.state(), State::Up);
        }
        // Well for as long as it was ejected: it begins anew.
        now += 320 * SECOND;
        health.used(false, now, &rules, true);
        health.used(false, now, &rules, true);
        assert!(health.passed(now + 10 * SECOND));
    }

    #[test]
    fn a_connection_in_between_is_forgiveness() {
        let (rules, mut health) = (rules(), Health::new(None));
        for reached in [false, true, false, true, false] {
            assert!(!health.used(reached, SECOND, &rules, true));
        }
        assert!(health.used(false, SECOND, &rules, true));
    }

    #[test]
    fn it_is_not_ejected_when_that_is_not_wanted() {
        let mut health = Health::new(None);
        for _ in 0..10 {
            assert!(!health.used(false, SECOND, &rules(), false));
        }
        let never = HealthRules {
            passive: None,
            ..rules()
        };
        assert!(!health.used(false, SECOND, &never, true));
        assert!(
            health.used(false, SECOND, &rules(), true),
            "as soon as it may"
        );
    }

    #[test]
    fn the_two_judges_do_not_overrule_each_other() {
        let (rules, mut health) = (rules(), Health::new(None));
        health.used(false, SECOND, &rules, true);
        health.used(false, SECOND, &rules, true);
        for _ in 0..5 {
            health.checked(true, SECOND, &rules);
        }
        assert_eq!(health.state(), State::Ejected);
        for _ in 0..3 {
            health.checked(false, SECOND, &rules);
        }
        assert!(!health.passed(60 * SECOND), "it stays down");
        assert_eq!(health.state(), State::Down);
    }

    #[test]
    fn a_slow_start_goes_from_a_tenth_to_the_whole() {
        let (rules, mut health) = (rules(), Health::new(None));
        assert_eq!(health.share(SECOND, rules.slow_start), FULL);
        for _ in 0..3 {
            health.checked(false, SECOND, &rules);
        }
        for _ in 0..2 {
            health.checked(true, 10 * SECOND, &rules);
        }
        let share = |at: u32| health.share(at * SECOND, rules.slow_start);
        assert_eq!(share(10), FIRST_SHARE);
        assert_eq!(share(26), FIRST_SHARE.midpoint(FULL));
        assert_eq!(share(42), FULL);
        assert_eq!(
            health.next_change(10 * SECOND, rules.slow_start),
            Some(11 * SECOND)
        );
        assert_eq!(health.next_change(50 * SECOND, rules.slow_start), None);
    }
}
