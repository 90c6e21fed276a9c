//! The sign of life: the heartbeat in the kernel stands for all workers, so it is written only while each of them
//! turns.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::TcpListener,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    intercept::{Counters, Events, Heartbeat, InterceptError, LogReader},
    worker::Handle,
};

/// Watches the workers.
pub(crate) struct Pulse {
    workers: Vec<Watched>,
    heartbeat: Heartbeat,
    /// Silence of a worker after which the heartbeat stops.
    patience: Duration,
    interval: Duration,
    /// Whether all workers turned at the last look.
    all_turn: bool,
}

struct Watched {
    handle: Handle,
    last: u64,
    changed: Instant,
}

impl Pulse {
    pub(crate) fn new(workers: Vec<Handle>, heartbeat: Heartbeat, timeout: Duration) -> Self {
        let now = Instant::now();
        let watch = |handle: Handle| Watched {
            last: handle.pulse(),
            handle,
            changed: now,
        };
        Self {
            workers: workers.into_iter().map(watch).collect(),
            heartbeat,
            // Together with our own interval this stays below the kernel's timeout.
            patience: timeout / 2,
            interval: (timeout / 8).min(Duration::from_millis(250)),
            all_turn: true,
        }
    }

    fn open(&self, gates: impl IntoIterator<Item = Vec<TcpListener>>) {
        for (worker, gates) in self.workers.iter().zip(gates) {
            for gate in gates {
                worker.handle.open(gate);
            }
        }
    }

    /// Says that the relay is alive, whatever the workers do: for the moment before attaching.
    pub(crate) fn beat(&mut self) -> Result<(), InterceptError> {
        self.heartbeat.beat()
    }

    fn open_in(&self, space: u64, listeners: impl IntoIterator<Item = Vec<TcpListener>>) {
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            for listener in listeners {
                worker.handle.open_in(space, listener);
            }
        }
    }

    fn close_in(&self, space: u64) {
        for worker in &self.workers {
            worker.handle.close_in(space);
        }
    }

    fn check(&mut self) {
        let now = Instant::now();
        self.all_turn = true;
        for worker in &mut self.workers {
            let pulse = worker.handle.pulse();
            if pulse != worker.last {
                worker.last = pulse;
                worker.changed = now;
            }
            self.all_turn &= now.duration_since(worker.changed) < self.patience;
        }
        if self.all_turn
            && let Err(error) = self.heartbeat.beat()
        {
            tracing::error!(%error, "cannot write the heartbeat");
        }
    }
}

/// Beats, tells of faults, and passes on what the hooks log.
pub(crate) struct Supervisor {
    pulse: Pulse,
    faults: Faults,
    log: Option<LogReader>,
    redirects: Option<Events>,
    replies: Option<Events>,
    unmade: Option<Events>,
    spaces: Option<Events>,
}

impl Supervisor {
    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.pulse.workers.len()
    }

    /// Gives each worker a listener of each family for what passes through.
    pub(crate) fn open(&self, gates: impl IntoIterator<Item = Vec<TcpListener>>) {
        self.pulse.open(gates);
    }

    /// Gives each worker listeners in another network namespace, of this cookie.
    pub(crate) fn open_in(
        &self,
        space: u64,
        listeners: impl IntoIterator<Item = Vec<TcpListener>>,
    ) {
        self.pulse.open_in(space, listeners);
    }

    /// Has each worker close those that it has there, once nobody waits in them.
    pub(crate) fn close_in(&self, space: u64) {
        self.pulse.close_in(space);
    }

    pub(crate) fn new(pulse: Pulse, counters: Counters, log: Option<LogReader>) -> Self {
        Self {
            pulse,
            faults: Faults {
                counters,
                known: Vec::new(),
            },
            log,
            redirects: None,
            replies: None,
            unmade: None,
            spaces: None,
        }
    }

    /// As [`Pulse::beat`].
    pub(crate) fn beat(&mut self) -> Result<(), InterceptError> {
        self.pulse.beat()
    }

    /// Whether every worker turned when it was last looked.
    pub(crate) fn turns(&self) -> bool {
        self.pulse.all_turn
    }

    /// From now on the relay hears what the kernel has to tell of redirected connections, if that is new.
    pub(crate) fn hear(&mut self, redirects: Option<Events>) {
        self.redirects = redirects.or(self.redirects.take());
    }

    /// From now on relays that rest are woken.
    pub(crate) fn hear_replies(&mut self, replies: Events) {
        self.replies = Some(replies);
    }

    /// From now on groups hear which endpoints could not be reached by those whom the hook sent there.
    pub(crate) fn hear_unmade(&mut self, unmade: Events) {
        self.unmade = Some(unmade);
    }

    /// From now on it is heard of processes that rules select in network namespaces without listeners.
    pub(crate) fn hear_spaces(&mut self, spaces: Events) {
        self.spaces = Some(spaces);
    }

    /// Never returns, and may be dropped and called again.
    pub(crate) async fn run(&mut self) -> Infallible {
        let mut beats = interval(self.pulse.interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports = interval(REPORT_INTERVAL);
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    self.pulse.check();
                    if let Some(log) = &mut self.log {
                        log.flush();
                    }
                }
                _ = reports.tick() => self.faults.report(),
                error = served(self.redirects.as_mut()) => {
                    tracing::error!(%error, "the sockmap path is off");
                    self.redirects = None;
                }
                error = served(self.replies.as_mut()) => {
                    tracing::error!(%error, "relays do not rest any more");
                    self.replies = None;
                }
                error = served(self.unmade.as_mut()) => {
                    tracing::error!(%error, "connections that are rewritten tell nothing of endpoints any more");
                    self.unmade = None;
                }
                error = served(self.spaces.as_mut()) => {
                    tracing::error!(%error, "network namespaces of containers are found by looking only");
                    self.spaces = None;
                }
            }
        }
    }

    /// Waits for the worker threads, which were told to stop.
    pub(crate) fn join(self) {
        for worker in self.pulse.workers {
            worker.handle.join();
        }
    }
}

/// Serves events, if there are any to come, until that fails.
async fn served(events: Option<&mut Events>) -> io::Error {
    let Some(events) = events else {
        return pending().await;
    };
    match events.serve().await {
        Err(error) => error,
    }
}

/// How often faults are told of.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What went wrong in the hooks since the last look.
struct Faults {
    counters: Counters,
    known: Vec<(&'static str, u64)>,
}

impl Faults {
    fn report(&mut self) {
        let Ok(now) = self.counters.read() else {
            return;
        };
        for (index, (name, count)) in now.iter().enumerate() {
            let before = self.known.get(index).map_or(0, |(_, before)| *before);
            if let (Some(meaning), 1..) = (meaning(name), count.saturating_sub(before)) {
                tracing::warn!(connections = count - before, "{meaning}");
            }
        }
        self.known = now;
    }
}

/// What a counter means for the operator; `None` for those that count normal work.
fn meaning(counter: &str) -> Option<&'static str> {
    Some(match counter {
        "loop" => "connections to our own listener were reset",
        "fail_heartbeat" => "the relay was hung; the rules' fail mode was applied",
        "fail_netns" => {
            "processes in another network namespace cannot reach the relay; the rules' fail mode was applied"
        }
        "fail_family" => "no IPv6 on loopback; the rules' fail mode was applied",
        "fail_full" => {
            "too many connections wait to be accepted (max_pending); the rules' fail mode was applied"
        }
        "fail_memory" => "the kernel had no memory; the rules' fail mode was applied",
        "fail_device" => {
            "sockets are bound to a device and may not leave it; the rules' fail mode was applied"
        }
        "fail_listener" => {
            "the relay has no listener of this family; the fail mode of rules for what arrives was applied"
        }
        "unregistered" => {
            "no room in the table of our own connections (twice `max_connections` and 4,096, of the culvert that was taken over from)"
        }
        "fail_own" => {
            "our own connections could not be told from those of clients; the fail mode of rules for what arrives was applied"
        }
        "unpublished" => "too many connections wait to be accepted (max_pending); they are reset",
        _ => return None,
    })
}
