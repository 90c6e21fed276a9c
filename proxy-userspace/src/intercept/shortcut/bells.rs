//! Who rings for relays that rest.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::relay::rest::Bell;

/// The bells of all connections whose replies may go past the relay, by the cookie of the upstream socket.
#[derive(Default)]
pub(in crate::intercept) struct Bells {
    hung: Mutex<HashMap<u64, Arc<Bell>>>,
    /// Whether somebody rings them.
    are_rung: AtomicBool,
}

impl Bells {
    pub(super) fn hang(&self, upstream: u64) -> Arc<Bell> {
        let bell = Arc::<Bell>::default();
        self.hung().insert(upstream, Arc::clone(&bell));
        bell
    }

    pub(super) fn take_down(&self, upstream: u64) {
        self.hung().remove(&upstream);
    }

    pub(super) fn are_rung(&self) -> bool {
        self.are_rung.load(Relaxed)
    }

    fn hung(&self) -> MutexGuard<'_, HashMap<u64, Arc<Bell>>> {
        self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings, as long as it is there.
pub(in crate::intercept) struct Ringer(Arc<Bells>);

impl Ringer {
    pub(in crate::intercept) fn new(bells: Arc<Bells>) -> Self {
        bells.are_rung.store(true, Relaxed);
        Self(bells)
    }

    pub(in crate::intercept) fn ring(&self, upstream: u64) {
        if let Some(bell) = self.0.hung().get(&upstream) {
            bell.ring();
        }
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        let bells = &self.0;
        // First, so that who is woken does not rest again.
        bells.are_rung.store(false, Relaxed);
        for bell in bells.hung().values() {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};
    use tokio::time::timeout;

    #[tokio::test]
    async fn nobody_sleeps_on_when_the_ringer_goes() {
        let bells = Arc::new(Bells::default());
        assert!(!bells.are_rung());
        let ringer = Ringer::new(Arc::clone(&bells));
        assert!(bells.are_rung());
        let bell = bells.hang(7);
        drop(ringer);
        assert!(!bells.are_rung());
        let rung = poll_fn(|cx| bell.poll_rung(cx));
        timeout(Duration::from_secs(10), rung).await.unwrap();
    }

    #[test]
    fn a_bell_that_was_taken_down_is_not_rung() {
        let bells = Arc::new(Bells::default());
        let ringer = Ringer::new(Arc::clone(&bells));
        let bell = bells.hang(7);
        bells.take_down(7);
        ringer.ring(7);
        assert_eq!(Arc::strong_count(&bell), 1);
    }
}
