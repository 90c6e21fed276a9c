//! One thread of the relay: a runtime, its own listeners and everything its connections share.
//!
//! Workers share nothing that is written per message. What they do share is in [`Shared`]: the routes, which a reload
//! replaces, and counters.

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use proxy_common::Record;
use tokio::{
    sync::{Semaphore, watch},
    task::LocalSet,
};

use crate::{
    close::CloseReason,
    listener, privileges,
    process::Processes,
    record::AccessLog,
    routes::Routes,
    upstream::{Dialer, Exempt},
};

/// How the relay learns where a connection was going.
pub trait OriginalDst: Send {
    /// Takes the record of an accepted connection by its two addresses; `None` when it was not intercepted.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn take(&mut self, client: SocketAddr, listener: SocketAddr) -> io::Result<Option<Record>>;
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// Where the connections of each rule go.
    pub routes: Routes,
    /// What happened so far.
    pub stats: Stats,
    /// Where close records go, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Connections that were silent for so long are closed.
    pub idle_timeout: Option<Duration>,
}

/// Counters of the relay.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that are open now.
    pub live: AtomicUsize,
    /// Times that a worker could not accept for lack of files or memory.
    pub accept_failures: AtomicU64,
    /// Times that a worker was at its connection limit.
    pub at_limit: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
}

impl Stats {
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

/// What a worker is made of.
pub struct Parts {
    /// Its listeners, IPv4 and IPv6.
    pub listeners: Vec<TcpListener>,
    /// Where its connections were going.
    pub original_dst: Box<dyn OriginalDst>,
    /// What keeps its own connections from being intercepted.
    pub exempt: Arc<dyn Exempt>,
    /// Connections it takes at once.
    pub max_connections: usize,
}

/// What the connections of one worker share.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) original_dst: RefCell<Box<dyn OriginalDst>>,
    pub(crate) dialer: Dialer,
    pub(crate) processes: RefCell<Processes>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) stop: watch::Receiver<bool>,
    last_warning: RefCell<[Option<Instant>; CloseReason::ALL.len()]>,
}

/// At most one warning per reason and worker in this time; the counters have all of them.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

impl Worker {
    /// Whether a warning about a reason is due.
    pub(crate) fn may_warn(&self, reason: CloseReason) -> bool {
        let mut last = self.last_warning.borrow_mut();
        let Some(last) = last.get_mut(reason as usize) else {
            return false;
        };
        let now = Instant::now();
        let due = last.is_none_or(|last| now.duration_since(last) >= WARNING_INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    thread: JoinHandle<()>,
    pulse: Arc<AtomicU64>,
}

impl Handle {
    /// Counts up while the worker's runtime turns.
    #[must_use]
    pub fn pulse(&self) -> u64 {
        self.pulse.load(Relaxed)
    }

    /// Waits for the thread after it was told to stop.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked; its connections are lost");
        }
    }
}

/// How often a worker shows that it is alive.
pub const PULSE: Duration = Duration::from_millis(100);

/// Starts a worker. It runs until `stop` says so.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(
    name: String,
    parts: Parts,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pulse = Arc::new(AtomicU64::new(0));
    let beat = Arc::clone(&pulse);
    let thread = thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = privileges::keep_what_a_worker_needs() {
            tracing::warn!("{error:#}");
        }
        let local = LocalSet::new();
        local.block_on(&runtime, run(parts, shared, stop, beat));
    })?;
    Ok(Handle { thread, pulse })
}

async fn run(
    parts: Parts,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    pulse: Arc<AtomicU64>,
) {
    let worker = Rc::new(Worker {
        shared,
        original_dst: RefCell::new(parts.original_dst),
        dialer: Dialer::new(parts.exempt),
        processes: RefCell::new(Processes::new()),
        permits: Arc::new(Semaphore::new(parts.max_connections)),
        stop: stop.clone(),
        last_warning: RefCell::default(),
    });
    for socket in parts.listeners {
        tokio::task::spawn_local(listener::serve(Rc::clone(&worker), socket));
    }
    let mut interval = tokio::time::interval(PULSE);
    loop {
        tokio::select! {
            _ = interval.tick() => { pulse.fetch_add(1, Relaxed); }
            // An error means that the daemon itself is gone.
            changed = stop.wait_for(|stop| *stop) => {
                drop(changed);
                break;
            }
        }
    }
    // Connections reset their sockets when they see the same signal.
    let all = u32::try_from(parts.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(STOP_TIMEOUT, worker.permits.acquire_many(all)).await;
}

/// How long a stopping worker waits for its connections to write their records.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
