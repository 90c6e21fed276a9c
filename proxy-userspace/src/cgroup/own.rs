//! A cgroup of our own for one command: made, filled, emptied, removed.
//!
//! `exec` puts a command here and attaches programs to it; the reaper empties it when culvert was killed. The
//! directory is called `culvert-exec-PID` and lies below the cgroup culvert itself is in, so whoever limits or
//! stops culvert (a systemd unit, a container) limits and stops the command as well.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::{Cgroup, Cgroup2, CgroupError, processes, walk};

/// Every directory we make is called this, followed by the process id of its owner.
const PREFIX: &str = "culvert-exec-";

/// How long killed processes may take to leave. A task in an uninterruptible system call can take longer; then
/// the directory stays and the next start sweeps it.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest sleep without looking: a cgroup that somebody else removes takes its last event with it.
const RECHECK: Duration = Duration::from_millis(500);

/// Pause between two attempts to remove a cgroup whose last task is just leaving.
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// A cgroup that ends with this value: dropping it kills what is in it and removes it.
#[derive(Debug)]
pub struct OwnCgroup {
    cgroup: Cgroup,
    dir: PathBuf,
    /// Whether it still has to be taken away.
    standing: bool,
}

impl OwnCgroup {
    /// The directory this process will use: known before it exists, so that the reaper can be told first.
    ///
    /// # Errors
    /// When the own cgroup cannot be told, or is not visible here.
    pub fn planned(cgroups: &Cgroup2) -> Result<PathBuf, CgroupError> {
        let name = format!("{PREFIX}{}", std::process::id());
        Ok(cgroups.own_dir()?.join(name))
    }

    /// Makes the cgroup, after removing what dead predecessors left beside it.
    ///
    /// # Errors
    /// [`CgroupError::Create`].
    pub fn create(cgroups: &Cgroup2, dir: PathBuf) -> Result<Self, CgroupError> {
        if let Some(parent) = dir.parent() {
            sweep(parent);
        }
        fs::create_dir(&dir)
            .and_then(|()| {
                let made = cgroups.at(&dir);
                made.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            })
            .map(|cgroup| Self {
                cgroup,
                dir: dir.clone(),
                standing: true,
            })
            .map_err(|source| CgroupError::Create { path: dir, source })
    }

    /// Path, id and level.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file through which whoever writes `0` to it moves itself in. The right to do so is that of this
    /// process, which opens it, from Linux 5.16 on (and stable kernels that took the change); before, the writer's.
    ///
    /// # Errors
    /// That of the `open`.
    pub fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.dir.join("cgroup.procs"))
    }

    /// Moves a process in, with all its threads. Children it already has stay where they are.
    ///
    /// # Errors
    /// [`CgroupError::Place`].
    pub fn place(&self, pid: u32) -> Result<(), CgroupError> {
        self.entrance()
            .and_then(|mut procs| procs.write_all(pid.to_string().as_bytes()))
            .map_err(|source| CgroupError::Place {
                pid,
                path: self.dir.clone(),
                source,
            })
    }

    /// Whether a process belongs to the cgroup or one below it. False for a process that is gone.
    #[must_use]
    pub fn holds(&self, pid: u32) -> bool {
        Cgroup2::of_process(pid).is_ok_and(|path| path.starts_with(&self.cgroup.path))
    }

    /// Whether any process is in the cgroup or below it. Zombies do not count.
    ///
    /// # Errors
    /// [`CgroupError::End`].
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        let open = File::open(self.dir.join("cgroup.events"));
        open.and_then(|mut events| populated(&mut events))
            .map_err(|source| self.end_error(source))
    }

    /// Waits until no process is left in the cgroup.
    ///
    /// # Errors
    /// [`CgroupError::End`].
    pub async fn emptied(&self) -> Result<(), CgroupError> {
        // The kernel raises POLLPRI on this file with each change ("cgroup.events" in its cgroup-v2 guide).
        let wait = async {
            let events = File::open(self.dir.join("cgroup.events"))?;
            // SAFETY: a `File` keeps its one descriptor open until it is dropped, which the `AsyncFd` does.
            let mut events =
                unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }?;
            while populated(events.get_mut())? {
                if let Ok(ready) = timeout(RECHECK, events.ready(Interest::PRIORITY)).await {
                    ready?.clear_ready();
                }
            }
            Ok(())
        };
        wait.await.map_err(|source| self.end_error(source))
    }

    /// Sends a signal to every process in the cgroup and below it.
    ///
    /// Without a promise: what is forked meanwhile may be missed. [`OwnCgroup::kill`] misses nothing.
    pub fn signal(&self, signal: Signal) {
        signal_each(&self.dir, signal);
    }

    /// Kills every process in the cgroup and below it. They may still be leaving when this returns.
    ///
    /// # Errors
    /// [`CgroupError::End`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        kill_all(&self.dir).map_err(|source| self.end_error(source))
    }

    /// Kills what is left in the cgroup, waits for it to be gone (10 s at most) and removes the directory.
    ///
    /// # Errors
    /// [`CgroupError::End`] or [`CgroupError::Remove`]; then the directory stays.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.standing = false;
        destroy(&self.dir)
    }

    fn end_error(&self, source: io::Error) -> CgroupError {
        CgroupError::End {
            path: self.dir.clone(),
            source,
        }
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        if self.standing
            && let Err(error) = destroy(&self.dir)
        {
            tracing::warn!(%error, "a cgroup is left behind");
        }
    }
}

/// Whether a directory has the name of one of our cgroups: nothing else may be emptied by path.
#[must_use]
pub fn is_own_name(dir: &Path) -> bool {
    owner(dir).is_some()
}

/// Kills everything in a cgroup and removes it with all below it. One that is gone is fine.
///
/// # Errors
/// [`CgroupError::End`] or [`CgroupError::Remove`].
pub fn destroy(dir: &Path) -> Result<(), CgroupError> {
    if !dir.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    kill_all(dir)
        .and_then(|()| wait_empty(dir, deadline))
        .map_err(|source| CgroupError::End {
            path: dir.to_owned(),
            source,
        })?;
    remove_tree(dir, deadline).map_err(|source| CgroupError::Remove {
        path: dir.to_owned(),
        source,
    })
}

/// Removes the empty cgroups of owners that are gone. Those that still hold processes stay: `rmdir` refuses.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let dir = entry.path();
        let stale = owner(&dir).is_some_and(|pid| {
            pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
        });
        if stale && fs::remove_dir(&dir).is_ok() {
            tracing::debug!(dir = %dir.display(), "removed the cgroup of a dead predecessor");
        }
    }
}

/// The process id in the name of one of our cgroups.
fn owner(dir: &Path) -> Option<u32> {
    let name = dir.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A cgroup that was removed after its file was opened holds nobody.
fn populated(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    // Both fail with ENODEV then.
    let read = events
        .rewind()
        .and_then(|()| events.read_to_string(&mut text));
    match read {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        read => read.map(|_| text.lines().any(|line| line == "populated 1")),
    }
}

fn kill_all(dir: &Path) -> io::Result<()> {
    let kill = OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.kill"))
        .and_then(|mut file| file.write_all(b"1"));
    match kill {
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_each(dir),
        done => done,
    }
}

/// What `cgroup.kill` does, for Linux before 5.14: frozen tasks cannot fork, but they die of SIGKILL. Public so that
/// it can be tested on newer kernels; a cgroup that is gone is fine.
///
/// # Errors
/// When the cgroup cannot be frozen.
pub fn kill_each(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    let freeze = OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.freeze"))
        .and_then(|mut file| file.write_all(b"1"));
    match freeze {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => done?,
    }
    // A task that forks while it is being frozen leaves a child for the next round.
    while signal_each(dir, Signal::SIGKILL) > 0 && Instant::now() < deadline {
        thread::sleep(REMOVE_PAUSE);
    }
    Ok(())
}

/// How many processes there were.
fn signal_each(dir: &Path, signal: Signal) -> usize {
    let mut count = 0;
    walk(dir, &mut |dir| {
        // Processes of a PID namespace above ours are listed as 0, which `kill` would take for our own group.
        let pids = processes(dir).into_iter().map(u32::cast_signed);
        for pid in pids.filter(|pid| *pid > 0) {
            count += 1;
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => tracing::debug!(pid, %error, "cannot signal a process"),
            }
        }
        true
    });
    count
}

fn wait_empty(dir: &Path, deadline: Instant) -> io::Result<()> {
    let mut events = match File::open(dir.join("cgroup.events")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        events => events?,
    };
    while populated(&mut events)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left.min(RECHECK)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it, deepest first.
fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    let mut dirs = Vec::new();
    walk(dir, &mut |dir| {
        dirs.push(dir.to_owned());
        true
    });
    for dir in dirs.iter().rev() {
        loop {
            match fs::remove_dir(dir) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    thread::sleep(REMOVE_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_may_be_emptied_by_path() {
        assert!(is_own_name(Path::new("/sys/fs/cgroup/culvert-exec-12")));
        for other in ["/sys/fs/cgroup", "/x/culvert-exec-", "/x/culvert-exec-1/a"] {
            assert!(!is_own_name(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_needs_no_destroying() {
        destroy(Path::new("/nonexistent/culvert-exec-1")).unwrap();
    }
}
