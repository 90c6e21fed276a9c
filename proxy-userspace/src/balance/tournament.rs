//! The best of many whose ranks change one at a time: a tree of matches, each level half of the one below.

/// Less is better; the lower number wins a draw.
pub(super) type Rank = (u64, u64);

/// Of those that take no part.
const ABSENT: Rank = (u64::MAX, u64::MAX);

/// Ranks, and the winner of each match. Changing one rank replays the matches above it, as far as that changes who wins.
#[derive(Debug)]
pub(super) struct Tournament {
    /// Of a power of two of players, the last of whom do not exist.
    ranks: Vec<Rank>,
    /// The final at 1, the matches below match `i` at `2 i` and `2 i + 1`.
    winners: Vec<usize>,
}

impl Tournament {
    /// For so many players, none of whom takes part yet.
    pub(super) fn new(players: usize) -> Self {
        let width = players.next_power_of_two();
        let mut tournament = Self {
            ranks: vec![ABSENT; width],
            winners: vec![0; width],
        };
        for node in (1..width).rev() {
            tournament.play(node);
        }
        tournament
    }

    /// Gives a player another rank; `None` takes no part.
    pub(super) fn set(&mut self, player: usize, rank: Option<Rank>) {
        let rank = rank.unwrap_or(ABSENT);
        match self.ranks.get_mut(player) {
            Some(known) if *known != rank => *known = rank,
            _ => return,
        }
        let mut node = self.ranks.len() + player;
        while node > 1 {
            node /= 2;
            let before = self.at(node);
            let winner = self.play(node);
            // Who won before wins again, and its rank is what it was.
            if before == winner && winner != player {
                break;
            }
        }
    }

    /// The best player that `may` win. Those that may not are taken out and put back, so they cost a little.
    pub(super) fn best(&mut self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let mut passed = Vec::new();
        let best = loop {
            let best = self.at(1);
            match self.rank(best) {
                ABSENT => break None,
                _ if may(best) => break Some(best),
                rank => {
                    passed.push((best, rank));
                    self.set(best, None);
                }
            }
        };
        for (player, rank) in passed {
            self.set(player, Some(rank));
        }
        best
    }

    /// Has a match won by the better of the two below it.
    fn play(&mut self, node: usize) -> usize {
        let (left, right) = (self.at(2 * node), self.at(2 * node + 1));
        let winner = if self.rank(right) < self.rank(left) {
            right
        } else {
            left
        };
        if let Some(place) = self.winners.get_mut(node) {
            *place = winner;
        }
        winner
    }

    /// Who won a match; below the last matches there are the players themselves.
    fn at(&self, node: usize) -> usize {
        let player = || node - self.ranks.len();
        self.winners.get(node).copied().unwrap_or_else(player)
    }

    fn rank(&self, player: usize) -> Rank {
        self.ranks.get(player).copied().unwrap_or(ABSENT)
    }
}
