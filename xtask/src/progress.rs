//! What the user sees between the lines of the tools: one line at the start of every step.

use std::time::Instant;

/// Announces a step that is about to start.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// Announces a step that takes a while; says how long it usually takes and, at its end, how long it took.
pub(crate) fn long_step<T, E>(
    what: &str,
    usually: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    step(&format!("{what} (usually {usually})"));
    let start = Instant::now();
    let result = work();
    let end = if result.is_ok() { "done" } else { "failed" };
    step(&format!("{end} after {} s", start.elapsed().as_secs()));
    result
}
