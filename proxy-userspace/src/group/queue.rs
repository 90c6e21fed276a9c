//! Where connections wait for a place: who was admitted once already first, then first come, first served.
//!
//! Who is woken has the first look; only when it goes, or could not have what there may be, has the next one. Waking all would have each
//! place that gets free looked at by all who wait.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// A queue of a group.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<BTreeMap<Ticket, Arc<Notify>>>,
    /// How many these are.
    length: AtomicU32,
    tickets: AtomicU64,
}

/// Who waits. Those that come first in this order go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// It was admitted, and could not be brought to an endpoint. It does not count for the length that is allowed: it had a place.
    Retry,
    /// It has just come.
    New,
}

/// What says who goes first.
type Ticket = (Class, u64);

/// A place in it, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    queue: &'a Queue,
    ticket: Ticket,
    woken: Arc<Notify>,
    is_first: bool,
}

impl Queue {
    /// How many wait.
    pub(super) fn length(&self) -> u32 {
        self.length.load(SeqCst)
    }

    /// A place, unless so many are taken.
    pub(super) fn enter(&self, class: Class, most: u32) -> Option<Place<'_>> {
        let woken = Arc::new(Notify::new());
        let ticket = (class, self.tickets.fetch_add(1, SeqCst));
        let mut waiting = self.lock();
        if class == Class::New && waiting.len() >= most as usize {
            return None;
        }
        let ahead = waiting.range(..ticket).next_back().map(|(ahead, _)| *ahead);
        if let Some((Class::Retry, _)) = ahead {
            // What that one waits for may not be what this one can have: they look in their order.
            wake_first(&waiting);
        }
        waiting.insert(ticket, Arc::clone(&woken));
        self.length.fetch_add(1, SeqCst);
        Some(Place {
            queue: self,
            ticket,
            woken,
            is_first: ahead.is_none(),
        })
    }

    /// Something has changed that may be good for who waits.
    pub(super) fn wake(&self) {
        if self.length() > 0 {
            wake_first(&self.lock());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ticket, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake_first(waiting: &BTreeMap<Ticket, Arc<Notify>>) {
    if let Some((_, first)) = waiting.first_key_value() {
        first.notify_one();
    }
}

impl Place<'_> {
    /// Whether nobody was before it. Who was not the first waits to be woken by those before.
    pub(super) const fn is_first(&self) -> bool {
        self.is_first
    }

    /// The next one may look.
    pub(super) fn pass_on(&self) {
        let waiting = self.queue.lock();
        if let Some((_, next)) = waiting.range((Excluded(self.ticket), Unbounded)).next() {
            next.notify_one();
        }
    }

    /// Waits until it may be worth another look; false when it got too late for that. A change since the last time is not missed.
    pub(super) async fn wait(&self, look: Option<Duration>, deadline: Instant) -> bool {
        let next = look.map_or(deadline, |look| deadline.min(Instant::now() + look));
        timeout_at(next, self.woken.notified()).await.is_ok() || next < deadline
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.remove(&self.ticket);
        self.queue.length.fetch_sub(1, SeqCst);
        // There may be more than the place that this one was woken for.
        wake_first(&waiting);
    }
}
