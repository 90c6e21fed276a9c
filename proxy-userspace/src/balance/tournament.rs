//! The best of many whose ranks change one at a time: a tree of matches, each level half of the one below.

/// Less is better; the lower number wins a draw.
pub(super) type Rank = (u64, u64);

/// Ranks, and the winner of each match. Changing one rank replays one match a level.
#[derive(Debug)]
pub(super) struct Tournament {
    ranks: Vec<Option<Rank>>,
    /// Winners: the final at 1, the matches below match `i` at `2 i` and `2 i + 1`, and the players from `width` on.
    winners: Vec<Option<usize>>,
    width: usize,
}

impl Tournament {
    /// For so many players, none of whom takes part yet.
    pub(super) fn new(players: usize) -> Self {
        let width = players.next_power_of_two();
        Self {
            ranks: vec![None; players],
            winners: vec![None; 2 * width],
            width,
        }
    }

    /// Gives a player another rank; `None` takes no part.
    pub(super) fn set(&mut self, player: usize, rank: Option<Rank>) {
        let Some(place) = self.ranks.get_mut(player) else {
            return;
        };
        *place = rank;
        let mut node = self.width + player;
        self.put(node, rank.map(|_| player));
        while node > 1 {
            node /= 2;
            let winner = self.winner(self.at(2 * node), self.at(2 * node + 1));
            self.put(node, winner);
        }
    }

    /// The best player that `may` win. Those that may not are taken out and put back, so they cost a little.
    pub(super) fn best(&mut self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let mut passed = Vec::new();
        let best = loop {
            match self.at(1) {
                Some(best) if !may(best) => {
                    passed.push((best, self.rank(best)));
                    self.set(best, None);
                }
                best => break best,
            }
        };
        for (player, rank) in passed {
            self.set(player, rank);
        }
        best
    }

    fn winner(&self, left: Option<usize>, right: Option<usize>) -> Option<usize> {
        match (left, right) {
            (Some(one), Some(other)) if self.rank(other) < self.rank(one) => Some(other),
            (one @ Some(_), _) => one,
            (None, other) => other,
        }
    }

    fn rank(&self, player: usize) -> Option<Rank> {
        self.ranks.get(player).copied().flatten()
    }

    fn at(&self, node: usize) -> Option<usize> {
        self.winners.get(node).copied().flatten()
    }

    fn put(&mut self, node: usize, winner: Option<usize>) {
        if let Some(place) = self.winners.get_mut(node) {
            *place = winner;
        }
    }
}
