//! What a configuration refers to outside itself: files, environment variables, the number of cores.
//!
//! A trait, so that tests need neither root nor real files.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Largest file that is read, in bytes: ten times what 100,000 prefixes take.
const LARGEST: u64 = 32 << 20;

/// The world as a configuration sees it.
pub trait Environment {
    /// Reads a whole file.
    ///
    /// # Errors
    /// What the system said, or [`io::ErrorKind::FileTooLarge`].
    fn read(&self, path: &Path) -> io::Result<FileContent>;

    /// The value of an environment variable.
    fn variable(&self, name: &str) -> Option<OsString>;

    /// How many cores the daemon may use.
    fn cores(&self) -> NonZeroUsize;
}

/// A file as [`Environment::read`] found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileContent {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

impl FileContent {
    /// Whether anybody but the owner may read or change the file.
    pub(super) fn is_open_to_others(&self) -> bool {
        open_to_others(self.mode)
    }
}

/// Whether permission bits let anybody but the owner read or change a file.
pub(super) fn open_to_others(mode: u32) -> bool {
    mode & 0o077 != 0
}

/// The machine the daemon runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Environment for System {
    fn read(&self, path: &Path) -> io::Result<FileContent> {
        let file = File::open(path)?;
        // Of the open file: what is checked is what is read.
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(FileContent { bytes, mode })
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn cores(&self) -> NonZeroUsize {
        std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
    }
}
