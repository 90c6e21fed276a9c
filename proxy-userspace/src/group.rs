//! Upstream groups: endpoints of which each connection takes one.
//!
//! What is decided is pure and in [`roster`]: who is up, who is next, who has to wait, by the time that it is told. A
//! [`Group`] puts a lock around it for the workers, lets connections wait in a queue, and logs what changes. [`connect`]
//! brings one connection to an endpoint, and to the next one where that fails; [`keeper`] resolves names and checks
//! endpoints, on a thread of its own so that neither a slow name server nor a thousand checks hold up a connection.
//!
//! A group lives as long as its name: a reload changes it in place, so that connections which were selected by the rules
//! of before meet the endpoints of now.

mod connect;
pub mod health;
mod permit;
mod queue;
pub mod roster;
mod settings;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::{
    queue::Queue,
    roster::{Change, Roster},
};
use crate::clock;

pub use self::{
    connect::{Asked, Failure, Reached},
    permit::{Permit, Refusal},
    settings::{Address, Limits, Member, Settings, Source},
};

/// A running group.
pub struct Group {
    name: Arc<str>,
    roster: Mutex<Roster>,
    queue: Queue,
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
    }

    /// Changes something, logs what comes of it, and lets those try again who wait.
    fn update<T>(&self, work: impl FnOnce(&mut Roster, Duration) -> T) -> T {
        let (result, changes) = {
            let mut roster = self.lock();
            let result = work(&mut roster, clock::monotonic());
            (result, roster.take_changes())
        };
        if !changes.is_empty() {
            self.queue.wake();
        }
        for change in changes {
            self.log(&change);
        }
        result
    }

    fn log(&self, change: &Change) {
        let (group, endpoint, state) = (&*self.name, &*change.endpoint, change.state.label());
        match &change.cause {
            Some(cause) => tracing::warn!(group, endpoint, state, "endpoint: {cause}"),
            None => tracing::info!(group, endpoint, state, "endpoint"),
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

/// The groups in force, by name.
#[derive(Clone, Debug, Default)]
pub struct Groups(BTreeMap<Arc<str>, Arc<Group>>);

impl Groups {
    /// The groups of other settings: those that are there already as they are, which [`Groups::change`] is for once nothing
    /// can go wrong any more, and new ones.
    #[must_use]
    pub fn with(&self, settings: &BTreeMap<Arc<str>, Arc<Settings>>) -> Self {
        let group = |(name, settings): (&Arc<str>, &Arc<Settings>)| {
            let group = self.0.get(name).cloned().unwrap_or_else(|| {
                Arc::new(Group::new(Arc::clone(name), Arc::clone(settings)))
            });
            (Arc::clone(name), group)
        };
        Self(settings.iter().map(group).collect())
    }

    /// Puts the settings in force.
    pub fn change(&self, settings: &BTreeMap<Arc<str>, Arc<Settings>>) {
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

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.0.values()
    }
}
