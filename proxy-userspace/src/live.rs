//! The connections that are open, for whoever looks at them, or for some of them, and ends them.
//!
//! Every worker enters its own. Looking at all of them is for commands and not for each connection: they are in some parts, each
//! with a lock, and nothing else ever waits for a connection.

mod look;
mod query;

use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use atomic_waker::AtomicWaker;

pub use query::{Query, QueryError};

use self::look::Sample;
use crate::{
    clock, close::CloseReason, group::roster::Id, record::Role, relay::Progress, socket::Handle,
};

/// How long a connection lasts before it is kept alive. Most end before, and are spared the calls and the kernel's timers.
const LASTING: Duration = Duration::from_secs(10);

/// Connections with other numbers are not in each other's way.
const PARTS: usize = 16;

/// All of them.
#[derive(Debug, Default)]
pub struct Live {
    parts: [Mutex<HashMap<u64, Arc<Open>>>; PARTS],
    next: AtomicU64,
    /// Why all are ended, and those that will be entered.
    over: OnceLock<CloseReason>,
}

/// What is known of a connection from its beginning.
#[derive(Clone, Debug)]
pub struct Begun {
    /// What we are to it.
    pub role: Role,
    /// Name of the rule that it was selected by.
    pub rule: Arc<str>,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it was going.
    pub orig_dst: SocketAddr,
    /// When it began, on the monotonic clock.
    pub at: Duration,
    /// The process of this host that opened it.
    pub process: Option<Caller>,
}

/// Who called `connect()`.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its process id, in the initial pid namespace.
    pub pid: u32,
    /// Its real user id.
    pub uid: u32,
    /// What the thread was called.
    pub comm: [u8; 16],
    /// Its network namespace, by its cookie, where that is not the daemon's.
    pub space: Option<u64>,
}

/// Where a connection was brought to.
#[derive(Debug)]
pub struct Reached {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// What was connected to.
    pub peer: Option<SocketAddr>,
    /// The endpoint, if it is one of a group, as the configuration writes it.
    pub endpoint: Option<Arc<str>>,
    /// Both sockets, downstream and upstream, to look at; of TLS, the one beneath, of a Unix socket none.
    pub sockets: [Option<Handle>; 2],
}

/// A connection that is open.
#[derive(Debug)]
pub struct Open {
    /// What it is called; no other one of this daemon is ever called so.
    pub id: u64,
    /// What was known from the beginning.
    pub begun: Begun,
    /// The endpoint that it was brought to, and the name of its group.
    pub endpoint: OnceLock<(Arc<str>, Id)>,
    /// The name that the client asked for.
    pub name: OnceLock<Arc<str>>,
    /// Where it was brought to.
    pub reached: OnceLock<Reached>,
    /// What it has moved.
    pub progress: Arc<Progress>,
    is_kept_alive: AtomicBool,
    seen: Mutex<Sample>,
    why: OnceLock<CloseReason>,
    /// Who waits for that.
    waiting: AtomicWaker,
}

/// The entry of a connection, which goes with it.
#[derive(Debug)]
pub(crate) struct Entry {
    live: Arc<Live>,
    open: Arc<Open>,
}

impl Live {
    /// Enters a connection.
    pub(crate) fn enter(self: &Arc<Self>, begun: Begun) -> Entry {
        let id = self.next.fetch_add(1, Relaxed) + 1;
        let open = Arc::new(Open {
            id,
            seen: Mutex::new(Sample::of_nothing(begun.at)),
            begun,
            endpoint: OnceLock::new(),
            name: OnceLock::new(),
            reached: OnceLock::new(),
            progress: Arc::default(),
            is_kept_alive: AtomicBool::new(false),
            why: OnceLock::new(),
            waiting: AtomicWaker::new(),
        });
        if let Some(mut part) = self.part(id) {
            part.insert(id, Arc::clone(&open));
        }
        // Now that it is there to be found: one that was missed learns it here.
        if let Some(why) = self.over.get() {
            open.end(*why);
        }
        Entry {
            live: Arc::clone(self),
            open,
        }
    }

    /// The one that is called so.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Arc<Open>> {
        self.part(id)?.get(&id).cloned()
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

    /// Has all of them be reset, and those that are still entered.
    pub(crate) fn end_all(&self, why: CloseReason) {
        let why = *self.over.get_or_init(|| why);
        for open in self.find(|_| true) {
            open.end(why);
        }
    }

    /// Has the kernel probe the peers of those that have lasted for a while, when they are silent.
    pub(crate) fn keep_alive(&self) {
        let now = clock::monotonic();
        let lasts = |open: &Open| {
            open.reached.get().is_some()
                && now.saturating_sub(open.begun.at) >= LASTING
                && !open.is_kept_alive.swap(true, Relaxed)
        };
        for open in self.find(lasts) {
            let sockets = open.reached.get().map(|reached| &reached.sockets);
            sockets
                .into_iter()
                .flatten()
                .flatten()
                .for_each(Handle::keep_alive);
        }
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
        self.waiting.wake();
    }

    /// Returns when it is to be reset. May be dropped and called again, by one at a time.
    pub(crate) async fn ended(&self) -> CloseReason {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// As [`Open::ended`]. A relay polls it with every message: it must cost next to nothing.
    fn poll_ended(&self, cx: &Context<'_>) -> Poll<CloseReason> {
        // First, so that what is said after the look wakes us.
        self.waiting.register(cx.waker());
        self.why
            .get()
            .map_or(Poll::Pending, |why| Poll::Ready(*why))
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
        if let Some(mut part) = self.live.part(self.open.id) {
            part.remove(&self.open.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn begun(rule: &str) -> Begun {
        Begun {
            role: Role::Reverse,
            rule: rule.into(),
            client: ([198, 51, 100, 7], 4000).into(),
            orig_dst: ([192, 0, 2, 1], 80).into(),
            at: Duration::ZERO,
            process: None,
        }
    }

    fn enter(live: &Arc<Live>, rule: &str) -> Entry {
        live.enter(begun(rule))
    }

    #[tokio::test]
    async fn who_is_told_to_end_hears_of_it_once_and_why() {
        let live = Arc::new(Live::default());
        let [one, other] = ["one", "other"].map(|rule| enter(&live, rule));
        for open in live.find(|open| &*open.begun.rule == "one") {
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

    #[tokio::test]
    async fn who_comes_after_the_end_of_all_is_ended_too() {
        let live = Arc::new(Live::default());
        let before = enter(&live, "one");
        let other = Arc::clone(&before.open);
        let waiting = tokio::spawn(async move { other.ended().await });
        tokio::task::yield_now().await;
        live.end_all(CloseReason::Shutdown);
        live.end_all(CloseReason::Drained);
        assert_eq!(waiting.await.unwrap(), CloseReason::Shutdown, "woken");
        assert_eq!(enter(&live, "two").ended().await, CloseReason::Shutdown);
    }

    #[test]
    fn who_has_lasted_is_kept_alive() {
        let live = Arc::new(Live::default());
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (at, expected) in [(clock::monotonic(), false), (Duration::ZERO, true)] {
            let entry = live.enter(Begun { at, ..begun("one") });
            live.keep_alive();
            let reached = Reached {
                upstream: "direct".into(),
                peer: None,
                endpoint: None,
                sockets: [Some(Handle::of(&socket)), None],
            };
            entry.reached.set(reached).unwrap();
            live.keep_alive();
            let socket = socket2::SockRef::from(&socket);
            assert_eq!(socket.keepalive().unwrap(), expected);
        }
    }

    #[test]
    fn who_is_gone_is_not_found() {
        let live = Arc::new(Live::default());
        let all: Vec<_> = (0..40).map(|_| enter(&live, "one")).collect();
        assert_eq!(live.find(|_| true).len(), 40);
        let id = all[7].id;
        assert_eq!(live.get(id).map(|open| open.id), Some(id));
        assert!(live.get(0).is_none());
        drop(all);
        assert!(live.find(|_| true).is_empty());
    }
}
