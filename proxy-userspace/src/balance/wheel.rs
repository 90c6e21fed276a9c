//! Draws by weight: a wheel on which each takes as much room as it weighs.

use super::hash::below;

/// Those that take part, by where their room ends.
#[derive(Debug, Default)]
pub(super) struct Wheel {
    ends: Vec<u64>,
    players: Vec<usize>,
}

impl Wheel {
    /// Of weights, in order; those of 0 take no part.
    pub(super) fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut wheel = Self::default();
        let mut end = 0;
        for (player, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0) {
            end += weight;
            wheel.ends.push(end);
            wheel.players.push(player);
        }
        wheel
    }

    /// The mean weight.
    #[expect(
        clippy::cast_precision_loss,
        reason = "weights and counts are far below 2^52"
    )]
    pub(super) fn mean(&self) -> f64 {
        self.total() as f64 / self.ends.len().max(1) as f64
    }

    /// The one that a random number leads to.
    pub(super) fn draw(&self, random: u64) -> Option<usize> {
        self.at(below(random, self.total()))
    }

    /// As [`Wheel::draw`], as if `first` took no part.
    pub(super) fn draw_other(&self, first: usize, random: u64) -> Option<usize> {
        let place = self.players.binary_search(&first).ok()?;
        let start = place
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied()
            .unwrap_or(0);
        let end = *self.ends.get(place)?;
        let others = self.total() - (end - start);
        if others == 0 {
            return None;
        }
        let spot = below(random, others);
        self.at(if spot < start {
            spot
        } else {
            spot + end - start
        })
    }

    /// The first that `may` be taken, from where a random number leads to: for when most may not.
    pub(super) fn first_from(&self, random: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.place(below(random, self.total()));
        let (before, after) = self.players.split_at_checked(start)?;
        after.iter().chain(before).copied().find(|at| may(*at))
    }

    fn at(&self, spot: u64) -> Option<usize> {
        self.players.get(self.place(spot)).copied()
    }

    fn place(&self, spot: u64) -> usize {
        self.ends.partition_point(|end| *end <= spot)
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }
}
