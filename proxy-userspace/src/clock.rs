//! The clock that kernel and user space share.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since boot without suspend (`CLOCK_MONOTONIC`), the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic() -> Duration {
    // The clock exists on every Linux, and a time before boot does not.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The same in nanoseconds, as the kernel's side has it.
#[must_use]
pub fn nanoseconds() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}
