//! Whether the daemon's sockets have to be marked as its own before they connect.
//!
//! The hooks know it by its process, while they hold it for alive, and then a mark is not needed. What it takes in the kernel, and its
//! end, is a twentieth of all that a short connection takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::clock;

/// For all that mark sockets. Sockets are marked until it is known that they need not be.
#[derive(Debug, Default)]
pub(super) struct Marking {
    /// The hooks are told the process.
    is_known: AtomicBool,
    /// There are rules for what arrives, which see no process.
    has_arrivals: AtomicBool,
    /// There are the hooks of another daemon, to which only marks mean something: of one whose place it takes, or that takes its place.
    has_others: AtomicBool,
    /// When it gave a sign of life last, on the monotonic clock, in nanoseconds; 0 before the first.
    last_beat: AtomicU64,
    /// How old that may become, in nanoseconds.
    patience: AtomicU64,
}

impl Marking {
    /// The hooks are told the process, and how long they hold it for alive without a sign of life.
    pub(super) fn know(&self, timeout: u64) {
        // Whoever is not marked connects right away, in the other half.
        self.patience.store(timeout / 2, Relaxed);
        self.is_known.store(true, Relaxed);
    }

    pub(super) fn expect_arrivals(&self, has_arrivals: bool) {
        self.has_arrivals.store(has_arrivals, Relaxed);
    }

    pub(super) fn expect_others(&self, has_others: bool) {
        self.has_others.store(has_others, Relaxed);
    }

    /// It gave a sign of life.
    pub(super) fn beaten(&self, now: u64) {
        self.last_beat.store(now, Relaxed);
    }

    pub(super) fn is_needed(&self) -> bool {
        let is_late = || {
            let age = clock::nanoseconds().saturating_sub(self.last_beat.load(Relaxed));
            age > self.patience.load(Relaxed)
        };
        !self.is_known.load(Relaxed)
            || self.has_arrivals.load(Relaxed)
            || self.has_others.load(Relaxed)
            || is_late()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_alone_and_alive_needs_no_mark() {
        let marking = Marking::default();
        assert!(marking.is_needed(), "unknown");
        marking.know(120_000_000_000);
        assert!(marking.is_needed(), "never alive");
        marking.beaten(clock::nanoseconds());
        assert!(!marking.is_needed());
        marking.expect_arrivals(true);
        assert!(marking.is_needed(), "a hook that sees no process");
        marking.expect_arrivals(false);
        marking.expect_others(true);
        assert!(marking.is_needed(), "hooks of others");
        marking.expect_others(false);
        assert!(!marking.is_needed());
        marking.beaten(clock::nanoseconds() - 61_000_000_000);
        assert!(marking.is_needed(), "late");
    }
}
