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
    /// The kernel side of the sockmap path, once it has passed its test here.
    sockmap: OnceLock<Promotion>,
    /// The test that it failed.
    failed: ArcSwapOption<&'static str>,
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

    /// What became of the self-test of the sockmap path. Once it has passed there is nothing more to say.
    pub fn set_sockmap(&self, tested: Result<Promotion, &'static str>) {
        match tested {
            // Set before: the first is as good.
            Ok(promotion) => _ = self.sockmap.set(promotion),
            Err(test) => self.failed.store(Some(Arc::new(test))),
        }
    }

    /// The kernel side of the sockmap path.
    ///
    /// # Errors
    /// Why there is none.
    pub fn sockmap(&self) -> Result<&Promotion, Reason> {
        match self.sockmap.get() {
            Some(promotion) => Ok(promotion),
            None if self.failed.load().is_some() => Err(Reason::SelfTest),
            None => Err(Reason::Unmeasured),
        }
    }

    /// The self-test of the sockmap path that failed, unless it has passed since.
    #[must_use]
    pub fn failed_test(&self) -> Option<&'static str> {
        let failed = self.failed.load();
        failed
            .as_deref()
            .copied()
            .filter(|_| self.sockmap().is_err())
    }

    /// Whether the sockmap path was tested, with whatever outcome.
    #[must_use]
    pub fn is_sockmap_tested(&self) -> bool {
        self.sockmap().is_ok() || self.failed_test().is_some()
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
