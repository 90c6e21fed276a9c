//! Connections that are made all the time, while the test does something to the daemon.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{App, app::protocol::Storm, eventually};

/// A few connections, and when they were made.
#[derive(Clone, Debug)]
pub struct Round {
    /// Before the first of them.
    pub begun: Instant,
    /// After the last of them.
    pub ended: Instant,
    /// How they ended: error number (0 for those whose payload came back whole) and count.
    pub outcomes: BTreeMap<i32, u64>,
}

impl Round {
    /// Whether the payload of each connection came back whole.
    pub fn is_flawless(&self) -> bool {
        self.outcomes.keys().all(|error| *error == 0)
    }
}

/// Panics unless each round is flawless.
pub fn assert_flawless<'a>(rounds: impl IntoIterator<Item = &'a Round>) {
    for round in rounds {
        assert!(round.is_flawless(), "{round:?}");
    }
}

/// As [`assert_flawless`], for those that had ended at a moment.
pub fn assert_flawless_before(rounds: &[Round], moment: Instant) {
    assert_flawless(rounds.iter().filter(|round| round.ended < moment));
}

/// Those that began after a moment. Panics if there is none.
pub fn begun_after(rounds: &[Round], moment: Instant) -> Vec<&Round> {
    let after: Vec<_> = rounds
        .iter()
        .filter(|round| round.begun >= moment)
        .collect();
    assert!(!after.is_empty(), "no round began after that");
    after
}

/// An app that makes round after round until told to end.
#[derive(Debug)]
pub struct Load {
    rounds: Arc<Mutex<Vec<Round>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts it; each round is one storm.
    pub fn start(app: App, storm: Storm) -> Self {
        let (rounds, stop) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (made, told) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !told.load(SeqCst) {
                let begun = Instant::now();
                let outcomes = app.storm(&storm);
                made.lock().expect("rounds").push(Round {
                    begun,
                    ended: Instant::now(),
                    outcomes,
                });
            }
        });
        Self {
            rounds,
            stop,
            thread: Some(thread),
        }
    }

    /// As [`Load::start`], with some rounds of short storms behind it.
    pub fn under_way(app: App, addresses: &[SocketAddr]) -> Self {
        let load = Self::start(app, Storm::short(addresses));
        load.await_rounds(3);
        load
    }

    /// Waits for that many rounds that are begun from now on.
    pub fn await_rounds(&self, count: usize) {
        let now = Instant::now();
        eventually(&format!("{count} rounds of connections"), || {
            let rounds = self.rounds.lock().expect("rounds");
            let new = rounds.iter().filter(|round| round.begun >= now).count();
            (new >= count).then_some(())
        });
    }

    /// The rounds that have ended so far.
    pub fn rounds(&self) -> Vec<Round> {
        self.rounds.lock().expect("rounds").clone()
    }

    /// Ends it after the current round, and returns all rounds.
    pub fn finish(mut self) -> Vec<Round> {
        self.join();
        std::mem::take(&mut self.rounds.lock().expect("rounds"))
    }

    fn join(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread that makes connections");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.join();
        }
    }
}
