//! Endpoints that get no connections until they are restored, because somebody said so: health goes on being watched, and what
//! they have they keep.
//!
//! It is said of what the file lists. An entry that is a name stands for all its endpoints, also those that it will stand for.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{Endpoint, Id, Roster};

/// What is left of what is drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The endpoints.
    pub ids: HashSet<Id>,
    /// Their connections that are open, or being made.
    pub live: u32,
}

impl Roster {
    /// Whether there is an endpoint, or an entry, that is called so.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        let members = &self.settings.members;
        self.endpoints.iter().any(|one| &*one.name == name)
            || members.iter().any(|one| one.source.to_string() == name)
    }

    /// From now on it gets no connections.
    pub fn drain(&mut self, name: &str, now: Duration) {
        self.drained.insert(name.into());
        self.mark_drained();
        self.share_out(now);
    }

    /// From now on it gets connections again; as one that is up again if it was not before.
    pub fn restore(&mut self, name: &str, now: Duration) {
        self.drained.remove(name);
        let before: Vec<Id> = self.drained_now().map(|one| one.id).collect();
        self.mark_drained();
        for one in &mut self.endpoints {
            if !one.drained && before.contains(&one.id) {
                one.health.begin(now);
            }
        }
        self.share_out(now);
    }

    /// What is left of it; `None` if it is not drained.
    #[must_use]
    pub fn drained(&self, name: &str) -> Option<Drained> {
        if !self.drained.contains(name) {
            return None;
        }
        let mut drained = Drained::default();
        for one in self.drained_now().filter(|one| one.is_called(name)) {
            drained.ids.insert(one.id);
            drained.live += one.live;
        }
        Some(drained)
    }

    fn drained_now(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|one| one.drained)
    }

    /// Notes at every endpoint whether it is drained.
    pub(super) fn mark_drained(&mut self) {
        let drained = &self.drained;
        for one in &mut self.endpoints {
            one.drained = drained.iter().any(|name| one.is_called(name));
        }
        self.open = self.endpoints.iter().filter(|one| !one.drained).count();
    }

    /// Forgets what the settings do not list any more: what comes back one day is another one.
    pub(super) fn forget_drained(&mut self) {
        let names: Vec<Arc<str>> = self.drained.iter().cloned().collect();
        for name in names {
            if !self.lists(&name) {
                self.drained.remove(&name);
            }
        }
    }
}

impl Endpoint {
    /// Whether it, or the entry that it comes from, is called so.
    fn is_called(&self, name: &str) -> bool {
        &*self.name == name || self.source.to_string() == name
    }
}
