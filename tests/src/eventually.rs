//! Waiting for what another process does, without guessing how long it takes.

use std::{
    env, thread,
    time::{Duration, Instant},
};

/// Far beyond what anything here takes, so that only a real failure meets it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The variable that says how many seconds to wait instead, on a machine that is emulated.
pub const VARIABLE: &str = "CULVERT_TEST_PATIENCE";

/// How long to wait.
pub fn patience() -> Duration {
    let seconds = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}

/// Time between two looks: short at first, and the longer the more has passed, so that looking is no load where that is slow.
fn pause(waited: Duration) -> Duration {
    (waited / 8).clamp(Duration::from_millis(2), Duration::from_millis(20))
}

/// Looks until there is an answer. Panics, naming what was waited for, when there is none for [`patience`].
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    in_time(look).unwrap_or_else(|| panic!("waited {:?} in vain for {what}", patience()))
}

/// Looks until there is an answer, or [`patience`] is over.
pub fn in_time<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let (begun, patience) = (Instant::now(), patience());
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() > patience {
            return found;
        }
        thread::sleep(pause(begun.elapsed()));
    }
}
