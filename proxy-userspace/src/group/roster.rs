//! The endpoints of a group and everything that is decided about them: who is up, who takes the next connection, who has to
//! wait. Pure: it is told what happened and what time it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    board::Candidate,
    health::{Health, State},
    settings::{Address, Settings, Source},
};
use crate::balance::{Balancer, FULL, Member, hash::hash};

mod drain;

pub use drain::Drained;

/// What tells endpoints apart: a hash of what they are called. It stays when the set changes.
pub type Id = u64;

/// An address that a name stands for at the moment, and its part within the name's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The address.
    pub address: Address,
    /// Multiplies the weight of the entry.
    pub weight: u32,
}

/// What was decided about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It goes there; [`Roster::closed`] must follow.
    Chosen {
        /// Which endpoint it is.
        id: Id,
        /// Where it is.
        address: Address,
        /// Whether there are others that were not tried.
        has_others: bool,
    },
    /// It may go on when another one ends, or at the time of [`Roster::next_look`].
    Wait,
    /// Every endpoint was tried.
    Exhausted,
}

/// A change of an endpoint's state, for the log.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it is called.
    pub endpoint: Arc<str>,
    /// What it is now.
    pub state: State,
    /// Why, where something is wrong.
    pub cause: Option<Arc<str>>,
}

/// What is counted of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that were made.
    pub connections: u64,
    /// Connections that could not be made.
    pub failures: u64,
    /// Checks that failed.
    pub failed_checks: u64,
    /// Changes of its state.
    pub changes: u64,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What tells it from others.
    pub id: Id,
    /// What it is called.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// The entry that it comes from.
    pub source: Source,
    /// Its part of the connections; at 0 it stands by for when no other one is up.
    pub weight: u32,
    /// Whether it gets no connections, because somebody said so.
    pub drained: bool,
    /// Connections that are open.
    pub live: u32,
    /// What was counted.
    pub tally: Tally,
    /// What went wrong last.
    pub last_error: Option<Arc<str>>,
    /// Why a connection could not be made last.
    last_failure: Option<Arc<str>>,
    health: Health,
}

impl Endpoint {
    /// Whether it takes connections only when no other one is up.
    const fn stands_by(&self) -> bool {
        self.weight == 0
    }

    /// Why it does not take connections, after a look at it.
    fn obstacle(&self) -> Option<Arc<str>> {
        match self.health.state() {
            State::Up | State::Leaving => None,
            State::Down => self.last_error.clone(),
            // Checks have turned it up, which does not end what connections have begun.
            State::Ejected => {
                let failure = self.last_failure.as_deref()?;
                Some(format!("checks pass again, but connections failed: {failure}").into())
            }
        }
    }
}

/// The endpoints of a group.
#[derive(Debug)]
pub struct Roster {
    settings: Arc<Settings>,
    seed: u64,
    resolved: BTreeMap<Source, Vec<Resolved>>,
    /// In the order of their names, which is the same on every node.
    endpoints: Vec<Endpoint>,
    /// Those that are gone and have connections still.
    leaving: Vec<Endpoint>,
    places: HashMap<Id, usize>,
    /// How many of them are not drained.
    open: usize,
    /// Endpoints and entries that get no connections, as they are called.
    drained: BTreeSet<Arc<str>>,
    balancer: Balancer,
    live: u32,
    /// Connections by their sources, those that wait included.
    clients: HashMap<IpAddr, u32>,
    /// When shares are to be looked at again.
    next_look: Option<Duration>,
    changes: Vec<Change>,
}

impl Roster {
    /// Those that need no look-up are there at once, and up.
    #[must_use]
    pub fn new(settings: Arc<Settings>, seed: u64, now: Duration) -> Self {
        let balancer = Balancer::new(settings.method, seed, &[]);
        let mut roster = Self {
            settings,
            seed,
            resolved: BTreeMap::new(),
            endpoints: Vec::new(),
            leaving: Vec::new(),
            places: HashMap::new(),
            open: 0,
            drained: BTreeSet::new(),
            balancer,
            live: 0,
            clients: HashMap::new(),
            next_look: None,
            changes: Vec::new(),
        };
        roster.rebuild(None, now);
        roster
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Puts other settings in force.
    pub fn change(&mut self, settings: Arc<Settings>, now: Duration) {
        if settings == self.settings {
            return;
        }
        self.settings = settings;
        let sources: BTreeSet<_> = self.settings.members.iter().map(|m| &m.source).collect();
        self.resolved.retain(|source, _| sources.contains(source));
        self.rebuild(Some(now), now);
        self.forget_drained();
    }

    /// Says what a name stands for.
    pub fn resolved(&mut self, source: &Source, found: Vec<Resolved>, now: Duration) {
        let first = match self.resolved.insert(source.clone(), found) {
            Some(before) if self.resolved.get(source) == Some(&before) => return,
            before => before.is_none(),
        };
        // What a name stands for at the start is no newcomer.
        self.rebuild((!first).then_some(now), now);
    }

    /// Counts a connection at its source, before it is admitted or has to wait; [`Roster::left`] must follow.
    ///
    /// # Errors
    /// When the source has as many as it may have, which is so many.
    pub fn arrive(&mut self, client: IpAddr) -> Result<(), u32> {
        let most = self.settings.limits.source.unwrap_or(u32::MAX);
        let has = self.clients.entry(client).or_default();
        if *has >= most {
            // A limit is never 0, so somebody is counted there.
            return Err(most);
        }
        *has += 1;
        Ok(())
    }

    /// A connection that was counted at its source is over, or was never made.
    pub fn left(&mut self, client: IpAddr) {
        if let Some(count) = self.clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&client);
            }
        }
    }

    /// Chooses where a connection goes. `tried` are those that it could not be brought to.
    pub fn admit(&mut self, key: u64, now: Duration, tried: &[Id]) -> Admission {
        self.look(now);
        let limits = self.settings.limits;
        if limits.total.is_some_and(|most| self.live >= most) {
            return Admission::Wait;
        }
        let endpoints = &self.endpoints;
        let untried = |at: usize| {
            endpoints
                .get(at)
                .is_some_and(|one| !tried.contains(&one.id))
        };
        let has_room = |at: usize| match (limits.endpoint, endpoints.get(at)) {
            (Some(most), Some(one)) => one.live < most,
            _ => true,
        };
        let picked = self
            .balancer
            .pick(key, now, |at| untried(at) && has_room(at));
        let at = match picked {
            Some(at) => at,
            None if self.balancer.any(untried) => return Admission::Wait,
            None => match self.last_resort(|at| untried(at) && has_room(at)) {
                Some(at) => at,
                None if self.awaits_names() => return Admission::Wait,
                // Whoever drains all of them means to restore one soon.
                None if tried.is_empty() && self.open < endpoints.len() => {
                    return Admission::Wait;
                }
                None => return Admission::Exhausted,
            },
        };
        let has_others = self.open > tried.len() + 1;
        let Some(one) = self.endpoints.get_mut(at) else {
            return Admission::Exhausted;
        };
        one.live += 1;
        self.live += 1;
        let chosen = Admission::Chosen {
            id: one.id,
            address: one.address.clone(),
            has_others,
        };
        self.balancer.opened(at);
        chosen
    }

    /// A connection to an endpoint was made, or could not be, and took so long.
    pub fn used(&mut self, id: Id, outcome: Result<(), Arc<str>>, took: Duration, now: Duration) {
        let Some(&at) = self.places.get(&id) else {
            return;
        };
        if outcome.is_ok() {
            self.balancer.observed(at, now, took);
        } else {
            self.balancer.failed(at, now, took);
        }
        self.judge(at, outcome, now);
    }

    /// A connection that the hook had sent to an endpoint could not be made; others in between could, or not.
    pub fn unmade(&mut self, id: Id, error: Arc<str>, others_made: bool, now: Duration) {
        let Some(&at) = self.places.get(&id) else {
            return;
        };
        if others_made && let Some(one) = self.endpoints.get_mut(at) {
            one.health.used(true, now, &self.settings.health, false);
        }
        self.judge(at, Err(error), now);
    }

    fn judge(&mut self, at: usize, outcome: Result<(), Arc<str>>, now: Duration) {
        let may_eject = outcome.is_err() && self.may_eject();
        let rules = &self.settings.health;
        let Some(one) = self.endpoints.get_mut(at) else {
            return;
        };
        let reached = outcome.is_ok();
        match outcome {
            Ok(()) => one.tally.connections += 1,
            Err(error) => {
                one.tally.failures += 1;
                one.last_failure = Some(Arc::clone(&error));
                one.last_error = Some(error);
            }
        }
        // The next one goes to another destination.
        let is_judged = one.address != Address::Original;
        if is_judged && one.health.used(reached, now, rules, may_eject) {
            let cause = one.last_failure.clone();
            self.changed(at, cause, now);
        }
    }

    /// An endpoint was checked.
    pub fn checked(&mut self, id: Id, outcome: Result<(), Arc<str>>, now: Duration) {
        let rules = &self.settings.health;
        let Some(&at) = self.places.get(&id) else {
            return;
        };
        let Some(one) = self.endpoints.get_mut(at) else {
            return;
        };
        let healthy = outcome.is_ok();
        if let Err(error) = outcome {
            one.tally.failed_checks += 1;
            one.last_error = Some(error);
        }
        if one.health.checked(healthy, now, rules) {
            let cause = one.obstacle();
            self.changed(at, cause, now);
        }
    }

    /// A connection that was admitted is over, or could not be made.
    pub fn closed(&mut self, id: Id) {
        self.live = self.live.saturating_sub(1);
        if let Some(&at) = self.places.get(&id) {
            self.balancer.closed(at);
            if let Some(one) = self.endpoints.get_mut(at) {
                one.live = one.live.saturating_sub(1);
            }
        } else if let Some(one) = self.leaving.iter_mut().find(|one| one.id == id) {
            one.live = one.live.saturating_sub(1);
            self.leaving.retain(|one| one.live > 0);
        }
    }

    /// What changed since it was asked last.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The endpoints, and those that are leaving.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, State)> {
        let present = self.endpoints.iter().map(|one| (one, one.health.state()));
        present.chain(self.leaving.iter().map(|one| (one, State::Leaving)))
    }

    /// Those that a hook may choose from, with their parts at the moment.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let endpoints = self.endpoints.iter().enumerate();
        let candidate = |(at, one): (usize, &Endpoint)| {
            Candidate::new(one.id, &one.address, self.balancer.part(at))
        };
        endpoints.filter_map(candidate).collect()
    }

    /// The latency of an endpoint as it counts at the moment; zero while none is known.
    #[must_use]
    pub fn latency(&self, id: Id, now: Duration) -> Duration {
        self.places
            .get(&id)
            .map_or(Duration::ZERO, |at| self.balancer.latency(*at, now))
    }

    /// Whether an endpoint is part of the group.
    #[must_use]
    pub fn has(&self, id: Id) -> bool {
        self.places.contains_key(&id)
    }

    /// Connections that are open.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.live
    }

    /// Who is tried when all that are up were tried in vain: an endpoint that is held for dead may be back, and can only be
    /// better than failing for sure.
    fn last_resort(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let all = self.endpoints.iter().enumerate();
        let rank = |(_, one): &(usize, &Endpoint)| (one.health.state() == State::Down, one.live);
        all.filter(|(at, one)| may(*at) && !one.drained)
            .min_by_key(rank)
            .map(|(at, _)| at)
    }

    /// When time alone changes something.
    #[must_use]
    pub const fn next_look(&self) -> Option<Duration> {
        self.next_look
    }

    /// Whether nobody has said yet what some name stands for.
    fn awaits_names(&self) -> bool {
        let unknown = |source: &Source| {
            !matches!(source, Source::Address(_)) && !self.resolved.contains_key(source)
        };
        self.settings.members.iter().any(|m| unknown(&m.source))
    }

    /// Whether enough would be left without one more.
    fn may_eject(&self) -> bool {
        let up = |one: &&Endpoint| one.health.state() == State::Up;
        let open = self.endpoints.iter().filter(|one| !one.drained);
        let left = open.filter(up).count().saturating_sub(1);
        left * 100 >= self.open * self.settings.health.panic as usize && left > 0
    }

    fn changed(&mut self, at: usize, cause: Option<Arc<str>>, now: Duration) {
        if let Some(one) = self.endpoints.get_mut(at) {
            one.tally.changes += 1;
            self.changes.push(Change {
                endpoint: Arc::clone(&one.name),
                state: one.health.state(),
                cause,
            });
        }
        self.share_out(now);
    }

    /// Has time do its work, if it is time.
    pub fn look(&mut self, now: Duration) {
        if self.next_look.is_none_or(|next| now < next) {
            return;
        }
        for at in 0..self.endpoints.len() {
            let passed = self.endpoints.get_mut(at).map(|one| one.health.passed(now));
            if passed == Some(true) {
                self.changed(at, None, now);
            }
        }
        self.share_out(now);
    }

    /// Tells the balancer who takes which share. Those that stand by take one when no other one is up. When nobody is up
    /// everybody is tried: that can only be better than failing for sure.
    fn share_out(&mut self, now: Duration) {
        let rules = &self.settings.health;
        let up = |one: &&Endpoint| !one.drained && one.health.state() == State::Up;
        let mut up = self.endpoints.iter().filter(up).peekable();
        let nobody = up.peek().is_none();
        let no_other = up.all(Endpoint::stands_by);
        self.next_look = None;
        for (at, one) in self.endpoints.iter().enumerate() {
            let share = match one.health.share(now, rules.slow_start) {
                _ if one.drained => 0,
                0 if nobody => FULL,
                _ if one.stands_by() && !no_other => 0,
                // A hash knows no part of a share.
                1.. if self.settings.method.hashes() => FULL,
                share => share,
            };
            self.balancer.set_share(at, share);
            let next = one.health.next_change(now, rules.slow_start);
            self.next_look = [self.next_look, next].into_iter().flatten().min();
        }
    }

    /// Makes the set of endpoints anew. What is in it already keeps what is known of it; `newcomers` says when the slow start
    /// of the others begins.
    fn rebuild(&mut self, newcomers: Option<Duration>, now: Duration) {
        let before: Vec<Endpoint> = std::mem::take(&mut self.endpoints);
        let places = std::mem::take(&mut self.places);
        let mut known: HashMap<Id, Endpoint> = before
            .into_iter()
            .chain(self.leaving.drain(..))
            .map(|one| (one.id, one))
            .collect();
        for (source, address, weight) in self.wanted() {
            let name: Arc<str> = address.to_string().into();
            let id = hash(name.as_bytes());
            // Named twice, or under two names: once is enough.
            if self.places.contains_key(&id) {
                continue;
            }
            self.places.insert(id, 0);
            let fresh = || Endpoint {
                id,
                name,
                address,
                source: source.clone(),
                weight,
                drained: false,
                live: 0,
                tally: Tally::default(),
                last_error: None,
                last_failure: None,
                health: Health::new(newcomers),
            };
            let mut one = known.remove(&id).unwrap_or_else(fresh);
            (one.weight, one.source) = (weight, source);
            self.endpoints.push(one);
        }
        self.leaving
            .extend(known.into_values().filter(|one| one.live > 0));
        self.endpoints
            .sort_by(|one, other| one.name.cmp(&other.name));
        let members: Vec<Member> = self
            .endpoints
            .iter()
            .map(|one| Member {
                id: one.id,
                weight: one.weight,
            })
            .collect();
        let old = std::mem::replace(
            &mut self.balancer,
            Balancer::new(self.settings.method, self.seed, &members),
        );
        for (at, one) in self.endpoints.iter().enumerate() {
            self.places.insert(one.id, at);
            self.balancer
                .learn(at, one.live, &old, places.get(&one.id).copied());
        }
        self.mark_drained();
        self.share_out(now);
    }

    /// Every endpoint that the entries stand for at the moment.
    fn wanted(&self) -> Vec<(Source, Address, u32)> {
        let mut wanted = Vec::new();
        for member in &self.settings.members {
            match &member.source {
                Source::Address(address) => {
                    wanted.push((member.source.clone(), address.clone(), member.weight));
                }
                source => {
                    for found in self.resolved.get(source).into_iter().flatten() {
                        let weight = member.weight.saturating_mul(found.weight);
                        wanted.push((source.clone(), found.address.clone(), weight));
                    }
                }
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
