//! The connections that are open, for whoever looks for some of them, and ends them.
//!
//! Every worker enters its own. Looking at all of them is for commands and not for each connection: they are in some parts, each
//! with a lock, and nothing else ever waits for a connection.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

use crate::{close::CloseReason, group::roster::Id, record::Role};

/// Connections with other numbers are not in each other's way.
const PARTS: usize = 16;

/// All of them.
#[derive(Debug, Default)]
pub struct Live {
    parts: [Mutex<HashMap<u64, Arc<Open>>>; PARTS],
    next: AtomicU64,
}

/// A connection that is open.
#[derive(Debug)]
pub struct Open {
    /// What we are to it.
    pub role: Role,
    /// Name of the rule that it was selected by.
    pub rule: Arc<str>,
    /// Where it was going.
    pub orig_dst: SocketAddr,
    /// The endpoint that it was brought to, and the name of its group.
    pub endpoint: OnceLock<(Arc<str>, Id)>,
    why: OnceLock<CloseReason>,
    told: Notify,
}

/// The entry of a connection, which goes with it.
#[derive(Debug)]
pub(crate) struct Entry {
    live: Arc<Live>,
    number: u64,
    open: Arc<Open>,
}

impl Live {
    /// Enters a connection.
    pub(crate) fn enter(
        self: &Arc<Self>,
        we_are: Role,
        rule: Arc<str>,
        orig_dst: SocketAddr,
    ) -> Entry {
        let open = Arc::new(Open {
            role: we_are,
            rule,
            orig_dst,
            endpoint: OnceLock::new(),
            why: OnceLock::new(),
            told: Notify::new(),
        });
        let number = self.next.fetch_add(1, Relaxed);
        if let Some(mut part) = self.part(number) {
            part.insert(number, Arc::clone(&open));
        }
        Entry {
            live: Arc::clone(self),
            number,
            open,
        }
    }

    /// Those for which something holds.
    pub fn find(&self, holds: impl Fn(&Open) -> bool) -> Vec<Arc<Open>> {
        let parts = (0..PARTS as u64).filter_map(|number| self.part(number));
        parts
            .flat_map(|part| {
                let found = part.values().filter(|open| holds(open));
                found.cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    fn part(&self, number: u64) -> Option<MutexGuard<'_, HashMap<u64, Arc<Open>>>> {
        let part = usize::try_from(number % PARTS as u64).ok()?;
        let part = self.parts.get(part)?;
        // A panic cannot leave it half-changed.
        Some(part.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Open {
    /// Has it be reset.
    pub fn end(&self, why: CloseReason) {
        // Who came first has said why.
        _ = self.why.set(why);
        self.told.notify_one();
    }

    /// Returns when it is to be reset. May be dropped and called again, by one at a time.
    pub(crate) async fn ended(&self) -> CloseReason {
        loop {
            if let Some(why) = self.why.get() {
                return *why;
            }
            self.told.notified().await;
        }
    }
}

impl Entry {
    /// The connection.
    pub(crate) fn open(&self) -> Arc<Open> {
        Arc::clone(&self.open)
    }
}

impl std::ops::Deref for Entry {
    type Target = Open;

    fn deref(&self) -> &Open {
        &self.open
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(mut part) = self.live.part(self.number) {
            part.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(live: &Arc<Live>, rule: &str) -> Entry {
        let orig_dst = SocketAddr::from(([192, 0, 2, 1], 80));
        live.enter(Role::Reverse, rule.into(), orig_dst)
    }

    #[tokio::test]
    async fn who_is_told_to_end_hears_of_it_once_and_why() {
        let live = Arc::new(Live::default());
        let [one, other] = ["one", "other"].map(|rule| enter(&live, rule));
        for open in live.find(|open| &*open.rule == "one") {
            open.end(CloseReason::Drained);
            open.end(CloseReason::Shutdown);
        }
        assert_eq!(one.ended().await, CloseReason::Drained);
        assert_eq!(one.ended().await, CloseReason::Drained, "asked again");
        tokio::select! {
            biased;
            _ = other.ended() => panic!("nobody told it"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[test]
    fn who_is_gone_is_not_found() {
        let live = Arc::new(Live::default());
        let all: Vec<_> = (0..40).map(|_| enter(&live, "one")).collect();
        assert_eq!(live.find(|_| true).len(), 40);
        drop(all);
        assert!(live.find(|_| true).is_empty());
    }
}
