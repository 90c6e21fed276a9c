//! Rates of the last minutes, from totals that somebody tells now and then.

use std::{collections::VecDeque, time::Instant};

use crate::status::Status;

/// More than the widest screen has columns.
const KEPT: usize = 600;

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// Bytes from apps to servers.
    Up,
    /// And back.
    Down,
    /// Connections.
    Opened,
}

/// What was counted when.
#[derive(Clone, Copy, Debug)]
struct Totals {
    pid: u32,
    at: Instant,
    counts: [u64; 3],
}

/// Rates, the newest last.
#[derive(Debug, Default)]
pub(super) struct History {
    before: Option<Totals>,
    rates: [VecDeque<u64>; 3],
}

impl History {
    /// Another look. Another daemon begins anew, without a rate that never was.
    pub(super) fn add(&mut self, status: &Status, now: Instant) {
        let connections = &status.connections;
        let totals = Totals {
            pid: status.pid,
            at: now,
            counts: [connections.up, connections.down, connections.accepted],
        };
        let Some(before) = self.before.replace(totals) else {
            return;
        };
        if before.pid != totals.pid {
            return;
        }
        let millis = now.duration_since(before.at).as_millis().max(1);
        let counts = totals.counts.into_iter().zip(before.counts);
        for (rates, (now, before)) in self.rates.iter_mut().zip(counts) {
            let rate = u128::from(now.saturating_sub(before)) * 1000 / millis;
            if rates.len() == KEPT {
                rates.pop_front();
            }
            rates.push_back(u64::try_from(rate).unwrap_or(u64::MAX));
        }
    }

    /// The newest.
    pub(super) fn now(&self, what: Counted) -> u64 {
        self.rates(what).next().unwrap_or(0)
    }

    /// The newest first.
    pub(super) fn rates(&self, what: Counted) -> impl Iterator<Item = u64> {
        let rates = self.rates.get(what as usize);
        rates.into_iter().flatten().rev().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn status(pid: u32, up: u64) -> Status {
        let mut status = Status {
            pid,
            ..Status::default()
        };
        status.connections.up = up;
        status
    }

    #[test]
    fn a_rate_is_what_came_between_two_looks_at_the_same_daemon() {
        let mut history = History::default();
        let begin = Instant::now();
        let mut look = |seconds: u64, pid, up| {
            history.add(&status(pid, up), begin + Duration::from_secs(seconds));
            history.rates(Counted::Up).collect::<Vec<_>>()
        };
        assert_eq!(look(0, 1, 1000), [0; 0]);
        assert_eq!(look(2, 1, 5000), [2000]);
        assert_eq!(look(3, 2, 10), [2000], "another daemon");
        assert_eq!(look(4, 2, 17), [7, 2000]);
        assert_eq!(history.now(Counted::Up), 7);
        assert_eq!(history.now(Counted::Opened), 0);
        for second in 5..5 + 2 * KEPT as u64 {
            history.add(&status(2, 17), begin + Duration::from_secs(second));
        }
        assert_eq!(history.rates(Counted::Up).count(), KEPT);
    }
}
