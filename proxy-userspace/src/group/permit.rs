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
    queue::Class,
    roster::{Admission, Id},
    settings::Address,
};
use crate::clock;

/// Why a connection gets no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The source has as many connections as it may have, those that wait included.
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
    guest: Guest,
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
        self.guest
            .group
            .update(|roster, now| roster.used(id, Ok(()), took, now));
    }

    /// It could not be made.
    pub(super) fn failed(&self, error: &str, took: Duration) {
        let (id, error) = (self.id, Err(error.into()));
        self.guest
            .group
            .update(|roster, now| roster.used(id, error, took, now));
    }

    /// Another endpoint for the connection, which could not be brought to `tried`. Its place among all is its own meanwhile, and where no
    /// other endpoint has room it waits before those that were never admitted.
    ///
    /// # Errors
    /// As [`Group::admit`].
    pub(super) async fn exchange(self, key: u64, tried: &[Id]) -> Result<Self, Refusal> {
        let mut guest = self.guest;
        match guest.try_admit(key, tried)? {
            Some(chosen) => Ok(guest.at(chosen)),
            None => guest.wait(Class::Retry, key, tried).await,
        }
    }
}

/// A connection of a group, counted at its source. Dropping it ends that, wherever it is.
#[derive(Debug)]
struct Guest {
    group: Arc<Group>,
    client: IpAddr,
    endpoint: Option<Id>,
}

/// The endpoint that was chosen for one.
struct Chosen {
    id: Id,
    address: Address,
    has_others: bool,
}

impl Guest {
    /// Gives up the endpoint that it has, and takes another one if there is one with room.
    fn try_admit(&mut self, key: u64, tried: &[Id]) -> Result<Option<Chosen>, Refusal> {
        let given_up = self.endpoint.take();
        let admission = self.group.update(|roster, now| {
            if let Some(endpoint) = given_up {
                roster.closed(endpoint);
            }
            roster.admit(key, now, tried)
        });
        if given_up.is_some() {
            self.group.queue.wake();
        }
        match admission {
            Admission::Chosen {
                id,
                address,
                has_others,
            } => {
                self.endpoint = Some(id);
                Ok(Some(Chosen {
                    id,
                    address,
                    has_others,
                }))
            }
            Admission::Wait => Ok(None),
            Admission::Exhausted => Err(Refusal::Exhausted),
        }
    }

    fn at(self, chosen: Chosen) -> Permit {
        Permit {
            guest: self,
            id: chosen.id,
            address: chosen.address,
            has_others: chosen.has_others,
        }
    }

    /// Waits in the queue.
    async fn wait(mut self, class: Class, key: u64, tried: &[Id]) -> Result<Permit, Refusal> {
        let group = Arc::clone(&self.group);
        let limits = group.lock().settings().limits;
        let Some(place) = group.queue.enter(class, limits.queue) else {
            group.tally.queue_full.fetch_add(1, Relaxed);
            return Err(Refusal::QueueFull(limits.queue));
        };
        group.tally.queued.fetch_add(1, Relaxed);
        let deadline = Instant::now() + limits.queue_timeout;
        let mut look = place.is_first();
        loop {
            let mut next_look = None;
            if look {
                match self.try_admit(key, tried)? {
                    Some(chosen) => return Ok(self.at(chosen)),
                    None => next_look = group.next_look(),
                }
                // What it may not have, because it was there, somebody behind it may. Who was nowhere yet may have whatever is there.
                if !tried.is_empty() {
                    place.pass_on();
                }
            }
            if !place.wait(next_look, deadline).await {
                group.tally.queue_timeouts.fetch_add(1, Relaxed);
                return Err(Refusal::QueueTimeout(limits.queue_timeout));
            }
            look = true;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        {
            let mut roster = self.group.lock();
            if let Some(endpoint) = self.endpoint {
                roster.closed(endpoint);
            }
            roster.left(self.client);
        }
        if self.endpoint.is_some() {
            self.group.queue.wake();
        }
    }
}

impl Group {
    /// An endpoint for a connection; waits in the queue when none has room.
    ///
    /// # Errors
    /// When there is none for it, or it would have to wait for too long.
    pub(super) async fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        key: u64,
    ) -> Result<Permit, Refusal> {
        if let Err(most) = self.lock().arrive(client) {
            self.tally.source_limit.fetch_add(1, Relaxed);
            return Err(Refusal::SourceLimit(most));
        }
        let mut guest = Guest {
            group: Arc::clone(self),
            client,
            endpoint: None,
        };
        if self.queue.length() == 0
            && let Some(chosen) = guest.try_admit(key, &[])?
        {
            return Ok(guest.at(chosen));
        }
        guest.wait(Class::New, key, &[]).await
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

    use tokio::{
        sync::mpsc::{UnboundedSender, unbounded_channel},
        task::JoinSet,
        time::sleep,
    };

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
                let permit = group.admit(CLIENT, key).await.expect("a place");
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
            tasks.spawn(async move { group.admit(CLIENT, key).await.map(std::mem::forget) });
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
        let held = group.admit(CLIENT, 0).await.expect("a place");
        let (first, second) = tokio::join!(group.admit(CLIENT, 1), group.admit(CLIENT, 2));
        for refused in [first, second] {
            let error = refused.expect_err("no room");
            assert_eq!(error, Refusal::QueueTimeout(limits.queue_timeout));
        }
        assert_eq!(group.queue.length(), 0);
        drop(held);
        group.admit(CLIENT, 3).await.expect("a place again");
    }

    /// Waits until so many wait.
    async fn await_queue(group: &Group, length: u32) {
        while group.queue.length() != length {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Has one more wait, which tells when it is served.
    async fn come(group: &Arc<Group>, number: u64, served: &UnboundedSender<(u64, Permit)>) {
        let (entering, served) = (Arc::clone(group), served.clone());
        tokio::spawn(async move {
            let permit = entering.admit(CLIENT, number).await.expect("its turn");
            served.send((number, permit)).expect("somebody listens");
        });
        await_queue(group, u32::try_from(number).expect("a few") + 1).await;
    }

    #[tokio::test]
    async fn a_source_at_its_limit_does_not_fill_the_queue() {
        let limits = Limits {
            total: Some(1),
            source: Some(2),
            queue: 2,
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let group = group(limits);
        let held = group.admit(CLIENT, 0).await.expect("a place");
        let enter = |client| {
            let group = Arc::clone(&group);
            tokio::spawn(async move { group.admit(client, 1).await })
        };
        let waiting = enter(CLIENT);
        await_queue(&group, 1).await;
        for _ in 0..10 {
            let refused = enter(CLIENT).await.expect("no panic");
            assert_eq!(refused.expect_err("too many"), Refusal::SourceLimit(2));
        }
        let stranger = enter([192, 0, 2, 1].into());
        await_queue(&group, 2).await;
        drop(held);
        drop(waiting.await.expect("no panic").expect("its turn"));
        stranger.await.expect("no panic").expect("its turn");
        // Who waited in vain is counted no more.
        let held = group.admit(CLIENT, 0).await.expect("a place");
        let waiting = enter(CLIENT);
        await_queue(&group, 1).await;
        waiting.abort();
        assert!(waiting.await.expect_err("it was ended").is_cancelled());
        drop(held);
        group.admit(CLIENT, 0).await.expect("a place");
    }

    #[tokio::test]
    async fn who_comes_first_is_served_first_whoever_was_woken_in_vain() {
        let limits = Limits {
            total: Some(1),
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let group = group(limits);
        let held = group.admit(CLIENT, 0).await.expect("a place");
        let (served, mut order) = unbounded_channel();
        for number in 0..5 {
            come(&group, number, &served).await;
            for _ in 0..3 {
                group.queue.wake();
                tokio::task::yield_now().await;
            }
        }
        drop(held);
        for expected in 0..5 {
            let (number, _permit) = order.recv().await.expect("one more");
            assert_eq!(number, expected);
        }
    }

    #[tokio::test]
    async fn who_tries_the_next_endpoint_does_not_wait_behind_others() {
        let limits = Limits {
            endpoint: Some(1),
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let group = group(limits);
        let first = group.admit(CLIENT, 0).await.expect("a place");
        let second = group.admit(CLIENT, 0).await.expect("the other");
        let (served, mut order) = unbounded_channel();
        for number in 0..2 {
            come(&group, number, &served).await;
        }
        // The second one takes what the first endpoint's place was good for, and waits for the other; it gets that before who came long
        // before it, and who cannot have it does not hold up who may have the one that it left.
        let tried = [first.id()];
        let wanted = second.id();
        let retry = tokio::spawn(async move { first.exchange(0, &tried).await });
        let (number, left) = order.recv().await.expect("the place that was left");
        assert_eq!((number, left.id()), (0, tried[0]));
        await_queue(&group, 2).await;
        drop(second);
        let retried = retry.await.expect("no panic").expect("before the other");
        assert_eq!(retried.id(), wanted);
        assert_eq!(group.queue.length(), 1);
        drop(left);
        let (number, _permit) = order.recv().await.expect("the last one");
        assert_eq!(number, 1);
    }

    #[tokio::test]
    async fn the_next_endpoint_is_tried_in_the_own_place_among_all() {
        let limits = Limits {
            total: Some(1),
            queue_timeout: NEVER,
            ..Limits::default()
        };
        let group = group(limits);
        let first = group.admit(CLIENT, 0).await.expect("a place");
        let entering = Arc::clone(&group);
        let waiting = tokio::spawn(async move { entering.admit(CLIENT, 1).await });
        await_queue(&group, 1).await;
        let tried = [first.id()];
        let second = first.exchange(0, &tried).await.expect("at once");
        assert_ne!(second.id(), tried[0]);
        let tried = [tried[0], second.id()];
        let exhausted = second.exchange(0, &tried).await;
        assert_eq!(exhausted.expect_err("none is left"), Refusal::Exhausted);
        waiting.await.expect("no panic").expect("its turn");
    }
}
