//! The access log that a configuration names: opened, and opened again when somebody has moved the file away.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    config::{self, LogTarget},
    privileges,
    record::{AccessLog, AccessLogGuard, Format, Quota},
};

/// What is held as long as close records are written.
pub(crate) struct OpenLog {
    file: Option<LogFile>,
    _guard: AccessLogGuard,
}

impl OpenLog {
    /// Opens the file again by its name, and makes it if there is none. Lines that were not written yet go there as well; none
    /// goes to the old file from then on. Standard output and standard error stay what they are.
    ///
    /// # Errors
    /// When that cannot be; the old file is written on.
    pub(crate) fn reopen(&self) -> Result<()> {
        let Some(log) = &self.file else {
            return Ok(());
        };
        let file = open_file(&log.path)?;
        *log.file() = file;
        tracing::info!(path = %log.path.display(), "access log opened again");
        Ok(())
    }
}

/// Opens it for appending. A file that is made is for its owner only: it tells who connects where.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn open(config: &config::AccessLog) -> Result<(AccessLog, OpenLog)> {
    let format = match config.format {
        config::LogFormat::Json => Format::Json,
        config::LogFormat::Text => Format::Text,
    };
    let mut file = None;
    let (log, guard) = match &config.target {
        LogTarget::Stdout => start(io::stdout(), format)?,
        LogTarget::Stderr => start(io::stderr(), format)?,
        LogTarget::File(path) => {
            let opened = LogFile {
                file: Arc::new(Mutex::new(open_file(path)?)),
                path: path.clone(),
            };
            file = Some(opened.clone());
            start(opened, format)?
        }
    };
    let log = log.within(Quota::new(config.sample, config.rate));
    let held = OpenLog {
        file,
        _guard: guard,
    };
    Ok((log, held))
}

/// Starts the writing thread, without privileges: it inherits those of the thread that starts it, so that one gives them up.
fn start(
    target: impl io::Write + Send + 'static,
    format: Format,
) -> Result<(AccessLog, AccessLogGuard)> {
    let start = move || {
        if let Err(error) = privileges::keep_nothing() {
            tracing::warn!("{error:#}");
        }
        AccessLog::new(target, format)
    };
    thread::Builder::new()
        .spawn(start)
        .context("cannot start the thread that writes the access log")?
        .join()
        .map_err(|_| anyhow!("the thread that starts the access log panicked"))
}

/// The file of a name. The lock is contended only while it is opened again.
#[derive(Clone, Debug)]
struct LogFile {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl LogFile {
    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    /// A line is never in two files.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file().write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

fn open_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open the access log {}", path.display()))
}
