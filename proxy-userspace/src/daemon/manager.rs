//! What the service manager is told (systemd's `Type=notify`), if there is one.

use std::{env, future::pending, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Where the manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Signs of life for each that is waited for: one may be left out by chance.
const PER_WAIT: u32 = 4;
/// How often one is sent when nobody has said how long is waited. Who takes over from a daemon is not told.
const PERIOD: Duration = Duration::from_secs(5);
/// What an end takes besides draining.
const END: Duration = Duration::from_secs(10);

/// Tells it.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// Tells it that we end, and how long that may take.
pub(super) fn tell_of_end(drain_timeout: Duration) {
    let time = (drain_timeout + END).as_micros();
    let time = u32::try_from(time).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(time)]);
}

/// Signs of life for a manager that ends and restarts who hangs (`WatchdogSec`).
pub(super) struct Watchdog {
    beats: Option<Interval>,
}

impl Watchdog {
    /// Where there is a manager.
    pub(super) fn new() -> Self {
        let period = sd_notify::watchdog_enabled().map(|wait| wait / PER_WAIT);
        let period = period.filter(|period| !period.is_zero()).unwrap_or(PERIOD);
        let beats = env::var_os(SOCKET).map(|_| {
            let mut beats = interval(period);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beats
        });
        Self { beats }
    }

    /// Returns when one is due. May be dropped and called again.
    pub(super) async fn due(&mut self) {
        match &mut self.beats {
            Some(beats) => drop(beats.tick().await),
            None => pending().await,
        }
    }
}
