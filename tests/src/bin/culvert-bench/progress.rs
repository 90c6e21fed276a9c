//! What is seen while it runs.

/// Says what is done now.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}
