//! What the connections of one worker, and all workers, have in common.
//!
//! Nothing here is written per message. Routes are replaced by a reload; counters are per connection.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use proxy_common::Record;
use tokio::sync::{Semaphore, watch};

use crate::{
    close::CloseReason,
    live::Live,
    peek::Peeked,
    process::Processes,
    record::AccessLog,
    relay::{
        Path, Paths, Progress,
        shortcut::{Proofs, Shortcuts},
    },
    routes::Routes,
    upstream::{Abroad, Dialer},
};

/// How the relay learns where a connection was going.
pub trait OriginalDst: Send {
    /// Takes the record of an accepted connection by its two addresses, and the network namespace that they are of, where that is
    /// not the daemon's; `None` when it was not intercepted.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn take(
        &mut self,
        client: SocketAddr,
        listener: SocketAddr,
        space: Option<u64>,
    ) -> io::Result<Option<Record>>;
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// Where the connections of each rule go.
    pub routes: Routes,
    /// What happened so far.
    pub stats: Stats,
    /// The connections that are open.
    pub live: Arc<Live>,
    /// Where close records go, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Connections that were silent for so long are closed.
    pub idle_timeout: Option<Duration>,
    /// The ways in which bytes can be moved here, and what they cost.
    pub paths: Arc<Paths>,
    /// What this kernel's shortcut is worth, once a rule has asked for it.
    pub shortcut: ArcSwapOption<Proofs>,
    /// What makes sockets in other network namespaces, if rules may want that.
    pub abroad: OnceLock<Arc<dyn Abroad>>,
}

impl Shared {
    /// What this kernel's shortcut is worth, once a rule has asked for it.
    #[must_use]
    pub fn proofs(&self) -> Option<Proofs> {
        self.shortcut.load().as_deref().copied()
    }
}

/// Counters of the relay.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that are open now, from the moment that they are accepted.
    live: Arc<AtomicUsize>,
    /// Times that a worker could not accept for lack of files or memory.
    pub accept_failures: AtomicU64,
    /// Times that a worker was at its connection limit.
    pub at_limit: AtomicU64,
    /// Connections of an upstream's own proxy, which a rule selected and which went direct.
    pub own_proxy: AtomicU64,
    /// Times that a direction of a connection, now closed, was given to a better path than copying.
    pub promotions: AtomicU64,
    /// Times that one came back from there.
    pub demotions: AtomicU64,
    /// Times that the kernel would have delivered bytes twice.
    pub repairs: AtomicU64,
    bytes: [AtomicU64; Path::ALL.len()],
    /// Up and down.
    directions: [AtomicU64; 2],
    closed: [AtomicU64; CloseReason::ALL.len()],
    peeked: [AtomicU64; Peeked::ALL.len()],
}

/// Counts a connection as open.
///
/// It has to be made before the record of the connection is taken: who looks at the records first and at the count then misses
/// no connection.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Stats {
    /// Counts one more connection that is open.
    pub(crate) fn count_accepted(&self) -> Counted {
        self.accepted.fetch_add(1, Relaxed);
        self.live.fetch_add(1, SeqCst);
        Counted(Arc::clone(&self.live))
    }

    /// Connections that are open now, from the moment that they are accepted.
    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    /// Adds what a connection that is over has moved.
    pub(crate) fn count_moved(&self, progress: &Progress) {
        for (path, bytes) in Path::ALL.into_iter().zip(&self.bytes) {
            bytes.fetch_add(progress.by(path), Relaxed);
        }
        let moved = [progress.up(), progress.down()];
        for (bytes, moved) in self.directions.iter().zip(moved) {
            bytes.fetch_add(moved, Relaxed);
        }
        for (total, count) in [
            (&self.promotions, progress.promotions()),
            (&self.demotions, progress.demotions()),
            (&self.repairs, progress.repairs()),
        ] {
            total.fetch_add(count.into(), Relaxed);
        }
    }

    /// Bytes of closed connections, up and down, by the path they went.
    pub fn bytes(&self) -> impl Iterator<Item = (Path, u64)> {
        Path::ALL
            .into_iter()
            .zip(&self.bytes)
            .map(|(path, bytes)| (path, bytes.load(Relaxed)))
    }

    /// Bytes of closed connections, up and down.
    pub(crate) fn directions(&self) -> [u64; 2] {
        self.directions.each_ref().map(|bytes| bytes.load(Relaxed))
    }

    pub(crate) fn count_peeked(&self, peeked: Peeked) {
        if let Some(counter) = self.peeked.get(peeked as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Connections of rules with names, by what came of looking for one.
    pub fn peeked(&self) -> impl Iterator<Item = (Peeked, u64)> {
        Peeked::ALL
            .into_iter()
            .zip(&self.peeked)
            .map(|(peeked, count)| (peeked, count.load(Relaxed)))
    }

    pub(crate) fn count_close(&self, reason: CloseReason) {
        if let Some(counter) = self.closed.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Connections closed, by reason.
    pub fn closed(&self) -> impl Iterator<Item = (CloseReason, u64)> {
        CloseReason::ALL
            .into_iter()
            .zip(&self.closed)
            .map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

/// What a connection was accepted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// The address of the listener itself.
    pub(crate) address: SocketAddr,
    /// What it is for.
    pub(crate) kind: DoorKind,
}

impl Door {
    /// The network namespace that it is in, by its cookie, where that is not the daemon's.
    pub(crate) const fn space(&self) -> Option<u64> {
        match self.kind {
            DoorKind::Space(cookie) => Some(cookie),
            DoorKind::Own | DoorKind::Gate => None,
        }
    }
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DoorKind {
    /// What apps open and what arrives.
    Own,
    /// What passes through.
    Gate,
    /// What apps open in another network namespace, which has this cookie.
    Space(u64),
}

/// What the connections of one worker share.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) original_dst: RefCell<Box<dyn OriginalDst>>,
    pub(crate) dialer: Dialer,
    pub(crate) shortcuts: Option<Arc<dyn Shortcuts>>,
    pub(crate) processes: RefCell<Processes>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) last_warnings: RefCell<BTreeMap<&'static str, Instant>>,
}

/// At most one warning per matter and worker in this time; the counters have all of them.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

impl Worker {
    /// Whether a warning about a matter is due.
    pub(crate) fn may_warn(&self, matter: &'static str) -> bool {
        let mut last = self.last_warnings.borrow_mut();
        let now = Instant::now();
        let due = last
            .get(matter)
            .is_none_or(|last| now.duration_since(*last) >= WARNING_INTERVAL);
        if due {
            last.insert(matter, now);
        }
        due
    }
}
