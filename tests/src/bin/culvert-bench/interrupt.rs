//! Ctrl-C ends a run between two measurements, so that nothing is left of its sandboxes.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::{Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on signals only ask to end.
pub(crate) fn watch() -> io::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(asked))?;
    }
    Ok(())
}

/// Fails when somebody has asked.
pub(crate) fn check() -> Result<()> {
    let is_asked = ASKED.get().is_some_and(|asked| asked.load(Relaxed));
    ensure!(!is_asked, "interrupted");
    Ok(())
}
