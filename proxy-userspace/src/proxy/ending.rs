//! How a proxy ends, and how its place is taken.

use std::{collections::BTreeMap, time::Duration};

use proxy_common::Doubts;
use tokio::time::{Instant, sleep};

use super::{Proxy, ProxyError};
use crate::{intercept::Predecessor, socket};

impl Proxy {
    /// The daemon whose place we have taken has ended.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget_predecessor(&mut self) -> Result<(), ProxyError> {
        Ok(self.interceptor.forget_predecessor()?)
    }

    /// The process that has taken our place.
    #[must_use]
    pub fn successor(&self) -> Option<u32> {
        self.interceptor.successor()
    }

    /// Detaches, lets open connections finish until the deadline, resets the rest and waits for the workers.
    pub async fn stop(mut self, drain_timeout: Duration) {
        self.interceptor.mark_all();
        // The guard first: it would refuse what the other hooks no longer take. That on what passes through only knows what is
        // relayed from then on, and stays until that is over.
        if let Err(error) = self.interceptor.reduce_guard(false, false, true) {
            tracing::error!(%error, "a pin is left; `culvert detach` removes it");
        }
        if let Err(error) = self.interceptor.route(&BTreeMap::new(), &Doubts::default()) {
            tracing::error!(%error, "the fast path ends with this process");
        }
        self.interceptor.detach();
        let now = Instant::now();
        let deadline = now + drain_timeout;
        // A handshake that has begun with us cannot go on with anybody else. Nor can a `connect()` that our hook has sent here
        // and that has no port yet, which nothing shows; a takeover has to wait for that one, too.
        let handshakes = if self.takes_arrivals
            || !self.gates.listeners.is_empty()
            || self.successor().is_some()
        {
            now + HANDSHAKE
        } else {
            now
        };
        while (!self.is_idle() || Instant::now() < handshakes) && Instant::now() < deadline {
            sleep(DRAIN_POLL).await;
        }
        let left = self.shared.stats.live();
        if left > 0 {
            tracing::warn!(
                left,
                "the drain timeout is over; resetting open connections"
            );
        }
        self.stop.send_replace(true);
        self.supervisor.join();
        if let Some(keeper) = self.keeper {
            keeper.join();
        }
        if let Err(error) = self.interceptor.detach_guard() {
            tracing::error!(%error, "a pin is left; `culvert detach` removes it");
        }
    }

    /// Whether no connection is open, and none waits to be accepted.
    fn is_idle(&self) -> bool {
        // In the order of a connection's life, lest one that moves on be missed at each of its places.
        self.listeners
            .iter()
            .chain(&self.gates.listeners)
            .all(|listener| socket::accept_queue(listener).is_ok_and(|waiting| waiting == 0))
            && self.pending.pending().is_ok_and(|pending| pending == 0)
            && self.shared.stats.live() == 0
    }
}

/// How long a handshake may take that had begun when the proxy was told to stop.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// How often a draining proxy looks whether it may end.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Connections of the daemon that are no relayed ones: to name servers, and those that are being closed.
const OWN_BESIDE: u32 = 4096;

/// How many connections of its own a daemon may have: to servers, as many again while a successor shares the table, and a few.
/// Who shares the table of a predecessor has to be content with that.
pub(super) fn own_connections(relayed: usize, predecessor: Option<&Predecessor>) -> u32 {
    let wanted = u32::try_from(relayed)
        .unwrap_or(u32::MAX)
        .saturating_mul(2)
        .saturating_add(OWN_BESIDE);
    if let Some(room) = predecessor.and_then(Predecessor::own_room)
        && room < wanted
    {
        tracing::warn!(
            room,
            wanted,
            "the table of own connections is that of the culvert that is taken over from; a greater `max_connections` takes \
             effect when one starts without"
        );
    }
    wanted
}
