//! The archive that a kernel unpacks as its first file system: `cpio` in the form "newc". Archives may follow each other in
//! one file, so what all guests share is written once.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, trailer};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive, in memory.
#[derive(Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds an empty folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.folders_of(Path::new(path))
    }

    /// Adds a file that can be run, with the folders above it.
    pub(super) fn program(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        if let Some(folder) = Path::new(path).parent() {
            self.folders_of(folder)?;
        }
        self.entry(path, PROGRAM, bytes)
    }

    /// Adds a file of this machine at some path.
    pub(super) fn copy(&mut self, path: &str, file: &Path) -> Result<()> {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        self.program(path, &bytes)
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        // An archive that follows must begin where a word does.
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        Ok(self.bytes)
    }

    fn folders_of(&mut self, path: &Path) -> Result<()> {
        let mut folder = PathBuf::new();
        for part in path.components() {
            if let Component::Normal(name) = part {
                folder.push(name);
                if self.folders.insert(folder.clone()) {
                    self.entry(&folder.to_string_lossy(), FOLDER, &[])?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(bytes.len())
            .map_err(io::Error::other)
            .with_context(|| format!("{path} is too large for an initramfs"))?;
        let mut writer = Builder::new(path).mode(mode).write(&mut self.bytes, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }
}
