//! Tables that were full a moment ago: what is not written there cannot be answered, so the fail mode is applied for a while.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_ktime_get_ns};

/// For how long a table counts as full after it was found full once, in nanoseconds.
const FULL_FOR: u64 = 100_000_000;

/// A table, of which this array tells, is found full.
#[inline(always)]
pub fn full_now(full_at: &Array<u64, 1>) {
    // SAFETY: no arguments, a plain number out.
    let _ = full_at.set(0, unsafe { bpf_ktime_get_ns() }, 0);
}

/// Whether it was lately.
#[inline(always)]
pub fn was_full(full_at: &Array<u64, 1>, now: u64) -> bool {
    let full_at = full_at.get(0).map_or(0, |at| *at);
    full_at != 0 && now.wrapping_sub(full_at) < FULL_FOR
}
