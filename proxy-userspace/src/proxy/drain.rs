//! What gets no new connections for a while.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::Proxy;
use crate::{
    drain::{DrainError, Drains, Target},
    rule::Reverse,
    status::DrainStatus,
};

impl Proxy {
    /// Finds what somebody wants to drain.
    ///
    /// # Errors
    /// When there is no such thing, or more than one.
    pub fn drain_target(&self, text: &str, rules: &[Reverse]) -> Result<Target, DrainError> {
        Target::find(text, rules, &self.groups)
    }

    /// Gives something no new connections, an endpoint from now on, a binding from the next [`Proxy::install`] on; those that are
    /// there may finish for a time.
    pub fn drain(&mut self, target: Target, time: Duration) {
        self.drains.begin(target, time, &self.groups);
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When it is not drained.
    pub fn restore(&mut self, target: &Target) -> Result<(), DrainError> {
        self.drains.end(target, &self.groups)
    }

    /// What is drained, and what is left of it.
    #[must_use]
    pub fn drains(&self) -> Vec<DrainStatus> {
        self.drains.status(&self.shared.live, &self.groups)
    }

    pub(super) fn sweep(&mut self) {
        self.drains.sweep(&self.shared.live, &self.groups);
    }
}

/// Returns when something that is drained needs a look.
pub(super) async fn time_to_sweep(drains: &Drains) {
    match drains.next() {
        Some(when) => sleep_until(Instant::from_std(when)).await,
        None => pending().await,
    }
}
