//! Waiting for what another process does, without guessing how long it takes.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Far beyond what anything here takes, so that only a real failure meets it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks until there is an answer. Panics, naming what was waited for, when there is none for [`PATIENCE`].
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    in_time(look).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Looks until there is an answer, or [`PATIENCE`] is over.
pub fn in_time<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() > PATIENCE {
            return found;
        }
        thread::sleep(PAUSE);
    }
}
