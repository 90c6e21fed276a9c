//! Opens the access log that a configuration names.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt};

use anyhow::{Context as _, Result};

use crate::{
    config::{self, LogTarget},
    record::{AccessLog, AccessLogGuard, Format},
};

/// Opens it for appending. A file that is made is for its owner only: it tells who connects where.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn open(config: &config::AccessLog) -> Result<(AccessLog, AccessLogGuard)> {
    let format = match config.format {
        config::LogFormat::Json => Format::Json,
        config::LogFormat::Text => Format::Text,
    };
    Ok(match &config.target {
        LogTarget::Stdout => AccessLog::new(io::stdout(), format),
        LogTarget::Stderr => AccessLog::new(io::stderr(), format),
        LogTarget::File(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("cannot open the access log {}", path.display()))?;
            AccessLog::new(file, format)
        }
    })
}
