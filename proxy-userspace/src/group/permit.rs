//! The right of one connection to one endpoint: waited for if need be, counted while it is held.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use super::{
    Group,
    roster::{Admission, Id},
    settings::Address,
};
use crate::clock;

/// A failed attempt counts as if it had taken at least so long: a port that refuses at once is no quick endpoint.
const PENALTY: Duration = Duration::from_secs(1);

/// Why a connection gets no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The source has as many connections as it may have.
    #[error("its source has {0} connections of the group already; see `source` in its `limits`")]
    SourceLimit(u32),
    /// As many wait already as may.
    #[error("{0} connections wait for an endpoint already; see `queue` in the group's `limits`")]
    QueueFull(u32),
    /// It waited for too long.
    #[error(
        "no endpoint had room within the queue timeout of {0:?}; see the group's `limits`, and whether its names resolve"
    )]
    QueueTimeout(Duration),
    /// Every endpoint was tried, or there is none.
    #[error("there is no further endpoint")]
    Exhausted,
}

/// The right to one connection. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    group: Arc<Group>,
    client: IpAddr,
    id: Id,
    address: Address,
    has_others: bool,
}

impl Permit {
    /// Where the endpoint is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> Id {
        self.id
    }

    /// Whether there are others to be tried if this one fails.
    pub(super) const fn has_others(&self) -> bool {
        self.has_others
    }

    /// The connection was made, and took so long.
    pub(super) fn reached(&self, took: Duration) {
        let id = self.id;
        self.group
            .update(|roster, now| roster.used(id, Ok(()), took, now));
    }

    /// It could not be made.
    pub(super) fn failed(&self, error: &str, took: Duration) {
        let (id, error) = (self.id, Err(error.into()));
        self.group
            .update(|roster, now| roster.used(id, error, took.max(PENALTY), now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.group.lock().closed(self.id, self.client);
        if self.group.queue.length() > 0 {
            self.group.queue.wake();
        }
    }
}

impl Group {
    /// An endpoint for a connection; waits in the queue when none has room. `tried` are those it could not be brought to.
    ///
    /// # Errors
    /// When there is none for it, or it would have to wait for too long.
    pub(super) async fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        key: u64,
        tried: &[Id],
    ) -> Result<Permit, Refusal> {
        if self.queue.length() == 0
            && let Some(permit) = self.try_admit(client, key, tried)?
        {
            return Ok(permit);
        }
        let limits = self.lock().settings().limits;
        let Some(place) = self.queue.enter(limits.queue) else {
            self.tally.queue_full.fetch_add(1, Relaxed);
            return Err(Refusal::QueueFull(limits.queue));
        };
        self.tally.queued.fetch_add(1, Relaxed);
        let deadline = Instant::now() + limits.queue_timeout;
        let mut look = place.is_first();
        loop {
            let turn = place.turn();
            let mut next_look = None;
            if look {
                match self.try_admit(client, key, tried)? {
                    Some(permit) => return Ok(permit),
                    None => next_look = self.next_look(),
                }
            }
            if !place.wait(turn, next_look, deadline).await {
                self.tally.queue_timeouts.fetch_add(1, Relaxed);
                return Err(Refusal::QueueTimeout(limits.queue_timeout));
            }
            look = true;
        }
    }

    fn try_admit(
        self: &Arc<Self>,
        client: IpAddr,
        key: u64,
        tried: &[Id],
    ) -> Result<Option<Permit>, Refusal> {
        let admission = self.update(|roster, now| roster.admit(client, key, now, tried));
        match admission {
            Admission::Chosen {
                id,
                address,
                has_others,
            } => Ok(Some(Permit {
                group: Arc::clone(self),
                client,
                id,
                address,
                has_others,
            })),
            Admission::Wait => Ok(None),
            Admission::SourceLimit(most) => {
                self.tally.source_limit.fetch_add(1, Relaxed);
                Err(Refusal::SourceLimit(most))
            }
            Admission::Exhausted => Err(Refusal::Exhausted),
        }
    }

    /// How long until time alone changes something.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let next = self.lock().next_look()?;
        Some(next.saturating_sub(clock::monotonic()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicU32, Ordering::SeqCst},
    };

    use tokio::{task::JoinSet, time::sleep};

    use super::*;
    use crate::{
        balance::Method,
        group::{Limits, Member, Settings, Source, health::HealthRules},
    };

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn settings(limits: Limits) -> Arc<Settings> {
        let member = |host| Member {
            source: Source::Address(Address::Tcp(([10, 0, 0, host], 80).into())),
            weight: 1,
        };
        Arc::new(Settings {
            members: vec![member(1), member(2)],
            method: Method::P2c,
            health: HealthRules::default(),
            check: None,
            limits,
            send_proxy: None,
            keep_source: false,
            connect_timeout: Duration::from_secs(1),
        })
    }

    fn group(limits: Limits) -> Arc<Group> {
        Arc::new(Group::new("web".into(), settings(limits)))
    }

    /// So long that only a wake-up that is lost meets it.
    const NEVER: Duration = Duration::from_mins(10);

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_who_waits_is_forgotten() {
        let limits = Limits {
            total: Some(5),
            endpoint: Some(3),
            queue: 1000,
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let (group, open) = (group(limits), Arc::new(AtomicU32::new(0)));
        let mut tasks = JoinSet::new();
        for key in 0..1000 {
            let (group, open) = (Arc::clone(&group), Arc::clone(&open));
            tasks.spawn(async move {
                let permit = group.admit(CLIENT, key, &[]).await.expect("a place");
                assert!(open.fetch_add(1, SeqCst) < 5, "more than may");
                if key % 3 == 0 {
                    sleep(Duration::from_millis(1)).await;
                } else {
                    tokio::task::yield_now().await;
                }
                open.fetch_sub(1, SeqCst);
                drop(permit);
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a connection");
        }
        assert_eq!((group.queue.length(), group.lock().live()), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_wider_limit_lets_all_in_who_fit() {
        let mut limits = Limits {
            total: Some(1),
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let group = group(limits);
        let mut tasks = JoinSet::new();
        for key in 0..10 {
            let group = Arc::clone(&group);
            // Each keeps its place: only the reload makes room.
            tasks.spawn(async move { group.admit(CLIENT, key, &[]).await.map(std::mem::forget) });
        }
        while group.queue.length() < 9 {
            sleep(Duration::from_millis(1)).await;
        }
        limits.total = Some(10);
        group.change(&settings(limits));
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic").expect("a place");
        }
        assert_eq!(group.lock().live(), 10);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_its_place() {
        let limits = Limits {
            total: Some(1),
            queue: 2,
            queue_timeout: Duration::from_millis(20),
            ..Limits::default()
        };
        let group = group(limits);
        let held = group.admit(CLIENT, 0, &[]).await.expect("a place");
        let (first, second) =
            tokio::join!(group.admit(CLIENT, 1, &[]), group.admit(CLIENT, 2, &[]));
        for refused in [first, second] {
            let error = refused.expect_err("no room");
            assert_eq!(error, Refusal::QueueTimeout(limits.queue_timeout));
        }
        assert_eq!(group.queue.length(), 0);
        drop(held);
        group.admit(CLIENT, 3, &[]).await.expect("a place again");
    }
}
