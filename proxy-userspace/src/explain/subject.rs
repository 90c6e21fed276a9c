//! A process as rules see it, from `/proc`.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    cgroup::Cgroup2,
    process::{self, exe::exe_identity},
    status::explanation::{Executable, Opener},
};

/// What a process is to be taken for.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// User and, where it is known, group.
    pub(crate) account: Option<(u32, Option<u32>)>,
    /// A cgroup, as a path in the hierarchy.
    pub(crate) cgroup: Option<PathBuf>,
    /// An executable.
    pub(crate) exe: Option<PathBuf>,
}

/// A process, taken for something else where that is wanted.
///
/// # Errors
/// When it is gone, or may not be looked at.
pub(crate) fn opener(pid: u32, changes: &Changes) -> io::Result<Opener> {
    let owner = process::owner(pid)?;
    let (uid, gid) = changes.account.unwrap_or((owner.uid, None));
    let cgroup = match &changes.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => Cgroup2::of_process(pid).map_err(io::Error::other)?,
    };
    let exe = match &changes.exe {
        Some(path) => Some(executable(path, path)?),
        None => own_executable(pid)?,
    };
    Ok(Opener {
        pid,
        comm: owner.comm,
        uid,
        gid: gid.unwrap_or(owner.gid),
        cgroup: cgroup.display().to_string(),
        exe,
        network_namespace: namespace_of(pid)?,
    })
}

/// The network namespace of a process.
///
/// # Errors
/// When that is gone, or may not be looked at.
pub(crate) fn namespace_of(pid: u32) -> io::Result<u64> {
    namespace(&format!("/proc/{pid}/ns/net"))
}

/// The network namespace of this process.
pub(crate) fn own_namespace() -> Option<u64> {
    namespace("/proc/self/ns/net").ok()
}

fn namespace(file: &str) -> io::Result<u64> {
    Ok(fs::metadata(file)?.ino())
}

fn own_executable(pid: u32) -> io::Result<Option<Executable>> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    match fs::read_link(&link) {
        Ok(called) => executable(&link, &called).map(Some),
        // A thread of the kernel.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn executable(file: &Path, called: &Path) -> io::Result<Executable> {
    let identity = exe_identity(file)?;
    Ok(Executable {
        path: called.display().to_string(),
        inode: identity.ino,
        device: identity.dev,
    })
}
