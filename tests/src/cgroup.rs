//! Control groups of the test's own, in the v2 hierarchy wherever it is mounted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::eventually::in_time;

/// How the names of all cgroups of tests begin; the process id and a number follow.
const PREFIX: &str = "culvert-tests";

/// A cgroup that is removed with everything in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    name: String,
    procs: File,
}

impl Cgroup {
    /// Makes one below the root of the hierarchy.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        Self::make(mount().join(&name), name)
    }

    /// Makes one below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name), format!("{}/{name}", self.name))
    }

    fn make(path: PathBuf, name: String) -> Self {
        fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("cannot make the cgroup {}: {error}", path.display()));
        let procs = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"))
            .expect("cannot open cgroup.procs");
        Self { path, name, procs }
    }

    /// Its path below the root of the hierarchy, as a configuration names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling process into it; safe between fork and exec.
    ///
    /// # Errors
    /// That of writing to `cgroup.procs`.
    pub fn enter(&self) -> io::Result<()> {
        (&self.procs).write_all(b"0")
    }

    /// Moves another process into it.
    pub fn take(&self, pid: u32) {
        (&self.procs)
            .write_all(pid.to_string().as_bytes())
            .unwrap_or_else(|error| panic!("cannot move {pid} to {}: {error}", self.name));
    }

    /// The processes in it, not counting those in cgroups below.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The cgroups directly below.
    pub fn children(&self) -> Vec<PathBuf> {
        directories(&self.path)
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = end(&self.path);
        assert!(gone, "the cgroup {} cannot be removed", self.path.display());
    }
}

/// Kills everything in a cgroup and removes it. Returns whether it is gone.
pub(crate) fn end(path: &Path) -> bool {
    if !path.exists() {
        return true;
    }
    // Kills the whole subtree at once (kernel 5.14).
    let _ = fs::write(path.join("cgroup.kill"), "1");
    in_time(|| remove(path).ok()).is_some()
}

/// Fails while a killed process is not yet gone.
fn remove(path: &Path) -> io::Result<()> {
    for child in directories(path) {
        remove(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Where the v2 hierarchy is mounted: `/sys/fs/cgroup`, or beside v1 controllers `/sys/fs/cgroup/unified`.
pub fn mount() -> PathBuf {
    let table = fs::read_to_string("/proc/self/mounts").expect("cannot read /proc/self/mounts");
    let place = table.lines().find_map(|line| {
        let mut columns = line.split(' ');
        let place = columns.nth(1)?;
        (columns.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    place.expect("no cgroup2 file system is mounted; these tests need one")
}
