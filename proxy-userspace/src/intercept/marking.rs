//! Whether the daemon's sockets have to be marked as its own before they connect.
//!
//! The hooks know it by its process, while they hold it for alive, and then a mark is not needed. What it takes in the kernel, and its
//! end, is a twentieth of all that a short connection takes.

use std::{
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::{Interceptor, guarding::GUARDS, id_of, survey};
use crate::{clock, policy::Compiled};

/// For all that mark sockets. Sockets are marked until it is known that they need not be.
#[derive(Debug, Default)]
pub(super) struct Marking {
    /// The hooks are told the process.
    is_known: AtomicBool,
    /// There are rules for what arrives, which see no process.
    has_arrivals: AtomicBool,
    /// Ports at which they take it.
    arrivals: Ports,
    /// What our sockets connect to is what arrives: no program of somebody else's says where connections of our cgroup go.
    is_left_alone: AtomicBool,
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

    /// Rules take, or are about to take, what arrives at these ports, besides those they took before.
    pub(super) fn expect_arrivals(&self, ports: &Ports) {
        self.arrivals.add(ports);
        self.has_arrivals.fetch_or(ports.any(), Relaxed);
    }

    /// They take it at no others any more.
    pub(super) fn expect_no_other_arrivals(&self, ports: &Ports) {
        self.arrivals.keep(ports);
        self.has_arrivals.store(ports.any(), Relaxed);
    }

    /// Whether somebody else's programs may say where connections of our cgroup go.
    pub(super) fn expect_detours(&self, has_detours: bool) {
        self.is_left_alone.store(!has_detours, Relaxed);
    }

    pub(super) fn expect_others(&self, has_others: bool) {
        self.has_others.store(has_others, Relaxed);
    }

    /// It gave a sign of life.
    pub(super) fn beaten(&self, now: u64) {
        self.last_beat.store(now, Relaxed);
    }

    /// Whether a socket that is to connect to this port has to be marked.
    pub(super) fn is_needed(&self, port: u16) -> bool {
        let is_late = || {
            let age = clock::nanoseconds().saturating_sub(self.last_beat.load(Relaxed));
            age > self.patience.load(Relaxed)
        };
        !self.is_known.load(Relaxed)
            || self.has_arrivals.load(Relaxed)
                && (self.arrivals.has(port) || !self.is_left_alone.load(Relaxed))
            || self.has_others.load(Relaxed)
            || is_late()
    }
}

impl Interceptor {
    /// Finds out whether programs of others may say where connections of our own cgroup go, as those of a container network do for the
    /// addresses of its services. Where the kernel does not tell they may.
    pub fn look_for_detours(&self, own: BorrowedFd<'_>) {
        // The hooks of `connect()` are the first.
        let mut hooks = GUARDS.into_iter().zip(survey::HOOKS);
        let has_detours = hooks.any(|(guard, hook)| {
            let ours = [hook.program, guard].map(|name| id_of(&self.ebpf, name));
            let in_force = survey::in_force(own, hook);
            in_force.map_or(true, |ids| {
                ids.into_iter().any(|id| !ours.contains(&Some(id)))
            })
        });
        self.marking.expect_detours(has_detours);
    }
}

/// A set of ports that threads share: one bit for each.
#[derive(Debug)]
pub(super) struct Ports([AtomicU64; 1 << 10]);

impl Default for Ports {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 1 << 10])
    }
}

impl Ports {
    /// Those at which any of these rules takes what arrives, at any address.
    pub(super) fn of(compiled: &Compiled) -> Self {
        let set = Self::default();
        for (cell, _) in compiled.ports.iter().chain(&compiled.cells) {
            set.insert(cell.port, 16_u32.saturating_sub(cell.len));
        }
        set
    }

    /// As many ports as so many bits count, from one on that has none of these bits.
    fn insert(&self, first: u16, bits: u32) {
        let count = 1_usize << bits;
        // A word has 64 of them.
        let mask = match count {
            0..64 => ((1 << count) - 1) << (first & 63),
            _ => u64::MAX,
        };
        let words = self.0.iter().skip(usize::from(first >> 6));
        for word in words.take(count.div_ceil(64)) {
            word.fetch_or(mask, Relaxed);
        }
    }

    fn any(&self) -> bool {
        self.0.iter().any(|word| word.load(Relaxed) != 0)
    }

    fn has(&self, port: u16) -> bool {
        let word = self.0.get(usize::from(port >> 6));
        word.is_some_and(|word| word.load(Relaxed) >> (port & 63) & 1 != 0)
    }

    fn add(&self, others: &Self) {
        for (word, other) in self.0.iter().zip(&others.0) {
            word.fetch_or(other.load(Relaxed), Relaxed);
        }
    }

    fn keep(&self, others: &Self) {
        for (word, other) in self.0.iter().zip(&others.0) {
            word.fetch_and(other.load(Relaxed), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::Cell;

    use super::*;
    use crate::policy::CellPrefix;

    const PORT: u16 = 8080;

    #[test]
    fn who_is_known_alone_and_alive_needs_no_mark() {
        let marking = Marking::default();
        assert!(marking.is_needed(PORT), "unknown");
        marking.know(120_000_000_000);
        assert!(marking.is_needed(PORT), "never alive");
        marking.beaten(clock::nanoseconds());
        assert!(!marking.is_needed(PORT));
        marking.expect_others(true);
        assert!(marking.is_needed(PORT), "hooks of others");
        marking.expect_others(false);
        assert!(!marking.is_needed(PORT));
        marking.beaten(clock::nanoseconds() - 61_000_000_000);
        assert!(marking.is_needed(PORT), "late");
    }

    #[test]
    fn who_connects_to_where_rules_take_what_arrives_needs_a_mark() {
        let marking = Marking::default();
        marking.know(120_000_000_000);
        marking.beaten(clock::nanoseconds());
        assert!(!marking.is_needed(PORT), "no rule takes what arrives");
        marking.expect_detours(false);
        let cell = |port, len| (CellPrefix { area: 1, len, port }, Cell::default());
        let compiled = Compiled {
            ports: vec![cell(80, 16), cell(65535, 16)],
            cells: vec![cell(8000, 13), cell(8008, 16)],
            ..Compiled::default()
        };
        let taken = |port| [80, 65535].contains(&port) || (8000..=8008).contains(&port);
        marking.expect_arrivals(&Ports::of(&compiled));
        for port in 0..=u16::MAX {
            assert_eq!(marking.is_needed(port), taken(port), "{port}");
        }
        // A reload that has not begun and one that is over.
        let later = Compiled {
            ports: vec![cell(443, 16), cell(8001, 16)],
            ..Compiled::default()
        };
        marking.expect_arrivals(&Ports::of(&later));
        assert!([80, 443, 8001].map(|port| marking.is_needed(port)) == [true; 3]);
        marking.expect_no_other_arrivals(&Ports::of(&later));
        let needed = (0..=u16::MAX).filter(|port| marking.is_needed(*port));
        assert_eq!(needed.collect::<Vec<_>>(), [443, 8001]);
        // All of them, as `listen = ["0.0.0.0/0:1-65535"]` has it.
        let all = Compiled {
            cells: vec![cell(0, 0)],
            ..Compiled::default()
        };
        marking.expect_arrivals(&Ports::of(&all));
        assert!((0..=u16::MAX).all(|port| marking.is_needed(port)));
        marking.expect_no_other_arrivals(&Ports::of(&later));
        marking.expect_detours(true);
        assert!(marking.is_needed(PORT), "it may arrive elsewhere");
        marking.expect_no_other_arrivals(&Ports::default());
        assert!(!marking.is_needed(443), "no rule takes it");
    }
}
