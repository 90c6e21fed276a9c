//! Upstream groups: endpoints of which each connection takes one.
//!
//! What is decided is pure and in [`roster`]: who is up, who is next, who has to wait, by the time that it is told. A
//! [`Group`] puts a lock around it for the workers, lets connections wait in a queue, and logs what changes. [`Group::connect`]
//! brings one connection to an endpoint, and to the next one where that fails; [`keeper`] resolves names and checks
//! endpoints, on a thread of its own so that neither a slow name server nor a thousand checks hold up a connection.
//!
//! A group lives as long as its name: a reload changes it in place, so that connections which were selected by the rules
//! of before meet the endpoints of now.

mod board;
mod check;
mod connect;
pub mod health;
pub mod keeper;
mod permit;
mod queue;
pub mod roster;
mod settings;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use self::{
    health::State,
    queue::Queue,
    roster::{Change, Endpoint, Id, Roster},
};
use crate::{
    clock,
    status::{EndpointStatus, GroupStatus},
};

pub use self::{
    board::{Board, Candidate},
    check::Check,
    connect::{Asked, Failure, Reached},
    permit::{Permit, Refusal},
    roster::Drained,
    settings::{Address, Limits, Member, Settings, Source},
};

/// A running group.
pub struct Group {
    name: Arc<str>,
    roster: Mutex<Roster>,
    queue: Queue,
    /// The keeper is to look at its endpoints.
    changed: Notify,
    tally: Tally,
    /// Where the hooks find the endpoints, if they are to.
    board: OnceLock<Arc<dyn Board>>,
    /// What they find there, if they find anything.
    shown: Mutex<Option<Vec<Candidate>>>,
}

/// What is counted of a group.
#[derive(Debug, Default)]
struct Tally {
    /// Connections that waited.
    queued: AtomicU64,
    queue_full: AtomicU64,
    queue_timeouts: AtomicU64,
    source_limit: AtomicU64,
    /// Attempts beyond the first.
    retries: AtomicU64,
    /// Names that could not be resolved.
    unresolved: AtomicU64,
}

impl Group {
    /// Starts one.
    #[must_use]
    pub fn new(name: Arc<str>, settings: Arc<Settings>) -> Self {
        // Only for choices in which nodes need not agree.
        let seed = RandomState::new().hash_one(&name);
        Self {
            name,
            roster: Mutex::new(Roster::new(settings, seed, clock::monotonic())),
            queue: Queue::default(),
            changed: Notify::new(),
            tally: Tally::default(),
            board: OnceLock::new(),
            shown: Mutex::default(),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Changes its settings, all at once. Endpoints that stay keep their health and their connections; connections of those
    /// that go may finish.
    pub fn change(&self, settings: &Arc<Settings>) {
        self.update(|roster, now| roster.change(Arc::clone(settings), now));
        self.announce();
    }

    /// Whether there is an endpoint, or an entry of its list, that is called so.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        self.lock().lists(name)
    }

    /// Gives an endpoint, or all that come from an entry, no more connections, until it is restored or no longer listed.
    pub fn drain(&self, name: &str) {
        self.update(|roster, now| roster.drain(name, now));
        self.announce();
    }

    /// Gives it connections again.
    pub fn restore(&self, name: &str) {
        self.update(|roster, now| roster.restore(name, now));
        self.announce();
    }

    /// What is left of it; `None` if it is not drained.
    #[must_use]
    pub fn drained(&self, name: &str) -> Option<Drained> {
        self.lock().drained(name)
    }

    /// There may be endpoints or room that were not there: those who wait look again, and the keeper does.
    fn announce(&self) {
        self.show();
        self.queue.wake();
        self.changed.notify_one();
    }

    fn count_unresolved(&self) {
        self.tally.unresolved.fetch_add(1, Relaxed);
    }

    /// What the keeper needs to know: the settings, and the endpoints with where they come from and are.
    fn to_be_kept(&self) -> (Arc<Settings>, Vec<(Id, Source, Address)>) {
        let roster = self.lock();
        let present = |(_, state): &(&Endpoint, State)| *state != State::Leaving;
        let endpoints = roster.endpoints().filter(present);
        let endpoints = endpoints.map(|(one, _)| (one.id, one.source.clone(), one.address.clone()));
        (Arc::clone(roster.settings()), endpoints.collect())
    }

    /// Where its endpoints are now.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        let (_, endpoints) = self.to_be_kept();
        endpoints.into_iter().map(|(.., address)| address).collect()
    }

    /// Whether endpoints see the addresses of clients, by its settings.
    #[must_use]
    pub fn keeps_source(&self) -> bool {
        self.lock().settings().keep_source
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let roster = self.lock();
        let now = clock::monotonic();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        GroupStatus {
            name: self.name.to_string(),
            balance: roster.settings().method.name().to_owned(),
            live: roster.live(),
            waiting: self.queue.length(),
            queued: count(&self.tally.queued),
            queue_full: count(&self.tally.queue_full),
            queue_timeouts: count(&self.tally.queue_timeouts),
            source_limit: count(&self.tally.source_limit),
            retries: count(&self.tally.retries),
            unresolved: count(&self.tally.unresolved),
            endpoints: roster
                .endpoints()
                .map(|(one, state)| EndpointStatus {
                    address: one.name.to_string(),
                    source: one.source.to_string(),
                    state: state.label().to_owned(),
                    weight: one.weight,
                    drained: one.drained,
                    live: one.live,
                    connections: one.tally.connections,
                    rewritten: self.rewritten(one.id),
                    failures: one.tally.failures,
                    failed_checks: one.tally.failed_checks,
                    changes: one.tally.changes,
                    latency_us: u64::try_from(roster.latency(one.id, now).as_micros())
                        .unwrap_or(u64::MAX),
                    last_error: one.last_error.as_deref().map(str::to_owned),
                })
                .collect(),
        }
    }

    /// Changes something, logs what comes of it, and lets those try again who wait.
    fn update<T>(&self, work: impl FnOnce(&mut Roster, Duration) -> T) -> T {
        let (result, changes) = {
            let mut roster = self.lock();
            let result = work(&mut roster, clock::monotonic());
            (result, roster.take_changes())
        };
        if !changes.is_empty() {
            self.announce();
        }
        for change in changes {
            self.log(&change);
        }
        result
    }

    fn log(&self, change: &Change) {
        let (group, endpoint, state) = (&*self.name, &*change.endpoint, change.state.label());
        if let Some(cause) = &change.cause {
            tracing::warn!(group, endpoint, "endpoint {state}: {cause}");
        } else {
            tracing::info!(group, endpoint, "endpoint {state}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Group")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Settings by the name of their group.
pub type SettingsByName = BTreeMap<Arc<str>, Arc<Settings>>;

/// The groups in force, by name.
#[derive(Clone, Debug, Default)]
pub struct Groups(BTreeMap<Arc<str>, Arc<Group>>);

impl Groups {
    /// The groups of other settings: those that are there already as they are, which [`Groups::change`] is for, and new ones.
    #[must_use]
    pub fn with(&self, settings: &SettingsByName) -> Self {
        let group = |(name, settings): (&Arc<str>, &Arc<Settings>)| {
            let group =
                self.0.get(name).cloned().unwrap_or_else(|| {
                    Arc::new(Group::new(Arc::clone(name), Arc::clone(settings)))
                });
            (Arc::clone(name), group)
        };
        Self(settings.iter().map(group).collect())
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> SettingsByName {
        let settings = |(name, group): (&Arc<str>, &Arc<Group>)| {
            (Arc::clone(name), Arc::clone(group.lock().settings()))
        };
        self.0.iter().map(settings).collect()
    }

    /// Puts the settings in force.
    pub fn change(&self, settings: &SettingsByName) {
        for (name, group) in &self.0 {
            if let Some(settings) = settings.get(name) {
                group.change(settings);
            }
        }
    }

    /// A group.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Group>> {
        self.0.get(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.0.values()
    }
}
