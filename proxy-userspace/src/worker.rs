//! One thread of the relay: a runtime and its own listeners.

use std::{
    cell::RefCell,
    io,
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    time::MissedTickBehavior,
};

use crate::{
    close::CloseReason,
    listener::{self, Change, Listeners},
    privileges,
    process::Processes,
    relay::shortcut::Shortcuts,
    shared::{DoorKind, OriginalDst, Shared, Worker},
    upstream::{Dialer, Exempt, Foreign},
};

/// What a worker is made of.
pub struct Parts {
    /// Its listeners, IPv4 and IPv6.
    pub listeners: Vec<TcpListener>,
    /// Where its connections were going.
    pub original_dst: Box<dyn OriginalDst>,
    /// What keeps its own connections from being intercepted.
    pub exempt: Arc<dyn Exempt>,
    /// What opens the shortcut to its connections, if anything.
    pub shortcuts: Option<Arc<dyn Shortcuts>>,
    /// What connections from addresses of clients need, if it is to make any.
    pub foreign: Option<Arc<Foreign>>,
    /// Connections it takes at once.
    pub max_connections: usize,
    /// Whether it keeps connections alive that have lasted: all there are, whoever's.
    pub keeps_alive: bool,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    thread: JoinHandle<()>,
    pulse: Arc<AtomicU64>,
    listeners: UnboundedSender<Change>,
}

impl Handle {
    /// Counts up while the worker's runtime turns.
    #[must_use]
    pub fn pulse(&self) -> u64 {
        self.pulse.load(Relaxed)
    }

    /// Has it accept from a listener for what passes through, too.
    pub fn open(&self, gate: TcpListener) {
        self.change(Change::Open(gate, DoorKind::Gate));
    }

    /// Has it accept from a listener in another network namespace, of this cookie, too.
    pub fn open_in(&self, space: u64, listener: TcpListener) {
        self.change(Change::Open(listener, DoorKind::Space(space)));
    }

    /// Has it close those that it has there, once nobody waits in them.
    pub fn close_in(&self, space: u64) {
        self.change(Change::Close(space));
    }

    fn change(&self, change: Change) {
        // A worker that is gone accepts nothing, and the heartbeat tells.
        let _ = self.listeners.send(change);
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
    let pulse = Arc::new(AtomicU64::new(0));
    let beat = Arc::clone(&pulse);
    let (report, made) = mpsc::channel();
    let (listeners, changes) = unbounded_channel();
    let thread = thread::Builder::new().name(name).spawn(move || {
        // Made here: it cannot leave its thread, and so its tasks need no locks between them.
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build_local(LocalOptions::default());
        let (runtime, outcome) = match runtime {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Who started this waits for it.
        _ = report.send(outcome);
        let Some(runtime) = runtime else { return };
        if let Err(error) = privileges::keep_what_a_worker_needs(parts.foreign.is_some()) {
            tracing::warn!("{error:#}");
        }
        runtime.block_on(run(parts, changes, shared, stop, beat));
    })?;
    made.recv()
        .map_err(|_| io::Error::other("the thread ended at once"))??;
    Ok(Handle {
        thread,
        pulse,
        listeners,
    })
}

async fn run(
    parts: Parts,
    changes: UnboundedReceiver<Change>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    pulse: Arc<AtomicU64>,
) {
    let worker = Rc::new(Worker {
        shared,
        original_dst: RefCell::new(parts.original_dst),
        dialer: Dialer::new(parts.exempt).with_foreign(parts.foreign.unwrap_or_default()),
        shortcuts: parts.shortcuts,
        processes: RefCell::new(Processes::new()),
        permits: Arc::new(Semaphore::new(parts.max_connections)),
        stop: stop.clone(),
        last_warnings: RefCell::default(),
    });
    match Listeners::new(parts.listeners, changes) {
        Ok(listeners) => {
            tokio::task::spawn_local(listener::serve(Rc::clone(&worker), listeners));
        }
        Err(error) => {
            // Without a pulse the heartbeat stops, and the hooks apply the rules' fail modes.
            tracing::error!(%error, "a worker cannot use its listeners");
            return;
        }
    }
    // A task: waking what the runtime was started with takes two system calls more, which would be most of what an idle worker does.
    let beating = tokio::task::spawn_local(beat(pulse));
    let keeping = parts
        .keeps_alive
        .then(|| tokio::task::spawn_local(keep_alive(Arc::clone(&worker.shared))));
    // An error means that the daemon itself is gone.
    drop(stop.wait_for(|stop| *stop).await);
    beating.abort();
    if let Some(keeping) = keeping {
        keeping.abort();
    }
    worker.shared.live.end_all(CloseReason::Shutdown);
    let all = u32::try_from(parts.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(STOP_TIMEOUT, worker.permits.acquire_many(all)).await;
}

async fn beat(pulse: Arc<AtomicU64>) {
    let mut interval = tokio::time::interval(PULSE);
    loop {
        interval.tick().await;
        pulse.fetch_add(1, Relaxed);
    }
}

/// How often one worker looks for connections that have lasted.
const LOOK: Duration = Duration::from_secs(5);

async fn keep_alive(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.live.keep_alive();
    }
}

/// How long a stopping worker waits for its connections to write their records.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
