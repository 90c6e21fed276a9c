//! Which endpoint of a group takes the next connection.
//!
//! Pure: it has neither a clock nor a socket, what is random comes from a seed, and endpoints are numbers from 0. Who may
//! be chosen at all, and at which share of its weight, is for `group` to say. A decision takes less than a microsecond
//! among a thousand endpoints (`benches/balance.rs`), which is why none of the methods looks at all of them: turns and
//! counts are kept in a tournament, draws in a wheel, hashes lead into tables that are made once. Where the hook on `connect()` draws
//! itself it has the seats of `alias`.
//!
//! Numbers must be given in an order that is the same everywhere (`group` sorts by name): by it the two methods that hash
//! choose the same on every node that has the same endpoints.

pub mod alias;
pub mod hash;
mod latency;
mod maglev;
mod rendezvous;
mod tournament;
mod wheel;

use std::time::Duration;

use self::{
    hash::{Random, mix},
    latency::{LEAST_LATENCY, Latency},
    maglev::Maglev,
    rendezvous::Rendezvous,
    tournament::Tournament,
    wheel::Wheel,
};

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Each in its turn, as often as its weight says.
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConn,
    /// The better of two drawn by weight, by latency and connections.
    #[default]
    P2c,
    /// By a hash of the connection: the same on every node.
    Maglev,
    /// By a hash of the source address: the same for all its connections, on every node.
    SourceHash,
}

impl Method {
    /// Every method with its name in configurations.
    pub const ALL: [(&'static str, Self); 5] = [
        ("round-robin", Self::RoundRobin),
        ("least-conn", Self::LeastConn),
        ("p2c", Self::P2c),
        ("maglev", Self::Maglev),
        ("source-hash", Self::SourceHash),
    ];

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(_, method)| *method == self);
        found.map_or("", |(name, _)| name)
    }

    /// Whether it hashes, and so cannot give an endpoint a part of its share only.
    #[must_use]
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Maglev | Self::SourceHash)
    }
}

/// An endpoint as the methods see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// A hash of what it is called: the same on every node.
    pub id: u64,
    /// Its part of the connections. One with 0 is in no table, and counts as 1 when it is given a share all the same.
    pub weight: u32,
}

/// The share of an endpoint that takes its full part.
pub const FULL: u32 = 256;

/// A hash leads to an endpoint that may not be chosen so often before the rest is asked.
const REHASHES: u64 = 8;
/// As often for draws.
const REDRAWS: u32 = 8;
/// How far a turn of an endpoint of weight 1 reaches. Large, so that quotients are exact, and small enough for billions of
/// turns of a lone endpoint.
const TURN: u64 = 1 << 36;

#[derive(Clone, Debug)]
struct State {
    weight: u32,
    /// Of [`FULL`]; 0 for one that may not be chosen.
    share: u32,
    live: u32,
    /// Its next turn is over here.
    turn: u64,
    latency: Latency,
}

impl State {
    /// Weight times share.
    fn effective(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.share)
    }
}

/// The endpoints of a group and what they are chosen by.
#[derive(Debug)]
pub struct Balancer {
    method: Method,
    random: Random,
    states: Vec<State>,
    tournament: Tournament,
    wheel: Wheel,
    wheel_is_old: bool,
    /// The turn that was taken last.
    turn: u64,
    table: Table,
}

#[derive(Debug)]
enum Table {
    None,
    Maglev(Maglev),
    Rendezvous(Rendezvous),
}

impl Balancer {
    /// For these endpoints, all of which take their full part.
    #[must_use]
    pub fn new(method: Method, seed: u64, members: &[Member]) -> Self {
        let mut balancer = Self {
            method,
            random: Random::new(seed),
            states: Vec::with_capacity(members.len()),
            tournament: Tournament::new(members.len()),
            wheel: Wheel::default(),
            wheel_is_old: true,
            turn: 0,
            table: match method {
                Method::Maglev => Table::Maglev(Maglev::new(members)),
                Method::SourceHash => Table::Rendezvous(Rendezvous::new(members)),
                Method::RoundRobin | Method::LeastConn | Method::P2c => Table::None,
            },
        };
        for (at, member) in members.iter().enumerate() {
            balancer.states.push(State {
                weight: member.weight.max(1),
                share: 0,
                live: 0,
                turn: 0,
                latency: Latency::default(),
            });
            balancer.set_share(at, FULL);
        }
        balancer
    }

    /// Says which share of its part an endpoint takes, of [`FULL`]; none at 0.
    pub fn set_share(&mut self, at: usize, share: u32) {
        let now = self.turn;
        let Some(state) = self.states.get_mut(at) else {
            return;
        };
        if state.share == share {
            return;
        }
        let returns = state.share == 0;
        state.share = share;
        if returns {
            // Turns that it missed are no credit.
            state.turn = state.turn.max(now + TURN / state.effective().max(1));
        }
        self.wheel_is_old = true;
        if let Table::Rendezvous(table) = &mut self.table {
            table.set_in(at, share > 0);
        }
        self.place(at);
    }

    /// The part of an endpoint among the others' at the moment; 0 for one that takes no connections.
    #[must_use]
    pub fn part(&self, at: usize) -> u64 {
        self.states.get(at).map_or(0, State::effective)
    }

    /// Takes over what was learned of an endpoint before the set changed.
    pub fn learn(&mut self, at: usize, live: u32, from: &Self, before: Option<usize>) {
        let Some(state) = self.states.get_mut(at) else {
            return;
        };
        state.live = live;
        if let Some(known) = before.and_then(|before| from.states.get(before)) {
            state.latency = known.latency;
        }
        self.place(at);
    }

    /// An endpoint has one connection more.
    pub fn opened(&mut self, at: usize) {
        if let Some(state) = self.states.get_mut(at) {
            state.live = state.live.saturating_add(1);
            self.place(at);
        }
    }

    /// An endpoint has one connection less.
    pub fn closed(&mut self, at: usize) {
        if let Some(state) = self.states.get_mut(at) {
            state.live = state.live.saturating_sub(1);
            self.place(at);
        }
    }

    /// A connection to an endpoint could not be made, which took so long to find out.
    pub fn failed(&mut self, at: usize, now: Duration, took: Duration) {
        if let Some(state) = self.states.get_mut(at) {
            state.latency.fail(now, took);
        }
    }

    /// How long an endpoint took to answer.
    pub fn observed(&mut self, at: usize, now: Duration, took: Duration) {
        if let Some(state) = self.states.get_mut(at) {
            state.latency.observe(now, took);
        }
    }

    /// The latency of an endpoint as it counts at the moment.
    #[must_use]
    pub fn latency(&self, at: usize, now: Duration) -> Duration {
        self.states
            .get(at)
            .map_or(Duration::ZERO, |state| state.latency.at(now))
    }

    /// Whether there is an endpoint with a share for which something holds.
    pub fn any(&self, holds: impl Fn(usize) -> bool) -> bool {
        let mut states = self.states.iter().enumerate();
        states.any(|(at, state)| state.share > 0 && holds(at))
    }

    /// Chooses an endpoint for a connection of which `key` is the hash, among those with a share that `may` take it; `None`
    /// when there is none.
    pub fn pick(&mut self, key: u64, now: Duration, may: impl Fn(usize) -> bool) -> Option<usize> {
        match self.method {
            Method::RoundRobin | Method::LeastConn => {
                let at = self.tournament.best(may)?;
                if let Some(state) = self.states.get_mut(at) {
                    self.turn = self.turn.max(state.turn);
                    state.turn += TURN / state.effective().max(1);
                    self.place(at);
                }
                Some(at)
            }
            Method::P2c => self.better_of_two(now, may),
            Method::Maglev | Method::SourceHash => self.hashed(key, may),
        }
    }

    /// Puts an endpoint where it belongs in the tournament.
    fn place(&mut self, at: usize) {
        let Some(state) = self.states.get(at) else {
            return;
        };
        let effective = state.effective();
        let rank = match self.method {
            _ if effective == 0 => None,
            Method::RoundRobin => Some((0, state.turn)),
            // Those with as many take turns: on an idle group every one has none.
            Method::LeastConn => Some(((u64::from(state.live) << 32) / effective, state.turn)),
            Method::P2c | Method::Maglev | Method::SourceHash => return,
        };
        self.tournament.set(at, rank);
    }

    fn renew_wheel(&mut self) {
        if self.wheel_is_old {
            let parts = self.states.iter().map(State::effective);
            self.wheel = Wheel::new(parts);
            self.wheel_is_old = false;
        }
    }

    fn better_of_two(&mut self, now: Duration, may: impl Fn(usize) -> bool) -> Option<usize> {
        self.renew_wheel();
        for _ in 0..REDRAWS {
            let first = self.wheel.draw(self.random.next())?;
            let second = self.wheel.draw_other(first, self.random.next());
            let second = second.filter(|second| may(*second));
            match (may(first), second) {
                (true, Some(second)) if self.is_better(second, first, now) => {
                    return Some(second);
                }
                (true, _) => return Some(first),
                (false, Some(second)) => return Some(second),
                (false, None) => {}
            }
        }
        self.wheel.first_from(self.random.next(), may)
    }

    /// Whether one more connection would have to wait less for one endpoint than for another. A connection weighs as much as it
    /// takes of the endpoint's part. Latencies that are alike are no reason: who is asked less often is forgiven more in between, and
    /// would be asked more often than its weight says.
    fn is_better(&self, one: usize, other: usize, now: Duration) -> bool {
        let (Some(one), Some(other)) = (self.states.get(one), self.states.get(other)) else {
            return false;
        };
        let load = |state: &State| {
            #[expect(clippy::cast_precision_loss, reason = "weights are far below 2^52")]
            let parts = self.wheel.mean() / state.effective().max(1) as f64;
            1.0 + f64::from(state.live) * parts
        };
        if one.latency.is_like(&other.latency, now) {
            return load(one) < load(other);
        }
        let cost = |state| load(state) * state.latency.at(now).max(LEAST_LATENCY).as_secs_f64();
        cost(one) < cost(other)
    }

    fn hashed(&mut self, key: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        for turn in 0..REHASHES {
            let hash = mix(key.wrapping_add(turn));
            let at = match &self.table {
                Table::Maglev(table) => table.at(hash),
                Table::Rendezvous(table) if turn == 0 => table.at(hash),
                Table::Rendezvous(table) => table.in_at(hash),
                Table::None => None,
            };
            // No weight at all: the wheel has those that stand by.
            let Some(at) = at else { break };
            let usable = self.states.get(at).is_some_and(|state| state.share > 0);
            if usable && may(at) {
                return Some(at);
            }
        }
        self.renew_wheel();
        self.wheel.first_from(mix(key), may)
    }
}

#[cfg(test)]
mod tests;
