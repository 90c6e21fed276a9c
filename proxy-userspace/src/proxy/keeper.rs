//! The thread that keeps the groups: started with the first of them.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::{runtime::Builder, sync::watch};

use crate::{
    group::{Groups, keeper},
    privileges,
    upstream::{Dialer, Exempt},
};

/// A running keeper.
pub(super) struct Keeper {
    groups: watch::Sender<Groups>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it, with nothing to keep. It runs until `stop` says so.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub(super) fn start(exempt: Arc<dyn Exempt>, stop: watch::Receiver<bool>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (groups, kept) = watch::channel(Groups::default());
        let thread = thread::Builder::new()
            .name("groups".to_owned())
            .spawn(move || {
                // It hears from strangers, as workers do.
                if let Err(error) = privileges::keep_what_a_worker_needs(false) {
                    tracing::warn!("{error:#}");
                }
                runtime.block_on(keeper::keep(Dialer::new(exempt), kept, stop));
            })?;
        Ok(Self { groups, thread })
    }

    /// Has it keep other groups.
    pub(super) fn keep(&self, groups: Groups) {
        self.groups.send_replace(groups);
    }

    /// Waits for it after it was told to stop.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps the groups panicked");
        }
    }
}
