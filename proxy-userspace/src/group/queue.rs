//! Where connections wait for a place, first come, first served.

use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, timeout_at},
};

/// A queue of a group.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicU32,
    freed: Notify,
}

/// A place in it, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    queue: &'a Queue,
    is_first: bool,
}

impl Queue {
    /// How many wait.
    pub(super) fn length(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// A place, unless so many are taken.
    pub(super) fn enter(&self, most: u32) -> Option<Place<'_>> {
        let one_more = |waiting| (waiting < most).then_some(waiting + 1);
        let ahead = self.waiting.fetch_update(SeqCst, SeqCst, one_more).ok()?;
        Some(Place {
            queue: self,
            is_first: ahead == 0,
        })
    }

    /// Something has changed that may be good for the first who waits.
    pub(super) fn wake(&self) {
        self.freed.notify_one();
    }
}

impl<'a> Place<'a> {
    /// Whether nobody was in the queue. Who was not the first waits to be woken by those before.
    pub(super) const fn is_first(&self) -> bool {
        self.is_first
    }

    /// To be made before one looks: what changes from here on is not missed.
    pub(super) fn turn(&self) -> Notified<'a> {
        self.queue.freed.notified()
    }

    /// Waits until it may be worth another look; false when it got too late for that.
    pub(super) async fn wait(
        &self,
        turn: Notified<'_>,
        look: Option<Duration>,
        deadline: Instant,
    ) -> bool {
        let next = look.map_or(deadline, |look| deadline.min(Instant::now() + look));
        timeout_at(next, turn).await.is_ok() || next < deadline
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, SeqCst);
        // There may be more than the place that this one was woken for.
        if self.queue.length() > 0 {
            self.queue.wake();
        }
    }
}
