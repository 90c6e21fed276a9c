//! What all connections know of the paths of this machine. Readers never wait; who serves the daemon fills it in.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::{Calibration, Promotion, Reason, kind::Window};

/// Bytes one connection moves before it is worth measuring the paths for it alone.
const WORTH_MEASURING_BYTES: u64 = 16 * 1024 * 1024;
/// The same, in reads.
const WORTH_MEASURING_READS: u32 = 4096;

/// The paths of this machine.
#[derive(Debug, Default)]
pub struct Paths {
    /// The kernel side of the sockmap path, once it was tested here, or the test that failed.
    sockmap: OnceLock<Result<Promotion, &'static str>>,
    measured: ArcSwapOption<Calibration>,
    wanted: Notify,
    pub(super) window: Window,
}

impl Paths {
    /// With connections being judged each time that they have moved so many bytes, or made so many reads.
    #[must_use]
    pub fn judging_after(bytes: u64, reads: u32) -> Self {
        Self {
            window: Window { bytes, reads },
            ..Self::default()
        }
    }

    /// What became of the self-test of the sockmap path. Only the first call counts.
    pub fn set_sockmap(&self, tested: Result<Promotion, &'static str>) {
        // Set before: the first is as good.
        _ = self.sockmap.set(tested);
    }

    /// The kernel side of the sockmap path.
    ///
    /// # Errors
    /// Why there is none.
    pub fn sockmap(&self) -> Result<&Promotion, Reason> {
        match self.sockmap.get() {
            Some(Ok(promotion)) => Ok(promotion),
            Some(Err(_)) => Err(Reason::SelfTest),
            None => Err(Reason::Unmeasured),
        }
    }

    /// The self-test of the sockmap path that failed.
    #[must_use]
    pub fn failed_test(&self) -> Option<&'static str> {
        self.sockmap.get()?.as_ref().err().copied()
    }

    /// Whether the sockmap path was tested, with whatever outcome.
    #[must_use]
    pub fn is_sockmap_tested(&self) -> bool {
        self.sockmap.get().is_some()
    }

    /// Puts a measurement in force, also for connections that are open.
    pub fn set_measured(&self, calibration: Calibration) {
        self.measured.store(Some(Arc::new(calibration)));
    }

    /// The measurement in force.
    #[must_use]
    pub fn measured(&self) -> Option<Arc<Calibration>> {
        self.measured.load_full()
    }

    /// Resolves when a connection has asked for a measurement.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Asks for a measurement, if a connection that has moved so much is worth it.
    pub(super) fn ask(&self, bytes: u64, reads: u32) {
        if bytes >= WORTH_MEASURING_BYTES || reads >= WORTH_MEASURING_READS {
            self.wanted.notify_one();
        }
    }
}
